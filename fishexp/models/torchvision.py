"""Any image classifier of torchvision, with its weights for ImageNet or random ones."""

import pickle
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NewType

import torch
from annotated_types import Ge
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.errors import FishexpError, first_line
from fishexp.models import WEIGHTS, Model, Outline
from fishexp.models.resnet import load_weights_
from fishexp.system.atomic import replacing

# name of an architecture: another type than a text, which in a configuration may name a file
Arch = NewType("Arch", str)

# mean and standard deviation of each channel of ImageNet, as torchvision's weights want them
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# pixels of a side that networks with positions of their own read where nobody said another
_FIXED = 224
# standard deviation of a new classifier that torchvision begins at zero, as that of BERTs
_STD = 0.02
# networks with classifiers for training only, which are left out
_AUXILIARY = ("googlenet", "inception_v3")


def build(
    classes: int,
    channels: int,
    *,
    arch: Arch,
    weights: str | None,
    size: Annotated[int, Ge(8)] | None,
    path: str | None,
) -> Model:
    """Build a classifier of torchvision whose last Linear has ``classes`` outputs.

    It resizes its images by itself, to ``size`` or to what its weights were trained on.

    Args:
        classes: Number of labels.
        channels: Must be 3: red, green and blue.
        arch: Its name in torchvision.
        weights: ``DEFAULT`` or another name of its weights in torchvision, or a file of such: all but the classifier.
        size: Side of its images, in pixels; None: as the weights say, else as they come.
        path: Safetensors file, or folder with a model.safetensors, of all weights; None for none.

    Raises:
        FishexpError: If the data set does not suit, there is no such network, or weights cannot be had or do not fit.
    """
    _check(classes, channels, arch)
    named = None if weights is None else _named(arch, weights, path)
    size = _size(size, weights, named)
    network = _network(arch, classes, size, pretrained=weights is not None)
    head = _head(arch, network, classes)
    _begin_head_(network, head)
    if path is not None:
        load_weights_(network, Path(path), head[0].rpartition(".")[0], classes)
    elif weights is not None:
        _load_body_(network, _downloaded(named) if named is not None else _read(Path(weights)), head, weights)
    if size is not None or arch.startswith(("vit_", "maxvit")):
        network.register_forward_pre_hook(_Resize(size or _FIXED))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def save(folder: Path, *, weights: bool = True) -> None:
        if weights:
            with replacing(folder / WEIGHTS) as new:
                save_file({name: value.contiguous() for name, value in network.state_dict().items()}, new)

    normalisation = None
    if weights is not None:
        normalisation = (tuple(named.transforms().mean), tuple(named.transforms().std)) if named else IMAGENET
    source = None if path is None else str(Path(path).resolve())
    return Model(network, head, save, source, normalisation=normalisation)


def outline(
    classes: int, channels: int, *, arch: Arch, weights: str | None, size: int | None, path: str | None
) -> Outline:
    """Build the network without weights, and download none.

    Raises:
        FishexpError: If the data set does not suit, or there is no such network, or no such weights.
    """
    _check(classes, channels, arch)
    named = None if weights is None else _named(arch, weights, path)
    with torch.device("meta"):
        network = _network(arch, classes, _size(size, weights, named), pretrained=True)
    return Outline(network, _head(arch, network, classes))


def _size(size: int | None, weights: str | None, named: Any) -> int | None:
    """Return the side of the images that a network reads: what was asked for, or what its weights were trained on."""
    if size is None and weights is not None:
        return named.transforms().crop_size[0] if named is not None else _FIXED
    return size


class _Resize:
    """Resize the images that a network is called with."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = inputs
        if images.shape[-2:] == (self.size, self.size):
            return inputs
        resized = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return resized, *rest


def _check(classes: int, channels: int, arch: str) -> None:
    from torchvision import models

    known = models.list_models(module=models)
    if arch not in known:
        close = get_close_matches(arch, known, n=5)
        hint = f"did you mean {' or '.join(close)}?" if close else "torchvision.models.list_models() has all"
        raise FishexpError(f"model.arch={arch}: torchvision has no such classifier; {hint}")
    if channels == 0:
        raise FishexpError(
            "model=torchvision reads images, but the data set is text; choose a BERT, such as model=minilm"
        )
    if classes == 1:
        raise FishexpError("model=torchvision predicts classes, but the data set is a regression")
    if channels != 3:
        raise FishexpError(
            f"model=torchvision reads images of 3 channels, the data set has {channels}; choose model=resnet18"
        )


def _named(arch: str, name: str, path: str | None) -> Any:
    """Find weights of torchvision by their name; None if it is a file's, which a run at ``path`` needs no more."""
    from torchvision import models

    known = models.get_model_weights(arch)
    if name in known.__members__:
        return known[name]
    if path is None and not Path(name).is_file():
        names = ", ".join(known.__members__)
        raise FishexpError(f"model.weights={name}: {arch} has {names}; a file of weights may stand there too")
    return None


def _network(arch: str, classes: int, size: int | None, *, pretrained: bool) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {}
    if arch in _AUXILIARY:
        options = {"aux_logits": False, "init_weights": not pretrained, "transform_input": pretrained}
    if size is not None and arch.startswith("vit_"):
        options["image_size"] = size
    if size is not None and arch.startswith("maxvit"):
        options["input_size"] = (size, size)
    try:
        return models.get_model(arch, weights=None, num_classes=classes, **options)
    except (ValueError, RuntimeError, AssertionError) as error:  # a size that is no multiple of its patches
        raise FishexpError(f"model.arch={arch} model.size={size}: {first_line(error)}") from None


def _head(arch: str, network: nn.Module, classes: int) -> tuple[str, ...]:
    """Return the names of the parameters of the last Linear."""
    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1][1].out_features != classes:
        raise FishexpError(f"model.arch={arch}: its classifier is no Linear; choose another")
    name, module = linear[-1]
    return tuple(f"{name}.{own}" for own, _ in module.named_parameters())


def _begin_head_(network: nn.Module, head: tuple[str, ...]) -> None:
    """Draw a classifier's weights that begin at zero, as those of transformers do: nothing before it would score."""
    weight = network.get_parameter(head[0])
    if not weight.any():
        nn.init.normal_(weight, std=_STD)


def _downloaded(weights: Any) -> Mapping[str, Tensor]:
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise FishexpError(
            f"model.weights={weights.name} could not be downloaded from {weights.url} ({first_line(error)}); "
            "give model.weights=FILE"
        ) from None


def _read(file: Path) -> Mapping[str, Tensor]:
    """Read a file of weights, of safetensors or of torch.save; nothing in it is run."""
    try:
        found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise FishexpError(f"model.weights={file} cannot be read: {first_line(error)}") from None
    for key in ("state_dict", "model"):  # where it is one thing of several that training left
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise FishexpError(f"model.weights={file} holds no tensors by name")
    return found


def _load_body_(network: nn.Module, found: Mapping[str, Tensor], head: tuple[str, ...], weights: str) -> None:
    """Load all weights but the head's; those of classifiers for training only are passed over."""
    own = network.state_dict()
    for name, value in own.items():
        if name in head or name.endswith("num_batches_tracked"):
            continue
        if name not in found:
            raise FishexpError(f"model.weights={weights} lacks {name}; are they of another model.arch?")
        if found[name].shape != value.shape:
            shapes = f"{tuple(found[name].shape)}, this model {tuple(value.shape)}"
            raise FishexpError(f"model.weights={weights}: {name} has shape {shapes}; another model.arch or model.size?")
    network.load_state_dict({name: found[name] for name in own if name in found and name not in head}, strict=False)
