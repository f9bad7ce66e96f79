"""The benchmark of serving, on a tiny BERT: who is timed gives the right model, and the table has ratios to ours."""

from pathlib import Path

import pytest
import torch

from benchmarks import page
from benchmarks.__main__ import run
from benchmarks.packages import installed
from benchmarks.records import read
from benchmarks.serve import contenders
from benchmarks.serve.case import ALL, ServeCase
from benchmarks.serve.measurement import measure
from benchmarks.timing import Effort
from fishexp.delta import Stack
from fishexp.errors import FishexpError

CPU = torch.device("cpu")
TWO = Effort(0.0, least=2, warmup=1)
SMALL = ServeCase("tiny-bert", tasks=3)


def test_every_contender_keeps_the_tasks_and_ours_is_undone() -> None:
    found = {result.contender: result for result in measure(SMALL, CPU, TWO)}
    assert tuple(found) == installed(ALL)
    for result in found.values():
        assert result.seconds.keys() == {"switch", "answer", "load"}
        assert all(0 < low <= middle <= high for low, middle, high in result.seconds.values())
        assert result.rounds == 2
    assert found["ours"].lost == 0
    assert found["dense"].lost is None
    assert found["dense"].resident_bytes == 2 * found["dense"].file_bytes
    assert found["ours"].file_bytes < found["dense"].file_bytes / 50
    assert found["ours"].resident_bytes < found["dense"].resident_bytes / 20


def test_a_switch_to_another_model_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(Stack):
        def switch(self, delta: object) -> None:
            pass

    monkeypatch.setattr(contenders, "Stack", Lazy)
    with pytest.raises(FishexpError, match="does not give its model; nothing was timed"):
        list(measure(SMALL, CPU, TWO))


def test_a_run_records_and_makes_a_table(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"{page.START} old {page.END}")
    run([ServeCase("tiny-bert", ("dense", "ours"), tasks=2)], TWO, "cpu", tmp_path)
    dense, ours = read(tmp_path / "records.jsonl")
    lines = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| tiny-bert")]
    rows = {row[1]: row for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}
    assert rows["ours"][2] == f"{ours['file_bytes']:,}"
    assert rows["ours"][5] == rows["ours"][7] == rows["ours"][9] == "1"
    assert float(rows["dense"][9]) == pytest.approx(dense["seconds"]["load"][1] / ours["seconds"]["load"][1], rel=0.06)
    assert (rows["ours"][10], rows["dense"][10]) == ("0", "")
