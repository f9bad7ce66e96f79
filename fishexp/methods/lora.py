"""LoRA through PEFT: products of two thin matrices are added to Linears (Hu et al., 2022), as an outside reference."""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Annotated, Any, NewType

from annotated_types import Gt
from torch import Tensor, nn

from fishexp.delta.peft_export import reads_weights
from fishexp.errors import FishexpError
from fishexp.masks.budget import budget
from fishexp.methods import Outline
from fishexp.training.adapted import Adapted
from fishexp.training.apart import draw_seed
from fishexp.training.problem import Problem
from fishexp.training.streams import seed_torch

log = logging.getLogger(__name__)

# last part of a layer's name: another type than a text, which in a configuration may name a file
LayerName = NewType("LayerName", str)


def adapt(problem: Problem, keep: float, *, targets: list[LayerName] | None, scale: Annotated[float, Gt(0)]) -> Adapted:
    """Put LoRA adapters of one rank into Linears: the largest for which ``keep`` pays, with the head, which trains too.

    They have no dropout. What they draw to begin with follows from the stream of the method.

    Args:
        keep: Fraction of the number of all weights that may train.
        targets: Last parts of the names of the Linears; None for all outside the head.
        scale: Factor of the product: PEFT's ``lora_alpha`` divided by the rank.

    Raises:
        FishexpError: If PEFT is not installed, no Linear is to be adapted, or ``keep`` does not pay for rank 1.

    Source:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
    """
    try:
        from peft import LoraConfig, LoraModel  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise FishexpError(
            f"method=lora needs {error.name}, which is not installed: pip install 'fishexp[lora]'"
        ) from None
    model = problem.model
    layers = _targets(linear_layers(model, problem.head), targets)
    total = sum(p.numel() for p in model.parameters())
    rank, trains = _paid_rank(model, layers, problem.head, keep)
    pattern = "|".join(re.escape(name) for name in layers)
    alpha: Any = scale * rank  # PEFT divides it by the rank, whatever its annotation says
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern)
    streams = problem.random_streams()
    seed_torch(draw_seed(problem), "weights")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls transformers by a deprecated name
        adapters: Any = LoraModel(model, config, "default")
    problem.set_random_streams(streams)
    for name in problem.head:
        model.get_parameter(name).requires_grad_(True)
    where = f"{len(layers)} Linears and the head: {trains:,} numbers train ({trains / total:.3%})"
    log.info("LoRA of rank %d in %s, of %s that keep pays for", rank, where, f"{budget(keep, total):,}")
    return Adapted(model, {f"{name}.weight": layer.weight for name, layer in layers.items()}, adapters.merge_and_unload)


def outline(network: nn.Module, head: Collection[str], keep: float, *, targets: list[LayerName] | None) -> Outline:
    """Count the numbers that :func:`adapt` lets train, and the weights into which they are merged, by shapes alone.

    Raises:
        FishexpError: If no Linear is to be adapted, or ``keep`` does not pay for rank 1.
    """
    layers = _targets(linear_layers(network, head), targets)
    _, trains = _paid_rank(network, layers, head, keep)
    merged = sum(layer.weight.numel() for layer in layers.values())
    return Outline(trains, changes=merged + sum(network.get_parameter(name).numel() for name in head))


def _paid_rank(
    model: nn.Module, layers: Mapping[str, nn.Linear], head: Collection[str], keep: float
) -> tuple[int, int]:
    """Return the largest rank that ``keep`` pays for, and how many numbers train then."""
    total = sum(p.numel() for p in model.parameters())
    always = sum(model.get_parameter(name).numel() for name in head)
    each, most = count_each_rank(layers), budget(keep, total)
    rank = (most - always) // each
    if rank < 1:
        raise FishexpError(
            f"keep={keep} pays for {most:,} numbers, and LoRA of rank 1 takes {each + always:,}, the head's {always:,} "
            "among them; raise keep, or adapt fewer layers: method.targets=[query,value]"
        )
    return rank, rank * each + always


def linear_layers(model: nn.Module, head: Collection[str]) -> dict[str, nn.Linear]:
    """Return the Linears outside the head by their names, of those that compute as adapters let them.

    That is without those of which only the weight is read, and those whose weight has a second name in the model: the
    product that is merged into it would change more than what was trained.

    Args:
        head: Names of the head's parameters.
    """
    heads = {name.rpartition(".")[0] for name in head}
    names: Counter[Tensor] = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules())
    found = {name: module for name, module in modules.items() if isinstance(module, nn.Linear) and name not in heads}
    return {
        name: layer
        for name, layer in found.items()
        if names[layer.weight] == 1 and not reads_weights(modules[name.rpartition(".")[0]])
    }


def count_each_rank(layers: Mapping[str, nn.Linear]) -> int:
    """Count the numbers that adapters of these layers take for each rank that they have."""
    return sum(layer.in_features + layer.out_features for layer in layers.values())


def _targets(layers: Mapping[str, nn.Linear], targets: Collection[str] | None) -> dict[str, nn.Linear]:
    """Return the layers that are to be adapted."""
    if not layers:
        raise FishexpError("method=lora adapts Linears, and this model has none outside its head; choose a BERT")
    known = sorted({name.rpartition(".")[2] for name in layers})
    for target in targets or ():
        if target not in known:
            raise FishexpError(
                f"method.targets: this model has no Linear named {target}; there are: {', '.join(known)}"
            )
    wanted = known if targets is None else targets
    found = {name: layer for name, layer in layers.items() if name.rpartition(".")[2] in wanted}
    if not found:
        raise FishexpError(f"method.targets=[] adapts nothing; give some of {', '.join(known)}, or null for all")
    return found
