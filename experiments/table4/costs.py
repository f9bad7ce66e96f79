"""The cost of a sweep: runs, hours and gigabytes to come."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.lib import costs
from experiments.lib.durations import Durations
from experiments.lib.plan import Command
from fishexp.run.settings import Config
from fishexp.system.text_table import aligned_text

# model -> number of weights, bytes of BatchNorm statistics
SIZES = {"resnet9": (6_573_120, 17_984), "resnet18": (11_173_962, 38_560), "resnet34": (21_282_122, 68_384)}


def checkpoint_bytes(run: Config) -> float:
    """Estimate the size of all checkpoints of a run of ``regime=checkpointing``, one an epoch."""
    weights, statistics = SIZES[run["model"]["name"]]
    keep = run["keep"] if run["decay"] == "kept" else None
    return run["regime"]["epochs"] * (statistics + weights * (4 if keep is None else _bytes_of_a_weight(keep)))


def _bytes_of_a_weight(keep: float) -> float:
    """Return the mean size in a checkpoint: 4 bytes for each weight kept, and the entropy of the mask for positions."""
    entropy = -sum(p * math.log2(p) for p in (keep, 1 - keep) if p)  # bits
    return 4 * keep + entropy / 8


def cost_table(commands: Iterable[Command], done: Mapping[str, Mapping[str, Any]]) -> str:
    """Make the table with a row for each step, and one for the first models that all checkpoints of a seed build on.

    Args:
        done: run_id -> record of the runs that are done.
    """
    steps, durations = costs.steps(commands, done), Durations(done)
    rows = [[*costs.HEADER, "GB to come"]]
    for step in steps:
        space = sum(map(checkpoint_bytes, step.to_do))
        rows.append([*step.row(durations.seconds), _gigabytes(space)])
    first = {(run["model"]["name"], run["seed"]) for step in steps for run in step.to_do}
    space = sum(4 * SIZES[name][0] + SIZES[name][1] for name, _ in first)
    rows.append(["first models", "", "", "", "", _gigabytes(space)])
    return "\n".join([*aligned_text(rows, left_columns=1), costs.ABOUT_HOURS])


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"
