"""A delta in a few files, from the model to what the records say."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from benchmarks.cases import DeltaCase, build
from benchmarks.delta_check import State, check_same, state
from benchmarks.delta_contenders import Adapter, Dense, Ours, Stored, position_bits
from benchmarks.delta_masks import masks
from benchmarks.timing import Effort, Times, interleave, quartiles
from fishexp.delta import Stack
from fishexp.delta.tensors import source

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEAST = 5  # rounds: one of BERT-large takes seconds


@dataclass(frozen=True)
class MeasuredDelta:
    """One way to store what training changed.

    Attributes:
        entries: That it has, of ``total`` weights.
        position_bits: Of :func:`benchmarks.delta_contenders.position_bits`.
        entropy_bits: The same of a mask that has as many entries in each tensor, at random.
        lost: Entries of the base that are not what they were after apply and undo; None without an undo.
        seconds: Of each operation: lower quartile, median, upper quartile.
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


def measure_deltas(case: DeltaCase, effort: Effort) -> Iterator[MeasuredDelta]:
    """Check, then time the contenders whose packages are installed, on the CPU.

    Raises:
        FishexpError: If a delta does not give the trained model, or its undo the base.
    """
    model, head = build(case.model)
    model = model.to(DTYPES[case.precision]).eval()
    base = state(model)
    with TemporaryDirectory() as folder:
        stack = Stack(model)
        found = list(_contenders(case, model, head, base, stack, Path(folder)))
        times = _rounds(model, found, stack, effort)
        check_same("after all rounds", base, model)
        for number, one in enumerate(found):
            own = {name.partition(" ")[2]: ts for name, ts in times.items() if name.startswith(f"{number} ")}
            if isinstance(one, Ours):
                own["fingerprint"] = times["fingerprint"]
            yield MeasuredDelta(
                contender=one.name,
                mask=one.mask,
                total=sum(p.numel() for p in model.parameters()),
                entries=one.entries,
                file_bytes=one.file.stat().st_size,
                position_bits=position_bits(one),
                entropy_bits=one.entropy,
                lost=one.lost,
                seconds={name: quartiles(ts) for name, ts in own.items()},
                rounds=len(times["fingerprint"]),
            )


def _contenders(
    case: DeltaCase, model: nn.Module, head: tuple[str, ...], base: State, stack: Stack, folder: Path
) -> Iterator[Stored]:
    """Those whose packages are installed. Ours are checked one by one: each has a copy of the model until then."""
    chosen = masks(case, model, head)
    for name in case.contenders:
        if name == "dense":
            yield Dense(model, folder / "dense.safetensors")
        elif name == "ours":
            for key, mask in chosen.items():
                ours = Ours(key, model, mask, stack, folder / f"{key}.safetensors")
                ours.check(base)
                yield ours
        elif find_spec("peft"):
            yield Adapter(name, model, chosen["random"], head, folder / name)


def _rounds(model: nn.Module, found: Sequence[Stored], stack: Stack, effort: Effort) -> Times:
    """Seconds by the number of a contender and the operation; all leave ``model`` as it is after a round."""
    calls: dict[str, Callable[[], object]] = {"fingerprint": lambda: source(model).fingerprints()}
    for number, one in enumerate(found):
        calls |= {f"{number} {operation}": call for operation, call in one.calls().items()}
    for number, one in enumerate(found):
        if isinstance(one, Ours):
            calls[f"{number} switch"] = one.switch  # from the one before
    calls["all off"] = lambda: stack.switch(None)
    few = replace(effort, least=min(LEAST, effort.least), warmup=1, repeats=1)
    return interleave(calls, few, torch.device("cpu"))
