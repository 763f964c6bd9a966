"""The chart with sliders: its formulas are those of the cost, its marks those that nothing beats."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from vtc import cost, figures, scaling
from vtc.evaluation.compare import undominated
from vtc.figures import explore
from vtc.scaling import frames

H200 = cost.hardware("h200")


@pytest.fixture(scope="module")
def fits() -> dict[str, scaling.Fit]:
    points = scaling.published("reasoning")
    return {law: scaling.fit(points, law) for law in ("power", "additive")}


def priced(N: float, V: float, Q: float, G: float, batch: float) -> dict[str, float]:
    """The expressions, worked out as the page would."""
    datum = type("Datum", (), {"N": N, "V": V})
    known = {"datum": datum, "Q": Q, "G": G, "batch": batch, "max": max}
    return {name: eval(text, {"__builtins__": {}}, known) for name, text in explore.formulas(H200).items()}


def test_operations_are_the_papers(fits):
    plane = frames.plane(fits["power"], Q=50)
    points = plane[plane["drawn"] == "points"]
    ours = [priced(n, v, 50, 0, 1)["TFLOP"] for n, v in zip(points["N"], points["V"])]
    assert np.allclose(ours, points["TFLOP"])


@pytest.mark.parametrize(
    "Q, G, batch, V", [(50, 0, 1, 1), (50, 0, 1, 576), (50, 64, 1, 16), (10, 8, 64, 144)]
)
def test_seconds_are_the_roofline_of_the_weights(Q, G, batch, V):
    def took(tokens: float) -> float:
        return float(cost.seconds(cost.Work(2 * 7e9 * batch * tokens, 2 * 7e9), H200))

    wanted = (took(Q + V) + G * took(1)) / batch * 1e3
    assert priced(7, V, Q, G, batch)["ms"] == pytest.approx(wanted, rel=1e-6)


def test_rows_are_the_laws_errors(fits):
    rows = explore.rows(fits)
    assert len(rows) == 2 * len(explore.N_SHOWN) * len(explore.V_SHOWN)
    one = rows[(rows["law"] == "additive") & (rows["N"] == 7) & (rows["V"] == 16)]["error"].item()
    assert one == pytest.approx(fits["additive"].law.error(7.0, 16.0))


def test_the_marks_are_those_that_nothing_beats(fits):
    """The chart's rule, cheapest first and the least error so far, against the package's own."""
    rows = explore.rows({"power": fits["power"]})
    rows["TFLOP"] = 2e-3 * rows["N"] * (50 + rows["V"])
    rows = rows.sort_values(["TFLOP", "error"])
    marked = rows[rows["error"] <= rows["error"].cummin()]
    wanted = undominated(rows.assign(every=0), "TFLOP", ["every"])
    wanted = wanted[wanted["frontier"]]
    assert set(zip(marked["N"], marked["V"])) == set(zip(wanted["N"], wanted["V"]))


def test_the_lab_gets_the_chart_alive_and_pages_a_picture(fits):
    shown, _ = figures.show(explore.explorer(explore.rows(fits), H200))._repr_mimebundle_()
    spec = shown[figures.LIVE]
    assert shown["image/png"].startswith(b"\x89PNG") and "v5" in spec["$schema"]
    assert {one["name"] for one in spec["params"]} >= {"Q", "G", "batch", "law", "kind"}
    assert spec["config"]["mark"]["tooltip"] and "http" not in json.dumps(spec).replace(spec["$schema"], "")
    assert not math.isnan(spec["datasets"][next(iter(spec["datasets"]))][0]["error"])


def test_a_table_says_what_the_sliders_show(fits):
    """Its costs are those of the chart's expressions, at positions where each of the two roofs binds."""
    table = explore.rows({"power": fits["power"]})
    for Q, G, batch in ((50, 0, 1), (10, 8, 64), (500, 256, 1)):
        chart = pd.DataFrame([priced(n, v, Q, G, batch) for n, v in zip(table["N"], table["V"])])
        for kind, name in ((explore.OPERATIONS, "TFLOP"), (explore.SECONDS, "ms")):
            assert np.allclose(explore.priced(table, H200, Q, G, batch, kind), chart[name])
    said = explore.unbeaten(table, H200, [{"Q": 0}, {"Q": 500}, {"kind": explore.SECONDS}])
    none, much, time = (row.split(", ") for row in said["power"])
    assert none == ["1"] and len(much) > 3 and "144" in time and "1" not in time
    assert said["Q"].tolist() == [0, 500, 50] and said["requests"].tolist() == [1, 1, 1]
