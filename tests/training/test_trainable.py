"""What an optimiser remembers goes with the entries that stay, and with no others."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fishexp.masks.topk import Mask
from fishexp.sparse.parameter import weights
from fishexp.training.snapshots import Snapshot
from fishexp.training.trainable import Trainable, snapshot_mask, transfer_optimizer_state


def model() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 3)).double()
    return network.to(memory_format=torch.channels_last)


def masks() -> tuple[Mask, Mask]:
    """Two that overlap; one weight is in the first only, one in the second only, one whole in both."""
    generator = torch.Generator().manual_seed(1)
    first, second = (
        {name: torch.rand(p.shape, generator=generator) < 0.4 for name, p in model().named_parameters()} for _ in "ab"
    )
    first["0.bias"][:], second["0.bias"][:] = True, False
    first["2.bias"][:], second["2.bias"][:] = False, True
    first["0.weight"][:] = second["0.weight"][:] = True
    return first, second


def step(network: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
    inputs = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(seed)).double()
    network(inputs).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def dense_state(moving: Trainable, optimiser: torch.optim.Optimizer, key: str) -> dict[str, Tensor]:
    """The state in the weights' shape, zero where nothing moves."""
    found = {name: torch.zeros(p.shape, dtype=p.dtype) for name, p in weights(moving._model).items()}
    for name, (p, positions) in moving.entries().items():
        if key in optimiser.state[p]:
            found[name].put_(positions, optimiser.state[p][key].flatten())
    return found


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("kind", "keys"), [(torch.optim.SGD, ["momentum_buffer"]), (torch.optim.AdamW, ["exp_avg", "exp_avg_sq"])]
)
def test_the_state_of_what_stays(kind: type[torch.optim.Optimizer], keys: list[str], fused: bool) -> None:
    network, (first, second) = model(), masks()
    options = {"lr": 0.01, "fused": fused} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    before = Trainable(network, first, "kept")
    old = kind(before.parameters, **options)  # type: ignore[arg-type]
    for seed in range(3):
        step(network, old, seed)
    had = {key: dense_state(before, old, key) for key in keys}

    after = Trainable(network, second, "kept")
    new = kind(after.parameters, **options)  # type: ignore[arg-type]
    transfer_optimizer_state(old, before, new, after)
    for key in keys:
        for name, state in dense_state(after, new, key).items():
            assert torch.equal(state, had[key][name] * (first[name] & second[name])), (key, name)
    assert any(bool(state.any()) for state in had[keys[0]].values())
    step(network, new, 3)  # a fused step wants the state of all or of none


def test_a_new_mask_trains_as_a_masked_dense_loop_that_forgets_what_leaves() -> None:
    """Nesterov momentum over two masks, entry by entry against dense tensors in float64."""
    network, reference, both = model(), model(), masks()
    buffers = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    moving, optimiser = None, None
    for mask in both:
        last = moving, optimiser
        moving = Trainable(network, mask, "kept")
        optimiser = torch.optim.SGD(moving.parameters, 0.01, momentum=0.9, nesterov=True, fused=True)
        if last[0] and last[1]:
            transfer_optimizer_state(last[1], last[0], optimiser, moving)
        buffers = {name: buffer * mask[name] for name, buffer in buffers.items()}
        for seed in range(3):
            step(network, optimiser, seed)
            reference.zero_grad()
            inputs = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(seed)).double()
            reference(inputs).square().sum().backward()
            with torch.no_grad():
                for name, p in reference.named_parameters():
                    assert p.grad is not None
                    gradient = p.grad * mask[name]
                    buffers[name] = 0.9 * buffers[name] + gradient
                    p -= 0.01 * (gradient + 0.9 * buffers[name])
    for (name, p), q in zip(reference.named_parameters(), weights(network).values(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-12, msg=name)


def test_a_first_weight_that_is_a_scalar_lends_a_new_tensor_no_state_of_its_shape() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    network.register_parameter("scale", nn.Parameter(torch.tensor(1.5)))
    mask = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in network.named_parameters()}
    mask["scale"].fill_(True)
    first, second = (
        {**mask, f"{layer}.weight": torch.eye(*shape).bool()} for layer, shape in ((0, (5, 4)), (1, (3, 5)))
    )
    assert next(iter(mask)) == "scale"

    def step(optimiser: torch.optim.Optimizer) -> None:
        (network(torch.ones(2, 4)) * network.scale).square().sum().backward()
        optimiser.step()

    before = Trainable(network, first, "kept")
    old = torch.optim.AdamW(before.parameters, fused=True)
    step(old)
    after = Trainable(network, second, "kept")
    new = torch.optim.AdamW(after.parameters, fused=True)
    transfer_optimizer_state(old, before, new, after)
    steps = {name: new.state[p]["step"].tolist() for name, (p, _) in after.entries().items()}
    assert steps == {"scale": 1, "1.weight": 0}
    step(new)


def test_where_all_moves_all_is_carried() -> None:
    network, (first, second) = model(), masks()
    before = Trainable(network, first, "all")
    old = torch.optim.SGD(before.parameters, 0.01, momentum=0.9, weight_decay=0.1)
    step(network, old, 0)
    after = Trainable(network, second, "all")
    new = torch.optim.SGD(after.parameters, 0.01, momentum=0.9, weight_decay=0.1)
    transfer_optimizer_state(old, before, new, after)
    for p in after.parameters:
        assert torch.equal(new.state[p]["momentum_buffer"], old.state[p]["momentum_buffer"])


@pytest.mark.parametrize("older", [False, True], ids=["positions", "bits"])
def test_a_snapshot_of_a_run_that_moves_all_weights_has_its_mask(older: bool) -> None:
    """Older snapshots hold its bits."""
    network, (mask, _) = model(), masks()
    trainable = Trainable(network, mask, "all")
    tensors = trainable.tensors()
    if older:
        tensors = {f"mask.{name}": torch.from_numpy(np.packbits(kept.numpy())) for name, kept in mask.items()}
    found = snapshot_mask(Snapshot(trainable.delta(), tensors, {}), model())
    assert list(found) == list(mask)
    assert all(torch.equal(found[name], kept) for name, kept in mask.items())
