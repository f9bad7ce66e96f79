"""Tables for other programs: CSV that parses back to the same numbers, LaTeX in which no name is a command."""

import csv
import io
import re
from typing import Any

import pytest

from fishexp.report import table
from fishexp.report.formats import csv_text, latex
from fishexp.report.pool import pool
from tests.support.records import held_out, one_class, record

NASTY = 'a,b "c"; 100 % & $x_1^2$ #{~} \\end{tabular} <|>'


def parsed(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(pool(records)))))


def test_csv_has_mean_spread_and_n_as_they_are():
    records = [record(0.8123456789 + seed / 100, seed=seed, run_id=f"r{seed}") for seed in range(3)]
    (row,) = parsed(records)
    assert float(row["accuracy, %: mean"]) == pytest.approx(82.23456789, abs=1e-12)
    assert float(row["accuracy, %: std"]) == pytest.approx(1)
    assert (row["n"], row["keep"], row["lr"], row["weights moved"]) == ("3", "0.005", "0.1", "1537")
    assert (row["runs"], row["commits"]) == ("r0 r1 r2", "0123456789ab")


def test_csv_parses_back_whatever_is_in_a_text():
    texts = [NASTY, "two\nlines", '"', "fish"]
    rows = parsed([record(0.1 * number, method__note=text) for number, text in enumerate(texts)])
    assert {row["method.note"]: round(float(row["accuracy, %: mean"])) for row in rows} == {
        text: 10 * number for number, text in enumerate(texts)
    }


def test_csv_tells_held_out_runs_and_what_is_undefined():
    rows = parsed([record(None), held_out(0.7, 0.2), record(0.5, method="full")])
    assert [row["examples"] for row in rows] == ["reported", "reported", "held out"]
    assert [row["accuracy, %: mean"] for row in rows] == ["", "50.0", ""]
    assert float(rows[2]["held-out accuracy, %: mean"]) == pytest.approx(70)
    assert [row["keep"] for row in rows] == ["0.005", "", "0.005"]


def test_no_text_of_a_record_is_a_formula_in_a_spreadsheet():
    names = ["=HYPERLINK(1)", "@x", "+1+1", "-5", "fish"]
    found = {row["method"] for row in parsed([record(method=name, run_id=name) for name in names])}
    assert found == {"'=HYPERLINK(1)", "'@x", "'+1+1", "-5", "fish"}


def test_the_whole_latex_table(written, capsys):
    records = [one_class(0.7, seed=seed) for seed in (0, 1)] + [record(0.9712, method="full")]
    assert table.main([str(written(records)), "--format", "latex"]) == 0
    tabular = (
        "\\begin{tabular}{lrrrrr}\n"
        "\\toprule\n"
        "method & keep & accuracy, \\% & weights moved & seeds & seconds \\\\\n"
        "\\midrule\n"
        "fish & 0.005 & 70.0 $\\pm$ 0.0 \\ddag{} & 1,537 & 2 & 3.5 \\\\\n"
        "full & -- & 97.1 & 307,466 & 1 & 3.0 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}"
    )
    out = capsys.readouterr().out
    assert tabular in out
    assert "labels true\\_label" in out
    assert "\\ddag{} predicted the same class for all examples" in out


@pytest.mark.parametrize("char", "&%$#_{}~^\\<>|")
def test_latex_shows_special_characters(char):
    written = latex(f"a{char}b")
    assert written != f"a{char}b"
    assert not re.search(r"(?<!\\)[&%$#_~^]", written)  # none that LaTeX would obey
    assert written.count("{") - written.count("\\{") == written.count("}") - written.count("\\}")


def test_latex_keeps_cells_in_their_row(written, capsys):
    assert (
        table.main([str(written([record(method__note=NASTY), record(method__note="x\ny")])), "--format", "latex"]) == 0
    )
    rows = re.search(r"\\midrule\n(.*)\\bottomrule", capsys.readouterr().out, re.DOTALL)
    assert rows is not None
    lines = rows[1].splitlines()
    assert len(lines) == 2
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1
    assert all(line.endswith(" \\\\") for line in lines)
    assert "\\end" not in rows[1].replace("\\textbackslash{}end", "")


def test_the_best_rate_is_bold_in_latex(written, capsys):
    assert table.main([str(written([held_out(0.7, 0.1), held_out(0.8, 0.2)])), "--format", "latex"]) == 0
    assert "\\textbf{0.2}" in capsys.readouterr().out


def test_a_wrong_format_is_said(capsys):
    with pytest.raises(SystemExit):
        table.main(["x", "--format", "word"])
    assert "choose from 'markdown', 'latex', 'csv'" in capsys.readouterr().err


def test_differences_have_no_other_format(written, capsys):
    assert table.main([str(written([record()])), "--against", "fish", "--format", "csv"]) == 2
    assert "--format csv: differences are printed as markdown only" in capsys.readouterr().err
