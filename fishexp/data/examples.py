"""Examples of a table for text classification, or for a regression: sentences with the number of their class."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from fishexp.data.columns import Column, Columns, Found, find_columns, is_missing, is_number
from fishexp.data.datasets import Dataset, Outline, split_off
from fishexp.data.metrics import accuracy, correlations
from fishexp.data.tables import Table
from fishexp.data.text import Sentences
from fishexp.errors import FishexpError, nearest

log = logging.getLogger(__name__)

# what the labels are
Kind: TypeAlias = Literal["classes", "number"]
# classes from which on so many of them are no more plausible, if most examples have one of their own
_MANY = 20
# classes, and characters of a value, that a line shows
_SHOWN, _LONGEST = 10, 40


def unread(kind: Kind | None) -> Outline:
    """Say what is known of sentences before they are read: that there is one output, if labels are numbers."""
    return Outline(classes=1 if kind == "number" else None, channels=0, train=None)


@dataclass(frozen=True)
class Labels:
    """Say what the values of a column of labels mean.

    Attributes:
        names: Names of the classes in the order of their numbers; empty for a regression.
        integers: Whether names are integers, however they are written: 1, 1.0.
        numbered: Whether values are numbers of the classes already.
    """

    names: tuple[str, ...]
    integers: bool = False
    numbered: bool = False

    def number(self, value: Any) -> float | None:
        """Return the number of a value's class, or the value itself in a regression; None if it is none."""
        if not self.names:
            return float(value) if is_number(value) and math.isfinite(float(value)) else None
        if self.numbered:
            return value if value in range(len(self.names)) else None
        name = _integer(value) if self.integers else str(value).strip()
        return self.names.index(name) if name in self.names else None


def text_dataset(
    train: Table,
    valid: Table | None,
    *,
    text: Columns,
    label: Column | None,
    kind: Kind | None,
    valid_fraction: float,
    max_length: int,
) -> Dataset:
    """Make a data set of tables with columns of sentences and a column of labels, found or told.

    Args:
        valid: Examples to report on; None: the last ``valid_fraction`` of a fixed permutation of ``train``.
        text: Name of the column of sentences, or the two of pairs; None to find it.
        label: Name of the column of labels; None to find it.
        kind: What the labels are; None: numbers if any has a fraction, else classes.
        max_length: Number of tokens that an input is cut to.

    Raises:
        FishexpError: If a column cannot be found, a value is missing, or a label is none of those in ``train``.
    """
    found = find_columns(train, text, label)
    labels = _read_labels(train, str(found.label), kind)
    examples = _sentences(train, found, labels, max_length, train.source)
    _say(train, found, labels, examples)
    if valid is None:
        examples, reported = split_off(examples, valid_fraction, train.source)
    else:
        wanted = [name for name in (*found.text, str(found.label)) if name not in valid.columns]
        if wanted:
            hint = nearest(wanted[0], list(valid.columns))
            raise FishexpError(f"{valid.source} has no column {wanted[0]!r}, which {train.source} has{hint}")
        reported = _sentences(valid, found, labels, max_length, train.source)
    _warn_of_shared(examples, reported)
    metrics = accuracy if labels.names else correlations
    return Dataset(
        examples, {"": reported}, len(labels.names) or 1, channels=0, metrics=metrics, names=labels.names,
        columns=found.text,
    )  # fmt: skip


def texts_of(table: Table, columns: Sequence[str]) -> list[list[str]]:
    """Return the texts in columns of a table.

    Raises:
        FishexpError: If one is missing.
    """
    for name in columns:
        missing = [row for row, value in enumerate(table.columns[name]) if is_missing(value)]
        if missing:
            count = f" ({len(missing)} rows are so)" if len(missing) > 1 else ""
            raise FishexpError(f"{table.place(missing[0])}: {name} is empty{count}; fill it, or remove the row")
        _check_plain(table, name)
    return [[str(value) for value in table.columns[name]] for name in columns]


def _read_labels(table: Table, column: str, kind: Kind | None) -> Labels:
    """Find out what a column of labels holds."""
    if column in table.classes and kind != "number":
        return Labels(table.classes[column], numbered=True)
    _check_plain(table, column)
    values = [value for value in table.columns[column] if not is_missing(value)]
    numbers = all(map(is_number, values))
    integers = numbers and all(_integer(value) is not None for value in values)
    if kind == "number" or (kind is None and numbers and not integers):
        return Labels(())
    integers &= len({str(value).strip() for value in values}) == len({_integer(value) for value in values}) or (
        not all(isinstance(value, str) for value in values)
    )
    names = {_integer(value) if integers else str(value).strip() for value in values}
    if kind is None and len(names) > max(_MANY, len(values) / 2):
        raise FishexpError(
            f"{table.source}: {column} has {len(names):,} different values in {len(values):,} examples; if they are "
            "labels, say data.kind=classes or data.kind=number, else data.label=NAME"
        )
    if len(names) == 1:
        raise FishexpError(
            f"{table.source}: {column} is {_short(next(iter(names)))!r} everywhere; two classes are needed"
        )
    return Labels(tuple(sorted(map(str, names), key=int if integers else str)), integers)


def _check_plain(table: Table, column: str) -> None:
    for row, value in enumerate(table.columns[column]):
        if not isinstance(value, str | int | float | None):
            raise FishexpError(f"{table.place(row)}: {column} is {_short(value)!r}; a text or a number is needed")


def _integer(value: Any) -> str | None:
    """Write a number that is an integer, however it is written, as one; return None for anything else."""
    if not is_number(value) or not float(value).is_integer():
        return None
    try:
        return str(int(value))  # a number of more than 53 bits too, which a float would round
    except ValueError:
        return str(int(float(value)))


def _sentences(table: Table, found: Found, labels: Labels, max_length: int, source: str) -> Sentences:
    """Take the examples of a table.

    Args:
        source: Where the classes were found, for the message about a label that is none of them.
    """
    first, *second = texts_of(table, found.text)
    numbers: list[float] = []
    for row, value in enumerate(table.columns[str(found.label)]):
        number = labels.number(value)
        if number is None and is_missing(value):
            raise FishexpError(f"{table.place(row)}: {found.label} is empty; every example needs a label")
        if number is None:
            what = f"is not one of {source}'s: {_list(labels.names)}" if labels.names else "is no number"
            raise FishexpError(f"{table.place(row)}: the label {_short(value)!r} {what}")
        numbers.append(number)
    dtype = torch.long if labels.names else torch.float
    return Sentences(first, second[0] if second else None, torch.tensor(numbers, dtype=dtype), max_length)


def _say(table: Table, found: Found, labels: Labels, examples: Sentences) -> None:
    """Log what was understood, with the first example."""
    classes = f"{len(labels.names)} classes ({_list(labels.names)})" if labels.names else "numbers"
    log.info(
        "%s: %d examples; text in %s, such as %r; labels in %s: %s",
        table.source, len(examples), " and ".join(found.text), _short(examples.first[0]), found.label, classes,
    )  # fmt: skip
    for name in found.text:
        if all(map(is_number, table.columns[name])):
            log.warning("%s: the texts in %s are all numbers", table.source, name)


def _warn_of_shared(train: Sentences, reported: Sentences) -> None:
    """Warn of examples that are trained and reported on."""
    known = set(zip(train.first, train.second or train.first, strict=True))
    shared = sum(pair in known for pair in zip(reported.first, reported.second or reported.first, strict=True))
    if shared:
        log.warning("%d of the %d reported examples are among those for training too", shared, len(reported))


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(_short, names[:_SHOWN])) + more


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
