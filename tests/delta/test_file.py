"""Delta files: what is in them, byte for byte, and what is refused; and the models that they come from."""

import base64
import contextlib
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fishexp import Delta, DeltaError
from fishexp.masks import position_codec
from tests.support.checks import refusal
from tests.support.delta_cases import dumped, example, joined, same_bits, snapshot, split


def test_a_file_is_what_the_documentation_says(tmp_path: Path) -> None:
    """Read by safetensors and by hand."""
    before, after = example()
    delta = Delta.diff({**before, "c.tied": before["c.same"]}, {**after, "c.tied": after["c.same"]})
    delta.save(tmp_path / "d")
    with safe_open(tmp_path / "d", "pt") as file:
        assert list(file.metadata()) == ["fishexp.delta"]
        metadata = json.loads(file.metadata()["fishexp.delta"])
        vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata.keys() == {"checksum", "header", "version"}
    assert metadata["version"] == 2
    coded = vectors.pop("header").numpy().tobytes()
    assert len(coded) < metadata["header"]
    text = zlib.decompress(coded, -15)
    assert len(text) == metadata["header"]
    about = json.loads(text)
    assert dumped(about).encode() == text
    assert set(vectors) == {"positions", "unmoved", "values.F32", "values.BF16", "values.BOOL", "values.I64"}

    def sha256(tensor: Tensor) -> bytes:
        return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data).digest()

    def encoded_sha256(tensor: Tensor) -> str:
        return base64.b64encode(sha256(tensor)).decode()

    codes = {torch.float32: "F32", torch.bfloat16: "BF16", torch.bool: "BOOL", torch.int64: "I64"}
    assert about["base"] == {name: [codes[t.dtype], list(t.shape), encoded_sha256(t)] for name, t in before.items()}
    assert about["removed"] == ["c.gone"]
    assert about["tied"] == {"c.tied": "c.same"}
    assert list(about["moved"]) == ["a.bias", "a.weight", "b.flags", "b.rows", "b.steps", "d.new"]

    taken = dict.fromkeys(vectors, 0)
    for name, (coding, count, size, unmoved, nbytes, result, *kind) in about["moved"].items():
        tensor = after[name]
        assert (unmoved, nbytes) == (0, 0)
        assert result == encoded_sha256(tensor)
        assert kind == ([codes[tensor.dtype], list(tensor.shape)] if name in ("b.rows", "d.new") else [])
        if coding == "whole":
            places = torch.arange(tensor.numel())
            assert size == 0
        else:
            encoded = vectors["positions"][taken["positions"] :][:size]
            places = position_codec.decode(encoded, coding, count, tuple(tensor.shape))
        key = "values." + codes[tensor.dtype]
        assert torch.equal(vectors[key][taken[key] :][:count], tensor.flatten()[places])
        taken[key] += count
        taken["positions"] += size
    assert taken == {name: len(vector) for name, vector in vectors.items()}

    data = b"".join(
        vectors[name].view(torch.uint8).numpy().tobytes()
        for name in ("values.BF16", "values.BOOL", "values.F32", "values.I64", "positions", "unmoved")
    )
    assert metadata["checksum"] == hashlib.sha256(text + data).hexdigest()
    header, _, _ = split((tmp_path / "d").read_bytes())
    assert all(header[key]["data_offsets"][0] % tensor.element_size() == 0 for key, tensor in vectors.items())
    for digest, model in ((delta.before, before), (delta.after, after)):
        lines = [[name, codes[t.dtype], list(t.shape), sha256(t).hex()] for name, t in sorted(model.items())]
        assert digest == hashlib.sha256(dumped(lines).encode()).hexdigest()


def test_equal_deltas_are_equal_files_whatever_they_come_from(tmp_path: Path) -> None:
    before, after = example()
    Delta.diff(before, after).save(tmp_path / "one")
    save_file(before, tmp_path / "before.safetensors")
    save_file(after, tmp_path / "after.safetensors")
    turned = {name: after[name].t().clone().t() if after[name].dim() == 2 else after[name] for name in reversed(after)}
    Delta.diff(dict(reversed(before.items())), turned).save(tmp_path / "two")
    Delta.diff(tmp_path / "before.safetensors", str(tmp_path / "after.safetensors")).save(tmp_path / "three")
    Delta.load(tmp_path / "one").save(tmp_path / "four")
    assert len({(tmp_path / name).read_bytes() for name in ("one", "two", "three", "four")}) == 1


def test_a_delta_without_changes_and_one_of_nothing(tmp_path: Path) -> None:
    for model in ({}, {"x": torch.ones(2)}, {"x": torch.ones(0)}):
        Delta.diff(model, model).save(tmp_path / "d")
        delta = Delta.load(tmp_path / "d")
        assert delta.before == delta.after
        assert (delta.kept, delta.names) == (0, ())
        delta.apply_(dict(model)).revert_()


NAMES = ["ä.weight", "层.0", "a b", 'quote"', "back\\slash", "positions", "x" * 3000]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_that_can_be_printed(name: str, tmp_path: Path) -> None:
    before, after = {name: torch.zeros(40)}, {name: torch.eye(40)[3]}
    Delta.diff(before, after).save(tmp_path / "d")
    delta = Delta.load(tmp_path / "d")
    delta.apply_(before)
    assert same_bits(before, after)


Edit: TypeAlias = Callable[[Any, Any], Any]  # of the header and of the metadata, in place


def put(*path: Any) -> Edit:
    """The last of ``path`` at the place in the metadata that the others lead to."""

    def edit(header: Any, about: Any) -> None:
        *way, last, value = path
        for step in way:
            about = about[step]
        about[last] = value

    return edit


def one_row_more(header: Any, about: Any) -> None:
    """The base of a.bias had an entry less, so that the last one is new; but it has no value."""
    about["base"]["a.bias"][1] = [29]
    about["moved"]["a.bias"] += ["BF16", [30]]


def unmoved_without_bytes(header: Any, about: Any) -> None:
    """One more is kept, and did not move."""
    about["moved"]["a.weight"][1] += 1
    about["moved"]["a.weight"][3:5] = [1, 1]


FEWER, NONE, CHANGE = "more values or fewer than it can", "size or SHA-256 that is none", "in more than its number"
KIND, STILL = "a type or a shape", "more entries that did not move than the base has"

# What a hostile writer who knows the layout may change; the checksum is right again.
EDITS: dict[str, tuple[str, Edit]] = {
    "version 3": ("is a delta of version 3; this fishexp reads versions 1 and 2 only", put("version", 3)),
    "version 1": ("is none of a delta", put("version", 1)),
    "version huge": ("is a delta of version 1000", put("version", 10**400)),
    "version true": ("has no version or no checksum", put("version", True)),
    "no version": ("has no version or no checksum", lambda header, about: about.pop("version")),
    "one key more": ("has not the keys", put("more", 1)),
    "base is a list": ("lacks an object", put("base", [])),
    "moved is a number": ("lacks an object", put("moved", 3)),
    "tied is a string": ("lacks an object", put("tied", "a")),
    "removed is a number": ("not written as a delta's", put("removed", 1)),
    "removed twice": ("removes a tensor", put("removed", ["c.gone", "c.gone"])),
    "removed unknown": ("removes a tensor", put("removed", ["nobody"])),
    "removed moved": ("removes a tensor", put("removed", ["a.bias"])),
    "removed number": ("no name of a tensor", put("removed", [1])),
    "tied to nobody": ("it ties", put("tied", {"x": "nobody"})),
    "tied to a number": ("no name of a tensor", put("tied", {"x": 1})),
    "tied base": ("it ties", put("tied", {"a.bias": "a.weight"})),
    "name of two lines": ("no name of a tensor", put("tied", {"x\ny": "a.bias"})),
    "type unknown": (KIND, put("base", "c.same", 0, "F31")),
    "type no string": (KIND, put("base", "c.same", 0, ["F32"])),
    "shape negative": (KIND, put("base", "c.same", 1, [-3])),
    "shape true": (KIND, put("base", "c.same", 1, [True])),
    "shape overflow": (KIND, put("base", "c.same", 1, [2**31, 2**31, 2**31])),
    "shape of many": (KIND, put("base", "c.same", 1, [1] * 65)),
    "shape huge": (KIND, put("base", "c.same", 1, [2**63, 0])),
    "shape number": (KIND, put("base", "c.same", 1, 3)),
    "sha short": ("a SHA-256 is none", put("base", "c.same", 2, "AAAA")),
    "sha odd": ("a SHA-256 is none", put("base", "c.same", 2, "!" * 44)),
    "sha number": ("a SHA-256 is none", put("base", "c.same", 2, 7)),
    "base short": ("has not type, shape", lambda header, about: about["base"]["c.same"].pop()),
    "coding unknown": ("which this version cannot read; update fishexp", put("moved", "a.weight", 0, "zip")),
    "coding number": (NONE, put("moved", "a.weight", 0, 1)),
    "count negative": (NONE, put("moved", "a.weight", 1, -1)),
    "count huge": (NONE, put("moved", "a.weight", 1, 2**63)),
    "count true": (NONE, put("moved", "a.weight", 1, True)),
    "count more than entries": (FEWER, put("moved", "a.weight", 1, 601)),
    "count more than values": ("fewer positions or values", put("moved", "a.weight", 1, 600)),
    "count fewer": ("damaged", put("moved", "a.weight", 1, 1)),
    "count of whole": (FEWER, put("moved", "b.flags", 1, 2)),
    "bytes of whole": (FEWER, put("moved", "b.flags", 2, 1)),
    "bytes more": ("fewer positions or values", put("moved", "a.weight", 2, 2**40)),
    "bytes fewer": ("damaged", put("moved", "a.weight", 2, 1)),
    "bytes negative": (NONE, put("moved", "a.weight", 2, -1)),
    "result null": (NONE, put("moved", "a.weight", 5, None)),
    "unmoved negative": (NONE, put("moved", "a.weight", 3, -1)),
    "unmoved more than there are": (STILL, put("moved", "a.weight", 3, 601)),
    "unmoved without bytes": ("fewer positions or values", unmoved_without_bytes),
    "unmoved of nothing has bytes": (STILL, put("moved", "a.weight", 4, 3)),
    "unmoved of a new row": (STILL, put("moved", "b.rows", 3, 18)),
    "unmoved of a new tensor": (STILL, put("moved", "d.new", 3, 1)),
    "entry long": ("a moved tensor has not", lambda header, about: about["moved"]["a.weight"].append(1)),
    "entry no list": ("a moved tensor has not", put("moved", "a.weight", 1)),
    "new without shape": ("a moved tensor has not", lambda header, about: about["base"].pop("a.weight")),
    "new not whole": (FEWER, lambda header, about: about["base"].pop("b.rows")),
    "rows other type": (CHANGE, put("moved", "b.rows", 6, "I32")),
    "rows fewer": (CHANGE, put("moved", "b.rows", 7, [3, 3])),
    "rows wider": (CHANGE, put("moved", "b.rows", 7, [6, 4])),
    "rows more": (FEWER, put("moved", "b.rows", 7, [10**6, 3])),
    "rows without values": ("a new row has not all values", one_row_more),
    "type twice": ("not written as", lambda header, about: about["moved"]["a.weight"].extend(["F32", [20, 30]])),
    "no positions": ("leave a gap", lambda header, about: header.pop("positions")),
    "vector of another type": ("is none of a delta", lambda header, about: header["positions"].update(dtype="I8")),
    "vector of another name": ("is none of a delta", lambda header, about: header.update(x=header.pop("values.I64"))),
    "vector no prefix": ("is none of a delta", lambda header, about: header.update(I64=header.pop("values.I64"))),
    "vector matrix": ("is none of a delta", lambda header, about: header["values.I64"].update(shape=[1, 1])),
    "no unmoved": ("it has no unmoved", lambda header, about: header.pop("unmoved")),
    "vector left out": ("offsets", lambda header, about: header.pop("values.I64")),
    "vector overlaps": ("offsets", lambda header, about: header.update(x=dict(header["values.I64"]))),
    "vector of no type": ("a type that is not known here", lambda header, about: header["positions"].update(dtype="X")),
    "vector shape": ("no valid shape", lambda header, about: header["positions"].update(shape=[-1])),
    "vector offsets": ("no valid offsets", lambda header, about: header["positions"].update(data_offsets=[9, 2])),
    "vector offset": ("no valid offsets", lambda header, about: header["positions"].update(data_offsets=[0])),
    "vector no object": ("no valid offsets", lambda header, about: header.update(positions=3)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_contradicts_itself_is_refused_before_it_is_used(edit: str, tmp_path: Path) -> None:
    path = tmp_path / "d"
    Delta.diff(*example()).save(path)
    header, about, vectors = split(path.read_bytes())
    message, function = EDITS[edit]
    function(header, about)
    path.write_bytes(joined(header, about, vectors))
    assert message in refusal(Delta.load, path)


TEXTS = ["", "{", "[]", "null", '{"version":1}', "NaN", '{"version":NaN}', '{"version":1.0}', '{"a":1,"a":1}']
TEXTS += ["[" * 100_000, '{"base":' * 100_000, "1" * 5000, '{"version":1e999}', "\ud800", "\x00", '{"version":-1}']


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20] + str(len(text)))
def test_metadata_of_any_text_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "d"
    Delta.diff(*example()).save(path)
    header, _, vectors = split(path.read_bytes())
    path.write_bytes(joined(header, text, vectors))
    assert "damaged" in (message := refusal(Delta.load, path)) or "a delta of version" in message


def headers() -> dict[str, bytes]:
    huge = struct.pack("<Q", 2**63)
    return {
        "empty": b"",
        "seven bytes": b"\x02" + bytes(6),
        "no header": bytes(8),
        "header longer than the file": struct.pack("<Q", 3) + b"{}",
        "header of many bytes": huge + b"{}",
        "header a list": struct.pack("<Q", 2) + b"[]",
        "header no text": struct.pack("<Q", 2) + b"\xff\xff",
        "header utf-16": struct.pack("<Q", 4) + "{}".encode("utf-16-le"),
        "header deep": struct.pack("<Q", 10**5) + b"[" * 10**5,
        "no metadata": struct.pack("<Q", 2) + b"{}",
        "metadata a list": struct.pack("<Q", 19) + b'{"__metadata__":[]}',
        "metadata numbers": struct.pack("<Q", 24) + b'{"__metadata__":{"a":1}}',
        "more data": struct.pack("<Q", 2) + b"{}" + b"1",
        "a pickle": b"\x80\x04\x95" + bytes(40),
    }


@pytest.mark.parametrize("name", headers())
def test_what_is_no_delta_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(headers()[name])
    assert refusal(Delta.load, tmp_path / "d").startswith(str(tmp_path / "d"))


def test_any_byte_that_is_lost_or_turned_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "d"
    Delta.diff(*example()).save(path)
    data = path.read_bytes()
    for place in [*range(0, len(data), 11), len(data) - 1]:
        path.write_bytes(data[:place])
        refusal(Delta.load, path)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        refusal(Delta.load, path)
    path.write_bytes(data + b"0")
    assert f"it has {len(data) + 1} bytes, its header speaks of {len(data)}" in refusal(Delta.load, path)


def test_a_result_that_its_values_do_not_give_is_refused(tmp_path: Path) -> None:
    """A file whose checksum is right may still be wrong."""
    before, after = example()
    Delta.diff(before, after).save(tmp_path / "d")
    header, about, vectors = split((tmp_path / "d").read_bytes())
    (tmp_path / "d").write_bytes(joined(header, about, vectors[:5] + bytes([vectors[5] ^ 1]) + vectors[6:]))
    delta, target = Delta.load(tmp_path / "d"), snapshot(before)
    assert "contradicts itself: its values of " in refusal(delta.apply_, target)
    assert same_bits(target, before)


def test_a_bool_is_true_or_false(tmp_path: Path) -> None:
    Delta.diff({"x": torch.tensor([True])}, {"x": torch.tensor([False])}).save(tmp_path / "d")
    header, about, _ = split((tmp_path / "d").read_bytes())
    (tmp_path / "d").write_bytes(joined(header, about, b"\x02"))
    assert "a bool is neither true nor false" in refusal(Delta.load, tmp_path / "d")


def test_positions_are_there_even_if_there_are_none(tmp_path: Path) -> None:
    Delta.diff({}, {"x": torch.ones(3)}).save(tmp_path / "d")
    header, about, vectors = split((tmp_path / "d").read_bytes())
    assert header.pop("positions")["shape"] == [0]
    (tmp_path / "d").write_bytes(joined(header, about, vectors))
    assert "it has no positions" in refusal(Delta.load, tmp_path / "d")


def test_a_small_file_takes_little_memory_whatever_it_says(tmp_path: Path) -> None:
    """A tensor of 2**59 entries of which one moved is fine; one that is said to have moved whole is refused."""
    Delta.diff({"x": torch.zeros(100)}, {"x": torch.eye(100)[0]}).save(tmp_path / "d")
    header, about, vectors = split((tmp_path / "d").read_bytes())
    about["base"]["x"][1] = [2**59]
    (tmp_path / "d").write_bytes(joined(header, about, vectors))
    with contextlib.suppress(DeltaError):  # the coding depends on the size
        assert Delta.load(tmp_path / "d").kept == 1
    about["moved"]["x"][:3] = ["whole", 2**59, 0]
    (tmp_path / "d").write_bytes(joined(header, about, vectors))
    assert "fewer positions or values than it says" in refusal(Delta.load, tmp_path / "d")


def test_a_file_that_cannot_be_read_or_written_is_the_systems_error(tmp_path: Path) -> None:
    delta = Delta.diff(*example())
    with pytest.raises(FileNotFoundError):
        Delta.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        Delta.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        delta.save(tmp_path / "no folder" / "d")
    assert not list(tmp_path.iterdir())
