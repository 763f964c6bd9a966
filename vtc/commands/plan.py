"""`vtc plan`: which N and V to deploy on given hardware."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from vtc import InputError, cost
from vtc.files import write
from vtc.profiles import numbers
from vtc.scaling.checks import check_draws
from vtc.scaling.fitting import fit
from vtc.scaling.laws import LAWS
from vtc.scaling.plan import GRID_TOKENS, TASKS, Request, as_dict, card, plan
from vtc.scaling.scores import UNITS, published, read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vtc plan`."""
    add, free = parser.add_argument, Request()
    devices = f"{', '.join(cost.hardware_table())}, or here: this CPU as `vtc bench` found it"
    add("--hardware", default="a100", help=devices)
    add("--peak-tflops", type=float, help="your own device: matrix peak in the precision used")
    add("--bandwidth-gb-s", type=float, help="your own device: main memory bandwidth")
    add("--memory-gb", type=float, help="memory to stay within (default: the device's)")
    add("--ttft-ms", type=float, default=math.inf, help="longest time to the first token (default: none)")
    add("--total-ms", type=float, default=math.inf, help="longest time to the last token (default: none)")
    add("--question-tokens", type=int, default=free.Q, metavar="Q", help="text tokens of a prompt (50)")
    add("--output-tokens", type=int, default=free.G, metavar="G", help="generated tokens (default 32)")
    add("--batch", type=int, default=free.batch, help="requests at once (default 1)")
    add("--task", default="reasoning", help="reasoning, ocr (the paper's points), or FILE.csv of your own")
    add("--family", help="which family of FILE.csv (default: its only one)")
    add("--unit", default="billions", choices=UNITS, help="unit of N in FILE.csv")
    add("--law", default="power", choices=LAWS, help="form of the law (default power)")
    add("--models", default="0.5,1.8,4,7,14", help="LLM sizes on offer, billions")
    add("--tokens", default="", help=f"V on offer (default: of {GRID_TOKENS} what the compressor can give)")
    add("--compressor", default=free.compressor, help="tokenpacker (default), quecc, mqt, pool, ...")
    add("--question-pass", default="paid", choices=cost.QUESTION_PASS, help="of question-steered ones")
    add("--precision", default=free.dtype, choices=cost.BYTES)
    add("--top", type=int, default=8, help="choices to print (default 8)")
    add("--draws", type=int, default=2000, help="bootstrap draws (default 2000)")
    add("--json", type=Path, metavar="OUT", help="write the plan")


def main(args: argparse.Namespace) -> int:
    """Prints the ranked choices; exit code 1 when nothing fits the constraints."""
    check_draws(args.draws)
    request = _request(args)
    law = fit(_points(args), args.law)
    made = plan(request, _hardware(args), law, law.bootstrap(args.draws))
    print("\n".join(card(made, args.top)))
    if args.json:
        write(args.json, json.dumps(as_dict(made), indent=2, allow_nan=False) + "\n")
    return 0 if made.best else 1


def _request(args) -> Request:
    least, most = cost.reach(args.compressor)
    return Request(
        **{name: getattr(args, name) for name in ("batch", "ttft_ms", "total_ms", "memory_gb", "compressor")},
        Q=args.question_tokens,
        G=args.output_tokens,
        models=numbers(args.models, "--models", float),
        tokens=numbers(args.tokens, "--tokens") or tuple(v for v in GRID_TOKENS if least <= v <= most),
        question_pass=args.question_pass,
        dtype=args.precision,
    )


def _hardware(args) -> cost.Hardware:
    own = (args.peak_tflops, args.bandwidth_gb_s)
    if own == (None, None) and args.hardware == "here":
        from vtc import profiles
        from vtc.experiments.clock import here

        return here(profiles.get("laptop"))
    if own == (None, None):
        return cost.hardware(args.hardware)
    if not all(x is not None and 0 < x < math.inf for x in (*own, args.memory_gb)):
        raise InputError("your own device needs --peak-tflops, --bandwidth-gb-s and --memory-gb, all above 0")
    return cost.own_hardware(*own, args.memory_gb)


def _points(args):
    if args.task in TASKS:
        return published(args.task)
    if not args.task.lower().endswith(".csv"):
        known = ", ".join(TASKS)
        raise InputError(f"--task {args.task!r}: choose {known}, or give a .csv of your own scores")
    families = {points.family: points for points in read(args.task, args.unit)}
    if args.family is None and len(families) > 1:
        raise InputError(f"{args.task} holds {', '.join(families)}: choose one with --family")
    name = args.family or next(iter(families))
    if name not in families:
        raise InputError(f"{args.task} has no family {name!r}; it holds {', '.join(families)}")
    return families[name]
