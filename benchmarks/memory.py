"""What a contender keeps in memory to train."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def storages() -> dict[int, int]:
    """Address -> bytes of the storage of every tensor that lives, gradients included."""
    found = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    found = [tensor for tensor in found if tensor.layout is torch.strided]
    found += [tensor.grad for tensor in found if tensor.is_leaf and tensor.grad is not None]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}


def training_state(before: dict[int, int], optimiser: Optimizer) -> int:
    """Bytes of what training adds to a frozen model: values that train, gradients, moments, positions.

    A dense gradient that lives for a moment in the backward pass only is not in it; the peak of a GPU's memory has it.

    Args:
        before: :func:`storages` of the model before it was made ready to train; call this one between the optimiser's
            step and ``zero_grad``.
    """
    new = sum(size for address, size in storages().items() if address not in before)
    trained = {p.untyped_storage().data_ptr() for group in optimiser.param_groups for p in group["params"]}
    return new + sum(size for address, size in before.items() if address in trained)


def peak(call: Callable[[], object], resident: int, device: torch.device) -> int | None:
    """Peak bytes of the CUDA allocator in a call, without what other contenders hold; None on a CPU.

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
    """Bytes that the CUDA allocator has handed out; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
