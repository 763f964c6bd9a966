"""Cases measured side by side in processes that end when their parent does, however it ends.

Each worker is a fresh interpreter (spawn) with one thread, so that two on two cores don't fight and a
case gives the same numbers alone and in company.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

from vtc import InputError
from vtc.machine import die_with

LIBRARIES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
# glibc hands memory back to the system after every step and asks for it anew, page by page; kept, a
# training step takes a tenth less time (virtual machine; other systems ignore these names)
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26)}


class WorkerError(RuntimeError):
    """An error of a worker: its trace is what is printed, `words` its last line."""

    def __init__(self, words: str, trace: str = "", bad_input: bool = False):
        super().__init__(trace or words)
        self.words, self.bad_input = words, bad_input  # bad_input: a person can mend it


def _serve(pipe: Connection, measure: Callable, parent: int) -> None:
    """Measures what comes through the pipe until None comes."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    while (case := _next(pipe)) is not None:
        try:
            pipe.send((measure(case), None))
        except Exception as error:
            pipe.send((None, (words(error), traceback.format_exc(), isinstance(error, InputError))))


def _next(pipe: Connection) -> dict | None:
    """The next case; None if there is none, or no parent to ask."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def words(error: BaseException) -> str:
    """An error in one line: what a person wrote about bad input, else its kind before it."""
    if isinstance(error, WorkerError):
        return error.words
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """What a child inherits while it is started: one thread unless the user said so, its memory, no bar."""
    names = [f"{library}_NUM_THREADS" for library in LIBRARIES]
    child = {name: os.environ.get(name, "1") for name in names} | KEEP_MEMORY | {"VTC_PROGRESS": "off"}
    before = {name: os.environ.get(name) for name in child}
    os.environ.update(child)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def spread(measure: Callable, cases: Iterator[dict], workers: int) -> Iterator[tuple[dict, object]]:
    """Yields (case, what `measure(case)` returned or a WorkerError) as they finish.

    `cases` is drawn from lazily, one case a free worker, in its order; `measure` must be picklable. After an
    error no new case is begun, but those under way are waited for.
    """
    context = multiprocessing.get_context("spawn")
    busy: dict[Connection, dict] = {}
    started: list[tuple[multiprocessing.Process, Connection]] = []

    def start() -> Connection:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, measure, os.getpid()))
        with _one_thread():
            process.start()
        theirs.close()  # so that a dead child reads as the end of the pipe
        started.append((process, ours))
        return ours

    try:
        for _ in range(workers):
            if (case := next(cases, None)) is None:
                break
            pipe = start()
            pipe.send(case)
            busy[pipe] = case
        failed = False
        while busy:
            for pipe in wait(list(busy)):
                case = busy.pop(pipe)
                try:
                    result, fault = pipe.recv()
                except (EOFError, OSError):
                    result, fault = None, ("its process was killed (out of memory?)", "", False)
                failed = failed or fault is not None
                yield case, (WorkerError(*fault) if fault else result)
                if not failed and (case := next(cases, None)) is not None:
                    pipe.send(case)
                    busy[pipe] = case
    finally:
        for process, pipe in started:
            if pipe in busy:
                process.kill()
            else:
                _let_go(pipe)
            process.join()
            pipe.close()


def _let_go(pipe: Connection) -> None:
    try:
        pipe.send(None)
    except OSError:
        pass  # it has ended already
