"""Small files that would cost much, or bring along what is not theirs: they end in a line, soon."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fishexp.delta import Delta, Stack, merge, merge_tasks
from fishexp.delta.apply import fit
from fishexp.delta.checkpoint import Checkpoint, StoredTensor
from fishexp.delta.content import Content, SeededPositions, SeedMask, TensorDelta
from fishexp.delta.diff import common_ties
from fishexp.delta.fingerprint import Fingerprint, fingerprint
from fishexp.delta.patch import find_patches
from fishexp.delta.sources import Source
from fishexp.masks.random_masks import STEPS, ScoredParameter, SeedRecipe
from tests.support.checks import refusal
from tests.support.delta_cases import dumped, joined, same_bits, snapshot, split, tuned
from tests.support.delta_commands import mistake, run


@contextmanager
def soon(seconds: float = 10.0) -> Iterator[None]:
    """What took minutes ends in a few seconds of this process, not of the clock, which runs on where others work."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


def new_values(values: Tensor) -> TensorDelta:
    return TensorDelta(tuple(values.shape), None, values.flatten(), fingerprint(values).sha256 or "")


def test_names_of_many_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each way to cut a name is looked at once at most, and a name has an end."""
    long = ".".join("a" * 20_001)
    save_file({long: torch.zeros(2)}, tmp_path / "long")
    many = {f"{i}.{'b.' * 2040}": torch.zeros(1) for i in range(300)}
    save_file(many, tmp_path / "many")
    other = {f"x.{name[:-1]}": tensor for name, tensor in many.items()}
    save_file(other, tmp_path / "other")
    with soon():
        assert " has no valid name" in mistake(
            capsys, "diff", tmp_path / "long", tmp_path / "long", "-o", tmp_path / "d"
        )
        assert refusal(Delta.diff, {long: torch.zeros(2)}, {}).endswith("or has characters without a shape")
        assert run("diff", tmp_path / "many", tmp_path / "other", "-o", tmp_path / "d") == 0
        assert mistake(capsys, "apply", tmp_path / "other", tmp_path / "d", "-o", tmp_path / "out").endswith(
            "missing here"
        )


def drawn_by_seed(shape: tuple[int, ...]) -> Delta:
    """A delta of a few megabytes whose positions are among billions, which nobody has drawn yet."""
    count = 1 << 20
    recipe = SeedRecipe(0, STEPS - 1, 0, "0" * 64)
    mask = SeedMask(recipe, [ScoredParameter("weight", shape, False)], {"weight": count})
    moved = TensorDelta(shape, SeededPositions(mask, "weight"), torch.zeros(count), "1" * 64)
    base = {"weight": Fingerprint(torch.float32, shape, "2" * 64), "bias": fingerprint(torch.zeros(3))}
    return Delta.of(Content(base, {"weight": moved}))


def test_nothing_is_drawn_for_a_base_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = drawn_by_seed((1 << 17, 1 << 17))
    then = Content(first.result, drawn_by_seed((1 << 17, 1 << 17)).moved)
    for name, delta in {"d": first, "then": Delta.of(then)}.items():
        delta.save(tmp_path / name)
    assert (tmp_path / "d").stat().st_size < 5_000_000
    model = nn.Linear(4, 3)
    save_file(snapshot(model), tmp_path / "base")
    words = "the delta is for another base: weight is float32 (3, 4), the delta's base has float32 (131072, 131072)"
    with soon():
        assert run("info", tmp_path / "d") == 0
        for files in ["d"], ["d", "then"]:
            paths = [tmp_path / name for name in files]
            for more in [], ["--force"]:
                assert mistake(capsys, "apply", tmp_path / "base", *paths, "-o", tmp_path / "out", *more) == words
            for more in [], ["--keep-heads"]:
                found = mistake(capsys, "merge", tmp_path / "base", *paths, "-o", tmp_path / "out", *more)
                assert "delta 1 is for another base: " in found or "no delta has a head" in found
        delta = Delta.load(tmp_path / "d")
        stack = Stack(model)
        for use in (delta.apply_, delta.mask, lambda _: stack.push(delta)):
            assert refusal(use, model) == words


def test_a_head_that_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    """Its shape is in the mask of all tensors, those of the backbone too."""
    found = drawn_by_seed((1 << 17, 1 << 17))
    delta = found.named_as({"weight": "classifier.weight"})
    with soon():
        words = "delta 1 is for another base: classifier.weight is missing, the delta's base has "
        assert refusal(merge_tasks, [delta], {"bias": torch.zeros(3)}).startswith(words)


MANY = 30_000


def test_many_names_that_are_new_tied_removed_or_chained() -> None:
    """Twice as many cost twice as much, not four times."""
    one = torch.ones(1)
    new = Content(
        {}, dict.fromkeys((f"n{i}" for i in range(MANY)), new_values(one)), (), {f"t{i}": f"n{i}" for i in range(MANY)}
    )
    target: dict[str, Tensor] = {}
    with soon():
        found = fit(new, target).tensors
    assert [tensor.names for tensor in found[:2]] == [("n0", "t0"), ("n1", "t1")]

    base = dict.fromkeys((f"b{i}" for i in range(MANY)), fingerprint(one))
    less = Content(base, {}, tuple(sorted(base)))
    stored = Checkpoint(Path("f"), {}, dict.fromkeys(base, StoredTensor(Path("f"), torch.float32, (1,), 0, 4)))
    with soon(3):
        assert not less.result
        assert find_patches(stored, less) == ({}, [])
        assert fit(less, {name: one.clone() for name in base}).removed == list(base)

    names = [f"{i:05}" for i in range(MANY)]
    chains = [{f"t{name}": first for name, first in zip(names, names[i:], strict=False)} for i in (0, 1)]
    with soon():
        assert len(set(common_ties(Source({}), Source({}), *chains).values())) == 1


def test_a_tensor_that_a_file_could_not_be_read_with(tmp_path: Path) -> None:
    """`__metadata__` is a word of the format: a file with a tensor of that name is none."""
    Delta.diff({"a": torch.ones(3)}, {"a": torch.ones(3), "b": torch.ones(2)}).save(tmp_path / "d")
    header, about, vectors = split((tmp_path / "d").read_bytes())
    about["moved"]["__metadata__"] = about["moved"].pop("b")
    (tmp_path / "d").write_bytes(joined(header, about, vectors))
    assert refusal(Delta.load, tmp_path / "d").endswith("'__metadata__' is no name of a tensor")


def contradictory(before: Any, after: Any, name: str) -> Delta:
    """A delta with another value than the one of which its digest was made."""
    delta = Delta.diff(before, after)
    delta.values(name)[0] += 1
    return delta


def test_a_delta_that_contradicts_itself_is_not_merged_or_pushed() -> None:
    model = nn.Linear(40, 3)
    before = snapshot(model)
    one, two = tuned(model, 1, 0.05), tuned(model, 2, 0.05)
    good, bad = Delta.diff(model, one), contradictory(model, two, "weight")
    words = "the delta contradicts itself: its values of weight do not give its result"
    for deltas in ([good, bad], [bad], [bad, bad]):
        assert refusal(merge, deltas, model) == words
    assert refusal(merge_tasks, [bad, Delta.diff(before, before | {"new": torch.ones(2)})], before) == words
    stack = Stack(model)
    assert refusal(stack.push, bad) == words
    stack.push(good)
    assert refusal(stack.push, bad, "last") == words
    assert same_bits(model, one)
    stack.pop()
    assert same_bits(model, before)
    follows = contradictory(one, two, "bias")
    stack.push(good)
    assert refusal(stack.push, follows) == words.replace("weight", "bias")
    stack.switch(Delta.diff(before, two))
    assert same_bits(model, two)


def test_a_good_delta_is_pushed_over_another_one() -> None:
    """What is compared is its result on the base, whatever stands on the model by then."""
    model = nn.Linear(40, 3)
    before = snapshot(model)
    results = [tuned(model, seed, 0.3) for seed in (1, 2, 3)]
    deltas = [Delta.diff(model, result) for result in results]
    stack = Stack(model)
    for delta in deltas:
        stack.push(delta, "last")
    stack.switch(deltas[1])
    assert same_bits(model, results[1])
    stack.switch(None)
    assert same_bits(model, before)


def folder_with_links(tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    base = tmp_path / "base"
    (base / "sub").mkdir(parents=True)
    (base / ".git").mkdir()
    (base / ".git" / "config").write_text("hidden")
    (base / "own.txt").write_text("own")
    save_file({"a": torch.zeros(40)}, base / "model.safetensors")
    for name, target in {
        "here": ".", "sub/up": "..", "folder": "../secret", "file.txt": "../secret/key", "absolute": "/etc/hostname",
        "loop": "loop", "nowhere": "missing", "git.txt": ".git/config", "sub/inside.txt": "../own.txt",
        "vocab.txt": "../secret/key", "tokenizer_config.json": "own.txt",
    }.items():  # fmt: skip
        (base / name).symlink_to(target)
    os.mkfifo(base / "pipe")
    return base


def test_links_in_a_base_lead_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = folder_with_links(tmp_path)
    Delta.diff({"a": torch.zeros(40)}, {"a": torch.eye(40)[3]}).save(tmp_path / "d")
    with soon():
        assert run("apply", base, tmp_path / "d", "-o", tmp_path / "out") == 0
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    files = {"sub", "sub/inside.txt", "own.txt", "model.safetensors", "tokenizer_config.json"}
    assert found == files
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert (tmp_path / "out" / "sub" / "inside.txt").read_text() == "own"
    links = ["absolute", "file.txt", "folder", "git.txt", "here", "loop", "nowhere", "sub/up", "vocab.txt"]
    assert capsys.readouterr().out.splitlines()[0] == (
        f"left out links to folders or out of BASE: {', '.join(map(repr, links))}"
    )


def test_the_hubs_cache_is_a_folder_of_links_that_are_its_own(tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    base = cache / "snapshots" / "1234"
    base.mkdir(parents=True)
    save_file({"a": torch.zeros(40)}, cache / "blobs" / "weights")
    (cache / "blobs" / "config").write_text('{"model_type": "bert"}')
    (tmp_path / "secret").write_text("secret")
    for name, target in {"model.safetensors": "weights", "config.json": "config", "note.txt": "../../secret"}.items():
        (base / name).symlink_to(Path("../../blobs") / target)
    Delta.diff({"a": torch.zeros(40)}, {"a": torch.eye(40)[3]}).save(tmp_path / "d")
    assert run("apply", base, tmp_path / "d", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "config.json").read_text() == '{"model_type": "bert"}'
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["a"], torch.eye(40)[3])


def test_a_configuration_beside_a_delta_that_is_a_link_or_huge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "bert"}')
    save_file({"a": torch.zeros(40)}, base / "model.safetensors")
    (tmp_path / "d").mkdir()
    Delta.diff({"a": torch.zeros(40)}, {"a": torch.eye(40)[3]}).save(tmp_path / "d" / "delta")
    (tmp_path / "secret").write_text('{"model_type": "bert", "secret": 1}')
    (tmp_path / "d" / "config.json").symlink_to(tmp_path / "secret")
    assert run("apply", base, tmp_path / "d" / "delta", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "config.json").read_text() == '{"model_type": "bert"}'
    (tmp_path / "d" / "config.json").unlink()
    with (tmp_path / "d" / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    found = mistake(capsys, "apply", base, tmp_path / "d" / "delta", "-o", tmp_path / "no")
    assert found == f"{tmp_path / 'd' / 'config.json'} has more than 10,000,000 bytes; it is no configuration"


def test_a_head_of_more_rows_than_there_are_labels_in_the_world(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of no entries take no bytes of a file."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    save_file({"a": torch.zeros(40)}, base / "model.safetensors")
    rows = torch.empty(1 << 40, 0)
    Delta.of(Content({"a": fingerprint(torch.zeros(40))}, {"classifier.weight": new_values(rows)})).save(tmp_path / "d")
    with soon():
        assert run("apply", base, tmp_path / "d", "-o", tmp_path / "out") == 0
    assert "left out config.json: 1,099,511,627,776 labels are too many" in capsys.readouterr().out


def test_a_line_does_not_name_thousands_of_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({f"t{i:04}": torch.zeros(1) for i in range(5000)}, tmp_path / "base")
    Delta.diff({"t0000": torch.zeros(1)}, {"t0000": torch.ones(1)}).save(tmp_path / "d")
    assert run("apply", tmp_path / "base", tmp_path / "d", "-o", tmp_path / "out") == 0
    assert " t0019, t0020 and 4,979 more\n" in capsys.readouterr().out


def test_a_checksum_is_no_promise() -> None:
    """The helpers of these tests give a file that was edited the checksum that it needs."""
    about = {"version": 1}
    data = joined({}, about, b"")
    assert json.loads(data[8:])["__metadata__"]["fishexp.delta"] == dumped(
        about | {"checksum": hashlib.sha256(dumped(about).encode()).hexdigest()}
    )
