"""What a snapshot holds comes back to the bit, in fewer bytes than there are."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fishexp import Delta
from fishexp.delta.fingerprint import bits
from fishexp.training.snapshots import STATE, Snapshot, Snapshots
from tests.support.checks import refusal
from tests.support.delta_cases import TYPES, noise


@pytest.fixture
def snapshot() -> Snapshot:
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(50, 400, generator=generator) * 1e-3
    tensors = {f"random {dtype}": noise(dtype, (7, 11), generator) for dtype in TYPES}
    tensors |= {"exp_avg": moments, "exp_avg_sq": moments**2, "half": moments.bfloat16(), "step": torch.tensor(3.0)}
    tensors |= {"mask": torch.arange(0, 90_000, 7), "none": torch.ones(0, 3)}
    return Snapshot(Delta.whole({"w": torch.ones(3)}), tensors, {"steps": 1})


def test_tensors_come_back_to_the_bit_in_fewer_bytes(snapshot: Snapshot, tmp_path: Path) -> None:
    Snapshots(tmp_path, 1).save(1, snapshot)
    (found,) = Snapshots(tmp_path, 1).load()
    assert found.tensors.keys() == snapshot.tensors.keys()
    for name, tensor in snapshot.tensors.items():
        assert (found.tensors[name].dtype, found.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bits(found.tensors[name]), bits(tensor))
    with safe_open(tmp_path / "000000001" / STATE, "pt") as file:
        stored = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    for name, share in {"exp_avg": 0.85, "exp_avg_sq": 0.87, "half": 0.7, "mask": 0.5}.items():
        size = sum(nbytes for key, nbytes in stored.items() if key.startswith(f"{name}/"))
        assert 0 < size <= share * snapshot.tensors[name].nbytes
    assert {"step", "random torch.float32"} < stored.keys()


def test_a_snapshot_that_cannot_be_opened_is_left_as_it_is(snapshot: Snapshot, tmp_path: Path) -> None:
    """It may be whole: only the way to it is not."""
    snapshots = Snapshots(tmp_path, 1)
    snapshots.save(1, snapshot)
    path = tmp_path / "000000001" / STATE
    whole = path.rename(tmp_path / "elsewhere")
    path.symlink_to(path)
    line = refusal(snapshots.load)
    assert line.startswith(f"the snapshot {path.parent} cannot be read (Too many levels of symbolic links); it is left")
    path.unlink()
    whole.rename(path)
    (found,) = snapshots.load()
    assert torch.equal(found.tensors["exp_avg"], snapshot.tensors["exp_avg"])


def test_a_plane_that_is_not_what_was_written_is_seen(snapshot: Snapshot, tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, 1)
    snapshots.save(1, snapshot)
    snapshots.save(2, snapshot)
    path = tmp_path / "000000002" / STATE
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 16
    path.write_bytes(data)
    (found,) = snapshots.load()
    assert torch.equal(found.tensors["exp_avg"], snapshot.tensors["exp_avg"])
    assert not path.exists()
