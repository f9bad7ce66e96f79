"""A report on W&B offline: the files of its artifact, and the tables and pictures that are shown there."""

from pathlib import Path

import pytest

from fishexp.report.page import __main__ as page
from fishexp.system.wandb_start import start
from tests.support.offline import WANDB_VARIABLES, inspect, items, only
from tests.support.records import held_out, record


def test_page_tables_and_pictures_are_an_artifact(written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in WANDB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    runs = [
        record(0.8),
        record(0.7, method="random"),
        record(0.6, data__name="glue", data__task="x"),
        held_out(0.7, 0.1),
    ]
    other = start("wandb=", "offline", tmp_path.parent)  # a run of this process that goes on
    assert page.main([str(written(runs)), "-o", "report.html", "--wandb", "offline"]) == 0
    other.log({"still": 1})
    other.finish()
    log = inspect(tmp_path)
    assert [run["job_type"] for run in only(log, "run")] == ["report"]
    (report,) = (artifact for artifact in only(log, "artifact") if artifact["type"] == "report")
    files = {file["path"]: int(file["size"]) for file in report["manifest"]["contents"]}
    drawn = [
        f"{name}.{ending}"
        for name in ("0-digits-resnet10-accuracy", "1-glue-x-resnet10-accuracy")
        for ending in ("png", "pdf")
    ]
    assert files.keys() == {"report.html", "table.md", "table.tex", "table.csv", *drawn}
    assert files["report.html"] == (tmp_path / "report.html").stat().st_size
    assert min(files.values()) > 50
    shown = {key.partition(".")[0] for entry in only(log, "history") for key in items(entry)}
    assert shown >= {"reported", "held out", "0-digits-resnet10-accuracy", "1-glue-x-resnet10-accuracy"}
    assert [entry["exit_code"] for entry in only(log, "exit")] == [0]
