"""The wheel, the README's commands, a sweep in parallel."""

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fishexp.run.record import read
from tests.support.snippets import compose, snippets

ROOT = Path(__file__).parents[1]


def test_the_wheel_runs_from_any_folder(tmp_path: Path) -> None:
    """It carries conf/ inside the package and nothing beside it; unzipped, it runs without the repository."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("fishexp-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in names} == {"fishexp", wheel.name.rpartition("-py3")[0] + ".dist-info"}
    assert {f"fishexp/report/page/page.{ending}" for ending in ("css", "js")} <= set(names)
    for file in ROOT.glob("conf/**/*.yaml"):
        assert f"fishexp/{file.relative_to(ROOT)}" in names

    code = (
        "import sys; sys.path.insert(0, '../site'); import fishexp.__main__ as m; print(m.__file__); sys.exit(m.main())"
    )
    quick = ["regime.epochs=1", "data.train_limit=64", "method=random"]
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, *quick], cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in str(Path(tmp_path, "elsewhere", done.stdout.splitlines()[0]).resolve())
    (record,) = read(tmp_path / "elsewhere" / "outputs" / "records.jsonl")
    assert record["commit"] is None


def commands() -> list[str]:
    found = [command for snippet in snippets(ROOT / "README.md") for command in snippet.commands]
    return [line for line in found if line.startswith("python -m fishexp ") or line == "python -m fishexp"]


def test_the_readme_has_commands() -> None:
    assert len(commands()) >= 5


@pytest.mark.parametrize("command", commands())
def test_what_the_readme_shows_can_be_composed(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    compose(command)


@pytest.mark.slow
def test_runs_of_a_sweep_in_parallel(tmp_path: Path) -> None:
    """With Hydra's joblib launcher: two processes, one of three runs fails."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra `parallel`")
    arguments = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "regime.epochs=1", "data.train_limit=64"]
    command = [sys.executable, "-m", "fishexp", "-m", *arguments, "method=random", "keep=0.004,0.01,0.02"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert "fishexp: 1 of 3 runs failed" in done.stderr
    lines, _, summary = done.stdout.partition("\n\n3 runs in ")
    assert {line.split("/3 ")[0] for line in lines.splitlines()} == {"[1", "[2", "[3"}
    assert [line.split()[0] for line in summary.splitlines()[2:]] == ["keep=0.004", "keep=0.01", "keep=0.02"]
    found = {record["keep"]: record["status"] for record in read(tmp_path / "outputs" / "records.jsonl")}
    assert found == {0.004: "failed", 0.01: "finished", 0.02: "finished"}


@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_on_where_it_was(tmp_path: Path) -> None:
    """With submitit's launcher on this machine, which sends its jobs what Slurm would."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra `slurm`")
    options = ["method=random", "keep=0.02", "regime.epochs=15", "threads=1"]
    job = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "resume=true", "outputs=cut"]
    command = [sys.executable, "-m", "fishexp"]
    with subprocess.Popen([*command, "-m", *job, *options], cwd=tmp_path, stdout=subprocess.DEVNULL) as sweep:
        logs = partial((tmp_path / "cut").glob, ".submitit/*/*.out")
        (log,) = wait_for(lambda: [file for file in logs() if "epoch 2:" in file.read_text()])
        os.kill(child_of(int(log.parent.name)), signal.SIGUSR2)
        assert sweep.wait(280) == 0
    assert "continued from a snapshot" in log.read_text()
    subprocess.run([*command, "outputs=whole", *options], cwd=tmp_path, check=True, capture_output=True)
    found, expected = (list(read(tmp_path / name / "records.jsonl")) for name in ("cut", "whole"))
    assert [record["status"] for record in found] == ["interrupted", "finished"]
    assert found[-1]["metrics"] == expected[-1]["metrics"]


def wait_for(found: Callable[[], list[Any]], seconds: float = 100) -> list[Any]:
    """Return what ``found`` finds, as soon as that is something."""
    end = time.monotonic() + seconds
    while not (items := found()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return items


def child_of(process: int) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])


def test_every_link_in_the_documents_leads_somewhere() -> None:
    for document in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("experiments/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"
