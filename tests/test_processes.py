"""`torchrun main.py ...`: two processes on the CPU do what one does."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FORKS, ROOT, history, leftovers, one_sentence, run

import dataset
import main
import model
from metrics import Counts

TINY = ["--model", "lite", "--size", "64", "--batch-size", "2", "--device", "cpu", "--precision", "fp32"]
TINY += ["--workers", "0"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", ROOT / "main.py"]


class Job:
    """A command in two processes with torchrun's variables, without the time that torchrun takes."""

    def __init__(self, folder: Path, *argv, largest_file: int | None = None):
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.said = [folder / f"said-{rank}" for rank in (0, 1)]
        argv = [str(part) for part in argv]
        given = [(rank, port, argv, str(path), largest_file) for rank, path in enumerate(self.said)]
        self.ranks = [FORKS.Process(target=work, args=args, daemon=True) for args in given]
        for process in self.ranks:
            process.start()

    def finish(self, seconds: float = 100) -> list[tuple[int, str]]:
        """(exit code, what it printed) of both."""
        for process in self.ranks:
            process.join(seconds)
        codes = [process.exitcode for process in self.ranks]
        for process in self.ranks:
            process.kill()
        return list(zip(codes, [path.read_text() for path in self.said], strict=True))


def work(rank: int, port: int, argv: list[str], said: str, largest_file: int | None) -> None:
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})  # fmt: skip
    torch.set_num_threads(1)
    if largest_file:  # beyond which the writing itself fails, as on a full disk
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    with open(said, "w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        code = main.main(argv)
        file.flush()
        os._exit(code)


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory) -> tuple[Path, str]:
    """(run folder, what was printed) of two epochs by two processes."""
    run_dir = tmp_path_factory.mktemp("world_size") / "run"
    command = [*TORCHRUN, "train", "--data", prepared, "--run-dir", run_dir, *TINY, "--epochs", 2]
    result = run(*command, env={"OMP_NUM_THREADS": 1})
    assert result.returncode == 0, result.stderr
    return run_dir, result.stdout


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
    (code, out), (other, nothing) = Job(tmp_path, *command, "--out", tmp_path / "two").finish()
    assert (code, other) == (0, 0), out + nothing
    assert (out + nothing).count("probability 0.5") == 1
    assert main.main([*map(str, command), "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    for name, table in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(table, abs=1e-6)
    assert (tmp_path / "one" / "worst.jpg").read_bytes() == (tmp_path / "two" / "worst.jpg").read_bytes()


def test_one_process_resumes_what_two_began(trained, prepared, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("last.pth", "config.json", "model.best.pth"):
        (run_dir / name).write_bytes((trained[0] / name).read_bytes())
    command = ["train", "--data", prepared, "--run-dir", run_dir, "--resume", "--epochs", 3, "--workers", 0]
    assert main.main([*map(str, command), "--device", "cpu"]) == 0
    assert [row["epoch"] for row in history(run_dir)] == [1, 2, 3]
    assert all(np.isfinite(list(row.values())).all() for row in history(run_dir))


def test_a_dead_process_ends_the_job(prepared, tmp_path):
    """Of the robust recipe, whose batches add up to a step."""
    run_dir = tmp_path / "run"
    options = [*TINY, "--recipe", "robust", "--accumulate", 2, "--no-pretrained", "--epochs", 1000, "--val-limit", 2]
    job = Job(tmp_path, "train", "--data", prepared, "--run-dir", run_dir, *options)
    deadline = time.monotonic() + 100
    while not (run_dir / "history.csv").exists() and time.monotonic() < deadline:
        assert all(process.is_alive() for process in job.ranks), job.finish(1)
        time.sleep(0.1)
    job.ranks[1].kill()
    killed = time.monotonic()
    (code, said), _ = job.finish(60)
    assert time.monotonic() - killed < 60
    assert code == 1, said
    one_sentence(said, "Another process of the job died")
    config = json.loads((run_dir / "config.json").read_text())
    assert (config["world_size"], config["effective_batch"], config["recipe"]) == (2, 8, "robust")
    state = torch.load(run_dir / "last.pth", weights_only=True)
    assert state["steps"] == 1  # of the 12 faces 8 are seen, 4 by each process
    assert state["epoch"] >= 1
    assert not leftovers(run_dir)


def test_a_full_disk_ends_the_job(prepared, tmp_path):
    pytest.importorskip("resource")
    run_dir = tmp_path / "run"
    command = ["train", "--data", prepared, "--run-dir", run_dir, *TINY, "--no-pretrained", "--epochs", 2]
    (code, said), (other, also) = Job(tmp_path, *command, largest_file=6000).finish()
    assert (code, other) == (1, 1), said + also
    one_sentence(said, run_dir, "File too large")
    assert "Traceback" not in also
    assert {path.name for path in run_dir.glob("*")} <= {".lock"}


def test_an_unreadable_picture_stops_no_other_process(lite_weights, tmp_path):
    from PIL import Image

    pictures = tmp_path / "in"
    pictures.mkdir()
    for i in range(12):  # the first process gets the even ones and is done long before the other
        size = (1500, 1500) if i % 2 else (64, 64)
        Image.fromarray(np.full((*size, 3), 20 * i, np.uint8)).save(pictures / f"{i:02d}.png")
    (pictures / "00.png").write_bytes(b"no picture")
    options = ["--weights", lite_weights, "--out", tmp_path / "out", "--save", "mask", "--gif", tmp_path / "all.gif"]
    job = Job(tmp_path, "predict", pictures, *options)
    (code, said), (other, also) = job.finish()
    assert (code, other) == (1, 1)
    assert "of part 1/2" in said
    one_sentence(said + also, "00.png")
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
