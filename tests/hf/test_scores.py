"""Scores of a trainer's examples under its own loss, against brute force; what is not its loss is refused."""

import logging
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BartConfig, BartForConditionalGeneration, BertModel, Trainer

import fishexp
from fishexp import hf
from tests.support.checks import refusal
from tests.support.trainers import WORDS, Examples, bert, columns, gpt2, llama, same, token_bert, trainer_of


def new_llama() -> nn.Module:
    """Build a language model to which all tokens are as likely, so that its loss does not tell what its labels are."""
    return unsure(llama(), "lm_head")


def new_token_bert() -> nn.Module:
    return unsure(token_bert(), "classifier")


def unsure(model: nn.Module, head: str) -> nn.Module:
    with torch.no_grad():
        model.get_submodule(head).weight *= 1e-4  # type: ignore[operator]
    return model


# what a model is made of, the kind of labels, and how many labels a mean over an example has
CASES: dict[str, tuple[Callable[[], nn.Module], str, Callable[[Tensor], int]]] = {
    "classes": (bert, "class", Tensor.numel),
    "several labels": (partial(bert, problem_type="multi_label_classification"), "several", Tensor.numel),
    "several labels, by their type": (bert, "several", Tensor.numel),
    "a number": (partial(bert, num_labels=1), "number", Tensor.numel),
    "several numbers": (partial(bert, problem_type="regression"), "several", Tensor.numel),
    "tokens": (token_bert, "tokens", lambda labels: int((labels != -100).sum())),
    "tokens, new": (new_token_bert, "tokens", lambda labels: int((labels != -100).sum())),
    "GPT-2": (gpt2, "next", lambda labels: int((labels[:, 1:] != -100).sum())),
    "Llama": (llama, "next", lambda labels: int((labels[:, 1:] != -100).sum())),
    "Llama, new": (new_llama, "next", lambda labels: int((labels[:, 1:] != -100).sum())),
    "Llama, tied": (partial(llama, tied=True), "next", lambda labels: int((labels[:, 1:] != -100).sum())),
}


def brute_force(model: nn.Module, examples: dict[str, Tensor], counted: Callable[[Tensor], int]) -> dict[str, Tensor]:
    """Average the squared gradients of examples' losses, each the sum over its labels: the model's own mean, undone."""
    model.eval()
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    count = len(examples["labels"])
    for i in range(count):
        one = {name: column[i : i + 1] for name, column in examples.items()}
        model.zero_grad()
        (model(**one).loss * counted(one["labels"])).backward()
        for name, p in model.named_parameters():
            found[name] += 0 if p.grad is None else p.grad.square() / count
    return found


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_models_own_loss(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build, labels, counted = CASES[case]
    scores = hf.fisher_scores(trainer_of(build(), tmp_path, labels, count=10))
    torch.testing.assert_close(scores, brute_force(build(), columns(10, labels), counted))
    assert "one example at a time" not in caplog.text


def test_an_encoder_decoder_makes_its_decoders_inputs_of_the_labels(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        config = BartConfig(
            vocab_size=WORDS, d_model=8, max_position_embeddings=16, encoder_layers=1, decoder_layers=2,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None,
        )  # fmt: skip
        return BartForConditionalGeneration(config).double()

    scores = hf.fisher_scores(trainer_of(build(), tmp_path, "next", count=5))
    expected = brute_force(build(), columns(5, "next"), lambda labels: int((labels != -100).sum()))
    torch.testing.assert_close(scores, expected)


def test_as_many_examples_as_are_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are the first that the dataloader gives, whose last batch is cut."""
    with caplog.at_level(logging.WARNING):
        scores = hf.fisher_scores(trainer_of(bert(), tmp_path, train_sampling_strategy="sequential"), samples=6)
    first = {name: column[:6] for name, column in columns(32, "class").items()}
    torch.testing.assert_close(scores, brute_force(bert(), first, lambda labels: 1))
    assert not caplog.text
    hf.fisher_scores(trainer_of(bert(), tmp_path, count=5), samples=6)
    assert "samples=6: there are 5 training examples" in caplog.text


def test_scoring_leaves_training_as_it_is(tmp_path: Path) -> None:
    """Random streams, accelerate's idea of the loader that is read, gradients, and every step."""

    class Drawing(Examples):
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            random.random()
            np.random.rand()
            torch.rand(1)
            return super().__getitem__(index)

    trainers = [trainer_of(bert(), tmp_path, gradient_accumulation_steps=3, max_steps=4) for _ in range(2)]
    for trainer, scored in zip(trainers, (True, False), strict=True):
        trainer.train_dataset = Drawing(columns(32, "class"))
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        streams = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
        read = list(trainer.accelerator.gradient_state.dataloader_references)
        if scored:
            hf.fisher_scores(trainer, samples=6)
        assert streams == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
        assert trainer.accelerator.gradient_state.dataloader_references == read
        assert all(p.grad is None for p in trainer.model.parameters())
        trainer.train()
    assert same(trainers[0].model.state_dict(), trainers[1].model.state_dict())


def test_bf16_scores_are_near(tmp_path: Path) -> None:
    scores = hf.fisher_scores(trainer_of(bert().float(), tmp_path, bf16=True))
    exact = hf.fisher_scores(trainer_of(bert(), tmp_path))
    largest = max(exact, key=lambda name: float(exact[name].max()))
    torch.testing.assert_close(
        scores[largest].double(), exact[largest], rtol=0.1, atol=0.05 * float(exact[largest].max())
    )


def test_another_loss_is_refused_and_can_be_given(tmp_path: Path) -> None:
    class Weighted(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]).double())
            return (loss, outputs) if return_outputs else loss

    plain = trainer_of(bert(), tmp_path)
    smoothed = trainer_of(bert(), tmp_path, label_smoothing_factor=0.1)
    weighted = Weighted(bert(), plain.args, train_dataset=plain.train_dataset)
    of_its_own = trainer_of(bert(), tmp_path)
    of_its_own.compute_loss_func = lambda outputs, labels, **rest: F.cross_entropy(outputs.logits, labels)
    assert "has a label_smoothing_factor, so its loss" in refusal(hf.fisher_scores, smoothed)
    assert "has a compute_loss_func, so its loss" in refusal(hf.fisher_scores, of_its_own)
    assert re.search(r"the trainer's loss is 1\.\d+, .*; give loss=", refusal(hf.fisher_scores, weighted))
    given = hf.fisher_scores(smoothed, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    expected = hf.fisher_scores(plain)
    assert not torch.allclose(given["classifier.weight"], expected["classifier.weight"])


def test_labels_are_drawn_of_classes_only(tmp_path: Path) -> None:
    """Not of several labels, or numbers, as if they were classes of which one is right."""
    for case, what in (("several labels", "the binary one"), ("several numbers", "a squared error")):
        build, kind, _ = CASES[case]
        trainer = trainer_of(build(), tmp_path, kind, count=4)
        refused = refusal(hf.fisher_scores, trainer, labels="expected")
        assert f"labels=expected draws one of a model's classes, and the trainer's loss is {what}" in refused


def test_wrong_turns_get_a_line(tmp_path: Path) -> None:
    trainer = trainer_of(bert(), tmp_path)
    assert "no example" in refusal(hf.fisher_scores, trainer, samples=0)
    trainer.label_names = ["start_positions", "end_positions"]
    assert "have none of the trainer's labels start_positions, end_positions" in refusal(hf.fisher_scores, trainer)
    assert "does not tell" in refusal(hf.head, nn.Linear(2, 2))


def test_the_head_is_what_stands_on_the_base_model() -> None:
    assert hf.head(bert()) == ("classifier.weight", "classifier.bias")
    assert hf.head(token_bert()) == ("classifier.weight", "classifier.bias")
    base: Any = bert()
    base = BertModel(base.config)
    assert hf.head(gpt2()) == hf.head(llama()) == hf.head(base) == ()


def test_the_mask_is_that_of_a_loop_of_ones_own(tmp_path: Path) -> None:
    data = columns(12, "class")
    inputs = {name: column for name, column in data.items() if name != "labels"}
    model = bert()
    expected = fishexp.diagonal_fisher(model, [(inputs, data["labels"])])
    found = hf.fisher_scores(trainer_of(model, tmp_path, count=12))
    first, second = (fishexp.top_k(scores, 0.1, always=hf.head(model)) for scores in (found, expected))
    assert same(first, second)
