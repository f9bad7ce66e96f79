"""Sentences, and the tokens that a model's tokenizer makes of them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Sentences:
    """Hold sentences, or pairs of them, until the tokenizer of the model is known.

    Attributes:
        first: First sentence of each example.
        second: Second sentence of each example; None for single sentences.
        labels: (examples,), int64 for classes, float for a regression.
        max_length: Number of tokens that an input is cut to.
    """

    first: list[str]
    second: list[str] | None
    labels: Tensor
    max_length: int

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Sentences":
        """Return the examples at ``index``, in that order."""
        chosen = index.tolist()
        second = [self.second[i] for i in chosen] if self.second is not None else None
        return replace(self, first=[self.first[i] for i in chosen], second=second, labels=self.labels[index])

    def tokenised(self, tokenizer: Any) -> "Tokens":
        """Tokenise the sentences with the tokenizer of the model that is to read them, any of Hugging Face's."""
        encoded = tokenizer(self.first, self.second, truncation=True, max_length=self.max_length)
        columns = {key: [torch.tensor(row) for row in rows] for key, rows in encoded.items()}
        padding = dict.fromkeys(columns, 0) | {"input_ids": tokenizer.pad_token_id}
        return Tokens(columns, padding, self.labels, self.max_length)


class Tokens:
    """Hold the tokens of each example; a batch is padded to its longest example when it is asked for.

    Args:
        columns: Name of an input of the model -> its row for each example, as long as the example.
        padding: Name of an input -> value that rows are padded with.
        labels: (examples,), int64 for classes, float for a regression.
        max_length: Number of tokens that examples were cut to.
        multiple: What the length of a batch is a multiple of, unless ``max_length`` is in between.
    """

    def __init__(
        self,
        columns: dict[str, list[Tensor]],
        padding: dict[str, int],
        labels: Tensor,
        max_length: int,
        multiple: int = 1,
    ) -> None:
        self.columns, self.padding, self.labels, self.max_length = columns, padding, labels, max_length
        self.multiple = multiple
        self.lengths = torch.tensor([len(row) for row in columns["input_ids"]])

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Tokens":
        """Return the examples at ``index``, in that order."""
        columns = {key: [rows[i] for i in index.tolist()] for key, rows in self.columns.items()}
        return Tokens(columns, self.padding, self.labels[index], self.max_length, self.multiple)

    def in_multiples_of(self, length: int) -> "Tokens":
        """Return the same examples in batches of fewer different lengths: a GPU runs those as graphs, and in tiles."""
        return Tokens(self.columns, self.padding, self.labels, self.max_length, length)

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Return padded inputs and labels of the examples at ``index``; text is not augmented."""
        inputs = {
            key: pad_sequence([rows[i] for i in index.tolist()], batch_first=True, padding_value=self.padding[key])
            for key, rows in self.columns.items()
        }
        longest = int(self.lengths[index].max())
        more = min(-longest % self.multiple, max(self.max_length - longest, 0))
        inputs = {key: pad(tensor, (0, more), value=self.padding[key]) for key, tensor in inputs.items()}
        return inputs, self.labels[index]
