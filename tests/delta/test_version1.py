"""Files of version 1, which fishexp wrote until version 2: read to the same content for ever."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from fishexp import Delta
from fishexp.delta.__main__ import main
from tests.support.delta_cases import same_bits, snapshot

FOLDER = Path(__file__).parent / "version1"


@pytest.mark.parametrize("name", ["", "_seed"])
def test_a_file_of_version_1_makes_the_result_of_its_base(name: str, tmp_path: Path) -> None:
    base, result = (load_file(FOLDER / f"{part}{name}.safetensors") for part in ("base", "result"))
    delta = Delta.load(FOLDER / f"delta{name}.safetensors")
    assert delta.kept == delta.changes == sum(len(delta.values(tensor)) for tensor in delta.names)
    target = snapshot(base)
    undo = delta.apply_(target)
    assert same_bits(target, result)
    undo.revert_()
    assert same_bits(target, base)
    delta.save(tmp_path / "again")
    Delta.load(tmp_path / "again").apply_(target)
    assert same_bits(target, result)


def test_its_content_is_what_was_written() -> None:
    delta = Delta.load(FOLDER / "delta.safetensors")
    assert (delta.before[:16], delta.after[:16], delta.kept) == ("7838e38a8f7c83cf", "816ef260a6ffd4f1", 345)
    assert delta.positions("b.columns").tolist()[:6] == [2, 7, 9, 14, 19, 21]
    assert delta.removed == ("m.gone",)
    assert dict(delta.tied) == {"n.tied": "n.same"}
    seeded = Delta.load(FOLDER / "delta_seed.safetensors")
    assert seeded.kept == 62


def test_the_command_line_names_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(FOLDER / "delta.safetensors")]) == 0
    assert "delta.safetensors, version 1\n" in capsys.readouterr().out
