"""Photographed occluders: found, held out, laid over faces; label noise found; weights averaged."""

import numpy as np
import pytest
import torch
from conftest import one_sentence
from PIL import Image

import model
from common import UserError
from robust import average, label_noise, photographed
from robust.occluders import FACE_CENTRE, SIZE

SKIN = (200, 150, 120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten green squares of each kind on a transparent ground, those of the hands cut off at the lower edge."""
    root = tmp_path_factory.mktemp("occluders")
    for kind in (*photographed.KINDS, "textures"):
        (root / kind).mkdir()
        for i in range(10):
            cut = np.zeros((120, 100, 4), np.uint8)
            cut[20 : 120 if kind == "hands" else 100, 20:80] = (0, 200 + i, 0, 255)
            Image.fromarray(cut if kind != "textures" else cut[..., :3]).save(root / kind / f"{i}.png")
    return root


@pytest.fixture
def face():
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[120:460, 130:380] = 255
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    image[mask > 0] = SKIN
    return image, mask


def test_a_fifth_of_each_kind_is_held_out(folder, tmp_path):
    for kind in photographed.KINDS:
        train, held = (photographed.find_occluders(folder, kind, held_out=h) for h in (False, True))
        assert [p.stem for p in held] == ["4", "9"]
        assert len(train) == 8
        assert not set(train) & set(held)
    with pytest.raises(UserError, match="no occluders"):
        photographed.find_occluders(tmp_path, "hands")


@pytest.mark.parametrize("kind", photographed.KINDS)
def test_the_mask_loses_what_the_occluder_hides(folder, face, kind):
    store = photographed.OccluderStore(folder)
    image, mask = face
    texture, hidden = store.draw(np.random.default_rng(0), "textures"), 0
    for seed in range(12):
        before = image.copy(), mask.copy()
        new, smaller, opacity = photographed.lay(np.random.default_rng(seed), image, mask, store, texture, kind=kind)
        again = photographed.lay(np.random.default_rng(seed), image, mask, store, texture, kind=kind)
        for a, b in zip((new, smaller, opacity), again, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(image, before[0])
        np.testing.assert_array_equal(mask, before[1])
        assert not smaller[opacity > 128].any()
        np.testing.assert_array_equal(smaller[opacity < 120], mask[opacity < 120])
        hidden += np.count_nonzero(mask) - np.count_nonzero(smaller)
    assert hidden > 12 * 0.03 * np.count_nonzero(mask)


def test_a_hand_takes_the_tone_of_the_face(folder, face):
    layer = np.zeros((SIZE, SIZE, 4), np.uint8)
    layer[100:300, 100:300] = (60, 40, 30, 255)
    image, mask = face
    own = photographed.recoloured(np.random.default_rng(0), layer, image[mask > 0])[150, 150, :3]
    assert np.abs(own.astype(int) - SKIN).max() < 40


def test_the_wrist_is_where_the_hand_was_cut_off(folder):
    cut = photographed.OccluderStore(folder).draw(np.random.default_rng(0), "hands")
    offset, width = photographed.wrist(cut)
    assert offset.tolist() == pytest.approx([-0.5, 60], abs=1)
    assert width == 60
    layer = photographed.hand_layer(np.random.default_rng(1), cut, np.array(FACE_CENTRE, float), None)
    assert layer.shape == (SIZE, SIZE, 4)
    assert layer[..., 3].any()


def test_disagreement_is_inside_the_face_not_along_its_contour():
    mask = np.zeros((512, 512), np.uint8)
    mask[100:400, 100:400] = 255
    narrower, hand = (np.where(mask > 0, 0.95, 0.0) for _ in range(2))
    narrower[:, 100:110] = 0.0
    hand[300:400, 200:300] = 0.0
    assert label_noise.disagreement(narrower, mask) == 0
    assert label_noise.disagreement(hand, mask) == pytest.approx(1 / 9, rel=0.05)


def test_mislabelled_faces_are_listed(lite_weights, prepared, tmp_path, capsys):
    out = tmp_path / "ids.txt"
    options = ["--weights", str(lite_weights), "--data", str(prepared), "--split", "val", "--out", str(out)]
    assert label_noise.main(options) == 0  # untrained weights disagree with some, not with what they call face
    known = {p.stem for p in (prepared / "images_val").iterdir()}
    assert set(out.read_text().split()) <= known
    assert f"of {len(known)} faces" in capsys.readouterr().out
    assert label_noise.main([*options[:1], str(tmp_path / "none.pth"), *options[2:]]) == 1
    one_sentence(capsys.readouterr().err, "none.pth")


def test_the_average_of_weights(lite_weights, tmp_path, capsys):
    state, info = model.read_state(lite_weights)
    other = {k: v + 2 if k == "head.bias" else v for k, v in state.items()}
    model.save_state(other, tmp_path / "other.pth", info)
    out = tmp_path / "mean.pth"
    command = [str(lite_weights), str(tmp_path / "other.pth"), "--out", str(out), "--size", "96", "--confidence", "0.8"]
    assert average.main(command) == 0
    mean, its = model.read_state(out)
    torch.testing.assert_close(mean["head.bias"].float(), state["head.bias"] + 1, rtol=1e-2, atol=1e-3)
    assert (its.size, its.passes, its.confidence) == (96, 2, 0.8)
    with pytest.raises(SystemExit):  # before a file is replaced by one that nothing loads
        average.main([*command, "--size", "0"])
    assert average.main([str(tmp_path / "none.pth"), *command[2:]]) == 1
    one_sentence(capsys.readouterr().err.splitlines()[-1], "none.pth")


def test_what_is_kept_has_a_bound():
    recent, read = photographed.Recent(25), []

    def get(name: str, size: int = 10):
        def make():
            read.append(name)
            return np.zeros(size, np.uint8)

        return recent.get(name, make)

    for name in "abacab":  # c takes the place of b, the least recently used, and b then that of c
        get(name)
    assert "".join(read) == "abcb"
    assert recent.held == 20
    assert get("large", 100).nbytes == recent.held == 100  # kept alone


def test_a_cut_out_without_alpha_or_unreadable_is_one_sentence(folder, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "y.png")
    (tmp_path / "hands").mkdir()
    (tmp_path / "hands" / "._z.png").write_bytes(b"what macOS leaves on other disks")
    store = photographed.OccluderStore(folder)
    for name in ("x.png", "y.png", "none.png"):
        with pytest.raises(UserError, match=f"{name} is not a picture with alpha"):
            store.read(tmp_path / name, "hands")
    with pytest.raises(UserError, match="no occluders"):
        photographed.find_occluders(tmp_path, "hands")
