"""Cases measured side by side, in processes that end when their parent does, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from vtc.machine import die_with

LIBRARIES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
# glibc hands memory back to the system after every step and asks for it anew, page by page; kept, a
# training step takes a tenth less time (virtual machine; other systems ignore these names)
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26)}


def run(
    measure: Callable[[dict], object], cases: Iterator[dict], workers: int
) -> Iterator[tuple[dict, object]]:
    """Yields (case, measure(case)) as they finish; with workers > 1 in that many processes of one thread.

    `cases` is drawn from lazily, one case a free worker, in its order; `measure` must then be picklable (a
    function of a module, or a partial of one). After an error no new case is begun, those under way are
    waited for and yielded, and then it is raised. A worker is a fresh interpreter (spawn), so that two on two
    cores don't fight and a case gives the same numbers alone and in company.
    """
    if workers < 2:
        yield from ((case, measure(case)) for case in cases)
        return
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool, busy, fault = ProcessPoolExecutor(workers, spawn, _begin, (os.getpid(),)), {}, None
    try:
        _fill(pool, busy, measure, cases, workers)
        while busy:
            done, _ = wait(busy, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: f.exception() is not None):
                if isinstance(future.exception(), BrokenProcessPool):
                    raise future.exception()
                case, fault = busy.pop(future), fault or future.exception()
                if future.exception() is None:
                    yield case, future.result()
            if fault is None:
                _fill(pool, busy, measure, cases, workers)
        if fault:
            raise fault
    except BrokenProcessPool:  # one that dies takes with it all that are under way
        lost = "; ".join(", ".join(f"{k}={v}" for k, v in case.items()) for case in busy.values())
        raise RuntimeError(f"a process was killed (out of memory?), at work were {lost}") from None
    finally:
        if busy:  # nobody waits for these
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        pool.shutdown()


def _fill(pool, busy: dict[Future, dict], measure: Callable, cases: Iterator[dict], workers: int) -> None:
    """Begins cases until every worker has one."""
    while len(busy) < workers and (case := next(cases, None)) is not None:
        with _environment():  # a worker starts here and inherits it
            busy[pool.submit(measure, case)] = case


def _begin(parent: int) -> None:
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business


@contextmanager
def _environment() -> Iterator[None]:
    """What a worker inherits: one thread unless the user said so, its memory, no bar."""
    names = [f"{library}_NUM_THREADS" for library in LIBRARIES]
    child = {name: os.environ.get(name, "1") for name in names} | KEEP_MEMORY | {"VTC_PROGRESS": "off"}
    with changed_environment(child):
        yield


@contextmanager
def changed_environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
