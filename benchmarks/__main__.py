"""``python -m benchmarks``: run, append to records.jsonl, and remake README.md and step.png from all records."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.cases import Case, DeltaCase, cases
from benchmarks.deltas import measure_deltas
from benchmarks.measure import PACKAGES, measure
from benchmarks.timing import Effort, one_core
from fishexp import hardware, record
from fishexp.errors import FishexpError

HOME = Path(__file__).parent
QUICK = Path("outputs/benchmarks")  # a smoke test's numbers stay out of the repository
_DISTRIBUTIONS = {"peft": "peft", "backpack": "backpack-for-pytorch"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if a result was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", choices=["step", "fisher", "delta"], help="one of the benchmarks")
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


def _is_quick(case: Case | DeltaCase) -> bool:
    return case.keep in (None, 0.005) if isinstance(case, Case) else case.model == "minilm"


def _tiny(case: Case | DeltaCase) -> Case | DeltaCase:
    if isinstance(case, DeltaCase):
        return case
    return replace(case, batch=2, examples=None if case.examples is None else 4)


def run(todo: Sequence[Case | DeltaCase], effort: Effort, device: str, home: Path) -> None:
    """Append to ``home``'s records as cases end, then remake its README.md and step.png.

    Raises:
        FishexpError: If there is no such device, or a result is wrong.
    """
    _say_what_disturbs(todo)
    hardware.keep_freed_memory()  # for all contenders, as for every run of ours
    with hardware.device(device) as found:
        for case in todo:
            print(f"{case.benchmark}: {report.title(asdict(case))}", flush=True)
            with one_core() if isinstance(case, DeltaCase) else nullcontext():
                _run(case, found, effort, home)
    report.update(home)


def _run(case: Case | DeltaCase, device: torch.device, effort: Effort, home: Path) -> None:
    machine = _machine(device)
    found = measure_deltas(case, effort) if isinstance(case, DeltaCase) else measure(case, device, effort)
    for measured in found:
        line = asdict(case) | asdict(measured) | machine | {"ended": _now()}
        del line["contenders"]
        record.append(home / "records.jsonl", json.dumps(line))
        print(f"  {line['precision']} {measured}", flush=True)


def _say_what_disturbs(todo: Sequence[Case | DeltaCase]) -> None:
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
