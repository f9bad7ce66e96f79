"""Forward and backward passes on a GPU, replayed as CUDA graphs: the host asks for one thing instead of thousands."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fishexp.fisher.batches import Inputs, mapped, tensors_of
from fishexp.fisher.eval_mode import forked_random_streams

# batches of a shape that are run as they stand before it is captured, which takes as long as several of them
OFTEN = 10
_NOISE = 0.01  # of all gradients' square, what may be rounding in any one of them
# how far a graph's gradient may be from that of the passes themselves, of which some add up in any order
TOLERANCE = {"fp32": 0.01, "bf16": 0.1}

Passes: TypeAlias = Callable[[Inputs, Tensor], Tensor]  # returns the loss, say, and leaves the gradients in .grad
OwnPasses: TypeAlias = Callable[[], Tensor]  # the same of one batch


class Captured(Protocol):
    """Replay what was captured."""

    def replay(self) -> None:
        """Compute everything anew from what its inputs hold by now, into the tensors that it had."""


Capture: TypeAlias = Callable[[OwnPasses], tuple[Captured, Tensor]]  # returns what the passes return, too


class GraphedPasses:
    """Run the passes of batches; a shape of batch that comes often is captured on a GPU, and replayed from then on.

    Without it, a GPU waits for Python: sparse training has a few more kernels to ask for than dense training has.

    A replay does again what the device did when it was captured, and nothing of what the host did. So no graph is made
    where a pass waits for the device, draws from a generator on the host, or leaves other numbers or tensors in the
    modules, and each is compared, once, with the passes themselves on the same batch. Where that fails, or the memory
    would not do, all batches run as they stand.

    Args:
        passes: Runs the passes of a batch as they stand.
        parameters: All for which they leave something in ``.grad``.
        tolerance: How far that of a replay may be from theirs, relative to its norm.
        say: Told that there are graphs, or why there are none; the same line again and again.
        capture: Makes a graph.
        sums: What the passes add to, in the order of ``parameters``, and leave in ``.grad``; none if they leave
            gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        passes: Passes,
        parameters: Sequence[nn.Parameter],
        tolerance: float,
        say: Callable[[str], None],
        capture: Capture | None = None,
        sums: Sequence[Tensor] = (),
    ) -> None:
        self._model, self._device, self._passes = model, device, passes
        self._parameters, self._sums, self._tolerance, self._say = parameters, sums, tolerance, say
        self._capture = capture or CudaCapture(device).capture
        self._often: Counter[Any] = Counter()
        self._graphs: dict[Any, _Graph] = {}
        self._ended = False

    def __call__(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """Do what the passes do. What is returned, and left in ``.grad``, holds until the next call."""
        key = _shape(inputs, labels, self._device)
        if self._ended or key is None or any(p.grad is not None for p in self._parameters):
            return self._passes(inputs, labels)
        if graph := self._graphs.get(key):
            return graph.replay(inputs, labels)
        self._often[key] += 1
        if self._often[key] <= OFTEN:
            return self._passes(inputs, labels)
        copies = 2 * sum(total.nbytes for total in self._sums)  # what they were, and what a replay makes of them
        if not _memory_for_two(self._device, copies):
            self._often[key] = 0  # there may be more later on
            self._say(
                "passes of a shape of batch are no CUDA graph: the device has not twice the memory that they take"
            )
            return self._passes(inputs, labels)
        return self._captured(key, inputs, labels)

    def _captured(self, key: Any, inputs: Inputs, labels: Tensor) -> Tensor:
        """Run the passes, and make the graph of their shape if it does the same."""
        tried: tuple[_Graph, Tensor, list[Tensor | None]] | str
        with _state_restored(self._model, self._sums) as before:
            try:
                # so that the replay begins with what the passes begin with, and draws what they are going to draw
                with _state_restored(self._model, self._sums):
                    first = next(iter(self._graphs.values()), None)
                    graph = _Graph(self._model, self._passes, self._parameters, inputs, labels, self._capture, first)
                tried = graph, graph.replay(inputs, labels).clone(), _taken(self._parameters, copy=True)
            except Exception as error:  # of many kinds; if it is the model's own, the passes raise it, too
                tried = _reason(error)
                _taken(self._parameters)
        loss = self._passes(inputs, labels)
        gradients = [p.grad for p in self._parameters]
        wrong = tried if isinstance(tried, str) else _difference(loss, gradients, *tried[1:], before, self._tolerance)
        if isinstance(tried, str) or wrong:
            self._graphs.clear()
            self._ended = True
            self._say(f"passes are no CUDA graphs, which may take longer: {wrong}")
        else:
            if not self._graphs:
                self._say("passes are CUDA graphs from here on, for each shape of batch that comes often")
            self._graphs[key] = tried[0]
        return loss


class _Graph:
    """Hold the passes of a shape of batch as they were captured, and their tensors.

    Args:
        first: The graph whose gradients' memory this one's share, as those of a dense model are as large as it; None
            for memory of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        passes: Passes,
        parameters: Sequence[nn.Parameter],
        inputs: Inputs,
        labels: Tensor,
        capture: Capture,
        first: "_Graph | None",
    ) -> None:
        inputs, labels = mapped(inputs, Tensor.clone), labels.clone()
        self._inputs, self._labels, self._parameters = inputs, labels, parameters

        def own() -> Tensor:
            _taken(parameters)
            loss = passes(inputs, labels)
            if first is not None:
                _move_gradients(parameters, first._gradients)
            return loss

        with _nothing_done_on_the_host(model):
            self._captured, self._loss = capture(own)
        self._gradients = _taken(parameters)

    def replay(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """Run the passes of another batch of the shape."""
        new = tensors_of(inputs)
        for name, own in tensors_of(self._inputs).items():
            own.copy_(new[name], non_blocking=True)
        self._labels.copy_(labels, non_blocking=True)
        self._captured.replay()
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            p.grad = gradient
        return self._loss


class CudaCapture:
    """Capture on a GPU; all graphs share a pool of memory, as no two are ever replayed at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: Any = None

    def capture(self, passes: OwnPasses) -> tuple[Captured, Tensor]:
        """Run the passes, for what is set up when it is first needed, then capture them without running them."""
        # the present stream is entered for its end: older versions of torch stay in that of a failed capture
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            if self._pool is None:
                self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                passes()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    loss = passes()
            except Exception:
                self._end_allocation()
                raise
            return graph, loss

    def _end_allocation(self) -> None:
        """Let the allocator leave the pool of a capture that failed, if it has not: its cache could not be freed."""
        with suppress(Exception):  # that it has; it is no public function
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)


@contextmanager
def uncached_autocast(device: torch.device) -> Iterator[None]:
    """Let autocast, if it is on, narrow weights anew: what it keeps from before belongs to no graph."""
    torch.clear_autocast_cache()
    kind = device.type
    with torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    ):
        yield


def _shape(inputs: Inputs, labels: Tensor, device: torch.device) -> Any:
    """Return what batches of one graph have in common; None if there is more than tensors of the device in them.

    What a tensor on the host holds, such as the lengths of sequences, passes may read without waiting for the device.
    """
    tensors = tensors_of(inputs)
    if not isinstance(inputs, Tensor) and len(tensors) < len(inputs):
        return None
    if any(tensor.device.type != device.type for tensor in (*tensors.values(), labels)):
        return None
    return tuple((name, t.shape, t.stride(), t.dtype) for name, t in [*tensors.items(), ("labels", labels)])


def _memory_for_two(device: torch.device, copies: int) -> bool:
    """Tell whether the most that passes ever took beside what there is now could be taken twice, and copies beside it.

    A graph keeps its memory to itself, while evaluation and shapes that come seldom take theirs from the rest.

    Args:
        copies: Their bytes.
    """
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    unused = torch.cuda.memory_reserved(device) - allocated
    return free + unused > 2 * (torch.cuda.max_memory_allocated(device) - allocated) + copies


@contextmanager
def _nothing_done_on_the_host(model: nn.Module) -> Iterator[None]:
    """Refuse what draws random numbers on the host, counts or replaces tensors, as no replay would; undo it."""
    own, numpy, of_torch, held = random.getstate(), np.random.get_state(), torch.get_rng_state(), _held(model)
    try:
        yield
        same = all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy, strict=True))
        if not (same and random.getstate() == own and torch.equal(torch.get_rng_state(), of_torch)):
            raise RuntimeError("the model draws random numbers on the host")
        if changed := [name for place, before in held for name in _changed(place, before)]:
            raise RuntimeError(f"each pass puts something else into {changed[0]} of the model, as no replay would")
    finally:
        random.setstate(own)
        np.random.set_state(numpy)
        torch.set_rng_state(of_torch)
        for place, before in held:
            for name in _changed(place, before):
                place.pop(name, None)
                place.update({name: before[name]} if name in before else {})


def _held(model: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return where modules hold things, attributes and buffers, with a copy of each by name."""
    return [(place, dict(place)) for module in model.modules() for place in (vars(module), module._buffers)]


def _changed(place: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """List the names of what is another tensor than before, or another number."""
    pairs = [(name, place.get(name), before.get(name)) for name in place.keys() | before.keys()]
    return [
        name
        for name, now, then in pairs
        if now is not then
        and (isinstance(now, Tensor) or isinstance(then, Tensor) or (isinstance(now, int | float) and now != then))
    ]


@contextmanager
def _state_restored(model: nn.Module, sums: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Undo what passes leave behind beside gradients: in sums, running statistics, and torch's random streams.

    Yields:
        What the sums were.
    """
    moved = [*sums, *model.buffers()]
    before = [tensor.clone() for tensor in moved]
    with forked_random_streams(model):
        try:
            yield before[: len(sums)]
        finally:
            with torch.no_grad():
                for tensor, value in zip(moved, before, strict=True):
                    tensor.copy_(value)


def _taken(parameters: Sequence[nn.Parameter], *, copy: bool = False) -> list[Tensor | None]:
    """Take the gradients from the parameters, which have none afterwards."""
    gradients = [p.grad.clone() if copy and p.grad is not None else p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return gradients


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong first: after it CUDA only says that a capture has failed."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0] or type(error).__name__


def _move_gradients(parameters: Sequence[nn.Parameter], places: Sequence[Tensor | None]) -> None:
    """Write the gradients into ``places``, which become the parameters' own, where there is one."""
    moved = [(p, p.grad, place) for p, place in zip(parameters, places, strict=True)]
    moved = [(p, grad, place) for p, grad, place in moved if grad is not place]  # as sums are
    pairs = [(p, grad, place) for p, grad, place in moved if grad is not None and place is not None]
    if pairs:
        torch._foreach_copy_([place for *_, place in pairs], [grad for _, grad, _ in pairs])  # pyright: ignore[reportPrivateImportUsage]
    for p, _, place in pairs:
        p.grad = place


def _difference(
    loss: Tensor,
    gradients: Sequence[Tensor | None],
    replayed_loss: Tensor,
    replayed: Sequence[Tensor | None],
    before: Sequence[Tensor],
    tolerance: float,
) -> str:
    """Say what a replay does otherwise than the passes by more than rounding; nothing if it does the same.

    Args:
        before: Of sums, what they were, which is no part of what is compared.
    """
    if any((gradient is None) != (again is None) for gradient, again in zip(gradients, replayed, strict=True)):
        return "a replay brings gradients to other weights"
    pairs = [(g, again) for g, again in zip(gradients, replayed, strict=True) if g is not None and again is not None]
    own = (g - was for (g, _), was in zip(pairs, before, strict=True)) if before else (g for g, _ in pairs)
    none = torch.zeros((), dtype=torch.float64, device=loss.device)  # in which squares of squares do not vanish
    distances, sizes = (
        torch.stack([none, *(torch.linalg.vector_norm(tensor, dtype=none.dtype).square() for tensor in tensors)])
        for tensors in ((g - again for g, again in pairs), own)
    )
    # of a small gradient, a sum of large ones that cancel, rounding may be the larger part
    close = (distances <= tolerance**2 * (sizes + _NOISE * sizes.sum())).all()
    same = close and (loss - replayed_loss).norm() <= tolerance * loss.norm()
    return "" if same else "a replay of the same batch has another gradient"
