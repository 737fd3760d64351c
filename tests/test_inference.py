"""Reading whatever users bring, masks in the right place at the right size, files in and out."""

import io
import os
import warnings

import cv2
import numpy as np
import pytest
import torch
from conftest import leftovers
from PIL import Image, features

import common
import const
import drawing
import inference
from inference import PictureError, Segmenter, find_jobs, read_picture
from model import Info


def scene(h: int = 40, w: int = 60) -> np.ndarray:
    """Four plain quarters, red, green, blue and grey: orientation and channel order show."""
    picture = np.empty((h, w, 3), np.uint8)
    picture[: h // 2, : w // 2], picture[: h // 2, w // 2 :] = (220, 30, 30), (30, 200, 30)
    picture[h // 2 :, : w // 2], picture[h // 2 :, w // 2 :] = (30, 30, 210), (128, 128, 128)
    return picture


def corners(picture: np.ndarray) -> np.ndarray:
    """The colours in the middle of the four quarters, (4, 3)."""
    h, w = picture.shape[:2]
    return picture[[h // 4, h // 4, 3 * h // 4, 3 * h // 4], [w // 4, 3 * w // 4, w // 4, 3 * w // 4]].astype(int)


# --- Reading --------------------------------------------------------------------------------------------------------
KINDS = {  # name: (write it, tolerance of its colours)
    "rgb.png": (lambda p, path: p.save(path), 0),
    "rgb.jpg": (lambda p, path: p.save(path, quality=95), 12),
    "rgb.bmp": (lambda p, path: p.save(path), 0),
    "rgb.tiff": (lambda p, path: p.save(path), 0),
    "lzw.tif": (lambda p, path: p.save(path, compression="tiff_lzw"), 0),
    "rgb.webp": (lambda p, path: p.save(path, lossless=True), 0),
    "palette.png": (lambda p, path: p.quantize(16).save(path), 2),
    "rgba.png": (lambda p, path: p.convert("RGBA").save(path), 0),
    "cmyk.jpg": (lambda p, path: p.convert("CMYK").save(path, quality=95), 12),
    "cmyk.tiff": (lambda p, path: p.convert("CMYK").save(path), 2),
    "palette.gif": (lambda p, path: p.quantize(16).save(path, "GIF"), 2),
    "upper.JPEG": (lambda p, path: p.save(path, "JPEG", quality=95), 12),
    "png_named.jpg": (lambda p, path: p.save(path, "PNG"), 0),
    "deep.png": (lambda p, path: cv2.imwrite(str(path), np.asarray(p)[..., ::-1].astype(np.uint16) * 257), 1),
    "deep.tiff": (lambda p, path: cv2.imwrite(str(path), np.asarray(p)[..., ::-1].astype(np.uint16) * 257), 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_colour_pictures_of_every_kind(name, tmp_path):
    if name.endswith("webp") and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    write, tolerance = KINDS[name]
    write(Image.fromarray(scene()), tmp_path / name)
    picture = read_picture(tmp_path / name)
    assert picture.dtype == np.uint8
    assert picture.shape == (40, 60, 3)
    np.testing.assert_allclose(corners(picture), corners(scene()), atol=tolerance)


def test_grey_pictures_of_every_depth(tmp_path):
    grey = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
    dark = (grey // 4).astype(np.uint16)  # a dark 16-bit picture is dark, not spread over the range
    Image.fromarray(grey).save(tmp_path / "l.png")
    Image.fromarray(grey).save(tmp_path / "l.jpg", quality=98)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.tiff")
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "32.tiff")
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "unit.tiff")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    Image.merge("LA", (Image.fromarray(grey), Image.new("L", (60, 40), 255))).save(tmp_path / "la.png")
    for name in ("l.png", "l.jpg", "16.png", "16.tiff", "32.tiff", "unit.tiff", "float.tiff", "la.png"):
        picture = read_picture(tmp_path / name)
        assert picture.shape == (40, 60, 3), name
        np.testing.assert_allclose(picture[..., 1].astype(int), grey, atol=3, err_msg=name)
        assert (picture == picture[..., :1]).all(), name
    Image.fromarray(dark).save(tmp_path / "dark.png")
    assert read_picture(tmp_path / "dark.png").max() == 0
    broken = grey.astype(np.float32) / 255
    broken[0, 0] = np.nan
    Image.fromarray(broken).save(tmp_path / "nan.tiff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(read_picture(tmp_path / "nan.tiff")[1, :, 0].astype(int), grey[1], atol=1)
    Image.fromarray(grey > 127).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "one.png")[..., 0], np.where(grey > 127, 255, 0))


def test_what_is_transparent_is_white(tmp_path):
    rgba = np.dstack([scene(), np.full((40, 60), 255, np.uint8)])
    rgba[:20, :30, 3] = 0
    rgba[:20, 30:, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba).save(tmp_path / "a.webp", lossless=True)
    for name in ("a.png", "a.webp"):
        seen = corners(read_picture(tmp_path / name))
        assert seen[0].tolist() == [255, 255, 255]
        np.testing.assert_allclose(seen[1], (142, 227, 142), atol=2)  # half of (30, 200, 30), half white
        np.testing.assert_allclose(seen[2:], corners(scene())[2:], atol=1)
    palette = Image.fromarray(scene()).quantize(4)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((5, 5)))
    assert corners(read_picture(tmp_path / "p.png"))[0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(corners(read_picture(tmp_path / "p.png"))[3], 128, atol=2)
    la = Image.merge("LA", (Image.new("L", (8, 8), 10), Image.new("L", (8, 8), 0)))
    la.save(tmp_path / "la.png")
    assert (read_picture(tmp_path / "la.png") == 255).all()


UPRIGHT = {  # orientation tag: how a camera held that way stores the upright picture
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".webp"])
def test_every_orientation_is_upright(suffix, tmp_path):
    for tag, store in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        path = tmp_path / f"{tag}{suffix}"
        stored = Image.fromarray(np.ascontiguousarray(store(scene())))
        stored.save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
        picture = read_picture(path)
        assert picture.shape == (40, 60, 3), tag
        np.testing.assert_allclose(corners(picture), corners(scene()), atol=14, err_msg=str(tag))


def test_odd_sizes(tmp_path):
    for w, h in ((1, 1), (1000, 3), (2, 700)):
        Image.new("RGB", (w, h), (9, 8, 7)).save(tmp_path / "x.png")
        picture = read_picture(tmp_path / "x.png")
        assert picture.shape == (h, w, 3)
        assert (picture == (9, 8, 7)).all()


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.webp").write_bytes(b"<html></html>")
    whole = {}
    for suffix in (".jpg", ".png", ".webp", ".bmp", ".tiff"):
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, Image.registered_extensions()[suffix])
        whole[suffix] = buffer.getvalue()
        (tmp_path / f"cut{suffix}").write_bytes(whole[suffix][: len(whole[suffix]) // 2])
    Image.new("1", (70000, 2)).save(tmp_path / "long.png")
    for path in [*tmp_path.iterdir(), tmp_path / "missing.jpg"]:
        with pytest.raises(PictureError) as caught:
            read_picture(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_bytes_raise_nothing_else(tmp_path):
    """Random damage in every format: the picture comes, or PictureError does."""
    rng = np.random.default_rng(3)
    exif = Image.Exif()
    exif[0x0112], exif[0x0131] = 6, "a camera" * 5
    ends = {"ok": 0, "refused": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor are users shown warnings
        for kind, options in (
            ("JPEG", {"exif": exif}),
            ("PNG", {}),
            ("TIFF", {}),
            ("WEBP", {"exif": exif}),
            ("GIF", {}),
        ):
            buffer = io.BytesIO()
            Image.fromarray(scene()).save(buffer, kind, **options)
            for _ in range(40):
                data = bytearray(buffer.getvalue())
                for _ in range(int(rng.integers(1, 5))):
                    data[rng.integers(0, min(len(data), 200))] = rng.integers(0, 256)
                (tmp_path / "x.jpg").write_bytes(bytes(data))
                try:
                    picture = read_picture(tmp_path / "x.jpg")
                    assert picture.dtype == np.uint8
                    assert picture.ndim == 3
                    ends["ok"] += 1
                except PictureError:
                    ends["refused"] += 1
    assert min(ends.values()) > 10


# --- Looking: a network that knows one colour -----------------------------------------------------------------------
class Red(torch.nn.Module):
    """Logits of +5 where a pixel is red, -5 where it is black, and what lies between on the way."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        red, green = (x[:, c : c + 1] * s + m for c, m, s in ((0, 0.485, 0.229), (1, 0.456, 0.224)))
        return (red - green - 0.5) * 10


def looker(passes: int, size: int = 256) -> Segmenter:
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
    """Truth with ellipses (x, y, radius)."""
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
    mask = looker(passes).mask(painted(CASES[case]))
    coarse = passes == 1 and case in ("small in a large picture", "a strip", "a panorama", "large and small", "tall")
    assert overlap(mask, CASES[case]) > (0.90 if coarse else 0.955)


@pytest.mark.parametrize("passes", [1, 2])
def test_random_places_and_sizes(passes):
    rng = np.random.default_rng(passes)
    net = looker(passes)
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


def test_the_second_look_is_sharper():
    target = ellipses((1800, 2400), (700, 500, 45))
    once, twice = (overlap(looker(passes).mask(painted(target)), target) for passes in (1, 2))
    assert twice > 0.97
    assert twice > once + 0.02


def test_nothing_is_found_where_there_is_nothing():
    net = looker(2)
    logits = net.logits([np.zeros((300, 400, 3), np.uint8)])[0]
    assert (logits < 0).all()
    assert len(net.net.seen) == 1  # no second look without a face


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1000), (1000, 2), (31, 33), (256, 256), (7, 7)])
def test_odd_shapes_all_red(shape, passes):
    net = looker(passes)
    logits = net.logits([painted(np.full(shape, 255, np.uint8))])[0]
    assert logits.shape == shape
    assert logits.dtype == np.float32
    assert (logits > 0).mean() > 0.9
    assert all(h % 32 == 0 and w % 32 == 0 for _, _, h, w in net.net.seen)  # what every network takes


def test_pictures_looked_at_together_are_as_alone():
    pictures = [painted(t) for t in CASES.values()]
    for passes in (1, 2):
        net = looker(passes)
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


# --- Files ----------------------------------------------------------------------------------------------------------
def test_every_result_has_a_name_of_its_own(tmp_path):
    names = ["cat.jpg", "cat.png", "Cat.webp", "cat_png.jpg", "sub/cat.jpg", "sub/deep/cat.jpg", "dog.JPG", "a.b.jpg"]
    for name in [*names, ".hidden.jpg", "notes.txt", ".git/x.jpg"]:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    other = tmp_path / "other" / "cat.jpg"
    other.parent.mkdir()
    other.write_bytes(b"x")
    jobs = find_jobs([tmp_path / "in", other, other], tmp_path / "out")
    assert {str(j.path.relative_to(tmp_path)) for j in jobs} == {*(f"in/{n}" for n in names), "other/cat.jpg"}
    results = [j.name.casefold() for j in jobs]
    assert len(results) == len(names) + 2 == len(set(results))
    by_path = {str(j.path.relative_to(tmp_path)): j.name for j in jobs}
    assert by_path["in/sub/deep/cat.jpg"] == "sub/deep/cat"
    assert by_path["in/a.b.jpg"] == "a.b"
    assert find_jobs([tmp_path / "in"], tmp_path / "out") == jobs[: len(names)]  # the same every time


def test_linked_folders_are_searched_and_closed_ones_named(tmp_path, monkeypatch):
    for name in ("in/a.jpg", "in/closed/b.jpg", "elsewhere/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    faults = []
    jobs = list(inference.iter_jobs([tmp_path / "in"], tmp_path / "out", faults))
    assert [job.name for job in jobs] == ["a", "link/c"]
    assert len(faults) == 1
    assert "closed cannot be searched (Permission denied)" in faults[0]


def test_results_of_an_earlier_run_are_no_pictures(tmp_path):
    for name in ("x.jpg", "x_mask.png", "x_overlay.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [j.name for j in find_jobs([tmp_path], tmp_path)] == ["x"]
    assert len(find_jobs([tmp_path], tmp_path / "out")) == 3  # of another folder they are
    assert [j.name for j in find_jobs([tmp_path / "x_mask.png"], tmp_path)] == ["x_mask"]  # and if asked for by name


def test_long_names_fit(tmp_path):
    for stem in ("n" * 251, "n" * 250 + "m", "ж" * 120, "😀" * 60):
        (tmp_path / f"{stem}.jpg").write_bytes(b"x")
    jobs = find_jobs([tmp_path], tmp_path / "out")
    assert len({j.name for j in jobs}) == 4
    for job in jobs:
        common.write_bytes(tmp_path / "out" / f"{job.name}_overlay.jpg", b"x")
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    target = tmp_path / "new" / "x.png"
    common.write_bytes(target, b"first")
    assert target.read_bytes() == b"first"

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        common.write_bytes(target, b"second")
    assert target.read_bytes() == b"first"
    assert not leftovers(tmp_path)


def test_encoding_keeps_colours_and_masks():
    back = cv2.imdecode(np.frombuffer(drawing.encode(scene(), ".png"), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(back, scene())
    mask = (np.random.default_rng(0).random((20, 30)) < 0.5).astype(np.uint8) * 255
    with Image.open(io.BytesIO(drawing.encode(mask, ".png"))) as image:
        assert image.mode in ("L", "1")
        np.testing.assert_array_equal(np.asarray(image.convert("L")), mask)


def test_a_broken_picture_costs_no_other(tmp_path):
    for i in range(9):
        Image.fromarray(painted(ellipses((40, 50), (25, 20, 9)))).save(tmp_path / f"{i}.png")
    for i in (0, 4, 8):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    got = []
    jobs = find_jobs([tmp_path], tmp_path / "out")
    for size in (1, 3, 100):
        got.clear()
        done = list(
            inference.predict_files(looker(1), jobs, batch_size=size, on_result=lambda j, p, x: got.append(j.name))
        )
        assert sorted(got) == ["1", "2", "3", "5", "6", "7"]
        assert sorted(job.name for job, fault in done if fault) == ["0", "4", "8"]
        assert len(done) == 9
        assert all(str(job.path) in fault for job, fault in done if fault)


def test_memory_is_bounded_by_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "BATCH_PIXELS", 5000)
    for i in range(6):
        Image.new("RGB", (50, 40), "red").save(tmp_path / f"{i}.png")  # 2000 pixels: two fit
    net = looker(1, 64)
    jobs = find_jobs([tmp_path], tmp_path / "out")
    for workers, looked in ((1, [2, 2, 2]), (2, [1] * 6)):  # two threads have half of the pixels each
        net.net.seen.clear()
        list(inference.predict_files(net, jobs, batch_size=6, on_result=lambda *a: None, workers=workers))
        assert [n for n, *_ in net.net.seen] == looked


def test_a_failing_write_ends_the_run(tmp_path):
    for i in range(5):
        Image.new("RGB", (50, 40), "red").save(tmp_path / f"{i}.png")

    def fail(*args):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        list(inference.predict_files(looker(1), find_jobs([tmp_path], tmp_path), batch_size=2, on_result=fail))


# --- How it computes ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def learnt():
    """A U-Net at 64 pixels that has learnt to tell red from black, and pictures of it."""
    import model

    torch.manual_seed(0)
    net = model.build("unet")
    targets = [ellipses((64, 64), (20 + 6 * i, 40 - 3 * i, 12 + 2 * i)) for i in range(4)]
    pictures = [np.where(painted(t) > 0, painted(t), 90).astype(np.uint8) for t in targets]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 128 - 1
    target = torch.from_numpy(np.stack(targets))[:, None].float() / 255
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(net(x), target).backward()
        optimizer.step()
    return net.eval(), pictures


def test_bf16_masks_agree_with_full_precision(learnt, monkeypatch):
    import devices

    net, pictures = learnt
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)  # others emulate it: as exact, only slower
    fast, exact = (Segmenter(net, Info("unet", 64), precision=e) for e in ("auto", "fp32"))
    assert fast.dtype == torch.bfloat16
    assert exact.dtype == torch.float32
    a, b = (np.stack([s.mask(p) for p in pictures]) for s in (fast, exact))
    assert 0.02 < (b > 0).mean() < 0.9
    assert overlap(a, b) >= 0.995
    assert all(p.dtype == torch.float32 for p in fast.net.parameters())  # what is exported


@pytest.mark.parametrize("passes", [1, 2])
def test_no_bf16_without_the_processor(learnt, monkeypatch, passes):
    import devices

    net, _ = learnt
    for has, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda has=has: has)
        assert Segmenter(net, Info("unet", 64, passes)).dtype == dtype


def test_a_region_that_the_network_is_unsure_of_is_no_face():
    def regions(*given):  # (x0, x1, probability)
        logits = np.full((100, 200), -8.0, np.float32)
        for x0, x1, probability in given:
            logits[40:60, x0:x1] = np.log(probability / (1 - probability))
        return logits

    def kept(logits, *squares):
        found = inference._reject_unconfident(logits.copy(), list(squares), 0.965) > 0
        assert not (found & (logits <= 0)).any()
        return [bool(found[50, x]) for x in (20, 60, 160)]

    face, part, doubt = 0.99, 0.93, 0.8
    left, right = (0, 10, 80), (140, 30, 40)  # second passes
    logits = regions((10, 30, face), (50, 70, part), (150, 170, part))
    assert kept(logits, left, right) == [True, True, False]  # a part of a face in the same look, and none in the other
    assert kept(logits, left, (140, 30, 40), (100, 10, 80)) == [True, True, False]
    logits = regions((10, 30, face), (50, 70, doubt), (150, 170, face))
    assert kept(logits, left, right) == [True, False, True]
    logits = regions((10, 30, part), (50, 70, part), (150, 170, face))
    assert kept(logits, left, right) == [False, False, True]
    logits = regions((10, 30, part), (50, 70, doubt), (150, 170, part))
    assert kept(logits, left, right) == [True, False, True]  # the network is sure of nothing here: faces, but covered


def test_the_bundled_weights_agree_in_bf16(monkeypatch):
    import devices
    import model

    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    fast, exact = (Segmenter(*model.load(model.bundled_weights()), precision=e) for e in ("auto", "fp32"))
    assert (fast.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    for path in sorted(const.TEST_DIR.glob("*.*g")):
        picture = inference.read_picture(path)
        assert overlap(fast.mask(picture), exact.mask(picture)) >= 0.995, path.name


@pytest.mark.parametrize("name", ["deeplabv3", "unet", "lite"])
def test_folding_changes_nothing_but_the_time(name):
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
