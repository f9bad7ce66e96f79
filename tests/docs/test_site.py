"""The pages that are made of the package are complete; where Sphinx is installed, the site builds without a warning."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fishexp.run.settings import ABOUT, GROUPS
from fishexp.run.yamls import CONF, options_in
from tests.support.snippets import ROOT

DOCS = ROOT / "docs"
PUBLIC = ("fishexp", "fishexp.masks", "fishexp.fisher", "fishexp.sparse", "fishexp.delta", "fishexp.hf")


@pytest.fixture(scope="module")
def generated() -> object:
    """Import docs/generated.py, as docs/conf.py does."""
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("generated")
    finally:
        sys.path.remove(str(DOCS))
        del sys.modules["generated"]


@pytest.mark.parametrize("module", PUBLIC)
def test_the_reference_has_every_public_name_once(module: str) -> None:
    found = re.findall(r"^\.\. auto\w+:: (\S+)$", (DOCS / "reference.md").read_text(), re.M)
    assert len(found) == len(set(found))
    objects = [_named(name) for name in found]
    for name in importlib.import_module(module).__all__:
        assert objects.count(_named(f"{module}.{name}")) == 1, f"{module}.{name}"


def _named(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_the_configuration_has_every_component_and_key_with_its_comment(generated: object) -> None:
    text = generated.configuration()  # type: ignore[attr-defined]
    for group in GROUPS:
        for file in Path(CONF, group).glob("*.yaml"):
            _, _, part = text.partition(f"### {group}={file.stem}\n")
            part = part.partition("\n##")[0]
            for key in options_in(file).keys() - set(ABOUT):
                assert f"`{group}.{key}=" in part, f"{group}={file.stem} {key}"
    assert "`snapshot_keep=2`\n: how many of them stay on disk\n" in text
    assert "training examples to estimate it from" in text
    assert r"true\_label \| expected" in text


def test_the_commands_are_those_that_there_are(generated: object) -> None:
    text = generated.commands()  # type: ignore[attr-defined]
    for command in ("python -m fishexp", "python -m fishexp.delta merge", "python -m fishexp.report.table"):
        assert f"## {command}\n\n```text\n" in text
    assert "--keep-heads" in text
    parsers = {module for module in (ROOT / "fishexp").rglob("*.py") if "ArgumentParser(" in module.read_text()}
    names = {module.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for module in parsers}
    assert names == {f"fishexp.{name}" for name in ("__main__", *generated.COMMANDS)}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "sphinx", "-qW", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "reference.html").read_text()
    assert 'id="fishexp.delta.Stack.using"' in page
    assert "training examples to estimate it from" in (tmp_path / "configuration.html").read_text()
