"""What all tests share: the root on the import path, drawn faces, and a way to run the real commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TRAIN_IDS = range(16000, 16012)
VAL_IDS = range(24000, 24006)


def run(script, *args, cwd=None, env=None, timeout=300) -> subprocess.CompletedProcess:
    """Runs a script of the project as a person would; a script's relative path starts at the root."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    env = {**os.environ, **{key: str(value) for key, value in (env or {}).items()}}
    return subprocess.run(command, cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def celeb_source(tmp_path_factory) -> Path:
    """A folder with a drawn data set in the official layout: 12 training and 6 validation faces, some with glasses."""
    from drawn_faces import draw_celeb_tree

    root = tmp_path_factory.mktemp("source")
    draw_celeb_tree(root, [*TRAIN_IDS, *VAL_IDS], image_size=256)
    return root


@pytest.fixture(scope="session")
def prepared(celeb_source, tmp_path_factory) -> Path:
    """The folders made from `celeb_source`, silhouettes included. To be read, not changed."""
    from data_preprocessing import prepare

    out = tmp_path_factory.mktemp("prepared")
    report = prepare(celeb_source, out, workers=2, persons=True, progress=False)
    assert not report.faults
    return out
