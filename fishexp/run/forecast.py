"""What a run is going to train, take and leave, told from its settings: no example and no weight is loaded."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fishexp.data.datasets import Outline as DataOutline
from fishexp.data.datasets import count_trained, count_validation
from fishexp.distributed.cost import Cost, Link, merge_volume
from fishexp.errors import FishexpError
from fishexp.masks.allocation import check_per
from fishexp.masks.budget import left
from fishexp.methods import Outline as MethodOutline
from fishexp.models import Outline as ModelOutline
from fishexp.regimes import check_warmup
from fishexp.run.settings import GROUPS, Component, Config, chooses_epoch, component, component_module, options_of
from fishexp.training.problem import count_epoch
from fishexp.training.trainer import count_steps

# function of a component's module that says what is known before anything is loaded
OUTLINE = "outline"
# bytes of a number, and of the optimisers' moments of a weight
_NUMBER = 4
_MOMENTS = {"sgd": _NUMBER, "adamw": 2 * _NUMBER}
# bytes of an entry of a weight kept in part, beside gradient and moments: its value as it is, as the weight has it and
# as it began, and where it stands; of a weight kept whole, which is there anyway: as it began
_PART, _WHOLE = 3 * _NUMBER + 10, _NUMBER
# bytes that an entry takes in a delta, by and large, as measured on a BERT at keep=0.005 (experiments/rules and units):
# of FISH, of other scores, of a mask that is told by a seed or in whole rows, columns, channels or tensors
_FISH_ENTRY, _ENTRY, _PLACED_ENTRY = 3.5, 4.0, 3.4
# classes that are counted on where nobody knows
_CLASSES = 2


@dataclass(frozen=True)
class Delta:
    """Hold the size of what a run leaves of its weights.

    Attributes:
        bytes: Bytes; None if they are not known.
        whole: It is the model itself, as half of it or more changes.
        at_least: It may be more, as later masks move other weights.
    """

    bytes: int | None = None
    whole: bool = False
    at_least: bool = False


@dataclass(frozen=True)
class Forecast:
    """Hold what a run is going to train, take and leave; None where that is not known before data are loaded.

    Attributes:
        weights: Weights of the model.
        trains: Numbers that train, on each worker.
        head: Those of the classifier, which always train.
        adds: Bytes that training takes beside the model: values, places, gradient, moments.
        dense_adds: Bytes that dense training takes beside the model: gradient and moments.
        delta: What the run leaves of its weights.
        merge: What a merge of several workers costs each.
        steps: Optimiser steps, of each worker.
        notes: Lines about what the numbers do not say.
    """

    weights: int | None = None
    trains: int | None = None
    head: int | None = None
    adds: int | None = None
    dense_adds: int | None = None
    delta: Delta = field(default_factory=Delta)
    merge: Cost | None = None
    steps: int | None = None
    notes: tuple[str, ...] = ()


class Outlines:
    """Look up what is known of data sets and models before anything is loaded, once for all runs of a command."""

    def __init__(self) -> None:
        self._data: dict[str, DataOutline] = {}
        self._models: dict[str, ModelOutline] = {}

    def data(self, options: Mapping[str, Any]) -> DataOutline:
        """Return what is known of a data set."""
        key = json.dumps(options)
        if key not in self._data:
            found = _outline("data", options)
            self._data[key] = DataOutline(None, None, None) if found is None else found()
        return self._data[key]

    def model(self, options: Mapping[str, Any], classes: int | None, channels: int) -> ModelOutline:
        """Return the network of a model; one whose module has no outline is built with its weights."""
        key = json.dumps([options, classes, channels])
        if key not in self._models:
            found = _outline("model", options)
            if found is None:
                model = component("model", options).function(_CLASSES if classes is None else classes, channels)
                self._models[key] = ModelOutline(model.network, model.head)
            else:
                self._models[key] = found(classes, channels)
        return self._models[key]


def forecast(config: Config, outlines: Outlines) -> Forecast:
    """Say what a run is going to train, take and leave.

    Raises:
        FishexpError: If the run would be refused: settings that do not fit, or a ``keep`` that does not pay for the
            head, say. What only data or weights can tell is not among it.
    """
    _, _, method, _ = (component(group, config[group]) for group in GROUPS)
    data, regime = outlines.data(config["data"]), config["regime"]
    name = config["data"]["name"]
    steps = _steps(config, data.train)
    if data.channels is None:
        return Forecast(steps=steps, notes=(f"data={name}: its module has no function {OUTLINE}, see README",))
    model = outlines.model(config["model"], data.classes, data.channels)
    notes = []
    if unknown := " and ".join(what for what in ("classes", "train") if getattr(data, what) is None):
        classes = model.network.get_parameter(model.head[-1]).shape[0]
        assumed = f"; {classes} classes are assumed" if data.classes is None else ""
        notes.append(f"data={name}: {unknown.replace('train', 'examples')} are counted when it is read{assumed}")
    weights, head = _count(model)
    moments = _MOMENTS.get(regime.get("optimiser", ""))
    dense_adds = None if moments is None else weights * (_NUMBER + moments)
    known = Forecast(weights=weights, head=head, dense_adds=dense_adds, steps=steps)
    if regime.get("epochs") == 0:
        return replace(known, trains=0, adds=0, notes=(*notes, "regime.epochs=0 evaluates only"))
    if "warmup_epochs" in regime and method.name != "full":
        check_warmup(regime["warmup_epochs"], regime["epochs"])
    trained = _trained(config, method, model, weights, head)
    if trained is None:
        notes.append(f"method={method.name} chooses by itself: its module has no function {OUTLINE}, see README")
        return replace(known, notes=tuple(notes))
    notes += _about(config, method)
    return replace(
        known, trains=trained.trains, notes=tuple(notes),
        adds=_adds(config, method, trained.trains, head, weights, moments),
        delta=_delta(config, method, model, trained, weights), merge=_merge(config, model, trained.trains),
    )  # fmt: skip


def _outline(group: str, options: Mapping[str, Any]) -> Any:
    """Return the outline of a component, with the options that it takes bound; None if its module has none."""
    module, _ = component_module(group, options)
    outline = getattr(module, OUTLINE, None)
    if outline is None:
        return None
    bound = {key: options[key] for key in options_of(outline)}
    return lambda *arguments: outline(*arguments, **bound)


def _count(model: ModelOutline) -> tuple[int, int]:
    """Count all weights of a model, and those of its head."""
    head = sum(model.network.get_parameter(name).numel() for name in model.head)
    return sum(p.numel() for p in model.network.parameters()), head


def _workers(regime: Mapping[str, Any]) -> int:
    return regime.get("workers", 1)


def _is_disjoint(config: Config) -> bool:
    """Tell whether the workers of a run train different weights, as the original's random masks always are."""
    original = config["compat"] == "fish" and config["method"]["name"] == "random"
    regime = config["regime"]
    return _workers(regime) > 1 and (regime.get("masks") == "disjoint" or original)


def _trained(config: Config, method: Component, model: ModelOutline, weights: int, head: int) -> MethodOutline | None:
    """Count what trains on each worker, and what changes in the end; None if the method alone knows."""
    options, keep = config["method"], config["keep"]
    if method.offers != "scores":
        outline = _outline("method", options)
        return None if outline is None else outline(model.network, model.head, keep)
    check_per(options.get("per", "network"), options.get("unit", "entry"))
    workers = _workers(config["regime"]) if _is_disjoint(config) else 1
    own = left(keep, weights, head, model.head, workers)
    return MethodOutline(trains=own + head, changes=workers * own + head)


def _adds(config: Config, method: Component, trains: int, head: int, weights: int, moments: int | None) -> int | None:
    """Count the bytes that training takes beside the model."""
    if moments is None:
        return None
    best = chooses_epoch(config["regime"]) and config["regime"]["best"]
    each = _NUMBER + moments + _NUMBER * best  # gradient and moments, and the best epoch's value
    if config["decay"] == "all":  # of every weight, with a mask
        return weights * (each + 1)
    if method.offers == "adapt":  # the adapters themselves, and the head, as they began
        return trains * (each + _WHOLE) + (trains - head) * _NUMBER
    whole = head if method.offers == "scores" else trains
    return whole * (each + _WHOLE) + (trains - whole) * (each + _PART)


def _delta(config: Config, method: Component, model: ModelOutline, trained: MethodOutline, weights: int) -> Delta:
    """Estimate the bytes of a delta: of the last model, or of an epoch's where every epoch is kept."""
    buffers = sum(buffer.numel() for buffer in model.network.buffers() if buffer.is_floating_point())
    dense, regime = _NUMBER * (weights + buffers), config["regime"]
    warm = regime["name"] == "distributed" and regime["warmup_epochs"] > 0
    if config["decay"] == "all" or warm or _NUMBER * (trained.changes + buffers) >= dense / 2:
        return Delta(dense, whole=True)
    each, options = _ENTRY, config["method"]
    by_seed = method.name == "random" and _workers(regime) == 1
    if method.offers != "scores" or options.get("unit", "entry") != "entry" or by_seed:
        each = _PLACED_ENTRY
    elif method.name == "fish":
        each = _FISH_ENTRY
    several = regime["name"] == "distributed" and regime["refresh_every"] is not None and method.offers == "scores"
    return Delta(int(trained.changes * each) + _NUMBER * buffers, at_least=several)


def _merge(config: Config, model: ModelOutline, trains: int) -> Cost | None:
    """Predict what a merge costs each worker; None where there are none."""
    regime = config["regime"]
    if regime["name"] != "distributed" or _workers(regime) == 1:
        return None
    volume = merge_volume(
        model.network, model.head, trains, disjoint=_is_disjoint(config), decay_all=config["decay"] == "all",
        wire=regime["wire"],
    )  # fmt: skip
    return volume.cost(_workers(regime), Link(regime["bandwidth"], regime["latency"]))


def _steps(config: Config, examples: int | None) -> int | None:
    """Count the optimiser steps of a worker; None if nobody knows how many examples there are."""
    data, regime = config["data"], config["regime"]
    if examples is None or not regime.keys() >= {"epochs", "batch_size", "accumulate", "drop_last"}:
        return None
    count = count_trained(examples, data.get("train_limit"), data.get("holdout") or 0)
    if chooses_epoch(regime):
        count -= count_validation(count, regime["validation_fraction"])
    if (workers := _workers(regime)) > count:
        raise FishexpError(f"regime.workers={workers}: there are only {count} training examples")
    if regime.get("shard"):
        count = math.ceil(count / workers)
    epoch = count_epoch(count, regime["batch_size"], drop_last=regime["drop_last"])
    return count_steps(epoch, regime["batch_size"], regime["accumulate"]) * regime["epochs"]


def _about(config: Config, method: Component) -> list[str]:
    """Write lines about what a row of numbers does not say."""
    regime, lines = config["regime"], []
    if before := next((value for key, value in config["method"].items() if key.endswith("_epochs")), None):
        lines.append(f"method={method.name} trains all weights before, for {before} epochs: steps and memory on top")
    if config["method"].get("unit", "entry") != "entry":
        lines.append(f"method.unit={config['method']['unit']}: at most so many weights, as whole units go into k")
    if chooses_epoch(regime) and regime["patience"] is not None:
        lines.append(f"regime.patience={regime['patience']} may stop a run earlier: steps at most")
    if regime["name"] == "checkpointing":
        lines.append(f"regime=checkpointing keeps each of {regime['epochs']} epochs as such a delta")
    return lines
