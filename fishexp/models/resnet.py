"""ResNets for small images: torchvision's, with a 3x3 stem, and Page's ResNet-9 of the original CIFAR-10 code."""

from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fishexp.errors import FishexpError
from fishexp.models import WEIGHTS, Model, Outline
from fishexp.system.atomic import replacing

# layers -> name of the module that is the classifier
_HEADS = {8: "fc", 9: "linear", 18: "fc", 34: "fc"}


def build(classes: int, channels: int, *, layers: Literal[8, 9, 18, 34], path: str | None) -> Model:
    """Build a ResNet with random weights, or with the weights of an earlier run.

    Args:
        classes: Number of labels.
        channels: Channels of the images.
        layers: 18 and 34 are torchvision's, with a 3x3 stem of stride 1 and the max-pool, as in the paper's code; 9 is
            Page's; 8 has one block a stage and suits images of 8x8 pixels.
        path: Safetensors file, or folder with a model.safetensors; None for random weights.

    Raises:
        FishexpError: If the data set is no set of images, or the weights at ``path`` do not fit.
    """
    network = _network(classes, channels, layers)
    if path is not None:
        load_weights_(network, Path(path), _HEADS[layers], classes)
    network.to(memory_format=torch.channels_last)  # faster on the CPU: experiments/LOG.md

    def save(folder: Path, *, weights: bool = True) -> None:
        if weights:
            with replacing(folder / WEIGHTS) as new:
                save_file({name: value.contiguous() for name, value in network.state_dict().items()}, new)

    return Model(network, _head(network, layers), save, None if path is None else str(Path(path).resolve()))


def outline(classes: int, channels: int, *, layers: Literal[8, 9, 18, 34]) -> Outline:
    """Build a ResNet without weights.

    Raises:
        FishexpError: If the data set is no set of images.
    """
    with torch.device("meta"):
        network = _network(classes, channels, layers)
    return Outline(network, _head(network, layers))


def _network(classes: int, channels: int, layers: int) -> nn.Module:
    if channels == 0:
        raise FishexpError(
            f"model=resnet{layers} reads images, but the data set is text; choose a BERT, such as model=minilm"
        )
    if classes == 1:
        raise FishexpError(f"model=resnet{layers} predicts classes, but the data set is a regression")
    return {
        8: lambda: _resnet8(classes, channels),
        9: lambda: _resnet9(classes, channels),
        18: lambda: _torchvision(classes, channels, [2, 2, 2, 2]),
        34: lambda: _torchvision(classes, channels, [3, 4, 6, 3]),
    }[layers]()


def _head(network: nn.Module, layers: int) -> tuple[str, ...]:
    head = _HEADS[layers]
    return tuple(f"{head}.{name}" for name, _ in network.get_submodule(head).named_parameters())


def _torchvision(classes: int, channels: int, blocks: list[int]) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    network = ResNet(BasicBlock, blocks, num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


def _resnet8(classes: int, channels: int) -> nn.Module:
    """Build a network of a stem, three blocks of 32, 64 and 128 channels, and a classifier."""
    from torchvision.models.resnet import BasicBlock

    def block(before: int, after: int) -> nn.Module:
        if before == after:
            return BasicBlock(before, after)
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))
        return BasicBlock(before, after, stride=2, downsample=shortcut)

    return nn.Sequential(
        OrderedDict(
            stem=_conv(channels, 32),
            layer1=block(32, 32),
            layer2=block(32, 64),
            layer3=block(64, 128),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(128, classes),
        )
    )


def _conv(before: int, after: int, *more: nn.Module) -> nn.Sequential:
    layers = (nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True), *more)
    return nn.Sequential(OrderedDict(zip(("conv", "norm", "relu", "pool"), layers, strict=False)))


class _Residual(nn.Module):
    """Add two convolutions of the input to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _resnet9(classes: int, channels: int) -> nn.Module:
    """Build Page's network for CIFAR-10: 6,573,120 weights with 10 classes, logits times 0.125, no bias in the head."""
    return nn.Sequential(
        OrderedDict(
            prep=_conv(channels, 64),
            layer1=nn.Sequential(*_conv(64, 128, nn.MaxPool2d(2)), _Residual(128)),
            layer2=_conv(128, 256, nn.MaxPool2d(2)),
            layer3=nn.Sequential(*_conv(256, 512, nn.MaxPool2d(2)), _Residual(512)),
            pool=nn.AdaptiveMaxPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(512, classes, bias=False),
            scale=_Scale(0.125),
        )
    )


def load_weights_(network: nn.Module, path: Path, head: str, classes: int) -> None:
    """Load all weights of a network from a safetensors file, or from a folder with a model.safetensors.

    Args:
        head: Name of the module that is its classifier.

    Raises:
        FishexpError: If the file cannot be read, or is of another network or number of classes.
    """
    file = path / WEIGHTS if path.is_dir() else path
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise FishexpError(f"model.path={path}: {file} is no safetensors file that can be read ({error})") from None
    rows = weights[f"{head}.weight"].shape[0] if f"{head}.weight" in weights else classes
    if rows != classes:
        raise FishexpError(f"model.path={path} has a classifier of {rows} labels, the data set has {classes}")
    own = network.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        where = "is missing from" if name in own else "is not in this model but in"
        raise FishexpError(f"model.path={path}: {name} {where} {file.name}; was it trained with another model=?")
    for name, value in own.items():
        if value.shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)}, this model {tuple(value.shape)}"
            raise FishexpError(f"model.path={path}: {name} has shape {shapes}; was it trained with another model=?")
    network.load_state_dict(weights)
