"""`torchrun main.py ...`: two processes on the CPU do what one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, history, leftovers

import dataset
import main
import model
from metrics import Counts

TINY = ["--model", "lite", "--size", "64", "--batch-size", "2", "--device", "cpu", "--precision", "fp32"]
TINY += ["--workers", "0"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "main.py")]


def start(*args, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*TORCHRUN, *map(str, args)], env=env, start_new_session=True, **pipes, **options)


def finished(process: subprocess.Popen, seconds: float = 200) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory) -> tuple[Path, str]:
    """(run folder, what was printed) of two epochs by two processes."""
    run_dir = tmp_path_factory.mktemp("world_size") / "run"
    code, out, err = finished(start("train", "--data", prepared, "--run-dir", run_dir, *TINY, "--epochs", 2))
    assert code == 0, err
    return run_dir, out


def test_the_first_process_writes_and_speaks(trained):
    run_dir, out = trained
    assert {p.name for p in run_dir.iterdir()} == {
        "config.json", "history.csv", "curves.png", "model.best.pth", "last.pth"
    }  # fmt: skip
    config = json.loads((run_dir / "config.json").read_text())
    assert (config["world_size"], config["batch_size"], config["effective_batch"]) == (2, 2, 4)
    assert "2 processes" in out
    assert "4 pictures" in out
    assert sum(line.startswith("epoch") for line in out.splitlines()) == 2


def test_validation_is_that_of_one_process(trained, prepared):
    best = min(history(trained[0]), key=lambda row: row["val_loss"])
    net, _ = model.load(trained[0] / "model.best.pth")
    faces = dataset.Celeb(prepared / "images_val", prepared / "masks_val", dataset.val_transform(64))
    counts = Counts()
    with torch.inference_mode():
        for image, mask in faces:
            logits = net(image[None])[0, 0].numpy()
            counts.add(logits > 0, mask[0].numpy() > 0.5, boundary=False).add_bce(logits, mask[0].numpy() > 0.5)
    assert best["dice"] == pytest.approx(counts.dice, abs=1e-6)
    assert best["iou"] == pytest.approx(counts.iou, abs=1e-6)
    assert best["val_loss"] == pytest.approx(counts.bce, abs=1e-6)


def test_evaluate_is_that_of_one_process(trained, prepared, tmp_path):
    command = ["evaluate", "--weights", trained[0] / "model.best.pth", "--data", prepared, "--device", "cpu"]
    command += ["--limit", 5]  # of which the two have three and two
    code, out, err = finished(start(*command, "--out", tmp_path / "two"))
    assert code == 0, err
    assert out.count("probability 0.5") == 1
    assert main.main([*map(str, command), "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    for name, table in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(table, abs=1e-6)
    assert (tmp_path / "one" / "worst.jpg").read_bytes() == (tmp_path / "two" / "worst.jpg").read_bytes()


def test_one_process_resumes_what_two_began_and_a_dead_one_ends_the_job(trained, prepared, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("last.pth", "config.json", "model.best.pth"):
        (run_dir / name).write_bytes((trained[0] / name).read_bytes())
    assert main.main(["train", "--data", str(prepared), "--run-dir", str(run_dir), "--resume", "--epochs", "3"]) == 0
    assert [row["epoch"] for row in history(run_dir)] == [1, 2, 3]
    assert all(np.isfinite(list(row.values())).all() for row in history(run_dir))

    job = start("train", "--data", prepared, "--run-dir", run_dir, "--resume", "--epochs", 1000, "--workers", 0)
    deadline = time.monotonic() + 100
    while len(history(run_dir)) < 5 and time.monotonic() < deadline:
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.2)
    ranks = [int(p) for p in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    code, _, err = finished(job, 60)
    assert code != 0
    assert time.monotonic() - killed < 60
    assert err
    assert torch.load(run_dir / "last.pth", weights_only=True)["epoch"] >= 5
    assert not leftovers(run_dir)


def test_an_unreadable_picture_stops_no_other_process(tmp_path):
    from PIL import Image

    pictures = tmp_path / "in"
    pictures.mkdir()
    for i in range(12):  # the first process gets the even ones and is done long before the other
        size = (1500, 1500) if i % 2 else (64, 64)
        Image.fromarray(np.full((*size, 3), 20 * i, np.uint8)).save(pictures / f"{i:02d}.png")
    (pictures / "00.png").write_bytes(b"no picture")
    job = start("predict", pictures, "--weights", "bundled", "--out", tmp_path / "out", "--save", "mask", "--gif",
                tmp_path / "all.gif")  # fmt: skip
    code, out, err = finished(job)
    assert code != 0
    assert "of part 1/2" in out
    assert err.count("00.png is not a picture") + err.count("00.png cannot be read") == 1
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 11


def test_processes_share_a_part_of_the_pictures(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        parts += [main._my_part(None), *(main._my_part((i, 3)) for i in (1, 2, 3))]
    assert parts[::4] == [(1, 2), (2, 2)]
    assert sorted(parts[1:4] + parts[5:]) == [(i, 6) for i in range(1, 7)]


def test_shards_of_an_epoch_are_what_one_process_would_see():
    def shown(group, rank, world_size, size=None):
        sampler = dataset.EpochSampler(
            23, seed=5, shuffle=True, group=group, rank=rank, world_size=world_size, size=size
        )
        sampler.epoch = 2
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    alone = shown(4, 0, 1)  # five steps of 4
    assert len({i for i, _ in alone}) == 20
    parts = [shown(2, rank, 2) for rank in (0, 1)]
    together = [pair for step in range(5) for part in parts for pair in part[2 * step : 2 * step + 2]]
    assert together == alone
    assert sorted(shown(0, 0, 2) + shown(0, 1, 2)) == sorted(shown(1, 0, 1))  # validation: nobody twice, nobody missed
    longer = [i for i, _ in shown(1, 0, 1, size=50)]
    assert sorted(longer[:23]) == sorted(longer[23:46]) == list(range(23))
    assert len(longer) == 50
    assert len(set(shown(1, 0, 1, size=50))) == 50  # the same face again is another picture


def test_a_cached_face_is_the_face_read(prepared):
    folders = prepared / "images_train", prepared / "masks_train"
    plain = dataset.Celeb(*folders, dataset.train_transform(48))
    cached = dataset.Celeb(*folders, dataset.train_transform(48), cache=48)
    for key in ((0, 1), (3, 77), (11, 4)):
        for one, two in zip(plain[key], cached[key], strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)
