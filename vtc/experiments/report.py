"""What the README and `vtc reproduce` show of the claims: tables made from rows, never by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from vtc import files, profiles
from vtc.evaluation.exam import exam
from vtc.experiments import claims, evidence, predictions, store
from vtc.profiles import ROOT, Profile

FIRST, LAST = "<!-- made by `vtc record` -->", "<!-- end of what `vtc record` makes -->"
README = ROOT / "README.md"


# ----------------------------------------------------------------------------------- rows -> the table


def recorded(p: Profile) -> pd.DataFrame:
    """The table of claims from a profile's recorded rows."""
    return claims.table(evidence.every(lambda stem: store.recorded(stem, p), *_known(p)))


def measured(p: Profile) -> pd.DataFrame:
    """The table of claims from the rows that this profile finds now."""
    return claims.table(evidence.every(lambda stem: store.stored(stem, p), *_known(p)))


def _known(p: Profile) -> tuple[list[str], pd.DataFrame | None]:
    """What claims need beside rows: the task of each test question, and what was predicted."""
    return exam(p).tasks, predictions.committed(p)


def record(p: Profile) -> bool:
    """Writes `claims.csv` beside the recorded rows that it follows from, if there are any."""
    there = any((p.results / f"{stem}.csv").exists() for stem in evidence.TABLES)
    if there:
        text = recorded(p).to_csv(index=False, float_format="%.6g", lineterminator="\n")
        files.write(p.results / "claims.csv", text)
    return there


# --------------------------------------------------------------------------------------- for readers


def block(name: str = "laptop") -> str:
    """The findings of the recorded rows in Markdown: what was trained, claimed and observed."""
    p = profiles.get(name)
    table = recorded(p)
    main = table[table["main"]]
    parts = [_sweep(store.recorded("02_errors", p))]
    for kind, title in claims.EVIDENCE.items():
        rows = main[(main["kind"] == "claim") & (main["evidence"] == kind)]
        parts.append(f"**{title}**\n\n" + _markdown(rows, "the paper says", _claimed) if len(rows) else "")
    rows = main[main["kind"] == "observation"]
    head = "**Observed besides, claimed by nobody**\n\n"
    parts.append(head + _markdown(rows, "what was measured", lambda row: [row.says, _here(row)]))
    path = p.results.relative_to(ROOT) / "claims.csv"
    parts.append(f"All {len(table)} rows: [{path}]({path}).")
    return "\n\n".join(part for part in parts if part)


def refresh(path: Path = README, name: str = "laptop") -> bool:
    """Put the block in its place between the two marks; returns whether the file changed."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(FIRST)
    _, mark, after = rest.partition(LAST)
    if not mark:
        return False
    new = f"{before}{FIRST}\n\n{block(name)}\n\n{LAST}{after}"
    path.write_text(new, encoding="utf-8")
    return new != text


def comparison(p: Profile) -> str:
    """Every claim with our number now, the recorded one and the verdict, as a table in plain text."""
    path = p.results / "claims.csv"
    before = pd.read_csv(path, index_col="id") if path.exists() else pd.DataFrame()
    lines = [("evidence", "what is said", "test", "here", "recorded", "verdict")]
    for row in measured(p).itertuples():
        old = _here(before.loc[row.id]) if row.id in before.index else "-"
        lines.append((row.evidence, row.says[:70], row.test, _here(row) or "-", old, _judged(row)))
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, tuple("-" * width for width in widths))
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join(text)


def _claimed(row) -> list[str]:
    """The cells of one claim: what is said and where, the test, the number, the verdict."""
    return [
        f"{row.says} ({row.where})",
        _here(row) + (f"; claimed {row.test}" if row.test else ""),
        _judged(row),
    ]


def _markdown(rows: pd.DataFrame, first: str, cells: Callable[[object], list[str]]) -> str:
    """A table: what is said, the number here, the verdict of a claim, and what it means."""
    lines = [[*cells(row), row.means] for row in rows.itertuples()]
    judged = ["verdict"] if len(lines[0]) == 4 else []
    head = [first, "here, 95 % interval", *judged, "which means"]
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def _here(row) -> str:
    """The number and its interval in three digits."""
    if pd.isna(row.value):
        return ""
    known = math.isfinite(row.low) or math.isfinite(row.high)
    interval = f" [{row.low:.3g}, {row.high:.3g}]" if known else ""
    return f"{row.value:.3g}{interval}"


def _judged(row) -> str:
    """The verdict, and beside it p after Holm's correction for the tests of the same question."""
    beside = "" if pd.isna(row.p_holm) else f" (Holm, {row.tests:.0f} tests: p = {row.p_holm:.2g})"
    return row.verdict + beside


def _sweep(rows: pd.DataFrame) -> str:
    """One sentence: how many cells, seeds, which machine; then the corners of the error surface."""
    if rows.empty:
        return ""
    seeds = rows.groupby(["size", "V"])["seed"].nunique()
    few, many = seeds.min(), seeds.max()
    said = (
        f"Recorded sweep: {len(rows)} trained models, {len(seeds)} cells of N and V, "
        f"{few if few == many else f'{few} to {many}'} seeds a cell, "
        f"{rows['questions'].iloc[0]:,} test questions each; "
        f"{' and '.join(sorted(set(rows['device'])))}, commit {', '.join(sorted(set(rows['commit'])))}."
    )
    lines = ["| mean error | V = 0 | fewest tokens | most tokens |", "|---|---|---|---|"]
    for family, label in evidence.FAMILIES.items():
        for N, which in ((rows["N"].min(), "smallest"), (rows["N"].max(), "largest")):
            part = rows[rows["N"] == N].groupby("V")[f"error_{family}"].mean()
            cells = [part.get(0), part[part.index > 0].iloc[0], part.iloc[-1]]
            text = " | ".join("-" if v is None else f"{v:.2f}" for v in cells)
            lines.append(f"| {label}, {which} LLM (N = {N:,}) | {text} |")
    return said + "\n\n" + "\n".join(lines)
