"""What only a GPU shows; skipped without one: `pytest tests/test_gpu.py`."""

import numpy as np
import pytest
import torch
from conftest import ROOT, history, run

import main
import model
from inference import Segmenter
from studies import benchmark

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TINY = ["--model", "lite", "--no-pretrained", "--size", "64", "--batch-size", "4", "--limit", "8", "--workers", "0"]


def train(prepared, run_dir, *options) -> list[dict]:
    command = ["train", "--data", prepared, "--run-dir", run_dir, *TINY, *options]
    assert main.main([str(part) for part in command]) == 0
    return history(run_dir)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_in_every_precision(precision, prepared, tmp_path):
    rows = train(prepared, tmp_path / "run", "--epochs", 2, "--precision", precision, "--device", "cuda")
    assert np.isfinite([row["loss"] for row in rows]).all()


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_is_resumed_on_another_device(first, second, prepared, tmp_path):
    train(prepared, tmp_path / "run", "--epochs", 2, "--stop-after", 1, "--device", first)
    assert len(train(prepared, tmp_path / "run", "--resume", "--device", second)) == 2


def test_masks_agree_with_the_cpu():
    net, info = model.load(model.bundled_weights())
    picture = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    cpu = Segmenter(net, info, "cpu", precision="fp32").logits([picture])[0]
    for precision, tolerance in (("fp32", 1e-2), ("auto", 0.5)):
        gpu = Segmenter(*model.load(model.bundled_weights()), "cuda", precision=precision).logits([picture])[0]
        assert np.abs(cpu - gpu).max() < tolerance, precision


def test_too_large_a_batch_is_one_sentence(prepared, tmp_path):
    options = ["--model", "deeplabv3", "--no-pretrained", "--size", 4096, "--batch-size", 8, "--device", "cuda"]
    result = run("main.py", "train", "--data", prepared, "--run-dir", tmp_path / "run", *options, "--workers", 0)
    assert result.returncode == 1
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr


def test_the_benchmark_of_training(prepared, tmp_path):
    benchmark.measure(["gpu"], tmp_path / "out.json", quick=True, data=prepared)
    assert "| deeplabv3, 64x64, batch 4" in (tmp_path / "out.md").read_text()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_gpus(prepared, tmp_path):
    torchrun = ["--standalone", "--nproc-per-node=2", str(ROOT / "main.py"), "train", "--data", prepared]
    result = run("torch.distributed.run", *torchrun, "--run-dir", tmp_path / "run", *TINY, "--epochs", 1)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "last.pth").exists()
