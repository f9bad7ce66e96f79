"""Whole runs on the embedded digits: what they leave behind, sweeps, resuming, failures."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import fishexp as library
from fishexp.models import resnet
from fishexp.run.identity import run_id
from fishexp.run.record import STREAMS, read
from fishexp.system.atomic import append
from fishexp.training.streams import seed_torch
from tests.support.cli import QUICK, fishexp, records
from tests.support.launched import wait_for
from tests.support.program import Program

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TOTAL = 308_074  # weights of resnet8 on digits
HEAD = 1_290
BIASES = 32 + 2 * 32 + 2 * 64 + 64 + 2 * 128 + 128  # shifts of the stem's, the blocks' and the shortcuts' BatchNorms


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained(folder: Path, outputs: str = "outputs") -> dict[str, torch.Tensor]:
    """The weights of the one run that is there."""
    (run,) = (folder / outputs).glob("*/*/*/*")
    return library.load_run(run)[0].state_dict()


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (("fish", "method.samples=64"), 6_161),
        (("fish", "method.samples=8", "method.labels=expected", "method.power=absolute"), 6_161),
        (("fish", "method.samples=8", "method.labels=sampled"), 6_161),
        (("fish", "method.samples=8", "compat=fish"), 6_161),
        (("random",), 6_161),
        (("magnitude",), 6_161),
        (("magnitude", "method.order=smallest"), 6_161),
        (("bitfit",), BIASES + HEAD),
        (("full",), TOTAL),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_every_method_runs_and_moves_what_it_keeps(method: tuple[str, ...], kept: int, tmp_path: Path) -> None:
    result = fishexp(*QUICK[:3], f"method={method[0]}", *method[1:], "keep=0.02")
    assert result.status == 0, result
    (record,) = records(tmp_path)
    assert (record["status"], record["kept"], record["total"]) == ("finished", kept, TOTAL)
    assert record["keep"] == (None if method[0] in ("bitfit", "full") else 0.02)
    seed_torch(0, "weights")
    before = dict(resnet.build(10, 1, layers=8, path=None).network.named_parameters())
    after = trained(tmp_path)
    moved = sum(int((after[name] != p).sum()) for name, p in before.items())
    assert 0.5 * kept < moved <= kept
    assert all((after[name] != p).all() for name, p in before.items() if name == "fc.weight")


def test_the_magnitude_mask_is_the_largest_weights(tmp_path: Path) -> None:
    fishexp(*QUICK[:3], "method=magnitude", "keep=0.02")
    seed_torch(0, "weights")
    before = dict(resnet.build(10, 1, layers=8, path=None).network.named_parameters())
    after = trained(tmp_path)
    body = [name for name in before if not name.startswith("fc.")]
    moved = torch.cat([before[name][after[name] != before[name]].abs().flatten() for name in body])
    still = torch.cat([before[name][after[name] == before[name]].abs().flatten() for name in body])
    assert len(moved) > 4_000
    assert moved.min() >= still.quantile(0.5)  # of random weights half would be smaller
    assert (still > moved.min()).sum() < 100


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    result = fishexp(*QUICK, "regime.epochs=2", "seed=3", "threads=1")
    (record,) = records(tmp_path)
    (folder,) = tmp_path.glob("outputs/digits/resnet8/random-0.005/seed3-*")
    assert folder.name == f"seed3-{record['run_id']}"
    assert json.loads((folder / "record.json").read_text()) == record
    assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == record["config"]
    assert str(tmp_path) not in json.dumps(record)

    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert {name: epochs[-1][name] for name in record["metrics"]} == record["metrics"]
    assert next(iter(record["metrics"])) == "accuracy"
    assert "epoch 2: train_loss" in (folder / "log.txt").read_text()
    assert "epoch 2: train_loss" in result.out

    assert (record["method"], record["keep"], record["seed"], record["threads"]) == ("random", 0.005, 3, 1)
    assert set(record["seconds"]) == {"data", "scores", "train", "evaluate"}
    assert 10**7 < record["peak_memory_bytes"] < 10**11
    assert record["bytes"]["dense"] > 4 * TOTAL
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["ended"])
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (record["device"], record["error"]) != ("", None)


def test_the_same_run_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        fishexp("regime.epochs=1", "data.train_limit=128", "method.samples=16", f"outputs={folder}")
    fishexp("regime.epochs=1", "data.train_limit=128", "method.samples=16", "seed=1", "outputs=c")
    first, again, other = (trained(tmp_path, name) for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_trained_weights_predict_and_can_be_evaluated_again(tmp_path: Path) -> None:
    fishexp("regime.epochs=4", "method=full")
    (record,) = records(tmp_path)
    (folder,) = tmp_path.glob("outputs/digits/resnet8/full/*")
    assert record["metrics"]["accuracy"] > 0.8

    model, prepare = library.load_run(folder)
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = torch.from_numpy(digits.images[-360:] * (255 / 16)).round().to(torch.uint8)[:, None]
    with torch.no_grad():
        predicted = model(prepare(pixels)).argmax(-1).numpy()
    assert (predicted == digits.target[-360:]).mean() == record["metrics"]["accuracy"]

    assert fishexp("regime.epochs=0", "method=full", f"model.path={folder}").status == 0
    again = records(tmp_path)[-1]
    assert again["metrics"] == record["metrics"]
    assert again["kept"] is None


def test_a_sweep_shares_no_folder_and_loses_no_run_to_a_failing_one(tmp_path: Path) -> None:
    result = fishexp("-m", *QUICK, "seed=0,1", "keep=0.004,0.01")
    assert result.status == 2
    assert result.err.count("raise keep") == 2
    assert result.err.endswith("fishexp: 2 of 4 runs failed\n")
    found = records(tmp_path)
    assert [(r["seed"], r["keep"], r["status"]) for r in found] == [
        (0, 0.004, "failed"), (0, 0.01, "finished"), (1, 0.004, "failed"), (1, 0.01, "finished"),
    ]  # fmt: skip
    assert len({r["run_id"] for r in found}) == 4
    assert len(list(tmp_path.glob("outputs/digits/resnet8/random-*/seed*"))) == 4


def test_resume_runs_only_what_is_not_finished(tmp_path: Path) -> None:
    assert fishexp("-m", *QUICK, "seed=0,1").status == 0
    result = fishexp("-m", *QUICK, "seed=0,1,2", "resume=true")
    assert result.status == 0
    assert result.out.count("is done already") == 2
    assert [r["seed"] for r in records(tmp_path)] == [0, 1, 2]
    assert fishexp(*QUICK, "seed=2").status == 0  # without resume it runs again
    assert len(records(tmp_path)) == 4


def test_a_sweep_over_keep_runs_bitfit_once(tmp_path: Path) -> None:
    result = fishexp("-m", *QUICK[:3], "method=bitfit", "keep=0.01,0.02")
    assert result.status == 0
    assert "keep is ignored" in result.out
    assert len(records(tmp_path)) == 1


def test_a_sweep_over_folders_runs_in_each(tmp_path: Path) -> None:
    result = fishexp("-m", *QUICK, "outputs=a,b")
    assert result.status == 0
    assert ": 2 finished\n" in result.out
    assert [len(list(tmp_path.glob(f"{folder}/digits/resnet8/*/*/record.json"))) for folder in "ab"] == [1, 1]
    assert [len(list(read(tmp_path / folder / "records.jsonl"))) for folder in "ab"] == [1, 1]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    result = fishexp(*QUICK, "method=full", "regime.lr=1e12", "regime.batch_size=16")
    assert result.status == 1
    assert re.fullmatch(r"fishexp: epoch 1: the loss is not finite at step \d; lower regime.lr\n", result.err)
    (record,) = records(tmp_path)
    assert record["status"] == "failed"
    assert "not finite" in record["error"]
    assert record["metrics"] == {}


def test_evaluation_alone_says_its_numbers(tmp_path: Path) -> None:
    result = fishexp(*QUICK, "regime.epochs=0")
    assert "epoch 0: accuracy 0." in result.out
    (folder,) = tmp_path.glob("outputs/digits/resnet8/*/*")
    assert json.loads((folder / "metrics.jsonl").read_text())["epoch"] == 0


def test_threads_of_one_run_are_not_those_of_the_next(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    assert fishexp("-m", *QUICK, f"threads={before + 1},null").status == 0
    assert [record["threads"] for record in records(tmp_path)] == [before + 1, before]


@pytest.mark.parametrize(("precision", "ratio", "said"), [("bf16", 4.25, 1), ("bf16", 0.3, 0), ("fp32", 4.25, 0)])
def test_bf16_that_is_emulated_is_said_to_be(
    precision: str, ratio: float, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fishexp.system.hardware.bf16_slowdown", lambda: ratio)
    out = fishexp(*QUICK, f"precision={precision}").out
    assert out.count("this CPU emulates bf16: a product takes 4.2 times as long as with precision=fp32\n") == said


def test_a_failed_repetition_takes_no_finished_run_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fishexp(*QUICK).status == 0
    with monkeypatch.context() as patch:
        patch.setattr("fishexp.training.trainer.evaluate", lambda *_: 1 / 0)
        assert fishexp(*QUICK).status == 1
    assert [record["status"] for record in records(tmp_path)] == ["finished", "failed"]
    assert "is done already" in fishexp(*QUICK, "resume=true").out


def test_the_identity_of_a_run(tmp_path: Path) -> None:
    """1 is 1.0; two sets of weights of one name are two runs, and a path of this machine is in none of it."""
    for folder, seed in (("a", 0), ("b", 1)):
        (tmp_path / folder / "start").mkdir(parents=True)
        torch.manual_seed(seed)
        resnet.build(10, 1, layers=8, path=None).save(tmp_path / folder / "start")
        assert fishexp(*QUICK, f"model.path={folder}/start").status == 0
    for keep in ("1", "1.0"):
        assert fishexp(*QUICK, f"keep={keep}").status == 0
    first, second, one, same = records(tmp_path)
    assert first["run_id"] != second["run_id"]
    assert re.fullmatch(r"start@[0-9a-f]{12}", first["config"]["model"]["path"])
    assert one["run_id"] == same["run_id"]


def test_runs_with_the_random_streams_of_before_are_other_runs(tmp_path: Path) -> None:
    """Their records are read, and not taken for done."""
    assert fishexp(*QUICK).status == 0
    (new,) = records(tmp_path)
    assert new["streams"] == STREAMS
    for line in [new, *(line for file in EXPERIMENTS.glob("*/records.jsonl") for line in read(file))]:
        assert (line["run_id"] == run_id(line["config"])) == (line.get("streams") == STREAMS)


def test_a_run_that_cannot_even_start_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device=cuda" in fishexp(*QUICK, "device=cuda").mistake()
    (record,) = records(tmp_path)
    assert (record["status"], record["seconds"]["train"]) == ("failed", 0)


def test_an_unforeseen_error_is_on_record_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr("fishexp.training.trainer.evaluate", broken)
    result = fishexp(*QUICK)
    assert (result.status, result.err) == (1, "fishexp: RuntimeError: boom; debug=true shows where\n")
    (record,) = records(tmp_path)
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: boom\nand more")
    assert "Traceback" in next(tmp_path.glob("outputs/digits/*/*/*/log.txt")).read_text()


def heed_interrupts() -> None:
    """Take Ctrl-C, which what runs in a shell's background ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def log(folder: Path) -> str:
    """What the one run that is there has said so far."""
    return "".join(file.read_text() for file in folder.glob("outputs/digits/*/*/*/log.txt"))


ENDLESS = (*QUICK, "regime.epochs=100000")


def assert_interrupted(process: subprocess.Popen[str] | Program, folder: Path) -> None:
    _, err = process.communicate(timeout=60)
    assert process.poll() == 130
    assert err == "fishexp: interrupted; the same command with resume=true continues\n"
    (record,) = records(folder)
    assert record["status"] == "interrupted"


def test_a_run_interrupted_while_it_imports_ends_cleanly(tmp_path: Path) -> None:
    """What data and model need is imported after the log is there; the signal alone would end it with no word."""
    command = [sys.executable, "-m", "fishexp", *ENDLESS]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        try:
            assert wait_for(lambda: list(tmp_path.glob("outputs/digits/*/*/*/log.txt")) or process.poll() is not None)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert_interrupted(process, tmp_path)
        finally:
            process.kill()


@pytest.mark.parametrize(("sent", "said"), [(signal.SIGINT, ", fp32"), (signal.SIGTERM, "epoch 1:")])
def test_an_interrupted_run_ends_cleanly(tmp_path: Path, sent: signal.Signals, said: str) -> None:
    """Whether it makes ready or trains."""
    with Program("fishexp", *ENDLESS) as process:
        assert wait_for(lambda: said in log(tmp_path) or process.poll() is not None)
        process.send_signal(sent)
        assert_interrupted(process, tmp_path)


def test_jobs_at_the_same_time_do_not_tear_the_records(tmp_path: Path) -> None:
    commands = [("fishexp", "-m", *QUICK, f"seed={seed},{seed + 1}") for seed in (0, 2)]
    with Program(*commands[0]) as first, Program(*commands[1]) as second:
        assert [(job.communicate(timeout=200)[1], job.wait()) for job in (first, second)] == [("", 0)] * 2
    assert sorted(r["seed"] for r in records(tmp_path)) == [0, 1, 2, 3]


def test_the_same_run_twice_at_once_is_refused(tmp_path: Path) -> None:
    import fcntl

    fishexp(*QUICK)
    (folder,) = tmp_path.glob("outputs/digits/resnet8/random-0.005/*")
    with (folder / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is at this very run" in fishexp(*QUICK).mistake()


def test_many_writers_of_long_lines(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from fishexp.system.atomic import append\n"
    code += 'line = \'{"run_id": "%s-%d", "pad": "\' + "x" * 9000 + \'"}\'\n'
    code += 'for i in range(200): append(Path("r.jsonl"), line % (sys.argv[1], i), "record")'
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert len({line["run_id"] for line in lines}) == len(lines) == 800


def test_lines_that_are_no_records_block_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A torn one does not swallow the next record either; a file of something else altogether is refused."""
    path = tmp_path / "records.jsonl"
    path.write_text('{"run_id": "a", "sta')
    result = fishexp(*QUICK, "records=records.jsonl")
    assert 'records.jsonl line 1 is not a record, and no other line is: \'{"run_id": "a", "sta\'' in result.mistake()
    append(path, '{"run_id": "b", "status": "finished", "config": {}, "metrics": {}}', "record")
    assert len(path.read_text().splitlines()) == 2
    done = fishexp(*QUICK, "records=records.jsonl", "resume=true")
    assert done.status == 0, done.err
    assert "records.jsonl: 1 lines are no records and are skipped, first line 1" in caplog.text
    assert [record["status"] for record in read(path)] == ["finished", "finished"]


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\0" * 40, b"\xff\xfe\x00", b"[" * 100_000, b"{}", b"null", b'{"run_id": 1}', b"NaN",
        b'{"run_id": [], "status": "finished", "config": {}, "metrics": {}}',
        b'{"run_id": "a", "status": "finished", "config": [], "metrics": {}}',
        b'{"run_id": "a", "status": "finished", "config": {}, "metrics": {}',
        b'{"run_id": "a", "status": "finished", "config": %s{}%s, "metrics": {}}' % (b'{"a": ' * 900, b"}" * 900),
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_is_skipped_and_named(
    line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, good = tmp_path / "records.jsonl", b'{"run_id": "a", "status": "finished", "config": {}, "metrics": {}}'
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n" + line + b"\n" + good + b"\n")
    assert [record["run_id"] for record in read(path)] == ["a", "a"]
    (message,) = caplog.messages
    assert "1 lines are no records and are skipped, first line 2" in message


def test_control_characters_of_a_record_reach_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(
        path,
        json.dumps({"run_id": "a\x1b[2J", "status": "x", "config": {"\x9b1m": ["\x07b", 1]}, "metrics": {}}),
        "record",
    )
    assert list(read(path)) == [{"run_id": "a[2J", "status": "x", "config": {"1m": ["b", 1]}, "metrics": {}}]


def test_parallel_jobs_take_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from fishexp.system.hardware import _free_gpu

    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(uuid=f"gpu-{index}"))
    with _free_gpu(2, tmp_path) as first:
        with _free_gpu(2, tmp_path) as second, _free_gpu(2, tmp_path) as third:
            assert (first, second) == (0, 1)
            assert third in (0, 1)  # shared, since there are no more
        with _free_gpu(2, tmp_path) as second:
            assert second == 1
