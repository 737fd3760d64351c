"""What all tests share: the root on the import path, drawn faces, and a way to run the real commands."""

import atexit
import contextlib
import csv
import hashlib
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for networks this small, threads do little but wait for each other

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Real faces for the tests that want some: a folder with CelebAMask-HQ-mini.zip, see CONTRIBUTING.md.
FACE_SEG_DATA = Path(os.environ["FACE_SEG_DATA"]) if os.environ.get("FACE_SEG_DATA") else None

TRAIN_IDS = range(16000, 16012)
VAL_IDS = range(24000, 24006)
SLOW = ("test_training", "test_notebook", "test_main", "test_demo", "test_openvino_backend", "test_experiments")
SLOW += ("test_processes", "test_onnx_export", "test_data_preprocessing", "test_video", "test_benchmark", "test_fuzz")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config) -> None:
    """All of the suite on all cores where pytest-xdist is installed, each file's tests in one process."""
    given = config.option
    whole = all(Path(arg).is_dir() for arg in config.args)
    if "PYTEST_XDIST_WORKER" in os.environ or not whole or not config.pluginmanager.hasplugin("xdist"):
        return  # one of the processes itself, a file alone, or no pytest-xdist
    if given.numprocesses is None and not given.usepdb:
        given.numprocesses, given.dist, given.loadscopereorder = "auto", "loadfile", False


def pytest_collection_modifyitems(items) -> None:
    """The slow files first, so that no core is left alone with one of them at the end."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


# A process that has imported PyTorch once, of which each command gets a copy: 3 s less than an interpreter of its own.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["main", "training", "evaluation", "pictures", "torchvision", "albumentations", "matplotlib.figure"]
)


def run(program, *args, **options) -> subprocess.CompletedProcess:
    """Runs a script of the root (`main.py`) or a module of a room (`studies.benchmark`) as a person would."""
    return _execute(_program(program), args, **options)


def start(program, *args):
    """`run`, without waiting: the process, to be killed."""
    return _process(_program(program), args, os.getcwd(), dict(os.environ), [os.devnull] * 3)


def python(code: str, *args, **options) -> subprocess.CompletedProcess:
    """Runs a few lines with the project on the import path."""
    return _execute(["-c", f"import sys\n{code}"], args, **options)


def _program(name) -> list[str]:
    return [str(ROOT / name)] if str(name).endswith(".py") else ["-m", str(name)]


def _execute(
    what: list[str], args, *, cwd=None, env=None, timeout=300, fresh=False, given=b"", text=True
) -> subprocess.CompletedProcess:
    """In a process of its own, `given` on its standard input; only a `fresh` one has nothing imported before."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **{key: str(value) for key, value in (env or {}).items()}}
    if fresh:
        command = [sys.executable, *what, *map(str, args)]
        return subprocess.run(command, cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True, check=False)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("in", "out", "err")]
        files[0].write_bytes(given)
        process = _process(what, args, os.path.abspath(cwd or "."), env, files)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired([*what, *args], timeout)
        said = [file.read_text("utf-8", "replace") if text else file.read_bytes() for file in files[1:]]
    return subprocess.CompletedProcess([*what, *args], process.exitcode, *said)


def _process(what: list[str], args, cwd: str, env: dict, files: list):
    args = [os.fsdecode(arg) if isinstance(arg, bytes) else str(arg) for arg in args]
    process = FORKS.Process(target=_as_main, args=(what, args, cwd, env, files))
    process.start()
    return process


def _as_main(what: list[str], args: list[str], cwd: str, env: dict, files: list[Path]) -> None:
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
    sys.stdin, sys.stdout = open(0), open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None  # as TMPDIR says
    sys.argv = [what[0], *args]
    multiprocessing.set_start_method(None, force=True)  # workers start as everywhere
    try:
        if what[0] == "-c":
            exec(what[1], {"__name__": "__main__"})
        elif what[0] == "-m":
            runpy.run_module(what[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(what[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


@pytest.fixture(scope="session", autouse=True)
def no_curves():
    """Of runs in this process; they take a third of its small epochs. Commands in one of their own draw them."""
    import cv2
    import numpy as np

    import drawing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "save_curves", lambda history, path: cv2.imwrite(str(path), np.zeros((1, 1), np.uint8)))
        yield


@pytest.fixture(scope="session")
def celeb_source(tmp_path_factory) -> Path:
    """A folder with a drawn data set in the official layout: 12 training and 6 validation faces, some with glasses."""
    from studies.drawn_faces import draw_celeb_tree

    root = tmp_path_factory.mktemp("source")
    draw_celeb_tree(root, [*TRAIN_IDS, *VAL_IDS], image_size=256)
    return root


@pytest.fixture(scope="session")
def prepared(celeb_source, tmp_path_factory) -> Path:
    """The folders made from `celeb_source`, silhouettes included. To be read, not changed."""
    from data_preprocessing import prepare

    out = tmp_path_factory.mktemp("prepared")
    report = prepare(celeb_source, out, workers=2, persons=True, progress=False)
    assert not report.skipped
    return out


@pytest.fixture(scope="session")
def lite_weights(prepared, tmp_path_factory) -> Path:
    """Untrained weights of the small model at 64 pixels, one pass, whose mask is about half of a drawn face."""
    import torch

    import dataset
    import model

    torch.manual_seed(0)
    net = model.build("lite").eval()
    face = dataset.Celeb(prepared / "images_val", prepared / "masks_val", dataset.val_transform(64))[0][0]
    with torch.inference_mode():
        net.head.weight *= 3 / net(face[None]).std()  # logits as far from 0 as those of a trained network
        net.head.bias -= net(face[None]).median()
    path = tmp_path_factory.mktemp("weights") / "lite.pth"
    model.save_state(net.state_dict(), path, model.Info("lite", 64, 1, "untrained"))
    return path


@pytest.fixture(scope="session")
def small_bundled(tmp_path_factory) -> tuple[Path, str]:
    """The bundled weights, to see pictures of half the size, which takes a quarter of the time; and their SHA-256."""
    import const
    import model

    (net, info), path = model.load(const.BUNDLED_WEIGHTS), tmp_path_factory.mktemp("bundled") / "lite.pth"
    model.save_state(net.state_dict(), path, replace(info, size=info.size // 2))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def occluder_dir(tmp_path_factory) -> Path:
    """Five drawn RGBA squares of each kind, in colours that tell them apart: the fifth is held out, and blue."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("occluders")
    for kind in ("hands", "objects", "masks", "textures"):
        (folder / kind).mkdir()
        for i in range(5):
            cut = np.zeros((90, 80, 4), np.uint8)
            cut[10:, 10:70] = (20, 40, 250, 255) if i == 4 else (250, 40, 20, 255)
            Image.fromarray(cut[..., :3] if kind == "textures" else cut).save(folder / kind / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def bundled_onnx(tmp_path_factory) -> tuple[Path, str]:
    """The bundled weights exported, which takes long, and what was printed. To be read, not changed."""
    import main

    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path, said = tmp_path_factory.mktemp("onnx") / "lite.onnx", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main.main(["export", "--weights", "bundled", "--out", str(path)]) == 0
    return path, said.getvalue()


def history(run_dir: Path) -> list[dict]:
    """The rows of a run's history.csv."""
    with open(run_dir / "history.csv", newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def fingerprints(folder: Path) -> dict:
    """{path: (time, hash of the contents)} of all files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {p: (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}


def no_traceback(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert "Traceback" not in result.stdout + result.stderr, result
    return result


def one_sentence(text: str, *words: str) -> str:
    """An error as a person should see it: one line after "error: ", with these words in it."""
    lines = [line for line in text.splitlines() if "error: " in line]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    for word in words:
        assert str(word) in lines[0], (word, lines[0])
    return lines[0]


def leftovers(folder: Path) -> list[str]:
    """Temporary files that should be gone."""
    return [str(p) for p in folder.rglob("*") if p.name.startswith((".tmp", "tmp")) or p.suffix in (".part", ".tmp")]


def save_gif(frames, path, *, fps: float = 10.0) -> None:
    from extras.video import writing_gif

    with writing_gif(path, print) as gif:
        for i, frame in enumerate(frames):
            gif.add(frame, i / fps, 1 / fps)
