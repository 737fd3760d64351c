"""The real command on drawn faces, and a look at what it made."""

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import FACE_SEG_DATA, ROOT, TRAIN_IDS, VAL_IDS, leftovers, one_sentence, python, run
from PIL import Image

import common
import const
import data_preprocessing as dp
from studies.drawn_faces import draw_celeb_tree

SCRIPT = "data_preprocessing.py"


def tree(root: Path) -> dict[str, str]:
    """{relative path: hash of the contents} of every file below `root`."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def mtimes(root: Path) -> dict[Path, tuple]:
    return {p: (p.lstat().st_mtime_ns, p.lstat().st_ino) for p in sorted(root.rglob("*"))}


def zipped(source: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            archive.write(path, prefix + str(path.relative_to(source)))
    return target


def copied(source: Path, target: Path) -> Path:
    """A copy which a test may spoil; returns its CelebAMask-HQ folder."""
    return Path(shutil.copytree(source, target)) / "CelebAMask-HQ"


def part_path(celeb: Path, i: int, part: str) -> Path:
    return celeb / dp.PARTS / str(i // 2000) / f"{i:05d}_{part}.png"


def grey(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


@pytest.fixture
def command(capsys):
    """Runs the command in this process, in a tenth of the time that a new one takes."""

    def run(*args) -> subprocess.CompletedProcess:
        capsys.readouterr()
        try:
            code = dp.main([str(arg) for arg in args])
        except SystemExit as error:
            code = error.code
        return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    return run


# --- What is made --------------------------------------------------------------------------------------------------


def test_the_command_makes_pairs_and_leaves_the_source_alone(celeb_source, tmp_path):
    before = tree(celeb_source)
    result = run(SCRIPT, "--source", celeb_source, "--out", tmp_path / "out", "--workers", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "train: 12 of 2000" in result.stdout
    assert "val: 6 of 2000" in result.stdout
    assert result.stderr == ""  # no bar where there is no terminal
    assert tree(celeb_source) == before
    made = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    splits = [("train", i) for i in TRAIN_IDS] + [("val", i) for i in VAL_IDS]
    assert made == {f"images_{s}/{i}.jpg" for s, i in splits} | {f"masks_{s}/{i}_skin.png" for s, i in splits}
    assert dp.is_prepared(tmp_path / "out")
    assert not dp.is_prepared(celeb_source)


def test_masks_are_skin_minus_glasses_in_both_splits(celeb_source, prepared):
    celeb, with_glasses = celeb_source / "CelebAMask-HQ", set()
    for split, ids in (("train", TRAIN_IDS), ("val", VAL_IDS)):
        for i in ids:
            path = prepared / f"masks_{split}" / f"{i}_skin.png"
            with Image.open(path) as image:
                assert (image.mode, image.size) == ("L", (512, 512))
            mask = grey(path)
            assert set(np.unique(mask)) == {0, 255}
            expected = grey(part_path(celeb, i, "skin")) > 127
            if part_path(celeb, i, "eye_g").exists():
                with_glasses.add(split)
                glasses = grey(part_path(celeb, i, "eye_g")) > 127
                assert (expected & glasses).any()
                expected &= ~glasses
            np.testing.assert_array_equal(mask == 255, expected)
    assert with_glasses == {"train", "val"}, "the drawn faces of either split need a pair of glasses"


def test_persons_are_the_union_of_all_parts(celeb_source, prepared):
    for split, i in (("train", TRAIN_IDS[0]), ("val", VAL_IDS[-1])):
        parts = (celeb_source / "CelebAMask-HQ" / dp.PARTS / str(i // 2000)).glob(f"{i:05d}_*.png")
        union = np.logical_or.reduce([grey(part) > 127 for part in parts])
        person = grey(prepared / f"persons_{split}" / f"{i}_person.png")
        np.testing.assert_array_equal(person, union * np.uint8(255))


def test_pictures_are_hard_links(celeb_source, prepared):
    for split, i in (("train", TRAIN_IDS[0]), ("val", VAL_IDS[0])):
        source, picture = celeb_source / "CelebAMask-HQ" / dp.IMAGES / f"{i}.jpg", prepared / f"images_{split}/{i}.jpg"
        assert picture.read_bytes() == source.read_bytes()
        assert picture.stat().st_ino == source.stat().st_ino
        assert not picture.is_symlink()


def test_id_0_and_the_png_modes(tmp_path):
    masks = {}
    for mode in ("L", "RGB", "P"):
        celeb = draw_celeb_tree(tmp_path / mode, [0, 1, 2, 3], image_size=256, part_modes=(mode,))
        with Image.open(part_path(celeb, 0, "skin")) as image:
            assert image.mode == mode
        dp.prepare(celeb, tmp_path / f"out{mode}", ids_train=[0, 1], ids_val=[2, 3], persons=True, progress=False)
        assert (tmp_path / f"out{mode}/images_train/0.jpg").exists()
        assert (tmp_path / f"out{mode}/masks_train/0_skin.png").exists()
        masks[mode] = tree(tmp_path / f"out{mode}")
    assert masks["L"] == masks["RGB"] == masks["P"]


@pytest.mark.parametrize("mode", ["1", "LA", "RGBA", "P1", "P inverted"])
def test_other_png_modes(mode, tmp_path):
    celeb = draw_celeb_tree(tmp_path, [5], image_size=256, part_modes=("L",))
    path = part_path(celeb, 5, "skin")
    expected = grey(path) > 127
    if mode.startswith("P"):
        first, second = (0, 255) if mode == "P1" else (255, 0)
        index = expected if mode == "P1" else ~expected
        image = Image.frombytes("P", (512, 512), index.astype(np.uint8).tobytes())
        image.putpalette([first] * 3 + [second] * 3)
    else:
        image = Image.fromarray(expected.astype(np.uint8) * 255).convert(mode)
    image.save(path)
    part_path(celeb, 5, "eye_g").unlink(missing_ok=True)
    dp.prepare(celeb, tmp_path / "out", ids_train=[5], ids_val=[], progress=False)
    np.testing.assert_array_equal(grey(tmp_path / "out/masks_train/5_skin.png") > 127, expected)


def test_build_mask():
    skin = np.array([[0, 127, 128, 255]], np.uint8)
    glasses = np.array([[0, 0, 255, 0]], np.uint8)
    np.testing.assert_array_equal(dp.build_mask(skin), [[0, 0, 255, 255]])
    np.testing.assert_array_equal(dp.build_mask(skin, glasses), [[0, 0, 0, 255]])
    assert dp.build_mask(skin).dtype == np.uint8
    np.testing.assert_array_equal(skin, [[0, 127, 128, 255]])


# --- Runs after runs -----------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing(command, celeb_source, tmp_path):
    out = tmp_path / "out"
    assert command("--source", celeb_source, "--out", out).returncode == 0
    before = mtimes(out)
    second = command("--source", celeb_source, "--out", out)
    assert second.returncode == 0
    assert "Nothing to do: train: 12 of 2000, val: 6 of 2000" in second.stdout
    assert mtimes(out) == before
    persons = command("--source", celeb_source, "--out", out, "--persons")
    assert persons.returncode == 0
    assert len(list((out / "persons_train").iterdir())) == 12
    after = mtimes(out)
    files = {path for path in before if path.is_file()}
    assert {path: after[path] for path in files} == {path: before[path] for path in files}
    assert "Nothing to do" in command("--source", celeb_source, "--out", out, "--persons").stdout


def test_a_complete_set_needs_no_source(celeb_source, tmp_path):
    dp.prepare(celeb_source, tmp_path, ids_train=TRAIN_IDS, ids_val=VAL_IDS, progress=False)
    report = dp.prepare("/nowhere", tmp_path, ids_train=TRAIN_IDS, ids_val=VAL_IDS, progress=False)
    assert report.idle
    assert report.splits["train"].there == 12


def test_a_killed_run_is_finished_by_the_next(celeb_source, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    celeb = copied(celeb_source, source)
    for i in range(16012, 16300):  # enough work to be interrupted in
        os.link(celeb / dp.IMAGES / "16000.jpg", celeb / dp.IMAGES / f"{i}.jpg")
        os.link(part_path(celeb, 16000, "skin"), part_path(celeb, i, "skin"))
    command = [sys.executable, str(ROOT / SCRIPT), "--source", str(source), "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("masks_train/[0-9]*.png"))) < 20:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    unfinished = common.temporary_name("16000_skin.png").replace(f"-{os.getpid()}-", f"-{process.pid}-")
    (out / "masks_train" / unfinished).write_bytes(b"half")  # as a kill between the two steps leaves it
    made = [p for p in out.rglob("*.png") if not p.name.startswith(common.TEMP)]
    assert 20 <= len(made) < 306
    for path in made:
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (512, 512)
    for split in ("train", "val"):  # a mask comes last, so no mask is without its picture
        masks = {p.name.removesuffix("_skin.png") for p in made if p.parent.name == f"masks_{split}"}
        assert masks <= {p.stem for p in out.glob(f"images_{split}/*.jpg")}
    (out / "masks_train" / made[0].name).write_bytes(b"")  # as a power failure leaves it
    result = run(SCRIPT, "--source", source, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "train: 300 of 2000" in result.stdout
    dp.prepare(source, tmp_path / "whole", progress=False)
    assert tree(out) == tree(tmp_path / "whole")


def test_ctrl_c(command, celeb_source, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(dp, "_make_all", stop)
    result = command("--source", celeb_source, "--out", tmp_path)
    assert result.returncode == 130
    assert "the next run goes on from here" in result.stderr


# --- Sources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "some/leading/folder/"])
def test_a_zip_gives_what_the_folder_gives(command, prefix, celeb_source, prepared, tmp_path):
    archive = zipped(celeb_source, tmp_path / "faces.zip", prefix)
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("__MACOSX/CelebAMask-HQ/CelebA-HQ-img/._16000.jpg", b"x")
        more.writestr("__MACOSX/CelebAMask-HQ/CelebA-HQ-img/16000.jpg", b"x")
        more.writestr(f"{prefix}CelebAMask-HQ/CelebA-HQ-img/Thumbs.db", b"x")
    result = command("--source", archive, "--out", tmp_path / "out", "--persons", "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "out") == tree(prepared)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["out"]


def test_nothing_is_unpacked_and_a_link_in_a_zip_is_no_picture(command, celeb_source, tmp_path):
    archive = zipped(celeb_source, tmp_path / "faces.zip")
    with zipfile.ZipFile(archive, "a") as more:
        for name in (
            "../CelebA-HQ-img/evil.jpg",
            "/etc/evil",
            "C:\\evil.png",
            "..\\CelebA-HQ-img\\x.jpg",
            "\\\\host\\e",
        ):
            more.writestr(name, b"x")
        link = zipfile.ZipInfo("CelebAMask-HQ/CelebA-HQ-img/16013.jpg")
        link.external_attr = 0o120777 << 16
        more.writestr(link, "/etc/passwd")
        more.write(
            part_path(celeb_source / "CelebAMask-HQ", 16000, "skin"),
            link.filename[:14] + f"{dp.PARTS}/8/16013_skin.png",
        )
    before = tree(tmp_path)
    result = command("--source", archive, "--out", tmp_path / "out" / "in")
    assert [line for line in result.stderr.splitlines() if line.startswith("skipped")] == [
        "skipped: 16013: 16013.jpg cannot be read (not a JPEG file)"
    ]
    made = {path for path in tree(tmp_path) if path not in before}
    assert all(re.fullmatch(r"out/in/(images|masks)_(train|val)/[0-9]+(\.jpg|_skin\.png)", path) for path in made)
    assert len(made) == 36


def test_a_damaged_zip_member_is_named(command, celeb_source, tmp_path):
    archive = zipped(celeb_source, tmp_path / "faces.zip")
    with zipfile.ZipFile(archive) as whole:
        info = whole.getinfo("CelebAMask-HQ/CelebA-HQ-img/16003.jpg")
    data = bytearray(archive.read_bytes())
    middle = info.header_offset + 200 + info.compress_size // 2
    data[middle] ^= 0xFF
    archive.write_bytes(data)
    result = command("--source", archive, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "16003: 16003.jpg cannot be read" in result.stderr
    assert "train: 11 of 2000" in result.stdout


@pytest.mark.parametrize(
    "below",
    [
        "CelebAMask-HQ",  # as the original's doubled folder
        "input/celebamaskhq",
        "input/datasets/ipythonx/celebamaskhq",
    ],
)
def test_layouts_are_found_from_above(below, celeb_source, tmp_path):
    (tmp_path / below).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(celeb_source, tmp_path / below)
    celeb = tmp_path / below / "CelebAMask-HQ"
    for start in (tmp_path, tmp_path / below, celeb):
        assert dp.find_source(start).path == celeb


def test_out_may_be_the_source(command, celeb_source, tmp_path):
    celeb = copied(celeb_source, tmp_path / "source")
    before = tree(celeb)
    assert command("--source", celeb, "--out", celeb).returncode == 0
    after = tree(celeb)
    assert len(list((celeb / "masks_val").iterdir())) == 6
    assert {name: after[name] for name in before} == before
    assert "Nothing to do" in command("--source", celeb, "--out", celeb).stdout


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EROFS])
def test_pictures_are_copied_where_links_fail(code, celeb_source, prepared, tmp_path, monkeypatch):
    def no_link(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_link)
    report = dp.prepare(celeb_source, tmp_path / "out", progress=False)
    assert (report.made["link"], report.made["copy"]) == (0, 18)
    assert "18 copies" in str(report)
    assert tree(tmp_path / "out" / "images_train") == tree(prepared / "images_train")


def test_a_read_only_source(command, celeb_source, tmp_path):
    celeb = copied(celeb_source, tmp_path / "source")
    before = mtimes(celeb)
    for path in [celeb, *celeb.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert command("--source", celeb, "--out", tmp_path / "out").returncode == 0
        assert mtimes(celeb) == before
    finally:
        for path in [celeb, *celeb.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_linked_picture_is_not_a_symlink(celeb_source, tmp_path):
    celeb = copied(celeb_source, tmp_path / "source")
    picture = celeb / dp.IMAGES / "16000.jpg"
    picture.rename(tmp_path / "elsewhere.jpg")
    try:
        picture.symlink_to(tmp_path / "elsewhere.jpg")
    except OSError:
        pytest.skip("no symlinks here")
    dp.prepare(celeb, tmp_path / "out", ids_train=[16000], ids_val=[], progress=False)
    made = tmp_path / "out/images_train/16000.jpg"
    assert not made.is_symlink()
    assert made.read_bytes() == (tmp_path / "elsewhere.jpg").read_bytes()


# --- Broken faces --------------------------------------------------------------------------------------------------


def test_every_broken_face_is_named_and_the_rest_is_prepared(command, celeb_source, tmp_path):
    celeb = copied(celeb_source, tmp_path / "source")
    pictures = celeb / dp.IMAGES
    part_path(celeb, 16000, "skin").unlink()
    (pictures / "16001.jpg").unlink()
    part_path(celeb, 16002, "skin").write_bytes(part_path(celeb, 16002, "skin").read_bytes()[:-20])
    cv2.imwrite(str(part_path(celeb, 16003, "skin")), np.zeros((256, 512), np.uint8))
    (pictures / "16004.jpg").write_bytes((pictures / "16004.jpg").read_bytes()[:-100])
    cv2.imwrite(str(pictures / "16005.jpg"), np.zeros((300, 256, 3), np.uint8))
    cv2.imwrite(str(pictures / "16006.jpg"), np.zeros((128, 128, 3), np.uint8))
    (pictures / "16007.jpg").write_bytes(b"<html>")
    claims = bytearray((pictures / "16008.jpg").read_bytes())
    at = claims.index(b"\xff\xc0") + 5  # height and width
    claims[at : at + 4] = (65500).to_bytes(2, "big") * 2
    (pictures / "16008.jpg").write_bytes(claims)
    part_path(celeb, 24000, "eye_g").write_bytes(b"")
    damaged = bytearray(part_path(celeb, 24001, "skin").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    part_path(celeb, 24001, "skin").write_bytes(damaged)
    reasons = {
        16000: "no skin mask",
        16001: "no picture",
        16002: "16002_skin.png cannot be read (",
        16003: "16003_skin.png is 512x256, not 512x512",
        16004: "16004.jpg is truncated",
        16005: "16005.jpg is 256x300",
        16006: "16006.jpg is 128x128",
        16007: "16007.jpg cannot be read",
        16008: "16008.jpg is 65500x65500",
        24000: "24000_eye_g.png cannot be read",
        24001: "24001_skin.png cannot be read (broken PNG file",
    }
    result = command("--source", celeb, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "train: 3 of 2000 faces (3 new; the source holds 12)" in result.stdout
    assert "val: 4 of 2000 faces (4 new; the source holds 6)" in result.stdout
    skipped = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == len(reasons)
    for line, (i, reason) in zip(skipped, reasons.items(), strict=True):
        assert line.startswith(f"skipped: {i}: {reason}")
    files = [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert not [name for name in files if name.startswith((common.TEMP, *map(str, reasons)))]
    assert len(files) == 14

    again = command("--source", celeb, "--out", tmp_path / "out")
    assert again.returncode == 1
    assert "Nothing to do" not in again.stdout
    assert again.stderr == result.stderr
    mended = command("--source", celeb_source, "--out", tmp_path / "out")
    assert mended.returncode == 0
    assert "train: 12 of 2000 faces (9 new" in mended.stdout


def test_a_broken_part_of_the_silhouette_costs_the_silhouette_only(celeb_source, tmp_path):
    celeb = copied(celeb_source, tmp_path / "source")
    part_path(celeb, 16000, "neck").write_bytes(b"")
    report = dp.prepare(celeb, tmp_path / "out", persons=True, progress=False)
    assert [reason.split(":")[0] for reason in report.skipped] == ["16000"]
    assert (tmp_path / "out/masks_train/16000_skin.png").exists()
    assert not (tmp_path / "out/persons_train/16000_person.png").exists()
    assert (tmp_path / "out/persons_train/16001_person.png").exists()


def test_no_source_names_the_three_ways(tmp_path, monkeypatch, capsys):
    for name in ("CELEB_DIR", "DIR_PATH"):
        monkeypatch.setattr(const, name, tmp_path / "nothing")
    monkeypatch.setattr(dp, "KAGGLE", (tmp_path / "no-kaggle",))
    assert dp.main(["--out", str(tmp_path / "out")]) != 0
    sentence = capsys.readouterr().err
    for way in ("--download", dp.DRIVE_LINK, "ipythonx/celebamaskhq"):
        assert way in sentence
    assert sentence.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_usual_places(celeb_source, tmp_path, monkeypatch):
    monkeypatch.setattr(const, "CELEB_DIR", tmp_path / "root" / "CelebAMask-HQ")
    monkeypatch.setattr(const, "DIR_PATH", tmp_path / "root")
    kaggle = tmp_path / "kaggle" / "celebamaskhq"
    monkeypatch.setattr(dp, "KAGGLE", (kaggle,))
    shutil.copytree(celeb_source, kaggle)
    assert dp.find_source().path == kaggle / "CelebAMask-HQ"
    (tmp_path / "root").mkdir()
    archive = zipped(celeb_source, tmp_path / "root" / dp.ARCHIVE)
    assert dp.find_source().path == archive
    shutil.copytree(celeb_source, tmp_path / "root" / "CelebAMask-HQ")
    assert dp.find_source().path == tmp_path / "root" / "CelebAMask-HQ" / "CelebAMask-HQ"
    shutil.copytree(celeb_source, tmp_path / "root", dirs_exist_ok=True)
    assert dp.find_source().path == tmp_path / "root" / "CelebAMask-HQ"


def test_bad_arguments(command, celeb_source, tmp_path):
    (tmp_path / "notes.txt").write_text("not an archive")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for options, words in (
        (["--workers", 0], ["--workers"]),
        (["--workers", -1], ["--workers"]),
        (["--download", "--source", celeb_source], ["--source"]),
        (["--source", tmp_path / "missing", "--out", out], ["missing"]),
        (["--source", tmp_path / "notes.txt", "--out", out], ["notes.txt"]),
        (["--source", tmp_path / "empty", "--out", out], ["CelebA-HQ-img"]),
        (["--source", celeb_source, "--out", tmp_path / "notes.txt"], ["notes.txt", "Not a directory"]),
    ):
        result = command(*options)
        assert result.returncode in (1, 2), options
        one_sentence(result.stderr, *words)
    assert not out.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_failing_writes_end_the_run(code, celeb_source, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(dp, "_write_mask", fail)
    assert dp.main(["--source", str(celeb_source), "--out", str(tmp_path)]) == 1
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"error: {tmp_path / 'masks_'}")
    assert os.strerror(code) in sentence
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / dp.UNFINISHED]


def test_a_preparation_that_was_cut_short_is_finished_before_its_faces_are_used(celeb_source, tmp_path, monkeypatch):
    made, make = [], dp._make

    def stopped(*args):
        made.append(args)
        if len(made) > 15:  # all of train, and some of val
            raise KeyboardInterrupt
        return make(*args)

    monkeypatch.setattr(dp, "_make", stopped)
    with pytest.raises(KeyboardInterrupt):
        dp.prepare(celeb_source, tmp_path, workers=1)
    assert dp._finished(tmp_path, "val", "images", "masks")
    assert not dp.is_prepared(tmp_path)
    monkeypatch.setattr(dp, "_make", make)
    monkeypatch.setattr(const, "DIR_PATH", tmp_path / "nothing")
    monkeypatch.setattr(const, "CELEB_DIR", tmp_path / "nothing")
    with pytest.raises(dp.DataError, match="cut short"):
        dp.ensure(tmp_path)
    (tmp_path / "CelebAMask-HQ").symlink_to(celeb_source)
    dp.ensure(tmp_path, lambda *words: None)
    assert dp.is_prepared(tmp_path)
    assert len(list((tmp_path / "masks_val").iterdir())) == 6


def test_nothing_is_added_to_pictures_of_ones_own(celeb_source, tmp_path, monkeypatch):
    monkeypatch.setattr(const, "CELEB_DIR", celeb_source)
    picture = tmp_path / "images_val" / "alice.png"
    picture.parent.mkdir()
    picture.touch()
    assert dp.ensure(tmp_path) == tmp_path
    assert list(tmp_path.rglob("*.*")) == [picture]


def test_silhouettes_that_the_source_lacks_are_counted(celeb_source, tmp_path):
    celeb = copied(celeb_source, tmp_path / "source")
    dp.prepare(celeb, tmp_path)
    for path in (celeb / dp.PARTS).rglob("16000_*.png"):
        path.unlink()
    for _ in range(2):  # there is nothing to do the second time
        (tmp_path / dp.UNFINISHED).touch()
        report = dp.prepare(celeb, tmp_path, persons=True)
        assert dp.is_prepared(tmp_path)
        assert report.lacking == 1
        assert "the source lacks 1 silhouettes" in str(report)


# --- Odd files -----------------------------------------------------------------------------------------------------


def test_pipes_and_huge_files_are_skipped(celeb_source, tmp_path):
    celeb = copied(celeb_source, tmp_path / "source")
    for path in (celeb / dp.IMAGES / "16000.jpg", part_path(celeb, 16001, "skin")):
        path.unlink()
        os.mkfifo(path)
    for path in (celeb / dp.IMAGES / "16002.jpg", part_path(celeb, 16003, "skin")):
        path.unlink()
        path.symlink_to("/dev/zero")
    with part_path(celeb, 16004, "skin").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    result = run(SCRIPT, "--source", celeb, "--out", tmp_path / "out", timeout=60)
    assert result.returncode == 1
    skipped = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
    assert [line.split(": ")[1] for line in skipped] == [str(16000 + i) for i in range(5)]
    for line, words in zip(skipped, ["not a regular file"] * 4 + ["too many"], strict=True):
        assert words in line
    assert "train: 7 of 2000" in result.stdout
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "below").mkdir()
    os.mkfifo(tmp_path / "below" / dp.ARCHIVE)
    for source, words in (("pipe.zip", "pipe.zip"), ("below", "no CelebAMask-HQ")):
        result = run(SCRIPT, "--source", tmp_path / source, "--out", tmp_path / "out", timeout=60)
        assert result.returncode == 1
        one_sentence(result.stderr, words)


def test_links_to_nowhere_are_replaced_and_a_mask_of_the_users_own_is_kept(celeb_source, prepared, tmp_path):
    out = tmp_path / "out"
    ids = {"ids_train": TRAIN_IDS, "ids_val": VAL_IDS, "progress": False}
    dp.prepare(celeb_source, out, **ids)
    images, masks = out / "images_train", out / "masks_train"
    (masks / "16000_skin.png").unlink()
    (masks / "16000_skin.png").symlink_to(tmp_path / "nowhere")
    (images / "16001.jpg").unlink()
    (images / "16001.jpg").symlink_to(tmp_path / "nowhere")
    (images / "16002.jpg").unlink()
    cv2.imwrite(str(masks / "16002_skin.png"), np.full((512, 512), 255, np.uint8))
    own, before = (masks / "16002_skin.png").read_bytes(), mtimes(out)
    report = dp.prepare(celeb_source, out, **ids)
    assert report.splits["train"].prepared == 3
    assert not report.skipped
    assert (masks / "16002_skin.png").read_bytes() == own
    assert [p for p in out.rglob("*") if p.is_symlink()] == []
    made = tree(out)
    assert made.pop("masks_train/16002_skin.png")
    assert {name: value for name, value in tree(prepared).items() if name in made} == made
    changed = {p.name for p, state in mtimes(out).items() if p.is_file() and state != before.get(p)}
    assert changed == {"16000_skin.png", "16001.jpg", "16002.jpg"}


def test_what_another_living_process_writes_is_left_alone(celeb_source, tmp_path):
    """Two preparations of one folder at once: both end well, and what a dead one left is swept."""
    for folder in ("masks_train", "images_train"):
        (tmp_path / folder).mkdir()
    ours = common.temporary_name("16000_skin.png")
    for name in (ours, ours.replace(f"-{os.getpid()}-", f"-{dead_process()}-")):
        (tmp_path / "masks_train" / name).write_bytes(b"x")
    command = [sys.executable, str(ROOT / SCRIPT), "--source", str(celeb_source), "--out", str(tmp_path)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(p.communicate()[1], p.returncode) for p in both] == [("", 0)] * 2
    assert leftovers(tmp_path) == [str(tmp_path / "masks_train" / ours)]
    assert len(list((tmp_path / "masks_train").glob("[0-9]*.png"))) == 12


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_odd_zip_archives_get_a_sentence(celeb_source, tmp_path):
    def spoiled(name: str, change) -> Path:
        """A zip in which the central directory's entry of the first picture is changed by `change(data, offset)`."""
        data = bytearray(zipped(celeb_source, tmp_path / name).read_bytes())
        at = data.index(b"PK\x01\x02")
        change(data, at)
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    def newer(data, at):
        data[at + 6 : at + 8] = (99).to_bytes(2, "little")  # version needed to extract

    def unnamed(data, at):
        data[at + 9] |= 0x08  # the name is said to be UTF-8 ...
        data[at + 46] = 0xFF  # ... and is not

    for name, change in (("newer.zip", newer), ("unnamed.zip", unnamed)):
        assert dp.main(["--source", str(spoiled(name, change)), "--out", str(tmp_path / "out")]) == 1
        with pytest.raises(dp.DataError, match="cannot read the archive"):
            dp.prepare(tmp_path / name, tmp_path / "out")
    for kind in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        archive = tmp_path / f"{kind}.zip"
        with zipfile.ZipFile(archive, "w", kind) as packed:
            for path in sorted((celeb_source / "CelebAMask-HQ").rglob("*16000*")):
                packed.write(path, path.relative_to(celeb_source))
            info = packed.getinfo("CelebAMask-HQ/CelebA-HQ-img/16000.jpg")
        data = bytearray(archive.read_bytes())
        middle = info.header_offset + info.compress_size // 2
        data[middle : middle + 40] = b"\xff" * 40
        archive.write_bytes(data)
        report = dp.prepare(archive, tmp_path / "out", progress=False)
        assert [reason.split(" (")[0] for reason in report.skipped] == ["16000: 16000.jpg cannot be read"]


# --- Download ------------------------------------------------------------------------------------------------------

GDOWN = """
import shutil, types
exceptions = types.ModuleType("gdown.exceptions")
class DownloadError(Exception): pass
class FileURLRetrievalError({base}): pass
exceptions.FileURLRetrievalError = FileURLRetrievalError
{extra}
import sys
sys.modules["gdown.exceptions"] = exceptions
def download(url, output, resume):
    {body}
"""


@pytest.fixture
def fake_gdown(tmp_path, monkeypatch):
    """Puts a module of this source in gdown's place; the real one is back afterwards."""

    def ours():
        return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "gdown"}

    real = ours()
    for name in real:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    yield (tmp_path / "gdown.py").write_text
    for name in ours():
        del sys.modules[name]
    sys.modules.update(real)


@pytest.mark.parametrize(
    ("new", "body", "words"),
    [
        (True, 'raise FileURLRetrievalError("Too many users have viewed")', "Too many users"),
        (True, 'raise DownloadError("stopped")', "stopped"),
        (False, 'raise FileURLRetrievalError("Too many users have viewed")', "Too many users"),
        (False, "return None", "nothing arrived"),
        (False, 'open(output, "w").write("<html>"); return output', "no zip archive"),
        (True, 'raise ConnectionError("offline")', "offline"),
    ],
)
def test_a_failed_download_says_what_to_do(new, body, words, tmp_path, fake_gdown):
    fake = GDOWN.format(
        base="DownloadError" if new else "Exception",
        extra="exceptions.DownloadError = DownloadError" if new else "",
        body=body,
    )
    fake_gdown(fake)
    target = tmp_path / "data" / dp.ARCHIVE
    target.parent.mkdir()
    with pytest.raises(dp.DataError) as caught:
        dp.download(target)
    for word in (words, "quota", dp.DRIVE_LINK, str(target)):
        assert word in str(caught.value)
    assert not list(target.parent.iterdir())


def test_a_download_is_checked_and_named(celeb_source, tmp_path, fake_gdown):
    archive = zipped(celeb_source, tmp_path / "served.zip")
    body = f"shutil.copy({str(archive)!r}, output); assert {const.CELEB_DRIVE_ID!r} in url and resume; return output"
    fake_gdown(GDOWN.format(base="Exception", extra="", body=body))
    target = tmp_path / "data" / dp.ARCHIVE
    target.parent.mkdir()
    assert dp.download(target).path == target
    assert [p.name for p in target.parent.iterdir()] == [dp.ARCHIVE]
    fake_gdown("raise RuntimeError")
    assert dp.download(target).path == target  # not fetched again


# --- The module, the real faces --------------------------------------------------------------------


def test_help_and_import_are_light():
    code = "import data_preprocessing; print(sorted({'torch', 'cv2', 'numpy', 'tqdm', 'PIL'} & set(sys.modules)))"
    assert python(code, fresh=True).stdout.strip() == "[]"
    assert "--persons" in run(SCRIPT, "--help").stdout


@pytest.mark.skipif(FACE_SEG_DATA is None, reason="FACE_SEG_DATA names no folder with CelebAMask-HQ-mini.zip")
def test_the_real_faces(tmp_path):
    result = run(SCRIPT, "--source", FACE_SEG_DATA / "CelebAMask-HQ-mini.zip", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "train: 780 of 2000" in result.stdout
    assert "val: 100 of 2000" in result.stdout
    fractions = [(grey(path) > 127).mean() for path in sorted(tmp_path.glob("masks_val/*.png"))]
    assert len(fractions) == 100
    assert min(fractions) > 0.02
    assert 0.15 < np.mean(fractions) < 0.4
