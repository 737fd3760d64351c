"""The robustness tables: the real command on drawn faces, and the changes that it measures."""

import json

import numpy as np
import pytest
from conftest import leftovers, no_traceback, one_sentence, run
from PIL import Image

from robust import scenes
from studies import pasted, robustness


def test_the_command_writes_every_section(prepared, lite_weights, occluder_dir, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(6):  # every fifth is held out
        Image.fromarray(rng.integers(0, 256, (90, 120, 3)).astype(np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    done = no_traceback(
        run("studies.robustness", "--weights", lite_weights, "--data", prepared, "--backgrounds", tmp_path / "photos",
            "--occluders", occluder_dir, "--out", tmp_path / "out", "--scenes", 2, "--limit", 3)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert set(robustness.SECTIONS) < table.keys()
    assert not table["skipped"]
    assert table["faces"]["clean"]["pictures"] == 3
    assert set(table["changes"]) == set(robustness.CHANGES)
    assert set(table["photographed occluders"]) == {"hands", "objects", "masks"}
    for name in ("drawn occluders", "photographed occluders", "changes", "photographs"):
        assert all(0 <= row["dice"] <= 1 for row in table[name].values())
    assert all(0 <= row["occluded_false_positive_rate"] <= 1 for row in table["photographed occluders"].values())
    assert table["changes"]["upside down"]["occluded_false_positive_rate"] is None
    empty = table["no face"]["held-out photographs"]
    assert empty["pictures"] == 1
    many = int(empty["predicted_positive_rate"] > 0.002)  # of this one picture
    assert empty["pictures_with_many_positives"] == many
    assert empty["dice"] is empty["lowest_decile_dice"] is None
    lines = (tmp_path / "out" / "robustness.md").read_text().splitlines()
    rate = empty["predicted_positive_rate"]
    assert f"| no face: held-out photographs | - | - | - | - | - | {rate:.2%} | {many} | - | 1 |" in lines
    assert any(line.startswith("| changes: rolled by 45 degrees | 0.") for line in lines)
    assert not leftovers(tmp_path / "out")


class Painter:
    """In a segmenter's place: calls every pixel face, or what `answer` says of a picture."""

    def __init__(self, answer=lambda image: np.ones(image.shape[:2])):
        self.answer = answer

    def logits(self, images):
        return [self.answer(image) for image in images]


@pytest.mark.parametrize("kind", robustness.photographed.KINDS)
def test_occluded_pixels_called_face(prepared, occluder_dir, kind):
    store = robustness.scenes.FaceStore(prepared / "images_val", prepared / "masks_val", limit=3)
    cutouts = robustness.photographed.OccluderStore(occluder_dir, held_out=True)
    assert all([path.stem for path in paths] == ["4"] for paths in cutouts.paths.values())
    samples = list(pasted.pasted_faces(store, cutouts, kind))
    assert len(samples) == 3
    again = list(pasted.pasted_faces(store, cutouts, kind))
    assert all((a == b).all() for one, two in zip(samples, again, strict=True) for a, b in zip(one, two, strict=True))
    for i, (image, mask, under) in enumerate(samples):
        assert not mask[under].any()
        assert (mask[~under] == store[i].mask[~under]).all()
        assert (store[i].mask[under] > 127).all()
        changed = (image != store[i].image).any(2)
        assert changed[under].mean() > 0.98
        assert changed.mean() < 0.7
    assert sum(under.any() for _, _, under in samples) >= 2
    assert robustness.measure(Painter(), samples)["occluded_false_positive_rate"] == 1
    targets = iter([mask for _, mask, _ in samples])
    exact = robustness.measure(Painter(lambda _: next(targets) / 255.0 - 0.5), samples)
    assert exact["occluded_false_positive_rate"] == 0
    assert exact["dice"] == 1


def test_pictures_without_a_face_where_more_than_a_little_is_called_face():
    empty = np.zeros((100, 100), np.uint8)
    pictures = [np.zeros((100, 100, 3), np.uint8) for _ in range(3)]

    def answer(positives):
        return np.where(np.arange(10000).reshape(100, 100) < positives, 1.0, -1.0)

    answers = map(answer, (0, 20, 21))  # the limit is 0.2 %
    figures = robustness.measure(Painter(lambda _: next(answers)), [(picture, empty) for picture in pictures])
    assert figures["pictures_with_many_positives"] == 1
    assert figures["predicted_positive_rate"] == 41 / 30000


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
    options = ["--weights", lite_weights, "--data", prepared, "--out", tmp_path, "--only", "faces", "no face",
               "photographed occluders"]  # fmt: skip
    assert robustness.main(list(map(str, options))) == 0
    table = json.loads((tmp_path / "robustness.json").read_text())
    about = {"weights", "sha256", "model", "passes", "flip", "backend", "precision", "device", "limit"}
    assert table.keys() == {*about, "skipped", "faces"}
    assert table["weights"] == str(lite_weights)
    assert "--backgrounds" in table["skipped"]["no face"]
    assert "--occluders" in table["skipped"]["photographed occluders"]
    assert "no face: skipped, it needs at least five photographs" in (tmp_path / "robustness.md").read_text()


def test_no_data_is_one_sentence(tmp_path, capsys):
    assert robustness.main(["--data", str(tmp_path)]) == 1
    one_sentence(capsys.readouterr().err, str(tmp_path), "data_preprocessing.py")


def test_skin_tone_orders_light_and_dark():
    mask = np.full((8, 8), 255, np.uint8)
    light, dark = np.full((8, 8, 3), (240, 205, 180), np.uint8), np.full((8, 8, 3), (80, 50, 35), np.uint8)
    assert robustness.skin_tone(light, mask) > 40 > 10 > robustness.skin_tone(dark, mask)


def test_a_hand_is_cut_off_below_and_takes_the_face_s_colour_half_of_the_time():
    cut = np.zeros((80, 60, 4), np.uint8)
    cut[20:60, 0:50] = (40, 60, 200, 255)  # cut off at the left
    down = pasted.wrist_down(cut)
    assert down[-1, :, 3].any()
    assert not down[:60, [0, -1], 3].any()
    face = np.full((512, 512, 3), 90, np.uint8)
    mask = np.zeros((512, 512), np.uint8)
    mask[100:400, 120:380] = 255
    tones = []
    for seed in range(40):
        image, _, under = pasted.paste(np.random.default_rng(seed), face, mask, cut, "hands")
        tones.append(np.median(image[under], axis=0).tolist() if under.any() else None)
    assert tones.count(None) < 3
    assert 10 < tones.count([90, 90, 90]) < 30
    assert tones.count([90, 90, 90]) + tones.count([40, 60, 200]) + tones.count(None) == 40


def test_only_who_can_be_cut_out_is_in_composed_photographs(prepared):
    store = scenes.FaceStore(*(prepared / f"{kind}_val" for kind in ("images", "masks", "persons")), limit=2)
    store.entries[0] = (*store.entries[0][:2], None)
    composer = scenes.SceneComposer(store, scenes.PhotoStore([]))
    for image, target in robustness.photographs(composer, 3, (0.2, 0.4)):
        assert image.shape == (480, 640, 3)
        assert target.any()
