"""Comparison with a reference in float64, which must hold before anything is timed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.models import Batch, batches
from fishexp.errors import FishexpError


def float64_batches(examples: int, size: int, length: int | None, device: torch.device) -> list[Batch]:
    """Make :func:`benchmarks.models.batches` with images in float64."""
    few = batches(examples, size, length, device)
    return [(inputs.double() if isinstance(inputs, Tensor) else inputs, labels) for inputs, labels in few]


def check_close(subject: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that tensors are equal but for float64's rounding.

    Gradients that are zero in exact arithmetic come out as noise; differences up to 1e-12 of the largest expected value
    are allowed for it.

    Args:
        subject: What is compared, for the error; a plural.

    Raises:
        FishexpError: If they are not; names the first parameter that differs.
    """
    if found.keys() != expected.keys():
        raise FishexpError(f"{subject} name other parameters than the reference; nothing was timed")
    noise = 1e-12 * max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        if not torch.allclose(found[name], value, rtol=1e-7, atol=noise):
            error = (found[name] - value).abs().max().item()
            raise FishexpError(f"{subject} differ from the reference by {error:.1e} at {name}; nothing was timed")
