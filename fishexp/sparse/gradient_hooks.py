"""What is done as soon as the gradient of a weight has been formed: masked, or refused."""

from collections.abc import Callable, MutableMapping
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fishexp.errors import FishexpError

# weight -> (handle, hook)
_GRADIENT_HOOKS: MutableMapping[Tensor, Any] = WeakTensorKeyDictionary()


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
        raise FishexpError(
            f"{name} got a gradient as a whole, but the mask freezes entries of it: it was set to require one after "
            "sparsify; set requires_grad of sparse.parameters() only"
        )

    add_gradient_hook(weight, refuse)
