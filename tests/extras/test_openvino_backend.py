"""OpenVINO in place of PyTorch: the same masks, a cache for the second run, int8, and every way to do without."""

import importlib
import shutil
import sys
import textwrap
import zipfile
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from conftest import leftovers, one_sentence, python

import const
import devices
import main
import model
from common import UserError
from extras import openvino_backend
from inference import Segmenter
from main import Runner
from metrics import Counts
from pictures import read_picture

needs_openvino = pytest.mark.skipif(not openvino_backend.is_installed("openvino"), reason="openvino is not installed")
needs_nncf = pytest.mark.skipif(not openvino_backend.is_installed("nncf"), reason="nncf is not installed")
SAMPLES = sorted(const.TEST_DIR.glob("*.*g"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(openvino_backend, "CACHE", folder)
    return folder


@pytest.fixture
def weights(lite_weights, tmp_path):
    """A copy, beside which an int8 file may be put."""
    return shutil.copy(lite_weights, tmp_path / "own.pth")


def predict(weights, out, *options) -> int:
    command = ["predict", str(SAMPLES[0]), "--weights", str(weights), "--out", str(out), "--device", "cpu"]
    return main.main([*command, "--save", "mask", *options])


@needs_openvino
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sigaltstack by its Linux layout")
def test_signals_keep_their_stack():
    code = """
    import ctypes
    from main import Runner
    runner = Runner("cpu").load("bundled", backend="openvino")
    stack = (ctypes.c_void_p * 3)()  # pointer, flags, size
    ctypes.CDLL(None).sigaltstack(None, stack)
    print("stack", stack[0])
    """
    done = python(textwrap.dedent(code))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "stack None"), done.stderr


@needs_openvino
def test_masks_are_those_of_pytorch():
    exact = Runner("cpu").load("bundled", precision="fp32", backend="torch")
    pictures, counts = [read_picture(path) for path in SAMPLES[:4]], {}
    targets = [exact.segmenter.logits([picture])[0] for picture in pictures]
    for precision in ("fp32", "bf16"):
        ours = Runner("cpu").load("bundled", precision=precision, backend="openvino")
        assert isinstance(ours.segmenter.backend, openvino_backend.Backend)
        assert ours.segmenter.backend.precision == (precision if devices.cpu_has_bf16() else "fp32")
        counts[precision] = Counts()
        for picture, target in zip(pictures, targets, strict=True):
            found = ours.segmenter.logits([picture])[0]
            clear = (precision == "fp32") | (np.abs(target) > 1.5)  # bf16 rounds what lies about 0, as PyTorch's does
            counts[precision].add((found > 0) & clear, (target > 0) & clear, boundary=False)
    assert counts["fp32"].iou >= 0.9999
    assert counts["bf16"].iou >= 0.998


@needs_openvino
def test_threads_share_it(lite_weights):
    segmenter = Runner("cpu").load(lite_weights, backend="openvino", precision="fp32").segmenter
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, 96, 3), dtype=np.uint8) for h in (64, 96, 80, 200) * 4]
    alone = [segmenter.logits([picture])[0] for picture in pictures]
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        together = list(pool.map(lambda picture: segmenter.logits([picture])[0], pictures))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


@needs_openvino
@pytest.mark.parametrize("attempt", range(3))  # without the table made beforehand, six of ten hang
def test_first_calls_of_many_threads_at_once(lite_weights, attempt):
    code = f"""
    import threading
    import numpy as np
    from main import Runner
    backend = Runner("cpu").load({str(lite_weights)!r}, backend="openvino").segmenter.backend
    sys.setswitchinterval(1e-6)
    barrier = threading.Barrier(8)
    def call():
        barrier.wait()
        print(backend(np.zeros((1, 64, 64, 3), np.uint8)).shape)
    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    """
    done = python(textwrap.dedent(code), timeout=60)
    assert done.stdout.count("(1, 64, 64)") == 8, done.stderr


@needs_openvino
def test_auto_takes_it_and_converts_once(weights, cache, tmp_path, capsys):
    assert predict(weights, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert said.count("converted") == said.count("OpenVINO computes") == 1
    (folder,) = cache.iterdir()
    before = (folder / "network.bin").stat().st_mtime_ns
    assert predict(weights, tmp_path / "out") == 0
    assert "converted" not in capsys.readouterr().out
    assert (folder / "network.bin").stat().st_mtime_ns == before
    net, info = model.load(weights)
    with torch.no_grad():
        net.head.bias += 100
    model.save_state(net.state_dict(), weights, info)
    assert predict(weights, tmp_path / "out") == 0  # other weights of the same name
    assert len(list(cache.iterdir())) == 2
    assert cv2.imread(str(next((tmp_path / "out").glob("*_mask.png"))), 0).all()
    assert not leftovers(tmp_path)


@needs_openvino
@pytest.mark.parametrize("name", ["network.xml", "network.bin", "*.blob", "sums.json"])
def test_a_damaged_cache_is_made_anew(weights, cache, tmp_path, capsys, name):
    assert predict(weights, tmp_path / "out") == 0
    (folder,) = cache.iterdir()
    results = [*(tmp_path / "out").iterdir()]
    right = [path.read_bytes() for path in results]
    for path in folder.glob(name):  # damage that keeps the length
        path.chmod(0o600)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    capsys.readouterr()
    assert predict(weights, tmp_path / "out") == 0
    assert capsys.readouterr().out.count("converted") == 1
    assert [path.read_bytes() for path in results] == right


@needs_openvino
def test_the_cache_holds_few_networks(cache, lite_weights, monkeypatch):
    monkeypatch.setattr(openvino_backend, "KEPT", 2)
    for i in range(4):
        openvino_backend._into_cache(cache / str(i), lambda folder: (folder / "network.xml").write_text(""))
    assert len(list(cache.iterdir())) == 2
    assert (cache / "3").is_dir()


@needs_openvino
def test_without_a_cache_pytorch_goes_on(weights, cache, tmp_path, capsys):
    cache.write_text("a file")
    assert predict(weights, tmp_path / "out") == 0
    assert "Going on with PyTorch" in capsys.readouterr().out
    assert predict(weights, tmp_path / "out", "--backend", "openvino") == 1
    one_sentence(capsys.readouterr().err, "cache")


def test_without_the_package(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert predict(weights, tmp_path / "out") == 0
    assert "OpenVINO" not in capsys.readouterr().out
    assert predict(weights, tmp_path / "out", "--backend", "openvino") == 1
    one_sentence(capsys.readouterr().err, "pip install openvino")


def test_fp32_and_other_networks_are_left_to_pytorch(weights):
    for precision, net in (("fp32", model.load(weights)[0]), ("auto", torch.nn.Identity())):
        assert openvino_backend.choose("auto", net, weights, torch.device("cpu"), precision) is None


@needs_openvino
def test_another_network_where_asked_for(cache, tmp_path):
    torch.manual_seed(0)
    net, info, path = model.build("deeplabv3").eval(), model.Info("deeplabv3", 64), tmp_path / "weights.pth"
    path.write_bytes(b"stands for them")
    backend = openvino_backend.choose("openvino", net, path, torch.device("cpu"), "fp32", log=lambda line: None)
    picture = read_picture(SAMPLES[0])
    ours, exact = (Segmenter(net, info, precision="fp32", backend=b).logits([picture])[0] for b in (backend, None))
    np.testing.assert_allclose(ours, exact, atol=1e-3 * float(np.abs(exact).max()))


# --- int8 -----------------------------------------------------------------------------------------------------------
def test_int8_without_training_faces(weights, tmp_path, capsys):
    (tmp_path / "images_val").mkdir()
    shutil.copy(SAMPLES[0], tmp_path / "images_val" / "1.jpg")
    assert main.main(["export", "--int8", "--weights", str(weights), "--data", str(tmp_path)]) == 1
    one_sentence(capsys.readouterr().err, tmp_path, "images_train")


@needs_openvino
@needs_nncf
def test_int8_from_training_faces(weights, prepared, cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(openvino_backend, "LEAST_IOU", 0.8)  # untrained weights, of nothing but close calls
    monkeypatch.setattr(openvino_backend, "FACES", 4)
    file = openvino_backend.int8_path(weights)
    file.write_bytes(b"damaged")  # which it is said to make anew
    assert main.main(["export", "--int8", "--weights", str(weights), "--data", str(prepared)]) == 0
    assert openvino_backend._is_int8(file)
    assert f"{file}: " in capsys.readouterr().out
    assert file.stat().st_size < weights.stat().st_size * 0.7
    assert predict(weights, tmp_path / "out", "--precision", "int8") == 0
    assert "in int8" in capsys.readouterr().out
    masks = {}
    for precision in ("int8", "fp32"):
        masks[precision] = Runner("cpu").load(weights, precision=precision).predict_image(SAMPLES[0]) > 0
    assert 0.8 < Counts().add(masks["int8"], masks["fp32"], boundary=False).iou < 1
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "made")
    made = importlib.import_module("openvino").Core().read_model(tmp_path / "made" / "network.xml")
    monkeypatch.setattr(importlib.import_module("nncf"), "quantize", lambda *_, **__: made)  # the same once more
    Runner("cpu").load(weights, backend="torch").export(str(tmp_path / "text.zip"), faces=str(prepared))
    assert openvino_backend._is_int8(tmp_path / "text.zip")
    monkeypatch.setattr(openvino_backend, "LEAST_IOU", 1.1)
    before = file.read_bytes()
    with pytest.raises(UserError, match="not kept"):
        Runner("cpu").load(weights, backend="torch").export(str(file), faces=str(prepared))
    assert file.read_bytes() == before
    for other in (weights, tmp_path / "notes.zip"):  # a zip archive as well
        other.write_bytes(other.read_bytes() if other.exists() else b"notes")
        before = other.read_bytes()
        options = ["--weights", str(weights), "--data", str(prepared), "--out", str(other)]
        assert main.main(["export", "--int8", *options]) == 1
        one_sentence(capsys.readouterr().err, other, "no int8 network")
        assert other.read_bytes() == before


def zipped(path, comment: bytes, **files: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = comment
        for name, text in files.items():
            archive.writestr(name.replace("_", "."), text)


@needs_openvino
def test_an_int8_file_that_does_not_fit(weights, cache, tmp_path, capsys):
    file, own = openvino_backend.int8_path(weights), openvino_backend._sha256(weights)

    def refused(*words):
        assert predict(weights, tmp_path / "out", "--precision", "int8") == 1
        one_sentence(capsys.readouterr().err, file, *words)

    refused("export --int8")
    zipped(file, b"0" * 64, network_xml="<net/>", network_bin="")
    refused("other weights")
    zipped(file, own, network_xml="<net/>")
    refused("damaged")
    file.write_bytes(b"PK")
    refused("damaged")
    zipped(file, own, network_xml="<net/>", network_bin="")
    assert predict(weights, tmp_path / "out", "--precision", "int8") == 1
    one_sentence(capsys.readouterr().err, "cannot run this network")


def test_int8_is_no_precision_of_pytorch(weights, tmp_path, capsys):
    assert predict(weights, tmp_path / "out", "--precision", "int8", "--backend", "torch") == 1
    one_sentence(capsys.readouterr().err, "--backend")


def test_int8_without_nncf(weights, prepared, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert main.main(["export", "--int8", "--weights", str(weights), "--data", str(prepared)]) == 1
    one_sentence(capsys.readouterr().err, "pip install")


def test_the_bundled_int8_file_is_of_the_bundled_weights():
    file = openvino_backend.int8_path(const.BUNDLED_WEIGHTS)
    if not file.is_file():
        pytest.skip("there is no bundled int8 file")
    assert file.stat().st_size <= 5 * 2**20
    with zipfile.ZipFile(file) as archive:
        assert archive.comment.decode() == const.BUNDLED_SHA256
