"""The cost of a sweep: runs, hours and gigabytes to come."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from experiments.lib import costs
from experiments.lib.plan import Command
from fishexp.run.settings import Config
from fishexp.system.text_table import aligned_text

# images of CIFAR-10
TRAIN, VALID = 50_000, 10_000
# model -> number of weights, bytes of BatchNorm statistics
SIZES = {"resnet9": (6_573_120, 17_984), "resnet18": (11_173_962, 38_560), "resnet34": (21_282_122, 68_384)}


@dataclass(frozen=True)
class Cost:
    """Hold the cost of a run.

    Attributes:
        seconds: Its duration; None where nothing like it was measured.
        bytes: Size of its checkpoints together.
    """

    seconds: float | None
    bytes: float


def cost_of(run: Config) -> Cost:
    """Estimate the cost of a run of ``regime=checkpointing`` on CIFAR-10."""
    data, regime, method = run["data"], run["regime"], run["method"]
    epochs = regime["epochs"]
    weights, statistics = SIZES[run["model"]["name"]]
    keep = run["keep"] if run["decay"] == "kept" else None
    checkpoint = statistics + weights * (4 if keep is None else _bytes_of_a_weight(keep))
    speed = costs.speed_of(run)
    if speed is None:
        return Cost(None, epochs * checkpoint)
    seen = data["train_limit"] or TRAIN - data["holdout"]
    evaluated = data["holdout"] or data["valid_limit"] or VALID
    masks = epochs if regime["mask"] == "every_epoch" else 1
    scored = masks * method["samples"] if method["name"] == "fish" else 0
    return Cost(speed.seconds(epochs * seen, epochs * evaluated, scored), epochs * checkpoint)


def _bytes_of_a_weight(keep: float) -> float:
    """Return the mean size in a checkpoint: 4 bytes for each weight kept, and the entropy of the mask for positions."""
    entropy = -sum(p * math.log2(p) for p in (keep, 1 - keep) if p)  # bits
    return 4 * keep + entropy / 8


def cost_table(commands: Iterable[Command], done: Collection[str]) -> str:
    """Make the table with a row for each step, and one for the first models that all checkpoints of a seed build on."""
    steps = costs.steps(commands, done)
    rows = [[*costs.HEADER, "GB to come"]]
    for step in steps:
        space = sum(cost_of(run).bytes for run in step.to_do)
        rows.append([*step.row(lambda run: cost_of(run).seconds), _gigabytes(space)])
    first = {(run["model"]["name"], run["seed"]) for step in steps for run in step.to_do}
    space = sum(4 * SIZES[name][0] + SIZES[name][1] for name, _ in first)
    rows.append(["first models", "", "", "", "", _gigabytes(space)])
    return "\n".join([*aligned_text(rows, left_columns=1), costs.ABOUT_HOURS])


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"
