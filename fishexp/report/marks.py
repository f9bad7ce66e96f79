"""Signs behind a score, and the footnotes that explain them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fishexp.report.group import Group
from fishexp.report.scores import Scores
from fishexp.run.record import same_code

# of runs of uncommitted code
DAGGER = "†"
# of runs that predicted a single class for all examples
ONE_CLASS = "‡"


def marked_score(group: Group, metric: str) -> str:
    """Write mean and standard deviation of a metric with the signs of its runs: ``70.0 ± 0.0 ‡``.

    Where only some of the runs predicted a single class, their number follows: ``71.2 ± 1.3 ‡ (1 of 3)``.
    """
    scores = group.scores(metric)
    return f"{scores.text}{signs_behind(group, scores)}"


def signs_behind(group: Group, scores: Scores) -> str:
    """Write the signs of a group's runs by their values of a metric, with a space before each; nothing for none."""
    return f"{one_class_sign(scores)}{f' {DAGGER}' if group.uncommitted else ''}"


def one_class_sign(scores: Scores) -> str:
    """Write the sign of runs that predicted a single class, with a space before it; nothing if none did."""
    if not scores.one_class:
        return ""
    some = f" ({scores.one_class} of {len(scores.values)})" if scores.one_class < len(scores.values) else ""
    return f" {ONE_CLASS}{some}"


def footnotes(groups: Sequence[Group]) -> list[str]:
    """Explain the signs that ``marked_score`` gives to any of the groups; none for groups without."""
    notes = one_class_note(groups)
    if dirty := [run_id for group in groups for run_id in group.uncommitted]:
        notes.append(f"{DAGGER} with uncommitted code: {', '.join(dirty)}")
    if code := _codes([run for group in groups for run in group.runs]):
        text = "Runs of different code stand together"
        notes.append(f"{text}: {'; '.join(code)}; resume=strict runs the older ones again")
    return notes


def one_class_note(groups: Sequence[Group]) -> list[str]:
    """Explain the sign of runs that predicted a single class; nothing if none of the groups has any."""
    if marked := [group for group in groups if any(group.scores(metric).one_class for metric in group.metrics)]:
        majorities = {group.data: group.headline.majority for group in marked}
        shares = [f"{share:.1f} % of {data}" for data, share in majorities.items() if share is not None]
        text = "predicted the same class for all examples (all of a row's runs, or as many as it says)"
        return [f"{ONE_CLASS} {text}; the largest class is {', '.join(shares) or 'unknown'}"]
    return []


def _codes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the commits and the versions of packages in which runs differ; commits of the same code are one."""
    commits: list[str] = []
    for commit in dict.fromkeys(commit.rstrip("+") for run in runs if (commit := run.get("commit"))):
        if not any(same_code(commit, other) for other in commits):
            commits.append(commit)
    found = [f"commits {', '.join(commits)}"] if len(commits) > 1 else []
    versions = [run["versions"] for run in runs if isinstance(run.get("versions"), Mapping)]
    for name in dict.fromkeys(name for packages in versions for name in packages):
        values = list(dict.fromkeys(str(packages[name]) for packages in versions if name in packages))
        if len(values) > 1:
            found.append(f"{name} {', '.join(values)}")
    return found
