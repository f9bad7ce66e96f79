"""TRL's SFTTrainer trains the kept entries of language models on a local text file."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

import fishexp
from fishexp import hf
from tests.support.trainers import WORDS, gpt2, llama, same

pytest.importorskip("trl", reason="trl is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

TEXT = "the cat sees a dog\na dog runs\nthe dog sees the cat and runs\na cat runs and sees\n" * 4


def tokenizer() -> PreTrainedTokenizerFast:
    """Build one that knows the words of the text, of no more than the models have."""
    words = ["<pad>", "<eos>", "<unk>", *sorted(set(TEXT.split()))]
    assert len(words) <= WORDS
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=16
    )


def trainer_of(model: nn.Module, folder: Path, **settings: Any) -> SFTTrainer:
    (folder / "text.txt").write_text(TEXT)
    data = load_dataset("text", data_files=str(folder / "text.txt"), split="train", cache_dir=str(folder / "cache"))
    config = SFTConfig(
        str(folder / "out"), per_device_train_batch_size=4, max_steps=4, learning_rate=0.01, save_strategy="steps",
        save_steps=2, report_to="none", disable_tqdm=True, use_cpu=True, bf16=False, max_length=12,
        logging_strategy="no", dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    return SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", [gpt2, llama])
def test_it_trains_and_resumes_to_the_bit(build: Any, tmp_path: Path) -> None:
    found = []
    for checkpoint in (None, str(tmp_path / "out" / "checkpoint-2")):
        trainer = trainer_of(build(), tmp_path)
        assert trainer.model is not None
        scores = hf.fisher_scores(trainer, samples=8)
        assert not trainer._metrics["eval"]
        mask = fishexp.top_k(scores, keep=0.05, always=hf.head(trainer.model))
        sparse = hf.sparsify_trainer(trainer, mask)
        trainer.train(resume_from_checkpoint=checkpoint)
        found.append(trainer.model.state_dict())
        base = build()
        sparse.delta().apply_(base)
        assert same(base.state_dict(), found[-1])
        before = dict(build().named_parameters())
        assert all(torch.equal(found[-1][name][~kept], before[name][~kept]) for name, kept in mask.items())
        assert any(not torch.equal(found[-1][name], before[name]) for name in mask)
    assert same(*found)
