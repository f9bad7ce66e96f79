"""Columns are lined up, and Markdown stays Markdown whatever its cells hold."""

from fishexp.system.text_table import aligned_text, markdown_table


def test_plain_columns_are_lined_up() -> None:
    rows = [["step", "MB"], ["choose", "1,000"], ["report", "7"]]
    assert aligned_text(rows) == ["  step     MB", "choose  1,000", "report      7"]
    assert aligned_text(rows, left_columns=1) == ["step       MB", "choose  1,000", "report      7"]


def test_markdown_is_lined_up_and_a_bar_in_a_cell_is_no_column() -> None:
    columns = {"a": ["1", "22"], "method": ["fish|random", "full"]}
    assert markdown_table(columns, left=("method",)).splitlines() == [
        "|   a | method       |",
        "| --: | ------------ |",
        "|   1 | fish\\|random |",
        "|  22 | full         |",
    ]
