"""The order of a classifier's classes: a loaded one is brought into that of the data set, by the classes' names."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fishexp.errors import FishexpError
from fishexp.models import Model

log = logging.getLogger(__name__)

# names of classes that a message shows
_SHOWN = 10
# characters of such a name that it shows
_LONGEST = 40


def align_classes_(model: Model, found: Sequence[str], names: Sequence[str], path: str) -> None:
    """Bring the outputs of a loaded classifier into the order of the data set's classes.

    Case and punctuation of names do not matter. A placeholder such as ``LABEL_1``, or ``1``, stands for the data set's
    class 1.

    Args:
        found: Names of the model's classes in the order of its logits.
        names: Those of the data set; empty if it names none.
        path: Where the model came from, for messages.

    Raises:
        FishexpError: If the names are not the same ones.
    """
    if not names:
        if not is_placeholder(found):
            log.warning(
                "model.path=%s: its classes (%s) count by position, the data set names none", path, _list(found)
            )
        return
    if (order := _order(found, names)) is None:
        raise FishexpError(
            f"model.path={path} classifies {_list(found)}, the data set {_list(names)}; correct id2label in its "
            "config.json if these are the same classes, or give a model without a classifier"
        )
    if order == sorted(order):
        return
    log.info("model.path=%s classifies %s: reordered to %s", path, _list(found), _list(names))
    output = model.head[-1].rpartition(".")[0]  # a head may have layers before its last
    with torch.no_grad():
        for name in model.head:
            if name.rpartition(".")[0] == output:
                parameter = model.network.get_parameter(name)
                parameter.copy_(parameter[order])


def classes_of(id2label: Mapping[int, Any], label2id: Any, path: str) -> tuple[str, ...]:
    """Return the names of a classifier's classes in the order of its logits, from a configuration of Hugging Face.

    Args:
        id2label: Its names by number.
        label2id: Its numbers by name, from which the names come where ``id2label`` has placeholders only.
        path: Where the configuration came from, for messages.

    Raises:
        FishexpError: If the two contradict each other.
    """
    names = tuple(str(id2label.get(i, "?")) for i in range(len(id2label)))
    pairs = label2id.items() if isinstance(label2id, Mapping) else ()
    others = tuple(str(name) for i in range(len(names)) for name, number in pairs if number == i)
    if len(others) != len(names) or is_placeholder(others):
        return names
    if is_placeholder(names):
        return others
    if [*map(_folded, names)] != [*map(_folded, others)]:
        raise FishexpError(
            f"model.path={path} classifies {_list(names)} by id2label of its config.json, {_list(others)} by label2id; "
            "correct the wrong one"
        )
    return names


def is_placeholder(names: Sequence[str]) -> bool:
    """Tell whether names of classes say nothing but their numbers, in order."""
    return all(_folded(name) in (f"label {i}", str(i)) for i, name in enumerate(names))


def _order(found: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Return at which place of ``found`` each of ``names`` is; None if they are not the same names."""
    if sorted(found) == sorted(names):  # to the letter, also where no more than signs tell them apart: + and -
        return [found.index(name) for name in names]
    known = {alias: i for i in range(len(names)) for alias in (f"label {i}", str(i))}
    known |= {_folded(name): i for i, name in enumerate(names)}
    numbers = [known.get(_folded(name), -1) for name in found]
    return [numbers.index(i) for i in range(len(names))] if sorted(numbers) == [*range(len(names))] else None


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(name[:_LONGEST] for name in names[:_SHOWN])
    return " ".join(shown.split()) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _folded(name: str) -> str:
    return " ".join(re.split(r"[\W_]+", name.casefold())).strip()
