"""A file is either as it was or complete, whatever happens while it is written."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new empty file beside ``path``, which takes its name when the context ends without an error.

    By then it is on the disk, and so is its name: a crash at any moment leaves the old file or the new one. If ``path``
    is a link, the file that it points to is replaced.

    Yields:
        The file to write; it is gone if the context ends with an error.

    Raises:
        OSError: As the system gives it, if the folder is missing or cannot be written, or the disk is full.
    """
    path = Path(path).resolve()
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors lets nobody else read what it writes
        sync(temporary)
        temporary.replace(path)
        temporary.unlink(missing_ok=True)  # two links to one file: the system leaves both
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """What was written to the file, or the names in the folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
