"""What lies beside the weights of OUT: configuration and tokenizer of the tuned model, or a line that says why not."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from fishexp.delta import Delta
from fishexp.delta.__main__ import main
from fishexp.masks import top_k
from fishexp.masks.random_masks import random_scores
from fishexp.models import bert
from fishexp.sparse import sparsify
from fishexp.sparse.parameter import weights
from tests.support.delta_cases import same_bits, tuned

pytestmark = pytest.mark.usefixtures("quiet_transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 20,
}  # fmt: skip
INPUTS = {"input_ids": torch.tensor([[2, 7, 9, 4, 3]])}


def new(kind: str, **options: Any) -> Any:
    """A small model of random weights, of a class of transformers."""
    torch.manual_seed(0)
    kind_class = getattr(hf, kind)
    return kind_class(kind_class.config_class(**SIZES | options)).eval()


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def applied(folder: Path, base: Any, model: Any, capsys: pytest.CaptureFixture[str], beside: bool = False) -> list[str]:
    """Write base, tuned model, delta and OUT to ``folder``, and return the lines of `apply` but for the last."""
    base.save_pretrained(folder / "base")
    model.save_pretrained(folder / "tuned")
    (folder / "d").mkdir()
    delta = (folder / "tuned" if beside else folder / "d") / "delta"
    Delta.diff(*named_alike(base.state_dict(), model.state_dict())).save(delta)
    capsys.readouterr()
    assert run("apply", folder / "base", delta, "-o", folder / "out") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"{folder / 'out'}: Delta(")
    return lines


def named_alike(before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors before, by the names that they have after; heads that fit no more are no part of the base."""
    prefix = next(iter(after)).partition(".")[0] + "."
    before = {n if n.startswith(prefix) or prefix + n not in after else prefix + n: t for n, t in before.items()}
    return {n: t for n, t in before.items() if n not in after or not t.shape or len(t) <= len(after[n])}, after


def same_logits(folder: Path, model: Any, kind: Any = None) -> bool:
    again = copy.deepcopy((kind or type(model)).from_pretrained(folder).eval())  # tensors of a file are not aligned
    with torch.no_grad():
        return torch.equal(again(**INPUTS)[0], model(**INPUTS)[0]) and same_bits(again, model)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_a_resized_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = new("BertForSequenceClassification")
    model = tuned(base, 1)
    model.resize_token_embeddings(47)  # type: ignore[operator]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (tmp_path / "base" / "README.md").write_text("A note.")
    lines = applied(tmp_path, base, model, capsys)
    assert lines == ["left out the tokenizer: BASE's is for 40 tokens, and the model has 47 now"]
    assert config_of(tmp_path / "out") == config_of(tmp_path / "tuned")
    assert same_logits(tmp_path / "out", model)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_a_resized_vocabulary_of_a_language_model(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of the output are tied to those of the input, or are tensors of their own."""
    base = new(kind, bos_token_id=1, eos_token_id=2)
    model = tuned(base, 1)
    model.resize_token_embeddings(47)  # type: ignore[operator]
    assert applied(tmp_path, base, model, capsys) == []
    assert config_of(tmp_path / "out")["vocab_size"] == 47
    assert same_logits(tmp_path / "out", model)


def with_tokenizer(folder: Path, model: Any, words: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", *words]) + "\n")
    hf.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    model.save_pretrained(folder)


def test_the_tokenizer_of_added_words_lies_beside_the_delta(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = new("BertForSequenceClassification")
    model = tuned(base, 1)
    model.resize_token_embeddings(42)  # type: ignore[operator]
    with_tokenizer(tmp_path / "base", base, [])
    with_tokenizer(tmp_path / "tuned", model, ["dog", "cow"])
    assert applied(tmp_path, base, model, capsys, beside=True) == []
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("dog cow")["input_ids"] == [2, 6, 7, 3]
    assert same_logits(tmp_path / "out", model, hf.AutoModelForSequenceClassification)


@pytest.mark.parametrize("base_labels", [None, 2, 5])
@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert", "Electra"])
def test_a_new_head(kind: str, base_labels: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a base without one, and in the place of one with fewer labels, or with more."""
    names = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16} if kind == "DistilBert" else {}
    whole = f"{kind}ForSequenceClassification"
    base = new(f"{kind}Model", **names) if base_labels is None else new(whole, num_labels=base_labels, **names)
    torch.manual_seed(1)
    model = new(whole, num_labels=3, **names)
    lines = applied(tmp_path, base, model, capsys)
    assert lines == ["config.json has 3 labels without names; no config.json beside the delta names them"]
    config = config_of(tmp_path / "out")
    assert config["architectures"] == [whole]
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert same_logits(tmp_path / "out", model, hf.AutoModelForSequenceClassification)


def fresh_head(base: Any, model: Any) -> Delta:
    """The delta of a training that began with the weights of ``base`` and a new classifier."""
    head = ["classifier.weight", "classifier.bias"]
    model.load_state_dict({n: t for n, t in base.state_dict().items() if n not in head}, strict=False)
    scores = random_scores({name: p.shape for name, p in weights(model).items()}, 3)
    sparse = sparsify(model, top_k(scores, 0.1, head))
    for values in sparse.parameters():
        values.grad = torch.ones_like(values)
    torch.optim.SGD(sparse.parameters(), lr=0.1).step()
    return sparse.delta(fresh=head)


def test_a_new_head_of_as_many_labels_does_not_get_the_names_of_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = new("BertForSequenceClassification", id2label={0: "negative", 1: "positive"}, problem_type="regression")
    model = new("BertForSequenceClassification", id2label={0: "no", 1: "yes"})
    delta = fresh_head(base, model)
    for name, kind in {"base": base, "tuned": model}.items():
        kind.save_pretrained(tmp_path / name)
    delta.save(tmp_path / "delta")
    assert run("apply", tmp_path / "base", tmp_path / "delta", "-o", tmp_path / "out") == 0
    config = hf.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.id2label, config.problem_type) == ({0: "LABEL_0", 1: "LABEL_1"}, None)
    delta.save(tmp_path / "tuned" / "delta")
    assert run("apply", tmp_path / "base", tmp_path / "tuned" / "delta", "-o", tmp_path / "out2") == 0
    assert hf.AutoConfig.from_pretrained(tmp_path / "out2").id2label == {0: "no", 1: "yes"}
    for out in ("out", "out2"):
        assert same_logits(tmp_path / out, model)


def test_a_run_folder_names_the_labels_in_their_order(
    bert_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `fishexp.models.bert` leaves beside a delta: no weights."""
    start = bert.build(3, 0, path=str(bert_folder), pretrained=False, activation_checkpointing=False)
    start.save(tmp_path / "start")
    model = bert.build(3, 0, path=str(tmp_path / "start"), pretrained=True, activation_checkpointing=False)
    assert model.name_classes is not None
    model.name_classes(["no", "perhaps", "yes"])
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with torch.no_grad():
        model.network.get_parameter("classifier.weight").mul_(2)
    model.save(tmp_path / "run", weights=False)
    Delta.diff(before, model.network).save(tmp_path / "run" / "delta.safetensors")
    assert run("apply", tmp_path / "start", tmp_path / "run" / "delta.safetensors", "-o", tmp_path / "out") == 0
    again = hf.pipeline("text-classification", str(tmp_path / "out"), top_k=None)
    with torch.no_grad():
        logits = model.network.eval()(**model.tokenizer("the cat sees", return_tensors="pt")).logits[0]
    found = {one["label"]: one["score"] for one in again(["the cat sees"])[0]}  # type: ignore[index,union-attr]
    expected = logits.softmax(-1).tolist()
    assert found == pytest.approx(dict(zip(["no", "perhaps", "yes"], expected, strict=True)))


def test_what_cannot_be_told_has_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another layer; and a head of one row, which may be a regression or a multiple choice."""
    base = new("BertModel")
    why = "; put that of the tuned model there, or beside the delta"
    (line,) = applied(tmp_path / "layers", base, new("BertModel", num_hidden_layers=2), capsys)
    assert line.startswith("left out config.json: BASE's says nothing of encoder.layer.1.")
    assert line.endswith(f", which the delta adds or removes{why}")
    assert {path.name for path in (tmp_path / "layers" / "out").iterdir()} == {"model.safetensors"}

    model = new("BertForSequenceClassification", num_labels=1)
    lines = applied(tmp_path / "row", base, model, capsys)
    assert lines[1] == "config.json names no architecture: give the class, such as AutoModelForSequenceClassification"
    assert config_of(tmp_path / "row" / "out")["architectures"] is None
    assert same_logits(tmp_path / "row" / "out", model, hf.AutoModelForSequenceClassification)


def test_rows_of_which_the_configuration_does_not_speak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = new("BertModel")
    base.save_pretrained(tmp_path / "base")
    state = base.state_dict()
    more = torch.cat([state["pooler.dense.bias"], torch.ones(1)])
    Delta.diff(state, state | {"pooler.dense.bias": more}).save(tmp_path / "d")
    assert run("apply", tmp_path / "base", tmp_path / "d", "-o", tmp_path / "out") == 0
    assert "left out config.json: it does not say which of its numbers are the 17 rows of pooler.dense.bias" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"vocab_size": 40}, "vocab_size is 40, that of the model 47"),
        ({"id2label": {"0": "a"}}, "number of labels is 1, that of the model 2"),
        ({"id2label": "ab"}, "number of labels is 'ab', that of the model 2"),
        ({"id2label": {"1": "a", "2": "b"}}, "number of labels is {'1': 'a', '2': 'b'}, that of the model 2"),
        ({"id2label": 2}, "number of labels is 'id2label=2', that of the model 2"),
        ({"num_labels": 2.0}, "number of labels is 2.0, that of the model 2"),
        ({"num_labels": 3}, "number of labels is 3, that of the model 2"),
        ({"num_attention_heads": 4}, "num_attention_heads is 4, that of the model 2"),
        ({"model_type": "electra"}, "model_type is 'electra', that of the model 'bert'"),
    ],
)
def test_a_configuration_beside_the_delta_that_is_not_its_models(
    edit: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = new("BertForSequenceClassification")
    model = tuned(base, 1)
    model.resize_token_embeddings(47)  # type: ignore[operator]
    applied(tmp_path, base, model, capsys, beside=True)
    path = tmp_path / "tuned" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    assert run("apply", tmp_path / "base", tmp_path / "tuned" / "delta", "-o", tmp_path / "no") == 2
    advice = "; correct it, or take it away"
    message = f"{path} lies beside the delta, but is not its model's: {words}{advice}"
    assert capsys.readouterr().err == f"fishexp.delta: {message}\n"
    assert not (tmp_path / "no").exists()

    path.write_text("[")
    assert run("apply", tmp_path / "base", tmp_path / "tuned" / "delta", "-o", tmp_path / "no") == 2
    assert capsys.readouterr().err == f"fishexp.delta: {path} is damaged: it is no JSON object\n"


def test_a_delta_in_the_folder_of_its_base(tmp_path: Path) -> None:
    """The configuration beside it is the base's, and no other's."""
    base = new("BertForSequenceClassification")
    model: nn.Module = tuned(base, 1)
    model.resize_token_embeddings(47)  # type: ignore[operator]
    base.save_pretrained(tmp_path / "base")
    Delta.diff(base, model).save(tmp_path / "base" / "delta")
    assert run("apply", tmp_path / "base", tmp_path / "base" / "delta", "-o", tmp_path / "out") == 0
    assert same_logits(tmp_path / "out", model)


def test_merged_classifiers_have_the_same_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = new("BertForSequenceClassification")
    base.save_pretrained(tmp_path / "base")
    deltas = []
    for i, names in enumerate([["no", "yes"], ["no", "yes"], ["yes", "no"]]):
        model = tuned(base, i)
        model.config.id2label = dict(enumerate(names))  # type: ignore[union-attr]
        model.save_pretrained(tmp_path / f"tuned{i}")  # type: ignore[operator]
        deltas.append(tmp_path / f"tuned{i}" / "delta")
        Delta.diff(base, model).save(deltas[-1])
    assert run("merge", tmp_path / "base", *deltas[:2], "-o", tmp_path / "out") == 0
    assert hf.AutoConfig.from_pretrained(tmp_path / "out").id2label == {0: "no", 1: "yes"}
    capsys.readouterr()
    assert run("merge", tmp_path / "base", *deltas, "-o", tmp_path / "no") == 2
    first, third = (tmp_path / f"tuned{i}" / "config.json" for i in (0, 2))
    assert capsys.readouterr().err == (
        f"fishexp.delta: {first} and {third} have other labels, or another order of them\n"
    )
