"""Weights files averaged into one (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482), stored in 16 bits.

    python -m robust.average runs/lite-2/model.best.pth --out weights/lite.pth --size 320 --confidence 0.9

One file is only stored anew, with how it is to be used: the size of both passes, and the confidence (see inference.py).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import torch

import model
from common import UserError, exit_code, number


def average(paths: list[Path]) -> tuple[dict, model.Info]:
    """The mean of the weights of files of one network, and what the first says of them. Raises UserError: a file cannot
    be read, or is of another network."""
    states, infos = zip(*(model.read_state(path) for path in paths), strict=True)
    for path, info, state in zip(paths, infos, states, strict=True):
        if info.model != infos[0].model or state.keys() != states[0].keys():
            raise UserError(f"{path} holds another network than {paths[0]}.")
    mean = dict(states[0])
    for key in [key for key, value in mean.items() if value.is_floating_point()]:
        mean[key] = torch.stack([state[key] for state in states]).mean(0)
    return mean, infos[0]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m robust.average", description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    size, confidence = number(int, 32, model.MAX_SIZE, "a size in pixels"), number(float, 0, 1, "a number from 0 to 1")
    parser.add_argument("--size", type=size, required=True, help="side of the square that each pass sees, pixels")
    parser.add_argument("--confidence", type=confidence, default=model.Info.confidence)
    args = parser.parse_args(argv)

    def work() -> None:
        mean, info = average(args.weights)
        info = replace(info, size=args.size, passes=2, confidence=args.confidence)
        model.save_state(mean, args.out, info, half=True)
        print(f"{args.out}: SHA-256 {hashlib.sha256(args.out.read_bytes()).hexdigest()}")  # which goes into const.py

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
