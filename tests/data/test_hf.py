"""Data sets through ``datasets``: a folder in the hub's layout, its splits, and what is said without a network."""

from pathlib import Path
from typing import Any

import pytest

from fishexp.data import hf
from fishexp.data.datasets import Dataset
from tests.support.checks import refusal


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write(folder: str, unlabelled: str = "", **splits: int) -> None:
    """Write splits of so many examples as parquet files, with names for the numbers of their classes."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    Path(folder).mkdir(parents=True)
    for split, count in splits.items():
        rows = {"text": [f"{split} {i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
        if split == unlabelled:
            rows["label"] = [-1] * count
        datasets.Dataset.from_dict(rows, features=features).to_parquet(f"{folder}/{split}-00000-of-00001.parquet")


def load(path: str, **options: Any) -> Dataset:
    unsaid: dict[str, Any] = {"valid_fraction": 0.1, "text": None, "label": None, "kind": None, "max_length": 16}
    unsaid |= {"train_limit": None, "valid_limit": None, "holdout": 0, "config": None, "revision": None}
    return hf.load(path=path, **unsaid | {"train_split": "train", "valid_split": None} | options)


def test_a_folder(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fishexp")
    write("some/films", train=20, validation=6, test=4)
    data = load("some/films")
    assert (data.names, data.columns, data.classes) == (("no", "yes"), ("text",), 2)
    assert data.train.first == [f"train {i}" for i in range(20)]
    assert data.valid[""].first == [f"validation {i}" for i in range(6)]
    assert data.valid[""].labels.tolist() == [0, 1] * 3
    assert "trained on some/films train, reported on some/films validation" in caplog.messages
    assert load("some/films", valid_split="test").valid[""].first == [f"test {i}" for i in range(4)]
    assert len(load("some/films", train_split="validation").train) == 6
    assert len(load("some/films", holdout=5, train_limit=3).train) == 3


def test_without_a_split_to_report_on_a_part_is(caplog: pytest.LogCaptureFixture) -> None:
    write("films", train=20)
    data = load("films")
    assert (len(data.train), len(data.valid[""])) == (18, 2)


def test_a_split_without_labels_is_not_reported_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fishexp")
    write("films", "test", train=20, test=4)
    data = load("films")
    assert (len(data.train), len(data.valid[""])) == (18, 2)
    assert set(data.train.first) | set(data.valid[""].first) == {f"train {i}" for i in range(20)}
    assert "films test has no labels, so that it is not reported on" in caplog.messages
    assert "trained on films train, reported on a part of it" in caplog.messages
    write("plays", "validation", train=20, validation=6, test=4)
    assert load("plays").valid[""].first == [f"test {i}" for i in range(4)]
    assert refusal(load, "films", valid_split="test") == (
        "films test row 1: the label '-1' is not one of films train's: no, yes"
    )


def test_what_is_not_there_gets_a_line() -> None:
    write("films", train=20, test=4)
    assert refusal(load, "films", train_split="training") == (
        "data.path=films has no split training; did you mean train? there are: test, train"
    )
    assert refusal(load, "films", valid_split="dev") == "data.path=films has no split dev; there are: test, train"
    assert refusal(load, "./film") == "data.path=./film is not a folder"
    assert refusal(load, "films", config="other").startswith("data.path=films cannot be loaded: ")
    Path("empty").mkdir()
    assert refusal(load, "empty").startswith("data.path=empty cannot be loaded: ")


@pytest.mark.usefixtures("no_network")
def test_no_network() -> None:
    assert refusal(load, "stanfordnlp/imdb").startswith("data.path=stanfordnlp/imdb cannot be loaded: ")
