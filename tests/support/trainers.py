"""Tiny trainers of transformers, in float64, and what is compared of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

CLASSES, WORDS, LENGTH = 3, 30, 6

_BERT: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 12, "num_labels": CLASSES,
}  # fmt: skip
_GPT2: dict[str, Any] = {
    "vocab_size": WORDS, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


class Examples(Dataset[dict[str, Tensor]]):
    """Hold examples in memory."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def bert(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**_BERT | settings)).double()


def token_bert() -> nn.Module:
    torch.manual_seed(0)
    return BertForTokenClassification(BertConfig(**_BERT)).double()


def gpt2() -> nn.Module:
    """Build a language model whose output embeddings are its input embeddings."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**_GPT2)).double()


def llama(*, tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**_LLAMA, tie_word_embeddings=tied)).double()


def columns(count: int, labels: str) -> dict[str, Tensor]:
    """Draw padded sentences with labels of a kind: ``class``, ``several``, ``number``, ``tokens`` or ``next``."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, WORDS, (count, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (count, 1), generator=generator)).long()
    unlabelled = torch.full_like(ids, -100)
    of_kind = {
        "class": torch.randint(CLASSES, (count,), generator=generator),
        "several": torch.randint(2, (count, CLASSES), generator=generator).double(),
        "number": torch.randn(count, generator=generator).double(),
        "tokens": torch.randint(CLASSES, ids.shape, generator=generator).where(mask.bool(), unlabelled),
        "next": ids.where(mask.bool(), unlabelled),
    }
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": of_kind[labels]}


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    """Return six steps of four examples with AdamW, on the CPU, saying nothing."""
    chosen: dict[str, Any] = {
        "per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 0.01, "weight_decay": 0.1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no",
        "dataloader_pin_memory": False, "log_level": "error",
    } | settings  # fmt: skip
    return TrainingArguments(str(folder), **chosen)


def trainer_of(model: nn.Module, folder: Path, labels: str = "class", count: int = 32, **settings: Any) -> Any:
    """Build a Trainer of 32 examples; by its own types, its model may be None."""
    examples = Examples(columns(count, labels))
    return Trainer(model, arguments(folder, **settings), train_dataset=examples, eval_dataset=examples)


class History(TrainerCallback):
    """Remember the weights after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        self.steps.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Tell whether both have the same tensors to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def files(folder: Path, *parts: str) -> Sequence[str]:
    return sorted(path.name for path in folder.joinpath(*parts).iterdir())
