"""Masks over time: calm where the picture is still, and made with no more work than the video needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from drawing import scaled

SIDE = 192  # pixels; two frames are compared at this size
UNLIKE = 10.0  # grey levels by which a pixel differs whose past counts for little (a factor of e)
GRAIN = 5.0  # grey levels; where more than half of a frame differs by more than this, it is no grain but movement
CUT = 0.5  # fraction of the frame that changes at a cut
CHANGED = 0.02  # fraction of a face, or of the frame outside the faces, whose change makes old masks or boxes unfit
COARSE_STRIDE = 10  # frames; so often at least, all of a frame is searched for faces
STEADY = 0.05  # of the square's side; a face that moved by less keeps its square
BORDER = 0.04  # of the square's side; a face nearer to its border than this may go on beyond it


def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Similarity of each pixel's surroundings in two small frames, grain apart: float32 (h, w), 1 to 0."""
    difference = cv2.blur(cv2.absdiff(a, b).max(axis=2).astype(np.float32), (3, 3))
    grain = min(GRAIN, float(np.median(difference)))
    difference = np.maximum(0, cv2.dilate(difference, np.ones((5, 5))) - 2 * grain)
    return np.exp(-((difference / UNLIKE) ** 2))


class Tracker:
    """Segments the frames of a video one after the other. With two passes, known faces are followed by the fine pass
    alone; the coarse one is made every `COARSE_STRIDE` frames, after a cut, where much changes beside the faces, and
    where a face is lost, found, or as large as its square."""

    def __init__(self, segmenter, follow: bool):
        self.segmenter, self.boxes, self.age = segmenter, [], 0
        self.follow = follow and getattr(segmenter, "passes", 1) == 2

    def __call__(self, frame: np.ndarray, alike: np.ndarray | None) -> np.ndarray:
        """Logits float32 (H, W) of a frame uint8 (H, W, 3); `alike` is its likeness to the one before."""
        if not self.follow:
            return self.segmenter.logits([frame])[0]
        before, self.age = self.boxes, self.age + 1
        if before and alike is not None and self.age < COARSE_STRIDE and self._little_beside(alike, frame.shape):
            logits = self.segmenter.logits([frame], [before])[0]
            self.boxes, inside = self._found(logits, before)
            if inside and len(self.boxes) == len(before):
                return logits
        logits, self.age = self.segmenter.logits([frame])[0], 0
        self.boxes, _ = self._found(logits, [])
        return logits

    def _little_beside(self, alike: np.ndarray, shape: tuple[int, ...]) -> bool:
        changed, scale = (alike < 0.5).astype(np.uint8), alike.shape[0] / shape[0]
        if changed.mean() > CUT:
            return False
        for x, y, side in self.boxes:
            x0, y0, x1, y1 = (max(0, round(v * scale)) for v in (x, y, x + side, y + side))
            changed[y0:y1, x0:x1] = 0
        return cv2.erode(changed, np.ones((7, 7))).mean() <= CHANGED  # without the thin outlines of what moves slowly

    def _found(self, logits: np.ndarray, squares: list[tuple]) -> tuple[list[tuple], bool]:
        """The squares around the faces, and whether none of those comes near the border of one of `squares`."""
        small = scaled(logits, min(256, max(logits.shape)))
        face, (sy, sx) = small > 0, np.divide(small.shape, logits.shape)
        for x, y, side in squares:
            edges = BORDER * side, (1 - BORDER) * side
            (x0, y0), (x1, y1) = ((max(0, round((x + edge) * sx)), max(0, round((y + edge) * sy))) for edge in edges)
            face[y0:y1, x0:x1] = False
        boxes = [_steady(box, squares) for box in self.segmenter.face_boxes(small, logits.shape, 0.5)]
        return boxes, not face.any()


def _steady(box: tuple, before: list[tuple]) -> tuple:
    """The square of the frame before, if it is nearly the same: a mask made from another one is not quite the same."""
    same = (old for old in before if max(abs(a - b) for a, b in zip(box, old, strict=True)) <= STEADY * box[2])
    return next(same, box)


def masked_frames(
    segmenter, frames: Iterable[tuple], *, threshold: float, frame_stride=1, smooth=0.0, follow=True
) -> Iterator[tuple]:
    """(time, frame, mask uint8 (H, W) 0/255) for each (time, frame uint8 (H, W, 3) RGB).

    Args:
        frame_stride: at least every so many frames are segmented; a mask is kept for those between, until its face
            changes.
        smooth: fraction of the past in a mask, from 0 to below 1, where the frame is as it was.
        follow: two passes need no coarse one where the faces are known; see `Tracker`.
    """
    from inference import to_mask

    track, small, logits, mask, age = Tracker(segmenter, follow), None, None, None, 0
    for time, frame in frames:
        now, age = scaled(frame, min(SIDE, max(frame.shape[:2]))), age + 1
        now = cv2.GaussianBlur(now, (0, 0), 1.0)  # without most of the grain
        alike = likeness(small, now) if logits is not None and logits.shape == frame.shape[:2] else None
        if alike is None or age >= frame_stride or not _is_still(mask, alike):
            past, logits, small, age = logits, track(frame, alike), now, 0
            if smooth > 0:
                logits = np.clip(logits, -8, 8)  # else one frame of extreme logits outweighs many
                if alike is not None:
                    logits += smooth * cv2.resize(alike, logits.shape[::-1]) * (past - logits)
            mask = to_mask(logits, threshold)
        yield time, frame, mask


def _is_still(mask: np.ndarray, alike: np.ndarray) -> bool:
    """Whether the face of a mask, and what is just beside it, has not changed; without a face, all of the frame."""
    near = cv2.resize(mask, alike.shape[::-1], interpolation=cv2.INTER_AREA)
    near = cv2.dilate(near, np.ones((5, 5))) > 0 if near.any() else np.ones(alike.shape, bool)
    return float((alike[near] < 0.5).mean()) <= CHANGED


def flicker(masks: list[np.ndarray]) -> float:
    """How much masks, bool (H, W), change from frame to frame: the mean of 1 - IoU of neighbours."""
    return float(np.mean([(a ^ b).sum() / max(1, (a | b).sum()) for a, b in itertools.pairwise(masks)]))
