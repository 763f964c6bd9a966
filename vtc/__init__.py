"""Few visual tokens or a small LLM? A runnable companion to arXiv 2411.03312.

The flow, one folder a step:

    profiles     how many, how large, how long;  shapes  one description of an LLM and of a tower
    data         images + questions
    compressors  features (+ question) -> V visual tokens
    cost         what a request costs, counted: operations, bytes, memory, roofline seconds
    models       images -> features of s patches (tower); V visual tokens + Q text tokens -> answer (LLM)
    training     one recipe for every model: text, align, instruct
    evaluation   answers -> error Y, and comparisons with intervals
    benchmark    the clock
    scaling      errors -> law Y(N, V) with intervals -> frontier -> plan
    experiments  rows: find, measure what is missing, record; claims and their verdicts; reproduce
    figures      a tidy frame in, a chart out
    adapters     our compressors in other people's models;  commands  the command line

Letters. Capitals are the paper's quantities, lower case are tensor axes.

    N       LLM parameters that multiply each token (the embedding table is not one)
    V       visual tokens that enter the LLM
    Q       text tokens in the prompt;  q' (`q_prime` in code)  question tokens among them
    G       generated tokens
    Y       error = 1 - score;  the law is  Y(N, V) = A / N^alpha * 1 / V^beta + D
    A, D    scale and floor of the law;  alpha, beta  its exponents for N and V
    g, s    side of the vision grid and its patches, s = g * g
    k       side of a compressor's window, V = (g / k)^2
    b, s, v, d   axes: batch, patch, visual token, width
"""

import importlib
import warnings

__version__ = "0.1.0"

# said by a library under transformers on import; our bars do without widgets (`vtc.progress`)
warnings.filterwarnings("ignore", message="IProgress not found")


class InputError(ValueError):
    """Something a person gave is wrong: one line saying what, where, what was expected and what to do."""


def __getattr__(name: str):
    """`vtc.wrap` (`vtc.adapters.hf`), imported when asked for: `import vtc` alone must not load torch."""
    if name == "wrap":
        return importlib.import_module("vtc.adapters.hf").wrap
    raise AttributeError(f"module 'vtc' has no attribute {name!r}")
