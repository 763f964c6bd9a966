"""A local task, offline, by lmms-eval's own command; skipped where it is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import entry_points

import numpy as np
import pytest
import torch
from PIL import Image

from vtc import profiles
from vtc.data.images import squared
from vtc.models.llm import LEAN, empty_llm, llm_config, make_tokenizer
from vtc.models.tower import Tower
from vtc.models.vlm import VLM, VLMConfig

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own: pip install '.[eval]'")
if not [point for point in entry_points(group="lmms_eval.models") if point.name == "vtc"]:
    pytest.skip("vtc was installed without its entry point: pip install -e .", allow_module_level=True)

P = profiles.get("smoke")
QUESTIONS = ["what is it", "is the red one left of it", "how many", "and where", "is it red"]
TASK = """
task: colors
dataset_path: parquet
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.images
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 6, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
UTILS = """
import io
from PIL import Image
def images(doc):
    return [Image.open(io.BytesIO(doc["png"]))]
"""


def test_answers_are_the_models_own_at_any_batch(tmp_path):
    import pandas as pd

    torch.manual_seed(0)
    tokenizer = make_tokenizer(tuple(" ".join(QUESTIONS).split()) + tuple("abcdefgh"))
    llm = empty_llm(llm_config(P.sizes[0], len(tokenizer)), LEAN)
    config = VLMConfig(
        llm=llm.config.to_dict(), tower=asdict(P.tower), grid=P.g, compressor="quecc", tokens=4
    )
    model = VLM(config, llm, tokenizer, Tower(P.tower)).eval()
    model.save_pretrained(tmp_path / "model")
    rng, rows, pictures = np.random.default_rng(0), [], []
    for i, question in enumerate(QUESTIONS):
        pictures.append(Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)))
        pictures[-1].save(tmp_path / f"{i}.png")
        rows.append({"question": question, "answer": "a", "png": (tmp_path / f"{i}.png").read_bytes()})
    (tmp_path / "task").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "task" / "test.parquet")
    (tmp_path / "task" / "colors.yaml").write_text(
        TASK.replace("DATA", str(tmp_path / "task" / "test.parquet"))
    )
    (tmp_path / "task" / "utils.py").write_text(UTILS)
    own = model.generate(torch.from_numpy(np.stack([squared(x, P.pixels) for x in pictures])), QUESTIONS, 6)
    for batch in ("1", "8"):
        words = [
            "--model",
            "vtc",
            "--model_args",
            f"pretrained={tmp_path / 'model'},tokens=4",
            "--tasks",
            "colors",
        ]
        words += ["--include_path", str(tmp_path / "task"), "--batch_size", batch, "--log_samples"]
        done = subprocess.run(
            [sys.executable, "-m", "lmms_eval", *words, "--output_path", str(tmp_path / batch)],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}, cwd=tmp_path,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        [file] = (tmp_path / batch).rglob("*samples_colors.jsonl")
        said = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["filtered_resps"] for row in sorted(said, key=lambda row: row["doc_id"])] == own
