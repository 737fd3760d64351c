"""Timing that several studies share: ways of doing a thing side by side, and the machine that the figures belong to."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from common import usable_cores


def seconds(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def interleaved(
    ways: dict[str, Callable[[], object]], runs: int, *, warm: bool = True, at_least: float = 0.5
) -> dict[str, float]:
    """Median seconds of each way, one call of each in turn, so that a slower minute of the machine slows all.

    A way that takes less than `at_least` seconds is repeated in its turn and its mean taken, as one call alone would
    find the caches as the way before it left them. Without `warm` nothing is repeated.
    """
    times = dict.fromkeys(ways, 1)
    if warm:
        for name, way in ways.items():
            times[name] = max(1, math.ceil(at_least / max(seconds(way), 1e-4)))

    def turn(name: str) -> float:
        return seconds(lambda: [ways[name]() for _ in range(times[name])]) / times[name]

    rounds = [{name: turn(name) for name in ways} for _ in range(runs)]
    return {name: statistics.median(one[name] for one in rounds) for name in ways}


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():  # Linux
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict:
    """What the figures belong to."""
    import torch

    import devices

    return {
        "processor": processor(),
        "cores": usable_cores(),
        "bf16": devices.cpu_has_bf16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
