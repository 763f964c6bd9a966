"""People's own images and conversations, in LLaVA's format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtc import InputError


@dataclass(frozen=True)
class Conversation:
    """One image (or none) and the turns of talk about it."""

    image: Path | None
    turns: tuple[tuple[str, str], ...]  # (question, answer)


def read_llava(file: str | Path, images: str | Path) -> list[Conversation]:
    """Read LLaVA-format JSON (a list of {"image", "conversations": [{"from", "value"}]}) and image folder.

    Raises InputError, one line with file, entry and field, for anything that is not so.
    """
    file, images = Path(file), Path(images)
    if not images.is_dir():
        raise InputError(
            f'{images}: image folder is not there; give the folder that the entries\' "image" is relative to'
        )
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: file is not there; expected a LLaVA-format JSON") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise InputError(
            f"{file}: not readable as JSON ({e}); expected LLaVA's list of conversations"
        ) from None
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{file}: expected a non-empty JSON list of conversations, found {type(entries).__name__}"
        )
    return [_conversation(entry, f"{file}: entry {i}", images) for i, entry in enumerate(entries)]


def _conversation(entry: object, where: str, images: Path) -> Conversation:
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise InputError(
            f'{where}: field "conversations" is missing or no list; expected turns with "from" and "value"'
        )
    said = entry["conversations"]
    for turn in said:
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("value"), str)
            or turn.get("from") not in ("human", "gpt")
        ):
            raise InputError(
                f'{where}: field "conversations": each turn needs "from" (human or gpt) and a text "value"'
            )
    if len(said) % 2 or not said or [t["from"] for t in said] != ["human", "gpt"] * (len(said) // 2):
        raise InputError(
            f'{where}: field "conversations": turns must alternate human, gpt; found {len(said)} turns'
        )
    turns = tuple(
        (q["value"].replace("<image>", "").strip(), a["value"].strip()) for q, a in zip(said[::2], said[1::2])
    )
    name = entry.get("image")
    if name is None:
        return Conversation(None, turns)
    if not isinstance(name, str) or not (images / name).is_file():
        raise InputError(f'{where}: field "image": {name!r} is not a file in {images}')
    return Conversation(images / name, turns)


def load_image(path: str | Path, pixels: int) -> np.ndarray:
    """One image, resized to a square -> (pixels, pixels, 3) uint8; InputError if missing or unreadable."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((pixels, pixels), Image.Resampling.BICUBIC))
    except FileNotFoundError:
        raise InputError(f"{path}: image is not there") from None
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as e:
        raise InputError(
            f"{path}: not readable as an image ({e}); expected PNG, JPEG or another format Pillow knows"
        ) from None
