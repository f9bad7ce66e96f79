"""Tiny seeded models in float64 that cover the layers of ResNets and BERTs, their data, and steps of training."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from fishexp.fisher.batches import Inputs, logits_of, select
from fishexp.fisher.losses import Labels
from fishexp.fisher.powers import Power
from fishexp.sparse.parameter import weights

CLASSES = 3


def conv_net() -> nn.Module:
    """Build a convolution, a BatchNorm that has seen batches, and a Linear."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 4, CLASSES),
    ).double()
    for _ in range(3):
        model(torch.randn(8, 2, 4, 4).double())  # trains the running statistics
    return model


def tiny_bert(classes: int = CLASSES) -> nn.Module:
    """Build two layers of a BERT, which return an object with ``.logits``."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12,
    )  # fmt: skip
    config.num_labels = classes
    return BertForSequenceClassification(config).double()


def images(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 2, 4, 4, generator=generator).double()
    return inputs, torch.randint(CLASSES, (count,), generator=generator)


def sentences(count: int = 7) -> tuple[dict[str, Tensor], Tensor]:
    """Draw sentences padded to 6 tokens, some of which repeat within a sentence."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 8, (count, 6), generator=generator)
    lengths = torch.randint(2, 7, (count, 1), generator=generator)
    mask = (torch.arange(6) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}, torch.randint(CLASSES, (count,), generator=generator)


NETS = {"conv": (conv_net, images), "bert": (tiny_bert, sentences)}

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.0),
}


def steps(
    model: nn.Module, optimiser: torch.optim.Optimizer, data: tuple, n: int = 5, clip: float | None = None
) -> None:
    """Take ``n`` steps on all of ``data``, in evaluation mode."""
    inputs, labels = data
    model.eval()  # dropout would draw
    for _ in range(n):
        F.cross_entropy(logits_of(model, inputs), labels).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], clip)
        optimiser.step()
        optimiser.zero_grad()


def trained(model: nn.Module, parameters: list[nn.Parameter], data: tuple, n: int = 3) -> dict[str, Tensor]:
    """Take ``n`` steps of AdamW in the model's own mode; return its weights."""
    optimiser = torch.optim.AdamW(parameters, 0.01)
    inputs, labels = data
    for _ in range(n):
        out = model(**inputs).logits if isinstance(inputs, dict) else model(inputs)
        F.cross_entropy(out, labels).backward()
        optimiser.step()
        model.zero_grad()
    assert all(p.grad is None for p in parameters)
    return {name: p.detach().clone() for name, p in weights(model).items()}


def batched(inputs: Inputs, labels: Tensor, size: int = 3) -> list[tuple[Inputs, Tensor]]:
    """Cut into batches of ``size``, the last of them ragged."""
    cuts = range(0, len(labels), size)
    return [(select(inputs, slice(i, i + size), len(labels)), labels[i : i + size]) for i in cuts]


def brute_force(model: nn.Module, inputs: Inputs, labels: Tensor, kind: Labels, power: Power) -> dict[str, Tensor]:
    """Average over examples the sum over classes of p * |d log p / d w|^n, with a backward pass for each class."""
    model = copy.deepcopy(model).eval()
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(labels)):
        example = select(inputs, slice(i, i + 1), len(labels))
        for c in range(CLASSES):
            model.zero_grad()
            log_probs = logits_of(model, example)[0].log_softmax(-1)
            weight = float(c == labels[i]) if kind == "true_label" else log_probs[c].exp().item()
            log_probs[c].backward()
            for name, p in model.named_parameters():
                gradient = torch.zeros_like(p) if p.grad is None else p.grad
                fisher[name] += weight * (gradient.square() if power == "square" else gradient.abs()) / len(labels)
    return fisher
