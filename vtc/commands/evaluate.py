"""`vtc evaluate`: ask a saved model the test questions, or your own."""

from __future__ import annotations

import argparse
import json

from vtc import InputError, data, profiles
from vtc.commands import add_profile, add_user_data
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
    add("--tokens", type=int, metavar="V", help="another V, of a model that serves several (nested budgets)")
    add("--json", metavar="OUT", help="also write the row there")


def main(args: argparse.Namespace) -> int:
    """Print the scores, one a line."""
    p = profiles.get(args.profile)
    said = data.read_llava(args.data, args.images) if args.data else None
    model = VLM.from_pretrained(args.model)
    model = model if args.tokens is None else model.at(args.tokens).eval()
    if said is not None:
        row = own(model, said)
    elif model.config.grid != p.g:
        its = f"its grid is {model.config.grid}, profile {p.name} has {p.g}"
        raise InputError(f"{args.model}: {its}; use its own profile")
    else:
        row = measured(p, model, args.split)
    width = max(map(len, row))
    for name, value in row.items():
        print(f"{name:<{width}}  {value:{'.3f' if isinstance(value, float) else ''}}")
    if args.json:  # N, V and score as `vtc fit` reads them, once rows of several models stand in one table
        of_law = {"N": model.N / 1e9, "V": model.V, "score": row["exact"]} if args.data else {}
        write(args.json, json.dumps(of_law | row, indent=1))
    return 0
