"""Whatever is done to a delta file: an error in one line, or the delta that it was; never half a model."""

import contextlib
import io
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fishexp import Delta, DeltaError
from fishexp.delta import Stack
from fishexp.delta.__main__ import main
from fishexp.delta.fingerprint import bits, fingerprint
from fishexp.delta.names import match
from fishexp.delta.sources import source
from fishexp.masks import top_k
from fishexp.masks.random_masks import random_scores
from fishexp.sparse import sparsify
from tests.support.delta_cases import (
    Tied,
    battered,
    edited,
    example,
    joined,
    mutation,
    same_bits,
    snapshot,
    split,
    trained_in_part,
    tuned,
)

VERSION_1 = Path(__file__).parent / "version1"  # files that fishexp wrote then

Tensors: TypeAlias = dict[str, Tensor]
Case: TypeAlias = tuple[bytes, Tensors, Tensors]  # a file, its base, its result


@contextlib.contextmanager
def little_memory(spare: int = 1 << 30) -> Iterator[None]:
    """What asks for more than ``spare`` bytes gets a MemoryError; where the system can say how many there are."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + spare, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """All that a file can have: types, codings, planes, new and removed tensors, ties, a mask by its seed, unmoved
    entries; and files of version 1."""
    path = tmp_path_factory.mktemp("fuzz") / "d"
    generator = torch.Generator().manual_seed(0)
    dense = {"w": torch.rand(40, 50, generator=generator)}
    columns = {"w": dense["w"].clone()}
    columns["w"][:, 3:9] += 1
    runs = {"w": dense["w"].clone()}
    runs["w"].view(-1)[100:700] += 1
    pairs = [example(), (snapshot(Tied()), {}), (dense, columns), (dense, runs)]
    tied = Tied()
    tied.load_state_dict(pairs[1][0])
    found: list[Case] = []
    for before, after in pairs:
        delta = Delta.diff(before, after) if after else Delta.diff(tied, tuned(tied, 1))
        delta.save(path)
        delta.apply_(result := snapshot(before))
        found.append((path.read_bytes(), before, result))
    model = torch.nn.Linear(30, 20)
    before = snapshot(model)
    sparse = sparsify(model, top_k(random_scores({n: p.shape for n, p in model.named_parameters()}, 7), 0.1))
    for p in sparse.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(sparse.parameters(), 1.0).step()
    sparse.delta().save(path)
    found.append((path.read_bytes(), before, snapshot(model)))
    delta, before, after = trained_in_part()
    delta.save(path)
    found.append((path.read_bytes(), before, after))
    for name in ("", "_seed"):
        stored = [load_file(VERSION_1 / f"{part}{name}.safetensors") for part in ("base", "result")]
        found.append(((VERSION_1 / f"delta{name}.safetensors").read_bytes(), stored[0], stored[1]))
    return found


def tried(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` returns, or None where it refuses in one line."""
    try:
        return function(*arguments)
    except DeltaError as error:
        line = str(error)
    assert len(line.splitlines()) == 1
    return None


def check(path: Path, data: bytes, before: Tensors, after: Tensors, target: Tensors) -> str:
    """How far a file gets. ``target`` is the base, and is again afterwards.

    A file that is right in itself may be a delta of another name for a new tensor, or one that removes less.
    """
    path.write_bytes(data)
    if (delta := tried(Delta.load, path)) is None:
        return "refused"
    outcome = "loaded"
    for strict in (True, False):
        if (undo := tried(delta.apply_, target, strict)) is not None:
            outcome = "applied" if strict else outcome
            if strict:
                known = target.keys() & after.keys()
                assert same_bits({name: target[name] for name in known}, {name: after[name] for name in known})
                agree(target, delta)
            undo.revert_()
        assert same_bits(target, before)
        if outcome == "applied":
            break
    return outcome


def fuzz(cases: list[Case], path: Path, seed: int, count: int) -> dict[str, int]:
    rng, outcomes = random.Random(seed), {"refused": 0, "loaded": 0, "applied": 0}
    targets = [snapshot(before) for _, before, _ in cases]
    with little_memory():
        for number in range(count):
            place = number % len(cases)
            data, before, after = cases[place]
            outcomes[check(path, mutation(rng, data), before, after, targets[place])] += 1
    return outcomes


def test_the_files_themselves_are_fine(cases: list[Case], tmp_path: Path) -> None:
    for data, before, after in cases:
        assert check(tmp_path / "d", data, before, after, snapshot(before)) == "applied"
        header, about, vectors = split(data)
        assert joined(header, about, vectors) != data  # another order and spaces, which do not matter
        assert check(tmp_path / "d", joined(header, about, vectors), before, after, snapshot(before)) == "applied"
    codings = {entry[0] for data, _, _ in cases for entry in split(data)[1]["moved"].values()}
    assert {"whole", "gaps", "seed"} < codings
    assert {about["version"] for _, about, _ in map(split, (data for data, _, _ in cases))} == {1, 2}
    vectors = {name: split(data)[0] for data, _, _ in cases for name in split(data)[0]}
    assert {"values.F32.3", "values.BF16.1", "values.F32", "unmoved"} < vectors.keys()
    assert len(codings) >= 5


def test_2000_mutated_files(cases: list[Case], tmp_path: Path) -> None:
    outcomes = fuzz(cases, tmp_path / "d", 0, 2000)
    assert outcomes["refused"] > 1000
    assert outcomes["loaded"] > 20  # all checks of the file passed: what follows is checked on the model


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_100_000_mutated_files(cases: list[Case], tmp_path: Path, seed: int) -> None:
    outcomes = fuzz(cases, tmp_path / "d", seed, 10_000)
    assert outcomes["loaded"] > 100


COMMANDS = ("info", "apply", "force", "chain", "diff", "merge", "sum", "heads", "push")


@dataclass(frozen=True)
class Files:
    """Hold what the commands are given: a delta, its base and the form that it has, and its result."""

    data: bytes
    before: Tensors
    after: Tensors
    form: str
    config: dict[str, Any] | None = None


def classifier(seed: int, labels: int, tokens: int) -> Tensors:
    """The tensors of a tiny BERT, as far as the commands look at their names, some of them old ones."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "bert.embeddings.word_embeddings.weight": (tokens, 3), "bert.embeddings.LayerNorm.gamma": (3,),
        "bert.pooler.dense.weight": (40, 30), "classifier.weight": (labels, 3), "classifier.bias": (labels,),
    }  # fmt: skip
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[Files]:
    """The cases of the files alone, and classifiers in folders with a larger vocabulary or another head."""
    path = tmp_path_factory.mktemp("fuzz") / "d"
    found = [Files(*case, form) for case, form in zip(cases, 2 * ["file", "folder", "shards", "file"], strict=True)]
    config = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "vocab_size": 5,
        "hidden_size": 3,
    }
    before = classifier(0, 2, 5)
    below = {name: tensor for name, tensor in before.items() if not name.startswith("classifier")}
    for base, labels, tokens in [(before, 2, 7), (before, 2, 5), (below, 3, 5), (below, 3, 6)]:
        after = {name: tensor.clone() for name, tensor in before.items()}
        after["bert.pooler.dense.weight"][3:7, 5] += 1
        words, head = "bert.embeddings.word_embeddings.weight", classifier(1, labels, 5)
        after[words] = torch.cat([before[words], torch.rand(tokens - 5, 3)])
        after |= {name: tensor for name, tensor in head.items() if name.startswith("classifier")}
        Delta.diff(base, after).save(path)
        found.append(Files(path.read_bytes(), before, after, "folder", config))
    return found


class Bench:
    """Lay files out, run commands on them in this process, and check what they leave."""

    def __init__(self, folder: Path, files: Files) -> None:
        self.folder, self.files = folder, files
        self.base, self.delta = folder / "base", folder / "run" / "d.safetensors"
        self.second, self.tuned, self.out = folder / "second", folder / "tuned", folder / "out"
        self.delta.parent.mkdir(parents=True)
        self.write_base(self.base)
        if files.config is not None:
            words, labels = (files.after[name].shape[0] for name in (next(iter(files.before)), "classifier.bias"))
            names = {str(i): f"label {i}" for i in range(labels)}
            self.beside = json.dumps(files.config | {"vocab_size": words, "id2label": names}).encode()
        else:
            self.beside = None
        save_file(files.after, self.tuned)
        later = {name: t.clone() for name, t in files.after.items()}
        bits(next(iter(later.values()))).view(-1)[:1] += 1
        Delta.diff(files.after, later).save(self.second)
        self.later = later

    def write_base(self, path: Path) -> None:
        """Write the base as the case has it."""
        if self.files.form == "file":
            save_file(self.files.before, path)
            return
        path.mkdir()
        (path / "vocab.txt").write_text("a word")
        if self.files.config is not None:
            (path / "config.json").write_text(json.dumps(self.files.config))
        if self.files.form == "folder":
            save_file(self.files.before, path / "model.safetensors")
            return
        where = {}
        for i, (name, tensor) in enumerate(self.files.before.items()):
            where[name] = f"part{i}.safetensors"
            save_file({name: tensor}, path / where[name])
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))

    def try_one(self, rng: random.Random) -> str:
        """Change a file, run a command, check what is left, and bring the file back; return how far it got."""
        place = self.change(rng)
        original = place.read_bytes() if place.exists() else None
        command = rng.choice(COMMANDS)
        try:
            place.write_bytes(self.changed(rng, place, original))
            before = self.state()
            status, out, err = self.run(command)
            if status:
                assert (status, out) == (2, ""), (status, out, err)
                assert err.startswith("fishexp.delta: ")
                assert err.count("\n") == 1
                assert self.state() == before
                return f"{command} refused"
            assert err == ""
            assert out.isprintable() or all(text.isprintable() for text in out.splitlines())
            self.check(command)
            assert {n: s for n, s in self.state().items() if not n.startswith("out")} == before
            return f"{command} done"
        finally:
            if self.out.is_dir():
                shutil.rmtree(self.out)
            self.out.unlink(missing_ok=True)
            place.unlink(missing_ok=True)
            if original is not None:
                place.write_bytes(original)
            if place == self.delta.parent / "config.json":
                place.unlink(missing_ok=True)

    def change(self, rng: random.Random) -> Path:
        """Choose the file that is changed: mostly the delta."""
        self.delta.write_bytes(self.files.data)
        others = [path for path in [self.base, *self.base.glob("*")] if path.is_file()]
        if self.beside is not None:
            others += 4 * [self.delta.parent / "config.json"]
        return rng.choice(others) if rng.random() < 0.3 else self.delta

    def changed(self, rng: random.Random, place: Path, data: bytes | None) -> bytes:
        if place == self.delta:
            return mutation(rng, self.files.data)
        data = data if data is not None else self.beside
        assert data is not None
        if rng.random() < 0.1 and self.beside is not None:
            return data
        if place.suffix == ".json" and rng.random() < 0.8:
            return json.dumps(edited(rng, json.loads(data))).encode()
        if place.suffix != ".json" and rng.random() < 0.8 and data[:1] != b"a":
            size = int.from_bytes(data[:8], "little")
            header = json.dumps(edited(rng, json.loads(data[8 : 8 + size]))).encode()
            return len(header).to_bytes(8, "little") + header + data[8 + size :]
        return battered(rng, data)

    def state(self) -> dict[str, bytes]:
        """What lies in the folder."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    def run(self, command: str) -> tuple[int, str, str]:
        base, delta, second, tuned, out = map(str, (self.base, self.delta, self.second, self.tuned, self.out))
        if command == "push":
            return self.push()
        arguments = {
            "info": ["info", delta],
            "apply": ["apply", base, delta, "-o", out],
            "force": ["apply", base, delta, "--force", "-o", out],
            "chain": ["apply", base, delta, second, "-o", out],
            "diff": ["diff", base, tuned, "-o", out],
            "merge": ["merge", base, delta, delta, "--how=mean", "-o", out],
            "sum": ["merge", base, delta, "-o", out],
            "heads": ["merge", base, delta, delta, "--how=mean", "--keep-heads", "-o", out],
        }[command]
        printed, complained = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
            status = main(arguments)
        return status, printed.getvalue(), complained.getvalue()

    def push(self) -> tuple[int, str, str]:
        """Push the delta onto a model in memory, which has its digest then, and take it off."""
        model = nn.Module()
        for i, tensor in enumerate(self.files.before.values()):
            model.register_buffer(f"t{i}", tensor.clone())
        names = dict(zip(self.files.before, model.state_dict(), strict=True))
        try:
            delta = Delta.load(self.delta)
            delta = Delta.of(delta.named_as(names))
            stack = Stack(model)
            stack.push(delta)
        except DeltaError as error:
            assert same_bits(model, dict(zip(names.values(), self.files.before.values(), strict=True)))
            return 2, "", f"fishexp.delta: {error}\n"
        agree(snapshot(model), delta)
        stack.pop()
        assert same_bits(model, dict(zip(names.values(), self.files.before.values(), strict=True)))
        return 0, "", ""

    def check(self, command: str) -> None:
        """OUT is what the files say."""
        if command in ("info", "push"):
            assert not self.out.exists()
            return
        found = None if command == "diff" else tensors_of(self.out)
        match command:
            case "diff":
                target = {n: t.read().view(t.kind.shape) for n, t in source(self.base).tensors.items()}
                Delta.load(self.out).apply_(target)
                assert sorted(map(str, prints(target))) == sorted(map(str, prints(self.files.after)))
            case "chain":
                assert found is not None
                agree(found, Delta.load(self.second), tied=Delta.load(self.delta).tied)
            case "heads":
                assert found is not None
                for head in self.out.glob("heads/*/*.safetensors"):
                    target = dict(found)
                    Delta.load(head).apply_(target)
                    agree(target, Delta.load(self.delta))
            case _:
                assert found is not None
                agree(found, Delta.load(self.delta), values=command != "force")
        config = self.out / "config.json"
        if config.exists() and self.files.config is not None and command in ("apply", "merge", "sum"):
            self.check_config(json.loads(config.read_text()), found or {})

    def check_config(self, config: dict[str, Any], found: Tensors) -> None:
        """Labels and vocabulary are as many as there are rows, unless the base's own configuration was spoilt."""
        own = (self.base / "config.json").read_text() == json.dumps(self.files.config)
        head = next((t for name, t in found.items() if name.endswith("classifier.bias")), None)
        words = next((t for name, t in found.items() if name.endswith("word_embeddings.weight")), None)
        if own and head is not None and words is not None and "model_type" in config:
            assert len(config["id2label"] if config.get("id2label") is not None else "ab") == len(head)
            assert config.get("vocab_size", len(words)) == len(words)


def prints(tensors: Tensors) -> list[Any]:
    return [fingerprint(tensor) for tensor in tensors.values()]


def tensors_of(path: Path) -> Tensors:
    paths = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found: Tensors = {}
    for one in paths:
        found |= load_file(one)
    if path.is_dir() and (path / "model.safetensors.index.json").exists():
        where = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        assert where.keys() == found.keys()
    return found


def agree(found: Tensors, delta: Delta, values: bool = True, tied: Mapping[str, str] | None = None) -> None:
    """All tensors of the delta's result are there, by any of their names, ``tied`` ones too, and no others."""
    first = dict(delta.tied) | dict(tied or {})
    result = {first.get(name, name): tensor for name, tensor in delta.result.items()}
    names = match(found, [*result, *first]).names
    here = {first.get(names[name], names[name]): fingerprint(tensor) for name, tensor in found.items()}
    assert here.keys() == result.keys()
    for name, wanted in result.items():
        assert str(here[name]) == str(wanted)
        assert not values or wanted.sha256 in (None, here[name].sha256), name


def fuzz_commands(files: list[Files], folder: Path, seed: int, count: int) -> Counter[str]:
    rng, outcomes = random.Random(seed), Counter[str]()
    benches = [Bench(folder / f"{seed}-{i}", one) for i, one in enumerate(files)]
    with little_memory():
        for number in range(count):
            start = time.process_time()
            outcomes[benches[number % len(benches)].try_one(rng)] += 1
            assert time.process_time() - start < 20
    return outcomes


def test_the_commands_on_the_files_themselves(files: list[Files], tmp_path: Path) -> None:
    for number, one in enumerate(files):
        bench = Bench(tmp_path / str(number), one)
        bench.delta.write_bytes(one.data)
        for command in COMMANDS:
            status, _, err = bench.run(command)
            if status:  # no head to keep; rows or tensors that a model would have to get
                shapes = [{name: t.shape for name, t in tensors.items()} for tensors in (one.before, one.after)]
                assert (command == "heads" and one.config is None) or (command == "push" and shapes[0] != shapes[1]), (
                    err
                )
                continue
            bench.check(command)
            if bench.out.is_dir():
                shutil.rmtree(bench.out)
            bench.out.unlink(missing_ok=True)


def test_commands_on_mutated_files(files: list[Files], tmp_path: Path) -> None:
    outcomes = fuzz_commands(files, tmp_path, 0, 600)
    done = {outcome.split()[0] for outcome in outcomes if outcome.endswith("done")}
    assert done == set(COMMANDS)
    assert sum(count for outcome, count in outcomes.items() if outcome.endswith("refused")) > 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_commands_on_10_000_mutated_files(files: list[Files], tmp_path: Path, seed: int) -> None:
    fuzz_commands(files, tmp_path, seed, 2000)
