"""Files that get their name when they are whole: written beside their target, then moved there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something that the user can mend; the message is one sentence. Every error of this kind in the project is one."""


TEMP = ".tmp-"  # begins the name of every file that is not finished


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; what was written there takes its name when the block ends well.

    Whatever happens, the temporary file is gone afterwards. Its name is short, however long the target's is, and an
    OSError names the target in its place.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMP}{os.getpid()}-{threading.get_ident()}-{path.stem[:40]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(
            missing_ok=True
        )  # also there after a rename onto a link to the same file, which POSIX leaves be


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
