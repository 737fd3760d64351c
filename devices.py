"""Devices, precisions, and the processes of a distributed job.

The processes that `torchrun --nproc-per-node=N main.py train` starts find each other by the environment variables that
it sets. In a single process the functions for several do nothing.
"""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from common import UserError, reason

STEP_TIMEOUT = timedelta(seconds=60)  # for another process in a step; after it the job ends with an error
LONG_TIMEOUT = timedelta(days=7)  # for what one process does alone, or one machine more slowly than another

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_groups: dict[str, dist.ProcessGroup] = {}  # "step", with the short timeout, and "wait", on the CPU


# --- Devices --------------------------------------------------------------------------------------------------------
def find_device(name: str = "auto", *, log=print) -> torch.device:
    """The device of a name that torch.device takes, tried out; "auto" is a GPU where there is one that this PyTorch has
    kernels for (a P100 is found, but fails), else the CPU. Under torchrun each process gets a GPU of its own. Raises
    UserError: it cannot be used."""
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    own = "cuda"
    if "LOCAL_RANK" in os.environ:
        own = f"cuda:{_number('LOCAL_RANK', 0) % max(1, torch.cuda.device_count())}"
    try:
        device = torch.device(own if name in ("auto", "cuda") else name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # else every process may open a context on the first GPU as well
        some = torch.ones(8, 8, device=device)
        (some @ some).cpu()
        return device
    except (RuntimeError, AssertionError, ImportError) as error:  # of a kind that this PyTorch has no module for
        why = reason(error).partition(". ")[0]  # PyTorch may go on for a thousand characters
        if name != "auto":
            raise UserError(f"The device {name!r} cannot be used ({why}); try --device cpu.") from None
        log(f"The GPU cannot be used ({why}); going on with the CPU.")
        return torch.device("cpu")


# --- Precision ------------------------------------------------------------------------------------------------------
def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware (AVX512-BF16 or AMX). Others emulate it, slower than fp32."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


def emulates_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 without hardware for it: up to fifty times slower than in fp32."""
    if device.type == "cuda":  # such as a T4
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not cpu_has_bf16()


def fastest_precision(device: torch.device) -> str:
    """One of `DTYPES`."""
    if device.type in ("cuda", "cpu") and not emulates_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def warn_of_emulation(precision: str, device: torch.device, log=print) -> None:
    """Say so where a precision is asked for that the device only emulates."""
    if precision == "bf16" and emulates_bf16(device):
        log("Warning: this device has no hardware for bf16 and emulates it, many times slower than --precision auto.")


# --- Memory ---------------------------------------------------------------------------------------------------------
def reuse_memory() -> None:
    """Have glibc keep what a step frees for the next one: asking the kernel for it anew is a fifth of a training step.
    Nothing happens without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 2**28)):  # M_MMAP_THRESHOLD, M_TRIM_, M_TOP_PAD, bytes
        mallopt(option, value)


def release_memory() -> None:
    """Give back what glibc keeps: each process that is forked now would get a copy of it. Nothing without glibc."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory_mb(device: torch.device) -> int | None:
    """The most memory that this process has held so far, MB: of a GPU what PyTorch had allocated, else what was
    resident; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 10**6
    status = Path("/proc/self/status")  # ru_maxrss would count the process that this one was forked from
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(errors="replace")) if status.exists() else None
    return int(found[1]) * 1024 // 10**6 if found else None


# --- Processes ------------------------------------------------------------------------------------------------------
def _number(name: str, least: int) -> int:
    """What torchrun has set, or `least` where it has not."""
    text = os.environ.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name} is {text!r} in the environment, no whole number from {least} up; torchrun sets it.")
    return int(text)


def rank() -> int:
    """This process's number in the job; 0 alone."""
    return _number("RANK", 0)


def world_size() -> int:
    """The number of processes of the job. Raises UserError: torchrun's variables do not agree, or one is missing."""
    number, size = rank(), _number("WORLD_SIZE", 1)
    if number >= size or (size > 1 and "RANK" not in os.environ):
        given = ", ".join(f"{name} {os.environ.get(name, 'not set')}" for name in ("RANK", "WORLD_SIZE"))
        raise UserError(f"The environment numbers no process of a job ({given}): use torchrun, or unset both.")
    return size


def local_world_size() -> int:
    """The number of processes of the job on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


@contextmanager
def process_group(device: torch.device):
    """The processes of a torchrun job, connected while the block runs: NCCL between GPUs, Gloo between CPUs. Raises
    UserError: more processes than GPUs, no address to meet at, or another process died."""
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    if "MASTER_ADDR" not in os.environ:
        raise UserError("RANK and WORLD_SIZE are set, but not MASTER_ADDR: use torchrun, or unset both.")
    gpu, local = device.type == "cuda", local_world_size()
    if gpu and local > torch.cuda.device_count():
        raise UserError(f"{local} processes need a GPU each, and there are {torch.cuda.device_count()}.")
    dist.init_process_group("nccl" if gpu else "gloo", timeout=LONG_TIMEOUT, device_id=device if gpu else None)
    _groups.update(step=dist.new_group(timeout=STEP_TIMEOUT), wait=dist.new_group(backend="gloo", timeout=LONG_TIMEOUT))
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(f"Another process of the job died or does not answer ({reason(error)}).") from None
    finally:
        _groups.clear()
        dist.destroy_process_group()


def step_group() -> dist.ProcessGroup | None:
    """All processes, with `STEP_TIMEOUT`: for what they do at the same time."""
    return _groups.get("step")


@contextmanager
def rank_zero_first():
    """The first process runs the block, then the others do: for files that one makes and all of them read."""
    if rank() != 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def barrier() -> None:
    """Go on when all processes have come here, however long one of them takes."""
    if dist.is_initialized():
        dist.barrier(_groups.get("wait"))


def all_gather(value) -> list:
    """A value of every process, in the order of their numbers. It is pickled."""
    if not dist.is_initialized():
        return [value]
    out = [None] * world_size()
    dist.all_gather_object(out, value)
    return out
