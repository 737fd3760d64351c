"""`--clearml` and `--tensorboard`: what they write without a server, and one sentence without their packages."""

import json
import sys
import zipfile

import pytest
from conftest import history, one_sentence, python, run

import main
from extras import trackers

TINY = ["--model", "lite", "--size", "64", "--batch-size", "4", "--device", "cpu", "--precision", "fp32", "--limit", 5]
TINY += ["--workers", 0, "--epochs", 2, "--no-pretrained"]
NAMES = {("loss", "train"): "loss", ("loss", "validation"): "val_loss", ("dice", "validation"): "dice",
         ("iou", "validation"): "iou", ("lr", "train"): "lr"}  # fmt: skip
ROWS = [dict(zip(NAMES.values(), range(10 * epoch, 10 * epoch + 5), strict=True), epoch=epoch) for epoch in (1, 2)]
KEEP = """
import json
from pathlib import Path
from extras.trackers import LOGS
from training import Config
for name in ("clearml", "tensorboard"):
    log = LOGS[name](Config("lite", size=64), Path(sys.argv[1]))
    for row in json.loads(sys.argv[2]):
        log(row)
    log.close()
"""


def test_the_logs_hold_the_history(tmp_path):
    pytest.importorskip("clearml")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    env = {"CLEARML_OFFLINE_MODE": 1, "CLEARML_CACHE_DIR": tmp_path / "clearml", "HOME": tmp_path}
    run_dir = tmp_path / "run"
    result = python(KEEP, run_dir, json.dumps(ROWS), env=env)
    assert result.returncode == 0, result.stderr

    (archive,) = (tmp_path / "clearml" / "offline").glob("*.zip")
    with zipfile.ZipFile(archive) as kept:
        task = json.loads(kept.read("task.json"))
        reports = [r for line in kept.read("metrics.jsonl").decode().splitlines() for r in json.loads(line)]
    assert task["project_name"] == "face-seg"
    assert task["hyperparams"]["config"]["size"]["value"] == "64"
    scalars = {(r["metric"], r["variant"], r["iter"]): r["value"] for r in reports if "value" in r}
    wanted = {(*key, row["epoch"]): row[name] for key, name in NAMES.items() for row in ROWS}
    assert scalars == pytest.approx(wanted, rel=1e-6)

    board = events.EventAccumulator(str(run_dir)).Reload()
    for (metric, part), name in NAMES.items():
        seen = [(event.step, event.value) for event in board.Scalars(f"{metric}/{part}")]
        assert [step for step, _ in seen] == [1, 2]
        assert [value for _, value in seen] == pytest.approx([row[name] for row in ROWS], rel=1e-5)


def test_every_epoch_goes_to_the_log(prepared, tmp_path, monkeypatch):
    class Log(list):
        def __init__(self, config, run_dir):
            kept.append(self)

        __call__ = list.append

        def close(self):
            self.append("closed")

    kept = []
    monkeypatch.setitem(trackers.LOGS, "tensorboard", Log)
    options = ["--data", prepared, "--run-dir", tmp_path / "run", *TINY, "--tensorboard"]
    assert main.main(["train", *map(str, options)]) == 0
    (rows,) = kept
    assert rows.pop() == "closed"
    written = history(tmp_path / "run")
    assert [row["epoch"] for row in written] == [1, 2]
    assert [{name: row[name] for name in NAMES.values()} for row in rows] == [
        {name: pytest.approx(row[name]) for name in NAMES.values()} for row in written
    ]


@pytest.mark.parametrize(("option", "package"), [("--clearml", "clearml"), ("--tensorboard", "tensorboard")])
def test_a_missing_package_is_one_sentence(option, package, prepared, tmp_path, monkeypatch, capsys):
    for name in [n for n in sys.modules if n.split(".")[0] == package or n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    options = ["--data", prepared, "--run-dir", tmp_path / "run", *TINY, option]
    assert main.main(["train", *map(str, options)]) == 1
    one_sentence(capsys.readouterr().err, package, f"pip install {package}")
    assert not (tmp_path / "run").exists()


def test_clearml_that_is_not_set_up_is_one_sentence(prepared, tmp_path):
    pytest.importorskip("clearml")
    env = {"HOME": tmp_path, "CLEARML_OFFLINE_MODE": ""}
    result = run("main.py", "train", "--data", prepared, "--run-dir", tmp_path / "run", *TINY, "--clearml", env=env)
    assert result.returncode == 1
    one_sentence(result.stderr, "ClearML", "CLEARML_OFFLINE_MODE")
    assert not (tmp_path / "run").exists()
