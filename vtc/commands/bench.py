"""`vtc bench`: a profile's cases, or one LLM with its own settings."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pandas as pd

from vtc import InputError, cost, profiles
from vtc.benchmark import STEM, against_baseline, case, check, has_cuda, measure, of_one_run, ok, throughput
from vtc.experiments import store
from vtc.experiments.clock import CASES
from vtc.files import write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vtc bench`: a profile's cases, or one LLM with its own settings."""
    parser.add_argument("--profile", default="laptop", help="whose cases to clock, and where rows go")
    parser.add_argument("--recompute", action="store_true", help="clock again what is recorded")
    parser.add_argument("--llm", help="one LLM: " + ", ".join(cost.LLMS) + ", 0.5 ... 14, or a checkpoint")
    parser.add_argument("--V", default="0,1,16,144,576", help="visual tokens (default %(default)s)")
    parser.add_argument("--Q", type=int, default=50, help="text tokens of the prompt (default 50)")
    parser.add_argument("--q", type=int, default=20, help="question tokens among them (default 20)")
    parser.add_argument("--G", type=int, default=8, help="generated tokens (default 8)")
    parser.add_argument("--batch", default="1", help="batch sizes (default 1)")
    parser.add_argument("--compressor", default="quecc", help="one or several, in turn: quecc,tokenpacker")
    parser.add_argument("--question", default="paid", choices=cost.QUESTION_PASS)
    parser.add_argument("--dtype", default="bf16", choices=sorted(cost.BYTES))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--baseline", action="store_true", help="also clock transformers' generate")
    parser.add_argument("--budget-s", type=float, default=6, help="seconds to sample each V (default 6)")
    loader = "what reading images costs a training step at the shape of SmolLM2-135M"
    parser.add_argument("--loader", action="store_true", help=loader)
    parser.add_argument("--csv", help="also write the rows here")


def _asked(args: argparse.Namespace) -> list[dict]:
    """The cases of the command line, each checked against this machine before any starts."""
    same = ("Q", "q", "G", "question", "dtype", "baseline", "budget_s")
    own = {name: getattr(args, name) for name in same} | {"on": args.device, "q": min(args.q, args.Q)}
    if args.Q < 1 or args.G < 2:
        raise InputError("--Q must be at least 1 and --G at least 2 (the first token comes out of prefill)")
    V, batches = profiles.numbers(args.V, "--V"), profiles.numbers(args.batch, "--batch")
    if min(V, default=-1) < 0 or min(batches, default=0) < 1:
        raise InputError("--V and --batch need at least one whole number each, 0 or more and 1 or more")
    if ":" in args.llm:  # an LLM of a profile sees by its tower
        own["tower"] = args.llm.partition(":")[0]
    by = args.compressor.replace(",", " ").split()
    asked = [case(args.llm, V, by, batch=b, **own) for b in batches]
    for c in asked:
        check(c)
    return asked


def main(args: argparse.Namespace) -> int:
    """Clocks, prints a table, and says where the raw rows are."""
    p = profiles.get(args.profile, args.recompute)
    if args.loader:
        return _loader(p)
    whole = replace(p, recompute=False)  # not the few that a notebook clocks anew
    wanted = {STEM: _asked(args)} if args.llm else {stem: of(whole) for stem, of in CASES.items()}
    if not any(wanted.values()):
        raise InputError(f"profile {p.name} has no cases to clock: name an LLM with --llm")
    on = {c["on"] for some in wanted.values() for c in some}
    if not args.llm and "cuda" in on and not has_cuda():
        raise InputError(f"profile {p.name} clocks a GPU and none was found: use --profile laptop, or --llm")
    tables = [store.table(stem, p, some, measure, recipe_free=True) for stem, some in wanted.items()]
    clock = of_one_run(pd.concat(tables, ignore_index=True))
    columns = "llm dtype batch Q G tokens compressor stage median_ms low_ms high_ms floor_ms share binds"
    _print(clock.reindex(columns=[*columns.split(), "status"]))
    if len(ok(clock)):
        print("\nfrom pixels to the last token, a batch at a time:")
        _print(throughput(clock))
    if len(beside := against_baseline(clock)):
        print("\nVLM.generate beside transformers' generate, in turn; above 1 it is faster:")
        _print(beside)
    if args.csv:
        write(args.csv, clock.to_csv(index=False))
    print("raw samples: " + ", ".join(str(store.folder(stem, p)) for stem in wanted))
    return 0


def _loader(p: profiles.Profile) -> int:
    from vtc.benchmark import loader

    found = loader.measure(p)
    low, high = found["share_low"], found["share_high"]
    print(f"{found['share']:.3f} [{low:.3f}, {high:.3f}] of the step rate with features in memory: a step of")
    print(
        f"{found['batch']} images takes {found['disk_s']:.2f} s with reading, {found['memory_s']:.2f} without"
    )
    return 0


def _print(table: pd.DataFrame) -> None:
    print(table.to_string(index=False, float_format=lambda x: f"{x:.3g}", na_rep="-"))
