"""Files and folders written whole or not at all, and work that one program does while others wait."""

from __future__ import annotations

import csv
import ctypes
import io
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from vtc import InputError

STALE_S = 3600  # age at which what a killed program left unfinished is removed by the next writer


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A new neighbour to write to, file or folder; it takes the place of `path` once it is whole on the disk.

    Who reads meanwhile finds the old one. Where writing fails the old one stays and nothing else is left;
    InputError names the place and the reason, such as a full disk.
    """
    path = Path(path).absolute()
    part = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.part"):
            with suppress(OSError):  # its writer has just finished
                if time.time() - left.stat().st_mtime > STALE_S:
                    _remove(left)
        yield part
        _to_disk(part)
        if part.is_dir() and path.is_dir():
            _exchange(part, path)
        else:
            part.replace(path)
    except Exception as error:
        if reason := _reason(error):
            raise InputError(f"{path}: cannot be written ({reason})") from error
        raise
    finally:
        _remove(part)


def write(path: Path | str, content: str | bytes) -> None:
    """Replaces a file by this content; see `replacing`."""
    with replacing(path) as part:
        part.write_bytes(content if isinstance(content, bytes) else content.encode())


def csv_text(rows: list[dict]) -> str:
    """Rows as CSV text, columns in order of first appearance; empty where a row lacks one."""
    out, columns = io.StringIO(), dict.fromkeys(name for row in rows for name in row)
    table = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue()


@cache
def packaged(name: str) -> tuple[dict[str, str], ...]:
    """The rows of a CSV file that comes with the package."""
    with (Path(__file__).parent / name).open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def _exchange(part: Path, path: Path) -> None:
    """Exchanges two folders in one step, as Linux can; what only the older one holds moves to the new one.

    Elsewhere there are two steps between which `path` is missing; if the second fails, the first is undone.
    """
    if not _swapped(part, path):
        old = path.rename(part.with_suffix(".old"))
        try:
            part.rename(path)
        except OSError:
            old.rename(path)
            raise
        old.rename(part)
    for other in part.iterdir():
        if not (path / other.name).exists():
            other.rename(path / other.name)


def _swapped(one: Path, other: Path) -> bool:
    """Whether the system could exchange the two names (renameat2 with RENAME_EXCHANGE)."""
    here, exchange = -100, 2  # AT_FDCWD: paths are whole
    try:
        call = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    return call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _to_disk(part: Path) -> None:
    """Waits until the disk holds a file, or every file of a folder."""
    for file in part.rglob("*") if part.is_dir() else [part]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _remove(path: Path) -> None:
    with suppress(OSError):  # nothing there, or a name too long to be there
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _reason(error: Exception) -> str:
    """Why the system refused; empty if it didn't. Libraries in Rust tell it in words: "... (os error 28)"."""
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(found[1])
    return os.strerror(number) if number else ""


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds a name among programs; yields whether it does: False where another has it and `wait` is not set.

    It spares work that two would do twice; nothing is wrong without it, so where a file system has no locks
    all go on. The system lets go when a process ends, however it ends.
    """
    file = path.parent / ".locks" / f"{path.name}.lock"
    lock, held = FileLock(file, thread_local=False), True
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=wait)
    except Timeout:
        held = False
    except OSError:
        pass
    try:
        yield held
    finally:
        lock.release()
