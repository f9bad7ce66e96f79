"""One model that several processes train together, each on its share of every batch: data-parallel training.

All processes hold the same weights and the same mask, and only the gradients of what trains travel: of the kept
entries. Each function does nothing, or what a single process needs, unless ``problem.data_parallel``.

BatchNorm takes the statistics of a process's share, and the running statistics are those of the first process, as with
torch's DistributedDataParallel.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fishexp.delta.fingerprint import digest, fingerprint
from fishexp.errors import AllFailed, FishexpError
from fishexp.fisher.batches import select
from fishexp.training.adapted import Adapted
from fishexp.training.problem import Batch, Problem
from fishexp.training.streams import seed_torch
from fishexp.training.trainable import Trainable


def check_batch_size(problem: Problem, batch_size: int) -> None:
    """Refuse batches that leave a process without an example.

    Raises:
        FishexpError: If they do.
    """
    if problem.data_parallel and batch_size < (processes := problem.collectives.world_size):
        raise FishexpError(
            f"regime.batch_size={batch_size} leaves some of {processes} processes without an example; raise it, or "
            f"start at most {batch_size}"
        )


def shares(problem: Problem, batches: Sequence[Batch]) -> Iterator[Batch]:
    """Yield this process's share of each batch: every n-th example; none where it would be empty."""
    for inputs, labels in batches:
        if not problem.data_parallel:
            yield inputs, labels
        elif len(own := labels[problem.rank :: problem.collectives.world_size]):
            rows = slice(problem.rank, None, problem.collectives.world_size)
            yield select(inputs, rows, len(labels)), own


def add_up_gradients(problem: Problem, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Replace the gradients by their sums over the processes, the same bits at all of them.

    A parameter without a gradient in any process has none afterwards either, so that no weight decay reaches it.

    Args:
        loss: Of the own share, (); divided by the examples of the whole batch, as the gradients are.

    Returns:
        The sum of the losses, ().
    """
    if not problem.data_parallel:
        return loss
    there = torch.tensor([p.grad is not None for p in parameters], device=loss.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    row = torch.cat([loss.reshape(1), there, *(gradient.flatten() for gradient in gradients)])
    total = problem.collectives.all_reduce([row])
    found = total[1 : 1 + len(parameters)].tolist()
    sums = total[1 + len(parameters) :].split([p.numel() for p in parameters])
    for p, gradient, own_sum, processes in zip(parameters, gradients, sums, found, strict=True):
        if processes:
            p.grad = gradient.copy_(own_sum.view_as(gradient))
    return total[0].to(loss.dtype)


def any_process(problem: Problem, wanted: bool) -> bool:
    """Tell whether any of the processes wants something."""
    if not problem.data_parallel:
        return wanted
    return bool(problem.collectives.all_reduce([torch.tensor([int(wanted)])]).item())


def value_of_first(problem: Problem, value: float | None) -> float | None:
    """Return the value that the first process has, so that all conclude the same."""
    if not problem.data_parallel:
        return value
    row = torch.tensor([math.nan if value is None else value], dtype=torch.float64)
    first = problem.collectives.all_gather([row])[0].item()
    return None if math.isnan(first) else first


@torch.no_grad()
def take_running_statistics(problem: Problem) -> None:
    """Give all processes the floating-point buffers of the first."""
    buffers = [buffer for buffer in problem.model.buffers() if buffer.is_floating_point()]
    if not problem.data_parallel or not buffers:
        return
    row = torch.cat([buffer.flatten().double() for buffer in buffers])
    first = problem.collectives.all_gather([row])[0]
    for buffer, values in zip(buffers, first.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


def check_same_weights(problem: Problem, trainable: Trainable | Adapted, when: str) -> None:
    """Compare which entries train, and their values, over the processes.

    Args:
        when: For errors: ``after epoch 3``.

    Raises:
        AllFailed: If they differ; the same at all processes.
    """
    if not problem.data_parallel:
        return
    mask = "" if trainable.sparse is None else trainable.sparse.digest()
    values = {str(number): fingerprint(p.detach()) for number, p in enumerate(trainable.parameters)}
    values |= {name: fingerprint(tensor) for name, tensor in trainable.tensors().items()}
    texts = problem.collectives.all_gather_text([f"{mask} {digest(values)}"])
    for rank, text in enumerate(texts):
        if text != texts[0]:
            what = "other values" if text.split(" ")[0] == texts[0].split(" ")[0] else "another mask"
            raise AllFailed(f"process {rank} has {what} than process 0 {when}; all need the same kind of machine")


def take_stream_of_first(problem: Problem, generator: torch.Generator) -> None:
    """Bring a generator to where the first process's is: another has drawn less where it had no share of a batch."""
    if problem.data_parallel:
        generator.set_state(problem.collectives.all_gather([generator.get_state()])[0].clone())


def begin_own_streams(problem: Problem) -> None:
    """Have torch draw other numbers in each process, for dropout; those of the first are a single process's."""
    if problem.rank:
        seed_torch(problem.seed, "dropout", problem.rank)


def all_random_streams(problem: Problem) -> dict[str, Tensor]:
    """Return the states of torch's own generators in all processes: ``torch``, and ``torch.1`` of the second."""
    own = problem.random_streams()
    if not problem.data_parallel:
        return own
    found = {}
    for name, state in own.items():
        for rank, row in enumerate(problem.collectives.all_gather([state])):
            found[f"{name}.{rank}" if rank else name] = row.clone()
    return found


def resume_random_streams(problem: Problem, states: Mapping[str, Tensor]) -> None:
    """Set what :func:`all_random_streams` returned; a process that was not there then has a stream of its own."""
    suffix = f".{problem.rank}" if problem.rank else ""
    own = {name: states[name + suffix] for name in ("torch", "cuda") if name + suffix in states}
    if own:
        problem.set_random_streams(own)
    else:
        begin_own_streams(problem)
