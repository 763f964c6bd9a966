"""The clock and the lean runner: transformers' tokens, honest rows, one line where a machine is too small."""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vtc import InputError, benchmark, cost, figures, machine, profiles
from vtc.benchmark import pace, process
from vtc.benchmark.clock import in_turn, interval, milliseconds, ratio, summary
from vtc.commands import bench
from vtc.experiments import clock as clock_rows
from vtc.experiments import store
from vtc.figures import clock as draw
from vtc.scaling import seconds

LLM = f"smoke:{profiles.get('smoke').sizes[-1].name}"
SMALL = {"tower": "smoke", "budget_s": 0.0, "G": 3}
PEAKS = {"peak_flops": 1e12, "peak_plain_flops": 1e12, "bandwidth": 1e10}  # where none need be measured


def test_what_a_notebook_clocks_anew_at_laptop_is_short_and_what_is_recorded_is_not():
    anew, whole = (benchmark.cases(profiles.get("laptop", recompute)) for recompute in (True, False))
    assert len(anew) == 2 and {c["llm"] for c in anew} <= {c["llm"] for c in whole}
    assert all(c["baseline"] and c["budget_s"] <= 1 for c in anew)
    assert len(benchmark.prompts(profiles.get("laptop", True))) == 3


def test_the_interval_of_the_median_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.lognormal(0.0, 0.5, (2000, 15))  # skewed, as times are; the median is 1
    covered = [(s := summary(list(d)))["low_ms"] <= 1.0 <= s["high_ms"] for d in draws]
    assert 0.94 < np.mean(covered) < 0.99
    told = summary([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (told["median_ms"], told["q25_ms"], told["q75_ms"], told["low_ms"], told["high_ms"]) == (
        3,
        2,
        4,
        1,
        5,
    )
    assert told["samples_ms"] == [5.0, 1.0, 3.0, 2.0, 4.0]


def test_samples_are_taken_in_turn_after_a_warm_up():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    taken = in_turn(calls, budget_s=0.0, fewest=3, warm_up=2)
    assert order == list("ab") * 5 and [len(ms) for ms in taken.values()] == [3, 3]
    taken = in_turn(calls, budget_s=1e6, most=4)  # a budget never spent
    assert [len(ms) for ms in taken.values()] == [4, 4]


def test_a_ratio_is_that_of_each_turn_so_a_slow_machine_does_not_move_it():
    busy = np.array([1.0, 1.0, 7.0, 7.0, 7.0, 1.0, 3.0])  # the same call, in moments of a shared machine
    found = ratio(2 * busy, busy)
    assert found == {"ratio": 2.0, "ratio_low": 2.0, "ratio_high": 2.0}
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_on_a_gpu_the_clock_waits_on_either_side(monkeypatch):
    import torch

    said = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append("record")

        def elapsed_time(self, other):
            return 5.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("wait"))
    assert milliseconds(lambda: said.append("call"), "cuda") == 5.0
    assert said == ["wait", "record", "call", "record", "wait"]


def test_nothing_else_reads_a_clock():
    """One module takes times; process and training loops may say how long they took."""
    package = Path(benchmark.__file__).parent
    assert [f.name for f in package.glob("*.py") if "perf_counter" in f.read_text()] == ["clock.py"]


def test_training_and_first_token_are_clocked_and_say_where(tmp_path, monkeypatch):
    monkeypatch.setenv("VTC_RUNS", str(tmp_path))
    p = profiles.get("smoke")
    row = pace.measure(p, pace.cases(p)[0], rounds=1)
    assert row["speedup"] > 0 and row["share_of_peak"] > 0
    first = pace.first_token(p, {"size": p.sizes[0].name, "V": 16, "compressor": "quecc"}, rounds=1)
    assert first["ratio_low"] <= first["ratio"] <= first["ratio_high"]
    name = machine.device_name("cuda") if machine.has_cuda() else f"{machine.processor()} x 1"
    assert row["device"] == first["device"] == name
    smaller = {"size": p.sizes[0].name, "V": 4, "compressor": "downsample_image"}  # its features are fewer
    assert pace.first_token(p, smaller, rounds=1)["first_token_ms"] > 0


@pytest.fixture(scope="module")
def clock():
    c = benchmark.case(LLM, (0, 1, 16), ("quecc", "tokenpacker"), baseline=True, **SMALL)
    rows = pd.DataFrame([{**c, **row} for row in benchmark.measure(c)])
    again = rows.assign(repeat=1, **{name: rows[name] * 1.01 for name in ("median_ms", "low_ms", "high_ms")})
    return pd.concat([rows, again], ignore_index=True)


def test_a_case_gives_every_stage_with_its_floor(clock):
    first = clock[clock["repeat"] == 0]
    stages = first.groupby(["compressor", "tokens"])["stage"].agg(set)
    always = {"prefill", "first", "ttft", "decode"}
    assert stages["quecc", 0] == always
    assert stages["quecc", 16] >= always | {"question", "compressor", "projector"}
    assert stages["tokenpacker", 16] == always | {"compressor"}  # it ends at the LLM's width
    assert stages["quecc", 1] == stages["quecc", 16] | {"tower"}
    assert (clock["median_ms"] > 0).all() and (clock["low_ms"] <= clock["high_ms"]).all()
    assert first["n"].nunique() == 1  # all in turn
    counted = clock[clock["floor_ms"].notna()]
    assert (counted["flops"] > 0).all() and set(counted["binds"]) <= {"compute", "bandwidth"}
    assert counted["share"].between(0, 1.5).all()
    assert (clock["peak_bytes"] > 1e8).all() and (clock["peak_flops"] >= clock["peak_plain_flops"]).all()
    prefill = first[(first["stage"] == "prefill") & (first["tokens"] == 16)].iloc[0]
    assert prefill["flops"] == pytest.approx(cost.llm_pass(benchmark.shapes(first.iloc[0])[0], 66).flops)


def test_compressors_share_the_stages_that_they_do_not_change(clock):
    """Prefill at V tokens is one measurement, whoever made the tokens; the tower stands once."""
    first = clock[clock["repeat"] == 0].set_index(["compressor", "tokens", "stage"])["samples_ms"]
    for V in (1, 16):
        assert first["quecc", V, "prefill"] == first["tokenpacker", V, "prefill"]
        assert first["quecc", V, "ttft"] != first["tokenpacker", V, "ttft"]
    assert (clock["stage"] == "tower").sum() == 2  # and once in the repetition


@pytest.mark.parametrize("name", ["quecc", "tokenpacker"])
def test_the_stages_clocked_are_the_parts_of_generate(name, monkeypatch):
    """Put behind each other they say what `VLM.generate` says; q = Q, as there the text is the question."""
    from vtc.benchmark.stages import Bench

    monkeypatch.setattr("vtc.benchmark.stages.peaks", lambda *_, **__: PEAKS)
    c = benchmark.case(LLM, (16,), (name,), baseline=True, Q=7, q=7, dtype="fp32", **SMALL)
    bench = Bench(c)
    calls = bench.calls(16)
    first = bench.engine.first(calls[16, "", "prefill"]())
    said = calls[16, "", "decode"]()  # (b, 1, G), the first token among them
    assert said.shape[-1] == c["G"] and said[0, 0, 0] == first[0, 0] == calls[16, name, "ttft"]()[0, 0]
    words = bench.tokenizer.batch_decode(said[:, 0], skip_special_tokens=True)
    assert words == calls[16, name, "ours all tokens"]() and len(words[0].split()) == c["G"]
    assert calls[16, name, "baseline all tokens"]() == words
    assert bench.llm.config._attn_implementation == "sdpa"  # the baseline keeps transformers' defaults


def test_reading_the_clock(clock):
    again = benchmark.repeatability(clock)
    assert len(again) == len(clock) / 2 and again["ratio"].round(6).eq(1.01).all()
    assert again["within"].mean() > 0.5  # intervals of five samples are wider than a hundredth, nearly always
    far = clock.assign(
        low_ms=clock["low_ms"] * (1 + clock["repeat"] * 99),
        high_ms=clock["high_ms"] * (1 + clock["repeat"] * 99),
    )
    assert not benchmark.repeatability(far)["within"].all()
    beside = benchmark.against_baseline(clock)
    assert set(beside["what"]) == {"one token", "all tokens"} and (beside["speedup"] > 0).all()
    said = benchmark.predicted(clock.assign(device="here"))
    assert set(said["stage"]) == {"ttft", "decode"} and set(said["held_out"]) == {True, False}
    assert np.allclose(said["predicted_ms"], said["median_ms"] * (1 + said["error"]))
    table = benchmark.floors(clock)
    assert set(table["stage"]) == {"prefill", "decode"}


@pytest.mark.parametrize("on", ["cpu", "cuda"])
def test_prediction_recovers_a_machine_that_obeys_the_roofline(on):
    """A made-up machine whose times add up (CPU) or overlap (GPU); one row is too small."""
    device = cost.Hardware("made up", {"bf16": 1e12}, 5e10, 0, overlap=on == "cuda").with_shares(0.7, 0.8)
    rows = []
    for tokens in (0, 1, 4, 16, 64, 144, 256, 576):
        parts = [cost.llm_pass(cost.llm("0.5"), 50 + tokens), cost.llm_head(cost.llm("0.5"))]
        ms = sum(float(cost.seconds(w, device)) for w in parts) * 1e3
        parts = [[float(x) for x in w] for w in parts]
        rows.append({"tokens": tokens, "median_ms": ms, "floor_ms": ms / 2, "parts": parts})
    rows.append(rows[0] | {"tokens": 1000, "floor_ms": 0.1, "median_ms": 99.0})
    same = {
        "stage": "ttft",
        "status": "ok",
        "on": on,
        "device": "x",
        "dtype": "bf16",
        "peak_flops": 1e12,
        "bandwidth": 5e10,
    }
    said = benchmark.predicted(pd.DataFrame(rows).assign(**same))
    assert said["held_out"].sum() == 4 and said["error"].abs().max() < 0.02


def test_this_machine_as_it_was_clocked(tmp_path, monkeypatch):
    """Rows in runs/ make a device for the planner; its predictions lie near the very rows."""
    monkeypatch.setenv("VTC_RUNS", str(tmp_path))
    p = profiles.get("laptop")
    with pytest.raises(InputError, match="vtc bench"):
        clock_rows.here(p)
    for case in store.read_csv(p.results / "03_clock.csv").values():  # as if clocked here
        store.save(store.folder(benchmark.STEM, p), case["case"], case["rows"], {"recipe": ""})
    device, clock = clock_rows.here(p), benchmark.ok(store.stored(benchmark.STEM, p))
    pipe = cost.Pipeline(cost.llm("0.5"), compressor="quecc", features_cached=True)
    for V in (1, 144, 576):
        same = clock.query("llm == 'qwen1.5-0.5b' and batch == 1 and dtype == 'bf16' and tokens == @V")
        measured = same.query("stage == 'ttft' and compressor == 'quecc'")["median_ms"].median()
        assert float(cost.latency(pipe, device, V, 50, q=20)["ttft"]) * 1e3 == pytest.approx(
            measured, rel=0.25
        )


def test_out_of_memory_is_a_row_and_the_sweep_goes_on(monkeypatch):
    """The case's own process may take 20 MB more than it has, less than one matrix takes."""
    limited = """
import json, resource, sys
from pathlib import Path
from vtc.benchmark import process, stages
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = int(pages * resource.getpagesize() + 2e7)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
sys.exit(process._serve(json.loads(sys.argv[1])))
"""
    run = subprocess.run
    in_a_small_room = lambda words, **how: run([words[0], "-c", limited, words[-1]], **how)  # noqa: E731
    monkeypatch.setattr(process.subprocess, "run", in_a_small_room)
    rows = benchmark.measure(benchmark.case(LLM, (16,), **SMALL))
    assert [(row["tokens"], row["status"]) for row in rows] == [(16, benchmark.OUT_OF_MEMORY)]


@pytest.mark.parametrize("fits_alone", [True, False])
def test_only_the_v_that_do_not_fit_are_lost(monkeypatch, fits_alone):
    """The largest V is clocked alone where all together take too much; lost only if that fails as well."""
    tried = []

    def clocked(c, V):
        tried.append(V.copy())
        room = 144 not in V or (fits_alone and len(V) == 1)
        return [{"tokens": v, "status": "ok"} for v in V] if room else None

    monkeypatch.setattr(process, "_clocked", clocked)
    rows = process.measure(benchmark.case(LLM, (1, 16, 144), **SMALL))
    assert tried == [[1, 16, 144], [144], [1, 16]]
    said = {row["tokens"]: row["status"] for row in rows}
    assert said == {1: "ok", 16: "ok", 144: "ok" if fits_alone else benchmark.OUT_OF_MEMORY}


def test_a_huge_case_is_refused_before_it_starts():
    huge = benchmark.case("qwen1.5-14b", (576,), batch=10_000)
    rows = benchmark.measure(huge)
    assert rows[0]["status"] == benchmark.OUT_OF_MEMORY and rows[0]["needs_bytes"] > 1e12


@pytest.mark.parametrize(
    "words, said",
    [
        (["--llm", "14", "--batch", "100000"], "needs about"),
        (["--llm", "gpt"], "unknown LLM"),
        (["--llm", "0.5", "--V", "some"], "whole numbers"),
        (["--llm", "0.5", "--compressor", "quecc,magic"], "unknown compressor"),
        (["--llm", "0.5", "--compressor", "fastv"], "no stage for fastv"),
        (["--llm", "0.5", "--compressor", "downsample_image"], "no stage for downsample_image"),
        (["--llm", "0.5", "--compressor", "prumerge"], "no stage for prumerge"),
        (["--llm", "0.5", "--device", "tpu"], "use cpu or cuda"),
    ],
)
def test_asked_for_too_much_it_says_so_in_one_line(words, said, capsys):
    from vtc import __main__

    assert __main__.main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and not out


def test_a_gpu_that_is_not_there(capsys):
    import torch

    from vtc import __main__

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert __main__.main(["bench", "--llm", "0.5", "--device", "cuda"]) == 2
    assert "no GPU was found" in capsys.readouterr().err
    with pytest.raises(InputError, match="none was found and no rows"):  # replay only, nothing is clocked
        clock_rows.table(profiles.get("gpu", recompute=True, run="empty"))


def test_a_floor_is_that_of_the_whole_run():
    """Two processes of one day, the second in a busy moment; and another day, for itself."""
    same = {"device": "cpu", "dtype": "bf16", "parts": "[[4e9, 1e6], [1e6, 3e9]]", "median_ms": 10.0}
    found = [(1e12, "2026-01-01T10"), (5e11, "2026-01-01T11"), (5e11, "2026-01-02T10")]
    rows = pd.DataFrame([{**same, "bandwidth": 1e12, "peak_flops": peak, "date": day} for peak, day in found])
    found = benchmark.of_one_run(rows.assign(floor_ms=1.0, share=0.1, binds="bandwidth"))
    assert found["floor_ms"].tolist() == pytest.approx([7, 7, 11])
    assert found["share"].tolist() == pytest.approx([0.7, 0.7, 1.1])
    assert found["binds"].tolist() == ["compute", "compute", "compute"]


def test_what_longer_texts_and_answers_leave_of_the_gain():
    """Made-up times: V + Q to the first token, 2 each later one; half of that at least."""
    rows = [
        {"Q": Q, "G": G, "tokens": V, "stage": stage, "median_ms": ms, "floor_ms": ms / 2}
        for Q, G in ((50, 8), (200, 8), (50, 64))
        for V in (1, 576)
        for stage, ms in (("ttft", V + Q), ("decode", 2))
    ]
    same = {"llm": "qwen1.5-0.5b", "status": "ok", "compressor": "pool", "question": "paid", "repeat": 0}
    found = benchmark.gains(pd.DataFrame(rows).assign(**same)).set_index(["time", "Q", "G"])
    assert found.loc[("first token", 50, 8), "measured"] == pytest.approx(626 / 51)
    assert found.loc[("whole answer", 50, 64), "measured"] == pytest.approx((626 + 126) / (51 + 126))
    assert found["measured"].tolist() == pytest.approx(found["counted"].tolist())
    wanted = benchmark.prompts(profiles.get("laptop"))
    assert len({c["Q"] for c in wanted}) >= 3 and len({c["G"] for c in wanted}) >= 3


def test_the_command_writes_rows(tmp_path, monkeypatch, capsys):
    """In this process, where torch is imported; `clock` above has a process of its own."""
    from vtc.benchmark.stages import Bench

    monkeypatch.setenv("VTC_RUNS", str(tmp_path))
    monkeypatch.setattr("vtc.benchmark.stages.peaks", lambda *_, **__: PEAKS)
    monkeypatch.setattr(bench, "measure", lambda c: Bench(c).rows())
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    words = ["--profile", "smoke", "--llm", LLM, "--V", "1", "--budget-s", "0", "--Q", "5", "--q", "3"]
    assert bench.main(parser.parse_args([*words, "--csv", str(tmp_path / "rows.csv")])) == 0
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert {"prefill", "decode"} <= set(rows["stage"]) and len(json.loads(rows["samples_ms"][0])) == rows[
        "n"
    ][0]
    assert "prefill" in capsys.readouterr().out


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-4), ("bfloat16", 0.15)])
def test_a_quickened_tower_gives_the_same_features(dtype, atol, monkeypatch):
    import torch

    from vtc.models import kernels
    from vtc.models.tower import Tower

    monkeypatch.setattr(kernels, "in_blocks", lambda q: dtype == "bfloat16")
    p = profiles.get("smoke")
    torch.manual_seed(0)
    eyes = Tower(p.tower).to(getattr(torch, dtype)).eval()
    images = torch.randint(0, 256, (3, p.pixels, p.pixels, 3), dtype=torch.uint8)
    with torch.inference_mode():
        wanted, found = eyes(images), kernels.quicken(eyes)(images)
    torch.testing.assert_close(found.levels, wanted.levels, atol=atol, rtol=0.02)


def made_up(**columns):
    """A row of the clock with what readers ask for."""
    same = {"llm": "qwen1.5-0.5b", "status": "ok", "question": "paid", "dtype": "bf16", "batch": 1, "Q": 50}
    same |= {"q": 20, "G": 8, "tower": "clip", "device": "here", "repeat": 0, "floor_ms": 1.0}
    ms = columns["median_ms"]
    return same | {"low_ms": ms, "high_ms": ms, "samples_ms": [ms]} | columns


def test_from_pixels_two_compressors_are_given_the_same_tower():
    """One process found the tower at 905 ms, the other at 605: what differs must be the compressors alone."""
    rows = []
    for name, tower in (("quecc", 905.0), ("tokenpacker", 605.0)):
        rows.append(made_up(compressor=name, tokens=1, stage="tower", median_ms=tower))
        for V, ms in ((1, 20.0), (576, 200.0)):  # both compressors take the same
            rows.append(made_up(compressor=name, tokens=V, stage="ttft", median_ms=ms))
    clock = pd.DataFrame(rows)
    tower = benchmark.with_tower(benchmark.tidy(clock)).query("stage == 'tower'")
    assert sorted(zip(tower["compressor"], tower["V"])) == [
        (name, V) for name in ("quecc", "tokenpacker") for V in (1, 576)
    ]
    assert tower["median_ms"].eq(755.0).all() and tower["n"].eq(2).all()
    found = benchmark.speedups(clock).set_index(["what", "compressor"])["measured"]
    assert found["from pixels", "quecc"] == found["from pixels", "tokenpacker"] == pytest.approx(955 / 775)
    assert found["from features", "quecc"] == pytest.approx(10)


def test_requests_a_second_of_a_whole_batch():
    times = {"tower": 100.0, "ttft": 60.0, "decode": 20.0}
    rows = [
        made_up(compressor="pool", tokens=16, stage=stage, median_ms=ms * scale, batch=batch)
        for batch, scale in ((1, 1), (8, 2))
        for stage, ms in times.items()
    ]
    found = benchmark.throughput(pd.DataFrame(rows)).set_index("batch")["requests_per_s"]
    assert found[1] == pytest.approx(1000 / 300) and found[8] == pytest.approx(8 * 1000 / 600)


def test_the_recorded_rows_are_still_read_and_drawn():
    """Every reading and figure of notebook 03 on rows of the first world, whose cases had other fields."""
    p = profiles.get("laptop")
    clock, prompts = clock_rows.table(p), clock_rows.table(p, benchmark.PROMPTS)
    llm = benchmark.largest(clock)
    assert llm == "qwen1.5-0.5b" and len(clock_rows.origins(clock)) >= 2
    for chart in (draw.first_token(clock, p), draw.shares(clock, p, llm), draw.speedup(clock, p, llm)):
        assert len(figures.drawn(chart)) > 3
    assert len(figures.drawn(draw.prompts(prompts, p))) > 3
    assert len(figures.drawn(draw.prediction(clock, p))) > 30
    assert set(benchmark.speedups(clock)["compressor"]) >= {"quecc", "tokenpacker"}
    assert (benchmark.throughput(clock)["requests_per_s"] > 0).all()
    errors = pd.DataFrame({"N": clock["N"].unique(), "V": 16, "error_reasoning": 0.5})
    own = seconds.own_seconds(clock, errors)
    assert own["frontier"].any() and own["ms"].between(own["low_ms"], own["high_ms"]).all()
    for rows in (own, seconds.published_seconds("h200")):
        assert len(figures.drawn(draw.pareto(rows, "title", "below"))) == len(rows)
    pays = seconds.batch_that_pays(["h200"])
    assert len(figures.drawn(draw.batch_that_pays(pays))) == len(pays)
    assert len(figures.drawn(draw.kv_room(seconds.memory("h200"), "H200"))) > 100


@pytest.mark.parametrize("name", ["quecc_light", "lookup", "llamavid"])
def test_compressors_that_read_words_are_clocked_on_all_of_them(name, monkeypatch):
    """Such a compressor is given a column for each of the q question tokens, as in `VLM.generate`."""
    from vtc.benchmark.stages import Bench
    from vtc.compressors.base import Compressor

    seen, check = [], Compressor.check

    def look(self, features, question):
        seen.append(None if question is None else tuple(question.shape))
        return check(self, features, question)

    monkeypatch.setattr(Compressor, "check", look)
    monkeypatch.setattr("vtc.benchmark.stages.peaks", lambda *_, **__: PEAKS)
    Bench(benchmark.case(LLM, (1,), compressors=[name], q=7, **SMALL)).rows()
    assert seen and all(shape[-2] == 7 for shape in seen if shape is not None)


def test_an_llm_named_by_its_billions_is_read_as_a_name(clock):
    """`vtc bench --llm 0.5` writes rows whose llm reads back as a number."""
    assert set(benchmark.tidy(clock.assign(llm=0.5))["LLM"]) == {"0.5"}
