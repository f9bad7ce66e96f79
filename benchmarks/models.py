"""Models and their inputs. Inputs are random, and so are the weights of all models but minilm."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from fishexp.fisher.batches import Inputs
from fishexp.models import bert, resnet

Batch: TypeAlias = tuple[Inputs, Tensor]  # (inputs, labels)

VOCABULARY = 30522  # token ids of BERT's uncased models
SPECIAL = 999  # token ids at the beginning of the vocabulary that are special or unused


def build(model: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network, with the same weights at each call, and return it with the names of its head's parameters."""
    torch.manual_seed(0)
    return MODELS[model]()


def _minilm() -> tuple[nn.Module, tuple[str, ...]]:
    built = bert.build(2, 0, path=None, pretrained=True, activation_checkpointing=False)
    return built.network, built.head


def _bert(layers: int, width: int, vocabulary: int = VOCABULARY) -> tuple[nn.Module, tuple[str, ...]]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    return BertForSequenceClassification(config), ("classifier.weight", "classifier.bias")


def _resnet(layers: Literal[8, 18, 34]) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a ResNet with BatchNorm statistics of a few batches, as a trained network has them."""
    built = resnet.build(10, 3, layers=layers, path=None)
    with torch.no_grad():
        for _ in range(3):
            built.network(torch.randn(16, 3, 32, 32))
    return built.network, built.head


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[str, ...]]]] = {
    "minilm": _minilm,
    "bert-base-shape": lambda: _bert(12, 768),
    "bert-large-shape": lambda: _bert(24, 1024),
    "bert-large-cased-shape": lambda: _bert(24, 1024, 28996),
    "resnet18": lambda: _resnet(18),
    "resnet34": lambda: _resnet(34),
}


def batches(examples: int, size: int, length: int | None, device: torch.device) -> list[Batch]:
    """Make batches of random inputs with random labels, the same at each call.

    Args:
        size: Examples in a batch; the last batch may have fewer.
        length: Tokens in an example, none of which is padding; None for images of 3x32x32.
    """
    generator = torch.Generator().manual_seed(1)
    made = []
    for start in range(0, examples, size):
        count = min(size, examples - start)
        labels = torch.randint(10 if length is None else 2, (count,), generator=generator).to(device)
        if length is None:
            inputs: Inputs = torch.randn(count, 3, 32, 32, generator=generator).to(device)
        else:
            ids = torch.randint(SPECIAL, VOCABULARY, (count, length), generator=generator).to(device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        made.append((inputs, labels))
    return made


def batch_title(size: int, length: int | None) -> str:
    """Describe the shape of a batch: ``16 x 64 tokens`` or ``64 images``."""
    return f"{size} images" if length is None else f"{size} x {length} tokens"
