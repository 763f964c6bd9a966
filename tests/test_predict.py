"""Two marginals predict a grid: planted laws come back, labels and intervals say what they are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vtc import InputError
from vtc.__main__ import main as vtc
from vtc.scaling.marginals import FORMS, Marginal, predict, read

N = np.array([0.5, 1.0, 2.0, 4.0])
V = np.array([1.0, 4.0, 16.0, 64.0])


def curves(form, seeds=1, noise=0.0, rng=None):
    """Marginals of a planted grid, and the grid: know K(N) = .5 N^-.3, see S(V) = .3 V^-.4, N0 = 1."""
    rng = rng or np.random.default_rng(0)
    know, sight = 0.5 * N**-0.3, 0.3 * V**-0.4
    if form == "product":
        grid = {(n, v): s * k / 0.5 for n, k in zip(N, know) for v, s in zip(V, 0.6 * V**-0.2)}
        seen = 0.6 * V**-0.2
    else:
        grid = {(n, v): 1 - (1 - s) * (1 - k) for n, k in zip(N, know) for v, s in zip(V, sight)}
        seen = 1 - (1 - sight) * (1 - 0.5)

    def rows(at, error):
        each = np.repeat(at, seeds), np.repeat(error, seeds)
        return each[0], (each[1] + noise * rng.standard_normal(len(each[1]))).clip(0, 1)

    return Marginal.of("N", *rows(N, know)), Marginal.of("V", *rows(V, seen)), grid


@pytest.mark.parametrize("form", ["product", "see and know"])
def test_a_planted_grid_comes_back_from_its_marginals(form):
    know, see, grid = curves(form)
    rows = predict(know, see, 1.0, N, V, draws=40)
    miss = dict.fromkeys(FORMS, 0.0)
    for row in rows:
        truth = grid[row["N"], row["V"]]
        miss[row["form"]] = max(miss[row["form"]], abs(row["error"] / truth - 1))
    other = miss.pop("product" if form == "see and know" else "see and know")
    assert miss[form] < 1e-9 and other > 0.02  # the other form is told apart


def test_labels_say_what_was_measured_and_what_lies_beyond():
    know, see, _ = curves("product")
    found = predict(know, see, 1.0, [1.0, 3.0, 8.0], [4.0, 8.0, 144.0], draws=40)
    labels = {(row["N"], row["V"]): row["label"] for row in found}
    assert labels[1.0, 4.0] == "measured marginal" and labels[1.0, 8.0] == "interpolation"
    assert labels[3.0, 4.0] == "interpolation"
    assert labels[8.0, 4.0] == labels[1.0, 144.0] == labels[8.0, 144.0] == "extrapolation"


def test_beyond_the_points_the_power_goes_on():
    know, _, _ = curves("product")
    assert know.exponent == pytest.approx(0.3) and know.r2 == pytest.approx(1)
    assert know.read([16.0])[0] == pytest.approx(0.5 * 16**-0.3)
    assert know.read([0.1])[0] == pytest.approx(0.5 * 0.1**-0.3)


def test_intervals_cover_the_planted_grid():
    """Five seeds of noise on both curves: the interval of a cell holds the truth in about 95 % of trials."""
    rng, hits, cells = np.random.default_rng(1), 0, 0
    for _ in range(60):
        know, see, grid = curves("product", seeds=5, noise=0.02, rng=rng)
        for row in predict(know, see, 1.0, N, V, draws=200):
            if row["form"] == "product" and row["N"] != 1.0:
                hits += row["low"] <= grid[row["N"], row["V"]] <= row["high"]
                cells += 1
    assert 0.90 <= hits / cells <= 0.995


def test_one_seed_gives_no_interval():
    know, see, _ = curves("product")
    assert all(row["low"] is None for row in predict(know, see, 1.0, N, V, draws=40))


@pytest.mark.parametrize(
    "at, error, words",
    [
        ([1, 1], [0.1, 0.2], "at least two N"),
        ([0, 1], [0.1, 0.2], "above 0"),
        ([1, 2], [0.1, 1.2], "between 0 and 1"),
        ([], [], "above 0"),
    ],
)
def test_bad_curves_are_one_line(at, error, words):
    with pytest.raises(InputError, match=words):
        Marginal.of("N", at, error)


def test_the_command(tmp_path, capsys):
    (tmp_path / "know.csv").write_text("N,score,seed\n" + "".join(f"{n},{1 - 0.5 * n**-0.3},0\n" for n in N))
    (tmp_path / "see.csv").write_text("V,score\n" + "".join(f"{v},{1 - 0.6 * v**-0.2}\n" for v in V))
    words = [
        "predict",
        "--know",
        str(tmp_path / "know.csv"),
        "--see",
        str(tmp_path / "see.csv"),
        "--see-N",
        "1",
    ]
    assert vtc([*words, "--N", "0.5,8", "--json", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    assert "N^-0.300" in said and "extrapolation" in said
    rows = json.loads((tmp_path / "out.json").read_text())["all"]
    assert len(rows) == 2 * 2 * len(V)
    assert vtc([*words, "--V", "none"]) == 2
    for bad in ("nan", "-1", "inf"):
        assert vtc([*words[:-1], bad]) == 2 and vtc([*words, "--N", bad]) == 2
    assert vtc([*words, "--draws", "1000000000"]) == 2
    (tmp_path / "see.csv").write_text("V,score\n1,x\n")
    assert vtc(words) == 2 and "line 2, column score" in capsys.readouterr().err
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path, "N")
