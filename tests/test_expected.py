"""What was expected of the zoo: ranges give verdicts by intervals, and name compressors that there are."""

import numpy as np
import pandas as pd
import pytest

from vtc import compressors
from vtc.compressors import ideas
from vtc.evaluation import exam, scores
from vtc.evaluation.scores import TASKS_OF
from vtc.experiments import expected

TASKS = [t for t in exam.TASKS for _ in range(200)]


def cells(V=1, seeds=3, **share):
    """Compressors, each with its share of right answers, on the same questions."""
    hard, made = np.random.default_rng(0).random(len(TASKS)), []
    for name, right in share.items():
        for seed in range(seeds):
            luck = np.random.default_rng([seed, V]).normal(0, 0.02, len(TASKS))
            given = (hard + luck < right).astype(float)
            row = {
                "compressor": name,
                "V": V,
                "seed": seed,
                "size": "d32",
                "scores": scores.pack(list(given)),
            }
            made.append(row | {f"error_{family}": 1 - given.mean() for family in TASKS_OF})
    return pd.DataFrame(made)


def verdicts(rows):
    table = expected.came(rows, TASKS)
    return {(row.compressor, row.against): row.verdict for row in table.itertuples()}


def test_a_range_holds_the_interval_excludes_it_or_neither():
    rows = cells(quecc=0.7, quecc_unasked=0.4, quecc_pooled=0.7, quecc_one_head=0.5)
    said = verdicts(rows)
    assert said["quecc_unasked", "quecc"] == "agrees"  # -.3, and .15 or more were expected
    assert said["quecc_pooled", "quecc"] == "agrees"
    assert said["quecc_one_head", "quecc"] == "disagrees"  # -.2, and .06 at most were expected
    assert verdicts(cells(quecc=0.7, quecc_unasked=0.55))["quecc_unasked", "quecc"] == "open"


def test_one_seed_leaves_all_open():
    assert set(verdicts(cells(seeds=1, quecc=0.7, quecc_unasked=0.4)).values()) == {"open"}


def test_the_worst_reader_is_held_against_the_best_of_the_others():
    rows = cells(quecc=0.7, lookup=0.6, pool=0.5, tokenpacker=0.3, random=0.2)
    said = verdicts(rows)
    assert said["lookup", "pool"] == "agrees"  # each that reads is ahead of each that does not
    assert said["pool", "tokenpacker"] == "disagrees"  # ahead by .2 without reading
    assert said["random", "pool"] == "agrees"
    assert verdicts(cells(quecc=0.7, lookup=0.4, pool=0.5))["lookup", "pool"] == "disagrees"


def test_who_lacks_a_seed_is_neither_the_worst_nor_the_best():
    both = cells(quecc=0.7, lookup=0.6, pool=0.5), cells(seeds=1, quecc_shared=0.4, random=0.55)
    assert ("lookup", "pool") in verdicts(pd.concat(both))


def test_V_that_an_expectation_does_not_name_are_left_out():
    assert expected.came(cells(V=9, quecc=0.7, quecc_unasked=0.4), TASKS).empty


def test_at_sixteen_tokens_the_worst_reader_is_expected_behind():
    assert verdicts(cells(V=16, quecc=0.3, lookup=0.6, pool=0.5))["quecc", "pool"] == "agrees"
    assert verdicts(cells(V=16, quecc=0.6, lookup=0.7, pool=0.5))["quecc", "pool"] == "disagrees"


@pytest.mark.parametrize("names", [expected.READS, expected.READS_NOT])
def test_names_are_in_the_registry_once(names):
    assert len(set(names)) == len(names) and set(names) <= set(compressors.names())


def test_every_expectation_names_registered_compressors():
    for one in expected.EXPECTED:
        assert {one.compressor, one.against} <= set(compressors.names()) and one.least < one.most


def needs_question(name: str) -> bool:
    """Whether it reads the question before it makes tokens."""
    if name == "llavamini_fused":  # its layers of the LLM read the text beside the compressor
        return True
    V = compressors.possible(name, 12)[-1] if name in ("none", "identity") else 4
    shape = dict(tokens=V, grid=12, d=64, d_levels=256, d_llm=32, d_question=32)
    return compressors.build(name, **shape).needs_question


def test_readers_are_those_that_need_the_question():
    for name, reads in [(n, True) for n in expected.READS] + [(n, False) for n in expected.READS_NOT]:
        assert needs_question(name) is reads, name


def test_every_compressor_says_what_it_does_and_whether_it_reads_the_question():
    ours = [name for name, line in compressors.REGISTRY.items() if isinstance(line.cls, str)]
    assert set(ideas.IDEAS) == set(ours)
    assert set(ideas.READERS) == set(filter(needs_question, ours))
