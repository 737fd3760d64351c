"""Files that appear whole, what killed processes left, and locks."""

import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import common

HOLD = """
import sys, time
from pathlib import Path
from common import locked, replacing
with locked(Path(sys.argv[1], "lock"), "busy"), replacing(Path(sys.argv[1], "made.bin")) as temporary:
    temporary.write_bytes(b"half")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock and has a file half-written, until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_is_of_one_process_and_ends_with_it(holder, tmp_path):
    with pytest.raises(common.UserError, match="busy"), common.locked(tmp_path / "lock", "busy"):
        pytest.fail("held twice")
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").exists()
    with common.locked(tmp_path / "lock", "busy"):
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        other = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert other.stdout == ""
    assert "busy" in other.stderr
    assert not (tmp_path / "lock").exists()
    with pytest.raises(ZeroDivisionError), common.locked(tmp_path / "lock", "busy"):
        raise ZeroDivisionError
    assert not (tmp_path / "lock").exists()


def test_a_killed_process_is_swept_up_after_and_a_living_one_is_not(holder, tmp_path):
    (unfinished,) = (p for p in tmp_path.iterdir() if p.name.startswith(common.TEMP))
    common.sweep(tmp_path)
    assert unfinished.exists()
    holder.kill()
    holder.wait()
    common.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    common.sweep(tmp_path / "nowhere")


def test_two_files_with_the_same_long_beginning_are_written_at_once(tmp_path):
    paths = [tmp_path / f"{'a' * 60}_{kind}.mp4" for kind in ("overlay", "mask")]
    with common.replacing(paths[0]) as one, common.replacing(paths[1]) as other:
        one.write_text("overlay")
        other.write_text("mask")
    assert [path.read_text() for path in paths] == ["overlay", "mask"]


def test_whose_unfinished_files_are(tmp_path):
    ours = common.temporary_name("a")
    pid = f"-{os.getpid()}-"
    names = {
        "ours": ours,
        "of a process that had our id": ours.replace(f"-{common._TOKEN}-", "-000000-"),
        "of the parent": ours.replace(pid, f"-{os.getppid()}-"),
        "of root's first process": ours.replace(pid, "-1-"),
        "of an impossible id": ours.replace(pid, f"-{10**30}-"),
        "of another machine": f"{common.TEMP}00000000-7-000000-1-a",
        "of another machine, old": f"{common.TEMP}00000000-8-000000-1-a",
        "of another program, old": f"{common.TEMP}draft.txt",
        "not ours to judge": "tmp-a",
    }
    for who, name in names.items():
        path = tmp_path / name
        path.mkdir() if who == "of an impossible id" else path.write_bytes(b"x")
        if who.endswith("old"):
            os.utime(path, (time.time() - 2 * 86400,) * 2)
    common.sweep(tmp_path)
    removed = set(names.values()) - {p.name for p in tmp_path.iterdir()}
    assert {who for who, name in names.items() if name in removed} == {
        "of a process that had our id", "of an impossible id", "of another machine, old",
    }  # fmt: skip
