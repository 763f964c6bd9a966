"""The short form of `make faults`: three kills of a sweep, two inside a write, then a full disk."""

import faults


def test_a_killed_sweep_ends_with_the_rows_of_an_unbroken_one(tmp_path):
    unbroken, tally = faults.sweep(tmp_path, total=3, inside=2, words=(*faults.SWEEP, "--V", "1"))
    assert tally.harmless and tally.kills >= 3 and tally.inside >= 2, tally
    faults.full_disk(tmp_path, unbroken, ("checkpoint", "figure"))


def test_a_kill_inside_the_writing_of_a_figure_leaves_the_old_one(tmp_path):
    assert faults.figures(tmp_path, total=1) == faults.Tally(kills=1, inside=1)
