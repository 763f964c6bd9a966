"""`vtc reproduce`: the five notebooks here, then our numbers beside the recorded ones and the paper's."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from vtc import InputError, files, profiles
from vtc.commands import add_profile
from vtc.experiments import report, reproduce


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vtc reproduce`: what it runs and where it keeps it."""
    add_profile(parser)
    parser.add_argument("--name", default="", help="folder under runs/ (default: reproduce-<profile>)")
    parser.add_argument("--seeds", default="", help="such as 1 or 0,1,2 (default: those of the profile)")
    parser.add_argument("--fresh", action="store_true", help="forget what that folder holds and start over")


def main(args: argparse.Namespace) -> int:
    """Runs every notebook; 0 if all ran (whatever the claims), 1 if one failed."""
    profiles.checkout("reproduce")
    name = args.name or f"reproduce-{args.profile}"
    if Path(name).name != name or name in (".", ".."):
        raise InputError(f"--name {name}: one folder name without slashes is expected")
    profile = profiles.get(args.profile, recompute=True, run=name)
    profile = replace(profile, seeds=profiles.numbers(args.seeds, "seeds") or profile.seeds)
    notebooks = sorted(reproduce.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise InputError(f"no notebooks in {reproduce.NOTEBOOKS}: run this in a checkout of the repository")
    with files.file_lock(profile.runs / "reproduce", wait=False) as held:
        if not held:
            at_work = f"another `vtc reproduce` is at work in runs/{name}"
            raise InputError(f"{at_work}: wait or choose another --name")
        if args.fresh:
            for old in profile.runs.iterdir():
                if old.name != ".locks":  # ours is in it
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
        print(f"{profile}\neverything is measured into {reproduce._short(profile.runs)}/\n", flush=True)
        with reproduce._kernel_environment(profile):
            for notebook in notebooks:
                if (fault := reproduce._run(notebook, profile)) is not None:
                    print(f"vtc: {notebook.name}: {fault}", file=sys.stderr)
                    return 1
        print("", report.comparison(profile), sep="\n")
    return 0
