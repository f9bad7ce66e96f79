"""Diagonal Fisher information of a model's weights, exact for every example."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.errors import FishexpError
from fishexp.masks import Scores

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]  # first dimension: examples; a mapping is passed as keyword arguments
Batches: TypeAlias = Iterable[tuple[Inputs, Tensor]]  # (inputs, labels)
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> mean over the batch
Labels: TypeAlias = Literal["true_label", "expected", "sampled"]
Power: TypeAlias = Literal["square", "absolute"]


def diagonal_fisher(
    model: nn.Module,
    batches: Batches,
    labels: Labels = "true_label",
    power: Power = "square",
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
    as_is: bool = False,
    advance: Callable[[int], None] = lambda examples: None,
) -> Scores:
    r"""Fisher information of each weight on its own: the mean over examples of the squared gradient.

    ``true_label`` is the empirical Fisher, with the gradient g of ``loss`` at the true label. ``expected`` is
    :math:`\sum_c p_c\, g_c^2` with the model's own probabilities p and g_c the gradient of -log p_c: exact, at the
    price of a backward pass per class. ``sampled`` draws one label per example from p, an unbiased estimate of it.

    Args:
        model: Returns logits (examples, classes), or an object with ``.logits``. It is scored in evaluation mode; its
            mode, buffers, gradients and the global random stream are as before afterwards. A BatchNorm that has seen no
            batch yet is scored with the statistics of ``batches``, since in evaluation mode it would be the identity.
        batches: (inputs, labels). Inputs are a tensor or a mapping of tensors (keyword arguments), examples first. The
            cut into batches does not change the result, an untrained BatchNorm's statistics aside.
        power: ``square``, or ``absolute`` for |g| instead of its square.
        loss: For ``true_label``; cross-entropy if None. ``expected`` and ``sampled`` know classes only.
        generator: Draws the labels of ``sampled``; if None, a new one with seed 0.
        as_is: Score in the mode the model is in, one example a pass, as the original code did: a BatchNorm in training
            mode then normalises each example by itself and its running statistics move.
        advance: Told the number of examples scored since it was last called, to show progress.

    Returns:
        name -> float tensor of the parameter's shape for every parameter, frozen ones too.

    Raises:
        FishexpError: If there is no example, or ``expected`` or ``sampled`` is asked of a model with one output.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    totals = {name: torch.zeros_like(p, memory_format=torch.contiguous_format) for name, p in parameters.items()}
    generator = generator or torch.Generator().manual_seed(0)
    count = 0
    evaluation = nullcontext(batches) if as_is else _evaluation_mode(model, batches)
    with _differentiable(parameters.values()), evaluation as scored:
        for inputs, targets in scored:
            for i in range(len(targets)):
                logits = logits_of(model, _example(inputs, i))
                objectives = _objectives(logits, targets[i : i + 1], labels, loss, generator)
                for j, (weight, objective) in enumerate(objectives):
                    more = j + 1 < len(objectives)
                    gradients = torch.autograd.grad(
                        objective, list(parameters.values()), retain_graph=more, allow_unused=True
                    )
                    for total, gradient in zip(totals.values(), gradients, strict=True):
                        if gradient is not None:
                            _add_power(total, gradient, weight, power)
                count += 1
                advance(1)
    if count == 0:
        raise FishexpError("the Fisher information needs at least one example, got no batch")
    return {name: total / count for name, total in totals.items()}


def _add_power(total: Tensor, gradient: Tensor, weight: float | Tensor, power: Power) -> None:
    """``total += weight * gradient**2`` (or its absolute value)."""
    if power == "absolute":
        total.add_(gradient.abs().mul_(weight))
    elif isinstance(weight, Tensor):
        total.addcmul_(gradient, gradient.mul(weight))
    else:
        total.addcmul_(gradient, gradient, value=weight)


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """What the model returns, be it a tensor or an object with ``.logits``."""
    outputs = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return getattr(outputs, "logits", outputs)


def _example(inputs: Inputs, i: int) -> Inputs:
    if isinstance(inputs, Mapping):
        return {key: value[i : i + 1] for key, value in inputs.items()}
    return inputs[i : i + 1]


def _objectives(
    logits: Tensor, target: Tensor, labels: Labels, loss: Loss | None, generator: torch.Generator
) -> list[tuple[Tensor | float, Tensor]]:
    """(weight, scalar to differentiate) for one example's logits (1, classes)."""
    if labels == "true_label":
        return [(1.0, (loss or F.cross_entropy)(logits, target))]
    if logits.shape[-1] == 1:
        raise FishexpError(f"labels={labels} needs classes to draw from, but the model has one output; use true_label")
    log_probs = logits.log_softmax(-1)[0]  # (classes,)
    probs = log_probs.detach().exp()
    if labels == "expected":
        return list(zip(probs, log_probs, strict=True))
    drawn = torch.multinomial(probs.to(generator.device), 1, generator=generator)
    return [(1.0, log_probs[drawn.to(log_probs.device)].sum())]


@contextmanager
def _differentiable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Frozen parameters are scored as well; they are frozen again afterwards."""
    frozen = [p for p in parameters if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


@contextmanager
def _evaluation_mode(model: nn.Module, batches: Batches) -> Iterator[Batches]:
    """The model in evaluation mode with usable BatchNorm statistics; modes, buffers and random streams are restored."""
    modes = {module: module.training for module in model.modules()}
    untrained = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _is_untrained(module)
    ]
    buffers = {buffer: buffer.clone() for module in untrained for buffer in module.buffers()}
    devices = {p.device for p in model.parameters() if p.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            model.eval()
            if untrained:
                batches = list(batches)
                _calibrate(model, untrained, batches)
            yield batches
    finally:
        for module, training in modes.items():
            module.training = training
        for buffer, saved in buffers.items():
            buffer.copy_(saved)


def _is_untrained(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """Initial statistics. The counter alone does not tell: published weights may lack it."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked != 0:
        return False
    return not bool(norm.running_mean.any()) and bool((norm.running_var == 1).all())


@torch.no_grad()
def _calibrate(model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm], batches: Batches) -> None:
    """Give ``norms`` the mean of the batches' statistics, each batch counting alike."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a cumulative mean instead of an exponential one
        norm.train()
    sizes = [len(targets) for _, targets in batches]
    for (inputs, _), size in zip(batches, sizes, strict=True):
        if size > 1 or max(sizes) == 1:  # a single example has no variance over a 1x1 map
            logits_of(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
