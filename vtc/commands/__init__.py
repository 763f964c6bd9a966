"""One file a command of `vtc`: its options, and what it prints. The work is done in the rooms below.

Here are the options that several commands share.
"""

from __future__ import annotations

import argparse

NOTES = "training.json"  # beside a saved model: how it was trained


def add_profile(parser: argparse.ArgumentParser) -> None:
    """`--profile`."""
    parser.add_argument("--profile", default="laptop", help="smoke, laptop (default), gpu or paper")


def add_user_data(parser: argparse.ArgumentParser) -> None:
    """`--data` and `--images`: people's own conversations."""
    add, data = parser.add_argument, "your own conversations, LLaVA's format, in place of GridQA"
    add("--data", metavar="FILE.json", help=data)
    add("--images", metavar="FOLDER", default=".", help='folder that their "image" fields start from')
