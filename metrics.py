"""Counts pooled over a whole split, divided once: Dice, IoU, precision, recall, BCE, boundary IoU.

Means of per-batch ratios depend on the batch size and favour small faces; counts do not, and add up over processes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np

# A face whose box's diagonal is below this part of the picture's has its band by its own box: by the picture's, nearly
# all of it would be boundary. No face of CelebAMask-HQ is that small.
SMALL_FACE = 0.25
BOUNDARY_RATIO = 0.02  # of the picture's diagonal, as in Cheng et al. 2021, https://arxiv.org/abs/2103.16562


def boundary_distance(target: np.ndarray) -> int:
    """The width of the boundary's band for a target (H, W): `BOUNDARY_RATIO` of the diagonal, at least one pixel."""
    diagonal = float(np.hypot(*target.shape))
    _, _, w, h = cv2.boundingRect(target.astype(np.uint8))
    box = float(np.hypot(w, h))
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
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def add(self, predicted: np.ndarray, target: np.ndarray, *, boundary: bool = True) -> Counts:
        """Count one picture: `predicted` and `target` boolean (H, W). Returns itself. Raises ValueError: the two shapes
        differ."""
        predicted, target = np.asarray(predicted, bool), np.asarray(target, bool)
        if predicted.shape != target.shape:
            raise ValueError(f"prediction {predicted.shape} and target {target.shape} differ in shape")
        tp = int(np.count_nonzero(predicted & target))
        fp = int(np.count_nonzero(predicted)) - tp
        fn = int(np.count_nonzero(target)) - tp
        self.tp, self.fp, self.fn = self.tp + tp, self.fp + fp, self.fn + fn
        self.tn += target.size - tp - fp - fn
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

    def all_reduce(self, device) -> Counts:
        """The counts of all processes of a torchrun job; these alone without one. Exact for the pixels."""
        import torch

        import devices

        values = torch.tensor([getattr(self, f.name) for f in fields(self)], dtype=torch.float64)  # below 2**53
        sums = devices.all_reduce_sum(values, device).tolist()
        return Counts(*(type(f.default)(value) for f, value in zip(fields(self), sums, strict=True)))

    # Each is 1 where there is nothing to divide by, as with two empty masks.
    dice = property(lambda self: _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn))
    iou = property(lambda self: _ratio(self.tp, self.tp + self.fp + self.fn))
    precision = property(lambda self: _ratio(self.tp, self.tp + self.fp))
    recall = property(lambda self: _ratio(self.tp, self.tp + self.fn))
    boundary_iou = property(lambda self: _ratio(self.boundary_inter, self.boundary_union))

    @property
    def bce(self) -> float:
        return self.bce_sum / self.bce_pixels if self.bce_pixels else float("nan")

    @property
    def predicted_positive_rate(self) -> float:
        """The fraction of all pixels that were called face; on pictures without a face the false-positive rate."""
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


class SplitCounts:
    """Counts of one split at several thresholds {name: logit}, and picture by picture at the first of them."""

    def __init__(self, thresholds: dict[str, float]):
        self.thresholds, self.pooled = thresholds, {name: Counts() for name in thresholds}
        self.per_picture: list[tuple[str, Counts]] = []

    def add(self, name: str, logits: np.ndarray, target: np.ndarray) -> None:
        """One picture: logits float (H, W), target boolean (H, W)."""
        for i, (key, logit) in enumerate(self.thresholds.items()):
            one = Counts().add(logits > logit, target)
            if i == 0:
                one.add_bce(logits, target)
                self.per_picture.append((name, one))
            self.pooled[key] += one
