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
