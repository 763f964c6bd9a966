"""`vtc record`: takes what was measured here into the folders that are committed."""

from __future__ import annotations

import argparse
import shutil

from vtc import InputError, profiles
from vtc.experiments.store import merge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vtc record`: takes what was measured here into the folders that are committed."""
    parser.add_argument("--profile", default="laptop", help="smoke, laptop (default), gpu or paper")
    parser.add_argument("--name", default="", help="folder under runs/ to take from (default: the profile's)")


def main(args: argparse.Namespace) -> int:
    """Merges rows into results/<profile>/ and copies figures to figures/<profile>/."""
    profile = profiles.get(args.profile, run=args.name)
    sources = sorted(profile.runs.glob("*.csv"))
    pictures = sorted(path for path in profile.figures.glob("*") if path.is_file())
    if not sources and not pictures:
        raise InputError(f"{profile.runs} holds no rows: run a notebook or `vtc reproduce` first")
    for path in sources:
        print(f"{path.name}: {merge(path, profile.results / path.name)}")
    for path in pictures:
        profile.recorded_figures.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, profile.recorded_figures / path.name)
    print(f"{len(pictures)} figure files copied")
    if profile.name == "laptop":  # the README speaks of the laptop's rows
        from vtc.experiments import report

        print("README.md " + ("renewed" if report.refresh() else "is as it was"))
    return 0
