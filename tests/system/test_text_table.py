"""Columns are lined up, and Markdown stays Markdown whatever its cells hold."""

from fishexp.system.text_table import aligned_text, folded, markdown_table


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


def test_characters_that_take_two_columns_or_none_do_not_push_the_others_away() -> None:
    assert aligned_text([["魚", "1"], ["e\u0301", "22"]]) == [
        "魚   1",
        " e\u0301  22",
    ]  # the second is an e and an accent


def test_a_table_folds_where_it_is_too_wide_or_has_too_many_columns() -> None:
    columns = {"name": ["x", "y"], **{letter: ["1", "2"] for letter in "abcde"}}
    assert folded(columns, repeated=["name"], most=6, width=100) == [columns]
    for limits in ({"most": 5, "width": 100}, {"most": 9, "width": 36}):
        parts = folded(columns, repeated=["name"], **limits)
        assert [list(part) for part in parts] == [["row", "name", "a", "b", "c"], ["row", "name", "d", "e"]]
        assert parts[0]["row"] == ["1", "2"]
    wide = folded({"name": ["x"], "a": ["1" * 50], "b": ["2"]}, repeated=["name"], most=9, width=40)
    assert [list(part) for part in wide] == [["row", "name", "a"], ["row", "name", "b"]]  # as narrow as it can be
