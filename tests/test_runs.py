"""`python -m fishexp.runs`: which runs are listed and how, all about one, several side by side, and folders removed."""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from fishexp.run.config import read_command, register_resolvers
from fishexp.run.identity import run_id
from fishexp.run.run_folder import lock
from fishexp.runs.__main__ import main
from tests.support.cli import QUICK, fishexp, records
from tests.support.records import record


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Carry out three short runs, one of which fails; they share their base."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fishexp("-m", *QUICK, "keep=0.001,0.005,0.01")
        yield folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Begin in a folder with the outputs of three runs."""
    shutil.copytree(made / "outputs", tmp_path / "outputs", copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ids(here: Path) -> dict[float, str]:
    """Return keep -> run_id."""
    return {record["keep"]: record["run_id"] for record in records(here)}


def folder_of(run: str) -> Path:
    (folder,) = Path("outputs").glob(f"*/*/*/*-{run}")
    return folder


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """Return the words of each line of the list."""
    assert main(words) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix("fishexp.runs: ").rstrip()


def test_runs_are_listed_with_the_newest_last(ids: dict[float, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert " ".join(header.split()) == "run data model method keep regime seed status metric seconds when"
    assert [line.split()[:8] for line in lines] == [
        [ids[keep], "digits", "resnet8", "random", f"{keep}", "transfer", "0", status]
        for keep, status in ((0.001, "failed"), (0.005, "finished"), (0.01, "finished"))
    ]
    (score,) = [one["metrics"]["accuracy"] for one in records(Path()) if one["keep"] == 0.01]
    assert lines[-1].split()[8:10] == ["accuracy", f"{score:.4g}"]


def test_it_is_the_time_of_the_records_that_orders(ids: dict[float, str], capsys: pytest.CaptureFixture[str]) -> None:
    days = {0.001: "02", 0.005: "03", 0.01: "01"}
    lines = [one | {"ended": f"2026-01-{days[one['keep']]}T12:00:00+00:00"} for one in records(Path())]
    Path("outputs/records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line[0] for line in listed(capsys)] == [ids[keep] for keep in (0.01, 0.001, 0.005)]
    assert [line[-2] for line in listed(capsys)] == ["2026-01-01", "2026-01-02", "2026-01-03"]


def test_words_choose_and_sort(ids: dict[float, str], capsys: pytest.CaptureFixture[str]) -> None:
    for words, keeps in (
        (["status=finished"], (0.005, 0.01)),
        (["keep=0.5%,0.01", "method=random"], (0.005, 0.01)),
        (["keep=0.5%", "seed=0-2", "data=digits", "train_limit=128"], (0.005,)),
        (["regime.clip=null", "status=failed,interrupted"], (0.001,)),
        (["--sort", "seed"], (0.001, 0.005, 0.01)),
        (["--sort", "keep", "model=resnet8"], (0.001, 0.005, 0.01)),
        (["outputs/records.jsonl", "--sort", "run"], sorted(ids, key=lambda keep: ids[keep])),
    ):
        assert [cells[0] for cells in listed(capsys, *words)] == [ids[keep] for keep in keeps], words
    # the failed run has no metric, and is last
    assert listed(capsys, "--sort", "metric")[-1][0] == ids[0.001]
    assert main(["seed=1"]) == 0
    assert capsys.readouterr().out == "none of 3 runs is like that\n"
    assert mistake(capsys, "metod=fish").startswith("no run here has metod; did you mean method?")
    assert mistake(capsys, "--sort", "lrr").startswith("no run here has lrr; did you mean lr?")
    assert mistake(capsys, "seed=2-1") == "seed=2-1 counts down; write seed=1-2"
    assert mistake(capsys, "nowhere") == "nowhere is missing; name a folder of outputs or a file of records"


def test_folders_of_folders_and_records_elsewhere(ids: dict[float, str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("all/one").mkdir(parents=True)
    Path("all/one/records.jsonl").write_text(json.dumps(record(run_id="abcd0123")) + "\n")
    assert [line[0] for line in listed(capsys, "all")] == ["abcd0123"]
    Path("moved").mkdir()
    Path("outputs/records.jsonl").rename("moved/moved.jsonl")
    assert all("gone" in line for line in listed(capsys, "moved/moved.jsonl"))
    assert not any("gone" in line for line in listed(capsys, "moved/moved.jsonl", "outputs"))
    assert [line[0] for line in listed(capsys)] == list(ids.values())  # by the records in the run folders
    Path("empty").mkdir()
    assert mistake(capsys, "empty").startswith("empty holds no records.jsonl and no run folders")


def test_records_are_the_truth_and_broken_lines_are_said(
    ids: dict[float, str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder_of(ids[0.005]))
    lines = Path("outputs/records.jsonl").read_text().splitlines()
    later = json.loads(lines[2]) | {"status": "failed", "metrics": {}}
    odd = {"run_id": "0dd00000", "status": "[red]odd", "config": {"data": 3, "seed": "x"}, "metrics": {"f1": "high"}}
    more = [*lines, '{"run_id": "1', json.dumps(later), json.dumps(odd | {"seconds": [1], "ended": 7})]
    Path("outputs/records.jsonl").write_text("\n".join(more) + "\n")
    found = {line[0]: " ".join(line[1:]) for line in listed(capsys)}
    assert "line 4" in caplog.text
    assert " finished, folder gone accuracy" in found[ids[0.005]]
    assert " finished accuracy" in found[ids[0.01]]  # a later attempt that failed takes nothing away
    assert "[red]odd, folder gone f1 high" in found["0dd00000"]
    assert main(["show", "0dd0"]) == 0
    assert main(["compare", "0dd0", ids[0.005]]) == 0


def test_a_run_that_goes_on_or_was_killed_is_listed(ids: dict[float, str], capsys: pytest.CaptureFixture[str]) -> None:
    going, killed = folder_of(ids[0.005]), folder_of(ids[0.01])
    Path("outputs/records.jsonl").unlink()
    (killed / "record.json").unlink()
    with lock(going):
        lines = listed(capsys)
        assert [(line[0], " ".join(line[7:9])) for line in lines[1:]] == [
            (ids[0.01], "cut off"), (ids[0.005], "going on"),
        ]  # fmt: skip
        assert [line[3] for line in lines] == ["random"] * 3
        assert [line[0] for line in listed(capsys, "status=going on")] == [ids[0.005]]
        assert mistake(capsys, "remove", ids[0.005], ids[0.01], "--yes").startswith(f"{going}: another process is at")
    assert killed.is_dir()
    assert main(["show", ids[0.01]]) == 0
    assert "its record is in no file of records" in capsys.readouterr().out


def test_all_about_a_run(ids: dict[float, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(ids[0.005])
    assert main(["show", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"run {ids[0.005]}: finished, ")
    assert "\n  data.train_limit              128\n" in out
    assert f"\n  {folder}/\n    base.safetensors  " in out
    assert "\n  weights that moved  1,540 of 308,074\n" in out
    command = next(line for line in out.splitlines() if line.startswith("  python -m fishexp "))
    register_resolvers()
    (config,) = read_command(get_args_parser().parse_args(shlex.split(command)[3:])).configs
    assert run_id(config) == ids[0.005]
    assert main(["show", ids[0.001]]) == 0
    assert "\nerror: keep=0.001 pays for 308 of 308074 weights" in capsys.readouterr().out


def test_metrics_that_are_named_as_a_setting_or_a_fact_stand_beside_it(
    here: Path, ids: dict[float, str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"keep": 0.25, "seconds": 0.75, "status": 0.5}
    changed = [run | {"metrics": run["metrics"] | named} for run in records(here)]
    (here / "outputs/records.jsonl").write_text("".join(json.dumps(run) + "\n" for run in changed))
    assert main(["compare", ids[0.005], ids[0.01]]) == 0
    lines = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    found = {name.strip(): values for name, *values in lines}
    assert (found["keep"], found["status"]) == (["0.005", "0.01"], ["finished", "finished"])
    assert {name: found[f"{name} (metric)"] for name in named} == {n: [f"{v:.4g}"] * 2 for n, v in named.items()}
    assert found["seconds"] != found["seconds (metric)"]


def test_what_tells_runs_apart(ids: dict[float, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", ids[0.005], ids[0.01], ids[0.001]]) == 0
    lines = {line[:20].strip(): line[20:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines[""] == [ids[0.005], ids[0.01], ids[0.001]]
    assert lines["keep"] == ["0.005", "0.01", "0.001"]
    assert lines["weights that moved"] == ["1,540", "3,080", "–"]
    assert lines["accuracy"][2] == "–"
    assert "seed" not in lines
    assert mistake(capsys, "compare", ids[0.005], ids[0.005]) == "compare takes two runs or more"
    assert mistake(capsys, "show", "zz") == "there is no run zz in outputs; python -m fishexp.runs lists them"
    assert mistake(capsys, "show", "").endswith("give more digits")
    assert mistake(capsys, "show", "outputs/digits").endswith("--in names the folder of outputs")


def test_a_removed_run_keeps_its_record(
    ids: dict[float, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, folders = Path("outputs/records.jsonl").read_bytes(), [folder_of(run) for run in ids.values()]
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert mistake(capsys, "remove", ids[0.005]) == "nothing is removed; answer y, or give --yes"
    assert all(folder.is_dir() for folder in folders)
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert main(["remove", ids[0.005]]) == 0
    out = capsys.readouterr().out
    assert f"{folders[1]} is removed (" in out
    assert "its record stays in outputs/records.jsonl" in out
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert not folders[1].parent.exists()  # it was empty
    assert Path("outputs/records.jsonl").read_bytes() == before
    assert mistake(capsys, "remove", ids[0.005]).startswith(f"the folder of run {ids[0.005]} is gone already")
    assert main(["remove", ids[0.01], ids[0.001], "--yes"]) == 0
    assert sorted(path.name for path in Path("outputs").iterdir()) == [
        "bases", "records.jsonl", "records.predictions.jsonl",
    ]  # fmt: skip


def test_nothing_but_run_folders_is_removed_and_no_link_is_followed(
    ids: dict[float, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(ids[0.005])
    (folder / "link").symlink_to(Path("precious").absolute())
    Path("precious").mkdir()
    Path("precious/file").touch()
    folder.parent.rename("elsewhere")
    folder.parent.symlink_to(Path("elsewhere").absolute())
    assert mistake(capsys, "remove", ids[0.005], "--yes").endswith(
        "is behind a link, which is not followed; remove it by hand"
    )
    folder.parent.unlink()
    Path("elsewhere").rename(folder.parent)
    for name in ("record.json", "config.yaml", ".lock"):
        (folder / name).rename(folder / f"{name}.away")
    assert mistake(capsys, "remove", ids[0.005], "--yes") == f"{folder} is no folder of a run; remove it by hand"
    (folder / "record.json.away").rename(folder / "record.json")
    (folder / ".lock").symlink_to(Path("precious/file").absolute())
    assert mistake(capsys, "remove", ids[0.005], "--yes").endswith("is a link, as no run leaves; remove it by hand")
    (folder / ".lock").unlink()
    assert main(["remove", ids[0.005], "--yes"]) == 0
    assert Path("precious/file").exists()


def test_a_shared_base_goes_with_the_last_run_that_has_it(ids: dict[float, str]) -> None:
    (shared,) = Path("outputs/bases").iterdir()
    for keep in (0.001, 0.005, 0.01):  # the copies of a fixture are no hard links
        base = folder_of(ids[keep]) / "base.safetensors"
        base.unlink()
        base.hardlink_to(shared)
    assert main(["remove", ids[0.001], ids[0.005], "--yes"]) == 0
    assert shared.exists()
    assert main(["remove", ids[0.01], "--yes"]) == 0
    assert not shared.exists()
