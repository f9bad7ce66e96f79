"""The house rules that a machine can check, but for who imports whom: `make check` has that, by import-linter."""

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
from omegaconf import OmegaConf

import fishexp
from fishexp.run.settings import ABOUT, BESIDE, GROUPS, Settings, component, options_of
from fishexp.run.yamls import CONF, options_in

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "fishexp"
YAMLS = sorted((group, file.stem) for group in GROUPS for file in Path(CONF, group).glob("*.yaml"))


def test_tests_mirror_the_package_and_import_no_other_test() -> None:
    for path in TESTS.rglob("*.py"):
        room = path.parent.relative_to(TESTS)
        assert (
            room.parts[:1] in {(), ("support",), ("benchmarks",), ("experiments",), ("cuda",), ("docs",)}
            or (PACKAGE / room).is_dir()
        ), path
        imported = re.findall(r"^from tests(\S*) import (.*)$|^import tests(\S*)", path.read_text(), re.M)
        assert not [line for line in imported if "test_" in "".join(line)], path


def test_hydra_is_known_to_the_command_line_only() -> None:
    users = {path for path in PACKAGE.rglob("*.py") if re.search(r"^\s*(import|from) hydra", path.read_text(), re.M)}
    assert users == {PACKAGE / "run" / "config.py", PACKAGE / "run" / "overrides.py", PACKAGE / "__main__.py"}


def test_no_file_and_no_function_is_long() -> None:
    assert not {str(path): n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 400}
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
    module = component.__globals__["_module"](group, options.get("module", name))
    names = {key for offered in GROUPS[group][1] for key in _keywords(getattr(module, offered, None))}
    names |= set(get_type_hints(getattr(module, BESIDE))) if hasattr(module, BESIDE) else set()
    assert set(options) - set(ABOUT) == names


def _keywords(function: Callable[..., object] | None) -> set[str]:
    return set() if function is None else set(options_of(function))


def test_the_settings_of_config_yaml_are_those_of_the_schema() -> None:
    config = OmegaConf.load(Path(CONF, "config.yaml"))
    assert set(config) - {"defaults", "hydra"} == set(Settings.model_fields)  # type: ignore[call-overload]


def time_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def seconds_of(code: str, *arguments: str) -> tuple[float, str]:
    """Run code in a Python of its own; the processor's time it took and what it printed."""
    start = time_of_children()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    return time_of_children() - start, done.stdout


@pytest.mark.alone
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["method=fsh"], ["method.smaples=3"], ["epoch=3"]])
def test_help_and_typos_answer_at_once_without_torch(arguments: list[str]) -> None:
    """At most three times what importing Hydra and pydantic takes, 0.4 s where an answer takes 0.9.

    The best of three, as others may be at work beside us.
    """
    code = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules))\n"
    code += "from fishexp.__main__ import main; sys.exit(main())"
    answers, imports = [], []
    for _ in range(3):
        seconds, printed = seconds_of(code, *arguments)
        assert printed.endswith("False\n"), printed
        answers.append(seconds)
        imports.append(seconds_of("import hydra.main, pydantic")[0])
    assert min(answers) < 3 * min(imports)


# what extras install
EXTRAS = (
    "annotated_types", "datasets", "huggingface_hub", "hydra", "matplotlib", "omegaconf", "peft", "pydantic", "rich",
    "scipy", "sklearn", "tensorboard", "torchvision", "transformers", "wandb",
)  # fmt: skip
ONLY_LIBRARY = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}))"  # whose import then fails


def test_the_library_needs_no_package_of_the_extras(tmp_path: Path) -> None:
    """Scores, a mask, sparse training, a delta and back, where nothing that extras install can be imported."""
    code = f"""{ONLY_LIBRARY}
import torch, fishexp
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
base = {{name: value.clone() for name, value in model.state_dict().items()}}
batches = [(torch.randn(4, 8), torch.tensor([0, 1, 0, 1]))]
mask = fishexp.top_k(fishexp.diagonal_fisher(model, batches), keep=0.3, always=["2.weight", "2.bias"])
sparse = fishexp.sparsify(model, mask)
optimiser = torch.optim.SGD(sparse.parameters(), lr=0.1)
torch.nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
optimiser.step()
sparse.delta().save("delta.safetensors")
sparse.restore()
tuned = {{name: value.clone() for name, value in model.state_dict().items()}}
model.load_state_dict(base)
fishexp.Delta.load("delta.safetensors").apply_(model)
assert all(torch.equal(value, tuned[name]) for name, value in model.state_dict().items())
assert any(not torch.equal(value, base[name]) for name, value in tuned.items())
try:
    fishexp.load_run
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"fishexp.load_run: \w+ is not installed; pip install 'fishexp\[run\]'\n", done.stdout)


def test_the_command_says_what_to_install_where_only_the_library_is() -> None:
    code = f"{ONLY_LIBRARY}\nimport runpy; runpy.run_module('fishexp', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "fishexp: hydra is not installed; pip install 'fishexp[run]'\n")


def test_import_is_light_until_a_name_is_used() -> None:
    code = "import fishexp, sys; assert 'torch' not in sys.modules; fishexp.top_k; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'topk'"):
        fishexp.topk  # noqa: B018
