"""What was expected of the zoo before it was trained, and what came of it (`docs/pilots.md`, seven points).

Every expectation is a range for a difference of two overall scores, judged by the difference's 95 % interval
(`claims.within`). One seed leaves it open.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from vtc.evaluation import compare
from vtc.evaluation.scores import overall_error
from vtc.experiments.claims import OPEN, within

READS = (  # the question; the third point leaves out LLaMA-VID
    *("quecc", "quecc_shared", "quecc_light", "quecc_pooled", "quecc_one_level", "quecc_one_head"),
    *("quecc_distilled", "lookup", "lookup_asked", "lookup_unaligned", "lookup_distilled"),
    *("glances_steered", "llavamini_fused"),
)
READS_NOT = (
    *("tokenpacker", "tokenpacker_by_questions", "tokenpacker_antialias", "quecc_unasked"),
    *("pool", "pool_after", "glances", "mqt"),
    *("mqt_content", "perceiver", "llavamini", "prumerge", "prumerge_normalised", "prumerge_plus"),
    *("visionzip", "tome", "fastv", "random", "stride", "downsample", "downsample_image", "dct", "braco"),
)


@dataclass(frozen=True)
class Expected:
    """The overall score of one compressor minus that of another lies between `least` and `most`."""

    point: int  # 1 QueCC, 2 lookup, 3 who reads, 4 controls, 5 one training, 6 align stage, 7 V = 16
    compressor: str
    against: str
    V: tuple[int, ...]
    least: float = -1.0
    most: float = 1.0


ONE, FEW, SIXTEEN, EVERY = (1,), (1, 4), (16,), (1, 4, 16)
EXPECTED = (
    Expected(1, "quecc_unasked", "quecc", ONE, most=-0.15),
    Expected(1, "quecc_unasked", "tokenpacker", ONE, least=-0.05, most=0.05),
    Expected(1, "quecc_pooled", "quecc", ONE, least=-0.03, most=0.03),
    Expected(1, "quecc_one_level", "quecc", ONE, least=-0.03, most=0.03),
    Expected(1, "quecc_one_head", "quecc", ONE, least=-0.06, most=0.0),
    Expected(1, "quecc_distilled", "quecc", ONE, least=-0.03, most=0.03),
    Expected(2, "lookup_asked", "lookup", ONE, most=0.0),
    Expected(2, "lookup_unaligned", "lookup", ONE, most=0.0),
    *(Expected(4, name, "pool", FEW, most=0.0) for name in ("random", "stride", "prumerge", "visionzip")),
    Expected(5, "quecc_nested", "quecc", EVERY, least=-0.05, most=0.0),
    Expected(5, "lookup_nested", "lookup", EVERY, least=-0.05, most=0.0),
    Expected(6, "tokenpacker_by_questions", "tokenpacker", FEW, least=-0.15, most=0.0),
    Expected(7, "tokenpacker", "pool", SIXTEEN, least=0.03, most=0.13),
    *(Expected(7, name, "pool", SIXTEEN, most=0.0) for name in ("random", "stride", "prumerge", "visionzip")),
    Expected(7, "seek", "quecc_light", SIXTEEN, least=0.0, most=0.08),
    Expected(7, "llamavid", "tokenpacker", SIXTEEN, least=-0.2, most=-0.05),
    Expected(7, "fastv", "tokenpacker", SIXTEEN, least=-0.25, most=0.0),
    Expected(7, "mqt", "tokenpacker", SIXTEEN, most=-0.1),
)


def came(rows: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
    """Cells of one LLM -> every expectation that they can judge, point by point.

    tasks[i]: the task of question i. Columns: point, V, compressor, against, least, most, difference, low,
    high, seeds, verdict.
    """
    rows, found = rows[rows["V"] > 0], []
    for one in (*EXPECTED, *_readers(rows)):
        pair = rows[rows["compressor"].isin([one.compressor, one.against]) & rows["V"].isin(one.V)]
        for row in compare.pairwise(pair, tasks, ((one.compressor, one.against),)).itertuples():
            said = within(row.low, row.high, one.least, one.most) if row.seeds > 1 else OPEN
            numbers = one.least, one.most, row.difference, row.low, row.high, row.seeds
            found.append((one.point, row.V, one.compressor, one.against, *numbers, said))
    columns = ["point", "V", "compressor", "against", "least", "most"]
    columns += ["difference", "low", "high", "seeds", "verdict"]
    return pd.DataFrame(found, columns=columns).sort_values("point", kind="stable", ignore_index=True)


def _readers(rows: pd.DataFrame) -> list[Expected]:
    """The third point: at V = 1 and 4 the worst that reads the question is ahead of the best that does not.

    And the latter is ahead of TokenPacker by at most .05 at V = 1. The seventh: at 16 it is not.
    """
    found = []
    for V in EVERY:
        cells = compare.most(rows[rows["V"] == V], rows["size"].iloc[0]) if len(rows) else rows
        error = cells.assign(error=overall_error).groupby("compressor")["error"].mean()  # of the same seeds
        reads, not_ = (error[error.index.isin(names)] for names in (READS, READS_NOT))
        if reads.empty or not_.empty:
            continue
        point, least, most = (7, -1.0, 0.0) if V == 16 else (3, 0.0, 1.0)
        found.append(Expected(point, reads.idxmax(), not_.idxmin(), (V,), least, most))
        if V == 1:
            found.append(Expected(3, not_.idxmin(), "tokenpacker", (V,), most=0.05))
    return found
