"""What every module may need: the base of one-sentence errors, files that appear only when whole, gdown, cores.

Imports nothing of the project, and nothing large.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMP = ".tmp-"  # begins the name of every unfinished file
_NODE = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
_HOST = f"{zlib.crc32(_NODE.encode()):08x}"  # process ids count on one machine only
_TOKEN = os.urandom(3).hex()  # tells this process from a dead one whose id it got
_OLD = 24 * 3600  # seconds after which an unfinished file of another machine is given up
_TEMP_NAME = re.compile(rf"{re.escape(TEMP)}([0-9a-f]{{8}})-([0-9]+)-([0-9a-f]{{6}})-.*", re.DOTALL)


class UserError(Exception):
    """Something that the user can mend; the message is one sentence. Every error of this kind in the project is one."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory does not suffice: Python's error, torch's of a GPU or of the CPU, mmap's or OpenCV's."""
    words = ("can't allocate memory", "Cannot allocate memory", "Insufficient memory", "bad_alloc", "not enough memory")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return getattr(error, "errno", None) == errno.ENOMEM or any(word in str(error) for word in words)


class DownloadError(UserError):
    """Why a file could not be fetched from Google Drive."""


def temporary_name(name: str) -> str:
    """A name for an unfinished file or folder, by which `sweep` knows whose it is."""
    return f"{TEMP}{_HOST}-{os.getpid()}-{_TOKEN}-{threading.get_ident()}-{name}"


def sweep(folder: Path) -> list[str]:
    """Remove what killed processes left unfinished in `folder`, never what a living one is writing; the names removed.

    Raises:
        OSError: something cannot be removed, or the folder not be read. One that is missing holds nothing.
    """
    removed = []
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.name.startswith(TEMP) and _abandoned(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return removed
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink(missing_ok=True)
        removed.append(entry.name)
    return removed


def _abandoned(entry: os.DirEntry) -> bool:
    match = _TEMP_NAME.fullmatch(entry.name)
    if match and match[1] == _HOST and os.name == "posix":
        pid = int(match[2])
        return match[3] != _TOKEN if pid == os.getpid() else not _alive(pid)
    try:  # of another machine on a shared disk, or of Windows, where asking for a process by os.kill would end it
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _OLD
    except FileNotFoundError:  # finished meanwhile
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; what was written there takes its name when the block ends well.

    Whatever happens, the temporary file is gone afterwards. Its name is short, however long the target's is, and an
    OSError names the target in its place, or where it names nothing, as on a full disk.
    """
    path = Path(path)
    temporary = path.with_name(temporary_name(f"{path.stem[:40]}{path.suffix}"))
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
    """Hold the lock file `path` for the block; a process that dies lets go of it. Where the system has no such locks
    (Windows, some network disks), nothing is held.

    Raises:
        UserError: another process holds it; with this message.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    while True:
        with open(path, "a") as file:
            try:
                # Loader processes, which outlive a killed parent by seconds, do not inherit this kind of lock.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(message) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            try:
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    continue
            except FileNotFoundError:  # the holder before removed it between our opening and our locking it
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, its folder made where it is missing.

    Raises:
        OSError: a full disk, no permission; nothing half-written stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, its folder made where it is missing."""
    write_bytes(path, text.encode("utf-8"))


def exit_code(work: Callable[[], object], stopped: str = "stopped") -> int:
    """Do the work of a command: 0, 1 after "error: ..." for a UserError or a file that fails, 130 after Ctrl-C."""
    try:
        work()
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'writing'}: {error.strerror or error}.", file=sys.stderr)
        return 1
    return 0


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def drive_link(file_id: str) -> str:
    """The page of a Google Drive file, for a person."""
    return f"https://drive.google.com/file/d/{file_id}/view"


def download(url: str, path: Path, *, resume: bool = False) -> None:
    """Fetch `url`, such as https://drive.google.com/uc?id=..., to `path` with gdown 5 or 6.

    What arrived is for the caller to check: Google Drive may answer with a web page, and with `resume` gdown takes any
    file that is at `path` for whole. A broken transfer leaves its parts beside `path`.

    Raises:
        DownloadError: gdown is missing, the transfer failed or nothing arrived.
    """
    import inspect

    try:
        import gdown
        from gdown import exceptions
    except ImportError as error:
        raise DownloadError("gdown is missing: pip install gdown") from error
    # gdown 6 raises DownloadError; 5.2 has no such class, and may return None; what requests raises is an OSError
    failures = (OSError, exceptions.FileURLRetrievalError, getattr(exceptions, "DownloadError", OSError))
    patience = {"timeout": 30} if "timeout" in inspect.signature(gdown.download).parameters else {}  # not in gdown 5
    try:
        fetched = gdown.download(url=url, output=str(path), resume=resume, **patience)
    except failures as error:
        raise DownloadError(" ".join(str(error).split())[:200].rstrip(".:") or type(error).__name__) from error
    if fetched is None:
        raise DownloadError("nothing arrived")
