"""Tables of records for other programs: CSV with every number in a cell of its own, and LaTeX with booktabs."""

import csv
import io
import re
from collections.abc import Mapping, Sequence

from fishexp.report.group import Group
from fishexp.report.pool import Pool, differing
from fishexp.report.scores import scores_of

# characters that mean something to LaTeX, and those that its usual fonts lack -> how they are written
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "–": "--", "…": r"\dots{}", "†": r"\dag{}",
    "‡": r"\ddag{}", "\n": " ", "\t": " ",
}  # fmt: skip

# how a formula of a spreadsheet begins; a number with a sign is none
_FORMULA = re.compile(r"[=+@-](?![\d.]+(e[+-]?\d+)?$)")


def csv_text(pooled: Pool) -> str:
    """Write a row for each group: mean, spread and n of every metric as they are, settings, runs and commits."""
    groups = pooled.reported + pooled.held_out
    keys = differing(groups)
    metrics = dict.fromkeys(metric for group in groups for metric in group.metrics)
    rows = [_csv_row(group, list(metrics), keys) for group in groups]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _csv_row(group: Group, metrics: Sequence[str], keys: Sequence[str]) -> dict[str, object]:
    row: dict[str, object] = {
        "data set": group.data,
        "model": group.model,
        "method": group.label,
        "keep": group.keep,
        "lr": group.lr,
        "examples": "held out" if group.held_out else "reported",
        "n": len(group.runs),
    }
    for metric in metrics:
        scores = group.scores(metric) if metric in group.metrics else None
        header = scores_of(metric, group.runs).header
        row |= {f"{header}: mean": scores and scores.mean, f"{header}: std": scores and scores.std}
    row |= {key: group.setting(key) for key in keys}
    row |= {"weights moved": group.share and round(group.share * group.runs[0]["total"]), "seconds": group.seconds}
    row["runs"] = " ".join(run["run_id"] for run in group.runs)
    row["commits"] = " ".join(dict.fromkeys(str(run["commit"]) for run in group.runs if run.get("commit")))
    return {header: _inert(cell) for header, cell in row.items()}


def _inert(cell: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def latex_table(columns: Mapping[str, Sequence[str]], left: Sequence[str]) -> str:
    """Write columns as a LaTeX table, which needs the package booktabs.

    Args:
        columns: Header -> cells of each column, as many in all, as they stand in Markdown.
        left: Headers of the columns that are aligned left; the others are aligned right.
    """
    align = "".join("l" if header in left else "r" for header in columns)
    rows = [" & ".join(map(latex, row)) + r" \\" for row in zip(*columns.values(), strict=True)]
    head = " & ".join(map(latex, columns)) + r" \\"
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines)


def latex(text: str) -> str:
    """Write a text so that LaTeX shows it as it is; what is bold in Markdown is bold."""
    escaped = "".join(_LATEX.get(char, char) for char in text)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped)
