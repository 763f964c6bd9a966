"""A model on the disk: config.json, weights as safetensors, the tokenizer's files; no pickles."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from vtc import InputError
from vtc.files import replacing
from vtc.models.tower import Tower, load_checkpoint

if TYPE_CHECKING:
    from vtc.models.vlm import VLM, VLMConfig

WEIGHTS, CONFIG, TOWER = "model.safetensors", "config.json", "tower"


def save(model: VLM, folder: Path) -> None:
    """Write the folder, whole or not at all; InputError where it cannot be.

    A tower of a folder is saved with the model, as one of our own is; one of an id is named.
    """
    left_out = set(model.all_tied_weights_keys)  # the head, where it is the embedding table
    named = model.tower is not None and model.tower.shape.checkpoint
    if named:
        left_out |= {f"tower.{name}" for name in model.tower.state_dict()}
    files = _files_of(Path(named)) if named else []
    if files:
        model.config.tower = {**model.config.tower, "checkpoint": TOWER}  # from the model's folder
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k not in left_out}
    model.config.architectures, model.config.dtype = [type(model).__name__], model.llm.dtype
    with replacing(folder) as part:
        model.config.save_pretrained(part)
        save_file(weights, part / WEIGHTS, metadata={"format": "pt"})
        model.tokenizer.save_pretrained(part)
        for file in files:
            (part / TOWER).mkdir(exist_ok=True)
            shutil.copyfile(file, part / TOWER / file.name)


def _files_of(tower: Path) -> list[Path]:
    """Configuration and weights of a tower in a folder; none where it is an id."""
    return [file for kind in ("*.json", "*.safetensors") for file in sorted(tower.glob(kind))]


def read(config_class: type[PreTrainedConfig], folder: Path) -> tuple[VLMConfig, PreTrainedTokenizerFast]:
    """Configuration and tokenizer of a folder that `save` wrote; raises InputError where it is not one."""
    folder = local(folder)
    with _whole(folder):
        config = config_class.from_dict(json.loads((folder / CONFIG).read_text()))
        if config.tower is None:
            raise ValueError("its config.json names no tower")
        return config, PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def local(folder: Path) -> Path:
    """The folder; where there is none and the name is a hub id, the hub's copy of it, without pickles.

    Raises InputError where the hub cannot give it.
    """
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        return folder
    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
    except (OSError, ValueError) as e:
        problem = f"{folder}: no such folder, and the hub did not give it ({str(e).splitlines()[0]})"
        raise InputError(f"{problem}; give the folder that save_pretrained wrote") from None


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, TypeError, ValueError, AttributeError, SafetensorError) as e:
        problem = f"{folder}: no saved model ({str(e).splitlines()[0]})"
        raise InputError(f"{problem}; expected {CONFIG}, {WEIGHTS}, tokenizer.json") from None


def load(cls: type[VLM], folder: Path) -> VLM:
    """The model that `save` wrote, in evaluation mode; raises InputError where the folder is not one."""
    folder = local(folder)
    config, tokenizer = read(cls.config_class, folder)
    with _whole(folder):
        weights = load_file(folder / WEIGHTS)
    shape, tower = config.shape, None
    if any(name.startswith("tower.") for name in weights):
        tower = Tower(shape).requires_grad_(False)
    model = cls(config, tokenizer=tokenizer, tower=tower)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    for name in (name for name in missing if name not in model.all_tied_weights_keys):
        raise InputError(f"{folder}: {WEIGHTS} has no {name}; save the model again")
    model.tie_weights()
    if shape.checkpoint:
        beside = folder / shape.checkpoint
        model.tower = load_checkpoint(str(beside) if beside.is_dir() else shape.checkpoint, shape.levels)
    return model.eval()
