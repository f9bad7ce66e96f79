"""A Markdown table made of records: ``python -m fishexp.report.table outputs/records.jsonl``."""

import argparse
import json
import sys
from collections.abc import Sequence

from fishexp.report import command
from fishexp.report.group import Group, about_streams, seeds_text, span
from fishexp.report.pool import Pool, differing
from fishexp.system.text_table import markdown_table

# columns of words, aligned left; the others are aligned right
_LEFT = ("data set", "model", "method", "metric", "lr chosen from")
# settings beside the model's and the method's on which the best learning rate may depend
_COMPARABLE = ("data.name", "data.task", "keep", "precision", "decay", "compat", "regime.optimiser")
# mark of runs of uncommitted code
_DAGGER = "†"


def markdown(pooled: Pool) -> str:
    """Write the table of the reported runs, the table of runs on held-out examples, and what to know of them."""
    parts = []
    if pooled.reported:
        parts.append(markdown_table(reported_columns(pooled), left=_LEFT))
    if pooled.held_out:
        parts += [
            "**Chosen on held-out training examples** (the best learning rate in bold)",
            markdown_table(held_out_columns(pooled), left=_LEFT),
        ]
    if dirty := [run_id for group in pooled.reported + pooled.held_out for run_id in group.uncommitted]:
        parts.append(f"{_DAGGER} with uncommitted code: {', '.join(dirty)}")
    parts += about_streams(pooled.reported + pooled.held_out)
    if pooled.unfinished:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(pooled.unfinished.items()))
        parts.append(f"Not shown, because they did not finish: {counts}.")
    return "\n\n".join(parts)


def reported_columns(pooled: Pool) -> dict[str, list[str]]:
    """Make the columns of the reported runs, header -> cells; they tell how a learning rate was chosen, if any was."""
    groups = pooled.reported
    columns = _columns(groups, [_number(group.lr) for group in groups])
    if pooled.held_out:
        columns["lr chosen from"] = [_chosen_from(group, pooled.held_out) for group in groups]
    return columns


def held_out_columns(pooled: Pool) -> dict[str, list[str]]:
    """Make the columns of runs on held-out examples: header -> cells, the best learning rate of a family in bold."""
    groups = pooled.held_out
    best = {id(group) for family in _families(groups) for group in _best(family)}
    columns = _columns(groups, [_bold(group) if id(group) in best else _number(group.lr) for group in groups])
    columns["held-out examples"] = [f"{group.held_out:,}" for group in groups]
    return columns


def _columns(groups: Sequence[Group], rates: list[str]) -> dict[str, list[str]]:
    """Make the columns that both tables have; ``rates`` are the cells of the learning rates."""
    headers = [group.header for group in groups]
    columns = {
        "data set": [group.data for group in groups],
        "model": [group.model for group in groups],
        "method": [group.method for group in groups],
        "keep": [_number(group.keep) for group in groups],
        "weights moved": [span(group.kept) for group in groups],
    }
    scores = [group.score + (f" {_DAGGER}" if group.uncommitted else "") for group in groups]
    columns |= {headers[0]: scores} if len(set(headers)) == 1 else {"metric": headers, "score": scores}
    columns |= {
        "seeds": [str(len(group.runs)) for group in groups],
        "seconds": [f"{group.seconds:,.{1 if group.seconds < 100 else 0}f}" for group in groups],
        "lr": rates,
    }
    always = ["decay"] if any(group.setting("decay") == "all" for group in groups) else []
    return columns | {key: [group.setting(key) for group in groups] for key in [*differing(groups), *always]}


def _chosen_from(row: Group, held_out: Sequence[Group]) -> str:
    """Write the learning rates that were tried on held-out examples for the question of ``row``, the best in bold."""
    families = _families([group for group in held_out if _question(group) == _question(row)])
    return "; ".join(_candidates(family, row) for family in families) or "not tuned"


def _candidates(family: Sequence[Group], row: Group) -> str:
    """Write the learning rates of a family, on what they were compared, and if ``row`` did not run at the best."""
    best = _best(family)
    rates = ", ".join(_bold(group) if group in best else _number(group.lr) for group in family)
    seeds = seeds_text(family)
    other = "" if row.lr in [group.lr for group in best] else f", but this row ran at {_number(row.lr)}"
    return f"{rates} (on {family[0].held_out:,} held-out examples, {seeds}){other}"


def _question(group: Group) -> dict[str, object]:
    """Return the settings for which a learning rate is chosen, without epochs and limits: choosing may be cheaper."""
    return {
        key: value
        for key, value in group.settings.items()
        if key in _COMPARABLE or key.startswith(("model.", "method."))
    }


def _families(groups: Sequence[Group]) -> list[list[Group]]:
    """Split groups into families that differ in the learning rate only."""
    families: dict[str, list[Group]] = {}
    for group in groups:
        rest = {key: value for key, value in group.settings.items() if key != "regime.lr"}
        families.setdefault(json.dumps([group.metric, rest], sort_keys=True), []).append(group)
    return list(families.values())


def _best(family: Sequence[Group]) -> list[Group]:
    """Return the groups of the highest mean; none if all means are undefined."""
    highest = max((group.mean for group in family if group.mean is not None), default=None)
    return [group for group in family if highest is not None and group.mean == highest]


def _bold(group: Group) -> str:
    return f"**{_number(group.lr)}**"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the files named on the command line; return 2 if there is none to print."""
    parser = argparse.ArgumentParser(
        prog="python -m fishexp.report.table", description="Make a Markdown table of records."
    )
    return command.run(parser, arguments, lambda pooled, _: print(markdown(pooled)))


if __name__ == "__main__":
    sys.exit(main())
