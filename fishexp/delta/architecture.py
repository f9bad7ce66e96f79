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


def modules_of(config: str, names: Collection[str]) -> nn.Module:
    """Build the model that has tensors of these names, on meta; nothing is fetched and no code of a model's is run.

    Args:
        config: Text of a config.json.
        names: Of all tensors; tied ones may have one name or several.

    Raises:
        DeltaError: If transformers has no such model.
    """
    import transformers

    known: dict[str, Any] = json.loads(config)
    kind = known.pop("model_type", None)
    architectures = known.get("architectures") or ()
    classes = [getattr(transformers, str(name), None) for name in (*architectures, *_HEADS)]
    try:
        about = transformers.AutoConfig.for_model(kind, **known)
    except (ValueError, TypeError) as error:
        raise DeltaError(f"transformers cannot use the model's config.json: {first_line(error)}") from None
    for found in filter(None, classes):
        try:
            with torch.device("meta"):
                auto = found.__name__.startswith("Auto")
                model = found.from_config(about) if auto else found(about)
        except (ValueError, TypeError):  # a family that has no model with such a head
            continue
        tensors = model.state_dict(keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(tensors.items())}
        if {*names} <= tensors.keys() and {*first.values()} <= {*names}:
            return model
    raise DeltaError(f"transformers has no model of the type {str(kind)[:40]!r} with the tensors of the delta's result")
