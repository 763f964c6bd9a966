"""The clock: every stage of a request timed on this machine, beside what it must cost at least.

A case is one LLM, precision, batch and prompt, with the compressors and the V to try; each runs in a process
of its own, so that peak memory is that case's. Stages carry the names of `vtc.cost`: tower, question,
compressor, projector, prefill, first (the LM head), decode (per token); and `ttft` is everything between
features and the first token, timed whole. Manners: warm-up, synchronisation on either side (CUDA events on a
GPU), everything that is compared in turn, raw samples kept, the machine's matrix peak and bandwidth measured
in the same process. Weights are random unless a checkpoint is named; speed does not depend on them.
"""

# ruff: noqa: F401  (the names below are this package's interface)
from vtc.benchmark.cases import OUT_OF_MEMORY, PROMPTS, STEM, case, cases, check, needs, prompts, shapes
from vtc.benchmark.predict import clocked, predicted
from vtc.benchmark.process import measure
from vtc.benchmark.reading import (
    against_baseline,
    floors,
    gains,
    largest,
    of_one_run,
    ok,
    repeatability,
    speedups,
    throughput,
    tidy,
    with_tower,
)
from vtc.machine import has_cuda
