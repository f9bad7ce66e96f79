"""Ctrl-C and SIGTERM where a run can take them: between two steps, not inside torch or an import."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 5.0  # seconds that a step has to end by itself

_waiting = False  # inside `between_steps`
_asked = False


def install() -> None:
    """Have both signals raise KeyboardInterrupt: at once, or in a run between two steps.

    Raised in the middle of a backward pass or of a library's import, it can end the process with no word and no record:
    some C++ code lets no exception through.
    """
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, _ask)
    signal.signal(signal.SIGALRM, signal.default_int_handler)


def _ask(kind: int, frame: FrameType | None) -> None:
    global _asked
    if not _waiting or _asked:  # asked twice means now
        signal.default_int_handler(kind, frame)
    _asked = True
    signal.setitimer(signal.ITIMER_REAL, GRACE)


@contextmanager
def between_steps() -> Iterator[None]:
    """Inside, the signals wait for :func:`check`, though not for long."""
    global _waiting, _asked
    outer, _waiting = _waiting, True
    try:
        yield
        check()
    finally:
        _waiting = outer
        if not outer and _asked:
            _asked = False
            signal.setitimer(signal.ITIMER_REAL, 0)


def check() -> None:
    """Raise KeyboardInterrupt if a signal came since."""
    if _asked:
        raise KeyboardInterrupt
