"""Failures: why a run ends, as a worker reports it to the others and to the process that started them."""

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from torch.distributed.distributed_c10d import Store

from fishexp.errors import AllFailed, BusyError, FishexpError, RunFailed, describe

Facts: TypeAlias = dict[str, Any]  # name -> a value that JSON can hold

# key of the failure in a store
_KEY = "ended"
# kind of a failure that is a Ctrl-C or a signal
_INTERRUPTED = "KeyboardInterrupt"
# kind of a failure -> its error; every other kind becomes RunFailed
_ERRORS = {error.__name__: error for error in (FishexpError, BusyError, RunFailed)}
# characters of a line that came from another process
_LONGEST_LINE = 2_000


class Failure(TypedDict):
    """Hold what other processes need to know of an error.

    Attributes:
        kind: Name of the error's class.
        text: Its message, and which worker's it was.
        trace: Its traceback, as text.
    """

    kind: str
    text: str
    trace: str


def from_error(error: BaseException, rank: int = 0) -> Failure:
    """Describe an error of worker ``rank``."""
    text = describe(error)
    kind = _INTERRUPTED if isinstance(error, KeyboardInterrupt) else type(error).__name__
    trace = "".join(traceback.format_exception(error))
    if rank > 0 and not isinstance(error, AllFailed):
        text = f"worker {rank}: {text}"
    return {"kind": kind, "text": text, "trace": trace}


def to_error(failure: Failure) -> BaseException:
    """Build the error to raise where ``failure`` is read, with the traceback of where it was written."""
    if failure["kind"] == _INTERRUPTED:
        return KeyboardInterrupt()
    error = _ERRORS.get(failure["kind"], RunFailed)(" ".join(failure["text"].split())[:_LONGEST_LINE])
    error.add_note(failure["trace"])
    return error


def report(store: Store, failure: Failure) -> Failure:
    """Write down why the run ends, unless that is written already; return what is written now."""
    return _parsed(store.compare_set(_KEY, "", json.dumps(failure)))


def find(store: Store) -> Failure | None:
    """Return the failure that a worker has written down, if any has."""
    return _parsed(store.get(_KEY)) if store.check([_KEY]) else None


def disagreement(texts: Sequence[str]) -> Failure | None:
    """Compare the workers of a run, and return what is wrong with them, if anything is.

    Args:
        texts: JSON from each worker: ``error``, a failure or null, and its ``facts``.

    Returns:
        The first worker's error; else the first fact that is not the same on all workers.
    """
    try:
        workers = [json.loads(text) for text in texts]
        for rank, worker in enumerate(workers):
            if worker["error"] is not None:
                failure = _parsed(json.dumps(worker["error"]).encode())
                text = f"worker {rank}: {failure['text']}" if rank > 0 else failure["text"]
                return {"kind": failure["kind"], "text": text, "trace": failure["trace"]}
        for rank, worker in enumerate(workers):
            for name, theirs, ours in _differences(worker["facts"], workers[0]["facts"]):
                text = f"worker {rank} has {name}={theirs}, worker 0 has {ours}; all need the same code and command"
                return from_error(FishexpError(text))
    except (ValueError, LookupError, TypeError, AttributeError):
        return from_error(
            FishexpError("the workers do not understand each other: they run different versions of fishexp")
        )
    return None


def _parsed(data: bytes) -> Failure:
    """Read a failure from JSON, and check it, as it comes from another process."""
    failure = json.loads(data)
    names = Failure.__required_keys__
    if not isinstance(failure, dict) or {key for key in failure if isinstance(failure[key], str)} != names:
        raise ValueError("a failure has a kind, a text and a trace")
    return Failure(kind=failure["kind"], text=failure["text"], trace=failure["trace"])


def _differences(theirs: Facts, ours: Facts) -> Iterator[tuple[str, Any, Any]]:
    """List the facts that differ: their name, their value and ours."""
    flat, own = dict(_flattened(theirs)), dict(_flattened(ours))
    for name in (*own, *flat):
        if flat.get(name) != own.get(name):
            yield name, flat.get(name), own.get(name)


def _flattened(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List nested facts by their dotted names, such as ``regime.lr``."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
