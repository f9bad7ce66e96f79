"""Models whose names differ in a prefix, a wrapper's part or an old word: one answer in memory and on disk."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from fishexp.delta import Delta, Stack, merge
from fishexp.delta.__main__ import main
from fishexp.delta.names import match, plain
from tests.support.checks import refusal
from tests.support.delta_cases import same_bits, snapshot, tuned


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


class Around(nn.Module):
    """Hold another model, as many a training script does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder = model


def compiled_part(model: nn.Module) -> nn.Module:
    assert isinstance(model, nn.Sequential)
    model[0] = torch.compile(model[0])  # type: ignore[assignment]
    return model


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model),  # type: ignore[return-value]
    "a part compiled": compiled_part,
    "parallel": nn.DataParallel,
    "parallel, compiled": lambda model: torch.compile(nn.DataParallel(model)),  # type: ignore[return-value]
    "compiled, parallel": lambda model: nn.DataParallel(torch.compile(model)),  # type: ignore[arg-type]
    "inside another": Around,
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_a_delta_of_a_plain_model_on_a_wrapped_one_and_back(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    base = net()
    after = tuned(base, 1)
    plain_delta = Delta.diff(base, after)
    wrapped_base, wrapped_after = wrap(copy.deepcopy(base)), wrap(copy.deepcopy(after))
    for before, model in [(base, wrapped_after), (wrapped_base, after), (wrapped_base, wrapped_after)]:
        delta = Delta.diff(before, model)
        assert delta.kept == plain_delta.kept
        for target, result in [(base, after), (wrapped_base, wrapped_after)]:
            for one in (plain_delta, delta):
                first = snapshot(target)
                undo = one.apply_(target)
                assert same_bits(target, result)
                undo.revert_()
                as_dict = snapshot(first)
                one.apply_(as_dict)
                assert same_bits(as_dict, result)
                stack = Stack(target)
                stack.push(one)
                assert same_bits(target, result)
                stack.pop()
                assert same_bits(target, first)
    assert Delta.diff(base, wrapped_after).names == plain_delta.names or wrap is Around


def test_a_new_tensor_gets_a_name_as_the_others_have() -> None:
    base = net()
    before = {f"_orig_mod.module.{name}": tensor for name, tensor in snapshot(base).items()}
    delta = Delta.diff(base, snapshot(tuned(base, 1)) | {"3.weight": torch.ones(2)})
    undo = delta.apply_(before)
    assert "_orig_mod.module.3.weight" in before
    assert before.keys() == {f"_orig_mod.module.{name}" for name in delta.result}
    undo.revert_()
    assert "_orig_mod.module.3.weight" not in before


def test_a_delta_of_a_compiled_model_on_files(tmp_path: Path) -> None:
    """OUT has the names of the plain model: whoever loads it knows no others."""
    base, after = net(), tuned(net(), 1)
    wrapped = [{f"_orig_mod.module.{n}": t for n, t in snapshot(model).items()} for model in (base, after)]
    Delta.diff(*wrapped).save(tmp_path / "d")
    for name, tensors in {"plain": snapshot(base), "wrapped": wrapped[0]}.items():
        save_file(tensors, tmp_path / name)
        assert main(["apply", str(tmp_path / name), str(tmp_path / "d"), "-o", str(tmp_path / f"{name}-out")]) == 0
        assert main(["merge", str(tmp_path / name), str(tmp_path / "d"), "-o", str(tmp_path / f"{name}-m")]) == 0
    for form in ("out", "m"):
        assert same_bits(load_file(tmp_path / f"plain-{form}"), after)
        assert same_bits(load_file(tmp_path / f"wrapped-{form}"), wrapped[1])


def test_deltas_of_wrapped_and_of_plain_models_are_chained_and_merged(tmp_path: Path) -> None:
    states = [snapshot(net())]
    for seed in (1, 2):
        before = net()
        before.load_state_dict(states[-1])
        states.append(snapshot(tuned(before, seed)))
    wrapped = [{f"module.{n}": t for n, t in state.items()} for state in states]
    Delta.diff(states[0], states[1]).save(tmp_path / "first")
    Delta.diff(wrapped[1], wrapped[2]).save(tmp_path / "second")
    save_file(states[0], tmp_path / "base")
    arguments = [str(tmp_path / name) for name in ("base", "first", "second")]
    assert main(["apply", *arguments, "-o", str(tmp_path / "out")]) == 0
    assert same_bits(load_file(tmp_path / "out"), states[2])

    other = Delta.diff(states[0], snapshot(tuned(net(), 3)))
    expected, _ = merge([Delta.load(tmp_path / "first"), other], states[0])
    renamed = Delta.of(other.named_as({name: f"module.{name}" for name in other.all_names}))
    found, _ = merge([Delta.load(tmp_path / "first"), renamed], states[0])
    assert (found.before, found.after) == (expected.before, expected.after)


def bert(seed: int) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32,
        max_position_embeddings=20,
    )  # fmt: skip
    return BertModel(config).eval()


def old(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The names that Google's own BERT files have, and a buffer that is none any more."""
    words = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    found = {}
    for name, tensor in tensors.items():
        for new, word in words.items():
            name = name.replace(new, word)
        found[prefix + name] = tensor
    return found | {f"{prefix}embeddings.position_ids": torch.arange(20)[None]}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(input_ids=torch.tensor([[2, 7, 9, 4, 3]]))[0]


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_old_names_of_bert(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A delta that was trained on such a file, as transformers loads it, applies to that very file."""
    base = bert(0)
    base.save_pretrained(tmp_path / "base")
    save_file(old(base.state_dict(), prefix), tmp_path / "base" / "model.safetensors", {"format": "pt"})
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "base").bert
    assert torch.equal(logits(loaded), logits(base))

    after = tuned(base, 1)
    Delta.diff(loaded, after).save(tmp_path / "d")
    assert main(["apply", str(tmp_path / "base"), str(tmp_path / "d"), "-o", str(tmp_path / "out")]) == 0
    assert same_bits(load_file(tmp_path / "out" / "model.safetensors"), after)
    assert torch.equal(logits(BertModel.from_pretrained(tmp_path / "out")), logits(after))

    after.save_pretrained(tmp_path / "tuned")  # type: ignore[operator]
    assert main(["diff", str(tmp_path / "base"), str(tmp_path / "tuned"), "-o", str(tmp_path / "d2")]) == 0
    assert Delta.load(tmp_path / "d2").after == Delta.load(tmp_path / "d").after
    assert Delta.load(tmp_path / "d2").names == Delta.load(tmp_path / "d").names
    both = [old(model.state_dict(), prefix) for model in (base, after)]
    Delta.diff(*both).apply_(target := old(snapshot(base), ""))
    assert same_bits(target, old(snapshot(after), ""))


def test_a_single_file_counts_before_a_stale_list_of_several(tmp_path: Path) -> None:
    """As in transformers; and OUT has no list of files that it does not have."""
    folder = tmp_path / "m"
    stale, base = bert(0), bert(1)
    stale.save_pretrained(folder, max_shard_size="4KB")
    save_file(base.state_dict(), folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits(BertModel.from_pretrained(folder)), logits(base))
    after = tuned(base, 2)
    assert Delta.diff(folder, after).before == Delta.diff(base, after).before
    Delta.diff(base, after).save(tmp_path / "d")
    assert main(["apply", str(folder), str(tmp_path / "d"), "-o", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(logits(BertModel.from_pretrained(tmp_path / "out")), logits(after))


def test_a_tensor_in_two_files_and_a_file_that_is_not_there_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bert(0).save_pretrained(tmp_path / "m", max_shard_size="4KB")
    where = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())["weight_map"]
    first, *_, last = sorted(set(where.values()))
    other = next(name for name, file in where.items() if file == last)
    tensors = load_file(tmp_path / "m" / first) | {other: torch.zeros(3)}
    save_file(tensors, tmp_path / "m" / first, {"format": "pt"})
    arguments = ["diff", str(tmp_path / "m"), str(tmp_path / "m"), "-o", str(tmp_path / "d")]
    capsys.readouterr()
    assert main(arguments) == 2
    words = f"the tensor {other!r} has no valid name, or is in another file as well"
    assert capsys.readouterr().err == f"fishexp.delta: {tmp_path / 'm' / last}: {words}\n"
    (tmp_path / "m" / last).unlink()
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"fishexp.delta: {tmp_path / 'm' / last}: No such file or directory\n"


class Quantised(Tensor):
    """Keep integers and a scale, as torchao's tensors do: there is no memory behind the tensor itself."""

    @staticmethod
    def __new__(cls, integers: Tensor, scale: float) -> "Quantised":
        return Tensor._make_wrapper_subclass(cls, integers.shape, dtype=torch.float32)  # type: ignore[attr-defined]

    def __init__(self, integers: Tensor, scale: float) -> None:
        self.integers, self.scale = integers, scale

    def __tensor_flatten__(self) -> tuple[list[str], float]:
        return ["integers"], self.scale

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.ops.aten.detach.default:
            return Quantised(args[0].integers, args[0].scale)
        raise NotImplementedError(str(function))


def test_tensors_without_memory_of_their_own_are_refused_by_their_type() -> None:
    model = nn.Linear(3, 2)
    delta = Delta.diff(model, tuned(model, 1))
    model.weight = nn.Parameter(Quantised(torch.ones(2, 3, dtype=torch.int8), 0.1), requires_grad=False)
    words = "weight is a Quantised, which keeps its entries in a form of its own, which a delta cannot hold"
    for use in (delta.apply_, Delta.whole, Stack, lambda m: Delta.diff(m, m), lambda m: merge([delta], m), delta.mask):
        assert refusal(use, model) == words
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        fake = nn.Linear(3, 2)
    assert refusal(delta.apply_, fake).startswith("weight is a FakeTensor, ")
    freed = nn.Linear(3, 2)
    freed.weight.untyped_storage().resize_(0)  # as FSDP does between its steps
    assert refusal(delta.apply_, freed) == "weight has no values in memory, which a delta cannot hold"


def test_names_that_would_become_one_stay() -> None:
    assert plain(["a.w", "_orig_mod.a.w"]) == {"a.w": "a.w", "_orig_mod.a.w": "_orig_mod.a.w"}
    assert plain(["_orig_mod"]) == {"_orig_mod": "_orig_mod"}
    assert plain(["module.a", "module._orig_mod.b"]) == {"module.a": "a", "module._orig_mod.b": "b"}
    assert plain(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}
    assert match(["a.w", "a.b"], ["x.a.w", "x.a.b", "head"]).back("x.head") == "head"
    assert match(["x.a.w", "x.a.b"], ["a.w", "a.b", "head"]).back("head") == "x.head"


def test_of_prefixes_that_fit_alike_the_first_is_taken() -> None:
    towers = [f"tower{i}." for i in range(50)]  # the order of a set would have another first
    many, one = [f"{tower}{name}" for tower in towers for name in ("w", "b")], ["w", "b"]
    assert match(one, many).names == {"w": "tower0.w", "b": "tower0.b"}
    assert match(many, one).names == {name: name.removeprefix("tower0.") for name in many}
