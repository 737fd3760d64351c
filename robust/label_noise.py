"""Faces whose label and a trained network disagree inside the face: hands and microphones annotated as skin.

    python -m robust.label_noise --weights runs/lite-1/model.best.pth --data CelebAMask-HQ --split train --out ids.txt

The rule: a connected region that the label calls face and one pass of the network does not is at least 1.5 % of the
labelled face. An opening removes what is uncertain along contours.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

import const
import dataset
import devices
import model as networks
from common import exit_code, write_text
from inference import Segmenter
from pictures import read_known

PROBABILITY = 0.2  # below which a pixel counts as not face
OPENING = 13  # pixels at 512x512
FRACTION = 0.015  # of the labelled face


def disagreement(probability: np.ndarray, mask: np.ndarray) -> float:
    """The largest region that the label alone calls face, as a fraction of the face: probability float (512, 512),
    mask uint8 (512, 512), 0/255."""
    alone = ((mask > 127) & (probability < PROBABILITY)).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (OPENING, OPENING))
    _, _, stats, _ = cv2.connectedComponentsWithStats(cv2.morphologyEx(alone, cv2.MORPH_OPEN, kernel))
    return stats[1:, cv2.CC_STAT_AREA].max(initial=0) / max(1, np.count_nonzero(mask > 127))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m robust.label_noise", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, metavar="F", help="a file, 'bundled' or 'published'")
    parser.add_argument("--data", type=Path, default=const.CELEB_DIR, help="prepared folders")
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="the ids, one a line")
    args = parser.parse_args(argv)

    def work() -> None:
        net, info = networks.load(networks.find_weights(args.weights))
        segmenter, ids = Segmenter(net, info, devices.find_device(), passes=1), []
        pairs = dataset.Celeb(args.data / f"images_{args.split}", args.data / f"masks_{args.split}").pairs
        for image_path, mask_path in tqdm(pairs, unit="face", disable=None):
            mask = cv2.resize(read_known(mask_path, grey=True), (512, 512), interpolation=cv2.INTER_NEAREST_EXACT)
            logits = cv2.resize(segmenter.logits([read_known(image_path)])[0], (512, 512))
            if disagreement(1 / (1 + np.exp(-logits)), mask) >= FRACTION:
                ids.append(image_path.stem)
        write_text(args.out, "".join(f"{name}\n" for name in ids))
        print(f"{len(ids)} of {len(pairs)} faces of {args.split}: {args.out}")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
