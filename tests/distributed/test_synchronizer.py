"""Merges of real models: every way to send and to add against float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishexp.distributed.shared_state import SharedState
from fishexp.distributed.synchronizer import Synchronizer
from fishexp.masks.positions import mask_to_positions
from fishexp.sparse.parameter import weights
from fishexp.training.collectives import InProcessCollectives

WORKERS = 3
HEAD = ("2.weight", "2.bias")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 4))


def masks(count: int) -> list[dict[str, Tensor]]:
    """Of equal sizes, disjoint but for the head."""
    generator = torch.Generator().manual_seed(1)
    found = [
        {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model().named_parameters()} for _ in range(count)
    ]
    order = torch.randperm(600, generator=generator)
    for number, mask in enumerate(found):
        mask["0.weight"].view(-1)[order[number * 100 : number * 100 + 100]] = True
        for name in HEAD:
            mask[name][:] = True
    return found


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("how", ["mean", "sum"])
@pytest.mark.parametrize(
    ("wire", "reduce"), [("fp32", "ordered"), ("bf16", "ordered"), ("fp32", "ring"), ("bf16", "ring")]
)
@pytest.mark.parametrize("original", [False, True])
def test_every_way_is_the_mean_or_the_sum(how: Any, wire: Any, reduce: Any, disjoint: bool, original: bool) -> None:
    models = [model() for _ in range(WORKERS)]
    collectives = InProcessCollectives(WORKERS)
    shared_state = SharedState(models, collectives.local_ranks, () if original and not disjoint else HEAD)
    synchronizer = Synchronizer(collectives, shared_state, how, wire, reduce, as_original=original)
    kept = masks(WORKERS if disjoint else 1)
    synchronizer.set_masks([mask_to_positions(mask, weights(models[0])) for mask in kept])
    before = {name: p.detach().double() for name, p in models[0].state_dict().items()}
    for number, network in enumerate(models):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, p in network.named_parameters():
                mask = kept[number if disjoint else 0][name]
                p[mask] += 0.1 * torch.randn(int(mask.sum()), generator=generator)
        network(torch.randn(8, 20, generator=generator))  # moves the running statistics
    had = [{name: p.double() for name, p in network.state_dict().items()} for network in models]
    had = [{name: p.clone() for name, p in state.items()} for state in had]
    synchronizer.merge(1, [""] * WORKERS)
    relative = 2**-7 if wire == "bf16" else 1e-6
    for name, start in before.items():
        rows = torch.stack([state[name] for state in had])
        changes = rows - start
        if "running" in name:
            expected, relative_here = rows.mean(0), 1e-6
        else:
            owned = disjoint and name not in HEAD
            averaged = (name in HEAD and not original) or (how == "mean" and (not owned or original))
            expected = start + (changes.mean(0) if averaged else changes.sum(0))
            relative_here = relative
        bound = relative_here * changes.abs().max() + 1e-6 * start.abs().max() + 1e-9
        for network in models:
            found = network.state_dict()[name].double()
            if "num_batches" not in name:
                assert bool(((found - expected).abs() <= bound).all()), name
            assert torch.equal(found, models[0].state_dict()[name].double())
    assert any(bool((state["0.weight"] != before["0.weight"]).any()) for state in had)
    assert synchronizer.merge_bytes > 0
    synchronizer.check_workers(1, [""] * WORKERS)
