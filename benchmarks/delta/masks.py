"""The masks of deltas: at random, and in columns as masks by the Fisher information are."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.delta.case import DeltaCase
from benchmarks.models import Batch
from fishexp.data import default_root, glue
from fishexp.fisher import diagonal_fisher
from fishexp.masks import top_k
from fishexp.masks.random_masks import random_scores
from fishexp.masks.topk import Mask, Scores
from fishexp.models import bert
from fishexp.sparse.parameter import weights

SENTENCES = 256  # of SST-2, that a fish mask is chosen by
COLUMNS = 64  # of so many columns one has high scores, so that about a third of its entries is kept


def masks(case: DeltaCase, model: nn.Module, head: tuple[str, ...]) -> dict[str, Mask]:
    """Choose masks of the same size: ``random``, the same mask as a ``seed``, and one that lies in columns.

    The last is chosen by the Fisher information on real sentences, ``fish``, where the weights are real and
    $FISHEXP_DATA has SST-2; otherwise it is made up, ``columns``.
    """
    shapes = {name: p.shape for name, p in weights(model).items()}
    seeded = top_k(random_scores(shapes, seed=2), case.keep, always=head)
    real = case.model == "minilm" and default_root("glue") is not None
    scores = diagonal_fisher(model, list(_sentences())) if real else _columns(shapes)
    return {
        "random": dict(seeded),
        "seed": seeded,
        "fish" if real else "columns": top_k(scores, case.keep, always=head),
    }


def _columns(shapes: dict[str, torch.Size]) -> Scores:
    """Make random scores that are higher in a few columns of each matrix than anywhere else."""
    scores: dict[str, Tensor] = dict(random_scores(shapes, seed=3))
    generator = torch.Generator().manual_seed(4)
    for score in scores.values():
        if score.ndim > 1:
            score[:, torch.randperm(score.shape[1], generator=generator)[: score.shape[1] // COLUMNS]] += 1
    return scores


def _sentences() -> Iterator[Batch]:
    data = glue.load(task="sst2", root=None, max_length=128, train_limit=SENTENCES, valid_limit=1, holdout=0)
    tokenizer = bert.build(2, 0, path=None, pretrained=True, activation_checkpointing=False).tokenizer
    tokens = data.train.tokenised(tokenizer)
    for index in tokens.lengths.argsort().split(32):
        yield tokens.batch(index)
