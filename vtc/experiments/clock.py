"""The clock's rows of a profile: recorded ones, and what is missing clocked here."""

from __future__ import annotations

import pandas as pd

from vtc import InputError
from vtc.benchmark import PROMPTS, STEM, cases, has_cuda, measure, of_one_run, prompts
from vtc.experiments import store
from vtc.profiles import Profile

CASES = {STEM: cases, PROMPTS: prompts}


def table(p: Profile, stem: str = STEM) -> pd.DataFrame:
    """The clock's rows of a profile, one a V and stage: recorded ones, and what is missing clocked here.

    Floors are those of the whole run, see `of_one_run`. stem: STEM, or PROMPTS for the cases that change Q
    and G. Where they need a GPU and there is none, only rows that exist; InputError if none.
    """
    wanted = CASES[stem](p)
    able = not any(c["on"] == "cuda" for c in wanted) or has_cuda()
    if able:
        found = store.replay(stem, p, wanted, measure, f"vtc bench --profile {p.name}")
    else:
        found = store.table(stem, p, wanted, None)
    if found.empty:
        raise InputError(
            f"profile {p.name} clocks a GPU; none was found and no rows are recorded: use laptop"
        )
    return of_one_run(found)
