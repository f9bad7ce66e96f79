"""GLUE is read from small files in the official layouts, from a folder in the hub's layout, and from the real files."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from fishexp.data import glue
from fishexp.data.datasets import Dataset
from fishexp.data.metrics import accuracy, accuracy_and_f1, correlations, matthews
from tests.support.checks import refusal
from tests.support.glue_files import LAYOUTS, expected, line, write_hub, write_task


def load(task: str, root: Path | None, **limits: Any) -> Dataset:
    options: dict[str, Any] = {"train_limit": None, "valid_limit": None, "holdout": 0, "max_length": 16} | limits
    return glue.load(task=task, root=None if root is None else str(root), **options)  # type: ignore[arg-type]


def shown(part: Any) -> tuple[list[str], list[str] | None, list[float]]:
    return part.first, part.second, part.labels.tolist()


@pytest.mark.parametrize("task", LAYOUTS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [False, True])
def test_the_official_files(task: str, newline: str, bom: bool, tmp_path: Path) -> None:
    layout = LAYOUTS[task]
    write_task(tmp_path, layout, newline=newline, bom=bom)
    data = load(task, tmp_path)
    assert list(data.valid) == (["matched", "mismatched"] if task == "mnli" else [""])
    for split, part in enumerate([data.train, *data.valid.values()]):
        assert shown(part) == expected(layout, split)
        assert part.labels.dtype == (torch.float if task == "stsb" else torch.long)
        assert part.max_length == 16
    assert (data.classes, data.channels) == (layout.classes, 0)
    assert len(data.names) == (0 if task == "stsb" else layout.classes)
    if layout.names[0].isalpha():
        assert data.names == layout.names


def test_metrics_are_the_benchmarks(tmp_path: Path) -> None:
    others = {"cola": matthews, "mrpc": accuracy_and_f1, "qqp": accuracy_and_f1, "stsb": correlations}
    for task, layout in LAYOUTS.items():
        write_task(tmp_path, layout)
        assert load(task, tmp_path).metrics is others.get(task, accuracy), task


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Write a QQP whose train.tsv has 2,000 examples on lines 2 to 2,001."""
    layout = LAYOUTS["qqp"]
    write_task(tmp_path, layout)
    lines = [layout.header, *(line(layout, f"q{i}", "r", "1") for i in range(2_000))]
    (tmp_path / "QQP" / "train.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def change(root: Path, numbers: dict[int, str]) -> Path:
    """Replace lines of the long train.tsv, counted from 1."""
    file = root / "QQP" / "train.tsv"
    lines = file.read_text().split("\n")
    for number, text in numbers.items():
        lines[number - 1] = text
    file.write_text("\n".join(lines))
    return file


def test_a_few_short_lines_are_left_out_with_a_warning(long: Path, caplog: pytest.LogCaptureFixture) -> None:
    load("qqp", long)
    assert not caplog.messages
    file = change(long, {5: "3\t1\t2\tcut o", 9: "f\tq1\tq2\tr1\tr2"})
    data = load("qqp", long)
    assert caplog.messages == [f"{file} line 5: 2 of 2000 lines have too few columns and were left out"]
    assert data.train.first == [f"q{i}" for i in range(2_000) if i not in (3, 7)]
    assert len(data.train) == len(data.train.second) == 1_998


def test_many_short_lines_are_a_broken_file(long: Path) -> None:
    file = change(long, {5: "short", 9: "short", 12: "short"})
    assert refusal(load, "qqp", long) == f"{file} line 5: 3 of 2000 lines have too few columns; is the file complete?"


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        ("rte", "maybe", "the label 'maybe' is not one of entailment, not_entailment"),
        ("rte", "", "the label '' is not one of entailment, not_entailment"),
        ("mnli", "-", "the label '-' is not one of entailment, neutral, contradiction"),
        ("qqp", "2", "the label '2' is not one of 0, 1"),
        ("cola", "x" * 500, f"the label {'x' * 80!r} is not one of 0, 1"),
        ("stsb", "5.001", "the score '5.001' is not a number from 0 to 5"),
        ("stsb", "-0.1", "the score '-0.1' is not a number from 0 to 5"),
        ("stsb", "nan", "the score 'nan' is not a number from 0 to 5"),
        ("stsb", "high", "the score 'high' is not a number from 0 to 5"),
    ],
)
def test_labels_that_do_not_exist(task: str, label: str, message: str, tmp_path: Path) -> None:
    layout = LAYOUTS[task]
    file = write_task(tmp_path, layout)
    lines = file.read_text().split("\n")
    lines[2] = line(layout, "a", "b", label)
    file.write_text("\n".join(lines))
    assert refusal(load, task, tmp_path) == f"{file} line 3: {message}"


HEADER = "index\tsentence1\tsentence2\tlabel\n"
NOT_TEXT = "is not UTF-8 text; is this the official file?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, " is missing; data.root={root} should hold the official GLUE download"),
        (b"", " is empty"),
        (HEADER.encode(), " holds no examples"),
        (b"\x1f\x8b\x08\x00" + bytes(range(256)), f" line 1 {NOT_TEXT}"),
        (f"{HEADER}0\tcaf\xe9\tb\tentailment\n".encode("latin-1"), f" line 2 {NOT_TEXT}"),
        (HEADER.encode("utf-16"), f" line 1 {NOT_TEXT}"),
        (b"index\tsentence1\tlabel\n", " line 1: there is no column 'sentence2' in 'index sentence1 label'"),
        (b"<html>\x0b\r" + b"x" * 500, f" line 1: there is no column 'sentence1' in '<html>\\x0b\\r{'x' * 72}'"),
    ],
)
def test_files_that_are_not_the_official_files(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = write_task(tmp_path, LAYOUTS["rte"])
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert refusal(load, "rte", tmp_path) == f"{file}{message}".replace("{root}", str(tmp_path))


def test_an_empty_file_without_header(tmp_path: Path) -> None:
    file = write_task(tmp_path, LAYOUTS["cola"])
    file.write_text("\n\n")
    assert refusal(load, "cola", tmp_path) == f"{file} holds no examples"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder whose nyu-mll/glue ``datasets`` prefers to the hub's."""
    monkeypatch.delenv("FISHEXP_DATA", raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("task", LAYOUTS)
def test_the_hubs_copy_is_read_like_the_files(task: str, hub: Path) -> None:
    layout = LAYOUTS[task]
    write_hub(hub / "nyu-mll" / "glue", task, layout)
    write_task(hub, layout)
    found, files = load(task, None), load(task, hub)
    assert list(found.valid) == list(files.valid)
    assert shown(found.train) == shown(files.train)
    for name, part in found.valid.items():
        assert shown(part) == shown(files.valid[name])
        assert part.labels.dtype == files.valid[name].labels.dtype


@pytest.mark.parametrize("swapped", [False, True])
def test_the_hubs_names_of_classes_are_ours(hub: Path, swapped: bool) -> None:
    import datasets
    from datasets import ClassLabel, Features, Value

    layout = LAYOUTS["sst2"]
    write_hub(hub / "nyu-mll" / "glue", "sst2", layout)
    names = ["positive", "negative"] if swapped else ["negative", "positive"]
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=names), "idx": Value("int32")})
    original = datasets.load_dataset
    with mock.patch("datasets.load_dataset", lambda *path: original(*path).cast(features)):
        if swapped:
            assert refusal(load, "sst2", None) == (
                "nyu-mll/glue has the classes positive, negative for sst2, not negative, positive; give data.root=DIR"
            )
        else:
            assert load("sst2", None).names == ("negative", "positive")


@pytest.mark.usefixtures("hub", "no_network")
def test_no_root_and_no_network() -> None:
    message = refusal(load, "rte", None)
    assert message.startswith("data.root is not set and nyu-mll/glue could not be loaded (")
    assert message.endswith("; give data.root=DIR, or set FISHEXP_DATA")


# numbers of training and development examples, by the README beside the data
ROWS = {
    "cola": (8_551, 1_043), "sst2": (67_349, 872), "mrpc": (3_668, 408), "stsb": (5_749, 1_500), "rte": (2_490, 277),
    "wnli": (635, 71),
}  # fmt: skip


@pytest.mark.parametrize("task", ROWS)
def test_the_real_files(task: str, real_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every row is read, without a warning, and labels occur as often as their texts."""
    layout = LAYOUTS[task]
    data = load(task, real_data / "glue")
    assert not caplog.messages
    for part, file, rows in zip((data.train, data.valid[""]), ("train.tsv", "dev.tsv"), ROWS[task], strict=True):
        assert len(part) == len(part.first) == len(part.labels) == rows
        column = 1 if task == "cola" else 0 if task == "mrpc" else -1
        lines = (real_data / "glue" / layout.folder / file).read_bytes().decode("utf-8-sig").strip().split("\n")
        texts = [text.rstrip("\r").split("\t")[column] for text in lines[bool(layout.header) :]]
        assert [layout.number(text) for text in texts] == pytest.approx(part.labels.tolist())
