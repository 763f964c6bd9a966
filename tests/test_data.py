"""LLaVA's format and images, read strictly."""

import json

import pytest
from PIL import Image

import vtc
from vtc import data


def _llava(tmp_path, entries):
    (tmp_path / "images").mkdir(exist_ok=True)
    Image.new("RGB", (9, 7), "red").save(tmp_path / "images" / "a.png")
    file = tmp_path / "talk.json"
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return file, tmp_path / "images"


TURNS = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a red one"}]


def test_llava_format_is_read(tmp_path):
    file, folder = _llava(tmp_path, [{"image": "a.png", "conversations": TURNS}, {"conversations": TURNS}])
    first, second = data.read_llava(file, folder)
    assert first.turns == (("what is it ?", "a red one"),) and first.image.name == "a.png"
    assert second.image is None
    assert data.load_image(first.image, 48).shape == (48, 48, 3)


@pytest.mark.parametrize(
    "entries, said",
    [
        ("not json", "not readable as JSON"),
        ({"a": 1}, "non-empty JSON list"),
        ([], "non-empty JSON list"),
        ([{"image": "a.png"}], 'entry 0: field "conversations"'),
        (
            [{"conversations": TURNS}, {"image": "b.png", "conversations": TURNS}],
            "entry 1: field \"image\": 'b.png'",
        ),
        ([{"conversations": TURNS[:1]}], "alternate"),
        ([{"conversations": [{"from": "cat", "value": "x"}, TURNS[1]]}], "human or gpt"),
        ([{"image": 3, "conversations": TURNS}], 'field "image"'),
    ],
)
def test_what_is_not_llava_is_said_in_one_line(tmp_path, entries, said):
    file, folder = _llava(tmp_path, entries)
    with pytest.raises(vtc.InputError) as error:
        data.read_llava(file, folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_missing_folder_file_and_broken_image(tmp_path):
    file, folder = _llava(tmp_path, [{"conversations": TURNS}])
    with pytest.raises(vtc.InputError, match="image folder is not there"):
        data.read_llava(file, tmp_path / "nowhere")
    with pytest.raises(vtc.InputError, match="file is not there"):
        data.read_llava(tmp_path / "no.json", folder)
    (folder / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(vtc.InputError, match="not readable as an image"):
        data.load_image(folder / "bad.png", 48)
    with pytest.raises(vtc.InputError, match="image is not there"):
        data.load_image(folder / "none.png", 48)
