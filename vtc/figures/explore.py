"""The chart with sliders of notebook 04: error against cost, as Q, G, batch, law and kind of cost change."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from vtc import cost, figures
from vtc.evaluation.compare import undominated
from vtc.scaling.fitting import Fit
from vtc.shapes import BYTES

OPERATIONS, SECONDS = "operations", "time"
V_SHOWN = (1, 4, 16, 36, 64, 144, 576)  # measured by the paper
N_SHOWN = (0.5, 1.8, 4.0, 7.0, 14.0)


def rows(fits: dict[str, Fit], N: Sequence[float] = N_SHOWN, V: Sequence[int] = V_SHOWN) -> pd.DataFrame:
    """The errors that laws give at every N (billions) and V: law | N | V | error."""
    n, v = (grid.ravel() for grid in np.meshgrid(N, np.asarray(V, float), indexing="ij"))
    parts = [{"law": name, "N": n, "V": v, "error": f.law.error(n, v)} for name, f in fits.items()]
    return pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)


def formulas(device: cost.Hardware, dtype: str = "bf16") -> dict[str, str]:
    """Cost of a request with N billion parameters, as expressions of datum.N, datum.V, Q, G and batch.

    TFLOP: 2 N (Q + V + G). ms: one pass over the prompt and G over single tokens, each as long as its
    arithmetic or the reading of the weights takes, shared by the batch; attention and the tower are left out.
    """
    peak, bandwidth, size = device.peak[dtype] / 1e12, device.bandwidth / 1e12, BYTES[dtype]
    read = f"{size} * datum.N / {bandwidth:g}"  # 1e9 parameters and 1e12 bytes a second: ms
    prompt = f"max(2 * datum.N * batch * (Q + datum.V) / {peak:g}, {read})"
    answer = f"G * max(2 * datum.N * batch / {peak:g}, {read})"
    return {
        "TFLOP": "2 * datum.N * (Q + datum.V + G) / 1000",
        "ms": f"({prompt} + {answer}) / batch",
    }


def unbeaten(
    table: pd.DataFrame, device: cost.Hardware, positions: Sequence[dict], N: float = 4.0
) -> pd.DataFrame:
    """The V of one LLM that nothing beats, by position of the sliders: Q | G | requests | cost in | each law.

    table: `rows`; a position names what differs from Q = 50, G = 0, batch = 1, kind = operations.
    """
    found = []
    for at in positions:
        at = {"Q": 50, "G": 0, "batch": 1, "kind": OPERATIONS} | at
        best = undominated(table.assign(cost=priced(table, device, **at)), "cost", ["law"])
        best = best[best["frontier"] & (best["N"] == N)].sort_values("V")
        every = {law: ", ".join(f"{v:g}" for v in part["V"]) for law, part in best.groupby("law", sort=False)}
        found.append(at | {law: every.get(law, "none") for law in table["law"].unique()})
    return pd.DataFrame(found).rename(columns={"batch": "requests", "kind": "cost in"})


def priced(table: pd.DataFrame, device: cost.Hardware, Q: float, G: float, batch: float, kind: str):
    """What `formulas` say, in numpy: TFLOP of a request, or ms."""
    N, V = table["N"], table["V"]
    if kind == OPERATIONS:
        return 2e-3 * N * (Q + V + G)
    took = [cost.seconds(cost.Work(2e9 * N * batch * t, 2e9 * N), device) for t in (Q + V, 1)]
    return 1e3 * (took[0] + G * took[1]) / batch


def explorer(table: pd.DataFrame, device: cost.Hardware, Q=50, G=0, batch=1) -> alt.LayerChart:
    """Error against cost with sliders; dots with a number (V) are those that nothing beats.

    table: `rows`. The picture shows the first position of every control.
    """
    laws, kinds = list(dict.fromkeys(table["law"])), [OPERATIONS, SECONDS]
    order = sorted(table["N"].unique().tolist())
    controls = [
        alt.param("Q", value=Q, bind=alt.binding_range(min=0, max=500, step=10, name="text tokens Q ")),
        alt.param("G", value=G, bind=alt.binding_range(min=0, max=256, step=8, name="answer tokens G ")),
        alt.param(
            "batch", value=batch, bind=alt.binding_range(min=1, max=128, step=1, name="requests at once ")
        ),
        alt.param("law", value=laws[0], bind=alt.binding_select(options=laws, name="law ")),
        alt.param("kind", value=kinds[0], bind=alt.binding_select(options=kinds, name="cost counted in ")),
    ]
    base = alt.Chart(table).transform_filter("datum.law == law").transform_calculate(**formulas(device))
    base = base.transform_calculate(cost=f"kind == '{OPERATIONS}' ? datum.TFLOP : datum.ms")
    said = f"cost of a request: TFLOP, or ms on one {device.name.upper()} (log scale)"
    x = alt.X("cost:Q", title=said, scale=alt.Scale(type="log", nice=False, padding=20))
    y = figures.error()
    names = alt.Tooltip("N:Q", title="N, billions"), "V:Q", alt.Tooltip("error:Q", format=".4f")
    tips = [*names, alt.Tooltip("TFLOP:Q", format=".4~r"), alt.Tooltip("ms:Q", format=".4~r")]
    color = alt.Color("N:O", title="N, billions")
    lines = base.mark_line(opacity=0.7).encode(x, y, color)
    dots = base.mark_point(opacity=0.9).encode(x, y, color, tooltip=tips)
    ahead = base.transform_window(
        least="min(error)", sort=[alt.SortField("cost"), alt.SortField("error")], frame=[None, 0]
    ).transform_filter("datum.error <= datum.least")
    best = ahead.mark_point(filled=False, size=150, color="black", strokeWidth=1.8).encode(x, y)
    sides = [ahead.transform_filter(f"indexof({order}, datum.N) % 2 == {odd}") for odd in (0, 1)]
    below, above = ({"dy": 15, "dx": -9}, {"dy": -13, "dx": 11})  # neighbours in N, lest numbers overlap
    numbers = [
        side.mark_text(fontSize=12, **at).encode(x, y, color, text="V:Q")
        for side, at in zip(sides, (below, above))
    ]
    how = "circles: nothing has a smaller error at the same cost or less; numbers: their V"
    chart = alt.layer(lines, best, dots, *numbers).add_params(*controls)
    title = "Which V wins depends on what else is paid for"
    return figures.titled(chart, title, how, "law fitted to the paper's points; 14B is extrapolated",
                          width=520, height=320)  # fmt: skip
