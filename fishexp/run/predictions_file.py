"""The file of predictions beside a file of records: ``records.predictions.jsonl`` beside ``records.jsonl``.

A run appends a JSON line of its run_id and, for each reported set, the digest of the examples, the number of classes
and what was predicted, compressed (:mod:`fishexp.run.predictions`). The first line of some examples has their labels
too. Of two lines of a run the later one counts.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fishexp.errors import RunFailed
from fishexp.system.atomic import append

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.json"  # in the folder of a run


def predictions_file(records: Path) -> Path:
    """Return the file beside a file of records that has the predictions of its runs."""
    return records.with_name(f"{records.stem}.predictions.jsonl")


def append_predictions(records: Path, folder: Path) -> None:
    """Append the predictions in the folder of a run beside ``records``; runs of older versions have none.

    Labels of examples that are there already are left out.

    Raises:
        RunFailed: If they cannot be appended.
    """
    file = predictions_file(records)
    try:
        run = next(lines_of(folder / PREDICTIONS), None)
        known = set(labels_in(lines_of(file)))
    except OSError as error:
        raise RunFailed(f"{error.filename}: the predictions cannot be read ({error.strerror})") from None
    if run is None:
        return
    for packed in run["sets"].values():
        if packed["examples"] in known:
            packed.pop("labels", None)
        known.add(packed["examples"])
    append(file, json.dumps(run), "predictions")


def labels_in(lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return digest of examples -> their labels, from the lines that have some."""
    return {each["examples"]: each["labels"] for line in lines for each in line["sets"].values() if "labels" in each}


def lines_of(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of predictions; a warning says which lines are none, such as one that a crash cut."""
    skipped = []
    for number, text in enumerate(file.read_text("utf-8", "replace").splitlines() if file.exists() else [], 1):
        try:
            line = json.loads(text)
            well = isinstance(line["run_id"], str) and all(
                isinstance(each["examples"], str) and isinstance(each["classes"], int) for each in line["sets"].values()
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            well, line = False, {}
        if well:
            yield line
        else:
            skipped.append(number)
    if skipped:
        log.warning("%s: %d lines are no predictions and are skipped, first line %d", file, len(skipped), skipped[0])
