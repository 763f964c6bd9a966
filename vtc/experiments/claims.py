"""The one rule by which this project judges what the paper says.

A *claim* is something that the paper says, quoted, with a number from here and its 95 % interval. Two kinds:

    sign or order   agrees      if it is true of all of the interval
                    disagrees   if its contrary is true of all of it
                    open        otherwise
    a number        disagrees   if the interval excludes the paper's number
                    agrees      if it holds the paper's number and excludes the value that would deny it
                    open        if it holds both

A number from a bad fit gets no verdict. An *observation* is a number that nobody made a claim about; it has
no verdict either. What is claimed, and from which rows the numbers come, is in `vtc.experiments.evidence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from vtc.evaluation.compare import holm

RECOMPUTED, REPLICATED, CLOCKED = "recomputed", "replicated", "clocked"
NOT_TESTABLE = "not testable here"
EVIDENCE = {  # in the order of every table
    RECOMPUTED: "The paper's own published points, fitted anew",
    REPLICATED: "Models trained here",
    CLOCKED: "Measured with a clock",
    NOT_TESTABLE: "Not testable here",
}
AGREES, DISAGREES, OPEN = "agrees", "disagrees", "open"


@dataclass(frozen=True)
class Observation:
    """A number that nobody made a claim about: it is shown with its interval and never judged."""

    id: str
    says: str  # what was measured
    evidence: str  # one of `EVIDENCE`
    value: float
    low: float = math.nan  # 95 % interval, where there is one
    high: float = math.nan
    means: str = ""  # one plain sentence for readers
    main: bool = False  # whether the README shows it


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and the evidence about it."""

    id: str
    says: str  # the paper's words or table, in brief
    where: str  # in the paper
    evidence: str  # one of `EVIDENCE`
    value: float = math.nan
    low: float = -math.inf  # 95 % interval, infinite where the data set no end
    high: float = math.inf
    denial: float | None = (
        None  # the value that would deny it: 0 for an exponent or difference, 1 for a ratio
    )
    sign: int = (
        0  # of a claim of order: +1 the value lies above the denial, -1 below it; 0: a claim of a number
    )
    paper: float | None = None  # the number that a claim of a number states
    fault: str = ""  # why the fit behind the number is bad, see `vtc.scaling.Fit.fault`
    question: str = ""  # the family of tests that Holm's correction holds together
    p: float | None = None  # two-sided, of the value that would deny it
    tests: int = 1  # tests of that question
    p_holm: float | None = None  # after Holm's correction for them
    needs: str = ""  # what a test would take, where none is possible here
    if_so: str = ""  # what it means for a reader if it agrees, and
    if_not: str = ""  # if it disagrees; one plain sentence each
    main: bool = False  # whether the README shows it

    def __post_init__(self) -> None:
        if self.evidence not in EVIDENCE or self.sign not in (-1, 0, 1) or self.low > self.high:
            raise ValueError(
                f"claim {self.id}: evidence {self.evidence!r}, sign {self.sign}, low above high?"
            )
        if self.evidence != NOT_TESTABLE and (
            self.paper is self.denial is None or self.sign and self.denial is None
        ):
            raise ValueError(
                f"claim {self.id}: state the paper's number, or a sign and the value that denies it"
            )


def verdict(claim: Claim) -> str:
    """agrees | disagrees | open, or why there is no verdict; the only rule in this project."""
    if claim.evidence == NOT_TESTABLE:
        return f"no verdict: needs {claim.needs}"
    if claim.fault:
        return f"no verdict: {claim.fault}"
    low, high = claim.low, claim.high
    if math.isnan(low) or math.isnan(high):
        return OPEN
    if claim.sign:
        above, below = low > claim.denial, high < claim.denial
        yes, no = (above, below) if claim.sign > 0 else (below, above)
        return AGREES if yes else DISAGREES if no else OPEN
    if not low <= claim.paper <= high:
        return DISAGREES
    deniable = claim.denial is None or low <= claim.denial <= high
    return OPEN if deniable else AGREES


def meaning(claim: Claim) -> str:
    """What the verdict means, in one plain sentence."""
    if claim.evidence == NOT_TESTABLE:
        return "Nothing here speaks for or against it."
    if claim.fault:
        return "The law does not describe these errors, so its exponents mean nothing here."
    text = "These data allow both: more seeds, sizes or points are needed."
    return {AGREES: claim.if_so, DISAGREES: claim.if_not}.get(verdict(claim), text)


def corrected(claims: list[Claim]) -> list[Claim]:
    """The claims with the number of tests of their question, and p after Holm's correction for them.

    A claim that brings its own p_holm (of a table with more tests than claims) keeps it.
    """
    out = list(claims)
    for question in {c.question for c in claims if c.question}:
        at = [i for i, c in enumerate(claims) if c.question == question and c.p_holm is None]
        known = [i for i in at if claims[i].p is not None]
        adjusted = dict(zip(known, holm(np.array([claims[i].p for i in known])).tolist()))
        for i in at:
            out[i] = replace(claims[i], tests=len(at), p_holm=adjusted.get(i))
    return out


def table(said: list[Claim | Observation]) -> pd.DataFrame:
    """One row each, by kind of evidence, claims before observations; the columns of claims.csv."""
    rows = []
    for one in said:
        claim = isinstance(one, Claim)
        row = {"id": one.id, "kind": "claim" if claim else "observation", "evidence": one.evidence}
        row |= {"says": one.says, "where": one.where if claim else "", "test": _test(one) if claim else ""}
        row |= {"paper": one.paper if claim else None, "value": one.value, "low": one.low, "high": one.high}
        if claim:
            row |= {"question": one.question, "tests": one.tests, "p_holm": one.p_holm, "fault": one.fault}
        row |= {"verdict": verdict(one) if claim else ""}
        row |= {"means": meaning(one) if claim else one.means, "main": one.main}
        rows.append(row)
    order = {name: i for i, name in enumerate(EVIDENCE)}
    rows.sort(key=lambda row: (row["kind"] != "claim", order[row["evidence"]]))
    columns = (
        "id kind evidence says where test paper value low high question tests p_holm fault verdict means main"
    )
    return pd.DataFrame(rows, columns=columns.split())


def _test(claim: Claim) -> str:
    """What is tested, in symbols."""
    if claim.sign:
        return f"{'>' if claim.sign > 0 else '<'} {claim.denial:g}"
    denial = "" if claim.denial is None else f", not {claim.denial:g}"
    return "" if claim.paper is None else f"= {claim.paper:.3g}{denial}"
