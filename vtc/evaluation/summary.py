"""Rows of trained models -> small tidy frames: errors by cell, scores by task, slopes and gains.

What figures draw and tables show is computed here or in `compare`: figures hold no statistics.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from vtc.compressors.ideas import IDEAS, READERS
from vtc.evaluation.compare import mean_interval
from vtc.evaluation.exam import FAMILIES as TASKS_OF
from vtc.evaluation.exam import OUTSIDE, Exam
from vtc.evaluation.scores import FAMILIES, overall_error
from vtc.profiles import NO_IMAGE, Profile

PANEL = "outside the law"
FAMILY_OF = {task: FAMILIES[family] for family, tasks in TASKS_OF.items() for task in tasks}
FAMILY_OF |= dict.fromkeys(OUTSIDE, PANEL)


def by_family(rows: pd.DataFrame, by: tuple[str, str] = ("N", "V")) -> pd.DataFrame:
    """One row a cell and family: mean error over seeds, and the least and greatest seed.

    by: what a cell is, ("N", "V") in the sweep, ("compressor", "V") where compressors stand side by side.
    """
    parts = [
        rows.groupby(list(by))[f"error_{family}"].agg(error="mean", low="min", high="max", seeds="count")
        for family in FAMILIES
    ]
    return pd.concat(parts, keys=FAMILIES.values(), names=["family"]).reset_index()


def falls(rows: pd.DataFrame) -> pd.DataFrame:
    """How far the mean error falls at most, one row a family: by_N and by_V.

    by_N: from the smallest LLM to the largest, mean over V > 0. by_V: from the fewest tokens to the best V,
    mean over LLMs.
    """
    cells, found = by_family(rows[rows["V"] > 0]), []
    for family, part in cells.groupby("family", sort=False):
        error = part.pivot_table(index="N", columns="V", values="error")
        by_N, by_V = error.iloc[0] - error.iloc[-1], error.iloc[:, 0] - error.min(axis=1)
        found.append({"family": family, "by_N": by_N.mean(), "by_V": by_V.mean()})
    return pd.DataFrame(found)


def by_task(rows: pd.DataFrame, by: tuple[str, str] = ("N", "V")) -> pd.DataFrame:
    """One row a cell and task: family, task, mean score over seeds."""
    means = rows.groupby(list(by))[[f"score_{task}" for task in FAMILY_OF]].mean()
    means.columns = pd.Index(FAMILY_OF, name="task")
    long = means.stack().rename("score").reset_index()
    return long.assign(family=long["task"].map(FAMILY_OF))


Columns = dict[str, str]  # what readers see -> the column of rows that holds its error
OF_FAMILIES: Columns = {name: f"error_{family}" for family, name in FAMILIES.items()}


def slopes(rows: pd.DataFrame, of: Columns = OF_FAMILIES) -> pd.DataFrame:
    """How the error changes with ln N and ln V (V > 0): one row a seed and family (or what `of` names).

    Least squares of the error on both logarithms, seed by seed, so that a seed is one observation: one text
    LLM serves every V of a seed, and its cells are not independent.
    """
    seen, found = rows[rows["V"] > 0], []
    for seed, part in seen.groupby("seed"):
        X = np.column_stack([np.ones(len(part)), np.log(part["N"]), np.log(part["V"])])
        for name, column in of.items():
            _, with_N, with_V = np.linalg.lstsq(X, part[column], rcond=None)[0]
            found.append((name, seed, with_N, with_V, with_V - with_N))
    return pd.DataFrame(found, columns=["family", "seed", "with N", "with V", "more with N than with V"])


def exponents(rows: pd.DataFrame, error) -> dict[str, float]:
    """alpha and beta of ln Y = a - alpha ln N - beta ln V, with their 95 % intervals over seeds.

    error: Y of each row (n,). Fitted seed by seed: the power law without a floor, which needs no search.
    """
    each, row = slopes(rows.assign(log=np.log(error)), {"": "log"}), {}
    for name, along in (("alpha", "with N"), ("beta", "with V")):
        mean, low, high, _ = mean_interval(-each[along])
        row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return row


def slope_table(rows: pd.DataFrame, of: Columns = OF_FAMILIES) -> pd.DataFrame:
    """Slopes over seeds with their 95 % intervals (Student's t): family, slope, mean, low, high, p, seeds."""
    found = [
        (family, name, *mean_interval(part[name]), len(part))
        for family, part in slopes(rows, of).groupby("family", sort=False)
        for name in part.columns[2:]
    ]
    return pd.DataFrame(found, columns=["family", "slope", "mean", "low", "high", "p", "seeds"])


def turned(rows: pd.DataFrame, twin: pd.DataFrame) -> pd.DataFrame:
    """Two kinds of question in the world and in its flipped twin: slopes of their errors in ln N and ln V.

    facts: in the world about one of a few large marks, all facts (`know`); in the twin about one of many
    small marks, few facts (`fact`). reading: a small mark (`read`). The same LLMs and V in both. Columns:
    world, questions, slope, mean, low, high, p, seeds.
    """
    columns = ["world", "questions", "slope", "mean", "low", "high", "p", "seeds"]
    if twin.empty:
        return pd.DataFrame(columns=columns)
    parts = []
    for world, cells, fact in (("world", rows[rows["N"].isin(twin["N"])], "know"), ("twin", twin, "fact")):
        errors = {"facts": 1 - cells[f"score_{fact}"], "reading": 1 - cells["score_read"]}
        table = slope_table(cells.assign(**errors), {name: name for name in errors})
        parts.append(table.rename(columns={"family": "questions"}).assign(world=world))
    return pd.concat(parts, ignore_index=True)[columns]


def longer(rows: pd.DataFrame, trained: pd.DataFrame) -> pd.DataFrame:
    """The errors of the same cells when trained longer, and the difference (longer minus not) over seeds.

    Paired by seed, 95 % interval. Columns: family, V, error, longer, difference, low, high, seeds.
    """
    found = []
    for family, name in FAMILIES.items() if len(trained) else ():
        both = [
            part.pivot_table(index=["N", "V"], columns="seed", values=f"error_{family}")
            for part in (rows, trained)
        ]
        for (N, V), after in both[1].iterrows():
            before = both[0].loc[(N, V)] if (N, V) in both[0].index else after * np.nan
            apart = (after - before).dropna()
            if len(apart):
                ends = mean_interval(apart)[:3]
                found.append(
                    (name, int(V), before[apart.index].mean(), after[apart.index].mean(), *ends, len(apart))
                )
    columns = ["family", "V", "error", "longer", "difference", "low", "high", "seeds"]
    return pd.DataFrame(found, columns=columns)


def looking(rows: pd.DataFrame) -> pd.DataFrame:
    """Per task: the largest LLM's mean score without image, with the most tokens, and what looking adds."""
    largest = by_task(rows[rows["N"] == rows["N"].max()])
    table = largest.pivot_table(index=["family", "task"], columns="V", values="score", sort=False)
    without, with_image = table[0], table[max(table.columns)]
    added = {"no image": without, "most tokens": with_image, "looking adds": with_image - without}
    return pd.DataFrame(added).reset_index()


def edges(rows: pd.DataFrame, parts: pd.DataFrame, size: str) -> dict[str, float]:
    """Overall error of that LLM without an image, and told the scene in words before it saw one: means.

    Between the two lies what a compressor can win. The second is no bound: who sees images is trained longer.
    """
    blind = rows[(rows["size"] == size) & (rows["V"] == 0)]
    told = parts[parts["size"] == size]
    found = {"no image": overall_error(blind).mean(), "told in words": overall_error(told).mean()}
    return {name: float(error) for name, error in found.items() if pd.notna(error)}


def ranking(rows: pd.DataFrame) -> pd.DataFrame:
    """Every compressor, what it does and its overall error at each V (mean over seeds), the best first.

    Columns: compressor, reads ("question" or nothing), idea, and the V. Who was not measured at the least V
    comes last.
    """
    error = rows.assign(error=overall_error(rows)).pivot_table(
        index="compressor", columns="V", values="error"
    )
    error = error.sort_values(list(error.columns)).round(3)
    error.insert(0, "idea", [IDEAS.get(name, "") for name in error.index])
    error.insert(0, "reads", ["question" if name in READERS else "" for name in error.index])
    error.columns.name = None
    return error.reset_index()


def told_table(parts: pd.DataFrame) -> pd.DataFrame:
    """Text-trained LLMs told the scene in words: mean error of each family and task over seeds, by N."""
    llms = parts[parts["part"] == "llm"]
    columns = [f"error_{family}" for family in FAMILIES]
    table = llms.groupby("N")[columns].mean()
    tasks = 1 - llms.groupby("N")[[f"score_{task}" for task in FAMILY_OF if f"score_{task}" in llms]].mean()
    tasks.columns = [name.removeprefix("score_") for name in tasks.columns]
    return pd.concat([table, tasks], axis=1).reset_index()


def steps_table(rows: pd.DataFrame) -> pd.DataFrame:
    """How often the mean error falls from one cell to the next: family, along, up to, steps, falls, rises.

    rises: steps in which it rises by more than seeds explain (95 %, paired by seed). Along V also up to s / 4
    tokens alone, s being the most tokens there are.
    """
    found, seen = [], rows[rows["V"] > 0]
    most = seen["V"].max()
    for family, name in FAMILIES.items():
        error = seen.pivot_table(index=["N", "V"], columns="seed", values=f"error_{family}")
        for along, other, up_to in (("N", "V", most), ("V", "N", most // 4), ("V", "N", most)):
            part = error[error.index.get_level_values("V") <= up_to]
            apart = [
                mean_interval((b - a).dropna())
                for _, line in part.groupby(level=other)
                for (_, a), (_, b) in itertools.pairwise(line.droplevel(other).sort_index().iterrows())
            ]
            falls, rises = sum(mean < 0 for mean, *_ in apart), sum(low > 0 for _, low, *_ in apart)
            row = {"family": name, "along": along, "V up to": up_to, "steps": len(apart)}
            found.append(row | {"falls": falls, "rises": rises, "sd of a seed": seed_spread(part)})
    return pd.DataFrame(found)


def seed_spread(error: pd.DataFrame) -> float:
    """Standard deviation over seeds (columns), pooled over cells."""
    return float(np.sqrt(error.var(axis=1, ddof=1).mean()))


def updates(p: Profile) -> str:
    """How many steps of the instruct stage each V sees."""
    seen = [V for V in p.V if V]
    share = p.recipe.instruct.steps / (len(seen) + (0 in p.V) * NO_IMAGE)
    first = f"{p.recipe.instruct.steps:,} steps of the instruct stage, about {share:,.0f} of them at each V"
    return first + (f" and {share * NO_IMAGE:,.0f} without an image" if 0 in p.V else "")


def winners_table(rows: pd.DataFrame, texts: tuple[int, ...]) -> pd.DataFrame:
    """`winners` of both families at each number of text tokens."""
    parts = [
        winners(rows, family, Q).assign(family=name, Q=Q) for family, name in FAMILIES.items() for Q in texts
    ]
    return pd.concat(parts, ignore_index=True)[["family", "Q", "budget", "N", "V", "error"]]


def winners(rows: pd.DataFrame, family: str, Q: float, budgets: int = 4) -> pd.DataFrame:
    """The cell of least mean error within each budget of N (Q + V): budget, N, V, error. No law is in it.

    Budgets go in equal steps of their logarithm, from what a tenth of the cells cost at most to what nine
    of ten do.
    """
    mean = rows[rows["V"] > 0].groupby(["N", "V"])[f"error_{family}"].mean().reset_index()
    mean.columns = ["N", "V", "error"]
    cost = mean["N"] * (Q + mean["V"])
    found = []
    for budget in np.geomspace(*np.quantile(cost, [0.1, 0.9]), budgets):
        best = mean[cost <= budget].sort_values("error").iloc[0]
        found.append({"budget": budget, "N": best["N"], "V": int(best["V"]), "error": best["error"]})
    return pd.DataFrame(found)


def asked(exam: Exam) -> pd.DataFrame:
    """Per task: family, mean words of question and answer, questions, the share of the commonest answer."""
    texts = [part.questions.text(i) for part in exam.parts for i in range(len(part.questions))]
    frame = exam.frame.assign(
        question=[len(question.split()) for question, _ in texts],
        words=[len(answer.split()) for _, answer in texts],
        answer=[answer for _, answer in texts],
    )
    grouped = frame[frame["task"].isin(list(FAMILY_OF))].groupby("task")
    table = grouped[["question", "words"]].mean().round(1)
    table = table.rename(columns={"question": "question words", "words": "answer words"})
    share = grouped["answer"].agg(lambda answers: answers.value_counts(normalize=True).iloc[0])
    table = table.assign(questions=grouped.size(), **{"commonest answer": share.round(3)})
    table.insert(0, "family", table.index.map(FAMILY_OF))
    return table.loc[[task for task in FAMILY_OF if task in table.index]].reset_index()
