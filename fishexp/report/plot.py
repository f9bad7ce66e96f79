"""A picture made of records: ``python -m fishexp.report.plot outputs/records.jsonl -o demo.png``."""

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

# colours of Okabe and Ito or close to them, which colour-blind readers tell apart as well
COLOURS = {"fish": "#0072B2", "random": "#868B90", "magnitude": "#D98200", "bitfit": "#009E73", "full": "#24292F"}
# colours of other methods, and of a method's further series
_SPARE = ("#CC79A7", "#56B4E9", "#D55E00", "#7A5195", "#8C6D31")


def figure(pooled: Pool) -> Figure:
    """Draw the headline metric: a row for each method, or against keep where there are several.

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
    """Join groups that differ in keep only to series, in the order of the table, each with its own label and colour."""
    keys = differing(groups)
    joined = _split(groups, keys)
    if any(len({group.keep for group in same}) < len(same) for same in joined):  # two learning rates at the same keep
        keys = [*keys, "regime.lr"]
        joined = _split(groups, keys)
    colours: list[str] = []
    spare = iter(_SPARE * len(joined))
    for same in joined:
        colour = COLOURS.get(same[0].method)
        colours.append(colour if colour and colour not in colours else next(spare))
    return [
        Series(same[0].method, _detail(same[0], keys), colour, same)
        for same, colour in zip(joined, colours, strict=True)
    ]


def save(fig: Figure, path: Path) -> None:
    """Write a picture as PNG; the same records give the same bytes.

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
    """Split groups by their method and their settings of ``keys``."""
    split: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        split.setdefault((group.method, _detail(group, keys)), []).append(group)
    return list(split.values())


def _detail(group: Group, keys: Sequence[str]) -> str:
    """Write the settings of ``keys`` that ``group`` has: ``samples=64``."""
    return ", ".join(f"{key.rpartition('.')[2]}={group.setting(key)}" for key in keys if key in group.settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the records of the files named on the command line; return 2 if there is nothing to draw."""
    parser = argparse.ArgumentParser(prog="python -m fishexp.report.plot", description="Make a picture of records.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture to write, a .png")
    return command.run(parser, arguments, lambda pooled, options: save(figure(pooled), options.output))


if __name__ == "__main__":
    sys.exit(main())
