"""Where masks put their budget: which share of the kept weights is in each kind of weight and in each layer."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from fishexp.report.group import Group
from fishexp.report.page.comparison import Line
from fishexp.report.page.markup import Markup, tag

# what the name of a tensor has in it -> its kind; the first that fits
_KINDS = (
    (r"^(classifier|fc|linear|score)\.", "classifier"),
    (r"(^|\.)bias$", "biases"),
    (r"norm|(^|\.)bn\d*\.", "normalisation"),
    (r"embeddings?\.", "embeddings"),
    (r"pooler\.", "pooler"),
    (r"\.(query|q_proj|q_lin)\.", "query"),
    (r"\.(key|k_proj|k_lin)\.", "key"),
    (r"\.(value|v_proj|v_lin)\.", "value"),
    (r"attention\.", "attention output"),
    (r"\.(intermediate|output|ffn|mlp)\.", "feed-forward"),
)
# kinds in the order of the table; others follow
_ORDER = (
    "embeddings", "query", "key", "value", "attention output", "feed-forward", "convolutions", "normalisation",
    "biases", "pooler", "classifier",
)  # fmt: skip
# dimensions of a convolution's weight, and of a vector
_CONVOLUTION, _VECTOR = 4, 1
# columns of a table at most, so that names of elsewhere make no more; the last then stands for all others
_MOST = 60


def kind_of(name: str, dimensions: int) -> str:
    """Tell the kind of a weight by its name, and by the dimensions of its tensor where the name does not."""
    for pattern, kind in _KINDS:
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return {_CONVOLUTION: "convolutions", _VECTOR: "normalisation"}.get(dimensions, "other matrices")


def layer_of(name: str, dimensions: int) -> str:
    """Tell the layer of a weight: what its name has up to its first number, ``layer 3``, else its first word."""
    if kind_of(name, dimensions) == "classifier":
        return "classifier"
    words = name.split(".")
    for before, word in pairwise(words):
        if word.isdecimal() and before in ("layer", "layers", "h", "block", "blocks"):
            return f"layer {int(word)}"
    first = next((word for word in words[:-1] if word not in ("bert", "model", "encoder", "roberta")), words[0])
    return re.sub(r"(?<=[a-z])(?=\d)", " ", first)


def draw_budget(lines: Sequence[Line]) -> Markup | None:
    """Write two tables, by kind of weight and by layer, shaded by the shares in them; None if no record tells."""
    rows = [(line, group) for line in lines for group in line.groups if any(True for _ in _kept(group.runs))]
    if not rows:
        return None
    tables = [
        _table("kind of weight", rows, lambda name, kept: kind_of(name, len(kept) - 1)),
        _table("layer", rows, lambda name, kept: layer_of(name, len(kept) - 1)),
    ]
    note = "Share of the kept weights, in percent, over all seeds; the stronger the shade, the more."
    return tag("figure", tag("figcaption", "Where the masks put their budget"), tables, tag("p", note, class_="note"))


def _table(what: str, rows: Sequence[tuple[Line, Group]], place: Callable[[str, Sequence[int]], str]) -> Markup:
    names, shares = _gathered([_shares(group, place) for _, group in rows])
    most = max((value for share in shares for value in share.values()), default=1.0)
    head = [tag("th", f"by {what}", scope="col"), *(tag("th", name, scope="col") for name in names)]
    body = []
    for (line, group), share in zip(rows, shares, strict=True):
        cells = [_cell(share.get(name, 0.0), most) for name in names]
        body.append(tag("tr", tag("th", line.name_of(group), scope="row"), cells, data_line=line.key))
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", body), class_="heat")
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"Budget by {what}")


def _gathered(shares: Sequence[Mapping[str, float]]) -> tuple[list[str], Sequence[Mapping[str, float]]]:
    """Return the places in order, and the shares in them: of too many, the smallest make one that stands last."""
    names = sorted({name for share in shares for name in share}, key=_rank)
    if len(names) <= _MOST:
        return names, shares
    largest = {name: max(share.get(name, 0.0) for share in shares) for name in names}
    small = set(sorted(names, key=largest.__getitem__)[: len(names) - _MOST + 1])
    rest = f"{len(small)} others"
    sums = [{**share, rest: sum(share.get(name, 0.0) for name in small)} for share in shares]
    return [*(name for name in names if name not in small), rest], sums


def _cell(share: float, most: float) -> Markup:
    text = "0" if share == 0 else f"{100 * share:.1f}" if share >= 0.0005 else "<0.1"
    return tag("td", text, style=f"--part:{share / most:.2f}")


def _shares(group: Group, place: Callable[[str, Sequence[int]], str]) -> dict[str, float]:
    """Return the share of a group's kept weights in each place, over the runs that tell."""
    sums: dict[str, int] = {}
    for name, kept in _kept(group.runs):
        key = place(name, kept)
        sums[key] = sums.get(key, 0) + kept[0]
    total = sum(sums.values())
    return {key: value / total for key, value in sums.items()}


def _kept(runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[int]]]:
    """List what the records say of each tensor: its name, and [kept weights, *shape], where it is that."""
    for run in runs:
        tensors = run.get("kept_by")
        for name, kept in tensors.items() if isinstance(tensors, Mapping) else ():
            if isinstance(kept, list) and kept and all(type(n) is int and 0 < n < 10**18 for n in kept):
                yield name, kept


def _rank(name: str) -> tuple[int, int, str]:
    """Return a key that sorts kinds in the order of ``_ORDER``, and layers as they follow each other."""
    if name in _ORDER:
        number = _ORDER.index(name)
        return (0 if number == 0 else 2, number, name)
    number = re.search(r"\d+", name)
    return (1, int(number[0]) if number else -1, name)
