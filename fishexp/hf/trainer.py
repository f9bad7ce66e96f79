"""Let transformers' Trainer train the kept entries of its model, and keep its checkpoints as deltas."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import HubStrategy

from fishexp.delta import Delta
from fishexp.delta.model_folder import DELTA
from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.sparse import Sparse, sparsify
from fishexp.sparse.handle import STATE


def sparsify_trainer(trainer: Trainer, mask: Mask) -> Sparse:
    """Make the kept entries of a trainer's model all that it trains; call this before ``trainer.train()``.

    The trainer makes its optimiser of them, with its own rule of which weights decay. A checkpoint's folder has
    ``delta.safetensors`` in the place of the model's weights: resuming from it, and ``load_best_model_at_end``, give
    the model that was saved to the bit, and refuse a delta of another base or mask. ``trainer.save_model()`` and
    ``trainer.push_to_hub()`` write the whole model, as for any other.

    Args:
        trainer: Of any class; it becomes one of a class of its own, with the same name.
        mask: As for :func:`fishexp.sparsify`, such as of ``top_k(fisher_scores(trainer), ...)``.

    Returns:
        The kept entries. For another optimiser than the trainer's, set ``trainer.optimizer`` to one of their
        :meth:`~fishexp.sparse.Sparse.parameters`.

    Raises:
        FishexpError: If the trainer has an optimiser already, would train another model than this or a sharded one, or
            its model is sparsified; and if :func:`fishexp.sparsify` refuses the mask.
    """
    _refuse(trainer)
    model: Any = trainer.model  # by its types it may be None
    sparse = sparsify(model, mask)
    cls = type(trainer)
    if not issubclass(cls, DeltaCheckpoints):
        body = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        trainer.__class__ = type(cls.__name__, (DeltaCheckpoints, cls), body)
    return sparse


def _refuse(trainer: Trainer) -> None:
    if not isinstance(trainer, Trainer):
        raise FishexpError(f"sparsify_trainer takes a Trainer of transformers, got a {type(trainer).__name__}")
    if trainer.model_init is not None:
        raise FishexpError("the trainer has a model_init, by which train() makes another model; give it model instead")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise FishexpError("FSDP and DeepSpeed cut weights into pieces, whose entries a mask cannot name; use DDP")
    model: Any = trainer.model
    if any(STATE in vars(module) for module in model.modules()):
        raise FishexpError("the trainer's model is sparsified already; call restore() of the first mask before")
    if trainer.optimizer is not None:
        raise FishexpError(
            "the trainer's optimizer was made before and would move no kept entry; sparsify before trainer.train(), or "
            "set trainer.optimizer = trainer.lr_scheduler = None first"
        )


class DeltaCheckpoints(Trainer):
    """Be a trainer whose model is sparsified and whose checkpoints have a delta in the place of the model."""

    model: Any

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a checkpoint's delta; the whole model where the user asks for it, or pushes it to the hub."""
        if output_dir is None or not _internal_call:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            Sparse.of(self.model).delta().save(Path(output_dir, DELTA))
            tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
            config = self.model.config if isinstance(self.model, PreTrainedModel) else None
            for part in (tokenizer, config):  # what `python -m fishexp.delta apply` puts beside the weights
                if part is not None:
                    part.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: object = None) -> None:
        file = Path(resume_from_checkpoint, DELTA)
        if not file.is_file():
            raise FishexpError(f"{resume_from_checkpoint} has no {DELTA}: it is no checkpoint of a sparsified trainer")
        Sparse.of(self.model).load_delta(Delta.load(file))

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_strategy != HubStrategy.END:
            self._save()  # the whole model, in the folder that is pushed
        super()._push_from_checkpoint(checkpoint_folder)
