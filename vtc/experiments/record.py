"""Measured rows taken into the CSV files that are committed, and what is refused there."""

from __future__ import annotations

from pathlib import Path

from vtc import InputError, files
from vtc.experiments import store
from vtc.profiles import Profile


def of_run(profile: Profile) -> dict[str, list[dict]]:
    """Table -> its cases in runs/ that today's recipe made; InputError where one may not be recorded."""
    stems = sorted(path.name for path in (profile.runs / "rows").glob("[!.]*") if path.is_dir())
    return {stem: found for stem in stems if (found := _good(profile, stem, store.measured(stem, profile)))}


def of_file(profile: Profile, path: Path) -> dict[str, list[dict]]:
    """The same of a CSV that `write_csv` wrote on another machine; column `table` names the table."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a CSV that `vtc record --csv` wrote")
    header = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].split(",")
    if missing := {"key", "table", "commit"} - set(header):
        raise InputError(
            f"{path}: has no column {', '.join(sorted(missing))}; expected a CSV of `vtc record --csv`"
        )
    tables: dict[str, dict[str, dict]] = {}
    for name, case in store.read_csv(path).items():
        stem = case["rows"][0].get("table")
        case["rows"] = [
            {n: v for n, v in row.items() if n != "table" and v is not None} for row in case["rows"]
        ]
        tables.setdefault(stem, {})[name] = case
    return {stem: _good(profile, stem, found) for stem, found in tables.items()}


def _good(profile: Profile, stem: str, found: dict[str, dict]) -> list[dict]:
    planned = {*profile.seeds, *profile.recorded_seeds}
    good = [case for case in found.values() if case["recipe"] in _recipes(profile)]
    for case in good:
        where = f"{stem}, case " + ", ".join(f"{name}={value}" for name, value in case["case"].items())
        commit, seed = case["rows"][0]["commit"] or "", case["case"].get("seed")
        if not commit or commit.endswith("-dirty"):
            made = f"uncommitted code ({commit})" if commit else "code of no commit (is VTC_COMMIT set?)"
            raise InputError(f"{where}: made from {made}; commit it, delete this row and measure it again")
        if seed is not None and seed not in planned:
            plan = ", ".join(map(str, sorted(planned)))
            raise InputError(f"{where}: seed {seed} is not in the plan of profile {profile.name} ({plan})")
    return good


def _recipes(profile: Profile) -> set[str]:
    """The recipes whose rows are taken: none (a clock), the profile's and its variants'."""
    return {"", profile.fingerprint, *(variant.fingerprint for variant in profile.variants.values())}


def merge(profile: Profile, stem: str, cases: list[dict]) -> str:
    """Cases into the recorded table, sorted, in place of older rows of theirs; says what it did.

    Recorded rows that another recipe made go.
    """
    path = profile.results / f"{stem}.csv"
    before = store.read_csv(path)
    kept = {name: case for name, case in before.items() if case["recipe"] in _recipes(profile)}
    new = {store.name_of(case["case"], case["recipe"]): case for case in cases}
    new = {name: case for name, case in new.items() if name not in kept or _date(case) > _date(kept[name])}
    replaced, gone = len(new.keys() & kept.keys()), len(before) - len(kept)
    if new or gone:
        every = sorted((kept | new).values(), key=lambda case: store.rank(case["case"]))
        write_csv(path, {stem: every}, named=False)
    told = f"{len(new) - replaced} added, {replaced} replaced"
    return told + (f", {gone} of another recipe left out" if gone else "")


def _date(case: dict) -> str:
    return str(case["rows"][0].get("date") or "")


def write_csv(path: Path, tables: dict[str, list[dict]], named: bool = True) -> None:
    """Cases as a CSV: a line a row; column `key` names the fields of its case, `table` its table."""
    rows = [
        ({"table": stem} if named else {}) | row | {"key": " ".join(case["case"])}
        for stem, cases in tables.items()
        for case in cases
        for row in case["rows"]
    ]
    files.write(path, files.csv_text(rows))
