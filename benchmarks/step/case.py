"""The settings in which training steps are measured, and their masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import nn

from benchmarks.models import batches
from fishexp.fisher import diagonal_fisher
from fishexp.masks import top_k
from fishexp.masks.topk import Mask
from fishexp.masks.units import Unit

KEEPS = (0.001, 0.005, 0.02, 0.1)
SCORED = 64  # examples that a fish mask is chosen by
OURS = ("dense", "floor", "ours")
CONVOLUTIONS = ("dense", "original", "floor", "ours")  # PEFT's two train entries of linear layers only
GRAPHS = ("dense, graphs", "ours, graphs")  # on a GPU
ALL = ("dense", "original", "floor", "LoRA", "SHiRA", "Super-Tuning", "ours")


@dataclass(frozen=True)
class StepCase:
    """Describe a model that trains a part of its weights on a single batch.

    Attributes:
        batch: Number of examples.
        length: Tokens in an example; None for images of 3x32x32.
        contenders: Names of the implementations in the order of a round; ratios refer to the first.
        keep: Fraction of all weights that train; the head is kept whole.
        mask: Whether kept entries are chosen by random scores or by the Fisher information.
        unit: Which entries are kept together.
    """

    benchmark: ClassVar[str] = "step"

    model: str
    batch: int
    length: int | None
    contenders: tuple[str, ...]
    keep: float = 0.005
    mask: Literal["random", "fish"] = "random"
    unit: Unit = "entry"


def cases(device: str) -> list[StepCase]:
    """List all settings for a device type. The original and PEFT run at half a percent and with random masks only."""
    grid = [StepCase("minilm", 16, 64, ALL if keep == 0.005 else OURS, keep) for keep in KEEPS]
    listed = [*grid, *_fish_and_units("minilm", 16, 64), *(_cuda() if device == "cuda" else _cpu())]
    graphs = GRAPHS if device == "cuda" else ()
    return [replace(case, contenders=(*case.contenders, *graphs)) for case in listed]


def _fish_and_units(model: str, batch: int, length: int | None) -> list[StepCase]:
    """List what is kept by the Fisher information: single entries, rows, columns, channels of convolutions."""
    units: tuple[Unit, ...] = ("entry", "row", "column") if length else ("entry", "row", "channel")
    return [StepCase(model, batch, length, OURS, mask="fish", unit=unit) for unit in units]


def _cpu() -> list[StepCase]:
    return [
        StepCase("minilm", 16, 128, ALL),
        StepCase("bert-base-shape", 8, 64, ALL),
        StepCase("resnet18", 64, None, CONVOLUTIONS),
        *_fish_and_units("resnet18", 64, None),
    ]


def _cuda() -> list[StepCase]:
    return [
        StepCase("bert-large-shape", 16, 128, ALL),
        *_fish_and_units("bert-large-shape", 16, 128),
        StepCase("bert-large-shape", 64, 128, OURS),
        StepCase("bert-large-shape", 64, 128, OURS, mask="fish"),
        StepCase("resnet34", 512, None, CONVOLUTIONS),
        *_fish_and_units("resnet34", 512, None),
    ]


def quick_cases(device: str) -> list[StepCase]:
    """List the settings at half a percent with batches of two examples."""
    return [replace(case, batch=2) for case in cases(device) if case.keep == 0.005]


def choose_mask(case: StepCase, model: nn.Module, head: Sequence[str]) -> Mask:
    """Choose ``case.keep`` of the weights. Random entries lie apart, those of the Fisher information in rows."""
    if case.mask == "fish":
        device = next(model.parameters()).device
        scores = diagonal_fisher(model, batches(SCORED, case.batch, case.length, device))
    else:
        generator = torch.Generator().manual_seed(2)
        scores = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
    return top_k(scores, case.keep, always=head, unit=case.unit)
