"""The command line of deltas, on files: what it writes, what it refuses, how much memory it takes."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertForSequenceClassification, BertModel

from fishexp.delta import Delta, merge
from fishexp.delta.checkpoint import Checkpoint, StoredTensor
from fishexp.delta.combine import chain
from fishexp.masks import top_k
from fishexp.masks.random_masks import Seeded, random_scores
from fishexp.sparse import sparsify
from fishexp.sparse.parameter import weights
from tests.support.cases import tiny_bert
from tests.support.delta_cases import Tied, disturbed, noise, same_bits, tuned
from tests.support.delta_commands import mistake, run

Model = dict[str, Tensor]

TYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float16, torch.uint8, torch.complex64]


@pytest.fixture(params=[64, 1 << 23])
def _pieces(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tensors of these tests in many pieces, and in one."""
    with mock.patch("fishexp.delta.fingerprint.PIECE", request.param):
        yield


def model(seed: int) -> Model:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(30, 7), (40,), (5, 4, 3, 3), (), (3, 0), (41,), (9, 8)]
    return {f"layer.{i}": noise(dtype, shapes[i], generator) for i, dtype in enumerate(TYPES)}


def changed(before: Model, seed: int, density: float = 0.1) -> Model:
    generator = torch.Generator().manual_seed(seed)
    return {name: disturbed(tensor, density, generator) for name, tensor in before.items()}


def folder(path: Path, tensors: Model, files: int = 1) -> Path:
    """As transformers writes it, with some of what may lie there too."""
    (path / "1_Pooling").mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "bert"}')
    (path / "1_Pooling" / "config.json").write_text("{}")
    (path / "vocab.txt").symlink_to(path / "config.json")
    for name in ("pytorch_model.bin", ".gitattributes", "other.safetensors"):
        (path / name).write_text("no")
    if files == 1:
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return path
    names = [f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)]
    for i, name in enumerate(names):
        save_file({n: t for j, (n, t) in enumerate(tensors.items()) if j % files == i}, path / name, {"format": "pt"})
    where = {n: names[j % files] for j, n in enumerate(tensors)}
    index = {"metadata": {"total_parameters": 3}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def single(path: Path, tensors: Model) -> Path:
    path = path.with_suffix(".safetensors")
    save_file(tensors, path, {"format": "pt", "note": "kept"})
    return path


FORMS = {"file": single, "folder": folder, "sharded": lambda path, tensors: folder(path, tensors, 3)}


def tensors_of(path: Path) -> Model:
    files = sorted(path.glob("model*.safetensors")) if path.is_dir() else [path]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_diff_and_apply_give_the_other_model_to_the_bit(tmp_path: Path, form: str, density: float) -> None:
    before = model(1)
    after = changed(before, 2, density)
    base, tuned = (FORMS[form](tmp_path / name, tensors) for name, tensors in [("base", before), ("tuned", after)])
    assert run("diff", base, tuned, "-o", tmp_path / "delta") == 0
    Delta.diff(before, after).save(tmp_path / "same")
    assert (tmp_path / "delta").read_bytes() == (tmp_path / "same").read_bytes()
    assert run("apply", base, tmp_path / "delta", "-o", tmp_path / "out") == 0
    assert same_bits(tensors_of(tmp_path / "out"), after)
    assert Delta.diff(tuned, tmp_path / "out").before == Delta.load(tmp_path / "delta").after
    assert same_bits(tensors_of(base), before)


def resized(before: Model) -> Model:
    """More rows, a new tensor, one less, and some other values."""
    after = changed(before, 3)
    generator = torch.Generator().manual_seed(4)
    after["layer.0"] = torch.cat([after["layer.0"], noise(torch.float32, (11, 7), generator)])
    after["layer.1"] = torch.cat([before["layer.1"], noise(torch.bfloat16, (90,), generator)])
    after["layer.4"] = noise(torch.float16, (3, 0), generator)
    after["new.weight"] = noise(torch.float32, (6, 5), generator)
    after["new.flag"] = torch.tensor(True)
    del after["layer.2"]
    return after


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("form", FORMS)
def test_rows_and_tensors_that_are_new_and_tensors_that_go(tmp_path: Path, form: str) -> None:
    before = model(1)
    after = resized(before)
    base, tuned = FORMS[form](tmp_path / "base", before), single(tmp_path / "tuned", after)
    assert run("diff", base, tuned, "-o", tmp_path / "delta") == 0
    assert run("apply", base, tmp_path / "delta", "-o", tmp_path / "out") == 0
    assert same_bits(tensors_of(tmp_path / "out"), after)
    target = dict(before)
    Delta.load(tmp_path / "delta").apply_(target)
    assert same_bits(target, after)
    if form == "sharded":
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        size = sum(t.numel() * t.element_size() for t in after.values())
        assert index["metadata"] == {"total_parameters": 3, "total_size": size}
        for name, file in index["weight_map"].items():
            assert load_file(tmp_path / "out" / file)[name].shape == after[name].shape
        assert index["weight_map"].keys() == after.keys()


def test_what_lies_beside_the_weights_comes_along(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", model(1))
    run("diff", base, folder(tmp_path / "tuned", changed(model(1), 2)), "-o", tmp_path / "delta")
    assert run("apply", base, tmp_path / "delta", "-o", tmp_path / "out") == 0
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert found == {"1_Pooling", "1_Pooling/config.json", "config.json", "model.safetensors", "vocab.txt"}
    assert not (tmp_path / "out" / "vocab.txt").is_symlink()
    assert (tmp_path / "out" / "vocab.txt").read_text() == '{"model_type": "bert"}'


def test_metadata_and_alignment_of_a_file(tmp_path: Path) -> None:
    """A loader may map tensors into memory: each begins at a multiple of its type's size."""
    before = {"a": torch.zeros(3, dtype=torch.uint8), "b": torch.zeros(5)}
    base, tuned = single(tmp_path / "base", before), single(tmp_path / "tuned", before | {"c": torch.ones(2).double()})
    run("diff", base, tuned, "-o", tmp_path / "delta")
    assert run("apply", base, tmp_path / "delta", "-o", tmp_path / "out") == 0
    data = (tmp_path / "out").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt", "note": "kept"}
    assert size % 8 == 0
    assert [header[name]["data_offsets"][0] for name in "cba"] == [0, 16, 36]


def three(tmp_path: Path) -> tuple[list[Model], list[Path], Path]:
    """A model after each of three steps, the deltas between them, and the file of the first."""
    states = [model(1)]
    for seed in range(3):
        states.append(changed(states[-1], seed + 5, [0.3, 1.0, 0.1][seed]))
    states[3] |= {"layer.0": torch.cat([states[3]["layer.0"], torch.ones(2, 7)])}
    files = [single(tmp_path / f"state{i}", state) for i, state in enumerate(states)]
    deltas = [tmp_path / f"delta{i}" for i in range(3)]
    for i, delta in enumerate(deltas):
        assert run("diff", files[i], files[i + 1], "-o", delta) == 0
    return states, deltas, files[0]


def test_deltas_that_follow_on_one_another_are_applied_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states, deltas, base = three(tmp_path)
    for count in (1, 2, 3):
        assert run("apply", base, *deltas[:count], "-o", tmp_path / f"out{count}") == 0
        assert same_bits(tensors_of(tmp_path / f"out{count}"), states[count])
    words = "delta 2 does not follow on the one before: the values of layer.0 are not those of its base; "
    assert mistake(capsys, "apply", base, deltas[0], deltas[0], "-o", tmp_path / "no").startswith(words)
    words = "delta 2 does not follow on the one before: layer.0 is float32 (32, 7), in its base float32 (30, 7)"
    assert mistake(capsys, "apply", base, deltas[2], deltas[0], "-o", tmp_path / "no", "--force") == words


def test_a_chain_with_new_and_removed_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = torch.ones(3), torch.ones(40)
    states = [{"a": one, "b": two}, {"a": one, "n": two}, {"n": two * 2, "m": one}, {"m": one * 2}]
    states += [{"a": one, "m": one * 2}]
    files = [single(tmp_path / f"state{i}", state) for i, state in enumerate(states)]
    for i in range(4):
        run("diff", files[i], files[i + 1], "-o", tmp_path / f"delta{i}")
    deltas = [tmp_path / f"delta{i}" for i in range(4)]
    assert run("apply", files[0], *deltas[:3], "-o", tmp_path / "out") == 0
    assert same_bits(tensors_of(tmp_path / "out"), states[3])
    together = Delta.of(chain([Delta.load(delta) for delta in deltas[:3]]))
    assert together.removed == ("a", "b")
    assert together.names == ("m",)
    assert together.after == Delta.load(deltas[2]).after
    words = "delta 4 brings a back, which was removed; apply the deltas one by one"
    assert mistake(capsys, "apply", files[0], *deltas, "-o", tmp_path / "no") == words
    words = "delta 2 does not follow on the one before: a is not in its base"
    assert mistake(capsys, "apply", files[0], deltas[0], deltas[3], "-o", tmp_path / "no") == words
    words = "the delta is for another base: it has m, which is missing here"
    assert mistake(capsys, "apply", files[0], deltas[2], deltas[2], "-o", tmp_path / "no", "--force") == words
    words = "delta 2 does not follow on the one before: n is only in its base"
    assert mistake(capsys, "apply", files[2], deltas[2], deltas[2], "-o", tmp_path / "no", "--force") == words
    assert not (tmp_path / "no").exists()


def test_tied_tensors_stand_in_a_file_under_any_of_their_names(tmp_path: Path) -> None:
    """In memory they are one; a file has the one name or the other, or both."""
    base = Tied()
    first, second = tuned(base, 1), tuned(tuned(base, 1), 2)
    deltas = [tmp_path / "delta1", tmp_path / "delta2"]
    Delta.diff(base, first).save(deltas[0])
    state, result = base.state_dict(), second.state_dict()
    unnamed = {name: tensor for name, tensor in state.items() if name != "embedding.weight"}
    later = {n: t for n, t in first.state_dict().items() if n != "embedding.weight"}
    last = {n: t for n, t in result.items() if n != "embedding.weight"}
    Delta.diff(later, last).save(deltas[1])
    for i, names in enumerate([state.keys(), unnamed.keys(), state.keys() - {"output.weight"}]):
        file = single(tmp_path / f"base{i}", {name: state[name].clone() for name in names})
        assert run("apply", file, *deltas, "-o", tmp_path / f"out{i}") == 0
        assert same_bits(tensors_of(tmp_path / f"out{i}"), {name: result[name] for name in names})
        assert run("merge", file, deltas[0], deltas[0], "--how=mean", "-o", tmp_path / f"merged{i}") == 0
        assert same_bits(tensors_of(tmp_path / f"merged{i}"), {name: first.state_dict()[name] for name in names})


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_merge_gives_what_merge_gives_in_memory(tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {"a": torch.randn(30, 7), "b": torch.randn(90).bfloat16(), "c": torch.arange(5)}
    base = single(tmp_path / "base", before)
    for i in (1, 2):
        after = {name: tensor.clone() for name, tensor in before.items()}
        after["a"][i : 3 * i] += i
        after["b"][5 * i :] *= 3
        run("diff", base, single(tmp_path / f"tuned{i}", after), "-o", tmp_path / f"delta{i}")
    files = [tmp_path / "delta1", tmp_path / "delta2"]
    merged, _ = merge([Delta.load(file) for file in files], before, how)  # type: ignore[arg-type]
    merged.apply_(before)
    capsys.readouterr()
    assert run("merge", base, *files, "--how", how, "-o", tmp_path / "out") == 0
    assert same_bits(tensors_of(tmp_path / "out"), before)
    assert "the deltas meet in 87 entries of 2 tensors, 80 of them in b" in capsys.readouterr().out


def test_a_delta_of_a_classifier_on_the_model_below_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers gives the tensors of a BertModel other names in a BertForSequenceClassification."""
    tuned = tiny_bert().float()
    assert isinstance(tuned, BertForSequenceClassification)
    tuned.bert.save_pretrained(tmp_path / "base")
    extra = load_file(tmp_path / "base" / "model.safetensors") | {"embeddings.position_ids": torch.arange(12)}
    save_file(extra, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    head = ["classifier.weight", "classifier.bias"]
    mask = top_k(random_scores({name: p.shape for name, p in weights(tuned).items()}, 3), 0.1, head)
    assert isinstance(mask, Seeded)
    sparse = sparsify(tuned, mask)
    optimiser = torch.optim.SGD(sparse.parameters(), lr=0.1)
    for values in sparse.parameters():
        values.grad = torch.ones_like(values)
    optimiser.step()
    sparse.delta(fresh=head).save(tmp_path / "delta")
    tuned.save_pretrained(tmp_path / "tuned")
    capsys.readouterr()
    assert run("apply", tmp_path / "base", tmp_path / "delta", "-o", tmp_path / "out") == 0
    assert "the delta's base does not have it: embeddings.position_ids\n" in capsys.readouterr().out
    assert same_bits(tensors_of(tmp_path / "out"), tuned.state_dict())
    again = BertForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=tuned.num_labels)
    assert same_bits(again, tuned)

    assert run("diff", tmp_path / "base", tmp_path / "tuned", "-o", tmp_path / "diff") == 0
    assert run("apply", tmp_path / "base", tmp_path / "diff", "-o", tmp_path / "out2") == 0
    assert same_bits(tensors_of(tmp_path / "out2"), tuned.state_dict())
    assert (
        run("merge", tmp_path / "base", tmp_path / "delta", tmp_path / "delta", "-o", tmp_path / "out3", "--how=mean")
        == 0
    )
    assert same_bits(tensors_of(tmp_path / "out3"), tuned.state_dict())

    below = BertModel.from_pretrained(tmp_path / "base")
    below.save_pretrained(tmp_path / "below")
    assert run("diff", tmp_path / "tuned", tmp_path / "below", "-o", tmp_path / "shorter") == 0
    assert run("apply", tmp_path / "tuned", tmp_path / "shorter", "-o", tmp_path / "out4") == 0
    assert same_bits(tensors_of(tmp_path / "out4"), below.state_dict())


def names_of(*names: str) -> Checkpoint:
    tensor = StoredTensor(Path("f"), torch.float32, (), 0, 4)
    return Checkpoint(Path("f"), {}, dict.fromkeys(names, tensor))


@pytest.mark.parametrize(
    ("own", "wanted", "found"),
    [
        ("a.w b.w", "x.a.w x.b.w head", "x.a.w x.b.w"),
        ("x.a.w x.b.w head", "a.w b.w", "a.w b.w head"),
        ("a.w b.w", "a.w b.w x.a.w x.b.w", "a.w b.w"),
        ("a.w b.w p", "x.y.a.w x.y.b.w", "x.y.a.w x.y.b.w p"),
        ("a.w b.w p", "x.a.w x.b.w p", "x.a.w x.b.w p"),
        ("a.w b.w", "c.w d", "a.w b.w"),
        ("a.w x.a.w", "x.a.w", "a.w x.a.w"),
        ("a b x.a", "x.a x.b y", "x.a x.b x.a"),
        ("", "a.w", ""),
        ("a.w", "", "a.w"),
    ],
)
def test_names_that_differ_in_one_prefix(own: str, wanted: str, found: str) -> None:
    if len(set(found.split())) < len(found.split()):
        found = own  # two tensors cannot have one name
    assert list(names_of(*own.split()).named_as(wanted.split()).tensors) == found.split()


def test_info_says_what_is_in_a_delta(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {"a": torch.zeros(1000), "b": torch.zeros(8).bfloat16(), "c": torch.zeros(4)}
    after = {"a": torch.zeros(1000), "b": torch.ones(8).bfloat16(), "d": torch.ones(3, 1)}
    after["a"][torch.arange(0, 1000, 100)] = 1
    delta = Delta.diff(before, after)
    delta.save(tmp_path / "delta")
    assert run("info", tmp_path / "delta") == 0
    size = (tmp_path / "delta").stat().st_size
    assert capsys.readouterr().out.splitlines() == [
        f"file       {tmp_path / 'delta'}, version 2",
        "entries    21 of 1,011, 2.08 %",
        "tensors    3 of 3 have new values, 2 of them all (1 are new); 1 removed",
        "types      BF16 in 1, F32 in 2",
        f"bytes      {size:,}: values 68, positions 10, header {size - 78:,}",
        "positions  8.00 bits each; with as many in each tensor, at random, 7.78",
        f"base       {delta.before}",
        f"result     {delta.after}; a delta that follows on this one has it as its base",
        "densest       100 % of b (8,)",
        "densest       100 % of d (3, 1)",
        "densest         1 % of a (1000,)",
    ]
    Delta.diff(before, before).save(tmp_path / "none")
    run("info", tmp_path / "none")
    assert "\npositions  none\n" in capsys.readouterr().out


def test_info_names_the_seed_of_a_random_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(9, 9))
    sparse = sparsify(net, top_k(random_scores({name: p.shape for name, p in net.named_parameters()}, 77), 0.3))
    sparse.delta().save(tmp_path / "delta")
    run("info", tmp_path / "delta")
    assert "\npositions  drawn by seed 77\n" in capsys.readouterr().out


def test_mistakes_are_one_line_and_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model(1)
    base, tuned = folder(tmp_path / "base", before, 3), single(tmp_path / "tuned", changed(before, 2))
    delta, other, empty = tmp_path / "delta", single(tmp_path / "other", changed(before, 3)), tmp_path / "empty"
    run("diff", base, tuned, "-o", delta)
    single(tmp_path / "less", {name: tensor for name, tensor in before.items() if name != "layer.1"})
    single(tmp_path / "wider", before | {"layer.1": before["layer.1"].half()})
    empty.mkdir()
    (tmp_path / "text").write_text("not a model")
    here = sorted(tmp_path.rglob("*"))
    out, missing, text = tmp_path / "out", tmp_path / "missing", tmp_path / "text"
    less, wider, no = tmp_path / "less.safetensors", tmp_path / "wider.safetensors", "the delta is for another base: "
    for command, words in {
        f"apply {base} {delta} -o {tuned}": f"{tuned} exists; give another -o, or delete it first",
        f"diff {base} {tuned} -o {delta}": f"{delta} exists; give another -o, or delete it first",
        f"merge {base} {delta} -o {empty}": f"{empty} exists; give another -o, or delete it first",
        f"apply {base} {delta} -o {missing}/out": f"{missing}/out: there is no folder {missing}; make it first",
        f"apply {missing} {delta} -o {out}": f"{missing}: No such file or directory",
        f"apply {base} {missing} -o {out}": f"{missing}: No such file or directory",
        f"apply {empty} {delta} -o {out}": f"{empty} holds neither model.safetensors nor "
        "model.safetensors.index.json; save the model with safetensors",
        f"apply {base} {tuned} -o {out}": f"{tuned} is no delta, but another safetensors file",
        f"apply {text} {delta} -o {out}": f"{text} is not a safetensors file, or damaged: its first eight bytes are no "
        "header's length",
        f"apply {tuned} {delta} -o {out}": "already applied: the model has the delta's result",
        f"apply {other} {delta} -o {out}": f"{no}the values of layer.2 are not those of the delta's base; "
        "--force applies it all the same",
        f"apply {less} {delta} -o {out}": f"{no}it has layer.1, which is missing here",
        f"apply {wider} {delta} -o {out} --force": f"{no}layer.1 is float16 (40,), the delta's base has bfloat16 (40,)",
        f"diff {base} {wider} -o {out}": "layer.1 is bfloat16 (40,) before and float16 (40,) after; a delta keeps the "
        "type, and of the shape all but more rows",
        f"merge {other} {delta} {delta} -o {out}": "delta 1 is for another base: layer.2 is int64 (5, 4, 3, 3), the "
        "delta's base has other values",
    }.items():
        assert mistake(capsys, *command.split()) == words
        assert sorted(tmp_path.rglob("*")) == here


def test_force_applies_to_other_values(tmp_path: Path) -> None:
    before, other = model(1), changed(model(1), 3)
    run(
        "diff",
        single(tmp_path / "base", before),
        single(tmp_path / "tuned", changed(before, 2)),
        "-o",
        tmp_path / "delta",
    )
    base = single(tmp_path / "other", other)
    assert run("apply", base, tmp_path / "delta", "-o", tmp_path / "out", "--force") == 0
    Delta.load(tmp_path / "delta").apply_(other, strict=False)
    assert same_bits(tensors_of(tmp_path / "out"), other)


def test_a_delta_that_contradicts_itself_gives_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {"a": torch.zeros(40)}
    delta = Delta.diff(before, {"a": (torch.arange(40) % 9).float()})
    delta.values("a")[3] = 5
    delta.save(tmp_path / "delta")
    base = single(tmp_path / "base", before)
    words = "the delta contradicts itself: its values of a do not give its result"
    assert mistake(capsys, "apply", base, tmp_path / "delta", "-o", tmp_path / "out") == words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "delta"]


@contextmanager
def room(size: int) -> Iterator[None]:
    """This process may write files of so many bytes, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {f"layer.{i}": torch.randn(5000) for i in range(6)}
    base, tuned = (FORMS[form](tmp_path / name, changed(before, seed)) for seed, name in enumerate(["base", "tuned"]))
    run("diff", base, tuned, "-o", tmp_path / "delta")
    here = sorted(tmp_path.rglob("*"))
    for arguments in [("apply", base, tmp_path / "delta"), ("diff", base, tuned), ("merge", base, tmp_path / "delta")]:
        with room(9000):
            assert mistake(capsys, *arguments, "-o", tmp_path / "out") == f"{tmp_path / 'out'}: File too large"
        assert sorted(tmp_path.rglob("*")) == here


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = folder(tmp_path / "base", model(1), 3), folder(tmp_path / "tuned", changed(model(1), 2), 3)
    run("diff", base, tuned, "-o", tmp_path / "delta")
    here = sorted(tmp_path.rglob("*"))
    with mock.patch("fishexp.delta.patch.write_index", side_effect=KeyboardInterrupt):
        assert run("apply", base, tmp_path / "delta", "-o", tmp_path / "out") == 130
    assert capsys.readouterr().err == "fishexp.delta: interrupted\n"
    assert sorted(tmp_path.rglob("*")) == here
