"""The clock: every stage of a request timed on this machine, beside what it must cost at least.

A case is one LLM, precision, batch, compressor and prompt, with the V to try; each runs in a process of its
own, so that peak memory is that case's. Stages carry the names of `vtc.cost`: tower, question, compressor,
projector, prefill, first (the LM head), decode (per token); and `ttft` is everything between features and
the first token, timed whole. Manners: warm-up, synchronisation on either side (CUDA events on a GPU), stages
in turn rather than in blocks, raw samples kept, the machine's matrix peak and bandwidth measured in the same
process. Weights are random unless a checkpoint is named; speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from vtc import InputError, cost, profiles, records
from vtc.profiles import Profile
from vtc.progress import bar

STEM = "03_clock"
WORDS = 128  # vocabulary of the small LLMs of the sweep
FEWEST, MOST = 5, 40  # samples of a stage
OUT_OF_MEMORY = "out of memory"


# ------------------------------------------------------------------------------------------------- cases


def case(llm: str, V: Iterable[int], **changes) -> dict:
    """One case as a flat dict (its own key): defaults are a laptop's; `V` is written as "0 1 16"."""
    known = {
        "llm": llm,  # preset of vtc.cost, "profile:size", or a checkpoint (folder or hub id)
        "V": " ".join(str(v) for v in sorted(set(V))),
        "Q": 50,  # text tokens, q of them the question
        "q": 20,
        "G": 8,  # generated tokens
        "batch": 1,
        "compressor": "quecc",
        "question": "paid",  # paid | cached | shared
        "tower": "clip",  # CLIP ViT-L/14-336, or the tower of a profile by name
        "dtype": "bf16",
        "on": "cpu",  # cpu | cuda
        "baseline": False,  # also clock transformers' generate with default settings on the same weights
        "budget_s": 6,  # about how long to sample each V
        "repeat": 0,
    }
    return known | changes


def cases(p: Profile) -> list[dict]:
    """What notebook 03 clocks at a profile."""
    if p.name == "smoke":
        sizes, quick = [s.name for s in p.sizes], {"tower": "smoke", "budget_s": 0.2, "G": 4}
        return [case(f"smoke:{n}", p.V, batch=b, baseline=b == 1, **quick) for n, b in zip(sizes, (1, 8))]
    if p.name == "laptop":
        half, small = "qwen1.5-0.5b", {"tower": "laptop", "G": 16, "budget_s": 1}
        return [
            *(case(half, (0, 1, 16, 144, 576), baseline=True, repeat=r) for r in (0, 1)),
            case(half, (1, 16, 144, 576), batch=4),
            case(half, (1, 4, 16, 36, 576), compressor="tokenpacker", budget_s=4),
            case(half, (1, 16), dtype="fp32", budget_s=4),
            case("qwen1.5-1.8b", (1, 576), budget_s=4),
            *(case(f"laptop:{s.name}", p.V, batch=b, **small) for s in p.sizes for b in (1, 32)),
        ]
    if p.name == "gpu":
        base, V = {"on": "cuda", "G": 32, "budget_s": 2}, (0, 1, 4, 16, 36, 144, 576)
        grid = [(n, b) for n in cost.LLMS for b in (1, 8, 32, 128)]
        return [
            *(case(n, V, batch=b, baseline=b == 1, **base) for n, b in grid),
            *(case(n, V, baseline=True, repeat=1, **base) for n in cost.LLMS),
            *(case("vicuna-7b", V[1:], compressor=c, **base) for c in ("tokenpacker", "pool", "mqt")),
            case("vicuna-7b", V[1:], question="cached", **base),
            case("qwen1.5-0.5b", V, dtype="fp32", **base),
        ]
    return []


def table(p: Profile) -> pd.DataFrame:
    """The clock's rows of a profile, one a V and stage: recorded ones, and what is missing clocked here.

    Where the profile's cases need a GPU and there is none, only rows that exist are returned.
    """
    wanted = cases(p)
    here = not any(c["on"] == "cuda" for c in wanted) or _has_cuda()
    return records.table(STEM, p, wanted, measure if here else None)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def shapes(c: dict) -> tuple[cost.LLMShape, cost.TowerShape]:
    """The shapes of a case; raises InputError for names that are not known."""
    name, tower = c["llm"], cost.CLIP_L_336
    if c["tower"] != "clip":
        p = profiles.get(c["tower"])
        t = p.tower
        levels, run = len(t.levels), max(t.levels)
        tower = cost.TowerShape(p.name, p.pixels, t.patch, t.layers, t.d, 4 * t.d, t.heads, 1, levels, run)
    if ":" in name:
        profile, _, size = name.partition(":")
        return cost.LLMShape.of(profiles.get(profile).size(size), WORDS), tower
    return (_checkpoint_shape(name) if "/" in name or Path(name).is_dir() else cost.llm(name)), tower


def _checkpoint_shape(name: str) -> cost.LLMShape:
    from transformers import AutoConfig

    try:
        k = AutoConfig.from_pretrained(name)
        heads, kv = k.num_attention_heads, k.num_key_value_heads
        wide = (k.num_hidden_layers, k.hidden_size, k.intermediate_size, heads, kv, k.vocab_size)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"LLM {name!r} could not be read ({str(error).splitlines()[0]})") from None
    return cost.LLMShape(name, *wide, tied=bool(k.tie_word_embeddings), bias=k.model_type == "qwen2")


def needs(c: dict) -> float:
    """Bytes that a case will hold at its largest V (a CPU also keeps the weights of the baseline)."""
    shape, tower = shapes(c)
    pipe = cost.Pipeline(shape, tower, c["compressor"], c["question"], c["dtype"])
    held = cost.memory(pipe, max(int(v) for v in c["V"].split()), c["Q"], c["G"], c["batch"])
    twice = held["weights"] if c["baseline"] and c["on"] == "cpu" else 0
    return float(held["total"] + twice) + 0.6e9  # the libraries themselves


def free_bytes(on: str) -> float:
    """Bytes that a new process may take on this machine (or its GPU)."""
    if on == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def check(c: dict) -> None:
    """Raises InputError, before anything starts, where this machine cannot run the case."""
    if c["on"] not in ("cpu", "cuda"):
        raise InputError(f"device {c['on']!r} is unknown: use cpu or cuda")
    if c["on"] == "cuda" and not _has_cuda():
        raise InputError("no GPU was found here: use --device cpu, or run on a machine with CUDA")
    want, there = needs(c), free_bytes(c["on"])
    if want > there:
        what = f"{c['llm']} in {c['dtype']} at batch {c['batch']}"
        raise InputError(f"{what} needs about {want / 1e9:.1f} GB, {there / 1e9:.1f} GB are free: go smaller")


# ---------------------------------------------------------------------------------- a process for a case


def measure(c: dict, memory_gb: float | None = None) -> list[dict]:
    """Clocks one case in a fresh process -> a row a V and stage; a V that does not fit says so in its row."""
    if c["on"] == "cpu" and needs(c) > free_bytes("cpu"):  # a CPU would swap for minutes before it failed
        return [_lost(c, V) for V in _tokens(c)]
    words = [sys.executable, "-m", "vtc.bench", json.dumps(c), str(memory_gb or "")]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"VTC_PROGRESS": "off"})
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    missing = [V for V in _tokens(c) if V not in {row["tokens"] for row in rows}]
    if missing and done.returncode not in (-9, 0):
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the clock died")
    return rows + [_lost(c, V) for V in missing]  # killed by the kernel: it ran out of memory


def _tokens(c: dict) -> list[int]:
    return [int(v) for v in str(c["V"]).split()]


def _lost(c: dict, V: int) -> dict:
    return {"tokens": V, "stage": "all", "status": OUT_OF_MEMORY, "needs_bytes": needs(c)}


def _serve(c: dict, memory_gb: str) -> None:
    """The child: clocks every V of the case and prints its rows as lines of JSON."""
    from vtc.workers import die_with

    die_with(os.getppid())
    if memory_gb:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(float(memory_gb) * 1e9),) * 2)
    from vtc.bench_stages import Bench, is_out_of_memory

    bench = None
    for V in _tokens(c):
        try:
            bench = bench or Bench(c)
            rows = bench.rows(V)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            rows = [_lost(c, V)]
        for row in rows:
            print(json.dumps(row), flush=True)


# -------------------------------------------------------------------------------------------- statistics


def summary(samples_ms: list[float]) -> dict:
    """Median, quartiles and a 95 % interval of the median by order statistics (no shape assumed).

    With fewer than 6 samples the interval is their range, whose level is then below 95 %.
    """
    x, n = np.sort(samples_ms), len(samples_ms)
    from scipy.stats import binom

    k = int(binom.ppf(0.025, n, 0.5))
    low, high = x[max(k - 1, 0)], x[min(n - k, n - 1)]
    quarter = np.percentile(x, [25, 50, 75])
    return {
        "median_ms": float(quarter[1]),
        "q25_ms": float(quarter[0]),
        "q75_ms": float(quarter[2]),
        "low_ms": float(low),
        "high_ms": float(high),
        "n": n,
        "samples_ms": [round(float(s), 4) for s in samples_ms],
    }


def sample(calls: dict[str, Callable[[], float]], budget_s: float, label: str = "") -> dict[str, list[float]]:
    """Times every call in turn, after one warm-up each, until the budget is spent (5 to 40 rounds) -> ms."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + budget_s
    for _ in bar(range(MOST), label, unit="round"):
        for name, call in calls.items():
            taken[name].append(call() * 1e3)
        if time.perf_counter() > end and len(taken[name]) >= FEWEST:
            break
    return taken


# ------------------------------------------------------------------------------------- reading the clock


def ok(clock: pd.DataFrame) -> pd.DataFrame:
    """The rows that hold a time."""
    return clock[clock["status"] == "ok"]


CONFIGURATION = ["llm", "tokens", "Q", "q", "batch", "compressor", "question", "tower", "dtype", "on"]


def repeatability(clock: pd.DataFrame) -> pd.DataFrame:
    """Rows clocked twice: both medians, and whether they differ by less than the two intervals allow."""
    rows = ok(clock)
    first, again = (rows[rows["repeat"] == r] for r in (0, 1))
    both = first.merge(again, on=[*CONFIGURATION, "stage", "baseline"], suffixes=("", "_again"))
    low, high = both[["low_ms", "low_ms_again"]].max(axis=1), both[["high_ms", "high_ms_again"]].min(axis=1)
    kept = ["llm", "tokens", "stage", "median_ms", "median_ms_again"]
    ratio = both["median_ms_again"] / both["median_ms"]
    return both[kept].assign(ratio=ratio, within=low <= high).reset_index(drop=True)


def against_baseline(clock: pd.DataFrame) -> pd.DataFrame:
    """Ours beside transformers' generate, same weights, same process; `speedup` > 1: ours is faster."""
    rows = ok(clock)
    wide = rows.pivot_table(
        index=["llm", "dtype", "batch", "tokens", "repeat"], columns="stage", values="median_ms"
    )
    wide = wide.dropna(subset=["baseline one token"]) if "baseline one token" in wide else wide.iloc[:0]
    parts = []
    for what in ("one token", "all tokens"):
        pair = wide[[f"ours {what}", f"baseline {what}"]].set_axis(["ours_ms", "baseline_ms"], axis=1)
        parts.append(pair.reset_index().assign(what=what))
    out = pd.concat(parts, ignore_index=True)
    return out.assign(speedup=out["baseline_ms"] / out["ours_ms"])


def predicted(
    clock: pd.DataFrame, held_out: Callable[[pd.DataFrame], pd.Series] | None = None
) -> pd.DataFrame:
    """Time to first token and per decoded token, measured and predicted with two shares fitted a device.

    Shares are fitted on the configurations that are not held out (by default every other V) and reported with
    the predictions; `error` is predicted / measured - 1.
    """
    rows = ok(clock)
    rows = rows[rows["stage"].isin(["ttft", "decode"]) & rows["parts"].notna()].reset_index(drop=True)
    hold = held_out(rows) if held_out else rows["tokens"].rank(method="dense").astype(int) % 2 == 0
    out = []
    for (on, dtype), group in rows.groupby(["device", "dtype"]):
        parts = [np.array(json.loads(text) if isinstance(text, str) else text) for text in group["parts"]]
        most = max(len(part) for part in parts)
        flops, moved = (
            np.array([np.pad(part[:, i], (0, most - len(part))) for part in parts]) for i in (0, 1)
        )
        peak, band = group["peak_flops"].median(), group["bandwidth"].median()
        device = cost.Hardware(on, {dtype: peak}, band, 0)
        held = hold[group.index].to_numpy()
        seen = group["median_ms"].to_numpy() / 1e3
        if (~held).sum() < 2:
            continue
        fitted, _ = cost.fit_shares(flops[~held], moved[~held], seen[~held], device, dtype)
        ms = cost.seconds(cost.Work(flops, moved), fitted, dtype).sum(-1) * 1e3
        shares = {"compute_share": fitted.compute_share, "bandwidth_share": fitted.bandwidth_share}
        out.append(group.assign(predicted_ms=ms, error=ms / 1e3 / seen - 1, held_out=held, **shares))
    return pd.concat(out, ignore_index=True) if out else rows.assign(predicted_ms=[], error=[], held_out=[])


# -------------------------------------------------------------------------------------------- command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vtc bench`: a profile's cases, or one LLM with its own settings."""
    parser.add_argument("--profile", default="laptop", help="whose cases to clock, and where rows go")
    parser.add_argument("--recompute", action="store_true", help="clock again what is recorded")
    parser.add_argument("--llm", help="one LLM: " + ", ".join(cost.LLMS) + ", 0.5 ... 14, or a checkpoint")
    parser.add_argument("--V", default="0,1,16,144,576", help="visual tokens (default %(default)s)")
    parser.add_argument("--Q", type=int, default=50, help="text tokens of the prompt (default 50)")
    parser.add_argument("--q", type=int, default=20, help="question tokens among them (default 20)")
    parser.add_argument("--G", type=int, default=8, help="generated tokens (default 8)")
    parser.add_argument("--batch", default="1", help="batch sizes (default 1)")
    parser.add_argument("--compressor", default="quecc")
    parser.add_argument("--question", default="paid", choices=cost.QUESTION_PASS)
    parser.add_argument("--dtype", default="bf16", choices=sorted(cost.BYTES))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--baseline", action="store_true", help="also clock transformers' generate")
    parser.add_argument("--budget-s", type=float, default=6, help="seconds to sample each V (default 6)")
    parser.add_argument("--csv", help="also write the rows here")


def _integers(text: str, option: str) -> list[int]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isdigit() for word in words):
        raise InputError(f"--{option} {text!r}: expected whole numbers such as 0,1,16")
    return [int(word) for word in words]


def _asked(args: argparse.Namespace) -> list[dict]:
    """The cases of the command line, each checked against this machine before any starts."""
    same = ("Q", "q", "G", "compressor", "question", "dtype", "baseline", "budget_s")
    own = {name: getattr(args, name) for name in same} | {"on": args.device, "q": min(args.q, args.Q)}
    if args.Q < 1 or args.G < 2:
        raise InputError("--Q must be at least 1 and --G at least 2 (the first token comes out of prefill)")
    V = _integers(args.V, "V")
    asked = [case(args.llm, V, batch=b, **own) for b in _integers(args.batch, "batch") if b > 0]
    for c in asked:
        check(c)
    return asked


def main(args: argparse.Namespace) -> int:
    """Clocks, prints a table, and says where the raw rows are."""
    p = profiles.get(args.profile, args.recompute)
    wanted = _asked(args) if args.llm else cases(p)
    if not wanted:
        raise InputError(f"profile {p.name} has no cases to clock: name an LLM with --llm")
    if not args.llm and any(c["on"] == "cuda" for c in wanted) and not _has_cuda():
        raise InputError(f"profile {p.name} clocks a GPU and none was found: use --profile laptop, or --llm")
    clock = records.table(STEM, p, wanted, measure)
    columns = [
        "llm",
        "dtype",
        "batch",
        "tokens",
        "stage",
        "median_ms",
        "low_ms",
        "high_ms",
        "floor_ms",
        "share",
    ]
    shown = clock.reindex(columns=[*columns, "binds", "status"])
    print(shown.to_string(index=False, float_format=lambda x: f"{x:.3g}", na_rep="-"))
    if args.csv:
        clock.to_csv(args.csv, index=False)
    print(f"raw samples: {p.runs / STEM}.csv")
    return 0


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]), sys.argv[2])
