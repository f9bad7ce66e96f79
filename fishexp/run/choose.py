"""What a run hands its regime to choose what trains: a selector of masks, or what puts adapters into the model."""

from fishexp.run.cached_scores import score_cache
from fishexp.run.record import Record
from fishexp.run.settings import Component, Config, Settings
from fishexp.training.adapted import Adapter
from fishexp.training.logger import Logger
from fishexp.training.mask_selector import MaskSelector
from fishexp.training.problem import Problem


def make_choose(
    problem: Problem, method: Component, config: Config, settings: Settings, record: Record, logger: Logger
) -> MaskSelector | Adapter:
    """Make what the regime calls for a mask, or for adapters, by which of its functions the method offers.

    Args:
        record: Will say how many weights may train, and whether scores were read.
    """
    if method.offers == "adapt":
        return Adapter(problem, method.function, settings.keep, record.note_kept)
    unit, per = config["method"].get("unit", "entry"), config["method"].get("per", "network")
    cache = score_cache(config, record, settings, problem.collectives.world_size, logger)
    return MaskSelector(
        problem, method.name, method.function, settings.keep, unit, per, logger, record.note_kept, cache,
        fixed=method.offers == "mask",
    )  # fmt: skip
