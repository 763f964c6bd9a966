"""People's own data: files of any size, row by row; what is wrong is named with its row and field."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vtc import InputError
from vtc.data import llava
from vtc.data.images import listed, load_image

TURNS = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a red one"}]
MORE = [{"from": "human", "value": "and where ?"}, {"from": "gpt", "value": "left"}]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        Image.new("RGB", (20, 10), "red").save(folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def talk(image=None, turns=TURNS):
    return {"conversations": turns} | ({"image": image} if image else {})


def write(path, entries):
    body = "\n".join(map(json.dumps, entries)) if path.suffix == ".jsonl" else json.dumps(entries, indent=1)
    path.write_text(body)
    return path


@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl"])
@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
def test_rows_come_back_whatever_the_chunk(tmp_path, images, monkeypatch, name, chunk):
    monkeypatch.setattr(llava, "CHUNK", chunk)
    entries = [talk("a.png", TURNS + MORE), talk(), talk("deep/b.png", [*TURNS]) | {"id": 'ü\\"]}'}] * 20
    file = write(tmp_path / name, entries)
    assert [row for _, row in llava.rows(file)] == entries
    said = llava.read_llava(file, images)
    assert len(said) == 60 and said[1].image is None
    assert said[0].turns == (("what is it ?", "a red one"), ("and where ?", "left"))  # one conversation
    assert said[2].image == images / "deep" / "b.png"


def test_a_table_of_questions_is_read_in_one_call(tmp_path, images):
    (tmp_path / "vqa.csv").write_text("image,question,answer\na.png,how many ?,2\n,who ?,nobody\n")
    write(tmp_path / "vqa.json", [{"image": "a.png", "question": "how many ?", "answer": 2}])
    write(tmp_path / "vqa.jsonl", [{"image": "a.png", "question": "how many ?", "answer": "2"}])
    for name in ("vqa.csv", "vqa.json", "vqa.jsonl"):
        first, *rest = llava.read_llava(tmp_path / name, images)
        assert first.turns == (("how many ?", "2"),) and first.image == images / "a.png"
        assert all(said.image is None for said in rest)
    (tmp_path / "vqa.csv").write_text("image,question,answer\na.png,,2\n")
    with pytest.raises(InputError, match='entry 0: field "question"'):
        llava.read_llava(tmp_path / "vqa.csv", images)


@pytest.mark.parametrize(
    "body, words",
    [
        ("[{]", "row 0"),
        ('[{"a": 1}, {"b" 2}, {"c": 3}]', "row 1"),
        ('[{"a": 1}, {"b": 2', "cut off"),
        ('[{"a": "never closed}]', "row 0"),
        ("{}", "JSON list"),
        ("", "JSON list"),
    ],
)
def test_what_is_no_json_names_its_row(tmp_path, body, words):
    (tmp_path / "bad.json").write_text(body)
    with pytest.raises(InputError, match=words):
        list(llava.rows(tmp_path / "bad.json"))


def test_a_wrong_row_in_a_long_file_is_found_without_reading_on(tmp_path, monkeypatch):
    """A comma that is missing must not make every later chunk be decoded again."""
    monkeypatch.setattr(llava, "CHUNK", 1000)
    body = json.dumps([talk()] * 2000)
    (tmp_path / "bad.json").write_text('[{"a" 1}, ' + body[1:])
    with pytest.raises(InputError, match="row 0"):
        list(llava.rows(tmp_path / "bad.json"))


def test_bad_rows_stop_or_are_skipped(tmp_path, images):
    file = write(
        tmp_path / "talk.json", [talk("a.png"), talk("gone.png"), talk(["a.png", "deep/b.png"]), talk()]
    )
    with pytest.raises(InputError, match="entry 1: .*'gone.png'"):
        llava.read_llava(file, images)
    assert len(llava.read_llava(file, images, bad="skip")) == 2
    with pytest.raises(InputError, match="stop or skip"):
        llava.read_llava(file, images, bad="maybe")
    with pytest.raises(InputError, match="2 images"):
        llava.read_llava(write(tmp_path / "two.json", [talk(["a.png", "deep/b.png"])]), images)
    with pytest.raises(InputError, match="none that can be used"):
        llava.read_llava(write(tmp_path / "none.json", [talk("gone.png")]), images, bad="skip")


def test_a_check_counts_everything_and_names_the_first_problems(tmp_path, images):
    entries = (
        [talk("a.png")] * 30 + [talk()] * 5 + [talk(f"gone{i}.png") for i in range(9)] + [talk("broken.png")]
    )
    report = llava.check(write(tmp_path / "talk.json", entries), images)
    assert (report.rows, report.with_image, report.text_only, report.turns) == (45, 31, 5, 36)
    assert report.bad == 10 and len(report.shown) == llava.SHOWN and "entry 35" in report.shown[0]
    assert report.opened == 2  # a.png and broken.png, each once
    assert any("and 5 more" in line for line in report.lines())
    fine = llava.check(write(tmp_path / "fine.json", entries[:30]), images)
    assert fine.bad == 0 and "nothing wrong" in fine.lines()


def test_the_sample_of_opened_images_is_uniform(tmp_path, images):
    for i in range(40):
        Image.new("RGB", (4, 4)).save(images / f"{i}.png")
    file = write(tmp_path / "talk.json", [talk(f"{i}.png") for i in range(40)])
    (images / "39.png").write_bytes(b"broken")
    found = sum(llava.check(file, images, opened=10, seed=seed).bad for seed in range(200))
    assert 25 <= found <= 80  # 50 expected: a quarter of the images are opened


def test_folders_are_listed_once(images):
    assert listed(images) == {"a.png", "deep/b.png", "broken.png"}
    with pytest.raises(InputError, match="folder is not there"):
        listed(images / "nowhere")


def test_images_become_squares_as_llava_makes_them(images):
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (0, 0, 10, 20))
    picture.save(images / "wide.png")
    padded = load_image(images / "wide.png", 40, fit="pad")
    assert (padded[0] == (122, 116, 104)).all() and (padded[20, 30] == (255, 0, 0)).all()
    cropped = load_image(images / "wide.png", 40, fit="crop")
    assert (cropped == (255, 0, 0)).all(-1).mean() > 0.9  # the blue edge is cut off
    assert np.array_equal(load_image(images / "wide.png", 40), load_image(images / "wide.png", 40, "resize"))
    with pytest.raises(InputError, match="fit"):
        load_image(images / "wide.png", 40, "stretch")


def test_the_check_of_the_command_line(tmp_path, images, capsys):
    from vtc.__main__ import main as vtc

    words = ["train", "--profile", "smoke", "--check", "--images", str(images), "--data"]
    assert vtc([*words, str(write(tmp_path / "fine.json", [talk("a.png")]))]) == 0
    assert vtc([*words, str(write(tmp_path / "bad.json", [talk("gone.png")]))]) == 1
    said = capsys.readouterr().out
    assert "nothing wrong" in said and "entry 0" in said and "dry run" in said
