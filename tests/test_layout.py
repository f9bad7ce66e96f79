"""The house rules that a machine can check: who imports whom, what yaml and signature agree on, what is light."""

import ast
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import fishexp
from fishexp.run.config import CONF, options_in
from fishexp.run.settings import ABOUT, GROUPS, Settings, component, options_of

PACKAGE = Path(__file__).parents[1] / "fishexp"
# a file imports only from files above it
ORDER = [
    "errors", "interrupts", "atomic", "budget", "hub", "settings", "delta", "masks", "kept", "crew", "merging",
    "rule", "gradients", "functions", "modules", "sparse", "inputs", "evaluation", "layers", "batched",
    "scoring", "fisher", "examples", "images", "text", "metrics", "problem", "loop", "bars", "streams",
    "tracking", "choice", "hardware", "snapshots", "moving", "base", "checkpoints", "course", "worker", "data",
    "models", "methods", "conductor", "regimes", "saved", "record", "notes", "member", "bookkeeping", "runner",
    "torchrun", "agent", "launch", "report", "usage", "config", "__main__",
]  # fmt: skip
YAMLS = sorted((group, file.stem) for group in GROUPS for file in Path(CONF, group).glob("*.yaml"))


def imported(path: Path) -> set[str]:
    """Modules of ours that ``path`` imports, by their first name below the package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "fishexp":
                names |= {alias.name for alias in node.names}
            elif node.module.startswith("fishexp."):
                names.add(node.module.split(".")[1])
    return names


def test_a_file_imports_only_from_files_above_it() -> None:
    places = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert set(places.values()) - {"__init__"} == set(ORDER)
    for path, place in places.items():
        if place == "__init__":
            continue
        below = {name for name in imported(path) if ORDER.index(name) >= ORDER.index(place) and name != place}
        assert not below, f"{path.name} imports {below}"


def test_reports_know_nothing_of_training() -> None:
    for path in (PACKAGE / "report").glob("*.py"):
        assert imported(path) <= {"report", "record", "errors"}, path


def test_hydra_is_known_to_two_files_only() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"^(import|from) hydra", path.read_text(), re.M)}
    assert users == {"config.py", "__main__.py"}


def test_no_file_and_no_function_is_long() -> None:
    assert not {str(path): n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 200}
    functions = [
        (path.name, node.name, node.end_lineno - node.body[0].lineno)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    ]
    assert not [function for function in functions if function[2] > 60]  # docstring included


@pytest.mark.parametrize(("group", "name"), YAMLS)
def test_a_yaml_holds_what_its_function_takes(group: str, name: str) -> None:
    options = options_in(Path(CONF, group, f"{name}.yaml"))
    assert options["name"] == name
    function = component.__globals__["_module"](group, options.get("module", name))
    names = {key for offered in GROUPS[group][1] for key in _keywords(getattr(function, offered, None))}
    assert set(options) - set(ABOUT) == names


def _keywords(function: Callable[..., object] | None) -> set[str]:
    return set() if function is None else set(options_of(function))


def test_the_settings_of_config_yaml_are_those_of_the_schema() -> None:
    config = OmegaConf.load(Path(CONF, "config.yaml"))
    assert set(config) - {"defaults", "hydra"} == set(Settings.model_fields)  # type: ignore[call-overload]


@pytest.mark.parametrize("arguments", [["--help"], ["method=fsh"], ["method.smaples=3"]])
def test_help_and_typos_answer_at_once_without_torch(arguments: list[str]) -> None:
    """Under a second on a free machine; the best of three, as others may be at work beside us."""
    code = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules))\n"
    code += "from fishexp.__main__ import main; sys.exit(main())"
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        best = min(best, time.perf_counter() - start)
        assert done.stdout.endswith("False\n"), done
    assert best < 1


def test_import_is_light_until_a_name_is_used() -> None:
    code = "import fishexp, sys; assert 'torch' not in sys.modules; fishexp.top_k; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'topk'"):
        fishexp.topk  # noqa: B018
