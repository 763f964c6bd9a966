"""Files and folders are replaced whole or not at all, whatever goes wrong on the way."""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vtc import InputError, files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_once(tmp_path):
    place = tmp_path / "new" / "x.json"
    files.write(place, "one")
    with files.replacing(place) as part:
        part.write_text("two")
        assert place.read_text() == "one"
    assert place.read_text() == "two" and names(place.parent) == ["x.json"]


@pytest.mark.parametrize("error", [ValueError("of the writer"), KeyboardInterrupt()])
def test_a_fault_leaves_the_old_file_and_nothing_else(tmp_path, error):
    files.write(tmp_path / "x", "old")
    with suppress(type(error)), files.replacing(tmp_path / "x") as part:
        part.write_text("half")
        raise error
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


def test_a_folder_is_replaced_and_files_of_others_stay(tmp_path):
    for words in ("one", "two"):
        with files.replacing(tmp_path / "model") as part:
            part.mkdir()
            (part / "weights").write_text(words)
        (tmp_path / "model" / "notes").write_text("mine")
    assert names(tmp_path / "model") == ["notes", "weights"] and names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "two"


@pytest.mark.parametrize("place", [".", "/", "file/x", "/proc/x"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(") as error:
        files.write(place, "x")
    assert "\n" not in str(error.value) and names(tmp_path) == ["file"]


def test_what_a_killed_program_left_goes_with_the_next_write(tmp_path, monkeypatch):
    (tmp_path / ".x.1234abcd.part").write_text("left")
    files.write(tmp_path / "x", "one")
    assert len(names(tmp_path)) == 2  # it may be at work still
    monkeypatch.setattr(files, "STALE_S", -1)
    files.write(tmp_path / "x", "two")
    assert names(tmp_path) == ["x"]


@pytest.fixture
def full_disk(tmp_path):
    """A disk of 64 kB that holds one file and has 20 kB left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.decode().strip()}")
    (disk / "filler").write_bytes(b"x" * 40_000)
    files.write(disk / "x", "old")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("kind", ["bytes", "tensors"])
def test_a_full_disk_is_one_line_and_the_old_file_stays(full_disk, kind):
    with pytest.raises(InputError, match=r"disk/x: cannot be written \(No space left on device\)$"):
        with files.replacing(full_disk / "x") as part:
            if kind == "bytes":
                part.write_bytes(b"y" * 60_000)
            else:
                save_file({"w": torch.zeros(15_000)}, part)
    assert names(full_disk) == ["filler", "x"] and (full_disk / "x").read_text() == "old"


def test_a_lock_is_held_by_one_and_let_go(tmp_path):
    with files.file_lock(tmp_path / "x", wait=False) as first:
        with files.file_lock(tmp_path / "x", wait=False) as second:
            assert first and not second
    with files.file_lock(tmp_path / "x") as again:
        assert again


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_stays_whole_where_the_exchange_fails(tmp_path, monkeypatch, swaps):
    """Linux exchanges two folders in one step; elsewhere the first of two renames is undone."""
    with files.replacing(tmp_path / "model") as part:
        part.mkdir()
        (part / "weights").write_text("old")
    if not swaps:
        monkeypatch.setattr(files, "_swapped", lambda one, other: False)
        move, calls = Path.rename, []

        def rename(self, target):
            calls.append(target)
            if len(calls) == 2:  # the new folder cannot take its place
                raise OSError(5, "Input/output error")
            return move(self, target)

        monkeypatch.setattr(Path, "rename", rename)
        with (
            pytest.raises(InputError, match="cannot be written"),
            files.replacing(tmp_path / "model") as part,
        ):
            part.mkdir()
            (part / "weights").write_text("new")
        assert (tmp_path / "model" / "weights").read_text() == "old" and names(tmp_path) == ["model"]
        return
    assert files._swapped(tmp_path / "model", tmp_path / "none") is False  # nothing to exchange with
    with files.replacing(tmp_path / "model") as part:
        part.mkdir()
        (part / "weights").write_text("new")
    assert (tmp_path / "model" / "weights").read_text() == "new" and names(tmp_path) == ["model"]


def test_a_neighbour_that_vanishes_meanwhile_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / ".x.gone.part"])
    files.write(tmp_path / "x", "one")
    assert (tmp_path / "x").read_text() == "one"
