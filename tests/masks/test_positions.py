"""A mask goes into the positions of its entries and into a snapshot, and comes back as it was."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from fishexp.masks.positions import (
    find_positions,
    mask_to_positions,
    positions_for_file,
    positions_from_file,
    positions_to_mask,
)
from fishexp.masks.topk import Mask

PARAMETERS = {name: torch.zeros(3, 5) for name in ("some", "all", "none", "last", "first")}


def mask() -> Mask:
    found = {name: torch.zeros(3, 5, dtype=torch.bool) for name in reversed(PARAMETERS)}
    found["some"][1, 2:4] = found["some"][0, 0] = True
    found["all"][:] = True
    found["last"][2, 4] = True
    found["first"][0, 0] = True
    return found


def as_bits(kept: Tensor) -> Tensor:
    """The form in which snapshots held masks under decay=all before they held positions."""
    return torch.from_numpy(np.packbits(kept.numpy().reshape(-1)))


def as_positions(kept: Tensor) -> Tensor:
    """The form in which snapshots of several workers have always held masks."""
    return torch.tensor([-1]) if kept.all() else kept.flatten().nonzero().squeeze(1)


def test_a_mask_comes_back_from_its_positions() -> None:
    positions = mask_to_positions(mask(), PARAMETERS)
    assert list(positions) == ["some", "all", "last", "first"]
    assert positions["all"] is None
    assert positions["some"] is not None
    assert positions["some"].tolist() == [0, 7, 8]
    found = positions_to_mask(positions, PARAMETERS)
    assert list(found) == list(PARAMETERS)
    assert all(torch.equal(found[name], kept) for name, kept in mask().items())


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_form_in_a_file_is_read(name: str) -> None:
    kept = mask()[name]
    ours = positions_for_file(find_positions(kept))
    assert torch.equal(ours, as_positions(kept))
    for stored in (ours, as_bits(kept), as_positions(kept)):
        read = load(save({"mask.weight": stored}))["mask.weight"]
        index = positions_from_file(read, PARAMETERS[name])
        assert torch.equal(positions_to_mask({name: index}, PARAMETERS)[name], kept)
        assert (index is None) == (name == "all")
