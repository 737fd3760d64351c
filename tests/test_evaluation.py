"""`main.py evaluate`: figures that the masks bear out, the table, the sheet of the worst pictures, what is refused."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import leftovers, no_traceback, one_sentence, run
from PIL import Image

import const
import dataset
import evaluation
import inference
import main
import model
from metrics import Counts
from pictures import read_picture


def test_figures_that_masks_bear_out(prepared, lite_weights, tmp_path):
    result = no_traceback(
        run("main.py", "evaluate", "--weights", lite_weights, "--data", prepared, "--out", "report", cwd=tmp_path)
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert record["pictures"] == 6
    assert record["model"] == "lite"
    assert list(record["metrics"]) == ["probability 0.5", "logit 0.1"]
    faces = dataset.Celeb(prepared / "images_val", prepared / "masks_val")
    exact = inference.Segmenter(*model.load(lite_weights), precision="fp32")  # as evaluate measures
    sums = {name: np.zeros(4) for name in record["metrics"]}
    bce, pixels = 0.0, 0
    for image, mask in faces.pairs:
        target = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) > 127
        logits = exact.logits([read_picture(image)])[0]
        logits = cv2.resize(logits, (512, 512), interpolation=cv2.INTER_LINEAR)
        for name, threshold in (("probability 0.5", 0.0), ("logit 0.1", 0.1)):
            face = logits > threshold
            sums[name] += (face & target).sum(), (face & ~target).sum(), (~face & target).sum(), 0
        bce += torch.nn.functional.binary_cross_entropy_with_logits(
            torch.from_numpy(logits), torch.from_numpy(target).float(), reduction="sum"
        ).item()
        pixels += target.size
    for name, (tp, fp, fn, _) in sums.items():
        row = record["metrics"][name]
        assert row["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=2e-4)
        assert row["iou"] == pytest.approx(tp / (tp + fp + fn), abs=2e-4)
        assert row["precision"] == pytest.approx(tp / (tp + fp), abs=2e-4)
        assert row["recall"] == pytest.approx(tp / (tp + fn), abs=2e-4)
        assert 0 <= row["boundary_iou"] < 1
        assert f"{row['dice']:.4f}" in result.stdout
    assert record["metrics"]["probability 0.5"]["bce"] == pytest.approx(bce / pixels, rel=1e-3)
    assert record["metrics"]["probability 0.5"] != record["metrics"]["logit 0.1"]
    with Image.open(tmp_path / "report" / "worst.jpg") as sheet:
        assert sheet.size == (5 * 224, 2 * 244)  # six faces, five in a row
        sheet.load()
    assert not leftovers(tmp_path)


def test_with_and_without_listed_faces(prepared, lite_weights, tmp_path, capsys):
    (tmp_path / "ids.txt").write_text("# face\n24001 # and one\n", encoding="utf-8-sig")  # as some editors do
    args = ["evaluate", "--weights", str(lite_weights), "--data", str(prepared), "--out", str(tmp_path)]
    args += ["--device", "cpu"]
    assert main.main([*args, "--limit", "2", "--exclude", str(tmp_path / "ids.txt")]) == 0
    rest = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["0.5, 1 faces"]
    assert capsys.readouterr().out.splitlines()[3].split()[:4] == ["0.5,", "1", "faces", "1"]
    assert main.main([*args, "--limit", "1"]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["probability 0.5"] == rest
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["weights"] == str(lite_weights)
    assert (record["flip"], record["backend"], record["exclude"]) == (False, "torch", None)
    (tmp_path / "other.txt").write_text("24001.jpg")
    for name in ("none.txt", "other.txt"):
        assert main.main([*args, "--exclude", str(tmp_path / name)]) == 1
        one_sentence(capsys.readouterr().err, name)


def test_the_figures_of_a_run_are_named_after_it(prepared, lite_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(const, "RUNS_DIR", tmp_path)
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    shutil.copy(lite_weights, "model.best.pth")
    assert main.main(["evaluate", "--weights", "model.best.pth", "--data", str(prepared), "--limit", "1"]) == 0
    assert (tmp_path / "evaluate-one" / "metrics.json").is_file()


@pytest.mark.parametrize("name", ["metrics.json", "worst.jpg"])
def test_replaces_no_file_but_its_own(name, prepared, lite_weights, tmp_path, capsys):
    argv = ["evaluate", "--weights", lite_weights, "--data", prepared, "--limit", "2", "--out", tmp_path]
    for _ in range(2):
        assert main.main([*map(str, argv)]) == 0
    (tmp_path / name).write_text("precious")
    capsys.readouterr()
    assert main.main([*map(str, argv)]) == 1
    one_sentence(capsys.readouterr().err, name)
    assert (tmp_path / name).read_text() == "precious"


def test_the_table_is_printed_even_if_no_file_can_be_written(prepared, lite_weights, tmp_path, capsys):
    (tmp_path / "file").touch()
    argv = ["evaluate", "--weights", lite_weights, "--data", prepared, "--limit", "1", "--out", tmp_path / "file" / "x"]
    assert main.main([*map(str, argv)]) == 1
    assert "probability 0.5" in capsys.readouterr().out


def test_names_what_is_broken(prepared, lite_weights, tmp_path, capsys):
    data = Path(shutil.copytree(prepared, tmp_path / "data"))

    def evaluate():
        return main.main(["evaluate", "--weights", str(lite_weights), "--data", str(data), "--limit", "2",
                          "--out", str(tmp_path / "out"), "--device", "cpu"])  # fmt: skip

    assert evaluate() == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["pictures"] == 2
    capsys.readouterr()
    (data / "masks_val" / "24001_skin.png").write_bytes(b"broken")
    assert evaluate() == 1
    one_sentence(capsys.readouterr().err, "24001_skin.png")
    (data / "masks_val" / "24001_skin.png").unlink()
    assert evaluate() == 1
    one_sentence(capsys.readouterr().err, "24001.jpg", "no partner")


def test_what_is_undefined_is_a_dash():
    nothing = Counts(tn=9).summary()  # no face in the target, none predicted
    table = {"probability 0.5": nothing | {"bce": 0.25}, "logit 0.1": Counts(tp=3, fp=1, tn=5).summary()}
    head, first, second = evaluation.format_table(table, {"probability 0.5": 2, "logit 0.1": 1}).splitlines()
    assert head.split() == ["pictures", "dice", "iou", "precision", "recall", "boundary", "iou", "bce"]
    assert first.split() == ["probability", "0.5", "2", "-", "-", "-", "-", "-", "0.2500"]
    assert second.split()[:6] == ["logit", "0.1", "1", "0.8571", "0.7500", "0.7500"]
    assert len(head) == len(first)


def test_the_worst_come_first(prepared, lite_weights, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(evaluation, "WORST", 2)
    monkeypatch.setattr(evaluation, "worst_sheet", lambda rows: seen.update(rows=rows) or np.zeros((9, 9, 3), np.uint8))
    segmenter = inference.Segmenter(*model.load(lite_weights), precision="fp32")
    evaluation.evaluate(segmenter, prepared, tmp_path, limit=4, log=lambda line: None)
    dice = {}
    for image, mask in dataset.Celeb(prepared / "images_val", prepared / "masks_val", limit=4).pairs:
        target = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) > 127
        logits = cv2.resize(segmenter.logits([read_picture(image)])[0], (512, 512), interpolation=cv2.INTER_LINEAR)
        dice[image.name] = Counts().add(logits > 0, target, boundary=False).dice
    worst = sorted(dice, key=dice.get)[:2]
    assert [title.split()[0] for title, *_ in seen["rows"]] == worst
    assert [float(title.split()[-1]) for title, *_ in seen["rows"]] == pytest.approx([dice[w] for w in worst], abs=2e-3)
