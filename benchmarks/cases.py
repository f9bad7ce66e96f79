"""What is timed: models, inputs and masks. Inputs are random, and so are the weights of all models but minilm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from benchmarks.merge_cases import MergeCase, merges
from fishexp.fisher import diagonal_fisher
from fishexp.fisher.batches import Inputs
from fishexp.masks import top_k
from fishexp.masks.topk import Mask
from fishexp.models import bert, resnet

Batch: TypeAlias = tuple[Inputs, Tensor]  # (inputs, labels)

KEEPS = (0.001, 0.005, 0.02, 0.1)
SCORED = 64  # examples that a fish mask is chosen by
VOCABULARY = 30522  # of BERT's uncased models; the first 999 ids are special and unused ones
STEP = ("dense", "floor", "ours")
STEP_CONV = ("dense", "original", "floor", "ours")  # the two of PEFT train entries of linear layers only
STEP_ALL = ("dense", "original", "floor", "SHiRA", "Super-Tuning", "ours")
FISHER = ("loop", "batched", "ours")
FISHER_CONV = (*FISHER, "BackPACK")  # BackPACK has no rule for LayerNorm, so no BERT
DELTA = ("dense", "SHiRA", "Super-Tuning", "ours")


@dataclass(frozen=True)
class Case:
    """One setting of one benchmark.

    Attributes:
        length: Tokens an example; None for images of 3x32x32.
        contenders: What runs, in the order of a round; the first is the one that ratios refer to.
        keep: Fraction of all weights that train.
        mask: Kept entries by random scores, or by the Fisher information; the head is kept whole.
        examples: Number of them that are scored.
    """

    benchmark: Literal["step", "fisher"]
    model: str
    batch: int
    length: int | None
    contenders: tuple[str, ...]
    keep: float | None = None
    mask: Literal["random", "fish"] | None = None
    examples: int | None = None


@dataclass(frozen=True)
class DeltaCase:
    """A model whose delta is stored, loaded, applied and taken back, with several masks of the same size.

    Attributes:
        precision: Type of the weights.
        contenders: What is stored, in the order of a round.
        keep: Fraction of all weights that the delta has; the head is kept whole.
    """

    model: str
    precision: Literal["fp32", "bf16"]
    contenders: tuple[str, ...] = DELTA
    keep: float = 0.005
    benchmark: Literal["delta"] = "delta"


AnyCase: TypeAlias = Case | DeltaCase | MergeCase


def cases(device: str) -> list[AnyCase]:
    """All settings of a device type. The original and PEFT run at half a percent and with random masks only."""
    grid = [_step("minilm", 16, 64, STEP_ALL if keep == 0.005 else STEP, keep=keep) for keep in KEEPS]
    return [*grid, _step("minilm", 16, 64, STEP, mask="fish"), *(_cuda() if device == "cuda" else _cpu())]


def _cpu() -> list[AnyCase]:
    return [
        _step("minilm", 16, 128, STEP_ALL),
        _step("bert-base-shape", 8, 64, STEP_ALL),
        _step("resnet18", 64, None, STEP_CONV),
        Case("fisher", "minilm", 16, 64, FISHER, examples=64),
        Case("fisher", "minilm", 16, 128, FISHER, examples=32),
        Case("fisher", "bert-base-shape", 8, 64, FISHER, examples=16),
        Case("fisher", "resnet18", 16, None, FISHER_CONV, examples=64),
        DeltaCase("minilm", "fp32"),
        DeltaCase("bert-large-cased-shape", "bf16"),
        DeltaCase("bert-large-cased-shape", "fp32"),
        *(case for workers in (1, 2, 4, 8) for case in merges(workers, KEEPS)),
    ]


def _cuda() -> list[Case]:
    return [
        _step("bert-large-shape", 16, 128, STEP_ALL),
        _step("bert-large-shape", 16, 128, STEP, mask="fish"),
        _step("resnet34", 512, None, STEP_CONV),
        Case("fisher", "minilm", 16, 64, FISHER, examples=64),
        Case("fisher", "bert-large-shape", 16, 128, FISHER, examples=32),
        Case("fisher", "resnet34", 32, None, FISHER_CONV, examples=128),
    ]


def _step(
    model: str,
    batch: int,
    length: int | None,
    contenders: tuple[str, ...],
    keep: float = 0.005,
    mask: Literal["random", "fish"] = "random",
) -> Case:
    return Case("step", model, batch, length, contenders, keep, mask)


def build(model: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The network and the names of its head's parameters; the same weights at each call."""
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
    """With BatchNorm statistics of a few batches, as a network has that has trained."""
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
    """Random token ids without padding, or random images, and random labels; the same at each call."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for start in range(0, examples, size):
        count = min(size, examples - start)
        labels = torch.randint(10 if length is None else 2, (count,), generator=generator).to(device)
        if length is None:
            inputs: Inputs = torch.randn(count, 3, 32, 32, generator=generator).to(device)
        else:
            ids = torch.randint(999, VOCABULARY, (count, length), generator=generator).to(device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        found.append((inputs, labels))
    return found


def choose_mask(case: Case, model: nn.Module, head: Sequence[str]) -> Mask:
    """``case.keep`` of the weights. Random entries lie apart, those of the Fisher information in rows."""
    assert case.keep is not None
    if case.mask == "fish":
        device = next(model.parameters()).device
        scores = diagonal_fisher(model, batches(SCORED, case.batch, case.length, device))
    else:
        generator = torch.Generator().manual_seed(2)
        scores = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
    return top_k(scores, case.keep, always=head)
