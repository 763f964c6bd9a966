"""`vtc fit FILE.csv`: the law of people's own scores, as a table, JSON, CSV rows and figures."""

from __future__ import annotations

import argparse
import io
import json
import math
from pathlib import Path

from vtc import InputError
from vtc.files import csv_text, write
from vtc.scaling.checks import SHOWN, check_draws, compare, finite, summary
from vtc.scaling.fitting import FEW, Fit, fit
from vtc.scaling.laws import LAWS, TOKENS
from vtc.scaling.scores import UNITS, read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vtc fit`."""
    add, intervals = parser.add_argument, ("profile", "residual", "size", "seed")
    add("file", metavar="FILE.csv", help="columns N, V, score (0 to 1); optional family, seed, Q")
    add("--unit", default="billions", choices=UNITS, help="unit of N (default billions)")
    add("--law", default="power", choices=[*LAWS], help="form of the law; offset lets V = 0 in")
    add("--tokens", default="V", choices=TOKENS, help="tokens that the law sees (default V)")
    add("--question-tokens", type=float, metavar="Q", help="Q of V_opt (default: the file's, or 50)")
    add("--output-tokens", type=float, default=0.0, metavar="G", help="G of V_opt (default 0)")
    add("--question-pass-tokens", type=float, default=0.0, metavar="q", help="q' of V_opt (default 0)")
    add("--interval", default="profile", choices=intervals, help="profile or a bootstrap")
    add("--draws", type=int, default=2000, help="bootstrap draws (default 2000)")
    add("--compare", action="store_true", help="also print every law's fit, best AICc first")
    add("--json", type=Path, metavar="OUT", help="write the fits; null means unbounded")
    add("--csv", type=Path, metavar="OUT", help="write the fits as rows")
    add("--figures", type=Path, metavar="FOLDER", help="draw each family's fit there (svg and png)")


def main(args: argparse.Namespace) -> int:
    """Fits the file's families and writes what was asked for; writes nothing if any family is at fault."""
    _check(args)
    families = read(args.file, args.unit)
    fits = [fit(points, args.law, args.tokens) for points in families]
    text = (args.question_tokens, args.output_tokens, args.question_pass_tokens)
    rows = [summary(f, *text, by=args.interval, draws=args.draws) for f in fits]
    for f, row in zip(fits, rows):
        _print(f, row)
        if args.compare:
            _print_all(f, row["Q"])
    if args.json:
        by_family = {row["family"]: {k: finite(v) for k, v in row.items()} for row in rows}
        write(args.json, json.dumps(by_family, indent=2, allow_nan=False) + "\n")
    if args.csv:
        write(args.csv, csv_text(rows))
    if args.figures:
        _draw(fits, args.figures)
    return 0


def _check(args) -> None:
    for option in ("question_tokens", "output_tokens", "question_pass_tokens"):
        value = getattr(args, option)
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"--{option.replace('_', '-')} {value:g}: a count of tokens is 0 or more")
    check_draws(args.draws)


def _print(f: Fit, row: dict) -> None:
    print(f"family {row['family']}: {row['law']} law, T = {row['tokens']}, {row['points']} points")
    print(f"  {type(f.law).__doc__.splitlines()[0]}")
    kinds = {"": "95 %", "_clustered": "V of an LLM together"} if f.shared else {"": "95 %"}
    print(f"{'':19}" + "".join(f"  {what:<24}" for what in kinds.values()).rstrip())
    for name in [name for name in SHOWN if name in row]:
        ends = [f"[{number(row[f'{name}_lo{k}'])}, {number(row[f'{name}_hi{k}'])}]" for k in kinds]
        at = f"  (Q = {row['Q']:g})" if name == "V_opt" else ""
        print(f"  {name:<6}{number(row[name]):>11}" + "".join(f"  {x:<24}" for x in ends).rstrip() + at)
    if f.shared:
        few = ", which is few" if f.llms < FEW else ""
        print(f"  second interval: the errors of one LLM's points are not independent; {f.llms} LLMs{few}")
    took = f"({f.seconds * 1e3:.0f} ms)"
    print(f"  SSE {f.sse:.4g}  RMSE {f.rmse:.4g}  R2 {f.r2:.4f}  AICc {f.aicc:.1f}  {took}")
    print(f"  status: {f.status}\n  optimum at fixed N(V + Q + G + q'): {row['V_opt_words']}")
    if f.fault:
        print(f"  don't rely on these numbers: {f.fault}")


def _print_all(f: Fit, Q: float) -> None:
    print(f"  {'law':<12}{'ratio':>11}{'V_opt':>11}{'SSE':>11}{'AICc':>9}  status")
    for row in compare(f.points, Q):
        told = f"{number(row['ratio']):>11}{number(row['V_opt']):>11}{row['sse']:>11.4g}"
        print(f"  {row['law']:<12}{told}{row['aicc']:>9.1f}  {row['status']}")


def number(value: float) -> str:
    """Four digits; an infinite end is the word unbounded."""
    if value is None or math.isnan(value):
        return "none"
    return "unbounded" if math.isinf(value) else f"{value:.4g}"


def _draw(fits: list[Fit], folder: Path) -> None:
    from vtc.figures import law as draw
    from vtc.scaling import frames

    for f in fits:
        chart = draw.fitted(frames.plane(f))
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in f.points.family)
        for kind, out in (("svg", io.StringIO()), ("png", io.BytesIO())):
            chart.save(out, format=kind)
            write(folder / f"law_{name}.{kind}", out.getvalue())
