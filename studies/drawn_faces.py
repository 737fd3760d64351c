"""Cartoon faces with part masks in the layout of CelebAMask-HQ, for tests, the benchmark and a notebook without data.

They show nobody: what a network learns from them says nothing about real faces.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import const
from common import UserError, write_bytes

MODES = ("L", "RGB", "P")  # the PNG modes found in the official archive
NOTE = "These faces are drawn by drawn_faces.py; they are not CelebAMask-HQ and show nobody.\n"
SKINS = ((255, 224, 196), (241, 194, 165), (224, 172, 125), (198, 134, 92), (141, 85, 54), (96, 58, 40))  # RGB
HAIRS = ((30, 24, 22), (62, 40, 28), (110, 70, 40), (196, 150, 84), (150, 60, 34), (170, 168, 166))  # RGB
IRISES = ((70, 45, 25), (95, 120, 75), (80, 120, 165), (40, 30, 25))  # RGB
FRAMES = ((25, 22, 22), (90, 50, 30), (120, 120, 125), (140, 30, 40))  # RGB
# Values of the label map; `skin` is no label but the oval minus what lies over it, as in CelebAMask-HQ.
PARTS = ("cloth", "neck", "l_ear", "r_ear", "mouth", "u_lip", "l_lip", "nose")
PARTS += ("l_eye", "r_eye", "l_brow", "r_brow", "hair", "eye_g")
PAINT = {part: number for number, part in enumerate(PARTS, start=1)}
FACE = 255  # the label of the bare oval


def _mix(a, b, fraction: float) -> tuple[float, ...]:
    return tuple((1 - fraction) * x + fraction * y for x, y in zip(a, b, strict=True))


def _ellipse(x: float, y: float, w: float, h: float, start: float = 0, end: float = 360, n: int = 40) -> np.ndarray:
    """(n, 2) points of an arc; degrees run clockwise from the right, as y points down."""
    t = np.radians(np.linspace(start, end, n))
    return np.stack([x + w * np.cos(t), y + h * np.sin(t)], axis=1)


class _Canvas:
    """A picture and its part labels, painted together in the face's own frame: centre 0, half its width 1."""

    def __init__(self, size: int, scale: float, roll: float, x: float, y: float):
        self.size = size
        self.picture = np.zeros((size, size, 3), np.uint8)  # RGB
        self.labels = np.zeros((const.MASK_SIZE, const.MASK_SIZE), np.uint8)
        c, s = np.cos(roll) * scale, np.sin(roll) * scale
        self.matrix, self.offset, self.scale = np.array([[c, s], [-s, c]]), np.array([x, y]), scale

    def _points(self, points: np.ndarray, size: int) -> np.ndarray:
        return np.round((points @ self.matrix + self.offset) * size * 16).astype(np.int32)  # 4 bits of fraction

    def fill(self, points: np.ndarray, color, label: int | None = None, alpha: float = 1.0) -> None:
        """Paints a polygon; `label` is None for what belongs to the part below, such as a shadow or a pupil."""
        over = self.picture.copy() if alpha < 1 else self.picture
        cv2.fillPoly(over, [self._points(points, self.size)], color, cv2.LINE_AA, 4)
        if alpha < 1:
            self.picture = cv2.addWeighted(over, alpha, self.picture, 1 - alpha, 0)
        if label is not None:
            cv2.fillPoly(self.labels, [self._points(points, const.MASK_SIZE)], label, cv2.LINE_8, 4)

    def stroke(self, points: np.ndarray, color, width: float, label: int | None = None, closed: bool = False) -> None:
        for image, value, size, kind in (
            (self.picture, color, self.size, cv2.LINE_AA),
            (self.labels, label, const.MASK_SIZE, cv2.LINE_8),
        ):
            if value is not None:
                thick = max(1, round(width * self.scale * size))
                cv2.polylines(image, [self._points(points, size)], closed, value, thick, kind, 4)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) uint8: a wall or a blurred view, in muted colours, with a few lights."""
    grid = (int(rng.integers(2, 7)), int(rng.integers(2, 7)), 3)
    grey, tint = rng.uniform(30, 225), rng.normal(0, 30, 3)
    coarse = np.clip(grey + tint + rng.normal(0, 22, grid), 0, 255).astype(np.uint8)
    picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(0, 5))):
        center = tuple(int(v) for v in rng.integers(0, size, 2))
        light = cv2.circle(picture.copy(), center, int(rng.uniform(0.04, 0.2) * size), rng.uniform(0, 255, 3), -1)
        picture = cv2.addWeighted(light, 0.3, picture, 0.7, 0)
    return picture


def draw_face(seed, size: int = 512) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One face: a (size, size, 3) uint8 RGB picture and {part: (512, 512) bool} of the parts which it shows."""
    rng = np.random.default_rng(seed)
    c = _Canvas(
        max(size, const.MASK_SIZE),  # smaller ones are shrunk at the end, which smooths them
        scale=rng.uniform(0.21, 0.275),
        roll=rng.normal(0, 0.12),
        x=0.5 + rng.normal(0, 0.02),
        y=0.53 + rng.normal(0, 0.02),
    )
    c.picture = _background(rng, c.size)
    look = _Look(rng)
    _draw_behind(c, rng, look)
    oval_mask = _draw_oval(c, rng, look)
    mouth_y = _draw_nose(c, rng, look) + rng.uniform(0.27, 0.36)
    _draw_eyes(c, rng, look)
    _draw_mouth(c, rng, look, mouth_y)
    _draw_hair(c, rng, look)
    if look.glasses:
        _draw_glasses(c, rng, look)

    parts = {part: c.labels == number for part, number in PAINT.items()}
    parts["skin"] = oval_mask & ~parts["hair"]
    grain = rng.normal(0, 4, (128, 128, 1)) + np.linspace(-1, 1, 128)[None, :, None] * rng.normal(0, 14)
    grain = np.repeat(grain.astype(np.float32), 3, axis=2)
    picture = cv2.add(c.picture, cv2.resize(grain, (c.size, c.size)), dtype=cv2.CV_8U)
    if size != c.size:
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return picture, {part: mask for part, mask in parts.items() if mask.any()}


class _Look:
    """What one face looks like, drawn by lot."""

    def __init__(self, rng: np.random.Generator):
        self.yaw = float(np.clip(rng.normal(0, 0.09), -0.22, 0.22))  # the features' shift in half face widths
        self.skin = _mix(*(SKINS[i] for i in rng.choice(len(SKINS), 2)), rng.uniform(0, 0.3))
        self.shade, self.light = _mix(self.skin, (70, 20, 20), 0.22), _mix(self.skin, (255, 240, 225), 0.3)
        self.hair = HAIRS[rng.integers(len(HAIRS))]
        self.height = rng.uniform(1.2, 1.36)  # of the oval, in widths
        self.style = rng.choice(["short", "long", "bob", "curly", "bald"], p=[0.3, 0.3, 0.16, 0.16, 0.08])
        self.ears = self.style in ("short", "bald") or (self.style != "bob" and rng.random() < 0.4)
        self.glasses = rng.random() < 0.25
        self.eye_y, self.eyes_apart = rng.uniform(-0.18, -0.06), rng.uniform(0.38, 0.46)
        self.side = rng.choice([-1, 1])  # of the light and of the parting


def _draw_behind(c: _Canvas, rng: np.random.Generator, look: _Look) -> None:
    """Hair that falls behind the face, neck, clothes, ears."""
    dark = _mix(look.hair, (0, 0, 0), 0.2)
    if look.style == "long":
        c.fill(np.vstack([_ellipse(0, -0.35, 1.25, 1.2, 180, 360), [[1.35, 2.1], [-1.35, 2.1]]]), dark, PAINT["hair"])
    elif look.style == "bob":
        outline = [_ellipse(0, -0.3, 1.3, 1.2, 170, 370), _ellipse(0, 0.75, 1.22, 0.3, 0, 180)]
        c.fill(np.vstack(outline), dark, PAINT["hair"])
    elif look.style == "curly":
        for x, y in _ellipse(0, -0.35, 1.15, 1.0, 150, 390, 17):
            curl = _mix(look.hair, (0, 0, 0), rng.uniform(0, 0.3))
            c.fill(_ellipse(x, y, 0.36, 0.36, n=20), curl, PAINT["hair"])
    c.fill(np.array([[-0.52, 0.6], [0.52, 0.6], [0.64, 2.4], [-0.64, 2.4]]), look.shade, PAINT["neck"])
    top, dip = rng.uniform(1.35, 1.5), rng.uniform(0.15, 0.6)
    shoulder = np.array([[0.62, top], [1.3, top + 0.3], [1.95, top + 0.6], [2.3, top + 1.2], [2.4, 4]])
    cloth = np.vstack([shoulder[::-1] * [-1, 1], _ellipse(0, top, 0.62, dip, 180, 0), shoulder])
    color = tuple(rng.uniform(20, 235, 3))
    c.fill(cloth, color, PAINT["cloth"])
    c.stroke(_ellipse(0, top, 0.64, dip + 0.03, 180, 0), _mix(color, (0, 0, 0), 0.3), 0.06, PAINT["cloth"])
    for side, part in ((-1, "l_ear"), (1, "r_ear")):
        if look.ears and side * look.yaw > -0.12:
            x = side - look.yaw * 0.3
            c.fill(_ellipse(x, 0.02, 0.16, 0.27), _mix(look.skin, look.shade, 0.5), PAINT[part])
            c.fill(_ellipse(x + side * 0.02, 0.02, 0.08, 0.16), look.shade)


def _draw_oval(c: _Canvas, rng: np.random.Generator, look: _Look) -> np.ndarray:
    """The face without its features; returns its mask, (512, 512) bool."""
    t = np.radians(np.linspace(0, 360, 64))  # the first half runs along the jaw
    jaw = 1 - rng.uniform(0.06, 0.2) * np.clip(np.sin(t), 0, 1) ** 2
    oval = np.stack([np.cos(t) * jaw, np.sin(t) * look.height], axis=1)
    c.fill(oval, look.skin, FACE)
    c.fill(oval * [0.55, 0.9] + [look.side * 0.3, 0], look.light, alpha=0.25)
    for side in (-1, 1):
        c.fill(_ellipse(side * 0.52 + look.yaw, 0.38, 0.2, 0.15), _mix(look.skin, (230, 90, 90), 0.5), alpha=0.25)
    return c.labels == FACE


def _draw_eyes(c: _Canvas, rng: np.random.Generator, look: _Look) -> None:
    iris, brow = IRISES[rng.integers(len(IRISES))], _mix(look.hair, (20, 15, 10), 0.4)
    y, opened, gaze = look.eye_y, rng.uniform(0.07, 0.125), rng.normal(0, 0.03)
    brow_width, brow_height = rng.uniform(0.06, 0.12), rng.uniform(0.14, 0.2)
    for side, name in ((-1, "l"), (1, "r")):
        x = side * look.eyes_apart + look.yaw
        upper, lower = _ellipse(x, y, 0.2, opened, 180, 360, 16), _ellipse(x, y, 0.2, opened * 0.75, 0, 180, 16)
        c.fill(_ellipse(x, y - 0.01, 0.26, opened + 0.09), look.shade, alpha=0.3)
        c.fill(np.vstack([upper, lower]), (245, 243, 240), PAINT[f"{name}_eye"])
        c.fill(_ellipse(x + gaze, y, opened * 0.82, opened * 0.82, n=20), iris)
        c.fill(_ellipse(x + gaze, y, opened * 0.4, opened * 0.4, n=16), (10, 8, 8))
        c.fill(_ellipse(x + gaze + 0.03, y - 0.03, 0.02, 0.02, n=10), (255, 255, 255))
        c.stroke(upper, _mix(look.shade, (20, 10, 10), 0.7), 0.03)
        c.stroke(_ellipse(x, y - 0.1, 0.27, brow_height, 200, 340, 14), brow, brow_width, PAINT[f"{name}_brow"])


def _draw_nose(c: _Canvas, rng: np.random.Generator, look: _Look) -> float:
    """Returns the height at which it ends."""
    y, tip = look.eye_y + rng.uniform(0.44, 0.56), look.yaw * 1.5
    right = np.array([[0.07 + look.yaw, look.eye_y + 0.02], [0.17 + tip, y], [0.08 + tip, y + 0.07]])
    left = np.array([[-0.08 + tip, y + 0.07], [-0.17 + tip, y], [-0.07 + look.yaw, look.eye_y + 0.02]])
    c.fill(np.vstack([right, left]), _mix(look.skin, look.light, 0.6), PAINT["nose"], alpha=0.6)
    c.stroke(_ellipse(tip, y, 0.17, 0.09, 10, 170, 14), look.shade, 0.035)
    for side in (-1, 1):
        c.fill(_ellipse(tip + side * 0.075, y + 0.035, 0.035, 0.02, n=12), _mix(look.shade, (30, 10, 10), 0.6))
    return y


def _draw_mouth(c: _Canvas, rng: np.random.Generator, look: _Look, y: float) -> None:
    wide, smile = rng.uniform(0.26, 0.4), rng.uniform(-0.02, 0.12)
    gap = rng.choice([0.0, rng.uniform(0.05, 0.13)])  # shut, or showing teeth
    lips = _mix(look.skin, (190, 40, 60), rng.uniform(0.3, 0.75))
    xs = np.linspace(-1, 1, 17)
    middle = np.stack([look.yaw * 1.2 + xs * wide, y - smile * xs**2], axis=1)
    arc = (1 - xs**2)[:, None] * [0, 1]
    bow = 1 - 0.35 * np.exp(-((xs / 0.18) ** 2))[:, None]
    upper, lower = middle - arc * gap * 0.3, middle + arc * gap
    if gap:
        c.fill(np.vstack([upper, lower[::-1]]), (240, 236, 228), PAINT["mouth"])
    c.fill(np.vstack([upper, (upper - arc * 0.09 * bow)[::-1]]), lips, PAINT["u_lip"])
    c.fill(np.vstack([lower, (lower + arc * 0.12)[::-1]]), _mix(lips, (255, 200, 200), 0.15), PAINT["l_lip"])
    c.stroke(upper, _mix(lips, (40, 0, 0), 0.6), 0.02)


def _draw_hair(c: _Canvas, rng: np.random.Generator, look: _Look) -> None:
    """Hair over the forehead."""
    if look.style != "bald":
        line, parting = rng.uniform(-0.75, -0.5), look.side * rng.uniform(0, 0.6)
        front = [[1.02, -0.1], [0.86, line], [parting, line - 0.3], [-0.86, line], [-1.02, -0.1]]
        if look.style in ("long", "bob") and rng.random() < 0.35:  # a fringe
            front = [[1.02, -0.25], [0.7, line + 0.1], [0, line + 0.18], [-0.7, line + 0.1], [-1.02, -0.25]]
        top = _ellipse(0, -0.3, 1.1, look.height - 0.1 + rng.uniform(0, 0.2), 180, 360)
        c.fill(np.vstack([top, front]), look.hair, PAINT["hair"])
        for x in np.linspace(-0.8, 0.8, 9):  # strands
            strand = np.array([[x * 0.75, -1.25 + 0.25 * x**2], [x * 0.95, -0.95 + 0.3 * x**2]])
            c.stroke(strand, _mix(look.hair, (255, 230, 200), rng.uniform(0.05, 0.22)), 0.03)
    if look.style == "long":
        lock = np.array([[0.9, -0.6], [1.15, -0.5], [1.38, 1.2], [1.2, 2.1], [0.95, 2.0], [0.98, 0.9]])
        for side in (-1, 1):
            c.fill(lock * [side, 1], look.hair, PAINT["hair"])


def _draw_glasses(c: _Canvas, rng: np.random.Generator, look: _Look) -> None:
    """Frame, lenses with what is seen through them, bridge and sidepieces: all of it is the part eye_g."""
    label, dark = PAINT["eye_g"], rng.random() < 0.35
    frame = FRAMES[rng.integers(len(FRAMES))]
    lens, width = ((30, 28, 32) if dark else (215, 230, 240)), rng.uniform(0.035, 0.08)
    w, h, power = rng.uniform(0.29, 0.35), rng.uniform(0.2, 0.28), rng.uniform(0.5, 1)  # 1 is round, less is squarer
    for side in (-1, 1):
        circle = _ellipse(0, 0, 1, 1)
        center = [side * (look.eyes_apart + 0.01) + look.yaw, look.eye_y + 0.03]
        rim = np.sign(circle) * np.abs(circle) ** power * [w, h] + center
        c.fill(rim, lens, label, alpha=0.85 if dark else 0.18)
        c.stroke(rim, frame, width, label, closed=True)
        outer = side * (look.eyes_apart + w) + look.yaw
        temple = np.array([[outer, look.eye_y - 0.04], [side * 0.99 - look.yaw * 0.2, look.eye_y - 0.08]])
        c.stroke(temple, frame, width, label)
    bridge = _ellipse(look.yaw, look.eye_y, look.eyes_apart - w + 0.03, 0.06, 180, 360, 9)
    c.stroke(bridge, frame, width, label)


def encode_part(mask: np.ndarray, mode: str, index: int = 255) -> bytes:
    """The PNG of a part mask, (H, W) bool, in mode L, RGB or P (`index` is then the palette's white)."""
    if mode == "P":
        picture = Image.fromarray(mask * np.uint8(index))
        picture.putpalette(bytes(3 * index) + b"\xff\xff\xff")
    else:
        picture = Image.fromarray(mask * np.uint8(255)).convert(mode)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet; nothing where it holds these bytes already.

    Raises:
        UserError: there is another file of this name.
    """
    if not path.exists():
        write_bytes(path, data)
    elif path.read_bytes() != data:
        raise UserError(f"{path} is there already and is another picture; draw into another folder.")


def draw_celeb_tree(root, ids, *, image_size: int = 512, part_modes=MODES) -> Path:
    """Draws the faces `ids` in the official layout under `root`/CelebAMask-HQ, and returns that folder.

    A face depends on its id alone; the PNG mode of its parts goes through `part_modes`. The official
    archive's stray `.DS_Store` is there too, and a note that all is drawn.

    Raises:
        UserError: the folder holds files that were not drawn here. None is written over.
    """
    folder = Path(root) / "CelebAMask-HQ"
    note, pictures, parts = folder / "DRAWN.txt", folder / "CelebA-HQ-img", folder / "CelebAMask-HQ-mask-anno"
    if folder.exists() and not note.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files that were not drawn here; draw into another folder.")
    _write_new(note, NOTE.encode())
    _write_new(parts / ".DS_Store", b"\0\0\0\1Bud1")
    for i in ids:
        picture, masks = draw_face([0, i], image_size)
        jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        _write_new(pictures / f"{i}.jpg", jpeg.tobytes())
        for number, (part, mask) in enumerate(masks.items()):
            mode, index = part_modes[(i + number) % len(part_modes)], (1, 255)[i % 2]
            path = parts / str(i // const.IDS_PER_FOLDER) / f"{i:05d}_{part}.png"
            _write_new(path, encode_part(mask, mode, index))
    return folder
