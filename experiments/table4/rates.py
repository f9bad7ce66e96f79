"""Which learning rates were tried, and which taken."""

from collections.abc import Mapping, Sequence

from experiments.table4.cells import Cell, Result, Section
from experiments.table4.findings import MISSING, NAMES, SCHEDULES, brief, sentence
from fishexp.report.table import aligned


def chosen_on(one: Section) -> str:
    """The images that decide, and how long the runs were."""
    if one.chosen is None:
        return "the authors' logs"
    data, regime = one.chosen["data"], one.chosen["regime"]
    return f"{data['holdout']:,} held-out training images, {regime['epochs']} epochs, seed 0"


def paragraphs(one: Section) -> list[str]:
    """The learning rates tried and the one taken."""
    if one.chosen is None:
        return [
            "Learning rates are the best of the authors' logs, which they found with every weight decaying: "
            f"nobody tuned the others. {_shared(one.results)}".rstrip()
        ]
    sources = {result.source: result for result in one.results}
    columns = {
        "method": [cell.method for cell in sources],
        "keep": [f"{cell.keep:g}" for cell in sources],
        "mask": [SCHEDULES[cell.schedule] if cell.method != "full" else "" for cell in sources],
    }
    if len(one.profile.variants) > 1:
        columns["weights outside the mask"] = [brief(cell.variant) for cell in sources]
    for lr in sorted(one.profile.rates):
        columns[f"{lr:g}"] = [_tried(result, lr) for result in sources.values()]
    words = f"Accuracy in % on {chosen_on(one)}; the rate taken is in bold, of equals the smallest."
    return [
        "### Learning rates",
        " ".join(filter(None, [words, _shared(one.results), _edges(one, sources)])),
        aligned(columns, left=("method", "mask", "weights outside the mask")),
    ]


def _tried(result: Result, lr: float) -> str:
    if lr not in result.tried:
        return MISSING
    group = result.tried[lr]
    text = group.score if group else "failed"
    return f"**{text}**" if lr == result.lr else text


def _shared(results: Sequence[Result]) -> str:
    """Which cells take the rate of others."""
    keeps = {result.cell.keep: result.source.keep for result in results if result.cell.keep != result.source.keep}
    texts = [f"keep {keep:g} takes the rate of {other:g}" for keep, other in keeps.items()]
    if any(result.cell.schedule != result.source.schedule for result in results):
        texts.append("every cell with a new mask every epoch takes that of the fixed mask")
    return sentence("; ".join(texts)) if texts else ""


def _edges(one: Section, sources: Mapping[Cell, Result]) -> str:
    """Where a better rate may lie beyond those tried."""
    ends = {min(one.profile.rates): "smallest", max(one.profile.rates): "largest"}
    found = [
        f"{NAMES[cell.method]}{f' at {cell.keep:g}' if cell.method != 'full' else ''} ({ends[result.lr]})"
        for cell, result in sources.items()
        if result.lr in ends
    ]
    return f"At the edge of those tried, so that a better one may lie beyond: {', '.join(found)}." if found else ""
