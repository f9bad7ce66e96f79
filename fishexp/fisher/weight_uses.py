"""Where a forward pass takes its weights: each call of a torch function that does, whoever calls it."""

import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._decomp import decompositions
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fishexp.fisher.autograd_rules import ANY, Call, Rule
from fishexp.fisher.layer_rules import PART_RULES, RULES
from fishexp.fisher.layouts import Blocks, Layout, Unbatchable
from fishexp.fisher.powers import Power, powered


class Use(NamedTuple):
    """Hold a call's use of a weight.

    Attributes:
        rule: How its gradient is found.
        name: The argument of the call that is the weight.
        as_called: The call and the argument without the rule's names.
        weight: The weight, or a tensor that is made of weights alone; part of a graph that ends at the weights.
    """

    rule: Rule
    call: Call
    name: Any
    weight: Tensor
    as_called: tuple[Call, Any]

    def by_autograd(self) -> "Use":
        """Return the same use for the rule that is right for every layout."""
        call, name = self.as_called
        return self._replace(rule=ANY, call=call, name=name)


class SharedRule(Rule):
    """Sum the gradients of a weight that was given to each example of its own, to the shape that all share."""

    by_rows = False

    def fits(self, call: Call, layout: Layout) -> bool:
        return isinstance(layout, Blocks)

    def gradient(self, call: Call, name: Any, layout: Layout, g: Tensor, i: int) -> Tensor:
        shape = call.arguments[name].shape
        own = self._has_part_for_each(shape, layout, g)
        return (layout.only(g, i) if own else layout.part(g, i)).sum_to_size(shape).clone()

    def add_powers(self, total: Tensor, call: Call, name: Any, layout: Layout, g: Tensor, power: Power) -> None:
        """Sum all examples at once, which takes no more memory than the gradient that is there already."""
        shape = call.arguments[name].shape
        if self._has_part_for_each(shape, layout, g):
            super().add_powers(total, call, name, layout, g, power)
            return
        first = layout.first(g)  # type: ignore[union-attr]
        sums = first.to(total.dtype).sum_to_size(len(first), *[1] * (g.dim() - len(shape)), *shape)
        total.add_(powered(sums, power).sum(0).view(shape))

    @staticmethod
    def _has_part_for_each(shape: torch.Size, layout: Layout, g: Tensor) -> bool:
        """Tell whether the weight has more than one entry along the dimension of the examples."""
        at = layout.dim - g.dim() + len(shape)  # type: ignore[union-attr]
        return at >= 0 and shape[at] != 1


SHARED = SharedRule()

# names of functions whose result has the shape to which all their arguments are broadcast
_BROADCAST = {
    "add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "rsub", "pow", "maximum", "minimum",
    "where", "lerp", "addcmul", "addcdiv", "atan2",
}  # fmt: skip

# names of functions that multiply matrices of each example
_PRODUCTS = {"matmul", "bmm", "baddbmm", "scaled_dot_product_attention"}

# functions that torch computes in one piece -> the same as calls of others
_DECOMPOSED: dict[Callable[..., Any], Callable[..., Any]] = {}
for _function, _whole, _packed in (
    (torch.lstm, "lstm_impl", "lstm_data_impl"),
    (torch.gru, "gru_impl", "gru_impl_data"),
    (torch.rnn_tanh, "rnn_tanh_input", "rnn_tanh_data"),
    (torch.rnn_relu, "rnn_relu_input", "rnn_relu_data"),
):
    if hasattr(decompositions, _whole) and hasattr(decompositions, _packed):

        def _recurrent(*arguments: Any, whole: str = _whole, packed: str = _packed) -> Any:
            is_packed = isinstance(arguments[1], Tensor) and not arguments[1].is_floating_point()
            return getattr(decompositions, packed if is_packed else whole)(*arguments)

        _DECOMPOSED[_function] = _recurrent

# mark of a tensor that depends on the examples and is no part of a graph
_MARK = "_fishexp_depends_on_examples"


class WeightUses(TorchFunctionMode):
    """Record each call that takes weights, and give the weights to it without a gradient of their own.

    A tensor that is made of weights alone, such as the bias of relative positions, belongs to a graph of its own; where
    it meets the examples, each example is given its own, so that the gradients of the examples are told apart.

    Attributes:
        aliases: name -> the weight as the graphs of what is made of weights alone know it.
        uses: id of an alias -> how many calls take it with examples.
        made_of: ids of the aliases that other tensors were made of.
        leaves: Where the graph of the examples begins.
    """

    def __init__(self, weights: dict[str, nn.Parameter], receive: Callable[[list[Use], Tensor], None]) -> None:
        """Begin; ``receive`` is called with the uses of a call and the tensor whose gradient tells of them."""
        super().__init__()
        self.aliases = {name: p.detach().requires_grad_() for name, p in weights.items()}
        self.uses = {id(alias): 0 for alias in self.aliases.values()}
        self.made_of: set[int] = set()
        self.leaves: list[Tensor] = []
        self.counting = True  # until the first backward pass, in which checkpoints run the forward pass once more
        self._receive = receive
        self._marked: dict[int, StorageWeakRef] = {}
        self._with_mark: list[weakref.ref[Tensor]] = []
        self._names = {id(alias): name for name, alias in self.aliases.items()}
        # id -> the tensor itself, so that it lives on, and as its graph knows it
        self._shared: dict[int, tuple[Tensor, Tensor]] = {id(p): (p, self.aliases[name]) for name, p in weights.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.register_hook:
            raise Unbatchable("the model registers a hook, which may change a gradient")
        tensors = list(_tensors((args, kwargs)))
        shared = [t for t in tensors if id(t) in self._shared]
        dependent = [t for t in tensors if self._depends(t)]
        if not shared:
            out = func(*args, **kwargs)
            if dependent:
                self._mark_all(out)
            return out
        if all(t.numel() == 1 and not _has_gradients(t) for t in dependent):  # such as the number of an expert
            return self._alone(func, args, kwargs, shared)
        return self._with_examples(func, args, kwargs, shared)

    def mark(self, tensor: Tensor) -> None:
        """Say that a tensor depends on the examples."""
        if not tensor.requires_grad:
            setattr(tensor, _MARK, True)
            self._with_mark.append(weakref.ref(tensor))
            if tensor.layout == torch.strided:
                storage = StorageWeakRef(tensor.untyped_storage())
                self._marked[storage.cdata] = storage

    def _mark_all(self, out: Any) -> None:
        for tensor in _tensors(out):
            self.mark(tensor)

    def close(self) -> None:
        """Let go of all tensors but the aliases, and take the marks off what lives on, such as a model's buffer."""
        for reference in self._with_mark:
            if (tensor := reference()) is not None:
                vars(tensor).pop(_MARK, None)
        self._shared.clear()
        self.leaves.clear()

    def name_of(self, tensor: Tensor) -> str:
        """Return the name of a weight, or of one that the tensor is made of."""
        known, todo = set(), [tensor]
        while todo:
            current: Any = todo.pop()
            if id(current) in self._names:
                return self._names[id(current)]
            node = getattr(current, "grad_fn", current)
            for following, _ in getattr(node, "next_functions", ()):
                if following is not None and following not in known:
                    known.add(following)
                    todo.append(getattr(following, "variable", following))
        return "a weight"

    def _depends(self, tensor: Tensor) -> bool:
        if id(tensor) in self._shared:
            return False
        if tensor.requires_grad or hasattr(tensor, _MARK):
            return True
        if self.counting or tensor.layout != torch.strided:
            return False
        storage = self._marked.get(tensor.untyped_storage()._cdata)  # a checkpoint saves it as another object
        return storage is not None and not storage.expired()

    def _alone(self, func: Any, args: Any, kwargs: Any, shared: list[Tensor]) -> Any:
        """Make something of weights alone."""
        out = func(*self._as_in_graph(args), **self._as_in_graph(kwargs))
        made = [t for t in _tensors(out) if _has_gradients(t)]
        if made:
            self.made_of |= {id(self._shared[id(t)][1]) for t in shared}
        for t in made:
            if t.requires_grad:
                self._shared[id(t)] = t, t
        return out

    def _with_examples(self, func: Any, args: Any, kwargs: Any, shared: list[Tensor]) -> Any:
        """Call a function of weights and examples."""
        if func in _DECOMPOSED:
            for t in _tensors(args):
                if id(t) not in self._shared:
                    self.mark(t)  # the first hidden state, too: weights take those that follow
            if not args[0].requires_grad:  # then a whole layer may be one function
                self.leaves.append(args[0].detach().requires_grad_())
                args = self.leaves[-1], *args[1:]
            with self:
                return _DECOMPOSED[func](*args, **kwargs)
        rule, call = self._rule_and_call(func, args, kwargs)
        if rule is ANY and isinstance(func, types.FunctionType) and func.__module__ == F.__name__:
            with self:
                return _undispatched(func)(*args, **kwargs)
        if self.counting:
            for t in shared:
                alias = self._shared[id(t)][1]
                if id(alias) in self.uses:
                    self.uses[id(alias)] += 1
        if not torch.is_grad_enabled():  # such as the first pass of a reentrant checkpoint
            out = func(*self._raw(args), **self._raw(kwargs))
            self._mark_all(out)
            return out
        if rule is None or call is None:
            return self._given_to_each(func, args, kwargs)
        out = func(*self._raw(args), **self._raw(kwargs))
        if not isinstance(out, Tensor):
            raise Unbatchable(f"{self.name_of(self._shared[id(shared[0])][1])} is used by {_name(func)}")
        if not _has_gradients(out):
            self.mark(out)
            return out
        if not out.requires_grad:
            self.leaves.append(out.detach().requires_grad_())
            out = self.leaves[-1].clone()  # a leaf could not be modified in place
        weights = {n: self._shared[id(t)][1] for n, t in _by_place(args, kwargs) if n in call.weights}
        named = call.named(rule.parameters) if rule.parameters else call
        names = dict(zip(call.weights, named.weights, strict=True))
        self._receive([Use(rule, named, names[n], weight, (call, n)) for n, weight in weights.items()], out)
        return out

    def _rule_and_call(self, func: Any, args: Any, kwargs: Any) -> tuple[Rule | None, Call | None]:
        """Return the rule for a call; None if its weights are to be given to each example."""
        flat = dict(_by_place(args, kwargs))
        weights = tuple(n for n, value in flat.items() if isinstance(value, Tensor) and id(value) in self._shared)
        inputs = tuple(n for n, value in flat.items() if isinstance(value, Tensor) and self._depends(value))
        arguments = {n: _detached(value) for n, value in flat.items()}
        call = Call(func, arguments, weights, inputs)
        if func in RULES:
            rule = RULES[func]
            named = call.named(rule.parameters)
            if set(named.weights) <= {"weight", "bias"} and "input" in named.inputs and rule.applies(named):
                return rule, call
        nested = len(list(_tensors((args, kwargs)))) > sum(isinstance(value, Tensor) for value in flat.values())
        if func in PART_RULES and not nested:
            return PART_RULES[func], call
        if nested or _in_place(func) or _name(func) in _BROADCAST | _PRODUCTS:
            return None, None
        return ANY, call

    def _given_to_each(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function with weights that each example is given of its own, as far as the shapes allow."""
        name, shape = _name(func), None
        flat = list(_tensors((args, kwargs)))
        if _in_place(func) and id(flat[0]) in self._shared:
            raise Unbatchable(f"{self.name_of(self._shared[id(flat[0])][1])} is overwritten")
        if name in _BROADCAST:
            shape = torch.broadcast_shapes(*(t.shape for t in flat))
        elif name in _PRODUCTS and all(t.dim() > 1 for t in flat):
            shape = (*torch.broadcast_shapes(*(t.shape[:-2] for t in flat)), -1, -1)
        elif name == "__setitem__":
            shape = args[0][args[1]].shape
        elif name == "copy_":
            shape = args[0].shape

        def given(t: Tensor) -> Tensor:
            weight = self._shared[id(t)][1]
            leaf = weight.detach() if shape is None else weight.detach().expand(shape)
            self.leaves.append(leaf.requires_grad_())
            call = Call(func, {0: weight.detach()}, (0,), ())
            self._receive([Use(SHARED, call, 0, weight, (call, 0))], leaf)
            return leaf

        return func(*self._replaced(args, given), **self._replaced(kwargs, given))

    def _raw(self, value: Any) -> Any:
        return self._replaced(value, lambda t: t.detach())

    def _as_in_graph(self, value: Any) -> Any:
        return self._replaced(value, lambda t: self._shared[id(t)][1])

    def _replaced(self, value: Any, function: Callable[[Tensor], Tensor]) -> Any:
        """Return nested arguments with the weights, and what is made of them, replaced."""
        if isinstance(value, Tensor):
            return function(value) if id(value) in self._shared else value
        if isinstance(value, dict):
            return {key: self._replaced(item, function) for key, item in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._replaced(item, function) for item in value)
        return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _has_gradients(tensor: Tensor) -> bool:
    """Tell whether a tensor has numbers that may have gradients."""
    return tensor.is_floating_point() or tensor.is_complex()


def _by_place(args: Any, kwargs: Any) -> Iterator[tuple[int | str, Any]]:
    yield from enumerate(args)
    yield from kwargs.items()


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(map(_detached, value)) if type(value) in (tuple, list) else value


def _in_place(func: Any) -> bool:
    """Tell whether a function changes its first argument, so that it cannot be called once more."""
    return func.__name__.removesuffix("__").endswith("_") or func.__name__.startswith(("__i", "__setitem"))


def _name(func: Any) -> str:
    """Return a function's name, of ``add_``, ``__radd__`` and ``__iadd__`` that of ``add``."""
    name = func.__name__
    if name.startswith("__"):
        return name if name == "__setitem__" else name.strip("_").removeprefix("r").removeprefix("i")
    return name if name == "copy_" else name.removesuffix("_")


def _undispatched(func: types.FunctionType) -> Any:
    """Return a function of torch.nn.functional whose own calls are seen, in the place of the function as a whole."""
    no = {f"has_torch_function{kind}": lambda *a: False for kind in ("", "_unary", "_variadic")}
    made = types.FunctionType(func.__code__, {**vars(F), **no}, func.__name__, func.__defaults__, func.__closure__)
    made.__kwdefaults__ = func.__kwdefaults__
    return made
