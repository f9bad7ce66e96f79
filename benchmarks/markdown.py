"""Tables for README.md."""

_WORDS = ("setting", "precision", "contender", "mask")


def table(columns: dict[str, list[str]]) -> str:
    """Markdown whose columns are lined up as plain text too; those of words are aligned left."""
    lines = []
    for header, cells in columns.items():
        width = max(3, len(header), *map(len, cells))
        left = header in _WORDS
        align = str.ljust if left else str.rjust
        rule = "-" * width if left else "-" * (width - 1) + ":"
        lines.append([align(header, width), rule, *(align(cell, width) for cell in cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*lines, strict=True))
