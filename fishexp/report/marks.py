"""Signs behind a score, and the footnotes that explain them."""

from collections.abc import Sequence

from fishexp.report.group import Group

# of runs of uncommitted code
DAGGER = "†"
# of runs that predicted a single class for all examples
ONE_CLASS = "‡"


def marked_score(group: Group, metric: str) -> str:
    """Write mean and standard deviation of a metric with the signs of its runs: ``70.0 ± 0.0 ‡``.

    Where only some of the runs predicted a single class, their number follows: ``71.2 ± 1.3 ‡ (1 of 3)``.
    """
    scores = group.scores(metric)
    signs = [f"{ONE_CLASS}{_part(scores.one_class, len(group.runs))}"] if scores.one_class else []
    signs += [DAGGER] if group.uncommitted else []
    return " ".join([scores.text, *signs])


def footnotes(groups: Sequence[Group]) -> list[str]:
    """Explain the signs that ``marked_score`` gives to any of the groups; none for groups without."""
    notes = []
    if marked := [group for group in groups if any(group.scores(metric).one_class for metric in group.metrics)]:
        majorities = {group.data: group.headline.majority for group in marked}
        shares = [f"{share:.1f} % of {data}" for data, share in majorities.items() if share is not None]
        text = "predicted the same class for all examples (of a row's runs all, or as many as it says)"
        notes.append(f"{ONE_CLASS} {text}; the largest class is {', '.join(shares) or 'unknown'}")
    if dirty := [run_id for group in groups for run_id in group.uncommitted]:
        notes.append(f"{DAGGER} with uncommitted code: {', '.join(dirty)}")
    return notes


def _part(count: int, all_of: int) -> str:
    return "" if count == all_of else f" ({count} of {all_of})"
