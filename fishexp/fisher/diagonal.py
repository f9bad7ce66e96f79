"""Diagonal Fisher information of a model's weights, exact for every example."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fishexp.errors import FishexpError
from fishexp.fisher.batched import batched_pass
from fishexp.fisher.batches import Batches, Inputs, has_examples, logits_of, mapped, select, tensors_of
from fishexp.fisher.cuda_graphs import TOLERANCE, GraphedPasses, uncached_autocast
from fishexp.fisher.eval_mode import evaluation_mode, forked_random_streams, gradients_kept
from fishexp.fisher.layouts import Unbatchable
from fishexp.fisher.losses import IGNORED, Labels, Loss, check_loss, example_losses, expected_terms, sampled_term
from fishexp.fisher.powers import Power, add_power
from fishexp.fisher.shared_inputs import DEPENDS, difference_alone, inputs_shared_by_examples
from fishexp.fisher.tf32 import without_tf32
from fishexp.masks.topk import Scores
from fishexp.sparse.modules import plain

log = logging.getLogger(__name__)


def diagonal_fisher(
    model: nn.Module,
    batches: Batches,
    labels: Labels = "true_label",
    power: Power = "square",
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
    as_is: bool = False,
    advance: Callable[[int], None] = lambda examples: None,
    cuda_graphs: bool = False,
) -> Scores:
    """Estimate the Fisher information of each weight on its own: the mean over examples of the squared gradient.

    ``true_label`` is the empirical Fisher, with the gradient g of ``loss`` at the true label. ``expected`` is the sum
    over classes c of p_c times the square of g_c, with the model's own probabilities p and g_c the gradient of
    -log p_c: exact, at the price of a backward pass per class, and per position of an example that has several.
    ``sampled`` draws a label for each position of an example from p, an unbiased estimate of it.

    An example's loss is the sum over its own positions, such as tokens or pixels, without those labelled -100. What a
    mean over the batch divides by, be it the number of tokens or the sum of class weights, is no part of it.

    A batch takes one pass. Which example each part of a gradient belongs to is proven from autograd's graph or, where
    that does not tell, found from two more backward passes, in every batch. Two examples of the first batch are scored
    both ways, in float32 at least. In each batch the logits of one example alone have to be the same; this may miss
    an influence between others that has no gradient. Where weights are used by something other than functions of torch
    (a script module, an autograd Function of your own), or examples have a part in each other, each example takes a
    pass, and a warning says why.

    Args:
        model: Returns logits, or an object, tuple or mapping with ``logits``: (examples, classes), or with as many
            more dimensions as the labels have, before or behind the classes. It is scored in evaluation mode; its
            mode, buffers, gradients and the global random stream are as before afterwards. A BatchNorm that has seen no
            batch yet is scored with the statistics of ``batches``, since in evaluation mode it would be the identity.
        batches: (inputs, labels). Inputs are a tensor, a mapping (keyword arguments) or a tuple (positional ones),
            whose tensors have the examples first or are shared by all. Labels are (examples, ...). The cut into batches
            does not change the result, an untrained BatchNorm's statistics aside.
        power: ``square``, or ``absolute`` for ``|g|`` instead of its square.
        loss: For ``true_label``; cross-entropy if None. Losses of torch are summed over an example's positions,
            whatever their reduction. One of your own returns the mean over the batch, or the loss of each example.
            ``expected`` and ``sampled`` know classes only.
        generator: Draws the labels of ``sampled``; if None, a new one with seed 0.
        as_is: Score in the mode the model is in, one example a pass, as the original code did: a BatchNorm in training
            mode then normalises each example by itself and its running statistics move.
        advance: Told the number of examples scored since it was last called, to show progress.
        cuda_graphs: On a GPU, replay the passes of examples that are scored alone
            (:mod:`fishexp.fisher.cuda_graphs`), but not those whose labels are drawn, nor of weights in less than
            float32 or on several devices. It takes the memory of an example's passes again, and while a graph is made
            that of two more copies of the scores.

    Returns:
        name -> tensor of the parameter's shape for every parameter, frozen ones too; in float32 at least. Beside them
        the working memory is the activations of a batch and one buffer of the largest parameter's size, two if
        that is used more than once in a pass.

    Raises:
        FishexpError: If there is no example that counts, logits and labels do not tell which dimension has the classes,
            ``expected`` or ``sampled`` is asked of a model with one output, ``loss`` divides by a sum over the batch,
            no weight has a part in the logits, or a parameter is complex.
    """
    for name in (name for name, p in model.named_parameters() if p.is_complex()):
        raise FishexpError(f"{name} is complex; keep it as a real parameter and take torch.view_as_complex of it")
    with plain(model), nullcontext(batches) if as_is else evaluation_mode(model, batches) as scored:
        parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        generator = generator or torch.Generator().manual_seed(0)
        estimator = Estimator(model, _zeros(parameters.values()), labels, power, loss, generator)
        if cuda_graphs and labels != "sampled":  # which are drawn on the host
            estimator.graphs = _graphs(model, estimator.totals, estimator.run_alone)
        estimator.batched = False if as_is else None
        estimator.add_all(scored, advance)
    return {name: estimator.totals[p].div_(estimator.count) for name, p in parameters.items()}


def _zeros(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Return sums to begin with, in float32 at least: in bfloat16 a sum stops to grow after some 256 equal terms."""
    return {
        p: torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device) for p in parameters
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
    first: tuple[Tensor, Tensor] | None = None  # logits and labels, to look at the loss of more than one example
    count: int = 0  # examples scored
    labelled: Tensor | bool = False  # whether any label is not that of what is ignored
    warned: bool = False
    shared: frozenset[int | str] = frozenset()  # inputs known to have no part for each example
    batched: bool | None = None  # whether a batch may take one pass; None until two examples were looked at
    graphs: GraphedPasses | None = None  # of examples alone

    def add_all(self, batches: Batches, advance: Callable[[int], None]) -> None:
        """Score all batches, and let go of the graphs: they hold this object, whose memory would wait for gc."""
        try:
            for inputs, targets in batches:
                self.add(inputs, targets)
                advance(len(targets))
        finally:
            self.graphs = None
        if self.count == 0:
            raise FishexpError("the Fisher information needs at least one example, got no batch")
        if self.labels != "true_label" and not self.labelled:
            raise FishexpError(f"all labels are {IGNORED}, of what does not count; give what counts any other label")

    def add(self, inputs: Inputs, targets: Tensor) -> None:
        """Score all examples in one pass, or each in its own if this batch's cannot be told apart."""
        count = len(targets)
        self.labelled = (targets != IGNORED).any() | self.labelled
        if self.batched is None and count > 1:
            self.batched = self.can_batch(inputs, targets)
        if self.batched and count > 1:
            state = self.generator.get_state()
            try:
                self.add_in_one_pass(inputs, targets, check=self.count // count % count)
            except Unbatchable as reason:  # raised before anything was added
                self.warn(reason)
                self.generator.set_state(state)
                self.add_one_by_one(inputs, targets)
        else:
            self.add_one_by_one(inputs, targets)
        self.count += count

    def add_in_one_pass(self, inputs: Inputs, targets: Tensor, check: int | None = None) -> Tensor:
        """Score all examples in one pass; return their logits.

        Args:
            check: An example whose logits alone have to be those in the batch. Gradients do not tell whether a model
                computes an example in another way because of what is in the others.

        Raises:
            Unbatchable: If the examples cannot be told apart.
        """
        count = len(targets)
        with batched_pass(count, self.model, self.totals, self.power) as batch:
            logits = batch.forward(inputs)
            self.shared |= {key for key, value in tensors_of(inputs).items() if not has_examples(value, count)}
            if check is not None and difference_alone(self.model, inputs, count, self.shared, logits, check) > 1:
                raise Unbatchable(DEPENDS)
            batch.backward(logits, self.objectives(logits, targets))
        self.check_loss(logits.detach(), targets)
        return logits.detach()

    def add_one_by_one(
        self, inputs: Inputs, targets: Tensor, sign: int = 1, shared: frozenset[int | str] | None = None
    ) -> None:
        """Score each example in a pass of its own, which is right for every model.

        Args:
            shared: Inputs that have no part for each example; None to find out.
        """
        if shared is None:
            shared = inputs_shared_by_examples(self.model, inputs, len(targets), self.warn)
        inputs = mapped(inputs, Tensor.detach)  # which gets no gradient then
        examples = [
            (select(inputs, slice(i, i + 1), len(targets), shared), targets[i : i + 1]) for i in range(len(targets))
        ]
        if self.graphs is None:
            with _added_gradients(self.totals, self.power, sign) as backward:
                found = [self.backward_alone(*example, backward) for example in examples]
        else:
            with gradients_kept(self.totals):
                found = [self.replay_alone(self.graphs, *example) for example in examples]
        self.check_loss(torch.cat(found), targets)

    def backward_alone(self, inputs: Inputs, target: Tensor, backward: Callable[[Tensor, bool], None]) -> Tensor:
        """Run the passes of one example; return its logits."""
        logits = logits_of(self.model, inputs)
        objectives = self.objectives(logits, target)
        for j, objective in enumerate(objectives, 1):
            backward(objective.sum(), j < len(objectives))
        return logits.detach()

    def run_alone(self, inputs: Inputs, target: Tensor) -> Tensor:
        """Score one example in a pass of its own, and leave the sums in ``.grad``; return its logits."""
        with uncached_autocast(target.device), _added_gradients(self.totals, self.power, 1) as backward:
            logits = self.backward_alone(inputs, target, backward)
        for p, total in self.totals.items():
            p.grad = total
        return logits

    def replay_alone(self, graphs: GraphedPasses, inputs: Inputs, target: Tensor) -> Tensor:
        """Do the same by a replay, once there is one, and leave nothing in ``.grad``."""
        logits = graphs(inputs, target).clone()
        for p in self.totals:
            p.grad = None
        return logits

    def objectives(self, logits: Tensor, targets: Tensor) -> list[Tensor]:
        """Return (examples,) terms whose powers of gradients add up to the score."""
        if logits.dim() == 0 or len(logits) != len(targets):
            raise FishexpError(
                f"the model returns {tuple(logits.shape)} for {len(targets)} labels; examples come first"
            )
        if not logits.requires_grad:
            raise FishexpError("the model returns logits without a gradient: none of its weights has a part in them")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.labels == "true_label":
            return [example_losses(self.loss, logits, targets)]
        if self.labels == "expected":
            return expected_terms(logits, targets, self.power)
        return [sampled_term(logits, targets, self.generator)]

    def check_loss(self, logits: Tensor, targets: Tensor) -> None:
        """Refuse a loss that divides by a sum over the batch; look at batches of one beside an earlier one."""
        if self.labels != "true_label" or self.loss is None:
            return
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.first is None:
            self.first = logits, targets
        elif self.first[0].shape[1:] == logits.shape[1:] and self.first[1].shape[1:] == targets.shape[1:]:
            logits, targets = torch.cat([self.first[0], logits]), torch.cat([self.first[1], targets])
        check_loss(self.loss, logits, targets)

    def warn(self, reason: object) -> None:
        """Say once why examples are scored one at a time."""
        log.log(
            logging.DEBUG if self.warned else logging.WARNING,
            "scoring one example at a time, which is as exact and takes several times as long: %s",
            str(reason),
        )
        self.warned = True

    def can_batch(self, inputs: Inputs, targets: Tensor) -> bool:
        """Tell whether two different examples have the same scores in one pass as in two.

        They are scored in float32 at least, in which a wrong score cannot hide behind rounding.
        """
        count = len(targets)
        shapes = {t.shape for t in tensors_of(inputs).values() if has_examples(t, count)}
        shared: frozenset[int | str] = frozenset()
        if len(shapes) > 1 or any(count in shape[1:] for shape in shapes):  # not just ids and masks (examples, tokens)
            shared = inputs_shared_by_examples(self.model, inputs, count, self.warn)
        self.shared = shared
        pair = _two_different(inputs, len(targets), shared)
        totals = _zeros(self.totals) if self.count else self.totals  # which are still zero, and take no memory
        apart = replace(self, totals=totals, generator=torch.Generator().manual_seed(0), first=None, graphs=None)
        try:
            with forked_random_streams(self.model), in_float32(self.model):
                two = _float32(select(inputs, pair, len(targets), shared))
                wrong = apart.wrong_in_a_batch(two, targets[pair], shared)
        except FishexpError:
            raise
        except Exception as reason:  # whatever it is: if it is the model's own, scoring one at a time raises it, too
            self.warn(reason)
            return False
        finally:
            for total in totals.values():
                total.zero_()
        if wrong is not None:
            self.warn(
                f"in a batch the scores of {wrong} would be wrong: the outputs of an example depend on the others, are "
                "drawn at random, or a part of the model is no function of torch"
            )
        return wrong is None

    def wrong_in_a_batch(self, inputs: Inputs, targets: Tensor, shared: frozenset[int | str]) -> str | None:
        """Find a parameter whose scores differ by more than rounding, its largest difference by its largest score.

        Gradients that are zero but for rounding, as of the biases of attention keys, are compared with the largest of
        all. ``totals`` has to be zero, and becomes the difference.
        """
        logits = self.add_in_one_pass(inputs, targets)
        eps = torch.finfo(torch.promote_types(logits.dtype, torch.float32)).eps
        largest = {p: total.max().item() for p, total in self.totals.items() if total.numel()}
        noise = max(largest.values()) * (16 * eps) ** (2 if self.power == "square" else 1)
        self.generator.manual_seed(0)
        self.add_one_by_one(inputs, targets, -1, shared)
        for name, p in self.model.named_parameters():
            if p in largest:
                difference = self.totals[p].abs().max().item()
                if not difference <= 4 * eps**0.5 * largest[p] + noise or (largest[p] == 0 and difference):
                    return name
        return None


def _graphs(
    model: nn.Module, totals: Mapping[nn.Parameter, Tensor], passes: Callable[[Inputs, Tensor], Tensor]
) -> GraphedPasses | None:
    """Return what replays the passes of an example alone on a GPU; None where it cannot.

    Sums stand in for gradients there, so that they have to be of the parameters' own types.
    """
    devices = {p.device for p in totals}
    if {device.type for device in devices} != {"cuda"} or len(devices) > 1:
        return None
    if any(p.dtype != total.dtype for p, total in totals.items()):
        return None
    (device,) = devices
    tolerance = TOLERANCE["bf16" if torch.is_autocast_enabled("cuda") else "fp32"]
    return GraphedPasses(model, device, passes, list(totals), tolerance, log.debug, sums=list(totals.values()))


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Let the model compute in float32 where it would in less, as in TF32; afterwards it is as it was, to the bit."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in (torch.float16, torch.bfloat16)]
    before = [t.data for t in tensors]
    devices = {t.device.type for t in model.parameters()}
    try:
        with ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            if "cuda" in devices:
                stack.enter_context(without_tf32())
            for t in tensors:
                t.data = t.data.float()
            yield
    finally:
        for t, data in zip(tensors, before, strict=True):
            t.data = data


def _float32(inputs: Inputs) -> Inputs:
    def widened(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

    return mapped(inputs, widened)


@contextmanager
def _added_gradients(
    totals: Mapping[nn.Parameter, Tensor], power: Power, sign: int
) -> Iterator[Callable[[Tensor, bool], None]]:
    """Yield a backward pass that adds the powers of gradients to ``totals``; leave no gradient or mark on the weights.

    Backward passes within the model, before it, add nothing.

    Frozen parameters are scored as well; they are frozen again afterwards.
    """
    adding = False

    def backward(objective: Tensor, retain_graph: bool) -> None:
        nonlocal adding
        for p in totals:
            p.grad = None
        adding = True
        objective.backward(retain_graph=retain_graph)
        adding = False

    def hook(p: Tensor) -> None:
        if not adding:
            return
        assert isinstance(p, nn.Parameter)
        assert p.grad is not None
        with torch.no_grad():
            add_power(totals[p], p.grad, power, sign)
        p.grad = None

    handles: list[RemovableHandle] = []
    with gradients_kept(totals):
        try:
            handles.extend(p.register_post_accumulate_grad_hook(hook) for p in totals)
            yield backward
        finally:
            for handle in handles:
                handle.remove()


def _two_different(inputs: Inputs, examples: int, shared: frozenset[int | str]) -> list[int]:
    """Return the indices of the first example and of the next that is not the same."""
    values = [v for key, v in tensors_of(inputs).items() if key not in shared and has_examples(v, examples)]
    for i in range(1, examples):
        if any(not torch.equal(value[0], value[i]) for value in values):
            return [0, i]
    return [0, 1]
