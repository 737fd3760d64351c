"""`main.py train` on drawn faces: what it writes, what survives a kill, and what it refuses."""

import contextlib
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FACE_SEG_DATA, ROOT, history, leftovers, no_traceback, one_sentence, run, start
from PIL import Image
from test_model import Original
from torch import nn

import const
import data_preprocessing
import dataset
import devices
import main
import model
import training
from common import temporary_name
from metrics import Counts
from robust.recipe import Robust, RobustConfig, edge_bce_dice
from training import Config, Trainer

TINY = [
    "--model",
    "lite",
    "--no-pretrained",
    "--size",
    "64",
    "--batch-size",
    "4",
    "--device",
    "cpu",
    "--precision",
    "fp32",
]


@pytest.fixture(autouse=True)
def plain_processor(monkeypatch):
    """Without bf16, so that numbers are the same on every machine."""
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: False)


def train(prepared, run_dir, *options) -> int:
    return main.main(["train", "--data", str(prepared), "--run-dir", str(run_dir), *TINY, *map(str, options)])


def numbers(run_dir: Path) -> np.ndarray:
    return np.array([[v for k, v in row.items() if k != "seconds"] for row in history(run_dir)])


def assert_same_run(a: Path, b: Path) -> None:
    np.testing.assert_allclose(numbers(a), numbers(b), rtol=1e-6, atol=1e-9)
    one, two = (torch.load(d / "last.pth", weights_only=True) for d in (a, b))
    for part in ("model", "ema"):
        if one[part] is not None:
            assert one[part].keys() == two[part].keys()
            for key, value in one[part].items():
                torch.testing.assert_close(two[part][key], value, rtol=1e-6, atol=1e-7, msg=key)
    best, other = (model.load(d / "model.best.pth")[0].state_dict() for d in (a, b))
    for key, value in best.items():
        torch.testing.assert_close(other[key], value, rtol=1e-6, atol=1e-7, msg=key)
    assert one["scheduler"] == two["scheduler"]


# --- What a run leaves ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    """(run folder, what was printed) of the real command, three epochs, from another working directory."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    options = [*TINY, "--epochs", "3", "--workers", "0", "--seed", "7"]
    result = no_traceback(run("main.py", "train", "--data", prepared, "--run-dir", "run", *options, cwd=elsewhere))
    assert result.returncode == 0, result.stderr
    return elsewhere / "run", result.stdout


def test_the_files_of_a_run(finished):
    run_dir, _ = finished
    names = {"config.json", "history.csv", "curves.png", "model.best.pth", "last.pth"}
    assert {p.name for p in run_dir.iterdir()} == names
    config = json.loads((run_dir / "config.json").read_text())
    for key, value in {"model": "lite", "recipe": "original", "size": 64, "batch_size": 4, "epochs": 3, "lr": const.LR,
                       "seed": 7, "train_pictures": 12, "val_pictures": 6, "device": "cpu"}.items():  # fmt: skip
        assert config[key] == value
    assert config["torch"] == torch.__version__
    if sys.platform == "linux":
        assert 100 < config["peak_memory_mb"] < 100_000  # PyTorch alone takes the lower
    rows = history(run_dir)
    assert list(rows[0]) == ["epoch", "loss", "val_loss", "dice", "iou", "lr", "seconds"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert all(math.isfinite(v) for v in row.values())
        assert 0 <= row["iou"] <= row["dice"] <= 1
        assert row["iou"] == pytest.approx(row["dice"] / (2 - row["dice"]), abs=1e-9)  # of the same counts
    with Image.open(run_dir / "curves.png") as curves:
        curves.load()
        assert curves.format == "PNG"
        assert curves.width > 600
        assert len(curves.convert("L").getcolors(256)) > 20
    state = torch.load(run_dir / "model.best.pth", weights_only=True)
    assert all(isinstance(v, torch.Tensor) for v in state.values())
    net, info = model.load(run_dir / "model.best.pth")
    assert (info.model, info.size, info.passes) == ("lite", 64, 1)
    assert set(net.state_dict()) == set(state)


def test_one_line_an_epoch(finished):
    lines = [line for line in finished[1].splitlines() if line.startswith("epoch")]
    assert len(lines) == 3
    for line, row in zip(lines, history(finished[0]), strict=True):
        for word in (f"loss {row['loss']:.4f}", f"val loss {row['val_loss']:.4f}", f"Dice {row['dice']:.4f}",
                     f"IoU {row['iou']:.4f}", "lr 1.0e-04", " s"):  # fmt: skip
            assert word in line


def test_the_kept_checkpoint_is_the_best(finished, prepared):
    run_dir, _ = finished
    best = min(row["val_loss"] for row in history(run_dir))
    net, _ = model.load(run_dir / "model.best.pth")
    faces = dataset.Celeb(prepared / "images_val", prepared / "masks_val", dataset.val_transform(64))
    total = 0.0
    with torch.inference_mode():
        for image, mask in faces:
            total += nn.functional.binary_cross_entropy_with_logits(net(image[None]), mask[None]).item() / len(faces)
    assert total == pytest.approx(best, rel=1e-4)


def test_a_second_run_is_refused_and_a_finished_one_resumes_to_nothing(finished, prepared, capsys, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    before = (run_dir / "last.pth").read_bytes()
    assert train(prepared, run_dir, "--epochs", 3) == 1
    one_sentence(capsys.readouterr().err, run_dir, "--resume", "--run-dir")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "curves.png").write_text("of another program")
    assert train(prepared, tmp_path / "own", "--epochs", 3) == 1
    one_sentence(capsys.readouterr().err, "curves.png")
    for name in ("history.csv", "curves.png"):  # killed just before they were written
        (run_dir / name).unlink()
    assert train(prepared, run_dir, "--resume") == 0  # epochs and seed stay as they were
    assert "after epoch 3" in capsys.readouterr().out
    assert train(prepared, run_dir, "--resume", "--epochs", 5, "--stop-after", 3) == 0
    assert "Epoch 3 is done already" in capsys.readouterr().out
    assert (run_dir / "last.pth").read_bytes() == before
    assert (run_dir / "curves.png").exists()
    assert len(history(run_dir)) == 3
    assert json.loads((run_dir / "config.json").read_text())["seed"] == 7


def test_what_cannot_be_resumed(finished, prepared, capsys, tmp_path):
    assert train(prepared, tmp_path / "none", "--resume") == 1
    one_sentence(capsys.readouterr().err, tmp_path / "none", "nothing to resume")
    assert not (tmp_path / "none").exists()
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    for option, value in (("--batch-size", 3), ("--size", 96), ("--model", "unet"), ("--seed", 8)):
        assert train(prepared, run_dir, "--resume", option, value) == 1
        one_sentence(capsys.readouterr().err, run_dir, option.lstrip("-").replace("-", "_"))
    for data in (b"", b"hello", (run_dir / "last.pth").read_bytes()[:5000]):
        (run_dir / "last.pth").write_bytes(data)
        assert train(prepared, run_dir, "--resume") == 1
        one_sentence(capsys.readouterr().err, run_dir / "last.pth")
    shutil.copy(run_dir / "model.best.pth", run_dir / "last.pth")
    assert train(prepared, run_dir, "--resume") == 1
    one_sentence(capsys.readouterr().err, run_dir / "last.pth", "not the state of a run")


# --- Killed and resumed ---------------------------------------------------------------------------------------------
RECIPES = {
    "original": ["--lr", "0.01", "--epochs", "5"],
    "robust": ["--recipe", "robust", "--lr", "0.003", "--epochs", "5", "--limit", "12"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_run_resumes_to_the_same_numbers(recipe, prepared, tmp_path, capsys):
    options = RECIPES[recipe]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(prepared, whole, "--workers", 0, *options) == 0
    process = start("main.py", "train", "--data", prepared, "--run-dir", killed, *TINY, *options, "--workers", "1")
    deadline = time.monotonic() + 200
    while process.is_alive() and time.monotonic() < deadline:
        if (killed / "history.csv").exists() and len((killed / "history.csv").read_text().splitlines()) >= 3:
            process.kill()
            break
        time.sleep(0.005)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    done = torch.load(killed / "last.pth", weights_only=True)["epoch"]
    assert 2 <= done < int(options[options.index("--epochs") + 1])
    model.load(killed / "model.best.pth")  # nothing half-written under its name
    capsys.readouterr()
    assert train(prepared, killed, "--workers", 0, "--resume", *options) == 0
    assert f"after epoch {done}" in capsys.readouterr().out
    assert_same_run(whole, killed)
    if recipe == "robust":
        state = torch.load(whole / "last.pth", weights_only=True)
        key = "encoder.stem.0.weight"
        assert not torch.equal(state["ema"]["module"][key], state["model"][key])
        kept, info = model.load(whole / "model.best.pth")
        assert info.passes == 2
        if max(history(whole), key=lambda row: row["dice"])["epoch"] == 5:
            assert torch.equal(kept.state_dict()[key], state["ema"]["module"][key])
        rates = [row["lr"] for row in history(whole)]
        assert rates[-1] < 1e-4 < max(rates) <= 0.003  # one cycle: up, and down to nearly nothing
        assert train(prepared, killed, "--resume", "--epochs", 9) == 1  # its schedule is drawn over the whole run
        one_sentence(capsys.readouterr().err, "epochs 5")


class Dropping(nn.Module):
    """A small network with dropout, which takes random numbers in every step."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Conv2d(6, 1, 1)

    def forward(self, x):
        return nn.functional.interpolate(self.head(self.body(x)), size=x.shape[-2:])


def trainer(prepared, run_dir, config: Config, *, workers=0, net=None, recipe=training.Original) -> Trainer:
    torch.manual_seed(config.seed)
    made = recipe(config, prepared, workers=workers, log=lambda line: None)
    val_loader = training.validation_loader(config, prepared, workers=workers, cache=False)
    return Trainer(made, run_dir, net=net or Dropping(), val_loader=val_loader, device="cpu")


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_with_dropout_progressive_resizing_and_other_workers(workers, prepared, tmp_path, monkeypatch):
    """Workers live through the epochs of a run, and start anew when it is resumed: dropout must not notice."""
    config = RobustConfig(size=32, batch_size=4, epochs=4, progressive=[(0.0, 32), (0.5, 48)], ema=0.9, val_limit=None)
    trainer(prepared, tmp_path / "whole", config, workers=1, recipe=Robust).fit()

    class Killed(Exception):
        pass

    def stop(rows):
        if len(rows) == 3:
            raise Killed

    part = trainer(prepared, tmp_path / "part", config, workers=0, recipe=Robust)
    write = part._record

    def record(*args):
        write(*args)
        stop(part.history)

    monkeypatch.setattr(part, "_record", record)
    with pytest.raises(Killed):
        part.fit()
    again = trainer(prepared, tmp_path / "part", config, workers=workers, recipe=Robust)
    again.resume(torch.load(tmp_path / "part" / "last.pth", weights_only=True))
    assert len(again.fit()) == 4
    np.testing.assert_allclose(numbers(tmp_path / "part"), numbers(tmp_path / "whole"), rtol=1e-6)
    one, two = (torch.load(tmp_path / d / "last.pth", weights_only=True) for d in ("whole", "part"))
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=1e-6, atol=1e-7)


# --- The loop -------------------------------------------------------------------------------------------------------
def test_the_rate_falls_on_a_plateau_and_the_best_is_kept(prepared, tmp_path, monkeypatch):
    losses = iter([0.5, 0.4, 0.6, 0.6, 0.6, 0.6])
    run = trainer(prepared, tmp_path, Config("lite", size=32, epochs=6, lr=0.01))
    kept = []
    monkeypatch.setattr(run, "validate", lambda: Counts(tp=1, bce_sum=next(losses), bce_pixels=1))
    save = model.save_state
    monkeypatch.setattr(model, "save_state", lambda *args, **kwargs: (kept.append(run.epoch), save(*args, **kwargs)))
    rates = [row["lr"] for row in run.fit()]
    assert rates == pytest.approx(
        [0.01, 0.01, 0.01, 0.01, 1e-3, 1e-3]
    )  # after two epochs without a better one, each time
    assert kept == [1, 2]


def test_the_robust_recipe_keeps_the_epoch_of_the_best_dice(prepared, tmp_path, monkeypatch):
    run = trainer(prepared, tmp_path, Config("lite", size=32, epochs=4, lr=0.01))
    run.recipe.cost = Robust.cost
    counts = iter(
        [Counts(tp=8, fp=fp, bce_sum=loss, bce_pixels=1) for fp, loss in ((2, 0.3), (1, 0.4), (0, 0.5), (1, 0.2))]
    )
    monkeypatch.setattr(run, "validate", lambda: next(counts))
    kept = []
    monkeypatch.setattr(model, "save_state", lambda *_: kept.append(run.epoch))
    run.fit()
    assert kept == [1, 2, 3]


def test_validation_s_processes_start_while_this_one_is_small(prepared, tmp_path, monkeypatch):
    run, started = trainer(prepared, tmp_path, Config("lite", size=32, epochs=1), workers=1), []
    train_epoch = run.train_epoch
    monkeypatch.setattr(run, "train_epoch", lambda: (started.append(run.val_loader._iterator), train_epoch())[1])
    run.fit()
    assert started[0] is run.val_loader._iterator is not None


def test_four_faces_can_be_learnt_by_heart(prepared, tmp_path):
    torch.manual_seed(0)
    run = trainer(prepared, tmp_path, Config("lite", size=64, lr=0.01), net=model.build("lite"))
    faces = dataset.Celeb(prepared / "images_train", prepared / "masks_train", dataset.val_transform(64), limit=4)
    image, target = (torch.stack(part) for part in zip(*faces, strict=True))
    run.net.train()
    losses = [run.step(image, target).item() for _ in range(30)]
    assert losses[-1] < 0.25 * losses[0]
    with torch.inference_mode():
        predicted = run.net(image) > 0
    overlap = (predicted & (target > 0)).sum() / (predicted | (target > 0)).sum()
    assert overlap > 0.85


def test_a_changed_rate_is_taken_up(prepared, tmp_path):
    assert train(prepared, tmp_path, "--epochs", 1, "--lr", 0.01, "--limit", 4, "--workers", 0) == 0
    assert train(prepared, tmp_path, "--epochs", 2, "--lr", 0.001, "--resume", "--workers", 0) == 0
    assert [row["lr"] for row in history(tmp_path)] == [0.01, 0.001]
    assert json.loads((tmp_path / "config.json").read_text())["limit"] == 4


def test_a_loss_that_is_no_number(prepared, tmp_path, monkeypatch, capsys):
    nan = staticmethod(lambda logits, target: logits.sum() * float("nan"))
    monkeypatch.setattr(training.Original, "loss", nan)
    assert train(prepared, tmp_path, "--epochs", 2, "--limit", 4, "--workers", 0) == 1
    one_sentence(capsys.readouterr().err, "nan", "epoch 1", "smaller --lr")
    assert not (tmp_path / "model.best.pth").exists()
    assert not (tmp_path / "last.pth").exists()


def test_an_absurd_rate_ends_in_numbers_or_a_sentence(prepared, tmp_path, capsys):
    code = train(prepared, tmp_path, "--epochs", 2, "--limit", 8, "--lr", 1000, "--workers", 0)
    if code:
        one_sentence(capsys.readouterr().err, "smaller --lr")
    else:
        assert np.isfinite(numbers(tmp_path)).all()


def test_losses():
    logits, target = torch.randn(3, 1, 16, 16), torch.zeros(3, 1, 16, 16)
    target[0, :, 4:12, 4:12] = 1
    want = nn.functional.binary_cross_entropy(logits.sigmoid(), target)
    torch.testing.assert_close(training.bce(logits, target), want, rtol=1e-4, atol=1e-5)
    right, wrong = (40 * sign * (target - 0.5) for sign in (1, -1))
    assert edge_bce_dice(right, target) < 0.05
    assert edge_bce_dice(wrong, target) > 10
    assert edge_bce_dice(right[1:], target[1:]) < 1e-3  # no face in the batch: no Dice term
    # Four times the weight within two pixels of the contour: 12x12 less 4x4 pixels, of 256 in each of three pictures.
    band, even = 144 - 16, torch.zeros(3, 1, 16, 16)
    even[0] = 1
    one = edge_bce_dice(logits[:1], target[:1])
    pixel = nn.functional.binary_cross_entropy_with_logits(logits[:1], target[:1], reduction="none")[0, 0]
    weight = torch.ones(16, 16)
    weight[2:14, 2:14] = 4
    weight[6:10, 6:10] = 1
    assert (weight == 4).sum() == band
    p = logits[0].sigmoid()
    dice = 1 - (2 * (p * target[0]).sum() + 1) / (p.sum() + 64 + 1)
    torch.testing.assert_close(one, (pixel * weight).sum() / weight.sum() + dice)


def test_auto_is_what_the_processor_has(prepared, tmp_path, monkeypatch):
    """Whatever else the machine is doing: no stopwatch decides."""
    config = Config("lite", size=32, epochs=1, lr=0.01)
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("timed"))
    for has, precision in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda has=has: has)
        assert trainer(prepared, tmp_path, config).precision == precision


@pytest.mark.parametrize(
    ("before", "after", "goes_on"), [(False, True, "fp32"), (True, False, "fp32"), (True, True, "bf16")]
)
def test_a_resumed_run_keeps_its_format_unless_that_is_emulated(
    before, after, goes_on, prepared, tmp_path, monkeypatch
):
    config = Config("lite", size=32, epochs=2, lr=0.01)
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: before)
    first = trainer(prepared, tmp_path, config)
    first.fit(stop_after=1)
    used = json.loads((tmp_path / "config.json").read_text())["precision_used"]
    assert first.precision == used == ("bf16" if before else "fp32")
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: after)
    again = trainer(prepared, tmp_path, config)
    again.resume(training.state_to_resume(tmp_path, config))
    assert again.precision == goes_on
    assert len(again.fit()) == 2


def test_a_precision_that_is_emulated_is_warned_of(prepared, tmp_path, monkeypatch):
    for has in (False, True):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda has=has: has)
        for precision in ("bf16", "auto"):
            lines = []
            training.announce(trainer(prepared, tmp_path, Config("lite", size=32, precision=precision)), lines.append)
            assert any("emulates" in line for line in lines) == (precision == "bf16" and not has)


def test_accumulated_batches_step_like_a_large_one(prepared, tmp_path):
    """Without batch normalisation, two batches of 3 give the gradients of one of 6."""

    class Plain(training.Original):
        def loader(self, size):
            faces = dataset.Celeb(prepared / "images_train", prepared / "masks_train", dataset.val_transform(size))
            return training.train_loader(faces, self.config, self.workers)

    def net():
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))

    runs = []
    for batch, accumulate in ((6, 1), (3, 2)):
        config = Config("lite", size=32, epochs=2, lr=0.01, batch_size=batch, accumulate=accumulate)
        run = trainer(prepared, tmp_path / str(batch), config, net=net(), recipe=Plain)
        assert (run.steps, run.effective_batch) == (2, 6)
        run.fit()
        runs.append(run)
    for one, two in zip(*(run.net.parameters() for run in runs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert runs[0].history[-1]["loss"] == pytest.approx(runs[1].history[-1]["loss"], rel=1e-4)


def test_compile_without_a_compiler_is_one_sentence(prepared, tmp_path, monkeypatch, capsys):
    """With one it needs a minute, too long for a test; that the option arrives is seen here."""
    monkeypatch.setattr(model, "build", lambda name, **_: Dropping())
    config = importlib.import_module("torch._inductor.config")
    monkeypatch.setattr(config.cpp, "cxx", (None, "/nonexistent"))
    monkeypatch.setattr(config, "fx_graph_cache", False)  # whose key is of all of PyTorch's files
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    options = ["--epochs", 1, "--workers", 0, "--limit", 4, "--compile"]
    assert train(prepared, tmp_path / "run", *options) == 1
    assert "train without --compile" in capsys.readouterr().err.splitlines()[-1]


def test_progressive_resizing(prepared, tmp_path):
    config = RobustConfig(size=64, epochs=10, batch_size=4, progressive=[(0.0, 32), (0.5, 48), (0.9, 64)])
    recipe = Robust(config, prepared, workers=0, log=lambda line: None)
    assert [recipe.size_at(e) for e in range(10)] == [32] * 5 + [48] * 4 + [64]
    recipe.optimizer(nn.Linear(1, 1), 10)  # steps, of which the rate rises in one
    config.progressive = []
    assert recipe.size_at(0) == 64
    assert next(iter(recipe.loader(48)))[0].shape == (4, 3, 48, 48)


# --- The original's model, once -------------------------------------------------------------------------------------
def test_the_default_model_trains_into_the_originals_class(prepared, tmp_path):
    options = ["--model", "deeplabv3", "--no-pretrained", "--size", "32", "--batch-size", "3", "--limit", "4"]
    try:
        assert (
            train(prepared, tmp_path, *options, "--epochs", 1, "--workers", 0) == 0
        )  # 4 pictures: a batch of 3, none of 1
        assert json.loads((tmp_path / "config.json").read_text())["pretrained"] is False
        state = torch.load(tmp_path / "model.best.pth", weights_only=True)
        Original().load_state_dict(state, strict=True)
        assert state["deep_lab_v3.aux_classifier.4.weight"].shape == (21, 256, 1, 1)
    finally:
        for name in ("last.pth", "model.best.pth"):  # 0.7 GB
            (tmp_path / name).unlink(missing_ok=True)


# --- What is refused ------------------------------------------------------------------------------------------------
def test_batches_that_cannot_be(prepared, tmp_path, capsys):
    for options, word in (
        (["--batch-size", "13"], "12 pictures"),
        (["--limit", "3"], "3 pictures"),
        (["--recipe", "robust", "--limit", "1", "--batch-size", "16"], "1 pictures"),
        (["--model", "deeplabv3", "--no-pretrained", "--batch-size", "1"], "--batch-size 2"),
        (["--size", "32", "--batch-size", "1"], "--batch-size 2"),
    ):
        assert train(prepared, tmp_path / "run", "--workers", 0, *options) == 1
        one_sentence(capsys.readouterr().err, word, "--batch-size")
    assert not (tmp_path / "run").exists()


def test_pictures_of_ones_own(prepared, tmp_path, capsys):
    data = shutil.copytree(prepared, tmp_path / "data")
    for path in sorted(data.glob("*_*/*")):
        path.rename(path.with_name(f"face{path.name.replace('.jpg', '.JPG')}"))  # as cameras write it
    assert len(Robust(RobustConfig(), data, workers=0, log=lambda line: None).composer.faces) == 12
    assert train(data, tmp_path / "run", "--epochs", 1, "--workers", 0) == 0
    for path in data.glob("masks_val/*"):
        Image.open(path).point(lambda value: value // 255).save(path)
    assert train(data, tmp_path / "other", "--epochs", 1, "--workers", 0) == 1
    one_sentence(capsys.readouterr().err, "255 is face")


def test_options_of_the_other_recipe(prepared, tmp_path, capsys):
    assert train(prepared, tmp_path / "run", "--backgrounds", tmp_path) == 1
    one_sentence(capsys.readouterr().err, "--backgrounds", "robust")
    assert train(prepared, tmp_path / "run", "--recipe", "robust", "--backgrounds", tmp_path / "none") == 1
    one_sentence(capsys.readouterr().err, tmp_path / "none")
    assert train(prepared, tmp_path / "run", "--recipe", "robust", "--init", tmp_path / "none.pth") == 1
    one_sentence(capsys.readouterr().err, tmp_path / "none.pth")


def test_pretrained_weights_that_cannot_be_fetched(prepared, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    assert main.main(["train", "--data", str(prepared), "--run-dir", str(tmp_path / "run"), "--model", "unet",
                      "--workers", "0", "--size", "64", "--device", "cpu", "--precision", "fp32"]) == 1  # fmt: skip
    one_sentence(capsys.readouterr().err, "--no-pretrained", "unet", "name resolution")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_one(prepared, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert train(prepared, tmp_path / "file" / "run", "--workers", 0) == 1
    one_sentence(capsys.readouterr().err, tmp_path / "file")


@pytest.fixture
def small_files():
    """Within it, files may not grow beyond 6 kB: the writing itself fails half way, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


def test_a_full_disk(prepared, tmp_path, small_files, monkeypatch, capsys):
    """PyTorch's writer makes a RuntimeError of it."""
    save = model.save_atomically

    def fill(payload, path):
        with small_files() if path.name == "last.pth" else contextlib.nullcontext():
            save(payload, path)

    monkeypatch.setattr(model, "save_atomically", fill)
    assert train(prepared, tmp_path, "--epochs", 1, "--limit", 4, "--workers", 0) == 1
    one_sentence(capsys.readouterr().err, tmp_path / "last.pth", "File too large")
    assert not any(tmp_path.iterdir())  # so that the same command may be given again


def test_the_best_weights_follow_from_the_state(finished, prepared, tmp_path):
    """As where a run was killed just before they were written."""
    shutil.copytree(finished[0], tmp_path / "run")
    state = training.read_run(tmp_path / "run")
    state["best"] = state["history"][-1]["val_loss"] = 0.1
    model.save_atomically(state, tmp_path / "run" / "last.pth")
    (tmp_path / "run" / "model.best.pth").unlink()
    assert train(prepared, tmp_path / "run", "--resume", "--seed", "7") == 0
    peaks = [
        json.loads((folder / "config.json").read_text())["peak_memory_mb"] for folder in (finished[0], tmp_path / "run")
    ]
    assert peaks[0] == peaks[1]  # the second sitting computed nothing
    for key, value in model.load(tmp_path / "run" / "model.best.pth")[0].state_dict().items():
        torch.testing.assert_close(value, state["model"][key])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_between_two_batches(number, prepared, tmp_path, monkeypatch, capsys):
    """Also one that comes while a file is written, and in a callback, where an exception would be swallowed."""

    class Callback:
        def __del__(self):
            os.kill(os.getpid(), number)

    save, before = model.save_atomically, signal.getsignal(number)

    def disturbed(payload, path):
        if path.name == "last.pth":
            Callback()
        save(payload, path)

    monkeypatch.setattr(model, "save_atomically", disturbed)
    options = ["--limit", 4, "--workers", 0, "--epochs", 3]
    assert train(prepared, tmp_path, *options) == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"
    assert len(history(tmp_path)) == 1
    assert not leftovers(tmp_path)
    monkeypatch.undo()
    assert signal.getsignal(number) == before
    assert train(prepared, tmp_path, *options, "--resume") == 0
    assert len(history(tmp_path)) == 3


def test_a_run_that_was_killed_in_its_first_epoch_can_be_started_again(prepared, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", lambda self: self.ask(signal.SIGTERM) or self.check())
        assert train(prepared, tmp_path / "run", "--epochs", "1", "--workers", "0") == 128 + signal.SIGTERM
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # all that a SIGKILL leaves
    assert train(prepared, tmp_path / "run", "--epochs", "1", "--workers", "0") == 0
    assert len(history(tmp_path / "run")) == 1


def test_a_second_signal_ends_a_run_at_once(prepared, tmp_path, monkeypatch):
    def step(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still at work")

    monkeypatch.setattr(Trainer, "step", step)
    assert train(prepared, tmp_path, "--limit", 4, "--workers", 0, "--epochs", 1) == 130


def test_a_killed_loader_process_is_one_sentence(prepared, tmp_path, monkeypatch, capsys):
    read, parent = dataset.Celeb.__getitem__, os.getpid()

    def killed(self, key):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, key)

    monkeypatch.setattr(dataset.Celeb, "__getitem__", killed)
    assert train(prepared, tmp_path, "--limit", 4, "--workers", 1, "--epochs", 1) == 1
    one_sentence(capsys.readouterr().err, "loader process died", "fewer --workers")


def test_a_batch_too_large_for_the_memory_is_one_sentence(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "step", lambda *args, **kwargs: torch.empty(1 << 50))
    assert train(prepared, tmp_path, "--limit", 4, "--workers", 0, "--epochs", 1) == 1
    said = one_sentence(capsys.readouterr().err, "memory", "--batch-size", "--size")
    assert "--device" not in said  # which is the CPU


def test_data_is_prepared_first(celeb_source, tmp_path, capsys):
    celeb = Path(shutil.copytree(celeb_source, tmp_path / "source")) / "CelebAMask-HQ"
    assert main.main(["train", "--data", str(celeb), "--run-dir", str(tmp_path / "run"), *TINY, "--epochs", "1",
                      "--workers", "0"]) == 0  # fmt: skip
    assert f"Preparing {celeb}" in capsys.readouterr().out
    assert len(list((celeb / "masks_train").iterdir())) == 12
    assert len(history(tmp_path / "run")) == 1


def test_no_data_and_no_source(tmp_path, monkeypatch, capsys):
    for name in ("CELEB_DIR", "DIR_PATH"):
        monkeypatch.setattr(const, name, tmp_path / "nothing")
    monkeypatch.setattr(data_preprocessing, "KAGGLE", (tmp_path / "no-kaggle",))
    assert train(tmp_path / "nowhere", tmp_path / "run", "--workers", 0) == 1
    one_sentence(capsys.readouterr().err, "--download")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(FACE_SEG_DATA is None, reason="FACE_SEG_DATA names no folder with CelebAMask-HQ-mini.zip")
def test_real_faces_are_learnt_a_little(tmp_path):
    archive = FACE_SEG_DATA / "CelebAMask-HQ-mini.zip"
    data_preprocessing.prepare(
        data_preprocessing.find_source(archive), tmp_path / "data", ids_train=range(16000, 16048),
        ids_val=range(24000, 24012), progress=False,
    )  # fmt: skip
    assert train(tmp_path / "data", tmp_path / "run", "--epochs", 8, "--lr", 0.003) == 0
    rows = history(tmp_path / "run")
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert max(row["dice"] for row in rows) > 0.7


# --- Errors that ended silently, or in a traceback ------------------------------------------------------------------
def test_a_folder_with_anothers_files_is_not_written_to(prepared, tmp_path, capsys):
    (tmp_path / "model.best.pth").write_bytes(b"mine")
    assert train(prepared, tmp_path, "--epochs", 1, "--limit", 4, "--workers", 0) == 1
    one_sentence(capsys.readouterr().err, tmp_path, "model.best.pth", "another --run-dir")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"model.best.pth": b"mine"}


def test_two_runs_into_one_folder(finished, prepared, tmp_path, capsys):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom common import locked\nfrom pathlib import Path\n"
    code += f"with locked(Path({str(run_dir / '.lock')!r}), ''):\n    print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        assert train(prepared, run_dir, "--resume", "--epochs", 4, "--workers", 0) == 1
        one_sentence(capsys.readouterr().err, run_dir, "Another run")
    finally:
        holder.communicate()
    assert train(prepared, run_dir, "--resume", "--epochs", 4, "--workers", 0) == 0
    assert len(history(run_dir)) == 4


def test_last_pth_decides_what_is_resumed(finished, prepared, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    (run_dir / "config.json").write_text('{"lr": "x", "epochs": [], "seed": 1}')
    assert train(prepared, run_dir, "--resume", "--epochs", 4, "--workers", 0) == 0
    config = json.loads((run_dir / "config.json").read_text())
    assert (config["lr"], config["epochs"], config["seed"]) == (const.LR, 4, 7)


def test_a_damaged_state_changes_nothing(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model, "build", lambda name, **_: Dropping())  # of which a state is quickly written and read
    run_dir = tmp_path / "run"
    assert train(prepared, run_dir, "--epochs", 3, "--workers", 0) == 0
    capsys.readouterr()
    whole = torch.load(run_dir / "last.pth", weights_only=True)
    damages = [
        {k: v for k, v in whole.items() if k != gone} for gone in whole if gone not in ("pictures", "peak_memory")
    ]
    damages += [{**whole, key: "text"} for key, value in whole.items() if not isinstance(value, str)]
    damages += [{**whole, key: {"a": 1}} for key in ("history", "pictures", "model", "optimizer", "ema")]
    damages += [{**whole, "pictures": value} for value in (3.5, [1])]
    damages += [{**whole, "config": {**whole["config"], name: ["x"]}} for name in ("lr", "seed", "size")]
    damages += [{**whole, "optimizer": {}}, {**whole, "model": {}}, {**whole, "scheduler": {}, "history": []}]
    for what, state in enumerate(damages):
        torch.save(state, run_dir / "last.pth")
        before = {p.name: p.read_bytes() for p in run_dir.iterdir()}
        assert train(prepared, run_dir, "--resume", "--epochs", 4, "--workers", 0) == 1, what
        one_sentence(capsys.readouterr().err)
        assert {p.name: p.read_bytes() for p in run_dir.iterdir()} == before


@pytest.mark.parametrize(("first", "second"), [("fp32", "fp16"), ("fp16", "fp32"), ("fp16", "fp16"), ("fp32", "bf16")])
def test_a_run_is_resumed_in_another_precision(first, second, prepared, tmp_path):
    config = Config("lite", size=32, epochs=2, lr=0.01, precision=first)
    trainer(prepared, tmp_path, config).fit(stop_after=1)
    config = Config("lite", size=32, epochs=2, lr=0.01, precision=second)
    again = trainer(prepared, tmp_path, config)
    again.resume(training.state_to_resume(tmp_path, config))
    assert len(again.fit()) == 2
    assert np.isfinite(numbers(tmp_path)).all()


def test_an_error_of_a_loader_process_is_one_sentence(prepared, tmp_path, capsys):
    data = shutil.copytree(prepared, tmp_path / "data")
    picture = next((data / "images_train").iterdir())
    picture.unlink()
    picture.write_bytes(b"no picture")
    assert train(data, tmp_path / "run", "--epochs", 1, "--workers", 1) == 1
    error = capsys.readouterr().err
    one_sentence(error, picture.name, "is not a picture")
    assert len(error.strip().splitlines()) == 1


def test_what_a_killed_run_left_is_swept(finished, prepared, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, living = (re.sub(r"-[0-9]+-", f"-{pid}-", temporary_name("x_mask.png"), count=1) for pid in (gone.pid, 1))
    for name in (dead, living):
        (run_dir / name).write_bytes(b"half")
    assert train(prepared, run_dir, "--resume", "--workers", 0) == 0
    assert leftovers(tmp_path) == [str(run_dir / living)]


def test_other_data_is_refused_and_how_a_run_began_is_kept(finished, prepared, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    for name, split, old, new in (
        ("fewer", "val", "24000", None), ("others", "val", "24000", "25000"), ("trained", "train", "16000", "17000"),
    ):  # fmt: skip
        shutil.copytree(prepared, tmp_path / name)
        for kind in ("images", "masks"):
            face = next((tmp_path / name / f"{kind}_{split}").glob(f"{old}*"))
            if new:
                face.rename(face.with_name(face.name.replace(old, new)))
            else:
                face.unlink()
        assert train(tmp_path / name, tmp_path / "run", "--resume", "--seed", "7", "--epochs", "4") == 1
        one_sentence(capsys.readouterr().err, "other training or validation pictures", "--data")
    config = training.configured(Config, training.read_run(tmp_path / "run")["config"])
    config.pretrained, config.epochs = True, 4
    main.Runner("cpu", log=print).train(config, prepared, tmp_path / "run", resume=True, workers=0)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["pretrained"] is False


def test_settings_of_the_robust_recipe_by_the_command(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(main.Runner, "train", lambda _, config, data, run_dir, **__: started.append((config, run_dir)))
    for options in ("", "--limit 9", "--limit 9 --val-limit 20", "--init bundled --size 320"):
        assert main.main(["train", "--recipe", "robust", *options.split()]) == 0
    assert [config.val_limit for config, _ in started] == [300, 9, 20, 300]
    assert [bool(config.progressive) for config, _ in started] == [True, True, True, False]  # one size throughout
    assert {run_dir for _, run_dir in started} == {const.RUNS_DIR / "lite"}


def test_the_latest_run_is_resumed(finished, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(const, "RUNS_DIR", tmp_path)
    for name in ("older", "newer"):
        shutil.copytree(finished[0], tmp_path / name)
    os.utime(tmp_path / "older" / "last.pth", (1, 1))
    assert main.main(["train", "--data", str(prepared), "--resume", "--workers", "0"]) == 0
    assert str(tmp_path / "newer") in capsys.readouterr().out


def test_weights_to_start_from(lite_weights, prepared):
    recipe = Robust(RobustConfig(init=str(lite_weights)), prepared, workers=0, log=str)
    state, start = recipe.network().state_dict(), model.load(lite_weights)[0].state_dict()
    assert all(torch.equal(state[key], value) for key, value in start.items())


def test_photographs_that_are_none(prepared, tmp_path, capsys):
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "._x.jpg").write_bytes(b"what macOS leaves on other disks")
    options = ["--recipe", "robust", "--backgrounds", folder, "--limit", 4, "--epochs", 1, "--single-face", 0]
    assert train(prepared, tmp_path / "run", *options, "--workers", 0, "--val-limit", 2) == 1
    one_sentence(capsys.readouterr().err, folder, "no photographs")
    (folder / "x.jpg").write_bytes(b"no picture")
    capsys.readouterr()
    assert train(prepared, tmp_path / "run2", *options, "--workers", 0) == 1
    one_sentence(capsys.readouterr().err, folder / "x.jpg")
