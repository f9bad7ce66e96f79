"""The benchmark of a training step, on tiny models: what is wrong is not timed."""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks.packages import PACKAGES
from benchmarks.step import check, contenders
from benchmarks.step.case import ALL, CONVOLUTIONS, StepCase, choose_mask
from benchmarks.step.measurement import measure
from benchmarks.timing import Effort
from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.sparse.parameter import SparseParameter
from fishexp.system import hardware

TWO = Effort(0.0, least=2, warmup=1)
BERT = StepCase("tiny-bert", 2, 8, ALL, 0.02, "random")
CONV = StepCase("resnet8", 4, None, CONVOLUTIONS, 0.02, "fish")


def prepared(case: StepCase) -> tuple[nn.Module, Mask]:
    model, head = models.build(case.model)
    return model, choose_mask(case, model, head)


def test_bf16_is_left_out_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(hardware, "bf16_slowdown", lambda: 30.0)
    case = replace(CONV, contenders=("dense", "ours"))
    assert {result.precision for result in measure(case, torch.device("cpu"), TWO)} == {"fp32"}
    assert "takes 30 times as long as in fp32" in capsys.readouterr().out


@pytest.mark.parametrize("case", [BERT, pytest.param(CONV, marks=pytest.mark.slow)], ids=lambda case: case.model)
def test_a_step_of_every_contender_that_is_installed(case: StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "bf16_slowdown", lambda: 1.0)
    found = list(measure(case, torch.device("cpu"), TWO))
    names = [name for name in case.contenders if name not in PACKAGES or find_spec(PACKAGES[name])]
    assert [(r.precision, r.contender) for r in found] == [(p, n) for p in ("fp32", "bf16") for n in names]
    first = {result.contender: result for result in found[: len(names)]}
    tensors = len(list(models.build(case.model)[0].parameters()))
    total = first["dense"].total
    assert first["dense"].trained == total
    assert first["dense"].state_bytes == 16 * total + 4 * tensors  # value, gradient, two moments; a step count each
    assert first["original"].state_bytes == 20 * total + 4 * tensors
    assert first["ours"].trained == first["floor"].trained == int(0.02 * total)
    assert 16 * int(0.02 * total) < (first["floor"].state_bytes or 0) < (first["ours"].state_bytes or 0) < total
    assert first["dense"].ratio == [1.0, 1.0, 1.0]
    assert all(r.rounds == 2 and 0 < r.seconds[0] <= r.seconds[1] <= r.seconds[2] for r in found)


def note(outputs: dict[str, bool], key: str, module: nn.Module, inputs: object, output: Tensor) -> None:
    outputs[key] = output.requires_grad


def test_gradients_of_the_floor_flow_as_far_as_ours() -> None:
    """With the lowest layers empty, a layer in part, the head whole."""
    reached = []
    for name in ("ours", "floor"):
        model, mask = prepared(BERT)
        for key, kept in mask.items():
            kept &= "embeddings" not in key and "layer.0.attention" not in key
        contender = contenders.make(name, model, mask, ())
        outputs: dict[str, bool] = {}
        for key, module in contender.model.named_modules():
            if not isinstance(module, SparseParameter) and all(
                isinstance(child, SparseParameter) for child in module.children()
            ):  # after the floor's own hook, hence what the next layer gets
                module.register_forward_hook(partial(note, outputs, key))
        contenders.step(contender, models.batches(2, 2, 8, torch.device("cpu"))[0], "fp32")
        reached.append(outputs)
    assert reached[0] == reached[1]
    assert len(set(reached[0].values())) == 2


def test_a_wrong_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One gradient too large; Adam's first step would not tell."""
    model, mask = prepared(CONV)
    right = check.sparsify

    def wrong(model: nn.Module, mask: Mask) -> Any:
        sparse = right(model, mask)
        model.get_parameter("stem.conv.weight_kept.values").register_hook(lambda gradient: gradient + 1e-3)
        return sparse

    check.check_step(CONV, model, mask)
    monkeypatch.setattr(check, "sparsify", wrong)
    with pytest.raises(FishexpError, match=r"resnet8: two steps of ours differ from the reference by .* at stem.conv"):
        check.check_step(CONV, model, mask)


def test_a_frozen_entry_that_moved_and_a_mask_that_moves_nothing() -> None:
    model, mask = prepared(CONV)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(FishexpError, match="no entry moved"):
        check.check_frozen(CONV, model, before, mask)
    with torch.no_grad():
        model.get_parameter("layer1.conv1.weight").add_(1e-3)
    with pytest.raises(FishexpError, match=r"entries of layer1.conv1.weight outside the mask moved"):
        check.check_frozen(CONV, model, before, mask)
