"""Deltas as adapters of PEFT: it loads what is written and computes the same, and its own adapters become deltas."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from fishexp.delta import Delta, read_adapter, write_adapter
from fishexp.delta.architecture import modules_of
from fishexp.delta.peft_export import _count, _sparsity
from fishexp.errors import DeltaError
from fishexp.masks import top_k
from fishexp.masks.random_masks import random_scores
from fishexp.models.bert import _minilm
from fishexp.sparse import sparsify
from tests.support.cases import tiny_bert
from tests.support.checks import refusal
from tests.support.delta_cases import same_bits, tuned
from tests.support.delta_commands import mistake, run

peft: Any = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.usefixtures("quiet_transformers"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks it
]


def distilbert() -> nn.Module:
    """One of its modules, pre_classifier, ends with the name of another."""
    torch.manual_seed(0)
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=16, max_position_embeddings=12)
    )


def llama(tied: bool) -> nn.Module:
    """Build two layers without biases, whose output is the embedding or a Linear of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Encoder(nn.Module):
    """Torch's own layers, which read weights of the modules in them, beside one that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        self.first = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8))
        self.scale = nn.Module()
        self.scale.register_parameter("by", nn.Parameter(torch.ones(8)))
        self.output = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.output(self.layers(self.first(input_ids)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: tiny_bert().float(),
    "bf16": lambda: tiny_bert().bfloat16(),
    "distilbert": distilbert,
    "llama": lambda: llama(False),
    "tied": lambda: llama(True),
    "torch": Encoder,
}
IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found = model.eval()(IDS)
    return found if isinstance(found, Tensor) else found.logits


def filled(model: nn.Module, mask: dict[str, Tensor]) -> dict[str, Tensor]:
    """A mask with no entry of the tensors that it does not name."""
    return {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()} | mask


def loaded(base: nn.Module, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning")
@pytest.mark.parametrize("density", [0.02, 0.1])
@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_a_delta_and_computes_the_same(name: str, density: float, tmp_path: Path) -> None:
    base = MODELS[name]()
    after = tuned(base, 1, density)
    delta = Delta.diff(base, after)
    about = write_adapter(delta, base, base, tmp_path / "adapter")
    assert about.sparse
    assert about.whole
    model = loaded(base, tmp_path / "adapter")
    exact = name != "bf16"
    torch.testing.assert_close(logits(model), logits(after), atol=1e-5 if exact else 0.1, rtol=1e-4 if exact else 0.1)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base))
    if name == "torch":  # PEFT merges no module that has other parameters than a weight and a bias
        assert read_adapter(tmp_path / "adapter", base).after == delta.after
        return
    merged = model.merge_and_unload()
    differ = sum(
        int((p != q).sum()) for p, q in zip(merged.state_dict().values(), after.state_dict().values(), strict=True)
    )
    assert differ == about.missed
    assert same_bits(base, MODELS[name]())  # only read
    again = read_adapter(tmp_path / "adapter", base)
    if not about.missed:
        assert again.after == delta.after
    again.apply_(base)
    assert same_bits(base, merged)


def test_a_module_whose_name_ends_with_that_of_another_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    base.add_module("first", nn.Sequential(nn.Conv1d(1, 1, 1)))
    after = copy.deepcopy(base)
    with torch.no_grad():
        after.get_parameter("0.weight")[0, :3] += 1
    write_adapter(Delta.diff(base, after), base, base, str(tmp_path / "adapter"))
    model, images = loaded(base, tmp_path / "adapter"), torch.randn(2, 1, 8)
    assert torch.equal(model(images), after(images))
    assert same_bits(model.merge_and_unload(), after)
    assert read_adapter(str(tmp_path / "adapter"), base).after == Delta.whole(after).after


def test_a_head_of_other_classes_and_a_mask_of_linears_alone(tmp_path: Path) -> None:
    """What a mask of Linear weights changes is stored by entries: the head is the only module that is whole."""
    base = tiny_bert(2).float()
    linears = [f"{n}.weight" for n, m in base.named_modules() if isinstance(m, nn.Linear) and n != "classifier"]
    mask = top_k(random_scores({name: base.get_parameter(name).shape for name in linears}, 0), keep=0.1)
    head = {name: torch.ones_like(p, dtype=torch.bool) for name, p in base.named_parameters() if "classifier" in name}
    sparse = sparsify(base, filled(base, {**mask, **head}))
    with torch.no_grad():
        for p in sparse.parameters():
            p.add_(torch.randn_like(p))
    delta = sparse.delta(fresh=[*head])
    sparse.restore()
    about = write_adapter(delta, start := tiny_bert(2).float(), start, tmp_path / "adapter")
    moved = [name for name in linears if name in delta.moved]
    assert about.sparse > len(moved) / 2
    assert about.sparse + about.whole == len(moved) + 1  # a dense one is smaller whole
    assert about.values - about.filled <= sum(len(delta.values(name)) for name in moved)
    torch.testing.assert_close(logits(loaded(start, tmp_path / "adapter")), logits(base))


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0.001, 1)), min_size=1, max_size=8))
def test_the_sparsity_is_the_largest_that_every_weight_fits(sizes: list[tuple[int, float]]) -> None:
    counts = [(max(1, int(share * n * n)), n * n) for n, share in sizes]
    sparsity = _sparsity(counts)
    assert 0 <= sparsity < 1
    assert all(_count(n, sparsity) >= k for k, n in counts)
    more = sparsity + 2e-15
    assert more >= 1 or any(_count(n, more) < k for k, n in counts)


def folders(tmp_path: Path) -> tuple[Path, Path, nn.Module]:
    """A base without a head, a delta in a folder with its configuration, and the tuned model."""
    tuned_model: Any = tiny_bert().float()
    BertModel(tuned_model.config).save_pretrained(tmp_path / "base")
    base: Any = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    nn.init.normal_(base.classifier.weight)
    after: Any = tuned(base, 2, 0.05)
    delta = Delta.diff({n: t for n, t in base.state_dict().items() if "classifier" not in n}, after)
    after.config.save_pretrained(tmp_path / "run")
    delta.save(tmp_path / "run" / "delta.safetensors")
    return tmp_path / "base", tmp_path / "run" / "delta.safetensors", after


def test_the_command_writes_an_adapter_that_peft_loads_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, delta, after = folders(tmp_path)
    assert run("export", delta, "--to", "peft", "--base", base, "-o", tmp_path / "adapter") == 0
    assert "values in" in (out := capsys.readouterr().out)
    assert "as PEFT adds what a delta replaces" in out
    model: Any = peft.AutoPeftModel.from_pretrained(tmp_path / "adapter", num_labels=3)
    torch.testing.assert_close(logits(model), logits(after))
    assert run("import", base, tmp_path / "adapter", "-o", tmp_path / "again.safetensors") == 0
    tensors = BertModel.from_pretrained(base).state_dict()
    Delta.load(tmp_path / "again.safetensors").apply_(tensors)
    expected = {name.removeprefix("bert."): tensor for name, tensor in after.state_dict().items()}
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name])
    assert tensors.keys() == expected.keys()


def test_what_cannot_be_exported_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, delta, after = folders(tmp_path)
    out = tmp_path / "adapter"
    assert "needs --base BASE" in mistake(capsys, "export", delta, "--to", "peft", "-o", out)
    single = base / "model.safetensors"
    assert "needs the config.json" in mistake(capsys, "export", delta, "--to", "peft", "--base", single, "-o", out)
    changed = load_file(single)
    changed["encoder.layer.0.output.dense.weight"][0, 0] += 1
    save_file(changed, single, {"format": "pt"})
    message = mistake(capsys, "export", delta, "--to", "peft", "--base", base, "-o", out)
    assert "is for another base: bert.encoder.layer.0.output.dense.weight is not that" in message
    assert not out.exists()
    config = json.loads((delta.parent / "config.json").read_text())
    for key, value in {"hidden_act": "none", "attention_probs_dropout_prob": "0.1", "model_type": "bird"}.items():
        with pytest.raises(DeltaError, match=r"^transformers cannot use the model's config.json: \w+: "):
            modules_of(json.dumps(config | {key: value}), [])
    assert isinstance(modules_of(json.dumps(config | {"architectures": ["Trainer"]}), after.state_dict()), type(after))
    model = tiny_bert().float()
    biased = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in biased.named_parameters():
            p.add_(name.endswith("bias"))
    assert "would be the whole model; write that with apply" in refusal(
        write_adapter, Delta.diff(model, biased), model, model, out
    )
    assert "which the delta's result lacks" in refusal(
        write_adapter, Delta.diff(model, biased), model, distilbert(), out
    )


def adapter(tmp_path: Path, **options: Any) -> tuple[nn.Module, nn.Module, Path]:
    """An adapter that PEFT wrote, with its base and what PEFT merges."""
    base = tiny_bert().float()
    config = peft.SupertuningConfig(
        target_modules=["query", "dense"], modules_to_save=["classifier"], sparsity=0.9, init_weights=False, **options
    )
    torch.manual_seed(5)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model.save_pretrained(tmp_path / "theirs")
    return base, model.merge_and_unload(), tmp_path / "theirs"


def test_an_adapter_of_peft_becomes_a_delta_to_the_bit(tmp_path: Path) -> None:
    base, merged, folder = adapter(tmp_path)
    delta = read_adapter(folder, base)
    delta.apply_(base)
    assert same_bits(base, merged)


def test_adapters_that_are_no_sparse_ones_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, _, folder = adapter(tmp_path)
    stored, config = (
        load_file(folder / "adapter_model.safetensors"),
        json.loads((folder / "adapter_config.json").read_text()),
    )
    name = next(name for name in stored if name.endswith("supertuning_indices"))

    def spoilt(tensors: dict[str, Tensor] | None = None, **changes: object) -> str:
        save_file(stored if tensors is None else tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        return refusal(read_adapter, folder, base)

    assert "of the kind LORA, not SUPERTUNING; merge it with PEFT" in spoilt(peft_type="LORA")
    assert "of the kind SUPERTUNING with a low-rank part" in spoilt(r=4)
    assert "no positions or no values" in spoilt({n: t for n, t in stored.items() if n != name})
    assert "a position is not among the 64 entries" in spoilt(stored | {name: stored[name] + 60})
    assert "a position is not among the 64 entries" in spoilt(stored | {name: stored[name] - 64})
    assert "are no positions" in spoilt(stored | {name: stored[name].float()})
    assert "are no positions" in spoilt(stored | {name: stored[name][:-1]})
    assert "is missing here" in spoilt({n.replace("layer.1", "layer.7"): t for n, t in stored.items()})
    (folder / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors; save the adapter with safetensors" in refusal(read_adapter, folder, base)
    out = tmp_path / "d.safetensors"
    assert "is no adapter: it has no adapter_config.json" in mistake(capsys, "import", tmp_path, tmp_path, "-o", out)


def test_a_mask_of_minilm_as_an_adapter(tmp_path: Path) -> None:
    base: Any = BertForSequenceClassification.from_pretrained(_minilm(), num_labels=2)
    after = copy.deepcopy(base)
    weights = [f"{n}.weight" for n, m in base.bert.encoder.named_modules() if isinstance(m, nn.Linear)]
    shapes = {f"bert.encoder.{name}": after.get_parameter(f"bert.encoder.{name}").shape for name in weights}
    sparse = sparsify(after, filled(after, top_k(random_scores(shapes, 0), keep=0.01)))
    with torch.no_grad():
        for p in sparse.parameters():
            p.add_(torch.randn_like(p) * 0.01)
    delta = sparse.delta()
    sparse.restore()
    about = write_adapter(delta, base, base, tmp_path / "adapter")
    assert (about.sparse, about.whole) == (36, 0)
    torch.testing.assert_close(logits(loaded(base, tmp_path / "adapter")), logits(after), atol=1e-5, rtol=1e-4)
    assert read_adapter(tmp_path / "adapter", base).kept >= delta.changes - about.missed
