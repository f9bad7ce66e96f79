"""The groups that ``--against METHOD`` compares: each with that method in the same setting, at its chosen rate."""

from collections.abc import Sequence

from fishexp.errors import FishexpError
from fishexp.report.differences import Predicted, any_interval, difference_table
from fishexp.report.group import Group, number
from fishexp.report.pool import IMPLIED, Pool, differing
from fishexp.report.rates import passed_over
from fishexp.report.shared import shared_text

# settings in which compared groups may differ, beside those of the method
_FREE = ("keep", "regime.lr", *IMPLIED)


def differences_to(pooled: Pool, method: str, predicted: Predicted) -> str:
    """Write the differences of all reported methods to one of them, as Markdown.

    Args:
        method: As the table names it: ``fish``, or ``fish rows``.

    Raises:
        FishexpError: If there are no runs of the method, nothing to compare it with, or several kinds of it.
    """
    passed = passed_over(pooled)
    groups = [group for group in pooled.reported if group not in passed]
    ours = [group for group in groups if group.label == method]
    if not ours:
        there = ", ".join(dict.fromkeys(group.label for group in groups))
        raise FishexpError(f"--against {method}: no runs of it on reported examples, but of {there or 'none'}")
    others = [group for group in groups if group.label != method]
    pairs = pairs_with(others, ours)
    _check_single(pairs, method)
    if not pairs:
        kinds = f": they differ in {', '.join(differing(groups))}" if differing(groups) else ""
        raise FishexpError(f"--against {method}: no other method was run in a setting in which {method} was{kinds}")
    if not any_interval(pairs, predicted):
        raise FishexpError(
            f"--against {method}: no interval can be given: fewer than three seeds and no predictions on record"
        )
    parts = [shared_text([group for pair in pairs for group in pair])]
    parts += difference_table(name_columns(pairs), pairs, predicted, method)
    left = [group for group in others if all(group is not first for first, _ in pairs)]
    if left:
        names = dict.fromkeys(f"{group.label} at {number(group.keep)} on {group.data}" for group in left)
        parts.append(f"Not compared, as {method} was not run in their setting: {', '.join(names)}.")
    if passed.reported:
        parts.append("Some learning rates were chosen on the reported examples themselves: such methods look too good.")
    return "\n\n".join(parts)


def pairs_with(groups: Sequence[Group], ours: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Pair each group with those of ``ours`` in its setting and of its budget: of each budget if it has none itself."""
    return [
        (group, one)
        for group in groups
        for one in ours
        if _setting(one) == _setting(group) and (group.keep is None or one.keep in (None, group.keep))
    ]


def _check_single(pairs: Sequence[tuple[Group, Group]], method: str) -> None:
    """Refuse a group that would be compared with several kinds of ``method`` of a budget."""
    found: dict[tuple[int, float | None], list[Group]] = {}
    for group, one in pairs:
        found.setdefault((id(group), one.keep), []).append(one)
    for (_, keep), alike in found.items():
        if len(alike) > 1:
            settings = ", ".join(differing(alike)) or "regime.lr"
            raise FishexpError(
                f"--against {method}: at keep {number(keep)} there are {len(alike)} kinds of it, which differ in "
                f"{settings}; give records of one kind"
            )


def _setting(group: Group) -> dict[str, object]:
    """Return the settings that compared groups have to share."""
    return {key: value for key, value in group.settings.items() if key not in _FREE and not key.startswith("method.")}


def name_columns(pairs: Sequence[tuple[Group, Group]]) -> dict[str, list[str]]:
    """Make the columns that name the pairs; those in which all are alike are left out."""
    columns = {
        "data set": [group.data for group, _ in pairs],
        "model": [group.model for group, _ in pairs],
        "keep": [number(other.keep if group.keep is None else group.keep) for group, other in pairs],
    }
    varied = {header: cells for header, cells in columns.items() if len(set(cells)) > 1}
    firsts = [group for group, _ in pairs]
    others = {key: [group.setting(key) for group in firsts] for key in differing(firsts)}
    return varied | {"method": [group.label for group in firsts]} | others
