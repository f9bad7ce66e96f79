"""A new method is one file and one yaml, in any folder."""

import subprocess
import sys
from pathlib import Path

from fishexp.run.record import read

METHOD = '''
def scores(problem, *, power: float):
    """Prefer large weights in late layers."""
    return {name: p.detach().abs() * i**power for i, (name, p) in enumerate(problem.model.named_parameters(), 1)}
'''


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "fishexp",
        "--config-dir",
        "conf",
        "regime.epochs=1",
        "data.train_limit=64",
        *arguments,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_one_file_and_one_yaml_outside_the_repository_add_a_method(tmp_path: Path) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "late.py").write_text(METHOD)
    (tmp_path / "conf" / "method" / "late.yaml").write_text("name: late\npower: 2.0\n")
    done = run(tmp_path, "method=late", "method.power=1.0")
    assert done.returncode == 0, done.stderr
    (record,) = read(tmp_path / "outputs" / "records.jsonl")
    assert record["method"] == "late"
    assert record["config"]["method"] == {"name": "late", "power": 1.0}
    assert record["kept"] == 1_540

    typo = run(tmp_path, "method=late", "method.pwoer=1.0")
    assert (typo.returncode, typo.stderr) == (
        2,
        "fishexp: unknown key method.pwoer; did you mean method.power? there are: method.power\n",
    )
    assert "method= bitfit | fish | full | magnitude | random | late" in run(tmp_path, "--help").stdout


def test_a_dotted_name_and_a_module_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "last.py").write_text(METHOD)
    (tmp_path / "conf" / "method" / "last.yaml").write_text("name: mine.last\npower: 2.0\n")
    (tmp_path / "conf" / "method" / "gone.yaml").write_text("name: mine.gone\n")
    done = run(tmp_path, "method=last")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "outputs").glob("digits/resnet8/mine.last-0.005/seed0-*"))
    gone = run(tmp_path, "method=gone")
    assert gone.returncode == 2
    assert gone.stderr.startswith("fishexp: method=mine.gone: ")
    assert gone.stderr.count("\n") == 1
