"""Whatever stands in a record, there is a table and a picture, or a line that says what is wrong."""

import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from fishexp.errors import FishexpError
from fishexp.report import picture, table
from fishexp.report.pool import load, pool
from tests.support.records import column, held_out, one_class, record

GONE = object()
# what may stand where something else should
ODD = [
    GONE,
    None,
    "",
    "x",
    "魚",
    "a" * 5000,
    "\n|\t$",
    True,
    -1,
    0,
    1,
    0.5,
    10**30,
    1e308,
    math.nan,
    math.inf,
    [],
    [1],
    {},
]
# groups of which no other value will do
NEEDED = [("config",), ("config", "data"), ("config", "model"), ("config", "method")]
RECORD = record(0.7, more={"f1": 0.8, "largest_class": 0.7, "largest_predicted": 1.0}) | {"inputs": {"examples": "ab"}}


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """List the places of a record, groups of them too."""
    for key, item in value.items():
        yield (*path, key)
        if isinstance(item, dict):
            yield from places(item, (*path, key))


def changed(path: tuple[str, ...], odd: Any) -> dict[str, Any]:
    """Return a record that has something odd at a place."""
    made = copy.deepcopy(RECORD)
    place: Any = made
    for key in path[:-1]:
        place = place[key]
    if odd is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = odd
    return made


@pytest.mark.parametrize("path", [*places(RECORD)], ids=".".join)
def test_anything_anywhere_gives_a_table_or_a_line(path, written, capsys):
    shown = 0
    for odd in ODD:
        file = written([changed(path, odd), record(0.6, method="full")])
        status = table.main([str(file)])
        out, err = capsys.readouterr()
        assert (status, bool(out)) in ((0, True), (2, False)), odd
        if status == 2:
            assert err.count("\n") == 1, odd
            assert re.match(r"fishexp: .*\S\n$", err), odd
        for part in (part for part in out.split("\n\n") if part.startswith("|")):
            bars = {len(re.findall(r"(?<!\\)\|", line)) for line in part.splitlines()}
            assert len(bars) == 1, odd
        shown += status == 0
    assert shown or path in NEEDED


@pytest.mark.parametrize("path", [*places(RECORD)], ids=".".join)
def test_anything_anywhere_gives_a_picture_or_a_line(path, written):
    refused = []
    for odd in (GONE, "魚 \n$x", math.nan, 10**30):
        file = written([changed(path, odd), record(0.6, method="full")])
        try:
            picture.figure(pool(load([file]))).draw_without_rendering()
        except FishexpError as error:
            refused.append(str(error))
    assert not [line for line in refused if "\n" in line]


def test_a_line_says_which_field_is_wrong():
    for field, value, kind in (
        ("config.keep", "abc", "a fraction in (0, 1] or null"),
        ("total", 0, "a number of weights"),
    ):
        odd = changed(tuple(field.split(".")), value) | {"run_id": "r"}
        said = f"the record of run r is not one of ours: {field} is {value!r}, not {kind}"
        with pytest.raises(FishexpError, match=re.escape(said)):
            pool([odd])


def test_a_name_with_a_line_break_does_not_break_the_line(written, capsys):
    for odd in (record(run_id="a\nb", commit="c+"), record(run_id="a\nb") | {"total": 0}, record(metric="a\nb")):
        assert table.main([str(written([odd]))]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_old_records_without_what_came_later_are_shown():
    old = record(0.7, streams=None)
    del old["kept"], old["commit"]
    assert column([old], "accuracy, %") == ["70.0"]


def test_a_hundred_seeds_are_one_row():
    assert column([record(0.7, seed=seed) for seed in range(100)], "accuracy, %") == ["70.0 ± 0.0"]


def test_mixed_data_sets_and_metrics_make_one_table():
    cola = record(None, metric="matthews", data__name="glue", data__task="cola", more={"accuracy": 0.69})
    stsb = record(0.8, metric="pearson", data__name="glue", data__task="stsb", more={"spearman": 0.79})
    records = [
        cola,
        stsb,
        one_class(0.53, data__name="glue", data__task="rte"),
        held_out(0.5, 0.1),
        record(model__name="m"),
    ]
    assert column(records, "data set") == ["digits", "glue/cola", "glue/rte", "glue/stsb"]
    assert column(records, "accuracy, %") == ["80.0", "69.0", "53.0 ‡", ""]
    assert column(records, "matthews, x100") == ["", "undefined (1 of 1)", "", ""]
    assert column(records, "spearman, x100") == ["", "", "", "79.0"]
