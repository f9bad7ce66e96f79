"""Classifiers of torchvision: their heads, sizes and weights, and what is refused."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models import VisionTransformer

from fishexp.models import Model, torchvision
from tests.support.checks import refusal, same_weights

SMALL = ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf")
HEADS = {
    "resnet18": "fc", "mobilenet_v3_small": "classifier.3", "efficientnet_b0": "classifier.1",
    "mnasnet0_5": "classifier.1", "shufflenet_v2_x0_5": "fc", "regnet_y_400mf": "fc",
}  # fmt: skip


def build(arch: str, classes: int = 5, channels: int = 3, **options: Any) -> Model:
    options = {"weights": None, "size": None, "path": None} | options
    return torchvision.build(classes, channels, arch=torchvision.Arch(arch), **options)


def tiny_vit(
    *, weights: None = None, progress: bool = True, num_classes: int = 1_000, image_size: int = 224
) -> nn.Module:
    return VisionTransformer(
        image_size=image_size,
        patch_size=16,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
        num_classes=num_classes,
    )


@pytest.fixture
def vit(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a small transformer known by the name of those whose positions are for one size."""
    name = "vit_tiny"
    monkeypatch.setitem(models._api.BUILTIN_MODELS, name, tiny_vit)
    tiny_vit.__module__ = "torchvision.models.vision_transformer"
    return name


@pytest.mark.parametrize("arch", SMALL)
def test_the_head_is_the_last_linear(arch: str) -> None:
    model = build(arch)
    assert model.head == (f"{HEADS[arch]}.weight", f"{HEADS[arch]}.bias")
    assert model.network.get_parameter(model.head[0]).shape[0] == 5
    with torch.no_grad():
        assert model.network.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert model.normalisation is None
    assert model.source is None


def test_it_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = build("mobilenet_v3_small")
    model.save(tmp_path)
    again = build("mobilenet_v3_small", path=str(tmp_path))
    assert same_weights(model.network, again.network)
    assert again.source == str(tmp_path)
    assert refusal(build, "mobilenet_v3_small", classes=4, path=str(tmp_path)) == (
        f"model.path={tmp_path} has a classifier of 5 labels, the data set has 4"
    )
    assert refusal(build, "resnet18", path=str(tmp_path)).endswith("was it trained with another model=?")


def test_a_transformer_resizes_its_images(vit: str) -> None:
    for size, positions in ((None, 197), (32, 5)):
        model = build(vit, size=size)
        assert model.network.get_parameter("encoder.pos_embedding").shape[1] == positions
        with torch.no_grad():
            logits = model.network.eval()(torch.rand(2, 3, 20, 20))
        assert logits.shape == (2, 5)
        assert logits.any()  # torchvision begins its head at zero, and no weight before it would have a gradient
    assert refusal(build, vit, size=33).startswith(f"model.arch={vit} model.size=33: ")


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested.pth"])
def test_a_file_of_weights_gives_all_but_the_head(form: str, tmp_path: Path) -> None:
    published = models.mobilenet_v3_small(num_classes=1_000).state_dict()
    file = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file({name: value.contiguous() for name, value in published.items()}, file)
    else:
        torch.save({"state_dict": published, "epoch": 3} if "nested" in form else published, file)
    model = build("mobilenet_v3_small", weights=str(file))
    found = model.network.state_dict()
    for name, value in found.items():
        assert (name in model.head) or torch.equal(value, published[name]), name
    assert model.normalisation == torchvision.IMAGENET
    sizes: list[torch.Size] = []
    model.network.get_submodule("features").register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape))
    with torch.no_grad():
        model.network.eval()(torch.rand(1, 3, 32, 32))
    assert sizes == [(1, 3, 224, 224)]
    assert refusal(build, "resnet18", weights=str(file)).startswith(
        f"model.weights={file} lacks conv1.weight; are they"
    )
    assert refusal(build, "mobilenet_v3_large", weights=str(file)).startswith(f"model.weights={file}")


def test_weights_by_name_are_normalised_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    published = models.resnet18(num_classes=1_000).state_dict()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *_, **__: published)
    model = build("resnet18", weights="DEFAULT")
    assert model.normalisation == torchvision.IMAGENET
    assert torch.equal(model.network.state_dict()["conv1.weight"], published["conv1.weight"])

    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", offline)
    assert refusal(build, "resnet18", weights="IMAGENET1K_V1") == (
        "model.weights=IMAGENET1K_V1 could not be downloaded from https://download.pytorch.org/models/"
        "resnet18-f37072fd.pth (<urlopen error no network>); give model.weights=FILE"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet81"}, "model.arch=resnet81: torchvision has no such classifier; did you mean resnet1"),
        ({"arch": "zzz"}, "torchvision has no such classifier; torchvision.models.list_models() has all"),
        ({"arch": "squeezenet1_0"}, "model.arch=squeezenet1_0: its classifier is no Linear; choose another"),
        ({"arch": "resnet18", "channels": 0}, "model=torchvision reads images, but the data set is text"),
        ({"arch": "resnet18", "channels": 1}, "model=torchvision reads images of 3 channels, the data set has 1"),
        ({"arch": "resnet18", "classes": 1}, "model=torchvision predicts classes, but the data set is a regression"),
        ({"arch": "resnet18", "weights": "V3"}, "model.weights=V3: resnet18 has IMAGENET1K_V1, DEFAULT; a file of"),
    ],
)
def test_what_does_not_suit(options: dict[str, Any], message: str) -> None:
    assert message in refusal(build, **options)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_files_that_hold_no_weights(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(build, "resnet18", weights=str(tmp_path / name)).startswith(
        f"model.weights={tmp_path / name} cannot be read: "
    )
    torch.save([1], tmp_path / "b.pth")
    assert refusal(build, "resnet18", weights=str(tmp_path / "b.pth")).endswith("b.pth holds no tensors by name")
