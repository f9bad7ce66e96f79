"""Checks that tests of several folders share: a refusal in a line, the same weights, a peak of memory."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fishexp.errors import FishexpError


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Return the line with which ``function`` refuses its arguments."""
    with pytest.raises(FishexpError) as error:
        function(*arguments, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def size(network: nn.Module) -> int:
    """Count the weights of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two networks have the same weights and buffers, bit for bit."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Peak(TorchDispatchMode):
    """Measure the most bytes of tensors, those ``known`` aside, that are alive at the same time."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size
