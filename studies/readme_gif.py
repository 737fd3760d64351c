"""A sheet of paper slides over a bespectacled face, and the mask avoids both: a picture of the README.

python -m studies.readme_gif                               docs/paper.gif from test_path/bryan.png
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

import const
from common import exit_code
from drawing import overlay, parse_color, save_gif
from main import Runner
from pictures import read_picture
from robust import occluders

FRAMES, FPS, SIDE = 48, 12, 345


def paper_slides(photo: np.ndarray) -> Iterator[np.ndarray]:
    """Frames uint8 (SIDE, SIDE, 3): a written sheet comes in from the left, crosses the picture, and leaves."""
    photo = cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    sheet = occluders.paper(np.random.default_rng(3))
    h, w = sheet.shape[:2]
    scale = 0.5 * SIDE / w
    for t in np.linspace(0, 1, FRAMES):
        x, y = SIDE * (-0.35 + 1.7 * t), SIDE * (0.5 - 0.08 * np.sin(2 * np.pi * t))
        matrix = cv2.getRotationMatrix2D((w / 2, h / 2), -12 * np.sin(2 * np.pi * t), scale)
        matrix[:, 2] += (x - w / 2, y - h / 2)
        alpha = cv2.warpAffine(np.full((h, w), 255, np.uint8), matrix, (SIDE, SIDE)).astype(np.float32) / 255
        moved = cv2.warpAffine(sheet, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
        yield occluders.blend(moved, photo, alpha)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.readme_gif", description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path, default=const.TEST_DIR / "bryan.png")
    parser.add_argument("--out", type=Path, default=const.DIR_PATH / "docs" / "paper.gif")
    parser.add_argument("--weights", default="bundled")
    args = parser.parse_args(argv)

    def work() -> None:
        runner, color = Runner().load(args.weights), parse_color(const.OVERLAY_COLOR)
        frames = paper_slides(read_picture(args.photo))
        save_gif((overlay(f, runner.predict_image(f), color, const.OVERLAY_ALPHA) for f in frames), args.out, fps=FPS)
        print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
