"""The exported file, run by onnxruntime alone."""

import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, one_sentence
from PIL import Image

import const
import main
import model
from extras import onnx_export
from pictures import forbidden

onnxruntime = pytest.importorskip("onnxruntime")


def test_export_agrees_with_pytorch_at_any_batch_size(bundled_onnx):
    target, said = bundled_onnx
    assert f"opset {onnx_export.OPSET}" in said
    assert "largest difference" in said
    net, info = model.load(model.bundled_weights())
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        image = np.random.default_rng(batch).uniform(0, 255, (batch, 3, info.size, info.size)).astype(np.float32)
        got = session.run(None, {"image": image})[0]
        mean = np.float32(const.IMAGENET_MEAN)[:, None, None] * 255
        std = np.float32(const.IMAGENET_STD)[:, None, None] * 255
        with torch.inference_mode():
            expected = net(torch.from_numpy((image - mean) / std)).sigmoid().numpy()
        assert got.shape == (batch, 1, info.size, info.size)
        assert np.abs(got - expected).max() < 1e-3
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert session.get_modelmeta().custom_metadata_map["tag"].startswith("face-segmentation ")
    assert forbidden([target]) is None  # as it is of this program


def test_the_readmes_snippet_gives_the_mask(bundled_onnx, tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    monkeypatch.chdir(tmp_path)
    shutil.copy(bundled_onnx[0], "lite.onnx")
    Image.open(ROOT / "test_path" / "obama.jpg").resize((300, 400)).save("photo.jpg")
    exec(next(block for block in blocks if "import onnxruntime" in block), {})
    runner = main.Runner("cpu", log=lambda line: None).load("bundled", passes=1, precision="fp32")
    mask, expected = np.asarray(Image.open("mask.png")), runner.predict_image("photo.jpg")
    assert mask.shape == (400, 300)
    assert set(np.unique(mask)) == {0, 255}
    assert np.count_nonzero(mask & expected) > 0.95 * np.count_nonzero(mask | expected)


def test_a_file_of_the_users_is_not_replaced(tmp_path, capsys):
    (tmp_path / "x.onnx").write_bytes(b"precious")
    assert main.main(["export", "--weights", "bundled", "--out", str(tmp_path / "x.onnx")]) == 1
    one_sentence(capsys.readouterr().err, "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == b"precious"


def test_a_difference_keeps_nothing(bundled_onnx, tmp_path, capsys, monkeypatch):
    state, info = model.read_state(model.bundled_weights())
    state["head.bias"] += 1
    model.save_state(state, tmp_path / "other.pth", info)
    monkeypatch.setattr(onnx_export, "_trace", lambda module, images, out: shutil.copy(bundled_onnx[0], out))
    assert main.main(["export", "--weights", str(tmp_path / "other.pth"), "--out", str(tmp_path / "x.onnx")]) == 1
    one_sentence(capsys.readouterr().err, "differs from PyTorch")
    assert [path.name for path in tmp_path.iterdir()] == ["other.pth"]


def test_a_missing_package_is_one_sentence(lite_weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main.main(["export", "--weights", str(lite_weights), "--out", str(tmp_path / "x.onnx")]) == 1
    one_sentence(capsys.readouterr().err, "onnxruntime", "pip install")
