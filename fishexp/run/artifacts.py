"""Run folders: the weights that a run leaves behind, and how to use them again or go on from them."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model
from torch import Tensor, nn
from yaml import AliasToken, YAMLError, scan

from fishexp.data.datasets import Dataset
from fishexp.data.images import Images
from fishexp.data.text import Tokens
from fishexp.delta import Delta
from fishexp.errors import FishexpError, RunFailed, first_line, nearest
from fishexp.models import WEIGHTS, Model
from fishexp.models.labels import align_classes_
from fishexp.run.predictions import Predictions, write_predictions
from fishexp.run.predictions_file import PREDICTIONS
from fishexp.run.record import RECORD
from fishexp.run.settings import component, is_ours
from fishexp.system.atomic import replacing, sync
from fishexp.system.hub import cached_only
from fishexp.training.checkpoints import BASE, Checkpoints, Weights

DELTA, PREPROCESSING = "delta.safetensors", "preprocessing.json"
# classes, or channels, that a run folder may claim
MAX_CLASSES = 1_000_000
# names of other folders that a message shows
_MOST_NAMES = 20
# bytes of a run's config.yaml, which has a few thousand
MAX_CONFIG = 100_000


def build_model(
    options: Mapping[str, Any],
    classes: int,
    channels: int,
    names: Sequence[str] = (),
    *,
    epoch: int | None = None,
    behind: tuple[Path, ...] = (),
) -> Model:
    """Build the model that a configuration names, from random weights, from a pre-trained model or from a run.

    Where ``path`` is the folder of a run that holds only what training changed, the model that training began with is
    built first, and the change is then applied to it. A classifier that comes with it gets the order of ``names``.

    Args:
        options: The ``model`` group of a configuration.
        classes: Number of labels; 1 is a regression.
        channels: Channels of the images; 0 for text.
        names: Names of the classes, in the order of the labels' numbers; empty if they have none.
        epoch: The epoch whose model to build, where ``path`` is a run with checkpoints; None for the last.
        behind: Folders of the runs that began with this model.

    Raises:
        FishexpError: If the model does not suit the data set, or its weights cannot be found or do not fit, or its
            classifier has other classes.
    """
    folder = None if options.get("pretrained") is False or options.get("path") is None else Path(options["path"])
    if folder is not None and _holds_change(folder):
        model = _build_from_change(options, folder, classes, channels, epoch, behind)
    else:
        model = component("model", options).function(classes, channels)
    about = {} if folder is None else preprocessing(folder)
    if len(about.get("mean") or ()) == channels > 0:  # whatever other images there are now: it has learned on those
        model = replace(model, normalisation=(tuple(about["mean"]), tuple(about["std"])))
    found = about.get("names") if about else model.classes  # older runs name none: they have their data set's order
    if found:
        align_classes_(model, found, names, options["path"])
        model = replace(model, classes=tuple(names or found))
    if names and model.name_classes is not None:
        model.name_classes(names)
    return model


def _build_from_change(
    options: Mapping[str, Any],
    folder: Path,
    classes: int,
    channels: int,
    epoch: int | None,
    behind: tuple[Path, ...],
) -> Model:
    """Build the model of a run that left only what training changed, with its classes in the order of that run."""
    about, behind = preprocessing(folder), (*behind, folder.resolve())
    if len(set(behind)) < len(behind):
        raise FishexpError(
            f"{folder} holds what training changed in itself; its {PREPROCESSING} is not what a run writes"
        )
    if about.get("classes", classes) != classes:
        raise FishexpError(
            f"model.path={folder} has a classifier of {about['classes']} labels, the data set has {classes}; "
            "give a model with as many, or one without a classifier"
        )
    if not (folder / BASE).exists():
        source = {**options, "path": _source(folder)}
        model = build_model(source, classes, channels, about.get("names", ()), behind=behind)
    elif options.get("pretrained") is None:
        model = component("model", {**options, "path": str(folder / BASE)}).function(classes, channels)
    else:  # configuration and tokenizer lie in the folder; the weights are read below
        model = component("model", {**options, "pretrained": False}).function(classes, channels)
    _restore_(model.network, folder, epoch)
    return replace(model, source=str(folder.resolve()))


def _holds_change(folder: Path) -> bool:
    """Tell whether a run left what training changed in this folder, instead of all weights."""
    return not (folder / WEIGHTS).exists() and ((folder / DELTA).exists() or _epochs(folder) > 0)


def _epochs(folder: Path) -> int:
    """Return how many epochs a run kept in ``folder``, be they there or not; 0 if it was no run with checkpoints.

    Raises:
        FishexpError: If what the run left beside its weights is damaged.
    """
    epochs = preprocessing(folder).get("epochs", Checkpoints(folder).last)  # older runs do not say
    if not isinstance(epochs, int) or epochs < 0:
        raise FishexpError(f"{folder / PREPROCESSING} has epochs={epochs!r}; it is not what a run writes")
    return epochs


def _source(folder: Path) -> str:
    """Return where the weights came from that the run in ``folder`` changed.

    Raises:
        FishexpError: If they are not there any more.
    """
    source = preprocessing(folder).get("source")
    if source is None or (Path(source).is_absolute() and not Path(source).exists()):
        raise FishexpError(f"{folder} holds what training changed in {source or 'a base'}, which is not there any more")
    return source


def preprocessing(folder: Path) -> dict[str, Any]:
    """Read what a run left beside its weights; nothing if ``folder`` is not that of a run.

    Raises:
        FishexpError: If the file is damaged.
    """
    file = folder / PREPROCESSING
    try:
        about = json.loads(file.read_text()) if file.exists() else {}
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise FishexpError(f"{file} is damaged: it is not what a run writes; train again")
    return about


def _restore_(network: nn.Module, folder: Path, epoch: int | None) -> None:
    """Give ``network``, which has the weights that training began with, those of the run in ``folder``.

    Args:
        epoch: The epoch to restore, of a run with checkpoints; None for the last.

    Raises:
        FishexpError: If the run has no such epoch, a file of it is missing or damaged, or its base has changed since.
    """
    if (folder / BASE).exists():
        load_model(network, folder / BASE)
    if (folder / DELTA).exists():
        Delta.load(folder / DELTA).apply_(network)
        return
    epochs = _epochs(folder)
    if epoch is not None and not 0 <= epoch <= epochs:
        raise FishexpError(f"epoch={epoch}: {Checkpoints(folder).folder} has the epochs 0 to {epochs}")
    Checkpoints(folder).restore_(network, epochs if epoch is None else epoch)


def save_run(folder: Path, model: Model, data: Dataset, delta: Delta | None = None) -> dict[str, int]:
    """Write the weights and what has to be done to raw examples before the model reads them.

    Args:
        delta: What training changed; written instead of the weights where it is less than half as large, and its base
            is in ``folder`` or was loaded from somewhere. A run with checkpoints has its weights in those.

    Returns:
        Bytes of the weights, ``dense``, and of the ``delta``, if that is what was written.
    """
    sizes = {"dense": sum(t.nbytes for t in model.network.state_dict().values())}
    epochs = Checkpoints(folder).last
    small = delta is not None and sum(delta.values(name).nbytes for name in delta.names) < sizes["dense"] / 2
    if delta is not None and small and not epochs and (model.source or Weights.before(delta).are_in(folder / BASE)):
        delta.save(folder / DELTA)
        sizes["delta"] = (folder / DELTA).stat().st_size
    whole = not (epochs or "delta" in sizes)
    model.save(folder, weights=whole)
    for file in folder.iterdir():
        if file.is_file():
            sync(file)
    if "delta" not in sizes:
        (folder / DELTA).unlink(missing_ok=True)
    if not whole:
        (folder / WEIGHTS).unlink(missing_ok=True)
    about: dict[str, Any] = {"classes": data.classes, "channels": data.channels, "source": model.source}
    about |= {"names": list(data.names), "columns": list(data.columns), "epochs": epochs}
    if isinstance(data.train, Images):
        about |= {"mean": data.train.mean, "std": data.train.std, "size": list(data.train.pixels.shape[-2:])}
    if isinstance(data.train, Tokens):
        about |= {"max_length": data.train.max_length}
    with replacing(folder / PREPROCESSING) as new:
        new.write_text(json.dumps(about) + "\n")
    return sizes


def save_predictions(folder: Path, run_id: str, data: Dataset, predicted: Mapping[str, Tensor]) -> None:
    """Write what a run predicted for the examples of each reported set, with their labels.

    Args:
        predicted: As in :class:`fishexp.training.evaluate.Evaluation`.
    """
    sets = {}
    for name, found in predicted.items():
        labels = data.valid[name].labels.cpu().numpy()
        sets[name] = Predictions(data.reported_digest(name), data.classes, labels, found.numpy())
    write_predictions(folder, run_id, sets)


def check_saved(folder: Path) -> None:
    """Check that all is there, and as long as it should be, that :func:`load_run` needs of a run that just ended.

    Raises:
        RunFailed: With what is missing or damaged.
    """
    for name in ("config.yaml", PREPROCESSING):
        if not (folder / name).exists():
            raise RunFailed(f"{folder / name} was removed while the run went on; run it again")
    for name in (WEIGHTS, DELTA, BASE):
        try:
            if (folder / name).exists():
                with safe_open(folder / name, "pt"):
                    pass
        except (OSError, SafetensorError) as error:
            raise RunFailed(f"{folder / name} was not written as it should be ({first_line(error)})") from None


def _read_config(path: Path) -> Any:
    """Read the configuration of a run; aliases, which take a few bytes to stand for billions, are none of ours.

    Raises:
        FishexpError: If it is longer than a run's, or has aliases.
        OSError, YAMLError, UnicodeDecodeError, ValueError, RecursionError: If it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_CONFIG + 1)
    if len(data) > MAX_CONFIG:
        raise FishexpError(f"{path} has more than {MAX_CONFIG:,} bytes; it is not what a run writes")
    text = data.decode("utf-8")
    if any(isinstance(token, AliasToken) for token in scan(text)):
        raise FishexpError(f"{path} has aliases, such as *name; it is not what a run writes")
    return OmegaConf.to_container(OmegaConf.load(StringIO(text)))


def _check_options(folder: Path, options: Any, about: Mapping[str, Any]) -> None:
    """Refuse a run folder whose files lack what a run writes.

    Raises:
        FishexpError: With what is missing.
    """
    model = options.get("model") if isinstance(options, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("module", model.get("name")), str):
        raise FishexpError(f"{folder / 'config.yaml'} names no model; it is not what a run writes")
    for key in ("classes", "channels"):
        if not isinstance(about.get(key), int) or not 0 <= about[key] < MAX_CLASSES:
            raise FishexpError(f"{folder / PREPROCESSING} has {key}={about.get(key)!r}; it is not what a run writes")
    image = all(isinstance(about.get(key), list) for key in ("mean", "std"))
    if not image and not isinstance(about.get("max_length"), int):
        raise FishexpError(
            f"{folder / PREPROCESSING} does not say how inputs are prepared; it is not what a run writes"
        )


def forget(folder: Path) -> None:
    """Remove what an earlier run left, before a run begins anew in its folder: nobody is to take it for this run's."""
    for name in (RECORD, PREDICTIONS, PREPROCESSING, DELTA, WEIGHTS, BASE):
        (folder / name).unlink(missing_ok=True)
    Checkpoints(folder).clear()


def load_run(
    folder: str | Path, epoch: int | None = None, allow_code: bool = False, allow_download: bool = False
) -> tuple[nn.Module, Callable[..., Any]]:
    """Load the trained model of a run folder, in evaluation mode on the CPU, and the function that prepares its inputs.

    The folder may come from anybody: by default no code is run that it names, and nothing is fetched.

    Args:
        epoch: The epoch to load, of a run with ``regime=checkpointing``; 0 for the model that training began with, None
            for the last.
        allow_code: Import the module that builds the model if it is not one of fishexp's own.
        allow_download: Fetch the model that training began with from the hub if it is not in the cache.

    Returns:
        The model, as during training, whose logits are (examples, classes), and the function. Of images it takes uint8
        (examples, channels, height, width), in the size that the run had them in, and returns what the model takes; of
        text one or two lists of sentences, and returns keyword arguments for the model.

    Raises:
        FishexpError: If ``folder`` is not that of a finished run, or the run has no such epoch, or code or a download
            would be needed that is not allowed.
    """
    model, about = load_trained(Path(folder), epoch, allow_code, allow_download)
    if model.tokenizer is None:
        images = Images(torch.empty(0), torch.empty(0), mean=tuple(about["mean"]), std=tuple(about["std"]))

        def normalise(pixels: Tensor) -> Tensor:
            if (
                not isinstance(pixels, Tensor)
                or pixels.dtype != torch.uint8
                or pixels.shape[1:-2] != (about["channels"],)
            ):
                kind = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type(pixels).__name__
                raise FishexpError(
                    "prepare takes a tensor of images, uint8 (examples, channels, height, width) with "
                    f"channels={about['channels']}, got {kind}; torchvision.io.decode_image(file)[None] reads one"
                )
            return images.normalise(pixels)

        return model.network, normalise

    def tokenise(*texts: Sequence[str]) -> dict[str, Tensor]:
        if any(isinstance(text, str) for text in texts):
            raise FishexpError("prepare takes lists of sentences, got a single string; put it into a list")
        encoded = model.tokenizer(
            *map(list, texts), truncation=True, max_length=about["max_length"], padding=True, return_tensors="pt"
        )
        return dict(encoded)

    return model.network, tokenise


def check_finished(folder: Path) -> None:
    """Refuse what is not the folder of a finished run.

    Raises:
        FishexpError: With what is missing; if it is the folder, with the names of others that are like it.
    """
    for file in (folder / PREPROCESSING, folder / "config.yaml"):
        if file.is_file():
            continue
        missing = f"{file} is missing"
        if not folder.exists() and folder.parent.is_dir():  # the last part of its name is what one mistypes
            beside = [path.name for path in folder.parent.iterdir()]
            close = get_close_matches(folder.name, beside, n=_MOST_NAMES, cutoff=0.5)
            missing = f"there is none{nearest(folder.name, beside if len(beside) <= _MOST_NAMES else close)}"
        raise FishexpError(f"{folder} is not the folder of a finished run: {missing}")


def read_options(folder: Path) -> Any:
    """Read the configuration of a finished run, whatever it is; refuse a folder that has none, or a damaged one."""
    check_finished(folder)
    try:
        return _read_config(folder / "config.yaml")
    except FishexpError:
        raise
    except (OSError, YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FishexpError(f"{folder / 'config.yaml'} is damaged: {first_line(error)}") from None


def load_trained(
    folder: Path, epoch: int | None = None, allow_code: bool = False, allow_download: bool = False
) -> tuple[Model, dict[str, Any]]:
    """Load the trained model of a run folder, in evaluation mode on the CPU, and what the run said of its inputs.

    Args and errors are those of :func:`load_run`.
    """
    options, about = read_options(folder), preprocessing(folder)
    _check_options(folder, options, about)
    name = options["model"].get("module", options["model"]["name"])
    if not allow_code and not is_ours("model", name):
        raise FishexpError(
            f"the model of {folder} is built by the module {name}, which is not fishexp's own; "
            "pass allow_code=True if you trust it"
        )
    if epoch is not None and not _epochs(folder):
        raise FishexpError(f"epoch={epoch}: the run in {folder} kept its last epoch only; use regime=checkpointing")
    options["model"] |= {"path": str(folder)}
    if "pretrained" in options["model"]:
        options["model"]["pretrained"] = True  # the run's own weights, even where it began with random ones
    with nullcontext() if allow_download else cached_only(f"load_run({str(folder)!r}, allow_download=True) fetches it"):
        model = build_model(options["model"], about["classes"], about["channels"], about.get("names", ()), epoch=epoch)
    model.network.eval()
    return model, about
