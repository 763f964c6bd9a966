"""`vtc train`: one cell of the sweep, or a model on your own images."""

from __future__ import annotations

import argparse
import json
import shutil
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

from vtc import InputError, compressors, cost, data, files, profiles
from vtc.commands import NOTES, add_profile, add_user_data
from vtc.data import llava
from vtc.evaluation import card
from vtc.experiments.provenance import provenance
from vtc.machine import device_name
from vtc.training import outlook, tower, user_data
from vtc.training.device import device, is_main_process
from vtc.training.memory import Memory
from vtc.training.stages import Case, check, checkpoints, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vtc train`: one cell of the sweep, or the same recipe on your own images."""
    add_profile(parser)
    add, bad = parser.add_argument, "rows of --data that cannot be read"
    add("--size", default="", help="LLM of the profile (default: that of notebook 05)")
    several = "visual tokens for the LLM (16); 0: no image; several where one training serves them (nested)"
    add("--tokens", type=int, nargs="+", default=[16], metavar="V", help=several)
    add("--compressor", default="tokenpacker", help="a name of vtc.compressors")
    add("--seed", type=int, default=0)
    add_user_data(parser)
    own = parser.add_argument_group("your own LLM and tower, on your own data")
    add = own.add_argument
    add("--llm", metavar="FOLDER", help="hub id, folder or GGUF file of a causal LLM; it stays frozen")
    add("--lora", action="store_true", help="the LLM learns too, by LoRA (needs peft)")
    add("--tower", metavar="FOLDER", help="open_clip's by id or folder, or a folder of CLIP or SigLIP")
    add("--captions", metavar="FILE.json", help="data of the first stage (default: --data for both)")
    words = "first stage: each visual token becomes the words of the caption; the LLM is not run"
    add("--align", choices=("words",), help=words)
    add("--steps", type=int, nargs=2, metavar=("A", "B"), help="of the two stages (default: the profile's)")
    add("--lr", type=float, nargs=2, metavar=("A", "B"), help="peak learning rates of the two stages")
    add("--batch", type=int, help="images a step, over all processes (default: the profile's)")
    add("--pack", type=int, help="questions about each image in a step (default: the profile's)")
    add = parser.add_argument_group("memory (what is learnt stays the same)").add_argument
    add("--accumulate", type=int, default=1, metavar="N", help="compute a step's batch in N parts")
    add("--checkpointing", action="store_true", help="gradient checkpointing of the LLM's layers")
    add("--shard", action="store_true", help="weights in shards over the processes of torchrun (FSDP2)")
    add = parser.add_argument
    add("--config", action=_Config, metavar="FILE.toml", help="options from a file; those behind it win")
    add("--check", action="store_true", help="what is wrong in --data, what it would take, and a dry run")
    add("--hardware", default="h100", help="that the work is counted for, by name (h100)")
    add("--devices", type=int, default=8, help="how many of them (8)")
    add("--bad-rows", default="stop", choices=("stop", "skip"), help=bad)
    add("--out", metavar="FOLDER", default="model", help="where the model is saved")
    add("--card", action="store_true", help="also ask the test questions; README.md there says how it did")


class _Config(argparse.Action):
    """Options of this command from a TOML file, as if they stood where --config does."""

    def __call__(self, parser, namespace, file, option=None) -> None:
        try:
            given = tomllib.loads(Path(file).read_text())
        except (OSError, ValueError) as e:
            raise InputError(f"--config {file}: {e}; expected TOML, one option a line") from None
        words: list[str] = []
        for name, value in given.items():
            values = value if isinstance(value, list) else [value]
            words += [] if value is False else [f"--{name}", *(str(v) for v in values if v is not True)]
        parser.parse_args(words, namespace)


# for people's own data
OWN = ("llm", "tower", "lora", "captions", "align", "steps", "lr", "batch", "pack", "checkpointing", "shard")


def main(args: argparse.Namespace) -> int:
    """Train, save, and say what it was like."""
    _refuse(args)
    base, by_words = profiles.get(args.profile), args.align == "words"
    p, eyes = user_data.with_checkpoints(base, args.llm, args.tower, args.lora, by_words)
    p = _serving(_paced(p, args), args)
    case = Case(args.size or p.zoo_size, max(args.tokens), args.compressor, args.seed)
    for budget in args.tokens:
        check(p, replace(case, V=budget))
    memory = Memory(args.accumulate, args.checkpointing, args.shard)
    learns = "all" if not args.llm else "lora" if args.lora else "frozen"
    if args.check:
        return _check(args, p, case, learns, memory)
    if p.recipe.text is None and is_main_process():  # a cluster's work
        _say(args, p, case, learns, memory)
    talks, captions = (
        data.read_llava(file, args.images, args.bad_rows) if file else None
        for file in (args.data, args.captions)
    )
    if talks is None:
        model, notes = train(p, case)
        model.tower = tower.pretrained(p)
    else:
        eyes = eyes or tower.pretrained(base)
        model, notes = user_data.train(p, case, talks, eyes, learns, memory, captions, by_words)
    if not is_main_process():
        return 0
    model.save_pretrained(args.out)
    how = _how(p, case, notes, args.data) | ({"align_by": args.align} if args.align else {})
    files.write(Path(args.out) / NOTES, json.dumps(how, indent=1))
    shutil.rmtree(checkpoints(p, case, talks and (talks, captions, by_words)), ignore_errors=True)
    if args.card:
        words = {"profile": p.name, "size": case.size, "tokens": " ".join(map(str, args.tokens))}
        words |= {"compressor": case.compressor, "seed": case.seed, "out": args.out}
        command = "vtc train " + " ".join(f"--{name} {value}" for name, value in words.items())
        card.write(p, model, Path(args.out), f"{command} --card")
    print(f"{args.compressor}, V = {case.V}, LLM {case.size}: loss {notes['loss']:.3f}, "
          f"{notes['questions_per_s']:.0f} questions/s, saved to {args.out}")  # fmt: skip
    return 0


def _refuse(args: argparse.Namespace) -> None:
    """InputError where options do not go together."""
    own = [f"--{name}" for name in OWN if getattr(args, name)]
    own += ["--accumulate"] if args.accumulate != 1 else []
    if args.accumulate < 1:
        raise InputError(f"--accumulate {args.accumulate}: give 1 or more")
    if own and not args.data and not args.check:
        raise InputError(f"{own[0]} is for your own data: give --data FILE.json and --images FOLDER")
    if args.align and (args.shard or not args.llm):
        raise InputError("--align words takes a trained LLM's words, and no shards: give --llm, not --shard")
    if args.lora and not args.llm:
        raise InputError("--lora adapts a trained LLM: give --llm FOLDER")
    if args.llm and not max(args.tokens) and not args.lora:
        raise InputError("--tokens 0 with a frozen LLM leaves nothing to learn: add --lora")
    if args.card and args.data:
        raise InputError("--card reports GridQA's test questions: leave out --data, or use `vtc evaluate`")


def _how(p: profiles.Profile, case: Case, notes: dict[str, float], own: str | None) -> dict:
    """What is saved beside a model: how it was trained, how that went, and where."""
    stages = {name: asdict(getattr(p.recipe, name)) for name in ("align", "instruct")}
    size = p.size(case.size)
    serves = {"serves": p.V} if compressors.entry(case.compressor).nested else {}
    where = provenance(p) | {"device": device_name(device().type)}
    where |= {"data": Path(own).name} if own else {}
    return asdict(case) | serves | {"N": size.N} | stages | notes | where


def _paced(p: profiles.Profile, args: argparse.Namespace) -> profiles.Profile:
    """The profile with the steps, rates, batch and questions an image that were asked for."""
    r, given = p.recipe, {"batch": args.batch, "pack": args.pack}
    same = {name: n for name, n in given.items() if n is not None}
    steps, rates = args.steps or (r.align.steps, r.instruct.steps), args.lr or (r.align.lr, r.instruct.lr)
    if min(*steps, *same.values()) < 1:
        raise InputError("--steps, --batch and --pack count from 1: give whole numbers above 0")
    if min(rates) <= 0:
        raise InputError(f"--lr {rates[0]} {rates[1]}: give two rates above 0")
    align = replace(r.align, steps=steps[0], lr=rates[0])
    align = align if args.align else replace(align, **same)  # by words it has a batch of its own
    instruct = replace(r.instruct, steps=steps[1], lr=rates[1], **same)
    return replace(p, recipe=replace(r, align=align, instruct=instruct))


def _serving(p: profiles.Profile, args: argparse.Namespace) -> profiles.Profile:
    """The profile with the V that one training is to serve, where several were asked for."""
    budgets = tuple(sorted(set(args.tokens)))
    if len(budgets) == 1:
        return p
    if not args.data:
        raise InputError("--tokens: several V are for your own data; on GridQA one training serves all")
    if not compressors.entry(args.compressor).nested:
        there = ", ".join(name for name, entry in compressors.REGISTRY.items() if entry.nested)
        raise InputError(f"--tokens: {args.compressor} is trained for one V; for several take one of {there}")
    return replace(p, V=budgets)


def _check(args: argparse.Namespace, p: profiles.Profile, case: Case, learns: str, memory: Memory) -> int:
    """What the data hold, what is wrong where, what the training will take, a dry run; 1 if anything is."""
    bad = False
    if args.data:
        report = llava.check(args.data, args.images)
        print("\n".join(report.lines()))
        bad = report.bad > 0
    _say(args, p, case, learns, memory)
    print(outlook.dry_run(p, case, learns, memory))
    return int(bad)


def _say(args: argparse.Namespace, p: profiles.Profile, case: Case, learns: str, memory: Memory) -> None:
    """Print the profile and what the training will take."""
    if args.devices < 1:
        raise InputError(f"--devices {args.devices}: give 1 or more")
    hardware = cost.hardware(args.hardware)
    print(p, *outlook.lines(p, case, hardware, args.devices, learns, memory), sep="\n")
