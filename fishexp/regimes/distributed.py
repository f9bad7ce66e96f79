"""Workers that train apart and exchange only the weights that move: the paper's Tables 2 and 3."""

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias, Unpack

from annotated_types import Ge, Gt

from fishexp.course import Recipe
from fishexp.errors import FishexpError
from fishexp.masks import Mask
from fishexp.problem import Problem
from fishexp.regimes import Outcome
from fishexp.settings import Decay
from fishexp.snapshots import Snapshots
from fishexp.tracking import Log

Merge: TypeAlias = Literal["mean", "sum"]
Masks: TypeAlias = Literal["same", "disjoint"]


def train(
    problem: Problem,
    choose: Callable[[], Mask],
    log: Log,
    snapshots: Snapshots,
    decay: Decay,
    *,
    workers: Annotated[int, Ge(1)],
    sync_every: Annotated[int, Ge(1)],
    merge: Merge,
    masks: Masks,
    warmup_epochs: Annotated[int, Ge(0)],
    refresh_every: Annotated[int, Ge(1)] | None,
    shard: bool,
    backend: Literal["processes", "simulated"],
    wire: Literal["fp32", "bf16"],
    reduce: Literal["ordered", "ring"],
    snapshot_steps: Annotated[int, Ge(1)],
    restarts: Annotated[int, Ge(0)],
    timeout: Annotated[float, Gt(0)],
    bandwidth: Annotated[float, Gt(0)],
    latency: Annotated[float, Ge(0)],
    **recipe: Unpack[Recipe],
) -> Outcome:
    """Train on every worker; every ``sync_every`` steps all get what all have changed."""
    raise FishexpError("regime=distributed: being built")
