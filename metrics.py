"""Counts pooled over a whole split, divided once: Dice, IoU, precision, recall, BCE, boundary IoU.

Means of per-batch ratios depend on the batch size and favour small faces; counts do not, and add up over processes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import cv2
import numpy as np

# Where the largest face's box has a diagonal below this part of the picture's, the band's width is taken from that box:
# with the picture's, nearly all of a face would be boundary. No face of CelebAMask-HQ is that small.
SMALL_FACE = 0.25
BOUNDARY_RATIO = 0.02  # of the picture's diagonal, as in Cheng et al. 2021, https://arxiv.org/abs/2103.16562


def boundary_distance(target: np.ndarray) -> int:
    """The width of the boundary's band for a target (H, W): `BOUNDARY_RATIO` of the diagonal, at least one pixel."""
    diagonal = math.hypot(*target.shape)
    parts = cv2.connectedComponentsWithStats(target.astype(np.uint8))[2][1:]
    box = np.hypot(parts[:, cv2.CC_STAT_WIDTH], parts[:, cv2.CC_STAT_HEIGHT]).max(initial=0)
    return max(1, round(BOUNDARY_RATIO * (box if 0 < box < SMALL_FACE * diagonal else diagonal)))


def boundary_region(mask: np.ndarray, distance: int) -> np.ndarray:
    """The mask's pixels within a distance of its contour, in 3x3 erosions, boolean (H, W). The picture's edge counts as
    outside."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return (mask > 0) & (inner == 0)


@dataclass
class Counts:
    """Pixels counted so far; instances add up with `+`."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0
    boundary_inter: int = 0
    boundary_union: int = 0
    bce_sum: float = 0.0
    bce_pixels: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(operator.add, astuple(self), astuple(other)))

    def add(self, predicted: np.ndarray, target: np.ndarray, *, boundary: bool = True) -> Counts:
        """Count one picture: `predicted` and `target` boolean (H, W). Returns itself. Raises ValueError: the two shapes
        differ."""
        predicted, target = np.asarray(predicted, bool), np.asarray(target, bool)
        if predicted.shape != target.shape:
            raise ValueError(f"prediction {predicted.shape} and target {target.shape} differ in shape")
        self.tp += int(np.count_nonzero(predicted & target))
        self.fp += int(np.count_nonzero(predicted & ~target))
        self.fn += int(np.count_nonzero(~predicted & target))
        self.tn += int(np.count_nonzero(~predicted & ~target))
        if boundary:
            distance = boundary_distance(target)
            a, b = boundary_region(predicted, distance), boundary_region(target, distance)
            self.boundary_inter += int(np.count_nonzero(a & b))
            self.boundary_union += int(np.count_nonzero(a | b))
        return self

    def add_bce(self, logits: np.ndarray, target: np.ndarray) -> Counts:
        """Binary cross-entropy of logits float (H, W) against target boolean (H, W), summed over pixels."""
        x, y = logits.astype(np.float64), target.astype(np.float64)
        self.bce_sum += float((np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))).sum())
        self.bce_pixels += x.size
        return self

    # Each ratio is 1 where there is nothing to divide by, as with two empty masks.
    dice = property(lambda self: _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn))
    iou = property(lambda self: _ratio(self.tp, self.tp + self.fp + self.fn))
    precision = property(lambda self: _ratio(self.tp, self.tp + self.fp))
    recall = property(lambda self: _ratio(self.tp, self.tp + self.fn))
    boundary_iou = property(lambda self: _ratio(self.boundary_inter, self.boundary_union))
    bce = property(lambda self: self.bce_sum / self.bce_pixels if self.bce_pixels else math.nan)

    @property
    def predicted_positive_rate(self) -> float:
        """The fraction of all pixels predicted as face; on pictures without a face the false-positive rate."""
        total = self.tp + self.fp + self.fn + self.tn
        return (self.tp + self.fp) / total if total else 0.0

    def summary(self) -> dict[str, float | None]:
        """The figures by name; None for what is undefined: most without a face in the target, precision where nothing
        was predicted."""
        face, predicted = self.tp + self.fn > 0, self.tp + self.fp > 0
        defined = {"dice": face, "iou": face, "precision": predicted, "recall": face, "boundary_iou": face}
        figures = {name: getattr(self, name) if there else None for name, there in defined.items()}
        return figures | ({"bce": self.bce} if self.bce_pixels else {})


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def counts_at(logits: np.ndarray, target: np.ndarray, thresholds: Iterable[float]) -> list[Counts]:
    """Counts of one picture at several thresholds, the first with the BCE: logits float (H, W), target bool (H, W)."""
    counts = [Counts().add(logits > threshold, target) for threshold in thresholds]
    counts[0].add_bce(logits, target)
    return counts
