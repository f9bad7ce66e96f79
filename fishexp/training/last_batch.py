"""Whether a model can train on the smallest batch of an epoch, or share of one, if that has a single example."""

from copy import deepcopy

import torch
from torch import nn

from fishexp.errors import FishexpError
from fishexp.fisher.batches import logits_of
from fishexp.training.problem import Problem

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_last_batch(problem: Problem, examples: int, batch_size: int, prefix: str) -> None:
    """Try a batch of one example on a copy of the model, if an epoch has one and the model a BatchNorm.

    Of processes that train one model together, each has its share of every batch.

    A BatchNorm whose input has a single value per channel has no variance to divide by. Whether it comes to that is
    decided by the model, where an image has shrunk to one pixel.

    Args:
        examples: Training examples of an epoch.
        prefix: What comes before ``batch_size`` in the key of the option, for errors: ``regime.``.

    Raises:
        FishexpError: If the model refuses the batch.
    """
    processes = problem.collectives.world_size if problem.data_parallel else 1
    sizes = {min(batch_size, examples), examples % batch_size}
    alone = any(0 < size < 2 * processes for size in sizes)  # in the smallest share
    if not alone or not any(isinstance(module, _BATCH_NORM) for module in problem.model.modules()):
        return
    ((inputs, _),) = problem.batches_of(torch.tensor([0]), 1)
    streams = problem.random_streams()
    try:
        with torch.no_grad(), problem.autocast():
            logits_of(deepcopy(problem.model).train(), inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        batches = "batches" if batch_size < 2 * processes else f"a last batch, of {examples} examples,"
        shares = f" for one of {processes} processes" if processes > 1 else ""
        raise FishexpError(
            f"{prefix}batch_size={batch_size} leaves {batches} of 1{shares}, whose variance BatchNorm cannot take; "
            f"take another batch_size, or {prefix}drop_last=true"
        ) from None
    finally:
        problem.set_random_streams(streams)
