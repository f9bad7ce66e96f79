"""Whatever is done to a delta file: an error in one line, or the delta that it was; never half a model."""

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from fishexp import Delta, DeltaError
from fishexp.delta.fingerprint import fingerprint
from fishexp.masks import top_k
from fishexp.masks.random_masks import random_scores
from fishexp.sparse import sparsify
from tests.support.delta_cases import Tied, example, joined, same_bits, snapshot, split, tuned

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
    """All that a file can have: types, codings, new and removed tensors, ties, a mask by its seed."""
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
    return [*found, (path.read_bytes(), before, snapshot(model))]


def bent(rng: random.Random, value: Any) -> Any:
    """Something else in the place of a piece of JSON."""
    others = [-1, 0, 1, 2, 255, 2**31, 2**59, 2**63, 10**30, True, None, "", "whole", "gaps", "F32", "U8", [], {}, 1.5]
    if type(value) is int:
        others += [value - 1, value + 1, 2 * value, -value, value + 8] * 3
    elif isinstance(value, str):
        others += [value[:-1], value + "A", value.swapcase(), value[::-1], value[:3] + "x" + value[4:]] * 3
        others += ["holes", "runs", "runs by column", "gaps by column", "holes by column", "seed"]
    elif isinstance(value, list):
        others += [value[:-1], value + value[-1:], value[::-1], [value]] * 3
    return rng.choice(others)


def edited(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The same JSON with one piece changed, left out, renamed or exchanged with another."""
    if not isinstance(value, dict | list) or not value or (depth and rng.random() < 0.15):
        return bent(rng, value)
    result = value.copy()
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    chance = rng.random()
    if chance < 0.04:
        result.pop(key)
    elif chance < 0.08 and isinstance(result, dict):
        result[rng.choice(list(value)) + "x" * rng.randrange(2)] = result.pop(key)
    elif chance < 0.12:
        other = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        result[key], result[other] = result[other], result[key]
    else:
        result[key] = edited(rng, value[key], depth + 1)
    return result


def battered(rng: random.Random, data: bytes) -> bytes:
    """The same bytes but for some that are turned, lost, doubled, exchanged or new."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        a, b = sorted(rng.randrange(len(result) + 1) for _ in range(2))
        b = min(b, a + rng.choice([1, 2, 8, 100]))
        match rng.randrange(6):
            case 0 if a < len(result):
                result[a] ^= 1 << rng.randrange(8)
            case 1:
                del result[a:b]
            case 2:
                result[a:a] = result[a:b]
            case 3:
                result[a:b] = rng.randbytes(b - a)
            case 4:
                result[a:b] = bytes(b - a) if rng.random() < 0.5 else b"\xff" * (b - a)
            case 5 if rng.random() < 0.3:
                del result[a:]
    return bytes(result)


def mutation(rng: random.Random, data: bytes) -> bytes:
    """Anything, of which a half has the right checksum again."""
    header, about, vectors = split(data)
    match rng.randrange(8):
        case 0 | 1:
            return battered(rng, data)
        case 2:  # of the vectors alone, as many bytes as before: what the checksum would have seen
            spoilt = battered(rng, vectors)[: len(vectors)]
            return joined(header, about, spoilt + bytes(len(vectors) - len(spoilt)))
        case 3:
            return joined(edited(rng, header), about, vectors)
        case 4:
            text = battered(rng, json.dumps(about, sort_keys=True, separators=(",", ":")).encode())
            return joined(header, text.decode("latin-1"), vectors)
        case 5:
            about = edited(rng, edited(rng, about))
        case _:
            about = edited(rng, about)
    try:
        return joined(header, about, vectors)
    except (ValueError, TypeError, RecursionError):
        return battered(rng, data)


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
                assert all(delta.result[name] == fingerprint(target[name]) for name in delta.names)
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
