"""Files that appear whole or not at all, and stay."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(path: Path, *, replace: bool) -> Iterator[Path]:
    """A temporary path beside `path` to write a file to; leaving the block makes it `path`, durably.

    Raises `FileExistsError` if `path` is taken and not to be replaced, `OSError` where it cannot be written. Whatever
    goes wrong, inside the block too, nothing is left behind; only a killed process leaves its `.*.tmp`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if replace:
            publish(temporary, path)
        else:
            _sync(temporary)
            _link(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def publish(finished: Path, path: Path) -> None:
    """Syncs a finished file, or a directory with all it holds, and then gives it its name."""
    for inner in finished.rglob("*"):
        _sync(inner)
    _sync(finished)
    finished.replace(path)
    _sync(path.parent)


def _link(temporary: Path, path: Path) -> None:
    """Gives a finished file its name; raises `FileExistsError` if that is taken."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if path.exists():  # a file system without hard links: only here can two writers meet, each with a whole file
            raise FileExistsError(path) from None
        temporary.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
