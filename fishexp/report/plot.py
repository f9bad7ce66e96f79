"""Records to one picture: ``python -m fishexp.report.plot outputs/records.jsonl -o demo.png``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

from fishexp.errors import FishexpError
from fishexp.report import command
from fishexp.report.group import Group
from fishexp.report.panels import STYLE, Series, draw_dots, draw_sweep
from fishexp.report.pool import Pool, differing

# Okabe and Ito's colours or close to them, which colour-blind readers tell apart as well
COLOURS = {"fish": "#0072B2", "random": "#868B90", "magnitude": "#D98200", "bitfit": "#009E73", "full": "#24292F"}
_SPARE = ("#CC79A7", "#56B4E9", "#D55E00", "#7A5195", "#8C6D31")


def figure(pooled: Pool) -> Figure:
    """The headline metric: a row for each method, or against keep where there are several.

    Raises:
        FishexpError: If the runs are not of one data set and one model on its reported examples.
    """
    groups = pooled.reported
    if not groups:
        raise FishexpError("these runs are all on held-out training examples; a plot shows the reported ones")
    kinds = sorted({f"{group.data} {group.model} {group.metric}" for group in groups})
    if len(kinds) > 1:
        raise FishexpError(f"a plot shows one data set, model and metric; these records hold {', '.join(kinds)}")
    draw = draw_sweep if len({group.keep for group in groups} - {None}) > 1 else draw_dots
    with matplotlib.style.context(STYLE, after_reset=True):
        return draw(series(groups))


def series(groups: Sequence[Group]) -> list[Series]:
    """Groups that differ in keep only, in the order of the table, each with a label and a colour of its own."""
    keys = differing(groups)
    members = _split(groups, keys)
    if any(len({group.keep for group in same}) < len(same) for same in members):  # two learning rates at one keep
        keys = [*keys, "regime.lr"]
        members = _split(groups, keys)
    taken: list[str] = []
    spare = iter(_SPARE * len(members))
    for same in members:
        own = COLOURS.get(same[0].method)
        taken.append(own if own and own not in taken else next(spare))
    return [
        Series(same[0].method, _detail(same[0], keys), colour, same)
        for same, colour in zip(members, taken, strict=True)
    ]


def save(fig: Figure, path: Path) -> None:
    """Write a PNG; the same records give the same bytes.

    Raises:
        FishexpError: If ``path`` does not end in .png or cannot be written.
    """
    if path.suffix != ".png":
        raise FishexpError(f"{path}: pictures are PNG files; give a name that ends in .png")
    try:
        fig.savefig(path, metadata={"Software": None})
    except OSError as error:
        raise FishexpError(f"{path} cannot be written: {error.strerror}") from None


def _split(groups: Sequence[Group], keys: Sequence[str]) -> list[list[Group]]:
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        found.setdefault((group.method, _detail(group, keys)), []).append(group)
    return list(found.values())


def _detail(group: Group, keys: Sequence[str]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={group.setting(key)}" for key in keys if key in group.settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the files named on the command line; 2 if there is nothing to draw."""
    parser = argparse.ArgumentParser(prog="python -m fishexp.report.plot", description="Records to one picture.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture to write, a .png")
    return command.run(parser, arguments, lambda pooled, options: save(figure(pooled), options.output))


if __name__ == "__main__":
    sys.exit(main())
