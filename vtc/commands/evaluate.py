"""`vtc evaluate`: ask a saved model the test questions, or your own."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from vtc import InputError, data, profiles
from vtc.commands import NOTES, add_profile, add_user_data
from vtc.evaluation.ask import measured, own
from vtc.files import write
from vtc.models.vlm import VLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vtc evaluate`: a saved model, on GridQA's test questions or on your own."""
    add, which = parser.add_argument, "test (default); choose by validation"
    add("model", metavar="FOLDER", help="what `vtc train` saved")
    add_profile(parser)
    add_user_data(parser)
    add("--split", default="test", choices=("test", "validation"), help=which)
    several = "other V, one or more, of a model that serves several (nested budgets)"
    add("--tokens", type=int, nargs="+", metavar="V", help=several)
    add("--json", metavar="OUT", help="also write the row there")


def main(args: argparse.Namespace) -> int:
    """Print the scores, one a line."""
    p = profiles.get(args.profile)
    said = data.read_llava(args.data, args.images) if args.data else None
    whole = VLM.from_pretrained(args.model)
    if said is None and whole.config.grid != p.g:
        its = f"its grid is {whole.config.grid}, profile {p.name} has {p.g}"
        raise InputError(f"{args.model}: {its}; use its own profile")
    models = [whole] if args.tokens is None else [whole.at(V).eval() for V in args.tokens]
    rows, file = [], Path(args.model) / NOTES
    notes = json.loads(file.read_text()) if file.is_file() else {}  # what `vtc train` said
    for model in models:
        began = time.perf_counter()
        row = measured(p, model, args.split) if said is None else own(model, said)
        width = max(map(len, row))
        if len(models) > 1:
            print(f"V = {model.V}")
        for name, value in row.items():
            print(f"{name:<{width}}  {value:{'.3f' if isinstance(value, float) else ''}}")
        # N, V and score as `vtc fit` reads them, once rows of several models stand in one table
        of_law = {"N": model.N / 1e9, "V": model.V, "score": row["exact"]} if args.data else {}
        seconds = {"evaluate_seconds": round(time.perf_counter() - began, 1)}
        rows.append(of_law | row | seconds | {"training": notes} if args.data else row)
        if args.json:  # after each, for one may take long
            write(args.json, json.dumps(rows if len(models) > 1 else rows[0], indent=1))
    return 0
