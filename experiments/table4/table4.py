"""Table 4 of the paper, every epoch kept as a checkpoint: ``PROFILE=cpu python experiments/table4/table4.py``.

Learning rates are chosen on held-out training images; then every cell runs at its rate, seed by seed. Finished runs are
skipped and cut ones continued, so the same command goes on where it stopped, also in two terminals at once. ``DRY=1``
says what there is to do; ``PYTHON`` is the interpreter of the runs.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Literal, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[2]))  # this repository's fishexp, whatever is installed

from experiments.sweep import Command, carry_out
from fishexp.errors import FishexpError
from fishexp.report.group import Group
from fishexp.report.pool import load, pool

HOME = Path(__file__).parent
RECORDS, LOGS = HOME / "records.jsonl", HOME / "authors_logs.json"
OUTPUTS = "outputs/table4"

Mask: TypeAlias = Literal["fixed", "every_epoch"]
KEEPS, METHODS, MASKS = (0.005, 0.02, 0.1, 0.25), ("fish", "random"), ("fixed", "every_epoch")


@dataclass(frozen=True)
class Cell:
    """What has a row of its own in the table; ``keep`` is 1 for dense training.

    Attributes:
        variant: Overrides on what happens to the weights outside the mask.
    """

    method: str
    keep: float
    mask: Mask = "fixed"
    variant: str = "decay=kept"


@dataclass(frozen=True)
class Profile:
    """How large a table to make.

    Attributes:
        common: Overrides of every run.
        fish: Overrides of FISH alone.
        seeds: Of the table; rates are chosen with seed 0.
        report: Overrides of the runs in the table.
        choose: Overrides of the runs on held-out images; empty: the rates are those of the authors' logs.
        rates: Tried for each cell that has its rate chosen.
        rate_of: keep -> the keep at which its rate is chosen.
        tuned: The mask schedules with rates of their own; the others take those of the first.
        variants: The tables to make.
    """

    common: str
    fish: str
    seeds: Sequence[int]
    report: str
    choose: str = ""
    rates: Sequence[float] = ()
    rate_of: Mapping[float, float] = field(default_factory=lambda: {keep: keep for keep in (*KEEPS, 1)})
    tuned: Sequence[Mask] = MASKS
    variants: Sequence[str] = ("decay=kept",)


PROFILES = {
    # About 2 hours of 2 idle cores: a fifth of the images, 6 epochs with the warm-up in proportion, a smaller network.
    "cpu": Profile(
        common="data=cifar10 model=resnet18 precision=bf16 threads=1 device=cpu regime=checkpointing "
        "regime.keyframe_every=1000 data.train_limit=10000 regime.batch_size=128",
        fish="method.samples=256",
        choose="data.holdout=2000 regime.epochs=4 regime.warmup=0.2",
        rates=(0.02, 0.08, 0.32),
        rate_of={0.005: 0.005, 0.02: 0.005, 0.1: 0.1, 0.25: 0.1, 1: 1},
        tuned=("fixed",),
        report="data.valid_limit=5000 regime.epochs=6 regime.warmup=0.3",
        seeds=range(5),
    ),
    # The network and the rates of the authors' logs, in bf16 where theirs is fp16. Their unselected weights decayed.
    "gpu": Profile(
        common="data=cifar10 model=resnet9 precision=bf16 device=cuda regime=checkpointing regime.keyframe_every=1000",
        fish="method.samples=1024",
        rate_of={0.005: 0.005, 0.02: 0.02, 0.1: 0.1, 0.25: 0.1, 1: 1},
        report="regime.epochs=100 regime.warmup=5",
        seeds=range(3),
        variants=("decay=kept", "decay=all", "decay=all compat=fish"),
    ),
    # The paper's network and length, in fp32.
    "paper": Profile(
        common="data=cifar10 model=resnet34 regime=checkpointing regime.keyframe_every=1000 "
        "regime.epochs=100 regime.warmup=5",
        fish="method.samples=1024",
        choose="data.holdout=5000",
        rates=(0.8, 0.4, 0.2, 0.08, 0.04, 0.02),
        report="",
        seeds=range(5),
        variants=("decay=kept", "decay=all"),
    ),
}


def cells(profile: Profile) -> list[Cell]:
    """In the order of the table. Dense training has no frozen weights, and random masks no scores, to vary."""
    found = []
    for variant, keep, method, mask in product(profile.variants, KEEPS, METHODS, MASKS):
        if method == "fish" or "compat=" not in variant:
            found.append(Cell(method, keep, mask, variant))
    return [*found, Cell("full", 1.0, variant=profile.variants[0])]


def tuned(profile: Profile, cell: Cell) -> Cell:
    """The cell whose learning rate ``cell`` takes."""
    mask = cell.mask if cell.mask in profile.tuned else profile.tuned[0]
    return replace(cell, keep=profile.rate_of[cell.keep], mask=mask)


def overrides(profile: Profile, cell: Cell, *more: str) -> tuple[str, ...]:
    """The command line of ``cell`` behind ``python -m fishexp -m``."""
    words = [profile.common, f"method={cell.method}", f"regime.mask={cell.mask}", cell.variant, *more]
    if cell.method != "full":
        words.append(f"keep={cell.keep:g}")
    if cell.method == "fish":
        words.append(profile.fish)
    return tuple(" ".join(words).split())


def of_cell(group: Group, profile: Profile, cell: Cell, step: str) -> bool:
    """Whether ``group`` is of ``cell`` and of this step, whatever its learning rate."""
    return all(_told(group, word) for word in overrides(profile, cell, step))


def _told(group: Group, override: str) -> bool:
    key, _, value = override.partition("=")
    if f"{key}.name" in group.settings:
        return group.settings[f"{key}.name"] == value
    return group.setting(key) in (value, f"{value}.0") if key != "keep" else group.keep == float(value)


def groups(records: Path) -> list[Group]:
    """Those of the finished runs on record, reported and held out."""
    lines = list(load([records])) if records.exists() else []
    if not any(line["status"] == "finished" for line in lines):
        return []
    pooled = pool(lines, uncommitted=True)
    return pooled.held_out + pooled.reported


def tried(profile: Profile, cell: Cell, found: Sequence[Group]) -> dict[float, Group]:
    """Learning rate -> runs on held-out images, for the choice that ``cell`` takes part in; by rate."""
    runs = [
        group for group in found if group.held_out and of_cell(group, profile, tuned(profile, cell), profile.choose)
    ]
    return {group.lr: group for group in runs if group.lr in profile.rates}


def rate(profile: Profile, cell: Cell, found: Sequence[Group]) -> float | None:
    """The learning rate of ``cell``: the best on held-out images, of equals the smallest; None until all were tried."""
    if not profile.choose:
        logged = json.loads(LOGS.read_text())["runs"]
        rates = {(run["method"], run["keep"], run["mask"]): run["lr"] for run in logged}
        return rates[cell.method, profile.rate_of[cell.keep], cell.mask]
    means = {lr: group.mean for lr, group in tried(profile, cell, found).items()}
    defined = {lr: mean for lr, mean in means.items() if mean is not None}
    if len(means) < len(profile.rates) or not defined:
        return None
    return min(defined, key=lambda lr: (-defined[lr], lr))


def plan(profile: Profile, records: Path) -> Iterator[Command]:
    """Every command of the sweep: the choices of learning rates, then the table, seed by seed."""
    found = groups(records)
    rates = ",".join(f"{lr:g}" for lr in profile.rates)
    if profile.choose:
        for cell in dict.fromkeys(tuned(profile, cell) for cell in cells(profile)):
            yield Command("rates", overrides(profile, cell, profile.choose, f"regime.lr={rates}"))
    for seed, cell in product(profile.seeds, cells(profile)):
        lr = rate(profile, cell, found)
        told = overrides(profile, cell, profile.report, f"seed={seed}", f"regime.lr={lr or profile.rates[0]:g}")
        yield Command("table", told, waits=lr is None)


def main(environment: Mapping[str, str]) -> int:
    """Carry out, or with DRY describe, the profile that ``environment`` names; the exit status."""
    name = environment.get("PROFILE") or "cpu"
    if name not in PROFILES:
        print(f"PROFILE={name}: choose {', '.join(PROFILES)}", file=sys.stderr)
        return 2
    try:
        return carry_out(
            lambda: list(plan(PROFILES[name], RECORDS)), environment.get("PYTHON") or sys.executable, OUTPUTS, RECORDS
        )
    except FishexpError as error:
        print(f"fishexp: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(os.environ))
