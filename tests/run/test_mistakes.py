"""Each mistake of a user gets a clear line and exit status 2, no traceback, before anything is trained."""

import os
from pathlib import Path

import pytest

from tests.support.cli import QUICK, fishexp, records

COMPOSITION = {
    "method=fsh": "method=fsh: no such method; did you mean fish? there are: bitfit, fish, full, magnitude, random",
    "data=imagenet": "data=imagenet: no such data; there are: cifar10, digits, glue",
    "regime=federal": "regime=federal: no such regime; there are: checkpointing, distributed, transfer",
    "data=glue/rte": "data=glue/rte: no such data; did you mean glue?",
    "metod=fish": "unknown key metod; did you mean method?",
    "+sead=1": "unknown key sead; did you mean seed?",
    "method.smaples=3": "unknown key method.smaples; did you mean method.samples?",
    "+method.smaples=3": "unknown key method.smaples; did you mean method.samples?",
    "++method.smaples=3": "unknown key method.smaples; did you mean method.samples?",
    "regime.lr.peak=3": "unknown key regime.lr.peak; did you mean regime.lr?",
    "=3": "=3 is not key=value: the key is missing",
    "seed=[1": "seed=[1: a value with [ is to be quoted: 'seed=\"[1\"'",
    "keep=0": "keep is a fraction in (0, 1], got 0",
    "keep=1.5": "keep is a fraction in (0, 1], got 1.5; did you mean 0.015?",
    "keep=-1": "keep is a fraction in (0, 1], got -1",
    "keep=nan": "keep=nan should be a finite number",
    "keep=abc": "keep=abc should be a valid number",
    "keep=null": "method=fish needs keep, the fraction of all weights that may move",
    "seed=-1": "seed=-1 should be greater than or equal to 0",
    "seed=1.5": "seed=1.5 should be a valid integer",
    "threads=1099511627776": f"this machine has {os.cpu_count()} cores; give at most {64 * (os.cpu_count() or 1)}",
    f"threads={64 * (os.cpu_count() or 1) + 1}": f"this machine has {os.cpu_count()} cores; give at most",
    "threads=0": "threads=0 should be greater than or equal to 1",
    "device=gpu": "device=gpu should be 'auto', 'cpu', 'cuda' or 'mps'",
    "precision=fp16": "precision=fp16 should be 'fp32' or 'bf16'",
    "wandb=on": "wandb=on should be 'disabled', 'offline' or 'online'",
    "regime.epochs=${epoch}": "regime.epochs: Interpolation key 'epoch' not found",
    "--keep=3": "unrecognized arguments: --keep=3; --help shows what there is",
    "--config-dir=nowhere": "--config-dir nowhere is not a folder",
}


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FISHEXP_DATA", raising=False)


@pytest.mark.parametrize("argument", COMPOSITION)
def test_a_run_that_cannot_be_composed_is_refused(argument: str, tmp_path: Path) -> None:
    assert COMPOSITION[argument] in fishexp(argument).mistake()
    assert not (tmp_path / "outputs").exists()


OPTIONS = {
    ("method.samples=abc",): "method.samples=abc should be a valid integer",
    ("method.samples=0",): "method.samples=0 should be greater than or equal to 1",
    ("method.labels=true",): "method.labels=True should be 'true_label', 'expected' or 'sampled'",
    ("method=magnitude", "method.order=big"): "method.order=big should be 'largest' or 'smallest'",
    ("regime.epochs=-1",): "regime.epochs=-1 should be greater than or equal to 0",
    ("regime.epochs=1.5",): "regime.epochs=1.5 should be a valid integer",
    ("regime.lr=0",): "regime.lr=0 should be greater than 0",
    ("regime.lr=nan",): "regime.lr=nan should be a finite number",
    ("regime.lr=null",): "regime.lr has no default here; give regime.lr=...",
    ("regime.batch_size=0",): "regime.batch_size=0 should be greater than or equal to 1",
    ("data.train_limit=0",): "data.train_limit=0 should be greater than or equal to 1",
    ("data=glue", "data.task=squad"): "data.task=squad should be 'cola', 'sst2',",
    ("model=resnet34", "model.layers=50"): "model.layers=50 should be 8, 9, 18 or 34",
    ("-m", "method.samples=64,-5"): "method.samples=-5 should be greater than or equal to 1",
    ("-m", "keep=0.005,7"): "keep is a fraction in (0, 1], got 7",
}


@pytest.mark.parametrize("arguments", OPTIONS, ids=" ".join)
def test_options_out_of_range(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Refuse the last run of a sweep too, before any has started."""
    assert OPTIONS[arguments] in fishexp(*arguments).mistake()
    assert not (tmp_path / "outputs" / "records.jsonl").exists()


MISFITS = {
    ("keep=0.004",): "keep=0.004 pays for 1232 of 308074 weights, fewer than the 1290 of fc.weight, fc.bias",
    ("data.holdout=1437",): "data.holdout=1437 leaves nothing to train on: there are 1437 training examples",
    ("data=cifar10", "data.root=nowhere"): "data.root=nowhere does not hold cifar-10-batches-py/",
    ("data=glue", "model=minilm", "data.root=nowhere"): "nowhere/SST-2/train.tsv is missing",
    (
        "model=resnet18",
        "batch_size=127",
        "drop_last=false",
    ): "regime.batch_size=127 leaves a last batch, of 128 examples,",
    ("model=resnet18", "batch_size=1"): "regime.batch_size=1 leaves batches of 1, whose variance BatchNorm cannot take",
    ("model=minilm",): "this model reads text, but the data set is images",
    ("model.path=nowhere",): "model.path=nowhere",
}


@pytest.mark.parametrize("arguments", MISFITS, ids=" ".join)
def test_parts_that_do_not_fit(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Refuse a run before it trains; the failure is on record."""
    assert MISFITS[arguments] in fishexp(*QUICK, *arguments).mistake()
    (record,) = records(tmp_path)
    assert record["status"] == "failed"
    assert MISFITS[arguments] in record["error"]
    assert record["seconds"]["train"] == 0


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device=cuda: torch" in fishexp(*QUICK, "device=cuda").mistake()


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert fishexp(*QUICK, "outputs=file").mistake().startswith("outputs=file cannot be")
    assert fishexp(*QUICK, "records=file/records.jsonl").mistake().startswith("records=file cannot be")
    assert fishexp(*QUICK, "outputs=/proc/fishexp").mistake().startswith("outputs=/proc/fishexp cannot be made")


def test_debug_shows_the_traceback() -> None:
    result = fishexp(*QUICK, "data.holdout=1437", "debug=true")
    assert result.status == 2
    assert "Traceback (most recent call last)" in result.err
    assert result.err.endswith(
        "fishexp: data.holdout=1437 leaves nothing to train on: there are 1437 training examples\n"
    )


def test_records_that_are_a_folder_and_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert fishexp(*QUICK, "records=folder").mistake() == "records=folder is not a file that can be written"
    (tmp_path / "outputs" / "digits").write_text("")
    assert fishexp(*QUICK).mistake().endswith("Not a directory")


def test_yamls_and_modules_of_the_user_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my conf (1)" / "method").mkdir(parents=True)
    for name, text in {"torn": "name: [", "bad": "name: bad_syntax", "lacks": "name: lacks_import"}.items():
        (tmp_path / "my conf (1)" / "method" / f"{name}.yaml").write_text(text)
    (tmp_path / "bad_syntax.py").write_text("def scores(problem) return 1")
    (tmp_path / "lacks_import.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    conf = ("--config-dir", "my conf (1)")
    assert "torn.yaml" in fishexp(*conf, "method=torn").mistake()
    assert fishexp(*conf, "method=bad").mistake().startswith("method=bad_syntax: bad_syntax cannot be imported: ")
    assert fishexp(*conf, "method=lacks").mistake() == (
        "method=lacks_import: lacks_import needs no_such_package, which is not installed"
    )
