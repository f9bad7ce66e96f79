"""Pages that are made of the package itself whenever the documents are built, so that they cannot fall behind it."""

import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fishexp.run.help import first_comment, keys_of
from fishexp.run.settings import ABOUT, GROUPS
from fishexp.run.yamls import CONF

# modules whose `main` prints its options
COMMANDS = ("runs.__main__", "predict", "tune", "delta.__main__", "report.table", "report.plot", "report.page.__main__")
WIDTH = "88"  # characters of a line of theirs
# the commands that a command has, as the list of its arguments names them
_PARTS = re.compile(r"^  (\w+(?: \| \w+)+)$", re.M)


def fill(app: Any, document: str, source: list[str]) -> None:
    """Put what is made in the place of its mark in a page, for Sphinx's event ``source-read``."""
    for mark, write in MARKS.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, write())


def configuration() -> str:
    """Write all of conf/ in Markdown: the components of each group, and the keys of each with defaults and comments."""
    lines: list[str] = []
    for group in GROUPS:
        lines += [f"## {group}", ""]
        for file in sorted(Path(CONF, group).glob("*.yaml")):
            lines += [f"### {group}={file.stem}", "", _sentence(first_comment(file)), ""]
            lines += _keys(f"{group}.", {key: text for key, text in keys_of(file).items() if key not in ABOUT})
    settings = keys_of(Path(CONF, "config.yaml"))
    lines += ["## Settings of any run", ""]
    lines += _keys("", {key: text for key, text in settings.items() if key not in ("defaults", "hydra")})
    lines += ["## recipes.yaml", "", "```yaml", Path(CONF, "recipes.yaml").read_text().rstrip(), "```"]
    return "\n".join(lines)


def _keys(prefix: str, keys: dict[str, tuple[str, str]]) -> list[str]:
    """Write a definition list of keys, with value and comment of each."""
    lines = []
    for key, (value, comment) in keys.items():
        if key != "defaults":
            lines += [f"`{prefix}{key}={value}`", f": {_sentence(comment) or 'see above.'}", ""]
    return lines


def _sentence(comment: str) -> str:
    """Write a comment as Markdown that shows it as it is."""
    for special in "\\`*_<>[]$|~":
        comment = comment.replace(special, f"\\{special}")
    return comment


def commands() -> str:
    """Write in Markdown what ``python -m fishexp --help`` and the other command lines print."""
    page = _printed("fishexp.__main__", ["--help"]).split("\n\n")
    others = [part for part in page if not part.startswith((*(f"{group}=" for group in GROUPS), "settings of"))]
    printed = {"python -m fishexp": "\n\n".join(others)}  # without what configuration() shows
    for module in COMMANDS:
        command = f"python -m fishexp.{module.removesuffix('.__main__')}"
        printed[command] = _printed(f"fishexp.{module}", ["--help"])
        if parts := _PARTS.search(printed[command]):
            for name in parts[1].split(" | "):
                printed[f"{command} {name}"] = _printed(f"fishexp.{module}", [name, "--help"])
    return "\n".join(f"## {command}\n\n```text\n{text.rstrip()}\n```\n" for command, text in printed.items())


def _printed(module: str, arguments: list[str]) -> str:
    """Return what a command prints, at a width that is the same everywhere."""
    out, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            importlib.import_module(module).main(arguments)
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return out.getvalue()


# what stands in a page -> what writes the text in its place
MARKS: dict[str, Callable[[], str]] = {"<!-- made of conf/ -->": configuration, "<!-- made of --help -->": commands}
