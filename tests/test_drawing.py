"""Overlays, cut-outs, outlines, hidden faces: the arithmetic and what is left to see."""

import time

import cv2
import numpy as np
import pytest
from conftest import save_gif
from PIL import Image

import drawing


@pytest.fixture
def face():
    """A textured picture and two masks in it, one with a gap where glasses are."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (120, 200, 3)).astype(np.uint8)
    mask = np.zeros((120, 200), np.uint8)
    cv2.ellipse(mask, (60, 60), (30, 40), 0, 0, 360, 255, -1)
    mask[45:58, 25:95] = 0
    cv2.circle(mask, (160, 40), 12, 255, -1)
    return picture, mask


def test_overlay_arithmetic(face):
    picture, mask = face
    out = drawing.overlay(picture, mask, (128, 0, 255), 0.7)
    expected = np.round(picture * 0.3 + np.array([128, 0, 255]) * 0.7)
    assert np.abs(out[mask > 0].astype(int) - expected[mask > 0]).max() <= 1
    assert (out[mask == 0] == picture[mask == 0]).all()


def test_cutout_has_a_soft_edge_and_keeps_the_colours(face):
    picture, mask = face
    out = drawing.cutout(picture, mask)
    assert out.shape == (120, 200, 4)
    assert (out[..., :3] == picture).all()
    assert out[75, 60, 3] == 255
    assert out[5, 5, 3] == 0
    assert ((out[..., 3] > 20) & (out[..., 3] < 235)).any()


def test_contour_and_side_by_side(face):
    picture, mask = face
    out = drawing.contour(picture, mask, (0, 255, 0), 1)
    changed = (out != picture).any(axis=2)
    near = cv2.dilate(mask, np.ones((7, 7))) > cv2.erode(mask, np.ones((7, 7)))
    assert changed.sum() > 100
    assert not (changed & ~near).any()
    beside = drawing.Output().draw("side-by-side", picture, mask)
    np.testing.assert_array_equal(beside[:, :200], picture)
    np.testing.assert_array_equal(beside[:, 200:], drawing.Output().draw("overlay", picture, mask))


def test_a_contour_is_as_wide_as_its_face_is_large():
    mask = np.zeros((900, 1600), np.uint8)
    for x, radius in ((400, 350), (1300, 40)):
        cv2.circle(mask, (x, 450), radius, 255, -1)
    cv2.circle(mask, (400, 450), 50, 0, -1)  # a hole in the larger
    drawn = drawing.contour(np.zeros((900, 1600, 3), np.uint8), mask, (255, 255, 255))[450, :, 0] > 127
    widths = [np.count_nonzero(drawn[x - 12 : x + 12]) for x in (50, 350, 450, 750, 1260, 1340)]
    assert all(6 <= width <= 11 for width in widths[:4])
    assert all(1 <= width <= 3 for width in widths[4:])


@pytest.mark.parametrize("hide", [drawing.blur, drawing.pixelate])
def test_hidden_faces_are_gone_with_their_eyes(face, hide):
    picture, mask = face
    out = hide(picture, mask)
    assert (drawing.hidden_region(mask)[mask > 0] == 255).all()
    assert drawing.hidden_region(mask)[51, 60] == 255  # between the glasses
    detail = cv2.Laplacian(out[30:90, 40:80].astype(np.float32), cv2.CV_32F).std()
    assert detail < 0.2 * cv2.Laplacian(picture[30:90, 40:80].astype(np.float32), cv2.CV_32F).std()
    assert (out[110:] == picture[110:]).all()
    assert (hide(picture, np.zeros_like(mask)) == picture).all()


@pytest.mark.parametrize("scale", [1, 9])
def test_faces_of_a_mask(face, scale):
    mask = cv2.resize(face[1], None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    mask[-2, 3] = 255  # a speck
    logits = np.where(mask > 0, 2.0, -9.0).astype(np.float32)
    logits[:, 120 * scale :] += 1
    left, right = drawing.find_faces(mask, logits)  # glasses divide one of the two
    for found, where, logit in ((left, np.s_[:110, :120], 2), (right, np.s_[:110, 120:], 3)):
        alone = np.zeros_like(mask)
        alone[tuple(slice((s.start or 0) * scale, s.stop and s.stop * scale) for s in where)] = 255
        alone &= mask
        assert found.box == cv2.boundingRect(alone)
        assert found.area == cv2.countNonZero(alone)
        x, y, w, h = found.box
        np.testing.assert_array_equal(found.mask, alone[y : y + h, x : x + w])
        assert found.confidence == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    assert drawing.shows_face(mask)
    mask[: 110 * scale] = 0
    assert not drawing.shows_face(mask)
    assert drawing.find_faces(mask, logits) == []
    assert not drawing.hidden_region(mask).any()


def test_a_mask_of_thousands_of_specks_takes_no_minutes():
    mask = np.zeros((512, 512), np.uint8)
    mask[::8, ::8] = mask[1::8, ::8] = mask[::8, 1::8] = mask[1::8, 1::8] = 255
    mask[200:300, 200:300] = 255
    began = time.process_time()
    assert drawing.shows_face(mask)
    assert time.process_time() - began < 10


def test_every_one_of_many_faces_is_hidden():
    mask = np.zeros((512, 512), np.uint8)
    for y in range(8, 500, 20):
        for x in range(8, 500, 20):
            mask[y : y + 8, x : x + 8] = 255
    assert drawing.hidden_region(mask)[mask > 0].all()


@pytest.mark.parametrize("text", ["", "#12345", "#gggggg", "purple", "#8000ff00"])
def test_no_colour(text):
    with pytest.raises(ValueError, match=r"is not a colour|non-hexadecimal"):
        drawing.parse_color(text)


def test_colour():
    assert drawing.parse_color("#8000ff") == drawing.parse_color("8000FF") == (128, 0, 255)


def test_a_gif_of_pictures_of_several_shapes_squashes_none(tmp_path):
    wide, tall = np.full((40, 80, 3), 255, np.uint8), np.full((80, 40, 3), 255, np.uint8)
    save_gif([wide, tall], tmp_path / "two.gif")
    with Image.open(tmp_path / "two.gif") as gif:
        assert gif.size == (80, 40)
        gif.seek(1)
        second = np.asarray(gif.convert("L"))
    np.testing.assert_array_equal(second[20] > 127, [False] * 30 + [True] * 20 + [False] * 30)
    save_gif([np.full((404, 720, 3), 255, np.uint8)] * 2, tmp_path / "one.gif")
    with Image.open(tmp_path / "one.gif") as gif:
        assert (np.asarray(gif.convert("L")) > 250).all()  # no border
