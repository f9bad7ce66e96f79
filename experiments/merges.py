"""What the tables of the distributed regime share: what a run costs, and what its workers sent."""

from experiments.costs import speed_of
from fishexp.settings import Config

_TRAIN = 50_000  # images of CIFAR-10; the runs on sentences that were measured have a limit
_VALID = {None: 10_000, "mrpc": 408, "sst2": 872, "stsb": 1500}  # task -> reported examples
_START = 6  # seconds until the first step, and after the last


def seconds(run: Config) -> float | None:
    """Of a run whose workers take turns in one process; None if nothing like it was measured."""
    speed = speed_of(run)
    if speed is None:
        return None
    data, regime, method = run["data"], run["regime"], run["method"]
    seen = data["train_limit"] or _TRAIN - data["holdout"]
    each = seen // regime["workers"] if regime["shard"] else seen  # a worker's examples
    merges = regime["epochs"] * (each // regime["batch_size"]) // regime["sync_every"]
    masks = 1 + (merges - 1) // regime["refresh_every"] if merges and method["name"] == "fish" else 0
    rows = data["holdout"] or min(data["valid_limit"] or 10**6, _VALID[data.get("task")])
    trained = regime["epochs"] * regime["workers"] * each
    return _START + speed.seconds(trained, regime["epochs"] * rows, masks * method.get("samples", 0))
