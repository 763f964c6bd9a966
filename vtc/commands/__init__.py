"""One file a command of `vtc`: its options, and what it prints. The work is done in the rooms below.

Here are the options that several commands share.
"""

from __future__ import annotations

import argparse

from vtc import InputError

NOTES = "training.json"  # beside a saved model: how it was trained


def add_profile(parser: argparse.ArgumentParser) -> None:
    """`--profile`."""
    parser.add_argument("--profile", default="laptop", help="smoke, laptop (default), gpu or paper")


def add_user_data(parser: argparse.ArgumentParser) -> None:
    """`--data` and `--images`: people's own conversations."""
    add, data = parser.add_argument, "your own conversations, LLaVA's format, in place of GridQA"
    add("--data", metavar="FILE.json", help=data)
    add("--images", metavar="FOLDER", default=".", help='folder that their "image" fields start from')


def numbers(text: str, option: str, kind: type = float) -> list:
    """The numbers in "1,4,16", rising and each once; InputError, naming the option, for anything else."""
    try:
        return sorted({kind(part) for part in text.replace(",", " ").split()})
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{option} {text!r}: give {what} with commas between them, such as 1,4,16") from None
