"""What a user types after the options, as Hydra's overrides of each run: short keys, percentages, ranges, sweeps."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeAlias

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from fishexp.errors import FishexpError, nearest
from fishexp.run.settings import ABOUT, GROUPS, Settings
from fishexp.run.typed import typed_values

# chooses a yaml of the user's with settings of any kind, components among them
EXPERIMENT = "experiment"
# keys beside the components
TOP = (*Settings.model_fields, *GROUPS)
_EXAMPLES = {"data": "digits", "model": "resnet8", "method": "fish", "regime": "transfer", "experiment": "NAME"}
# a character that Hydra takes for something else, or not at all, unless the value is quoted
_SPECIAL = re.compile(r"[^\w/\\+.$%*@?|:\s-]|[^\x00-\x7f]")


class Chosen(NamedTuple):
    """Hold the component that a run has for a group: the name of its yaml, and the keys in it."""

    name: str
    keys: Sequence[str]


# group -> the component that a run has for it
Components: TypeAlias = Mapping[str, Chosen]


@dataclass
class Runs:
    """Hold what a command line asks for, as Hydra's overrides.

    Attributes:
        hydra: Overrides of Hydra's own settings, which all runs share.
        overrides: Overrides of each run.
        notes: Lines that tell the user how the command was understood.
        gpus: What ``gpu=`` named; None if it was not given.
    """

    hydra: list[str] = field(default_factory=list)
    overrides: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    gpus: str | None = None


def runs_of(
    typed: Sequence[str],
    multirun: bool,
    loader: ConfigLoader,
    components: Callable[[tuple[str, ...]], Components],
    homes: Callable[[str], Sequence[str]],
) -> Runs:
    """Turn what was typed into the overrides of each run.

    A key that is none of the top level and that one of the run's components has stands for ``group.key``. In a sweep, a
    key that only some of the swept components have applies to those.

    Args:
        typed: Arguments of the form ``key=value``.
        multirun: Several values of a key mean several runs.
        loader: Lists the options of a group, for ``glob(...)``.
        components: Finds the components of a run from overrides such as ``("data=glue",)``.
        homes: Lists the options, such as ``method=fish``, that have a key.

    Raises:
        FishexpError: If an argument cannot be read, or a key is unknown.
    """
    rest, gpus = _without_gpus(typed)
    parser = OverridesParser.create(loader)
    parsed = [_expanded(_parse(text, parser)) for text in rest]
    for override in parsed:
        _check_form(override, multirun, loader)
    runs = Runs([str(o.input_line) for o in parsed if o.is_hydra_override()], gpus=gpus)
    own = [override for override in parsed if not override.is_hydra_override()]
    if multirun:
        combinations = BasicSweeper.split_arguments(own, max_batch_size=None)[0]
    else:
        combinations = [[str(override.input_line) for override in own]]
    _assign(runs, combinations, components, homes)
    return runs


def _parse(text: str, parser: OverridesParser) -> Override:
    if not text.partition("=")[0].strip("~+ "):
        raise FishexpError(f"{text} is not key=value: the key is missing")
    try:
        return parser.parse_overrides([text])[0]
    except HydraException:
        raise FishexpError(_why_unreadable(text)) from None


def _why_unreadable(text: str) -> str:
    """Say what is wrong with an argument that Hydra cannot read, and what to type."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[~+]*[\w./@$-]+", key):
        return f"{text} is not key=value; no space stands around the =, --help shows the keys"
    if re.search(r"\s[\w.]+=", value):
        return f"{text}: these are several settings in one argument; no quotes stand around them"
    if value.startswith("~"):
        return f"{text}: your shell left the ~ as it is; write {key}=$HOME{value[1:]}"
    special = _SPECIAL.search(value)
    what = f"a value with {special[0]}" if special else "such a value"
    return f"{text}: {what} is to be quoted: {quoted(key, value)}"


def quoted(key: str, value: str) -> str:
    """Write ``key=value`` for a shell, such that Hydra takes the value as a text."""
    return shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")


def _without_gpus(typed: Sequence[str]) -> tuple[list[str], str | None]:
    """Take ``gpu=0`` or ``gpu=0,1`` out of what was typed, and put ``device=cuda`` in."""
    gpus = [text for text in typed if text.partition("=")[0] == "gpu"]
    if not gpus:
        return list(typed), None
    if not re.fullmatch(r"gpu=\d+(,\d+)*", gpus[-1]):
        raise FishexpError(f"{gpus[-1]}: gpu takes numbers, as nvidia-smi shows them: gpu=0, gpu=0,1; or device=cpu")
    if device := [text for text in typed if text.partition("=")[0] == "device"]:
        raise FishexpError(f"{gpus[-1]} stands for device=cuda on that GPU; leave {device[-1]} away, or gpu=")
    return [*(text for text in typed if text not in gpus), "device=cuda"], gpus[-1].removeprefix("gpu=")


def _expanded(override: Override) -> Override:
    """Replace percentages in the values of ``keep``, and ranges such as 1-5 in those of ``seed``."""
    value = override.value()
    if isinstance(value, ChoiceSweep) and not value.shuffle:
        values: list[Any] = value.list
    elif override.value_type is ValueType.ELEMENT:
        values = [value]
    else:
        return override
    if (new := [item for old in values for item in _meant(override.key_or_group, old)]) == values:
        return override
    texts = ",".join(Override._get_value_element_as_str(item) for item in new)
    expanded = OverridesParser.create().parse_override(f"{override.get_key_element()}={texts}")
    expanded.input_line = override.input_line if len(new) > 1 else expanded.input_line
    return expanded


def _meant(key: str, value: Any) -> Sequence[Any]:
    """Return the values that a value of a key stands for: itself, or what it is short for."""
    text = value.text if isinstance(value, QuotedString) else value
    meant = typed_values(key, text) if isinstance(text, str) else None
    return [value] if meant is None else meant


def _check_form(override: Override, multirun: bool, loader: ConfigLoader) -> None:
    """Refuse a sweep that is none, or that is not asked for, and what would leave the runs to Hydra."""
    text, key = str(override.input_line), override.key_or_group
    if key == "hydra.mode":
        raise FishexpError(f"{text}: write -m for a sweep, and nothing for a single run")
    if key.startswith(("hydra.sweeper", "hydra/sweeper")):
        raise FishexpError(f"{text}: a sweep is every combination of the values that the command line lists, no other")
    if override.is_delete():
        raise FishexpError(f"{text}: every key has a value; give it another, or {key}=null where its comment says so")
    if key in _EXAMPLES and isinstance(override.value(), list | dict):
        raise FishexpError(f"{text}: {key} is one name, such as {key}={_EXAMPLES[key]}")
    if not override.is_sweep_override():
        return
    if override.is_hydra_override():
        raise FishexpError(f"{text}: a sweep is over settings of runs, and hydra's own have one value")
    if override.is_interval_sweep():
        raise FishexpError(f"{text}: a sweep lists its values; write {key}=range(0,5) or {key}=0,1,2")
    values = list(override.sweep_string_iterator())
    if not values:
        there = f"; there are: {', '.join(loader.get_group_options(key))}" if key in GROUPS else ""
        raise FishexpError(f"{text} stands for no value at all{there}")
    if not multirun:
        texts = (
            key not in GROUPS
            and isinstance(override._value, ChoiceSweep)
            and any(isinstance(v, str) for v in override._value.list)
        )
        one = f"; if it is one value, quote it: {quoted(key, override.get_value_string())}" if texts else ""
        times = f"{len(values)} values" if len(values) > 1 else "a sweep"
        raise FishexpError(f"{text} is {times}: add -m to carry out a run for each, as in -m {text}{one}")


def _assign(
    runs: Runs,
    combinations: Sequence[Sequence[str]],
    components: Callable[[tuple[str, ...]], Components],
    homes: Callable[[str], Sequence[str]],
) -> None:
    """Give each key to the component that has it, and leave it out of runs that have none, if others have one."""
    known: dict[str, set[str]] = {}  # key -> components of runs that have it
    unknown: dict[str, Components] = {}  # key -> components of a run that does not have it
    distinct: dict[tuple[str, ...], None] = {}
    for combination in combinations:
        choices = [text for text in combination if text.partition("=")[0].lstrip("+") in (*GROUPS, EXPERIMENT)]
        chosen = components((*runs.hydra, *choices))
        run: dict[str, str] = {}  # key -> what is given, the last if it is given twice
        for text in combination:
            key, equals, value = text.partition("=")
            name = key.lstrip("~+")
            prefix = key.removesuffix(name)
            group, full = _home(name, chosen)
            if full is None:
                unknown[name] = chosen
                continue
            if group is not None:
                known.setdefault(name, set()).add(f"{group}={chosen[group].name}")
            run[f"{prefix}{full}"] = f"{prefix}{full}{equals}{value}"
        distinct[tuple(run.values())] = None
    for name, chosen in unknown.items():
        if name not in known:
            raise FishexpError(f"unknown key {name}{_hint(name, chosen, homes)}")
        runs.notes.append(f"{name} applies to {', '.join(sorted(known[name]))} only")
    runs.overrides = [list(run) for run in distinct]


def _home(name: str, chosen: Components) -> tuple[str | None, str | None]:
    """Find the component that has a key.

    Returns:
        Its group and the full key; no group for a key that is no component's, no key either if there is none such.
    """
    first, _, rest = name.partition(".")
    if first in GROUPS and rest:
        return (first, name) if rest.partition(".")[0] in chosen[first].keys else (None, None)
    if first in (*TOP, EXPERIMENT, "hydra", "recipes") or "/" in name or "@" in name:
        return None, name
    owners = [group for group in GROUPS if name in chosen[group].keys and name not in ABOUT]
    if len(owners) > 1:
        full = " or ".join(f"{group}.{name}=" for group in owners)
        raise FishexpError(f"{name} is a key of {' and of '.join(owners)}; write {full}")
    return (owners[0], f"{owners[0]}.{name}") if owners else (None, None)


def _hint(name: str, chosen: Components, homes: Callable[[str], Sequence[str]]) -> str:
    """Write the end of a message about an unknown key: where it is known, or the key that resembles it."""
    group, _, key = name.rpartition(".")
    keys = {group: [key for key in chosen[group].keys if key not in ABOUT] for group in GROUPS}
    if owners := [owner for owner in GROUPS if group and key in keys[owner]]:
        return f"; did you mean {owners[0]}.{key}?"
    known = [] if key in ABOUT else homes(key)
    there = [home for home in known if group not in GROUPS or home.startswith(f"{group}=")]
    if there:
        groups = dict.fromkeys(home.partition("=")[0] for home in there)
        present = " and ".join(f"{group}={chosen[group].name}" for group in groups)
        others = " and ".join(filter(None, [", ".join(there[:-1]), there[-1]]))
        return f": {present} does not have it, but {others}"
    if group in GROUPS:
        own = [f"{group}.{key}" for key in keys[group]]
        return nearest(name, own) if own else f"; {group}={chosen[group].name} has no keys"
    close = get_close_matches(key.lower(), [*TOP, *(key for group in GROUPS for key in keys[group])], n=1)
    return f"; {f'did you mean {close[0]}? ' if close else ''}--help shows all"
