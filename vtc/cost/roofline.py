"""From counts to seconds: devices, the roofline, what binds, and the shares of it that are reached."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache

import numpy as np

from vtc import InputError
from vtc.cost.count import STAGES, Pipeline, Work, memory, stages
from vtc.files import packaged
from vtc.shapes import BYTES


@dataclass(frozen=True)
class Hardware:
    """A device: what it can do at most, and the share of it that is reached."""

    name: str
    peak: dict  # dtype -> dense matrix operations a second
    bandwidth: float  # bytes a second, main memory
    memory: float  # bytes
    source: str = ""
    compute_share: float = 1.0  # share of the peak reached; 1 gives the floor
    bandwidth_share: float = 1.0  # share of the bandwidth reached
    overlap: bool = True  # a GPU multiplies while it fetches; on a CPU the two times add up

    def with_shares(self, compute: float, bandwidth: float) -> Hardware:
        return dataclasses.replace(self, compute_share=compute, bandwidth_share=bandwidth)


@cache
def hardware_table() -> dict[str, Hardware]:
    """Every row of hardware.csv by name; peaks are dense (no sparsity), with float32 accumulation."""
    return {
        row["name"]: Hardware(
            row["name"],
            {dtype: float(peak) * 1e12 for dtype in BYTES if (peak := row.get(f"{dtype}_tflops"))},
            float(row["bandwidth_gb_s"]) * 1e9,
            float(row["memory_gb"]) * 1e9,
            row["source"],
            float(row["compute_share"] or 1),
            float(row["bandwidth_share"] or 1),
            row["overlap"] != "no",
        )
        for row in packaged("hardware.csv")
    }


def hardware(name: str) -> Hardware:
    """A device by name; raises InputError with the names there are."""
    table = hardware_table()
    if name.lower() not in table:
        raise InputError(f"hardware {name!r} is not known: choose one of {', '.join(table)}, or give numbers")
    return table[name.lower()]


def own_hardware(
    peak_tflops: float, bandwidth_gb_s: float, memory_gb: float, name: str = "yours"
) -> Hardware:
    """A device from one's own numbers: TFLOP/s (of any precision), GB/s and GB."""
    return Hardware(name, dict.fromkeys(BYTES, peak_tflops * 1e12), bandwidth_gb_s * 1e9, memory_gb * 1e9)


def limits(work: Work, device: Hardware, dtype: str = "bf16") -> tuple:
    """Seconds that the operations take alone, and that the bytes take alone."""
    if dtype not in device.peak:
        raise InputError(f"no {dtype} peak is known for {device.name}; known: {', '.join(device.peak)}")
    by_compute = work.flops / (device.peak[dtype] * device.compute_share)
    return by_compute, work.bytes / (device.bandwidth * device.bandwidth_share)


def seconds(work: Work, device: Hardware, dtype: str = "bf16"):
    """Roofline seconds of a stage: the longer of compute and bandwidth, or both where they add up."""
    return (np.maximum if device.overlap else np.add)(*limits(work, device, dtype))


def binds(work: Work, device: Hardware, dtype: str = "bf16"):
    """Which resource sets a stage's time: "compute" or "bandwidth"."""
    by_compute, by_bytes = limits(work, device, dtype)
    return np.where(by_compute >= by_bytes, "compute", "bandwidth")


def latency(pipe: Pipeline, device: Hardware, V, Q, G=1, batch=1, q=None) -> dict:
    """Seconds by stage, with `ttft` (everything up to the first token) and `total`."""
    work = stages(pipe, V, Q, G, batch, q)
    took = {name: seconds(w, device, pipe.dtype) for name, w in work.items()}
    ttft = sum(took[name] for name in STAGES[:-1])
    return took | {"ttft": ttft, "total": ttft + took["decode"]}


def fit_shares(flops, moved, measured, device: Hardware, dtype: str = "bf16") -> tuple[Hardware, float]:
    """The two shares under which roofline seconds lie nearest to measured ones (least mean |log ratio|).

    flops, moved: (n,), or (n, k) where a measured time is the sum of k stages; measured: (n,) seconds.
    Returns the device with its shares, and the median of |predicted / measured - 1|.
    """
    measured = np.asarray(measured, float)
    work = Work(*(np.asarray(x, float).reshape(len(measured), -1) for x in (flops, moved)))  # (n, k)

    def predicted(c, b):  # shares (...,) -> (..., n)
        shared = device.with_shares(*(np.asarray(x)[..., None, None] for x in (c, b)))
        return seconds(work, shared, dtype).sum(-1)

    centre, width = np.log([0.5, 0.5]), 2.5
    for _ in range(6):  # a grid that closes in: the objective is piecewise smooth and cheap
        grid = centre[:, None] + np.linspace(-width, width, 21)
        miss = np.abs(np.log(predicted(*np.exp(np.meshgrid(*grid, indexing="ij"))) / measured)).mean(-1)
        i, j = np.unravel_index(np.argmin(miss), miss.shape)
        centre, width = np.array([grid[0, i], grid[1, j]]), width / 4
    shares = [float(x) for x in np.exp(centre)]
    return device.with_shares(*shares), float(np.median(np.abs(predicted(*shares) / measured - 1)))


def largest_batch(pipe: Pipeline, device: Hardware, V, Q, G=1):
    """Requests that fit in the device's memory at once (0: not even the weights do)."""
    one = memory(pipe, V, Q, G)
    return np.maximum(np.floor((device.memory - one["weights"]) / (one["kv"] + one["activations"])), 0)
