"""Eight occluded faces and their masks: the figure that opens the README.

python -m studies.readme_figure                          docs/occluded.jpg, with drawn occluders
python -m studies.readme_figure --occluders DIR --out F  photographed ones, of those held out of training
"""

from __future__ import annotations

import argparse
from pathlib import Path

import const
from common import exit_code

SHOWN = [  # (photograph, occluder, seed), chosen by the look of the occluders
    ("chris", "hand", 0), ("bryan", "sheet", 0), ("luciano", "mask", 0), ("astronaut", "microphone", 0),
    ("obama", "hand", 1), ("chris", "mug", 0), ("astronaut", "hair", 0), ("luciano", "glasses", 0),
]  # fmt: skip
PHOTOGRAPHED = {"hand": "hands", "mask": "masks"}  # everything else becomes an object
TILE = 240  # pixels
HIDDEN = (0.1, 0.55)  # of the face: less, or more, shows little


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


def occluded(face, mask, kind: str, seed: int, store):
    """The face uint8 (512, 512, 3) behind the first occluder of this seed that hides enough of it, and not too much;
    and what is left of its mask."""
    import numpy as np

    from common import UserError
    from robust import occluders, photographed

    for attempt in range(200):
        rng = np.random.default_rng((seed, attempt))
        if store is None:
            image, left, _ = occluders.draw_occluder(rng, face, mask, kind=kind)
        else:
            image, left, _ = photographed.lay(rng, face, mask, store, kind=PHOTOGRAPHED.get(kind, "objects"))
        if HIDDEN[0] < 1 - (left > 0).sum() / (mask > 0).sum() < HIDDEN[1] or kind in ("glasses", "hair"):
            return image, left
    raise UserError(f"No {kind} of seed {seed} hides between {HIDDEN[0]:.0%} and {HIDDEN[1]:.0%} of the face.")


def draw(photos: Path, out: Path, weights: str, occluder_folder: Path | None) -> None:
    """Write the figure: four photographs above their masks, twice."""
    import cv2
    import numpy as np

    from common import write_bytes
    from drawing import encode, overlay, parse_color
    from main import Runner
    from pictures import find_jobs, read_picture
    from robust.photographed import OccluderStore

    runner, columns = Runner().load(weights), []
    store = OccluderStore(occluder_folder, held_out=True) if occluder_folder else None
    paths = {job.name: job.path for job in find_jobs([photos], out)}
    for name, kind, seed in SHOWN:
        photo, square = face_square(runner, read_picture(paths[name]))
        photo[square] = occluded(photo[square], runner.predict_image(photo)[square], kind, seed, store)[0]
        mask = runner.predict_image(photo)[square]
        face = photo[square][70:490, 46:466]  # 420 pixels around the face
        found = overlay(face, mask[70:490, 46:466], parse_color(const.OVERLAY_COLOR), const.OVERLAY_ALPHA)
        columns.append(cv2.resize(np.vstack([face, found]), (TILE, 2 * TILE), interpolation=cv2.INTER_AREA))
    half = len(columns) // 2
    write_bytes(out, encode(np.vstack([np.hstack(columns[:half]), np.hstack(columns[half:])]), ".jpg"))
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.readme_figure", description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=const.TEST_DIR)
    parser.add_argument("--out", type=Path, default=const.DIR_PATH / "docs" / "occluded.jpg")
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--occluders", type=Path, help="photographed hands/, objects/, masks/, textures/")
    args = parser.parse_args(argv)
    return exit_code(lambda: draw(args.photos, args.out, args.weights, args.occluders))


if __name__ == "__main__":
    raise SystemExit(main())
