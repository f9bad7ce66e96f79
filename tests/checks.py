"""What the tests of models and data sets look at."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fishexp.errors import FishexpError


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The one line with which ``function`` refuses its arguments."""
    with pytest.raises(FishexpError) as error:
        function(*arguments, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Bit for bit, buffers too."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
