"""The experiments: the real command on drawn faces and a tiny budget, what it leaves alone, and the tables."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import leftovers, no_traceback, one_sentence, run
from PIL import Image

from main import Runner
from metrics import Counts
from robust import occluders
from studies import experiments, report

RUNS = ["cutout-on-1", "glasses-left-in-1", "faces-6-1"]


def command(place, prepared, celeb_source, *names):
    return no_traceback(
        run("studies.experiments", *names, "--quick", "--source", celeb_source, "--data", prepared,
            "--runs", place / "runs", "--out", place / "out")
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(prepared, celeb_source, tmp_path_factory):
    """Two experiments, run with one of their trainings killed after its first epoch."""
    place = tmp_path_factory.mktemp("experiments")
    killed = experiments.runs_of("glasses", "quick", 12)[0]
    Runner("cpu").train(killed.config, prepared, place / "runs" / killed.name, workers=0, cache=True, stop_after=1)
    done = command(place, prepared, celeb_source, "glasses", "data-size")
    assert done.returncode == 0, done.stderr
    assert "Resuming" in done.stdout
    return place


def test_every_run_is_trained_to_its_end(place):
    for name in RUNS:
        folder = place / "runs" / name
        with open(folder / "history.csv", newline="") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"], name
        config = json.loads((folder / "config.json").read_text())
        assert config["limit"] == (6 if name == "faces-6-1" else None)
        assert json.loads((folder / "evaluation.json").read_text())["kinds"]["clean"]["pictures"] == 6  # not the limit
    assert not leftovers(place)


def test_glasses_left_in_the_masks(place, prepared):
    """The same faces; masks differ where glasses are worn, and only by more face."""
    worn = 0
    for split in ("train", "val"):
        masks = sorted((prepared / f"masks_{split}").iterdir())
        whole = place / "runs" / "glasses-left-in-data" / f"masks_{split}"
        assert [p.name for p in masks] == sorted(p.name for p in whole.iterdir())
        for path in masks:
            ours, theirs = np.asarray(Image.open(path)) > 0, np.asarray(Image.open(whole / path.name)) > 0
            assert (theirs | ours == theirs).all()
            worn += (theirs != ours).any()
    told = json.loads((place / "out" / "results.json").read_text())["experiments"]["glasses"]["wearers"]
    assert worn == told["train"] + told["val"] > 0


def test_a_second_call_trains_and_measures_nothing(place, prepared, celeb_source):
    before = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*") if path.is_file()}
    tables = (place / "out" / "tables.md").read_text()
    done = command(place, prepared, celeb_source, "data-size")
    assert done.returncode == 0, done.stderr
    assert "---" not in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*") if path.is_file()}
    assert (place / "out" / "tables.md").read_text() == tables  # the other experiment's results are kept


def test_the_tables_are_made_from_the_results(place, tmp_path):
    results = json.loads((place / "out" / "results.json").read_text())
    assert results["quick"]
    assert "mean nothing" in (place / "out" / "tables.md").read_text()
    counts = {"tp": 999, "fp": 1, "fn": 1, "tn": 5}
    results["experiments"]["data-size"]["runs"]["faces-6-1"]["clean"]["counts"] = counts
    (tmp_path / "results.json").write_text(json.dumps(results))
    report.write(tmp_path)
    assert "| 0.9990 |" in (tmp_path / "tables.md").read_text()
    assert "| 0.9990 |" not in (place / "out" / "tables.md").read_text()


def test_the_page_in_the_repository_agrees_with_its_tables(tmp_path):
    """The tables are made from results.json; the figures in the page's conclusions, written by hand, are theirs."""
    committed = experiments.RESULTS_DIR
    shutil.copy(committed / "results.json", tmp_path)
    report.write(tmp_path)
    tables = (tmp_path / "tables.md").read_text()
    assert tables == (committed / "tables.md").read_text()
    page = (committed / "README.md").read_text()
    figures = re.findall(r"\d\.\d+ ± \d\.\d+", page)
    assert len(figures) > 10
    for figure in figures:
        assert figure in tables, figure
    shown = re.findall(r"\]\(([\w-]+\.(?:png|md))\)", page)
    assert {p.name for p in committed.iterdir()} == {"README.md", "results.json", "benchmark.json", *shown}


def test_a_full_run_is_not_overwritten_by_a_quick_one(place, prepared, tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"quick": false, "experiments": {}}')
    args = ["data-size", "--quick", "--data", prepared, "--runs", place / "runs", "--out", tmp_path]
    assert experiments.main([str(a) for a in args]) == 1
    one_sentence(capsys.readouterr().err, tmp_path, "--out")
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_runs_of_other_settings_are_not_taken_for_these(place, prepared, tmp_path, capsys):
    folder = tmp_path / "cutout-on-1"
    folder.mkdir()
    state = torch.load(place / "runs" / "cutout-on-1" / "last.pth", weights_only=True)
    torch.save({**state, "config": {**state["config"], "size": 96}}, folder / "last.pth")
    args = ["data-size", "--quick", "--data", prepared, "--runs", tmp_path, "--out", tmp_path / "out"]
    assert experiments.main([str(a) for a in args]) == 1
    one_sentence(capsys.readouterr().err, folder, "size", "96")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["cover"], ["cover", "data-size"]),
        (["occluders", "--data", "nowhere"], ["--source"]),
        (["glasses", "--quick", "--source", "nowhere.zip"], ["nowhere.zip"]),
    ],
)
def test_mistakes_are_one_sentence(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if experiments.const.CELEB_DIR.is_dir():
        pytest.skip("the data set is here")
    assert experiments.main([*args, "--runs", "runs", "--out", "out"]) == 1
    one_sentence(capsys.readouterr().err, *words)
    assert not (tmp_path / "out").exists()


def record(rng, occluded: bool) -> dict:
    def counts():
        return dict(zip(("tp", "fp", "fn", "tn"), rng.integers(1000, 9000, 4).tolist(), strict=True))

    ratios = {key: float(rng.random()) for key in ("dice", "iou", "batch_dice", "batch_iou")}
    clean = {"bce": 0.1, "thresholds": {str(t): ratios for t in experiments.LOGITS}}
    more = {"box": counts(), "occluded": 100, "called_face": int(rng.integers(100))} if occluded else clean
    return {"pictures": 6, "counts": counts(), **more}


def test_every_table_and_plot(tmp_path):
    rng = np.random.default_rng(0)
    kinds = ["clean", "glasses", "real glasses", *occluders.KINDS]
    sections = {}
    for name in experiments.NAMES:
        runs = [run.name for run in experiments.runs_of(name, "cpu", 780)] + ["bundled"]
        settings = {"model": "lite", "size": 128, "batch_size": 16, "epochs": 2, "lr": 1e-3, "ema": 0.9, "steps": 9}
        row = {"parameters": 1e6, "seconds_per_epoch": [2.0, 3.0, 2.5], "seconds_per_picture": 0.1,
               "peak_memory": 2**30, "histories": [[{"epoch": 1, "seconds": 2.0, "dice": 0.5}]] * 3}  # fmt: skip
        seeds = list(experiments.MODEL_SEEDS["cpu"] if name == "models" else experiments.SEEDS["cpu"])
        sections[name] = {
            "command": f"python -m studies.experiments {name}", "budget": "cpu", "date": "today",
            "hardware": "a machine", "torch": "2", "precision": "fp32", "train_faces": 780, "val_faces": 6,
            "seeds": seeds, "model_seeds": list(experiments.MODEL_SEEDS["cpu"]),
            "settings": [{**settings, "pretrained": False, "seeds": [1, 2, 3]}],
            "runs": {run: {kind: record(rng, kind != "clean") for kind in kinds} for run in runs},
            "cutout": {c: [0.1, 0.2] for c in ("image+mask", "none", "image-only")}, "wearers": {"train": 3, "val": 1},
            "models": {"unet": row, "deeplabv3": row}, "counts": experiments.face_counts("cpu", 780),
        }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"quick": False, "experiments": sections}))
    report.write(tmp_path)
    page = (tmp_path / "tables.md").read_text()
    for name in experiments.NAMES:
        assert f"python -m studies.experiments {name}" in page
    assert "0.923" in page  # the IoU that goes with Dice 0.96
    assert "nan" not in page
    assert "2.5 ± 0.5" in page  # seconds an epoch, of three seeds
    assert {p.name for p in tmp_path.glob("*.png")} == {"occluders.png", "models.png", "data-size.png"}
    assert all(p.stat().st_size < 300_000 for p in tmp_path.glob("*.png"))
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_the_sheet_of_occluded_faces_shows_the_target(place):
    with Image.open(place / "out" / "glasses-faces.png") as sheet:
        width, height = sheet.size
    assert width == pytest.approx(height, rel=0.25)  # five faces; picture, target, two networks and the bundled one


def test_the_fit_finds_a_known_law():
    n = np.repeat([50, 100, 200, 400, 780], 3)
    a, b, c = report.power_law(n, 0.04 + 0.1 * (n / 50) ** -0.5)
    assert (a, b, c) == pytest.approx((0.04, 0.1, 0.5), abs=1e-6)


def test_the_original_s_average_is_not_the_pooled_figure():
    good, bad = Counts(tp=100, tn=100), Counts(tp=10, fp=45, fn=45)
    figures = experiments.averaged([good, bad], batch=1)
    assert figures["batch_dice"] == pytest.approx((1 + 20 / 110) / 2)
    assert figures["dice"] == pytest.approx(220 / 310)
    assert figures["batch_iou"] > figures["batch_dice"] / (2 - figures["batch_dice"])


def test_the_hole_as_meant_and_as_lost():
    mask = np.zeros((512, 512), np.uint8)
    mask[150:430, 120:390] = 255
    picture, face = experiments.cutout_fraction("image+mask", 128, [mask], draws=200)
    assert 0.14 < picture < 0.21  # 0.45 of the height x 0.55 of the width x p 0.7
    assert 0.25 < face < 0.5  # which lies in the middle
    picture, face = experiments.cutout_fraction("image-only", 128, [mask], draws=200)
    assert 0 < picture < 0.05
    assert face == 0
    assert experiments.cutout_fraction("none", 128, [mask], draws=5) == (0, 0)
