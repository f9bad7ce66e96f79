"""What is done as soon as the gradient of a weight has been formed: masked, or refused."""

from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fishexp.errors import FishexpError

# weight -> (handle, hook)
_GRADIENT_HOOKS: MutableMapping[Tensor, Any] = WeakTensorKeyDictionary()
# weight that no gradient may reach -> handle
_ALARMS: MutableMapping[Tensor, Any] = WeakTensorKeyDictionary()
# what trains, until its first gradient -> handle
_WATCHES: MutableMapping[Tensor, Any] = WeakTensorKeyDictionary()


def add_gradient_hook(weight: Tensor, hook: Callable[[Tensor], None]) -> None:
    """Call ``hook`` when a gradient of the weight has been formed."""
    required = weight.requires_grad
    weight.requires_grad_(True)  # without it, torch takes no hook
    _GRADIENT_HOOKS[weight] = weight.register_post_accumulate_grad_hook(hook), hook
    weight.requires_grad_(required)


def remove_gradient_hook(weight: Tensor) -> Callable[[Tensor], None] | None:
    """Undo :func:`add_gradient_hook`; return the hook, None if there was none."""
    handle, hook = _GRADIENT_HOOKS.pop(weight, (None, None))
    if handle is not None:
        handle.remove()
    return hook


def refuse_gradient(name: str, weight: Tensor) -> None:
    """Raise an error as soon as a gradient is formed of a weight that does not train, or does so in part.

    An optimiser that had the weight would move entries outside the mask.
    """

    def refuse(weight: Tensor) -> None:
        weight.grad = None
        raise gradient_as_a_whole(name)

    add_gradient_hook(weight, refuse)


def gradient_as_a_whole(name: str) -> FishexpError:
    """Make the error for a weight that was set to require a gradient."""
    return FishexpError(
        f"{name} got a gradient as a whole, but the mask freezes entries of it: it was set to require one after "
        "sparsify; set requires_grad of sparse.parameters() only"
    )


def add_alarm(name: str, weight: Tensor) -> None:
    """Raise an error when a gradient reaches the weight, before it is formed; the weight requires one from here on."""
    if weight not in _ALARMS:
        _ALARMS[weight] = weight.requires_grad_(True).register_hook(partial(_refuse_use, name))


def remove_alarm(weight: Tensor) -> None:
    """Undo :func:`add_alarm`, but that the weight requires a gradient."""
    if (handle := _ALARMS.pop(weight, None)) is not None:
        handle.remove()


def has_alarm(weight: Tensor) -> bool:
    """Tell whether the weight has its alarm."""
    return weight in _ALARMS


def _refuse_use(name: str, gradient: Tensor | None) -> None:
    raise FishexpError(
        f"a gradient reached {name}, which the mask keeps in part, past its module: a list, a closure, a view or "
        "named_parameters() led to the parameter itself; use it as an attribute of its module, or keep it whole or not "
        "at all"
    )


def add_watch(parameter: Tensor, hook: Callable[[Tensor], None]) -> None:
    """Call ``hook`` when a gradient of what trains has been formed, in the place of an earlier watch."""
    remove_watch(parameter)
    _WATCHES[parameter] = parameter.register_post_accumulate_grad_hook(hook)


def remove_watch(parameter: Tensor) -> None:
    """Undo :func:`add_watch`."""
    if (handle := _WATCHES.pop(parameter, None)) is not None:
        handle.remove()


def has_other_hooks(weight: Tensor) -> bool:
    """Tell whether someone else has a hook on the weight's gradient."""
    hooks = len(weight._backward_hooks or ()) + len(weight._post_accumulate_grad_hooks or ())
    return hooks > (weight in _GRADIENT_HOOKS) + (weight in _ALARMS) + (weight in _WATCHES)
