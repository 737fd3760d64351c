"""Cartoon faces with part masks in the layout of CelebAMask-HQ, for tests, the benchmark and a notebook without data.

They show nobody: what a network learns from them says nothing about real faces.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import const
from common import UserError, write_bytes
from drawing import encode

NOTE = "DRAWN.txt"
SKINS = ((255, 224, 196), (224, 172, 125), (198, 134, 92), (141, 85, 54), (96, 58, 40))  # RGB
HAIRS = ((30, 24, 22), (62, 40, 28), (110, 70, 40), (196, 150, 84), (170, 168, 166))  # RGB
SKIN = const.FACE_PART  # the bare oval; as in CelebAMask-HQ the part of this name is all of it that no hair hides
PARTS = (SKIN, "cloth", "neck", "l_ear", "r_ear", "mouth", "u_lip", "l_lip", "nose")
PARTS += ("l_eye", "r_eye", "l_brow", "r_brow", "hair", "eye_g")


def _ellipse(x: float, y: float, w: float, h: float, start: float = 0, end: float = 360) -> np.ndarray:
    """(40, 2) points of an arc; degrees run clockwise from the right, as y points down."""
    t = np.radians(np.linspace(start, end, 40))
    return np.stack([x + w * np.cos(t), y + h * np.sin(t)], axis=1)


def _shapes(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(part, polygon, colour) of all that is painted, the farthest first; the face's centre is 0, half its width 1."""
    skin = np.array(SKINS[rng.integers(len(SKINS))]) * rng.uniform(0.9, 1.0)
    hair = np.array(HAIRS[rng.integers(len(HAIRS))]) * rng.uniform(0.8, 1.2)
    lips, shade, white = 0.5 * skin + 0.5 * np.array((190, 40, 60)), 0.8 * skin, np.array((245, 243, 240))
    iris = rng.uniform(20, 120, 3)
    yaw, height, eye = rng.normal(0, 0.07), rng.uniform(1.2, 1.36), rng.uniform(-0.18, -0.06)
    style = rng.choice(["short", "long", "bald"], p=[0.5, 0.4, 0.1])
    if style == "long":
        yield "hair", np.vstack([_ellipse(0, -0.35, 1.25, 1.2, 180, 360), [[1.3, 2.1], [-1.3, 2.1]]]), hair * 0.8
    yield "neck", np.array([[-0.52, 0.6], [0.52, 0.6], [0.64, 2.4], [-0.64, 2.4]]), shade
    cloth = np.vstack([_ellipse(0, 1.4, 0.62, 0.4, 180, 0), [[2.4, 2], [2.4, 4], [-2.4, 4], [-2.4, 2]]])
    yield "cloth", cloth, rng.uniform(20, 235, 3)
    for side, part in ((-1, "l_ear"), (1, "r_ear")):
        if style != "long":
            yield part, _ellipse(side, 0.02, 0.16, 0.27), shade
    yield SKIN, _ellipse(0, 0, 1, height), skin
    for side, name in ((-1, "l"), (1, "r")):
        x = side * 0.42 + yaw
        yield f"{name}_eye", _ellipse(x, eye, 0.2, 0.1), white
        yield f"{name}_eye", _ellipse(x, eye, 0.09, 0.09), iris
        brow = np.vstack([_ellipse(x, eye - 0.1, 0.27, 0.2, 200, 340), _ellipse(x, eye - 0.1, 0.27, 0.1, 340, 200)])
        yield f"{name}_brow", brow, hair * 0.7
    yield "nose", np.array([[yaw, eye], [0.17 + 2 * yaw, eye + 0.5], [-0.17 + 2 * yaw, eye + 0.5]]), shade
    mouth, wide, gap = eye + 0.8, rng.uniform(0.26, 0.4), rng.choice([0.0, rng.uniform(0.05, 0.13)])
    yield "u_lip", _ellipse(yaw, mouth, wide, 0.09, 180, 360), lips
    yield "l_lip", _ellipse(yaw, mouth, wide, 0.12 + gap, 0, 180), lips
    if gap:  # showing teeth
        yield "mouth", _ellipse(yaw, mouth, wide * 0.9, gap, 0, 180), white
    if style != "bald":
        line = rng.uniform(-0.75, -0.5)
        front = [[1.02, -0.1], [0.86, line], [rng.uniform(-0.5, 0.5), line - 0.3], [-0.86, line], [-1.02, -0.1]]
        yield "hair", np.vstack([_ellipse(0, -0.3, 1.1, height - 0.1, 180, 360), front]), hair
    if rng.random() < 0.3:  # frame, lenses, bridge and sidepieces: all of it is the part eye_g
        frame, lens = rng.uniform(10, 120, 3), rng.choice([40, 220]) * np.ones(3)
        yield "eye_g", np.array([[-1, eye - 0.05], [1, eye - 0.05], [1, eye + 0.03], [-1, eye + 0.03]]), frame
        for x in (yaw - 0.42, yaw + 0.42):
            yield "eye_g", _ellipse(x, eye, 0.34, 0.28), frame
            yield "eye_g", _ellipse(x, eye, 0.28, 0.22), lens


def draw_face(seed, size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One face: a (size, size, 3) uint8 RGB picture and {part: (512, 512) bool} of the parts which it shows."""
    rng = np.random.default_rng(seed)
    colours = np.clip(rng.uniform(30, 225) + rng.normal(0, 40, (4, 4, 3)), 0, 255).astype(np.uint8)
    picture = cv2.resize(colours, (size, size), interpolation=cv2.INTER_CUBIC)
    labels = np.zeros((const.MASK_SIZE, const.MASK_SIZE), np.uint8)
    oval = np.zeros_like(labels)
    scale, roll, centre = rng.uniform(0.21, 0.275), rng.normal(0, 0.12), rng.normal((0.5, 0.53), 0.02)
    matrix = scale * np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    for part, points, colour in _shapes(rng):
        points = (points @ matrix + centre) * 16  # 4 bits of fraction
        cv2.fillPoly(picture, [np.round(points * size).astype(np.int32)], colour.tolist(), cv2.LINE_AA, 4)
        at = [np.round(points * const.MASK_SIZE).astype(np.int32)]
        cv2.fillPoly(labels, at, 1 + PARTS.index(part), cv2.LINE_8, 4)
        if part == SKIN:
            cv2.fillPoly(oval, at, 1, cv2.LINE_8, 4)
    parts = {part: labels == number for number, part in enumerate(PARTS, start=1)}
    parts[SKIN] = (oval > 0) & ~parts["hair"]
    grain = cv2.resize(rng.normal(0, 6, (128, 128)).astype(np.float32), (size, size))
    picture = cv2.add(picture, np.repeat(grain[..., None], 3, axis=2), dtype=cv2.CV_8U)
    return picture, {part: mask for part, mask in parts.items() if mask.any()}


def _png(mask: np.ndarray, mode: str, index: int) -> bytes:
    """The PNG of a part mask, (H, W) bool, in mode L, RGB or P (`index` is then the palette's white)."""
    picture = Image.fromarray(mask * np.uint8(index if mode == "P" else 255))
    if mode == "P":
        picture.putpalette(bytes(3 * index) + b"\xff\xff\xff")
    file = io.BytesIO()
    picture.convert(mode).save(file, "PNG")
    return file.getvalue()


def _files(ids, image_size: int, part_modes) -> Iterator[tuple[str, bytes]]:
    """(path, contents) of a data set."""
    yield NOTE, b"These faces are drawn by drawn_faces.py; they are not CelebAMask-HQ and show nobody.\n"
    yield "CelebAMask-HQ-mask-anno/.DS_Store", b"\0\0\0\1Bud1"
    for i in ids:
        picture, masks = draw_face([0, i], image_size)
        yield f"CelebA-HQ-img/{i}.jpg", encode(picture, ".jpg")
        for number, (part, mask) in enumerate(masks.items()):
            png = _png(mask, part_modes[(i + number) % len(part_modes)], (1, 255)[i % 2])
            yield f"CelebAMask-HQ-mask-anno/{i // const.IDS_PER_FOLDER}/{i:05d}_{part}.png", png


def draw_celeb_tree(root, ids, *, image_size: int = 512, part_modes=("L", "RGB", "P")) -> Path:
    """Draws the faces `ids` in the official layout under `root`/CelebAMask-HQ, and returns that folder.

    A face depends on its id alone; the PNG mode of its parts goes through `part_modes`, by default those found in the
    official archive, whose stray `.DS_Store` is there too. Raises UserError: the folder holds files that were not drawn
    here; none is written over.
    """
    folder = Path(root) / "CelebAMask-HQ"
    if folder.exists() and not (folder / NOTE).exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files that were not drawn here; draw into another folder.")
    for name, data in _files(ids, image_size, part_modes):
        path = folder / name
        if not path.exists():
            write_bytes(path, data)
        elif path.read_bytes() != data:
            raise UserError(f"{path} is there already and is another picture; draw into another folder.")
    return folder
