"""TF32, in which a GPU computes convolutions of float32 by default and products if it is told to: with 10 bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# spacing of its numbers at 1
TF32_EPS = 2**-10

_CONVOLUTIONS: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]


def tf32_is_allowed() -> bool:
    """Tell whether a GPU may compute convolutions or products of float32 in TF32."""
    return _CONVOLUTIONS.fp32_precision == "tf32" or torch.get_float32_matmul_precision() != "highest"


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let a GPU compute products and convolutions with all bits of float32."""
    before = torch.get_float32_matmul_precision(), _CONVOLUTIONS.fp32_precision
    torch.set_float32_matmul_precision("highest")
    _CONVOLUTIONS.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        _CONVOLUTIONS.fp32_precision = before[1]
