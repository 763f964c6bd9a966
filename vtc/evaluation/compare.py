"""Compressors compared question by question: differences with intervals, and how many were looked at.

Every cell is asked the same test questions, so two cells are compared on each question by itself, which takes
the difficulty of the questions out of the difference. Seeds that both have are averaged.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from vtc import cost, data
from vtc.evaluation.exam import TASKS
from vtc.evaluation.scores import WEIGHTS, overall_error, unpack
from vtc.profiles import Profile


def mean_interval(values, level: float = 0.95) -> tuple[float, float, float, float]:
    """One value a seed (n,) -> mean, interval (95 %), two-sided p of a mean of 0, by Student's t.

    A single seed says nothing of other training runs: its interval is infinite.
    """
    values = np.asarray(values, float)
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, -np.inf, np.inf, 1.0
    return student_interval(mean, float(values.std(ddof=1) / n**0.5), n - 1, level)


def student_interval(
    mean: float, error: float, freedom: float, level: float = 0.95
) -> tuple[float, float, float, float]:
    """Mean and its standard error -> mean, interval (95 %), two-sided p of 0, by Student's t."""
    from scipy.stats import t as student  # half a second

    if error == 0:  # every value is the same
        return mean, mean, mean, float(mean == 0)
    reach = error * student.ppf((1 + level) / 2, freedom)
    return mean, mean - reach, mean + reach, float(2 * student.sf(abs(mean) / error, freedom))


def differences(rows: pd.DataFrame, tasks: list[str], against: str) -> pd.DataFrame:
    """Score of each compressor minus that of `against`, per V and family ("all": the overall score).

    `rows` are cells of one LLM; `tasks[i]` is the task of question i. `low`, `high`: 95 %, for another
    training run and other questions, see `_interval`. `p`: two-sided; `p_holm`: corrected for all the rows of
    this table. Columns: compressor, V, family, difference, low, high, p, seeds, p_holm.
    """
    found = []
    at = {t: np.flatnonzero(np.array(tasks) == t) for t in TASKS}  # places of a task's questions
    for V, cells in rows.groupby("V"):
        base = _by_seed(cells[cells["compressor"] == against])
        for name, part in cells.groupby("compressor"):
            other = _by_seed(part)
            seeds = sorted(set(base) & set(other))
            if name == against or not seeds:
                continue
            apart = np.array([other[s] - base[s] for s in seeds])  # (seeds, questions)
            for family, weights in WEIGHTS.items():
                numbers = _interval([apart[:, at[t]] for t in weights], list(weights.values()))
                found.append((name, int(V), family, *numbers, len(seeds)))
    columns = ["compressor", "V", "family", "difference", "low", "high", "p", "seeds"]
    table = pd.DataFrame(found, columns=columns)
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def _interval(
    apart: list[np.ndarray], weights: list[float], level: float = 0.95
) -> tuple[float, float, float, float]:
    """Differences (seeds, questions) of each task -> weighted mean over tasks, its 95 % interval, p.

    Student's t, with Welch and Satterthwaite's degrees of freedom: the variance of a mean over n seeds, plus
    that over the questions that all seeds share. One seed says nothing of other training runs, so questions
    alone count then. (Resampling three seeds covered .82 of 400 planted differences, this .93.)
    """
    n = len(apart[0])
    by_seed = sum(w * task.mean(1) for w, task in zip(weights, apart))  # (seeds,)
    of_questions = sum(w**2 * task.mean(0).var(ddof=1) / task.shape[1] for w, task in zip(weights, apart))
    of_seeds = by_seed.var(ddof=1) / n if n > 1 else 0.0
    mean, variance = float(by_seed.mean()), float(of_seeds + of_questions)
    asked = sum(task.shape[1] - 1 for task in apart)
    spread = float(of_seeds**2 / max(n - 1, 1) + of_questions**2 / asked)
    return student_interval(mean, variance**0.5, variance**2 / spread if variance else 1.0, level)


def equivalence(rows: pd.DataFrame, tasks: list[str], one: str, other: str, margin: float) -> pd.DataFrame:
    """Whether two compressors score alike: per V the overall score of `one` minus that of `other`.

    Two one-sided tests at 5 %: equivalent if the whole 90 % interval lies within the margin on both sides,
    which must be fixed before the runs. One seed says nothing of other trainings: it stays open. Columns: V,
    difference, low, high (90 %), margin, seeds, equivalent ("yes", "no": the interval lies outside, "open").
    """
    found, at = [], {t: np.flatnonzero(np.array(tasks) == t) for t in WEIGHTS["all"]}
    for V, cells in rows.groupby("V"):
        a, b = (_by_seed(cells[cells["compressor"] == name]) for name in (one, other))
        seeds = sorted(set(a) & set(b))
        if not seeds:
            continue
        apart = np.array([a[s] - b[s] for s in seeds])  # (seeds, questions)
        weights = list(WEIGHTS["all"].values())
        mean, low, high, _ = _interval([apart[:, at[t]] for t in WEIGHTS["all"]], weights, level=0.9)
        said = _alike(low, high, margin) if len(seeds) > 1 else "open"
        found.append((int(V), mean, low, high, margin, len(seeds), said))
    columns = ["V", "difference", "low", "high", "margin", "seeds", "equivalent"]
    return pd.DataFrame(found, columns=columns)


def _alike(low: float, high: float, margin: float) -> str:
    if -margin < low and high < margin:
        return "yes"
    return "no" if low > margin or high < -margin else "open"


def _by_seed(cells: pd.DataFrame) -> dict[int, np.ndarray]:
    return {int(row.seed): unpack(row.scores) for row in cells.itertuples()}


Pairs = tuple[tuple[str, str], ...]


def pairwise(rows: pd.DataFrame, tasks: list[str], pairs: Pairs) -> pd.DataFrame:
    """The overall score of one minus that of the other, per pair and V, all under one Holm correction.

    Columns: V, compressor, against, difference, low, high, p, p_holm, seeds; with `mflop` in the rows
    (`with_cost`) also `cost`, the first one's operations over the other's.
    """
    parts = []
    for pair in pairs:
        other = pair[1]
        part = differences(rows[rows["compressor"].isin(pair)], tasks, other)
        parts.append(part[part["family"] == "all"].assign(against=other))
    table = pd.concat(parts, ignore_index=True)
    table = table.assign(p_holm=holm(table["p"].to_numpy()))
    order = ["V", "compressor", "against", "difference", "low", "high", "p", "p_holm", "seeds"]
    if "mflop" in rows:
        mflop = rows.groupby(["compressor", "V"])["mflop"].mean()
        paid = [mflop[r.compressor, r.V] / mflop[r.against, r.V] for r in table.itertuples()]
        table, order = table.assign(cost=paid), [*order, "cost"]
    return table[order].sort_values(["V", "compressor", "against"], ignore_index=True)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction: the chance of one false alarm among all tests stays below the level."""
    order = np.argsort(p)
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def beside(rows: pd.DataFrame, names: list[str], size: str) -> pd.DataFrame:
    """Cells of these compressors with one LLM that stand side by side: V > 0 that as many as possible have.

    At each V, of the seeds that all of them have there, so that means compare alike.
    """
    part = rows[rows["compressor"].isin(names) & (rows["size"] == size) & (rows["V"] > 0)]
    many = part.groupby("V")["compressor"].transform("nunique")
    part = part[many == many.max()]
    have = part.groupby(["V", "compressor"])["seed"].agg(set)
    shared = have.groupby("V").agg(lambda sets: set.intersection(*sets))
    return part[[row.seed in shared[row.V] for row in part.itertuples()]]


def most(rows: pd.DataFrame, size: str, seeds: int = 3) -> pd.DataFrame:
    """Cells of as many compressors as can be ranked with one LLM, V > 0: at each V of the same seeds for all.

    These are the so many seeds that most compressors have at that V, and the least of them where several are
    as common; who lacks one of them is left out there.
    """
    part, kept = rows[(rows["size"] == size) & (rows["V"] > 0)], [rows.head(0)]
    for _, cells in part.groupby("V"):
        have = cells.groupby("seed")["compressor"].nunique()
        common = sorted(have.index, key=lambda seed: (-have[seed], seed))[:seeds]
        cells = cells[cells["seed"].isin(common)]
        kept.append(cells[cells.groupby("compressor")["seed"].transform("nunique") == len(common)])
    return pd.concat(kept, ignore_index=True)


def with_shuffled(rows: pd.DataFrame, compressor: str) -> pd.DataFrame:
    """Cells, and this compressor's again as it scored on shuffled questions.

    The compressor then read a question of another task than the one that the LLM was asked.
    """
    if "shuffled" not in rows:
        return rows
    wrong = rows[(rows["compressor"] == compressor) & (rows["shuffled"].fillna("") != "")]
    wrong = wrong.assign(scores=wrong["shuffled"], compressor=f"{compressor}, shuffled question")
    return pd.concat([rows, wrong], ignore_index=True)


def with_cost(rows: pd.DataFrame, p: Profile) -> pd.DataFrame:
    """Cells with `error`, 1 - overall score, and what a question costs: `mflop`, `parameters`, `kbit`.

    mflop: counted operations of compressor, question pass, projector, prefill and first token; the tower is
    the same for all and left out. parameters: the compressor's own. kbit: what is handed on to the LLM,
    tokens by its width at 16 bits a number; who drops tokens inside the LLM hands on all patches.
    """
    counted = []
    for row in rows.itertuples():
        llm = replace(p.size(row.size), vocab=len(data.WORDS))
        pipe = cost.Pipeline(llm, p.tower, row.compressor, features_cached=True)
        part = cost.compressor(row.compressor, p.tower, row.V, llm.d)
        tokens = row.V if part.drops_after is None else p.g**2
        mflop = float(cost.flops(pipe, row.V, row.Q)) / 1e6
        counted.append((mflop, int(part.weights), 16 * tokens * llm.d / 1000))
    columns = pd.DataFrame(counted, index=rows.index, columns=["mflop", "parameters", "kbit"])
    return pd.concat([rows.assign(error=overall_error(rows)), columns], axis=1)


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


def with_clock(rows: pd.DataFrame, clock: pd.DataFrame) -> pd.DataFrame:
    """Cells with the milliseconds to their first token, from `pace.first_token`; nan where not clocked.

    Each is its ratio to TokenPacker at one token, taken in turn with it, times the median of the latter on
    the machine that clocked most (`clocked_on`): a busy moment, or a slower machine, then counts for nobody.
    """
    if clock.empty:
        return rows.assign(first_token_ms=np.nan, clocked_on="")
    device = clock["device"].mode()[0]
    here = clock["device"] == device
    clock = clock.assign(first_token_ms=clock["ratio"] * clock.loc[here, "tokenpacker_ms"].median())
    same = ["size", "compressor", "V"]
    return rows.merge(clock[[*same, "first_token_ms"]], on=same, how="left").assign(clocked_on=device)


def frontier(rows: pd.DataFrame, cost: str = "mflop") -> pd.DataFrame:
    """Cells, means over seeds, that none as cheap or cheaper equals: compressor, V, cost, error, rising."""
    means = rows.groupby(["compressor", "V"])[[cost, "error"]].mean().reset_index()
    means = undominated(means, cost)
    return means[means.pop("frontier")].reset_index(drop=True)


def undominated(rows: pd.DataFrame, cost: str, by: list[str] | None = None) -> pd.DataFrame:
    """Measured rows, rising in cost, with `frontier`: none of the group (`by`) is as good for as little."""
    rows = rows.sort_values([*(by or []), cost, "error"], ignore_index=True)
    groups = [rows[name] for name in by] if by else np.zeros(len(rows))
    earlier = rows["error"].groupby(groups).transform(lambda e: e.cummin().shift(fill_value=np.inf))
    return rows.assign(frontier=rows["error"] < earlier)
