"""`vtc record`: takes what was measured here into the folders that are committed."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from vtc import InputError, files, profiles
from vtc.commands import add_profile
from vtc.experiments import record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vtc record`: takes what was measured here into the folders that are committed."""
    add_profile(parser)
    parser.add_argument("--name", default="", help="folder under runs/ to take from (default: the profile's)")
    scores = "what `vtc evaluate` wrote of a real LLM, for docs/real_llm.md"
    parser.add_argument("--scores", metavar="FILE.json", help=scores)
    parser.add_argument("--csv", metavar="OUT.csv", help="put all the run's rows into this one file instead")
    parser.add_argument("--from", dest="source", metavar="FILE.csv", help="take rows from such a file")


def main(args: argparse.Namespace) -> int:
    """Merges rows into results/<profile>/ and copies figures to figures/<profile>/."""
    if not args.csv:
        profiles.checkout("record")
    if args.scores:
        return _scores(Path(args.scores))
    profile = profiles.get(args.profile, run=args.name)
    tables = record.of_file(profile, Path(args.source)) if args.source else record.of_run(profile)
    pictures = sorted(path for path in profile.figures.glob("[!.]*") if path.is_file() and not args.source)
    if not tables and not pictures:
        raise InputError(f"{profile.runs} holds no rows: run a notebook or `vtc reproduce` first")
    if args.csv:
        record.write_csv(Path(args.csv), tables)
        print(f"{args.csv}: {sum(map(len, tables.values()))} cases of {', '.join(tables)}")
        return 0
    for stem, cases in tables.items():
        print(f"{stem}.csv: {record.merge(profile, stem, cases)}")
    for path in pictures:
        profile.recorded_figures.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, profile.recorded_figures / path.name)
    print(f"{len(pictures)} figure files copied")
    from vtc.experiments import report

    if report.record(profile):
        print("claims.csv renewed")
    if profile.name == "laptop":  # the README speaks of the laptop's rows
        print("README.md " + ("renewed" if report.refresh() else "is as it was"))
    return 0


def _scores(file: Path) -> int:
    """Take the scores of a real LLM into results/ and into the page that shows them."""
    from vtc.experiments import report

    try:
        rows = json.loads(file.read_text())
        text = report.scores_in_words(rows)
    except (OSError, ValueError, KeyError, TypeError) as e:
        wanted = "what `vtc evaluate --tokens 0 1 --data ... --json FILE` wrote"
        raise InputError(f"{file}: no such scores ({e!r}); expected {wanted}") from None
    files.write(report.SCORES, json.dumps(rows, indent=1) + "\n")
    print("docs/real_llm.md " + ("renewed" if report.put(report.PAGE, text) else "is as it was"))
    return 0
