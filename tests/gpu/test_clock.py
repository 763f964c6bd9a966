"""The clock on a GPU: rows name it, memory is its own, decode meets the tokens that are there and no more."""

import pytest

from vtc import benchmark, machine, profiles

pytestmark = pytest.mark.skipif(not machine.has_cuda(), reason="no CUDA device")
LLM = f"smoke:{profiles.get('smoke').sizes[0].name}"
SMALL = {"tower": "smoke", "budget_s": 0.0, "G": 3, "on": "cuda"}


def test_a_smoke_clock_names_the_gpu_and_its_memory():
    import torch

    c = benchmark.case(LLM, (0, 1, 16), ("quecc", "tokenpacker"), baseline=True, **SMALL)
    rows = benchmark.measure(c)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["device"] for row in rows} == {torch.cuda.get_device_name()}
    stages = {row["stage"] for row in rows if row["compressor"] == "quecc"}
    assert {"tower", "question", "prefill", "first", "ttft", "decode", "decode without graph"} <= stages
    assert {"ours all tokens", "baseline all tokens"} <= stages
    memory = torch.cuda.get_device_properties(0).total_memory
    assert all(0 < row["peak_bytes"] < memory and row["median_ms"] > 0 for row in rows)
    assert all(row["share"] < 1.5 for row in rows if row.get("floor_ms"))


@pytest.mark.parametrize("name", ["quecc", "tokenpacker"])
def test_the_stages_say_what_generate_says(name):
    from vtc.benchmark.stages import Bench

    c = benchmark.case(LLM, (16,), (name,), baseline=True, Q=7, q=7, dtype="fp32", **SMALL)
    bench = Bench(c)
    calls = bench.calls(16)
    calls[16, "", "prefill"]()
    said = calls[16, "", "decode"]()[:, 0]
    words = bench.tokenizer.batch_decode(said, skip_special_tokens=True)
    assert words == calls[16, name, "ours all tokens"]() == calls[16, name, "baseline all tokens"]()


def test_decode_grows_with_v_as_counted():
    """A cache sized for the most V would make every step as slow as the slowest; counted: 3.7 times."""
    c = benchmark.case("qwen1.5-0.5b", (1, 576), ("tokenpacker",), batch=64, **SMALL)
    rows = benchmark.measure(c)
    decode = {row["tokens"]: row for row in rows if row["stage"] == "decode"}
    counted = decode[576]["floor_ms"] / decode[1]["floor_ms"]
    measured = decode[576]["median_ms"] / decode[1]["median_ms"]
    assert counted > 2 and 0.5 * counted < measured < 1.5 * counted


def test_out_of_memory_on_the_gpu_is_a_row():
    rows = benchmark.measure(benchmark.case(LLM, (16,), batch=10_000_000, **SMALL))
    assert [(row["tokens"], row["status"]) for row in rows] == [(16, benchmark.OUT_OF_MEMORY)]


def test_training_is_clocked_on_the_gpu(tmp_path, monkeypatch):
    from vtc.benchmark import pace

    monkeypatch.setenv("VTC_RUNS", str(tmp_path))
    p = profiles.get("smoke")
    row = pace.measure(p, pace.cases(p)[0], rounds=1)
    assert row["device"] == machine.device_name("cuda") and row["dtype"] == "bf16"
