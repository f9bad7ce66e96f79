"""HTML and SVG whose texts are escaped, as records may come from anywhere."""

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

# elements without an end
_VOID = {"meta", "input", "br", "col"}


class Markup(str):
    """Hold text that is markup already."""

    __slots__ = ()


Child: TypeAlias = str | Markup | Iterable[str | Markup] | None


def tag(element: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Write an element; texts in it and in its attributes are escaped.

    Args:
        element: Name of the element.
        children: Texts, markup, several of either, or None for nothing.
        attributes: Those that are None or False are left out, and True stands without a value. ``_`` is written ``-``,
            and one at the end goes, as in ``class_``.
    """
    texts = []
    for name, value in attributes.items():
        if value is not None and value is not False:
            key = name.rstrip("_").replace("_", "-")
            texts.append(f" {key}" if value is True else f' {key}="{escape(_short(value))}"')
    start = f"<{element}{''.join(texts)}>"
    return Markup(start if element in _VOID else f"{start}{joined(*children)}</{element}>")


def joined(*children: Child) -> Markup:
    """Write texts, which are escaped, and markup one after the other."""
    found = []
    for child in children:
        if isinstance(child, str):
            found.append(child if isinstance(child, Markup) else escape(child))
        elif child is not None:
            found.append(joined(*child))
    return Markup("".join(found))


def _short(value: str | float) -> str:
    """Write a coordinate with a digit after the point, which is a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
