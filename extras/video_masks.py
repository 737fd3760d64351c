"""Masks over time: segmented frame by frame, calm, and no more often than the video needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

CUT = 40.0  # mean grey-level change, of 255, between two frames that is taken for a cut: smoothing starts anew


class Smoother:
    """Logits averaged over time: `keep` of the past, the rest of the present; a cut in the video starts anew."""

    def __init__(self, keep: float):
        self.keep, self.past, self.thumbnail = keep, None, None

    def __call__(self, logits: np.ndarray, frame: np.ndarray) -> np.ndarray:
        thumbnail = cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        cut = self.thumbnail is None or float(np.abs(thumbnail - self.thumbnail).mean()) > CUT
        self.thumbnail = thumbnail
        bounded = np.clip(logits, -8, 8)  # else one frame of extreme logits outweighs many
        if cut or self.past is None or self.past.shape != logits.shape:
            self.past = bounded
        else:
            self.past = cv2.addWeighted(self.past, self.keep, bounded, 1 - self.keep, 0)
        return self.past


def masked_frames(
    segmenter, frames: Iterable[tuple], *, threshold: float, frame_stride: int = 1, smooth: float = 0.0
) -> Iterator[tuple]:
    """(time, frame, mask uint8 (H, W) 0/255) for each (time, frame uint8 (H, W, 3) RGB); every `frame_stride`th is
    segmented, its mask held between."""
    from inference import to_mask

    smoother, mask = Smoother(smooth) if smooth > 0 else None, None
    for i, (time, frame) in enumerate(frames):
        if i % frame_stride == 0 or mask is None or mask.shape != frame.shape[:2]:
            logits = segmenter.logits([frame])[0]
            mask = to_mask(smoother(logits, frame) if smoother else logits, threshold)
        yield time, frame, mask


def flicker(masks: list[np.ndarray]) -> float:
    """How much masks change from frame to frame: the mean of 1 - IoU of neighbours."""
    changes = []
    for a, b in itertools.pairwise(masks):
        union = np.count_nonzero(a | b)
        changes.append(1 - np.count_nonzero(a & b) / union if union else 0.0)
    return float(np.mean(changes)) if changes else 0.0
