"""A model is scored in evaluation mode, with usable statistics, and is as it was afterwards."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fishexp.fisher import diagonal_fisher
from tests.support.cases import NETS, batched, brute_force, conv_net, images


@pytest.mark.parametrize("case", NETS)
@pytest.mark.parametrize("trained", [True, False])
def test_leaves_no_trace(case: str, trained: bool) -> None:
    """Buffers, modes, gradients, weights and the random stream are as they were."""
    build, data = NETS[case]
    model = build().train()
    if not trained and case == "conv":
        model[1].reset_running_stats()  # type: ignore[index]
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    diagonal_fisher(model, batched(*data()), "sampled")
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_buffers_that_move_in_evaluation_mode_are_restored() -> None:
    class Counts(nn.Linear):
        calls: Tensor

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            self.calls += len(input)
            return super().forward(input)

    model = Counts(3, 3).double()
    model.register_buffer("calls", torch.tensor(5))
    diagonal_fisher(model, [(torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 0]))])
    assert model.calls == 5


def test_an_untrained_batch_norm_is_scored_with_the_statistics_of_the_examples() -> None:
    model, (inputs, labels) = conv_net(), images(6)
    norm = model[1]  # type: ignore[index]
    norm.reset_running_stats()
    found = diagonal_fisher(model, iter(batched(inputs, labels, size=6)))
    calibrated = copy.deepcopy(model)
    features = model[0](inputs)  # type: ignore[index]
    calibrated[1].running_mean = features.mean((0, 2, 3)).detach()  # type: ignore[index]
    calibrated[1].running_var = features.var((0, 2, 3), unbiased=True).detach()  # type: ignore[index]
    expected = brute_force(calibrated, inputs, labels, "true_label", "square")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-15)
    identity = brute_force(model, inputs, labels, "true_label", "square")
    assert not torch.allclose(found["0.weight"], identity["0.weight"], rtol=0.05)


def test_trained_statistics_count_although_the_counter_is_missing() -> None:
    """As in published weights of before the counter existed: they load with 0 batches tracked."""
    model, (inputs, labels) = conv_net(), images()
    model[1].num_batches_tracked.zero_()  # type: ignore[index]
    found = diagonal_fisher(model, [(inputs, labels)])
    expected = brute_force(model, inputs, labels, "true_label", "square")
    torch.testing.assert_close(found["0.weight"], expected["0.weight"], rtol=1e-9, atol=1e-15)
