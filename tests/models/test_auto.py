"""Classifiers of several families of transformers: their heads, their padding, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fishexp.data.text import Sentences
from fishexp.fisher import diagonal_fisher
from fishexp.fisher.batches import logits_of
from fishexp.models import Model, auto
from tests.support.checks import refusal, same_weights
from tests.support.classifiers import FAMILIES, POSITIONS, VOCABULARY, write_classifier, write_tokenizer

TEXTS = ["the cat runs .", "a dog ?", "the dog sees the cat and the dog runs and the cat sees a film"]


def build(path: Path, classes: int = 3, channels: int = 0, **options: bool) -> Model:
    options = {"pretrained": True, "activation_checkpointing": False} | options
    return auto.build(classes, channels, path=str(path), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_what_the_body_comes_without(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build(write_classifier(tmp_path, family))
    assert model.head == FAMILIES[family][1]
    weights, found = load_file(tmp_path / "model.safetensors"), model.network.state_dict()
    prefix = model.network.base_model_prefix
    assert set(model.head) <= found.keys()
    for name, _ in model.network.named_parameters():
        if name not in model.head:
            assert torch.equal(found[name], weights[name.removeprefix(f"{prefix}.")]), name
    assert not caplog.messages
    assert model.classes is None
    assert model.source == str(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_has_the_same_logits_in_any_batch(family: str, tmp_path: Path) -> None:
    """And as long as positions reach: one token more is cut."""
    model = build(write_classifier(tmp_path, family))
    network = model.network.eval()
    assert model.tokenizer.model_max_length == (
        POSITIONS if family != "deberta-v2" else model.tokenizer.model_max_length
    )
    texts = [*TEXTS, "the dog " * POSITIONS]
    tokens = Sentences(texts, None, torch.zeros(4), POSITIONS).tokenised(model.tokenizer)
    assert tokens.lengths[-1] == POSITIONS
    with torch.no_grad():
        together = logits_of(network, tokens.batch(torch.arange(4))[0])
        alone = torch.cat([logits_of(network, tokens.batch(torch.tensor([i]))[0]) for i in range(4)])
        pair = logits_of(network, dict(model.tokenizer(TEXTS[:2], TEXTS[1::-1], padding=True, return_tensors="pt")))
    torch.testing.assert_close(together, alone)
    assert pair.shape == (2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_a_batch_are_those_of_its_examples(family: str, tmp_path: Path) -> None:
    model = build(write_classifier(tmp_path, family))
    network = model.network.double().eval()
    tokens = Sentences(TEXTS, None, torch.tensor([0, 2, 1]), POSITIONS).tokenised(model.tokenizer)
    found = diagonal_fisher(network, [tokens.batch(torch.arange(3))])
    expected: dict[str, Any] = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for i in range(3):
        inputs, labels = tokens.batch(torch.tensor([i]))
        network.zero_grad()
        torch.nn.functional.cross_entropy(logits_of(network, inputs), labels).backward()
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                expected[name] += parameter.grad.square() / 3
    assert found.keys() == expected.keys()
    for name, score in found.items():
        torch.testing.assert_close(score.double(), expected[name], rtol=1e-4, atol=1e-12, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_comes_back_bit_for_bit_with_the_names_of_its_classes(family: str, tmp_path: Path) -> None:
    model = build(write_classifier(tmp_path / "body", family))
    assert model.name_classes is not None
    model.name_classes(["good", "bad", "so so"])
    model.save(tmp_path / "whole")
    again = build(tmp_path / "whole")
    assert same_weights(model.network, again.network)
    assert again.classes == ("good", "bad", "so so")
    assert again.tokenizer(TEXTS)["input_ids"] == model.tokenizer(TEXTS)["input_ids"]
    assert again.tokenizer.pad_token_id == model.tokenizer.pad_token_id
    assert "classifier of 3 labels, the data set has 2" in refusal(build, tmp_path / "whole", classes=2)


def test_it_has_no_path_of_its_own() -> None:
    from tests.support.cli import fishexp

    assert fishexp("model=auto", "data=csv", "data.train=a.csv").mistake() == (
        "model.path has no default here; give model.path=..."
    )


def test_padding_that_is_read_as_text_is_refused(tmp_path: Path) -> None:
    """GPT-2 finds the last token by the padding of its configuration."""
    write_classifier(tmp_path, "gpt2", pad_token_id=VOCABULARY.index("[PAD]"))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "[EOS]"}))
    assert refusal(build, tmp_path) == (
        f"model.path={tmp_path} is a GPT2ForSequenceClassification, which reads padding as if it were text; is the "
        f"pad_token_id of its config.json that of its tokenizer, {VOCABULARY.index('[EOS]')}?"
    )


def test_a_tokenizer_without_padding_or_end(tmp_path: Path) -> None:
    write_classifier(tmp_path, "gpt2")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert refusal(build, tmp_path) == (
        f"model.path={tmp_path}: its tokenizer has no pad_token; name one in tokenizer_config.json"
    )


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    write_classifier(tmp_path, "electra", vocab_size=9)
    assert refusal(build, tmp_path) == (
        f"model.path={tmp_path}: its tokenizer gives numbers up to {len(VOCABULARY) - 1}, its embeddings are 9; "
        "is it the tokenizer of another model?"
    )


def test_a_classifier_that_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GPT2ForSequenceClassification

    write_classifier(tmp_path, "gpt2")
    monkeypatch.setattr(GPT2ForSequenceClassification, "base_model", property(lambda network: network))
    assert refusal(build, tmp_path) == (
        f"model.path={tmp_path} is a GPT2ForSequenceClassification, of which it is not known what its classifier is; "
        "give one whose last layer outside its body is a Linear"
    )


def test_a_model_that_classifies_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    write_tokenizer(tmp_path, classes=True)
    assert refusal(build, tmp_path).startswith(
        f"model.path={tmp_path} cannot be loaded: Unrecognized configuration class"
    )
