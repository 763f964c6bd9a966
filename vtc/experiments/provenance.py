"""Where a row comes from: machine, versions, commit, date, and the weights behind it."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

from vtc import machine, profiles
from vtc.profiles import Profile

if TYPE_CHECKING:
    from torch import Tensor


def provenance(profile: Profile) -> dict[str, str]:
    """Columns of every row; the device is the processor, unless what is measured names another itself."""
    return {
        "profile": profile.name,
        "data": profile.data_version,
        "device": machine.processor(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "commit": commit(),
        "date": now(),
    }


def now() -> str:
    """The moment, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@functools.cache
def commit() -> str:
    """The checkout's commit, "-dirty" if the package differs from it; without git, what VTC_COMMIT says."""
    if profiles.CHECKOUT is None:  # the current folder may be another project's
        return os.environ.get("VTC_COMMIT", "")
    try:
        changed = _git("status", "--porcelain", "--", "vtc")
        return _git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("VTC_COMMIT", "")


def _git(*words: str) -> str:
    """What git says of this checkout; an error where it is none (another's that holds it doesn't count)."""
    command = ["git", f"--git-dir={profiles.ROOT / '.git'}", f"--work-tree={profiles.ROOT}", *words]
    return subprocess.run(
        command, cwd=profiles.ROOT, capture_output=True, text=True, timeout=20, check=True
    ).stdout.strip()


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)  # without importing it
    except metadata.PackageNotFoundError:
        return ""


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """A short word for these weights: the same for the same names, shapes, types and bits."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
