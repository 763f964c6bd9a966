"""Rows: found ones are not measured again, a kill loses none, and what is read equals what was written."""

import functools
import json
import math
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from vtc import InputError, __main__, files, profiles
from vtc.experiments import executor, provenance, store
from vtc.experiments import record as recording

CASES = [{"compressor": "mean", "V": v, "seed": s} for s in (0, 1) for v in (1, 4)]


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A profile whose rows, measured and recorded, live in an empty folder."""
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    return profiles.get("smoke")


def half(case):
    """A measurement."""
    return {"error": case["V"] / 3}


def noted(folder, case):
    """A measurement that leaves a trace of having been made, and by whom."""
    with (Path(folder) / "measured").open("a") as file:
        file.write(f"{case['V']} {case['seed']} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")
    return half(case)


def slow(folder, case):
    """A measurement that takes long enough to be killed in."""
    time.sleep(0.25)
    return noted(folder, case)


def in_company(folder, case):
    """A measurement that begins only once two programs are at work."""
    (Path(folder) / f"here-{os.getpid()}").touch()
    wait_for(lambda: len(list(Path(folder).glob("here-*"))) == 2)
    return slow(folder, case)


def endless(folder, case):
    """A measurement that is still under way when its parent is killed."""
    noted(folder, case)
    time.sleep(120)


def picky(case):
    """A measurement that fails for one case, as code or for bad input."""
    if case["V"] == 4:
        raise (InputError if case["seed"] else KeyError)("no four here")
    return half(case)


def picky_and_slow(case):
    """Fails at once for one case, and takes its time for the others."""
    if case["V"] != 4:
        time.sleep(0.3)
    return picky(case)


def suicidal(case):
    """A measurement whose process is killed, as by a system short of memory."""
    if case["V"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return half(case)


def made(folder):
    return (Path(folder) / "measured").read_text().splitlines()


def files_of(profile, stem="x"):
    return sorted(store.folder(stem, profile).glob("*.json"))


def test_only_missing_cases_are_measured(profile, tmp_path):
    measure = functools.partial(noted, tmp_path)
    first = store.table("x", profile, CASES[:2], measure)
    again = store.table("x", profile, CASES, measure)
    assert [line.split()[:2] for line in made(tmp_path)] == [["1", "0"], ["4", "0"], ["1", "1"], ["4", "1"]]
    pd.testing.assert_frame_equal(first, again.iloc[:2])
    assert list(again.columns[:4]) == ["compressor", "V", "seed", "error"]
    assert again.error.tolist() == [1 / 3, 4 / 3, 1 / 3, 4 / 3]  # exact through the file


def test_a_changed_field_is_another_case(profile, tmp_path):
    measure = functools.partial(noted, tmp_path)
    base = {"V": 1, "seed": 0}
    same = [{"seed": 0, "V": 1.0}, base | {"k": None}]
    other = [base | {"k": k} for k in (1, 2, True, "1 ")]
    for case in [base, *same, *other]:
        store.table("x", profile, [case], measure)
    assert len(made(tmp_path)) == 1 + len(other)


def test_a_changed_number_of_the_recipe_leaves_old_rows_weights_and_features_unused(profile, tmp_path):
    measure = functools.partial(noted, tmp_path)
    changes = [
        {},
        {"recipe": replace(profile.recipe, instruct=replace(profile.recipe.instruct, steps=7))},
        {"tower": replace(profile.tower, d=64)},
        {"sizes": (replace(profile.sizes[0], d_ff=64), *profile.sizes[1:])},
        {"images_train": 129},
        {"world": replace(profile.world, lands=31)},
        {"data_version": "another world"},
    ]
    for n, change in enumerate(changes):
        changed = replace(profile, **change)
        assert store.stored("x", changed).empty and not changed.cache.exists()
        changed.cache.mkdir(parents=True)  # as weights and features would
        store.table("x", changed, CASES[:1], measure)
        assert len(made(tmp_path)) == n + 1 and len(store.stored("x", changed)) == 1
    store.table("x", profile, CASES[:1], measure)  # the old ones are there for the old recipe
    same = replace(profile, seeds=(5,), workers=1, note="which cases, where and how, but not their results")
    store.table("x", same, CASES[:1], measure)
    assert len(made(tmp_path)) == len(changes)


def test_a_table_free_of_the_recipe_keeps_its_rows(profile, tmp_path):
    measure = functools.partial(noted, tmp_path)
    changed = replace(profile, data_version="another world")
    for p in (profile, changed):
        store.table("x", p, CASES[:1], measure, recipe_free=True)
    assert len(made(tmp_path)) == 1 and len(store.stored("x", changed)) == 1


def test_rows_come_in_the_order_of_the_cases_with_all_of_a_case(profile):
    def several(case):
        return [{"task": task, "error": case["V"]} for task in ("read", "count")]

    store.table("x", profile, CASES, several)
    found = store.table("x", profile, CASES[::-1], None)
    assert found.V.tolist() == [4, 4, 1, 1, 4, 4, 1, 1]
    assert found.task.tolist() == ["read", "count"] * 4


def test_provenance_is_written_and_a_measurement_may_overrule_it(profile):
    row = store.table("x", profile, CASES[:1], lambda case: {"device": "abacus", "dtype": "bfloat16"}).iloc[0]
    assert (row["device"], row["dtype"], row["profile"]) == ("abacus", "bfloat16", "smoke")
    assert row.seconds >= 0 and row.date.endswith("+00:00")
    assert row.recipe == profile.fingerprint and row.data == profile.data_version
    assert {"python", "torch", "transformers", "commit"} <= set(row.index)


def test_without_git_the_commit_is_what_the_run_was_told(profile, monkeypatch):
    monkeypatch.setenv("VTC_COMMIT", "1234567")
    provenance.commit.cache_clear()
    row = store.table("x", profile, CASES[:1], half).iloc[0]  # its root is no checkout
    provenance.commit.cache_clear()
    assert row.commit == "1234567"  # a word, not a number


def test_weights_have_one_hash():
    torch = pytest.importorskip("torch")
    weights = {"a": torch.zeros(2, 3), "b": torch.ones((), dtype=torch.bfloat16)}
    same = provenance.weights_hash(weights)
    assert provenance.weights_hash(dict(reversed(weights.items()))) == same
    for change in ({"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).half()}, {"b": weights["b"] * 2}):
        assert provenance.weights_hash(weights | change) != same


def test_recorded_rows_are_read_and_never_written(profile, tmp_path):
    store.table("x", profile, CASES[:1], half)
    record_csv(profile)
    recorded = profile.results / "x.csv"
    before = recorded.read_bytes()
    measure = functools.partial(noted, tmp_path)
    store.table("x", profile, CASES[:1], measure)
    assert not (tmp_path / "measured").exists()
    store.table("x", replace(profile, recompute=True), CASES[:1], measure)
    assert len(made(tmp_path)) == 1
    assert recorded.read_bytes() == before


def record_csv(profile, stem="x"):
    """The run's rows as the recorded ones, whatever their commit; the run's go."""
    cases = list(store.measured(stem, profile).values())
    recording.write_csv(profile.results / f"{stem}.csv", {stem: cases}, named=False)
    shutil.rmtree(store.folder(stem, profile))


def test_a_case_that_was_torn_or_damaged_is_measured_again_and_whole(profile):
    """What the first edition could hold, half a case, cannot be: wherever a write ends, all or none."""

    def three(case):
        return [{"task": task, "error": 0.5} for task in "abc"]

    store.table("x", profile, CASES[:2], three)
    first, second = files_of(profile)
    whole = first.read_bytes()
    for cut in range(0, len(whole), 97):  # by something else than this program: it writes whole files
        first.write_bytes(whole[:cut])
        assert store.stored("x", profile).task.tolist() == list("abc")
        store.table("x", profile, CASES[:2], three)
        assert [row["task"] for row in json.loads(first.read_text())["rows"]] == list("abc")
    assert files_of(profile) == [first, second]
    assert store.stored("x", profile).task.tolist() == list("abcabc")


def test_a_measurement_of_another_number_of_rows_replaces_the_case(profile):
    p = replace(profile, recompute=True)
    store.table("x", p, CASES[:1], lambda case: [{"error": 1}, {"error": 2}])
    files_of(p)[0].unlink()
    store.table("x", p, CASES[:1], lambda case: [{"error": 3}])
    assert store.stored("x", p).error.tolist() == [3]


def test_what_stops_a_write_leaves_the_case_for_the_next_time(profile, monkeypatch):
    def torn(path, content):
        with files.replacing(path) as part:
            part.write_text(content[: len(content) // 2])
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "write", torn)
    with pytest.raises(KeyboardInterrupt):
        store.table("x", profile, CASES, half)
    assert not list(store.folder("x", profile).glob("*.json")) and store.stored("x", profile).empty
    assert not list(store.folder("x", profile).glob(".*.part"))
    monkeypatch.undo()


def test_strange_values_are_kept(profile):
    store.table("x", profile, CASES[:1], half)
    wide = store.table("x", profile, CASES[:2], lambda case: {"note": 'a, "b"\nc', "error": math.nan})
    assert wide.note.tolist()[1] == 'a, "b" c'
    assert wide.error.isna().tolist() == [False, True]
    assert store.stored("x", profile).V.tolist() == [1, 4]


def test_values_come_back_as_they_went(profile):
    draw = random.Random(0)
    letters = string.printable.replace("\n", "").replace("\r", "") + "äß中"
    makers = [
        lambda: draw.randint(-(10**18), 10**18),
        lambda: draw.random() * 10 ** draw.randint(-300, 300),
        lambda: draw.choice([True, False, None, math.inf, -math.inf]),
        lambda: "w" + "".join(draw.choices(letters, k=draw.randint(0, 12))),
    ]
    cases = [{"id": i, "value": draw.choice(makers)()} for i in range(200)]
    found = store.table("x", profile, cases, lambda case: {"copy": case["value"]})
    assert found["value"].astype(object).equals(found["copy"].astype(object))
    record_csv(profile)
    for case, again in zip(cases, store.read_csv(profile.results / "x.csv").values()):
        exact = again["rows"][0]["copy"]
        assert exact == case["value"] and type(exact) is type(case["value"])
    store.table("x", profile, cases, lambda case: pytest.fail("a row was not found again"))


def test_equal_cases_are_refused(profile):
    with pytest.raises(InputError, match="x: 2 cases, but only 1 differ"):
        store.table("x", profile, [{"V": 1}, {"V": 1.0}], half)


def test_workers_measure_the_same_rows_in_processes_of_one_thread(profile, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    alone = store.table("alone", profile, CASES, half)
    together = store.table("x", profile, CASES, functools.partial(slow, tmp_path), workers=2)
    pd.testing.assert_series_equal(alone.error, together.error)
    pids, threads = zip(*[line.split()[2:] for line in made(tmp_path)])
    assert len(set(pids)) == 2 and str(os.getpid()) not in pids
    assert set(threads) == {"1"} and "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_case_is_named_and_the_others_stay(profile, workers):
    good, bad = {"V": 1, "seed": 0}, {"V": 4, "seed": 0}
    with pytest.raises(RuntimeError, match=r"^KeyError: 'no four here' \(x, case V=4, seed=0\)"):
        store.table("x", profile, [good, bad], picky, workers=workers)
    assert store.stored("x", profile).V.tolist() == [1]
    with pytest.raises(InputError, match=r"^no four here \(x, case V=4, seed=1\)"):
        store.table("x", profile, [bad | {"seed": 1}], picky, workers=workers)


def test_a_killed_worker_is_reported_with_its_case(profile):
    with pytest.raises(RuntimeError, match=r"out of memory\?.*V=4, seed="):
        store.table("x", profile, CASES, suicidal, workers=2)
    left = store.stored("x", profile)  # the other worker may have been ended in the middle of V = 1
    assert left.empty or (left.V == 1).all()


def test_cases_are_begun_in_their_order_and_none_after_an_error():
    done = [case["V"] for case, _ in executor.run(half, [{"V": v} for v in range(5)], workers=2)]
    assert sorted(done) == list(range(5))
    done = []
    with pytest.raises(KeyError, match="no four here"):
        cases = [{"V": v, "seed": 0} for v in (4, 4, *range(5, 30))]
        for case, _ in executor.run(picky_and_slow, cases, workers=2):
            done.append(case["V"])
    assert len(done) < 5  # those under way, and what a worker had been handed before


SWEEP = """
import functools, sys
sys.path.insert(0, {tests!r})
import test_store as t
from vtc import profiles
from vtc.experiments import store
if __name__ == "__main__":
    cases = [{{"V": v, "seed": s}} for s in range(3) for v in range(4)]
    measure = functools.partial(t.{measure}, {folder!r})
    store.table("x", profiles.get("smoke"), cases, measure, workers={workers})
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Starts a sweep of 12 cases in a process of its own; `.wait()` for its end or kill it."""
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))

    def start(workers=1, measure="slow"):
        script = tmp_path / f"{measure}{workers}.py"
        tests, folder = str(Path(__file__).parent), str(tmp_path)
        script.write_text(SWEEP.format(tests=tests, folder=folder, measure=measure, workers=workers))
        return subprocess.Popen([sys.executable, script])

    return start


def rows_of_sweep():
    return store.stored("x", profiles.get("smoke", recompute=True))


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition()


@pytest.mark.parametrize("workers", [1, 2])
def test_sigkill_at_three_moments_ends_with_the_same_rows(sweep, tmp_path, workers):
    for goal in (2, 5, 8):
        process = sweep(workers)
        while len(rows_of_sweep()) < goal:
            assert process.poll() is None, "the sweep ended by itself"
            time.sleep(0.1)
        process.kill()
        process.wait()
    assert sweep(workers).wait() == 0
    found = rows_of_sweep()
    assert sorted(zip(found.seed, found.V)) == [(s, v) for s in range(3) for v in range(4)]
    assert (found.error == found.V / 3).all()
    assert len(made(tmp_path)) <= 12 + 3 * workers  # a kill loses the cases in flight at most


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_workers_end_with_a_killed_parent(sweep, tmp_path):
    process = sweep(2, "endless")
    wait_for(lambda: (tmp_path / "measured").exists() and len(made(tmp_path)) == 2)
    workers = {int(line.split()[2]) for line in made(tmp_path)}
    process.kill()
    process.wait()

    def gone(pid):
        try:
            return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return True

    wait_for(lambda: all(map(gone, workers)), seconds=60)


def test_two_programs_share_a_sweep_without_measuring_twice(sweep, tmp_path):
    both = [sweep(measure="in_company") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(rows_of_sweep()) == len(made(tmp_path)) == 12
    assert len({line.split()[2] for line in made(tmp_path)}) == 2  # both did some


# --- what is recorded ---


def recorded(*words):
    return __main__.main(["record", "--profile", "smoke", *words])


@pytest.fixture
def committed(profile, monkeypatch):
    """The profile, with code that is committed."""
    monkeypatch.setenv("VTC_COMMIT", "1234567")
    provenance.commit.cache_clear()
    yield profile
    provenance.commit.cache_clear()


def test_record_merges_case_by_case_keeps_the_newer_and_sorts(committed, capsys):
    def dated(date, error):
        return lambda case: {"date": date, "error": error}

    cases = [{"V": v} for v in (10, 9, 4)]
    store.table("x", committed, cases, dated("2024", 1))
    old = replace(committed, data_version="an earlier one")
    store.table("x", old, [{"V": 7}], half)
    recording.write_csv(
        committed.results / "x.csv",
        {"x": [*store.measured("x", committed).values()]},
        named=False,
    )
    shutil.rmtree(store.folder("x", committed))
    fresh = replace(committed, recompute=True)
    store.table("x", fresh, [{"V": 9}, {"V": 1}], dated("2025", 2))
    store.table("x", fresh, [{"V": 4}], dated("2020", 2))
    committed.figures.mkdir()
    (committed.figures / "02_x.svg").write_text("<svg/>")
    assert recorded() == 0
    assert "x.csv: 1 added, 1 replaced, 1 of another recipe left out" in capsys.readouterr().out
    merged = [case["rows"][0] for case in store.read_csv(committed.results / "x.csv").values()]
    assert [(row["V"], row["error"]) for row in merged] == [(1, 2), (4, 1), (9, 2), (10, 1)]
    assert (committed.recorded_figures / "02_x.svg").read_text() == "<svg/>"
    before = (committed.results / "x.csv").read_bytes()
    assert recorded() == 0  # a second time changes nothing
    assert (committed.results / "x.csv").read_bytes() == before


@pytest.mark.parametrize("commit, said", [("1234567-dirty", "uncommitted code"), ("", "code of no commit")])
def test_record_refuses_what_comes_from_uncommitted_code(profile, capsys, commit, said):
    store.table("x", profile, CASES[:1], lambda case: {"commit": "7654321"})
    store.table("x", profile, CASES[:2], lambda case: {"commit": commit})
    assert recorded() == 2
    told = capsys.readouterr().err
    assert told.startswith(f"vtc: x, case compressor=mean, V=4, seed=0: made from {said}")
    assert told.count("\n") == 1 and not profile.results.exists()


def test_record_refuses_seeds_that_the_profile_did_not_plan(committed, capsys):
    store.table("x", committed, [{"V": 4, "seed": 9}], half)
    assert recorded() == 2
    assert "x, case V=4, seed=9: seed 9 is not in the plan of profile smoke (0)" in capsys.readouterr().err
    assert not committed.results.exists()


def test_rows_of_another_machine_come_in_one_file(committed, tmp_path, capsys):
    planned = [case for case in CASES if case["seed"] == 0]
    store.table("x", committed, planned, lambda case: [{"task": t, "error": 0.1} for t in "ab"])
    store.table("clock", committed, [{"V": "1 4", "on": True}], lambda case: {"ms": 2.5}, recipe_free=True)
    before = {stem: store.stored(stem, committed).dropna(axis=1) for stem in ("x", "clock")}
    assert recorded("--csv", str(tmp_path / "all.csv")) == 0
    assert "2 cases" not in capsys.readouterr().out and not committed.results.exists()
    shutil.rmtree(committed.runs)
    assert recorded("--from", str(tmp_path / "all.csv")) == 0
    for stem, rows in before.items():
        pd.testing.assert_frame_equal(store.stored(stem, committed), rows, check_like=True)
    assert recorded("--from", str(tmp_path / "none.csv")) == 2
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert recorded("--from", str(tmp_path / "other.csv")) == 2  # another kind of CSV: no column key


def test_record_without_rows_says_what_to_do(profile, capsys):
    assert recorded() == 2
    assert "vtc reproduce" in capsys.readouterr().err


def test_a_sweep_is_not_started_by_torchrun(profile, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        store.table("x", profile, [{"a": 1}], lambda case: {"b": 2})
