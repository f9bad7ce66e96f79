"""Begin a run on Weights & Biases."""

import os
from pathlib import Path
from typing import Any, Literal

from fishexp.errors import FishexpError, first_line


def start(option: str, mode: Literal["offline", "online", "disabled"], folder: Path, **settings: Any) -> Any:
    """Begin a run in the project that WANDB_PROJECT names, ``fishexp`` by default; W&B prints nothing.

    Other runs of this process go on.

    Args:
        option: How the user gave the mode, for the message: ``wandb=``.
        mode: ``offline`` writes files only, ``online`` sends them too.
        folder: Below which W&B writes its files; else it would be where the first run of this process had them.
        settings: Further arguments of ``wandb.init``.

    Raises:
        FishexpError: If W&B refuses, without an account for example.
    """
    import wandb
    from wandb.errors import Error

    project, quiet = os.environ.get("WANDB_PROJECT", "fishexp"), wandb.Settings(silent=True, console="off")
    try:
        return wandb.init(project=project, mode=mode, dir=folder, reinit="create_new", settings=quiet, **settings)
    except Error as error:
        raise FishexpError(f"{option}{mode}: {first_line(error)} {option}offline needs no account") from None
