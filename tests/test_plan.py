"""The plan keeps its constraints, ranks by error, and says how sure it is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vtc import InputError, cost
from vtc.__main__ import main as vtc
from vtc.scaling import fit, points, published
from vtc.scaling.plan import GRID_TOKENS, Request, measures, plan


@pytest.fixture(scope="module")
def reasoning():
    return fit(published("reasoning"))


@pytest.fixture(scope="module")
def ocr():
    return fit(published("ocr"))


H200, P = cost.hardware("h200"), published("reasoning")


def test_choices_keep_the_constraints_and_are_ranked(reasoning):
    made = plan(Request(batch=8, ttft_ms=30, memory_gb=40), H200, reasoning)
    fitting = [c for c in made.choices if c.fits]
    assert fitting and made.best is fitting[0]
    assert all(c.ttft_ms <= 30 and c.memory_gb <= 40 for c in fitting)
    assert all(c.ttft_ms > 30 or c.memory_gb > 40 for c in made.choices if not c.fits)
    assert [c.error for c in fitting] == sorted(c.error for c in fitting)
    assert sum(c.p_best for c in fitting) == pytest.approx(1)
    assert all(c.error_lo < c.error < c.error_hi for c in fitting)


def test_p_best_is_the_share_of_the_laws_draws(reasoning):
    """Recounted draw by draw from the law alone: no noise of single measurements enters."""
    request, draws = Request(batch=8, ttft_ms=30), reasoning.bootstrap(200)
    made = plan(request, H200, reasoning, draws)
    fitting = [c for c in made.choices if c.fits]
    error = np.array([draws.error(c.N, c.V) for c in fitting])  # (choices, draws)
    won = np.bincount(error.argmin(0), minlength=len(fitting)) / 200
    assert [c.p_best for c in fitting] == pytest.approx(won.tolist())
    sure = fit(points(P.N, P.V, reasoning.law.error(P.N, P.V)))  # no residual: all draws are the law itself
    assert plan(request, H200, sure).best.p_best == 1.0


def test_choices_say_whether_the_law_has_seen_their_like():
    few = fit(P.keep(P.V <= 144))
    for c in plan(Request(models=(0.5, 7, 14), tokens=(1, 144, 576)), H200, few).choices:
        assert c.within == ("interpolation" if c.N <= 7 and c.V <= 144 else "extrapolation")


def test_a_plan_on_a_bad_fit_warns(capsys, tmp_path):
    noise = np.random.default_rng(0).uniform(0.3, 0.7, len(P))
    rows = "".join(f"{n},{v},{y}\n" for n, v, y in zip(P.N, P.V, noise))
    (tmp_path / "noise.csv").write_text("N,V,score\n" + rows)
    assert vtc(["plan", "--task", str(tmp_path / "noise.csv"), "--draws", "40"]) == 0
    assert "don't rely on this plan" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    "compressor, how, q_prime",
    [
        ("quecc", "paid", 20),
        ("quecc_pooled", "paid", 20),  # a variant pays as well
        ("quecc", "shared", 0),
        ("quecc", "cached", 0),
        ("quecc_shared", "paid", 0),  # reads the question where it stands before the image
        ("quecc_light", "paid", 0),  # reads word embeddings
        ("quecc_unasked", "paid", 0),  # reads no question
        ("tokenpacker", "paid", 0),
    ],
)
def test_the_class_says_whether_a_question_pass_is_paid(compressor, how, q_prime):
    assert Request(compressor=compressor, question_pass=how, question=20).q_prime == q_prime


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
    near = made["best_within"]  # beside it stands the best choice that the law has seen the like of
    assert near["N"] <= 7 and f"within what the law has seen: N = {near['N']:g}B, V = {near['V']}" in said
    seen = [c for c in made["choices"] if c["fits"] and c["within"] == "interpolation"]
    assert near["error"] == min(c["error"] for c in seen)


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
        (f"--batch {'9' * 60}", "1,000,000,000 or less"),
        ("--json .", "cannot be written"),
        (f"--json {'x' * 300}", "name too long"),
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
