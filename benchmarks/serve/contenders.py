"""Ways to keep many tasks beside one model, each with the operations that are timed."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import count, cycle
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import adapters
from benchmarks.delta.check import changed, state
from benchmarks.delta.contenders import SCALE, train
from benchmarks.serve.case import ServeCase
from fishexp.delta import Delta, Stack
from fishexp.errors import FishexpError
from fishexp.masks import top_k
from fishexp.masks.random_masks import random_scores
from fishexp.masks.topk import Mask

Inputs: TypeAlias = dict[str, Tensor]

MASKS = 5  # that the tasks of ours share, as each takes a second to draw


class Serving(Protocol):
    """Keep tasks, and switch a model from one to the next.

    Attributes:
        name: Of the contender.
        model: The model that answers, with the task that was switched to last.
        file_bytes: Of a task on disk.
        resident_bytes: Of all tasks in memory, beside one model.
        lost: Entries of the base that have other bits after all tasks had their turn; None if there is no way back.
    """

    name: str
    model: nn.Module
    file_bytes: int
    resident_bytes: int

    def switch(self) -> None:
        """Switch to the next task, which is in memory."""
        ...

    def load(self) -> None:
        """Read a task from its file and switch to it."""
        ...

    def forget(self) -> None:
        """Take the task that was read out of memory again."""
        ...

    def lost(self) -> int | None: ...


class Dense(Serving):
    """Keep each task's whole model: in memory, there is one for each, and nothing to switch."""

    name = "dense"

    def __init__(self, model: nn.Module, tasks: int, folder: Path) -> None:
        self.model, self._file = deepcopy(model), folder / "dense.safetensors"
        save_file(model.state_dict(), self._file)
        self.file_bytes = self._file.stat().st_size
        self.resident_bytes = self.file_bytes * (tasks - 1)

    def switch(self) -> None:
        """Do nothing: the other model is there."""

    def load(self) -> None:
        self.model.load_state_dict(load_file(self._file))

    def forget(self) -> None:
        """Do nothing: the file's memory is not kept."""

    def lost(self) -> None:
        return None


class Adapters(Serving):
    """Keep an adapter of PEFT for each task, with nearly as many entries as a mask, on one model."""

    def __init__(
        self, name: str, model: nn.Module, mask: Mask, head: tuple[str, ...], tasks: int, folder: Path
    ) -> None:
        self.name = name
        self.model: Any = adapters.MAKERS[name](deepcopy(model), mask, head)
        names = ["default", *(f"task{i}" for i in range(1, tasks))]
        for task in names[1:]:
            self.model.add_adapter(task, self.model.peft_config["default"])
        self._next, self._number, self._folder = cycle(names), count(), folder / name
        own = [p for n, p in self.model.named_parameters() if ".default" in n]
        with torch.no_grad():
            for p in own:
                p.add_(torch.randn_like(p), alpha=SCALE)
        self.model.save_pretrained(self._folder, selected_adapters=["default"], save_embedding_layers=False)
        self.file_bytes = (self._folder / "adapter_model.safetensors").stat().st_size
        buffers = [b for n, b in self.model.named_buffers() if ".default" in n]
        self.resident_bytes = tasks * sum(tensor.nbytes for tensor in [*own, *buffers])

    def switch(self) -> None:
        self.model.set_adapter(next(self._next), inference_mode=True)

    def load(self) -> None:
        self._loaded = f"loaded{next(self._number)}"
        self.model.load_adapter(str(self._folder), self._loaded)
        self.model.set_adapter(self._loaded, inference_mode=True)

    def forget(self) -> None:
        self.model.set_adapter("default", inference_mode=True)
        self.model.delete_adapter(self._loaded)

    def lost(self) -> int:
        before = state(self.model)
        self.model.merge_adapter()
        self.model.unmerge_adapter()
        return sum(changed(before, self.model).values())


class Ours(Serving):
    """Keep a delta for each task on a :class:`fishexp.delta.Stack`."""

    name = "ours"

    def __init__(self, model: nn.Module, masks: Iterator[Mask], tasks: int, folder: Path) -> None:
        self.model = deepcopy(model)
        self._base, self._file = state(model), folder / "ours.safetensors"
        self._stack, deltas = Stack(self.model), []
        for _ in range(tasks):
            delta, trained = train(model, next(masks))
            self._stack.switch(delta)
            if changed(trained, self.model):
                raise FishexpError("serve: a delta on the stack does not give its model; nothing was timed")
            deltas.append(delta)
        deltas[0].save(self._file)
        self._next = cycle(deltas)
        self.file_bytes = self._file.stat().st_size
        moved = [tensor for delta in deltas for tensor in delta.moved.values()]
        self.resident_bytes = sum(tensor.values.nbytes + tensor.where().nbytes for tensor in moved)

    def switch(self) -> None:
        self._stack.switch(next(self._next))

    def load(self) -> None:
        self._stack.switch(Delta.load(self._file))

    def forget(self) -> None:
        self._stack.switch(None)

    def lost(self) -> int:
        self._stack.switch(None)
        return sum(changed(self._base, self.model).values())


def make(case: ServeCase, name: str, model: nn.Module, head: tuple[str, ...], folder: Path) -> Serving:
    """Make a contender with its tasks; random changes stand for training."""
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    masks = cycle([top_k(random_scores(shapes, seed), case.keep, head) for seed in range(min(MASKS, case.tasks))])
    if name == "dense":
        return Dense(model, case.tasks, folder)
    if name == "ours":
        return Ours(model, masks, case.tasks, folder)
    return Adapters(name, model, next(masks), head, case.tasks, folder)


def operations(serving: Serving, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """Return what is timed, in order; "forget" makes room and is no part of the report."""

    def answer() -> None:
        serving.switch()
        serving.model(**inputs)

    return {"switch": serving.switch, "answer": answer, "load": serving.load, "forget": serving.forget}
