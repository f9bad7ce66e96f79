"""A loop of accelerate's saves and loads the kept entries of its models as deltas."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import nn, optim
from torch.utils.data import DataLoader

import fishexp
from fishexp import hf
from tests.support.checks import refusal
from tests.support.modules import random_mask
from tests.support.trainers import Examples, bert, columns, files, same


class Loop:
    """Train a sparsified model, and a plain one beside it."""

    def __init__(self, mask: Any = None, base: nn.Module | None = None) -> None:
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, other = base or bert(), nn.Linear(2, 2)
        self.sparse = fishexp.sparsify(model, mask or random_mask(model))
        optimizer = optim.AdamW(self.sparse.parameters(), 0.01)
        schedule = optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)
        loader = DataLoader(Examples(columns(8, "class")), 2)
        self.model, self.other, self.optimizer, self.schedule, self.loader = self.accelerator.prepare(
            model, other, optimizer, schedule, loader
        )
        hf.save_deltas(self.accelerator)

    def epoch(self) -> None:
        for batch in self.loader:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.model(**batch).loss)
                self.accelerator.clip_grad_norm_(self.model.parameters(), 0.1)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()


def test_a_loop_resumes_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Loop()
    whole.epoch()
    whole.accelerator.save_state(str(tmp_path))
    between = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.epoch()
    assert {"delta.safetensors", "model.safetensors"} <= set(files(tmp_path))
    assert (tmp_path / "model.safetensors").stat().st_size < 400  # that of the small plain one

    resumed = Loop()
    with torch.no_grad():
        resumed.other.weight.zero_()
    resumed.accelerator.load_state(str(tmp_path))
    assert same(resumed.model.state_dict(), between)
    assert torch.equal(resumed.other.weight, whole.other.weight)
    resumed.epoch()
    assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_it_goes_back_in_the_same_process(tmp_path: Path) -> None:
    loop = Loop()
    loop.epoch()
    loop.accelerator.save_state(str(tmp_path))
    between = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    loop.epoch()
    assert not same(loop.model.state_dict(), between)
    loop.accelerator.load_state(str(tmp_path))
    assert same(loop.model.state_dict(), between)
    fishexp.Delta.load(tmp_path / "delta.safetensors").apply_(base := bert())
    assert same(base.state_dict(), between)


def test_wrong_turns_get_a_line(tmp_path: Path) -> None:
    loop = Loop()
    loop.accelerator.save_state(str(tmp_path))
    other = Loop({name: kept.flip(0) for name, kept in random_mask(bert()).items()})
    assert "keeps other entries" in refusal(other.accelerator.load_state, str(tmp_path))
    (tmp_path / "delta.safetensors").unlink()
    assert "has no delta.safetensors; call save_deltas before save_state" in refusal(
        loop.accelerator.load_state, str(tmp_path)
    )


def test_automatic_names_work(tmp_path: Path) -> None:
    accelerator = Accelerator(
        cpu=True, project_config=ProjectConfiguration(str(tmp_path), automatic_checkpoint_naming=True)
    )
    model = bert()
    fishexp.sparsify(model, random_mask(model))
    accelerator.prepare(model)
    hf.save_deltas(accelerator)
    accelerator.save_state()
    assert "delta.safetensors" in files(tmp_path, "checkpoints", "checkpoint_0")
    accelerator.save_state()
    accelerator.load_state()
