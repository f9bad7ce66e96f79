"""Masks: which weights may move. Scores become a mask of the entries, or of the whole rows, that ``keep`` pays for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fishexp.masks.file import load_mask, save_mask
    from fishexp.masks.topk import top_k

__all__ = ["load_mask", "save_mask", "top_k"]

_HOMES = {"load_mask": "file", "save_mask": "file", "top_k": "topk"}


def __getattr__(name: str) -> Any:  # the command line checks ``keep`` before torch is imported
    if name not in _HOMES:
        raise AttributeError(f"module 'fishexp.masks' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fishexp.masks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
