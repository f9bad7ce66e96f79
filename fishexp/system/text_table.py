"""Tables as text whose columns are lined up: plain, or in Markdown."""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence

# characters of the narrowest column that Markdown takes: its rule is at least ``--:``
_NARROWEST = 3


def aligned_text(rows: Sequence[Sequence[str]], *, left_columns: int = 0) -> list[str]:
    """Write rows of cells as lines of plain text, with two spaces between the columns.

    Args:
        rows: Cells of each line, as many in all; the header is a row as the others.
        left_columns: So many of the first columns are aligned left, the others right.
    """
    widths = [max(map(text_width, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            _padded(cell, width, left=number < left_columns)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def markdown_table(columns: Mapping[str, Sequence[str]], left: Collection[str]) -> str:
    """Write columns as a Markdown table that can be read as plain text, too.

    Args:
        columns: Header -> cells of each column, as many in all.
        left: Headers of the columns that are aligned left, such as those of words; the others are aligned right.
    """
    lines = []
    for header, cells in columns.items():
        texts = [_as_cell(cell) for cell in (header, *cells)]
        width = max(_NARROWEST, *map(text_width, texts))
        rule = "-" * width if header in left else "-" * (width - 1) + ":"
        first, *others = (_padded(text, width, left=header in left) for text in texts)
        lines.append([first, rule, *others])
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*lines, strict=True))


def folded(
    columns: Mapping[str, Sequence[str]], *, repeated: Collection[str], most: int, width: int
) -> list[dict[str, Sequence[str]]]:
    """Split the columns of a Markdown table that is too wide into tables that follow each other.

    The rows are numbered then, and each part begins with the numbers and the columns ``repeated``.

    Args:
        columns: Header -> cells of each column, as many in all.
        repeated: Headers of the columns that each part has.
        most: Number of columns that a part may have.
        width: Number of characters that a line of a part may have, if not a single column is wider.

    Returns:
        The columns of each part; of a table that is not too wide, the table as it is.
    """
    if len(columns) <= most and _line_width(columns) <= width:
        return [dict(columns)]
    rows = len(next(iter(columns.values())))
    stub = {"row": [str(row) for row in range(1, rows + 1)]} | {header: columns[header] for header in repeated}
    others = {header: cells for header, cells in columns.items() if header not in repeated}
    splits = [_split(stub, others, some, width) for some in range(len(stub) + 1, most + 1)]
    return next(split for split in splits if len(split) == len(splits[-1]))  # the most even of the shortest


def _split(
    stub: Mapping[str, Sequence[str]], others: Mapping[str, Sequence[str]], most: int, width: int
) -> list[dict[str, Sequence[str]]]:
    """Put the columns ``others`` behind ``stub``, as many in each part as it has room for."""
    parts = [dict(stub)]
    for header, cells in others.items():
        wider = parts[-1] | {header: cells}
        if len(parts[-1]) > len(stub) and (len(wider) > most or _line_width(wider) > width):
            parts.append({**stub, header: cells})
        else:
            parts[-1] = wider
    return parts


def text_width(text: str) -> int:
    """Count the columns of a terminal that a text takes: two for a wide character, none for one that combines."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def write_bytes(count: float) -> str:
    """Write a number of bytes: ``402.7 kB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.4g} B"


def _line_width(columns: Mapping[str, Sequence[str]]) -> int:
    """Count the characters of a line of a Markdown table."""
    widths = [
        max(_NARROWEST, *(text_width(_as_cell(cell)) for cell in (header, *cells))) for header, cells in columns.items()
    ]
    return sum(width + 3 for width in widths) + 1


def _as_cell(text: str) -> str:
    """Write a text so that it stays in its cell: without line breaks and bars."""
    return re.sub(r"\s*[\n\t]\s*", " ", text).replace("|", "\\|")


def _padded(text: str, width: int, *, left: bool) -> str:
    """Fill a text up to ``width`` with spaces on its right if it is aligned ``left``, else on its left."""
    spaces = " " * (width - text_width(text))
    return text + spaces if left else spaces + text
