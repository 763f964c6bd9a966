"""`vtc train`: one cell of the sweep, or a model on your own images."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from vtc import InputError, cost, data, profiles
from vtc.commands import add_profile, add_user_data
from vtc.data import llava
from vtc.evaluation import card
from vtc.training import outlook, tower, user_data
from vtc.training.device import is_main_process
from vtc.training.stages import Case, check, checkpoints, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vtc train`: one cell of the sweep, or the same recipe on your own images."""
    add_profile(parser)
    add, bad = parser.add_argument, "rows of --data that cannot be read"
    add("--size", default="", help="LLM of the profile (default: that of notebook 05)")
    add("--tokens", type=int, default=16, metavar="V", help="visual tokens for the LLM; 0: no image")
    add("--compressor", default="tokenpacker", help="a name of vtc.compressors")
    add("--seed", type=int, default=0)
    add_user_data(parser)
    own = parser.add_argument_group("your own LLM and tower, on your own data")
    add = own.add_argument
    add("--llm", metavar="FOLDER", help="hub id, folder or GGUF file of a causal LLM; it stays frozen")
    add("--lora", action="store_true", help="the LLM learns too, by LoRA (needs peft)")
    add("--tower", metavar="FOLDER", help="open_clip's by id or folder, or a folder of CLIP or SigLIP")
    add("--steps", type=int, nargs=2, metavar=("A", "B"), help="of the two stages (default: the profile's)")
    add("--batch", type=int, help="images a step (default: the profile's)")
    add = parser.add_argument
    add("--check", action="store_true", help="what is wrong in --data, what it would take, and a dry run")
    add("--hardware", default="h100", help="that the work is counted for, by name (h100)")
    add("--devices", type=int, default=8, help="how many of them (8)")
    add("--bad-rows", default="stop", choices=("stop", "skip"), help=bad)
    add("--out", metavar="FOLDER", default="model", help="where the model is saved")
    add("--card", action="store_true", help="also ask the test questions; README.md there says how it did")


def main(args: argparse.Namespace) -> int:
    """Train, save, and say what it was like."""
    own = [f"--{name}" for name in ("llm", "tower", "lora", "steps", "batch") if getattr(args, name)]
    if own and not args.data and not args.check:
        raise InputError(f"{own[0]} is for your own data: give --data FILE.json and --images FOLDER")
    if args.lora and not args.llm:
        raise InputError("--lora adapts a trained LLM: give --llm FOLDER")
    if args.llm and not args.tokens and not args.lora:
        raise InputError("--tokens 0 with a frozen LLM leaves nothing to learn: add --lora")
    if args.card and args.data:
        raise InputError("--card reports GridQA's test questions: leave out --data, or use `vtc evaluate`")
    base = profiles.get(args.profile)
    p, eyes = user_data.with_checkpoints(_paced(base, args), args.llm, args.tower, args.lora)
    case = Case(args.size or p.zoo_size, args.tokens, args.compressor, args.seed)
    check(p, case)
    learns = "all" if not args.llm else "lora" if args.lora else "frozen"
    if args.check:
        return _check(args, p, case, learns)
    if p.recipe.text is None and is_main_process():  # a cluster's work
        _say(args, p, case, learns)
    talks = data.read_llava(args.data, args.images, args.bad_rows) if args.data else None
    if talks is None:
        model, notes = train(p, case)
        model.tower = tower.pretrained(p)
    else:
        model, notes = user_data.train(p, case, talks, eyes or tower.pretrained(base), learns)
    if not is_main_process():
        return 0
    model.save_pretrained(args.out)
    shutil.rmtree(checkpoints(p, case, talks), ignore_errors=True)
    if args.card:
        words = {"profile": p.name, "size": case.size, "tokens": case.V, "compressor": case.compressor}
        words |= {"seed": case.seed, "out": args.out}
        command = "vtc train " + " ".join(f"--{name} {value}" for name, value in words.items())
        card.write(p, model, Path(args.out), f"{command} --card")
    print(f"{args.compressor}, V = {case.V}, LLM {case.size}: loss {notes['loss']:.3f}, "
          f"{notes['questions_per_s']:.0f} questions/s, saved to {args.out}")  # fmt: skip
    return 0


def _paced(p: profiles.Profile, args: argparse.Namespace) -> profiles.Profile:
    """The profile with the steps and the batch that were asked for."""
    r = p.recipe
    steps, batch = args.steps or (r.align.steps, r.instruct.steps), args.batch
    if min(*steps, batch or 1) < 1:
        raise InputError("--steps and --batch count from 1: give whole numbers above 0")
    align, instruct = (
        replace(stage, steps=n, batch=batch or stage.batch) for stage, n in zip((r.align, r.instruct), steps)
    )
    return replace(p, recipe=replace(r, align=align, instruct=instruct))


def _check(args: argparse.Namespace, p: profiles.Profile, case: Case, learns: str) -> int:
    """What the data hold, what is wrong where, what the training will take, a dry run; 1 if anything is."""
    bad = False
    if args.data:
        report = llava.check(args.data, args.images)
        print("\n".join(report.lines()))
        bad = report.bad > 0
    _say(args, p, case, learns)
    print(outlook.dry_run(p, case, learns))
    return int(bad)


def _say(args: argparse.Namespace, p: profiles.Profile, case: Case, learns: str) -> None:
    """Print the profile and what the training will take."""
    if args.devices < 1:
        raise InputError(f"--devices {args.devices}: give 1 or more")
    print(p, *outlook.lines(p, case, cost.hardware(args.hardware), args.devices, learns), sep="\n")
