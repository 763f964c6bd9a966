"""Images on disk -> squares of pixels, as LLaVA prepares them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vtc import InputError

FITS = ("resize", "pad", "crop")  # how an image that is no square becomes one
MEAN_COLOR = (122, 116, 104)  # CLIP's mean pixel: what LLaVA pads with


def load_image(path: str | Path, pixels: int, fit: str = "resize") -> np.ndarray:
    """One image as a square -> (pixels, pixels, 3) uint8; InputError if missing or unreadable.

    fit: "resize" both sides, "pad" the shorter side with CLIP's mean colour (LLaVA-1.5), or "crop" the
    middle.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"{path}: image is not there") from None
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as e:
        known = "expected PNG, JPEG or another format Pillow knows"
        raise InputError(f"{path}: not readable as an image ({e}); {known}") from None
    return squared(image, pixels, fit)


def squared(image, pixels: int, fit: str = "resize") -> np.ndarray:
    """An image of Pillow as a square -> (pixels, pixels, 3) uint8; fit: see `load_image`."""
    from PIL import Image, ImageOps

    if fit not in FITS:
        raise InputError(f"image fit {fit!r} is unknown: use one of {', '.join(FITS)}")
    size, how = (pixels, pixels), Image.Resampling.BICUBIC
    image = image.convert("RGB")
    if fit == "pad":
        image = ImageOps.pad(image, (max(image.size),) * 2, how, MEAN_COLOR)
    return np.array(ImageOps.fit(image, size, how) if fit == "crop" else image.resize(size, how))


def listed(folder: str | Path) -> set[str]:
    """Every file below a folder, as a path relative to it; one walk, however many are asked for later.

    Raises InputError where the folder is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        wanted = 'give the folder that the entries\' "image" is relative to'
        raise InputError(f"{folder}: image folder is not there; {wanted}")
    root, found = str(folder), set()
    for at, _, names in os.walk(root, followlinks=True):
        inside = os.path.relpath(at, root)
        found.update(names if inside == "." else (f"{inside}/{name}" for name in names))
    return found
