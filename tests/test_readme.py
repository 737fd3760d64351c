"""What the README shows is run as it stands."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, no_traceback, run
from PIL import Image

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def place(tmp_path):
    """An empty folder with a photo.jpg in it."""
    shutil.copy(ROOT / "test_path" / "chris.jpg", tmp_path / "photo.jpg")
    return tmp_path


def python(code, cwd):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return no_traceback(
        subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    )


def test_the_python_example(place):
    code = next(b for b in BLOCKS if "runner.predict_image" in b)
    done = python(code + "\nprint(mask.shape, mask.dtype, (mask > 0).mean())", place)
    assert done.returncode == 0, done.stderr
    w, h = Image.open(place / "photo.jpg").size
    assert f"({h}, {w}) uint8" in done.stdout
    assert 0.1 < float(done.stdout.split()[-1]) < 0.5  # the face fills a good part of this photograph


def test_the_onnx_example(place):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert run("main.py", "export", "--weights", "bundled", "--out", place / "lite.onnx").returncode == 0
    code = next(b for b in BLOCKS if "onnxruntime" in b)
    done = python(code, place)
    assert done.returncode == 0, done.stderr
    shown = np.asarray(Image.open(place / "mask.png"))
    assert shown.shape == Image.open(place / "photo.jpg").size[::-1]
    assert 0.1 < (shown > 0).mean() < 0.5


def test_what_it_points_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for name in re.findall(r"`([a-z_]+\.py)`", README):
        assert (ROOT / name).is_file(), name


def test_the_options_it_names_exist():
    known = "".join(run("main.py", command, "--help").stdout for command in ("train", "predict", "evaluate", "export"))
    for script in ("data_preprocessing.py", "robustness.py", "experiments.py", "benchmark.py"):
        known += run(script, "--help").stdout if (ROOT / script).is_file() else ""
    text = re.sub(r"torchrun [^`]*main\.py", "main.py", README)  # torchrun's own are not checked
    for option in set(re.findall(r"(--[a-z][a-z-]+)", text)):
        assert option in known, option
