"""The yamls of components: which file an option names, and the keys in it."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fishexp.errors import FishexpError
from fishexp.run.settings import GROUPS

_PACKAGE = Path(__file__).parents[1]
# in the wheel conf/ lies inside the package, in the repository beside it
CONF = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")


def check_primary(name: str, config_dir: str | None) -> None:
    """Refuse a primary configuration that is not there, or that would not be read.

    Raises:
        FishexpError: If there is no such yaml, or one of the user's that has the name of conf/'s.
    """
    own = Path(config_dir, f"{name}.yaml") if config_dir else None
    ours = Path(CONF, f"{name}.yaml").is_file()
    if own is not None and own.is_file():
        if ours:
            raise FishexpError(f"{own}: conf/ has a {name}.yaml; give yours another name, and say --config-name NAME")
        _content(own)
    elif not ours:
        raise FishexpError(f"--config-name {name}: there is no {name}.yaml in conf/, nor in a folder of --config-dir")


def check_choice(group: str, choice: str, config_dir: str | None) -> None:
    """Refuse an option whose yaml in the user's folder cannot be read, or has the name of one in conf/.

    Raises:
        FishexpError: If so.
    """
    own = Path(config_dir, group, f"{choice}.yaml") if config_dir else None
    if own is not None and own.is_file():
        if Path(CONF, group, f"{choice}.yaml").is_file():
            raise FishexpError(f"{own}: {group}={choice} is in conf/ already; give yours another name")
        if not isinstance(options_in(own).get("name"), str):
            raise FishexpError(f"{own} has no name: NAME, which says the module with its function")


def options_in(file: Path) -> dict[str, Any]:
    """Read the keys and values of a component's yaml, unresolved, and those that it takes from others of its group.

    Raises:
        FishexpError: If the file, or another that it takes, cannot be read or is not a table.
    """
    own = dict(_content_of_conf(file) if file.is_relative_to(CONF) else _content(file))
    options: dict[str, Any] = {}
    defaults = own.pop("defaults", [])
    if not isinstance(defaults, list):
        raise FishexpError(f"{file}: defaults is a list of names, such as [fish, _self_]")
    for name in defaults:
        if isinstance(name, str) and name != "_self_":
            files = file.with_name(f"{name}.yaml"), Path(CONF, file.parent.name, f"{name}.yaml")
            found = next((other for other in files if other.is_file()), None)
            if found is None:
                raise FishexpError(f"{file}: its defaults name {name}, and there is no {file.parent.name}/{name}.yaml")
            options |= options_in(found)
    return options | own


@cache
def _content_of_conf(file: Path) -> dict[str, Any]:
    """Read a yaml of conf/, which does not change while a process runs."""
    return _content(file)


def _content(file: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, OmegaConfBaseException, UnicodeDecodeError, YAMLError) as error:
        raise FishexpError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise FishexpError(f"{file} is not a table; it holds lines such as name: fish")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise FishexpError(f"{file}: the key {odd[0]} is not a word; put it in quotes")
    return {str(key): value for key, value in content.items()}


def homes_of(key: str, config_dir: str | None) -> list[str]:
    """Return the options, such as ``method=fish``, whose own yaml has a line with a key; none is parsed."""
    folders = [Path(folder, group) for folder in (CONF, config_dir) if folder for group in GROUPS]
    files = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    has = re.compile(rf"^{re.escape(key)} *:", re.MULTILINE)
    return [f"{file.parent.name}={file.stem}" for file in files if has.search(file.read_text(errors="replace"))]
