"""The memory that a contender needs to train."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def storages() -> dict[int, int]:
    """Map the address of the storage of every live tensor, gradients included, to its bytes."""
    objects = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    tensors = [tensor for tensor in objects if tensor.layout is torch.strided]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def training_state(before: dict[int, int], optimizer: Optimizer) -> int:
    """Count the bytes that training adds to a frozen model: values that train, gradients, moments, positions.

    A dense gradient that exists only for a moment in the backward pass is not counted; the peak of a GPU's memory
    includes it. Call this between the optimizer's step and ``zero_grad``.

    Args:
        before: :func:`storages` of the model before it was prepared for training.
    """
    new = sum(size for address, size in storages().items() if address not in before)
    trained = {p.untyped_storage().data_ptr() for group in optimizer.param_groups for p in group["params"]}
    return new + sum(size for address, size in before.items() if address in trained)


def peak(call: Callable[[], object], resident: int, device: torch.device) -> int | None:
    """Measure the peak bytes of the CUDA allocator in a call, without what other contenders hold; None on a CPU.

    Args:
        resident: Bytes that the contender itself holds between calls.
    """
    if device.type != "cuda":
        return None
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return resident + torch.cuda.max_memory_allocated(device) - held


def allocated(device: torch.device) -> int:
    """Return the bytes that the CUDA allocator has handed out; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
