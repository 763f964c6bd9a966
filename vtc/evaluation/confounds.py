"""What else could be behind the difference of two compressors: one row for each rival explanation.

Rows are cells of one LLM, as notebook 05 reads them. Differences are of the overall score, paired by question
as in `compare.differences`; where a row looks at some tasks alone, it is of their mean.
"""

from __future__ import annotations

import pandas as pd

from vtc import cost, data
from vtc.evaluation import compare
from vtc.evaluation.compare import mean_interval
from vtc.evaluation.exam import exam
from vtc.evaluation.scores import overall_error
from vtc.profiles import Profile

UNNAMED = ("land", "count", "compare", "right")  # tasks whose question names no place of what is asked
COLUMNS = ["confound", "V", "one", "other", "difference", "low", "high", "seeds", "note"]


def confounds(rows: pd.DataFrame, tasks: list[str], p: Profile) -> pd.DataFrame:
    """QueCC and `lookup` side by side, explanation by explanation: columns `COLUMNS`.

    parameters: of QueCC and TokenPacker, of `lookup`, QueCC and a smaller QueCC. question source: each with
    the other's. untaught words: where the tower was taught none of them, this is the whole test. unnamed
    things: tasks that name no place. second question: tokens made for another question of another image
    against those made for the question that is asked.
    """
    found = []
    for what, one, other in (
        ("parameters", "quecc", "tokenpacker"),
        ("parameters", "lookup", "quecc"),
        ("parameters", "lookup", "quecc_one_level"),
        ("question source", "quecc_light", "quecc"),
        ("question source", "lookup_asked", "lookup"),
    ):
        for row in compare.pairwise(rows, tasks, ((one, other),)).itertuples():
            note = _sizes(p, row.V, one, other) if what == "parameters" else _source(one, other)
            found.append((what, row.V, one, other, row.difference, row.low, row.high, row.seeds, note))
    untaught = _untaught(p)
    for row in compare.pairwise(rows, tasks, (("lookup", "quecc"),)).itertuples():
        numbers = row.difference, row.low, row.high, row.seeds
        found.append(("untaught words", row.V, "lookup", "quecc", *numbers, untaught))
    for V, cells in rows.groupby("V"):
        found += [("unnamed things", V, *row) for row in _on_tasks(cells, "lookup", "quecc")]
    for name in ("quecc", "lookup"):
        both = compare.with_shuffled(rows, name)
        again = f"{name}, shuffled question"
        for row in compare.pairwise(both, tasks, ((again, name),)).itertuples():
            note = "tokens made for a question about another image"
            found.append(
                ("second question", row.V, again, name, row.difference, row.low, row.high, row.seeds, note)
            )
    return pd.DataFrame(found, columns=COLUMNS)


def _sizes(p: Profile, V: int, *names: str) -> str:
    """How many parameters each has beside the profile's LLM."""
    D = p.size(p.zoo_size).d
    counted = [f"{name} {cost.compressor(name, p.tower, V, D).weights:,.0f}" for name in names]
    return "parameters: " + ", ".join(counted)


def _source(*names: str) -> str:
    passes = {name: cost.traits(name)["question_pass"] or "none" for name in names}
    return "the LLM's pass over the question: " + ", ".join(f"{name} {kind}" for name, kind in passes.items())


def _untaught(p: Profile) -> str:
    """How many words of questions the tower's training labels name: digits and lands are all that they name.

    The binding panel, which stands outside both families, is left out.
    """
    texts = [part.questions.text(i)[0] for part in exam(p).parts[:-1] for i in range(len(part.questions))]
    asked = set(" ".join(texts).split())
    taught = asked & {*data.DIGITS, *data.LANDS}
    return f"of {len(asked)} words in questions, the tower's labels name {len(taught)}: all questions count"


def _on_tasks(cells: pd.DataFrame, one: str, other: str) -> list[tuple]:
    """Mean score over `UNNAMED`, one minus the other, seeds as observations."""
    mean = cells[[f"score_{task}" for task in UNNAMED]].mean(axis=1)
    score = cells.assign(mean=mean).pivot_table(index="seed", columns="compressor", values="mean")
    if not {one, other} <= set(score.columns):
        return []
    apart = (score[one] - score[other]).dropna()
    if apart.empty:
        return []
    difference, low, high, _ = mean_interval(apart)
    return [(one, other, difference, low, high, len(apart), "tasks " + ", ".join(UNNAMED))]


def curves(tables: dict[int, pd.DataFrame], tasks: list[str], one: str, other: str) -> pd.DataFrame:
    """How a gap changes as both are trained longer: steps (times the recipe's) -> score of one minus other.

    tables: rows by how many times as long their stages with images were; only V and seeds that all of them
    have are compared. Columns: V, times, the mean error of each, difference, low, high, seeds.
    """
    columns = ["V", "times", f"{one}_error", f"{other}_error", "difference", "low", "high", "seeds"]
    tables = {
        times: rows for times, rows in tables.items() if {one, other} <= set(rows.get("compressor", []))
    }
    if not tables:
        return pd.DataFrame(columns=columns)
    pairs = [rows[rows["compressor"] == name] for rows in tables.values() for name in (one, other)]
    seeds, parts = set.intersection(*(set(rows["seed"]) for rows in pairs)), []
    for times, rows in tables.items():
        rows = rows[rows["seed"].isin(seeds)].assign(error=overall_error)
        part = compare.pairwise(rows, tasks, ((one, other),)).assign(times=times).set_index("V")
        errors = rows.pivot_table(index="V", columns="compressor", values="error")
        parts.append(part.join(errors[[one, other]].add_suffix("_error"), how="left").reset_index())
    table = pd.concat(parts, ignore_index=True)
    longest = table.loc[table["times"] == table["times"].max(), "V"]
    return table[table["V"].isin(longest)][columns].sort_values(["V", "times"], ignore_index=True)
