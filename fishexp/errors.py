"""Errors whose message is a line for the user, and how errors are put into such a line."""


class FishexpError(ValueError):
    """Report bad input. The message is one line: the value, the rule it broke, what to do."""


class BusyError(FishexpError):
    """Report that another process is carrying out this very run."""


class DeltaError(FishexpError):
    """Report a delta file that cannot be used, or not on this model."""


class RunFailed(Exception):
    """Report that a run could not finish, because of a NaN loss, say. The message is one line."""


class AllFailed(RunFailed):
    """Report that a run could not finish. All of its workers raise it; the message says whose fault it is."""


class WorkerLost(RunFailed):
    """Report that another worker of the run is gone or silent; the run may resume from its last snapshot."""


def nearest(name: str, known: list[str]) -> str:
    """Write the end of a message about an unknown name: ``; did you mean X?``, if a known name resembles it.

    All known names follow in any case, unless there are none.
    """
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"; did you mean {close[0]}?" if close else ";"
    return f"{guess} there are: {', '.join(sorted(known))}" if known else guess.rstrip(";")


# package that not all of fishexp needs -> the extra that installs it
_EXTRAS = {
    "annotated_types": "run", "hydra": "run", "omegaconf": "run", "pydantic": "run", "rich": "run", "scipy": "run",
    "sklearn": "run", "wandb": "run", "yaml": "run", "datasets": "text", "huggingface_hub": "text",
    "transformers": "text", "torchvision": "vision", "matplotlib": "report", "peft": "lora", "accelerate": "hf",
    "lightning": "lightning", "tensorboard": "tensorboard",
}  # fmt: skip


def how_to_install(error: ModuleNotFoundError) -> str | None:
    """Say how to install a package that is missing; None if no part of fishexp needs it."""
    name = (error.name or "").partition(".")[0]
    return f"{name} is not installed; pip install 'fishexp[{_EXTRAS[name]}]'" if name in _EXTRAS else None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def describe(error: BaseException) -> str:
    """Describe why a run ended, in a line for the user.

    Returns:
        The message of a :class:`FishexpError` or :class:`RunFailed`; of a missing package how to install it. Of any
        other error the type, the first line of its text, and how to see more.
    """
    text = str(error).strip()
    if isinstance(error, ModuleNotFoundError) and (hint := how_to_install(error)):
        return hint
    if isinstance(error, FishexpError | RunFailed):
        return text
    return f"{': '.join([type(error).__name__, *text.splitlines()[:1]])}; debug=true shows where"
