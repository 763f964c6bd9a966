"""What the clock's rows say: how repeatable, how near the floor, faster than what, how well predicted."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from vtc import cost
from vtc.benchmark.clock import ratio, summary


def ok(clock: pd.DataFrame) -> pd.DataFrame:
    """The rows that hold a time."""
    return clock[clock["status"] == "ok"]


def tidy(clock: pd.DataFrame) -> pd.DataFrame:
    """Rows with a time, the first of each repeated configuration, as charts name things.

    `V` is a number; `LLM` is the LLM's short name; `compressor` says how its question pass is come by where
    it is not paid for every request.
    """
    rows = ok(clock).drop(columns="V", errors="ignore").rename(columns={"tokens": "V"})
    rows = rows[rows["repeat"] == 0]
    way = np.where(rows["question"] == "paid", "", " (" + rows["question"] + ")")
    short = rows["llm"].astype(str).str.replace("qwen1.5-", "Qwen1.5-").str.split(":").str[-1]
    return rows.assign(LLM=short, compressor=rows["compressor"] + way)


def with_tower(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `tidy` with the tower at each V > 0 of each configuration: all of a device share one time.

    The tower does the same work whatever the LLM, the compressor and V, so its samples of one device,
    precision and batch are pooled; else two compressors "from pixels" would compare two moments of a machine.
    """
    tower, rest = rows[rows["stage"] == "tower"], rows[rows["stage"] != "tower"]
    pooled = []
    for key, group in tower.groupby(TOWER):
        samples = np.concatenate([listed(cell) for cell in group["samples_ms"]])
        pooled.append(dict(zip(TOWER, key)) | summary(samples) | {"floor_ms": group["floor_ms"].min()})
    if not pooled:
        return rest
    kept = ["llm", "LLM", "compressor", "question", "V", "Q", "q", "G", *TOWER]
    places = rest.loc[rest["V"] > 0, kept].drop_duplicates()
    return pd.concat([rest, places.assign(stage="tower").merge(pd.DataFrame(pooled), on=TOWER)])


TOWER = ["device", "dtype", "batch", "tower"]  # what a tower's time depends on


def listed(cell: str | list) -> list:
    """A list that a cell holds; rows that were read from a file hold it as JSON."""
    return json.loads(cell) if isinstance(cell, str) else cell


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
    """`VLM.generate` beside transformers' generate, same weights, in turn; `speedup` > 1: ours is faster.

    The speed-up is the median over the turns of both, `low` and `high` its 95 % interval.
    """
    same, out = ["llm", "dtype", "batch", "compressor", "Q", "G", "tokens", "repeat"], []
    rows = ok(clock)
    rows = rows[rows["stage"].str.startswith(("ours ", "baseline "))]
    for key, group in rows.groupby(same):
        at = group.set_index("stage")
        for what in ("one token", "all tokens"):
            ours, theirs = at.loc[f"ours {what}"], at.loc[f"baseline {what}"]
            found = ratio(listed(theirs["samples_ms"]), listed(ours["samples_ms"]))
            ms = {"ours_ms": ours["median_ms"], "baseline_ms": theirs["median_ms"]}
            out.append(dict(zip(same, key)) | {"what": what} | ms | dict(zip(TURNS, found.values())))
    return pd.DataFrame(out, columns=[*same, "what", "ours_ms", "baseline_ms", *TURNS])


TURNS = ("speedup", "low", "high")


def of_one_run(clock: pd.DataFrame) -> pd.DataFrame:
    """Floors by the best rate and bandwidth that any process of the same device, precision and day measured.

    On a shared machine one process finds half the bandwidth of the next; a time below its own "floor" was the
    sign.
    """
    if "peak_flops" not in clock:  # nothing fitted into memory
        return clock
    day = clock["date"].astype(str).str[:10]
    best = clock.groupby(["device", "dtype", day])[["peak_flops", "bandwidth"]].transform("max")
    clock = clock.assign(**best)
    for row in clock[clock["parts"].notna()].itertuples():
        found = floor(listed(row.parts), row.median_ms, row.peak_flops, row.bandwidth)
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


def floors(clock: pd.DataFrame) -> pd.DataFrame:
    """Measured milliseconds of prefill and decode, the counted floor, what binds, the share of it reached.

    `of_matmul`: operations a second over those of torch.matmul alone on large squares, the usual yardstick.
    """
    timed = ok(clock)
    timed = timed[timed["stage"].isin(["prefill", "decode"]) & (timed["repeat"] == 0)]
    of_matmul = timed["flops"] / (timed["median_ms"] / 1e3) / timed["peak_plain_flops"]
    names = ["llm", "dtype", "batch", "compressor", "tokens", "stage"]
    names += ["median_ms", "floor_ms", "binds", "share"]
    return timed[names].assign(of_matmul=of_matmul).drop_duplicates(ignore_index=True)


def speedups(clock: pd.DataFrame) -> pd.DataFrame:
    """First token of the most V over that of each V, by compressor: measured and counted (floors alone).

    `what`: from features that are there already, or from pixels, with the tower in both. `low` and `high`:
    from the 95 % intervals of the two times.
    """
    rows = with_tower(tidy(clock))
    times = ["median_ms", "low_ms", "high_ms", "floor_ms"]
    same, out = ["LLM", "dtype", "batch", "compressor"], []
    for key, group in rows.groupby(same):
        at = group.set_index("V")
        first = at.loc[at["stage"] == "ttft", times]
        tower = at.loc[at["stage"] == "tower", times].reindex(first.index)
        if tower.isna().all(axis=None):
            continue
        for what, took in (("from features", first), ("from pixels", first + tower)):
            took = took[took.index > 0]
            over, took = took.loc[took.index.max()], took.drop(took.index.max())
            ratios = {
                "measured": over["median_ms"] / took["median_ms"],
                "low": over["low_ms"] / took["high_ms"],
                "high": over["high_ms"] / took["low_ms"],
                "counted": over["floor_ms"] / took["floor_ms"],
            }
            named = dict(zip(same, key)) | {"what": what, "over": int(over.name)}
            out.append(pd.DataFrame(ratios).reset_index().assign(**named))
    return pd.concat(out, ignore_index=True)


def gains(clock: pd.DataFrame) -> pd.DataFrame:
    """Time at the most V over time at the least, by Q and G: to the first token, and of the whole answer."""
    rows = tidy(clock)
    wide = rows[rows["stage"].isin(["ttft", "decode"])].pivot_table(
        index=["LLM", "Q", "G", "V"], columns="stage", values=["median_ms", "floor_ms"]
    )
    wide = wide.rename(columns={"median_ms": "measured", "floor_ms": "counted"}, level=0)
    first, later = wide.xs("ttft", axis=1, level=1), wide.xs("decode", axis=1, level=1)
    whole = first.add(later.mul(wide.index.get_level_values("G") - 1, axis=0))
    frame = pd.concat({"first token": first, "whole answer": whole}, names=["time"])
    V = frame.index.get_level_values("V")
    least, most = (frame[V == v].droplevel("V") for v in (V.min(), V.max()))
    return (most / least).assign(V=int(V.max()), least=int(V.min())).reset_index()


def throughput(clock: pd.DataFrame) -> pd.DataFrame:
    """Requests a second of each batch that is answered as one, from pixels to its last token.

    Batches here are whole: all requests come and end together. A server that mixes them is not measured.
    """
    rows, same = with_tower(tidy(clock)), ["LLM", "dtype", "compressor", "Q", "G", "V", "batch"]
    wide = rows[rows["stage"].isin(["tower", "ttft", "decode"])].pivot_table(
        index=same, columns="stage", values="median_ms"
    )
    wide = wide.reindex(columns=["tower", "ttft", "decode"]).fillna({"tower": 0.0}).reset_index()
    wide["request_ms"] = wide["tower"] + wide["ttft"] + (wide["G"] - 1) * wide["decode"]
    return wide.assign(requests_per_s=1e3 * wide["batch"] / wide["request_ms"])
