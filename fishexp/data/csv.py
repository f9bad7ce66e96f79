"""Files of one's own: csv, tsv, jsonl, json or parquet, with a column of texts (or two) and a column of labels."""

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from fishexp.data.columns import Column, Columns
from fishexp.data.datasets import Dataset, Outline
from fishexp.data.examples import Kind, text_dataset, unread
from fishexp.data.tables import check_there, read_table


def load(
    *,
    train: str,
    valid: str | None,
    valid_fraction: Annotated[float, Gt(0), Lt(1)],
    text: Columns,
    label: Column | None,
    kind: Kind | None,
    max_length: Annotated[int, Ge(3)],
    train_limit: Annotated[int, Ge(1)] | None,
    valid_limit: Annotated[int, Ge(1)] | None,
    holdout: Annotated[int, Ge(0)],
) -> Dataset:
    """Load examples from a file, and from another to report on.

    Args:
        train: The file; the first row of a csv or tsv names the columns.
        valid: The file to report on; None: ``valid_fraction`` of the examples in ``train``.
        text: Name of the column of sentences, or the two of pairs; None to find it.
        label: Name of the column of labels; None to find it.
        kind: What the labels are; None: numbers if any has a fraction, else classes.
        max_length: Number of tokens that an input is cut to.

    Raises:
        FishexpError: If a file cannot be read, or what is in it is not examples.
    """
    dataset = text_dataset(
        read_table(Path(train)), None if valid is None else read_table(Path(valid)),
        text=text, label=label, kind=kind, valid_fraction=valid_fraction, max_length=max_length,
    )  # fmt: skip
    return dataset.limited(train_limit, valid_limit, holdout)


def outline(*, train: str, valid: str | None, kind: Kind | None) -> Outline:
    """Say what is known of files before they are read."""
    for file in (train, valid):
        if file is not None:
            check_there(Path(file))
    return unread(kind)
