"""Let accelerate's save_state and load_state keep sparsified models as deltas."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from fishexp.delta import Delta
from fishexp.errors import FishexpError
from fishexp.sparse import Sparse
from fishexp.sparse.handle import STATE


def save_deltas(accelerator: Accelerator) -> None:
    """Have ``save_state`` write a delta of each sparsified model, and ``load_state`` load it, to the bit.

    The files are ``delta.safetensors``, ``delta_1.safetensors`` and so on, by the order in which models were prepared;
    other models are kept whole. Sparsify a model before its optimiser is made and before ``accelerator.prepare``. A
    delta of another base or mask is refused.
    """

    def save(models: list[nn.Module], weights: list[Any], folder: str) -> None:
        every_node = accelerator.project_configuration.save_on_each_node
        saves = accelerator.is_local_main_process if every_node else accelerator.is_main_process
        for i in reversed(_sparsified(models)):
            if saves:
                Sparse.of(models[i]).delta().save(_file(folder, i))
            del weights[i]  # what is left is saved whole

    def load(models: list[nn.Module], folder: str) -> None:
        for i in reversed(_sparsified(models)):
            if not (file := _file(folder, i)).is_file():
                raise FishexpError(f"{folder} has no {file.name}; call save_deltas before save_state")
            Sparse.of(models[i]).load_delta(Delta.load(file))
            del models[i]

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _sparsified(models: list[nn.Module]) -> list[int]:
    """Return which of the models are sparsified, or have a sparsified model in them."""
    return [i for i, model in enumerate(models) if any(STATE in vars(module) for module in model.modules())]


def _file(folder: str, number: int) -> Path:
    return Path(folder, f"delta_{number}.safetensors" if number else "delta.safetensors")
