"""Why a run ends, written down by the worker that knows, for the others and for whoever started them."""

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch.distributed.distributed_c10d import Store

from fishexp.errors import AllFailed, BusyError, FishexpError, RunFailed

Note: TypeAlias = dict[str, str]  # kind, text, trace
Facts: TypeAlias = dict[str, Any]  # name -> what JSON can hold

_ENDED = "ended"  # key of a store
_INTERRUPTED = "KeyboardInterrupt"
_KINDS = {error.__name__: error for error in (FishexpError, BusyError, RunFailed)}
_LONGEST = 2_000  # characters of a line that came from another process


def note_of(error: BaseException, rank: int = 0) -> Note:
    """What others have to know of an error, and whose it was."""
    text = str(error).strip()
    if not isinstance(error, FishexpError | RunFailed):
        text = f"{type(error).__name__}: {(text.splitlines() or [''])[0]}; debug=true shows where"
    kind = _INTERRUPTED if isinstance(error, KeyboardInterrupt) else type(error).__name__
    trace = "".join(traceback.format_exception(error))
    if rank > 0 and not isinstance(error, AllFailed):
        text = f"worker {rank}: {text}"
    return {"kind": kind, "text": text, "trace": trace}


def error_of(note: Note) -> BaseException:
    """The error to raise where ``note`` is read; with a traceback of where it was written."""
    if note["kind"] == _INTERRUPTED:
        return KeyboardInterrupt()
    error = _KINDS.get(note["kind"], RunFailed)(" ".join(note["text"].split())[:_LONGEST])
    error.add_note(note["trace"])
    return error


def leave(store: Store, note: Note) -> Note:
    """Write down why the run ends, unless it is written already; what is there now."""
    return _note(store.compare_set(_ENDED, "", json.dumps(note)))


def find(store: Store) -> Note | None:
    """What somebody left."""
    return _note(store.get(_ENDED)) if store.check([_ENDED]) else None


def verdict(said: Sequence[str]) -> Note | None:
    """What is wrong with the workers of a run, if anything is.

    Args:
        said: By each of them: JSON of ``error``, a note or null, and its ``facts``.

    Returns:
        The first worker's error; else the first fact that is not the same everywhere.
    """
    try:
        heard = [json.loads(text) for text in said]
        for rank, one in enumerate(heard):
            if one["error"] is not None:
                note = _note(json.dumps(one["error"]).encode())
                return {**note, "text": f"worker {rank}: {note['text']}" if rank > 0 else note["text"]}
        for rank, one in enumerate(heard):
            for name, theirs, ours in _differences(one["facts"], heard[0]["facts"]):
                text = f"worker {rank} has {name}={theirs}, worker 0 has {ours}; all need the same code and command"
                return note_of(FishexpError(text))
    except (ValueError, LookupError, TypeError, AttributeError):
        return note_of(FishexpError("the workers do not understand each other: they run different versions of fishexp"))
    return None


def _note(data: bytes) -> Note:
    """Checked, as it comes from another process."""
    note = json.loads(data)
    if not isinstance(note, dict) or {key for key in note if isinstance(note[key], str)} != {"kind", "text", "trace"}:
        raise ValueError("a note has a kind, a text and a trace")
    return note


def _differences(theirs: Facts, ours: Facts) -> Iterator[tuple[str, Any, Any]]:
    flat, own = dict(_flat(theirs)), dict(_flat(ours))
    for name in (*own, *flat):
        if flat.get(name) != own.get(name):
            yield name, flat.get(name), own.get(name)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``regime.lr`` for what is nested."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
