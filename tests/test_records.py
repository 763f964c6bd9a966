"""Rows: found ones are not measured again, a kill loses none, and what is read equals what was written."""

import functools
import math
import os
import random
import signal
import string
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from vtc import InputError, profiles
from vtc.commands import record
from vtc.experiments import rows, store
from vtc.experiments.executor import WorkerError, spread

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


def endless(folder, case):
    """A measurement that is still under way when its parent is killed."""
    noted(folder, case)
    time.sleep(120)


def picky(case):
    """A measurement that fails for one case, as code or for bad input."""
    if case["V"] == 4:
        raise (InputError if case["seed"] else KeyError)("no four here")
    return half(case)


def suicidal(case):
    """A measurement whose process is killed, as by a system short of memory."""
    if case["V"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return half(case)


def made(folder):
    return (Path(folder) / "measured").read_text().splitlines()


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
    assert {"python", "torch", "transformers", "commit"} <= set(row.index)


def test_recorded_rows_are_read_and_never_written(profile, tmp_path):
    recorded = profile.results / "x.csv"
    store.table("x", profile, CASES[:1], half)
    profile.results.mkdir(parents=True)
    (profile.runs / "x.csv").rename(recorded)
    before = recorded.read_bytes()
    measure = functools.partial(noted, tmp_path)
    store.table("x", profile, CASES[:1], measure)
    assert not (tmp_path / "measured").exists()
    store.table("x", replace(profile, recompute=True), CASES[:1], measure)
    assert len(made(tmp_path)) == 1
    assert recorded.read_bytes() == before


def test_new_columns_widen_the_file_and_strange_ones_are_kept(profile):
    store.table("x", profile, CASES[:1], half)
    wide = store.table("x", profile, CASES[:2], lambda case: {"note": 'a, "b"\nc', "error": math.nan})
    assert wide.note.tolist()[1] == 'a, "b" c'
    assert wide.error.isna().tolist() == [False, True]
    assert store.stored("x", profile).V.tolist() == [1, 4]


def test_any_torn_end_costs_one_row_at_most(profile, tmp_path):
    store.table("x", profile, CASES, half)
    path = profile.runs / "x.csv"
    whole = path.read_bytes()
    expected = store.table("x", profile, CASES, None).drop(columns=["seconds", "date"])
    for cut in range(0, len(whole), 7):  # wherever the disk stopped
        path.write_bytes(whole[:cut])
        kept = len(store.stored("x", profile))
        assert kept >= whole[:cut].count(b"\n") - 1
        store.table("x", profile, CASES, half)
        again = store.table("x", profile, CASES, None).drop(columns=["seconds", "date"])
        pd.testing.assert_frame_equal(again, expected)


def test_an_unfinished_group_of_rows_is_measured_again(profile):
    store.table("x", profile, CASES[:2], lambda case: [{"task": t, "error": 0.5} for t in "abc"])
    path = profile.runs / "x.csv"
    path.write_bytes(path.read_bytes().rstrip(b"\n").rpartition(b"\n")[0] + b"\n")  # the last row is gone
    assert len(store.stored("x", profile)) == 3
    again = store.table("x", profile, CASES[:2], lambda case: [{"task": t, "error": 0.5} for t in "abc"])
    assert again.task.tolist() == list("abcabc")


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
    texts = rows.read(profile.runs / "x.csv")
    for case, value, copy, row in zip(cases, found["value"], found["copy"], texts):
        exact = rows.from_text(row["value"])
        assert exact == case["value"] and type(exact) is type(case["value"])
        assert value == copy or (pd.isna(value) and pd.isna(copy))
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
    assert (store.stored("x", profile).V == 1).all()


def test_cases_are_begun_in_their_order():
    done = [case["V"] for case, _ in spread(half, iter([{"V": v} for v in range(5)]), workers=1)]
    assert done == list(range(5))
    failed = [r for _, r in spread(picky, iter(CASES), workers=1) if isinstance(r, WorkerError)]
    assert len(failed) == 1  # nothing is begun after an error
    assert "picky" in str(failed[0])  # the worker's own trace


SWEEP = """
import functools, sys
sys.path.insert(0, {tests!r})
import test_records as t
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
    both = [sweep(1), sweep(1)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(rows_of_sweep()) == len(made(tmp_path)) == 12
    assert len({line.split()[2] for line in made(tmp_path)}) == 2  # both did some


def test_the_newest_claim_counts_and_repeating_it_adds_nothing(profile):
    store.claim(profile, "ratio", "error falls five times faster with N", 4.7, 4.1, 3.9, 4.4, "open", "v1")
    store.claim(profile, "few", "one token wins", "1", 4, verdict="open")
    store.claim(profile, "ratio", "error falls five times faster with N", 4.7, 4.6, 4.1, 5.3, "held", "v1")
    size = (profile.runs / "claims.csv").stat().st_size
    store.claim(profile, "ratio", "error falls five times faster with N", 4.7, 4.6, 4.1, 5.3, "held", "v1")
    assert (profile.runs / "claims.csv").stat().st_size == size
    found = store.claims(profile)
    assert found.id.tolist() == ["ratio", "few"]
    assert found.ours.tolist() == [4.6, 4] and found.verdict.tolist() == ["held", "open"]


def test_record_merges_by_key_keeps_the_newer_and_sorts(profile, capsys):
    old = [{"V": "10", "e": "1"}, {"V": "9", "e": "1"}, {"V": "4", "e": "1", "date": "2030"}]
    new = [{"V": "9", "e": "2"}, {"V": "1", "e": "2"}, {"V": "4", "e": "2", "date": "2020"}]
    for path, texts in ((profile.results / "x.csv", old), (profile.runs / "x.csv", new)):
        filled = [
            {"date": "2025" if texts is new else "2024", "key": "V", "rows": "1"} | row for row in texts
        ]
        rows.write(path, filled, ["V", "e", "date", "key", "rows"])
    profile.figures.mkdir()
    (profile.figures / "02_x.svg").write_text("<svg/>")
    args = type("Args", (), {"profile": "smoke", "name": ""})
    assert record.main(args) == 0
    assert "x.csv: 1 added, 1 replaced" in capsys.readouterr().out
    merged = rows.read(profile.results / "x.csv")
    assert [(row["V"], row["e"]) for row in merged] == [("1", "2"), ("4", "1"), ("9", "2"), ("10", "1")]
    assert (profile.recorded_figures / "02_x.svg").read_text() == "<svg/>"
    before = (profile.results / "x.csv").read_bytes()
    assert record.main(args) == 0  # a second time changes nothing
    assert (profile.results / "x.csv").read_bytes() == before


def test_record_without_rows_says_what_to_do(profile):
    with pytest.raises(InputError, match="vtc reproduce"):
        record.main(type("Args", (), {"profile": "smoke", "name": ""}))
