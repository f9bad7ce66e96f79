"""The benchmark of merges: real workers, the bytes of a ring, and nothing timed that is not the mean."""

from pathlib import Path

import matplotlib.style
import pytest
import torch

from benchmarks import page
from benchmarks.__main__ import HOME, run
from benchmarks.merge import measurement
from benchmarks.merge.case import KEPT, MergeCase
from benchmarks.merge.measurement import measure
from benchmarks.merge.plot import figure
from benchmarks.merge.report import dense_seconds
from benchmarks.records import read
from benchmarks.timing import Effort
from fishexp.distributed.torch_collectives import TorchCollectives
from fishexp.errors import FishexpError
from fishexp.report.style import STYLE
from tests.support.workers import Workers

CPU = torch.device("cpu")
TWO = Effort(0.0, least=2, warmup=1)
SMALL = MergeCase(2, 20_000, keep=0.05)


def test_two_workers_merge_and_the_record_has_what_they_sent() -> None:
    found = {result.contender: result for result in measure(SMALL, CPU, TWO)}
    assert [(name, result.values, result.sent_bytes) for name, result in found.items()] == [
        ("ours", 1000, 4000),
        ("ring", 1000, 4000),
        ("dense", 20_000, 80_000),
    ]
    for result in found.values():
        assert result.rounds == 2
        assert 0 < result.seconds[0] <= result.seconds[1] <= result.seconds[2]


def not_the_mean(collectives: TorchCollectives) -> None:
    measurement.CONTENDERS["ring"] = lambda collectives, row: collectives.all_reduce([row])
    measurement.time_merges(SMALL, CPU, TWO, collectives)


def test_what_is_not_the_mean_is_not_timed(tmp_path: Path) -> None:
    with (
        Workers(2, tmp_path, not_the_mean) as workers,
        pytest.raises(FishexpError, match="merge: ring of 2 workers is not the mean; nothing was timed"),
    ):
        workers.results()


class Refused(MergeCase):
    def values(self, contender: str) -> int:
        raise FishexpError(f"what a worker has against {contender}")


def test_what_a_worker_finds_wrong_is_said_here() -> None:
    with pytest.raises(FishexpError, match="what a worker has against ours"):
        list(measure(Refused(2, 1000), CPU, TWO))


def test_a_run_records_and_makes_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "README.md").write_text(f"before {page.START} old {page.END} after")
    run([SMALL, MergeCase(2, 40_000, KEPT, keep=0.05)], TWO, "cpu", tmp_path)
    records = read(tmp_path / "records.jsonl")
    assert {record["threads"] for record in records} == {1}
    small, large = [record for record in records if record["contender"] == "ours"]
    (dense,) = [record for record in records if record["contender"] == "dense"]
    text = (tmp_path / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|  ")]
    first, second = rows[-2:]
    assert first[:5] == ["2", "20,000", "0.05", "1,000", "4,000"]
    assert second[:5] == ["2", "40,000", "0.05", "2,000", "8,000"]
    milliseconds = 1e3 * dense["seconds"][1]
    assert float(first[7]) == pytest.approx(milliseconds, rel=6e-3)
    assert second[7].endswith(" (linear)")
    assert float(second[7].split()[0]) == pytest.approx(2 * milliseconds, rel=6e-3)
    assert float(first[8]) == pytest.approx(small["seconds"][1] / dense["seconds"][1], rel=6e-2)
    assert float(second[8]) == pytest.approx(large["seconds"][1] / dense["seconds"][1] / 2, rel=6e-2)
    assert "](merge.png)" in text
    assert (tmp_path / "merge.png").read_bytes().startswith(b"\x89PNG")
    assert "merge: 2 workers, 20,000 weights, keep 0.05" in capsys.readouterr().out


def test_dense_is_foretold_from_the_largest_smaller_model() -> None:
    line = {"contender": "dense", "workers": 2, "seconds": [0.0, 1.0, 2.0]}
    records = [line | {"weights": 10}, line | {"weights": 30, "seconds": [0.0, 6.0, 9.0]}]
    records.append(line | {"workers": 4, "weights": 90})
    assert dense_seconds(records, 2, 10) == (1.0, True)
    assert dense_seconds(records, 2, 20) == (2.0, False)
    assert dense_seconds(records, 2, 90) == (18.0, False)
    assert dense_seconds(records, 2, 5) is None
    assert dense_seconds(records, 8, 90) is None


def test_ticks_of_the_picture_are_numbers() -> None:
    """Names are no formulas in our pictures, and matplotlib writes powers of ten as formulas."""
    merges = [record for record in page.newest(read(HOME / "records.jsonl")) if record["benchmark"] == "merge"]
    with matplotlib.style.context(STYLE, after_reset=True):
        drawn = figure(merges)
        drawn.draw_without_rendering()
        left, right = drawn.axes
        ticks = [[tick.get_text() for tick in axis.get_ticklabels()] for axis in (left.xaxis, left.yaxis, right.yaxis)]
    assert ticks[0] == ["100k", "1M", "10M", "100M", "1G", "10G"]
    assert {"0.1", "1", "10", "1000"} <= set(ticks[1])
    assert not any("$" in text for texts in ticks for text in texts)
