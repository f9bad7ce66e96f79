"""Diagonal Fisher information of a model's weights, exact for every example."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.errors import FishexpError
from fishexp.fisher.batches import Batches, Inputs, logits_of, select
from fishexp.fisher.eval_mode import evaluation_mode, forked_random_streams
from fishexp.fisher.hooks import HookedBatch, Unbatchable, hooked_batch
from fishexp.fisher.layer_rules import Power, add_power
from fishexp.masks.topk import Scores
from fishexp.sparse.modules import plain

log = logging.getLogger(__name__)

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> mean over the batch
Labels: TypeAlias = Literal["true_label", "expected", "sampled"]


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
    r"""Estimate the Fisher information of each weight on its own: the mean over examples of the squared gradient.

    ``true_label`` is the empirical Fisher, with the gradient g of ``loss`` at the true label. ``expected`` is
    :math:`\sum_c p_c\, g_c^2` with the model's own probabilities p and g_c the gradient of -log p_c: exact, at the
    price of a backward pass per class. ``sampled`` draws one label per example from p, an unbiased estimate of it.

    Args:
        model: Returns logits (examples, classes), or an object with ``.logits``. It is scored in evaluation mode; its
            mode, buffers, gradients and the global random stream are as before afterwards. A BatchNorm that has seen no
            batch yet is scored with the statistics of ``batches``, since in evaluation mode it would be the identity.
            A batch takes one pass if each module that holds parameters takes and returns tensors, examples first; two
            examples are scored both ways to see whether that is so. If not, each example takes a pass, and the log
            says why.
        batches: (inputs, labels). Inputs are a tensor or a mapping of tensors (keyword arguments), examples first. The
            cut into batches does not change the result, an untrained BatchNorm's statistics aside.
        power: ``square``, or ``absolute`` for |g| instead of its square.
        loss: For ``true_label``; cross-entropy if None. ``expected`` and ``sampled`` know classes only.
        generator: Draws the labels of ``sampled``; if None, a new one with seed 0.
        as_is: Score in the mode the model is in, one example a pass, as the original code did: a BatchNorm in training
            mode then normalises each example by itself and its running statistics move.
        advance: Told the number of examples scored since it was last called, to show progress.

    Returns:
        name -> tensor of the parameter's shape for every parameter, frozen ones too; in float32 at least. Beside them
        the working memory is the activations of a batch and one buffer of the largest parameter's size, two if
        that is used more than once in a pass.

    Raises:
        FishexpError: If there is no example, or ``expected`` or ``sampled`` is asked of a model with one output.
    """
    with plain(model), nullcontext(batches) if as_is else evaluation_mode(model, batches) as scored:
        parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        generator = generator or torch.Generator().manual_seed(0)
        estimator = Estimator(model, _zeros(parameters), labels, power, loss, generator)
        count = 0
        batched = not as_is
        for inputs, targets in scored:
            if count == 0 and batched:
                batched = len(targets) > 1 and estimator.can_batch(inputs, targets)
            if batched:
                estimator.add_batch(inputs, targets)
            else:
                estimator.add_one_by_one(inputs, targets)
            count += len(targets)
            advance(len(targets))
    if count == 0:
        raise FishexpError("the Fisher information needs at least one example, got no batch")
    return {name: estimator.totals[p].div_(count) for name, p in parameters.items()}


def _zeros(parameters: Mapping[str, nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Return sums to begin with, in float32 at least: in bfloat16 a sum stops to grow after some 256 equal terms."""
    return {
        p: torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
        for p in parameters.values()
    }


@dataclass
class Estimator:
    """Add the powers of examples' gradients to ``totals``: of a batch in one pass, or of one example a pass."""

    model: nn.Module
    totals: dict[nn.Parameter, Tensor]
    labels: Labels
    power: Power
    loss: Loss | None
    generator: torch.Generator

    def add_batch(self, inputs: Inputs, targets: Tensor) -> None:
        """Score all examples in one pass, or each in its own if this batch's cannot be told apart."""
        try:
            self.add_in_one_pass(inputs, targets)
        except Unbatchable as reason:  # raised in the forward pass, before anything was added
            log.info("a batch is scored one example at a time: %s", reason)
            self.add_one_by_one(inputs, targets)

    def add_in_one_pass(self, inputs: Inputs, targets: Tensor) -> HookedBatch:
        """Score all examples in one pass.

        Raises:
            Unbatchable: If the examples cannot be told apart in a module.
        """
        with hooked_batch(len(targets), self.model, self.totals, self.power) as batch:
            objectives = self.objectives(logits_of(self.model, inputs), targets)
            for j, objective in enumerate(objectives, 1):
                batch.backward(objective, more=j < len(objectives))
        return batch

    def add_one_by_one(self, inputs: Inputs, targets: Tensor, sign: int = 1) -> None:
        """Score each example in a pass of its own, which is right for every model."""
        with _added_gradients(self.totals, self.power, sign):
            for i in range(len(targets)):
                logits = logits_of(self.model, select(inputs, slice(i, i + 1), len(targets)))
                objectives = self.objectives(logits, targets[i : i + 1])
                for j, objective in enumerate(objectives, 1):
                    objective.backward(retain_graph=j < len(objectives), inputs=list(self.totals))

    def objectives(self, logits: Tensor, targets: Tensor) -> list[Tensor]:
        """Return scalars whose powers of gradients add up to the score: sums with a term for each row of ``logits``."""
        rows = range(len(logits))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.labels == "true_label":
            if self.loss is None:
                return [F.cross_entropy(logits, targets, reduction="sum")]
            return [torch.stack([self.loss(logits[i : i + 1], targets[i : i + 1]) for i in rows]).sum()]
        classes = logits.shape[-1]
        if classes == 1:
            raise FishexpError(
                f"labels={self.labels} needs classes to draw from, but the model has one output; use true_label"
            )
        log_probs = logits.log_softmax(-1)
        probs = log_probs.detach().exp()
        if self.labels == "expected":  # the weight p_c of a power of the gradient, as a factor of the gradient
            factors = probs.sqrt() if self.power == "square" else probs
            return [(factors[:, c] * log_probs[:, c]).sum() for c in range(classes)]
        drawn = [torch.multinomial(p, 1, generator=self.generator) for p in probs.to(self.generator.device)]
        return [log_probs.gather(1, torch.stack(drawn).to(logits.device)).sum()]

    def can_batch(self, inputs: Inputs, targets: Tensor) -> bool:
        """Tell whether two different examples have the same scores in one pass as in two; ``totals`` must be zero.

        This finds weights that are used other than by a call of their module, and tensors whose examples are not first.
        """
        pair = _two_different(inputs, len(targets))
        try:
            with forked_random_streams(self.model):
                wrong = self._wrong_in_a_batch(select(inputs, pair, len(targets)), targets[pair])
        except FishexpError:
            raise
        except Exception as reason:  # whatever it is: if it is the model's own, scoring one at a time raises it, too
            log.info("scoring one example at a time: %s", reason)
            return False
        finally:
            for total in self.totals.values():
                total.zero_()
        if wrong is not None:
            log.warning(
                "scoring one example at a time, as in a batch the scores of %s would be wrong: it is used other than "
                "by calling its module, or the examples are not in the first dimension",
                wrong,
            )
        return wrong is None

    def _wrong_in_a_batch(self, inputs: Inputs, targets: Tensor) -> str | None:
        """Find a parameter whose scores differ by more than rounding, its largest difference by its largest score.

        Gradients that are zero but for rounding, as of the biases of attention keys, are compared with the largest of
        all. ``totals`` becomes the difference.
        """
        eps = self._with_new_generator().add_in_one_pass(inputs, targets).eps
        largest = {p: total.max().item() for p, total in self.totals.items() if total.numel()}
        noise = max(largest.values()) * (16 * eps) ** (2 if self.power == "square" else 1)
        self._with_new_generator().add_one_by_one(inputs, targets, sign=-1)
        for name, p in self.model.named_parameters():
            if p in largest:
                difference = self.totals[p].abs().max().item()
                if not difference <= 4 * eps**0.5 * largest[p] + noise or (largest[p] == 0 and difference):
                    return name
        return None

    def _with_new_generator(self) -> "Estimator":
        return replace(self, generator=torch.Generator().manual_seed(0))


@contextmanager
def _added_gradients(totals: Mapping[nn.Parameter, Tensor], power: Power, sign: int) -> Iterator[None]:
    """Let each backward pass add the powers of its gradients to ``totals``; leave no gradient or mark on the weights.

    Frozen parameters are scored as well; they are frozen again afterwards.
    """
    before = {p: (p.requires_grad, p.grad) for p in totals}

    def hook(p: Tensor) -> None:
        assert isinstance(p, nn.Parameter)
        assert p.grad is not None
        with torch.no_grad():
            add_power(totals[p], p.grad, power, sign)
        p.grad = None

    handles = []
    try:
        for p in totals:
            p.grad = None
            handles.append(p.requires_grad_(True).register_post_accumulate_grad_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for p, (trains, grad) in before.items():
            p.requires_grad_(trains)
            p.grad = grad


def _two_different(inputs: Inputs, examples: int) -> list[int]:
    """Return the indices of the first example and of the next that is not the same."""
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    for i in range(1, examples):
        if any(not torch.equal(value[0], value[i]) for value in values if len(value) == examples):
            return [0, i]
    return [0, 1]
