"""What a finished run's record has to hold so that a table or a picture can be made of it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from fishexp.errors import FishexpError

# numbers of a record are smaller; larger ones would overflow when their spread is computed
_LARGEST = 1e18
# characters of a value that a message shows
_SHOWN = 40


def check_finished(record: Mapping[str, Any]) -> None:
    """Check that the record of a finished run has what reports are made of.

    Raises:
        FishexpError: If it lacks something, or has something else in its place; says what.
    """
    for path, (fits, kind) in _RULES.items():
        value: Any = record
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if not fits(value):
            raise _refusal(record, f"{path} is {_short(value)}, not {kind}")
    if not record["metrics"]:
        raise FishexpError(f"the record of run {record['run_id']} says finished but has no metrics")
    for group in ("metrics", "seconds"):
        for name, value in record[group].items():
            if not _is_text(name):
                raise _refusal(record, f"{group} has {_short(name)}, not a name")
            undefined = group == "metrics" and (
                value is None or (isinstance(value, float) and not math.isfinite(value))
            )
            if not undefined and not _is_number(value):
                raise _refusal(record, f"{group}.{name} is {_short(value)}, not a number")


def _refusal(record: Mapping[str, Any], why: str) -> FishexpError:
    return FishexpError(f"the record of run {record['run_id']} is not one of ours: {why}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_count(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


# dotted place in the record -> (what fits there, that in words); a missing entry counts as None
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "config.data.name": (_is_text, "a name"),
    "config.data.task": (_or_none(_is_text), "a name or null"),
    "config.data.holdout": (_or_none(_is_count), "a number of examples"),
    "config.data.valid_limit": (_or_none(_is_count), "a number of examples or null"),
    "config.model.name": (_is_text, "a name"),
    "config.method.name": (_is_text, "a name"),
    "config.method.unit": (_or_none(_is_text), "a name or null"),
    "config.method.per": (_or_none(_is_text), "a name or null"),
    "config.regime.lr": (_or_none(lambda value: _is_number(value) and value >= 0), "a learning rate"),
    "config.keep": (_or_none(lambda value: _is_number(value) and 0 < value <= 1), "a fraction in (0, 1] or null"),
    "config.seed": (_is_count, "a seed"),
    "kept": (_or_none(_is_count), "a number of weights"),
    "total": (lambda value: _is_count(value) and value > 0, "a number of weights"),
    "seconds": (lambda value: isinstance(value, Mapping), "a list of durations"),
    "commit": (_or_none(lambda value: isinstance(value, str)), "a commit or null"),
    "processes": (_or_none(_is_count), "a number of processes"),
    "streams": (_or_none(_is_count), "a version"),
}
