"""Files, folders and lines that are either as they were or complete, whatever happens while they are written."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fishexp.errors import RunFailed, first_line

# of a disk, a quota and a limit on files, whose errors name no file
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Make a new empty file beside ``path``, which takes its name when the context ends without an error.

    By then it is on the disk, and so is its name: a crash at any moment leaves the old file or the new one. If ``path``
    is a link, the file that it points to is replaced.

    Yields:
        The file to write; it is gone if the context ends with an error.

    Raises:
        OSError: As the system gives it, if the folder is missing or cannot be written, or the disk is full.
    """
    path = Path(path).resolve()
    temporary = _beside(path)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors lets nobody else read what it writes
        sync(temporary)
        temporary.replace(path)
        temporary.unlink(missing_ok=True)  # two links to one file: the system leaves both
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name_(error, temporary, path)
        raise
    sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in a line that a run cannot write ``path``, be it a file or a folder, if the context ends with such an error.

    Raises:
        RunFailed: In place of an error of the system's, or of safetensors', whose errors name no file.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise RunFailed(f"{path} cannot be written ({reason}); continue with resume=true") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a new folder beside ``path``, which takes its name when the context ends without an error.

    By then all that is in it is on the disk, and so is its name.

    Yields:
        The folder to fill; it is gone if the context ends with an error.

    Raises:
        OSError: As the system gives it; among others if ``path`` is a file, or a folder with something in it.
    """
    path = path.absolute()
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for file in files:
                sync(Path(folder, file))
            sync(Path(folder))
        temporary.rename(path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name_(error, temporary, path)
        raise
    sync(path.parent)


def append(path: Path, line: str, what: str) -> None:
    """Append a line in a single write under a lock, so that jobs at the same time cannot tear each other's lines.

    Args:
        what: What the line is, for the message.

    Raises:
        RunFailed: If the file cannot be written, or the disk is full; nothing is appended then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _append(file.fileno(), line)
    except OSError as error:
        raise RunFailed(f"{path}: the {what} cannot be appended ({error.strerror})") from None


def _append(file: int, line: str) -> None:
    """Append a line to an open file, whole or not at all."""
    size = os.fstat(file).st_size
    torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # by others: keep this line out of theirs
    data = f"{chr(10) * torn}{line}\n".encode()
    try:
        if os.write(file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    except OSError:  # a full disk, found at once or as it is written out: leave no half line behind
        os.ftruncate(file, size)
        raise


def _name_(error: BaseException, temporary: Path, path: Path) -> None:
    """Have an error of a full disk, or one that names what is gone by now, name what was to be written."""
    if isinstance(error, OSError):
        nameless = error.filename is None and error.errno in _FULL
        if nameless or Path(str(error.filename)).is_relative_to(temporary):
            error.filename = str(path)


def _beside(path: Path) -> Path:
    """Return a hidden name beside ``path`` that nothing has yet."""
    name = os.fsencode(path.name)[:100].decode(errors="ignore")  # a name has 255 bytes at most, not characters
    return path.with_name(f".{name}.{secrets.token_hex(8)}.tmp")


def sync(path: Path) -> None:
    """Bring what was written to the file, or the names in the folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
