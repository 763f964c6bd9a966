"""What is drawn is what is saved; pictures need no network and say what they are made from."""

import io
import re

import altair as alt
import numpy as np
import pandas as pd
import planted
import pytest

from vtc import compressors, figures, profiles
from vtc.evaluation import compare, summary
from vtc.figures import looks
from vtc.figures import sweep as sweep_figures
from vtc.figures import zoo as zoo_figures

FRAME = pd.DataFrame(
    {
        "visual tokens": [1, 4, 16],
        "error": [0.5, 0.31, 0.2],
        "device": ["abacus"] * 3,
        "commit": ["abc1234"] * 3,
    }
)


def chart(frame=FRAME, **properties):
    properties = {"title": alt.Title("Fewer tokens, more errors", subtitle="by hand")} | properties
    line = alt.Chart(frame).mark_line(point=True)
    return line.encode(x="visual tokens:Q", y="error:Q").properties(**properties)


@pytest.fixture
def profile(tmp_path, monkeypatch):
    monkeypatch.setenv("VTC_RUNS", str(tmp_path))
    return profiles.get("smoke")


def test_save_writes_picture_and_rows_under_one_stem(profile):
    picture = figures.save(chart(), "02_test", profile)
    names = ["02_test.csv", "02_test.png", "02_test.svg"]
    assert sorted(path.name for path in profile.figures.iterdir()) == names
    assert sorted(path.name for path in picture.files) == names
    pd.testing.assert_frame_equal(pd.read_csv(profile.figures / "02_test.csv"), FRAME)
    assert (profile.figures / "02_test.png").read_bytes() == picture.png


def test_the_picture_carries_its_words_for_readers_without_sight(profile):
    figures.save(chart(), "02_test", profile, alt_text="Error falls as tokens & cost rise")
    svg = (profile.figures / "02_test.svg").read_text()
    assert 'role="img"><title>Error falls as tokens &amp; cost rise</title>' in svg
    assert figures.show(chart()).alt == "Fewer tokens, more errors. by hand"
    assert figures.show(chart(description="in full")).alt == "in full"


def test_the_page_loads_nothing_from_elsewhere(profile):
    figures.save(chart(), "02_test", profile, html=True)
    page = (profile.figures / "02_test.html").read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)\s*=", page)
    assert not re.search(r"\bimport\s[^;]{0,200}\bfrom\s*['\"]https?:", page)
    assert "0.31" in page  # the rows travel with it


def test_a_notebook_gets_a_still_picture_at_its_own_size(profile):
    data, size = figures.show(chart(width=300))._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert 300 < size["image/png"]["width"] < 420  # the plot and its axis
    assert data["text/plain"] == "Fewer tokens, more errors. by hand"


def test_drawn_rows_of_several_frames_are_all_kept():
    other = pd.DataFrame({"visual tokens": [36], "error": [0.1]})
    rows = figures.drawn(chart() + chart(other))
    assert rows.groupby("frame").size().tolist() == [3, 1]
    assert sorted(rows.error) == [0.1, 0.2, 0.31, 0.5]
    assert len(figures.drawn(chart() + chart())) == 3  # the same frame once


def test_long_frames_are_drawn_whole():
    long = pd.DataFrame({"visual tokens": range(6000), "error": [0.1] * 6000})
    assert len(figures.drawn(chart(long))) == 6000


def test_provenance_is_computed_from_the_rows(profile):
    assert figures.provenance(FRAME, profile) == "profile smoke · abacus · 3 rows · commit abc1234"
    mixed = pd.concat([FRAME, FRAME.assign(device="H200", commit="def5678")])
    assert figures.provenance(mixed, profile) == "profile smoke · 2 devices · 6 rows · 2 commits"
    assert figures.provenance(FRAME[["error"]].head(1), profile) == "profile smoke · 1 row"


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear))


def test_the_theme_is_on_and_legible():
    config = chart().to_dict()["config"]
    assert config["range"]["category"] == figures.PALETTE
    assert config["axis"]["labelFontSize"] >= 11
    for colour in (figures.INK, figures.FAINT):
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5  # contrast on white


P = profiles.get("laptop")


@pytest.fixture(scope="module")
def rows() -> dict[str, pd.DataFrame]:
    """A planted sweep, and compressors beside it with one of its LLMs."""
    one, V = (P.size(P.zoo_size),), (1, 4, 9, 16, 36)
    few = planted.cells(P, ("quecc", "tokenpacker", "pool"), V, one, (0, 1))
    nested = planted.cells(P, ("mqt", "mqt_nested", "m3", "pool_after"), V, one, (0, 1))
    sweep = planted.cells(P, ("tokenpacker_nested",), P.V, P.sizes, (0, 1))
    return {"sweep": sweep, "zoo": pd.concat([few, nested], ignore_index=True), "few": few}


def test_figures_draw_what_evaluation_computes(rows):
    """A figure holds no statistics: its rows are those of `summary`, cell by cell."""
    drawn = figures.drawn(sweep_figures.errors(rows["sweep"], P))
    wanted = summary.by_family(rows["sweep"])
    pd.testing.assert_frame_equal(drawn[wanted.columns], wanted)
    drawn = figures.drawn(zoo_figures.errors(rows["few"], P))
    wanted = summary.by_family(rows["few"], ("compressor", "V"))
    pd.testing.assert_frame_equal(drawn[wanted.columns], wanted)


def test_every_v_measured_has_its_tick(rows):
    """Once 1, 9 and 36 had none: the theme's count of ticks thinned out the values that were given."""
    picture = io.StringIO()
    sweep_figures.errors(rows["sweep"], P).save(picture, format="svg")
    labels = re.findall(r">(\d+)</text>", picture.getvalue())
    assert {"0", "1", "4", "9", "16", "36", "144"} <= set(labels)
    axis = figures.tokens(pd.Series([1, 4, 16])).to_dict()
    assert axis["scale"]["type"] == "log" and axis["axis"]["values"] == [1, 4, 16]


def test_every_figure_of_the_zoo_can_be_drawn(rows):
    p, few = P, rows["few"]
    priced = compare.with_cost(few, p)
    patches = pd.DataFrame(
        {"compressor": "quecc", "question": "?", "x": [0, 1], "y": [0, 0], "weight": [1.0, 0]}
    )
    boxes = pd.DataFrame({"question": ["?"], "left": 0.0, "top": 0.0, "right": 0.5, "bottom": 0.5})
    image = np.zeros((2, 2, 3), np.uint8)
    charts = [
        sweep_figures.tasks(rows["sweep"], p),
        zoo_figures.tasks(few, p),
        zoo_figures.differences(compare.differences(few, planted.TASKS, "quecc"), "quecc"),
        zoo_figures.at_cost(priced, p),
        zoo_figures.frontier(priced, compare.frontier(priced), p),
        zoo_figures.ranked(rows["zoo"], p),
        zoo_figures.ranked(rows["zoo"], p, {"no image": 0.9, "told in words": 0.3}),
        zoo_figures.once_or_each(rows["zoo"], p),
        looks.attention_maps(patches, image, boxes, p),
    ]
    for chart in charts:
        assert len(figures.drawn(chart)) and figures.description(chart)
    assert figures.show(charts[3]).png.startswith(b"\x89PNG")


def test_the_title_names_who_loses_most_by_one_training():
    """Planted: one training costs QueCC .3 at one token, TokenPacker .1."""
    rows = pd.DataFrame(
        [
            {"compressor": f"{name}{kind}", "V": V, "error_reasoning": 0.5, "error_ocr": error}
            for name, loss in (("quecc", 0.3), ("tokenpacker", 0.1))
            for V, share in ((1, 1.0), (4, 0.5))
            for kind, error in (("", 0.2), ("_nested", 0.2 + share * loss))
        ]
    )
    where = {"profile": "smoke", "device": "d", "commit": "c"}
    title = figures.description(zoo_figures.once_or_each(rows.assign(**where), P))
    assert title.startswith("One training for every V costs quecc most: 0.30 more OCR-like error at V = 1")


def test_the_first_four_compressors_keep_their_colours():
    """Whoever else is drawn: the legend of one figure holds in the next."""

    def colours(names):
        scale = zoo_figures._colour(pd.Series(names)).to_dict()["scale"]
        return dict(zip(scale["domain"], scale["range"]))

    one = colours(["quecc", "tokenpacker", "seek"])
    other = colours(["pool", "m3", "lookup", "quecc", "mine"])
    assert one["quecc"] == other["quecc"] and len(set(other.values())) == 5
    assert {"quecc", "tokenpacker", "seek"} == set(one)
    assert len(colours(compressors.names())) == len(compressors.names())  # more than there are colours


def test_maps_that_move_are_named():
    weights = {"quecc": (0, 1), "pool": (1, 1)}
    rows = [
        {"compressor": name, "question": q, "x": 0, "y": 0, "weight": w}
        for name, pair in weights.items()
        for q, w in enumerate(pair)
    ]
    assert looks._moved(pd.DataFrame(rows)).endswith("maps move: quecc; maps stay: pool")


def test_the_ranking_says_what_each_is(rows):
    table = summary.ranking(rows["few"])
    assert table.columns[:3].tolist() == ["compressor", "reads", "idea"]
    first = table.columns[3]
    assert table[first].dropna().is_monotonic_increasing and (table["idea"].str.len() > 10).all()
    assert table.set_index("compressor").loc["quecc", "reads"] == "question"


def test_differences_are_coloured_by_their_intervals():
    """An interval above 0 is better, below 0 worse, across it neither; families stay in the table."""
    ends = {"lookup": (0.1, 0.2), "pool": (-0.2, -0.1), "quecc": (-0.1, 0.1)}
    rows = [
        {
            "compressor": name,
            "V": 1,
            "family": family,
            "difference": sum(pair) / 2,
            "low": pair[0],
            "high": pair[1],
            "p_holm": 0.01 if name == "pool" else 0.2,
        }
        for name, pair in ends.items()
        for family in ("reasoning", "all")
    ]
    chart = zoo_figures.differences(pd.DataFrame(rows), "tokenpacker")
    drawn = figures.drawn(chart)
    assert dict(zip(drawn["compressor"], drawn["interval"])) == dict(
        zip(ends, ("better", "worse", "no difference shown"))
    )
    said = figures.description(chart)
    assert len(drawn) == 3 and "1 of 3 are better, 1 are worse" in said
    assert "after Holm's correction 0 and 1" in said


def test_the_edges_of_a_ranking_are_what_no_image_and_words_give(rows):
    """Of the LLM that is asked about, and of that alone; without such rows there is no edge."""
    blind = rows["sweep"][rows["sweep"]["V"] == 0].assign(error_reasoning=0.9, error_ocr=0.7)
    blind.loc[blind["size"] != P.zoo_size, "error_ocr"] = 0.1
    parts = pd.DataFrame(
        {"size": ["tower", P.zoo_size], "error_reasoning": [0.0, 0.4], "error_ocr": [0.0, 0.2]}
    )
    edges = summary.edges(blind, parts, P.zoo_size)
    assert edges == pytest.approx({"no image": 0.8, "told in words": 0.3})
    assert summary.edges(blind.head(0), parts.head(0), P.zoo_size) == {}
