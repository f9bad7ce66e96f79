"""The command that runs a group of runs again, from the settings in their records."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fishexp.report.group import Group
from fishexp.report.pool import IMPLIED

# groups of the configuration, in the order of a command
_GROUPS = ("data", "model", "method", "regime")
# texts that Hydra takes as they are; others are quoted
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
# words that would not be texts without quotes
_WORDS = {"null", "true", "false", "nan", "inf"}
# backslashes before a quote, also the one that ends a text: only there do they escape
_BEFORE_QUOTE = re.compile(r"(\\+)(?='|\Z)")
# what a record has of a file or a folder in place of its path: a name, if any, and a digest
_DIGEST = re.compile(r"(.*)@([0-9a-f]{12})")


@dataclass(frozen=True)
class Command:
    """Hold how a group of runs is run again.

    Attributes:
        text: What to type in a shell.
        commits: Commits of the code that ran; a + says that it was changed and not committed.
        remarks: What the command cannot say: files that have to be there, modules of the user's own.
    """

    text: str
    commits: list[str]
    remarks: list[str]


def command_of(group: Group) -> Command:
    """Write the command of all runs of a group, with every setting, whatever the defaults are by now."""
    return command_of_records(group.runs)


def command_of_records(records: Sequence[Mapping[str, Any]]) -> Command:
    """Write the command of runs that differ in nothing but the seed, whether or not they have finished."""
    run = records[0]
    remarks = _own_modules(run)
    words = []
    for key, value in _overrides(run):
        digest = _DIGEST.fullmatch(value) if isinstance(value, str) else None
        if digest:
            what = f"{digest[1]}, whose contents had" if digest[1] else "files that had"
            remarks.append(f"{key} named {what} the digest {digest[2]}; say where they are on this machine")
        else:
            words.append(f"{key}={_value(value)}")
    seeds = [str(one["config"].get("seed", 0)) for one in records]
    several = ["-m"] if len(seeds) > 1 else []
    processes = run.get("processes") or 1
    start = ["python"] if processes == 1 else ["torchrun", f"--nproc-per-node={processes}"]
    line = [*start, "-m", "fishexp", *several, *words, f"seed={','.join(seeds)}"]
    commits = dict.fromkeys(str(one["commit"]) for one in records if one.get("commit"))
    return Command(shlex.join(line), list(commits), remarks)


def _overrides(run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """List the settings of a run but the seed: components first, each with its options."""
    config = run["config"]
    for group in _GROUPS:
        options = config.get(group)
        if not isinstance(options, Mapping):  # a record from elsewhere, of which reports need no more
            continue
        name, module = options.get("name"), options.get("module")
        renamed = group == "data" and module not in (None, name) and module not in (run.get("versions") or ())
        yield group, module if renamed else name
        if renamed:
            yield "data.name", name
        for key, value in options.items():
            if key not in ("name", "module") and f"{group}.{key}" not in IMPLIED:
                yield f"{group}.{key}", value
    for key, value in config.items():
        if key not in (*_GROUPS, "seed") and not (key == "keep" and value is None):
            yield key, value


def _value(value: Any) -> str:
    """Write a value as Hydra reads it."""
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        doubled = _BEFORE_QUOTE.sub(r"\1\1", value)
        return "'" + doubled.replace("'", "\\'") + "'"
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _own_modules(run: Mapping[str, Any]) -> list[str]:
    """Say which components are modules of the user's own, whose folder the command has to name."""
    versions = run.get("versions")
    if not isinstance(versions, Mapping):
        return []
    components = [run["config"].get(group) for group in _GROUPS]
    names = [str(one.get("module") or one.get("name")) for one in components if isinstance(one, Mapping)]
    return [
        f"{name} is a module of its own (digest {versions[name]}); add --config-dir"
        for name in names
        if name in versions
    ]
