"""PEFT's ways to train single entries of linear layers, and LoRA, with nearly as many numbers as a mask keeps."""

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from fishexp.masks.topk import Mask, count


def _shira(model: nn.Module, mask: Mask, head: tuple[str, ...]) -> nn.Module:
    """Wrap ``model`` with SHiRA: r (in + out) random entries of each linear layer, the same r for all layers.

    It is the r whose total is nearest to the number of entries that ``mask`` keeps outside the head.
    """
    from peft import ShiraConfig  # pyright: ignore[reportMissingImports]

    torch.sparse.check_sparse_tensor_invariants.disable()  # the default; torch warns PEFT unless it is explicit
    layers, _, modules = _linear(model, head)
    r = _rank(layers, mask, head)
    return _wrap(model, ShiraConfig(r=r, random_seed=0, target_modules=list(layers), modules_to_save=modules))


def _supertuning(model: nn.Module, mask: Mask, head: tuple[str, ...]) -> nn.Module:
    """Wrap ``model`` with Super-Tuning: the largest entries of each linear layer, the same share of each layer."""
    from peft import SupertuningConfig  # pyright: ignore[reportMissingImports]

    layers, total, modules = _linear(model, head)
    sparsity = 1 - _count_outside_head(mask, head) / total
    return _wrap(model, SupertuningConfig(sparsity=sparsity, target_modules=list(layers), modules_to_save=modules))


def _lora(model: nn.Module, mask: Mask, head: tuple[str, ...]) -> nn.Module:
    """Wrap ``model`` with LoRA: factors of r columns for each linear layer, the same r for all, without dropout.

    It is the r whose total is nearest to the number of entries that ``mask`` keeps outside the head, and at least 1.
    """
    from peft import LoraConfig  # pyright: ignore[reportMissingImports]

    layers, _, modules = _linear(model, head)
    r = _rank(layers, mask, head)
    return _wrap(model, LoraConfig(r=r, target_modules=list(layers), modules_to_save=modules))


def _linear(model: nn.Module, head: tuple[str, ...]) -> tuple[dict[str, nn.Linear], int, list[str]]:
    """Return the linear layers outside the head, the number of entries of their weights, and the head's modules."""
    heads = sorted({name.rpartition(".")[0] for name in head})
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in heads
    }
    return layers, sum(layer.weight.numel() for layer in layers.values()), heads


def _rank(layers: dict[str, nn.Linear], mask: Mask, head: tuple[str, ...]) -> int:
    """Return the r for which r (in + out) numbers a layer are nearest to what ``mask`` keeps outside the head."""
    numbers = sum(layer.in_features + layer.out_features for layer in layers.values())
    return max(1, round(_count_outside_head(mask, head) / numbers))


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
