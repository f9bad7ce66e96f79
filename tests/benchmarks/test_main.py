"""The command: it runs cases of all benchmarks alike, records them and remakes the page."""

from pathlib import Path

import pytest

from benchmarks import page, ways
from benchmarks.__main__ import HOME, print_warnings, run
from benchmarks.records import read
from benchmarks.registry import BENCHMARKS
from benchmarks.step.case import ALL, OURS, StepCase
from benchmarks.timing import Effort
from fishexp.system import hardware

TWO = Effort(0.0, least=2, warmup=1)


def test_every_package_is_registered_and_its_cases_bear_its_name() -> None:
    assert set(BENCHMARKS) == {path.parent.name for path in HOME.glob("*/__init__.py")}
    for name, benchmark in BENCHMARKS.items():
        cases = benchmark.cases("cpu") + benchmark.quick_cases("cpu") + benchmark.cases("cuda")
        assert {case.benchmark for case in cases} == {name}


def test_run_records_and_remakes_the_table_and_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "bf16_slowdown", lambda: 1.0)
    (tmp_path / "README.md").write_text(f"before {page.START} old {page.END} after")
    few = [StepCase("resnet8", 2, None, OURS, 0.02, "random")] * 2
    run(few, TWO, "cpu", tmp_path)
    records = read(tmp_path / "records.jsonl")
    assert len(records) == 2 * 2 * 3
    assert len(page.newest(records)) == 6
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before {page.START}")
    assert text.endswith(f"{page.END} after")
    assert text.count("| resnet8, 2 images, keep 0.02 |") == 2 + 3  # precisions, contenders
    assert (tmp_path / "step.png").stat().st_size > 10_000
    assert "resnet8, 2 images, keep 0.02" in capsys.readouterr().out


def test_a_missing_package_and_a_busy_machine_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("benchmarks.packages.find_spec", lambda name: None)
    monkeypatch.setattr("os.getloadavg", lambda: (7.0, 0.0, 0.0))
    print_warnings([StepCase("tiny-bert", 2, 8, ALL, 0.02, "random")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning: the load is 7.0")
    assert lines[1:] == [f"{name} is left out: pip install peft" for name in ("LoRA", "SHiRA", "Super-Tuning")]


@pytest.mark.parametrize(("word", "status"), [("--help", 0), ("quick", 2)])
def test_asking_for_help_or_what_there_is_not_times_nothing(
    word: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "time_methods", lambda: pytest.fail("began to time"))
    with pytest.raises(SystemExit) as stopped:
        ways.main([word])
    assert stopped.value.code == status
