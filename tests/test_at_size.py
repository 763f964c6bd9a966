"""Several processes, shards and less memory learn what one process does; a tiny LLM on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_own_models import llm_folder, tower_folder

from vtc import profiles
from vtc.__main__ import main as vtc
from vtc.benchmark import loader
from vtc.shapes import LLMShape
from vtc.training import loop

STEPS = 25  # of each stage: 50 together
CONFIGS = Path(__file__).resolve().parents[1] / "docs" / "configs"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """`vtc train` of a tiny LLM on five images; the LLM learns by LoRA where peft is here."""
    at = tmp_path_factory.mktemp("given")
    rows = []
    for i, color in enumerate(("red", "blue", "green", "white", "black")):
        Image.new("RGB", (32, 32), color).save(at / f"{i}.png")
        said = (("what color?", color), ("is it red?", "yes" if i == 0 else "no"))
        rows += [{"image": f"{i}.png", "question": q, "answer": a} for q, a in said]
    (at / "talk.json").write_text(json.dumps(rows))
    given = ["--llm", str(llm_folder(at / "llm")), "--tower", str(tower_folder(at / "tower"))]
    given += ["--lora"] if find_spec("peft") else []
    data = ["--data", str(at / "talk.json"), "--images", str(at)]
    pace = ["--profile", "smoke", "--steps", str(STEPS), str(STEPS), "--batch", "4", "--lr", "1e-2", "1e-2"]
    return ["train", *given, *data, *pace, "--tokens", "4"]


class Curve(deque):
    """The loss of every step, as the loop gathers them; it keeps more than the last twenty."""

    all: list = []

    def append(self, loss):
        self.all.append(loss)
        super().append(loss)


@pytest.fixture
def learn(words, tmp_path, monkeypatch):
    """A training in this process -> its loss at every step, and the model's folder."""
    monkeypatch.setattr(loop, "deque", Curve)
    monkeypatch.setattr(loop, "autocast", lambda kind, d: torch.autocast(kind, enabled=False))

    def run(name, *more):
        monkeypatch.setenv("VTC_RUNS", str(tmp_path / f"runs-{name}"))
        monkeypatch.setattr(Curve, "all", [])
        assert vtc([*words, *more, "--out", str(tmp_path / name)]) == 0
        return torch.stack(Curve.all).tolist(), tmp_path / name

    return run


def test_two_processes_and_shards_learn_as_one_process_does(learn, words, tmp_path):
    """Same global batch: the same loss at all 50 steps; killed and resumed in shards: the same weights."""
    whole, _ = learn("one")
    assert len(whole) == 2 * STEPS and sum(whole[-5:]) < sum(whole[:5])
    script = tmp_path / "two.py"
    script.write_text(TWO)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, str(script), str(tmp_path), *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("together", "shards"):
        assert json.loads((tmp_path / f"{name}.json").read_text()) == pytest.approx(whole, rel=1e-4), name
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("shards", "killed")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


TWO = """
import json, os, sys
import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from vtc.__main__ import main
from vtc.training import checkpoints, loop, user_data
from vtc.training.device import processes
from test_at_size import Curve

at, words = sys.argv[1], sys.argv[2:]
loop.deque, loop.autocast = Curve, lambda kind, d: torch.autocast(kind, enabled=False)
user_data.OFTEN, keep, kept = 10, checkpoints.keep, []
assert processes().num_processes == 2


def killed(*given):
    keep(*given)
    kept.append(given)
    if len(kept) == 4:  # in the second stage
        raise KeyboardInterrupt


def run(name, *more):
    os.environ["VTC_RUNS"] = f"{at}/runs-{name}"
    Curve.all = []
    code = main([*words, *more, "--out", f"{at}/{name}"])
    curve = Accelerator().reduce(torch.stack(Curve.all), "mean").tolist()
    if processes().is_main_process:
        open(f"{at}/{name}.json", "w").write(json.dumps(curve))
    processes().wait_for_everyone()
    return code


whole, cut = loop.sharded, []
loop.sharded = lambda *given: cut.append(whole(*given)) or cut[-1]
assert run("together") == 0 and not cut
assert run("shards", "--shard") == 0
assert len(cut) == 2 and all(isinstance(p, DTensor) for p in cut[0].llm.parameters())
checkpoints.keep = killed
assert run("killed", "--shard") == 130
checkpoints.keep = keep
assert run("killed", "--shard") == 0
Accelerator().end_training()
os._exit(0)  # all is written; threads of the group that still end make Python's own exit abort now and then
"""


def test_what_spares_memory_learns_the_same(learn):
    whole, one = learn("one")
    parts, _ = learn("parts", "--accumulate", "2", "--checkpointing")
    assert parts == pytest.approx(whole, rel=1e-4)
    notes = json.loads((one / "training.json").read_text())
    assert notes["instruct"]["steps"] == STEPS and notes["train_seconds"] > 0 and notes["V"] == 4


def test_options_come_from_a_file_and_those_behind_it_win(learn, tmp_path, capsys, words):
    (tmp_path / "how.toml").write_text("accumulate = 2\nsteps = [3, 7]\nlora = false\nbatch = 3\n")
    curve, _ = learn("told", "--config", str(tmp_path / "how.toml"), "--steps", "2", "2")
    assert len(curve) == 4
    (tmp_path / "how.toml").write_text("acumulate = 2\n")
    with pytest.raises(SystemExit):
        vtc([*words, "--config", str(tmp_path / "how.toml")])
    assert "--acumulate" in capsys.readouterr().err
    (tmp_path / "how.toml").write_text("accumulate: 2\n")
    assert vtc([*words, "--config", str(tmp_path / "how.toml")]) == 2
    assert vtc([*words, "--accumulate", "5"]) == 2
    assert "too small for 5" in capsys.readouterr().err


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_ready_configs_say_what_they_take(config, tmp_path, capsys, monkeypatch):
    """Their options are `vtc train`'s, and their sizes fit the devices that they are for."""
    monkeypatch.setenv("VTC_RUNS", str(tmp_path))
    assert vtc(["train", "--config", str(config), "--check"]) == 0
    said = capsys.readouterr().out
    assert "dry run" in said and "more than its" not in said


def test_shards_do_not_learn_by_muon(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setenv("VTC_RUNS", str(tmp_path))
    data = words[words.index("--data") : words.index("--data") + 4]
    assert vtc(["train", *data, "--profile", "smoke", "--shard", "--out", str(tmp_path / "out")]) == 2
    assert "Muon" in capsys.readouterr().err


def test_reading_images_is_clocked_beside_features_in_memory():
    """The benchmark's own code at a tiny shape; what it finds is not judged here."""
    p = profiles.get("smoke")
    found = loader.measure(p, LLMShape("t", 1, 16, 32, 1, tied=True), V=4, images=4, rounds=2)
    assert 0 < found["share_low"] <= found["share"] <= found["share_high"]
    assert found["memory_s"] > 0 and found["batch"] == loader.STEP.batch
