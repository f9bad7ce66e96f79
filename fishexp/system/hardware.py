"""The device of a run, its name, and the memory that was used on it."""

import contextlib
import ctypes
import fcntl
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

import torch

from fishexp.errors import FishexpError

# options of mallopt(3), from malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# tokens, and inputs and outputs of a layer, of the product that is timed, and how often it is
_TOKENS, _WIDTH, _REPEATS = 256, 384, 7
# bytes: the largest values, or nearly, that these options take
_MAX_TRIM_THRESHOLD, _MAX_MMAP_THRESHOLD = (1 << 31) - 1, 1 << 30


@contextmanager
def device(choice: str, worker: int = 0, workers: int = 1) -> Iterator[torch.device]:
    """Choose the device for ``auto``, ``cpu``, ``cuda`` or ``mps``; of several GPUs, a GPU that no other run holds.

    Args:
        worker: Rank of this process among the ``workers`` of its run on this machine, each of which has its own GPU.
        workers: Number of them.

    Yields:
        The device, which is held until the context ends.

    Raises:
        FishexpError: If there is no such device, or not one for each worker.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if choice == "auto":
        choice = "cuda" if cuda else "mps" if mps else "cpu"
    if (choice == "cuda" and not cuda) or (choice == "mps" and not mps):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        only = f" (CUDA_VISIBLE_DEVICES={visible})" if choice == "cuda" and visible is not None else ""
        raise FishexpError(
            f"device={choice}: torch {torch.__version__} sees none on this machine{only}; use device=cpu or auto"
        )
    if choice != "cuda":
        yield torch.device(choice)
        return
    count = torch.cuda.device_count()
    if workers > count:
        raise FishexpError(
            f"{workers} workers on a machine with {count} GPU{'s' * (count > 1)}: each needs one of its own; "
            "take fewer workers, device=cpu or regime.backend=simulated"
        )
    with nullcontext(worker) if workers > 1 else _free_gpu(count) as index:
        torch.cuda.set_device(index)
        yield torch.device("cuda", index)


@contextmanager
def _free_gpu(count: int, folder: Path | None = None) -> Iterator[int]:
    """Hold the first GPU whose lock file is free until the context ends; share a GPU if all are taken."""
    folder = folder or Path(tempfile.gettempdir())
    for index in range(count):
        uuid = torch.cuda.get_device_properties(index).uuid
        with (folder / f"fishexp-{os.getuid()}-gpu-{uuid}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield index
            return
    yield os.getpid() % count


def free_memory() -> int:
    """Return how many bytes of main memory can be taken without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024  # in KiB there
    except (OSError, StopIteration):  # no Linux: all that there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def name(device: torch.device) -> str:
    """Return the name of the chip, of a processor with its instructions: NVIDIA H200, AMD EPYC with AVX512.

    The same name may stand for processors with other instructions, as a virtual machine gives it.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{_processor()} with {torch.backends.cpu.get_cpu_capability()}"
    return platform.processor() or device.type


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "cpu")


def bf16_slowdown() -> float:
    """Measure how many times as long a matrix product takes in bf16 as in fp32 on this CPU; it takes some milliseconds.

    Where bf16 is emulated, as on processors without AVX-512 or AMX instructions for it, that is more than 1.
    """
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(_REPEATS):
        for dtype, taken in seconds.items():
            tokens, weight = torch.ones(_TOKENS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
            start = time.perf_counter()
            torch.mm(tokens, weight)
            taken.append(time.perf_counter() - start)
    return median(seconds[torch.bfloat16]) / median(seconds[torch.float32])


def keep_freed_memory() -> None:
    """Have glibc's malloc keep the memory that tensors free, instead of giving it back to the kernel.

    A training step allocates and frees the same sizes again and again, and every page that the kernel hands out anew
    costs a fault: without this they can cost more than the sparse products.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _MAX_TRIM_THRESHOLD)


def start_peak_memory(device: torch.device) -> None:
    """Forget the peak of memory so far, so that each run of a sweep reports its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # Linux only, and not in every sandbox
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Return the peak in bytes: of the CUDA allocator, else of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
