"""Ctrl-C and SIGTERM, taken where a run can take them: between two steps, not inside torch or an import."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# seconds that a step has to end by itself
GRACE = 5.0

# signals wait for `check`, as this is inside `between_steps`
_waiting = False
# a signal waits
_asked = False
# repeats that signal after GRACE
_timer: threading.Timer | None = None


def install() -> None:
    """Have both signals raise KeyboardInterrupt: at once outside a run, between two steps in a run.

    Raised in the middle of a backward pass or of a library's import, it can end the process without a message and
    without a record: some C++ code lets no exception through.
    """
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, _ask)


def _ask(kind: int, frame: FrameType | None) -> None:
    global _asked, _timer
    if not _waiting or _asked:  # asked twice means now
        signal.default_int_handler(kind, frame)
    _asked = True
    _timer = threading.Timer(GRACE, signal.pthread_kill, (threading.main_thread().ident, kind))
    _timer.daemon = True
    _timer.start()


@contextmanager
def between_steps() -> Iterator[None]:
    """Have signals wait for :func:`check` inside the context, though not longer than ``GRACE`` seconds."""
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
    """Raise KeyboardInterrupt if a signal came since :func:`between_steps` was entered."""
    if _asked:
        raise KeyboardInterrupt
