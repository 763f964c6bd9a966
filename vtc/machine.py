"""The machine that a row is made on: its name, its memory, and processes that end with their parent.

A device is named as torch names it: "cpu" or "cuda". torch is imported only where a GPU is asked about.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path


@functools.cache
def processor() -> str:
    """The CPU's name as the system tells it."""
    try:
        return _entry("/proc/cpuinfo", "model name")
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_name(device: str = "cpu") -> str:
    """What rows call a device: the GPU's name, or the CPU's with the threads that torch uses on it."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()} x {torch.get_num_threads()}"


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def driver() -> dict[str, str]:
    """The GPU's driver and clock rates as nvidia-smi tells them; none where it is not installed."""
    asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return {}
    names = ("driver", "clock_sm_mhz", "clock_memory_mhz", "clock_max_mhz")
    return dict(zip(names, (word.strip() for word in said.split("\n")[0].split(",")))) if said else {}


def free_bytes(device: str = "cpu") -> float:
    """Bytes that a new process may take in the main memory or on the GPU."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0])
    try:
        return float(_entry("/proc/meminfo", "MemAvailable").split()[0]) * 1024
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def forget_peak(device: str = "cpu") -> None:
    """Starts the count of peak memory anew (on a CPU where the system lets a process do so)."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # else the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str = "cpu") -> float:
    """The most bytes held at once since `forget_peak`: tensors on the GPU, or this whole process."""
    if device == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated())
    try:
        return float(_entry("/proc/self/status", "VmHWM").split()[0]) * 1024
    except (OSError, StopIteration):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    said = ("allocate memory", "out of memory", "create a primitive")  # the last: oneDNN has no room
    in_torch = isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    return isinstance(error, MemoryError) or in_torch


def _entry(path: str, name: str) -> str:
    """The value of the first line "name : value" of a file of the system."""
    lines = Path(path).read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(name))


def die_with(parent: int) -> None:
    """Ends this process as soon as `parent` (a process id) has ended, SIGKILL included."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:  # elsewhere, and for a parent that ended before the line above
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
