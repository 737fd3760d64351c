"""Pictures of results: overlays, contours, hidden faces, training curves (matplotlib imported where it is used)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

import const
from common import replacing

SPECK = 4  # pixels, of a picture scaled to 512, below which a part of a mask is no face


def save_curves(history: list[dict], path: Path) -> None:
    """Loss, and Dice and IoU, over the epochs, as a PNG."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, scores = {"loss": "training", "val_loss": "validation (BCE)"}, {"dice": "Dice", "iou": "IoU"}
    left, right = figure.subplots(1, 2)
    left.set(ylabel="loss", yscale="log")
    right.set(ylabel="validation, pooled counts")
    for axis, labels in ((left, losses), (right, scores)):
        for key, label in labels.items():
            axis.plot(epochs, [row[key] for row in history], marker=".", label=label)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def parse_color(text: str) -> tuple[int, int, int]:
    """ "#8000ff" to (128, 0, 255); ValueError for anything but six hexadecimal digits after an optional #."""
    digits = text.removeprefix("#")
    if len(digits) != 6:
        raise ValueError(f"{text!r} is not a colour such as #8000ff")
    return tuple(bytes.fromhex(digits))


def scaled(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture, mask or map (H, W, ...) with its longer side at `side`, aspect kept."""
    scale = side / max(picture.shape[:2])
    h, w = (max(1, round(n * scale)) for n in picture.shape[:2])
    return cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def overlay(picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], alpha: float) -> np.ndarray:
    """The mask's pixels painted over the picture, uint8 (H, W, 3): color * alpha + picture * (1 - alpha)."""
    grey = np.arange(256, dtype=np.float32)[:, None]
    table = np.round(grey * (1 - alpha) + np.float32(color) * alpha).astype(np.uint8)[None]  # (1, 256, 3)
    return cv2.copyTo(cv2.LUT(picture, table), mask, picture.copy())


def contour(picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], width: int | None = None) -> np.ndarray:
    """The mask's outline on a copy of the picture, `width` pixels wide; a hundredth of the face without it."""
    lines, above = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    out = picture.copy()
    for i in range(len(lines)):
        around = above[0, i, 3] if above[0, i, 3] >= 0 else i  # of a hole, the outline that it is in
        side = max(cv2.boundingRect(lines[around])[2:])
        cv2.drawContours(out, lines, i, color, width or max(1, round(side / 100)), cv2.LINE_AA)
    return out


def worst_sheet(rows: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """A sheet, uint8 (H, W, 3), of `rows`: (title, picture uint8 (H, W, 3), predicted mask, target), the masks uint8
    (H, W); the target's outline is green, the prediction's magenta."""
    cells, cell = [], 224  # pixels
    for title, picture, predicted, target in rows:
        small = scaled(picture, cell)
        size = small.shape[1::-1]
        for mask, color in ((target, (0, 255, 0)), (predicted, (255, 0, 255))):
            small = contour(small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), color, 1)
        tile = np.full((cell + 20, cell, 3), 255, np.uint8)
        tile[: size[1], : size[0]] = small
        cv2.putText(tile, title, (4, cell + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        cells.append(tile)
    across = min(5, len(cells))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % across)
    return np.vstack([np.hstack(cells[i : i + across]) for i in range(0, len(cells), across)])


def grid(rows: list[list[np.ndarray | None]], heads=(), names=(), title: str = "", side: float = 2.2):
    """A matplotlib Figure, which a notebook shows, of rows of pictures uint8 (H, W, 3) or (H, W), or None for a place
    marked as empty; `heads` above the columns and `names` beside the rows; `side` of a picture, inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * len(rows[0]), side * len(rows) + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for axis, picture in zip(axes.flat, (picture for row in rows for picture in row), strict=True):
        axis.set(xticks=[], yticks=[], frame_on=False, anchor="N")
        if picture is None:
            axis.text(0.5, 0.5, "none", ha="center", va="center", color="grey")
        else:
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    for axis, head in zip(axes[0], heads):  # noqa: B905  there may be none
        axis.set_title(head, fontsize=10)
    for axis, name in zip(axes[:, 0], names):  # noqa: B905
        axis.set_ylabel(name, fontsize=10)
    return figure


# --- What a mask is good for ----------------------------------------------------------------------------------------
def cutout(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The face on transparency, its edge softened over about a pixel in 400: uint8 (H, W, 4), RGBA."""
    return np.dstack([picture, cv2.GaussianBlur(mask, (0, 0), max(0.7, max(mask.shape) / 800))])


def merge_boxes(boxes: list[tuple]) -> list[tuple]:
    """Join boxes (x0, y0, x1, y1) that belong to one face, such as the parts above and below spectacles.

    Two are joined that are less than a quarter of the larger one apart, unless the result would be 1.7 times as large
    as the largest part in it: faces side by side stay apart, and specks do not chain.
    """
    boxes = np.array(boxes, int).reshape(-1, 4)
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1, initial=0)
    order, i = np.argsort(-sides, kind="stable"), 0
    groups = np.column_stack([boxes, sides])[order]  # the last: the side of the largest part
    while i < len(groups):
        low, high = np.minimum(groups[:, :2], groups[i, :2]), np.maximum(groups[:, 2:4], groups[i, 2:4])
        largest = np.maximum(groups[:, 4], groups[i, 4])
        apart = np.maximum(groups[:, :2] - groups[i, 2:4], groups[i, :2] - groups[:, 2:4]).max(1)
        joined = (apart < 0.25 * largest) & ((high - low).max(1) <= 1.7 * largest)
        joined[i] = False
        if not joined.any():
            i += 1
            continue
        j = int(joined.argmax())
        i, gone = min(i, j), max(i, j)
        groups[i] = *low[j], *high[j], largest[j]
        groups = np.delete(groups, gone, axis=0)
    return [tuple(group) for group in groups[:, :4].tolist()]


def find_boxes(found: np.ndarray, least: int = 1) -> list[tuple]:
    """Boxes (x0, y0, x1, y1) around the faces of what is found, bool (H, W), in parts of `least` pixels or more."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8))
    return merge_boxes([(x, y, x + w, y + h) for x, y, w, h, area in stats[1:].tolist() if area >= least])


@dataclass(frozen=True)
class Face:
    """A face of a mask, in all its parts."""

    box: tuple[int, int, int, int]  # x, y, width, height, pixels of the picture
    mask: np.ndarray  # uint8 (height, width), 0/255: its pixels within the box
    confidence: float  # mean probability of its pixels

    @property
    def area(self) -> int:
        return cv2.countNonZero(self.mask)


def _faces(mask: np.ndarray) -> Iterator[np.ndarray]:
    """Each face of a mask uint8 (H, W), in all its parts but specks: uint8 (h, w), 0/255, at 512 pixels at most."""
    small = scaled(mask, min(512, max(mask.shape)))  # hulls and boxes need no more
    _, labels, stats, _ = cv2.connectedComponentsWithStats((small > 60).astype(np.uint8))
    parts = {i: (x, y, x + w, y + h) for i, (x, y, w, h, area) in enumerate(stats.tolist()) if i and area >= SPECK}
    for x0, y0, x1, y1 in merge_boxes(list(parts.values())):
        own = [i for i, (a, b, c, d) in parts.items() if a >= x0 and b >= y0 and c <= x1 and d <= y1]
        yield np.where(np.isin(labels, own), 255, 0).astype(np.uint8)


def shows_face(mask: np.ndarray) -> bool:
    """Whether a mask uint8 (H, W) holds more than specks, so that `find_faces` finds one and `blur` hides it."""
    return next(_faces(mask), None) is not None


def find_faces(mask: np.ndarray, logits: np.ndarray) -> list[Face]:
    """The faces of a mask uint8 (H, W), 0/255, the largest first; `logits` float (H, W) are what it was made of. What
    glasses or an occluder divide is one face."""
    found = []
    for small in _faces(mask):
        around = cv2.dilate(small, np.ones((3, 3), np.uint8))
        own = mask & cv2.resize(around, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
        x, y, w, h = cv2.boundingRect(own)
        box = np.s_[y : y + h, x : x + w]
        inside = logits[box][own[box] > 0]
        found.append(Face((x, y, w, h), own[box].copy(), float((1 / (1 + np.exp(-inside))).mean())))
    return sorted(found, key=lambda face: -face.area)


def faces_json(mask: np.ndarray, logits: np.ndarray, name: str, threshold: float) -> bytes:
    """The faces of a mask as a JSON object: box, area, confidence (see `Face`), and the mask as COCO run lengths, or as
    polygons where pycocotools is missing."""
    try:
        from pycocotools import mask as coco

        mask_format = "COCO run lengths"
    except ImportError:
        coco, mask_format = None, "polygons x, y, x, y, ..., holes by the even-odd rule (no pycocotools here)"
    faces = []
    for face in find_faces(mask, logits):
        x, y, w, h = face.box
        if coco:
            whole = np.zeros(mask.shape, np.uint8, order="F")
            whole[y : y + h, x : x + w] = face.mask > 0
            runs = coco.encode(whole)
            shape = {"size": runs["size"], "counts": runs["counts"].decode("ascii")}
        else:
            lines, _ = cv2.findContours(face.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
            shape = [line.ravel().tolist() for line in lines]
        faces.append({"box": face.box, "area": face.area, "confidence": round(face.confidence, 4), "mask": shape})
    about = {"threshold": threshold, "box_format": "x, y, width, height in pixels", "mask_format": mask_format}
    size = {"width": mask.shape[1], "height": mask.shape[0]}
    return json.dumps({"picture": name, **size, **about, "faces": faces}).encode("ascii")


def hidden_region(mask: np.ndarray) -> np.ndarray:
    """What must be hidden so that a face cannot be recognised, uint8 (H, W), 0/255: the hull of all its parts, with a
    margin, since eyes behind spectacles are not in the mask."""
    region = np.zeros((1, 1), np.uint8)
    for part in _faces(mask):
        margin = max(3, round(0.1 * max(cv2.boundingRect(part)[2:])))
        cv2.fillConvexPoly(part, cv2.convexHull(cv2.findNonZero(part)), 255)
        region = region | cv2.dilate(part, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, [2 * margin + 1] * 2))
    return np.where(cv2.resize(region, mask.shape[::-1], interpolation=cv2.INTER_LINEAR) > 127, 255, 0).astype(np.uint8)


def _hide(picture: np.ndarray, mask: np.ndarray, blocks: int, enlarge: int) -> np.ndarray:
    """Faces averaged to so many blocks along the longer side of each, enlarged again; uint8 (H, W, 3)."""
    region, out = hidden_region(mask), picture.copy()
    for x, y, w, h, _ in cv2.connectedComponentsWithStats(region)[2][1:]:
        box = np.s_[y : y + h, x : x + w]
        grid_size = [max(1, round(blocks * side / max(w, h))) for side in (w, h)]
        coarse = cv2.resize(picture[box], grid_size, interpolation=cv2.INTER_AREA)
        cv2.copyTo(cv2.resize(coarse, (w, h), interpolation=enlarge), region[box], out[box])
    return out


pixelate = partial(_hide, blocks=10, enlarge=cv2.INTER_NEAREST)
blur = partial(_hide, blocks=8, enlarge=cv2.INTER_CUBIC)


@dataclass(frozen=True)
class Output:
    """What every prediction command carries: which results it leaves, and how they are drawn."""

    results: tuple[str, ...] = ("mask", "overlay")  # of `const.RESULTS`; ValueError for others
    threshold: float = const.THRESHOLD  # probability from which a pixel is face
    color: tuple[int, int, int] | str = const.OVERLAY_COLOR  # of overlay and contour, (r, g, b) or "#rrggbb"
    alpha: float = const.OVERLAY_ALPHA  # opacity of the overlay, 0 to 1

    def __post_init__(self):
        if unknown := [kind for kind in self.results if kind not in const.RESULTS]:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(const.RESULTS)}")
        if isinstance(self.color, str):
            object.__setattr__(self, "color", parse_color(self.color))

    @property
    def hiding(self) -> str | None:
        """The first of the results that hides faces; None where none does."""
        return next((kind for kind in self.results if kind in ("blurred", "pixelated")), None)

    def draw(self, kind: str, picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """One of `const.RESULTS`, but "probability" and "json", of a picture uint8 (H, W, 3) and its mask (H, W)."""
        if kind == "mask":
            return mask
        if kind == "contour":
            return contour(picture, mask, self.color)
        if make := {"cutout": cutout, "blurred": blur, "pixelated": pixelate}.get(kind):
            return make(picture, mask)
        painted = overlay(picture, mask, self.color, self.alpha)
        return np.hstack([picture, painted]) if kind == "side-by-side" else painted

    def encode(self, kind: str, picture: np.ndarray, mask: np.ndarray, logits: np.ndarray, name: str) -> bytes:
        """The file of one of `const.RESULTS`; `logits` float (H, W) are what the mask was made of, `name` is that of
        the picture."""
        if kind == "json":
            return faces_json(mask, logits, name, self.threshold)
        if kind == "probability":
            return encode(np.round(255 / (1 + np.exp(-logits.clip(-30, 30)))).astype(np.uint8), ".png")
        return encode(self.draw(kind, picture, mask), const.RESULTS[kind])


class Gif:
    """An endless GIF, written to a binary `file` frame by frame: of each what differs visibly from what is shown, with
    a palette of its own. The first one, made smaller to `WIDTH`, gives the size; others are scaled to fit into it, on
    black."""

    WIDTH = 480  # pixels at most
    COLORS = 255  # and one that is transparent
    GRAIN = 6  # grey levels that are no difference

    def __init__(self, file):
        self.file, self.end = file, 0.0  # seconds; when the last frame has been shown
        self._held = self._shown = None

    def add(self, frame: np.ndarray, at: float, shown: float) -> None:
        """A frame uint8 (H, W, 3) that is seen from `at` seconds until the next one; if it is the last, for `shown`."""
        high, wide = frame.shape[:2]
        if self._held is not None:
            self._write(*self._held, at)
        else:
            scale = min(1.0, self.WIDTH / wide)
            self._size = max(1, round(wide * scale)), min(65535, max(1, round(high * scale)))
            self._shape = frame.shape
            self.file.write(b"GIF89a" + struct.pack("<HHBBB", *self._size, 0x70, 0, 0))
            self.file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")  # for ever
        w, h = fit = self._size
        if frame.shape != self._shape:
            scale = min(w / wide, h / high)
            fit = min(w, max(1, round(wide * scale))), min(h, max(1, round(high * scale)))
        small = cv2.resize(frame, fit, interpolation=cv2.INTER_AREA)
        left, top = (w - fit[0]) // 2, (h - fit[1]) // 2
        border = top, h - fit[1] - top, left, w - fit[0] - left
        small = cv2.copyMakeBorder(small, *border, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        self._held, self.end = (small, at), at + shown

    def close(self) -> None:
        """Write the rest; ValueError if there was no frame."""
        if self._held is None:
            raise ValueError("a GIF needs a frame")
        self._write(*self._held, self.end)
        self.file.write(b";")

    def _write(self, frame: np.ndarray, at: float, until: float) -> None:
        from PIL import GifImagePlugin, Image

        shown = frame if self._shown is None else self._shown
        changed = cv2.absdiff(frame, shown).max(2) > (self.GRAIN if self._shown is not None else -1)
        x, y, w, h = cv2.boundingRect(changed.view(np.uint8)) if changed.any() else (0, 0, 1, 1)
        box = np.s_[y : y + h, x : x + w]
        page = Image.fromarray(frame[box]).quantize(self.COLORS, Image.Quantize.FASTOCTREE)
        part = Image.fromarray(np.where(changed[box], np.asarray(page), self.COLORS).astype(np.uint8))
        part.putpalette(bytes(page.getpalette()).ljust(3 * self.COLORS + 3, b"\0"))
        milliseconds = 10 * (round(100 * until) - round(100 * at))
        options = {"duration": milliseconds, "disposal": 1, "transparency": self.COLORS, "include_color_table": True}
        for data in GifImagePlugin.getdata(part, (x, y), **options):
            self.file.write(data)
        self._shown = np.where(changed[..., None], frame, shown)


def encode(picture: np.ndarray, suffix: str) -> bytes:
    """A mask uint8 (H, W), picture (H, W, 3) RGB or (H, W, 4) RGBA as the bytes of a file of this suffix."""
    options = []  # OpenCV's own settings for PNG are made for flat areas: a quarter of the time, smaller files
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR if picture.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
        options = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    done, data = cv2.imencode(suffix, picture, options)
    if not done:
        raise OSError(f"{suffix} encoding failed")
    return data.tobytes()
