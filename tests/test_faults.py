"""The short form of `make faults`: three kills of a sweep, two inside a write, then a full disk."""

import faults


def test_a_killed_sweep_ends_with_the_rows_of_an_unbroken_one(tmp_path):
    unbroken = faults.sweep(tmp_path, total=3, inside=2, words=(*faults.SWEEP, "--V", "1"))
    faults.full_disk(tmp_path, unbroken, ("checkpoint", "figure"))
