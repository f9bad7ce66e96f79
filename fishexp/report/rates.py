"""How learning rates were chosen: which were compared with which, and which was best."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fishexp.data.directions import less_is_better
from fishexp.report.group import Group, number, seeds_text
from fishexp.report.pool import Pool

# settings beside the model's and the method's on which the best learning rate may depend
_COMPARABLE = ("data.name", "data.task", "keep", "precision", "decay", "compat", "regime.name", "regime.optimiser")
# settings by which held-out runs are preferred where several experiments tried rates for the same question
_NEARER = ("data.train_limit", "data.max_length")


@dataclass(frozen=True)
class Passed:
    """Hold the groups at learning rates that were passed over for a better one.

    Attributes:
        held_out: Groups whose rate was not the best on held-out examples.
        reported: Groups whose rate was not the best on the reported examples themselves, for want of held-out ones.
    """

    held_out: list[Group]
    reported: list[Group]

    def __contains__(self, group: Group) -> bool:
        return any(group is passed for passed in self.held_out + self.reported)


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """Split groups into families that differ in the learning rate only."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        rest = {key: value for key, value in group.settings.items() if key != "regime.lr"}
        found.setdefault(json.dumps([group.metric, rest], sort_keys=True), []).append(group)
    return list(found.values())


def best_of(family: Sequence[Group]) -> list[Group]:
    """Return the groups of the best mean, which is the lowest of an error; none if all means are undefined."""
    best = min if less_is_better(family[0].metric, family[0].runs[0]["metrics"]) else max
    mean = best((group.mean for group in family if group.mean is not None), default=None)
    return [group for group in family if mean is not None and group.mean == mean]


def passed_over(pooled: Pool) -> Passed:
    """Find the reported groups at learning rates that were not the best of those tried.

    The held-out examples decide where rates were tried on them for the same question; elsewhere the reported ones do.
    """
    held_out, reported = [], []
    for family in families(pooled.reported):
        tried = _tried(family[0], pooled.held_out)
        chosen = {group.lr for one in tried for group in best_of(one)}
        if chosen:
            held_out += [group for group in family if group.lr not in chosen]
        elif best := best_of(family):
            reported += [group for group in family if group is not best[0]]
    return Passed(held_out, reported)


def compared_on(groups: Sequence[Group], held_out: Sequence[Group]) -> list[str]:
    """Write on what the learning rates of ``groups`` were compared: ``287 held-out examples, 3 seeds``."""
    return list(dict.fromkeys(_basis(family) for group in groups for family in _tried(group, held_out)))


def chosen_from(group: Group, held_out: Sequence[Group], *, basis: bool) -> str:
    """Write the learning rates that were tried on held-out examples for the question of ``group``, the best in bold.

    Args:
        basis: Write on what they were compared, too.
    """
    return "; ".join(_candidates(family, group, basis) for family in _tried(group, held_out)) or "not tuned"


def bold(group: Group) -> str:
    """Write the learning rate in bold."""
    return f"**{number(group.lr)}**"


def _candidates(family: Sequence[Group], group: Group, basis: bool) -> str:
    """Write the learning rates of a family, on what they were compared, and if ``group`` did not run at the best."""
    best = best_of(family)
    rates = ", ".join(bold(tried) if tried in best else number(tried.lr) for tried in family)
    other = "" if group.lr in [tried.lr for tried in best] else f", but this row ran at {number(group.lr)}"
    return f"{rates}{f' (on {_basis(family)})' if basis else ''}{other}"


def _basis(family: Sequence[Group]) -> str:
    return f"{family[0].held_out:,} held-out examples, {seeds_text(family)}"


def _tried(group: Group, held_out: Sequence[Group]) -> list[list[Group]]:
    """Return the families of held-out runs that answer the question of ``group``, of as much data where there are."""
    found = [tried for tried in held_out if _question(tried) == _question(group)]
    near = [tried for tried in found if all(tried.setting(key) == group.setting(key) for key in _NEARER)]
    return families(near or found)


def _question(group: Group) -> dict[str, object]:
    """Return the settings for which a learning rate is chosen, without epochs and limits: choosing may be cheaper."""
    return {
        key: value
        for key, value in group.settings.items()
        if key in _COMPARABLE or key.startswith(("model.", "method."))
    }
