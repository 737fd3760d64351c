"""Pooled counts against figures worked out by hand, by brute force and by torch."""

import math

import numpy as np
import pytest
import torch

from metrics import Counts, boundary_distance, boundary_region, counts_at


def masks(tp: int, fp: int, fn: int, tn: int) -> tuple[np.ndarray, np.ndarray]:
    """One row of pixels with these counts: (predicted, target)."""
    predicted = [1] * (tp + fp) + [0] * (fn + tn)
    target = [1] * tp + [0] * fp + [1] * fn + [0] * tn
    return np.array([predicted], bool), np.array([target], bool)


def test_hand_computed_counts():
    counts = Counts().add(*masks(6, 2, 4, 8))
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (6, 2, 4, 8)
    assert counts.dice == pytest.approx(12 / 18)
    assert counts.iou == pytest.approx(6 / 12)
    assert counts.precision == pytest.approx(6 / 8)
    assert counts.recall == pytest.approx(6 / 10)
    assert counts.predicted_positive_rate == pytest.approx(8 / 20)
    assert set(counts.summary()) == {"dice", "iou", "precision", "recall", "boundary_iou"}
    assert set(counts.add_bce(np.zeros((1, 20)), masks(6, 2, 4, 8)[1]).summary()) == {*Counts().summary(), "bce"}


@pytest.mark.parametrize(
    ("tp", "fp", "fn", "dice", "iou", "precision", "recall"),
    [
        (0, 0, 0, 1, 1, 1, 1),  # nothing to find, nothing found
        (0, 5, 0, 0, 0, 0, 1),  # predicted where there is no face
        (0, 0, 5, 0, 0, 1, 0),  # a face that was not found
        (5, 0, 0, 1, 1, 1, 1),
    ],
)
def test_empty_masks(tp, fp, fn, dice, iou, precision, recall):
    counts = Counts().add(*masks(tp, fp, fn, 9))
    assert (counts.dice, counts.iou, counts.precision, counts.recall) == (dice, iou, precision, recall)
    shown = counts.summary()
    assert (shown["dice"] is None) == (shown["iou"] is None) == (shown["recall"] is None) == (tp + fn == 0)
    assert (shown["precision"] is None) == (tp + fp == 0)


def test_no_pictures_at_all():
    assert math.isnan(Counts().bce)
    assert Counts().predicted_positive_rate == 0
    assert "bce" not in Counts().summary()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        Counts().add(np.zeros((4, 4), bool), np.zeros((4, 5), bool))


def brute_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of the mask with a pixel of the outside within `distance` king's moves; beyond the picture is outside."""
    h, w = mask.shape
    out = np.zeros((h, w), bool)
    for y, x in zip(*np.nonzero(mask), strict=True):
        for v in range(y - distance, y + distance + 1):
            for u in range(x - distance, x + distance + 1):
                out[y, x] |= not (0 <= v < h and 0 <= u < w) or not mask[v, u]
    return out


def test_boundary_of_squares_by_hand():
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    ring = boundary_region(mask, boundary_distance(mask))  # 2 % of the diagonal of 28.3 is 0.57: one pixel
    assert ring.dtype == bool
    assert ring.sum() == 100 - 64
    assert not ring[6:14, 6:14].any()
    full = boundary_region(np.ones((20, 20), bool), 1)  # the picture's edge is a contour
    assert full.sum() == 400 - 18 * 18
    assert boundary_region(mask, 2).sum() == 100 - 36
    assert not boundary_region(np.zeros((20, 20), bool), 1).any()


def test_the_band_of_a_small_face_is_its_own():
    mask = np.zeros((1000, 1000), bool)
    mask[400:500, 400:500] = True
    assert boundary_distance(mask) == 3  # of its diagonal of 141, not 28 of the picture's
    assert boundary_region(mask, boundary_distance(mask)).sum() == 100 * 100 - 94 * 94
    mask[300:600, 300:600] = True
    assert boundary_distance(mask) == boundary_distance(np.zeros_like(mask)) == 28


def test_the_band_of_two_small_faces_far_apart_is_that_of_the_larger():
    mask = np.zeros((1000, 1000), bool)
    mask[50:150, 50:150] = mask[800:860, 800:860] = True
    assert boundary_distance(mask) == 3


def test_boundary_by_brute_force():
    rng = np.random.default_rng(0)
    for shape, distance in (((40, 30), 1), ((90, 60), 2), ((61, 130), 3)):
        assert round(0.02 * math.hypot(*shape)) == distance
        small = rng.random((shape[0] // 6 + 1, shape[1] // 6 + 1)) < 0.6
        mask = np.kron(small, np.ones((6, 6), bool))[: shape[0], : shape[1]]
        np.testing.assert_array_equal(boundary_region(mask, boundary_distance(mask)), brute_boundary(mask, distance))


def test_boundary_iou_of_two_squares_by_hand():
    a, b = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    a[5:15, 5:15] = True
    b[5:15, 6:16] = True  # one pixel to the right
    counts = Counts().add(a, b)
    # Each ring has 36 pixels. They share rows 5 and 14 over columns 6 to 14, 9 pixels each, and nothing besides: the
    # upright sides lie in columns 5 and 14, and 6 and 15.
    assert counts.boundary_inter == 18
    assert counts.boundary_union == 36 + 36 - 18
    assert counts.boundary_iou == pytest.approx(18 / 54)
    assert counts.iou == pytest.approx(90 / 110)
    assert Counts().add(a, b, boundary=False).boundary_union == 0


def test_bce_is_that_of_torch():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 4, (5, 33)).astype(np.float32)
    logits[0, :4] = (-200, 200, -90, 90)  # no overflow
    target = rng.random((5, 33)) < 0.4
    target[0, :4] = (True, False, False, True)
    want = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits).double(), torch.from_numpy(target).double()
    )
    assert Counts().add_bce(logits, target).bce == pytest.approx(want.item(), rel=1e-9)


def test_counts_add_up_in_any_order():
    rng = np.random.default_rng(2)
    pictures = [(rng.normal(0, 1, (24, 24)), rng.random((24, 24)) < 0.5) for _ in range(6)]
    ones = [Counts().add(x > 0, y).add_bce(x, y) for x, y in pictures]
    together = Counts()
    for x, y in pictures:
        together.add(x > 0, y).add_bce(x, y)
    for order in (ones, ones[::-1]):
        total = sum(order, Counts())
        assert total.summary() == pytest.approx(together.summary(), rel=1e-12)
        assert (total.tp, total.fp, total.fn, total.tn) == (together.tp, together.fp, together.fn, together.tn)
    assert ones[0].tp + ones[0].fp + ones[0].fn + ones[0].tn == 24 * 24  # adding changed no part of the sum


def test_pooling_is_not_a_mean_of_ratios():
    large, small = masks(90, 5, 5, 0), masks(1, 4, 5, 90)
    pooled = Counts().add(*large).add(*small)
    assert pooled.dice == pytest.approx(2 * 91 / (2 * 91 + 9 + 10))
    mean = (Counts().add(*large).dice + Counts().add(*small).dice) / 2
    assert mean == pytest.approx((180 / 190 + 2 / 11) / 2)
    assert pooled.dice - mean > 0.3


def test_thresholds_of_a_picture():
    logits = np.array([[-1.0, 0.0, 0.05, 0.1, 0.11, 3.0]])
    target = np.array([[0, 0, 1, 1, 1, 1]], bool)
    first, second = (counts_at(x, target, (0.0, 0.1)) for x in (logits, -logits))
    half, original = (sum(pair, Counts()) for pair in zip(first, second, strict=True))
    assert (half.tp, half.fp, half.fn, half.tn) == (4, 1, 4, 3)  # a pixel at the threshold itself is not face
    assert (original.tp, original.fp, original.fn, original.tn) == (2, 1, 6, 3)
    assert [first[0].dice, second[0].dice] == [1.0, 0.0]
    assert half.bce_pixels == 12
    assert original.bce_pixels == 0
