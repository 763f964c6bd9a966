"""CSV files of rows that survive a kill: one line a row, appended whole, read back with their types.

A torn last line (the machine stopped in the middle of a write) is left out when reading and cut off before
the next append, so it costs one row and never the file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from vtc import files
from vtc.files import hold

Row = dict[str, str]

_INTEGER = re.compile(r"-?(0|[1-9]\d*)$")
_FLOAT = re.compile(r"-?(((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?|inf)$")


def to_text(value: object) -> str:
    """A value as it stands in a cell: floats exact, None and NaN empty, lists and dicts as JSON, one line."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()  # a numpy or torch scalar
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, sort_keys=True)
    return " ".join(str(value).split("\n")).replace("\r", " ").replace("\0", " ")


def from_text(text: str | None) -> object:
    """The int, float, bool or string that a cell holds; None where it is empty."""
    if text is None or text in ("", "nan", "NaN", "None"):
        return None
    if text in ("True", "False"):
        return text == "True"
    if _INTEGER.match(text):
        return int(text)
    return float(text) if _FLOAT.match(text) else text


def key_of(fields: Mapping[str, object]) -> frozenset:
    """What makes two cases the same: names and values in any order; 4, 4.0 and "4" agree, None is absence."""
    values = {name: from_text(to_text(value)) for name, value in fields.items()}
    return frozenset((name, isinstance(v, bool), v) for name, v in values.items() if v is not None)


def read(path: Path) -> list[Row]:
    """The whole rows of a file, as text; none if it is not there. Lines of a wrong length are left out."""
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0].decode("utf-8", errors="replace")
    # line by line: what is damaged in one stays there
    header, *lines = [next(csv.reader([line]), []) for line in whole.split("\n")]
    return [dict(zip(header, line)) for line in lines if len(line) == len(header)]


def append(path: Path, rows: list[Row]) -> None:
    """Adds rows in one write that is on the disk when this returns; new columns widen the file."""
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path):
        header = _header(path)
        new = [name for row in rows for name in row if name not in header]
        if new or not header:
            write(path, read(path) + rows, header + list(dict.fromkeys(new)))
            return
        with path.open("r+b") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)  # a torn last line goes
            file.seek(whole)
            file.write(_csv(rows, header).encode())
            file.flush()
            os.fsync(file.fileno())


def write(path: Path, rows: list[Row], header: list[str]) -> None:
    """Replaces a file by these rows; who reads meanwhile sees the old or the new one, never half."""
    files.write(path, (_csv([dict(zip(header, header))], header) + _csv(rows, header)))


def columns(rows: list[Row]) -> list[str]:
    """Every column that occurs, in order of first sight."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _csv(rows: list[Row], header: list[str]) -> str:
    out = io.StringIO()
    csv.DictWriter(out, header, restval="", lineterminator="\n").writerows(rows)
    return out.getvalue()


def _header(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        line = file.readline()
    return next(csv.reader([line])) if line.endswith("\n") else []
