"""What a sweep would cost: runs, hours, gigabytes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from experiments.sweep import Command, composed
from fishexp.settings import Config, run_id

TRAIN, VALID = 50_000, 10_000  # images of CIFAR-10
# model -> weights, bytes of BatchNorm statistics
SIZES = {"resnet9": (6_573_120, 17_984), "resnet18": (11_173_962, 38_560), "resnet34": (21_282_122, 68_384)}
# (model, precision, device) -> images a second in training, in evaluation, and in scoring, measured on one thread of an
# idle AMD EPYC; 256 images took 2.4 seconds to score
SPEEDS = {("resnet18", "bf16", "cpu"): (500, 1250, 256 / 2.4)}
UNKNOWN = "not measured"


@dataclass(frozen=True)
class Cost:
    """Of one run.

    Attributes:
        seconds: None where nothing like it was measured.
        bytes: Of its checkpoints.
    """

    seconds: float | None
    bytes: float


def cost(run: Config) -> Cost:
    """An estimate for a run of ``regime=checkpointing`` on CIFAR-10."""
    data, regime, method = run["data"], run["regime"], run["method"]
    epochs = regime["epochs"]
    weights, statistics = SIZES[run["model"]["name"]]
    keep = run["keep"] if run["decay"] == "kept" else None
    one = statistics + weights * (4 if keep is None else _bytes_of_an_entry(keep))
    speed = SPEEDS.get((run["model"]["name"], run["precision"], run["device"]))
    if speed is None:
        return Cost(None, epochs * one)
    training, evaluating, scoring = speed
    seen = data["train_limit"] or TRAIN - data["holdout"]
    judged = data["holdout"] or data["valid_limit"] or VALID
    masks = epochs if regime["mask"] == "every_epoch" else 1
    scored = masks * method["samples"] if method["name"] == "fish" else 0
    return Cost(epochs * (seen / training + judged / evaluating) + scored / scoring, epochs * one)


def _bytes_of_an_entry(keep: float) -> float:
    """Of the weights, kept or not: those kept have a float32 and a position as long as the entropy of the mask."""
    entropy = -sum(p * math.log2(p) for p in (keep, 1 - keep) if p)  # bits
    return 4 * keep + entropy / 8


def table(commands: Iterable[Command], done: set[str]) -> str:
    """A line for each step, and one for the first models that all checkpoints of a seed build on."""
    steps: dict[str, list[tuple[bool, Config]]] = {}
    for command in commands:
        left = {run_id(run) for run in command.to_do(done)}
        runs = [(run_id(run) in left, run) for run in composed(command.overrides)]
        steps.setdefault(command.step, []).extend(runs)
    lines = [["step", "runs", "done", "to do", "hours to go", "GB to come"]]
    for step, runs in steps.items():
        to_do = [run for left, run in runs if left]
        costs = [cost(run) for run in to_do]
        space = sum(one.bytes for one in costs)
        lines.append(
            [step, *map(str, (len(runs), len(runs) - len(to_do), len(to_do))), _hours(costs), _gigabytes(space)]
        )
    first = {(run["model"]["name"], run["seed"]) for runs in steps.values() for left, run in runs if left}
    space = sum(4 * SIZES[name][0] + SIZES[name][1] for name, _ in first)
    lines.append(["first models", "", "", "", "", _gigabytes(space)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    return "\n".join([*rows, "Hours on one thread of an idle AMD EPYC: half of that with two processes on two cores."])


def _hours(costs: Iterable[Cost]) -> str:
    seconds = [one.seconds for one in costs]
    known = [one for one in seconds if one is not None]
    return f"{sum(known) / 3600:.1f}" if len(known) == len(seconds) else UNKNOWN


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"
