"""Pictures of results: overlays, contours, training curves (matplotlib imported where it is used)."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np


def save_curves(history: list[dict], path: Path) -> None:
    """Loss, and Dice and IoU, over the epochs, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for key, label in (("loss", "training"), ("val_loss", "validation (BCE)")):
        left.plot(epochs, [row[key] for row in history], marker=".", label=label)
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    for key, label in (("dice", "Dice"), ("iou", "IoU")):
        right.plot(epochs, [row[key] for row in history], marker=".", label=label)
    right.set(xlabel="epoch", ylabel="validation, pooled counts")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
        axis.xaxis.get_major_locator().set_params(integer=True)
    temporary = Path(path).with_name(f".tmp-{Path(path).name}")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, path)


def parse_color(text: str) -> tuple[int, int, int]:
    """ "#8000ff" to (128, 0, 255).

    Raises:
        ValueError: anything but six hexadecimal digits after an optional #.
    """
    digits = text.removeprefix("#")
    if len(digits) != 6:
        raise ValueError(f"{text!r} is not a colour such as #8000ff")
    return tuple(bytes.fromhex(digits))


def overlay(picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], alpha: float) -> np.ndarray:
    """The mask's pixels painted over the picture, uint8 (H, W, 3): color * alpha + picture * (1 - alpha)."""
    painted = cv2.LUT(picture, _paint_table(color, alpha))
    return cv2.copyTo(painted, mask, picture.copy())


def _paint_table(color, alpha: float) -> np.ndarray:
    grey = np.arange(256, dtype=np.float32)[:, None]
    return np.round(grey * (1 - alpha) + np.float32(color) * alpha).astype(np.uint8)[None]  # (1, 256, 3)


def contour(picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], width: int | None = None) -> np.ndarray:
    """The mask's outline on a copy of the picture."""
    width = width or max(1, round(max(picture.shape[:2]) / 300))
    lines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture.copy(), lines, -1, color, width, cv2.LINE_AA)


def worst_sheet(rows: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]], path: Path, cell: int = 224) -> None:
    """A sheet of pictures with the truth's outline in green and the prediction's in magenta, titled.

    Args:
        rows: (title, picture uint8 (H, W, 3), predicted mask, true mask), the masks uint8 (H, W).
    """
    cells = []
    for title, picture, predicted, truth in rows:
        side = max(picture.shape[:2])
        scale = cell / side
        size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        for mask, color in ((truth, (0, 255, 0)), (predicted, (255, 0, 255))):
            small = contour(small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), color, 1)
        tile = np.full((cell + 20, cell, 3), 255, np.uint8)
        tile[: size[1], : size[0]] = small
        cv2.putText(tile, title, (4, cell + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        cells.append(tile)
    across = min(5, len(cells))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % across)
    sheet = np.vstack([np.hstack(cells[i : i + across]) for i in range(0, len(cells), across)])
    from inference import encode, write_bytes

    write_bytes(Path(path), encode(sheet, Path(path).suffix))
