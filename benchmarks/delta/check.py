"""Checks that a model's tensors are what they should be, to the bit."""

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor, nn

from fishexp.delta.fingerprint import bits
from fishexp.errors import FishexpError

State: TypeAlias = Mapping[str, Tensor]


def state(model: nn.Module) -> State:
    """Copy all tensors of ``model``."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: State, model: nn.Module) -> dict[str, int]:
    """Count the entries whose bits differ, by the names of those tensors that have any."""
    after = model.state_dict()
    counts = {name: int((bits(tensor) != bits(after[name])).sum()) for name, tensor in before.items()}
    return {name: count for name, count in counts.items() if count}


def check_same(situation: str, expected: State, model: nn.Module) -> None:
    """Check that all bits of ``model`` are as expected.

    Args:
        situation: When it is checked, for the error.

    Raises:
        FishexpError: If they are not; names the first tensor that differs.
    """
    for name, count in changed(expected, model).items():
        raise FishexpError(f"delta, {situation}: {count} entries of {name} have other bits; nothing was timed")
