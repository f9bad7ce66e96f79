"""The command lines of table, plot and page: files in, a line for a mistake, and no import that takes long."""

import json
import os
import re
import subprocess
import sys

import pytest

from fishexp.report import plot, table
from fishexp.report.page import __main__ as page
from tests.support.records import record


@pytest.mark.parametrize("module", [table, plot, page])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file of records"),
        ("{}\n", "line 1 is not a record"),
        ("", "no finished run among the 0 in the records"),
        (json.dumps(record(status="failed")), r"no finished run among the 1 in the records \(1 failed\)"),
        (json.dumps(record(run_id="x") | {"metrics": {}}), "the record of run x says finished but has no metrics"),
        (
            json.dumps({"run_id": "x", "status": "finished", "config": {}, "metrics": {}}),
            "the record of run x is not one of ours",
        ),
        (json.dumps(record(run_id="x", commit="abc+")), "run x is of uncommitted code"),
        (b"\xff\n", "line 1 is not a record"),
        (json.dumps(record(run_id="x") | {"total": 0}), "the record of run x is not one of ours"),
        (json.dumps(record(run_id="x") | {"seconds": {"train": "long"}}), "the record of run x is not one of ours"),
    ],
)
def test_a_mistake_is_one_line(module, content, message, tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = [str(path)] + ([] if module is table else ["-o", str(tmp_path / "x.png")])
    assert module.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("fishexp: ")
    assert re.search(message, err)
    assert not (tmp_path / "x.png").exists()


def test_command_line_reads_several_files_in_order(written, capsys):
    files = [str(written([record(0.5)], "a.jsonl")), str(written([record(0.6, commit="abc+")], "b.jsonl"))]
    assert table.main([*reversed(files)]) == 0
    assert "|        50.0 |" in capsys.readouterr().out
    assert table.main(files) == 2
    assert table.main([*files, "--uncommitted"]) == 0
    assert "|      60.0 † |" in capsys.readouterr().out


@pytest.fixture
def of_two_data_sets(written):
    sets = [record(0.5, seed=1), record(0.6, seed=2), record(0.9, data={"name": "glue", "task": "rte"})]
    return str(written(sets))


def test_words_take_some_of_the_runs(of_two_data_sets, tmp_path, capsys):
    picture = tmp_path / "x.png"
    assert plot.main([of_two_data_sets, "-o", str(picture)]) == 2
    assert "these records hold digits resnet10 accuracy, glue/rte resnet10 accuracy; words such as data=" in (
        capsys.readouterr().err
    )
    assert plot.main([of_two_data_sets, "task=rte", "-o", str(picture)]) == 0
    assert picture.exists()
    assert page.main([of_two_data_sets, "data=digits", "-o", str(tmp_path / "x.html")]) == 0
    assert "glue" not in (tmp_path / "x.html").read_text()
    capsys.readouterr()
    assert table.main(["data=digits", of_two_data_sets, "seed=2-5"]) == 0
    out = capsys.readouterr().out
    assert "60.0" in out
    assert "50.0" not in out
    assert "90.0" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=digits", "seed=7"], "none of the 3 records is of data=digits seed=7: seed is 1, 2, 0\n"),
        (["data=glue/rte"], "none of the 3 records is of data=glue/rte: data is digits, glue\n"),
        (["data=digits", "seed=0"], "none of the 3 records is of data=digits seed=0\n"),
        (["dta=digits"], "no run here has dta; did you mean data?"),
    ],
)
def test_words_that_take_no_run_are_said(words, message, of_two_data_sets, capsys):
    assert table.main([of_two_data_sets, *words]) == 2
    assert capsys.readouterr().err.startswith(f"fishexp: {message}")
    assert table.main(words) == 2
    assert capsys.readouterr().err == "fishexp: name a file of records, such as outputs/records.jsonl\n"


@pytest.mark.parametrize(
    ("other", "remedy"),
    [
        ({"data__name": "iris"}, "words such as data=digits take some of them"),
        ({"data__task": "rte"}, "words such as task=rte take some of them"),
        ({"model__name": "resnet18"}, "words such as model=resnet10 take some of them"),
        ({"metric": "f1", "more": {"accuracy": 0.7}}, "--metric accuracy draws what all have"),
        ({"metric": "f1"}, "name records of one metric"),
    ],
)
def test_what_makes_a_picture_of_runs_of_several_kinds_is_said(other, remedy, written, tmp_path, capsys):
    file = str(written([record(0.5), record(0.6, run_id="other", **other)]))
    assert plot.main([file, "-o", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err.endswith(f"; {remedy}\n")
    told = re.search(r"(\w+=\w+|--metric \w+)", remedy)
    assert not told or plot.main([file, *told[0].split(), "-o", str(tmp_path / "x.png")]) == 0


def test_reports_need_no_torch_and_their_help_no_matplotlib():
    code = "import sys, fishexp.report.{}; print([m for m in ('torch', 'hydra', 'matplotlib') if m in sys.modules])"
    for name, needs in (("table", "[]"), ("plot", "[]"), ("picture", "['matplotlib']"), ("page.document", "[]")):
        done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == needs


def test_a_picture_needs_no_backend_that_a_notebook_names(written, tmp_path):
    command = [sys.executable, "-m", "fishexp.report.plot", str(written([record()])), "-o", str(tmp_path / "x.png")]
    environment = os.environ | {"MPLBACKEND": "module://a_notebook.of_another_environment"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize("module", [table, plot, page])
def test_help_says_what_to_type(module, capsys):
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    name = module.__name__.removesuffix(".__main__").rpartition(".")[2]
    assert f"example: python -m fishexp.report.{name} outputs/records.jsonl" in out
    assert module is not plot or "--metric NAME what to draw, such as f1" in out
