"""What this machine can do at most, measured: the yardstick that every stage is laid beside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from vtc.benchmark.clock import in_turn
from vtc.models.kernels import Product

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def peaks(device: str, dtype: str, quick: bool = False) -> dict[str, float]:
    """The largest measured matrix rate (operations a second) and read bandwidth (bytes a second).

    Rate: square products, operands as they come and packed, the best of several sides, so that a floor drawn
    from it is one; `peak_plain_flops` is torch.matmul alone at the largest side. Bandwidth: a sum over, and a
    matrix-vector product with, half a GB. `quick`: smaller and fewer, for a first look.
    """
    kind, rounds = DTYPES[dtype], 2 if quick else 4

    def least_s(*calls: Callable) -> list[float]:
        taken = in_turn(dict(enumerate(calls)), device, fewest=rounds, most=rounds)
        return [min(ms) / 1e3 for ms in taken.values()]

    best, plain = 0.0, 0.0
    large = not quick and dtype != "fp32"
    sides = (4096, 8192) if device == "cuda" else (1024, 2048, 4096) if large else (1024, 2048)
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        layer = nn.Linear(side, side, bias=False)
        layer.weight = nn.Parameter(b, requires_grad=False)
        packed = Product([layer])
        plain, fast = (2 * side**3 / s for s in least_s(partial(torch.matmul, a, b), partial(packed, a)))
        best = max(best, plain, fast)
    size = 2**25 if quick else 2**29  # bytes read
    flat = torch.ones(size // 4, device=device)
    rows = torch.ones(size // (1024 * kind.itemsize), 1024, device=device, dtype=kind)
    vector = torch.ones(1024, device=device, dtype=kind)
    least = min(least_s(flat.sum, partial(torch.mv, rows, vector)))
    return {"peak_flops": best, "peak_plain_flops": plain, "bandwidth": size / least}
