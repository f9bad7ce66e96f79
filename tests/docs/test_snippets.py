"""Every snippet of docs/ runs as it stands there, one after the other in a folder of its own; a few are marked."""

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.support.snippets import ROOT, run_all, snippets

PAGES = sorted(ROOT.glob("docs/*.md"))
# page -> how many of its snippets are not run, or only composed: a reason stands above each, and here is the count
MARKS = {
    "from-fish.md": {"composed": 6, "not run": 1},
    "compare.md": {"not run": 1},
    "distributed.md": {"not run": 1},
    "finetune.md": {"composed": 1, "not run": 2},
    "tutorial.md": {"not run": 1},
    "versions.md": {"not run": 1},
}
# page -> what stands in its commands -> what runs instead, so that a page takes seconds
SMALLER = {
    "tutorial.md": {
        "train_limit=1000 epochs=2 samples=256": "train_limit=32 data.valid_limit=32 epochs=1 samples=8",
    },
    "compare.md": {
        "data=digits method=fish,random,full holdout=287 seed=0-2": (
            "data=digits method=random holdout=32 lr=0.001,0.05,5 seed=0 train_limit=64 epochs=1"
        ),
        "data=digits method=fish,random,magnitude,bitfit,full seed=0-2": (
            "data=digits method=random,bitfit seed=0 train_limit=64 epochs=1"
        ),
    },
    "finetune.md": {"patience=2": "patience=2 epochs=2 train_limit=128"},
    "distributed.md": {
        "regime.workers=2 data": "regime.workers=2 regime.backend=simulated epochs=2 train_limit=128 data",
        "workers=2,4": "workers=3 epochs=2 train_limit=128",
    },
    "versions.md": {"epochs=4": "epochs=3 data.train_limit=128"},
    "extending.md": {"epochs=1": "epochs=1 data.train_limit=128", "keep=0.02": "keep=0.02 data.train_limit=128"},
}
REAL_DATA = {"tutorial.md"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which the reader is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: Path, folder: Path, request: pytest.FixtureRequest, changed: dict[str, str]) -> None:
    if page.name in REAL_DATA:
        request.getfixturevalue("real_data")
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT asks it
        run_all(snippets(page), folder, changed)


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.stem)
def test_what_a_page_shows_runs(page: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    changed = SMALLER.get(page.name, {})
    commands = [command for snippet in snippets(page) for command in snippet.commands]
    assert all(any(shown in command for command in commands) for shown in changed)
    run(page, folder, request, changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALLER))
def test_what_a_page_shows_runs_in_full(name: str, folder: Path, request: pytest.FixtureRequest) -> None:
    run(ROOT / "docs" / name, folder, request, {})


def test_few_snippets_are_not_run() -> None:
    found = {page.name: Counter(snippet.mark for snippet in snippets(page) if snippet.mark) for page in PAGES}
    assert {name: dict(count) for name, count in found.items() if count} == MARKS
