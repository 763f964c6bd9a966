"""The paper's numbers: complete, in range, and odd where they are odd."""

from __future__ import annotations

import numpy as np
import pytest

from vtc import InputError
from vtc.scaling import published, published_rows

SIZES, TOKENS = [0.5, 1.8, 4, 7], [1, 4, 16, 36, 64, 144, 576]


@pytest.mark.parametrize("task", ["reasoning", "ocr"])
def test_every_scaling_point_is_there_once(task):
    points = published(task)
    cells = sorted(zip(points.N, points.V))
    assert cells == sorted((n, v) for n in SIZES for v in TOKENS)
    assert (0 < points.Y).all() and (points.Y < 1).all()


def test_errors_fall_with_n_and_with_v_on_the_whole():
    for task in ("reasoning", "ocr"):
        p = published(task)
        grid = p.Y[np.lexsort((p.V, p.N))].reshape(4, 7)
        assert (np.diff(grid.mean(1)) < 0).all() and (np.diff(grid.mean(0)) < 0).all()


def test_suspect_points_are_marked_and_left_out_on_demand():
    reasoning, ocr = published("reasoning"), published("ocr")
    assert (len(reasoning.trusted), len(ocr.trusted)) == (25, 25)
    at = lambda n, v: ocr.Y[(ocr.N == n) & (ocr.V == v)][0]  # noqa: E731
    assert at(7, 576) == at(4, 576)  # the repeated value
    assert "copied" in ocr.odd[(ocr.N == 7) & (ocr.V == 576)][0]
    differing = [r for r in published_rows("scaling") if r["raw"] and float(r["raw"]) != float(r["value"])]
    assert len(differing) == 3 and all(row["odd"] for row in differing)


def test_the_compressor_table_has_every_cell():
    rows = published_rows("compressors")
    assert len(rows) == 16 * 8
    assert all(row["value"] or "not reported" in row["odd"] for row in rows)
    score = {(r["method"], r["V"], r["task"]): r["value"] for r in rows}
    assert score["QueCC", "1", "MMB"] == "59.4" and score["TokenPacker", "16", "GQA"] == "58.9"


def test_every_row_names_its_source():
    for table in ("scaling", "law", "compressors", "replication"):
        rows = published_rows(table)
        assert rows and all(row["source"] for row in rows)


def test_an_unknown_task_is_one_line():
    with pytest.raises(InputError, match="reasoning and ocr"):
        published("speech")
