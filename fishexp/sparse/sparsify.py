"""Make the kept entries of a model the only weights that train: :func:`sparsify`."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fishexp.errors import FishexpError
from fishexp.masks.random_masks import Seeded
from fishexp.masks.topk import Mask
from fishexp.sparse.calibration import known
from fishexp.sparse.costs import Costs
from fishexp.sparse.gradient_hooks import add_gradient_hook, refuse_gradient
from fishexp.sparse.handle import STATE, Sparse, SparseState, restore
from fishexp.sparse.modules import attach, kind_of, sparse_parameter, watch_first_pass
from fishexp.sparse.old_optimizers import watch_for_old_optimizers
from fishexp.sparse.parameter import GradientMethod, weights
from fishexp.sparse.reach import check_reach
from fishexp.sparse.together import reconcile_in_passes


def sparsify(model: nn.Module, mask: Mask, way: GradientMethod | None = None, costs: Costs | None = None) -> Sparse:
    """Make the kept entries the only weights of ``model`` that train, in place.

    The values of a partly kept weight become a parameter ``<weight>_kept.values`` beside it, which
    ``model.parameters()`` lists too; the weight itself is frozen. Whatever writes the values, a step of an optimiser or
    not, the weight has them when it is next read: by a forward pass, by ``state_dict()``, :meth:`Sparse.delta` or
    ``module.weight``. Entries outside ``mask`` stay bit-identical, whatever the optimiser's decay or momentum, since it
    never sees them. ``state_dict()`` has the model's own names only. A model can be copied, pickled and moved with its
    kept entries (:meth:`Sparse.of`); a second call replaces the first mask, and :meth:`Sparse.restore` ends it.

    Values follow a weight that is written, by ``load_state_dict()`` or through its module; where both were written
    since the last read, the values count, and on the CPU a warning says so. A weight taken from ``named_parameters()``
    is stale until the next read. A partly kept ``module.weight`` is a view while gradients are on, so that
    :meth:`torch.nn.Module.get_parameter`, and transformers' ``tie_weights`` with it, find it under ``torch.no_grad()``
    only. There are no gradients of gradients.

    The parameter that stood in the place of a partly kept weight is set aside. What was made before and holds it (a
    closure, an object, a view) still computes with the right numbers; a gradient that reaches it is refused, in every
    step, and in the first forward pass with gradients also one that reaches a weight through ``named_parameters()``.
    What follows a model instead of computing with it is refused in one line: traces, exports, ``torch.jit.script``,
    ``torch.func``, pruning, parametrisation, quantisation, another shape, tying and untying.

    An optimiser sees the kept entries of a weight as a vector. So one that treats all entries alike trains as a dense
    one does whose gradient is masked; one that looks at a weight's shape or norm (Adafactor, LAMB, Shampoo) trains
    otherwise, and :class:`torch.optim.Muon` refuses vectors. A rule that gives weight decay to tensors of two or more
    dimensions only, as timm's, would give none: use :meth:`Sparse.groups`.

    Make optimisers and DistributedDataParallel after this. An optimiser made before moves nothing of the kept entries,
    of which a warning tells at the first gradient; a model that was wrapped before is refused. A weight that is set to
    require a gradient afterwards, as by ``model.requires_grad_(True)``, is refused in the backward pass, unless the
    mask keeps it whole. Ranks of DistributedDataParallel whose masks differ are refused in the first forward pass in
    training; ranks that reduce gradients or weights by other means may compare :meth:`Sparse.digest`, as masks of their
    own may be meant.

    Args:
        model: Keeps its weights, their names and shapes. Those without a kept entry stop requiring a gradient.
        mask: name -> bool tensor of the parameter's shape, for every parameter.
        way: The method that forms the gradient of the kept entries of Linears and convolutions: ``sddmm``,
            ``submatrix`` or ``dense``; None lets :func:`fishexp.sparse.cost_model.choose` predict the fastest for each
            layer, at its first backward pass.
        costs: By which that function predicts; give those of another run to choose as it did. None takes what
            :func:`fishexp.sparse.calibration.calibrated` once measured on this machine, else those of its instruction
            set.

    Returns:
        The kept entries; give :meth:`Sparse.parameters` to an optimiser.

    Raises:
        FishexpError: If ``mask`` is none, keeps nothing, or does not fit the model, or a partly kept weight is reached
            otherwise than by its name in a module, moved by a forward pass (``max_norm``), hooked, or no plain tensor.
    """
    if way is not None and way not in get_args(GradientMethod):
        raise FishexpError(f"way={way!r} is none of {', '.join(get_args(GradientMethod))}")
    state = _attach(model, mask, way, known() if costs is None else costs)
    vars(model)[STATE] = state
    sparse = Sparse(model, state)
    sparse.rebase()
    watch_first_pass(model)
    reconcile_in_passes(model)
    watch_for_old_optimizers(model, state)
    return sparse


def _attach(model: nn.Module, mask: Mask, way: GradientMethod | None, costs: Costs) -> SparseState:
    """Let the kept entries train in the place of the weights that have them, which are frozen."""
    partly = _partly_kept(model, mask)
    restore(model)
    users = {m._parameters.get("weight"): m for m in model.modules() if kind_of(m) is not None}
    own = weights(model)
    required = {name: weight.requires_grad for name, weight in own.items()}
    state = SparseState({}, {}, {}, required, mask.seed if isinstance(mask, Seeded) else None, {})
    for name, weight in own.items():
        weight.requires_grad_(bool(mask[name].all()))
        if weight.requires_grad:
            state.parameters[name] = weight
            continue
        weight.grad = None  # of an earlier dense pass: nobody would clear it
        state.frozen[name] = weight
        if name not in partly:
            refuse_gradient(name, weight)
        else:
            state.kept[name] = sparse_parameter(name, weight, mask[name], users.get(weight), way, costs)
            state.parameters[name] = state.kept[name].values
    by_weight = {kept.original: kept for kept in state.kept.values()}
    for module in list(model.modules()):
        kept = {name: by_weight[p] for name, p in module._parameters.items() if p is not None and p in by_weight}
        if kept:
            attach(module, kept)
    return state


def _partly_kept(model: nn.Module, mask: Mask) -> dict[str, nn.Parameter]:
    """Return the weights of which some entries are kept, but not all.

    Raises:
        FishexpError: If the mask does not fit the model, or such a weight is reached otherwise than by its name.
    """
    parameters = weights(model)
    _check_fit(parameters, mask)
    partly = {name: p for name, p in parameters.items() if mask[name].any() and not mask[name].all()}
    check_reach(model, parameters, mask)
    return partly


def _check_fit(parameters: Mapping[str, nn.Parameter], mask: Mask) -> None:
    """Refuse a mask that is none, keeps nothing, or does not fit the model."""
    if not isinstance(mask, Mapping):
        raise FishexpError(
            f"a mask is a mapping from names of parameters to bool tensors, got a {type(mask).__name__}; make one with "
            "top_k"
        )
    for name in sorted(parameters.keys() ^ mask.keys()):
        where = "the mask" if name in mask else "the model"
        raise FishexpError(f"{name} is in {where} only; a mask names every parameter of its model")
    for name, weight in parameters.items():
        kept: Any = mask[name]
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.layout != torch.strided or kept.is_meta:
            found = f"{kept.dtype}, {kept.layout}, {kept.device}" if isinstance(kept, Tensor) else type(kept).__name__
            raise FishexpError(
                f"the mask of {name} is no dense bool tensor, but {found}; make one of scores with top_k"
            )
        if kept.shape != weight.shape:
            raise FishexpError(f"{name} has shape {tuple(weight.shape)}, its mask {tuple(kept.shape)}")
    if not any(bool(kept.any()) for kept in mask.values()):
        raise FishexpError("the mask keeps no weight, so nothing could train")


def mask_gradients(model: nn.Module, mask: Mask) -> list[nn.Parameter]:
    """Train all weights, with the gradient zeroed outside ``mask``, as the original does; decay still reaches them.

    Returns:
        All parameters, for an optimiser with dense state.

    Raises:
        FishexpError: If ``mask`` is none, keeps nothing, or does not fit the model.

    Source:
        The CIFAR-10 code of the paper (varunnair18/FISH, b5bff1e), which adds weight decay after masking.
    """
    parameters = weights(model)
    _check_fit(parameters, mask)
    restore(model)
    for name, weight in parameters.items():
        weight.requires_grad_(True)
        add_gradient_hook(weight, _zero_outside(mask[name].to(weight)))
    return list(model.parameters())


def _zero_outside(kept: Tensor) -> Callable[[Tensor], None]:
    def zero(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(kept)

    return zero
