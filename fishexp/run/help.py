"""The page that ``--help`` prints, made from conf/ itself."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from fishexp.run.settings import ABOUT, GROUPS
from fishexp.run.yamls import options_in

# the page before and after what is read from conf/
_HEAD = """\
fishexp trains networks by moving a small, fixed set of their weights.

  python -m fishexp                                     1,797 digits on a small ResNet, in seconds
  python -m fishexp method=fish data=cifar10 keep=0.5%  ResNet-34 on CIFAR-10
  python -m fishexp data=glue task=sst2 model=minilm    a pre-trained BERT on GLUE
  python -m fishexp -m method=fish,random seed=0-2      a sweep: one run for each combination

A key needs no group where one component of the run has it: lr=0.1 is
regime.lr=0.1. Where the default is a dot, it follows from the data set
(conf/recipes.yaml) or from what the text says.
"""
_TAIL = """\
Quote a value with = , ( [ { # ~ or letters beyond ASCII, and that for your shell: 'outputs="a=b"'.

-m, --multirun      carry out a run for each combination of values: seed=0,1,2 or seed=0-2, method=glob(*), lr=0.1,0.2;
                    a key that only some of the swept components have applies to those
--cfg job           print the configuration instead, resolved; -p regime: a part of it; with -m, of each run
--config-dir DIR    add components of your own: DIR/method/NAME.yaml, which says name: MODULE
--config-name NAME  begin with DIR/NAME.yaml: defaults: [config, _self_], then what you change
--version           versions of fishexp, torch and Python
--hydra-help        Hydra's own flags
"""
# characters before a comment: of a key, and of a component
_KEY_WIDTH, _NAME_WIDTH = 34, 16
# characters of the narrowest column of comments
_NARROWEST = 24


def help_page(folders: Sequence[Path], width: int | None = None) -> str:
    """Write the page: commands, groups with their components and the keys of each, settings with their meaning.

    Args:
        folders: The folder conf/, and the folder that ``--config-dir`` names, if any.
        width: Characters of a line, from which on it goes on below; None for lines as long as they are.

    Raises:
        FishexpError: If a yaml cannot be read.
    """
    lines = [_HEAD.rstrip()]
    for group in GROUPS:
        files = {file.stem: file for folder in folders for file in sorted((folder / group).glob("*.yaml"))}
        lines += ["", f"{group}= {' | '.join(files)}", *_components(files), *_keys(group, files)]
    settings = _commented(folders[0] / "config.yaml")
    lines += ["", "settings of any run:"]
    lines += [_line(key, *settings[key]) for key in settings if key not in ("defaults", "hydra")]
    page = "\n".join([*lines, "", _TAIL.rstrip()])
    return page if width is None else "\n".join(_wrapped(line, width) for line in page.splitlines())


def _wrapped(line: str, width: int) -> str:
    """Let a line that is too long go on below where its comment begins, or the list of a group's names."""
    parts = re.match(r" *\S+(?: \S+)*? {2,}|\w+= | *", line)
    start = len(parts[0]) if parts else 0
    if len(line) <= width:
        return line
    fits = width - start >= _NARROWEST
    below = " " * (start if fits else _KEY_WIDTH + 6)
    comment = textwrap.fill(line[start:], width, initial_indent=below, subsequent_indent=below, break_on_hyphens=False)
    return line[:start] + comment[start:] if fits else f"{line[:start].rstrip()}\n{comment}"


def _components(files: Mapping[str, Path]) -> list[str]:
    """Write a line for each component: its name, and what it is."""
    return [f"  {name:<{_NAME_WIDTH}}{first_comment(file)}".rstrip() for name, file in files.items()]


def _keys(group: str, files: Mapping[str, Path]) -> list[str]:
    """Write the keys of a group's components, each below the names of those that have it just so."""
    owners: dict[tuple[str, str, str], list[str]] = {}
    for name, file in files.items():
        values = options_in(file)
        for key, (value, comment) in keys_of(file).items():
            if key in values and key not in ABOUT:
                owners.setdefault((key, value, comment), []).append(name)
    blocks: dict[tuple[str, ...], list[str]] = {}
    for (key, value, comment), names in owners.items():
        blocks.setdefault(tuple(names), []).append(_line(f"{group}.{key}", value, comment))
    ordered = sorted(blocks, key=len, reverse=True)
    return [line for names in ordered for line in (f"  of {', '.join(names)}:", *blocks[names])]


def _line(key: str, value: str, comment: str) -> str:
    shown = "." if "${" in value else value
    return f"    {f'{key}={shown}':<{_KEY_WIDTH}}  {comment}".rstrip()


def first_comment(file: Path) -> str:
    """Return what a component's yaml says of the component: in its first line, or behind its name."""
    first = next((line for line in file.read_text().splitlines() if "#" in line), "")
    return first.partition("# ")[2] if first.startswith(("#", "name:")) else ""


def keys_of(file: Path) -> dict[str, tuple[str, str]]:
    """Return key -> value and comment, as they stand in a yaml and in those beside it which its defaults name."""
    own = _commented(file)
    beside = [
        file.with_name(f"{name.strip()}.yaml") for name in own.get("defaults", ("", ""))[0].strip("[]").split(",")
    ]
    return {key: value for other in beside if other.is_file() for key, value in keys_of(other).items()} | own


def _commented(file: Path) -> dict[str, tuple[str, str]]:
    """Return key -> value and comment, as they stand in the lines of a yaml."""
    lines = [line for line in file.read_text().splitlines() if line[:1].isalpha() and ":" in line]
    parts = [(key, *rest.partition(" #")[::2]) for key, _, rest in (line.partition(":") for line in lines)]
    return {key: (value.strip(), comment.strip()) for key, value, comment in parts}
