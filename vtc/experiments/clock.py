"""The clock's rows of a profile: those recorded, or what this machine measures."""

from __future__ import annotations

import dataclasses
import os

import pandas as pd

from vtc import InputError, cost
from vtc.benchmark import PROMPTS, STEM, cases, clocked, has_cuda, measure, of_one_run, prompts
from vtc.experiments import store
from vtc.profiles import Profile

CASES = {STEM: cases, PROMPTS: prompts}


def table(p: Profile, stem: str = STEM) -> pd.DataFrame:
    """The clock's rows, one a V, compressor and stage: those recorded or, with `recompute`, clocked here.

    Never both, so a table holds no two machines' times of one case. Floors are those of the whole run, see
    `of_one_run`. stem: STEM, or PROMPTS for the cases that change Q and G. InputError where nothing is
    recorded and the cases need a GPU that is not there.
    """
    recorded = pd.DataFrame() if p.recompute else store.recorded(stem, p)
    if not recorded.empty:
        return of_one_run(recorded)
    wanted = CASES[stem](p)
    if any(c["on"] == "cuda" for c in wanted) and not has_cuda():
        problem = f"profile {p.name} clocks a GPU; none was found and no rows are recorded"
        raise InputError(f"{problem}: use laptop")
    return of_one_run(store.table(stem, p, wanted, measure, recipe_free=True))


def origins(clock: pd.DataFrame) -> pd.DataFrame:
    """Which device made the rows, in which precision and on which day, and the most that it could do then."""
    groups = clock.assign(day=clock["date"].astype(str).str[:10])
    groups = groups.groupby(["device", "dtype", "day"], sort=False)
    most = groups.agg(rows=("stage", "size"), tflops=("peak_flops", "median"), gb_s=("bandwidth", "median"))
    return most.assign(tflops=most["tflops"] / 1e12, gb_s=most["gb_s"] / 1e9).reset_index()


def here(p: Profile) -> cost.Hardware:
    """This machine as it was clocked: measured peaks and bandwidth, and the shares of them that were reached.

    From the rows under runs/ alone, which were made here. Raises InputError where there are none.
    """
    clock = store.stored(STEM, dataclasses.replace(p, recompute=True))
    if clock.empty:
        raise InputError(f"hardware 'here': not clocked yet; run `vtc bench --profile {p.name}` first")
    return clocked(clock, float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
