"""What the clock's rows say: how repeatable, how near the floor, faster than what, how well predicted."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable

import numpy as np
import pandas as pd

from vtc import InputError, cost
from vtc.benchmark.cases import STEM
from vtc.experiments import rows, store
from vtc.profiles import Profile

LEAST_MS = 10.0  # floor below which calling the operators is what one waits for


def ok(clock: pd.DataFrame) -> pd.DataFrame:
    """The rows that hold a time."""
    return clock[clock["status"] == "ok"]


CONFIGURATION = ["llm", "tokens", "Q", "q", "batch", "compressor", "question", "tower", "dtype", "on"]


def largest(clock: pd.DataFrame) -> str:
    """The LLM that was clocked at the most V at batch 1 (the larger one where several were)."""
    timed = ok(clock)
    timed = timed[(timed["batch"] == 1) & (timed["stage"] == "ttft") & (timed["compressor"] == "quecc")]
    seen = timed.groupby("llm").agg(most=("tokens", "max"), V=("tokens", "nunique"), work=("flops", "max"))
    return seen.sort_values(["most", "V", "work"]).index[-1]


def repeatability(clock: pd.DataFrame) -> pd.DataFrame:
    """Rows clocked twice: both medians, and whether they differ by less than the two intervals allow."""
    timed = ok(clock)
    first, again = (timed[timed["repeat"] == r] for r in (0, 1))
    both = first.merge(again, on=[*CONFIGURATION, "stage", "baseline"], suffixes=("", "_again"))
    low, high = both[["low_ms", "low_ms_again"]].max(axis=1), both[["high_ms", "high_ms_again"]].min(axis=1)
    kept = ["llm", "tokens", "stage", "median_ms", "median_ms_again"]
    ratio = both["median_ms_again"] / both["median_ms"]
    return both[kept].assign(ratio=ratio, within=low <= high).reset_index(drop=True)


def against_baseline(clock: pd.DataFrame) -> pd.DataFrame:
    """Ours beside transformers' generate, same weights, same process; `speedup` > 1: ours is faster."""
    wide = ok(clock).pivot_table(
        index=["llm", "dtype", "batch", "tokens", "repeat"], columns="stage", values="median_ms"
    )
    wide = wide.dropna(subset=["baseline one token"]) if "baseline one token" in wide else wide.iloc[:0]
    parts = []
    for what in ("one token", "all tokens"):
        pair = wide[[f"ours {what}", f"baseline {what}"]].set_axis(["ours_ms", "baseline_ms"], axis=1)
        parts.append(pair.reset_index().assign(what=what))
    out = pd.concat(parts, ignore_index=True)
    return out.assign(speedup=out["baseline_ms"] / out["ours_ms"])


def predicted(
    clock: pd.DataFrame, held_out: Callable[[pd.DataFrame], pd.Series] | None = None
) -> pd.DataFrame:
    """Time to first token and per decoded token, measured and predicted with two shares fitted a device.

    On a CPU the times to multiply and to fetch add up: on two Xeon cores that leaves 2 % (median) and 10 %
    (90th percentile) at held-out V, where the longer of the two leaves 3 % and 31 %.

    Configurations whose floor is below LEAST_MS are left out where there are others: hundreds of operators
    have to be called, which takes milliseconds whatever they compute. Shares are fitted on the configurations
    not held out (by default every other V) and reported with the predictions; `error` is predicted / measured
    - 1.
    """
    timed = ok(clock)
    timed = timed[timed["stage"].isin(["ttft", "decode"]) & timed["parts"].notna()]
    large = timed["floor_ms"] >= LEAST_MS
    timed = (timed[large] if large.any() else timed).reset_index(drop=True)
    hold = held_out(timed) if held_out else timed["tokens"].rank(method="dense").astype(int) % 2 == 0
    out = []
    for (on, dtype), group in timed.groupby(["device", "dtype"]):
        parts = [np.array(json.loads(text) if isinstance(text, str) else text) for text in group["parts"]]
        most = max(len(part) for part in parts)
        flops, moved = (
            np.array([np.pad(part[:, i], (0, most - len(part))) for part in parts]) for i in (0, 1)
        )
        peak, band = group["peak_flops"].median(), group["bandwidth"].median()
        device = cost.Hardware(on, {dtype: peak}, band, 0, overlap=group["on"].iloc[0] != "cpu")
        held = hold[group.index].to_numpy()
        seen = group["median_ms"].to_numpy() / 1e3
        if (~held).sum() < 2:
            continue
        fitted, _ = cost.fit_shares(flops[~held], moved[~held], seen[~held], device, dtype)
        ms = cost.seconds(cost.Work(flops, moved), fitted, dtype).sum(-1) * 1e3
        shares = {"compute_share": fitted.compute_share, "bandwidth_share": fitted.bandwidth_share}
        out.append(group.assign(predicted_ms=ms, error=ms / 1e3 / seen - 1, held_out=held, **shares))
    return (
        pd.concat(out, ignore_index=True)
        if out
        else timed.assign(predicted_ms=np.nan, error=np.nan, held_out=False)
    )


def here(p: Profile) -> cost.Hardware:
    """This machine as it was clocked: measured peaks and bandwidth, and the shares of them that were reached.

    From the rows under runs/ alone, which were made here. Raises InputError where there are none.
    """
    clock = store.stored(STEM, dataclasses.replace(p, recompute=True))
    if clock.empty:
        raise InputError(f"hardware 'here': not clocked yet; run `vtc bench --profile {p.name}` first")
    return clocked(clock, float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))


def clocked(clock: pd.DataFrame, memory: float = 0.0) -> cost.Hardware:
    """The device that these rows were clocked on: peaks, bandwidth, shares reached; memory in bytes."""
    said = predicted(clock)
    most = said["dtype"].value_counts().index[0]
    timed, said = ok(clock), said[said["dtype"] == most]
    return cost.Hardware(
        name=str(timed["device"].iloc[0]),
        peak=timed.groupby("dtype")["peak_flops"].median().to_dict(),
        bandwidth=float(timed["bandwidth"].median()),
        memory=memory,
        source="vtc bench",
        compute_share=float(said["compute_share"].median()),
        bandwidth_share=float(said["bandwidth_share"].median()),
        overlap=timed["on"].iloc[0] != "cpu",
    )


def origins(clock: pd.DataFrame, p: Profile) -> pd.DataFrame:
    """Which rows were recorded and which clocked here, by device, with its measured peak and bandwidth."""
    recorded = set() if p.recompute else {row.get("date") for row in rows.read(p.results / f"{STEM}.csv")}
    where = clock["date"].astype(str).isin(recorded).map({True: "recorded", False: "clocked here"})
    groups = clock.assign(rows_are=where, day=clock["date"].astype(str).str[:10])
    groups = groups.groupby(["rows_are", "device", "dtype", "day"], sort=False)
    table = groups.agg(
        rows=("stage", "size"), peak_tflops=("peak_flops", "median"), gb_s=("bandwidth", "median")
    )
    table["peak_tflops"], table["gb_s"] = table["peak_tflops"] / 1e12, table["gb_s"] / 1e9
    return table.reset_index()


def of_one_run(clock: pd.DataFrame) -> pd.DataFrame:
    """Floors by the best rate and bandwidth that any process of the same device, precision and day measured.

    On a shared machine one process finds half the bandwidth of the next; a time below its own "floor" was the
    sign.
    """
    day = clock["date"].astype(str).str[:10]
    best = clock.groupby(["device", "dtype", day])[["peak_flops", "bandwidth"]].transform("max")
    clock = clock.assign(**best)
    for row in clock[clock["parts"].notna()].itertuples():
        parts = json.loads(row.parts) if isinstance(row.parts, str) else row.parts
        found = floor(parts, row.median_ms, row.peak_flops, row.bandwidth)
        clock.loc[row.Index, list(found)] = list(found.values())
    return clock


def floor(parts: list, ms: float, peak_flops: float, bandwidth: float) -> dict:
    """A stage's parts (operations, bytes) -> the least time, what binds, the share of it that `ms` reached.

    The least is the sum over the parts of the longer of multiplying and fetching.
    """
    device = cost.Hardware("", {"": peak_flops}, bandwidth, 0)
    work = cost.Work(*np.array(parts).T)
    least = 1e3 * float(cost.seconds(work, device, "").sum())
    by_compute, by_bytes = (float(limit.sum()) for limit in cost.limits(work, device, ""))
    binds = "compute" if by_compute >= by_bytes else "bandwidth"
    return {"floor_ms": least, "binds": binds, "share": least / ms}


def floors(clock: pd.DataFrame, stages: tuple[str, ...] = ("prefill", "decode")) -> pd.DataFrame:
    """Measured milliseconds beside the counted floor, what binds, and the share of the floor's speed reached.

    `of_matmul`: operations a second over those of torch.matmul alone on large squares, the usual yardstick.
    """
    timed = ok(clock)
    timed = timed[timed["stage"].isin(stages) & (timed["repeat"] == 0)]
    of_matmul = timed["flops"] / (timed["median_ms"] / 1e3) / timed["peak_plain_flops"]
    names = ["llm", "dtype", "batch", "tokens", "stage", "median_ms", "floor_ms", "binds", "share"]
    return timed[names].assign(of_matmul=of_matmul).reset_index(drop=True)


def claims(clock: pd.DataFrame, p: Profile, llm: str) -> pd.DataFrame:
    """Writes down what the clock says of the paper's cost axis and QueCC's question pass; returns the claims.

    The paper counts 2 N (Q + V). Does the first token come sooner by that ratio when V falls, at batch 1?
    """
    timed = ok(clock)
    timed = timed[(timed["llm"] == llm) & (timed["batch"] == 1) & (timed["repeat"] == 0)]
    timed = timed[(timed["compressor"] == "quecc") & (timed["question"] == "paid")]
    timed = timed[timed["dtype"] == timed["dtype"].iloc[0]]
    at = timed.set_index(["tokens", "stage"])[["median_ms", "low_ms", "high_ms"]]
    V, Q = max(timed["tokens"]), timed["Q"].iloc[0]
    many, one = at.loc[(V, "prefill")], at.loc[(1, "prefill")]
    ratio, paper = many["median_ms"] / one["median_ms"], (Q + V) / (Q + 1)
    low, high = many["low_ms"] / one["high_ms"], many["high_ms"] / one["low_ms"]
    held = "held" if low <= paper <= high else "does not hold"
    said = f"prefill falls as 2N(Q+V) from V = {V} to 1, {llm}, batch 1"
    store.claim(p, "03-prefill", said, paper, ratio, low, high, held, "arXiv 2411.03312, cost model")
    asked, whole = at.loc[(1, "question")], at.loc[(1, "ttft")]
    share = asked["median_ms"] / whole["median_ms"]
    said = (
        f"QueCC's pass over the question is free: its share of the first token's time, V = 1, {llm}, batch 1"
    )
    held = "held" if share < 0.05 else "does not hold"
    store.claim(
        p, "03-question", said, 0.0, share, verdict=held, source="arXiv 2411.03312, section 4: not counted"
    )
    known = store.claims(p)
    return known[known["id"].str.startswith("03-")].reset_index(drop=True)
