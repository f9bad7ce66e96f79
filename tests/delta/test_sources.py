"""What a delta is made of: models, dicts, files, folders as Hugging Face writes them, and a training."""

import copy
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fishexp import Delta, sparsify
from fishexp.delta.checkpoint import INDEX, StoredTensor
from fishexp.delta.fingerprint import DTYPES, bits, fingerprint
from fishexp.delta.sources import source
from tests.support.cases import OPTIMISERS, conv_net, images, sentences, steps, tiny_bert
from tests.support.checks import refusal
from tests.support.delta_cases import MODELS, Tied, noise, same_bits, snapshot, tuned
from tests.support.modules import random_mask

CASES = {"conv": (conv_net, images), "bert": (tiny_bert, sentences)}


def trained(case: str, density: float = 0.3) -> tuple[nn.Module, nn.Module, Any, dict[str, Tensor]]:
    """A model before and after some steps on its kept entries, these, and their mask."""
    build, data = CASES[case]
    model = build()
    mask = random_mask(model, density)
    if case == "conv":  # whose kept entries are held tap by tap, not in the weight's order
        generator = torch.Generator().manual_seed(1)
        mask["0.weight"] = torch.rand(mask["0.weight"].shape, generator=generator) < density
        mask["1.bias"][:] = False
    sparse = sparsify(model, mask)
    steps(model, OPTIMISERS["nesterov"](sparse.parameters()), data())
    return build(), model, sparse, mask


@pytest.mark.parametrize("case", CASES)
def test_training_gives_a_delta_of_the_kept_entries(case: str, tmp_path: Path) -> None:
    base, model, sparse, mask = trained(case)
    delta = sparse.delta()
    delta.save(tmp_path / "d")
    delta = Delta.load(tmp_path / "d")
    for name, kept in mask.items():
        assert (name in delta.names) == bool(kept.any())
        if kept.any():
            moved = bits(base.state_dict()[name]) != bits(model.state_dict()[name])
            assert not (moved & ~kept).any()
            assert delta.positions(name).tolist() == moved.flatten().nonzero().flatten().tolist()
            assert torch.equal(delta.values(name), model.state_dict()[name][moved])
    found = delta.mask(base)
    assert found.keys() == mask.keys()
    assert all(torch.equal(found[name], mask[name]) for name in mask)
    other = Delta.diff(base, model)
    assert (delta.before, delta.after) == (other.before, other.after)
    undo = delta.apply_(base)
    assert same_bits(base, model)
    undo.revert_()
    assert same_bits(base, CASES[case][0]())


def test_kept_entries_are_part_of_the_delta_if_they_did_not_move_too() -> None:
    model = conv_net()
    mask = random_mask(model)
    delta = sparsify(model, mask).delta()
    assert delta.before == delta.after == Delta.diff(model, model).before
    assert delta.kept == sum(int(kept.sum()) for kept in mask.values())


def test_a_buffer_is_part_of_the_delta_if_it_moved() -> None:
    base, model, sparse, _ = trained("conv")
    assert not [name for name in sparse.delta().names if name.startswith("1.running") or "batches" in name]
    model.train()(images()[0])
    delta = sparse.delta()
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} <= set(delta.names)
    delta.apply_(base)
    assert same_bits(base, model)


def test_deltas_of_a_chain_begin_where_the_last_one_ended() -> None:
    base, model, sparse, _ = trained("conv")
    first = sparse.delta()
    sparse.rebase()
    assert sparse.delta().before == first.after == sparse.delta().after
    steps(model, torch.optim.SGD(sparse.parameters(), 0.1), images())
    model.train()(images()[0])
    second = sparse.delta()
    assert second.before == first.after != second.after
    undos = [delta.apply_(base) for delta in (first, second)]
    assert same_bits(base, model)
    for undo in reversed(undos):
        undo.revert_()
    assert same_bits(base, conv_net())


def test_another_mask_is_another_delta_on_the_last_state() -> None:
    base, model, sparse, _ = trained("conv")
    first = sparse.delta()
    again = sparsify(model, random_mask(conv_net(), 0.1))
    steps(model, torch.optim.SGD(again.parameters(), 0.1), images())
    second = again.delta()
    assert second.before == first.after
    first.apply_(base)
    second.apply_(base)
    assert same_bits(base, model)


def test_what_changed_outside_the_mask_is_of_the_base() -> None:
    base, model, sparse, mask = trained("conv")
    frozen = next(name for name, kept in mask.items() if not kept.any())
    with torch.no_grad():
        model.get_parameter(frozen).add_(1)
        partly = model.get_parameter("5.weight")
        partly[~mask["5.weight"]] += 1
    delta = sparse.delta()
    assert f"values of {frozen} are not those" in refusal(delta.apply_, base)
    with torch.no_grad():
        base.get_parameter(frozen).add_(1)
        base.get_parameter("5.weight")[~mask["5.weight"]] += 1
    delta.apply_(base)
    assert same_bits(base, model)


def test_a_head_that_the_base_lacks_is_stored_whole() -> None:
    base, model, sparse, _ = trained("bert")
    head = ["classifier.weight", "classifier.bias"]
    delta = sparse.delta(fresh=head)
    assert not set(head) & delta.base.keys()
    assert all(delta.moved[name].positions is None for name in head)
    with torch.no_grad():
        base.get_parameter("classifier.weight").normal_()
    before = snapshot(base)
    undo = delta.apply_(base)
    assert same_bits(base, model)
    undo.revert_()
    assert same_bits(base, before)
    without = {name: tensor for name, tensor in before.items() if name not in head}
    delta.apply_(without)
    assert same_bits(without, model)
    sparse.rebase()
    assert sparse.delta().before == delta.after
    assert (
        refusal(sparse.delta, fresh=["clasifier.weight"])
        == "fresh names clasifier.weight, which the model does not have"
    )


@pytest.mark.parametrize("move", [lambda m: m.to(torch.float32), lambda m: m.to(memory_format=torch.channels_last)])
def test_a_model_that_goes_elsewhere_takes_its_delta_along(move: Any) -> None:
    base, model, sparse, _ = trained("conv")
    move(model)
    move(base)
    sparse.delta().apply_(base)
    assert same_bits(base, model)


def test_weights_loaded_anew_are_found_under_their_names() -> None:
    _, model, sparse, mask = trained("conv")
    sparse.rebase()
    base = copy.deepcopy(model)
    model.load_state_dict(snapshot(tuned(model, 1)), assign=True)
    with torch.no_grad():
        for name, kept in mask.items():
            model.get_parameter(name)[~kept] = base.get_parameter(name)[~kept]
    sparse.delta().apply_(base)
    assert same_bits(base, model)
    model.load_state_dict(snapshot(tuned(model, 2)), assign=True)
    sparse.rebase()
    assert sparse.delta().before == Delta.diff(model, model).before


def test_parameters_of_one_memory_are_no_two() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model.get_parameter("0.weight").detach())
    mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    assert "1.weight and 0.weight are two parameters in the same memory" in refusal(sparsify(model, mask).delta)


def folder(path: Path, found: dict[str, Tensor], shards: int) -> Path:
    """A checkpoint as Hugging Face writes it."""
    path.mkdir()
    if shards == 1:
        save_file(found, path / "model.safetensors")
        return path
    places = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(found)}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in found.items() if places[name] == file}, path / file)
    about = {"metadata": {"total_size": 1.5}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(about))
    return path


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_files_and_models_give_the_same_delta(name: str, shards: int, tmp_path: Path) -> None:
    base = MODELS[name]()
    after = tuned(base, 1)
    expected = Delta.diff(base, after)
    paths = []
    for number, model in enumerate((base, after)):
        found = {key: tensor.contiguous() for key, tensor in snapshot(model).items() if key not in expected.tied}
        paths.append(folder(tmp_path / str(number), found, shards))
    delta = Delta.diff(*paths)
    assert (delta.before, delta.after, set(delta.names)) == (expected.before, expected.after, set(expected.names))
    delta.apply_(base)
    assert same_bits(base, after)


@pytest.mark.parametrize("kept", ["embedding.weight", "output.weight"])
def test_a_file_has_tied_tensors_once_or_twice(kept: str, tmp_path: Path) -> None:
    base = Tied()
    after = tuned(base, 1)
    both = snapshot(base)
    save_file(both, tmp_path / "both")
    save_file({name: t for name, t in both.items() if "weight" not in name or name == kept}, tmp_path / "one")
    for file in ("both", "one"):
        delta = Delta.diff(tmp_path / file, after)
        assert set(delta.base) == {"embedding.weight", "output.bias", "steps"}
        model = copy.deepcopy(base)
        delta.apply_(model)
        assert same_bits(model, after)
    loose = Delta.diff(
        tmp_path / "one", {**{n: t for n, t in snapshot(after).items() if "weight" not in n}, kept: both[kept]}
    )
    loose.apply_(model := copy.deepcopy(base))
    assert torch.equal(model.output.weight, base.output.weight)


class Extra(nn.Linear):
    def get_extra_state(self) -> object:
        return {"version": 3}


def test_extra_state_is_no_tensor_and_empty_tensors_are_not_tied() -> None:
    model = Extra(2, 2)
    assert "_extra_state" in model.state_dict()
    assert set(Delta.diff(model, model).base) == {"weight", "bias"}
    empty = {"a": torch.empty(0), "b": torch.empty(0)}
    delta = Delta.diff(empty, empty)
    assert (set(delta.base), delta.tied) == ({"a", "b"}, {})


def test_every_type_is_read_as_safetensors_writes_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    some = {str(dtype): noise(dtype, (3, 5), generator) for dtype in DTYPES.values()}
    some |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 3), "vector": torch.arange(4)}
    save_file(some, tmp_path / "all")
    found = source(tmp_path / "all")
    assert found.fingerprints() == {name: fingerprint(some[name]) for name in found.tensors}
    assert same_bits({name: tensor.read().view(tensor.kind.shape) for name, tensor in found.tensors.items()}, some)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    one = {"x": torch.ones(2)}
    assert "holds neither model.safetensors nor model.safetensors.index.json" in refusal(Delta.diff, tmp_path, one)
    index = tmp_path / INDEX
    for text in ("", "[]", "{}", '{"weight_map": 3}', "[" * 10**5, '{"weight_map": {"x": ["a"]}}'):
        index.write_text(text)
        assert "is damaged: it has no weight_map" in refusal(Delta.diff, tmp_path, one)
    for name in ("../x", "/etc/passwd", "", ".", "..", "a/b", "a\0b", 3):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        assert "which is no file of the folder" in refusal(Delta.diff, tmp_path, one)
    index.write_text(json.dumps({"weight_map": {"x": "missing"}}))
    with pytest.raises(FileNotFoundError):
        Delta.diff(tmp_path, one)
    index.write_text(json.dumps({"weight_map": {"x": "a", "y": "b"}}))
    save_file(one, tmp_path / "a")
    save_file(one, tmp_path / "b")
    assert "the tensor 'x' has no valid name, or is in another file as well" in refusal(Delta.diff, tmp_path, one)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    assert "its header speaks of" in refusal(Delta.diff, tmp_path / "a", one)


def test_tensors_of_files_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few at once, by the threads that hash them; never all."""
    save_file({f"x{i}": torch.full((1000,), float(i)) for i in range(40)}, tmp_path / "a")
    after = {f"x{i}": torch.full((1000,), float(i % 7)) for i in range(40)}
    alive, most = [0], [0]
    pieces = StoredTensor.pieces

    def counted(self: StoredTensor) -> Iterator[Tensor]:
        for piece in pieces(self):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            weakref.finalize(piece, lambda: alive.__setitem__(0, alive[0] - 1))
            yield piece

    monkeypatch.setattr(StoredTensor, "pieces", counted)
    delta = Delta.diff(tmp_path / "a", after)
    assert len(delta.names) == 33
    assert 1 <= most[0] <= 4
