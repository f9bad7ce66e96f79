"""Every family of models trains its kept entries as masked dense training would, and no other."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fishexp.fisher.batches import Inputs, logits_of
from fishexp.sparse import sparsify
from fishexp.sparse.parameter import weights
from tests.support.modules import random_mask
from tests.support.zoo import CHECKPOINTED, ZOO, made

# one of them has its full size
CASES = [pytest.param(name, marks=pytest.mark.slow if name == "resnet50" else ()) for name in ZOO]


@pytest.mark.parametrize("case", CASES)
def test_two_steps_equal_masked_dense_training(case: str) -> None:
    """In float64, to rounding; what the mask does not keep is as before, to the bit."""
    model, inputs, labels = made(ZOO[case])
    if case in CHECKPOINTED:
        model.train()  # else nothing is checkpointed
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    dense, before, mask = copy.deepcopy(model), copy.deepcopy(model.state_dict()), random_mask(model)
    train(model, torch.optim.SGD(sparsify(model, mask).parameters(), 0.1), inputs, labels)
    for name, p in dense.named_parameters():
        p.register_hook(lambda gradient, kept=mask[name]: gradient * kept)
    train(dense, torch.optim.SGD(dense.parameters(), 0.1), inputs, labels)
    found = weights(model)
    for name, expected in dense.named_parameters():
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-12, msg=name)
        assert torch.equal(found[name][~mask[name]], before[name][~mask[name]]), name
    assert any(not torch.equal(found[name], before[name]) for name in mask)


def train(model: nn.Module, optimiser: torch.optim.Optimizer, inputs: Inputs, labels: torch.Tensor) -> None:
    """Take two steps."""
    for _ in range(2):
        F.cross_entropy(logits_of(model, inputs), labels).backward()
        optimiser.step()
        optimiser.zero_grad()
