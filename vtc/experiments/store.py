"""Rows: find those there are, measure what is missing, append; where each came from; claims.

A row is found by what made it: the fields of its case are the key, readable in the CSV (column `key` names
them). Recorded rows (`results/<profile>/`, committed) are read only; whatever is measured goes to
`runs/<profile>/`, from where `vtc record` takes it over.
"""

from __future__ import annotations

import functools
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pandas as pd

from vtc import InputError, files, profiles, progress
from vtc.experiments import rows
from vtc.experiments.executor import spread, words
from vtc.experiments.rows import Row
from vtc.machine import processor
from vtc.profiles import Profile

CLAIM = "claims"  # stem of the table of claims

Measure = Callable[[dict], "dict | list[dict]"]


def table(
    stem: str, profile: Profile, cases: Iterable[dict], measure: Measure | None, workers: int = 1
) -> pd.DataFrame:
    """The rows of these cases, in their order; those not there yet are measured and saved one by one.

    Looked at are `results/` (unless `profile.recompute`) and `runs/`. `measure(case)` returns one dict or
    several (one row each); what it returns wins over the provenance written by default (seconds, device,
    versions, commit, date). With workers > 1 missing cases are measured in that many processes of one
    thread, begun in the given order; `measure` must then be picklable (a function of a module, or a partial
    of one). Several programs may share a sweep: none measures a case that another has in hand.
    `measure=None` only looks, and leaves out what is missing.
    Raises InputError for two equal cases, and what `measure` raised, with its case named.
    """
    cases = list(cases)
    wanted = {rows.key_of(case): case for case in cases}
    if len(wanted) < len(cases):
        raise InputError(f"{stem}: {len(cases)} cases, but only {len(wanted)} differ; a case is its own key")
    found = _found(stem, profile, wanted)
    missing = [key for key in wanted if key not in found]
    if missing and measure is not None:
        path = profile.runs / f"{stem}.csv"
        with progress.bar(label=stem, total=len(wanted), unit="case") as shown:
            shown.update(len(wanted) - len(missing))
            for key, new in _measured(path, profile, {k: wanted[k] for k in missing}, measure, workers):
                found[key] = new
                shown.update()
    return frame([row for key in wanted for row in found.get(key, [])])


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
    there = table(stem, profile, cases, None)
    missing = len(cases) - _cases_in(there, cases)
    if missing:
        print(f"{missing} of {len(cases)} cases of {stem} are not recorded yet: `{command}` measures them")
    return there


def _cases_in(there: pd.DataFrame, cases: list[dict]) -> int:
    """How many of the cases have rows."""
    if there.empty:
        return 0
    names = list(cases[0])
    return len({rows.key_of(dict(zip(names, row))) for row in there[names].itertuples(index=False)})


def stored(stem: str, profile: Profile) -> pd.DataFrame:
    """Every row of a table there is, recorded (unless `profile.recompute`) and measured; measures nothing."""
    return frame([row for group in _found(stem, profile, None).values() for row in group])


def frame(texts: list[Row]) -> pd.DataFrame:
    """Rows of text as a frame with types; bookkeeping columns `key` and `rows` left out."""
    names = [name for name in rows.columns(texts) if name not in ("key", "rows")]
    typed = {name: [rows.from_text(row.get(name)) for row in texts] for name in names if name != "commit"}
    typed["commit"] = [row.get("commit") or None for row in texts]  # 9213e08 is no number
    return pd.DataFrame(typed, columns=names)


def _found(stem: str, profile: Profile, wanted: Iterable[frozenset] | None) -> dict[frozenset, list[Row]]:
    """Complete groups of rows by key; a recorded group stands before a measured one."""
    folders = [profile.runs] if profile.recompute else [profile.runs, profile.results]
    found: dict[frozenset, list[Row]] = {}
    for folder in folders:  # later ones overwrite
        found |= _groups(rows.read(folder / f"{stem}.csv"))
    return found if wanted is None else {key: found[key] for key in wanted if key in found}


def _groups(texts: list[Row]) -> dict[frozenset, list[Row]]:
    """Rows by the key they name; of a case written twice the later rows, of an unfinished one none."""
    groups: dict[frozenset, list[Row]] = {}
    for row in texts:
        key = rows.key_of({name: row.get(name) for name in row.get("key", "").split()})
        group = groups.setdefault(key, [])
        if len(group) == _size(row):
            group.clear()
        group.append(row)
    return {key: group for key, group in groups.items() if key and len(group) == _size(group[0])}


def _size(row: Row) -> int:
    """How many rows its case has."""
    return int(row.get("rows") or 1)


def _measured(
    path: Path, profile: Profile, missing: dict[frozenset, dict], measure: Measure, workers: int
) -> Iterator[tuple[frozenset, list[Row]]]:
    """Yields the rows of each missing case once they are on the disk."""
    left, held, ready = dict(missing), {}, []

    def ours(wait: bool) -> Iterator[dict]:
        """Cases nobody else has in hand; each stays held until its rows are saved."""
        for key in list(left):
            if (handle := files.hold(path, key, wait)) is None:
                continue  # another program measures it
            if new := _groups(rows.read(path)).get(key):
                handle.close()
                ready.append((key, new))  # another program has measured it
                del left[key]
                continue
            held[key] = handle
            yield left[key]

    fault = None
    try:
        for wait in (False, True):  # first what is free, then what others had and didn't finish
            for case, result in _results(ours(wait), measure, workers):
                if isinstance(result, Exception):
                    fault = fault or (case, result)
                    continue
                key, new = rows.key_of(case), _rows(case, *result, path.stem, profile)
                rows.append(path, new)
                held.pop(key).close()
                del left[key]
                yield key, new
            if fault:
                raise _blamed(path.stem, *fault)
            yield from ready
            ready.clear()
    finally:
        for handle in held.values():
            handle.close()


def _results(cases: Iterator[dict], measure: Measure, workers: int) -> Iterator[tuple[dict, object]]:
    """Yields (case, (what was measured, seconds)) or, last, (case, its error)."""
    timed = functools.partial(_timed, measure)
    if workers > 1:
        yield from spread(timed, cases, workers)
        return
    for case in cases:
        try:
            result = timed(case)
        except Exception as error:
            yield case, error
            return
        yield case, result


def _timed(measure: Measure, case: dict) -> tuple[dict | list[dict], float]:
    start = time.perf_counter()
    return measure(dict(case)), time.perf_counter() - start


def _blamed(stem: str, case: dict, error: Exception) -> Exception:
    """The error with its case named in one line, still an InputError if a person can mend it."""
    bad_input = isinstance(error, InputError) or getattr(error, "bad_input", False)
    where = ", ".join(f"{name}={value}" for name, value in case.items())
    told = (InputError if bad_input else RuntimeError)(f"{words(error)} ({stem}, case {where})")
    told.__cause__ = error
    return told


def _rows(case: dict, result: dict | list[dict], seconds: float, stem: str, profile: Profile) -> list[Row]:
    """Rows as they are written: case, what was measured, where it came from."""
    results = [result] if isinstance(result, dict) else list(result)
    if not results:
        raise ValueError(f"{stem}: measuring {case} gave no row")
    origin = provenance(profile) | {"seconds": f"{seconds:.3f}"}
    own = {"key": " ".join(case), "rows": len(results)}
    full = [{**case, **row, **origin} | row | case | own for row in results]
    return [{name: rows.to_text(value) for name, value in row.items()} for row in full]


def provenance(profile: Profile) -> dict[str, str]:
    """Where a row comes from; the device is the processor (a measurement on another says so itself)."""
    return {
        "profile": profile.name,
        "device": processor(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def commit() -> str:
    """The checkout's commit, "-dirty" if tracked files differ from it; empty outside a checkout."""
    if not (profiles.ROOT / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=profiles.ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)  # without importing it
    except metadata.PackageNotFoundError:
        return ""


def claim(
    profile: Profile,
    id: str,
    statement: str,
    paper: float | str | None,
    ours: float | str | None,
    low: float | None = None,
    high: float | None = None,
    verdict: str = "",
    source: str = "",
) -> None:
    """Writes down one claim: the paper's number, ours with its interval, and whether it held.

    `id` is a short word for it (a second call replaces the first), `source` where the paper says so;
    `verdict` one of "held", "does not hold", "open" or a few words.
    """
    said = {"id": id, "statement": statement, "paper": paper, "ours": ours}
    said |= {"low": low, "high": high, "verdict": verdict, "source": source}
    row = {name: rows.to_text(value) for name, value in said.items()}
    path = profile.runs / f"{CLAIM}.csv"
    known = _groups(rows.read(path)).get(rows.key_of({"id": id}), [{}])[0]
    if any(known.get(name) != text for name, text in row.items()):
        rows.append(path, [row | provenance(profile) | {"key": "id", "rows": "1"}])


def claims(profile: Profile) -> pd.DataFrame:
    """The table of claims in the order they were made; one made now stands before a recorded one."""
    folders = [profile.runs] if profile.recompute else [profile.results, profile.runs]
    groups: dict[frozenset, list[Row]] = {}
    for folder in folders:
        groups |= _groups(rows.read(folder / f"{CLAIM}.csv"))
    columns = ["id", "statement", "paper", "ours", "low", "high", "verdict", "source"]
    return frame([row for group in groups.values() for row in group]).reindex(columns=columns)


def merge(source: Path, target: Path) -> str:
    """Adds the rows of one file to another, key by key (the newer wins), sorted by key; says what it did."""
    new, old = _groups(rows.read(source)), _groups(rows.read(target))
    replaced = [key for key in new if key in old and _date(new[key]) > _date(old[key])]
    added = [key for key in new if key not in old]
    if added or replaced:
        groups = list((old | {key: new[key] for key in added + replaced}).values())
        if target.stem != CLAIM:  # claims keep the order in which the notebooks make them
            groups.sort(key=lambda group: [_rank(group[0].get(name, "")) for name in group[0]["key"].split()])
        texts = [row for group in groups for row in group]
        rows.write(target, texts, rows.columns(texts))
    dirty = sum(any("-dirty" in row.get("commit", "") for row in new[key]) for key in added + replaced)
    return f"{len(added)} added, {len(replaced)} replaced" + (
        f", {dirty} made from uncommitted code" if dirty else ""
    )


def _date(group: list[Row]) -> str:
    return group[0].get("date", "")


def _rank(text: str) -> tuple[bool, float, str]:
    """Numbers by size, then words by the alphabet."""
    value = rows.from_text(text)
    return (False, value, "") if isinstance(value, (int, float)) else (True, 0, text)
