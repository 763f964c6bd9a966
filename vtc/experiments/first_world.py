"""The first world's recorded rows (results/first-world) under the names that are used today.

Their files stay byte for byte as they were written; this is the one place that knows their columns. The world
that made them is gone: notebook 02 shows why it could not show the paper's finding.
"""

import pandas as pd

from vtc.profiles import ROOT

COLUMNS = {"misled": "shuffled", "looks": "attention_map"}  # theirs -> today's


def rows(table: str) -> pd.DataFrame:
    """One of its tables, such as 02_errors.

    02_told: its LLMs told the scene in words, measured once by commit 4517078, the last that could make it.
    """
    return pd.read_csv(ROOT / "results" / "first-world" / f"{table}.csv").rename(columns=COLUMNS)
