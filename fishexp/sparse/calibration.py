"""Measurement of what the gradient methods cost on this processor, once: :func:`calibrated`."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fishexp.sparse.conv import ConvGeometry, conv2d_gradient
from fishexp.sparse.costs import Costs, PartCosts, by_instruction_set
from fishexp.sparse.linear import linear_gradient
from fishexp.sparse.modules import sparse_parameter
from fishexp.sparse.parameter import GradientMethod
from fishexp.system import hardware

log = logging.getLogger(__name__)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# repeats of a measurement, of which the shortest counts: what else the machine does only adds to it; and seconds that
# they may take together once there are two
_REPEATS, _SECONDS = 7, 0.06
# terms of the sums of a Linear's sample; its outputs and inputs
_TOKENS, _OUTPUTS, _INPUTS = 1024, 384, 256
# images of a convolution's sample, their height and width, its channels
_IMAGES, _SIZE, _CHANNELS = 8, 16, 64
# kept fractions of the sampled product, and kept columns of the submatrix, between which a line is drawn
_DENSITIES, _LINES = (0.002, 0.05), (4, 24)

_NONE = Costs({}, 0.0)  # nothing is to be chosen by them


def known() -> Costs:
    """Return what was measured on this processor with this torch, else typical costs, for torch's number of threads."""
    return (_read(_file()) or by_instruction_set(torch.backends.cpu.get_cpu_capability())).scaled(
        torch.get_num_threads()
    )


def calibrated() -> Costs:
    """Return what was measured on this processor with this torch, for torch's number of threads; measure it if need be.

    That takes two or three seconds, once: the result is kept in the user's cache.
    """
    file = _file()
    costs = _read(file)
    if costs is None:
        costs = measured()
        with suppress(OSError):  # then it is measured again the next time
            _write(file, costs)
        costs = _read(file) or costs  # of two processes at once, the first counts
    return costs.scaled(torch.get_num_threads())


def _file() -> Path:
    """Return the file for this processor, its instructions and torch."""
    about = _about()
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "fishexp", f"gradient-costs-{digest}.json")


def _about() -> dict[str, str | int]:
    return {
        "processor": hardware.name(torch.device("cpu")),
        "torch": torch.__version__,
        "methods": 1,  # to be raised when a method becomes another
    }


def _read(file: Path) -> Costs | None:
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        return Costs.from_json(json.loads(file.read_text())["costs"])
    return None


def _write(file: Path, costs: Costs) -> None:
    """Write the file if there is none by now: all processes are to have the same costs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps({"measured on": _about(), "costs": costs.to_json()}, indent=1) + "\n")
        if _read(file) is None:
            file.unlink(missing_ok=True)
        os.link(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def measured() -> Costs:
    """Measure the costs here and now, as one thread's own time, which other programs disturb the least."""
    start, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # layers draw weights: a run that measures draws what all others draw
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            call = _seconds(_linear(torch.float32, "sddmm", torch.ones(1, 1) > 0, tokens=1)) / 3
            parts = {
                kind: {str(dtype).removeprefix("torch."): measure(dtype, call) for dtype in DTYPES}
                for kind, measure in (("linear", _measure_linear), ("conv", _measure_conv))
            }
    finally:
        torch.set_num_threads(threads)
    log.info("measured what gradients cost on this processor: %.1f seconds, once", time.perf_counter() - start)
    return Costs(parts, call * 1e9)


def _measure_linear(dtype: torch.dtype, call: float) -> PartCosts:
    shape, numel = (_OUTPUTS, _INPUTS), _OUTPUTS * _INPUTS

    def each(way: GradientMethod, mask: Tensor, calls: int) -> float:
        return max(_seconds(_linear(dtype, way, mask, _TOKENS)) - calls * call, 0.0) / _TOKENS

    dense = each("dense", _spread(shape, _DENSITIES[0]), 1) / numel
    few, many = (each("submatrix", _columns(shape, lines), 3) / _OUTPUTS for lines in _LINES)
    sparse, denser = (each("sddmm", _spread(shape, density), 4) for density in _DENSITIES)
    sampled = max(denser - sparse, 0.0) / (numel * (_DENSITIES[1] - _DENSITIES[0]))
    reorder = max(sparse - sampled * numel * _DENSITIES[0], 0.0) / sum(shape)
    return _part_costs(dense, few, many, (reorder, reorder, reorder), sampled)


def _measure_conv(dtype: torch.dtype, call: float) -> PartCosts:
    shape = (_CHANNELS, _CHANNELS, 3, 3)
    numel, pixels = _CHANNELS * _CHANNELS * 9, _IMAGES * _SIZE * _SIZE
    last = torch.channels_last

    def each(
        way: GradientMethod, mask: Tensor, calls: int, stride: int = 1, memory: torch.memory_format | None = None
    ) -> float:
        form = _conv(dtype, way, mask, stride, memory or torch.contiguous_format)
        return max(_seconds(form) - calls * call, 0.0) / (pixels // stride**2)

    spread = _spread(shape, _DENSITIES[0])
    dense = each("dense", spread, 1) / numel
    few, many = (each("submatrix", _columns(shape, lines), 3) / (_CHANNELS * 9) for lines in _LINES)
    sparse, denser = (each("sddmm", _spread(shape, density), 10) for density in _DENSITIES)
    sampled = max(denser - sparse, 0.0) / (numel * (_DENSITIES[1] - _DENSITIES[0]))
    entries = sampled * numel * _DENSITIES[0]
    reorder = max(sparse - entries, 0.0) / (2 * _CHANNELS)
    reorder_last = max(each("sddmm", spread, 10, memory=last) - entries, 0.0) / (2 * _CHANNELS)
    strided = each("sddmm", spread, 10, stride=2) - entries - reorder * _CHANNELS
    return _part_costs(dense, few, many, (reorder, reorder_last, max(strided, 0.0) / (4 * _CHANNELS)), sampled)


def _part_costs(
    dense: float, few: float, many: float, reorder: tuple[float, float, float], sampled: float
) -> PartCosts:
    """Turn seconds into nanoseconds; ``few`` and ``many`` are of products with so many lines, for each other number."""
    narrow = max(many - few, 0.0) / (_LINES[1] - _LINES[0])
    read = max(few - _LINES[0] * narrow, 0.0)
    return PartCosts(*(1e9 * seconds for seconds in (dense, narrow, read, *reorder, sampled)))


def _linear(dtype: torch.dtype, way: GradientMethod, mask: Tensor, tokens: int) -> Callable[[], object]:
    kept = sparse_parameter("", nn.Parameter(torch.zeros(mask.shape, dtype=dtype)), mask, nn.Linear(1, 1), way, _NONE)
    g, x = (torch.ones(tokens, size, dtype=dtype) for size in mask.shape)
    return partial(linear_gradient, kept, g, x)


def _conv(
    dtype: torch.dtype, way: GradientMethod, mask: Tensor, stride: int, memory: torch.memory_format
) -> Callable[[], object]:
    weight = torch.zeros(mask.shape, dtype=dtype).contiguous(memory_format=memory)
    module = nn.Conv2d(1, 1, 3)
    kept = sparse_parameter("", nn.Parameter(weight), mask, module, way, _NONE)
    x = torch.ones(_IMAGES, _CHANNELS, _SIZE, _SIZE, dtype=dtype).contiguous(memory_format=memory)
    g = x[:, :, ::stride, ::stride].contiguous(memory_format=memory)
    conv = ConvGeometry((3, 3), (stride, stride), (1, 1), (1, 1), 1)
    return partial(conv2d_gradient, kept, g, x, weight, conv)


def _spread(shape: tuple[int, ...], density: float) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density


def _columns(shape: tuple[int, ...], lines: int) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, :lines] = True
    return mask


def _seconds(call: Callable[[], object]) -> float:
    """Return the shortest time of a call."""
    call()
    times: list[float] = []
    while len(times) < 2 or (len(times) < _REPEATS and sum(times) < _SECONDS):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)
