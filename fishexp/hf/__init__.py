"""Train kept entries with transformers' Trainer or in a loop of accelerate's; checkpoints are deltas.

Nothing of transformers or accelerate is imported before a name is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fishexp.hf.accelerator import save_deltas
    from fishexp.hf.scores import fisher_scores, head
    from fishexp.hf.trainer import sparsify_trainer

__all__ = ["fisher_scores", "head", "save_deltas", "sparsify_trainer"]

_HOMES = {"fisher_scores": "scores", "head": "scores", "save_deltas": "accelerator", "sparsify_trainer": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fishexp.hf' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fishexp.hf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
