"""What sparse training keeps in memory, and for how long, counted in tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fishexp.masks import top_k
from fishexp.masks.topk import Mask, count
from fishexp.sparse import sparsify
from fishexp.sparse.parameter import INDICES, GradientMethod, SparseParameter, weights
from tests.support.checks import Peak

KEEP = 0.005
WIDTH, TOKENS = 512, 64

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(4)]), (TOKENS, WIDTH)),
    "convolution": (lambda: nn.Sequential(*[nn.Conv2d(256, 256, 3, padding=1) for _ in range(4)]), (4, 256, 4, 4)),
}


def spread(model: nn.Module, keep: float = KEEP) -> Mask:
    generator = torch.Generator().manual_seed(0)
    return top_k({name: torch.rand(p.shape, generator=generator) for name, p in weights(model).items()}, keep)


def storage_bytes(tensors: list[Tensor]) -> int:
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("keep", [0.005, 0.02, 0.1])
def test_training_state_is_at_most_36_bytes_a_kept_entry(net: str, keep: float) -> None:
    """Values as they are, were synced and began, gradients, both moments, indices: all beside the frozen model."""
    model, inputs = NETS[net][0](), torch.randn(NETS[net][1])
    mask = spread(model, keep)
    sparse = sparsify(model, mask)
    optimiser = torch.optim.AdamW(sparse.parameters(), fused=True)
    model(inputs).square().mean().backward()
    optimiser.step()
    own = {id(p) for p in weights(model).values()}
    state = [t for t in model.parameters() if id(t) not in own]
    kept = [m for m in model.modules() if isinstance(m, SparseParameter)]
    indices = [getattr(m, name, None) for m in kept for name in INDICES]
    state += [t for t in indices if t is not None] + [m.synced for m in kept]
    state += [p.grad for p in model.parameters() if p.grad is not None]
    state += [t for moments in optimiser.state.values() for name, t in moments.items() if name != "step"]
    assert len(indices) >= 4 * 4
    originals = list(sparse._state.originals.values())
    assert storage_bytes(originals) == 4 * count(mask)
    assert 24 * count(mask) <= storage_bytes(state + originals) <= 36 * count(mask)


@pytest.mark.parametrize("way", ["sddmm", "submatrix", "dense", None])
@pytest.mark.parametrize("net", NETS)
def test_a_backward_pass_needs_one_layers_buffers_beside_the_frozen_one(net: str, way: GradientMethod | None) -> None:
    """Were dense gradients kept until the step, there would be four."""
    peaks = []
    for frozen in (True, False):
        model, inputs = NETS[net][0](), torch.randn(NETS[net][1], requires_grad=True)
        sparse = None if frozen else sparsify(model, spread(model), way)
        if frozen:
            model.requires_grad_(False)
        held = [inputs, *model.parameters(), *model.buffers()]
        with Peak(held) as peak:
            model(inputs).square().mean().backward()
        peaks.append(peak.most)
    assert sparse is not None
    layer = max(4 * p.numel() for p in weights(model).values())
    rows = 12 * inputs.numel() * (1 if net == "linear" else 3)  # both factors in the sampled product's order
    found = 4 * sum(p.numel() for p in sparse.parameters())
    assert peaks[1] - peaks[0] <= (layer if way in ("dense", "submatrix") else 0.3 * layer) + rows + found + 2**16
    assert 2 * layer > layer + rows + found + 2**16  # so that a second dense gradient would be seen


def test_no_tensor_of_a_weights_size_is_made_by_sparsify_or_a_step() -> None:
    """Beside the mask, which is a byte a weight and not kept."""
    model = nn.Linear(2048, 2048)
    mask = spread(model)
    held = [*model.parameters(), *mask.values()]
    with Peak(held) as peak:
        optimiser = torch.optim.AdamW(sparsify(model, mask).parameters(), fused=True)
        model(torch.randn(4, 2048)).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert peak.most < 2048 * 2048 * 1.5


def test_the_best_of_many_scores_are_found_without_putting_them_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fishexp.masks.selection.CHUNK", 2**16)
    scores = {f"p{i}": torch.rand(2**20) for i in range(8)}
    with Peak(scores.values()) as peak:
        mask = top_k(scores, KEEP)
    assert peak.most < sum(kept.numel() for kept in mask.values()) + 2 * 2**20 + 40 * 2**16  # bytes; scores: 32 MiB
