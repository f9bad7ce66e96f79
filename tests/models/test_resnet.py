"""ResNets: sizes, names, what fits what, and weights that come back bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from fishexp.models import Model, resnet
from tests.support.checks import refusal, same_weights, size


def build_resnet(layers: Any = 8, path: Path | None = None, classes: int = 10, channels: int = 3) -> Model:
    return resnet.build(classes, channels, layers=layers, path=None if path is None else str(path))


@pytest.mark.parametrize(("layers", "weights"), [(34, 21_282_122), (18, 11_173_962), (9, 6_573_120), (8, 308_650)])
def test_sizes_of_the_resnets(layers: int, weights: int) -> None:
    with torch.device("meta"):
        model = build_resnet(layers)
    assert size(model.network) == weights
    assert model.head == (("linear.weight",) if layers == 9 else ("fc.weight", "fc.bias"))
    assert set(model.head) <= dict(model.network.named_parameters()).keys()


@pytest.mark.parametrize("layers", [18, 34])
def test_torchvisions_names_and_shapes_but_for_the_stem_and_the_classifier(layers: int) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{layers}")().state_dict()
        ours = build_resnet(layers).network.state_dict()
    assert list(ours) == list(theirs)
    changed = {name: tuple(value.shape) for name, value in ours.items() if value.shape != theirs[name].shape}
    assert changed == {"conv1.weight": (64, 3, 3, 3), "fc.weight": (10, 512), "fc.bias": (10,)}


def test_the_stem_has_stride_1_and_the_max_pool() -> None:
    network = build_resnet(34).network
    shapes = []
    network.get_submodule("layer1").register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(2, 64, 16, 16)]


def test_resnet9_is_pages() -> None:
    """conv, norm, relu, pool; two residual blocks; logits times 0.125."""
    network, x = build_resnet(9).network, torch.randn(4, 3, 32, 32)
    network(x)  # in training mode: moves the running statistics
    weights = network.eval().state_dict()

    def conv(x: Tensor, conv: str, norm: str) -> Tensor:
        parts = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(F.conv2d(x, weights[f"{conv}.weight"], padding=1), *parts).relu()

    def residual(x: Tensor, name: str) -> Tensor:
        inner = conv(x, f"{name}.conv1.conv", f"{name}.conv1.norm")
        return x + conv(inner, f"{name}.conv2.conv", f"{name}.conv2.norm")

    y = F.max_pool2d(conv(conv(x, "prep.conv", "prep.norm"), "layer1.0", "layer1.1"), 2)
    y = F.max_pool2d(conv(residual(y, "layer1.4"), "layer2.conv", "layer2.norm"), 2)
    y = residual(F.max_pool2d(conv(y, "layer3.0", "layer3.1"), 2), "layer3.4").amax((2, 3))
    torch.testing.assert_close(network(x), 0.125 * y @ weights["linear.weight"].T)


def test_data_of_the_wrong_kind() -> None:
    assert refusal(build_resnet, 34, channels=0) == (
        "model=resnet34 reads images, but the data set is text; choose a BERT, such as model=minilm"
    )
    assert refusal(build_resnet, 9, classes=1) == "model=resnet9 predicts classes, but the data set is a regression"


@pytest.mark.parametrize("layers", [8, 9])
def test_a_resnet_comes_back_bit_for_bit(layers: int, tmp_path: Path) -> None:
    model = build_resnet(layers)
    model.network(torch.randn(2, 3, 32, 32))  # running statistics of its own
    model.save(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        again = build_resnet(layers, path)
        assert same_weights(model.network, again.network)
        assert again.head == model.head
    assert not same_weights(model.network, build_resnet(layers).network)


def test_weights_of_another_resnet(tmp_path: Path) -> None:
    build_resnet(8).save(tmp_path)
    start = f"model.path={tmp_path}"
    another = "was it trained with another model=?"
    assert refusal(build_resnet, 8, tmp_path, classes=5) == (
        f"{start} has a classifier of 10 labels, the data set has 5"
    )
    assert refusal(build_resnet, 18, tmp_path) == f"{start}: bn1.bias is missing from model.safetensors; {another}"
    assert refusal(build_resnet, 9, tmp_path) == (
        f"{start}: fc.bias is not in this model but in model.safetensors; {another}"
    )
    assert refusal(build_resnet, 8, tmp_path, channels=1) == (
        f"{start}: stem.conv.weight has shape (32, 3, 3, 3), this model (32, 1, 3, 3); {another}"
    )


# what a weight file may have become
BROKEN: list[Callable[[bytes], bytes]] = [
    lambda b: b[:-1],
    lambda b: b[:100],
    lambda b: b"",
    lambda b: b"no weights " * 9,
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_resnets_file_that_is_no_safetensors(broken: Callable[[bytes], bytes], tmp_path: Path) -> None:
    build_resnet(8).save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(broken(file.read_bytes()))
    message = f"model.path={tmp_path}: {file} is no safetensors file that can be read ("
    assert refusal(build_resnet, 8, tmp_path).startswith(message)
    file.unlink()
    assert refusal(build_resnet, 8, tmp_path).startswith(message)
