"""Tokens are padded as the tokenizer pads them, and padding changes no logits."""

from pathlib import Path

import pytest
import torch

from fishexp.data.text import Sentences, Tokens
from fishexp.models import Model, bert

PAIRS = [("the cat runs .", "a dog ?"), ("a", "the dog and the cat"), ("the dog sees the cat and runs", "the cats .")]


def tokens_of(folder: Path, *, pairs: bool, max_length: int) -> tuple[Tokens, Model]:
    model = bert.build(2, 0, path=str(folder), pretrained=False, activation_checkpointing=False)
    first, second = map(list, zip(*PAIRS, strict=True))
    sentences = Sentences(first, second if pairs else None, torch.arange(3), max_length)
    return sentences.tokenised(model.tokenizer), model


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("max_length", [20, 5])
def test_tokens_are_what_the_tokenizer_pads(bert_folder: Path, pairs: bool, max_length: int) -> None:
    tokens, model = tokens_of(bert_folder, pairs=pairs, max_length=max_length)
    index = torch.tensor([1, 0])
    found, labels = tokens.subset(torch.tensor([0, 1])).batch(index)
    texts = [[PAIRS[i][side] for i in index] for side in range(1 + pairs)]
    expected = model.tokenizer(*texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    assert found.keys() == expected.keys() >= {"input_ids", "attention_mask", "token_type_ids"}
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    assert labels.tolist() == [1, 0]
    assert tokens.lengths.max() <= max_length
    assert tokens.lengths[index].tolist() == found["attention_mask"].sum(1).tolist()


def test_padding_changes_no_logits(bert_folder: Path) -> None:
    tokens, model = tokens_of(bert_folder, pairs=True, max_length=20)
    network = model.network.eval()
    together = network(**tokens.batch(torch.arange(3))[0]).logits
    alone = torch.cat([network(**tokens.batch(torch.tensor([i]))[0]).logits for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert tokens.lengths.unique().numel() > 1


def test_batches_of_fewer_lengths_change_no_logits(bert_folder: Path) -> None:
    """Multiples of 4, but where examples are cut before one."""
    tokens, model = tokens_of(bert_folder, pairs=True, max_length=15)
    found = tokens.in_multiples_of(4).subset(torch.arange(3))
    network, lengths = model.network.eval(), []
    for i in range(3):
        inputs, _ = found.batch(torch.tensor([i]))
        lengths.append(inputs["input_ids"].shape[1])
        pads = inputs["input_ids"][0, int(tokens.lengths[i]) :]
        assert pads.tolist() == [model.tokenizer.pad_token_id] * len(pads)
        assert inputs["attention_mask"].sum() == tokens.lengths[i]
        alone, _ = tokens.batch(torch.tensor([i]))
        torch.testing.assert_close(network(**inputs).logits, network(**alone).logits)
    assert lengths == [min(-(-int(length) // 4) * 4, 15) for length in tokens.lengths]
    assert set(lengths) == {12, 15}
