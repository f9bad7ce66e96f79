"""A sparsified model becomes what it was when a delta was taken, wherever training has led it since."""

import copy

import pytest
import torch
from torch import nn, optim

from fishexp.delta import Delta
from fishexp.errors import DeltaError
from fishexp.sparse import Sparse, sparsify
from tests.support.cases import conv_net, images, steps
from tests.support.checks import refusal
from tests.support.modules import random_mask


def trained() -> tuple[nn.Module, Sparse, optim.Optimizer]:
    """Train a model with running statistics for some steps."""
    model = conv_net()
    sparse = sparsify(model, random_mask(model))
    optimizer = optim.AdamW(sparse.parameters(), 0.01)
    steps(model, optimizer, images())
    return model, sparse, optimizer


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


def test_it_goes_back_and_forth_to_the_bit() -> None:
    model, sparse, optimizer = trained()
    first, at_first = sparse.delta(), copied(model)
    steps(model, optimizer, images())
    second, at_second = sparse.delta(), copied(model)
    for delta, wanted in ((first, at_first), (second, at_second), (second, at_second), (first, at_first)):
        sparse.load_delta(delta)
        values = dict(sparse.named_parameters())
        for name, positions in sparse.positions().items():  # before anything has read the model
            assert torch.equal(values[name].detach().flatten(), wanted[name].flatten()[positions])
        torch.testing.assert_close(copied(model), wanted, rtol=0, atol=0)
    assert sparse.delta().after == first.after
    assert sparse.delta().before == first.before


def test_a_model_that_has_not_trained_takes_it_too() -> None:
    model, sparse, _ = trained()
    fresh = conv_net()
    sparsify(fresh, random_mask(fresh)).load_delta(sparse.delta())
    torch.testing.assert_close(copied(fresh), copied(model), rtol=0, atol=0)


def test_a_buffer_that_was_registered_meanwhile_belongs_to_the_base() -> None:
    model, sparse, optimizer = trained()
    model.register_buffer("late", torch.ones(2))
    delta, wanted = sparse.delta(), copied(model)
    steps(model, optimizer, images())
    sparse.load_delta(delta)
    torch.testing.assert_close(copied(model), wanted, rtol=0, atol=0)


def test_another_mask_or_base_is_refused_and_changes_nothing() -> None:
    model, sparse, _ = trained()
    before = copied(model)
    other = conv_net()
    mask = random_mask(other)
    mask["0.weight" if "0.weight" in mask else next(iter(mask))].flip(0)
    fewer = {name: kept & (torch.arange(kept.numel()).view(kept.shape) > 0) for name, kept in mask.items()}
    line = refusal(sparse.load_delta, sparsify(other, fewer).delta())
    assert "keeps other entries of " in line
    assert "sparsify by delta.mask(model)" in line
    other = conv_net()
    with torch.no_grad():
        next(other.parameters()).flatten()[0] += 1
    elsewhere: Delta = sparsify(other, random_mask(other)).delta()
    with pytest.raises(DeltaError, match="for another base"):
        sparse.load_delta(elsewhere)
    torch.testing.assert_close(copied(model), before, rtol=0, atol=0)
    sparse.restore()
    assert "no longer trains" in refusal(sparse.load_delta, elsewhere)
