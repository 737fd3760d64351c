"""Reading whatever users bring, names of results, files in and out."""

import io
import json
import os
import struct
import sys
import threading
import time
import warnings

import cv2
import numpy as np
import pytest
from conftest import leftovers
from PIL import Image, features
from test_inference import ellipses, painted, red_segmenter

import common
import drawing
import pictures
from drawing import Output
from pictures import PictureError, find_jobs, read_picture


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
def with_heic(image: Image.Image) -> Image.Image:
    """The image, when Pillow can write HEIC."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    return image


def float_tiff(rgb: np.ndarray, path) -> None:
    cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))


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
    "rgb.avif": (lambda p, path: p.save(path, quality=95), 12),
    "rgb.heic": (lambda p, path: with_heic(p).save(path, quality=95), 12),
    "phone.jpg": (lambda p, path: with_heic(p).save(path, "HEIF", quality=95), 12),
    "deep.png": (lambda p, path: cv2.imwrite(str(path), np.asarray(p)[..., ::-1].astype(np.uint16) * 257), 1),
    "unit.tiff": (lambda p, path: float_tiff(np.asarray(p, np.float32) / 255, path), 1),
    "float.tiff": (lambda p, path: float_tiff(np.asarray(p, np.float32), path), 1),
    "double.tiff": (lambda p, path: float_tiff(np.asarray(p, np.float64) / 255, path), 1),
    "deep.tiff": (lambda p, path: cv2.imwrite(str(path), np.asarray(p)[..., ::-1].astype(np.uint16) * 257), 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_colour_pictures_of_every_kind(name, tmp_path):
    kind = name.rpartition(".")[2]
    if kind in ("webp", "avif") and not features.check(kind):
        pytest.skip(f"this Pillow has no {kind}")
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


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".webp", ".avif", ".heic"])
def test_every_orientation_is_upright(suffix, tmp_path):
    if suffix == ".heic":
        with_heic(None)
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    for tag, store in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        path = tmp_path / f"{tag}{suffix}"
        stored = Image.fromarray(np.ascontiguousarray(store(scene())))
        stored.save(path, exif=exif.tobytes(), **({"lossless": True} if suffix == ".webp" else {}))
        picture = read_picture(path)
        assert picture.shape == (40, 60, 3), tag
        np.testing.assert_allclose(corners(picture), corners(scene()), atol=14, err_msg=str(tag))


def test_heic_names_the_package_that_it_needs(tmp_path, monkeypatch):
    with_heic(Image.fromarray(scene())).save(tmp_path / "a.heic")
    monkeypatch.delitem(Image.OPEN, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PictureError, match=r"a\.heic is a HEIC picture.*pip install pillow-heif"):
        read_picture(tmp_path / "a.heic")
    (tmp_path / "clip.jpg").write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 40)
    with pytest.raises(PictureError, match="not a picture"):
        read_picture(tmp_path / "clip.jpg")


def test_damaged_tags_cost_no_picture(tmp_path):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene()).save(buffer, "JPEG", exif=exif, quality=95)
    data = buffer.getvalue()
    at = data.index(b"\x01\x12\x00\x03") if b"\x01\x12\x00\x03" in data else data.index(b"\x12\x01\x03\x00")
    for kind in (2, 5, 7, 10, 12):  # text, a fraction, bytes, ...
        path = tmp_path / f"{kind}.jpg"
        path.write_bytes(data[:at] + bytes([data[at], data[at + 1], *((0, kind) if data[at] == 1 else (kind, 0))])
                         + data[at + 4 :])  # fmt: skip
        assert read_picture(path).size == scene().size


def test_headers_that_claim_too_much_are_refused_before_memory_is_taken(tmp_path):
    tiff = io.BytesIO()
    Image.fromarray(scene()).save(tiff, "TIFF")
    claims = {
        "a.ppm.jpg": b"P6 60000 60000 255\n" + b"0" * 50,
        "b.pfm.jpg": b"PF\n60000 60000\n-1.0\n" + b"0" * 50,
        "c.pam.jpg": b"P7\nWIDTH 60000\nHEIGHT 60000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
        "d.hdr.jpg": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 60000 +X 60000\n" + b"0" * 50,
        "e.dds.jpg": b"DDS " + struct.pack("<7I", 124, 0x1007, 60000, 60000, 0, 0, 0) + b"\0" * 96,
        "f.tiff": tiff.getvalue().replace(struct.pack("<HHII", 256, 4, 1, 60), struct.pack("<HHII", 256, 4, 1, 60000))
        .replace(struct.pack("<HHII", 257, 4, 1, 40), struct.pack("<HHII", 257, 4, 1, 60000)),
    }  # fmt: skip
    resource = pytest.importorskip("resource")
    for name, data in claims.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PictureError, match=name):
            read_picture(tmp_path / name)
        with pytest.raises(PictureError, match=name):
            pictures.read_known(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 * 2**20  # KiB


def test_a_damaged_tiff_is_one_sentence_and_no_more(tmp_path, capfd):
    path = tmp_path / "deep.tiff"
    cv2.imwrite(str(path), scene()[..., ::-1].astype(np.uint16) * 257)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for at in (60, 100, 200, -100, -40):
        damaged[at] ^= 0xFF
    for data in (damaged, whole[: len(whole) // 2] + whole[-300:]):
        path.write_bytes(data)
        with pytest.raises(PictureError, match="is not a picture"):
            read_picture(path)
    assert capfd.readouterr() == ("", "")


def test_a_picture_that_is_too_long_is_refused_before_it_is_read(tmp_path, monkeypatch):
    Image.new("I;16", (1, 66000)).save(tmp_path / "tall.png")
    monkeypatch.setattr(pictures, "_to_8_bits", None)
    with pytest.raises(PictureError, match="is longer than 65500 pixels"):
        read_picture(tmp_path / "tall.png")


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


def test_only_known_formats_and_regular_files_are_read(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "page.eps.jpg", "EPS")
    Image.fromarray(scene()).save(tmp_path / "icon.png", "ICO")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for path, words in (("page.eps.jpg", "not a picture"), ("icon.png", "not a picture"), ("pipe.jpg", "regular"),
                        ("device.png", "regular"), ("folder.png", "regular")):  # fmt: skip
        with pytest.raises(PictureError, match=words):
            read_picture(tmp_path / path)


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("odd"), MemoryError(), RecursionError("deep")])
def test_whatever_a_decoder_raises_costs_one_picture(error, tmp_path, monkeypatch):
    for name in ("a.png", "bad.png", "c.png"):
        Image.fromarray(scene()).save(tmp_path / name)
    convert = pictures._to_rgb

    def decode(picture):
        if "bad" in str(picture_names.pop(0)):
            raise error
        return convert(picture)

    picture_names = ["a", "bad", "c"]
    monkeypatch.setattr(pictures, "_to_rgb", decode)
    jobs = find_jobs([tmp_path], tmp_path / "out")
    done = pictures.predict_files(red_segmenter(1), jobs, batch_size=4, on_result=lambda *_: None, workers=1)
    assert {job.name: bool(said) for job, said in done} == {"a": False, "bad": True, "c": False}


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


def test_other_warnings_than_of_reading_are_seen(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            read_picture(tmp_path / "a.png")
        warnings.warn_explicit("Truncated File Read", UserWarning, "a.py", 1, "PIL.TiffImagePlugin")
        assert not caught
        warnings.warn("of another", UserWarning, stacklevel=1)
    assert len(caught) == 1


def test_pictures_of_data_sets_are_read_as_others_are(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp"):
        Image.fromarray(noise).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
        np.testing.assert_allclose(pictures.read_known(tmp_path / name), read_picture(tmp_path / name), atol=3)
    Image.fromarray(noise[..., 0]).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(pictures.read_known(tmp_path / "mask.png", grey=True), noise[..., 0])
    for name in ("a.jpg", "a.png", "mask.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-400])  # OpenCV alone fills the rest with grey
        with pytest.raises(PictureError, match=name):
            pictures.read_known(tmp_path / name, grey=name == "mask.png")


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
    skipped = []
    jobs = find_jobs([tmp_path / "in"], tmp_path / "out", skipped)
    assert [job.name for job in jobs] == ["a", "link/c"]
    assert len(skipped) == 1
    assert "closed cannot be searched (Permission denied)" in skipped[0]


def test_results_of_an_earlier_run_are_no_pictures(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "own_mask.png").write_bytes(b"a user's, whatever its name")
    for name in ("x_mask.png", "x_overlay.jpg"):
        data = drawing.encode(scene(), name[-4:])
        (tmp_path / name).write_bytes(pictures.tagged(data, name[-4:], pictures.identity(tmp_path / "x.jpg")))
    (tmp_path / "all.gif").write_bytes(pictures.tagged(b"GIF89a;", ".gif"))
    assert [j.name for j in find_jobs([tmp_path], tmp_path)] == ["own_mask", "x"]
    assert len(find_jobs([tmp_path], tmp_path / "out")) == 4  # of another folder they are, but for the GIF
    assert [j.name for j in find_jobs([tmp_path / "x_mask.png"], tmp_path)] == ["x_mask"]  # and if asked for by name


def test_a_result_knows_its_picture_until_it_is_changed(tmp_path):
    source = tmp_path / "x.jpg"
    source.write_bytes(b"x")
    for kind in ("PNG", "JPEG", "GIF"):
        suffix, buffer = {"JPEG": ".jpg"}.get(kind, f".{kind.lower()}"), io.BytesIO()
        Image.fromarray(scene()).save(buffer, kind)
        data = pictures.tagged(buffer.getvalue(), suffix, pictures.identity(source))
        path = tmp_path / f"result{suffix}"
        path.write_bytes(data)
        assert pictures.read_tag(path) == pictures.identity(source)
        np.testing.assert_array_equal(read_picture(path), read_picture(buffer))  # no pixel is another
        with Image.open(path) as image:
            image.verify()
        path.write_bytes(data + b"more")
        assert pictures.read_tag(path) is None
    assert pictures.read_tag(source) is None
    assert pictures.read_tag(tmp_path) is None


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
            pictures.predict_files(
                red_segmenter(1), jobs, batch_size=size, on_result=lambda j, p, x: got.append(j.name)
            )
        )
        assert sorted(got) == ["1", "2", "3", "5", "6", "7"]
        assert sorted(job.name for job, error in done if error) == ["0", "4", "8"]
        assert len(done) == 9
        assert all(str(job.path) in error for job, error in done if error)


def test_large_pictures_are_in_hand_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PIXELS_IN_HAND", 5000)
    for i in range(8):
        Image.new("RGB", (50, 20 + 40 * (i % 2)), "red").save(tmp_path / f"{i}.png")  # 1000 and 3000 pixels
    (tmp_path / "long.png").write_bytes(b"")
    Image.new("RGB", (100, 90), "red").save(tmp_path / "more.png")  # more than fits: alone
    lock, now, most, together = threading.Lock(), [], [], []
    read = pictures.read_picture

    def reading(path, **options):
        with lock:
            now.append(pictures.count_pixels(path))
            most.append(sum(now))
            together.append(list(now))
        return read(path, **options)

    def ended(job, picture, logits):
        time.sleep(0.01)
        with lock:
            now.remove(picture.size // 3)

    monkeypatch.setattr(pictures, "read_picture", reading)
    jobs = find_jobs([tmp_path], tmp_path / "out")
    done = list(pictures.predict_files(red_segmenter(1, 64), jobs, batch_size=2, on_result=ended, workers=4))
    assert len(done) == 10
    assert max(total for total, held in zip(most, together, strict=True) if 9000 not in held) <= 5000
    assert all(sum(held) == 9000 for held in together if 9000 in held)
    assert max(len(held) for held in together) > 1


def test_memory_is_bounded_by_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "BATCH_PIXELS", 5000)
    for i in range(6):
        Image.new("RGB", (50, 40), "red").save(tmp_path / f"{i}.png")  # 2000 pixels: two fit
    net = red_segmenter(1, 64)
    jobs = find_jobs([tmp_path], tmp_path / "out")
    for workers, batches in ((1, [2, 2, 2]), (2, [1] * 6)):  # two threads have half of the pixels each
        net.net.seen.clear()
        list(pictures.predict_files(net, jobs, batch_size=6, on_result=lambda *a: None, workers=workers))
        assert [n for n, *_ in net.net.seen] == batches


def test_a_failing_write_ends_the_run(tmp_path):
    for i in range(5):
        Image.new("RGB", (50, 40), "red").save(tmp_path / f"{i}.png")

    def fail(*args):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        list(pictures.predict_files(red_segmenter(1), find_jobs([tmp_path], tmp_path), batch_size=2, on_result=fail))


# --- What is said ---------------------------------------------------------------------------------------------------
def predicted(inputs, out, output=None, **options) -> tuple[list[str], str]:
    """The errors, and what was logged."""
    said = []
    errors = pictures.predict(red_segmenter(1), inputs, out, output, log=said.append, **options)
    return errors, "\n".join(said)


def save_face(path, *faces) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(painted(ellipses((80, 100), *faces))).save(path)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file that fails to be read")
def test_a_disk_that_fails_is_named():
    with pytest.raises(PictureError, match="/proc/self/mem cannot be read"):
        pictures.read_known("/proc/self/mem")


def test_what_is_passed_over_is_named(tmp_path):
    for name in ("a.png", "sub/b.png"):
        save_face(tmp_path / name, (50, 40, 20))
    for name in ("clip.mp4", "sub/notes.txt", "x.psd", "y.doc", ".DS_Store", ".hidden/z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    every = Output(("mask", "json", "probability"))
    for _ in range(2):  # the second time, results are there
        errors, said = predicted([tmp_path], tmp_path, every)
        assert errors == []
        assert "4 files are not pictures: " in said
        assert str(tmp_path / "clip.mp4") in said
        assert "..." in said
        assert "give videos by name" in said
        assert "DS_Store" not in said
    for name in ("clip.mp4", "sub/notes.txt", "x.psd"):
        (tmp_path / name).unlink()
    assert f"1 file is not a picture: {tmp_path / 'y.doc'}." in predicted([tmp_path], tmp_path, every)[1]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "clip.mov").write_bytes(b"x")
    with pytest.raises(common.UserError, match=r"no pictures.*clip\.mov; give videos by name"):
        predicted([tmp_path / "only"], tmp_path / "out")
    with pytest.raises(common.UserError, match="no pictures"):
        predicted([], tmp_path / "out")


def test_animations_give_their_first_frame_and_are_named(tmp_path):
    first, second = (Image.fromarray(painted(ellipses((80, 100), (x, 40, 20)))) for x in (30, 70))
    (tmp_path / "in").mkdir()
    for name in ("a.gif", "b.webp", "c.png"):
        first.save(tmp_path / "in" / name, save_all=True, append_images=[second], lossless=True)
    first.save(tmp_path / "in" / "still.gif")
    errors, said = predicted([tmp_path / "in"], tmp_path / "out", Output(("mask",)))
    assert errors == []
    assert said.count("first frame") == 1
    assert "3 animations" in said
    assert "a.gif" in said
    for name in ("a", "b", "c", "still"):
        mask = read_picture(tmp_path / "out" / f"{name}_mask.png")
        assert mask[40, 30, 0] == 255, name
        assert mask[40, 70, 0] == 0, name


def test_pictures_without_a_face_are_named(tmp_path):
    save_face(tmp_path / "in" / "face.png", (50, 40, 20))
    for i in range(5):
        save_face(tmp_path / "in" / f"none{i}.png")
    errors, said = predicted([tmp_path / "in"], tmp_path / "out")
    assert errors == []
    assert "5 pictures without a face" in said
    assert said.count("none") == 5
    assert "Warning" not in said
    for options in ({}, {"skip_existing": True}):  # what is there already is known by its tags
        errors, said = predicted([tmp_path / "in"], tmp_path / "out", fail_empty=True, **options)
        assert len(errors) == 1
        assert "5 pictures without a face" in errors[0]
        assert "without a face" not in said
    assert "0 of 6 pictures done, 6 were there already" in said
    for i in range(5, 22):
        save_face(tmp_path / "in" / f"none{i}.png")
    assert predicted([tmp_path / "in"], tmp_path / "out")[1].count("none") == 20
    for kind in ("blurred", "pixelated"):
        _, said = predicted([tmp_path / "in"], tmp_path / "out", Output((kind,)))
        assert said.count("none") == 22  # somebody has to see to each
        assert "Warning: 22 pictures without a face" in said
        before, after = (read_picture(p) for p in (tmp_path / "in/none0.png", tmp_path / f"out/none0_{kind}.jpg"))
        np.testing.assert_array_equal(before, after)  # as the warning says
    assert "without a face" not in predicted([tmp_path / "in" / "face.png"], tmp_path / "out")[1]


@pytest.mark.parametrize(("coco", "room"), [(True, 8000), (False, 8000), (True, 4000)])  # the last: segmented smaller
def test_json_and_probability(coco, room, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PIXELS_IN_HAND", room)
    if coco:
        decode = pytest.importorskip("pycocotools.mask").decode
    else:
        monkeypatch.setitem(sys.modules, "pycocotools", None)

        def decode(lines):
            drawn = np.zeros((80, 100), np.uint8)
            return cv2.fillPoly(drawn, [np.reshape(line, (-1, 2)) for line in lines], 1)

    target = ellipses((80, 100), (25, 40, 15), (75, 40, 15))
    target[36:44, 20:30] = 0  # a hole
    Image.fromarray(painted(target)).save(tmp_path / "a.png")
    kinds = Output(("mask", "json", "probability"), threshold=102.5 / 255)
    assert predicted([tmp_path / "a.png"], tmp_path / "out", kinds)[0] == []
    mask, chances = (read_picture(tmp_path / "out" / f"a_{kind}.png")[..., 0] for kind in ("mask", "probability"))
    record = json.loads((tmp_path / "out" / "a_json.json").read_text())
    assert (record["width"], record["height"], record["threshold"]) == (100, 80, 102.5 / 255)
    assert record["picture"] == str(tmp_path / "a.png")
    assert ("COCO" in record["mask_format"]) == coco
    assert len(record["faces"]) == 2
    together = np.zeros_like(mask)
    for face in record["faces"]:
        alone = decode(face["mask"]).astype(np.uint8) * 255
        if coco:
            assert face["area"] == np.count_nonzero(alone)
            assert face["box"] == list(cv2.boundingRect(alone))
            assert face["confidence"] == pytest.approx((chances[alone > 0] / 255).mean(), abs=0.01)
        together |= alone
    assert np.count_nonzero(together != mask) <= (0 if coco else 40)  # a polygon's edge is drawn on its hole, too
    np.testing.assert_array_equal(chances > 102, mask > 0)
    for kind in ("json.json", "probability.png"):
        assert pictures.read_tag(tmp_path / "out" / f"a_{kind}") == pictures.identity(tmp_path / "a.png")
    _, said = predicted([tmp_path / "a.png"], tmp_path / "out", kinds, skip_existing=True)
    assert "1 were there already" in said


def test_results_of_no_bytes_are_made_again_and_of_folders_named(tmp_path):
    save_face(tmp_path / "a.png", (50, 40, 20))
    save_face(tmp_path / "b.png", (50, 40, 20))
    (tmp_path / "out" / "a_overlay.jpg").mkdir(parents=True)
    (tmp_path / "out" / "b_mask.png").write_bytes(b"")
    errors, _ = predicted([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out", skip_existing=True)
    assert len(errors) == 1
    assert "a_overlay.jpg" in errors[0]
    assert read_picture(tmp_path / "out" / "b_mask.png").any()


def test_a_picture_changed_meanwhile_is_not_done(tmp_path):
    """The result is of what was read: a picture written anew during its prediction is predicted again."""
    save_face(tmp_path / "a.png", (50, 40, 20))
    kinds = Output(("mask",))

    class Slow:
        def logits(self, batch):
            save_face(tmp_path / "a.png", (20, 20, 9))
            return red_segmenter(1).logits(batch)

    pictures.predict(Slow(), [tmp_path / "a.png"], tmp_path / "out", kinds, log=lambda line: None)
    assert "already" not in predicted([tmp_path / "a.png"], tmp_path / "out", kinds, skip_existing=True)[1]


def test_a_side_by_side_too_wide_costs_no_other(tmp_path):
    Image.new("RGB", (33000, 2)).save(tmp_path / "a.png")
    save_face(tmp_path / "b.png", (50, 40, 20))
    errors, _ = predicted([tmp_path], tmp_path / "out", Output(("mask", "side-by-side")))
    assert len(errors) == 1
    assert "a_side-by-side.jpg" in errors[0]
    assert (tmp_path / "out" / "b_side-by-side.jpg").exists()


def test_names_that_are_no_names(tmp_path):
    jobs = find_jobs([tmp_path / "..png", tmp_path / "...", tmp_path / ("n" * 300 + ".png")], tmp_path / "out")
    assert [job.name for job in jobs][:2] == ["_", "__2"]
    for job in jobs:
        with pytest.raises(PictureError):
            read_picture(job.path)


def test_colours_of_an_embedded_profile_are_those_that_are_seen(tmp_path):
    """A profile whose red and green are exchanged; one of sRGB, and a damaged one, change nothing."""
    from PIL import ImageCms

    own, other = np.full((8, 8, 3), (200, 40, 90), np.uint8), None
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for name, place in ((b"rXYZ", profile.index(b"rXYZ")), (b"gXYZ", profile.index(b"gXYZ"))):
        profile[place : place + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}[name]
    profile = bytes(profile).replace("sRGB".encode("utf-16-be"), "GRGB".encode("utf-16-be"))
    for given, wanted in ((profile, (40, 200, 90)), (profile[:200], (200, 40, 90)), (None, (200, 40, 90))):
        Image.fromarray(own).save(tmp_path / "x.png", icc_profile=given)
        other = read_picture(tmp_path / "x.png")
        assert np.abs(other.astype(int) - wanted).max() <= 3, given and len(given)
    clear = Image.fromarray(np.dstack([own, np.full((8, 8), 0, np.uint8)]))
    clear.save(tmp_path / "x.png", icc_profile=profile)
    assert (read_picture(tmp_path / "x.png") == 255).all()


@pytest.mark.parametrize("light", [1.0, 1.4, 400.0])
def test_highlights_of_floating_point_pictures_darken_no_other(light, tmp_path):
    values = np.full((64, 64, 3), 0.5, np.float32)
    values[8:12, 8:12] = light
    cv2.imwrite(str(tmp_path / "x.tif"), values)
    picture = read_picture(tmp_path / "x.tif")
    assert (picture[0, 0] == 127).all()
    assert (picture[9, 9] == 255).all()
    values[:], values[8:40, 8:40] = 0.5, 180  # a face before a black ground, from 0 to 255
    cv2.imwrite(str(tmp_path / "x.tif"), values)
    assert read_picture(tmp_path / "x.tif")[[0, 12], [0, 12]].max(1).tolist() == [0, 180]


def test_what_a_killed_run_left_among_the_results_is_swept(tmp_path):
    save_face(tmp_path / "in" / "deep" / "a.png")
    (tmp_path / "out" / "deep").mkdir(parents=True)
    left = tmp_path / "out" / "deep" / common.temporary_name("a_mask.png").replace(f"-{os.getpid()}-", "-999999999-")
    left.touch()
    predicted([tmp_path / "in"], tmp_path / "out")
    assert not left.exists()
