"""``python -m benchmarks``: run, append to records.jsonl, and remake README.md and its pictures from all records."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.cases import AnyCase, Case, DeltaCase, cases
from benchmarks.deltas import MeasuredDelta, measure_deltas
from benchmarks.measure import PACKAGES, Measured, measure
from benchmarks.merge_cases import MergeCase
from benchmarks.merges import MeasuredMerge, measure_merges
from benchmarks.timing import Effort, one_core, one_thread
from fishexp.errors import FishexpError
from fishexp.run import record
from fishexp.system import hardware

HOME = Path(__file__).parent
QUICK = Path("outputs/benchmarks")  # a smoke test's numbers stay out of the repository
_DISTRIBUTIONS = {"peft": "peft", "backpack": "backpack-for-pytorch"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if a result was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", choices=["step", "fisher", "delta", "merge"], help="one of the benchmarks")
    parser.add_argument("--quick", action="store_true", help=f"a smoke test: tiny batches, into {QUICK}")
    options = parser.parse_args(arguments)
    todo = [case for case in cases(options.device) if options.only in (None, case.benchmark)]
    effort = Effort(5.0, repeats=5) if options.device == "cuda" else Effort(12.0)
    home = HOME
    if options.quick:
        todo, effort, home = [_tiny(case) for case in todo if _is_quick(case)], Effort(0.0, 2), QUICK
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(HOME / "README.md", home)
    try:
        run(todo, effort, options.device, home)
    except FishexpError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def _is_quick(case: AnyCase) -> bool:
    if isinstance(case, MergeCase):
        return case.workers <= 2 and case.weights == 10**6
    return case.keep in (None, 0.005) if isinstance(case, Case) else case.model == "minilm"


def _tiny(case: AnyCase) -> AnyCase:
    if not isinstance(case, Case):
        return case
    return replace(case, batch=2, examples=None if case.examples is None else 4)


def run(todo: Sequence[AnyCase], effort: Effort, device: str, home: Path) -> None:
    """Append to ``home``'s records as cases end, then remake its README.md and the pictures.

    Raises:
        FishexpError: If there is no such device, or a result is wrong.
    """
    _say_what_disturbs(todo)
    hardware.keep_freed_memory()  # for all contenders, as for every run of ours
    with hardware.device(device) as found:
        for case in todo:
            print(f"{case.benchmark}: {report.title(asdict(case))}", flush=True)
            with _threads(case):
                _run(case, found, effort, home)
    report.update(home)


def _threads(case: AnyCase) -> AbstractContextManager[None]:
    if isinstance(case, DeltaCase):
        return one_core()
    return one_thread() if isinstance(case, MergeCase) else nullcontext()


def _measure(
    case: AnyCase, device: torch.device, effort: Effort
) -> Iterator[Measured] | Iterator[MeasuredDelta] | Iterator[MeasuredMerge]:
    if isinstance(case, DeltaCase):
        return measure_deltas(case, effort)
    return measure_merges(case, effort) if isinstance(case, MergeCase) else measure(case, device, effort)


def _run(case: AnyCase, device: torch.device, effort: Effort, home: Path) -> None:
    machine = _machine(device)
    for measured in _measure(case, device, effort):
        line = asdict(case) | asdict(measured) | machine | {"ended": _now()}
        del line["contenders"]
        record.append(home / "records.jsonl", json.dumps(line))
        print(f"  {line['precision']} {measured}", flush=True)


def _say_what_disturbs(todo: Sequence[AnyCase]) -> None:
    """A line each for a busy machine and for a contender whose package is missing."""
    load = os.getloadavg()[0]
    if load > 1.5:
        print(f"warning: the load is {load:.1f}; other work on this machine disturbs the timing")
    for name in sorted({name for case in todo for name in case.contenders} & PACKAGES.keys()):
        if not find_spec(PACKAGES[name]):
            print(f"{name} is left out: pip install {_DISTRIBUTIONS[PACKAGES[name]]}")


def _machine(device: torch.device) -> dict[str, Any]:
    """What is the same for all records of a run."""
    installed = {name: version(name) for module, name in _DISTRIBUTIONS.items() if find_spec(module)}
    return {
        "device": hardware.name(device),
        "threads": torch.get_num_threads(),
        "versions": record.versions() | installed,
        "commit": record.commit(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
