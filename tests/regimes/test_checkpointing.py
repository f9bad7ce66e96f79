"""Every epoch of a run comes back bit for bit, from files as small as what moved."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fishexp as library
from fishexp.delta import Delta
from fishexp.training.checkpoints import BASE
from fishexp.training.trainable import Trainable
from fishexp.training.trainer import Trainer
from tests.support.cli import fishexp, records
from tests.support.resuming import Cut, cut_after

SMALL = ("regime=checkpointing", "data.train_limit=160", "data.valid_limit=64", "regime.batch_size=16", "threads=1")
RANDOM = ("method=random", "keep=0.02")
KEPT, TOTAL = 6_161, 308_074


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The model before the first epoch and after each, as it was in the run's memory."""
    found: list[dict[str, Tensor]] = []
    original = Trainer.run_epoch

    def epoch(self: Trainer, moving: Trainable) -> None:
        model = self._problem.model
        if not found:
            found.append({name: t.clone() for name, t in model.state_dict().items()})
        original(self, moving)
        found.append({name: t.clone() for name, t in model.state_dict().items()})

    monkeypatch.setattr(Trainer, "run_epoch", epoch)
    return found


def folder() -> Path:
    (found,) = Path("outputs").glob("*/*/*/*")
    return found


def names() -> list[str]:
    return sorted(file.stem for file in (folder() / "checkpoints").iterdir())


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    """Weights, without the statistics of BatchNorms."""
    return sum(int((before[n] != after[n]).sum()) for n in before if "running" not in n and "tracked" not in n)


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (("regime.epochs=3",), ["epoch-0001", "epoch-0002", "epoch-0003"]),
        (
            ("regime.epochs=5", "regime.mask=every_epoch", "regime.keyframe_every=2"),
            ["epoch-0001", "epoch-0003", "epoch-0005", "keyframe-0002", "keyframe-0004"],
        ),
        (
            ("regime.epochs=5", "regime.mask=every_epoch", "regime.keyframe_every=2", "regime.warmup_epochs=1"),
            ["dense-0001", "epoch-0003", "epoch-0005", "keyframe-0002", "keyframe-0004"],
        ),
        (("regime.epochs=2", "regime.mask=every_epoch", "regime.keyframe_every=1"), ["keyframe-0001", "keyframe-0002"]),
        (("regime.epochs=2", "decay=all", "regime.keyframe_every=2"), ["dense-0001", "dense-0002"]),
        (
            ("regime.epochs=3", "regime.mask=every_epoch", "compat=fish", "method=fish", "method.samples=8"),
            ["epoch-0001", "epoch-0002", "epoch-0003"],
        ),
    ],
    ids=["fixed", "keyframes", "warm-up", "keyframes-only", "decay-all", "compat"],
)
def test_any_epoch_is_rebuilt_bit_for_bit(
    options: tuple[str, ...], files: list[str], epochs: list[dict[str, Tensor]]
) -> None:
    assert fishexp(*SMALL, *RANDOM, *options).status == 0
    assert names() == files
    for number, expected in enumerate(epochs):
        model, _ = library.load_run(folder(), epoch=number)
        state = model.state_dict()
        if number or "compat=fish" not in options:  # whose scoring moves statistics before the first step
            assert [name for name in expected if not torch.equal(state[name], expected[name])] == []
    last, _ = library.load_run(folder())
    assert all(torch.equal(last.state_dict()[name], epochs[-1][name]) for name in epochs[-1])


def test_what_moves_and_what_it_costs(epochs: list[dict[str, Tensor]], tmp_path: Path) -> None:
    """A mask for all epochs moves its entries only; a new one each epoch moves as many, but others."""
    assert fishexp(*SMALL, *RANDOM, "regime.epochs=4").status == 0
    assert all(0.9 * KEPT < moved(a, b) <= KEPT for a, b in pairwise(epochs))
    assert moved(epochs[0], epochs[4]) <= KEPT
    sizes = [file.stat().st_size for file in (folder() / "checkpoints").iterdir()]
    (record,) = records(tmp_path)
    assert record["bytes"]["checkpoints"] == sum(sizes)
    assert record["bytes"]["delta"] == sum(sizes) // 4
    assert record["bytes"]["largest_checkpoint"] == max(sizes)
    assert record["bytes"]["dense"] == sum(t.nbytes for t in epochs[0].values())
    assert record["bytes"]["delta"] < 4 * KEPT + 25_000  # values; positions, statistics, fingerprints
    assert not list(folder().glob("model.safetensors"))
    assert (folder() / BASE).stat().st_nlink == 2  # the sweep's runs share it


def test_a_mask_each_epoch(epochs: list[dict[str, Tensor]]) -> None:
    assert fishexp(*SMALL, *RANDOM, "regime.epochs=4", "regime.mask=every_epoch").status == 0
    assert all(0.9 * KEPT < moved(a, b) <= KEPT for a, b in pairwise(epochs))
    assert moved(epochs[0], epochs[4]) > 3 * KEPT


@pytest.mark.parametrize(("momentum", "alike"), [("carry", False), ("reset", True)])
def test_momentum_after_the_warm_up(momentum: str, alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset, the second phase begins as if the optimiser were new; carried, it does not."""
    states: list[Any] = []
    original = Trainer.run_epoch

    def epoch(self: Trainer, moving: Trainable) -> None:
        states.append([dict(self.optimizer.state[p]) for p in moving.parameters if p in self.optimizer.state])
        original(self, moving)

    monkeypatch.setattr(Trainer, "run_epoch", epoch)
    options = ("regime.epochs=3", "regime.warmup_epochs=1", f"regime.momentum={momentum}")
    assert fishexp(*SMALL, *RANDOM, *options).status == 0
    assert states[0] == []
    buffers = [state["momentum_buffer"] for state in states[1] if state]
    assert (not buffers) == alike
    if buffers:
        assert all(bool(buffer.any()) for buffer in buffers)
        assert sum(buffer.numel() for buffer in buffers) == KEPT
    assert states[2] != []  # a fixed mask is chosen once: momentum goes on


def test_deltas_of_a_chain_name_each_other() -> None:
    assert fishexp(*SMALL, *RANDOM, "regime.epochs=3", "regime.mask=every_epoch").status == 0
    deltas = [Delta.load(folder() / "checkpoints" / f"{name}.safetensors") for name in names()]
    assert [delta.before for delta in deltas[1:]] == [delta.after for delta in deltas[:-1]]
    assert len({delta.after for delta in deltas}) == 3


def test_a_run_after_another_forgets_the_epochs_of_that() -> None:
    options = (*SMALL, *RANDOM, "regime.epochs=2")
    assert fishexp(*options).status == 0
    (folder() / "checkpoints" / "epoch-0007.safetensors").write_bytes(b"left over")
    assert fishexp(*options).status == 0
    assert names() == ["epoch-0001", "epoch-0002"]


def test_a_missing_epoch_is_missed_only_where_it_is_needed() -> None:
    options = ("regime.epochs=5", "regime.mask=every_epoch", "regime.keyframe_every=2")
    assert fishexp(*SMALL, *RANDOM, *options).status == 0
    fifth = library.load_run(folder(), epoch=5)[0].state_dict()
    for name in ("epoch-0001", "epoch-0003"):
        (folder() / "checkpoints" / f"{name}.safetensors").unlink()
    again = library.load_run(folder(), epoch=5)[0].state_dict()
    assert all(torch.equal(again[name], fifth[name]) for name in fifth)
    with pytest.raises(library.FishexpError) as refused:
        library.load_run(folder(), epoch=3)
    assert str(refused.value) == (
        f"epoch=3: {folder()}/checkpoints lacks *-0003.safetensors, the file of epoch 3; "
        "the last whole epoch before it is 2"
    )


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    if how == "removed":
        file.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"flipped": flipped, "cut": content[:middle], "empty": b""}[how])


@pytest.mark.parametrize("how", ["removed", "flipped", "cut", "empty"])
def test_a_last_epoch_that_is_not_whole_is_refused_and_those_before_it_load(how: str) -> None:
    """An older model is never taken for the last, neither here nor where another run begins with it."""
    assert fishexp(*SMALL, *RANDOM, "regime.epochs=5", "regime.keyframe_every=3").status == 0
    third = library.load_run(folder(), epoch=3)[0].state_dict()
    file = folder() / "checkpoints" / "epoch-0005.safetensors"
    damage(file, how)
    assert all(torch.equal(t, third[n]) for n, t in library.load_run(folder(), epoch=3)[0].state_dict().items())
    for epoch in (None, 5):
        with pytest.raises(library.FishexpError) as refused:
            library.load_run(folder(), epoch)
        assert str(file if how != "removed" else "checkpoints lacks *-0005.safetensors") in str(refused.value)
        assert str(refused.value).endswith("; the last whole epoch before it is 4")
    mistake = fishexp(*RANDOM, "regime.epochs=0", f"model.path={folder()}", "outputs=o").mistake()
    assert mistake.endswith("; the last whole epoch before it is 4")
    damage(folder() / "checkpoints" / "keyframe-0003.safetensors", how)
    with pytest.raises(library.FishexpError, match=r"; the last whole epoch before it is 2$"):
        library.load_run(folder())


def test_a_run_without_any_of_its_epochs_is_refused() -> None:
    assert fishexp(*SMALL, *RANDOM, "regime.epochs=2").status == 0
    shutil.rmtree(folder() / "checkpoints")
    with pytest.raises(
        library.FishexpError, match=r"lacks \*-0001.safetensors.*; the last whole epoch before it is 0$"
    ):
        library.load_run(folder())


def test_a_run_of_before_that_does_not_say_how_many_epochs_it_has_loads() -> None:
    assert fishexp(*SMALL, *RANDOM, "regime.epochs=2").status == 0
    last = library.load_run(folder())[0].state_dict()
    about = json.loads((folder() / "preprocessing.json").read_text())
    assert about.pop("epochs") == 2
    (folder() / "preprocessing.json").write_text(json.dumps(about))
    assert all(torch.equal(t, last[name]) for name, t in library.load_run(folder())[0].state_dict().items())
    for epochs in ("3", -1, 1.0, None):
        (folder() / "preprocessing.json").write_text(json.dumps(about | {"epochs": epochs}))
        with pytest.raises(library.FishexpError, match="it is not what a run writes"):
            library.load_run(folder())


@pytest.mark.parametrize("how", ["removed", *(pytest.param(how, marks=pytest.mark.slow) for how in ("flipped", "cut"))])
def test_a_run_does_not_resume_on_an_epoch_that_is_not_whole(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it end as finished with such an epoch, which a later keyframe would hide."""
    options = (*SMALL, *RANDOM, "regime.epochs=4", "regime.keyframe_every=3", "snapshot_minutes=0")
    with monkeypatch.context() as patch:
        cut_after(35, patch)
        with pytest.raises(Cut):
            fishexp(*options)
    damage(folder() / "checkpoints" / "epoch-0002.safetensors", how)
    mistake = fishexp(*options, "resume=true").mistake()
    assert "-0002.safetensors" in mistake
    assert mistake.endswith("; the last whole epoch before it is 1; resume=false begins anew")

    original = Trainer.end_epoch

    def end_epoch(self: Trainer, metrics: Any) -> None:
        original(self, metrics)
        if self.progress.epoch == 4:
            damage(folder() / "checkpoints" / "epoch-0001.safetensors", how)

    monkeypatch.setattr(Trainer, "end_epoch", end_epoch)
    result = fishexp(*options)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "-0001.safetensors" in result.err
    assert result.err.endswith("; somebody else was at the files; run it again\n")


def test_runs_that_differ_in_their_last_epochs_are_two_places_to_start_from(tmp_path: Path) -> None:
    """They share the base, and have another last epoch."""
    for place, epochs in (("p", 1), ("q", 2)):
        assert fishexp(*SMALL, *RANDOM, f"regime.epochs={epochs}").status == 0
        Path(place).mkdir()
        folder().rename(Path(place) / "run")
        assert fishexp(*RANDOM, "regime.epochs=0", "data.valid_limit=64", f"model.path={place}/run").status == 0
        shutil.rmtree(next(Path("outputs").glob("*/*/*/*")))
    first, second = (record for record in records(tmp_path) if record["kept"] is None)
    assert first["run_id"] != second["run_id"]
    assert first["metrics"] != second["metrics"]


def test_another_architecture_is_refused_in_a_line() -> None:
    assert fishexp(*SMALL, *RANDOM, "regime.epochs=1").status == 0
    mistake = fishexp("model=resnet18", "regime.epochs=0", f"model.path={folder()}").mistake()
    assert mistake.endswith("was it trained with another model=?")


def test_no_epochs_evaluate_only() -> None:
    assert "epoch 0: accuracy" in fishexp(*SMALL, *RANDOM, "regime.epochs=0").out


def test_training_goes_on_from_a_run_with_checkpoints(tmp_path: Path) -> None:
    assert fishexp(*SMALL, *RANDOM, "regime.epochs=2").status == 0
    assert fishexp(*RANDOM, "regime.epochs=0", "data.valid_limit=64", f"model.path={folder()}", "outputs=o").status == 0
    first, again = records(tmp_path)[0], json.loads((tmp_path / "o" / "records.jsonl").read_text())
    assert first["metrics"] == again["metrics"]


def test_mistakes() -> None:
    assert fishexp(*SMALL, *RANDOM, "regime.epochs=2", "regime.warmup_epochs=2").mistake() == (
        "regime.warmup_epochs=2 leaves no epoch with a mask: regime.epochs=2; lower it"
    )
    assert "regime.keyframe_every=0" in fishexp(*SMALL, "regime.keyframe_every=0").mistake()
    shutil.rmtree("outputs")
    assert fishexp(*SMALL, *RANDOM, "regime.epochs=2").status == 0
    with pytest.raises(library.FishexpError, match=r"epoch=3: .*checkpoints has the epochs 0 to 2"):
        library.load_run(folder(), epoch=3)
    (folder() / BASE).unlink()
    with pytest.raises(library.FishexpError, match="holds what training changed in a base, which is not there any"):
        library.load_run(folder())
