"""Words such as ``method=fish,random`` on a command line, which choose runs by their settings."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fishexp.errors import FishexpError, nearest
from fishexp.report.group import settings_of
from fishexp.run.typed import typed_values

T = TypeVar("T")
# what reads a value of a run that is no setting, such as its status
Columns = Mapping[str, Callable[[Any], Any]]


def apart(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split the words of a command line into paths, and those that choose runs: ``key=value`` where no such file is."""
    choosing = [word for word in words if re.match(r"[\w.]+=", word) and not Path(word).exists()]
    return [Path(word) for word in words if word not in choosing], choosing


def settings_and_seed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what words may ask of a record: dotted key -> value."""
    return {**settings_of(record), "seed": record["config"].get("seed")}


def matching(
    runs: Sequence[T], words: Sequence[str], settings_of: Callable[[T], Mapping[str, Any]], columns: Columns
) -> list[T]:
    """Return the runs that match all words of the form ``key=value`` or ``key=value,value``.

    Args:
        settings_of: Dotted key -> value of a run.
        columns: What else words may ask for.

    Raises:
        FishexpError: If a key is that of no run, or a range of seeds counts down.
    """
    found = list(runs)
    for word in words:
        key, _, values = word.partition("=")
        value_of = reader(key, runs, settings_of, columns)
        tests = [_test(key, value) for value in values.split(",")]
        found = [run for run in found if any(test(value_of(run)) for test in tests)]
    return found


def reader(
    key: str, runs: Sequence[T], settings_of: Callable[[T], Mapping[str, Any]], columns: Columns
) -> Callable[[T], Any]:
    """Return what reads a column, a setting or the last word of a setting of a run; None where it has none.

    Args:
        runs: One of these has to have it.

    Raises:
        FishexpError: If none has.
    """
    if key in columns:
        return columns[key]
    known = {name for run in runs for name in settings_of(run)}
    groups = {name.partition(".")[0] for name in known if name.endswith(".name")}
    full = f"{key}.name" if key in groups else key
    names = [name for name in sorted(known, key=len) if name == full or name.endswith(f".{full}")]
    if runs and not names:
        words = {*columns, *groups, *(name.rpartition(".")[2] for name in known if name.count(".") < 2)}
        raise FishexpError(f"no run here has {key}{nearest(key, sorted(words - {'name', 'module', 'ignores_keep'}))}")

    def value_of(run: T) -> Any:
        settings = settings_of(run)
        return next((settings[name] for name in names if name in settings), None)

    return value_of


def _test(key: str, text: str) -> Callable[[Any], bool]:
    """Return what tells whether a setting has a value, as it is typed on the command line: 0.5% and 0-2 too."""
    if (meant := typed_values(key, text)) is not None:
        return lambda value: value in meant
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = text
    return lambda value: value == parsed or str(value) == text
