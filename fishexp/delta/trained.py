"""The delta of a training that changed some entries of a model in place."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fishexp.delta.content import Content
from fishexp.delta.fingerprint import Fingerprint, bits, fingerprint, in_threads
from fishexp.delta.moved import Moved, whole
from fishexp.delta.part import Part, mask_of
from fishexp.delta.tensors import source
from fishexp.errors import DeltaError


class Original(NamedTuple):
    """Values that entries of a tensor had.

    Attributes:
        positions: Where in the flattened tensor, in any order; None for all of it.
        values: In the order of ``positions``, on any device.
        always: Whether they are part of the delta even if they are the same now.
    """

    positions: Tensor | None
    values: Tensor
    always: bool


def trained(model: nn.Module, originals: Mapping[str, Original], fresh: Collection[str]) -> Content:
    """What became of the entries in ``originals``; all others count as part of the base as they are now.

    Args:
        model: After the training. Its tensors are hashed a few at a time.
        fresh: Tensors that the base does not have, or not these: stored whole.

    Raises:
        DeltaError: If ``fresh`` names a tensor that the model does not have, or trained parameters share memory.
    """
    found = source(model)
    for name in fresh:
        if found.tied.get(name, name) not in found.kinds:
            raise DeltaError(f"fresh names {name}, which the model does not have")
    new = {found.tied.get(name, name) for name in fresh}
    known: dict[str, Original] = {}
    for name, original in originals.items():
        first = found.tied.get(name, name)
        if original.always and first in known:
            raise DeltaError(f"{name} and {first} are two parameters in the same memory; make them one, or copy one")
        known.setdefault(first, original)

    def one(name: str) -> tuple[Fingerprint | None, Moved | None]:
        tensor = found.read(name)
        if name in new:
            return None, whole(tensor)
        return _one(tensor, known[name]) if name in known else (fingerprint(tensor), None)

    pairs = dict(zip(found.kinds, in_threads(one, found.kinds), strict=True))
    base = {name: before for name, (before, _) in pairs.items() if before is not None}
    moved = {name: entries for name, (_, entries) in pairs.items() if entries is not None}
    return Content(base, moved, tied=found.tied)


def by_seed(content: Content, seed: int, parameters: Mapping[str, Tensor]) -> Content:
    """The same delta, with the seed in the place of positions if it drew them; all scores are drawn to see.

    Args:
        parameters: All that have scores, in the order in which these were drawn.
    """
    positions = {name: content.moved[name].positions for name in parameters if name in content.moved}
    mask = mask_of({name: tuple(p.shape) for name, p in parameters.items()}, seed, positions)
    if mask is None or not parameters.keys() <= content.result.keys():
        return content
    parts = {name: replace(content.moved[name], places=Part(mask, name)) for name in mask.counts}
    return replace(content, moved={**content.moved, **parts})


def _one(tensor: Tensor, original: Original) -> tuple[Fingerprint, Moved | None]:
    """What a tensor was, and what it became."""
    if original.positions is None:
        before = original.values.to(tensor.dtype).view(tensor.shape)
        same = not original.always and torch.equal(bits(before), bits(tensor).to(before.device))
        return fingerprint(before), None if same else whole(tensor)
    places, order = original.positions.long().cpu().sort()
    originals = Moved(tuple(tensor.shape), places, original.values.to("cpu", tensor.dtype)[order], "")
    after, before = originals.hashes(tensor, tensor.numel())
    moved = replace(originals, values=originals.gather(tensor).cpu().view(tensor.dtype), sha256=after)
    return replace(moved.kind, sha256=before), moved
