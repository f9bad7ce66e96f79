"""Real data: runs that must learn something, and what must stay true while they do."""

from pathlib import Path

import pytest
import torch

import fishexp as library
from fishexp.models import bert, resnet
from fishexp.training.streams import seed_torch
from tests.support.cli import fishexp, records

# where a processor has no bf16 of its own, emulating it takes these runs many minutes
PRECISION = "bf16" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "fp32"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_data: Path) -> None:
    monkeypatch.setenv("FISHEXP_DATA", str(real_data))
    monkeypatch.chdir(tmp_path)


def changed(folder: Path, before: torch.nn.Module) -> int:
    """Weights that are not bit for bit as they started."""
    after = library.load_run(next(folder.glob("outputs/*/*/*/*")))[0].state_dict()
    return sum(int((after[name] != p).sum()) for name, p in before.named_parameters())


@pytest.mark.slow
def test_resnet9_learns_from_a_little_of_cifar10(tmp_path: Path) -> None:
    """Guessing is right in 10 %; 0.5 % of the weights, 24 steps of Nesterov SGD with weight decay.

    Two seeds had 19.0 and 18.7 %, so that batches of 64 are enough.
    """
    arguments = ("data=cifar10", "model=resnet9", "data.train_limit=512", "data.valid_limit=300", "method.samples=32")
    training = ("regime.epochs=3", "regime.batch_size=64", "regime.lr=0.2", f"precision={PRECISION}")
    assert fishexp(*arguments, *training).status == 0
    (record,) = records(tmp_path)
    assert (record["kept"], record["total"]) == (32_865, 6_573_120)
    assert record["metrics"]["accuracy"] > 0.16
    seed_torch(0, "weights")
    moved = changed(tmp_path, resnet.build(10, 3, layers=9, path=None).network)
    assert 0.9 * record["kept"] < moved <= record["kept"]


@pytest.mark.slow
def test_minilm_learns_from_a_little_of_sst2(tmp_path: Path) -> None:
    """Guessing is right in 51 %; AdamW, clipping and dropout on 0.5 % of a pre-trained BERT."""
    arguments = ("data=glue", "data.task=sst2", "model=minilm", "data.train_limit=1200", "data.valid_limit=400")
    assert fishexp(*arguments, "method.samples=64", "regime.epochs=1", f"precision={PRECISION}").status == 0
    (record,) = records(tmp_path)
    assert (record["kept"], record["total"]) == (113_569, 22_713_986)
    assert record["metrics"]["accuracy"] > 0.65
    seed_torch(0, "weights")
    built = bert.build(2, 0, path=None, pretrained=True, activation_checkpointing=False)
    moved = changed(tmp_path, built.network)
    assert 0.9 * record["kept"] < moved <= record["kept"]


# sentences of RTE are long: a few are enough for every metric to have a value
FEW = ("data.train_limit=16", "data.valid_limit=32", "method.samples=8", "regime.epochs=1", "regime.accumulate=2")
# shares of the most frequent label and prediction, which a regression has not
LARGEST = ("largest_class", "largest_predicted")


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("cola", ["matthews", "accuracy", "loss", *LARGEST]),
        ("stsb", ["pearson", "spearman", "loss"]),
        pytest.param("mrpc", ["accuracy", "f1", "loss", *LARGEST], marks=pytest.mark.slow),
        pytest.param("rte", ["accuracy", "loss", *LARGEST], marks=pytest.mark.slow),
        pytest.param("wnli", ["accuracy", "loss", *LARGEST], marks=pytest.mark.slow),
    ],
)
def test_each_task_runs_with_its_own_metrics(task: str, metrics: list[str], tmp_path: Path) -> None:
    assert fishexp("data=glue", f"data.task={task}", "model=minilm", *FEW).status == 0
    (record,) = records(tmp_path)
    assert list(record["metrics"]) == metrics


def test_a_regression_has_no_labels_to_expect() -> None:
    arguments = ("data=glue", "data.task=stsb", "model=minilm", "data.train_limit=32", "method.labels=expected")
    assert "labels=expected needs classes to draw from, but the model has one output" in fishexp(*arguments).mistake()


@pytest.mark.slow
def test_fish_beats_random_by_a_wide_margin_at_the_same_small_learning_rate(tmp_path: Path) -> None:
    """minilm on 6,000 sentences of SST-2, one epoch, 0.5 %, lr 5e-4: a trial had 80.6 against 57.5 %."""
    arguments = (
        "data=glue",
        "data.task=sst2",
        "model=minilm",
        "data.train_limit=6000",
        "regime.epochs=1",
        "regime.lr=5e-4",
    )
    assert fishexp("-m", *arguments, "precision=bf16", "method=fish,random").status == 0
    accuracy = {record["method"]: record["metrics"]["accuracy"] for record in records(tmp_path)}
    assert accuracy["fish"] > 0.75
    assert accuracy["fish"] > accuracy["random"] + 0.10
