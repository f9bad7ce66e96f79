"""The one exception that is about the user's input, not about our code."""


class FishexpError(ValueError):
    """Bad input. The message is one line: the value, the rule it broke, what to do."""


class BusyError(FishexpError):
    """The run is going on in another process."""


class DeltaError(FishexpError):
    """A delta file that cannot be used, or not on this model."""


class RunFailed(Exception):
    """A run could not finish (a NaN loss, say). The message is one line."""


class AllFailed(RunFailed):
    """What every worker of the run raises; the message says whose fault it is."""


class WorkerLost(RunFailed):
    """Another worker of the run is gone, or silent: the run may go on from its last snapshot."""


def nearest(name: str, known: list[str]) -> str:
    """``; did you mean X?`` when one of ``known`` resembles ``name``, and what there is in any case."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"; did you mean {close[0]}?" if close else ";"
    return f"{guess} there are: {', '.join(sorted(known))}" if known else guess.rstrip(";")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
