"""Small networks around a layer, and the check of their scores against the definition."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fishexp.fisher import diagonal_fisher
from fishexp.fisher.batches import Inputs
from fishexp.fisher.losses import Labels
from fishexp.fisher.powers import Power
from tests.support.cases import CLASSES, brute_force

# examples in a batch
N = 5


class Custom(nn.Module):
    """Hold parts by name; a function of the module and the input says how they are called."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.call = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def mean(*layers: nn.Module, width: int = 6) -> nn.Module:
    """Put layers on (examples, ..., width) before the mean over what is between, and a classifier."""
    return Custom(lambda m, x: m.head(m.body(x).flatten(1, -2).mean(1)), body=nn.Sequential(*layers), head=head(width))


def pool(*layers: nn.Module, width: int = 4) -> nn.Module:
    """Put layers on (examples, 4, 6, 5) before the maximum over the map, and a classifier."""
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * width, CLASSES))


def head(width: int = 6) -> nn.Linear:
    return nn.Linear(width, CLASSES)


def tokens() -> Tensor:
    """Draw from 7 words, so that some repeat in each example; 0 is padding."""
    return torch.randint(0, 7, (N, 9))


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, *shape).double()


def made(build: Callable[[], nn.Module], data: Callable[[], Tensor]) -> tuple[nn.Module, Tensor, Tensor]:
    """Build the seeded model, its inputs and labels, in float64."""
    torch.manual_seed(0)
    model = build().double()
    with torch.no_grad():
        for name, p in model.named_parameters():  # norms with weights of their own
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.3)
            assert p.is_leaf, name
    return model, data(), torch.randint(CLASSES, (N,))


def check(model: nn.Module, inputs: Inputs, labels: Tensor, kind: Labels, power: Power) -> None:
    """Assert that the scores equal the definition, and that scoring leaves no trace on the model."""
    before = copy.deepcopy(model.state_dict())
    found = diagonal_fisher(model, [(inputs, labels)], kind, power)
    expected = brute_force(model, inputs, labels, kind, power)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-9, atol=1e-15, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
