"""The look that all pictures share: text, an empty figure with its title, and files with the same bytes."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from fishexp.errors import FishexpError
from fishexp.report.group import Group, seeds_text
from fishexp.report.marks import DAGGER, ONE_CLASS

# colours of the text, of what is less important, and of the grid
_INK, QUIET, GRID = "#1F2328", "#59636E", "#E4E7EB"
_FONT = "DejaVu Sans"
# settings of matplotlib; sizes in points. Names are no formulas; a file's ids do not change from time to time; the
# letters of a PDF stay letters (42: TrueType)
STYLE = {
    "font.family": _FONT,
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": QUIET,
    "text.parse_math": False,
    "svg.hashsalt": "fishexp",
    "pdf.fonttype": 42,
}
# inches, and dots per inch: made for a width of 800 pixels, sharp on screens of twice that
_WIDTH, _DPI = 8, 200
# characters in a line of text below the title, and in a name
_LINE, _NAME = 92, 40
# ending of a file -> what would make its bytes differ from time to time
_METADATA = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def canvas(height: float, groups: Sequence[Group], title: Sequence[str], marks: str) -> tuple[Figure, Axes]:
    """Make an empty white figure with its title, what the marks mean, and no frame.

    Args:
        height: Height in inches, with a single line of text below the title.
        groups: What will be drawn.
        title: Words of the title between data set and model, and the number of seeds.
        marks: Sentences on what the marks mean.
    """
    marks += f" {ONE_CLASS}: the same class for all examples." if any(g.headline.one_class for g in groups) else ""
    marks += f" {DAGGER}: uncommitted code." if any(group.uncommitted for group in groups) else ""
    lines = textwrap.wrap(marks.replace(" %", "\u00a0%"), _LINE)  # no number apart from its unit
    height += 0.2 * (len(lines) - 1)
    fig = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    words = [f"{drawable(groups[0].data)} on {drawable(groups[0].model)}", *title, seeds_text(groups)]
    fig.text(0.02, 1 - 0.15 / height, ", ".join(words), va="top", size=13.5, weight="bold")
    fig.text(0.02, 1 - 0.45 / height, "\n".join(lines), va="top", color=QUIET, linespacing=1.3)
    fig.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 1 - (0.6 + 0.2 * len(lines)) / height))
    axes = fig.add_subplot()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=QUIET)
    axes.set_axisbelow(True)
    return fig, axes


def drawable(name: str) -> str:
    """Write a name so that it can be drawn: not too long, and characters that the font lacks by their code point."""
    fonts = [get_font(findfont(FontProperties(family=_FONT, weight=weight))) for weight in ("normal", "bold")]
    short = name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
    known = [all(font.get_char_index(ord(char)) for font in fonts) for char in short]
    return "".join(char if has else f"<U+{ord(char):04X}>" for char, has in zip(short, known, strict=True))


def save(fig: Figure, path: Path) -> None:
    """Write a picture as PNG, SVG or PDF, by the file's ending; the same records give the same bytes.

    Raises:
        FishexpError: If ``path`` has another ending or cannot be written.
    """
    check_ending(path)
    try:
        with matplotlib.style.context(STYLE, after_reset=True):
            fig.savefig(path, metadata=_METADATA[path.suffix])
    except OSError as error:
        raise FishexpError(f"{path} cannot be written: {error.strerror}") from None


def check_ending(path: Path) -> None:
    """Check that a picture can be written in the format of the file's ending.

    Raises:
        FishexpError: If not; says which can.
    """
    if path.suffix not in _METADATA:
        raise FishexpError(
            f"{path}: pictures are PNG, SVG or PDF files; give a name that ends in {', '.join(_METADATA)}"
        )
