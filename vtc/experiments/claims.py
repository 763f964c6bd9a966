"""The paper's claims about the law beside what its own points say, written through `records.claim`."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from vtc import InputError
from vtc.experiments import store
from vtc.profiles import Profile
from vtc.scaling.checks import leave_one_size_out, separability
from vtc.scaling.fitting import Fit, fit
from vtc.scaling.frontier import v_star, v_star_interval
from vtc.scaling.scores import points, published_rows


def write(profile: Profile, reasoning: Fit, ocr: Fit) -> None:
    """One claim a row; a number holds when the paper's lies inside our 95 % interval."""
    said = {(r["task"], r["quantity"]): float(r["value"]) for r in published_rows("law")}
    for task, f in (("reasoning", reasoning), ("ocr", ocr)):
        for name in ("alpha", "beta"):
            what = f"{name} of the law, {task}"
            _number(
                profile, f"04-{task}-{name}", what, said[task, name], getattr(f.law, name), f.interval(name)
            )
        paper = round(said[task, "alpha"] / said[task, "beta"], 2)
        what = f"alpha / beta, {task}: how much faster error varies with N than with V"
        _number(profile, f"04-{task}-ratio", what, paper, float(f.law.ratio), f.interval("ratio"))
    best, ends = v_star(reasoning.law, 50), v_star_interval(reasoning, 50)
    _number(
        profile, "04-v-star-50", "best V at Q = 50, reasoning", said["reasoning", "V_opt at Q=50"], best, ends
    )
    low = reasoning.interval("ratio")[0]
    held = "held" if low > 1 else "open"
    what = "at Q = 0 one token is best, reasoning (true of every alpha > beta)"
    store.claim(profile, "04-v-star-0", what, "1 token", f"alpha / beta > {low:.2f}", verdict=held)
    beyond = ocr.interval("ratio")[1]
    what = "OCR-like tasks want the tokens instead (alpha < beta)"
    held = "held" if beyond < 1 else "open"
    store.claim(profile, "04-ocr-reversed", what, "reversed", f"alpha / beta < {beyond:.2f}", verdict=held)
    _form(profile, reasoning)


def _form(profile: Profile, reasoning: Fit) -> None:
    """Claims about the form: prediction of the largest size, separability, what T is."""
    last = leave_one_size_out(reasoning.points)[-1]
    size = f"{last['N left out']:g}B here, 14B there"
    what = f"the largest LLM is predicted from the smaller ones ({size}): worst miss"
    _largest(profile, "04-held-out", what, last)
    _separable(profile, "04-separable", SEPARABLE, separability(reasoning.points))
    p = reasoning.points
    worse = fit(points(p.N, p.V, p.Y, np.full(len(p), 50.0)), tokens="Q+V").sse / reasoning.sse
    what = "the law's T is Q + V (text) or V (code): SSE of the first over that of the second, Q = 50"
    held = "does not hold" if worse > 1 else "held"
    store.claim(profile, "04-tokens", what, "T = Q + V", float(worse), verdict=held)


def write_own(profile: Profile, own: dict[str, Fit]) -> None:
    """The same claims asked of this project's own sweep, by family."""
    said = {(r["task"], r["quantity"]): float(r["value"]) for r in published_rows("law")}
    for task, f in own.items():
        paper = said[task, "alpha"] / said[task, "beta"]
        low, high = f.interval("ratio")
        above, below = (low > 1, high < 1) if paper > 1 else (high < 1, low > 1)
        held = "held" if above else "does not hold" if below else "open"
        sign = ">" if paper > 1 else "<"
        what = f"GridQA, {task}: alpha / beta {sign} 1 (R2 of the law {f.r2:.2f})"
        ratio, ends = float(f.law.ratio), (float(e) if np.isfinite(e) else None for e in (low, high))
        store.claim(
            profile, f"04-own-{task}-ratio", what, round(paper, 2), ratio, *ends, held, "Figures 1 and 3"
        )
        with suppress(InputError):  # too few sizes to leave one out
            last = leave_one_size_out(f.points, f.law.name)[-1]
            what = f"GridQA, {task}: the largest LLM is predicted from the smaller ones: worst miss"
            _largest(profile, f"04-own-{task}-largest", what, last)
        with suppress(InputError):
            found = separability(f.points)
            _separable(profile, f"04-own-{task}-separable", f"GridQA, {task}: {SEPARABLE}", found)


SEPARABLE = "N and V act separately: interaction gamma = 0"


def _largest(profile: Profile, id: str, what: str, last: dict) -> None:
    miss = float(last["worst miss"])
    held = "held" if miss <= 0.02 else "does not hold"
    store.claim(profile, id, what, 0.02, miss, verdict=held, source="Figure 2")


def _separable(profile: Profile, id: str, what: str, found: dict) -> None:
    _number(profile, id, what, 0.0, found["gamma"], (found["gamma_lo"], found["gamma_hi"]))


def _number(profile: Profile, id: str, what: str, paper: float, ours: float, ends) -> None:
    verdict = "held" if ends[0] <= paper <= ends[1] else "does not hold"
    low, high = (float(e) if np.isfinite(e) else None for e in ends)
    store.claim(
        profile, id, what, paper, float(ours), low, high, verdict, "arXiv 2411.03312, Figures 1 and 3"
    )
