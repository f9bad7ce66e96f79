"""Predictions for GLUE's test sets, in a zip as the benchmark's site takes it.

``python -m experiments.table1.submission RUN_FOLDER ... -o submission.zip``, a run folder for each task.
"""

import argparse
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

import fishexp
from fishexp.data import default_root
from fishexp.data.glue import TASKS, read_columns
from fishexp.errors import FishexpError
from fishexp.fisher.batches import logits_of
from fishexp.system.atomic import replacing, writing
from fishexp.system.program import carry_out

# examples a batch; changes speed only
_BATCH = 64
# date of the files in a zip, so that the same predictions give the same bytes
_DATE = (1980, 1, 1, 0, 0, 0)


class TestSet(NamedTuple):
    """Describe a test set and its file in a submission.

    Attributes:
        file: In the folder of the task.
        submitted: Name of the predictions' file.
        rows: Number of its examples.
    """

    file: str
    submitted: str
    rows: int


# task -> its test sets, with the rows that the official download has
TEST_SETS: Mapping[str, Sequence[TestSet]] = {
    "cola": [TestSet("test.tsv", "CoLA.tsv", 1063)],
    "sst2": [TestSet("test.tsv", "SST-2.tsv", 1821)],
    "mrpc": [TestSet("test.tsv", "MRPC.tsv", 1725)],
    "stsb": [TestSet("test.tsv", "STS-B.tsv", 1379)],
    "qqp": [TestSet("test.tsv", "QQP.tsv", 390_965)],
    "mnli": [
        TestSet("test_matched.tsv", "MNLI-m.tsv", 9796),
        TestSet("test_mismatched.tsv", "MNLI-mm.tsv", 9847),
    ],
    "qnli": [TestSet("test.tsv", "QNLI.tsv", 5463)],
    "rte": [TestSet("test.tsv", "RTE.tsv", 3000)],
    "wnli": [TestSet("test.tsv", "WNLI.tsv", 146)],
}
# a test set of the benchmark that has no training examples of its own, and that we do not predict
_DIAGNOSTIC = "AX.tsv"


def main(arguments: Sequence[str]) -> int:
    """Write the zip that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.table1.submission", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="of a finished run, one for each task")
    parser.add_argument("-o", "--output", type=Path, default=Path("submission.zip"))
    parser.add_argument("--root", type=Path, help="folder of the official download; $FISHEXP_DATA/glue by default")
    options = parser.parse_args(arguments)
    return carry_out("fishexp", lambda: print(write_submission(options.runs, options.output, options.root)))


def write_submission(runs: Sequence[Path], output: Path, root: Path | None = None) -> str:
    """Predict the test sets of the runs' tasks, write the zip, and say what it holds and what the site still wants.

    Raises:
        FishexpError: If a run is no finished one on GLUE, two are of one task, a test set is incomplete, or the zip
            cannot be written.
    """
    folder = root or default_root("glue")
    if folder is None:
        raise FishexpError("no GLUE here: give --root=DIR, the folder of the official download, or set FISHEXP_DATA")
    tasks: dict[str, Path] = {}
    for run in runs:
        task = _task(run)
        if task in tasks:
            raise FishexpError(f"{run} and {tasks[task]} are both runs of {task}; give one for each task")
        tasks[task] = run
    files = {name: text for task, run in tasks.items() for name, text in _predictions(task, run, folder)}
    with writing(output), replacing(output) as new, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), text, zipfile.ZIP_DEFLATED)
    check_submission(output)
    wanted = [test.submitted for tests in TEST_SETS.values() for test in tests] + [_DIAGNOSTIC]
    missing = [name for name in wanted if name not in files]
    lacks = f"; the site wants {', '.join(missing)} as well" if missing else ""
    return f"{output} holds {', '.join(files)}{lacks}"


def _task(run: Path) -> str:
    """Return the task of GLUE that a run was trained on.

    Raises:
        FishexpError: If it is no run on GLUE.
    """
    try:
        data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    except (OSError, yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        raise FishexpError(f"{run} is not the folder of a finished run: it has no config.yaml of one") from None
    task = str(data.get("task")) if data.get("name") == "glue" else ""
    if task not in TEST_SETS:
        raise FishexpError(f"{run} is a run on {data.get('name')}, not on a task of GLUE")
    return task


def _predictions(task: str, run: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of the file of each test set of a task."""
    model, prepare = fishexp.load_run(run)
    for test in TEST_SETS[task]:
        path, layout = root / TASKS[task].folder / test.file, TASKS[task]
        # only the test set of CoLA has a header
        header = ["sentence"] if task == "cola" else [str(column) for column in layout.columns]
        index, *texts = read_columns(path, ["index", *header])
        if len(index) != test.rows or index != [str(row) for row in range(test.rows)]:
            raise FishexpError(
                f"{path} has {len(index)} examples, the official file has {test.rows}, numbered from 0; is it complete?"
            )
        outputs = _outputs(model, prepare, texts)
        rows = "".join(f"{row}\t{label}\n" for row, label in enumerate(_labels(task, outputs)))
        yield test.submitted, f"index\tprediction\n{rows}"


@torch.inference_mode()
def _outputs(model: nn.Module, prepare: Callable[..., Any], texts: Sequence[Sequence[str]]) -> Tensor:
    """Compute the logits of all examples, in their order; (examples, classes)."""
    order = sorted(range(len(texts[0])), key=lambda row: -sum(len(column[row]) for column in texts))  # little padding
    found = []
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        found.append(logits_of(model, prepare(*([column[row] for row in rows] for column in texts))))
    return torch.cat(found)[torch.tensor(order).argsort()]


def _labels(task: str, outputs: Tensor) -> list[str]:
    """Write predictions as the site wants them: names of classes, or scores from 0 to 5."""
    if not TASKS[task].names:
        return [f"{score:.3f}" for score in outputs.squeeze(1).clamp(0, 5).tolist()]
    return [TASKS[task].names[label] for label in outputs.argmax(1).tolist()]


def check_submission(archive: Path) -> None:
    """Check that every file of a submission has the columns, the rows and the labels that the site takes.

    Raises:
        FishexpError: If one does not; says which and why.
    """
    tasks = {test.submitted: (task, test) for task, tests in TEST_SETS.items() for test in tests}
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            if name not in tasks:
                raise FishexpError(f"{name} is not the name of a test set; there are {', '.join(tasks)}")
            task, test = tasks[name]
            header, *lines = opened.read(name).decode().splitlines()
            rows = [line.split("\t") for line in lines]
            if header != "index\tprediction" or [row[0] for row in rows] != [str(row) for row in range(test.rows)]:
                raise FishexpError(f"{name} should have the columns index and prediction, and {test.rows} rows from 0")
            for _, label in rows:
                _check_label(name, TASKS[task].names, label)


def _check_label(name: str, names: Sequence[str], label: str) -> None:
    known = label in names if names else label.replace(".", "", 1).isdecimal() and 0 <= float(label) <= 5
    if not known:
        wanted = f"one of {', '.join(names)}" if names else "a number from 0 to 5"
        raise FishexpError(f"{name} holds the prediction {label!r}, which is not {wanted}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
