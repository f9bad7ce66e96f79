"""The README.md of an experiment: its parts, and entries of its tables."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lib.results import Result, Section
from experiments.lib.study import C
from fishexp.report.group import Group, about_streams, span
from fishexp.report.marks import footnotes, marked_score
from fishexp.report.picture import figure
from fishexp.report.pool import Pool
from fishexp.report.style import save
from fishexp.system.text_table import markdown_table

MISSING = "missing"
METHOD_NAMES = {
    "fish": "FISH", "random": "random", "magnitude": "magnitude", "bitfit": "Bit-Fit", "full": "dense training",
    "diff_pruning": "Diff Pruning", "lora": "LoRA",
}  # fmt: skip


def write_readme(
    folder: Path, intro: str, sections: Sequence[Section[C]], parts: Callable[[Section[C], Path], list[str]]
) -> None:
    """Write README.md of the sections that have results, and with which random streams; nothing where none has.

    Args:
        parts: (section, folder for its pictures) -> its paragraphs, tables and headings.
    """
    shown = [section for section in sections if any(result.group or result.tried for result in section.results)]
    if shown:
        results = [result for section in shown for result in section.results]
        groups = [group for result in results for group in (result.group, *result.tried.values()) if group]
        texts = [intro, *about_streams(groups), *(part for section in shown for part in parts(section, folder))]
        (folder / "README.md").write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def section_name(section: Section[Any]) -> str:
    """Return the name of the section's files: ``cpu``, or ``cpu-june`` where the study has a name."""
    return "-".join(filter(None, [section.profile, section.study.name]))


def picture(section: Section[Any], folder: Path, about: str) -> list[str]:
    """Draw the cells of a section that have results, and return the line that shows it; nothing of a single one.

    Args:
        about: What the picture shows, for those who do not see it.
    """
    groups = [result.group for result in section.results if result.group]
    if len(groups) < 2:
        return []
    file = f"{section_name(section)}.png"
    save(figure(Pool(groups, [], Counter())), folder / file)
    return [f"![{about}]({file})"]


def side_by_side(rows: Mapping[str, tuple[str, str]]) -> str:
    """Make the table of what was run beside the original: name of a setting -> (here, in the original)."""
    columns = {"": list(rows), "here": [ours for ours, _ in rows.values()]}
    columns["the original"] = [theirs for _, theirs in rows.values()]
    return markdown_table(columns, left=columns)


def score(result: Result[Any]) -> str:
    """Return ``57.1 ± 0.4 (5 seeds)``, or say where runs are missing or failed."""
    failed = [f"{result.failed} failed"] if result.failed else []
    if result.group is None:
        return ", ".join([MISSING, *failed])
    seeds = len(result.group.runs)
    counts = ", ".join(["one seed" if seeds == 1 else f"{seeds} seeds", *failed])
    return f"{marked_score(result.group, result.group.metric)} ({counts})"


def score_table(
    results: Sequence[Result[C]], columns: Callable[[C], Mapping[str, str]], header: str, left: Sequence[str]
) -> str:
    """Make the table with a row for each cell: which it is, its score, its learning rate, how many weights moved.

    Args:
        columns: Cell -> (header -> entry that says which cell it is).
        header: Of the scores.
        left: Headers of columns of words.
    """
    rows = [columns(result.cell) for result in results]
    table = {name: [row[name] for row in rows] for name in rows[0]} | {
        header: [score(result) for result in results],
        "lr": [rate(result) for result in results],
        "weights moved": [span(result.group.kept) if result.group else MISSING for result in results],
    }
    return markdown_table(table, left=left)


def rate(result: Result[Any]) -> str:
    """Return the learning rate of the result's runs as text."""
    return MISSING if result.lr is None else f"{result.lr:g}"


def signs(results: Sequence[Result[Any]], beside: Iterable[Group] = ()) -> list[str]:
    """Explain the signs behind the scores of a table, if it has any.

    Args:
        beside: Runs of other tables that its own are compared with.
    """
    groups = [result.group for result in results if result.group]
    for group in beside:
        if group not in groups:
            groups.append(group)
    return footnotes(groups)


def about_logs(logs: Mapping[str, Any]) -> str:
    """Say what the figures of the authors' logs are: the paragraph below a table that shows some."""
    return f"Their logs: {logs['what']} They are in [authors_logs.json](authors_logs.json)."
