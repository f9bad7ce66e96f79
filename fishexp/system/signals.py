"""Ctrl-C, SIGTERM, SIGUSR2 and the end of the time given, taken where a run can take them: between two steps.

Not inside torch or an import: raised in the middle of a backward pass or of a library's import, an interrupt can end
the process without a message and without a record, as some C++ code lets no exception through.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# what ends a run: SIGTERM is sent by batch systems and `kill`, SIGUSR2 by Slurm where it is told to warn
KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
# seconds that a step has to end by itself
GRACE = 5.0
# what is kept of the time given, for the step that goes on, a snapshot and the record: a share of it, at most seconds
_SHARE_KEPT, _MOST_KEPT = 0.1, 60.0

# signals wait for `check`, as this is inside `between_steps`
_waiting = False
# a signal waits
_asked = False
# the time given is over
_time_is_over = False
# repeats that signal after GRACE
_timer: threading.Timer | None = None


def install() -> None:
    """Have these signals raise KeyboardInterrupt: at once outside a run, between two steps in a run."""
    for kind in KINDS:
        signal.signal(kind, _ask)


@contextmanager
def passed_on() -> Iterator[None]:
    """Have the signal on which submitit requeues its job stop the run first, with a snapshot, and then requeue.

    submitit's handler would end the process then and there, and what was done since the last snapshot again later.
    SIGTERM, which Slurm sends as well, it ignores, and so do we.
    """
    kind = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", signal.SIGUSR2)
    theirs, came = signal.getsignal(kind), False
    if "SUBMITIT_EXECUTOR" not in os.environ or not callable(theirs):
        yield
        return

    def ask(kind: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        _ask(kind, frame)

    signal.signal(kind, ask)
    try:
        yield
    except KeyboardInterrupt:
        if not came:
            raise
        theirs(kind, None)
    finally:
        signal.signal(kind, theirs)


def stop_after(seconds: float) -> None:
    """Have the process stop as if it got SIGUSR2, so early that it has ended when ``seconds`` are over."""
    global _time_is_over
    _time_is_over = False
    main = threading.main_thread().ident or 0

    def stop() -> None:
        global _time_is_over
        _time_is_over = True
        signal.pthread_kill(main, signal.SIGUSR2)

    left = max(seconds - min(_SHARE_KEPT * seconds, _MOST_KEPT), 0)
    timer = threading.Timer(left, stop)
    timer.daemon = True
    timer.start()


def time_is_over() -> bool:
    """Tell whether the time that :func:`stop_after` was given has ended the work."""
    return _time_is_over


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
            _stop_timer()


def check() -> None:
    """Raise KeyboardInterrupt if a signal came since :func:`between_steps` was entered."""
    if _asked:
        raise KeyboardInterrupt


def last_snapshot_wanted() -> bool:
    """Tell whether a signal waits, so that a snapshot saves what would be lost; it may take longer than ``GRACE``."""
    if _asked:
        _stop_timer()
    return _asked


def _stop_timer() -> None:
    if _timer is not None:
        _timer.cancel()
