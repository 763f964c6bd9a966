"""Compressors compared question by question: differences with intervals, and how many were looked at.

Every cell is asked the same test questions, so two cells are compared on each question by itself, which takes
the difficulty of the questions out of the difference. Seeds that both have are averaged.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from vtc import compressors, cost, data, scaling
from vtc.experiments.sweep import unpacked
from vtc.profiles import Profile

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
    counted = []
    for row in rows.itertuples():
        llm = replace(p.size(row.size), vocab=len(data.WORDS))
        pipe = cost.Pipeline(llm, p.tower, row.compressor, features_cached=True)
        counted.append(float(cost.flops(pipe, row.V, row.Q)) / 1e6)
    error = rows[[f"error_{family}" for family in data.FAMILIES]].mean(axis=1)
    return rows.assign(error=error, mflop=counted)


def tflop_beside(rows: pd.DataFrame, llm: str, Q: int = 50) -> pd.DataFrame:
    """Operations of a question with that LLM on CLIP-L's 576 patches: a row a compressor, a column a V."""
    counted = {}
    for name, V in rows[["compressor", "V"]].drop_duplicates().itertuples(index=False):
        least, most = cost.reach(name)
        if not least <= V <= most:  # all patches of a smaller tower are no compression of this one's
            continue
        pipe = cost.Pipeline(cost.llm(llm), compressor=name, features_cached=True)
        counted[name, V] = float(cost.flops(pipe, V, Q)) / 1e12
    return pd.Series(counted).unstack()


def frontier(rows: pd.DataFrame, cost: str = "mflop") -> pd.DataFrame:
    """Cells, means over seeds, that none as cheap or cheaper equals: compressor, V, cost, error, rising."""
    means = rows.groupby(["compressor", "V"])[[cost, "error"]].mean().reset_index()
    means = scaling.undominated(means, cost)
    return means[means.pop("frontier")].reset_index(drop=True)


def with_misled(rows: pd.DataFrame, compressor: str) -> pd.DataFrame:
    """Cells, and this compressor's again as it scored when misled ("<compressor>, misled")."""
    if "shuffled" not in rows:
        return rows
    wrong = rows[(rows["compressor"] == compressor) & (rows["shuffled"].fillna("") != "")]
    wrong = wrong.assign(scores=wrong["shuffled"], compressor=f"{compressor}, misled")
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


PUBLISHED = {name: line.published for name, line in compressors.REGISTRY.items() if line.published}
TABLE_1 = tuple(name for name in PUBLISHED if name != "quecc")  # the paper's Table 1 puts them beside QueCC


def claims(published: pd.DataFrame, ours: pd.DataFrame) -> list[dict]:
    """QueCC against those of the paper's Table 1, and our own against QueCC, for `records.claim`.

    Both from `duels`. Ours must cost no more operations than what they are held against.
    """
    said = []
    for row in published.itertuples():
        paper = in_table_1(row.against, row.V)
        source = "arXiv 2411.03312v1, Table 1" if paper != "not tested" else ""
        said.append(_claim(row, paper, source))
    for row in ours[ours["against"].eq("quecc") | ours["compressor"].eq("lookup")].itertuples():
        said.append(_claim(row, "not tested", "", cost=row.cost))
    return said


def in_table_1(other: str, V: int) -> str:
    """QueCC's mean score minus another's in the paper's Table 1, over what both report in percent."""
    table = [r for r in scaling.published_rows("compressors") if r["unit"] == "percent" and r["value"]]
    mine = {(int(r["V"]), r["task"]): float(r["value"]) for r in table if r["method"] == "QueCC"}
    groups = sorted({v for v, _ in mine})
    apart, at = [], set()
    for r in table:  # that table groups by V, nearly: MQT's two tokens stand beside one, PruMerge's 32 by 36
        group = min(groups, key=lambda v: abs(np.log(v / int(r["V"]))))
        if r["method"] == PUBLISHED[other] and group == V:
            apart.append((mine[V, r["task"]] - float(r["value"])) / 100)
            at.add(int(r["V"]))
    if not apart:
        return "not tested"
    tokens = "" if at == {V} else f", {PUBLISHED[other]} at {max(at)}"
    return f"{np.mean(apart):+.3f}, {len(apart)} benchmarks{tokens}"


def _claim(row, paper: str, source: str, cost: float | None = None) -> dict:
    """One duel as a claim: at 5 % after Holm, by more than one seed and, where a cost is given, no dearer."""
    clear, dear = row.p_holm < 0.05 and row.seeds > 1, cost is not None and cost > 1
    held, lost = clear and row.difference > 0 and not dear, dear or clear and row.difference < 0
    names = [compressors.label(name) for name in (row.compressor, row.against)]
    seeds = f"{row.seeds} seed{'s' * (row.seeds > 1)}"
    return {
        "id": f"05-{row.compressor}-{row.against}-{row.V}",
        "statement": f"{names[0]} scores higher than {names[1]} at V = {row.V}"
        + (" for no more operations" if cost is not None else ""),
        "paper": paper,
        "ours": f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}], {seeds}"
        + (f", at {cost:.2f} of the cost" if cost is not None else ""),
        "low": row.low,
        "high": row.high,
        "verdict": "held" if held else "does not hold" if lost else "open",
        "source": source,
    }
