"""Any data set of sentences with labels on the Hugging Face hub, or in a folder that ``datasets`` reads."""

import logging
from pathlib import Path
from typing import Annotated, Any, NewType

from annotated_types import Ge, Gt, Lt

from fishexp.data.columns import Column, Columns, find_columns, is_missing
from fishexp.data.datasets import Dataset, Outline
from fishexp.data.examples import Kind, text_dataset, unread
from fishexp.data.tables import Table, classes_in
from fishexp.errors import FishexpError, first_line, nearest
from fishexp.system.hub import fail_fast_offline

log = logging.getLogger(__name__)

# name of a configuration, revision or split: another type than a text, which in a configuration may name a file
Name = NewType("Name", str)

# splits to report on, the first that is there
_VALID = ("validation", "valid", "val", "dev", "test")


def load(
    *,
    path: str,
    config: Name | None,
    revision: Name | None,
    train_split: Name,
    valid_split: Name | None,
    valid_fraction: Annotated[float, Gt(0), Lt(1)],
    text: Columns,
    label: Column | None,
    kind: Kind | None,
    max_length: Annotated[int, Ge(3)],
    train_limit: Annotated[int, Ge(1)] | None,
    valid_limit: Annotated[int, Ge(1)] | None,
    holdout: Annotated[int, Ge(0)],
) -> Dataset:
    """Load the splits of a data set to train and to report on.

    Args:
        path: Hub id, or a folder.
        config: Name of one of its configurations.
        revision: Branch, tag or commit on the hub.
        train_split: Name of the split to train on.
        valid_split: Name of the split to report on; None: the first of validation, valid, val, dev and test that is
            there and has labels, else ``valid_fraction`` of the examples to train on.
        text: Name of the column of sentences, or the two of pairs; None to find it.
        label: Name of the column of labels; None to find it.
        kind: What the labels are; None: numbers if any has a fraction, else classes.
        max_length: Number of tokens that an input is cut to.

    Raises:
        FishexpError: If it cannot be had, has no such split, or what is in it is not examples.
    """
    splits = _splits(path, config, revision)
    train = _table(path, splits, train_split)
    column = str(find_columns(train, text, label).label)
    valid = _table(path, splits, valid_split) if valid_split else _labelled(path, splits, train_split, column)
    log.info("trained on %s, reported on %s", train.source, valid.source if valid else "a part of it")
    dataset = text_dataset(
        train, valid, text=text, label=label, kind=kind, valid_fraction=valid_fraction, max_length=max_length
    )
    return dataset.limited(train_limit, valid_limit, holdout)


def outline(*, kind: Kind | None) -> Outline:
    """Say what is known of a data set of the hub before it is fetched."""
    return unread(kind)


def _splits(path: str, config: str | None, revision: str | None) -> Any:
    from datasets import load_dataset

    if not Path(path).is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:  # a hub id is name or owner/name
            raise FishexpError(f"data.path={path} is not a folder")
        fail_fast_offline()
    try:
        return load_dataset(path, config, revision=revision)
    except Exception as error:  # datasets raises many kinds, network ones among them
        raise FishexpError(f"data.path={path} cannot be loaded: {first_line(error)}") from None


def _table(path: str, splits: Any, name: str) -> Table:
    if name not in splits:
        raise FishexpError(f"data.path={path} has no split {name}{nearest(name, list(splits))}")
    split = splits[name]
    if not len(split):
        raise FishexpError(f"data.path={path}: its split {name} holds no examples")
    columns = {column: list(split[column]) for column in split.column_names}
    return Table(f"{path} {name}", columns, classes=classes_in(split.features))


def _labelled(path: str, splits: Any, train_split: str, column: str) -> Table | None:
    """Return the first split to report on that has labels; those to predict for have none, or -1 everywhere."""
    for name in _VALID:
        if name in splits and name != train_split:
            table = _table(path, splits, name)
            if not all(is_missing(value) or value == -1 for value in table.columns.get(column, ())):
                return table
            log.info("%s has no labels, so that it is not reported on", table.source)
    return None
