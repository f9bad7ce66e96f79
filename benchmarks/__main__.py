"""``python -m benchmarks``: run, append to records.jsonl, and remake README.md and its pictures from all records."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import packages, page
from benchmarks.protocol import Case
from benchmarks.registry import BENCHMARKS
from benchmarks.timing import Effort
from fishexp.run import record
from fishexp.system import hardware
from fishexp.system.atomic import append
from fishexp.system.program import carry_out

HOME = Path(__file__).parent
QUICK = Path("outputs/benchmarks")  # a smoke test's numbers stay out of the repository
BUSY = 1.5  # processes that run or wait to run, on average over a minute, above which timings are disturbed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the command line asks for; returns 2 if a result was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", choices=list(BENCHMARKS), help="run this benchmark alone")
    parser.add_argument("--quick", action="store_true", help=f"a smoke test: tiny batches, into {QUICK}")
    options = parser.parse_args(arguments)
    chosen = [BENCHMARKS[options.only]] if options.only else BENCHMARKS.values()
    if options.quick:
        cases = [case for benchmark in chosen for case in benchmark.quick_cases(options.device)]
        effort, home = Effort(0.0, 2), QUICK
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(HOME / "README.md", home)
    else:
        cases = [case for benchmark in chosen for case in benchmark.cases(options.device)]
        effort, home = Effort(5.0, repeats=5) if options.device == "cuda" else Effort(12.0), HOME
    return carry_out("benchmarks", lambda: run(cases, effort, options.device, home))


def run(cases: Sequence[Case], effort: Effort, device: str, home: Path) -> None:
    """Append to ``home``'s records as contenders are measured, then remake its README.md and the pictures.

    Raises:
        FishexpError: If there is no such device, or a result is wrong.
    """
    print_warnings(cases)
    hardware.keep_freed_memory()  # for all contenders, as in every run of fishexp
    with hardware.device(device) as found:
        for case in cases:
            _run_case(case, found, effort, home)
    page.update(home)


def _run_case(case: Case, device: torch.device, effort: Effort, home: Path) -> None:
    benchmark = BENCHMARKS[case.benchmark]
    setting = {"benchmark": case.benchmark} | asdict(case)
    del setting["contenders"]
    print(f"{case.benchmark}: {benchmark.title(setting)}", flush=True)
    environment = _environment(device)
    for result in benchmark.measure(case, device, effort):
        threads = torch.get_num_threads()  # which a benchmark may set until it ends
        line = setting | asdict(result) | {"threads": threads} | environment | {"ended": _now()}
        append(home / "records.jsonl", json.dumps(line), "record")
        print(f"  {line['precision']} {result}", flush=True)


def print_warnings(cases: Sequence[Case]) -> None:
    """Print a line if the machine is busy, and a line for each contender whose package is missing."""
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"warning: the load is {load:.1f}; other work on this machine disturbs the timing")
    for name, distribution in packages.missing(name for case in cases for name in case.contenders).items():
        print(f"{name} is left out: pip install {distribution}")


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "device": hardware.name(device),
        "versions": record.versions() | packages.versions(),
        "commit": record.commit(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
