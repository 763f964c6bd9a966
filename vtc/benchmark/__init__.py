"""The clock: every stage of a request timed on this machine, beside what it must cost at least.

A case is one LLM, precision, batch, compressor and prompt, with the V to try; each runs in a process of its
own, so that peak memory is that case's. Stages carry the names of `vtc.cost`: tower, question, compressor,
projector, prefill, first (the LM head), decode (per token); and `ttft` is everything between features and
the first token, timed whole. Manners: warm-up, synchronisation on either side (CUDA events on a GPU), stages
in turn rather than in blocks, raw samples kept, the machine's matrix peak and bandwidth measured in the same
process. Weights are random unless a checkpoint is named; speed does not depend on them.
"""

# ruff: noqa: F401  (the names below are this package's interface)
from vtc.benchmark.cases import (  # noqa: F401
    OUT_OF_MEMORY,
    PROMPTS,
    STEM,
    case,
    cases,
    check,
    has_cuda,
    needs,
    prompts,
    shapes,
)
from vtc.benchmark.process import measure
from vtc.benchmark.reading import (  # noqa: F401
    against_baseline,
    claims,
    floors,
    here,
    largest,
    of_one_run,
    ok,
    origins,
    predicted,
    repeatability,
)
