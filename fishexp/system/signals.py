"""Ctrl-C and SIGTERM where a run can take them: between two steps, not inside torch or an import."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 5.0  # seconds that a step has to end by itself

_waiting = False  # inside `between_steps`
_asked = False
_timer: threading.Timer | None = None


def install() -> None:
    """Have both signals raise KeyboardInterrupt: at once, or in a run between two steps.

    Raised in the middle of a backward pass or of a library's import, it can end the process with no word and no record:
    some C++ code lets no exception through.
    """
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, _ask)


def _ask(kind: int, frame: FrameType | None) -> None:
    global _asked, _timer
    if not _waiting or _asked:  # asked twice means now
        signal.default_int_handler(kind, frame)
    _asked = True
    _timer = threading.Timer(GRACE, signal.pthread_kill, (threading.main_thread().ident, kind))  # asks a second time
    _timer.daemon = True
    _timer.start()


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
            if _timer is not None:
                _timer.cancel()


def check() -> None:
    """Raise KeyboardInterrupt if a signal came since."""
    if _asked:
        raise KeyboardInterrupt
