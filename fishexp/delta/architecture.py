"""The modules of a transformers model, from its configuration and the names of its tensors, without its weights."""

import json
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from fishexp.errors import DeltaError, first_line

# classes that are tried where the configuration names none that has the tensors
_HEADS = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModel",
)
# characters that a message has of what transformers says: it lists all types of models that it knows
_LONGEST = 120


def modules_of(config: str, names: Collection[str]) -> nn.Module:
    """Build the model that has tensors of these names, on meta; nothing is fetched and no code of a model's is run.

    Args:
        config: Text of a config.json.
        names: Of all tensors; tied ones may have one name or several.

    Raises:
        DeltaError: If transformers has no such model, or the text is no configuration of one.
    """
    import transformers

    known: dict[str, Any] = json.loads(config)
    kind = known.pop("model_type", None)
    architectures = known.get("architectures")
    own = [getattr(transformers, str(name), None) for name in architectures] if isinstance(architectures, list) else []
    models: list[Any] = [
        found for found in own if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    ]
    try:
        about = transformers.AutoConfig.for_model(kind, **known)
    except Exception as error:  # transformers raises many kinds
        raise _unusable(error) from None
    built, failure = False, None
    for found in (*models, *(getattr(transformers, name) for name in _HEADS)):
        try:
            with torch.device("meta"):
                model = found.from_config(about) if found.__name__ in _HEADS else found(about)
        except Exception as error:  # a family that has no model with such a head, or a configuration that makes none
            failure = failure or error
            continue
        built = True
        tensors = model.state_dict(keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(tensors.items())}
        if {*names} <= tensors.keys() and {*first.values()} <= {*names}:
            return model
    if failure is not None and not built:
        raise _unusable(failure)
    raise DeltaError(f"transformers has no model of the type {str(kind)[:40]!r} with the tensors of the delta's result")


def _unusable(error: Exception) -> DeltaError:
    """Return the error that transformers makes no model of a configuration."""
    why = f"{type(error).__name__}: {first_line(error)}"
    return DeltaError(f"transformers cannot use the model's config.json: {why[:_LONGEST]}")
