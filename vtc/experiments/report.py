"""The part of README.md that is made of results: written from the recorded rows, never by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vtc import profiles
from vtc.experiments import store
from vtc.profiles import ROOT

FIRST, LAST = "<!-- made by `vtc record` -->", "<!-- end of what `vtc record` makes -->"
README = ROOT / "README.md"


def block(name: str = "laptop") -> str:
    """The findings of a profile's recorded rows in Markdown: where measured, then claim by claim."""
    p = profiles.get(name)
    parts = [_sweep(p.results / "02_errors.csv"), _claims(p.results / f"{store.CLAIM}.csv")]
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


# where a claim's number was measured, by the beginning of its id, the longest first
GROUPS = {
    "04-own-": "The same law on our own sweep (notebook 04)",
    "02-": "Our own sweep (notebook 02)",
    "03-": "On the clock (notebook 03)",
    "04-": "The law, fitted anew to the paper's own 28 points (notebook 04)",
    "05-": "Compressors side by side (notebook 05)",
}


def _claims(path: Path) -> str:
    """Every claim with the paper's number, ours and the verdict: a table for each place it was measured."""
    if not path.exists():
        return ""
    rows = pd.read_csv(path, dtype=str).fillna("")
    group = [next((start for start in GROUPS if id.startswith(start)), "") for id in rows["id"]]
    parts = []
    for start in sorted(GROUPS):
        of = rows[[one == start for one in group]].sort_values("id", kind="stable", key=_numbers_as_numbers)
        if len(of):
            parts.append(f"**{GROUPS[start]}**\n\n" + (_duels(of) if start == "05-" else _listed(of)))
    return "\n\n".join(parts)


def _listed(rows: pd.DataFrame) -> str:
    """A claim a line."""
    lines = ["| claim | paper | here | verdict |", "|---|---|---|---|"]
    for row in rows.itertuples():
        ours = _short(row.ours)
        if row.low and row.high and "[" not in ours:
            ours += f" [{_short(row.low)}, {_short(row.high)}]"
        lines.append(f"| {row.statement} | {_short(row.paper)} | {ours} | **{row.verdict}** |")
    return "\n".join(lines)


def _duels(rows: pd.DataFrame) -> str:
    """A pair of compressors a line, a column a V: the difference, bold where it held; the paper's below."""
    names = r"(?P<one>\S+) scores higher than (?P<other>\S+) at V = (?P<V>\d+)"
    rows = rows.join(rows["statement"].str.extract(names).astype({"V": int}))
    rows["seeds"] = rows["ours"].str.extract(r"(\d+) seed")[0]
    shown = {"held": "**{}**", "does not hold": "{}: **does not hold**"}
    rows["here"] = [
        shown.get(r.verdict, "{}").format(r.ours.partition("]")[0] + "]") for r in rows.itertuples()
    ]
    lines = [f"| scores higher | {' | '.join(f'V = {V}' for V in sorted(set(rows['V'])))} |"]
    lines.append("|---" * (1 + rows["V"].nunique()) + "|")
    for (one, other), of in rows.groupby(["one", "other"], sort=False):
        by_V = of.set_index("V").reindex(sorted(set(rows["V"]))).fillna("")
        lines.append(f"| {one} than {other} | {' | '.join(by_V['here'])} |")
        said = by_V["paper"].replace("not tested", "")
        if said.any():
            lines.append(f"| - the paper, Table 1 | {' | '.join(said)} |")
    seeds = "; ".join(
        f"{n} seeds at V = {', '.join(map(str, sorted(set(of['V']))))}" for n, of in rows.groupby("seeds")
    )
    return "\n".join(lines) + f"\n\nBold: held after Holm's correction; others open. {seeds}."


def _numbers_as_numbers(ids: pd.Series) -> pd.Series:
    """Ids that sort V = 4 before V = 16."""
    return ids.str.replace(r"\d+", lambda found: found.group().zfill(4), regex=True)


def _short(text: str) -> str:
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text.replace("|", "/")
