"""Shared by all modules: user errors, files written whole or not at all, locks, downloads, the number of cores.

Imports nothing of the project, and nothing large.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import platform
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMP = ".tmp-"  # begins the name of every unfinished file
try:
    _PIDS = os.readlink("/proc/self/ns/pid")  # of a container, whose process ids are its own
except OSError:
    _PIDS = ""
_HOST = f"{zlib.crc32((platform.node() + _PIDS).encode()):08x}"  # process ids count on one machine only
_TOKEN = os.urandom(3).hex()  # tells this process from a dead one whose id it got
_NUMBERS = itertools.count()
_OLD = 24 * 3600  # seconds after which an unfinished file of another machine is given up
_TEMP_NAME = re.compile(rf"{re.escape(TEMP)}([0-9a-f]{{8}})-([0-9]+)-([0-9a-f]{{6}})-.*", re.DOTALL)


class UserError(Exception):
    """Something that the user can mend; the message is one sentence. Every error of this kind in the project is one."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory does not suffice: Python's error, torch's of a GPU or of the CPU, mmap's or OpenCV's."""
    words = ("can't allocate memory", "Cannot allocate memory", "Insufficient memory", "bad_alloc", "not enough memory")
    of_kind = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return of_kind or any(word in str(error) for word in words)


def reason(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    return str(error).partition("\n")[0] or type(error).__name__


class DownloadError(UserError):
    """Why a file could not be fetched from Google Drive."""


def temporary_name(name: str) -> str:
    """A name for an unfinished file or folder, by which `sweep` knows whose it is."""
    return f"{TEMP}{_HOST}-{os.getpid()}-{_TOKEN}-{next(_NUMBERS)}-{name}"


def sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished in `folder`, never what a living one is writing."""
    for path in filter(_is_abandoned, list(Path(folder).glob(f"{TEMP}*"))):
        with suppress(OSError):  # somebody else's, in a folder that several share; gone meanwhile
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    match = _TEMP_NAME.fullmatch(path.name)
    if not match:  # no name of ours
        return False
    try:
        if not (match[1] == _HOST and os.name == "posix"):
            # of another machine on a shared disk, or of Windows, where os.kill would end the process
            return time.time() - path.lstat().st_mtime > _OLD
        if int(match[2]) == os.getpid():
            return match[3] != _TOKEN
        os.kill(int(match[2]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except (FileNotFoundError, PermissionError):  # finished meanwhile; somebody else's process
        pass
    return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; what was written there takes its name when the block ends well, and is
    gone else. An OSError names the target in its place, or where it names nothing, as on a full disk."""
    path = Path(path)
    temporary = path.with_name(temporary_name(f"{path.stem[:40]}{path.suffix}"))  # short, however long the target's is
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        # still there, too, after a rename onto a hard link to the same file, which POSIX leaves undone
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold the lock file `path` for the block, else a UserError with this message; released when the process dies.
    Where the system has no such locks (Windows, some network disks), nothing is held."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "a") as file:
        try:
            # Loader processes, which outlive a killed parent by seconds, do not inherit this kind of lock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(file.fileno()), os.stat(path))  # else its holder has just removed it
        except (BlockingIOError, PermissionError, FileNotFoundError):
            held = False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            held = True
        if not held:
            raise UserError(message)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, its folder made where it is missing; an OSError leaves nothing half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, its folder made where it is missing."""
    write_bytes(path, text.encode("utf-8"))


def exit_code(work: Callable[[], int | None], stopped: str = "stopped", options: Container[str] = ()) -> int:
    """Do the work of a command, and give its exit code: 1 after "error: ..." for a UserError, a file that fails, too
    little memory or a missing package, 130 after Ctrl-C, 141 where standard output was closed. `options` are those that
    the command has."""
    try:
        return work() or 0
    except KeyboardInterrupt as error:
        print(stopped, file=sys.stderr)
        return next(iter(error.args), 130)
    except BrokenPipeError:
        return 141
    except Exception as error:
        if (sentence := _sentence(error, options)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1


def _sentence(error: Exception, options: Container[str]) -> str | None:
    """What a person is told of an error; None for one that is none of theirs."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        smaller = {"batch_size": "a smaller --batch-size", "size": "a smaller --size"}
        smaller |= {"device": "--device cpu"} if type(error).__name__ == "OutOfMemoryError" else {}  # of a GPU
        advice = " or ".join(text for name, text in smaller.items() if name in options)
        return f"The memory does not suffice; give {advice or 'the machine more'}."
    if isinstance(error, OSError):
        return f"{error.filename or 'writing'}: {error.strerror or error}."
    if isinstance(error, ModuleNotFoundError):
        return f"Python finds no package {error.name}; `pip install -r requirements.txt` brings all that is needed."
    return None


def number(kind: type, low, high, what: str) -> Callable[[str], int | float]:
    """An argparse type: a number of `kind` within [low, high], which are `what`."""

    def parse(text: str):
        with suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return parse


positive = number(int, 1, 10**9, "a whole number from 1 up")
small = number(int, 0, 256, "a whole number from 0 to 256")


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def drive_link(file_id: str) -> str:
    """The page of a Google Drive file, for a person."""
    return f"https://drive.google.com/file/d/{file_id}/view"


def download(url: str, path: Path, *, resume: bool = False) -> None:
    """Fetch `url`, such as https://drive.google.com/uc?id=..., to `path` with gdown 5 or 6, else a DownloadError.

    What arrived is for the caller to check: Google Drive may answer with a web page, and with `resume` gdown takes any
    file that is at `path` for whole. A broken transfer leaves its parts beside `path`.
    """
    import inspect

    try:
        import gdown

        options = {"timeout": 30} if "timeout" in inspect.signature(gdown.download).parameters else {}  # not in gdown 5
        fetched = gdown.download(url=url, output=str(path), resume=resume, **options)
    except ImportError as error:
        raise DownloadError("gdown is missing: pip install gdown") from error
    except Exception as error:  # of requests, or of gdown, where its versions differ
        raise DownloadError(" ".join(str(error).split())[:200].rstrip(".:") or type(error).__name__) from error
    if fetched is None:
        raise DownloadError("nothing arrived")
