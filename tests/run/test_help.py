"""The pages that say what there is: --help, --version, --cfg."""

import re
from pathlib import Path

import pytest
import yaml

import fishexp as package
from fishexp.run.help import help_page
from fishexp.run.settings import ABOUT, GROUPS, Settings
from fishexp.run.yamls import CONF, options_in
from tests.support.cli import fishexp


def blocks(group: str) -> dict[str, list[str]]:
    """Return component -> keys that the page has below its name."""
    page = fishexp("--help").out
    section = page.partition(f"\n{group}= ")[2].partition("\n\n")[0]
    keys: dict[str, list[str]] = {}
    for owners, lines in re.findall(r"^  of (.*):\n((?:    .*\n?)*)", section, re.MULTILINE):
        for owner in owners.split(", "):
            keys.setdefault(owner, []).extend(re.findall(rf"^    {group}\.(\w+)=", lines, re.MULTILINE))
    return keys


@pytest.mark.parametrize("group", GROUPS)
def test_help_has_each_key_once_below_the_names_of_its_components(group: str) -> None:
    found = blocks(group)
    for file in Path(CONF, group).glob("*.yaml"):
        assert sorted(found.get(file.stem, [])) == sorted(key for key in options_in(file) if key not in ABOUT)


def test_help_says_what_each_component_and_setting_is() -> None:
    page = fishexp("--help").out
    for group in GROUPS:
        for file in Path(CONF, group).glob("*.yaml"):
            assert re.search(rf"^  {file.stem} +\S", page, re.MULTILINE), file
    for key in Settings.model_fields:
        assert re.search(rf"^    {key}=\S+ +\S", page, re.MULTILINE), key
    assert "${" not in page


def test_on_a_terminal_comments_go_on_below_themselves() -> None:
    whole, narrow = help_page([Path(CONF)]), help_page([Path(CONF)], 80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.split() == whole.split()
    (line,) = re.findall(r"^    keep=.*\n(?: {40}\S.*\n)+", narrow, re.MULTILINE)
    assert line.split() == re.findall(r"^    keep=.*", whole, re.MULTILINE)[0].split()
    assert re.search(r"^method= activation .*\n        \S", narrow, re.MULTILINE)


def test_help_shows_components_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "late.yaml").write_text("name: late  # late layers first\npower: 2.0  # of the depth\n")
    page = fishexp("--config-dir", str(tmp_path), "--help").out
    assert re.search(r"^  late +late layers first$", page, re.MULTILINE)
    assert re.search(r"^  of late:\n    method.power=2.0 +of the depth$", page, re.MULTILINE)
    (tmp_path / "method" / "late.yaml").write_text("- late")
    mistake = fishexp("--config-dir", str(tmp_path), "--help").mistake()
    assert mistake == f"{tmp_path}/method/late.yaml is not a table; it holds lines such as name: fish"


def test_the_version_is_ours() -> None:
    result = fishexp("--version")
    assert result.status == 0
    assert re.fullmatch(rf"fishexp {package.__version__}( \(\w+\+?\))?, torch \S+, Python 3\S+\n", result.out)


def test_cfg_is_the_resolved_configuration_and_no_recipes() -> None:
    config = yaml.safe_load(fishexp("lr=0.3", "--cfg", "job").out)
    assert set(config) == {*GROUPS, *Settings.model_fields}
    assert (config["regime"]["lr"], config["regime"]["epochs"], config["keep"]) == (0.3, 10, 0.005)
    regime = fishexp("lr=0.3", "--cfg", "job", "--package", "regime").out
    assert yaml.safe_load(regime) == config["regime"]
    assert fishexp("--cfg", "job", "-p", "regime.lr", "-m", "lr=1,2").out == "1\n---\n2\n"
    assert set(yaml.safe_load(fishexp("--cfg", "all").out)) == {*config, "hydra"}
    assert (
        fishexp("--cfg", "job", "-p", "regim")
        .mistake()
        .startswith("--package regim: no such key; did you mean regime?")
    )


@pytest.mark.parametrize(("typed", "found"), [("method=fi", ["method=fish"]), ("regime.l", ["regime.lr="])])
def test_a_shell_completes_names_and_keys(typed: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"fishexp {typed}"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert fishexp("-sc", "query=bash").out.split() == found
