"""Names of tensors: which are valid, and which names of two models stand for the same tensor.

``torch.compile``, DistributedDataParallel, FSDP and checkpointing put a part of their own into the names of what they
wrap; a model inside another has the other's name before its own; and older files say ``LayerNorm.gamma`` and ``beta``.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

LONGEST = 4096  # characters of a name at most
DEEPEST = 8  # parts of a prefix of all names at most

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # parts of a name, anywhere
_AROUND = "module."  # what DistributedDataParallel puts before all names
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # ends of names, as in transformers


def is_name(name: str) -> bool:
    """Tell whether a tensor's name can be printed on a line, and written into a safetensors file."""
    return 0 < len(name) <= LONGEST and name.isprintable() and name != "__metadata__"


def plain(names: Collection[str]) -> dict[str, str]:
    """Return each name without what wrappers put into it, and with today's word for an old one.

    All stay as they are if two would become the same.
    """
    found = {name: _plain(name) for name in names}
    while found and all(name.startswith(_AROUND) for name in found.values()):
        found = {name: new.removeprefix(_AROUND) for name, new in found.items()}
    return found if len(set(found.values())) == len(found) and all(found.values()) else {name: name for name in names}


def _plain(name: str) -> str:
    for old, new in _OLD.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def plainer(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Return :func:`plain` names if ``others``, those of the base, are plain; otherwise the names themselves."""
    base_is_plain = all(name == new for name, new in plain(others).items())
    return plain(names) if base_is_plain else {name: name for name in names}


@dataclass(frozen=True)
class Match:
    """Say how two models call the same tensors.

    Attributes:
        names: Each of the own names -> the other model's; the name itself where the other has no such tensor.
        own: Prefix of the own names, or empty.
        other: Prefix of the other model's names, or empty.
    """

    names: Mapping[str, str]
    own: str = ""
    other: str = ""

    def back(self, name: str) -> str:
        """Return how this model would call a tensor that only the other has."""
        return self.own + name.removeprefix(self.other)


def match(own: Collection[str], other: Collection[str]) -> Match:
    """Find which names stand for the same tensors: equal ones, or those that differ in a prefix or by a wrapper.

    What gives the most pairs is taken, and of several such the plainest.
    """
    known = set(other)
    best, count = Match({name: name for name in own}), sum(name in known for name in own)
    if count == len(own):
        return best
    raw = {name: name for name in own}, {name: name for name in other}
    for mine, theirs in (raw, (plain(own), plain(other))):
        by_new = {new: name for name, new in theirs.items()}
        add, cut = _prefix(mine.values(), by_new)
        found = {name: by_new.get(_exchanged(new, cut, add)) for name, new in mine.items()}
        pairs = {name: name if new is None else new for name, new in found.items()}
        matched = sum(new is not None for new in found.values())
        if matched > count and len(set(pairs.values())) == len(pairs):
            best, count = Match(pairs, cut, add), matched
    return best


def _exchanged(name: str, cut: str, add: str) -> str:
    return add + name.removeprefix(cut) if name.startswith(cut) else name


def _prefix(own: Iterable[str], other: Iterable[str]) -> tuple[str, str]:
    """Return what to put before names, or to take away from their beginning, so that most of them are among others.

    Of several such it is the first in the order of the names, in every process.
    """
    mine, theirs = dict.fromkeys(own), dict.fromkeys(other)
    longer = Counter(prefix for name in theirs for prefix, rest in _cuts(name) if rest in mine)
    shorter = Counter(prefix for name in mine for prefix, rest in _cuts(name) if rest in theirs)
    best = max([*longer.values(), *shorter.values(), 0])
    if best <= len(mine.keys() & theirs.keys()):
        return "", ""
    add = next((prefix for prefix, count in longer.items() if count == best), "")
    return (add, "") if add else ("", next(prefix for prefix, count in shorter.items() if count == best))


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Yield the ways to cut a name in two: ``a.b.c`` into ``a.`` and ``b.c``, ``a.b.`` and ``c``."""
    *parts, rest = name.split(".", DEEPEST)
    for i in range(1, len(parts) + 1):
        yield ".".join(parts[:i]) + ".", ".".join([*parts[i:], rest])
