"""Which runs may read their scores from those of others, and what decides that they are the same."""

import os
from functools import partial
from pathlib import Path

from fishexp.run.identity import own_code, package_code
from fishexp.run.record import Record
from fishexp.run.settings import Config, Settings, component_module, options_of
from fishexp.training.logger import Logger
from fishexp.training.score_cache import ScoreCache

# folder of scores that runs share, in the folder of outputs
SHARED = "scores"
# name in a method's module of a constant: whether computing its scores takes so long that they are worth a file
WORTH_A_FILE = "SCORES_TAKE_LONG"


def score_cache(config: Config, record: Record, settings: Settings, workers: int, logger: Logger) -> ScoreCache | None:
    """Return the cache that the scores of a run are read from and written to; None if they are computed in any case.

    They are where the method is quick, where several workers pool theirs, where the original's order of things changes
    more than the generator (``compat=fish``), and where a module of the user's own may read whatever it wants.

    Args:
        record: With the digests of the run's inputs; it will say whether the scores were read, and so will the logger.
    """
    method, offers = component_module("method", config["method"])
    if not getattr(method, WORTH_A_FILE, False) or workers > 1 or settings.compat == "fish" or own_code(config):
        return None
    options = options_of(getattr(method, offers))  # without those that make a mask of the scores
    conditions = {
        "data": record.config["data"],
        "model": record.config["model"],
        "method": {key: value for key, value in record.config["method"].items() if key in {"name", *options}},
        "examples": record.inputs["examples"],
        "precision": settings.precision,
        "code": package_code(),
        "versions": record.versions,
        "device": record.device,
        "threads": record.threads,
    }
    return ScoreCache(Path(settings.outputs) / SHARED, conditions, partial(_note_read, record, logger))


def _note_read(record: Record, logger: Logger, file: Path, seconds: float) -> None:
    """Say that the scores were read from a file, and how long it took an earlier run to compute them."""
    record.scores_read = True
    logger.say(f"scores read from {os.path.relpath(file)}; computing them took {seconds:.1f} s")
