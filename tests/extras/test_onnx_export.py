"""The exported file, run by onnxruntime alone."""

import numpy as np
import pytest
import torch
from conftest import leftovers, one_sentence

import const
import main
import model
from extras import onnx_export

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_export_agrees_with_pytorch_at_any_batch_size(lite_weights, tmp_path, capsys):
    target = tmp_path / "lite.onnx"
    assert main.main(["export", "--weights", str(lite_weights), "--out", str(target)]) == 0
    said = capsys.readouterr().out
    assert f"opset {onnx_export.OPSET}" in said
    assert "largest difference" in said
    net, info = model.load(lite_weights)
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
    assert not leftovers(tmp_path)


def test_a_difference_keeps_nothing(lite_weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    assert main.main(["export", "--weights", str(lite_weights), "--out", str(tmp_path / "x.onnx")]) == 1
    one_sentence(capsys.readouterr().err, "differs from PyTorch")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_sentence(lite_weights, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main.main(["export", "--weights", str(lite_weights), "--out", str(tmp_path / "x.onnx")]) == 1
    one_sentence(capsys.readouterr().err, "onnxruntime", "pip install")
