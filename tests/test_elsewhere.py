"""Tables that others published, read with our own tools."""

from __future__ import annotations

import numpy as np
import pytest

from vtc.scaling import elsewhere


def test_a_planted_beta_comes_back(monkeypatch):
    rng, rows = np.random.default_rng(0), []
    for task, beta in (("steep", 0.3), ("flat", 0.0)):
        for method, level in (("TokenPacker", 0.5), ("QueCC", 0.45)):
            for V in (1, 4, 16, 36):
                error = level * V**-beta * np.exp(0.002 * rng.standard_normal())
                rows.append({"method": method, "task": task, "V": V, "value": 100 * (1 - error)})
    monkeypatch.setattr(elsewhere, "published_rows", lambda table: rows)
    flat, steep = elsewhere.benchmark_betas()
    assert (flat["task"], steep["task"]) == ("flat", "steep")
    assert steep["beta"] == pytest.approx(0.3, abs=0.005) and flat["beta_lo"] < 0 < flat["beta_hi"]
    assert steep["beta_lo"] < 0.3 < steep["beta_hi"] and steep["beta_hi"] - steep["beta_lo"] < 0.02


def test_the_benchmarks_of_the_paper_differ_manyfold():
    """Inside "visual reasoning" the published betas spread from ScienceQA to VQAv2."""
    rows = {row["task"]: row for row in elsewhere.benchmark_betas()}
    assert rows["VQAv2"]["beta"] > 3 * rows["MMB"]["beta"]
    assert rows["VQAv2"]["beta_lo"] > rows["GQA"]["beta_hi"] > rows["MMB"]["beta_hi"]
    assert rows["SQA"]["beta_lo"] < 0 < rows["SQA"]["beta_hi"]  # no effect of V is seen there
    assert all(row["points"] == 8 for row in rows.values())


def test_a_floor_lies_below_what_was_measured():
    rows = elsewhere.published_latency()
    assert len(rows) == 8 and all(0 < row["floor_ms"] < row["published_ms"] for row in rows)
    assert {row["passes"] for row in rows if row["method"] == "QueCC"} == {2}
    assert {row["passes"] for row in rows if row["method"] != "QueCC"} == {1}
    beyond = {passes: np.mean([r["beyond_ms"] for r in rows if r["passes"] == passes]) for passes in (1, 2)}
    assert beyond[2] > 1.3 * beyond[1]  # a pass costs time that no count of operations shows
