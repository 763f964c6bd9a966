"""What the README and `vtc reproduce` show of the claims: tables made from rows, never by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from vtc import files, profiles
from vtc.evaluation.exam import exam
from vtc.experiments import claims, evidence, predictions, store
from vtc.profiles import ROOT, Profile

FIRST, LAST = "<!-- made by `vtc record` -->", "<!-- end of what `vtc record` makes -->"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "real_llm.md"
SCORES = ROOT / "results" / "smollm2" / "scores.json"  # of a real LLM, shown on that page


# ----------------------------------------------------------------------------------- rows -> the table


def recorded(p: Profile) -> pd.DataFrame:
    """The table of claims from a profile's recorded rows."""
    return claims.table(evidence.every(lambda stem: store.recorded(stem, p), *_known(p)))


def measured(p: Profile) -> pd.DataFrame:
    """The table of claims from the rows that this profile finds now."""
    return claims.table(evidence.every(lambda stem: store.stored(stem, p.variants.get(stem, p)), *_known(p)))


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
    """How the evidence stands, in Markdown: what was trained, then one table of the rows that matter most."""
    p = profiles.get(name)
    table = recorded(p)
    main = table[table["main"]]
    lines = [["what is said", "here, 95 % interval", "verdict", "which means"], ["---"] * 4]
    for kind, title in claims.EVIDENCE.items():
        lines += _group(title, main[(main["kind"] == "claim") & (main["evidence"] == kind)])
    lines += _group("Observed besides, claimed by nobody", main[main["kind"] == "observation"])
    rows = "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
    path = p.results.relative_to(ROOT) / "claims.csv"
    parts = [_sweep(store.recorded("02_errors", p)), rows, f"All {len(table)} rows: [{path}]({path})."]
    return "\n\n".join(part for part in parts if part)


def refresh(path: Path = README, name: str = "laptop") -> bool:
    """Put the block in its place between the two marks; returns whether the file changed."""
    return put(path, block(name))


def put(path: Path, made: str) -> bool:
    """Put a text between the two marks of a file, if it has them; returns whether the file changed."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(FIRST)
    _, mark, after = rest.partition(LAST)
    if not mark:
        return False
    new = f"{before}{FIRST}\n\n{made}\n\n{LAST}{after}"
    path.write_text(new, encoding="utf-8")
    return new != text


def scores_in_words(rows: list[dict]) -> str:
    """What `vtc evaluate` found of one model at several V, and how the model was trained, in Markdown."""
    of, first = rows[0]["training"], rows[0]
    seen = sum(of[s]["steps"] * of[s]["batch"] * of[s]["pack"] for s in ("align", "instruct"))
    steps = " and ".join(f"{of[s]['steps']:,}" for s in ("align", "instruct"))
    lines = [f"| visual tokens V | right, of {first['questions']:,} | minutes to ask them |", "|---|---|---|"]
    lines += [
        f"| {row['V']} | {row['score']:.3f} | {row['evaluate_seconds'] / 60:.0f} |"
        for row in sorted(rows, key=lambda row: -row["V"])
    ]
    how = f"{of['compressor']}, N = {of['N'] / 1e6:,.0f} million; {steps} steps of the two stages"
    took = f"{seen:,} captions and questions, {of['train_seconds'] / 60:.0f} minutes on {of['device']}"
    return "\n".join([*lines, "", f"{how}, {took} (commit {of['commit']})."])


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


def _group(title: str, rows: pd.DataFrame) -> list[list[str]]:
    """Lines of the README's table under a title of their own; none where there are no rows."""
    lines = [
        [row.says, _here(row) + (f"; claimed {row.test}" if row.test else ""), _judged(row), row.means]
        for row in rows.itertuples()
    ]
    return [[f"**{title}**", "", "", ""], *lines] if lines else []


def _here(row) -> str:
    """The number and its interval in three digits."""
    known = math.isfinite(row.low) or math.isfinite(row.high)
    number = "" if pd.isna(row.value) else f"{row.value:.3g}"
    return f"{number} [{row.low:.3g}, {row.high:.3g}]".strip() if known else number


def _judged(row) -> str:
    """The verdict, and beside it p after Holm's correction for the tests of the same question."""
    return row.verdict + ("" if pd.isna(row.p_holm) else f" (p = {row.p_holm:.2g})")


def _sweep(rows: pd.DataFrame) -> str:
    """One sentence: how many models, cells, seeds and questions, on which machine."""
    if rows.empty:
        return ""
    seeds = rows.groupby(["size", "V"])["seed"].nunique()
    few, many = seeds.min(), seeds.max()
    return (
        f"Recorded sweep: {len(rows)} rows, {len(seeds)} cells of N and V, "
        f"{few if few == many else f'{few} to {many}'} seeds a cell, "
        f"{rows['questions'].iloc[0]:,} test questions each; "
        f"{' and '.join(sorted(set(rows['device'])))}, commit {', '.join(sorted(set(rows['commit'])))}."
    )
