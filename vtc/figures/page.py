"""planner.html: one offline page on which the plan answers at once as its sliders move.

The page holds no formula of its own: every stage of `vtc.cost` is sampled and stored as the exact
polynomial in batch, Q and G that it is (checked), and the errors are the law's draws as `vtc.scaling.plan`
uses them. What is left to the page is a roofline maximum (on a CPU a sum), a sum, and the choice of the least
error that fits.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from vtc import cost, files
from vtc.profiles import Profile
from vtc.scaling.fitting import Fit, fit
from vtc.scaling.plan import Request, predictions, shapes
from vtc.scaling.scores import published

TEMPLATE = Path(__file__).with_name("planner.html")
POWERS = [(b, q, g) for b in (0, 1) for q, g in ((0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1))]
DRAWS = 300


def make(profile: Profile, fits: dict[str, Fit] | None = None, draws: int = DRAWS) -> Path:
    """Writes planner.html beside the profile's figures -> its path; `fits` by task (default: the paper's)."""
    fits = {task: fit(published(task)) for task in ("reasoning", "ocr")} if fits is None else fits
    path = profile.figures / "planner.html"
    files.write(path, html(fits, draws))
    return path


def html(fits: dict[str, Fit], draws: int = DRAWS, request: Request | None = None) -> str:
    """The whole page as text."""
    data = json.dumps(content(fits, draws, request or Request()), separators=(",", ":"), allow_nan=False)
    return TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/null", data.replace("</", "<\\/"))


def content(fits: dict[str, Fit], draws: int, request: Request) -> dict:
    """What the page knows: choices, stage polynomials, devices, and the law's draws by task."""
    N, V = (grid.ravel() for grid in np.meshgrid(request.models, request.tokens, indexing="ij"))
    return {
        "N": N.tolist(),
        "V": V.tolist(),
        "powers": POWERS,
        "cost": polynomials(N, V),
        "devices": [_device(d) for d in cost.hardware_table().values()],
        "tasks": {task: _task(f, draws, N, V) for task, f in fits.items()},
    }


def _device(device: cost.Hardware) -> dict:
    peak = device.peak["bf16"] * device.compute_share
    bandwidth = device.bandwidth * device.bandwidth_share
    limits = {"peak": peak, "bandwidth": bandwidth, "memory_gb": device.memory / 1e9}
    return {"name": device.name} | limits | {"overlap": device.overlap}


def _task(f: Fit, draws: int, N, V) -> dict:
    drawn = f.bootstrap(draws)
    low, high = np.quantile(predictions(f, drawn, N, V), [0.025, 0.975], axis=0)  # (c,)
    ends = f.interval("ratio")
    ratio = [ends[0], float(f.law.ratio), ends[1]] if f.law.closed else None
    return {
        "law": f"{f.law.name} law, {f.n} points, {f.status}",
        "ratio": ratio if ratio and np.isfinite(ratio).all() else None,
        "error": f.law.error(N, V).tolist(),
        "low": low.round(5).tolist(),
        "high": high.round(5).tolist(),
        "draws": drawn.error(N, V).round(6).tolist(),
        "largest": float(f.points.N.max()),
    }


def polynomials(N, V, compressor: str = "tokenpacker") -> dict:
    """Operations and bytes of every stage, and memory, as coefficients (c, terms) of batch^i Q^j G^k.

    Raises ArithmeticError should a stage stop being such a polynomial.
    """
    pipe = cost.Pipeline(shapes(N, trailing=1), compressor=compressor)
    sample = np.array([*itertools.product((1, 3), (0, 40, 100), (1, 20, 60))], float)  # (p, 3) batch, Q, G
    b, q, g = sample.T
    terms = np.stack([b**i * q**j * g**k for i, j, k in POWERS], -1)  # (p, terms)
    size = terms.max(0)
    work = cost.stages(pipe, np.asarray(V, float)[:, None], q, g, b)
    known = {name: {"flops": w.flops, "bytes": w.bytes} for name, w in work.items()}
    known["memory"] = {"bytes": cost.memory(pipe, np.asarray(V, float)[:, None], q, g, b)["total"]}
    out = {}
    for name, parts in known.items():
        for part, values in parts.items():
            values = np.broadcast_to(values, (len(N), len(sample)))  # (c, p)
            found = np.linalg.lstsq(terms / size, values.T, rcond=None)[0].T / size  # (c, terms)
            if np.abs(found @ terms.T - values).max() > 1e-9 * max(np.abs(values).max(), 1):
                raise ArithmeticError(f"{part} of stage {name} is no polynomial in batch, Q and G any more")
            found[np.abs(found * size) < 1e-12 * np.abs(values).max(1, keepdims=True)] = 0
            if found.any():
                out.setdefault(name, {})[part] = [[float(f"{x:.12g}") for x in row] for row in found]
    return out
