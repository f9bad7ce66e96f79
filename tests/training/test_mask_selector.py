"""What a method of the user's returns is looked at before the budget is: a mistake in it is said, not computed with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fishexp.errors import FishexpError
from fishexp.training.logger import Logger
from fishexp.training.mask_selector import MaskSelector
from fishexp.training.problem import Problem
from tests.support.training import mlp, problem


def selector(select: Callable[[Problem], Any], fixed: bool, folder: Path) -> MaskSelector:
    keep = None if fixed else 0.5
    logger = Logger(folder, "", {}, "disabled")
    ours = problem(mlp(), (5,))
    return MaskSelector(ours, "mine", select, keep, "entry", "network", logger, lambda *_: None, None, fixed=fixed)


def of_each(make: Callable[[nn.Parameter], Any]) -> Callable[[Problem], Any]:
    return lambda ours: {name: make(p) for name, p in ours.model.named_parameters()}


@pytest.mark.parametrize(
    ("select", "fixed", "message"),
    [
        (
            of_each(lambda p: p.detach().mean(-1, keepdim=True)),
            False,
            r"scores\['0.weight'\] is of the shape \(8, 1\), and",
        ),
        (of_each(lambda p: p.detach().flatten()), False, r"the weight of \(8, 5\); give one for each entry"),
        (lambda _: {"0.wieght": torch.ones(8, 5)}, False, r"scores\['0.wieght'\]: the model has no such parameter"),
        (lambda _: None, False, "scores are a mapping from parameter names to tensors, got a NoneType"),
        (of_each(torch.detach), True, r"mask\['0.weight'\] is float64; a mask is bool, true where a weight may move"),
        (of_each(lambda p: (p > 0).flatten()), True, r"mask\['0.weight'\] is of the shape \(40,\)"),
        (lambda _: None, True, "a mask is a mapping from parameter names to bool tensors"),
        (of_each(lambda _: True), True, "a mask is a mapping from parameter names to bool tensors"),
    ],
)
def test_what_is_not_for_these_weights_is_refused(
    select: Callable[[Problem], Any], fixed: bool, message: str, tmp_path: Path
) -> None:
    with pytest.raises(FishexpError, match=message):
        selector(select, fixed, tmp_path)()
