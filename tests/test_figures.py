"""What is drawn is what is saved; pictures need no network and say what they are made from."""

import re

import altair as alt
import pandas as pd
import pytest

from vtc import figures, profiles

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
