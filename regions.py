"""Connected regions of masks: which belong to one face, and which are specks."""

from __future__ import annotations

import cv2
import numpy as np


def merge_boxes(boxes: list[tuple]) -> list[tuple]:
    """Join boxes (x0, y0, x1, y1) that belong to one face, such as the parts above and below spectacles.

    Two are joined whose distance is less than a quarter of the larger one, unless the result would be 1.7 times as
    large as the largest part in it: faces side by side stay apart, and specks do not chain.
    """
    groups = sorted(((*b, _side(b)) for b in boxes), key=lambda g: -g[4])  # the last: the side of the largest part
    merged = True
    while merged:
        merged = False
        for i, a in enumerate(groups):
            for j in range(i + 1, len(groups)):
                b = groups[j]
                union = min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])
                core = max(a[4], b[4])
                near = _distance(a, b) < 0.25 * core
                if near and _side(union) <= 1.7 * core:
                    groups[i] = (*union, core)
                    del groups[j]
                    merged = True
                    break
            if merged:
                break
    return [g[:4] for g in groups]


def _side(box: tuple) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _distance(a: tuple, b: tuple) -> float:
    """How far apart two boxes (x0, y0, x1, y1) are along the axis that parts them more; 0 where they overlap."""
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3], 0.0)


def remove_small_components(mask: np.ndarray, share: float = 0.02) -> np.ndarray:
    """A predicted mask without specks and pinholes: parts, and holes, smaller than `share` of the largest part."""
    n, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    if n < 2:
        return mask
    least = share * stats[1:, cv2.CC_STAT_AREA].max()
    kept = np.where(stats[:, cv2.CC_STAT_AREA] >= least, 255, 0).astype(np.uint8)
    kept[0] = 0
    mask = kept[labels]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(255 - mask)
    return np.where((labels > 0) & (stats[labels, cv2.CC_STAT_AREA] < least), 255, mask).astype(np.uint8)
