"""The overlap of the masks of different cells: which share of the kept weights two of them have in common."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.lib.report import section_name
from experiments.lib.results import Result, Section
from experiments.lib.sentences import Cell
from experiments.lib.sweep import REPOSITORY
from fishexp.report.overlap import Masks, masks_of, overlap
from fishexp.report.run_folders import files_named
from fishexp.system.text_table import markdown_table

# where the runs of the experiment are, on the machine that made them
_OUTPUTS = REPOSITORY / "outputs" / "rules"
_ABOUT = """Weights that two masks have in common, as a share of those kept, the classifier aside; mean over seeds; –
where one of them was not at hand."""


def overlaps(section: Section[Cell], folder: Path) -> list[str]:
    """Return heading, text and table of the overlaps within a budget, of masks that are here or were measured before.

    They are kept in a file in ``folder``, as the masks themselves are not committed.
    """
    file = folder / f"{section_name(section)}-overlap.json"
    known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    measured = known | _measured(section.results)
    if not measured:
        return []
    file.write_text(json.dumps(measured, indent=1) + "\n")
    cells = [result.cell for result in section.results]
    columns = {"": [_name(cell) for cell in cells]}
    for other in cells:
        columns[_name(other)] = [_entry(measured.get(_key(cell, other))) for cell in cells]
    return ["### Overlap of masks", _ABOUT, markdown_table(columns, left=("",))]


def _measured(results: Sequence[Result[Cell]]) -> dict[str, float]:
    """Measure the overlap of each two cells of the same budget whose runs are on this machine."""
    deltas = files_named("delta.safetensors", [_OUTPUTS])
    masks = {result.cell: _masks(result, deltas) for result in results}
    found = {}
    for cell, own in masks.items():
        for other, theirs in masks.items():
            if cell.keep == other.keep and (share := overlap(own, theirs)) is not None:
                found[_key(cell, other)] = round(share, 4)
    return found


def _masks(result: Result[Cell], deltas: Mapping[str, Path]) -> Masks:
    return masks_of(result.group.runs if result.group else (), deltas)


def _key(cell: Cell, other: Cell) -> str:
    return f"{cell.keep:g}: {_name(cell)} | {_name(other)}"


def _name(cell: Cell) -> str:
    return f"{cell.samples:,} {cell.labels}"


def _entry(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
