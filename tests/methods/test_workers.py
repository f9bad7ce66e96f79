"""Every method and every rule gives the same masks with one worker and with several."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from fishexp.masks.topk import Scores, split, top_k
from fishexp.methods import activation, bitfit, fish, full, gradient, lift, magnitude, random, relative, snip
from fishexp.training.collectives import InProcessCollectives
from fishexp.training.problem import Problem
from tests.support.training import mlp, problem

HEAD = ("2.bias",)
METHODS: dict[str, Callable[[Problem], Scores]] = {
    **{
        f"fish {labels} {power}": partial(fish.scores, samples=12, labels=labels, power=power)
        for labels in ("true_label", "expected")  # each of several workers draws labels of its own
        for power in ("square", "absolute")
    },
    "magnitude": partial(magnitude.scores, order="largest"),
    "smallest": partial(magnitude.scores, order="smallest"),
    "random": partial(random.scores, unit="entry"),
    "random rows": partial(random.scores, unit="row"),
    "gradient": partial(gradient.scores, samples=12),
    "snip": partial(snip.scores, samples=12),
    "relative": partial(relative.scores, samples=12, exponent=0.5, epsilon=1e-3),
    "activation": partial(activation.scores, samples=12),
    "lift": partial(lift.scores, rank=None),
    "bitfit": bitfit.mask,
    "full": full.mask,
}
RULES: dict[str, Callable[[Scores], Any]] = {
    "top_k": lambda scores: [top_k(scores, keep, HEAD) for keep in (0.06, 0.3, 0.9, 1)],
    "split": lambda scores: split(scores, 0.2, 3, HEAD),
    "rows": lambda scores: [top_k(scores, keep, HEAD, "row") for keep in (0.15, 0.3, 0.9, 1)],
    "split columns": lambda scores: split(scores, 0.2, 3, HEAD, "column"),
    "per matrix": lambda scores: [top_k(scores, keep, HEAD, per="matrix") for keep in (0.06, 0.3, 0.9, 1)],
    "per row": lambda scores: [top_k(scores, keep, HEAD, per="row") for keep in (0.06, 0.3, 0.9, 1)],
    "one by one": lambda scores: [{name: torch.as_tensor(score).argmax()} for name, score in scores.items()],
}


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", METHODS)
def test_one_worker_and_several_get_the_same_masks(method: str, rule: str, workers: int) -> None:
    masks = []
    for number in (1, workers):
        ours = problem(mlp(), (5,), collectives=InProcessCollectives(number))
        scores = METHODS[method](ours)
        masks.append([scores] if METHODS[method] in (bitfit.mask, full.mask) else RULES[rule](scores))
    for mask, other in zip(*masks, strict=True):
        assert list(mask) == list(other)
        assert all(mask[name].equal(other[name]) for name in mask)
