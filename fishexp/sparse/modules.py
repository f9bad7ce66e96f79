"""Modules whose partly kept weights train through their kept entries, whatever uses them."""
# once_differentiable has no types:
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fishexp.errors import FishexpError
from fishexp.sparse.conv import CONV2D
from fishexp.sparse.costs import Costs
from fishexp.sparse.embedding import EMBEDDING
from fishexp.sparse.forward import cannot_follow, entries_in_use
from fishexp.sparse.gradient_hooks import add_gradient_hook, remove_gradient_hook
from fishexp.sparse.layout import LayerKind
from fishexp.sparse.linear import LINEAR
from fishexp.sparse.parameter import (
    GradientMethod,
    SparseParameter,
    describe,
    kept_entries,
)

# type of a module, and of those that inherit its forward pass -> how they train; all others gather from dense gradients
REGISTRY: dict[type[nn.Module], LayerKind] = {
    nn.Linear: LINEAR,
    nn.Conv2d: CONV2D,
    nn.Embedding: EMBEDDING,
}

# class made here -> the module's own class, names of its partly kept weights
_BASES: dict[type, tuple[type, tuple[str, ...]]] = {}


def kind_of(module: nn.Module) -> LayerKind | None:
    """Return the kind of layer that the module is, or inherits from; None if it is not registered."""
    return next((REGISTRY[base] for base in type(module).__mro__ if base in REGISTRY), None)


def sparse_parameter(
    name: str, weight: nn.Parameter, mask: Tensor, user: nn.Module | None, way: GradientMethod | None, costs: Costs
) -> SparseParameter:
    """Build the kept entries of ``weight``, indexed as the kind of layer that uses it needs them.

    Args:
        name: Of the weight in the model.
        mask: bool, of the weight's shape.
        user: The layer of a registered kind, if any, whose weight it is.
        way: The method that forms the gradient; None for :func:`fishexp.sparse.cost_model.choose`.
        costs: By which that function chooses.
    """
    positions = mask.to(weight.device).flatten().nonzero().squeeze(1)
    kind = None if user is None else kind_of(user)
    layout = None if kind is None else kind.layout(user, positions, weight.shape)
    return SparseParameter(name, weight, positions, layout, way, costs)


class WeightFunction(Function):
    """Return the weight itself, for any use; its dense gradient is gathered from as soon as it is formed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kept: SparseParameter) -> Tensor:
        ctx.kept = kept
        return kept.weight.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.kept.gather(gradient), None


class KeptWeight(Tensor):
    """Be a weight that is partly kept as its module shows it while gradients are on: a tensor for this one use.

    What is set on it would be lost, so it is handed on to the weight or refused.
    """

    # as of nn.Parameter: what is computed from it is a plain tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    of: SparseParameter

    @property
    def data(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The numbers, outside of autograd; assigned ones become the weight's."""
        return self.of.weight.data

    @data.setter
    def data(self, new: Tensor) -> None:
        if new.shape != self.of.shape:
            raise FishexpError(
                f"{self.of.name} is partly kept: its data cannot become {describe(new)}; call sparse.restore() before "
                "you replace or resize it"
            )
        self.of.weight.data = self.of.original.data = new

    @property
    def grad(self) -> Tensor | None:
        """The gradient of this use, if it was retained; what trains is the kept entries, which have theirs."""
        return super().grad if self.retains_grad else None

    @grad.setter
    def grad(self, new: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if new is not None:
            raise FishexpError(
                f"a gradient set on {self.of.name}, which is partly kept, would be lost; set those of its kept "
                "entries, of sparse.parameters()"
            )
        self.of.values.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Let the kept entries train, or not, from the next use on; return this one."""
        self.of.values.requires_grad_(requires_grad)
        return self if requires_grad else self.detach()

    @property
    def requires_grad(self) -> bool:
        """Tell whether the kept entries train; set, it is handed on to them."""
        return super().requires_grad

    @requires_grad.setter
    def requires_grad(self, new: bool) -> None:
        self.requires_grad_(new)

    def register_hook(self, hook: Any) -> NoReturn:
        """Refuse, since later forward passes have another tensor."""
        raise FishexpError(
            f"a hook on {self.of.name}, which is partly kept, would not be called again; register it on the kept "
            "entries, of sparse.parameters()"
        )

    register_post_accumulate_grad_hook = register_hook

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy to a plain tensor."""
        return memo.setdefault(id(self), self.detach().clone().requires_grad_(self.requires_grad))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Reduce to a plain tensor."""
        return self.detach().requires_grad_(self.requires_grad).__reduce_ex__(protocol)


def _weight_property(name: str) -> property:
    """Make the property through which all but a kind's own forward pass see the weight."""

    def get(module: Any) -> Tensor:
        kept = entries_in_use(module, name)
        if not torch.is_grad_enabled():
            return kept.weight
        weight = WeightFunction.apply(kept.values, kept)
        weight.__class__, weight.of = KeptWeight, kept
        return weight

    return property(get, lambda module, new: _refuse_change(module, name))


def _refuse_change(module: Any, name: str) -> NoReturn:
    kept = module._modules[f"{name}_kept"]
    module._parameters.setdefault(name, kept.weight)  # which some delete before they are refused
    raise FishexpError(
        f"{kept.name} is partly kept and cannot be pruned, parametrized or deleted; call sparse.restore() first"
    )


def _guards(base: type[nn.Module], names: tuple[str, ...]) -> dict[str, Any]:
    """Make the methods and attributes that refuse, or follow, what would silently pass a partly kept weight by."""

    def delete(module: Any, name: str) -> None:
        if name in names:  # as torch.nn.utils.parametrize does
            _refuse_change(module, name)
        base.__delattr__(module, name)

    def register_parameter(module: Any, name: str, param: nn.Parameter | None) -> None:
        own, _, part = name.rpartition("_")
        if own in names and part in ("orig", "g", "v"):  # as torch.nn.utils.prune, spectral_norm and weight_norm do
            _refuse_change(module, own)
        base.register_parameter(module, name, param)

    def load(module: Any, state: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        for name in names:  # of which the state may have none, or numbers that do not fit
            module._modules[f"{name}_kept"].reconcile(warns=prefix + name not in state)
        base._load_from_state_dict(module, state, prefix, *arguments)

    def refuse_script(module: Any) -> NoReturn:
        raise cannot_follow(module._modules[f"{names[0]}_kept"], "torch.jit.script")

    def refuse_qconfig(module: Any, new: Any) -> NoReturn:
        raise cannot_follow(module._modules[f"{names[0]}_kept"], "quantisation")

    def no_qconfig(module: Any) -> NoReturn:
        raise AttributeError("qconfig")

    return {
        "__delattr__": delete,
        "register_parameter": register_parameter,
        "_load_from_state_dict": load,
        "__prepare_scriptable__": refuse_script,
        "qconfig": property(no_qconfig, refuse_qconfig),  # set on all modules, before types are looked at
    }


class _Unlisted:
    """Keep a class made here from a base that lists its subclasses, or asks them for arguments, as they are defined."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        pass


@cache
def _class_of(base: type[nn.Module], names: tuple[str, ...]) -> type:
    """Make the class of a module that is a ``base`` but for its weights ``names``, which are partly kept."""
    body = {name: _weight_property(name) for name in names} | _guards(base, names)
    for layer, kind in REGISTRY.items():
        if base.forward is layer.forward:
            body["forward"] = kind.forward
    if issubclass(base, nn.RNNBase):  # it keeps its weights in a list as well
        body["_flat_weights"] = property(_flat_weights, lambda module, value: None)
    body |= {"__reduce_ex__": _reduce_ex, "__module__": base.__module__, "__qualname__": base.__qualname__}
    made = type(base.__name__, (_Unlisted, base), body)
    _BASES[made] = base, names
    return made


def _flat_weights(module: Any) -> list[Tensor]:
    return [getattr(module, name) for name in module._flat_weights_names]


def _reduce_ex(module: Any, protocol: Any) -> tuple[Any, ...]:
    """Reduce for copy and pickle, to which a class made at run time has no name."""
    made = type(module)
    base, names = _BASES[made]
    function, (_, *arguments), *rest = super(made, module).__reduce_ex__(protocol)
    return _new, (base, names, function, *arguments), *rest


def _new(base: type[nn.Module], names: tuple[str, ...], function: Any, *arguments: Any) -> Any:
    return function(_class_of(base, names), *arguments)


def attach(module: nn.Module, kept: Mapping[str, SparseParameter]) -> None:
    """Let the kept entries train in the place of ``module``'s own weights of these names."""
    for name, parameter in kept.items():
        module.add_module(f"{name}_kept", parameter)
        module._parameters[name] = parameter.weight
        parameter.arm()
        parameter.users += 1
    module.__class__ = _class_of(type(module), tuple(kept))


def detach(model: nn.Module) -> list[tuple[nn.Module, dict[str, SparseParameter]]]:
    """Undo :func:`attach` in all of ``model``, which is up to date then; return the arguments to do it again.

    Raises:
        FishexpError: If a module's class or weight is one that this cannot be undone in; nothing has changed then.
    """
    attached = [(module, own) for module in model.modules() if (own := _own_entries(module))]
    for module, own in attached:
        if type(module) in _BASES:  # else it was made anew of one that was, with all of its children
            module.__class__ = _BASES[type(module)][0]
        for name, kept in own.items():
            del module._modules[f"{name}_kept"]
            module._parameters[name] = kept.disarm()
            kept.users -= 1
    return attached


def _own_entries(module: nn.Module) -> dict[str, SparseParameter]:
    """Return the kept entries of a module's own weights, which are up to date then."""
    own = {name: child for name, child in module._modules.items() if isinstance(child, SparseParameter)}
    if own and type(module) not in _BASES and any(base in _BASES for base in type(module).__mro__):
        raise FishexpError(
            f"{next(iter(own.values())).name} is partly kept, and its module became a {type(module).__name__} after "
            "sparsify, as by a parametrisation; undo that first"
        )
    return {(name := key.removesuffix("_kept")): kept_entries(module, name) for key in own}


def watch_first_pass(model: nn.Module) -> None:
    """Refuse what uses a weight past its module in the model's first forward pass with gradients.

    Its weights then seem to train for as long as it lasts, so that autograd brings a gradient to whatever looks them up
    by ``named_parameters()``; the modules themselves use them detached. A compiled pass is not looked at, and what a
    reentrant checkpoint computes again neither.
    """
    model.register_forward_pre_hook(_thaw)
    model.register_forward_hook(_freeze, always_call=True)


def _watched(model: nn.Module) -> list[SparseParameter]:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return []
    return [module for module in model.modules() if isinstance(module, SparseParameter)]


def _thaw(model: nn.Module, inputs: Any) -> None:
    for kept in _watched(model):
        if not kept.weight.requires_grad:  # else someone has set it, which its module refuses
            kept.watched = True
            kept.weight.requires_grad_(True)


def _freeze(model: nn.Module, inputs: Any, output: Any) -> None:
    if watched := _watched(model):
        for kept in watched:
            if kept.watched:
                kept.watched = False
                kept.weight.requires_grad_(False)
        if output is not None:  # as it is where an error ended the pass
            unwatch(model)


def unwatch(model: nn.Module) -> None:
    """Undo :func:`watch_first_pass`."""
    remove_pass_hooks(model, _thaw, _freeze)


def remove_pass_hooks(model: nn.Module, before: Callable[..., object], after: Callable[..., object]) -> None:
    """Remove hooks of the model's forward passes, also from a copy, of whose hooks there are no handles."""
    for hooks, ours in ((model._forward_pre_hooks, before), (model._forward_hooks, after)):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Give ``model`` all weights of its own again, without our gradient hooks, for as long as the context lasts."""
    attached = detach(model)
    hooks = {weight: hook for weight in model.parameters() if (hook := remove_gradient_hook(weight)) is not None}
    try:
        yield
    finally:
        for module, kept in attached:
            attach(module, kept)
        for weight, hook in hooks.items():
            add_gradient_hook(weight, hook)
