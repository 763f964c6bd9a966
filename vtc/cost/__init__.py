"""What a request costs, counted: operations, bytes and memory of every stage, and roofline seconds.

A request goes image -> tower -> compressor (-> question pass) -> projector -> LLM prefill -> first token
-> decode. Each stage is a closed form in the shapes; nothing here imports torch or reads a clock.
`vtc.benchmark` measures the same stages under the same names.

Conventions. A multiply-add is two operations. Matrix products and attention are counted; norms,
activations and softmax are not (under 1 % of any stage here). Attention is counted as the full square,
as eager attention computes it; a kernel that skips the masked half does less. Bytes are a floor: every
weight once a stage, the KV cache once a pass, the inputs and outputs of matrix products once, with
elementwise work taken as fused into them. All of V, Q, G, q, batch and the fields of an `LLMShape` may be
numpy arrays that broadcast against one another.

Sources: the paper (arXiv 2411.03312) counts 2 N (Q + V), LLM only; the rest follows from the
architectures: CLIP (2103.00020), Qwen1.5/Qwen2 (2407.10671), TokenPacker (2407.02392), MQT (2405.19315).
"""

# ruff: noqa: F401  (the names below are this package's interface)
from vtc.cost.compressors import CompressorCost, compressor, reach, traits
from vtc.cost.count import (
    QUESTION_PASS,
    STAGES,
    Pipeline,
    Work,
    flops,
    llm_decode,
    llm_head,
    llm_pass,
    memory,
    stages,
    tower_pass,
)
from vtc.cost.roofline import (
    Hardware,
    binds,
    fit_shares,
    hardware,
    hardware_table,
    largest_batch,
    latency,
    limits,
    own_hardware,
    seconds,
)
from vtc.shapes import BYTES, CLIP_L_336, LLMS, QWEN15, LLMShape, TowerShape, llm, llm_like
