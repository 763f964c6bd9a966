"""Cases measured side by side, in processes that end when their parent does, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from unittest.mock import patch

from vtc.machine import die_with

LIBRARIES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
# glibc hands memory back to the system after every step and asks for it anew, page by page; kept, a
# training step takes a tenth less time (virtual machine; other systems ignore these names)
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26)}


def run(measure: Callable[[dict], object], cases: list[dict], workers: int) -> Iterator[tuple[dict, object]]:
    """Yields (case, measure(case)) as they finish; with workers > 1 in that many processes of one thread.

    Cases are begun in their order; `measure` must then be picklable (a function of a module, or a partial of
    one). The first error is raised once all that was under way has been yielded; no more are begun. A worker
    is a fresh interpreter (spawn), so that two on two cores don't fight and a case gives the same numbers
    alone and in company.
    """
    if workers < 2 or not cases:
        yield from ((case, measure(case)) for case in cases)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (os.getpid(),))
    with patch.dict(os.environ, _inherited()):  # workers start here
        futures = {pool.submit(measure, case): case for case in cases}
    fault = None
    try:
        for future in as_completed(futures):
            if future.cancelled():
                continue
            if (error := future.exception()) is None:
                yield futures[future], future.result()
            elif fault is None:
                fault = error if not isinstance(error, BrokenProcessPool) else _killed(futures, workers)
                for other in futures:
                    other.cancel()
        if fault:
            raise fault
    finally:
        for process in set(multiprocessing.active_children()) - others:
            if not all(future.done() for future in futures):  # nobody waits for the rest
                process.kill()
        pool.shutdown(cancel_futures=True)


def _killed(futures: dict[Future, dict], workers: int) -> RuntimeError:
    """A worker that is killed takes all cases under way with it: the first ones that have no result."""
    lost = [case for f, case in futures.items() if f.done() and not f.cancelled() and f.exception()][:workers]
    said = "; ".join(", ".join(f"{name}={value}" for name, value in case.items()) for case in lost)
    return RuntimeError(f"a process was killed (out of memory?), at work were {said}")


def _begin(parent: int) -> None:
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business


def _inherited() -> dict[str, str]:
    """Environment of a worker: one thread unless the user said so, its memory, no bar."""
    threads = {name: os.environ.get(name, "1") for name in (f"{lib}_NUM_THREADS" for lib in LIBRARIES)}
    return threads | KEEP_MEMORY | {"VTC_PROGRESS": "off"}
