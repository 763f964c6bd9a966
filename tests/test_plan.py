"""The plan keeps its constraints, ranks by error, and says how sure it is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vtc import InputError, cost
from vtc.__main__ import main as vtc
from vtc.scaling import fit, published
from vtc.scaling.plan import GRID_TOKENS, Request, measures, plan


@pytest.fixture(scope="module")
def reasoning():
    return fit(published("reasoning"))


@pytest.fixture(scope="module")
def ocr():
    return fit(published("ocr"))


H200 = cost.hardware("h200")


def test_choices_keep_the_constraints_and_are_ranked(reasoning):
    made = plan(Request(batch=8, ttft_ms=30, memory_gb=40), H200, reasoning)
    fitting = [c for c in made.choices if c.fits]
    assert fitting and made.best is fitting[0]
    assert all(c.ttft_ms <= 30 and c.memory_gb <= 40 for c in fitting)
    assert all(c.ttft_ms > 30 or c.memory_gb > 40 for c in made.choices if not c.fits)
    assert [c.error for c in fitting] == sorted(c.error for c in fitting)
    assert sum(c.p_best for c in fitting) == pytest.approx(1)
    assert all(c.error_lo < c.error < c.error_hi for c in fitting)


def test_numbers_are_those_of_the_cost_model(reasoning):
    request = Request(Q=40, G=20, batch=4)
    for choice in plan(request, H200, reasoning).choices[:20]:
        pipe = cost.Pipeline(cost.llm(f"{choice.N:g}"))
        took = cost.latency(pipe, H200, choice.V, 40, 20, 4)
        assert choice.ttft_ms == pytest.approx(1e3 * float(took["ttft"]), rel=1e-9)
        assert choice.total_ms == pytest.approx(1e3 * float(took["total"]), rel=1e-9)
        assert choice.memory_gb == pytest.approx(float(cost.memory(pipe, choice.V, 40, 20, 4)["total"]) / 1e9)
        assert choice.error == pytest.approx(float(reasoning.law.error(choice.N, choice.V)))


def test_a_looser_budget_never_raises_the_error(reasoning):
    best = [plan(Request(batch=8, ttft_ms=t), H200, reasoning).best.error for t in (10, 20, 40, 80, 160)]
    assert best == sorted(best, reverse=True) and best[0] > best[-1]


def test_reading_tasks_take_the_tokens_that_fit(reasoning, ocr):
    asked = Request(batch=8, ttft_ms=40)
    assert plan(asked, H200, ocr).best.V == max(GRID_TOKENS)
    assert plan(asked, H200, ocr).best.V > plan(asked, H200, reasoning).best.V
    assert plan(asked, H200, ocr).best.N < plan(asked, H200, reasoning).best.N


def test_long_questions_raise_v_at_fixed_operations(reasoning):
    """Where arithmetic binds the optimum moves as the closed form says: more text, more visual tokens."""
    tokens = tuple(range(1, 145, 3))
    slow = cost.own_hardware(1, 1e9, 1e6)  # bandwidth without end: operations alone count
    sizes, draws = tuple(np.geomspace(0.5, 14, 60)), reasoning.bootstrap(40)
    V = [
        plan(Request(Q=Q, G=1, ttft_ms=ms, models=sizes, tokens=tokens), slow, reasoning, draws).best.V
        for Q, ms in ((20, 1500), (200, 4000))
    ]
    assert V[1] > 1.5 * V[0]


def test_nothing_that_fits_is_said(reasoning, capsys):
    made = plan(Request(ttft_ms=0.1), H200, reasoning)
    assert made.best is None and made.V_interval is None and not any(c.p_best for c in made.choices)
    assert vtc(["plan", "--ttft-ms", "0.1"]) == 1
    assert "nothing fits" in capsys.readouterr().out


def test_a_batch_of_one_is_bound_by_bandwidth(reasoning):
    one = measures(Request(batch=1), H200, [7.0], [1])
    many = measures(Request(batch=64), H200, [7.0], [576])
    assert not one["compute_bound"][0] and many["compute_bound"][0]


def test_quecc_pays_for_its_question_pass(reasoning):
    paid, cached, plain = (
        measures(Request(compressor=c, question_pass=p), H200, [7.0], [1])["ttft_ms"][0]
        for c, p in (("quecc", "paid"), ("quecc", "cached"), ("tokenpacker", "paid"))
    )
    assert paid > 1.4 * cached and paid > 1.4 * plain
    assert Request(compressor="quecc", question=20).q_prime == 20
    assert Request(compressor="quecc", question_pass="shared").q_prime == 0


def test_plan_writes_n_and_v_with_intervals(tmp_path, capsys):
    out = tmp_path / "plan.json"
    words = (
        "plan --hardware h200 --ttft-ms 50 --question-tokens 50 --batch 8 --output-tokens 32 --memory-gb 80"
    )
    assert vtc([*words.split(), "--task", "reasoning", "--models", "0.5,1.8,4,7,14", "--json", str(out)]) == 0
    said, made = capsys.readouterr().out, json.loads(out.read_text())
    assert f"recommended: N = {made['N']:g}B" in said and f"V = {made['V']}" in said
    for name in ("N", "V"):
        assert made[f"{name}_lo"] <= made[name] <= made[f"{name}_hi"]
    assert made["V_opt"] == pytest.approx((50 + 32) / (4.697 - 1), rel=0.01)
    assert len(made["choices"]) == 5 * len(GRID_TOKENS)
    assert "extrapolation" in said  # 14B was never fitted


def test_ocr_is_told_to_take_what_fits(capsys):
    assert vtc(["plan", "--task", "ocr", "--hardware", "h200", "--ttft-ms", "40"]) == 0
    assert "as many tokens as fit" in capsys.readouterr().out


def test_own_scores_and_own_device(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    p = published("reasoning")
    path.write_text(
        "N,V,score\n" + "".join(f"{n * 1000:g},{v:g},{1 - y}\n" for n, v, y in zip(p.N, p.V, p.Y))
    )
    own = "--peak-tflops 100 --bandwidth-gb-s 500 --memory-gb 24 --unit millions".split()
    assert vtc(["plan", "--task", str(path), *own]) == 0
    assert "yours" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        ("--hardware abacus", "h100"),
        ("--models 70", "0.5B to 14B"),
        ("--models one,two", "--models"),
        ("--question-tokens -1", "Q = -1"),
        ("--tokens -4", "V = -4"),
        ("--output-tokens 0", "G = 0"),
        ("--task speech", "reasoning, ocr"),
        ("--task nowhere.csv", "nowhere.csv"),
        ("--compressor magic", "tokenpacker"),
        ("--peak-tflops 10", "--bandwidth-gb-s"),
        ("--memory-gb -1", "memory_gb"),
        ("--draws 3", "--draws 3"),
    ],
)
def test_bad_words_get_one_line(words, said, capsys):
    assert vtc(["plan", *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_requests_check_themselves():
    with pytest.raises(InputError, match="batch"):
        Request(batch=0)
    with pytest.raises(InputError, match="no choices"):
        Request(models=())
