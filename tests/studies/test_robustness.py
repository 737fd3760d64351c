"""The robustness tables: the real command on drawn faces, and the changes that it measures."""

import json

import numpy as np
import pytest
from conftest import leftovers, no_traceback, one_sentence, run
from PIL import Image

from studies import robustness


def test_the_command_writes_every_section(prepared, lite_weights, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(6):  # every fifth is held out
        Image.fromarray(rng.integers(0, 256, (90, 120, 3)).astype(np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    done = no_traceback(
        run("studies.robustness", "--weights", lite_weights, "--data", prepared, "--backgrounds", tmp_path / "photos",
            "--out", tmp_path / "out", "--scenes", 3)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert set(robustness.SECTIONS) < table.keys()
    assert not table["skipped"]
    assert table["faces"]["clean"]["pictures"] == 6
    assert set(table["changes"]) == set(robustness.CHANGES)
    for name in ("drawn occluders", "changes", "photographs"):
        assert all(0 <= row["dice"] <= 1 for row in table[name].values())
    empty = table["no face"]["held-out photographs"]
    assert empty["pictures"] == 1
    assert empty["dice"] is empty["lowest_decile_dice"] is None
    lines = (tmp_path / "out" / "robustness.md").read_text().splitlines()
    rate = empty["predicted_positive_rate"]
    assert f"| no face: held-out photographs | - | - | - | - | - | {rate:.2%} | 1 |" in lines
    assert any(line.startswith("| changes: rolled by 45 degrees | 0.") for line in lines)
    assert not leftovers(tmp_path / "out")


@pytest.mark.parametrize("name", robustness.CHANGES)
def test_a_change_keeps_the_shape_and_the_target_binary(name):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (512, 512, 3)).astype(np.uint8)
    target = np.zeros((512, 512), np.uint8)
    target[100:300, 150:350] = 255
    before = image.copy()
    changed, mask = robustness.CHANGES[name](image, target)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert (image == before).all()
    assert (changed != image).any()
    assert set(np.unique(mask)) == {0, 255}
    assert abs(int((mask > 0).sum()) - 40000) < 400  # turned, at most


def test_tables_asked_for_alone_and_what_is_skipped(prepared, lite_weights, tmp_path):
    options = ["--weights", lite_weights, "--data", prepared, "--out", tmp_path, "--only", "faces", "no face"]
    assert robustness.main(list(map(str, options))) == 0
    table = json.loads((tmp_path / "robustness.json").read_text())
    assert table.keys() == {"weights", "skipped", "faces"}
    assert "--backgrounds" in table["skipped"]["no face"]
    assert "no face: skipped, it needs photographs in --backgrounds" in (tmp_path / "robustness.md").read_text()


def test_no_data_is_one_sentence(tmp_path, capsys):
    assert robustness.main(["--data", str(tmp_path)]) == 1
    one_sentence(capsys.readouterr().err, str(tmp_path), "data_preprocessing.py")


def test_skin_tone_orders_light_and_dark():
    mask = np.full((8, 8), 255, np.uint8)
    light, dark = np.full((8, 8, 3), (240, 205, 180), np.uint8), np.full((8, 8, 3), (80, 50, 35), np.uint8)
    assert robustness.skin_tone(light, mask) > 40 > 10 > robustness.skin_tone(dark, mask)
