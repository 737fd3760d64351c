"""Masks over time, by the options for videos: how much they flicker on a still, noisy face, how much of a moving bar or
hand before a face is predicted as face, and how many passes of the network `predict` makes.

python -m studies.flicker test_path/chris.jpg
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np

from common import exit_code
from extras import video_masks
from main import Runner
from pictures import read_picture
from robust import occluders

FRAMES, STEP = 40, 9  # pixels a frame
OPTIONS = [(0.0, 1), (0.3, 1), (0.6, 1), (0.8, 1), (0.0, 2), (0.0, 4), (0.6, 4)]  # --smooth, --frame-stride


def sliding(photo: np.ndarray, mask: np.ndarray, kind: str, noise: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(frame, where the occluder hides the face of `mask`) of a bar or a hand that crosses it from left to right, or of
    the photograph alone."""
    rng, (x, y, _, h) = np.random.default_rng(5), cv2.boundingRect(mask)
    if kind == "hand":
        over, alpha = occluders.hand(rng, (0.9 * photo[mask > 0].mean(axis=0)).astype(np.float32))
        left, top, wide, high = cv2.boundingRect((alpha > 0.1).astype(np.uint8))
        scale = 0.9 * h / high
        over, alpha = (
            cv2.resize(p[top : top + high, left : left + wide], None, fx=scale, fy=scale) for p in (over, alpha)
        )
    else:
        alpha = np.full((photo.shape[0], photo.shape[1] // 6), kind == "bar", np.float32)
        over = np.full((*alpha.shape, 3), (70, 95, 60), np.uint8)
    for i in range(FRAMES):
        move = np.float32([[1, 0, x - alpha.shape[1] // 2 + STEP * i], [0, 1, y + h / 4 if kind == "hand" else 0]])
        opacity, moved = (cv2.warpAffine(p, move, photo.shape[1::-1]) for p in (alpha, over))
        frame = occluders.blend(moved, photo, opacity) + rng.normal(0, noise, photo.shape)
        yield frame.clip(0, 255).astype(np.uint8), (opacity > 0.5) & (mask > 0)


def measure(weights: str, picture: Path, noise: float) -> None:
    """Print the table."""
    segmenter, photo = Runner().load(weights).segmenter, read_picture(picture)
    clips = {kind: list(sliding(photo, segmenter.mask(photo), kind, noise)) for kind in ("still", "bar", "hand")}
    print("smooth  stride  flicker  bar as face  hand as face  passes a frame (still, bar, hand)")
    for smooth, stride in OPTIONS:
        masks, made = {}, []
        for kind, clip in clips.items():
            frames = enumerate(frame for frame, _ in clip)
            masked = video_masks.masked_frames(segmenter, frames, threshold=0.5, smooth=smooth, frame_stride=stride)
            with patch.object(segmenter, "_run", wraps=segmenter._run) as passes:
                masks[kind] = np.stack([mask > 0 for *_, mask in masked])
            made.append(f"{passes.call_count / FRAMES:.2f}")
        called = [float(masks[k][np.stack([o for _, o in clips[k]])].mean()) for k in ("bar", "hand")]
        flicker = video_masks.flicker(list(masks["still"][10:]))
        print(f"{smooth:6}  {stride:6}  {flicker:7.2%}  {called[0]:15.2%}  {called[1]:16.2%}  {', '.join(made)}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.flicker", description=__doc__.split("\n\n")[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--noise", type=float, default=12.0, help="deviation of the grain, grey levels")
    args = parser.parse_args(argv)
    return exit_code(lambda: measure(args.weights, args.picture, args.noise))


if __name__ == "__main__":
    sys.exit(main())
