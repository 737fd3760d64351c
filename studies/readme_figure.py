"""The figures of README and model card: faces behind photographed occluders, where the network fails, a moving sheet.

    python -m studies.readme_figure              docs/occluded.jpg, which opens the README
    python -m studies.readme_figure limits       docs/limits.jpg: where the bundled network fails
    python -m studies.readme_figure results      docs/results.jpg: what `predict` makes of a photograph
    python -m studies.readme_figure paper        docs/paper.gif

Photographs and occluders are freely licensed (test_path/, docs/occluders/). No mask of them was drawn by hand: the
target is the prediction for the photograph without the occluder, minus the occluder.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import const
from common import exit_code, write_bytes
from drawing import Output, encode, overlay, parse_color
from extras.video import writing_gif
from main import Runner
from pictures import read_picture, to_array
from robust import occluders
from robust.occluders import FACE_CENTRE, FACE_WIDTH, SIZE
from studies import pasted

OCCLUDERS = const.DIR_PATH / "docs" / "occluders"
HANDS = ("fingers", "fist")
SHOWN = [  # (photograph, occluder, seed); the seeds were chosen by the look of the input, before any prediction
    ("chris", "fingers", 7), ("bryan", "page", 6), ("luciano", "fist", 4), ("astronaut", "cup", 5),
    ("obama", "fingers", 6), ("chris", "saucer", 5), ("astronaut", "fist", 2), ("luciano", "cup", 6),
]  # fmt: skip
TILE, WIDE_TILE = 180, 260  # pixels
FRAMES, FPS, SIDE = 48, 12, 345  # of the GIF
HIDDEN = (0.15, 0.5)  # of the face: less, or more, shows little
CROP = slice(70, 490), slice(46, 466)  # of the square, around the face


def face_square(runner, photo):
    """The photo, scaled and extended so that its face is as wide as in CelebAMask-HQ, and the slices of its square."""
    x, y, w, h = cv2.boundingRect(runner.predict_image(photo))
    scale = FACE_WIDTH / w
    photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    photo = cv2.copyMakeBorder(photo, SIZE, SIZE, SIZE, SIZE, cv2.BORDER_REPLICATE)
    left, top = (round((a + b / 2) * scale - c) + SIZE for a, b, c in ((x, w, FACE_CENTRE[0]), (y, h, FACE_CENTRE[1])))
    return photo, (slice(top, top + SIZE), slice(left, left + SIZE))


def occluded(face, mask, kind: str, seed: int):
    """The face uint8 (512, 512, 3) behind an occluder, and what is left of its mask. `kind` is a file of
    docs/occluders/, or one that `robust.occluders` draws."""
    if kind in occluders.KINDS or kind == "glasses":
        return occluders.draw_occluder(np.random.default_rng(seed), face, mask, kind=kind)[:2]
    with Image.open(OCCLUDERS / f"{kind}.webp") as file:
        cut = np.asarray(file.convert("RGBA"))
    for attempt in range(200):
        rng = np.random.default_rng((seed, attempt))
        image, left, behind = pasted.paste(rng, face, mask, cut, "hands" if kind in HANDS else "objects")
        if HIDDEN[0] < behind.sum() / (mask > 0).sum() < HIDDEN[1]:
            break
    return image, left


def column(picture, masks: list, side: int):
    """A picture, and below it the same overlaid with each of the masks, all side x side."""
    color = parse_color(const.OVERLAY_COLOR)
    pictures = [picture, *(overlay(picture, mask, color, const.OVERLAY_ALPHA) for mask in masks)]
    return np.vstack([cv2.resize(each, (side, side), interpolation=cv2.INTER_AREA) for each in pictures])


def opening(runner):
    """Input, target and prediction: three rows of eight."""
    columns = []
    for name, kind, seed in SHOWN:
        photo, square = face_square(runner, read_picture(next(const.TEST_DIR.glob(f"{name}.*"))))
        photo[square], target = occluded(photo[square], runner.predict_image(photo)[square], kind, seed)
        predicted = runner.predict_image(photo)[square]
        columns.append(column(photo[square][CROP], [target[CROP], predicted[CROP]], TILE))
    return np.hstack(columns)


def limits(runner):
    """For the model card, input and prediction: a wide neck, skin on skin, a printed face and a hand."""
    neck, chris, obama = (read_picture(const.TEST_DIR / name) for name in ("luciano.png", "chris.jpg", "obama.jpg"))
    photo, square = face_square(runner, chris)
    fingers = occluded(photo[square], runner.predict_image(photo)[square], "fingers", 7)[0]
    obama[640:900, 330:560] = cv2.resize(chris[100:620, 100:560], (230, 260), interpolation=cv2.INTER_AREA)
    pictures = (neck, fingers, obama[-obama.shape[1] :])
    return np.hstack([column(p, [runner.predict_image(p)], WIDE_TILE) for p in pictures])


def results(runner):
    """Overlay, contour, cut-out, pixelated, blurred; uint8 (H, W, 3)."""
    photo = read_picture(const.TEST_DIR / "chris.jpg")
    kinds, mask = ("overlay", "contour", "cutout", "pixelated", "blurred"), runner.predict_image(photo)
    drawn = [to_array(Output().draw(kind, photo, mask)) for kind in kinds]
    return np.hstack([cv2.resize(one, (TILE, TILE), interpolation=cv2.INTER_AREA) for one in drawn])


def paper(photo: np.ndarray) -> Iterator[np.ndarray]:
    """Frames uint8 (SIDE, SIDE, 3): a written sheet comes in from the left, crosses the picture, and leaves."""
    photo = cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    sheet = occluders.paper(np.random.default_rng(3))
    for t in np.linspace(0, 1, FRAMES):
        x, y = SIDE * (-0.35 + 1.7 * t), SIDE * (0.5 - 0.08 * np.sin(2 * np.pi * t))
        matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), -12 * np.sin(2 * np.pi * t), 0.5 * SIDE / SIZE)
        matrix[:, 2] += (x - SIZE / 2, y - SIZE / 2)
        alpha = cv2.warpAffine(np.full((SIZE, SIZE), 255, np.uint8), matrix, (SIDE, SIDE)).astype(np.float32) / 255
        moved = cv2.warpAffine(sheet, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
        yield occluders.blend(moved, photo, alpha)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.readme_figure", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=("occluded", "limits", "results", "paper"), default="occluded")
    parser.add_argument("--out", type=Path, help="default: in docs/")
    parser.add_argument("--weights", default="bundled")
    args = parser.parse_args(argv)
    out = args.out or const.DIR_PATH / "docs" / f"{args.name}.{'gif' if args.name == 'paper' else 'jpg'}"

    def work() -> None:
        runner = Runner().load(args.weights)
        if args.name != "paper":
            write_bytes(
                out, encode({"occluded": opening, "limits": limits, "results": results}[args.name](runner), ".jpg")
            )
            print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")
            return
        with writing_gif(out, print) as gif:
            for i, frame in enumerate(paper(read_picture(const.TEST_DIR / "bryan.png"))):
                gif.add(Output().draw("overlay", frame, runner.predict_image(frame)), i / FPS, 1 / FPS)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
