"""How much masks flicker on a still, noisy face, and what `--smooth` does about it.

python -m studies.flicker test_path/chris.jpg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from common import exit_code


def measure(weights: str, picture: Path, noise: float) -> None:
    """Print the frame-to-frame change of masks on 40 noisy frames of a still picture, by the fraction of the past."""
    from extras import video_masks
    from main import Runner
    from pictures import read_picture

    runner, still = Runner().load(weights), read_picture(picture)
    rng = np.random.default_rng(0)
    frames = [np.clip(still + rng.normal(0, noise, still.shape), 0, 255).astype(np.uint8) for _ in range(40)]
    for smooth in (0.0, 0.3, 0.6, 0.8):
        masked = video_masks.masked_frames(runner.segmenter, enumerate(frames), threshold=0.5, smooth=smooth)
        masks = [mask > 0 for *_, mask in masked]
        print(f"--smooth {smooth}: masks change by {video_masks.flicker(masks[10:]):.2%} from frame to frame")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The flicker of masks on a still face, with and without smoothing.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--noise", type=float, default=12.0, help="deviation of the grain, grey levels")
    args = parser.parse_args(argv)
    return exit_code(lambda: measure(args.weights, args.picture, args.noise))


if __name__ == "__main__":
    sys.exit(main())
