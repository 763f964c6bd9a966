"""Files written whole or not at all, and held by one program at a time."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

from vtc import InputError

try:
    import fcntl
except ImportError:  # no advisory locks here: one writer at a time is then up to the user
    fcntl = None


def replace_bytes(path: Path, content: bytes) -> None:
    """Puts a file in place in one step, through a neighbour that is renamed once it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    with neighbour.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    neighbour.replace(path)


def hold(path: Path, key: frozenset | None = None, wait: bool = True) -> IO | None:
    """Holds a file (or only the key in it) among programs until the returned handle is closed.

    None if another holds it and `wait` is not set. The kernel lets go when a process ends, so a killed one
    leaves nothing to clean up.
    """
    folder = path.parent / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / (path.name if key is None else f"{path.name}.{_fingerprint(key)}")).open("a")
    if fcntl is None:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    return handle


def _fingerprint(key: frozenset) -> str:
    """The same word for the same key in every process (Python's own hash of strings is salted)."""
    return hashlib.sha256(repr(sorted(map(repr, key))).encode()).hexdigest()[:16]


def write(path: Path, content: str | bytes) -> None:
    """Replaces a file at once (never a half-written one); InputError when the place can't be written."""
    try:
        replace_bytes(path, content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
