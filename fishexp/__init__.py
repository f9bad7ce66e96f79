"""Train a network by moving a small, fixed set of its weights: the FISH Mask and its baselines."""

from typing import TYPE_CHECKING, Any

from fishexp.errors import DeltaError, FishexpError, how_to_install

if TYPE_CHECKING:
    from fishexp.delta import Delta
    from fishexp.fisher import diagonal_fisher
    from fishexp.masks import top_k
    from fishexp.run.artifacts import load_run
    from fishexp.run.inference import load_pipeline
    from fishexp.sparse import Sparse, sparsify

__version__ = "0.2.0"
__all__ = [
    "Delta", "DeltaError", "FishexpError", "Sparse", "diagonal_fisher", "load_pipeline", "load_run", "sparsify",
    "top_k",
]  # fmt: skip

_HOMES = {
    "Delta": "delta", "Sparse": "sparse", "diagonal_fisher": "fisher", "load_pipeline": "run.inference",
    "load_run": "run.artifacts", "sparsify": "sparse", "top_k": "masks",
}  # fmt: skip


def __getattr__(name: str) -> Any:  # torch is imported only when a name is used
    if name not in _HOMES:
        raise AttributeError(f"module 'fishexp' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"fishexp.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (hint := how_to_install(error)) is None:
            raise
        raise ImportError(f"fishexp.{name}: {hint}") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
