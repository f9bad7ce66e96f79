"""Sentences, and what a model's tokenizer makes of them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Sentences:
    """Sentences or pairs of them, not tokenised yet: that needs the model's tokenizer.

    ``second`` is None for single sentences. ``labels`` is int64 for classes, float for a regression.
    """

    first: list[str]
    second: list[str] | None
    labels: Tensor
    max_length: int

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Sentences":
        chosen = index.tolist()
        second = [self.second[i] for i in chosen] if self.second is not None else None
        return replace(self, first=[self.first[i] for i in chosen], second=second, labels=self.labels[index])

    def tokenised(self, tokenizer: Any) -> "Tokens":
        """With the tokenizer of the model that is to read them (any Hugging Face tokenizer)."""
        encoded = tokenizer(self.first, self.second, truncation=True, max_length=self.max_length)
        columns = {key: [torch.tensor(row) for row in rows] for key, rows in encoded.items()}
        padding = dict.fromkeys(columns, 0) | {"input_ids": tokenizer.pad_token_id}
        return Tokens(columns, padding, self.labels, self.max_length)


class Tokens:
    """Token ids of each example, padded to the longest of a batch when it is asked for."""

    def __init__(
        self, columns: dict[str, list[Tensor]], padding: dict[str, int], labels: Tensor, max_length: int
    ) -> None:
        self.columns, self.padding, self.labels, self.max_length = columns, padding, labels, max_length
        self.lengths = torch.tensor([len(row) for row in columns["input_ids"]])

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Tokens":
        columns = {key: [rows[i] for i in index.tolist()] for key, rows in self.columns.items()}
        return Tokens(columns, self.padding, self.labels[index], self.max_length)

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[dict[str, Tensor], Tensor]:
        inputs = {
            key: pad_sequence([rows[i] for i in index.tolist()], batch_first=True, padding_value=self.padding[key])
            for key, rows in self.columns.items()
        }
        return inputs, self.labels[index]
