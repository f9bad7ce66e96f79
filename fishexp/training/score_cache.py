"""The cache of scores: what an earlier run computed from the same weights and examples is read, to the bit."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fishexp.delta.fingerprint import Fingerprint, canonical, digest, raw
from fishexp.delta.sources import source
from fishexp.errors import first_line
from fishexp.masks.started import Started
from fishexp.masks.topk import Scores
from fishexp.system.atomic import replacing
from fishexp.training.problem import Problem

log = logging.getLogger(__name__)

# bytes of all files together, from which on those that were not used for the longest time go
MOST_BYTES = 4 * 2**30
# name of a tensor that no parameter has: the state in which scoring left the generator
_GENERATOR = ".generator"
# what comes before a parameter's name in that of the values in which its kept entries begin to train
_START = ".start."
_METADATA = "fishexp"


class ScoreCache:
    """Keep the scores of runs in a folder, each in a file named after a digest of all that decides them.

    Args:
        folder: Of the files; made when it is needed.
        conditions: What decides the scores beside the weights, the buffers and the generator; can be written as JSON.
        report_read: Called when scores were read, with the file and the seconds that it took to compute them.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, Any], report_read: Callable[[Path, float], None]) -> None:
        self._folder, self._conditions, self._report_read = folder, conditions, report_read

    def key(self, problem: Problem, weights: Mapping[str, Fingerprint]) -> str:
        """Return the digest of what decides the scores of a model whose parameters have these fingerprints."""
        facts = {
            "conditions": self._conditions,
            "weights": digest(weights),
            "buffers": digest(source(dict(problem.model.named_buffers())).fingerprints()),
            "generator": hashlib.sha256(raw(problem.generator.get_state())).hexdigest(),
        }
        return hashlib.sha256(canonical(facts)).hexdigest()

    def read(self, key: str, problem: Problem) -> Scores | None:
        """Return the scores if they are there, and bring the generator where computing them would have brought it."""
        file = self._file(key)
        try:
            scores, state, seconds = _read(file, key)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s); the scores are computed", file, first_line(error))
            return None
        with suppress(OSError):
            os.utime(file)  # it is in use
        problem.generator.set_state(state)
        self._report_read(file, seconds)
        moved = {name: score.to(problem.device) for name, score in scores.items()}
        if not isinstance(scores, Started):
            return moved
        return Started(moved, {name: values.to(problem.device) for name, values in scores.start.items()})

    def write(self, key: str, scores: Scores, problem: Problem, seconds: float) -> None:
        """Keep scores that it took ``seconds`` to compute; say so if they cannot be kept."""
        tensors = {name: score.cpu().contiguous() for name, score in scores.items()}
        if started := isinstance(scores, Started):
            tensors |= {_START + name: values.cpu().contiguous() for name, values in scores.start.items()}
        tensors[_GENERATOR] = problem.generator.get_state()
        about = {
            "key": key,
            "names": list(scores),
            "started": started,
            "content": _digest(tensors),
            "seconds": round(seconds, 3),
        }
        file = self._file(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as new:
                save_file(tensors, new, {_METADATA: json.dumps(about)})
            self._drop_unused(file)
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else first_line(error)
            log.warning("the scores are not kept for other runs: %s cannot be written (%s)", file, reason)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key[:16]}.safetensors"

    def _drop_unused(self, newest: Path) -> None:
        """Remove the files that were not used for the longest time, until those that are left are small enough."""
        about = {}
        for file in self._folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another run was faster
                about[file] = file.stat()
        size = sum(stat.st_size for stat in about.values())
        for file in sorted(about.keys() - {newest}, key=lambda file: about[file].st_mtime):
            if size <= MOST_BYTES:
                return
            file.unlink(missing_ok=True)
            size -= about[file].st_size


def _read(file: Path, key: str) -> tuple[Scores, torch.Tensor, float]:
    """Return the scores in a file, the state of the generator, and the seconds that computing them took.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds other scores, or is damaged; errors of other types are possible then, too.
    """
    with safe_open(file, "pt") as opened:
        about = json.loads((opened.metadata() or {})[_METADATA])
        names = about["names"]
        starts = [_START + name for name in names if about["started"]]
        tensors = {name: opened.get_tensor(name) for name in (*names, *starts, _GENERATOR)}
    if about["key"] != key or about["content"] != _digest(tensors):
        raise ValueError("it is not what was written")
    scores: Scores = {name: tensors[name] for name in names}
    if starts:
        scores = Started(scores, {name: tensors[_START + name] for name in names})
    return scores, tensors[_GENERATOR], float(about["seconds"])


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    return digest(source(tensors).fingerprints())
