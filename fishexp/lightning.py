"""Let Lightning's checkpoints keep a sparsified model as a delta."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.hooks import RemovableHandle

from fishexp.delta import Delta
from fishexp.errors import FishexpError
from fishexp.sparse import Sparse
from fishexp.sparse.handle import STATE

# key of a checkpoint's state_dict, in the place of the tensors of the sparsified model
DELTA = "fishexp_delta"


class DeltaCheckpoints(Callback):
    """Keep the kept entries of a LightningModule, or of the model in it that is sparsified, as a delta.

    Give it to Lightning's Trainer. Checkpoints have the delta in the place of the model's weights, those with
    ``save_weights_only=True`` aside; ``trainer.fit(ckpt_path=...)`` and its like load it into the base, sparsified by
    the same mask, to the bit, and refuse another base or mask. Call :func:`fishexp.sparsify` before
    ``configure_optimizers`` makes the optimiser, of the parameters that require a gradient.
    """

    def __init__(self) -> None:
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for the delta in what is loaded from here on."""
        _, model = _sparsified(pl_module)
        self._hook = model.register_load_state_dict_pre_hook(_load)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the model's way to load as it was."""
        if self._hook is not None:
            self._hook.remove()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the delta in the place of the tensors of the model."""
        prefix, model = _sparsified(pl_module)
        own = {prefix + name for name in model.state_dict()}
        others = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name not in own}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "delta.safetensors")
            Sparse.of(model).delta().save(file)
            delta = torch.from_numpy(np.fromfile(file, np.uint8))
        checkpoint["state_dict"] = others | {prefix + DELTA: delta}


def _sparsified(module: nn.Module) -> tuple[str, nn.Module]:
    """Return the model that is sparsified, and what stands before the names of its weights.

    Raises:
        FishexpError: If there is none, or several.
    """
    found = [(f"{name}." if name else "", own) for name, own in module.named_modules() if STATE in vars(own)]
    if len(found) != 1:
        raise FishexpError(
            f"{len(found)} sparsified models in this {type(module).__name__}; call fishexp.sparsify with it, or with "
            "the model in it, before the Trainer"
        )
    return found[0]


def _load(model: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Load the delta of a checkpoint; let what it makes of the model be what is loaded."""
    if (delta := state.pop(prefix + DELTA, None)) is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "delta.safetensors")
        delta.cpu().numpy().tofile(file)
        Sparse.of(model).load_delta(Delta.load(file))
    state.update({prefix + name: tensor for name, tensor in model.state_dict().items()})
