"""What the studies share: timing, the machine that figures belong to, records and tables."""

import json
import math
import platform
import re
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from common import UserError, usable_cores, write_text


def seconds(way: Callable[[], object], times: int = 1) -> float:
    """Of a call, the mean of so many."""
    started = time.perf_counter()
    for _ in range(times):
        way()
    return (time.perf_counter() - started) / times


def interleaved(
    ways: dict[str, Callable[[], object]], runs: int, *, warm: bool = True, at_least: float = 0.5
) -> dict[str, float]:
    """Median seconds of each way, one call of each in turn, so that a slow phase of the machine slows all alike.

    A way that takes less than `at_least` seconds is repeated in its turn and its mean taken, as one call alone would
    find the caches as the way before it left them. Without `warm` nothing is repeated.
    """
    times = {name: max(1, math.ceil(at_least / max(seconds(way), 1e-4))) if warm else 1 for name, way in ways.items()}
    rounds = [{name: seconds(way, times[name]) for name, way in ways.items()} for _ in range(runs)]
    return {name: statistics.median(one[name] for one in rounds) for name in ways}


def machine() -> dict:
    """What the figures belong to."""
    import torch

    import devices

    info = Path("/proc/cpuinfo")  # Linux
    names = re.findall("model name\\s*: (.+)", info.read_text("utf-8", "replace")) if info.exists() else []
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "bf16": devices.cpu_has_bf16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def read_json(path: Path, *keys: str) -> dict:
    """What a record holds; empty without the file. Raises UserError: it is damaged, or has not these keys."""
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        record = None
    if isinstance(record, dict) and (not record or record.keys() >= set(keys)):
        return record
    raise UserError(f"{path} is damaged, or of another version; move it away or remove it.")


def write_json(path: Path, record: dict) -> None:
    write_text(path, json.dumps(record, indent=1) + "\n")


def table(rows: list[dict], heads=()) -> str:
    """A Markdown table of rows {head: cell}; a head that a row lacks is left empty in it. `heads` are the columns, in
    order; without them as the rows have them."""

    def text(cell) -> str:
        return "" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else str(cell)

    heads = heads or list(dict.fromkeys(head for row in rows for head in row))
    lines = [heads, ["---"] * len(heads), *([text(row.get(head)) for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""
