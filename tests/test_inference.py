"""Masks in the right place at the right size, in one pass and in two, and how they are computed."""

import multiprocessing
import sys

import cv2
import numpy as np
import pytest
import torch

import const
import inference
from inference import Segmenter
from model import Info
from pictures import read_picture


# --- A network that knows one colour -----------------------------------------------------------------------
class Red(torch.nn.Module):
    """Logits of +5 where a pixel is red, -5 where it is black, and what lies between on the way."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        red, green = (x[:, c : c + 1] * s + m for c, m, s in ((0, 0.485, 0.229), (1, 0.456, 0.224)))
        return (red - green - 0.5) * 10


def red_segmenter(passes: int, size: int = 256) -> Segmenter:
    return Segmenter(Red(), Info("lite", size, passes))


def painted(target: np.ndarray) -> np.ndarray:
    picture = np.zeros((*target.shape, 3), np.uint8)
    picture[target > 0] = (255, 0, 0)
    return picture


def overlap(mask: np.ndarray, target: np.ndarray) -> float:
    assert mask.shape == target.shape
    assert set(np.unique(mask)) <= {0, 255}
    return np.count_nonzero(mask & target) / max(1, np.count_nonzero(mask | target))


def ellipses(shape, *given) -> np.ndarray:
    """A target with ellipses (x, y, radius)."""
    target = np.zeros(shape, np.uint8)
    for x, y, r in given:
        cv2.ellipse(target, (int(x), int(y)), (max(1, int(r)), max(1, int(r * 1.2))), 20, 0, 360, 255, -1)
    return target


CASES = {
    "small in a large picture": ellipses((900, 1200), (300, 200, 30)),
    "large": ellipses((500, 400), (200, 250, 150)),
    "larger than the picture": np.full((200, 300), 255, np.uint8),
    "at the left edge": ellipses((600, 800), (0, 300, 80)),
    "in a corner": ellipses((600, 801), (800, 599, 90)),
    "two far apart": ellipses((700, 900), (150, 150, 60), (750, 550, 70)),
    "two near": ellipses((700, 900), (350, 350, 70), (520, 350, 60)),
    "large and small": ellipses((800, 1000), (300, 400, 200), (900, 100, 30)),
    "smaller than the network's view": ellipses((61, 47), (20, 30, 12)),
    "tall": ellipses((1500, 201), (100, 1300, 60)),
    "a panorama": ellipses((120, 2000), (1900, 60, 40)),
    "a strip": ellipses((45, 1000), (930, 22, 15)),
}


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_mask_lies_where_the_face_is(case, passes):
    mask = red_segmenter(passes).mask(painted(CASES[case]))
    coarse = passes == 1 and case in ("small in a large picture", "a strip", "a panorama", "large and small", "tall")
    assert overlap(mask, CASES[case]) > (0.90 if coarse else 0.955)


@pytest.mark.parametrize("passes", [1, 2])
def test_random_places_and_sizes(passes):
    rng = np.random.default_rng(passes)
    net = red_segmenter(passes)
    scores, shifts = [], []
    for _ in range(60):
        h, w = (int(v) for v in rng.integers(60, 900, 2))
        least, most = max(h, w) / 256 * 5, max(min(h, w) / 3, max(h, w) / 256 * 6)
        target = ellipses((h, w), (rng.uniform(0, w), rng.uniform(0, h), rng.uniform(least, most)))
        mask = net.mask(painted(target))
        scores.append(overlap(mask, target))
        if mask.any():
            apart = np.argwhere(mask).mean(0) - np.argwhere(target).mean(0)
            shifts.append(apart / max(h, w) * 256)  # in the network's pixels
    assert min(scores) > 0.85
    assert np.mean(scores) > 0.96
    assert np.abs(np.mean(shifts, 0)).max() < 0.08  # nothing leans to one side by a part of a pixel


def test_the_fine_pass_is_sharper():
    target = ellipses((1800, 2400), (700, 500, 45))
    once, twice = (overlap(red_segmenter(passes).mask(painted(target)), target) for passes in (1, 2))
    assert twice > 0.97
    assert twice > once + 0.02


def test_nothing_is_found_where_there_is_nothing():
    net = red_segmenter(2)
    logits = net.logits([np.zeros((300, 400, 3), np.uint8)])[0]
    assert (logits < 0).all()
    assert len(net.net.seen) == 1  # no fine pass without a face


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1000), (1000, 2), (31, 33), (256, 256), (7, 7)])
def test_odd_shapes_all_red(shape, passes):
    net = red_segmenter(passes)
    logits = net.logits([painted(np.full(shape, 255, np.uint8))])[0]
    assert logits.shape == shape
    assert logits.dtype == np.float32
    assert (logits > 0).mean() > 0.9
    assert all(h % 32 == 0 and w % 32 == 0 for _, _, h, w in net.net.seen)  # what every network takes


def test_pictures_segmented_together_are_as_alone():
    pictures = [painted(t) for t in CASES.values()]
    for passes in (1, 2):
        net = red_segmenter(passes)
        together, alone = net.logits(pictures), [net.logits([p])[0] for p in pictures]
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_mirroring_is_averaged():
    class Half(torch.nn.Module):
        def forward(self, x):
            ramp = torch.linspace(0, 1, x.shape[3]).expand(x.shape[0], 1, x.shape[2], x.shape[3])
            return ramp.contiguous()

    picture = np.zeros((64, 64, 3), np.uint8)
    plain = Segmenter(Half(), Info("lite", 64)).logits([picture])[0]
    both = Segmenter(Half(), Info("lite", 64), flip=True).logits([picture])[0]
    assert plain[0, 0] == 0
    np.testing.assert_allclose(both, 0.5, atol=1e-6)


def test_thresholds_are_probabilities():
    logits = np.array([[-3.0, -0.1, 0.0, 0.1, 3.0]])
    assert inference.to_mask(logits, 0.5).tolist() == [[0, 0, 0, 255, 255]]
    assert inference.to_mask(logits, 0.9).tolist() == [[0, 0, 0, 0, 255]]
    assert inference.to_mask(logits, 1e-6).tolist() == [[255] * 5]


# --- How it computes ------------------------------------------------------------------------------------------------
def test_fp16_that_overflows_becomes_fp32_and_says_so():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.BatchNorm2d(1)).eval()
    with torch.no_grad():
        net[1].weight *= 1e6
    pictures = [painted(ellipses((64, 64), (30, 30, 15)))]
    said = []
    half = Segmenter(net, Info("unet", 64), precision="fp16", log=said.append)
    assert half.backend.precision == "fp16"
    got = half.logits(pictures)[0]
    assert len(said) == 1
    assert "fp32" in said[0]
    assert half.backend.precision == "fp32"
    np.testing.assert_array_equal(got, Segmenter(net, Info("unet", 64), precision="fp32").logits(pictures)[0])


def test_a_tiny_face_is_in_the_middle_of_its_square():
    coarse = np.full((256, 256), -8.0, np.float32)
    coarse[100:103, 50:53] = 8
    (x, y, side), *more = red_segmenter(2).face_boxes(coarse, (256, 256))
    assert not more
    assert side == 8
    assert abs(x + side / 2 - 51.5) <= 0.5
    assert abs(y + side / 2 - 101.5) <= 0.5


def test_boxes_that_are_known_spare_the_coarse_pass():
    target = CASES["two far apart"]
    picture, segmenter = painted(target), red_segmenter(2)
    before = segmenter.logits([picture])[0]
    boxes = segmenter.face_boxes(cv2.resize(before, (225, 175), interpolation=cv2.INTER_AREA), target.shape, 0.5)
    assert len(boxes) == 2
    segmenter.net.seen.clear()
    mask = inference.to_mask(segmenter.logits([picture], [boxes[:1]])[0], 0.5)
    assert segmenter.net.seen == [(1, 3, 256, 256)]
    x, y, side = boxes[0]
    own = np.zeros_like(target)
    own[max(0, y) : y + side, max(0, x) : x + side] = target[max(0, y) : y + side, max(0, x) : x + side]
    assert own.any()
    assert overlap(mask, own) > 0.97


def test_no_bf16_without_the_processor(monkeypatch):
    import devices
    import model

    net = model.build("lite")
    for has, precision in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda has=has: has)
        assert Segmenter(net, Info("lite", 64, 2)).backend.precision == precision


def test_a_region_of_low_confidence_is_no_face():
    def regions(*given):  # (x0, x1, probability)
        logits = np.full((100, 200), -8.0, np.float32)
        for x0, x1, probability in given:
            logits[40:60, x0:x1] = np.log(probability / (1 - probability))
        return logits

    def kept(logits, *squares):
        found = inference._reject_unconfident(logits.copy(), list(squares), 0.965) > 0
        assert not (found & (logits <= 0)).any()
        return [bool(found[50, x]) for x in (20, 60, 160)]

    face, part, low = 0.99, 0.93, 0.8
    left, right = (0, 10, 80), (140, 30, 40)  # squares of the fine pass
    logits = regions((10, 30, face), (50, 70, part), (150, 170, part))
    assert kept(logits, left, right) == [
        True,
        True,
        False,
    ]  # a part of a face in the same square, and none in the other
    assert kept(logits, left, (140, 30, 40), (100, 10, 80)) == [True, True, False]
    logits = regions((10, 30, face), (50, 70, low), (150, 170, face))
    assert kept(logits, left, right) == [True, False, True]
    logits = regions((10, 30, part), (50, 70, part), (150, 170, face))
    assert kept(logits, left, right) == [False, False, True]
    logits = regions((10, 30, part), (50, 70, low), (150, 170, part))
    assert kept(logits, left, right) == [True, False, True]  # no region of confidence here: faces, but occluded


def test_the_bundled_weights_agree_in_bf16(small_bundled, monkeypatch):
    import devices
    import model

    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    fast, exact = (Segmenter(*model.load(small_bundled[0]), precision=e) for e in ("auto", "fp32"))
    assert (fast.backend.precision, exact.backend.precision) == ("bf16", "fp32")
    for path in [const.TEST_DIR / "chris.jpg", const.TEST_DIR / "luciano.png"]:
        picture = cv2.resize(read_picture(path), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        ours, target = (segmenter.logits([picture])[0] for segmenter in (fast, exact))
        clear = np.abs(target) > 1.5  # where luciano's chin becomes his neck, all values are near 0
        ours, target = (inference.to_mask(np.where(clear, logits, -1), 0.5) for logits in (ours, target))
        assert clear.mean() > 0.97, path.name
        assert overlap(ours, target) >= 0.995, path.name
    assert all(p.dtype == torch.float32 for p in fast.net.parameters())  # what is exported


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not fork safely, Windows not at all")
def test_a_forked_process_predicts_with_its_parents_network():
    segmenter, picture, threads = red_segmenter(2), np.zeros((600, 600, 3), np.uint8), torch.get_num_threads()
    torch.set_num_threads(2)
    segmenter.mask(picture)
    child = multiprocessing.get_context("fork").Process(target=segmenter.mask, args=[picture], daemon=True)
    child.start()
    child.join(60)
    torch.set_num_threads(threads)
    child.kill()
    assert child.exitcode == 0


@pytest.mark.parametrize("name", ["deeplabv3", "unet", "lite"])
def test_fusing_changes_nothing_but_the_time(name):
    import model

    torch.manual_seed(0)
    net = model.build(name).train()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        net(x)  # statistics that are not 0 and 1
        net.eval()
        before = net(x)
        fused = inference.fused(net)
        after = fused(x)
    used = [m for key, m in fused.named_modules() if "aux_classifier" not in key]
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in used)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    np.testing.assert_allclose(after.numpy(), before.numpy(), atol=1e-3 * float(before.abs().max()))
