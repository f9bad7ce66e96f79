"""The colours of methods, on white and on black paper: colour-blind readers tell them apart as well."""

import zlib
from collections.abc import Iterable

# at least 20 apart in CIELAB, to red- and green-blind eyes too
COLOURS = {"fish": "#0072B2", "random": "#8F959B", "magnitude": "#D98200", "bitfit": "#00765A", "full": "#24292F"}
# colours of other methods
SPARE = ("#5C1A9E", "#56B4E9", "#703800", "#A6A66C", "#066173")
# colour -> the same on a dark page, where it is at least 3.2 times as bright; as far apart as the others
DARK = {
    "#0072B2": "#458FFB",
    "#8F959B": "#8F999B",
    "#D98200": "#C67E06",
    "#00765A": "#1AF37E",
    "#24292F": "#F1F2F4",
    "#5C1A9E": "#633AFF",
    "#56B4E9": "#0B6B9B",
    "#703800": "#985238",
    "#A6A66C": "#ECF407",
    "#066173": "#8AC7FD",
}


def colours_of(methods: Iterable[str]) -> dict[str, str]:
    """Return a colour for each method: its own in every picture, or the next where another method has that here."""
    found: dict[str, str] = {}
    for method in sorted(set(methods)):
        start = zlib.crc32(method.encode())
        spare = [SPARE[(start + step) % len(SPARE)] for step in range(len(SPARE))]
        free = [colour for colour in spare if colour not in found.values()]
        found[method] = COLOURS.get(method) or (free or spare)[0]
    return found
