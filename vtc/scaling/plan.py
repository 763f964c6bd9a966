"""Which N and V to deploy: the law's error and the counted cost of every choice, under constraints.

`vtc plan` ranks every (LLM, V) that fits the latency and the memory by predicted error and says in which
share of the law's bootstrap draws each is the best. Latency is the roofline's (`vtc.cost`), a floor unless
the hardware carries measured shares. The planner page is made of the same functions (`vtc.figures.page`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vtc import InputError, cost
from vtc.scaling.checks import finite
from vtc.scaling.fitting import Fit
from vtc.scaling.frontier import v_star, v_star_interval, words
from vtc.scaling.laws import Law

GRID_TOKENS = (1, 4, 9, 16, 36, 64, 144, 576)  # what windows on CLIP's 24 x 24 grid can give
TASKS = ("reasoning", "ocr")
MOST = 10**9  # tokens or requests that a plan may be asked for


@dataclass(frozen=True)
class Request:
    """What is asked of the deployment; the defaults leave everything open."""

    Q: int = 50  # text tokens of the prompt
    G: int = 32  # generated tokens
    batch: int = 1  # requests at once
    question: int | None = None  # question tokens among the Q (None: all of them)
    ttft_ms: float = math.inf  # longest time to the first token
    total_ms: float = math.inf  # longest time to the last token
    memory_gb: float | None = None  # None: the hardware's
    models: tuple[float, ...] = (0.5, 1.8, 4.0, 7.0, 14.0)  # N, billions
    tokens: tuple[int, ...] = GRID_TOKENS  # V on offer
    compressor: str = "tokenpacker"
    question_pass: str = "paid"  # paid | cached | shared, for question-steered compressors
    dtype: str = "bf16"

    def __post_init__(self):
        for name, least in (("Q", 0), ("G", 1), ("batch", 1), ("ttft_ms", 0), ("total_ms", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} = {getattr(self, name)}: must be {least} or more")
        for name in ("Q", "G", "batch", "tokens"):
            if np.max(getattr(self, name), initial=0) > MOST:
                raise InputError(f"{name} = {getattr(self, name)}: must be {MOST:,} or less")
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise InputError(f"memory_gb = {self.memory_gb}: must be more than 0")
        if not self.models or not self.tokens:
            raise InputError("no choices: give at least one LLM size (--models) and one V (--tokens)")
        low, high = cost.QWEN15[0].nominal, cost.QWEN15[-1].nominal
        for N in self.models:
            if not low <= N <= high:
                known = f"shapes are known from {low:g}B to {high:g}B"
                raise InputError(f"model of {N:g}B: {known}; choose within")
        if min(self.tokens) < 1:
            raise InputError(f"V = {min(self.tokens)}: a choice holds at least one visual token")

    @property
    def q_prime(self) -> float:
        """Question tokens that the compressor sends through the LLM once more; 0 where none is paid for."""
        if self.question_pass != "paid" or cost.traits(self.compressor)["question_pass"] != "paid":
            return 0.0
        return float(self.Q if self.question is None else min(self.question, self.Q))


@dataclass(frozen=True)
class Choice:
    """One (N, V) with what it costs and how it should do."""

    N: float  # billions
    V: int
    error: float  # predicted 1 - score
    error_lo: float  # 95 % interval of what one may measure: the law's, and the scatter around it
    error_hi: float
    ttft_ms: float
    total_ms: float
    memory_gb: float
    binds: str  # what most of the time to the first token waits for: compute | bandwidth
    limit: str  # the constraint used most, and how much of it
    fits: bool
    p_best: float  # share of the law's draws in which it has the least error of those that fit
    within: str  # what the law's error is here: interpolation | extrapolation (N or V beyond the points)


@dataclass(frozen=True)
class Plan:
    """Ranked choices, best first; those that fit stand before those that don't."""

    request: Request
    hardware: cost.Hardware
    fit: Fit
    choices: tuple[Choice, ...]
    N_interval: tuple[float, float] | None  # of the best choice, over the draws
    V_interval: tuple[float, float] | None

    @property
    def best(self) -> Choice | None:
        """The choice of least predicted error that fits; None when none does."""
        return self.choices[0] if self.choices and self.choices[0].fits else None

    @property
    def best_within(self) -> Choice | None:
        """The best of those that fit and lie within the N and V of the law's points."""
        return next((c for c in self.choices if c.fits and c.within == "interpolation"), None)


def shapes(N, trailing: int = 0) -> cost.LLMShape:
    """LLM shapes of nominal sizes N (c,) as one of arrays: presets, and what lies between them."""
    known = {shape.nominal: shape for shape in cost.QWEN15}
    return cost.LLMShape.stack([known.get(float(n)) or cost.llm_like(float(n)) for n in N], trailing)


def measures(request: Request, device: cost.Hardware, N, V) -> dict[str, np.ndarray]:
    """Latency, memory and what binds of every pair: N (c,) billions, V (c,) -> arrays (c,)."""
    r, V = request, np.asarray(V, float)
    pipe = cost.Pipeline(shapes(N), compressor=r.compressor, question=r.question_pass, dtype=r.dtype)
    work = cost.stages(pipe, V, r.Q, r.G, r.batch, r.question)
    took = cost.latency(pipe, device, V, r.Q, r.G, r.batch, r.question)
    waits = {name: cost.binds(w, device, r.dtype) for name, w in work.items() if name != "decode"}
    by_compute = sum(np.where(by == "compute", took[name], 0.0) for name, by in waits.items())
    return {
        "ttft_ms": took["ttft"] * 1e3,
        "total_ms": took["total"] * 1e3,
        "memory_gb": cost.memory(pipe, V, r.Q, r.G, r.batch)["total"] / 1e9,
        "compute_bound": by_compute >= took["ttft"] / 2,
    }


def predictions(law: Fit, draws: Law, N, V, Q=0.0, seed: int = 0) -> np.ndarray:
    """Errors that one may come to measure: the draws' law plus the scatter the fit left over, (m, c)."""
    mean = draws.error(N, V, Q)
    spread = law.residual * np.sqrt(law.n / max(law.n - law.k, 1))
    return mean + np.random.default_rng(seed).choice(spread - spread.mean(), mean.shape)


def plan(request: Request, device: cost.Hardware, law: Fit, draws: Law | None = None) -> Plan:
    """Every choice measured, predicted and ranked.

    `draws`: the law refitted to resampled points (default: 2,000 residual draws of `law`).
    """
    draws = law.bootstrap() if draws is None else draws
    N, V = (grid.ravel() for grid in np.meshgrid(request.models, request.tokens, indexing="ij"))  # (c,)
    got = measures(request, device, N, V)
    room = {"ttft": request.ttft_ms, "total": request.total_ms}
    room["memory"] = device.memory / 1e9 if request.memory_gb is None else request.memory_gb
    used = np.stack([got[x] / y for x, y in zip(("ttft_ms", "total_ms", "memory_gb"), room.values())])
    fits = (used <= 1).all(0)
    error, many = law.law.error(N, V, request.Q), draws.error(N, V, request.Q)  # (c,), (m, c)
    low, high = np.quantile(predictions(law, draws, N, V, request.Q), [0.025, 0.975], axis=0)
    wins = np.where(fits, many, np.inf).argmin(1)  # (m,) the best choice of every draw
    share = np.bincount(wins, minlength=len(N)) / len(many) * fits.any()
    inside = [(x >= seen.min()) & (x <= seen.max()) for x, seen in ((N, law.points.N), (V, law.points.V))]
    within = np.where(inside[0] & inside[1], "interpolation", "extrapolation")
    tightest = np.array([f"{list(room)[j]} {used[j, i]:.0%}" for i, j in enumerate(used.argmax(0))])
    binds = np.where(got["compute_bound"], "compute", "bandwidth")
    counted = (got[x] for x in ("ttft_ms", "total_ms", "memory_gb"))
    columns = (N.astype(float), V, error, low, high, *counted, binds, tightest, fits, share, within)
    choices = [Choice(*values) for values in zip(*(column.tolist() for column in columns))]
    choices.sort(key=lambda c: (not c.fits, c.error, c.ttft_ms))
    ends = [None, None]
    if fits.any():
        ends = [tuple(np.quantile(x[wins], [0.025, 0.975], method="nearest").tolist()) for x in (N, V)]
    return Plan(request, device, law, tuple(choices), *ends)


def card(made: Plan, top: int = 8) -> list[str]:
    """The plan in lines: law, recommendation with intervals, ranked table."""
    r, f, best, device = made.request, made.fit, made.best, made.hardware
    text = (r.Q, r.G, r.q_prime)
    lines = [
        f"{f.points.family}: {f.law.name} law, {f.n} points ({f.status})",
        f"{device.name}, {r.dtype}, batch {r.batch}, Q = {r.Q}, G = {r.G}, {r.compressor}",
        f"if operations alone counted: {words(f.law, *text)}{_ends(v_star_interval(f, *text))}",
    ]
    if f.fault:
        lines.insert(1, f"don't rely on this plan: the law's fit is at fault ({f.fault})")
    if best is None:
        near = min(made.choices, key=lambda c: c.ttft_ms)
        return lines + [
            "nothing fits: relax a constraint, or offer smaller LLMs or fewer tokens",
            f"fastest: {near.N:g}B, V = {near.V}, {near.ttft_ms:.1f} ms, {near.memory_gb:.1f} GB",
        ]
    lines += [
        f"recommended: N = {best.N:g}B{_ends(made.N_interval)}, V = {best.V}{_ends(made.V_interval)}, "
        f"{_error(best)} ({best.within}), best in {best.p_best:.0%} of the law's draws",
    ]
    if (near := made.best_within) not in (None, best):
        lines.append(f"within what the law has seen: N = {near.N:g}B, V = {near.V}, {_error(near)}")
    lines += [
        "     N     V  error     95 %         ttft ms  total ms  mem GB  binds      tightest     P(best)",
    ]
    shown = [c for c in made.choices if c.fits][:top]
    for c in shown:
        mark = "*" if c.within == "extrapolation" else " "
        lines.append(
            f"{c.N:>6g}{mark}{c.V:>5}  {c.error:.3f}  {c.error_lo:.3f}-{c.error_hi:.3f}  {c.ttft_ms:>9.2f} "
            f"{c.total_ms:>9.1f}  {c.memory_gb:>6.1f}  {c.binds:<9}  {c.limit:<12} {c.p_best:>6.1%}"
        )
    meaning = "counted, with the shares of peak and bandwidth reached in rows"
    if device.compute_share == device.bandwidth_share == 1:
        meaning = "a roofline floor"
    count = sum(c.fits for c in made.choices)
    lines.append(f"{count} of {len(made.choices)} choices fit; latency is {meaning}")
    if any(c.within == "extrapolation" for c in shown):
        N, V = f.points.N, f.points.V
        seen = f"N {N.min():g} to {N.max():g}, V {V.min():g} to {V.max():g}"
        lines.append(f"* an extrapolation: the law has seen {seen}")
    return lines


def _error(c: Choice) -> str:
    return f"error {c.error:.3f}{_ends((c.error_lo, c.error_hi), 3)}"


def _ends(ends, digits: int | None = None) -> str:
    if ends is None or math.isinf(ends[0]):
        return ""
    form = f".{digits}f" if digits else ".3g"
    low, high = ("unbounded" if math.isinf(x) else f"{x:{form}}" for x in ends)
    return f" [{low}, {high}]"


def as_dict(made: Plan) -> dict:
    """The plan as JSON: recommended N and V with intervals, then all choices; null means unbounded."""
    f, best, text = made.fit, made.best, (made.request.Q, made.request.G, made.request.q_prime)
    out = {"fits": best is not None, "hardware": made.hardware.name, "family": f.points.family}
    found = {x: (getattr(best, x, None), getattr(made, f"{x}_interval")) for x in ("N", "V")}
    found["V_opt"] = v_star(f.law, *text), v_star_interval(f, *text)
    for name, (value, ends) in found.items():
        low, high = ends or (math.nan, math.nan)
        out |= {name: finite(value), f"{name}_lo": finite(low), f"{name}_hi": finite(high)}
    out |= {"V_opt_words": words(f.law, *text), "status": f.status, "fault": f.fault}
    out["within"] = best.within if best else None
    out["best_within"] = vars(made.best_within) if made.best_within else None
    asked = {k: list(v) if isinstance(v, tuple) else finite(v) for k, v in vars(made.request).items()}
    return out | {"request": asked, "choices": [vars(c) for c in made.choices]}
