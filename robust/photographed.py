"""Photographed things laid over a face: hands, objects, face masks and textures, cut out with alpha.

A network that saw drawn occluders alone knows them by their texture, and calls a photographed hand face (Voo et al.
2022, https://arxiv.org/abs/2205.06218). A folder holds `hands/`, `objects/`, `masks/` (RGBA) and `textures/` (RGB);
every fifth file of each kind, in name order, is held out of training for measuring.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from common import UserError
from pictures import MOST_PIXELS, count_pixels, read_known
from robust.occluders import FACE_CENTRE, FACE_WIDTH, SIZE, blend, flat, photo_patch, polygon, rotation, shadowed, unit

KINDS = ("hands", "objects", "masks")


def find_occluders(folder: Path, kind: str, *, held_out: bool = False) -> list[Path]:
    """The files of one kind, in name order: those to train on, or those held out for measuring. Raises UserError: the
    folder has none of this kind."""
    paths = sorted(p for p in Path(folder, kind).glob("[!.]*") if p.suffix.lower() in (".webp", ".png", ".jpg"))
    chosen = [p for i, p in enumerate(paths) if (i % 5 == 4) == held_out]
    if not chosen:
        few = ", or under 5" if held_out else ""
        raise UserError(f"{Path(folder, kind)} holds no occluders (WebP or PNG with alpha){few}.")
    return chosen


class Recent:
    """Decoded pictures by path, at most `limit` bytes of them, and always the last one; the least recently used go."""

    def __init__(self, limit: int):
        self.limit, self.held, self._kept = limit, 0, OrderedDict()

    def get(self, path: Path, read: Callable):
        """What is kept of a path, or what `read()` gives: anything that knows its `nbytes`."""
        if path not in self._kept:
            self._kept[path] = read()
            self.held += self._kept[path].nbytes
        self._kept.move_to_end(path)
        while self.held > self.limit and len(self._kept) > 1:
            self.held -= self._kept.popitem(last=False)[1].nbytes
        return self._kept[path]


class OccluderStore:
    """Cut-outs uint8 (H, W, 4) RGBA, and textures uint8 (H, W, 3), by random choice; kept as `Recent`."""

    def __init__(self, folder: Path, *, held_out: bool = False):
        self.paths = {kind: find_occluders(folder, kind, held_out=held_out) for kind in (*KINDS, "textures")}
        self._recent = Recent(2**29)

    def draw(self, rng: np.random.Generator, kind: str) -> np.ndarray:
        return self.read(self.paths[kind][int(rng.integers(len(self.paths[kind])))], kind)

    def read(self, path: Path, kind: str) -> np.ndarray:
        return self._recent.get(path, lambda: read_cut_out(path) if kind != "textures" else read_known(path))


def read_cut_out(path: Path) -> np.ndarray:
    """A picture with alpha, uint8 (H, W, 4) RGBA. Raises UserError: it cannot be read, or has no alpha."""
    picture = None
    with suppress(cv2.error):
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if 0 < count_pixels(path) <= MOST_PIXELS else None
    if picture is None or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 4:
        raise UserError(f"{path} is not a picture with alpha.")
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA)


# --- Layers: RGBA uint8 (512, 512, 4) on the aligned square -----------------------------------------------------------
def _place(cut: np.ndarray, centre, length: float, degrees: float, *, flip: bool, aspect: float = 1.0) -> np.ndarray:
    """A cut-out whose longer side is `length` pixels, turned by `degrees`, with its middle at `centre` (x, y)."""
    h, w = cut.shape[:2]
    scale = length / max(h, w)
    if scale < 0.5:
        cut = cv2.resize(cut, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        h, w, scale = *cut.shape[:2], scale * 2
    linear = scale * rotation(np.radians(degrees)) @ np.diag([-1.0 if flip else 1.0, aspect])
    matrix = np.column_stack([linear, np.asarray(centre) - linear @ (w / 2, h / 2)]).astype(np.float32)
    return cv2.warpAffine(cut, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR)


def wrist(cut: np.ndarray) -> tuple[np.ndarray, int]:
    """Where a hand was cut off: the middle of its pixels on the picture's edge as an offset (x, y) from the picture's
    middle, and how many there are. (0, 0.5 h) and 0 without any."""
    alpha = cut[..., 3] > 127
    h, w = alpha.shape
    edges = [np.flatnonzero(edge) for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1])]
    side = np.argmax([edge.size for edge in edges])
    if edges[side].size == 0:
        return np.array([0.0, h / 2]), 0
    middle = edges[side].mean()
    point = [(middle, 0), (middle, h), (0, middle), (w, middle)][side]
    return np.array(point) - (w / 2, h / 2), edges[side].size


def hand_layer(rng: np.random.Generator, cut: np.ndarray, centre, texture: np.ndarray | None) -> np.ndarray:
    """A hand that comes from below, from the sides, seldom from elsewhere; prolonged by a forearm or a sleeve."""
    kind = rng.random()
    if kind < 0.9:
        outward = rng.normal(90, 35) if kind < 0.6 else rng.choice([0, 180]) + rng.normal(0, 35)
    else:
        outward = rng.uniform(0, 360)  # degrees; 90 is downwards
    offset, width = wrist(cut)
    flip = rng.random() < 0.5
    if flip:
        offset = offset * (-1, 1)
    degrees = outward - np.degrees(np.arctan2(offset[1], offset[0]))
    length = FACE_WIDTH * rng.uniform(0.6, 1.7)
    layer, scale = _place(cut, centre, length, degrees, flip=flip), length / max(cut.shape[:2])
    if width * scale > 8 and rng.random() < 0.8:
        direction = unit(np.radians(outward))
        start = np.asarray(centre) + direction * np.hypot(*offset) * scale
        layer = _prolong(rng, layer, start, direction, width * scale, texture)
    return layer


def _prolong(rng, layer, start, direction, width: float, texture) -> np.ndarray:
    """A forearm in the colour of the skin at the wrist, or a sleeve, from `start` outwards."""
    across = np.array([-direction[1], direction[0]])
    sleeve = texture is not None and rng.random() < 0.6
    if sleeve:  # `near` and `far` are its widths at the wrist and at the far end, in widths of the wrist
        near, far, back = rng.uniform(1.05, 1.5), rng.uniform(1.3, 2.2), rng.uniform(0, 0.5) * width
        picture = cv2.resize(texture, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        if rng.random() < 0.5:  # plain cloth of the texture's colour
            picture = flat(rng, texture.reshape(-1, 3).mean(0))
    else:
        near, far, back = 1.0, rng.uniform(1.0, 1.4), 4
        x, y = np.clip(start - direction * width * 0.25, 8, SIZE - 9).astype(int)
        around = layer[max(0, y - 12) : y + 12, max(0, x - 12) : x + 12]
        skin = around[around[..., 3] > 200]
        if not len(skin):
            return layer
        picture = flat(rng, skin[:, :3].mean(0))
    begin, end = start - direction * back, start + direction * 500
    wide, wider = across * width * near / 2, across * width * far / 2
    shape = polygon([begin + wide, begin - wide, end - wider, end + wider])
    grid = np.arange(SIZE, dtype=np.float32)
    distance = (grid[None] - start[0]) * across[0] + (grid[:, None] - start[1]) * across[1]  # from the arm's axis
    shade = np.sqrt(np.clip(1 - (distance / (width * max(near, far) / 2)) ** 2, 0.15, 1)).astype(np.float32)
    picture = blend(picture, np.zeros_like(picture), 0.45 + 0.55 * shade)
    if sleeve:
        rgb = blend(picture, layer[..., :3], shape.astype(np.float32) / 255)
    else:
        rgb = np.where(((layer[..., 3] < 128) & (shape > 0))[..., None], picture, layer[..., :3])
    return np.dstack([rgb, np.maximum(layer[..., 3], shape)])


def object_layer(rng, cut: np.ndarray, centre, texture: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """An object, large or small; a third are its outline filled with a texture, a fifth in the colours of `skin`, since
    there are far fewer objects than faces, and each would be memorised."""
    degrees = rng.normal(0, 20) if rng.random() < 0.5 else rng.uniform(0, 360)
    length = FACE_WIDTH * np.exp(rng.uniform(np.log(0.2), np.log(1.4)))
    layer = _place(cut, centre, length, degrees, flip=rng.random() < 0.5)
    kind = rng.random()
    if kind < 0.33:
        return np.dstack([photo_patch(rng, texture), layer[..., 3]])
    return recoloured(rng, layer, skin) if kind < 0.53 else layer


def mask_layer(rng: np.random.Generator, cut: np.ndarray) -> np.ndarray:
    """A face mask over nose, mouth and chin; here and there pulled down to the chin."""
    low = rng.random() < 0.12
    centre = (256 + rng.normal(0, 7), (445 if low else 382) + rng.normal(0, 12))
    h, w = cut.shape[:2]
    length = FACE_WIDTH * rng.uniform(0.95, 1.25) * max(1.0, h / w)
    return _place(cut, centre, length, rng.normal(0, 5), flip=rng.random() < 0.5, aspect=rng.uniform(0.85, 1.25))


# --- Light and lens -------------------------------------------------------------------------------------------------
def recoloured(rng: np.random.Generator, layer: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """The layer's own pixels moved to the mean and, in part, the contrast of `skin` uint8 (N, 3), in CIELAB."""
    lab = cv2.cvtColor(layer[..., :3], cv2.COLOR_RGB2LAB)
    own = lab[layer[..., 3] > 127].astype(np.float32)
    if not len(own) or not len(skin):
        return layer
    wanted = cv2.cvtColor(skin[None], cv2.COLOR_RGB2LAB)[0].astype(np.float32)
    gain = np.clip(wanted.std(0) / (own.std(0) + 1), 0.6, 1.3)
    mean = wanted.mean(0) + rng.normal(0, (8, 2.5, 2.5)).astype(np.float32)
    table = (np.arange(256, dtype=np.float32)[:, None] - own.mean(0)) * gain + mean
    rgb = cv2.cvtColor(cv2.LUT(lab, table.clip(0, 255).astype(np.uint8)[None]), cv2.COLOR_LAB2RGB)
    return np.dstack([rgb, layer[..., 3]])


def _lit(rng: np.random.Generator, layer: np.ndarray) -> np.ndarray:
    """Another lamp: a gain for each channel, and a soft gradient across."""
    corners = (rng.uniform(0.65, 1.25, (2, 2, 1)) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    light = cv2.resize(corners, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return np.dstack([(layer[..., :3] * light).clip(0, 255).astype(np.uint8), layer[..., 3]])


def _blurred(rng: np.random.Generator, rgb: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Out of focus, or in motion, or neither; the edge is always softened by a pixel, as a lens does."""
    alpha = cv2.erode(alpha, np.ones((3, 3), np.uint8))
    kind = rng.random()
    if kind < 0.2:
        length, angle = int(rng.integers(5, 26)), rng.uniform(0, np.pi)
        half = (length - 1) / 2
        ends = [[round(half + sign * part * half) for part in unit(angle)] for sign in (-1, 1)]
        kernel = cv2.line(np.zeros((length, length), np.float32), *ends, 1.0)
        blur = lambda x: cv2.filter2D(x, -1, kernel / kernel.sum())  # noqa: E731
    else:
        sigma = rng.uniform(1.2, 4.0) if kind < 0.5 else rng.uniform(0.5, 1.0)
        blur = lambda x: cv2.GaussianBlur(x, (0, 0), sigma)  # noqa: E731
    x, y, w, h = cv2.boundingRect(alpha)
    box = np.s_[max(0, y - 26) : y + h + 26, max(0, x - 26) : x + w + 26]
    weight = alpha[box].astype(np.float32) / 255
    soft = np.zeros((SIZE, SIZE), np.float32)
    soft[box] = blur(weight)
    colour = np.zeros_like(rgb)  # divided by the blurred alpha: no colour comes in from outside
    colour[box] = (blur(rgb[box] * weight[..., None]) / np.maximum(soft[box], 1e-3)[..., None]).clip(0, 255)
    return colour, soft


def lay(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, store: OccluderStore, texture, *, kind=None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay a photographed occluder, of a random `KINDS` without `kind`, over an aligned face: in and out as of
    `occluders.draw_occluder`. A hand holds a quarter of the objects; half of the hands have the face's colours; of some
    objects there is the outline alone, filled with a `texture` uint8 (H, W, 3)."""
    kind = kind or str(rng.choice(KINDS, p=[0.5, 0.4, 0.1]))
    points = np.argwhere(mask > 127)
    if len(points) and rng.random() < 0.9:
        y, x = points[int(rng.integers(len(points)))]
    else:
        x, y = FACE_CENTRE + rng.normal(0, 130, 2)
    centre = np.array([x, y], float)
    layers = []
    if kind == "masks":
        layers.append(mask_layer(rng, store.draw(rng, "masks")))
    if kind == "objects":
        layers.append(object_layer(rng, store.draw(rng, "objects"), centre, texture, _skin(image, mask)))
    if kind == "hands" or (kind == "objects" and rng.random() < 0.25):
        layers.append(_hand_of_a_face(rng, store, image, mask, centre, 25))
    opacity = np.zeros((SIZE, SIZE), np.float32)
    for layer in layers:
        if rng.random() < 0.6:
            layer = _lit(rng, layer)
        rgb, alpha = _blurred(rng, layer[..., :3], layer[..., 3])
        if rng.random() < 0.6:  # its shadow on what lies behind
            x, y = rng.normal(0, 9, 2)
            image = shadowed(image, alpha, (x, abs(y)), 25, rng.uniform(0.1, 0.55))
        image = blend(rgb, image, alpha)
        opacity = np.maximum(opacity, alpha)
    mask = np.where(opacity > 0.5, 0, mask).astype(np.uint8)
    return image, mask, (opacity * 255).astype(np.uint8)


def lone_hand(rng: np.random.Generator, store: OccluderStore, image, mask) -> np.ndarray:
    """A hand with nobody behind it, RGBA uint8 (512, 512, 4), half of the time in the colours of a face."""
    return _lit(rng, _hand_of_a_face(rng, store, image, mask, FACE_CENTRE, 30))


def _hand_of_a_face(rng, store: OccluderStore, image, mask, centre, spread: float) -> np.ndarray:
    cut, place = store.draw(rng, "hands"), centre + rng.normal(0, spread, 2)
    layer = hand_layer(rng, cut, place, store.draw(rng, "textures"))
    return recoloured(rng, layer, _skin(image, mask)) if rng.random() < 0.5 else layer


def _skin(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Some of the face's pixels, uint8 (N, 3)."""
    return image[mask > 127][::97]
