"""`vtc predict`: the error of every N and V from two cheap curves, before the grid is trained."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vtc import InputError
from vtc.files import write
from vtc.profiles import numbers
from vtc.scaling.checks import check_draws
from vtc.scaling.marginals import Marginal, predict, read
from vtc.scaling.scores import UNITS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vtc predict`."""
    add = parser.add_argument
    file, one = {"type": Path, "required": True, "metavar": "FILE.csv"}, "parameters of that one LLM"
    add("--know", **file, help="columns N, score [, family, seed]: the LLM told in words")
    add("--see", **file, help="columns V, score [, family, seed]: one LLM over all V")
    add("--see-N", type=float, required=True, metavar="N", help=f"{one}, in the unit of N")
    add("--unit", default="billions", choices=UNITS, help="unit of N (default billions)")
    add("--N", default="", help="sizes to predict, such as 0.5,1.8,4 (default: those of --know)")
    add("--V", default="", help="visual tokens to predict, such as 1,4,16 (default: those of --see)")
    add("--draws", type=int, default=2000, help="draws over seeds for the intervals (default 2000)")
    add("--json", type=Path, metavar="OUT", help="write the predictions")


def main(args: argparse.Namespace) -> int:
    """Prints a table a family and form; an interval needs two seeds or more in both files."""
    check_draws(args.draws)
    know, see = read(args.know, "N", args.unit), read(args.see, "V")
    shared = [family for family in know if family in see]
    if not shared:
        held = f"{args.know} holds {', '.join(know)}, {args.see} holds {', '.join(see)}"
        raise InputError(f"{held}: no family is in both")
    scale = UNITS[args.unit]
    found = {}
    for family in shared:
        N = [n * scale for n in numbers(args.N, "--N", float)] or know[family].at
        V = numbers(args.V, "--V", float) or see[family].at
        found[family] = predict(know[family], see[family], args.see_N * scale, N, V, args.draws)
        print("\n".join(_told(family, know[family], see[family], found[family], scale)))
    if args.json:
        write(args.json, json.dumps(found, indent=2, allow_nan=False) + "\n")
    return 0


def _told(family: str, know: Marginal, see: Marginal, rows: list[dict], scale: float) -> list[str]:
    lines = [
        f"family {family}: told in words the error falls as N^-{know.exponent:.3f} (R2 {know.r2:.3f}, "
        f"{know.seeds} seeds); at one LLM as V^-{see.exponent:.3f} (R2 {see.r2:.3f}, {see.seeds} seeds)",
        f"  {'N':>10}{'V':>7}  {'product':<24}{'see and know':<24}label",
    ]
    half = len(rows) // 2  # the two forms, one behind the other
    for product, both in zip(rows[:half], rows[half:]):
        cells = "".join(f"{_cell(row):<24}" for row in (product, both))
        lines.append(f"  {product['N'] / scale:>10.4g}{product['V']:>7g}  {cells}{product['label']}")
    return lines


def _cell(row: dict) -> str:
    ends = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['error']:.3f}{ends}"
