"""The part of README.md that is made of results: written from the recorded rows, never by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vtc import profiles, records
from vtc.profiles import ROOT

FIRST, LAST = "<!-- made by `vtc record` -->", "<!-- end of what `vtc record` makes -->"
README = ROOT / "README.md"


def block(name: str = "laptop") -> str:
    """The findings of a profile's recorded rows in Markdown: where measured, then claim by claim."""
    p = profiles.get(name)
    parts = [_sweep(p.results / "02_errors.csv"), _claims(p.results / f"{records.CLAIM}.csv")]
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


def _sweep(path: Path) -> str:
    """One sentence: how many cells, seeds, which machine; then the corners of the error surface."""
    if not path.exists():
        return ""
    rows = pd.read_csv(path)
    device = " and ".join(sorted(set(rows["device"])))
    seeds = rows.groupby(["size", "V"])["seed"].nunique()
    said = (
        f"Recorded sweep: {len(rows)} trained models, {len(seeds)} cells of N and V, "
        f"{_span(seeds.min(), seeds.max())} seeds a cell, {rows['questions'].iloc[0]:,} test questions each; "
        f"{device}, commit {', '.join(sorted(set(rows['commit'].astype(str))))}."
    )
    head = "| mean error | V = 0 | fewest tokens | most tokens |\n|---|---|---|---|"
    lines = []
    for family, label in (("reasoning", "reasoning"), ("ocr", "OCR-like")):
        for N, which in ((rows["N"].min(), "smallest"), (rows["N"].max(), "largest")):
            part = rows[rows["N"] == N].groupby("V")[f"error_{family}"].mean()
            cells = [part.get(0), part[part.index > 0].iloc[0], part.iloc[-1]]
            text = " | ".join("-" if v is None else f"{v:.2f}" for v in cells)
            lines.append(f"| {label}, {which} LLM (N = {N:,}) | {text} |")
    return said + "\n\n" + "\n".join([head, *lines])


def _span(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _claims(path: Path) -> str:
    """Every claim with the paper's number, ours and the verdict."""
    if not path.exists():
        return ""
    rows = pd.read_csv(path, dtype=str).fillna("").sort_values("id", kind="stable", key=_numbers_as_numbers)
    lines = ["| claim | paper | here | verdict |", "|---|---|---|---|"]
    for row in rows.itertuples():
        ours = _short(row.ours)
        if row.low and row.high and "[" not in ours:
            ours += f" [{_short(row.low)}, {_short(row.high)}]"
        lines.append(f"| {row.statement} | {_short(row.paper)} | {ours} | **{row.verdict}** |")
    return "\n".join(lines)


def _numbers_as_numbers(ids: pd.Series) -> pd.Series:
    """Ids that sort V = 4 before V = 16."""
    return ids.str.replace(r"\d+", lambda found: found.group().zfill(4), regex=True)


def _short(text: str) -> str:
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text.replace("|", "/")
