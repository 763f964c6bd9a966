"""Can the clock be predicted from counts? Two shares of what the machine can do, fitted a device."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vtc import cost
from vtc.benchmark.reading import listed, ok

LEAST_MS = 10.0  # floor below which calling the operators is what one waits for


def predicted(clock: pd.DataFrame) -> pd.DataFrame:
    """Time to first token and per decoded token, measured and predicted with two shares fitted a device.

    On a CPU the times to multiply and to fetch add up: on two Xeon cores that leaves 2 % (median) and 10 %
    (90th percentile) at held-out V, where the longer of the two leaves 3 % and 31 %.

    Configurations whose floor is below LEAST_MS are left out where there are others: hundreds of operators
    have to be called, which takes milliseconds whatever they compute. Shares are fitted on the configurations
    not held out (every other V is) and reported with the predictions; `error` is predicted / measured
    - 1.
    """
    timed = ok(clock)
    timed = timed[timed["stage"].isin(["ttft", "decode"]) & timed["parts"].notna()]
    large = timed["floor_ms"] >= LEAST_MS
    timed = (timed[large] if large.any() else timed).reset_index(drop=True)
    hold = timed["tokens"].rank(method="dense").astype(int) % 2 == 0
    out = []
    for (on, dtype), group in timed.groupby(["device", "dtype"]):
        parts = [np.array(listed(cell)) for cell in group["parts"]]  # (parts, 2) each
        most = max(map(len, parts))
        flops, moved = np.stack([np.pad(x, ((0, most - len(x)), (0, 0))) for x in parts]).transpose(2, 0, 1)
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
    if not out:
        return timed.assign(predicted_ms=np.nan, error=np.nan, held_out=False)
    return pd.concat(out, ignore_index=True)


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
