"""What sparsify returns: the kept entries of a model, to train, to look at, to save, and to leave again."""

import copy
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fishexp.delta import Delta
from fishexp.delta.diff import Original, by_seed, trained
from fishexp.delta.fingerprint import kind
from fishexp.errors import DeltaError, FishexpError
from fishexp.sparse import together
from fishexp.sparse.gradient_hooks import refuse_gradient, remove_gradient_hook, remove_watch
from fishexp.sparse.modules import detach, unwatch
from fishexp.sparse.parameter import GradientMethod, SparseParameter, weights
from fishexp.sparse.ranks import positions_digest
from fishexp.system.text_table import aligned_text

# attribute of a sparsified module that holds its SparseState, and goes into its copies and pickles
STATE = "_fishexp_sparse"


@dataclass(eq=False)
class SparseState:
    """Hold what sparsify made of a model, by the names of its weights.

    Attributes:
        parameters: What trains: the kept values of a weight, or the weight itself if it is kept whole.
        kept: The kept entries of the weights that are kept in part.
        frozen: The weights that do not train, those that are kept in part among them.
        required: Whether each weight required a gradient before.
        seed: Seed of a random mask, else None.
        originals: What the kept entries, and the buffers, were where the next delta begins.
    """

    parameters: dict[str, nn.Parameter]
    kept: dict[str, SparseParameter]
    frozen: dict[str, nn.Parameter]
    required: dict[str, bool]
    seed: int | None
    originals: dict[str, Tensor]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Refuse gradients of the frozen weights in a copy or an unpickled model, too."""
        self.__dict__.update(state)
        for name in self.frozen.keys() - self.kept.keys():  # which refuse theirs themselves
            refuse_gradient(name, self.frozen[name])


class Sparse:
    """Hold the kept entries of a model, a parameter for each tensor that has any; made by :func:`sparsify`.

    A copy of the model or a pickle has its own: :meth:`Sparse.of`.
    """

    def __init__(self, model: nn.Module, state: SparseState) -> None:
        self._model, self._state = model, state

    @classmethod
    def of(cls, model: nn.Module) -> "Sparse":
        """Return the kept entries of a model that is sparsified, or has a sparsified model in it, such as a copy.

        Raises:
            FishexpError: If there is none in it, or several.
        """
        found = [cls(module, vars(module)[STATE]) for module in model.modules() if STATE in vars(module)]
        if len(found) != 1:
            raise FishexpError(
                f"{len(found)} sparsified models in this {type(model).__name__}; give a model that sparsify was called "
                "with, or its copy"
            )
        return found[0]

    def __repr__(self) -> str:
        kept, total = (sum(column) for column in zip(*self._sizes().values(), strict=True))
        methods = list(self.ways().values())
        text = [f"{kept:,} of {total:,} weights ({kept / total:.2%})"]
        text.append(f"in {len(self._state.parameters)} of {len(self._state.required)} tensors")
        if methods:
            text.append("gradients: " + ", ".join(f"{m} {methods.count(m)}" for m in sorted(set(methods))))
        if not self._trains():
            text.append("no longer trained")
        return f"Sparse({'; '.join(text)})"

    def summary(self) -> str:
        """Return a table of the kept entries of each weight, of how many, and the share, with the sums below."""
        sizes = self._sizes()
        kept, total = (sum(column) for column in zip(*sizes.values(), strict=True))
        rows = [("weight", "kept", "of", "share")]
        for name, (some, whole) in [*sizes.items(), ("all", (kept, total))]:
            rows.append((name, f"{some:,}", f"{whole:,}", f"{some / max(whole, 1):.2%}"))
        return "\n".join(aligned_text(rows, left_columns=1))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return what to give to an optimiser: its state is as large as these, not as the model."""
        return (parameter for _, parameter in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return :meth:`parameters` by the names of the weights whose entries they are."""
        kept, now = self._state.kept, dict[str, nn.Parameter]()
        if self._trains():  # a weight may have been assigned anew; by another mask, other parameters stand for it
            now = dict(self._model.named_parameters(remove_duplicate=False))
        for name, parameter in self._state.parameters.items():
            yield name, kept[name].values if name in kept else now.get(name, parameter)

    def groups(self, choose: Callable[[str, Tensor], Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return :meth:`parameters` as parameter groups for an optimiser, one for all weights with the same options.

        Rules by name or dimensions are rules about the whole weight: its kept values are a vector, to which
        "decay tensors of two or more dimensions only" would give no decay.

        Args:
            choose: (name, weight) -> options of its group, such as ``{"weight_decay": 0.0 if weight.ndim < 2 else
                0.1}``; what they leave out is the optimiser's default.
        """
        groups: list[tuple[dict[str, Any], list[nn.Parameter]]] = []
        own = weights(self._model)
        for name, parameter in self.named_parameters():
            options = dict(choose(name, own[name]))
            for others, parameters in groups:
                if others == options:
                    parameters.append(parameter)
                    break
            else:
                groups.append((options, [parameter]))
        return [{**options, "params": parameters} for options, parameters in groups]

    def positions(self) -> dict[str, Tensor]:
        """Return for each of :meth:`parameters`, by name, where in the flattened weight its values stand."""
        kept = self._state.kept
        return {
            name: kept[name].positions.long() if name in kept else torch.arange(p.numel(), device=p.device)
            for name, p in self.named_parameters()
        }

    def digest(self) -> str:
        """Return the SHA-256 of the mask, by which workers or files can tell that they have the same."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.named_parameters()):
            kept = self._state.kept.get(name)
            shape = parameter.shape if kept is None else kept.weight.shape
            digest.update(positions_digest(name, shape, None if kept is None else kept.positions))
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Return what a loop of one's own saves to resume, beside the optimiser's state: as small as what trains.

        Returns:
            ``values`` and ``buffers`` by the model's own names (references, as in a module's state_dict), and ``mask``,
            the digest of the mask. All else is as in the model before :func:`sparsify`.
        """
        self._refuse_if_replaced()
        names = {name for name, _ in self._model.named_buffers(remove_duplicate=False)}
        buffers = {name: tensor for name, tensor in self._model.state_dict().items() if name in names}
        values = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return {"mask": self.digest(), "values": values, "buffers": buffers}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take values and buffers of :meth:`state_dict`, to the bit, into a model that is sparsified by the same mask.

        Load this before an optimiser's state, which does not know its mask.

        Raises:
            FishexpError: If it is the state of another mask or of other tensors, or none; nothing has changed then.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise FishexpError(f"a state has {', '.join(own)}, got {', '.join(sorted(map(str, state)))[:80]}")
        if state["mask"] != own["mask"]:
            raise FishexpError(
                f"the state is of mask {str(state['mask'])[:12]}, the model's mask is {own['mask'][:12]}; sparsify "
                "with the mask of the state"
            )
        for part in ("values", "buffers"):
            for name in sorted(own[part].keys() ^ state[part].keys()):
                raise FishexpError(f"{name} is in the {'state' if name in state[part] else 'model'} only")
            for name, tensor in own[part].items():
                if kind(tensor) != kind(state[part][name]):
                    raise FishexpError(f"{name} is {kind(tensor)} in the model, {kind(state[part][name])} in the state")
        for part in ("values", "buffers"):
            for name, tensor in own[part].items():
                tensor.copy_(state[part][name])

    def restore(self) -> None:
        """Make the model the plain one again, with the trained weights: they require gradients as before sparsify.

        :meth:`delta` still works; optimisers of the kept entries are refused at their next step. Make another one, and
        wrap the model anew, to train on.

        Raises:
            FishexpError: If the model is restored already, or sparsified anew.
        """
        self._refuse_if_replaced()
        restore(self._model)

    def rebase(self) -> None:
        """Let the next delta begin here: what the model is now becomes its base.

        The kept entries' values are copied for it, and the buffers.
        """
        self._state.originals = {}
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            if name in self._state.kept:
                self._state.originals[name] = self._state.kept[name].gather(tensor.detach())
            elif name in self._state.parameters or (
                isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)
            ):
                self._state.originals[name] = tensor.detach().clone()

    def delta(self, fresh: Collection[str] = ()) -> Delta:
        """Return what training changed since :func:`sparsify`, or since :meth:`rebase`.

        It has all kept entries, with new values for those that moved, and the buffers that have changed. Its base is
        the model with the earlier values in their place, and everything else as it is: a weight that was changed
        outside the mask meanwhile belongs to the base. A mask of :func:`~fishexp.masks.random_masks.random_scores` is
        held by its seed.

        Args:
            fresh: Tensors that the base is to lack, such as those of a head that has just been put on it.

        Raises:
            DeltaError: If the model has no such tensor.
        """
        kept, seed = self._state.kept, self._state.seed
        originals = {
            name: Original(kept[name].positions if name in kept else None, values, name in self._state.parameters)
            for name, values in self._state.originals.items()
        }
        content = trained(self._model, originals, fresh)
        return Delta.of(content if seed is None else by_seed(content, seed, weights(self._model)))

    @torch.no_grad()
    def load_delta(self, delta: Delta) -> None:
        """Make the model what it was when :meth:`delta` was called, to the bit, wherever training has led it since.

        The next delta still begins where it did. Load this before an optimiser's state, which does not know its mask.

        Raises:
            FishexpError: If the delta keeps other entries than the mask.
            DeltaError: If it has another base. The model is as before in either case.
        """
        state = self.state_dict()
        self._refuse_other_mask(delta)
        own = state["values"] | state["buffers"]
        tensors = {name: own[name] for name in own if name in self._state.originals}  # later ones belong to the base
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            tensor.copy_(self._state.originals[name].view_as(tensor))
        try:
            delta.apply_(self._model)
        except DeltaError:
            for name, tensor in tensors.items():
                tensor.copy_(before[name])
            raise
        finally:
            weights(self._model)  # the kept values become those that were written into the weights

    def _refuse_other_mask(self, delta: Delta) -> None:
        own = self.positions()
        for name, mask in delta.mask(self._model).items():
            theirs = mask.flatten().nonzero().squeeze(1)
            if not torch.equal(own[name].sort().values if name in own else theirs[:0], theirs):
                raise FishexpError(
                    f"the delta keeps other entries of {name} than the model's mask; sparsify by delta.mask(model)"
                )

    def ways(self) -> dict[str, GradientMethod]:
        """Return the gradient method of the last backward pass for each partly kept weight of a Linear or Conv2d.

        ``sddmm``, ``submatrix`` or ``dense``; see :func:`fishexp.sparse.cost_model.choose`.
        """
        return {name: kept.last_method for name, kept in self._state.kept.items() if kept.last_method is not None}

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """Return name -> numbers of kept entries and of all, for every weight in the model's order."""
        state = self._state
        return {
            name: (state.parameters[name].numel() if name in state.parameters else 0, weight.numel())
            for name in state.required
            if (weight := state.frozen.get(name, state.parameters.get(name))) is not None
        }

    def _trains(self) -> bool:
        """Tell whether the model still trains through these entries."""
        attached = set(self._model.modules())
        return vars(self._model).get(STATE) is self._state and attached.issuperset(self._state.kept.values())

    def _refuse_if_replaced(self) -> None:
        if not self._trains():
            raise FishexpError("the model is restored, or sparsified anew, and no longer trains these kept entries")


def gradient_methods(model: nn.Module) -> dict[str, str]:
    """Return :meth:`Sparse.ways` of a model that is sparsified, in JSON's types; nothing of one that is not."""
    states = [vars(module)[STATE] for module in model.modules() if STATE in vars(module)]
    return {name: way for state in states for name, way in Sparse(model, state).ways().items()}


def restore(model: nn.Module) -> None:
    """Undo what the last mask did to the modules."""
    attached = detach(model)
    unwatch(model)
    for _, kept in attached:
        for parameter in kept.values():
            retire(parameter)
    for weight in model.parameters():
        remove_gradient_hook(weight)
        remove_watch(weight)
    for module in reversed(list(model.modules())):  # what was before a mask of the whole counts, not of a part later
        state = vars(module).pop(STATE, None)
        if state is not None:
            together.stop(module)
            for name, weight in weights(module).items():
                weight.requires_grad_(state.required.get(name, weight.requires_grad))


def copy_plain(model: nn.Module) -> nn.Module:
    """Copy a model that is plain (:func:`fishexp.sparse.modules.plain`), without what a mask left in it; all trains."""
    states = [vars(module)[STATE] for module in model.modules() if STATE in vars(module)]
    copied = copy.deepcopy(model, {id(state): None for state in states})
    for module in copied.modules():
        vars(module).pop(STATE, None)
    for weight in weights(copied).values():
        weight.requires_grad_(True)
    return copied


class _Retired(nn.Parameter):
    """Refuse to be moved by an optimiser, which asks for the gradient first."""

    @property
    def grad(self) -> NoReturn:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise FishexpError("an optimiser of an earlier mask cannot step; make one of the parameters that train now")


def retire(kept: SparseParameter) -> None:
    """Let no optimiser move these values any more: the model no longer trains through them."""
    kept.values.__class__ = _Retired
