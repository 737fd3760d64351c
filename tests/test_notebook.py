"""The notebook: what is committed of it, and what it makes when it is run from top to bottom.

FACE_SEG_BUDGET=tiny makes a run short: 12 + 6 drawn faces at 64 pixels, one epoch. One is of all
cells, two are of the first ones, on copies of the project and without a network.
"""

import base64
import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from conftest import ROOT, fingerprints
from nbclient import NotebookClient

import const

NOTEBOOK = ROOT / "notebooks" / "face_segmentation.ipynb"
NOWHERE = "http://127.0.0.1:9"  # a proxy that is not there: no network
PACKAGE = "albumentations<2.1,>=2.0.8"  # as requirements.txt asks for it
EPOCHS = "epochs=1,"  # of the tiny budget, as the notebook writes it


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def repository(notebook) -> str:
    return re.search(r'^REPOSITORY = "([^"]+)"', code_cells(notebook)[0].source, re.MULTILINE)[1]


# --- As it is committed ----------------------------------------------------------------------------------------------
def test_no_outputs_and_no_widget_state_are_committed(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert NOTEBOOK.stat().st_size < 60_000
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


def test_every_cell_compiles_and_says_in_a_sentence_what_it_shows(notebook):
    from IPython.core.inputtransformer2 import TransformerManager

    assert len(code_cells(notebook)) > 10
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code":
            compile(TransformerManager().transform_cell(cell.source), cell.id, "exec")
            assert before.cell_type == "markdown"
            assert re.search(r"This (cell|figure|sheet) ", before.source.split("\n\n")[-1]), cell.id


def test_badges_open_the_notebook_of_the_repository(notebook):
    page = repository(notebook).removesuffix(".git") + "/blob/main/notebooks/face_segmentation.ipynb"
    colab = page.replace("https://github.com/", "https://colab.research.google.com/github/")
    kaggle = "https://kaggle.com/kernels/welcome?src=" + page
    for text in (notebook.cells[0].source, (ROOT / "README.md").read_text(encoding="utf-8")):
        assert f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})" in text
        assert f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})" in text


# --- Run -------------------------------------------------------------------------------------------------------------
def copy_project(target: Path) -> Path:
    """What a clone holds and the notebook needs."""
    target.mkdir(parents=True)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, target)
    shutil.copy(ROOT / "requirements.txt", target)
    for folder in ("extras", "robust", "studies", "test_path", "weights"):
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def environment(**more) -> dict:
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("FACE_SEG_", "KAGGLE_"))}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
    quiet = {"PIP_NO_INDEX": "1", "PYTHONDONTWRITEBYTECODE": "1", "NO_PROXY": "", "no_proxy": ""}
    quiet["OMP_NUM_THREADS"] = "1"  # on such small pictures more threads do nothing but wait for each other
    return {**keep, **proxies, **quiet, **{name: str(value) for name, value in more.items()}}


@pytest.fixture
def execute(notebook, tmp_path_factory, monkeypatch):
    """Runs all cells with a folder as the current one, looks at the figures, and returns what the cells printed."""
    jupyter = tmp_path_factory.mktemp("jupyter")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(jupyter))
    monkeypatch.setenv("IPYTHONDIR", str(jupyter))

    def run(folder: Path, *, replace=(), until: str | None = None, **env):
        """`until`: the first cell with these words, and those before it that draw nothing."""
        done = nbformat.from_dict(json.loads(json.dumps(notebook)))
        if until:
            last = next(i for i, cell in enumerate(done.cells) if cell.cell_type == "code" and until in cell.source)
            done.cells = [*(cell for cell in done.cells[:last] if not draws(cell)), done.cells[last]]
        for old, new in replace:
            assert sum(cell.source.count(old) for cell in done.cells) == 1
            for cell in done.cells:
                cell.source = cell.source.replace(old, new)
        client = NotebookClient(done, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
        client.execute(env=environment(FACE_SEG_BUDGET="tiny", **env))
        printed, shown = "", {}
        for cell in code_cells(done):
            for output in cell.outputs:
                printed += output.get("text", "")
                for kind in ("image/png", "image/jpeg"):
                    if kind in output.get("data", {}):
                        data = np.frombuffer(base64.b64decode(output.data[kind]), np.uint8)
                        shown.setdefault(cell.id, []).append(cv2.imdecode(data, cv2.IMREAD_COLOR))
        assert "IProgress" not in printed
        if not until:
            check_figures(done, shown)
        return printed

    return run


def draws(cell) -> bool:
    return bool(re.search(r"^(display\()?grid\(|plt\.show|Image\(", cell.source, re.MULTILINE))


def check_figures(notebook, shown: dict[str, list[np.ndarray]]) -> None:
    """Every cell that draws shows one picture, large enough to be seen and not blank; `shown` has them by cell id."""
    drawing = [cell.id for cell in code_cells(notebook) if draws(cell)]
    assert len(drawing) == 8
    assert sorted(shown) == sorted(drawing)
    for pictures in shown.values():
        assert len(pictures) == 1
        assert min(pictures[0].shape[:2]) > 200
        assert pictures[0].std() > 10


def check_files(work: Path, data: Path, epochs: int) -> Path:
    """The files of all sections; returns the run's folder."""
    import model

    for kind in ("images", "masks"):
        for split, number in (("train", 12), ("val", 6)):
            assert len(list((data / f"{kind}_{split}").iterdir())) == number
    for path in (data / "masks_train").iterdir():
        assert set(np.unique(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))) == {0, 255}
    (run,) = (work / "runs").iterdir()
    assert {"config.json", "history.csv", "curves.png", "model.best.pth", "last.pth"} <= {p.name for p in run.iterdir()}
    rows = list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    assert model.load(run / "model.best.pth")[1].size == 64
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["pictures"] == 6
    for table in metrics["metrics"].values():
        assert all(0 <= table[name] <= 1 for name in ("dice", "iou", "recall", "boundary_iou"))
        assert 0 <= (table["precision"] or 0) <= 1  # undefined where nothing was predicted
    assert cv2.imread(str(run / "evaluation" / "worst.jpg")) is not None
    for photo in (p for p in (ROOT / "test_path").iterdir() if p.suffix != ".md"):
        size = cv2.imread(str(photo)).shape
        for name in ("this_run", "bundled"):
            out = work / "predictions" / name
            mask = cv2.imread(str(out / f"{photo.stem}_mask.png"), cv2.IMREAD_UNCHANGED)
            assert mask.shape == size[:2]
            assert set(np.unique(mask)) <= {0, 255}
            assert cv2.imread(str(out / f"{photo.stem}_overlay.jpg")).shape == size
        assert 0.005 < (mask > 0).mean() < 0.6  # the bundled network finds a face
    return run


def made_in_checkout() -> list:
    """What the scripts would leave in the checkout itself."""
    return [p for name in ("runs", "predictions", "data", "CelebAMask-HQ") for p in (ROOT / name).glob("**/*")]


def test_runs_from_another_folder_and_goes_on_when_run_again(execute, small_bundled, tmp_path):
    elsewhere, clone, before = tmp_path / "elsewhere", copy_project(tmp_path / "clone"), made_in_checkout()
    shutil.copy(small_bundled[0], clone / "weights")
    (clone / "const.py").write_text((clone / "const.py").read_text().replace(const.BUNDLED_SHA256, small_bundled[1]))
    elsewhere.mkdir()
    printed = execute(elsewhere, FACE_SEG_HOME=clone)
    assert f"the code is in {clone.resolve()}" in printed
    assert "DRAWN faces, not photographs" in printed
    run = check_files(clone, clone / "data" / "drawn-12", epochs=1)
    first = (run / "history.csv").read_text()

    printed = execute(elsewhere, replace=[(EPOCHS, "epochs=2,")], until="history = train(config)", FACE_SEG_HOME=clone)
    assert "after epoch 1" in printed
    assert "Nothing to do" in printed
    check_files(clone, clone / "data" / "drawn-12", epochs=2)
    assert (run / "history.csv").read_text().startswith(first)
    assert list(elsewhere.iterdir()) == []
    assert made_in_checkout() == before


@pytest.fixture
def mount(celeb_source, tmp_path):
    """A folder as /kaggle/input is with the data set attached, read-only."""
    folder = tmp_path / "input"
    shutil.copytree(celeb_source, folder / "celebamaskhq")
    below = [folder, *folder.rglob("*")]
    for path in below:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in below:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_on_kaggle_it_reads_the_input_and_writes_to_the_working_folder(execute, notebook, mount, tmp_path):
    origin = copy_project(tmp_path / "origin" / "face-segmentation.git")
    git = ["git", "-C", str(origin), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet", "--initial-branch", "main"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    working, temp = tmp_path / "working", tmp_path / "temp"
    working.mkdir()
    outside = [mount, tmp_path / "origin"]
    before, checkout = [fingerprints(folder) for folder in outside], made_in_checkout()
    kaggle = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_INPUT": mount, "KAGGLE_WORKING": working, "KAGGLE_TEMP": temp}
    fork = (f'"{repository(notebook)}"', f'"{origin.as_uri()}"')
    printed = execute(working, replace=[fork], until="preparation.prepare(", **kaggle)
    code = f"the code is in {(working / 'face-segmentation').resolve()}"
    assert code in printed
    assert code in first_cell(notebook, working, **kaggle).stdout  # not cloned a second time
    assert f"CelebAMask-HQ: {mount / 'celebamaskhq' / 'CelebAMask-HQ'}" in printed
    assert "DRAWN" not in printed
    assert len(list((temp / "CelebAMask-HQ" / "masks_train").iterdir())) == 12
    assert not list(working.glob("**/images_*"))  # what is in the working folder becomes the notebook's output
    assert [fingerprints(folder) for folder in outside] == before
    assert sorted(tmp_path.iterdir()) == sorted([*outside, working, temp])
    assert made_in_checkout() == checkout


# --- Single cells ----------------------------------------------------------------------------------------------------
def cell_with(notebook, words: str) -> str:
    (source,) = (cell.source for cell in code_cells(notebook) if words in cell.source)
    return source


@pytest.mark.parametrize(
    ("device", "label", "model"),
    [("cuda", "CelebAMask-HQ", "deeplabv3"), ("cuda", "DRAWN faces", "lite"), ("cpu", "CelebAMask-HQ", "lite")],
)
def test_the_large_network_is_for_a_gpu_and_real_faces(device, label, model, notebook, tmp_path, capsys):
    names = {"TINY": False, "DEVICE": device, "LABEL": label, "RUNS": tmp_path, "DATA": tmp_path}
    exec(cell_with(notebook, "config = Config()"), names)
    assert names["config"].model == model
    printed = capsys.readouterr().out
    assert model in printed
    assert ("The small network is trained instead of DeepLabV3" in printed) == (model == "lite")


@pytest.mark.parametrize(("have", "installed"), [("1.4.24", [PACKAGE]), ("2.0.8", []), (None, [PACKAGE])])
def test_old_packages_are_replaced_by_version(have, installed, notebook, monkeypatch, capsys):
    from importlib import metadata

    asked, real = [], metadata.version

    def version(name):
        if name == "albumentations" and have is None:
            raise metadata.PackageNotFoundError(name)
        return have if name == "albumentations" else real(name)

    def pip(command):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", pip)
    names = {"HOME": ROOT, "importlib": importlib, "subprocess": subprocess, "sys": sys}
    exec(cell_with(notebook, "Requirement"), names)
    assert [name for command in asked for name in command[5:]] == installed
    assert "installed now:" in capsys.readouterr().out


# --- Its first cell alone --------------------------------------------------------------------------------------------
def first_cell(notebook, folder: Path, **env) -> subprocess.CompletedProcess:
    source = code_cells(notebook)[0].source
    command = [sys.executable, "-c", source]
    return subprocess.run(
        command, cwd=folder, env=environment(**env), capture_output=True, text=True, check=False, timeout=60
    )


def test_the_clone_is_found_from_a_folder_within_it(notebook, tmp_path):
    clone = copy_project(tmp_path / "clone")
    (clone / "notebooks").mkdir()
    done = first_cell(notebook, clone / "notebooks")
    assert done.returncode == 0, done.stderr
    assert f"the code is in {clone.resolve()}" in done.stdout


def test_without_a_clone_and_a_network_it_says_what_to_do(notebook, tmp_path):
    done = first_cell(notebook, tmp_path)
    assert done.returncode != 0
    assert "cannot be cloned: switch the network on, or start inside a clone" in done.stderr
    assert list(tmp_path.iterdir()) == []
