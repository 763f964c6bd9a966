"""What few tokens buy in seconds and memory: counted for a device, and clocked beside this sweep's errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vtc import cost
from vtc.benchmark.reading import tidy
from vtc.evaluation.compare import undominated
from vtc.scaling.scores import published


def batch_that_pays(
    devices: Sequence[str], Q: int = 50, saving: float = 0.1, compressor: str = "tokenpacker"
) -> pd.DataFrame:
    """The smallest batch at which one token for V brings the first sooner by `saving`, by device and N.

    Counted floors from features on; rows without such a batch (up to 256) are left out.
    """
    V, batch = np.unique(np.geomspace(2, 576, 60).round())[:, None], np.arange(1.0, 257)
    out = []
    for name in devices:
        for shape in cost.QWEN15:
            pipe = cost.Pipeline(shape, compressor=compressor, features_cached=True)
            many, one = (cost.latency(pipe, cost.hardware(name), v, Q, 1, batch)["ttft"] for v in (V, 1.0))
            soon = one <= (1 - saving) * many
            first = np.where(soon.any(1), batch[soon.argmax(1)], np.nan)
            out += [{"device": name, "N": shape.nominal, "V": v, "batch": b} for v, b in zip(V[:, 0], first)]
    return pd.DataFrame(out).dropna(ignore_index=True)


def memory(device: str, Q: int = 50, G: int = 128) -> pd.DataFrame:
    """KV cache a request (MiB) and the largest batch that fits a device, by N and V (bf16); counted."""
    V, hardware, out = np.unique(np.geomspace(1, 576, 40).round()), cost.hardware(device), []
    for shape in cost.QWEN15:
        pipe = cost.Pipeline(shape)
        kv = cost.memory(pipe, V, Q, G)["kv"] / 2**20
        most = cost.largest_batch(pipe, hardware, V, Q, G)
        out += [{"N": shape.nominal, "V": v, "kv_mib": k, "batch": m} for v, k, m in zip(V, kv, most)]
    return pd.DataFrame(out)


def published_seconds(
    device: str, batches: Sequence[int] = (1, 32), Q: int = 50, task: str = "reasoning"
) -> pd.DataFrame:
    """The paper's points at counted milliseconds a request on a device, from pixels to the first token."""
    points, hardware, out = published(task), cost.hardware(device), []
    for N, V, Y in zip(points.N, points.V, points.Y):
        pipe = cost.Pipeline(cost.llm(f"{N:g}"))
        for b in batches:
            ms = float(cost.latency(pipe, hardware, V, Q, 1, b)["ttft"]) * 1e3 / b
            out.append({"N": N, "V": int(V), "error": Y, "batch": b, "ms": ms})
    return undominated(pd.DataFrame(out), "ms", ["batch"])


def own_seconds(clock: pd.DataFrame, errors: pd.DataFrame, family: str = "reasoning") -> pd.DataFrame:
    """This project's own errors (mean over seeds) beside milliseconds clocked here for the same N and V.

    The sweep's compressor is TokenPacker. Where QueCC alone was clocked, its question pass is taken off.
    """
    score, key = f"error_{family}", ["N", "V"]
    if errors.empty or score not in errors:
        return pd.DataFrame(columns=["N", "V", "error", "batch", "ms", "low_ms", "high_ms", "frontier"])
    timed = tidy(clock)
    timed = timed[timed["LLM"].isin(timed.loc[timed["N"].isin(errors["N"]), "LLM"])]
    packed = timed[timed["compressor"] == "tokenpacker"]
    timed = (timed if packed.empty else packed).astype({"N": int, "V": int})
    times, same = ["median_ms", "low_ms", "high_ms"], ["LLM", *key, "batch"]
    first = timed[timed["stage"] == "ttft"].groupby(same)[times].first()
    asking = timed[timed["stage"] == "question"].groupby(same)["median_ms"].first()
    took = first.sub(asking.reindex(first.index).fillna(0), axis=0)
    took = took.div(took.index.get_level_values("batch"), axis=0).reset_index()
    mean = errors.astype({"N": int, "V": int}).groupby(key)[score].mean().rename("error").reset_index()
    both = mean.merge(took, on=key).rename(columns={"median_ms": "ms"})
    return undominated(both.assign(N=both["LLM"]), "ms", ["batch"])
