"""What a sweep would cost: runs, hours, gigabytes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from experiments import costs
from experiments.sweep import Command
from fishexp.run.settings import Config

TRAIN, VALID = 50_000, 10_000  # images of CIFAR-10
# model -> weights, bytes of BatchNorm statistics
SIZES = {"resnet9": (6_573_120, 17_984), "resnet18": (11_173_962, 38_560), "resnet34": (21_282_122, 68_384)}


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
    speed = costs.speed_of(run)
    if speed is None:
        return Cost(None, epochs * one)
    seen = data["train_limit"] or TRAIN - data["holdout"]
    judged = data["holdout"] or data["valid_limit"] or VALID
    masks = epochs if regime["mask"] == "every_epoch" else 1
    scored = masks * method["samples"] if method["name"] == "fish" else 0
    return Cost(speed.seconds(epochs * seen, epochs * judged, scored), epochs * one)


def _bytes_of_an_entry(keep: float) -> float:
    """Of the weights, kept or not: those kept have a float32 and a position as long as the entropy of the mask."""
    entropy = -sum(p * math.log2(p) for p in (keep, 1 - keep) if p)  # bits
    return 4 * keep + entropy / 8


def table(commands: Iterable[Command], done: set[str]) -> str:
    """A line for each step, and one for the first models that all checkpoints of a seed build on."""
    steps = costs.steps(commands, done)
    lines = [[*costs.HEADER, "GB to come"]]
    for step in steps:
        space = sum(cost(run).bytes for run in step.to_do)
        lines.append([*step.line(lambda run: cost(run).seconds), _gigabytes(space)])
    first = {(run["model"]["name"], run["seed"]) for step in steps for run in step.to_do}
    space = sum(4 * SIZES[name][0] + SIZES[name][1] for name, _ in first)
    return costs.lined_up([*lines, ["first models", "", "", "", "", _gigabytes(space)]])


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"
