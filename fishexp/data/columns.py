"""Which columns of a table hold sentences and which the labels, where nobody said so."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, NewType, TypeAlias

from fishexp.data.tables import Table
from fishexp.errors import FishexpError, nearest

# name of a column: another type than a text, which in a configuration may name a file
Column = NewType("Column", str)
Columns: TypeAlias = Column | list[Column] | None

# names of columns of pairs of sentences, and of single ones; of labels
_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"),
    ("text_a", "text_b"), ("question", "sentence"),
)  # fmt: skip
_TEXTS = (
    "text", "sentence", "review", "comment", "content", "document", "body", "message", "tweet", "utterance", "title",
    "headline", "abstract", "description", "question", "query", "answer", "context", "passage", "premise", "hypothesis",
)  # fmt: skip
_LABELS = ("label", "class", "category", "target", "sentiment", "score", "rating", "stars", "intent", "topic", "labels")
# characters of a name that a line shows
_LONGEST = 40


class Found(NamedTuple):
    """Hold the names of a table's columns: those of sentences, one or two, and that of the labels, if it is wanted."""

    text: tuple[str, ...]
    label: str | None


def find_columns(table: Table, text: Columns, label: Column | None) -> Found:
    """Find the columns of sentences and of labels, by their names, or because no other can be it.

    Args:
        text: Name of the column of sentences, or the two of pairs; None to find it.
        label: Name of the column of labels; None to find it.

    Raises:
        FishexpError: If a column that is named is not there, or none or several could be it.
    """
    told = _told(table, text)
    if label is not None:
        _check(table, label)
        if label in told:
            raise FishexpError(f"data.label={label} is a column of sentences too; name another")
    found = label or _label_by_name(table, told)
    sentences = told or find_text(table, None, but=found)
    if found is None:
        rest = [name for name in table.columns if name not in sentences]
        _check_header(table, rest)
        if len(rest) != 1:
            raise FishexpError(
                f"{table.source}: which column holds the labels? there are: {_list(rest)}; name it with data.label"
            )
        found = rest[0]
    return Found(sentences, found)


def find_text(table: Table, text: Columns, but: str | None = None) -> tuple[str, ...]:
    """Find the columns of sentences as :func:`find_columns` does, in a table that may have no labels.

    Args:
        but: The column of the labels, if it is known.
    """
    if told := _told(table, text):
        return told
    folded = {name.strip().casefold(): name for name in table.columns if name != but and _is_text(table, name)}
    if pair := next(((folded[a], folded[b]) for a, b in _PAIRS if a in folded and b in folded), None):
        return pair
    known = [folded[name] for name in _TEXTS if name in folded]
    if len(known) == 1:
        return (known[0],)
    if not known:
        _check_header(table, list(table.columns))
    candidates = known or list(folded.values())
    if len(candidates) == 1:
        return (candidates[0],)
    if not candidates:
        raise FishexpError(f"{table.source}: no column holds sentences; there are: {_list(table.columns)}")
    raise FishexpError(
        f"{table.source}: which column holds the sentences? there are: {_list(candidates)}; name it, or two for pairs, "
        "with data.text=a or data.text=[a,b] (to predict, --text a b)"
    )


def is_number(value: Any) -> bool:
    """Tell whether a value of a table is a number, or a text that is one."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


def is_missing(value: Any) -> bool:
    """Tell whether a row has no value: None, NaN, or nothing but blanks."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _told(table: Table, text: Columns) -> tuple[str, ...]:
    names = [] if text is None else [text] if isinstance(text, str) else list(text)
    if len(names) > 2 or (isinstance(text, list) and not text):
        raise FishexpError(f"text={','.join(names)}: an example is one sentence or a pair; name one column or two")
    for name in names:
        _check(table, name)
    if len(set(names)) < len(names):
        raise FishexpError(f"text={','.join(names)} names a column twice")
    return tuple(names)


def _check(table: Table, name: str) -> None:
    if name not in table.columns:
        raise FishexpError(f"{table.source} has no column {name!r}{nearest(name, list(table.columns))}")


def _label_by_name(table: Table, told: Collection[str]) -> str | None:
    folded = {name.strip().casefold(): name for name in table.columns if name not in told}
    known = [folded[name] for name in _LABELS if name in folded]
    if len(known) > 1 and known[0].strip().casefold() != "label":
        raise FishexpError(
            f"{table.source}: which column holds the labels? there are: {_list(known)}; name it with data.label"
        )
    return known[0] if known else None


def _is_text(table: Table, name: str) -> bool:
    values = [value for value in table.columns[name] if not is_missing(value)]
    return bool(values) and all(isinstance(value, str) for value in values) and not all(map(is_number, values))


def _check_header(table: Table, names: Sequence[str]) -> None:
    """Refuse names of columns that nobody knows and that look like values: those of a file without a header."""
    for name in names:
        if is_number(name) or name in {str(value).strip() for value in table.columns[name]}:
            raise FishexpError(
                f"{table.source}: its first row should name the columns, such as text,label; {_short(name)!r} looks "
                "like a value"
            )


def _list(names: Collection[str]) -> str:
    return ", ".join(map(_short, names)) or "none"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
