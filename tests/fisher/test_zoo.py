"""Every family of models is scored exactly and in one pass a batch."""

import gc
import logging
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from fishexp.fisher import batched, diagonal_fisher
from fishexp.fisher.batches import Inputs, mapped
from fishexp.fisher.layouts import Weighing
from tests.support.cases import brute_force
from tests.support.zoo import DECODER, ZOO, made, text

# one of them has its full size
CASES = [pytest.param(name, marks=pytest.mark.slow if name == "resnet50" else ()) for name in ZOO]


@pytest.mark.parametrize("case", CASES)
def test_scores_are_exact_and_a_batch_takes_one_pass(
    case: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sentences with padding, images and sequences, by the definition, in float64.

    Only where tokens are sent to experts, the graph does not tell which example they belong to.
    """
    caplog.set_level(logging.INFO, "fishexp")
    model, inputs, labels = made(ZOO[case])
    weighed = []
    monkeypatch.setattr(batched, "Weighing", lambda *a: weighed.append(a) or Weighing(*a))
    found = diagonal_fisher(model, [(inputs, labels)])
    assert bool(weighed) == (case == "mixtral")
    expected = brute_force(model, inputs, labels, "true_label", "square")
    assert found.keys() == expected.keys()
    atol = 1e-15 * max(1, _largest(expected))
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-9, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    assert not caplog.messages


@pytest.mark.parametrize("case", ["albert", "deberta-v2", "gpt2", "t5", "mixtral", "swin", "densenet121", "lstm"])
def test_the_expectation_over_labels_is_exact(case: str, caplog: pytest.LogCaptureFixture) -> None:
    model, inputs, labels = made(ZOO[case])
    found = diagonal_fisher(model, [(inputs, labels)], "expected")
    rtol = 1e-5 if case in ("t5", "mixtral") else 1e-9  # their norms compute in float32
    for name, score in brute_force(model, inputs, labels, "expected", "square").items():
        torch.testing.assert_close(found[name], score, rtol=rtol, atol=1e-15, msg=lambda m, n=name: f"{n}: {m}")
    assert not caplog.messages


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", CASES)
def test_a_batch_takes_one_pass_in_float32(case: str, caplog: pytest.LogCaptureFixture) -> None:
    """In which torch has functions of its own for an LSTM's layer and a mixture's experts."""
    model, inputs, labels = made(ZOO[case])
    exact = diagonal_fisher(model, [(inputs, labels)])
    if case == "mixtral":  # its usual experts multiply in float32 only
        usual = text("Mixtral", **DECODER, num_local_experts=3, num_experts_per_tok=2).build()
        usual.load_state_dict(model.state_dict())
        model = usual.eval()
    found = diagonal_fisher(model.float(), [(in_float32(inputs), labels)])
    for name, score in exact.items():
        if case == "resnet50":  # one of whose many ReLUs may be at its kink, and let a gradient through or not
            assert (found[name].double() - score).norm() < 0.2 * score.norm(), name
        else:
            atol = 1e-6 * _largest(exact)
            torch.testing.assert_close(found[name].double(), score, rtol=0.02, atol=atol, msg=name)
    assert not caplog.messages


def _largest(scores: Mapping[str, Tensor]) -> float:
    return max(score.max().item() for score in scores.values())


def in_float32(inputs: Inputs) -> Inputs:
    def narrowed(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.is_floating_point() else tensor

    return mapped(inputs, narrowed)


@pytest.mark.parametrize("case", ["t5", "mixtral", "swin", "lstm", "resnet of bottlenecks"])
def test_nothing_of_a_batch_stays_in_memory(case: str) -> None:
    """Nor waits for the collector of garbage."""
    model, inputs, labels = made(ZOO[case])
    outputs = []

    def remember(module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append(StorageWeakRef(output.untyped_storage()))

    for module in model.modules():
        module.register_forward_hook(remember)
    gc.collect()
    gc.disable()
    try:
        diagonal_fisher(model, [(inputs, labels)] * 2)
        assert outputs
        assert all(output.expired() for output in outputs)
    finally:
        gc.enable()
