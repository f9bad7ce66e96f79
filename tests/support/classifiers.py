"""Tiny models of several families of transformers on disk, with random weights and a tokenizer of 15 words."""

from pathlib import Path
from typing import Any

# [PAD] is where MPNet wants it, and not 0, so that a forgotten padding id shows
VOCABULARY = [
    "[UNK]", "[PAD]", "[CLS]", "[SEP]", "[EOS]", "the", "a", "cat", "dog", "sees", "runs", "and", "good", "bad", "film",
    ".", "?",
]  # fmt: skip
POSITIONS = 20  # tokens that each of them reads
SIZES: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": POSITIONS,
}  # fmt: skip
AFTER_PADDING = {"max_position_embeddings": POSITIONS + 2}  # positions begin after that of padding, 1
DENSE = ("classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias")
LINEAR = ("classifier.weight", "classifier.bias")

# type of model -> its configuration, and the parameters of its head
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "distilbert": (
        {"dim": 8, "hidden_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": POSITIONS},
        ("pre_classifier.weight", "pre_classifier.bias", *LINEAR),
    ),
    "roberta": (SIZES | AFTER_PADDING | {"type_vocab_size": 1}, DENSE),
    "albert": (SIZES | {"embedding_size": 4}, LINEAR),
    "deberta-v2": (
        SIZES
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
        | {"type_vocab_size": 0, "pooler_hidden_size": 8},
        ("pooler.dense.weight", "pooler.dense.bias", *LINEAR),
    ),
    "electra": (SIZES | {"embedding_size": 4}, DENSE),
    "mpnet": (SIZES | AFTER_PADDING, DENSE),
    "gpt2": (
        {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS, "bos_token_id": 4, "eos_token_id": 4},
        ("score.weight",),
    ),
}


def write_classifier(folder: Path, family: str, **options: Any) -> Path:
    """Write the body of a model, which has no classifier, and its tokenizer; that of GPT-2 has no padding."""
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(family, **FAMILIES[family][0], vocab_size=len(VOCABULARY), pad_token_id=None)
    if family != "gpt2":
        config.pad_token_id = VOCABULARY.index("[PAD]")
    for key, value in options.items():
        setattr(config, key, value)
    torch.manual_seed(1)
    AutoModel.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, classes=family != "gpt2")
    return folder


def write_tokenizer(folder: Path, *, classes: bool) -> None:
    """Write a tokenizer of words, with ``[CLS]`` and ``[SEP]`` around texts or neither, and then no padding either."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special = {"unk_token": "[UNK]", "eos_token": "[EOS]"}
    if classes:
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])],
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
