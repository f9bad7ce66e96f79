"""Whether a model is what it should be, to the bit."""

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor, nn

from fishexp.delta.fingerprint import bits
from fishexp.errors import FishexpError

State: TypeAlias = Mapping[str, Tensor]


def state(model: nn.Module) -> State:
    """A copy of all tensors."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: State, model: nn.Module) -> dict[str, int]:
    """Number of entries with other bits, by the names of those tensors that have any."""
    after = model.state_dict()
    counts = {name: int((bits(tensor) != bits(after[name])).sum()) for name, tensor in before.items()}
    return {name: count for name, count in counts.items() if count}


def check_same(what: str, expected: State, model: nn.Module) -> None:
    """Whether all bits of ``model`` are as expected.

    Raises:
        FishexpError: If not; names the first tensor that differs.
    """
    for name, count in changed(expected, model).items():
        raise FishexpError(f"delta, {what}: {count} entries of {name} have other bits; nothing was timed")
