"""Ways to store what training changed, each with the operations that are timed, in their order."""

from collections.abc import Callable
from copy import deepcopy
from math import lgamma, log
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import adapters
from benchmarks.delta.check import State, changed, check_same, state
from fishexp.delta import Delta, Stack, Undo
from fishexp.masks import position_codec
from fishexp.masks.topk import Mask
from fishexp.sparse import sparsify

SCALE = 0.01  # standard deviation of the random changes that stand for training


class Stored(Protocol):
    """Store what training changed, in a file.

    Attributes:
        mask: Name of the rule that chose the entries; None for all entries.
        file: Path of the file after ``save``.
        entries: Number of entries that are stored.
        positions: Number of entries that are stored with a position.
        entropy: Bits a position, if each tensor has its kept entries at random; None where it is of no interest.
        lost: Entries of the base that differ after apply and undo; None without an undo.
    """

    name: str
    mask: str | None
    file: Path
    entries: int
    positions: int
    entropy: float | None
    lost: int | None

    def operations(self) -> dict[str, Callable[[], object]]:
        """Return the operations to time, in the order in which they depend on each other."""
        ...


class Dense(Stored):
    """Store all weights in a safetensors file."""

    name, mask, positions, entropy, lost = "dense", None, 0, None, None

    def __init__(self, model: nn.Module, file: Path) -> None:
        self._model, self.file, self._loaded = model, file, {}
        self.entries = sum(p.numel() for p in model.parameters())

    def operations(self) -> dict[str, Callable[[], object]]:
        return {"save": self._save, "load": self._load, "apply": self._apply}

    def _save(self) -> None:
        save_file(self._model.state_dict(), self.file)

    def _load(self) -> None:
        self._loaded = load_file(self.file)

    def _apply(self) -> None:
        self._model.load_state_dict(self._loaded)
        self._loaded = {}  # these tensors are the mapped file, which the next round overwrites


class Adapter(Stored):
    """Store an adapter of PEFT with nearly as many entries as ``mask`` keeps; random changes stand for training."""

    entropy = None

    def __init__(self, name: str, model: nn.Module, mask: Mask, head: tuple[str, ...], folder: Path) -> None:
        self.name, self.mask = name, {"SHiRA": "random", "Super-Tuning": "largest"}[name]
        self._model: Any = adapters.MAKERS[name](deepcopy(model), mask, head)
        self._folder, self.file = folder, folder / "adapter_model.safetensors"
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self.entries = sum(p.numel() for p in trained)
        self.positions = self.entries - sum(mask[key].numel() for key in head)
        with torch.no_grad():
            for p in trained:
                p.add_(torch.randn_like(p), alpha=SCALE)
        before = state(self._model)
        self._model.merge_adapter()
        self._model.unmerge_adapter()
        self.lost = sum(changed(before, self._model).values())

    def operations(self) -> dict[str, Callable[[], object]]:
        model = self._model
        return {"save": self._save, "load": self._load, "apply": model.merge_adapter, "undo": model.unmerge_adapter}

    def _save(self) -> None:
        self._model.save_pretrained(self._folder, save_embedding_layers=False)

    def _load(self) -> None:
        import peft  # pyright: ignore[reportMissingImports]

        peft.set_peft_model_state_dict(self._model, peft.load_peft_weights(str(self._folder), device="cpu"))


class Ours(Stored):
    """Store a :class:`fishexp.delta.Delta` of a model trained with a mask; random numbers stand for gradients."""

    name, lost = "ours", 0

    def __init__(self, mask_name: str, model: nn.Module, mask: Mask, stack: Stack, file: Path) -> None:
        self.mask, self._model, self._stack, self.file = mask_name, model, stack, file
        self._delta, self._trained = train(model, mask)
        partial = [tensor for tensor in self._delta.moved.values() if tensor.places is not None]
        self._written = [tensor for tensor in partial if isinstance(tensor.places, Tensor)]
        self._undo: Undo
        self._loaded: Delta
        self.entries, self.positions = self._delta.kept, sum(tensor.count for tensor in partial)
        chances = [_log_choose(tensor.after.entries, tensor.count) for tensor in partial]
        self.entropy = sum(chances) / log(2) / self.positions

    def operations(self) -> dict[str, Callable[[], object]]:
        """Return the operations to time; with a seed instead of positions, "decode" draws the mask."""
        first = {"encode": self._encode} if self._written else {}
        rest = {"decode": self._decode, "apply": self._apply, "undo": self._revert}
        return {**first, "save": self._save, "load": self._load, **rest}

    def switch(self) -> None:
        """Make it the only delta on the stack."""
        self._stack.switch(self._delta)

    def check(self, base: State) -> None:
        """Check that from its file and on the stack it gives the trained model to the bit, and then the base.

        Raises:
            FishexpError: If not; names the first tensor that differs.
        """
        self._save()
        self._load()
        self._apply()
        check_same(f"{self.mask}: after apply_", self._trained, self._model)
        self._revert()
        check_same(f"{self.mask}: after revert_", base, self._model)
        self.switch()
        check_same(f"{self.mask}: on the stack", self._trained, self._model)
        self._stack.switch(None)
        check_same(f"{self.mask}: taken off the stack", base, self._model)
        self._trained = {}

    def _encode(self) -> None:
        self._encoded = [
            position_codec.encode(tensor.places, tensor.shape)
            for tensor in self._written
            if isinstance(tensor.places, Tensor)
        ]

    def _save(self) -> None:
        self._delta.save(self.file)

    def _load(self) -> None:
        self._loaded = Delta.load(self.file)

    def _decode(self) -> None:
        if not self._written:
            self._loaded.positions(self._loaded.names[0])
        else:
            for tensor, (coding, data) in zip(self._written, self._encoded, strict=True):
                position_codec.decode(data, coding, tensor.count, tensor.shape)

    def _apply(self) -> None:
        self._undo = self._loaded.apply_(self._model)

    def _revert(self) -> None:
        self._undo.revert_()


def train(model: nn.Module, mask: Mask) -> tuple[Delta, State]:
    """Change the kept entries of a copy of ``model``, and return the change as a delta and the whole copy."""
    network = deepcopy(model)
    sparse = sparsify(network, mask)
    for p in sparse.parameters():
        p.grad = torch.randn_like(p)
    torch.optim.SGD(sparse.parameters(), lr=SCALE).step()
    return sparse.delta(), state(network)


def position_bits(stored: Stored) -> float | None:
    """Count the bits in its file that tell where an entry is, a position; None if it stores no position_codec."""
    if not stored.positions:
        return None
    tensors = load_file(stored.file)
    size = sum(tensor.nbytes for name, tensor in tensors.items() if name == "positions" or name.endswith("indices"))
    return 8 * size / stored.positions


def _log_choose(total: int, count: int) -> float:
    return lgamma(total + 1) - lgamma(count + 1) - lgamma(total - count + 1)
