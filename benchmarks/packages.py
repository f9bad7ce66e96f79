"""The packages of the extra ``bench``, which some contenders need and which may be missing."""

from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec

PACKAGES = {"LoRA": "peft", "SHiRA": "peft", "Super-Tuning": "peft", "BackPACK": "backpack"}  # contender -> module
DISTRIBUTIONS = {"peft": "peft", "backpack": "backpack-for-pytorch"}  # module -> name on PyPI


def installed(contenders: Iterable[str]) -> tuple[str, ...]:
    """Select the contenders that need no package or whose package is installed."""
    return tuple(name for name in contenders if name not in PACKAGES or find_spec(PACKAGES[name]))


def missing(contenders: Iterable[str]) -> dict[str, str]:
    """Map each contender whose package is missing to the name under which pip installs it."""
    needed = sorted(set(contenders) & PACKAGES.keys())
    return {name: DISTRIBUTIONS[PACKAGES[name]] for name in needed if not find_spec(PACKAGES[name])}


def versions() -> dict[str, str]:
    """Map the distributions that are installed to their versions."""
    return {name: version(name) for module, name in DISTRIBUTIONS.items() if find_spec(module)}
