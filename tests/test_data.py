"""GridQA: same seed, same data; answers match the picture, nothing leaked; LLaVA's format read strictly."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

import vtc
from vtc import data, profiles


@pytest.fixture(scope="module")
def scenes():
    return data.make_scenes(200, "train", seed=1)


def test_same_seed_same_pixels_and_questions(scenes):
    again = data.make_scenes(200, "train", seed=1)
    assert (data.render(scenes, "train", 48) == data.render(again, "train", 48)).all()
    tasks = tuple(data.MAKERS)
    assert data.ask(scenes, tasks, "train", 3) == data.ask(again, tasks, "train", 3)
    assert data.ask(scenes, tasks, "train", 3) != data.ask(again, tasks, "train", 4)


def test_pixels_do_not_depend_on_which_rows_are_drawn(scenes):
    assert (data.render(scenes, "train", 48)[5:9] == data.render(scenes, "train", 48, range(5, 9))).all()


def test_every_object_is_drawn_where_it_stands(scenes):
    """The middle of an object's box differs from the dark ground, an empty corner does not."""
    images = data.render(scenes, "train", 96).astype(int)
    for i in range(50):
        for c in np.flatnonzero(scenes.kind[i] == 1):
            if data.SHAPES[scenes.shape[i, c]] == "ring":
                continue  # its middle is empty
            x, y, _ = scenes.box[i, c]
            pixel = images[i, min(int(y * 96), 95), min(int(x * 96), 95)]
            ink = np.array(list(data.COLORS.values())[scenes.color[i, c]])
            assert abs(pixel - ink).max() < 45


def _recount(scenes, q):
    """The answer found another way: straight from the arrays."""
    kind, shape, color = scenes.kind[q.image], scenes.shape[q.image], scenes.color[q.image]
    digits = [str(d) for d, k in zip(scenes.digit[q.image], kind) if k == 2]
    words = q.text.split()
    if q.task == "count":
        key = words[4]
        names = list(data.COLORS) if key in data.COLORS else list(data.SHAPES)
        values = color if key in data.COLORS else shape
        return str(sum(names[v] == key for v, k in zip(values, kind) if k == 1))
    return {
        "read": " ".join(digits),
        "digits": str(len(digits)),
        "max": max(digits, default=""),
        "sum": str(sum(map(int, digits[:2]))),
    }[q.task]


def test_answers_match_the_picture(scenes):
    asked = data.ask(scenes, ("count", "read", "digits", "max", "sum"), "train", 0)
    assert len(asked) > 700
    assert all(q.answer == _recount(scenes, q) for q in asked)


def test_spatial_answers_are_the_neighbour(scenes):
    for q in data.ask(scenes, ("spatial",), "train", 0):
        cells = {(r, c): d or f"{color} {shape}" for r, c, color, shape, d in scenes.cells(q.image)}
        what = " ".join(q.text.split()[-4:-2])
        (row, col) = next(at for at, said in cells.items() if said == what)
        where = q.text.removeprefix("what is ").split(" the ")[0]
        dr, dc = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[where]
        assert cells[row + dr, col + dc] == q.answer


def test_handwriting_and_facts_are_disjoint(scenes):
    train, test = (data.handwriting(split)[0] for split in ("train", "test"))
    assert not {g.tobytes() for g in train} & {g.tobytes() for g in test}
    asked = {s: data.ask(scenes, ("knowledge",), s, 0) for s in ("train", "test")}
    pairs = {}
    for split, questions in asked.items():
        pairs[split] = set()
        for q in questions:
            key = q.text.split()[3]
            ((color, shape),) = {c[2:4] for c in scenes.cells(q.image) if key in c[2:4]}
            assert q.answer == data.home(color, shape)
            pairs[split].add((color, shape))
    assert pairs["train"] and pairs["test"] and not pairs["train"] & pairs["test"]


def test_every_word_is_in_the_vocabulary(scenes):
    asked = [*data.ask(scenes, tuple(data.MAKERS), "text", 0), *data.facts()]
    words = {w for q in asked for w in f"{q.text} {q.answer}".split()}
    told = {w for i in range(200) for cell in data.in_words(scenes, i) for w in cell.split()}
    assert words | told <= set(data.WORDS)


def test_dense_labels_name_the_object_at_its_centre(scenes):
    form, tint = data.dense_labels(scenes, 12)
    for i in range(100):
        for c in np.flatnonzero(scenes.kind[i]):
            x, y, _ = scenes.box[i, c]
            at = int(y * 12) * 12 + int(x * 12)
            shape = scenes.kind[i, c] == 1
            assert form[i, at] == (1 + scenes.shape[i, c] if shape else 7 + scenes.digit[i, c])
            assert tint[i, at] == (1 + scenes.color[i, c] if shape else 0)


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


def test_validation_is_apart_from_training_and_test():
    """Findings F: choices need images of their own, with other scenes, in handwriting that no test shows."""
    made = {split: data.make_scenes(300, split, seed=3) for split in ("train", "test", "validation")}
    cells = {split: {str(s.cells(i)) for i in range(300)} for split, s in made.items()}
    assert not cells["validation"] & (cells["train"] | cells["test"])
    hands = {split: {g.tobytes() for g in data.handwriting(split)[0]} for split in made}
    assert hands["validation"] == hands["train"] and not hands["validation"] & hands["test"]
    asked = {split: data.ask(s, data.TASKS, split, seed=6, limit=20) for split, s in made.items()}
    assert [q.text for q in asked["validation"]] != [q.text for q in asked["test"]]


def test_test_questions_are_those_of_the_recorded_rows():
    """Recorded rows hold a score a question, so the questions of the first world must not change."""
    p = profiles.get("smoke")
    scenes = data.make_scenes(p.images_test, "test", seed=3)
    asked = data.ask(scenes, data.TASKS, "test", seed=6, limit=p.questions_test)
    text = "\n".join(f"{q.image}|{q.task}|{q.text}|{q.answer}" for q in asked)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("43b28a8c774c2232")
