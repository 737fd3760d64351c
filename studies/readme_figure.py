"""Eight faces behind photographed occluders, the target and the prediction: the figure that opens the README.

    python -m studies.readme_figure             docs/occluded.jpg
    python -m studies.readme_figure --limits    docs/limits.jpg: where the bundled network fails

Photographs and occluders are freely licensed (test_path/, docs/occluders/). No mask of them was drawn by hand: the
target is the prediction for the photograph without the occluder, minus the occluder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import const
from common import exit_code

OCCLUDERS = const.DIR_PATH / "docs" / "occluders"
HANDS = ("fingers", "fist")
SHOWN = [  # (photograph, occluder, seed); the seeds were chosen by the look of the input, before any prediction
    ("chris", "fingers", 7), ("bryan", "page", 6), ("luciano", "fist", 4), ("astronaut", "cup", 5),
    ("obama", "fingers", 6), ("chris", "saucer", 5), ("astronaut", "fist", 2), ("luciano", "cup", 6),
]  # fmt: skip
TILE = 180  # pixels
HIDDEN = (0.15, 0.5)  # of the face: less, or more, shows little
CROP = slice(70, 490), slice(46, 466)  # of the square, around the face


def face_square(runner, photo):
    """The photo, scaled and extended so that its face is as wide as in CelebAMask-HQ, and the slices of its square."""
    import cv2

    from robust.occluders import FACE_CENTRE, FACE_WIDTH, SIZE

    x, y, w, h = cv2.boundingRect(runner.predict_image(photo))
    scale = FACE_WIDTH / w
    photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    photo = cv2.copyMakeBorder(photo, SIZE, SIZE, SIZE, SIZE, cv2.BORDER_REPLICATE)
    left, top = (round((a + b / 2) * scale - c) + SIZE for a, b, c in ((x, w, FACE_CENTRE[0]), (y, h, FACE_CENTRE[1])))
    return photo, (slice(top, top + SIZE), slice(left, left + SIZE))


def occluded(face, mask, kind: str, seed: int):
    """The face uint8 (512, 512, 3) behind an occluder, and what is left of its mask.

    Args:
        kind: a file of docs/occluders/, or one that `robust.occluders` draws.
    """
    import numpy as np
    from PIL import Image

    from robust import occluders
    from studies import pasted

    if kind in occluders.KINDS:
        return occluders.draw_occluder(np.random.default_rng(seed), face, mask, kind=kind)[:2]
    with Image.open(OCCLUDERS / f"{kind}.webp") as file:
        cut = np.asarray(file.convert("RGBA"))
    for attempt in range(200):
        rng = np.random.default_rng((seed, attempt))
        image, left, behind = pasted.paste(rng, face, mask, cut, "hands" if kind in HANDS else "objects")
        if HIDDEN[0] < behind.sum() / (mask > 0).sum() < HIDDEN[1]:
            break
    return image, left


def draw(out: Path, weights: str) -> None:
    """Write the figure: three rows of eight."""
    import cv2
    import numpy as np

    from common import write_bytes
    from drawing import encode, overlay, parse_color
    from main import Runner
    from pictures import find_jobs, read_picture

    runner, columns = Runner().load(weights), []
    paths = {job.name: job.path for job in find_jobs([const.TEST_DIR], out)}
    for name, kind, seed in SHOWN:
        photo, square = face_square(runner, read_picture(paths[name]))
        photo[square], target = occluded(photo[square], runner.predict_image(photo)[square], kind, seed)
        face, masks = photo[square][CROP], (target, runner.predict_image(photo)[square])
        color = parse_color(const.OVERLAY_COLOR)
        rows = [face, *(overlay(face, mask[CROP], color, const.OVERLAY_ALPHA) for mask in masks)]
        columns.append(cv2.resize(np.vstack(rows), (TILE, 3 * TILE), interpolation=cv2.INTER_AREA))
    write_bytes(out, encode(np.hstack(columns), ".jpg"))
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


def draw_limits(out: Path, weights: str) -> None:
    """Write the figure of the model card: a wide neck, skin on skin, a printed face and a hand."""
    import cv2
    import numpy as np

    from common import write_bytes
    from drawing import encode, overlay, parse_color
    from main import Runner
    from pictures import read_picture

    runner, columns = Runner().load(weights), []
    neck, chris, obama = (read_picture(const.TEST_DIR / name) for name in ("luciano.png", "chris.jpg", "obama.jpg"))
    square, crop = face_square(runner, chris)
    fingers = occluded(square[crop], runner.predict_image(square)[crop], "fingers", 7)[0]
    printed = obama.copy()
    printed[640:900, 330:560] = cv2.resize(chris[100:620, 100:560], (230, 260), interpolation=cv2.INTER_AREA)
    for image in (neck, fingers, printed[-obama.shape[1] :]):
        found = overlay(image, runner.predict_image(image), parse_color(const.OVERLAY_COLOR), const.OVERLAY_ALPHA)
        columns.append(np.vstack([cv2.resize(i, (260, 260), interpolation=cv2.INTER_AREA) for i in (image, found)]))
    write_bytes(out, encode(np.hstack(columns), ".jpg"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.readme_figure", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="default docs/occluded.jpg or docs/limits.jpg")
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--limits", action="store_true", help="where the network fails, for the model card")
    args = parser.parse_args(argv)
    name, figure = ("limits.jpg", draw_limits) if args.limits else ("occluded.jpg", draw)
    return exit_code(lambda: figure(args.out or const.DIR_PATH / "docs" / name, args.weights))


if __name__ == "__main__":
    raise SystemExit(main())
