"""Scores that several runs share: read where nothing that decides them differs, computed everywhere else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fishexp.fisher import diagonal_fisher
from fishexp.methods import fish
from fishexp.run import identity, runner
from fishexp.training import score_cache
from tests.support.cli import QUICK, fishexp, records

RUN = (*QUICK[:3], "method=fish", "method.samples=24", "keep=0.02")
SCORES = Path("outputs/scores")


@pytest.fixture(autouse=True)
def computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Work in a folder of its own; hold the options of each time that scores are computed."""
    calls: list[Any] = []

    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        return diagonal_fisher(*arguments, **more)

    monkeypatch.setattr(fish, "diagonal_fisher", counted)
    monkeypatch.chdir(tmp_path)
    return calls


def run(*more: str) -> dict[str, Any]:
    """Carry out a run, and return its record."""
    result = fishexp(*RUN, *more)
    assert result.status == 0, result
    return records(Path())[-1]


def deltas(outputs: str = "outputs") -> dict[str, bytes]:
    """Return what each run has trained."""
    return {str(file.parent.relative_to(outputs)): file.read_bytes() for file in Path(outputs).glob("*/*/*/*/delta.*")}


def test_a_sweep_computes_scores_once_and_its_results_are_those_of_runs_that_compute_them(computed: list[Any]) -> None:
    labels = "method.labels=sampled"  # which draws more from the generator
    assert fishexp("-m", *RUN[:-1], labels, "regime.lr=0.1,0.2", "keep=0.02,0.05").status == 0
    assert len(computed) == 1
    assert [record["scores_read"] for record in records(Path())] == [False, True, True, True]
    for lr in ("0.1", "0.2"):
        for keep in ("0.02", "0.05"):
            assert fishexp(*RUN[:-1], labels, f"regime.lr={lr}", f"keep={keep}", "outputs=alone").status == 0
            shutil.rmtree("alone/scores")
    assert len(computed) == 5
    assert len(deltas()) == 4
    assert deltas() == deltas("alone")


def test_masks_of_entries_and_of_rows_are_made_from_the_same_scores(computed: list[Any]) -> None:
    run()
    assert run("method.unit=row")["scores_read"] is True
    assert len(computed) == 1


def test_scoring_leaves_the_generator_where_computing_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later masks of a run draw other examples, from where the first have left it."""
    more = ("method.labels=sampled", "regime=checkpointing", "regime.mask=every_epoch", "regime.epochs=2")
    for outputs in ("outputs", "outputs", "alone"):
        assert fishexp(*RUN, *more, f"outputs={outputs}", "resume=false").status == 0
    assert records(Path())[1]["scores_read"] is True
    files = {str(file.relative_to("alone")): file.read_bytes() for file in Path("alone").glob("**/checkpoints/*.saf*")}
    assert len(files) >= 2
    assert files == {name: Path("outputs", name).read_bytes() for name in files}


@pytest.mark.parametrize(
    "more",
    [
        "seed=1", "method.samples=25", "method.labels=expected", "method.power=absolute", "precision=bf16", "threads=2",
        "data.train_limit=127",
    ],
)  # fmt: skip
def test_another_setting_that_decides_scores_computes_them(
    more: str, computed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_THREADS", 1)
    for arguments in ((), (more,), (more, "regime.batch_size=16")):
        run(*arguments)
    assert len(computed) == 2
    assert [record["scores_read"] for record in records(Path())] == [False, False, True]


@pytest.mark.parametrize("what", ["weights", "buffers", "examples", "code", "device", "instructions"])
def test_other_conditions_compute_scores(what: str, computed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    build = runner.build

    def other(*arguments: Any) -> Any:
        model, data = build(*arguments)
        if what == "examples":
            data.train.pixels[5] ^= 1
        tensors = list(model.network.buffers() if what == "buffers" else model.network.parameters())
        if what in ("weights", "buffers"):
            tensors[0].data.view(-1)[0] += 1
        return model, data

    monkeypatch.setattr(runner, "build", other)
    if what == "code":
        monkeypatch.setattr("fishexp.run.cached_scores.package_code", lambda: "other")
    if what == "device":
        monkeypatch.setattr("fishexp.system.hardware.name", lambda device: "other")
    if what == "instructions":
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "other")
    run("resume=false")
    run("regime.batch_size=16")
    assert len(computed) == 2


@pytest.mark.parametrize(
    "more",
    [
        ("compat=fish",),
        ("regime=distributed", "regime.workers=2", "regime.backend=simulated", "regime.warmup_epochs=0"),
        ("method=random",),
        ("method=magnitude",),
    ],
    ids=lambda more: more[0],
)
def test_some_runs_compute_scores_in_any_case(more: tuple[str, ...]) -> None:
    arguments = [argument for argument in RUN if "method" not in argument or "method" not in more[0]]
    assert fishexp(*arguments, *more).status == 0
    assert not SCORES.exists()


def test_a_method_that_imports_more_of_the_users_code_computes_scores(
    tmp_path: Path, computed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fishexp.run.cached_scores.own_code", lambda config: {"mine.data": "0123456789ab"})
    run()
    run("regime.batch_size=16")
    assert len(computed) == 2


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a bit": flipped,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "empty": lambda file: file.write_bytes(b""),
    "other scores": lambda file: file.write_bytes(file.read_bytes().replace(b'key\\": \\"', b'key\\": \\"0', 1)),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_computed_again(damage: str, computed: list[Any]) -> None:
    run()
    (file,) = SCORES.iterdir()
    good = file.read_bytes()
    DAMAGE[damage](file)
    result = fishexp(*RUN, "regime.batch_size=16")
    assert result.status == 0, result
    assert len(computed) == 2
    assert result.out.count("the scores are computed") == 1
    if damage != "a folder":
        assert len(good) == len(file.read_bytes())
        assert run("regime.batch_size=8")["scores_read"] is True


def test_a_folder_that_cannot_be_written_fails_no_run(computed: list[Any]) -> None:
    SCORES.parent.mkdir()
    SCORES.write_text("no folder")
    result = fishexp(*RUN)
    assert result.status == 0, result
    assert "the scores are not kept for other runs" in result.out


def test_files_that_were_not_used_for_long_go(monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    (first,) = SCORES.iterdir()
    monkeypatch.setattr(score_cache, "MOST_BYTES", int(2.5 * first.stat().st_size))
    run("seed=1")
    run("regime.batch_size=16")  # uses the first
    (second,) = set(SCORES.iterdir()) - {first}
    run("seed=2")
    assert len(list(SCORES.iterdir())) == 2
    assert first.exists()
    assert not second.exists()
    assert run("regime.batch_size=8")["scores_read"] is True


def test_own_code_of_the_package_is_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "fishexp"
    shutil.copytree(Path(identity.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = identity.package_code()
    monkeypatch.setattr(identity, "__file__", str(copy / "run/identity.py"))
    assert identity.package_code() == before
    with (copy / "fisher/powers.py").open("a") as file:
        file.write("\n")
    assert identity.package_code() != before
