"""Predictions: what a run predicted for each reported example, so that reports can compare runs example by example."""

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fishexp.errors import FishexpError
from fishexp.run.predictions_file import PREDICTIONS, labels_in, lines_of, predictions_file
from fishexp.system.atomic import replacing

# bytes that the predictions of a set may take up in memory
_LARGEST = 1 << 28


@dataclass(frozen=True)
class Predictions:
    """Hold what a run predicted for the examples of a reported set.

    Attributes:
        examples: Digest of the examples.
        classes: Number of classes; 1 is a regression.
        labels: (examples,), in the order of the data set.
        predicted: (examples,): the class of the largest logit, or the number that a regression predicts.
    """

    examples: str
    classes: int
    labels: np.ndarray
    predicted: np.ndarray


def write_predictions(folder: Path, run_id: str, sets: Mapping[str, Predictions]) -> None:
    """Write the predictions of a run to its folder.

    Args:
        sets: Reported set -> the predictions for it.

    Raises:
        OSError: As the system gives it.
    """
    packed = {
        name: {
            "examples": each.examples,
            "classes": each.classes,
            "predicted": _pack(each.predicted, each.classes),
            "labels": _pack(each.labels, each.classes),
        }
        for name, each in sets.items()
    }
    with replacing(folder / PREDICTIONS) as new:
        new.write_text(json.dumps({"run_id": run_id, "sets": packed}) + "\n")


def read_predictions(records: Path) -> dict[str, dict[str, Predictions]]:
    """Read run_id -> reported set -> predictions from the file beside ``records``; empty if there is none.

    Raises:
        FishexpError: If predictions are damaged, or the labels of their examples are missing.
    """
    lines = list(lines_of(predictions_file(records)))
    labels = labels_in(lines)
    latest = {line["run_id"]: line["sets"] for line in lines}
    return {
        run_id: {name: _unpacked(records, run_id, packed, labels) for name, packed in sets.items()}
        for run_id, sets in latest.items()
    }


def _unpacked(records: Path, run_id: str, packed: Mapping[str, Any], labels: Mapping[str, str]) -> Predictions:
    examples, classes = packed["examples"], packed["classes"]
    try:
        true, predicted = _unpack(labels[examples], classes), _unpack(packed["predicted"], classes)
    except (KeyError, TypeError, ValueError, zlib.error):
        true = predicted = None
    if true is None or predicted is None or len(true) != len(predicted):
        raise FishexpError(f"{predictions_file(records)}: the predictions of run {run_id} are damaged; run it again")
    return Predictions(examples, classes, true, predicted)


def _dtype(classes: int) -> np.dtype:
    """Return the smallest type of a label, which may also be -100 where it is to be ignored."""
    return np.dtype(np.float32 if classes == 1 else np.min_scalar_type(-classes)).newbyteorder("<")


def _pack(values: np.ndarray, classes: int) -> str:
    """Compress labels or predictions into text."""
    return b64encode(zlib.compress(values.astype(_dtype(classes)).tobytes(), 9)).decode()


def _unpack(text: str, classes: int) -> np.ndarray:
    """Return what :func:`_pack` compressed.

    Raises:
        TypeError, ValueError, zlib.error: If it is none of its texts.
    """
    inflate = zlib.decompressobj()
    data = inflate.decompress(b64decode(text, validate=True), _LARGEST)
    if not inflate.eof:
        raise ValueError("cut, or too long")
    return np.frombuffer(data, _dtype(classes))
