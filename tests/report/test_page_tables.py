"""The tables of the report page: a column for each thing, sorted by numbers, and nothing left out silently."""

import re
from pathlib import Path
from typing import Any

import pytest

from fishexp.report.page.beside import Beside
from fishexp.report.page.document import document
from fishexp.report.pool import pool
from tests.support.records import record


def page_of(records: list[dict[str, Any]]) -> str:
    return document(pool(records), [Path("records.jsonl")], Beside())


def cells_of(page: str) -> list[dict[str, tuple[str, str | None]]]:
    """Return the cells of each row of the first table: header -> (text, what it is sorted by)."""
    found = []
    for row in re.findall(r'<tbody id="row.*?</tr>', page, re.DOTALL):
        cells = re.findall(r'<t[hd][^>]*?(?: data-by="([^"]*)")? data-key="([^"]*)"[^>]*>(.*?)</t[hd]>', row)
        found.append({key: (re.sub("<[^>]*>", "", text), by or None) for by, key, text in cells})
    return found


@pytest.mark.parametrize(
    "name", ["method", "keep", "lr", "n", "share", "bytes", "seconds", "set", "model", "kept weights"]
)
def test_a_metric_named_as_another_column_has_one_of_its_own(name: str) -> None:
    runs = [record(0.8), record(0.7, method="random", keep=0.01)]
    without = cells_of(page_of(runs))
    for run in runs:
        run["metrics"][name] = 0.25
    page = page_of(runs)
    assert cells_of(page) == [row | {f"{name} (metric)": ("0.25", "0.25")} for row in without]
    assert f">{name} (metric)<" in page


def test_rows_that_lack_a_number_have_nothing_to_be_sorted_by() -> None:
    known, unknown = cells_of(page_of([record(), record(method="random", kept=None)]))
    assert known["kept weights"] == ("1,537", "1537.0")
    assert {header for header, (_, by) in unknown.items() if by is None} == {"method", "kept weights", "share", "bytes"}


def test_a_budget_of_many_layers_says_what_all_others_have() -> None:
    kept = {f"encoder.layer.{number}.weight": [1 + number % 2, 4, 4] for number in range(80)}
    kept["fc.weight"] = [80, 9, 9]
    page = page_of([record() | {"kept_by": kept}])
    table = next(table for table in re.findall("<table.*?</table>", page, re.DOTALL) if "by layer" in table)
    (header, row) = (
        [re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in table.split("</thead>")
    )
    assert (header[-2:], row[-2:]) == (["classifier", "22 others"], ["40.0", "11.0"])
    assert len(header) == len(row) == 61
    assert sum(map(float, row[1:])) == pytest.approx(100)
