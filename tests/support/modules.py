"""Modules with inputs for them, in float64, and masks."""

from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.masks.topk import Mask
from fishexp.sparse.parameter import weights


def mask_of(model: nn.Module, density: float = 0.3) -> Mask:
    """Draw a mask in which each parameter is kept in part, but for chance."""
    generator = torch.Generator().manual_seed(5)
    return {name: torch.rand(p.shape, generator=generator) < density for name, p in weights(model).items()}


def random_mask(model: nn.Module, density: float = 0.3) -> Mask:
    """Draw a mask with a parameter whole, another empty, the rest partial."""
    generator = torch.Generator().manual_seed(5)
    mask = {name: torch.rand(p.shape, generator=generator) < density for name, p in model.named_parameters()}
    names = list(mask)
    mask[names[-1]][:] = True
    mask[names[0]][:] = False
    return mask


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(7, shape, generator=torch.Generator().manual_seed(3))


class Tied(nn.Module):
    """Use the same weight as an embedding, as a Linear's, and by itself, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=2)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.mix(self.embed(ids)))
        return self.out(hidden) + F.linear(hidden, self.embed.weight).flip(-1)


class Bare(nn.Module):
    """Have bare parameters, also in torch's list and dict of parameters, and a weight used without its module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(numbers(5))
        self.rows = nn.ParameterList([numbers(5), numbers(5, 5)])
        self.named = nn.ParameterDict({"shift": numbers(5)})
        self.inner = nn.Linear(5, 5)
        self.twice = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x * self.scale + self.rows[0]) @ self.rows[1] + self.named["shift"]
        return self.twice(torch.tanh(self.twice(F.linear(x, self.inner.weight, self.inner.bias))))


class Sequence(nn.Module):
    """Have recurrent layers, which keep a second list of their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lstm(x)[0]
        return self.attention(hidden, hidden, hidden)[0]


class Centred(nn.Conv2d):
    """Convolve with filters that each have a mean of zero, as a class of its own."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def tiling() -> nn.Conv2d:
    """Build a convolution that wraps images around in one direction: one object has a method of its own."""
    conv = nn.Conv2d(3, 4, 3, padding=1)

    def wrapped(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.pad(F.pad(x, (1, 1, 0, 0), "circular"), (0, 0, 1, 1)), weight, bias)

    conv._conv_forward = MethodType(wrapped, conv)
    return conv


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear on sequences": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), lambda: numbers(2, 3, 4, 5)
    ),
    "linear of many": (lambda: nn.Linear(32, 48), lambda: numbers(2, 9, 32)),
    "linear on one vector": (lambda: nn.Linear(5, 3), lambda: numbers(5)),
    "linear without bias": (lambda: nn.Linear(5, 3, bias=False), lambda: numbers(4, 5)),
    "embedding": (lambda: nn.Embedding(9, 4), lambda: tokens(3, 6)),
    "embedding with padding": (lambda: nn.Embedding(9, 4, padding_idx=2), lambda: tokens(3, 6)),
    "embedding of many": (lambda: nn.Embedding(300, 4), lambda: torch.cat([tokens(3, 6), tokens(2, 6) + 290])),
    "embedding by frequency": (lambda: nn.Embedding(9, 4, scale_grad_by_freq=True), lambda: tokens(3, 6)),
    "sparse embedding": (lambda: nn.Embedding(9, 4, sparse=True), lambda: tokens(3, 6)),
    "convolution": (lambda: nn.Conv2d(3, 5, 3, padding=1), lambda: numbers(3, 3, 6, 7)),
    "convolution with stride": (
        lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), lambda: numbers(3, 3, 8, 7)
    ),
    "convolution in groups": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), groups=2, dilation=(2, 1), padding=(0, 3)),
        lambda: numbers(2, 4, 9, 9),
    ),
    "convolution by depth": (lambda: nn.Conv2d(4, 8, 5, stride=3, groups=4, padding=4), lambda: numbers(2, 4, 9, 8)),
    "convolution of points": (lambda: nn.Conv2d(4, 6, 1, stride=2), lambda: numbers(2, 4, 5, 5)),
    "convolution with same": (lambda: nn.Conv2d(3, 4, 4, padding="same", dilation=2), lambda: numbers(2, 3, 9, 9)),
    "convolution that reflects": (
        lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"), lambda: numbers(2, 3, 5, 5)
    ),
    "convolution of one image": (lambda: nn.Conv2d(3, 4, 3), lambda: numbers(3, 5, 5)),
    "wide convolution channels last": (
        lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1),
        lambda: numbers(2, 16, 6, 5).contiguous(memory_format=torch.channels_last),
    ),
    "convolution channels last": (
        lambda: nn.Conv2d(3, 4, 3, padding=1), lambda: numbers(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    ),
    "convolution of a class of its own": (lambda: Centred(3, 4, 3, padding=1), lambda: numbers(2, 3, 5, 5)),
    "convolution with a method of its own": (tiling, lambda: numbers(2, 3, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 2, 3), lambda: numbers(2, 4, 9)),
    "norms": (
        lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.LayerNorm(5), nn.PReLU()),
        lambda: numbers(3, 4, 5),
    ),
    "tied": (Tied, lambda: tokens(3, 6)),
    "bare": (Bare, lambda: numbers(3, 5)),
    "sequence": (Sequence, lambda: numbers(6, 2, 3)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), lambda: numbers(2, 5, 8)
    ),
    "parametrised": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), lambda: numbers(4, 5)),
}  # fmt: skip


def built(case: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, data = CASES[case]
    return build().double(), data()


def objective(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).tanh().square().sum()
