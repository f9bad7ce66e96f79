"""Settings of runs as dictionaries: rendered for the command line, composed, compared."""

import argparse
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias

from fishexp.run import config
from fishexp.run.settings import Config

# dotted key -> value: {"model": "resnet34", "regime.epochs": 50}; a tuple of values is a sweep over them
Settings: TypeAlias = dict[str, Any]


def as_overrides(settings: Settings) -> tuple[str, ...]:
    """Render settings as the arguments of ``python -m fishexp -m``."""
    return tuple(f"{key}={_as_text(value)}" for key, value in settings.items())


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_as_text, value))
    return value if isinstance(value, str) else json.dumps(value)


@cache
def composed_runs(overrides: tuple[str, ...]) -> tuple[Config, ...]:
    """Compose the configuration of each run of a command line.

    Raises:
        FishexpError: If the command line has a mistake.
    """
    config.register_resolvers()
    arguments = argparse.Namespace(overrides=list(overrides), multirun=True, config_dir=None, config_name=None)
    return tuple(config.read_command(arguments).configs)


def composed_run(settings: Settings) -> Config:
    """Compose the configuration of the single run that ``settings`` describe.

    Raises:
        FishexpError: If they have a mistake.
    """
    (run,) = composed_runs(as_overrides(settings))
    return run


def agrees(settings: Settings, recorded: Mapping[str, Any]) -> bool:
    """Tell whether a run has all of ``settings``.

    Args:
        recorded: All settings of the run, as :func:`fishexp.report.group.settings_of` returns them: a component's name
            is at ``model.name``, for which ``settings`` may say ``model``.
    """
    return all(recorded.get(f"{key}.name", recorded.get(key)) == value for key, value in settings.items())
