"""Damaged and odd input of five families, seeded: whatever it is, the commands end with results or with one sentence.

FACE_SEG_FUZZ=20 makes twenty times as many cases. A case's number is its seed, and stands in its folders' names.
"""

import io
import os
import random
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from conftest import ROOT, fingerprints, leftovers
from PIL import Image, features
from test_training import Dropping

import data_preprocessing
import drawing
import inference
import main
import model

TIMES = int(os.environ.get("FACE_SEG_FUZZ", "1"))
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"] + ["AVIF"] * bool(features.check("avif"))
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The bytes cut short, flipped, overwritten, doubled or moved in up to four places."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.choice([rng.randrange(len(data) + 1), min(len(data), rng.randrange(64)), max(0, len(data) - 32)])
        length = rng.choice([1, 2, 4, 16, 200])
        kind = rng.choice(["cut", "flip", "noise", "extreme", "repeat", "drop"])
        if kind == "cut" and rng.random() < 0.5:
            del data[at:]
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "noise":
            data[at : at + length] = rng.randbytes(length)
        elif kind == "extreme":
            data[at : at + length] = rng.choice([b"\0", b"\xff", b"\x7f"]) * length
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * rng.randint(1, 9)
        elif kind == "drop":
            del data[at : at + length]
    return bytes(data)


def check(command, argv, inputs: Path, out: Path, capsys) -> int:
    """Runs a command in this process, where a traceback is a failure; its exit code, everything else looked at."""
    before = fingerprints(inputs)
    capsys.readouterr()
    code = command([str(arg) for arg in argv])
    said = capsys.readouterr()
    assert code in (0, 1)
    assert "Traceback" not in said.out + said.err
    if code:
        assert "error: " in said.err
    assert fingerprints(inputs) == before
    assert leftovers(out) == []
    for path in out.rglob("*") if out.exists() else ():
        if path.suffix in (".png", ".jpg"):
            assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None, path
    return code


def predict(weights, picture, out) -> list:
    return ["predict", picture, "--weights", weights, "--out", out, "--device", "cpu", "--backend", "torch"]


def picture_of(rng: random.Random, kind: str) -> bytes:
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (rng.randint(1, 40), 30, 3), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if kind not in ("JPEG", "BMP"):
        image = image.convert(rng.choice(["RGB", "L", "RGBA", "P"]))
    image.save(file, kind)
    return file.getvalue()


def test_pictures(lite_weights, tmp_path, capsys):
    codes = []
    for seed in range(4 * TIMES):
        rng = random.Random(seed)
        folder, out = tmp_path / f"in{seed}", tmp_path / f"out{seed}"
        folder.mkdir()
        for i in range(30):  # of a folder at once, as loading the weights takes the time
            kind = rng.choice(FORMATS)
            suffix = rng.choice([kind.lower(), "jpg", "png"])
            (folder / f"{i}.{suffix}").write_bytes(damaged(rng, picture_of(rng, kind)))
        (folder / "whole.png").write_bytes(picture_of(rng, "PNG"))
        codes.append(check(main.main, predict(lite_weights, folder, out), folder, out, capsys))
        assert (out / "whole_overlay.jpg").exists(), seed  # the others cost themselves only
    assert 1 in codes


class Noise(torch.nn.Module):
    def forward(self, x):
        rng = torch.Generator().manual_seed(int(x.abs().sum() * 1000) % 2**31)
        coarse = torch.randn(len(x), 1, x.shape[2] // 8, x.shape[3] // 8, generator=rng) * 4
        return torch.nn.functional.interpolate(coarse, size=x.shape[2:], mode="bilinear")


def test_tiny_and_thin_pictures_with_faces_anywhere():
    segmenter = inference.Segmenter(Noise(), model.Info("lite", 64, 2), precision="fp32")
    rng = random.Random(0)
    for _ in range(300 * TIMES):
        size = rng.choice(
            [(rng.randint(1, 40), rng.randint(1, 40)), (rng.randint(1, 3), 900), (900, rng.randint(1, 3))]
        )
        picture = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8).reshape(*size, 3)
        logits = segmenter.logits([picture])[0]
        assert logits.shape == size
        mask = inference.to_mask(logits, 0.5)
        assert bool(drawing.find_faces(mask, logits)) == drawing.shows_face(mask) == drawing.hidden_region(mask).any()


def test_checkpoints(lite_weights, tmp_path, capsys):
    whole, codes = lite_weights.read_bytes(), []
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((20, 20, 3), np.uint8))
    with zipfile.ZipFile(lite_weights) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for seed in range(30 * TIMES):
        rng = random.Random(seed)
        path, out = tmp_path / "in" / "w.pth", tmp_path / f"out{seed}"
        if rng.random() < 0.3:
            path.write_bytes(damaged(rng, whole))
        else:  # with right checksums, so that the damage reaches the unpickler
            small = [i for i, (_, data) in enumerate(members) if 0 < len(data) < 1 << 16]
            spoiled = {next(i for i in small if members[i][0].endswith("data.pkl")), rng.choice(small)}
            with zipfile.ZipFile(path, "w") as archive:
                for i, (name, data) in enumerate(members):
                    archive.writestr(name, damaged(rng, data) if i in spoiled else data)
        codes.append(check(main.main, predict(path, tmp_path / "in" / "a.png", out), tmp_path / "in", out, capsys))
    assert sum(codes) > len(codes) / 2


def test_runs(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model, "build", lambda name, **_: Dropping())  # of which a state is quickly written and read
    train = ["train", "--data", prepared, "--workers", 0, "--device", "cpu", "--precision", "fp32", "--run-dir"]
    tiny = ["--model", "lite", "--no-pretrained", "--size", 32, "--batch-size", 4, "--limit", 4, "--epochs", 1]
    assert main.main([*map(str, [*train, tmp_path / "whole", *tiny])]) == 0
    with zipfile.ZipFile(tmp_path / "whole" / "last.pth") as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    assert check(main.main, [*train, tmp_path / "again", "--resume"], prepared, tmp_path / "again", capsys) == 0
    codes = []
    for seed in range(8 * TIMES):
        rng = random.Random(seed)
        run_dir = shutil.copytree(tmp_path / "whole", tmp_path / f"run{seed}")
        for name in ("config.json", "history.csv"):
            (run_dir / name).write_bytes(damaged(rng, (run_dir / name).read_bytes()))
        if rng.random() < 0.4:
            (run_dir / "last.pth").write_bytes(damaged(rng, (run_dir / "last.pth").read_bytes()))
        elif rng.random() < 0.7:  # with right checksums
            with zipfile.ZipFile(run_dir / "last.pth", "w") as archive:
                for name, data in members:
                    archive.writestr(name, damaged(rng, data) if name.endswith("data.pkl") else data)
        before = fingerprints(run_dir)
        codes.append(check(main.main, [*train, run_dir, "--resume"], prepared, run_dir, capsys))
        if codes[-1]:
            assert fingerprints(run_dir) == before, seed  # refused, and nothing changed
    assert 1 in codes


def test_sources(celeb_source, tmp_path, capsys):
    faces = [f"1600{i}" for i in range(4)]
    files = [path for path in sorted(celeb_source.rglob("*")) if path.is_file() and path.name[:5] in faces]
    seen = set()
    for seed in range(25 * TIMES):
        rng = random.Random(seed)
        source, out = tmp_path / f"in{seed}", tmp_path / f"out{seed}"
        source.mkdir()
        spoiled = {rng.choice(files): damaged(rng, rng.choice(files).read_bytes()) for _ in range(3)}
        archive = source / "faces.zip"
        pack = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
        as_folder = rng.random() < 0.4
        with zipfile.ZipFile(archive, "w", pack) as packed:
            for path in files:
                data = spoiled.get(path, path.read_bytes())
                packed.writestr(str(path.relative_to(celeb_source)), data)
                if as_folder:
                    target = source / path.relative_to(celeb_source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(data)
        if not as_folder and rng.random() < 0.6:
            archive.write_bytes(damaged(rng, archive.read_bytes()))
        given = source if as_folder else archive
        code = check(data_preprocessing.main, ["--source", given, "--out", out, "--persons"], source, out, capsys)
        seen.add((as_folder, code))
        pictures, masks = (
            {p.name.split(".")[0].split("_")[0] for p in out.glob(f"{k}_*/*")} for k in ("images", "masks")
        )
        assert pictures == masks, seed  # never one without the other
    assert {(True, 1), (False, 1)} <= seen


def test_names(lite_weights, tmp_path, capsys):
    letters = [
        "a",
        "é",
        "e\u0301",
        "人",
        "🙂",
        " ",
        "-",
        "%",
        "%s",
        "{",
        "}",
        "'",
        '"',
        "\n",
        "\t",
        "\\",
        ".",
        "..",
        "*",
    ]
    letters += ["?", "[", "]", "~", "$HOME", "#", "\u202e", "\udcff", "_mask", ".tmp-", "._", "COM1"]
    picture = picture_of(random.Random(0), "PNG")
    for seed in range(4 * TIMES):
        rng = random.Random(seed)
        folder, out = tmp_path / f"in{seed}", tmp_path / f"out{seed}" / rng.choice(["x", "ü y", "%s", "a\nb"])
        folder.mkdir()
        names = set()
        while len(names) < 20:
            stem = "".join(rng.choices(letters, k=rng.randint(1, 5))) * rng.choice([1, 1, 1, 12])
            name = stem + rng.choice([".png", ".PNG", ".jpg", ".png.png"])
            if len(os.fsencode(name)) <= 255:
                names.add(name)
        for name in names:
            (folder / name).write_bytes(picture)
        hidden = {name for name in names if name.startswith(".")}
        code = check(main.main, predict(lite_weights, folder, out), folder, out, capsys)
        written = [p for p in out.rglob("*") if p.is_file()]
        assert all(p.parent == out for p in written)
        if code == 0:
            assert len({p.name for p in written if "_mask.png" in p.name}) >= len(names - hidden), seed
    assert not (ROOT / "predictions" / "x").exists()
