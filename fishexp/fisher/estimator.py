"""Powers of each example's gradient: a batch in one pass, or one example a pass."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.errors import FishexpError
from fishexp.fisher.batches import Inputs, logits_of, select
from fishexp.fisher.eval_mode import forked_random_streams
from fishexp.fisher.hooks import Batch, Unbatchable, batch_of
from fishexp.fisher.layer_rules import Power, add_power

log = logging.getLogger(__name__)

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> mean over the batch
Labels: TypeAlias = Literal["true_label", "expected", "sampled"]


@dataclass
class Scoring:
    """How examples are scored; each method adds the powers of their gradients to ``totals``."""

    model: nn.Module
    totals: dict[nn.Parameter, Tensor]
    labels: Labels
    power: Power
    loss: Loss | None
    generator: torch.Generator

    def together(self, inputs: Inputs, targets: Tensor) -> None:
        """One pass for all examples; a batch that cannot be scored so is scored one example at a time."""
        try:
            self.batch(inputs, targets)
        except Unbatchable as reason:  # raised in the forward pass, before anything was added
            log.info("a batch is scored one example at a time: %s", reason)
            self.apart(inputs, targets)

    def batch(self, inputs: Inputs, targets: Tensor) -> Batch:
        """One pass for all examples."""
        with batch_of(len(targets), self.model, self.totals, self.power) as batch:
            objectives = self.objectives(logits_of(self.model, inputs), targets)
            for j, objective in enumerate(objectives, 1):
                batch.backward(objective, more=j < len(objectives))
        return batch

    def apart(self, inputs: Inputs, targets: Tensor, sign: int = 1) -> None:
        """A pass for each example: right for every model."""
        with _added_gradients(self.totals, self.power, sign):
            for i in range(len(targets)):
                logits = logits_of(self.model, select(inputs, slice(i, i + 1), len(targets)))
                objectives = self.objectives(logits, targets[i : i + 1])
                for j, objective in enumerate(objectives, 1):
                    objective.backward(retain_graph=j < len(objectives), inputs=list(self.totals))

    def objectives(self, logits: Tensor, targets: Tensor) -> list[Tensor]:
        """Scalars whose powers of gradients add up to the score: sums with a term for each row of ``logits``."""
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
        """Whether two different examples have the same scores together as one at a time; ``totals`` must be zero.

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
        """The first parameter whose scores differ by more than rounding, each largest difference by its largest score.

        Gradients that are zero but for rounding, as of the biases of attention keys, are compared with the largest of
        all. ``totals`` becomes the difference.
        """
        eps = self._with_new_generator().batch(inputs, targets).eps
        own = {p: total.max().item() for p, total in self.totals.items() if total.numel()}
        noise = max(own.values()) * (16 * eps) ** (2 if self.power == "square" else 1)
        self._with_new_generator().apart(inputs, targets, sign=-1)
        for name, p in self.model.named_parameters():
            if p in own:
                difference = self.totals[p].abs().max().item()
                if not difference <= 4 * eps**0.5 * own[p] + noise or (own[p] == 0 and difference):
                    return name
        return None

    def _with_new_generator(self) -> "Scoring":
        return replace(self, generator=torch.Generator().manual_seed(0))


@contextmanager
def _added_gradients(totals: Mapping[nn.Parameter, Tensor], power: Power, sign: int) -> Iterator[None]:
    """Each backward pass adds the powers of its gradients to ``totals``; no gradient stays, and no mark on the weights.

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
    """The first example and the next that is not the same."""
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    for i in range(1, examples):
        if any(not torch.equal(value[0], value[i]) for value in values if len(value) == examples):
            return [0, i]
    return [0, 1]
