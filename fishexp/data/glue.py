"""GLUE: nine tasks of English sentences and sentence pairs (Wang et al., 2019)."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Ge
from torch import Tensor

from fishexp.data import default_root
from fishexp.data.datasets import Dataset, Metrics, Outline
from fishexp.data.metrics import accuracy, accuracy_and_f1, correlations, matthews
from fishexp.data.text import Sentences
from fishexp.errors import FishexpError, first_line
from fishexp.system.hub import fail_fast_offline

log = logging.getLogger(__name__)

TaskName: TypeAlias = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
# largest fraction of lines with too few columns: the official files have a few, a broken file has more
_MAX_SHORT_LINES = 0.001
# characters of a bad field that a message shows
_MAX_SHOWN = 80
# training examples on the hub
_ON_HUB = {
    "cola": 8551, "sst2": 67349, "mrpc": 3668, "stsb": 5749, "qqp": 363846, "mnli": 392702, "qnli": 104743,
    "rte": 2490, "wnli": 635,
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Describe how a task's official files, and its data set on the hub, are laid out.

    Attributes:
        folder: Its folder in the official download.
        columns: Columns of a file that hold sentences, by name, or by position where there is no header.
        label: Column of a file that holds the label, likewise.
        names: Label texts in the order of the hub's label numbers; empty for a regression.
        classes: Names of the classes on the hub, in that order.
        hub: Columns on the hub that hold sentences.
        metrics: Metrics of the benchmark, the headline first.
        valid: Sets to report on: their name in metrics, their file, their split on the hub.
    """

    folder: str
    columns: tuple[str | int, ...]
    label: str | int
    names: tuple[str, ...]
    classes: tuple[str, ...]
    hub: tuple[str, ...]
    metrics: Callable[[Tensor, Tensor], Metrics] = accuracy
    valid: tuple[tuple[str, str, str], ...] = (("", "dev.tsv", "validation"),)


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
TASKS: dict[str, Task] = {
    "cola": Task("CoLA", (3,), 1, ("0", "1"), ("unacceptable", "acceptable"), ("sentence",), matthews),
    "sst2": Task("SST-2", ("sentence",), "label", ("0", "1"), ("negative", "positive"), ("sentence",)),
    "mrpc": Task(
        "MRPC", ("#1 String", "#2 String"), "Quality", ("0", "1"), ("not_equivalent", "equivalent"), PAIR,
        accuracy_and_f1,
    ),
    "stsb": Task("STS-B", PAIR, "score", (), (), PAIR, correlations),
    "qqp": Task(
        "QQP", ("question1", "question2"), "is_duplicate", ("0", "1"), ("not_duplicate", "duplicate"),
        ("question1", "question2"), accuracy_and_f1,
    ),
    "mnli": Task(
        "MNLI",
        PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("entailment", "neutral", "contradiction"),
        ("premise", "hypothesis"),
        valid=(
            ("matched", "dev_matched.tsv", "validation_matched"),
            ("mismatched", "dev_mismatched.tsv", "validation_mismatched"),
        ),
    ),
    "qnli": Task("QNLI", ("question", "sentence"), "label", ENTAILMENT, ENTAILMENT, ("question", "sentence")),
    "rte": Task("RTE", PAIR, "label", ENTAILMENT, ENTAILMENT, PAIR),
    "wnli": Task("WNLI", PAIR, "label", ("0", "1"), ("not_entailment", "entailment"), PAIR),
}  # fmt: skip


def load(
    *,
    task: TaskName,
    root: str | None,
    max_length: Annotated[int, Ge(3)],
    train_limit: Annotated[int, Ge(1)] | None,
    valid_limit: Annotated[int, Ge(1)] | None,
    holdout: Annotated[int, Ge(0)],
) -> Dataset:
    """Load a task's training sentences, and its development set to report on.

    Args:
        root: Folder of the official download (``RTE/train.tsv`` ...); None: ``$FISHEXP_DATA/glue``, else
            ``nyu-mll/glue`` through ``datasets``.
        max_length: Number of tokens that an input is cut to.

    Raises:
        FishexpError: If a file is missing or holds a label that does not exist, or the hub cannot be reached.
    """
    layout = TASKS[task]
    folder = Path(root) if root is not None else default_root("glue")
    if folder is not None:
        first, *others = (_from_file(file, layout, max_length, folder) for file in files(task=task, root=root))
        train, valid = first, {name: part for (name, _, _), part in zip(layout.valid, others, strict=True)}
    else:
        train, valid = _from_hub(task, layout, max_length)
    classes = len(layout.names) or 1
    dataset = Dataset(
        train, valid, classes, channels=0, metrics=layout.metrics, names=layout.classes, columns=layout.hub
    )
    return dataset.limited(train_limit, valid_limit, holdout)


def files(*, task: TaskName, root: str | None) -> list[Path]:
    """List the files that :func:`load` reads, those for training first; none where it asks the hub."""
    folder = Path(root) if root is not None else default_root("glue")
    if folder is None:
        return []
    names = ["train.tsv", *(file for _, file, _ in TASKS[task].valid)]
    return [folder / TASKS[task].folder / name for name in names]


def outline(*, task: TaskName, root: str | None) -> Outline:
    """Count a task's training examples by the lines of its file, if it is on this machine; a few may be left out."""
    layout, train = TASKS[task], _ON_HUB[task]
    if found := files(task=task, root=root):
        _check_there(found[0], found[0].parents[1])
        with found[0].open("rb") as file:
            train = sum(line.strip() != b"" for line in file) - isinstance(layout.label, str)
    return Outline(len(layout.names) or 1, channels=0, train=train)


def _check_there(path: Path, root: Path) -> None:
    if not path.is_file():
        raise FishexpError(f"{path} is missing; data.root={root} should hold the official GLUE download")


def _from_file(path: Path, layout: Task, max_length: int, root: Path) -> Sentences:
    """Read an official file; warn of lines that are too short, unless they are too many."""
    _check_there(path, root)
    lines = _lines(path)
    wanted = [*layout.columns, layout.label]
    header = isinstance(layout.label, str)
    index = _column_index(path, lines[0], list(map(str, wanted))) if header else list(map(int, wanted))
    # QQP has lines with too few columns, and MNLI more columns in dev than in train: only wanted columns must be there
    rows = [(number, row) for number, row in enumerate(lines, 1) if number > header and row != [""]]
    good = [(number, row) for number, row in rows if len(row) > max(index)]
    if short := [number for number, row in rows if len(row) <= max(index)]:
        message = f"{path} line {short[0]}: {len(short)} of {len(rows)} lines have too few columns"
        if len(short) > _MAX_SHORT_LINES * len(rows):
            raise FishexpError(f"{message}; is the file complete?")
        log.warning("%s and were left out", message)
    if not good:
        raise FishexpError(f"{path} holds no examples")
    labels = [_label(row[index[-1]], layout, path, number) for number, row in good]
    texts = [[row[column] for _, row in good] for column in index[:-1]]
    return _sentences(texts, labels, layout, max_length)


def read_columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    """Read columns of an official file with a header, such as that of a test set, which has no labels.

    Returns:
        For each of ``names``, its text in each line.

    Raises:
        FishexpError: If the file is missing, lacks a column, or has a line that is too short.
    """
    if not path.is_file():
        raise FishexpError(f"{path} is missing; its folder should be that of the official GLUE download")
    header, *rows = _lines(path)
    index = _column_index(path, header, names)
    for number, row in enumerate(rows, 2):
        if len(row) <= max(index):
            raise FishexpError(f"{path} line {number} has too few columns; is the file complete?")
    return [[row[column] for row in rows] for column in index]


def _column_index(path: Path, header: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return where in the first line of a file the columns of these names are."""
    if missing := [name for name in names if name not in header]:
        raise FishexpError(f"{path} line 1: there is no column {missing[0]!r} in {' '.join(header)[:_MAX_SHOWN]!r}")
    return [header.index(name) for name in names]


def _lines(path: Path) -> list[list[str]]:
    """Read a file of columns that tabs separate; quotes mean nothing, as the official files hold unbalanced ones."""
    lines = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise FishexpError(f"{path} line {number} is not UTF-8 text; is this the official file?") from None
            lines.append(text.rstrip("\r\n").split("\t"))
    if not lines:
        raise FishexpError(f"{path} is empty")
    return lines


def _label(text: str, layout: Task, path: Path, number: int) -> float:
    """Read the label on line ``number``: the number of a class, or the score of a regression."""
    if layout.names:
        if text not in layout.names:
            shown, names = text[:_MAX_SHOWN], ", ".join(layout.names)
            raise FishexpError(f"{path} line {number}: the label {shown!r} is not one of {names}")
        return layout.names.index(text)
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 5:
        raise FishexpError(f"{path} line {number}: the score {text[:_MAX_SHOWN]!r} is not a number from 0 to 5")
    return score


def _sentences(texts: list[list[str]], labels: list[float], layout: Task, max_length: int) -> Sentences:
    second = texts[1] if len(texts) > 1 else None
    return Sentences(
        texts[0], second, torch.tensor(labels, dtype=torch.long if layout.names else torch.float), max_length
    )


def _from_hub(task: str, layout: Task, max_length: int) -> tuple[Sentences, dict[str, Sentences]]:
    """Load a task from the hub: its training sentences, and its sets to report on by their names in metrics."""
    from datasets import load_dataset

    fail_fast_offline()
    try:
        splits = load_dataset("nyu-mll/glue", task)
    except Exception as error:  # datasets raises many kinds, network ones among them
        raise FishexpError(
            f"data.root is not set and nyu-mll/glue could not be loaded ({first_line(error)}); "
            "give data.root=DIR, or set FISHEXP_DATA"
        ) from None

    names = getattr(splits["train"].features["label"], "names", None)
    if names is not None and tuple(names) != layout.classes:
        found, ours = ", ".join(names), ", ".join(layout.classes)
        raise FishexpError(f"nyu-mll/glue has the classes {found} for {task}, not {ours}; give data.root=DIR")

    def sentences(split: str) -> Sentences:
        rows = splits[split]
        return _sentences([list(rows[column]) for column in layout.hub], list(rows["label"]), layout, max_length)

    return sentences("train"), {name: sentences(split) for name, _, split in layout.valid}
