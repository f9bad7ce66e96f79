"""Tables as text whose columns are lined up: plain, or in Markdown."""

from collections.abc import Collection, Mapping, Sequence

# characters of the narrowest column that Markdown takes: its rule is at least ``--:``
_NARROWEST = 3


def aligned_text(rows: Sequence[Sequence[str]], *, left_columns: int = 0) -> list[str]:
    """Write rows of cells as lines of plain text, with two spaces between the columns.

    Args:
        rows: Cells of each line, as many in all; the header is a row as the others.
        left_columns: So many of the first columns are aligned left, the others right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = [str.ljust if number < left_columns else str.rjust for number in range(len(widths))]
    return [
        "  ".join(align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=True)) for row in rows
    ]


def markdown_table(columns: Mapping[str, Sequence[str]], left: Collection[str]) -> str:
    """Write columns as a Markdown table that can be read as plain text, too.

    Args:
        columns: Header -> cells of each column, as many in all.
        left: Headers of the columns that are aligned left, such as those of words; the others are aligned right.
    """
    lines = []
    for header, cells in columns.items():
        texts = [cell.replace("|", "\\|") for cell in (header, *cells)]
        width = max(_NARROWEST, *map(len, texts))
        align = str.ljust if header in left else str.rjust
        rule = "-" * width if header in left else "-" * (width - 1) + ":"
        lines.append([align(texts[0], width), rule, *(align(text, width) for text in texts[1:])])
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*lines, strict=True))
