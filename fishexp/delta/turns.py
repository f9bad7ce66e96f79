"""Turns of threads at something that many may look at together, but only one may change, while nobody looks."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock, get_ident

from fishexp.errors import DeltaError


class Turns:
    """Let threads share a thing in one state, and change it one at a time, in the order in which they ask."""

    def __init__(self) -> None:
        self._next = Lock()  # held by whoever waits, so that nobody overtakes
        self._changed = Condition()
        self._inside: Counter[int] = Counter()  # thread -> how many blocks it is in

    @contextmanager
    def share(self, fits: Callable[[], bool], change: Callable[[], None]) -> Iterator[None]:
        """Keep others from changing it until the block ends.

        Args:
            fits: Tells whether it is in the state that is wanted.
            change: Brings it there; called while nobody is inside.

        Raises:
            DeltaError: If this thread is inside already, and keeps it in another state.
        """
        thread = get_ident()
        if thread in self._inside:  # no turn to wait for: nobody changes it while this thread is inside
            if not fits():
                raise DeltaError("this thread uses the model with another delta; leave that block first")
            with self._changed:
                self._inside[thread] += 1
        else:
            with self._next, self._changed:
                if not fits():
                    self._changed.wait_for(lambda: not self._inside)
                    change()
                self._inside[thread] = 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[thread] -= 1
                self._inside += Counter()  # without those at zero
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody is inside, and let nobody in before the block ends.

        Raises:
            DeltaError: If this thread is inside, and would wait for itself.
        """
        if get_ident() in self._inside:
            raise DeltaError("this thread uses the model, so it cannot change it; leave the block of using() first")
        with self._next, self._changed:
            self._changed.wait_for(lambda: not self._inside)
            yield
