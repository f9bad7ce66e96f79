"""Masks: which weights may move. Scores become a mask of exactly as many entries as ``keep`` pays for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fishexp.masks.topk import top_k

__all__ = ["top_k"]


def __getattr__(name: str) -> Any:  # the command line checks ``keep`` before torch is imported
    if name not in __all__:
        raise AttributeError(f"module 'fishexp.masks' has no attribute {name!r}")
    from fishexp.masks import topk

    return getattr(topk, name)
