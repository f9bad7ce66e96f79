"""Measurement of serving: checks to the bit, then switches, answers and loads of all contenders in turn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.models import batches, build
from benchmarks.packages import installed
from benchmarks.serve.case import ServeCase
from benchmarks.serve.contenders import make, operations
from benchmarks.timing import Effort, interleave, quartiles, single_core
from fishexp.errors import FishexpError


@dataclass(frozen=True)
class ServeResult:
    """Hold what it takes to keep the tasks, and the time of operations.

    Attributes:
        file_bytes: Of a task on disk.
        resident_bytes: Of all tasks in memory, beside one model.
        lost: Entries of the base that have other bits after switching and merging; None without a way back.
        seconds: Lower quartile, median and upper quartile of each operation.
    """

    contender: str
    file_bytes: int
    resident_bytes: int
    lost: int | None
    seconds: dict[str, list[float]]
    rounds: int

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * seconds[1]:.2f}" for name, seconds in self.seconds.items())
        return f"{self.contender:12} {self.file_bytes:,} bytes a task; ms: {times}; {self.rounds} rounds"


def measure(case: ServeCase, device: torch.device, effort: Effort) -> Iterator[ServeResult]:
    """Check, then time the contenders whose packages are installed, on one core.

    Raises:
        FishexpError: If a switch does not give the task's model, or the way back not the base.
    """
    with single_core(), torch.inference_mode(), TemporaryDirectory() as folder:
        with torch.inference_mode(False):
            model, head = build(case.model)
            model = model.to(device).eval()
            serving = [make(case, name, model, head, Path(folder)) for name in installed(case.contenders)]
        inputs = batches(1, 1, case.length, device)[0][0]
        assert isinstance(inputs, dict)
        calls: dict[str, Callable[[], object]] = {}
        for contender in serving:
            contender.model.eval()
            calls |= {f"{contender.name} {name}": call for name, call in operations(contender, inputs).items()}
        times = interleave(calls, replace(effort, warmup=1, repeats=1), device)
        for contender in serving:
            lost = contender.lost()
            if contender.name == "ours" and lost:
                raise FishexpError(f"serve: {lost} entries of the base have other bits after all switches")
            own = {name.rpartition(" ")[2]: ts for name, ts in times.items() if name.startswith(contender.name + " ")}
            del own["forget"]
            yield ServeResult(
                contender.name,
                contender.file_bytes,
                contender.resident_bytes,
                lost,
                {name: quartiles(ts) for name, ts in own.items()},
                len(next(iter(own.values()))),
            )
