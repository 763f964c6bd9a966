"""The one rule by which this project judges what the paper says.

A *claim* is something that the paper says, quoted, with a number from here and its 95 % interval. Two kinds,
and a third for what we said ourselves before a run:

    sign or order   agrees      if it is true of all of the interval
                    disagrees   if its contrary is true of all of it
                    open        otherwise
    a number        disagrees   if the interval excludes the paper's number
                    agrees      if it holds the paper's number and excludes the value that would deny it
                    open        if it holds both
    a range         agrees      if all of the interval lies in it
                    disagrees   if none of it does
                    open        otherwise

A number from a bad fit gets no verdict. An *observation* is a number that nobody made a claim about; it has
no verdict either. What is claimed stands in `vtc/said.csv`; `vtc.experiments.evidence` finds the numbers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from vtc.evaluation.compare import holm

NOT_TESTABLE = "not testable here"
EVIDENCE = {  # in the order of every table
    "recomputed": "The paper's own published points, fitted anew",
    "replicated": "Models trained here",
    "clocked": "Measured with a clock",
    NOT_TESTABLE: "Not testable here",
}
AGREES, DISAGREES, OPEN = "agrees", "disagrees", "open"


@dataclass(frozen=True)
class Observation:
    """A number that nobody made a claim about: it is shown with its interval and never judged."""

    id: str
    evidence: str  # one of `EVIDENCE`
    says: str  # what was measured
    value: float = math.nan
    low: float = math.nan  # 95 % interval, infinite where the data set no end
    high: float = math.nan
    means: str = ""  # one plain sentence for readers
    main: bool = False  # whether the README shows it


@dataclass(frozen=True)
class Claim(Observation):
    """Something that the paper says, in its words or by its table, and the evidence about it."""

    where: str = ""  # in the paper
    sign: int = 0  # of a claim of order: +1 the value is above the denial, -1 below; 0: a claim of a number
    denial: float | None = None  # what would deny it: 0 for an exponent or a difference, 1 for a ratio
    paper: float | None = None  # the number that a claim of a number states
    fault: str = ""  # why the fit behind the number is bad, see `vtc.scaling.Fit.fault`
    question: str = ""  # the family of tests that Holm's correction holds together
    p: float | None = None  # two-sided, of the value that would deny it
    tests: int = 1  # tests of that question
    p_holm: float | None = None  # after Holm's correction for them
    needs: str = ""  # what a test would take, where none is possible here
    if_so: str = ""  # what it means if it agrees, and
    if_not: str = ""  # if it disagrees; one plain sentence each

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"claim {self.id}: its interval has low {self.low} above high {self.high}")
        lacking = self.denial if self.sign else self.paper
        if lacking is None and self.evidence != NOT_TESTABLE:
            raise ValueError(f"claim {self.id}: give the paper's number, or a sign and what would deny it")


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


def within(low: float, high: float, least: float, most: float) -> str:
    """The verdict on a range, `least` to `most`, that was named before the number was known."""
    if least <= low and high <= most:
        return AGREES
    return DISAGREES if high < least or low > most else OPEN


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
    for question in {c.question for c in claims}:
        at = [i for i, c in enumerate(claims) if c.question == question and c.p_holm is None]
        known = [i for i in at if claims[i].p is not None]
        adjusted = dict(zip(known, holm(np.array([claims[i].p for i in known])).tolist()))
        for i in at:
            out[i] = replace(claims[i], tests=len(at), p_holm=adjusted.get(i))
    return out


COLUMNS = (
    *("id", "kind", "evidence", "says", "where", "test", "paper", "value", "low", "high", "question"),
    *("tests", "p_holm", "fault", "verdict", "means", "main"),
)


def table(said: list[Claim | Observation]) -> pd.DataFrame:
    """One row each, by kind of evidence, claims before observations; the columns of claims.csv."""
    rows = []
    for one in said:
        judged = {"kind": "observation"}
        if isinstance(one, Claim):
            test, judgement = _test(one), verdict(one)
            judged = {"kind": "claim", "test": test, "verdict": judgement, "means": meaning(one)}
        rows.append(asdict(one) | judged)
    order = list(EVIDENCE)
    rows.sort(key=lambda row: (row["kind"] != "claim", order.index(row["evidence"])))
    words = dict.fromkeys(("where", "test", "question", "fault", "verdict"), "")
    return pd.DataFrame(rows, columns=COLUMNS).fillna(words)


def _test(claim: Claim) -> str:
    """What is tested, in symbols."""
    if claim.sign:
        return f"{'>' if claim.sign > 0 else '<'} {claim.denial:g}"
    denial = "" if claim.denial is None else f", not {claim.denial:g}"
    return "" if claim.paper is None else f"= {claim.paper:.3g}{denial}"
