"""The benchmark of the Fisher information, on a tiny ResNet: what is wrong is not timed."""

from importlib.util import find_spec

import pytest
import torch

from benchmarks.fisher import contenders
from benchmarks.fisher.case import CONVOLUTIONS, FisherCase
from benchmarks.fisher.measurement import measure
from benchmarks.timing import Effort
from fishexp.errors import FishexpError

TWO = Effort(0.0, least=2, warmup=1)
SCORES = FisherCase("resnet8", 3, None, CONVOLUTIONS, examples=4)


def test_the_fisher_information_of_every_contender_that_is_installed() -> None:
    found = [result.contender for result in measure(SCORES, torch.device("cpu"), TWO)]
    assert found == [name for name in SCORES.contenders if name != "BackPACK" or find_spec("backpack")]


def test_wrong_scores_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = contenders.diagonal_fisher
    monkeypatch.setattr(contenders, "diagonal_fisher", lambda *args: {k: v * 1.001 for k, v in right(*args).items()})
    with pytest.raises(FishexpError, match="the scores of ours differ from the reference"):
        list(measure(SCORES, torch.device("cpu"), TWO))
