"""The powers of every example's gradient, in one forward and backward pass over a batch."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from fishexp.errors import FishexpError
from fishexp.fisher.batches import Inputs, logits_of
from fishexp.fisher.eval_mode import attributes_kept, gradients_kept
from fishexp.fisher.layouts import Layout, Unbatchable, Weighing, summary
from fishexp.fisher.powers import Power, add_power
from fishexp.fisher.proof import Graph
from fishexp.fisher.weight_uses import Use, WeightUses


class _Received(NamedTuple):
    """Hold a gradient that tells of a use, and which example each part of it belongs to."""

    use: Use
    layout: Layout
    gradient: Tensor


@contextmanager
def batched_pass(
    examples: int, model: nn.Module, totals: Mapping[nn.Parameter, Tensor], power: Power
) -> Iterator["BatchedPass"]:
    """Let a forward pass of ``model``, and backward passes, add to ``totals``.

    Autograd forms gradients of activations only, and what belongs to a weight is computed in the moment in which the
    gradient of its function's output is there. The weights require gradients meanwhile, so that a use of them that was
    not seen is found in the graph.
    """
    batch = BatchedPass(examples, model, totals, power)
    try:
        with attributes_kept(model), gradients_kept(totals):
            yield batch
    except Exception as error:
        if batch.adding or isinstance(error, FishexpError | Unbatchable):
            raise
        # an error of the model's own comes again when its examples are scored alone
        raise Unbatchable(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    finally:
        batch.close()


class BatchedPass:
    """Score a batch: :meth:`forward` once, then :meth:`backward`."""

    def __init__(self, examples: int, model: nn.Module, totals: Mapping[nn.Parameter, Tensor], power: Power) -> None:
        self.examples, self.model = examples, model
        self.power: Power = power
        self.weights = {name: p for name, p in model.named_parameters() if p in totals}
        self.seen = WeightUses(self.weights, self._watch)
        self._totals = {id(alias): totals[self.weights[name]] for name, alias in self.seen.aliases.items()}
        self._stage: Literal["plain", "weighed", "add"] = "plain"
        self._ends: list[tuple[list[Use], tuple[object, int]]] = []  # uses, and where in the graph their gradient is
        self._again = 0  # calls in this backward pass, in checkpoints that are run once more
        self._summaries: dict[int, Tensor] = {}
        self._layouts: dict[int, Layout] = {}
        self._weighing: Weighing
        self._deferred: dict[int, list[_Received]] = defaultdict(list)  # by the weight or what is made of weights

    @property
    def adding(self) -> bool:
        """Whether powers of gradients may have been added."""
        return self._stage == "add"

    def forward(self, inputs: Inputs) -> Tensor:
        """Call the model and return its logits."""
        with self.seen:
            return logits_of(self.model, inputs, self._input)

    def _input(self, tensor: Tensor) -> Tensor:
        """Return an input of the model, marked if it has as many parts as there are examples."""
        tensor = tensor.detach()
        if tensor.dim() and len(tensor) == self.examples:
            self.seen.mark(tensor)
        return tensor

    def backward(self, logits: Tensor, objectives: Sequence[Tensor]) -> None:
        """Add the powers of the examples' gradients of each objective.

        Args:
            logits: (examples, ...) from :meth:`forward`.
            objectives: Each (examples,), of which an entry depends on the same row of ``logits`` only.

        Raises:
            Unbatchable: If the examples cannot be told apart; then nothing has been added.
        """
        self.seen.counting = False
        with torch.autograd.set_multithreading_enabled(False), self._seeing_checkpoints():
            self._find_layouts(logits, objectives)
            self._stage = "add"
            for j, objective in enumerate(objectives, 1):
                self._run(objective.sum(), more=j < len(objectives))
                self._add_deferred()

    def close(self) -> None:
        """Let go of the graph, whose hooks hold this object."""
        self._ends.clear()
        self._deferred.clear()
        self._summaries.clear()
        self.seen.close()

    @contextmanager
    def _seeing_checkpoints(self) -> Iterator[None]:
        """See the calls of checkpoints that are run once more, while autograd's engine has left the mode that does."""
        outermost: list[nn.Module] = []

        def before(module: nn.Module, inputs: object) -> None:
            if not outermost and self.seen not in _get_current_function_mode_stack():
                outermost.append(module)
                self.seen.__enter__()

        def after(module: nn.Module, inputs: object, output: object) -> None:
            if outermost == [module]:
                outermost.clear()
                self.seen.__exit__(None, None, None)

        handles = []
        try:
            for module in self.model.modules():
                handles.append(module.register_forward_pre_hook(before))
                handles.append(module.register_forward_hook(after, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _find_layouts(self, logits: Tensor, objectives: Sequence[Tensor]) -> None:
        """Find out which example each part of each gradient belongs to: from the graph or, failing that, by weighing.

        The objectives are weighed together, with coefficients under which none cancels another.
        """
        graph = Graph(logits, self.examples)
        self._refuse_unseen({id(leaf) for leaf in graph.leaves})
        for number, (uses, end) in enumerate(self._ends):
            layout = graph.layout_of(end)
            if layout is None or not all(use.rule.fits(use.call, layout) for use in uses):
                break
            self._layouts[number] = layout
        else:
            return
        together = torch.stack([(1 + 0.1 * (j % 7)) * term for j, term in enumerate(objectives)]).sum(0)
        self._weighing = Weighing(self.examples, logits.device)
        self._run(together.sum(), more=True)
        self._refuse_unseen(
            {id(t) for t in (*self.weights.values(), *self.seen.aliases.values()) if t.grad is not None}
        )
        self._stage = "weighed"
        self._run((together * self._weighing.factors.to(together.dtype)).sum(), more=True)

    def _refuse_unseen(self, reached: set[int]) -> None:
        """Refuse to batch a model with weights, or what is made of them, that are used unseen.

        Args:
            reached: ids of the tensors at which gradients arrive that go by no use that was seen.
        """
        for name, alias in self.seen.aliases.items():
            if id(alias) in reached or id(self.weights[name]) in reached:
                raise Unbatchable(f"{name} is used otherwise than by functions of torch that are called in a module")

    def _run(self, objective: Tensor, more: bool) -> None:
        self._again = 0
        objective.backward(retain_graph=more)  # not grad(), which reentrant checkpoints do not know
        for leaf in self.seen.leaves:
            leaf.grad = None

    def _watch(self, uses: list[Use], tensor: Tensor) -> None:
        """Let the gradient of ``tensor`` be received, which tells of these uses."""
        if self.seen.counting:
            number = len(self._ends)
            self._ends.append((uses, Graph.end_of(tensor)))
        else:
            number = len(self._ends) + self._again
            self._again += 1
        tensor.register_hook(partial(self._receive, number, uses))

    @torch.no_grad()
    def _receive(self, number: int, uses: list[Use], g: Tensor) -> None:
        if self.seen.counting:
            raise Unbatchable("the model computes gradients in its forward pass")
        if self._stage == "plain":
            self._summaries[number] = summary(g)
        elif self._stage == "weighed":
            by_rows = g.dim() > 1 and all(use.rule.by_rows for use in uses)  # a vector is not made of rows
            layout = self._weighing.layout(self._summaries.pop(number), summary(g), by_rows)
            name = self.seen.name_of(uses[0].weight)
            if layout is None:
                raise Unbatchable(f"examples share the gradient of {name}")
            self._layouts[number] = layout
        else:
            layout = self._layouts[number]
            for use in uses:
                self._add(_Received(use if use.rule.fits(use.call, layout) else use.by_autograd(), layout, g))

    def _add(self, received: _Received) -> None:
        """Add the powers of a weight's gradients, or put off those of a weight that is used more than once."""
        use, layout, g = received
        key = id(use.weight)
        if self.seen.uses.get(key) == 1 and key not in self.seen.made_of:
            use.rule.add_powers(self._totals[key], use.call, use.name, layout, g, self.power)
        else:
            self._deferred[key].append(received)

    def _add_deferred(self) -> None:
        """Add the powers of the gradients of weights that were used more than once, or to make other tensors."""
        deferred: dict[int, list[_Received]] = {}
        for key in list(self._deferred):
            parts = _joined(self._deferred.pop(key))
            if len(parts) == 1 and key in self._totals and key not in self.seen.made_of:
                ((use, layout, g),) = parts
                use.rule.add_powers(self._totals[key], use.call, use.name, layout, g, self.power)
            else:
                deferred[key] = parts
        if not deferred:
            return
        aliases = [a for a in self.seen.aliases.values() if id(a) in deferred or id(a) in self.seen.made_of]
        made = {key: parts[0].use.weight for key, parts in deferred.items() if key not in self._totals}
        for i in range(self.examples):
            sums = {key: self._summed(parts, i) for key, parts in deferred.items()}
            through: Sequence[Tensor | None] = [None] * len(aliases)
            if made:
                through = torch.autograd.grad(
                    list(made.values()), aliases, [sums[key] for key in made], retain_graph=True, allow_unused=True
                )
            for alias, other in zip(aliases, through, strict=True):
                own = sums.get(id(alias))
                gradient = other if own is None else own if other is None else own.add_(other)
                if gradient is not None:
                    add_power(self._totals[id(alias)], gradient.contiguous(), self.power)

    @staticmethod
    @torch.no_grad()
    def _summed(parts: list[_Received], i: int) -> Tensor:
        """Return the gradient of the ``i``-th example, summed over all uses of a weight."""
        total: Tensor | None = None
        for use, layout, g in parts:
            gradient = use.rule.gradient(use.call, use.name, layout, g, i)
            total = gradient if total is None else total.add_(gradient)
        assert total is not None
        return total


def _joined(parts: list[_Received]) -> list[_Received]:
    """Return the uses of a weight with those joined whose rule takes them as one use with more tokens."""
    alike: dict[tuple[int, object], list[_Received]] = defaultdict(list)
    for part in parts:
        alike[id(part.use.rule), part.use.name].append(part)
    joined = []
    for some in alike.values():
        use = some[0].use
        one = use.rule.joined([(p.use.call, p.layout, p.gradient) for p in some]) if len(some) > 1 else None
        joined += some if one is None else [_Received(use._replace(call=one[0]), one[1], one[2])]
    return joined
