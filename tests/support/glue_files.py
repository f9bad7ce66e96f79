"""Small GLUE files in the official layouts, and a folder in that of the hub's nyu-mll/glue."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

# pairs of sentences with what the official files have too: lone quotes, letters beyond ASCII, blanks at the end
TEXTS = [
    ('He said "no', "It's a so-called 'fact"),
    ('"', "Über 5 € – naïve"),
    ("a film of rare power ", "the second\u2028half"),
    ("plain", "text"),
]


@dataclass(frozen=True)
class Layout:
    """Describe a task's files.

    Attributes:
        header: First line of a file; empty if it has none.
        row: Line of an example, with {a} and {b} for its sentences and {y} for its label.
        names: Label texts in the order of the hub's numbers.
        hub: Columns of sentences on the hub.
        dev_header: First line of development files, if it is another.
        dev_row: Line of their examples, if it is another.
        dev: Development files, each with its split on the hub.
    """

    folder: str
    header: str
    row: str
    names: tuple[str, ...]
    hub: tuple[str, ...]
    dev_header: str = ""
    dev_row: str = ""
    dev: tuple[tuple[str, str], ...] = (("dev.tsv", "validation"),)

    @property
    def pair(self) -> bool:
        return len(self.hub) == 2

    @property
    def classes(self) -> int:
        return len(self.names) if self.folder != "STS-B" else 1

    def number(self, text: str) -> float:
        """Return the number that stands for a label on the hub."""
        return float(text) if self.folder == "STS-B" else self.names.index(text)

    @property
    def numbers(self) -> list[float]:
        return [self.number(name) for name in self.names]


BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
PARSES = "sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse".replace(" ", "\t")
MNLI = f"index\tpromptID\tpairID\tgenre\t{PARSES}\tsentence1\tsentence2\t"
MNLI_ROW = "0\t31193\t31193n\tgovernment\t( x )\t( y )\t(ROOT x)\t(ROOT y)\t{a}\t{b}\t"
LAYOUTS = {
    "cola": Layout("CoLA", "", "gj04\t{y}\t*\t{a}", BINARY, ("sentence",)),
    "sst2": Layout("SST-2", "sentence\tlabel", "{a}\t{y}", BINARY, ("sentence",)),
    "mrpc": Layout(
        "MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{y}\t702876\t702977\t{a}\t{b}", BINARY,
        ("sentence1", "sentence2"),
    ),
    "stsb": Layout(
        "STS-B", "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\t{a}\t{b}\t{y}", ("5.000", "0", "2.5"),
        ("sentence1", "sentence2"),
    ),
    "qqp": Layout(
        "QQP", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "133273\t213221\t213222\t{a}\t{b}\t{y}", BINARY,
        ("question1", "question2"),
    ),
    "mnli": Layout(
        "MNLI", f"{MNLI}label1\tgold_label", MNLI_ROW + "neutral\t{y}", ("entailment", "neutral", "contradiction"),
        ("premise", "hypothesis"),
        dev_header=f"{MNLI}label1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
        dev_row=MNLI_ROW + "neutral\tneutral\tentailment\tneutral\tneutral\t{y}",
        dev=(("dev_matched.tsv", "validation_matched"), ("dev_mismatched.tsv", "validation_mismatched")),
    ),
    "qnli": Layout(
        "QNLI", "index\tquestion\tsentence\tlabel", "0\t{a}\t{b}\t{y}", ENTAILMENT, ("question", "sentence")
    ),
    "rte": Layout(
        "RTE", "index\tsentence1\tsentence2\tlabel", "0\t{a}\t{b}\t{y}", ENTAILMENT, ("sentence1", "sentence2")
    ),
    "wnli": Layout(
        "WNLI", "index\tsentence1\tsentence2\tlabel", "0\t{a}\t{b}\t{y}", BINARY, ("sentence1", "sentence2")
    ),
}  # fmt: skip


def line(layout: Layout, first: str, second: str, label: str, *, dev: bool = False) -> str:
    """Write the line of an example."""
    return (layout.dev_row if dev and layout.dev_row else layout.row).format(a=first, b=second, y=label)


def texts(split: int) -> list[tuple[str, str]]:
    """Return ``TEXTS`` in another order for each of a task's splits: 0 is training."""
    return TEXTS[split:] + TEXTS[:split]


def expected(layout: Layout, split: int) -> tuple[list[str], list[str] | None, list[float]]:
    """Return the texts of a split with the labels in turn, numbered as on the hub."""
    first, second = map(list, zip(*texts(split), strict=True))
    numbers = layout.numbers
    return first, second if layout.pair else None, [numbers[i % len(numbers)] for i in range(len(TEXTS))]


def write_task(root: Path, layout: Layout, *, newline: str = "\n", bom: bool = False) -> Path:
    """Write training and development files of a task, with ``texts`` and a blank line; return train.tsv."""
    folder = root / layout.folder
    folder.mkdir(exist_ok=True)
    for split, name in enumerate(["train.tsv", *(file for file, _ in layout.dev)]):
        dev = split > 0
        header = layout.dev_header if dev and layout.dev_header else layout.header
        names = layout.names
        lines = [line(layout, a, b, names[i % len(names)], dev=dev) for i, (a, b) in enumerate(texts(split))]
        content = newline.join([*([header] if header else []), *lines, "", ""])
        (folder / name).write_bytes(content.encode("utf-8-sig" if bom else "utf-8"))
    return folder / "train.tsv"


def write_hub(folder: Path, task: str, layout: Layout) -> None:
    """Write the parquet files of a task's splits, and a README.md that names them as on the hub."""
    splits = ["train", *(split for _, split in layout.dev)]
    files = "".join(f"  - split: {split}\n    path: {task}/{split}-*\n" for split in splits)
    (folder / task).mkdir(parents=True)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {task}\n  data_files:\n{files}---\n")
    kind = pa.float32() if layout.classes == 1 else pa.int64()
    for number, split in enumerate(splits):
        *sides, labels = expected(layout, number)
        columns = dict(zip(layout.hub, sides, strict=False))
        table = pa.table({**columns, "label": pa.array(labels, kind), "idx": list(range(len(labels)))})
        parquet.write_table(table, folder / task / f"{split}-00000-of-00001.parquet")
