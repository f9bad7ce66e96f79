"""A file is what it was or complete, whatever happens while it is written."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fishexp import Delta
from fishexp.delta.patches import write_patches
from fishexp.system.atomic import new_folder, replacing


def test_a_file_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["\u6587" * 85, "x" * 255, os.fsdecode(b"\xff" * 255)], ids=["utf8", "ascii", "bytes"])
def test_a_name_may_have_as_many_bytes_as_the_system_allows(name: str, tmp_path: Path) -> None:
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("first")
    with new_folder(tmp_path / name[:-1]):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, name[:-1]])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_the_old_file_and_nothing_else(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, sync, replace = [], os.fsync, Path.replace

    def synced(handle: int) -> None:
        events.append("folder" if os.path.isdir(f"/dev/fd/{handle}") else (tmp_path / "file").exists())  # noqa: PTH112
        sync(handle)

    def replaced(self: Path, target: Any) -> Path:
        events.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert events == [False, "name", "folder"]


def test_a_new_file_may_be_read_by_those_who_may_read_any_new_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with replacing(tmp_path / "file"):
            pass
        (tmp_path / "other").touch()
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    (tmp_path / "link").symlink_to(Path("there") / "file")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "new"


def test_a_full_disk_leaves_the_last_delta(tmp_path: Path) -> None:
    """A limit on the size of files is as good."""
    before = {"x": torch.zeros(100_000)}
    path = tmp_path / "d"
    small = Delta.diff(before, {"x": torch.eye(100_000, 1)[:, 0]})
    small.save(path)
    old, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        large = Delta.diff(before, {"x": torch.ones(100_000)})
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            large.save(path)
        with pytest.raises(OSError, match=f"File too large: '{path}'"):  # as safetensors would not say it
            write_patches(large, path)
        with pytest.raises(OSError, match=f"File too large: '{tmp_path / 'new'}'"), new_folder(tmp_path / "new") as new:
            large.save(new / "d")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = "import os, sys; from fishexp.system.atomic import replacing\n"
    code += "with replacing(sys.argv[1]) as t: t.write_text('half'); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with new_folder(path) as temporary:
        (temporary / "file").write_text("text")
        assert not path.exists()
    assert (path / "file").read_text() == "text"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_no_folder(error: type[BaseException], tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "folder") as temporary:
            (temporary / "file").write_text("half")
            raise error

    with pytest.raises(error):
        fill()
    assert not list(tmp_path.iterdir())
