"""The commands as they are typed: predict, evaluate, the main job, and every kind of bad input."""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, leftovers, no_traceback, one_sentence, python, run
from PIL import Image

import const
import inference
import main
import model
import pictures
from common import UserError
from drawing import find_faces
from inference import to_mask
from main import Runner
from pictures import read_picture
from training import Config

MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for pattern in ("*.py", "extras/*.py", "robust/*.py", "studies/*.py")
    for path in sorted(ROOT.glob(pattern))
]


def photo(seed: int = 0, h: int = 60, w: int = 80) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (w, h), interpolation=cv2.INTER_CUBIC)


def save(path: Path, seed: int = 0, **size) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(seed, **size)).save(path)
    return path


def predict(weights, *args) -> int:
    return main.main(["predict", *map(str, args), "--weights", str(weights), "--device", "cpu"])


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def runner(lite_weights) -> Runner:
    return Runner("cpu", log=lambda line: None).load(lite_weights)


# --- Shape ----------------------------------------------------------------------------------------------------------
def test_paths_are_rooted_at_the_file(tmp_path):
    code = "import const, json; given = vars(const).items()\n"
    code += "print(json.dumps({k: str(v) for k, v in given if k.endswith(('DIR', 'PATH'))}))"
    paths = json.loads(python(code, cwd=tmp_path).stdout)
    assert paths["DIR_PATH"] == str(ROOT)
    assert {"CELEB_DIR", "TEST_DIR", "PREDICTIONS_DIR", "WEIGHTS_DIR", "RUNS_DIR", "MODEL_PATH"} <= set(paths)
    assert all(p.startswith(str(ROOT)) for p in paths.values())


def test_nothing_runs_on_import(tmp_path):
    code = f"import os; before = set(os.listdir({str(ROOT)!r}))\n" + "\n".join(f"import {m}" for m in MODULES)
    result = python(
        code + "\nprint('matplotlib' in sys.modules, 'gdown' in sys.modules, 'albumentations' in sys.modules)"
        f"\nprint(set(os.listdir({str(ROOT)!r})) - before - {{'__pycache__'}}, os.listdir('.'))",
        cwd=tmp_path,
        fresh=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "False False False\nset() []\n"
    assert result.stderr == ""


def test_help_is_light():
    code = "import main\ntry:\n    main.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
    check = "print(sorted({'torch', 'cv2', 'numpy', 'albumentations', 'PIL'} & set(sys.modules)), file=sys.stderr)"
    for command in ("--help", "train --help", "predict --help", "evaluate --help"):
        result = python(code + check, *command.split(), fresh=True)
        assert result.stderr.strip() == "[]"
        assert "usage:" in result.stdout
    times = []
    for _ in range(3):
        started = time.perf_counter()
        help_text = run("main.py", "--help", fresh=True)
        times.append(time.perf_counter() - started)
    assert help_text.returncode == 0
    assert min(times) < 0.5
    assert "logit 0.1" in run("main.py", "predict", "--help").stdout.replace("\n", " ").replace("  ", " ")


def test_defaults_are_the_originals():
    args = main.build_parser().parse_args(["train"])
    assert args.model is None  # not given: const.MODEL
    assert (const.MODEL, const.IMG_SIZE, const.BATCH_SIZE, const.EPOCHS, const.LR, const.SEED) == (
        "deeplabv3", 512, 4, 8, 1e-4, 42,
    )  # fmt: skip
    from training import Config

    config = Config()
    assert (config.model, config.size, config.batch_size, config.epochs, config.lr) == ("deeplabv3", 512, 4, 8, 1e-4)
    assert config.pretrained
    assert main.build_parser().parse_args(["predict", "x"]).threshold == 0.5


# --- predict --------------------------------------------------------------------------------------------------------
def test_the_command_end_to_end(lite_weights, tmp_path, runner):
    """Files and folders, names that clash, odd names, broken files among good ones, from another directory."""
    inside = tmp_path / "in"
    save(inside / "cat.png", 1)
    save(inside / "cat.jpg", 2)
    save(inside / "sub" / "cat.png", 3, h=33, w=47)
    save(inside / "Ünï cödé 写真.png", 4)
    save(inside / f"{'long' * 60}.png", 5)
    save(inside / "dot.in.name.webp", 6)
    (inside / "text.jpg").write_text("hello")
    (inside / "empty.jpg").write_bytes(b"")
    cut = save(inside / "cut.jpg", 7)
    cut.write_bytes(cut.read_bytes()[:-300])
    turned = Image.fromarray(photo(8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(inside / "turned.jpg", exif=exif)
    result = no_traceback(
        run("main.py", "predict", "in", "in/cat.png", "gone.jpg", "--weights", lite_weights, "--out", "out",
            "--device", "cpu", "--batch-size", "3", cwd=tmp_path, fresh=True)
    )  # fmt: skip
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    for name in ("in/text.jpg", "in/empty.jpg", "in/cut.jpg", "gone.jpg"):
        assert sum(name in line for line in errors) == 1
    assert "8 of 12 pictures" in result.stdout
    made = files(tmp_path / "out")
    masks = {name.removesuffix("_mask.png") for name in made if name.endswith("_mask.png")}
    overlays = {name.removesuffix("_overlay.jpg") for name in made if name.endswith("_overlay.jpg")}
    assert masks == overlays
    assert len(masks) == 8
    assert len(made) == 16
    assert {"sub/cat", "Ünï cödé 写真", "dot.in.name", "turned", "cat"} <= masks
    assert len([n for n in masks if n.startswith("cat")]) == 3
    by_content = {}
    for name in masks:
        with Image.open(tmp_path / "out" / f"{name}_mask.png") as mask:
            assert mask.mode == "L"
            array = np.asarray(mask)
            assert set(np.unique(array)) <= {0, 255}
            by_content[name] = array
        with Image.open(tmp_path / "out" / f"{name}_overlay.jpg") as overlay:
            assert overlay.mode == "RGB"
            assert overlay.size == array.shape[::-1]
    assert by_content["turned"].shape == (80, 60)  # as it is seen
    assert by_content["sub/cat"].shape == (33, 47)
    np.testing.assert_array_equal(by_content["dot.in.name"], runner.predict_image(inside / "dot.in.name.webp"))
    assert not leftovers(tmp_path)


def test_the_overlay_is_the_originals_colour(lite_weights, tmp_path):
    save(tmp_path / "a.png", 3, h=90, w=120)
    assert predict(lite_weights, tmp_path / "a.png", "--out", tmp_path / "out") == 0
    mask = cv2.imread(str(tmp_path / "out" / "a_mask.png"), cv2.IMREAD_UNCHANGED)
    assert 0.02 < (mask > 0).mean() < 0.98
    picture = photo(3, 90, 120).astype(float)
    want = np.where(mask[..., None] > 0, 0.7 * np.array([0x80, 0x00, 0xFF]) + 0.3 * picture, picture)
    got = np.asarray(Image.open(tmp_path / "out" / "a_overlay.jpg")).astype(float)
    inner = cv2.erode(mask, np.ones((9, 9))) > 0  # away from the contour, where JPEG bleeds
    outer = cv2.dilate(mask, np.ones((9, 9))) == 0
    for region in (inner, outer):
        assert region.any()
        assert np.abs(got - want)[region].mean() < 6
    from drawing import overlay

    exact = overlay(photo(3, 90, 120), mask, (0x80, 0, 0xFF), 0.7)
    np.testing.assert_allclose(exact, want, atol=0.51)


def test_results_into_the_searched_folder(lite_weights, tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "sub" / "b.jpg", 1)
    for _ in range(2):
        assert predict(lite_weights, tmp_path, "--out", tmp_path) == 0
        assert files(tmp_path) == {"a.png", "a_mask.png", "a_overlay.jpg",
                                   "sub/b.jpg", "sub/b_mask.png", "sub/b_overlay.jpg"}  # fmt: skip
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], photo())  # the input as it was


def test_batches_change_nothing(lite_weights, tmp_path):
    for i, (h, w) in enumerate([(60, 80), (60, 80), (80, 60), (64, 64), (60, 80), (50, 90)]):
        save(tmp_path / "in" / f"{i}.png", i, h=h, w=w)
    made = {}
    for size in (1, 3, 50):
        out = tmp_path / f"out{size}"
        assert predict(lite_weights, tmp_path / "in", "--out", out, "--batch-size", size) == 0
        made[size] = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted(out.glob("*_mask.png"))]
        assert len(made[size]) == 6
    for size in (3, 50):
        for a, b in zip(made[1], made[size], strict=True):
            assert a.shape == b.shape
            assert (a != b).mean() < 0.002


def test_thresholds(lite_weights, tmp_path, runner):
    save(tmp_path / "a.png", 2)
    fractions = []
    for threshold in (0.05, 0.5, 0.95):
        assert predict(lite_weights, tmp_path / "a.png", "--out", tmp_path / "out", "--threshold", threshold) == 0
        mask = cv2.imread(str(tmp_path / "out" / "a_mask.png"), cv2.IMREAD_UNCHANGED)
        logits = runner.segmenter.logits([photo(2)])[0]
        assert ((mask > 0) == (1 / (1 + np.exp(-logits)) > threshold)).mean() > 0.999
        fractions.append((mask > 0).mean())
    assert fractions[0] >= fractions[1] >= fractions[2]
    assert fractions[0] > fractions[2]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threshold", "0"), ("--threshold", "1"), ("--threshold", "-1"), ("--threshold", "abc"),
        ("--threshold", "nan"), ("--threshold", "50"), ("--batch-size", "0"), ("--batch-size", "-2"),
        ("--batch-size", "1.5"), ("--passes", "3"), ("--shard", "1/99999999999999999999"), ("--shard", "3/2"),
    ],
)  # fmt: skip
def test_values_out_of_range(option, value, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["predict", str(tmp_path), f"{option}={value}"])
    assert caught.value.code == 2
    one_sentence(capsys.readouterr().err, option, value)


@pytest.mark.parametrize("option", [["--epochs", "0"], ["--lr", "0"], ["--lr", "x"], ["--size", "8"],
                                    ["--workers", "-1"], ["--seed", "-1"], ["--limit", "0"], ["--model", "x"],
                                    ["--batch-size", "0"]])  # fmt: skip
def test_training_values_out_of_range(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["train", *option])
    assert caught.value.code == 2
    one_sentence(capsys.readouterr().err, option[0])


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta", "", "xpu", "hpu"])
def test_a_device_that_is_not_here(device, lite_weights, tmp_path, capsys):
    save(tmp_path / "a.png")
    code = main.main(["predict", str(tmp_path), "--out", str(tmp_path / "out"), "--weights", str(lite_weights),
                      "--device", device])  # fmt: skip
    assert code == 1
    one_sentence(capsys.readouterr().err, repr(device), "--device cpu")
    assert not (tmp_path / "out").exists()


def test_missing_and_empty_inputs(lite_weights, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    assert predict(lite_weights, tmp_path / "empty", "--out", out) == 1
    one_sentence(capsys.readouterr().err, tmp_path / "empty", "no pictures")
    assert not out.exists()
    assert predict(lite_weights, tmp_path / "gone.jpg", "--out", out) == 1
    one_sentence(capsys.readouterr().err, tmp_path / "gone.jpg")
    save(tmp_path / "a.png")
    assert predict(lite_weights, tmp_path / "a.png", tmp_path / "empty", "--out", out) == 1
    one_sentence(capsys.readouterr().err, tmp_path / "empty")
    assert files(out) == {"a_mask.png", "a_overlay.jpg"}


def test_a_picture_too_long_for_its_overlay_costs_no_other(lite_weights, tmp_path, capsys):
    save(tmp_path / "in" / "a.png")
    Image.new("RGB", (66000, 2)).save(tmp_path / "in" / "long.png")
    assert predict(lite_weights, tmp_path / "in", "--out", tmp_path / "out") == 1
    one_sentence(capsys.readouterr().err, "long.png")
    assert files(tmp_path / "out") == {"a_mask.png", "a_overlay.jpg"}


def test_outputs_that_cannot_be_written(lite_weights, tmp_path, capsys, monkeypatch):
    save(tmp_path / "in" / "a.png")
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert predict(lite_weights, tmp_path / "in", "--out", out) == 1
        one_sentence(capsys.readouterr().err, out, "cannot be written")
    assert (tmp_path / "file").read_text() == "precious"

    def full(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert predict(lite_weights, tmp_path / "in", "--out", tmp_path / "out") == 1
    one_sentence(capsys.readouterr().err, tmp_path / "out", "No space left on device")
    assert not files(tmp_path / "out")
    monkeypatch.undo()

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert predict(lite_weights, tmp_path / "in", "--out", tmp_path / "new") == 1
    one_sentence(capsys.readouterr().err, tmp_path / "new", "Permission denied")


def test_a_disk_that_is_really_full(lite_weights, tmp_path):
    """A limit on the size of files stands for the full disk: the write itself fails, half way."""
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", i, h=300, w=300)
    code = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\nimport main\nsys.exit(main.main(sys.argv[1:]))"
    )
    result = python(code, "predict", tmp_path / "in", "--out", tmp_path / "out", "--weights", lite_weights)
    assert result.returncode == 1
    one_sentence(result.stderr, tmp_path / "out", "cannot be written")
    assert not leftovers(tmp_path / "out")
    for name in files(tmp_path / "out"):
        cv2.imread(str(tmp_path / "out" / name)).shape  # noqa: B018  what has its name is whole


@pytest.mark.parametrize("kind", ["missing", "page"])
def test_bad_weights(kind, tmp_path, capsys):
    """All kinds are in test_model.py; here is what the commands make of them."""
    save(tmp_path / "in" / "a.png")
    path = tmp_path / f"{kind}.pth"
    if kind == "page":
        path.write_bytes(b"<!doctype html>")
    assert predict(path, tmp_path / "in", "--out", tmp_path / "out") == 1
    one_sentence(capsys.readouterr().err, path)
    assert main.main(["evaluate", "--weights", str(path), "--data", str(tmp_path)]) == 1
    one_sentence(capsys.readouterr().err, path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_weights_that_are_not_finite(command, value, prepared, lite_weights, tmp_path, capsys):
    net, info = model.load(lite_weights)
    with torch.no_grad():
        net.head.weight[0, 0] = value
    model.save_state(net.state_dict(), tmp_path / "bad.pth", info)
    save(tmp_path / "a.png")
    given = {"predict": [tmp_path / "a.png", "--precision", "bf16", "--backend", "torch"],
             "evaluate": ["--data", prepared], "export": []}  # fmt: skip
    out = tmp_path / ("x.onnx" if command == "export" else "out")
    code = main.main([command, *map(str, given[command]), "--weights", str(tmp_path / "bad.pth"), "--out", str(out)])
    assert code == 1
    one_sentence(capsys.readouterr().err, "not finite")
    assert not out.is_file()
    assert not (out.is_dir() and files(out))


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
), RuntimeError("unable to mmap 12 bytes from file <x>: Cannot allocate memory (12)"), cv2.error(
    "OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes in function 'x'"
)])  # fmt: skip
def test_memory_that_does_not_suffice_is_one_sentence(error, capsys, monkeypatch):
    def full(*args):
        raise error

    monkeypatch.setattr(main, "_predict", full)
    assert main.main(["predict", "x"]) == 1
    one_sentence(capsys.readouterr().err, "memory does not suffice")


@pytest.mark.parametrize(("argv", "advice"), [(["predict", "x"], ["--batch-size", "--device cpu"]), (["export"], []),
                                              (["evaluate", "--weights", "bundled"], ["--device cpu"]),
                                              (["train"], ["--batch-size", "--size", "--device cpu"])])  # fmt: skip
def test_advice_on_memory_is_of_options_there_are(argv, advice, capsys, monkeypatch):
    errors = {True: torch.OutOfMemoryError("CUDA out of memory."), False: MemoryError()}
    for on_gpu, error in errors.items():

        def full(*args, error=error):
            raise error

        monkeypatch.setattr(main, f"_{argv[0]}", full)
        assert main.main(argv) == 1
        wanted = [word for word in advice if on_gpu or word != "--device cpu"]
        said = one_sentence(capsys.readouterr().err, "memory", *wanted)
        assert said.count("--") == len(wanted)


@pytest.mark.parametrize("old", main.RENAMED)
def test_an_old_option_tells_its_new_name(old, capsys):
    new = main.RENAMED[old]
    for argv in ([old, "2"], [f"{old}=2"]):
        assert main.main(["predict", "x", *argv]) == 1
        one_sentence(capsys.readouterr().err, old, new)
    helps = []
    for command in ("predict", "train"):
        with pytest.raises(SystemExit):
            main.main([command, "--help"])
        helps.append(capsys.readouterr().out)
    assert any(new in text for text in helps)
    assert not any(f"{old} " in text for text in helps)


def test_the_model_is_known_from_the_file(tmp_path, capsys):
    save(tmp_path / "a.png")
    torch.manual_seed(0)
    torch.save(model.build("unet").state_dict(), tmp_path / "unet.pth")  # no metadata, no --model
    net, info = model.load(tmp_path / "unet.pth")
    assert info.model == "unet"
    runner = Runner("cpu", log=lambda line: None)
    runner.segmenter = inference.Segmenter(net, model.Info("unet", 64))
    assert runner.predict([tmp_path / "a.png"], tmp_path / "out") == []
    assert files(tmp_path / "out") == {"a_mask.png", "a_overlay.jpg"}


def test_24_megapixels_in_bounded_memory(lite_weights, tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from /proc")
    model.save_state(model.read_state(lite_weights)[0], tmp_path / "2.pth", model.Info("lite", 256, 2))
    save(tmp_path / "in" / "a.jpg", 1, h=4000, w=6000)
    shutil.copy(tmp_path / "in" / "a.jpg", tmp_path / "in" / "b.jpg")
    code = (
        "import main\ncode = main.main(sys.argv[1:])\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print('peak', peak.split()[1])\nsys.exit(code)"
    )
    result = python(code, "predict", tmp_path / "in", "--out", tmp_path / "out", "--weights", tmp_path / "2.pth",
                    "--device", "cpu")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split("peak ")[1]) < 2 * 2**20  # KiB
    assert cv2.imread(str(tmp_path / "out" / "b_mask.png"), cv2.IMREAD_UNCHANGED).shape == (4000, 6000)


# --- From Python ----------------------------------------------------------------------------------------------------
def test_predict_image(runner, tmp_path):
    path = save(tmp_path / "a.png", 5)
    mask = runner.predict_image(path)
    assert mask.dtype == np.uint8
    assert mask.shape == (60, 80)
    assert set(np.unique(mask)) <= {0, 255}
    np.testing.assert_array_equal(mask, runner.predict_image(str(path)))
    np.testing.assert_array_equal(mask, runner.predict_image(photo(5)))
    grey = photo(5)[..., 0]
    np.testing.assert_array_equal(runner.predict_image(grey), runner.predict_image(np.dstack([grey] * 3)))
    low, high = (runner.predict_image(path, t).mean() for t in (0.1, 0.9))
    assert low >= mask.mean() >= high
    view = np.asfortranarray(photo(5))[::-1]  # not contiguous, as slices and cameras give them
    np.testing.assert_array_equal(runner.predict_image(view), runner.predict_image(view.copy()))


def test_predict_image_takes_what_python_has(runner, tmp_path):
    path = save(tmp_path / "a.png", 5)
    mask = runner.predict_image(path)
    rgba = np.dstack([photo(5), np.full((60, 80), 255, np.uint8)])
    for picture in (Image.open(path), Image.open(path).convert("RGBA"), rgba):
        np.testing.assert_array_equal(runner.predict_image(picture), mask)
    rgba[:, :40, 3] = 0
    white = photo(5)
    white[:, :40] = 255
    np.testing.assert_array_equal(runner.predict_image(rgba), runner.predict_image(white))
    turned = Image.fromarray(photo(5))
    turned.getexif()[0x0112] = 3
    np.testing.assert_array_equal(runner.predict_image(turned), runner.predict_image(photo(5)[::-1, ::-1]))
    many = runner.predict_image([path, photo(6), Image.fromarray(photo(7, 40, 50))])
    assert [one.shape for one in many] == [(60, 80), (60, 80), (40, 50)]
    np.testing.assert_array_equal(many[0], mask)


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros(5, np.uint8),
                                 np.zeros((0, 4, 3), np.uint8), [[1, 2], [3, 4]]])  # fmt: skip
def test_arrays_that_are_no_pictures(bad, runner):
    with pytest.raises(ValueError, match="expected uint8"):
        runner.predict_image(bad)


def test_settings_from_python_that_would_be_silently_wrong(runner, tmp_path):
    for threshold in (0, 1, 50):
        with pytest.raises(ValueError, match="probability between 0 and 1"):
            runner.predict_image(np.zeros((8, 8, 3), np.uint8), threshold)
    with pytest.raises(UserError, match="no recipe 'robst'"):
        runner.train(Config(recipe="robst"), tmp_path, tmp_path / "run")


def test_files_that_are_no_pictures(runner, tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    for path in (tmp_path / "a.jpg", tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(pictures.PictureError):
            runner.predict_image(path)


# --- Streams, names, packaging --------------------------------------------------------------------------------------
def test_one_number_for_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"face-segmentation {const.VERSION}\n"
    assert f"\nversion: {const.VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_package_names_every_module():
    tomllib = pytest.importorskip("tomllib")
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(named["py-modules"]) == {path.stem for path in ROOT.glob("*.py")}
    assert set(named["packages"]) == {path.parent.name for path in ROOT.glob("*/__init__.py")}


CLOSED = "read, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)"
FULL = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"


@pytest.mark.parametrize("command", [["predict", "{folder}"], ["--version"]])
def test_standard_output_closed_early_or_full(command, lite_weights, tmp_path):
    save(tmp_path / "in" / "a.png")
    argv = [part.format(folder=tmp_path / "in") for part in command]
    if argv[0] == "predict":
        argv += ["--weights", lite_weights, "--out", tmp_path / "out", "--device", "cpu"]
    results = {}
    for spoilt in (CLOSED, FULL) if Path("/dev/full").exists() else (CLOSED,):
        code = f"import os\n{spoilt}\nsys.stdout = open(1, 'w')\nimport main\nsys.exit(main.main(sys.argv[1:]))"
        results[spoilt] = python(code, *argv, env={"PYTHONUNBUFFERED": ""}, fresh=argv[0] != "predict")
    assert (results[CLOSED].returncode, results[CLOSED].stderr) == (141, "")
    if FULL in results:
        assert results[FULL].returncode == 1
        one_sentence(results[FULL].stderr, "standard output", "No space left")


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_standard_input_and_output_closed(stream, lite_weights, monkeypatch, capsys):
    monkeypatch.setattr(sys, stream, None)  # as Python has it then
    assert predict(lite_weights, "-") == 1
    one_sentence(capsys.readouterr().err, "standard input and output")


@pytest.mark.parametrize("option", ["--blur", "--skip-existing", "--shard 1/2", "--out elsewhere", "--save overlay",
                                    "--save=json", "--gif=a.gif", "--webcam=0", "--masks"])  # fmt: skip
def test_a_pipe_takes_no_option_of_files(option, capsys):
    assert main.main(["predict", "-", *option.split()]) == 1
    one_sentence(capsys.readouterr().err, "the mask alone", f"leave out {re.split('[ =]', option)[0]}")


def test_names_that_no_terminal_prints(lite_weights, tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(folder)
    save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", folder + b"/..png")
    shutil.copy(tmp_path / "a.png", folder + b"/\xff.png")
    result = run("main.py", "predict", folder, folder + b"/..png", "--out", folder + b"/out",
                 "--weights", lite_weights, "--device", "cpu")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(os.listdir(folder + b"/out")) == 4


def test_empty_paths_are_refused(capsys):
    for argv in (["predict", "x", "--out", ""], ["predict", ""], ["export", "--out", ""], ["train", "--run-dir", ""]):
        with pytest.raises(SystemExit) as caught:
            main.main(argv)
        assert caught.value.code == 2
        one_sentence(capsys.readouterr().err, "'' is not a path")


def test_a_name_too_long_and_a_locked_folder_cost_no_other(lite_weights, tmp_path, capsys, monkeypatch):
    save(tmp_path / "a.png")
    stat = os.stat

    def locked(path, *args, **kwargs):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", locked)
    given = tmp_path / "a.png", "n" * 300 + ".png", "n" * 300 + ".mp4", tmp_path / "locked" / "b.png"
    assert predict(lite_weights, *given, "--out", tmp_path / "out") == 1
    monkeypatch.undo()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert sum("Permission denied" in line for line in errors) == 1
    assert files(tmp_path / "out") == {"a_mask.png", "a_overlay.jpg"}


def test_no_face_as_an_exit_code(tmp_path, capsys):
    Image.new("RGB", (90, 70), "white").save(tmp_path / "in.png")
    assert predict("bundled", tmp_path / "in.png", "--out", tmp_path / "out", "--blur") == 0
    assert "Warning: 1 picture without a face" in capsys.readouterr().out
    assert predict("bundled", tmp_path / "in.png", "--out", tmp_path / "out", "--fail-empty") == 1
    one_sentence(capsys.readouterr().err, "1 picture without a face", "in.png")


def test_what_is_rejected_is_no_face_at_any_threshold():
    runner = Runner("cpu", log=lambda *_: None).load("bundled", precision="fp32")
    logits = runner.segmenter.logits([read_picture(const.TEST_DIR / "astronaut.png")])[0]
    for threshold in (0.05, 0.3, 0.5):
        assert len(find_faces(to_mask(logits, threshold), logits)) == 1, threshold


def test_one_path_is_a_list_of_one(runner, tmp_path):
    path = save(tmp_path / "in" / "a.png")
    for given in (path, str(path), [path]):
        assert runner.predict(given, tmp_path / "out") == []
    with pytest.raises(UserError, match="Load the weights"):
        Runner("cpu").evaluate(tmp_path, tmp_path / "out")


def test_videos_say_what_they_cannot_hold(lite_weights, tmp_path, capsys):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    assert predict(lite_weights, tmp_path / "clip.mp4", "--save", "json,probability", "--out", tmp_path / "out") == 1
    one_sentence(capsys.readouterr().err, "no json and no probability")


# --- The main job ---------------------------------------------------------------------------------------------------
MAIN_JOB = """
import time, const
from pathlib import Path
root = Path(sys.argv[1])
const.MODEL_PATH, const.CACHE_DIR = root / "model.best.pth", root / ".cache"
const.TEST_DIR, const.PREDICTIONS_DIR = Path(sys.argv[2]), root / "predictions"
if len(sys.argv) > 4:
    const.BUNDLED_WEIGHTS, const.BUNDLED_SHA256 = Path(sys.argv[3]), sys.argv[4]
import main, model
find, started = model.find_weights, []
def timed(*args, **kwargs):
    began = time.perf_counter()
    path = find(*args, **kwargs)
    print("seconds", time.perf_counter() - began)
    return path
model.find_weights = timed
sys.exit(main.main([]))
"""
OFFLINE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")


def test_the_main_job_without_a_network(lite_weights, tmp_path):
    save(tmp_path / "photos" / "a.png", 1)
    save(tmp_path / "photos" / "b.jpg", 2)
    digest = hashlib.sha256(lite_weights.read_bytes()).hexdigest()
    arguments = tmp_path, tmp_path / "photos", lite_weights, digest
    result = no_traceback(python(MAIN_JOB, *arguments, cwd="/", env=OFFLINE))
    assert result.returncode == 0, result.stderr
    assert "published weights cannot be fetched" in result.stdout
    assert "bundled" in result.stdout
    assert float(result.stdout.split("seconds ")[1].split()[0]) < 10
    assert files(tmp_path / "predictions") == {"a_mask.png", "a_overlay.jpg", "b_mask.png", "b_overlay.jpg"}
    shutil.copy(lite_weights, tmp_path / "model.best.pth")
    result = python(MAIN_JOB, *arguments, env=OFFLINE)
    assert result.returncode == 0
    assert f"Weights: {tmp_path / 'model.best.pth'}" in result.stdout
    assert "published" not in result.stdout
    (tmp_path / "model.best.pth").write_bytes(b"<html>")
    result = python(MAIN_JOB, *arguments, env=OFFLINE)
    assert result.returncode == 1
    one_sentence(result.stderr, "model.best.pth", "web page")


def test_the_main_job_on_the_sample_photographs(tmp_path):
    result = no_traceback(python(MAIN_JOB, tmp_path, ROOT / "test_path", env=OFFLINE))
    assert result.returncode == 0, result.stderr
    samples = [p for p in (ROOT / "test_path").iterdir() if p.suffix in const.IMAGE_SUFFIXES]
    assert len(samples) >= 3
    for sample in samples:
        mask = cv2.imread(str(tmp_path / "predictions" / f"{sample.stem}_mask.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == pictures.read_picture(sample).shape[:2]
        assert 0.005 < (mask > 0).mean() < 0.7, sample.name


def test_any_command_from_any_directory(prepared, lite_weights, tmp_path):
    save(tmp_path / "here" / "a.png")
    result = no_traceback(
        run("main.py", "predict", "a.png", "--weights", lite_weights, "--out", "o", cwd=tmp_path / "here")
    )
    assert result.returncode == 0, result.stderr
    assert files(tmp_path / "here") == {"a.png", "o/a_mask.png", "o/a_overlay.jpg"}
    bad = no_traceback(run("main.py", "predict", "none.png", "--weights", "no.pth", cwd=tmp_path))
    assert bad.returncode == 1
    one_sentence(bad.stderr, "no.pth")
    nonsense = no_traceback(run("main.py", "frobnicate"))
    assert nonsense.returncode == 2


def test_a_missing_package_is_one_sentence(tmp_path):
    code = "sys.modules['torch'] = None\nimport main\nsys.exit(main.main(sys.argv[1:]))"
    result = python(code, "predict", tmp_path / "a.png")
    assert result.returncode == 1
    one_sentence(result.stderr, "no package torch", "pip install -r requirements.txt")
