"""Which groups of runs a picture may show together: those of one data set, model, length of training and examples."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from fishexp.report.colours import COLOURS, SPARE, colours_of
from fishexp.report.group import EXAMPLES, Group, number
from fishexp.report.pool import IMPLIED, Pool, details, differing
from fishexp.report.rates import best_of, families, passed_over

# settings, beside those of data and model, that groups of a comparison share
_CONDITIONS = ("regime.name", "regime.epochs", "streams")
# how many marks there are to tell series of a colour apart
MARKS = 6


@dataclass(frozen=True)
class Line:
    """Hold groups that differ in keep alone, at the best of the learning rates tried.

    Attributes:
        name: The method and what else tells it from others: ``fish, samples=64``.
        colour: Number of its colour, see :data:`PALETTE`.
        mark: Number of its mark, below ``MARKS``.
        key: Names it within the page.
        groups: By keep.
    """

    name: str
    colour: int
    mark: int
    key: str
    groups: list[Group]

    def name_of(self, group: Group) -> str:
        """Name a group of the line, with its budget if it was given one."""
        return self.name + (f" at keep {number(group.keep)}" if group.keep is not None else "")


# colours by their number
PALETTE = (*COLOURS.values(), *SPARE)


@dataclass(frozen=True)
class Comparison:
    """Hold groups that were measured alike.

    Attributes:
        letter: Names it within its data set: ``A``.
        groups: In the order of the table.
        best: Those that pictures show: of each question the learning rate that was best.
        apart: Conditions that tell it from others whose title would be the same: ``streams=1``.
    """

    letter: str
    groups: list[Group]
    best: list[Group]
    apart: str = ""

    @property
    def title(self) -> str:
        """Write model, regime and lengths: ``minilm, transfer, 2 epochs, 3,000 training examples``."""
        first = self.groups[0]
        epochs, limit = first.settings.get("regime.epochs"), first.settings.get("data.train_limit")
        training = f"{limit:,} training examples" if isinstance(limit, int) else "all training examples"
        held_out = f"measured on {first.held_out:,} held out" if first.held_out else None
        length = f"{epochs} epoch{'s' * (epochs != 1)}" if epochs else None
        parts = [first.model, first.setting("regime.name"), length, training, held_out, self.apart]
        return ", ".join(filter(None, parts))

    @property
    def lines(self) -> list[Line]:
        """Join the best groups to lines against keep, in the order of the table."""
        keys, found = differing(self.best), dict[tuple[str, str], list[Group]]()
        for group in self.best:
            name = ", ".join([group.label, *(f"{word}={value}" for word, value in details(group, keys))])
            found.setdefault((group.method, name), []).append(group)
        colours = colours_of(method for method, _ in found)
        numbers = [PALETTE.index(colours[method]) for method, _ in found]
        marks = [numbers[:index].count(number) % MARKS for index, number in enumerate(numbers)]
        return [
            Line(name, numbers[index], marks[index], f"{self.letter}{index}", groups)
            for index, ((_, name), groups) in enumerate(found.items())
        ]


@dataclass(frozen=True)
class DataSet:
    """Hold what was measured on a data set, or a task of it.

    Attributes:
        name: ``glue/rte``.
        reported: Comparisons on the reported examples.
        held_out: Comparisons on training examples that were held out, to choose learning rates.
    """

    name: str
    reported: list[Comparison]
    held_out: list[Comparison]


def data_sets(pooled: Pool) -> list[DataSet]:
    """Sort all groups into data sets and comparisons."""
    passed = passed_over(pooled)
    best = [group for group in pooled.reported if group not in passed]
    chosen = [group for family in families(pooled.held_out) for group in (best_of(family) or family)[:1]]
    found = []
    for name in dict.fromkeys(group.data for group in [*pooled.reported, *pooled.held_out]):
        reported = _comparisons([group for group in pooled.reported if group.data == name], best, 0)
        held_out = _comparisons([group for group in pooled.held_out if group.data == name], chosen, len(reported))
        found.append(DataSet(name, reported, held_out))
    return found


def row_id(group: Group) -> str:
    """Return the name within the page of the row that shows a group: a run is in a single group."""
    return f"row-{hashlib.sha256(group.runs[0]['run_id'].encode()).hexdigest()[:12]}"


def _comparisons(groups: Sequence[Group], best: Collection[Group], start: int) -> list[Comparison]:
    """Split groups into those that share their conditions; say what tells those apart whose title would be the same.

    Args:
        best: Groups that pictures show, of these and of others.
        start: Number of comparisons that have a letter already.
    """
    chosen, alike = {id(group) for group in best}, dict[str, list[Group]]()
    for group in groups:
        conditions = {key: value for key, value in group.settings.items() if _is_condition(key)}
        alike.setdefault(json.dumps([group.metric, conditions], sort_keys=True), []).append(group)
    found = [
        Comparison(_letter(start + index), same, [group for group in same if id(group) in chosen])
        for index, same in enumerate(alike.values())
    ]
    by_title: dict[str, list[Group]] = {}
    for one in found:
        by_title.setdefault(one.title, []).append(one.groups[0])
    return [replace(one, apart=_apart(one.groups[0], by_title[one.title])) for one in found]


def _apart(group: Group, alike: Sequence[Group]) -> str:
    """Write the conditions in which groups differ as one of them has them; their examples' digest if that is all."""
    keys = dict.fromkeys(key for one in alike for key in one.settings if _is_condition(key) and key not in IMPLIED)
    varied = [key for key in keys if len({one.setting(key) for one in alike}) > 1]
    known = [key for key in varied if all(key in one.settings for one in alike)]  # records of before lack some
    told = [key for key in known if key != EXAMPLES] or known or varied
    return ", ".join(f"{word}={value}" for word, value in details(group, told))


def _is_condition(key: str) -> bool:
    return key.startswith(("data.", "model.")) or key in _CONDITIONS


def _letter(number: int) -> str:
    """Name a comparison: A to Z, then AA."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)
