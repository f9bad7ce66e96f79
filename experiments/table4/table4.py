"""Table 4 of the paper, every epoch kept as a checkpoint: ``PROFILE=cpu python experiments/table4/table4.py``.

Learning rates are chosen on held-out training images with seed 0; then every cell runs at its rate, seed by seed.
Finished runs are skipped and cut ones continued, so the same command goes on where it stopped, also in two terminals at
once. ``DRY=1`` says what there is to do; ``PYTHON`` is the interpreter of the runs.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # this repository's fishexp, whatever is installed

from experiments import sweep
from experiments.sweep import Command, OnRecord
from experiments.table4 import dry, report
from experiments.table4.cells import Cell, Profile, Result, Schedule, Section
from fishexp.errors import FishexpError
from fishexp.record import finished
from fishexp.report.group import Group
from fishexp.report.pool import differing

HOME = Path(__file__).parent
OUTPUTS = "outputs/table4"
METHODS, KEEPS = ("fish", "random"), (0.005, 0.02, 0.1, 0.25)
SCHEDULES: Sequence[Schedule] = ("fixed", "every_epoch")
LOGGED = {
    (run["method"], run["keep"], run["mask"]): run["lr"]
    for run in json.loads((HOME / "authors_logs.json").read_text())["runs"]
}


KEPT, ALL, ORIGINAL = "decay=kept compat=none", "decay=all compat=none", "decay=all compat=fish"
PROFILES = {
    "cpu": Profile(
        about="For about 2 hours of 2 idle cores: a smaller network, a fifth of the training images, half of the test "
        "images, a fraction of the epochs with the warm-up in proportion, fewer images to score.",
        common="data=cifar10 model=resnet18 precision=bf16 threads=1 device=cpu data.train_limit=10000 "
        "regime=checkpointing regime.keyframe_every=1000 regime.batch_size=128",
        fish="method.samples=256",
        choose="data.holdout=2000 regime.epochs=4 regime.warmup=0.2",
        rates=(0.02, 0.08, 0.32),
        rate_of={0.02: 0.005, 0.25: 0.1},
        tuned=("fixed",),
        report="data.valid_limit=5000 regime.epochs=6 regime.warmup=0.3",
        seeds=range(5),
        variants=(KEPT,),
    ),
    "gpu": Profile(
        about="The network, the epochs and the learning rates of the authors' logs, in bf16 where theirs is fp16.",
        common="data=cifar10 model=resnet9 precision=bf16 device=cuda regime=checkpointing regime.keyframe_every=1000 "
        "regime.batch_size=512",
        fish="method.samples=1024",
        choose=None,
        rates=(),
        rate_of={0.25: 0.1},
        tuned=SCHEDULES,
        report="regime.epochs=100 regime.warmup=5",
        seeds=range(3),
        variants=(KEPT, ALL, ORIGINAL),
    ),
    "paper": Profile(
        about="The network, the epochs and the rates of the paper, in fp32. Which rate, held-out images say.",
        common="data=cifar10 model=resnet34 precision=fp32 regime=checkpointing regime.keyframe_every=1000 "
        "regime.batch_size=512 regime.epochs=100 regime.warmup=5",
        fish="method.samples=1024",
        choose="data.holdout=5000",
        rates=(0.8, 0.4, 0.2, 0.08, 0.04, 0.02),
        rate_of={},
        tuned=SCHEDULES,
        report="",
        seeds=range(5),
        variants=(KEPT, ALL),
    ),
}


def cells(profile: Profile) -> list[Cell]:
    """In the order of the table. Random masks have no scores that compat could change, dense training none frozen."""
    every = [Cell(m, k, s, v) for v, k, s, m in product(profile.variants, KEEPS, SCHEDULES, METHODS)]
    masked = [cell for cell in every if cell.method == "fish" or cell.variant != ORIGINAL]
    return [*masked, Cell("full", 1.0, "fixed", profile.variants[0])]


def overrides(profile: Profile, cell: Cell, *more: str) -> tuple[str, ...]:
    """What stands behind ``python -m fishexp -m`` for ``cell``."""
    words = [profile.common, f"method={cell.method}", f"regime.mask={cell.schedule}", cell.variant, *more]
    if cell.method != "full":
        words.append(f"keep={cell.keep:g}")
    if cell.method == "fish":
        words.append(profile.fish)
    return tuple(" ".join(words).split())


def source(profile: Profile, cell: Cell) -> Cell:
    """The cell whose learning rate ``cell`` takes."""
    schedule = cell.schedule if cell.schedule in profile.tuned else profile.tuned[0]
    return replace(cell, keep=profile.rate_of.get(cell.keep, cell.keep), schedule=schedule)


def best(tried: Mapping[float, Group | None]) -> float | None:
    """The learning rate of the highest mean, of equals the smallest; None if all failed or are undefined."""
    means = {lr: group.mean for lr, group in tried.items() if group and group.mean is not None}
    return min(means, key=lambda lr: (-means[lr], lr)) if means else None


def result(profile: Profile, cell: Cell, found: OnRecord) -> Result:
    """What is on record of ``cell``. Its rate is chosen once all have been tried.

    Raises:
        FishexpError: If runs on record have the cell's settings but differ from each other in further ones.
    """
    of = source(profile, cell)
    tried: dict[float, Group | None] = {}
    for lr in profile.rates:
        group, failed = _find(found, overrides(profile, of, profile.choose or "", f"regime.lr={lr:g}"))
        if group or failed:
            tried[lr] = group
    if profile.choose is None:
        chosen = LOGGED[of.method, of.keep, of.schedule]
    else:
        chosen = best(tried) if len(tried) == len(profile.rates) else None
    if chosen is None:
        return Result(cell, None, of, tried, None, 0)
    told = overrides(profile, cell, "data.holdout=0", profile.report, f"regime.lr={chosen:g}")
    return Result(cell, chosen, of, tried, *_find(found, told))


def _find(found: OnRecord, told: Sequence[str]) -> tuple[Group | None, int]:
    """The finished runs with these settings, and how many failed."""
    groups = [group for group in found.groups if sweep.told(group.settings, told)]
    if len(groups) > 1:
        raise FishexpError(f"records of {' '.join(told)} differ in {', '.join(differing(groups))}; keep one kind")
    return groups[0] if groups else None, sum(sweep.told(settings, told) for settings in found.failed)


def plan(profile: Profile, records: Path) -> Iterator[Command]:
    """Every command of the sweep: the choices of learning rates, then the table, seed by seed."""
    found = sweep.on_record(records)
    results = [result(profile, cell, found) for cell in cells(profile)]
    if profile.choose is not None:
        rates = ",".join(f"{lr:g}" for lr in profile.rates)
        for cell in dict.fromkeys(one.source for one in results):
            yield Command("rates", overrides(profile, cell, profile.choose, "seed=0", f"regime.lr={rates}"))
    for seed, one in product(profile.seeds, results):
        lr = one.lr or profile.rates[0]
        told = overrides(profile, one.cell, profile.report, f"seed={seed}", f"regime.lr={lr:g}")
        yield Command("table", told, waits=one.lr is None)


def section(name: str, found: OnRecord) -> Section:
    """What the report says of a profile."""
    profile = PROFILES[name]
    cell = cells(profile)[0]
    in_table, *_ = sweep.composed(overrides(profile, cell, profile.report, "regime.lr=1"))
    chosen = None if profile.choose is None else sweep.composed(overrides(profile, cell, profile.choose))[0]
    return Section(name, profile, [result(profile, one, found) for one in cells(profile)], in_table, chosen)


def main(environment: Mapping[str, str], records: Path = HOME / "records.jsonl", outputs: str = OUTPUTS) -> int:
    """Carry out the profile that ``environment`` names, or with DRY say what there is to do; the exit status."""
    name = environment.get("PROFILE") or "cpu"
    try:
        if name not in PROFILES:
            raise FishexpError(f"PROFILE={name}: no such profile; there are {', '.join(PROFILES)}")
        if environment.get("DRY", "0") not in ("", "0"):
            print(dry.table(plan(PROFILES[name], records), finished(records)))
            return 0
        python = environment.get("PYTHON") or sys.executable
        status = sweep.carry_out(lambda: plan(PROFILES[name], records), python, outputs, records)
        found = sweep.on_record(records)
        report.write(records.parent, [section(name, found) for name in PROFILES])
        return status
    except FishexpError as error:
        print(f"fishexp: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(os.environ))
