"""Rows: find those there are and measure what is missing; a case is one file.

A case is a flat dict, such as {"size": "m", "V": 4, "compressor": "quecc", "seed": 0}. Its rows, one or
several, are one JSON file, runs/<name>/rows/<table>/<case>.json, which appears whole or not at all. A kill, a
full disk or a second writer can therefore leave no part of a case. Its name holds a hash of the case and of
`Profile.fingerprint` (recipe, sizes, data), so a row is not found once what made it has changed.

Recorded rows are CSV files in results/ (committed, read only here); `vtc.experiments.record` writes them.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pandas as pd

from vtc import InputError, files, progress
from vtc.experiments import executor
from vtc.experiments.provenance import now, provenance
from vtc.profiles import Profile

TEXT = ("commit", "recipe", "tower_hash", "llm_hash")  # columns that stay text: 9213e08 is no number

Row = dict[str, object]
Measure = Callable[[dict], "dict | list[dict]"]


def table(
    stem: str,
    profile: Profile,
    cases: Iterable[dict],
    measure: Measure | None,
    workers: int = 1,
    recipe_free: bool = False,
) -> pd.DataFrame:
    """The rows of these cases, in their order; those not there yet are measured and saved one by one.

    Looked at are results/ (unless `profile.recompute`) and runs/. `measure(case)` returns one dict or several
    (one row each); what it returns wins over the provenance written by default. `workers`: see
    `executor.run`. recipe_free: the case alone is the key, as for a clock. `measure=None` only looks, and
    leaves out what is missing.
    Raises InputError for two equal cases, and what `measure` raised, with its case named.
    """
    if measure is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"{stem}: cases are measured by processes of its own; start this command without torchrun"
        )
    recipe = "" if recipe_free else profile.fingerprint
    wanted, found = _look(stem, profile, cases, recipe)
    if measure is not None and len(found) < len(wanted):
        origin = provenance(profile) | {"recipe": recipe}  # the commit of now, whatever is edited meanwhile
        with progress.bar(label=stem, total=len(wanted), unit="case") as shown:
            shown.update(len(found))
            for wait in (False, True):  # first what nobody has in hand, then what others did not finish
                missing = [case for name, case in wanted.items() if name not in found]
                call = functools.partial(_rows, folder(stem, profile), origin, measure, wait)
                for case, rows in executor.run(call, missing, workers):
                    if rows is not None:
                        found[name_of(case, recipe)] = rows
                        shown.update()
    return frame([row for name in wanted for row in found.get(name, [])])


def replay(
    stem: str, profile: Profile, cases: list[dict], measure: Measure, command: str, workers: int = 1
) -> pd.DataFrame:
    """What a notebook shows: the recorded rows of these cases as they stand, or all of them measured.

    Cases may take minutes each, so a profile with recorded rows is not added to behind a reader's back: it
    says how many are missing, and which command measures them. A profile without recorded rows, or
    `recompute`, measures everything.
    """
    if profile.recompute or not profile.results.is_dir():
        return table(stem, profile, cases, measure, workers)
    wanted, found = _look(stem, profile, cases, profile.fingerprint)
    if missing := len(wanted) - len(found):
        print(f"{missing} of {len(wanted)} cases of {stem} are not recorded yet: `{command}` measures them")
    return frame([row for name in wanted for row in found.get(name, [])])


def stored(stem: str, profile: Profile) -> pd.DataFrame:
    """Every row of a table there is, recorded (unless `profile.recompute`) and measured; measures nothing."""
    cases = _all(stem, profile).values()
    return frame(
        [row for case in cases if case["recipe"] in ("", profile.fingerprint) for row in case["rows"]]
    )


def recorded(stem: str, profile: Profile) -> pd.DataFrame:
    """Every recorded row of a table, whatever made it."""
    cases = read_csv(profile.results / f"{stem}.csv").values()
    return frame([row for case in cases for row in case["rows"]])


def _look(
    stem: str, profile: Profile, cases: Iterable[dict], recipe: str
) -> tuple[dict[str, dict], dict[str, list[Row]]]:
    """The cases by name, and the rows of those that are there."""
    cases = list(cases)
    wanted = {name_of(case, recipe): case for case in cases}
    if len(wanted) < len(cases):
        raise InputError(f"{stem}: {len(cases)} cases, but only {len(wanted)} differ; a case is its own key")
    there = _all(stem, profile)
    return wanted, {name: there[name]["rows"] for name in wanted if name in there}


def _all(stem: str, profile: Profile) -> dict[str, dict]:
    """Cases that are there, by name: {case, recipe, rows}; a recorded one stands before a measured one."""
    recorded = {} if profile.recompute else read_csv(profile.results / f"{stem}.csv")
    return recorded | {n: case for n, case in measured(stem, profile).items() if n not in recorded}


def folder(stem: str, profile: Profile) -> Path:
    """Where the files of a table's cases lie."""
    return profile.runs / "rows" / stem


def measured(stem: str, profile: Profile) -> dict[str, dict]:
    """The cases of a table in runs/, by name, sorted; a file that something has damaged counts as none."""
    found = {}
    for file in folder(stem, profile).glob("[!.]*.json"):
        if case := _read(file):
            found[file.stem] = case
    return dict(sorted(found.items(), key=lambda item: rank(item[1]["case"])))


def _read(file: Path) -> dict | None:
    with suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return None


def rank(case: dict) -> list[tuple]:
    """Sorts cases field by field: numbers by size, then words by the alphabet."""
    return [(True, 0, v) if isinstance(v, str) else (False, v or 0, "") for v in map(plain, case.values())]


def name_of(case: dict, recipe: str) -> str:
    """The name of a case's file: its values and a hash; fields in any order, 4 is 4.0, None is absent."""
    fields = {name: v for name, value in sorted(case.items()) if (v := plain(value)) is not None}
    fields = {n: int(v) if isinstance(v, float) and v.is_integer() else v for n, v in fields.items()}
    words = re.sub(r"[^\w.]+", "_", "-".join(map(str, fields.values())))[:60]
    return f"{words}-{hashlib.sha256(json.dumps([fields, recipe]).encode()).hexdigest()[:12]}"


_NUMBER = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?|inf)")


def plain(value: object) -> object:
    """A value as a CSV gives it back: int, float, bool, or text of one line; None where there is none."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()  # a numpy or torch scalar
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, sort_keys=True)
    if isinstance(value, float) and math.isnan(value) or value == "":
        return None
    if not isinstance(value, str):
        return value
    if value in ("True", "False"):
        return value == "True"
    if _NUMBER.fullmatch(value):
        return int(value) if value.lstrip("-").isdigit() else float(value)
    return re.sub(r"[\r\n\0]+", " ", value)


def frame(rows: list[Row]) -> pd.DataFrame:
    """Rows as a frame, columns in order of first sight."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame({name: [row.get(name) for row in rows] for name in columns}, columns=columns)


def read_csv(path: Path) -> dict[str, dict]:
    """The cases of a recorded table, by name, in their order; column `key` names the fields of the case."""
    found: dict[str, dict] = {}
    if not path.is_file():
        return found
    with path.open(newline="", encoding="utf-8") as file:
        for cells in csv.DictReader(file):
            row = {n: (t or None) if n in TEXT else plain(t) for n, t in cells.items()}
            names = row.pop("key").split()
            row.pop("rows", None)  # how many a case has: written by the first edition
            case, recipe = {name: row[name] for name in names}, row.get("recipe") or ""
            group = {"case": case, "recipe": recipe, "rows": []}
            found.setdefault(name_of(case, recipe), group)["rows"].append(row)
    return found


def _rows(place: Path, origin: Row, measure: Measure, wait: bool, case: dict) -> list[Row] | None:
    """The rows of a case, measured and on the disk; None if another program has it in hand.

    They may have come from another program in the meantime. An error names the case, in one line, and can be
    pickled.
    """
    path, start = place / f"{name_of(case, origin['recipe'])}.json", time.perf_counter()
    with files.file_lock(path, wait) as ours:
        if not ours:
            return None
        if made := _read(path):
            return made["rows"]
        try:
            result = measure(dict(case))
        except Exception as error:
            said = " ".join(str(error).split())
            where = f"({place.name}, case {', '.join(f'{name}={value}' for name, value in case.items())})"
            if isinstance(error, InputError):
                raise InputError(f"{said} {where}") from error
            raise RuntimeError(f"{type(error).__name__}: {said} {where}") from error
        seconds = round(time.perf_counter() - start, 3)
        return save(place, case, result, origin | {"seconds": seconds, "date": now()})


def save(place: Path, case: dict, result: dict | list[dict], origin: Row) -> list[Row]:
    """Writes the file of a case, in place of an older one: case, what was measured, where it came from."""
    results = [result] if isinstance(result, dict) else list(result)
    if not results:
        raise ValueError(f"{place.name}: measuring {case} gave no row")
    full = [{**case, **row, **origin} | row | case for row in results]
    rows = [{n: (v or None) if n in TEXT else plain(v) for n, v in row.items()} for row in full]
    case, recipe = {name: plain(value) for name, value in case.items()}, origin["recipe"]
    content = json.dumps({"case": case, "recipe": recipe, "rows": rows}, indent=1, ensure_ascii=False)
    files.write(place / f"{name_of(case, recipe)}.json", content + "\n")
    return rows
