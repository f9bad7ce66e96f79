"""Measurement of deltas: checks to the bit, then the time of all operations in turn, and the files' sizes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from benchmarks.delta.case import DeltaCase
from benchmarks.delta.check import State, check_same, state
from benchmarks.delta.contenders import Adapter, Dense, Ours, Stored, position_bits
from benchmarks.delta.masks import masks
from benchmarks.models import build
from benchmarks.packages import installed
from benchmarks.timing import Effort, Times, interleave, quartiles, single_core
from fishexp.delta import Stack
from fishexp.delta.sources import source

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEAST = 5  # rounds, as a round of BERT-large takes seconds


@dataclass(frozen=True)
class DeltaResult:
    """Hold the size of what a contender stores, and the time of its operations.

    Attributes:
        entries: Number of entries that are stored, of the model's ``total`` weights.
        position_bits: Bits a position, see :func:`benchmarks.delta.contenders.position_bits`.
        entropy_bits: The same for a mask that has as many entries in each tensor, at random.
        lost: Entries of the base that differ after apply and undo; None without an undo.
        seconds: Lower quartile, median and upper quartile of each operation.
    """

    contender: str
    mask: str | None
    total: int
    entries: int
    file_bytes: int
    position_bits: float | None
    entropy_bits: float | None
    lost: int | None
    seconds: dict[str, list[float]]
    rounds: int

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * seconds[1]:.1f}" for name, seconds in self.seconds.items())
        return f"{self.contender:12} {self.mask or '':8} {self.file_bytes:,} bytes; ms: {times}; {self.rounds} rounds"


def measure(case: DeltaCase, device: torch.device, effort: Effort) -> Iterator[DeltaResult]:
    """Check, then time the contenders whose packages are installed, on one core.

    Raises:
        FishexpError: If a delta does not give the trained model, or its undo the base.
    """
    with single_core():
        model, head = build(case.model)
        model = model.to(device, DTYPES[case.precision]).eval()
        base = state(model)
        with TemporaryDirectory() as folder:
            stack = Stack(model)
            contenders = list(_contenders(case, model, head, base, stack, Path(folder)))
            times = _time(model, contenders, stack, effort, device)
            check_same("after all rounds", base, model)
            for number, stored in enumerate(contenders):
                own = {name.partition(" ")[2]: ts for name, ts in times.items() if name.startswith(f"{number} ")}
                if isinstance(stored, Ours):
                    own["fingerprint"] = times["fingerprint"]
                yield DeltaResult(
                    contender=stored.name,
                    mask=stored.mask,
                    total=sum(p.numel() for p in model.parameters()),
                    entries=stored.entries,
                    file_bytes=stored.file.stat().st_size,
                    position_bits=position_bits(stored),
                    entropy_bits=stored.entropy,
                    lost=stored.lost,
                    seconds={name: quartiles(ts) for name, ts in own.items()},
                    rounds=len(times["fingerprint"]),
                )


def _contenders(
    case: DeltaCase, model: nn.Module, head: tuple[str, ...], base: State, stack: Stack, folder: Path
) -> Iterator[Stored]:
    """Make the contenders. Ours are checked one after the other, as each holds a copy of the model until then."""
    chosen = masks(case, model, head)
    for name in installed(case.contenders):
        if name == "dense":
            yield Dense(model, folder / "dense.safetensors")
        elif name == "ours":
            for key, mask in chosen.items():
                ours = Ours(key, model, mask, stack, folder / f"{key}.safetensors")
                ours.check(base)
                yield ours
        else:
            yield Adapter(name, model, chosen["random"], head, folder / name)


def _time(model: nn.Module, contenders: Sequence[Stored], stack: Stack, effort: Effort, device: torch.device) -> Times:
    """Time all operations; ``model`` is the base again after each round.

    Returns:
        Seconds by "fingerprint", or by the number of a contender and the operation: "2 save".
    """
    calls: dict[str, Callable[[], object]] = {"fingerprint": lambda: source(model).fingerprints()}
    for number, stored in enumerate(contenders):
        calls |= {f"{number} {operation}": call for operation, call in stored.operations().items()}
    for number, stored in enumerate(contenders):
        if isinstance(stored, Ours):
            calls[f"{number} switch"] = stored.switch  # from the delta before it
    calls["all off"] = lambda: stack.switch(None)
    few = replace(effort, least=min(LEAST, effort.least), warmup=1, repeats=1)
    return interleave(calls, few, device)
