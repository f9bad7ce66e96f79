"""Paths are from where the user started, also where Hydra is told to change to the folder of a run."""

from pathlib import Path

import pytest
import torch

from fishexp.models import resnet
from fishexp.run.record import read
from tests.support.cli import fishexp

_DATA = '''
from pathlib import Path

from fishexp.data import digits


def load(*, root: str, rows: str):
    """Load as many digits as a file says."""
    return digits.load(train_limit=int((Path(root) / rows).read_text()), valid_limit=64, holdout=0)
'''
_METHOD = '''
from pathlib import Path


def scores(problem, *, power: str):
    """Prefer large weights, to the power in a file."""
    power = float(Path(power).read_text())
    return {name: p.detach().abs() ** power for name, p in problem.model.named_parameters()}
'''


def lay_out(folder: Path) -> None:
    """Write a data set, a method and weights, with files that they name relative to ``folder``."""
    components = (("data", "rows", _DATA, "root: examples\nrows: rows.txt"), ("method", "own", _METHOD, "power: p.txt"))
    for group, name, code, options in components:
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / f"{name}.yaml").write_text(f"name: path_{name}\n{options}\n")
        (folder / f"path_{name}.py").write_text(code)
    (folder / "examples").mkdir()
    (folder / "examples" / "rows.txt").write_text("96")
    (folder / "p.txt").write_text("2")
    (folder / "start").mkdir()
    torch.manual_seed(0)
    resnet.build(10, 1, layers=8, path=None).save(folder / "start")


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1")], ids=["run", "sweep"])
def test_a_run_is_the_same_where_hydra_changes_the_folder(
    sweep: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # as `python -c` has it: wherever the process is
    options = (
        "--config-dir=conf",
        *sweep,
        "data=rows",
        "method=own",
        "model.path=start",
        "regime.epochs=1",
        "resume=true",
    )
    assert fishexp(*options).status == 0
    before = Path("outputs/records.jsonl").read_text()
    assert fishexp(*options, "hydra.job.chdir=true").status == 0
    assert Path("outputs/records.jsonl").read_text() == before  # they are done already
    again = fishexp(*options, "hydra.job.chdir=true", "resume=false", "outputs=other", "records=again.jsonl")
    assert again.status == 0, again
    first, second = (
        sorted(read(Path(file)), key=lambda r: r["seed"]) for file in ("outputs/records.jsonl", "again.jsonl")
    )
    for key in ("run_id", "config", "metrics"):
        assert [record[key] for record in first] == [record[key] for record in second]
    there = ("conf", "examples", "start", "outputs", "other", "again.jsonl", "again.predictions.jsonl", "p.txt")
    there = (*there, "path_own.py", "path_rows.py")
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == set(there)
    assert not list(Path("other").glob("*/*/*/*/other"))
