"""PEFT's ways to train single entries of linear layers, and LoRA, with nearly as many numbers as a mask keeps."""

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from fishexp.masks.topk import Mask, count
from fishexp.methods.lora import count_each_rank, linear_layers


def _shira(model: nn.Module, mask: Mask, head: tuple[str, ...]) -> nn.Module:
    """Wrap ``model`` with SHiRA: r (in + out) random entries of each linear layer, the same r for all layers.

    It is the r whose total is nearest to the number of entries that ``mask`` keeps outside the head.
    """
    from peft import ShiraConfig  # pyright: ignore[reportMissingImports]

    torch.sparse.check_sparse_tensor_invariants.disable()  # the default; torch warns PEFT unless it is explicit
    layers, modules = linear_layers(model, head), _modules(head)
    r = _rank(layers, mask, head)
    return _wrap(model, ShiraConfig(r=r, random_seed=0, target_modules=list(layers), modules_to_save=modules))


def _supertuning(model: nn.Module, mask: Mask, head: tuple[str, ...]) -> nn.Module:
    """Wrap ``model`` with Super-Tuning: the largest entries of each linear layer, the same share of each layer."""
    from peft import SupertuningConfig  # pyright: ignore[reportMissingImports]

    layers, modules = linear_layers(model, head), _modules(head)
    total = sum(layer.weight.numel() for layer in layers.values())
    sparsity = 1 - _count_outside_head(mask, head) / total
    return _wrap(model, SupertuningConfig(sparsity=sparsity, target_modules=list(layers), modules_to_save=modules))


def _lora(model: nn.Module, mask: Mask, head: tuple[str, ...]) -> nn.Module:
    """Wrap ``model`` with LoRA: factors of r columns for each linear layer, the same r for all, without dropout.

    It is the r whose total is nearest to the number of entries that ``mask`` keeps outside the head, and at least 1.
    """
    from peft import LoraConfig  # pyright: ignore[reportMissingImports]

    layers, modules = linear_layers(model, head), _modules(head)
    r = _rank(layers, mask, head)
    return _wrap(model, LoraConfig(r=r, target_modules=list(layers), modules_to_save=modules))


def _modules(head: tuple[str, ...]) -> list[str]:
    """Return the names of the head's modules."""
    return sorted({name.rpartition(".")[0] for name in head})


def _rank(layers: dict[str, nn.Linear], mask: Mask, head: tuple[str, ...]) -> int:
    """Return the r for which r (in + out) numbers a layer are nearest to what ``mask`` keeps outside the head."""
    return max(1, round(_count_outside_head(mask, head) / count_each_rank(layers)))


def _count_outside_head(mask: Mask, head: tuple[str, ...]) -> int:
    return count({name: kept for name, kept in mask.items() if name not in head})


def _wrap(model: nn.Module, config: Any) -> nn.Module:
    import peft  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls transformers by a deprecated name
        return peft.get_peft_model(cast(Any, model), config)


MAKERS: dict[str, Callable[[nn.Module, Mask, tuple[str, ...]], nn.Module]] = {
    "LoRA": _lora,
    "SHiRA": _shira,
    "Super-Tuning": _supertuning,
}
