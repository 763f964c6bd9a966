"""One progress bar for all: on a terminal and in Jupyter after two seconds, silent in CI and in pipes.

A notebook that `vtc reproduce` runs has no terminal of its own, so the runner names one in VTC_PROGRESS;
`VTC_PROGRESS=off` silences (worker processes, whose parent draws the bar).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TextIO

from tqdm.std import tqdm

DELAY_S = 2.0  # shorter work shows nothing


def _in_jupyter() -> bool:
    return "ipykernel" in sys.modules and sys.stderr.__class__.__module__.startswith("ipykernel")


def _target() -> TextIO | None:
    """Where a bar may be drawn; None: nowhere."""
    wish = os.environ.get("VTC_PROGRESS", "")
    if wish == "off" or os.environ.get("CI"):
        return None
    if wish:
        try:
            return open(wish, "w")
        except OSError:
            return None
    return sys.stderr if sys.stderr.isatty() or _in_jupyter() else None


def bar(items: Iterable | None = None, label: str = "", total: int | None = None, unit: str = "it") -> tqdm:
    """A tqdm bar over `items` (or to be moved by `update`) that shows itself only where a person looks."""
    target = _target()
    return tqdm(
        items,
        desc=label,
        total=total,
        unit=unit,
        file=target or sys.stderr,
        disable=target is None,
        delay=DELAY_S,
        leave=False,
        dynamic_ncols=not _in_jupyter(),
    )
