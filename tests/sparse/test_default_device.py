"""A default device, such as that of ``torch.set_default_device``, moves nothing of masks, kept entries and deltas."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fishexp.delta import Delta, merge
from fishexp.fisher import diagonal_fisher
from fishexp.masks import load_mask, save_mask, top_k
from fishexp.masks.random_masks import random_scores
from fishexp.masks.topk import Mask, split
from fishexp.sparse import sparsify
from tests.support.cases import conv_net, images, steps
from tests.support.modules import random_mask

Scores = dict[str, Tensor]


def scores() -> Scores:
    generator = torch.Generator().manual_seed(0)
    return {f"{i}": torch.rand(i + 1, 3 * i + 4, generator=generator, device="cpu") for i in range(4)}


def long_scores() -> Scores:
    return {name: (score * 2**20).long() + 2**60 for name, score in scores().items()}


def drawn() -> Scores:
    return random_scores({name: score.shape for name, score in scores().items()}, 3)


MASKS: dict[str, Callable[[], list[Mask]]] = {
    "entries": lambda: [top_k(scores(), 0.3)],
    "integers": lambda: [top_k(long_scores(), 0.3)],
    "rows": lambda: [top_k(scores(), 0.3, unit="row")],
    "columns": lambda: [top_k(scores(), 0.3, ["0"], unit="column")],
    "of each matrix": lambda: [top_k(scores(), 0.3, per="matrix")],
    "of each row": lambda: [top_k(scores(), 0.3, per="row")],
    "of workers": lambda: split(scores(), 0.2, 3),
    "of rows of workers": lambda: split(scores(), 0.2, 3, unit="row"),
    "random": lambda: [top_k(drawn(), 0.3)],
}


@pytest.mark.parametrize("which", MASKS)
def test_masks_are_where_their_scores_are_and_in_files_as_ever(which: str, tmp_path: Path) -> None:
    """Meta stands for a GPU: a tensor that is made there has no numbers, and fits no other."""
    expected = MASKS[which]()
    with torch.device("meta"):
        found = MASKS[which]()
        for number, mask in enumerate(found):
            save_mask(mask, tmp_path / str(number))
        read = [load_mask(tmp_path / str(number)) for number in range(len(found))]
    for masks in (found, read):
        torch.testing.assert_close([dict(mask) for mask in masks], [dict(mask) for mask in expected])


def test_training_and_deltas_are_as_ever(tmp_path: Path) -> None:
    results = []
    for device in ("cpu", "meta"):
        model, base, data = conv_net(), conv_net(), images()
        mask = random_mask(model)
        with torch.device(device):
            fisher = diagonal_fisher(model.eval(), [data], "sampled", "square")
            sparse = sparsify(model, mask, "sddmm")
            steps(model, torch.optim.AdamW(sparse.parameters(), 0.01), data)
            sparse.delta().save(tmp_path / device)
            delta = Delta.load(tmp_path / device)
            merge([delta, delta], base, "mean")[0].apply_(base)
            sparse.load_delta(delta)
            assert sparse.digest()
        results.append({**fisher, **{f"base {name}": value for name, value in base.state_dict().items()}})
        torch.testing.assert_close(dict(base.state_dict()), dict(model.state_dict()))
    torch.testing.assert_close(*results, rtol=0, atol=0)
