"""Compressors compared question by question: differences with intervals, and how many were looked at.

Every cell is asked the same test questions, so two cells are compared on each question by itself, which takes
the difficulty of the questions out of the difference. Seeds that both have are averaged.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vtc import cost, data
from vtc.profiles import Profile
from vtc.sweep import unpacked

FAMILIES = {**data.FAMILIES, "all": data.TASKS}


def differences(rows: pd.DataFrame, tasks: list[str], against: str) -> pd.DataFrame:
    """Score of each compressor minus that of `against`, per V and family -> one row each.

    `rows` are cells of one LLM; `tasks[i]` is the task of question i. A family's score is the mean over its
    tasks. `low`, `high`: 95 %, for another training run and other questions, see `_interval`. `p`: two-sided;
    `p_holm`: corrected for all the rows of this table. Columns: compressor, V, family, difference, low, high,
    p, p_holm, seeds.
    """
    found = []
    at = {t: np.flatnonzero(np.array(tasks) == t) for t in data.TASKS}  # places of a task's questions
    for V, cells in rows.groupby("V"):
        base = _by_seed(cells[cells["compressor"] == against])
        for name, part in cells.groupby("compressor"):
            other = _by_seed(part)
            seeds = sorted(set(base) & set(other))
            if name == against or not seeds:
                continue
            apart = np.array([other[s] - base[s] for s in seeds])  # (seeds, questions)
            for family, names in FAMILIES.items():
                numbers = _interval([apart[:, at[t]] for t in names])
                found.append((name, int(V), family, *numbers, len(seeds)))
    columns = ["compressor", "V", "family", "difference", "low", "high", "p", "seeds"]
    table = pd.DataFrame(found, columns=columns)
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def _interval(apart: list[np.ndarray]) -> tuple[float, float, float, float]:
    """Differences (seeds, questions) of each task -> mean over tasks, its 95 % interval, p.

    Student's t, with Welch and Satterthwaite's degrees of freedom: the variance of a mean over n seeds, plus
    that over the questions that all seeds share. One seed says nothing of other training runs, so questions
    alone count then. (Resampling three seeds covered .82 of 400 planted differences, this .93.)
    """
    from scipy.stats import t as student  # half a second

    n, tasks = len(apart[0]), len(apart)
    by_seed = np.mean([task.mean(1) for task in apart], 0)  # (seeds,)
    of_questions = sum(task.mean(0).var(ddof=1) / task.shape[1] for task in apart) / tasks**2
    of_seeds = by_seed.var(ddof=1) / n if n > 1 else 0.0
    mean, variance = float(by_seed.mean()), float(of_seeds + of_questions)
    if variance == 0:  # every answer scored alike
        return mean, mean, mean, float(mean == 0)
    asked = sum(task.shape[1] - 1 for task in apart)
    freedom = variance**2 / (of_seeds**2 / max(n - 1, 1) + of_questions**2 / asked)
    reach = variance**0.5 * student.ppf(0.975, freedom)
    p = float(2 * student.sf(abs(mean) / variance**0.5, freedom))
    return mean, mean - reach, mean + reach, p


def _by_seed(cells: pd.DataFrame) -> dict[int, np.ndarray]:
    return {int(row.seed): unpacked(row.scores) for row in cells.itertuples()}


def duels(
    rows: pd.DataFrame, tasks: list[str], p: Profile, names: tuple[str, ...], against: tuple[str, ...]
) -> pd.DataFrame:
    """Each of `names` against each of `against` over all tasks, per V, with what it costs beside the other.

    Columns as of `differences` (p_holm over this table), and `cost`, its operations over the other's.
    """
    parts = []
    for other in against:
        part = differences(rows[rows["compressor"].isin([*names, other])], tasks, other)
        parts.append(part[part["family"] == "all"].assign(against=other))
    table = pd.concat(parts, ignore_index=True)
    mflop = with_cost(rows, p).groupby(["compressor", "V"])["mflop"].mean()
    cost_of = [mflop[r.compressor, r.V] / mflop[r.against, r.V] for r in table.itertuples()]
    table = table.assign(p_holm=holm(table["p"].to_numpy()), cost=cost_of)
    order = ["V", "compressor", "against", "difference", "low", "high", "p_holm", "cost", "seeds"]
    return table[order].sort_values(["V", "compressor", "against"], ignore_index=True)


def with_cost(rows: pd.DataFrame, p: Profile) -> pd.DataFrame:
    """Cells with `error`, the mean of both families, and `mflop`, the counted operations of one question.

    Compressor, question pass, projector, prefill and first token; the tower is the same for all and left out.
    """
    t = p.tower
    seen = cost.TowerShape(p.name, p.pixels, t.patch, t.layers, t.d, 4 * t.d, t.heads, levels=len(t.levels))
    counted = []
    for row in rows.itertuples():
        llm = cost.LLMShape.of(p.size(row.size), len(data.WORDS))
        pipe = cost.Pipeline(llm, seen, row.compressor, features_cached=True)
        counted.append(float(cost.flops(pipe, row.V, row.Q)) / 1e6)
    error = rows[[f"error_{family}" for family in data.FAMILIES]].mean(axis=1)
    return rows.assign(error=error, mflop=counted)


def with_misled(rows: pd.DataFrame, compressor: str) -> pd.DataFrame:
    """Cells, and this compressor's again as it scored when misled ("<compressor>, misled")."""
    if "misled" not in rows:
        return rows
    wrong = rows[(rows["compressor"] == compressor) & (rows["misled"].fillna("") != "")]
    wrong = wrong.assign(scores=wrong["misled"], compressor=f"{compressor}, misled")
    return pd.concat([rows, wrong], ignore_index=True)


def with_clock(rows: pd.DataFrame, clock: pd.DataFrame) -> pd.DataFrame:
    """Cells with the milliseconds to their first token, from `pace.first_token`; those not clocked go.

    Each is its ratio to TokenPacker at one token, taken in turn with it, times the median of the latter: a
    busy moment of the machine then counts for nobody.
    """
    clock = clock.assign(first_token_ms=clock["ratio"] * clock["tokenpacker_ms"].median())
    same = ["size", "compressor", "V"]
    return rows.merge(clock[[*same, "first_token_ms"]], on=same)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction: the chance of one false alarm among all tests stays below the level."""
    order = np.argsort(p)
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def claims(table: pd.DataFrame, rivals: pd.DataFrame) -> list[dict]:
    """QueCC against TokenPacker (the paper's Table 1), and our own against QueCC, for `records.claim`.

    table: from `differences` against TokenPacker; rivals: from `duels`.
    """
    said = []
    for row in table[(table["compressor"] == "quecc") & (table["family"] == "all")].itertuples():
        words = f"QueCC scores higher than TokenPacker at V = {row.V}"
        paper = "by 0.001 to 0.007 on most benchmarks at one token" if row.V == 1 else "mixed"
        id = f"05-quecc-{row.V}"
        said.append(_claim(row, id, words, paper, "arXiv 2411.03312v1, Table 1"))
    for row in rivals[rivals["against"].eq("quecc") | rivals["compressor"].eq("lookup")].itertuples():
        other = {"quecc": "QueCC", "tokenpacker": "TokenPacker"}[row.against]
        words = f"{row.compressor} scores higher than {other} at V = {row.V} for no more operations"
        id = f"05-{row.compressor}-{row.V}" + ("" if row.against == "quecc" else f"-{row.against}")
        more = f" at {row.cost:.2f} of the cost"
        said.append(_claim(row, id, words, "not tested", "", more, allowed=row.cost <= 1))
    return said


def _claim(row, id: str, statement: str, paper: str, source: str, more="", allowed=True) -> dict:
    """One difference as a claim, judged at 5 % after Holm's correction (and only if the cost allows it)."""
    clear = row.p_holm < 0.05
    held, lost = clear and row.difference > 0 and allowed, clear and row.difference < 0 or not allowed
    return {
        "id": id,
        "statement": statement,
        "paper": paper,
        "ours": f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]{more}",
        "low": row.low,
        "high": row.high,
        "verdict": "held" if held else "does not hold" if lost else "open",
        "source": source,
    }
