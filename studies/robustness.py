"""How weights hold up: whole photographs, occluders, bad light, no face at all; measured as `predict` works.

    python data_preprocessing.py --persons
    python -m studies.robustness --weights bundled --backgrounds DIR --occluders DIR

No file measured here was trained on: the faces are the validation split's, and of the photographs without faces and the
photographed occluders every fifth, in name order, is held out by the robust recipe. Some of what the held-out occluders
show was: see weights/README.md, Data. Occluders and changes have a fixed seed. Writes
`robustness.json` and `robustness.md` to --out; how fast a network is, studies/benchmark.py measures.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

import const
from common import UserError, exit_code, positive, write_text
from data_preprocessing import is_prepared
from main import Runner
from metrics import Counts
from pictures import read_known
from robust import occluders, photographed, scenes
from studies.pasted import pasted_faces
from studies.shared import table, write_json

SEED = 7
SIZE = scenes.SIZE
MANY_POSITIVES = 0.002  # of a picture without a face: more than this is counted as a face found where none is
WIDTHS = ((0.03, 0.06), (0.06, 0.1), (0.1, 0.2), (0.2, 0.45), (0.06, 0.45))  # of faces in composed photographs
SECTIONS = ("faces", "skin tone", "drawn occluders", "photographed occluders", "changes", "photographs", "no face")
Sample = tuple[np.ndarray, np.ndarray]  # image uint8 (H, W, 3), target uint8 (H, W)


# --- Changes of a face: image, target -> image, target ----------------------------------------------------------------
def of_image(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Sample]:
    """A change of the picture alone; values below 0 and above 255 are clipped."""
    return lambda image, target: (np.clip(change(image), 0, 255).astype(np.uint8), target)


def rolled(degrees: float) -> Callable[..., Sample]:
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1.0)
    return lambda image, target: (
        cv2.warpAffine(image, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE),
        cv2.warpAffine(target, matrix, (SIZE, SIZE), flags=cv2.INTER_NEAREST),
    )


def quarter_turns(count: int) -> Callable[..., Sample]:
    """Counter-clockwise, without interpolation."""
    return lambda image, target: tuple(np.ascontiguousarray(np.rot90(part, count)) for part in (image, target))


def jpeg(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 20])[1], cv2.IMREAD_COLOR)


def tiny(image: np.ndarray) -> np.ndarray:
    small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


CHANGES = {
    "greyscale": of_image(lambda x: np.repeat(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)),
    "dim (a quarter of the light)": of_image(lambda x: x * 0.25),
    "overexposed": of_image(lambda x: x * 1.9 + 20),
    "low contrast": of_image(lambda x: x * 0.4 + 80),
    "rolled by 45 degrees": rolled(45),
    "rolled by -30 degrees": rolled(-30),
    "rotated by 90 degrees": quarter_turns(1),
    "rotated by -90 degrees": quarter_turns(-1),
    "upside down": quarter_turns(2),
    "blurred (sigma 4)": of_image(lambda x: cv2.GaussianBlur(x, (0, 0), 4)),
    "JPEG quality 20": of_image(jpeg),
    "noise (sigma 20)": of_image(lambda x: x + np.random.default_rng(SEED).normal(0, 20, x.shape)),
    "64 pixels, enlarged": of_image(tiny),
}


# --- Sets of samples ------------------------------------------------------------------------------------------------
def occluded_faces(composer: scenes.SceneComposer, kind: str) -> Iterator[tuple]:
    """Every face once with a drawn occluder of this kind, textured from the held-out photographs: (image, target, the
    face pixels under it)."""
    for i in range(len(composer.faces)):
        rng = np.random.default_rng((SEED, i))
        face, other = composer.faces[i], composer.faces[int(rng.integers(len(composer.faces)))]
        options = {"photo": composer.photos.draw(rng), "other": (other.image, other.mask), "kind": kind}
        image, mask, _ = occluders.draw_occluder(rng, face.image, face.mask, **options)
        yield image, mask, (face.mask > 127) & (mask <= 127)


def photographs(composer: scenes.SceneComposer, count: int, widths: tuple[float, float]) -> Iterator[Sample]:
    """Composed pictures of 640x480 with one to three of the people, faces `widths` (from, to) of the width."""
    known = [i for i, (_, _, person) in enumerate(composer.faces.entries) if person]  # who can be cut out
    for i in range(count):
        rng = np.random.default_rng((SEED, i))
        people = rng.choice(known, size=min(1 + i % 3, len(known)), replace=False).tolist()
        yield composer.photograph(rng, people, (480, 640), widths)


def skin_tone(image: np.ndarray, mask: np.ndarray) -> float:
    """Individual typology angle of a face, degrees: above 41 light, below 10 dark (Chardon et al. 1991)."""
    lab = cv2.cvtColor((image / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[mask > 127]
    lightness, _, yellow = np.median(lab, axis=0)
    return float(np.degrees(np.arctan2(lightness - 50, yellow)))


def wears_glasses(mask: np.ndarray) -> bool:
    """Whether the mask leaves out both eyes at their usual places, as it does where `eye_g` was annotated."""
    return not any(mask[y - 6 : y + 7, x - 6 : x + 7].any() for x, y in occluders.EYES)


def rows_of(section: str, composer, scenes_count: int) -> Iterator[tuple[str, Iterator[Sample]]]:
    """(name, samples) of each row of a section."""
    store = composer.faces

    def faces(ids=None) -> Iterator[Sample]:
        return ((store[i].image, store[i].mask) for i in (range(len(store)) if ids is None else ids))

    if section == "faces":
        yield "clean", faces()
        if worn := [i for i in range(len(store)) if wears_glasses(store[i].mask)]:
            yield "with glasses", faces(worn)
    elif section == "skin tone":
        order = np.argsort([skin_tone(*sample) for sample in faces()])
        for name, ids in zip(("darkest", "middle", "lightest"), np.array_split(order, 3), strict=True):
            yield f"{name} third", faces(ids)
    elif section == "drawn occluders":
        for kind in ("glasses", *occluders.KINDS):
            yield kind, occluded_faces(composer, kind)
    elif section == "photographed occluders":
        for kind in photographed.KINDS:
            yield kind, pasted_faces(store, composer.occluders, kind)
    elif section == "changes":
        for name, change in CHANGES.items():
            yield name, (change(*sample) for sample in faces())
    elif section == "photographs":
        for low, high in WIDTHS:
            yield f"faces {low:.0%} to {high:.0%} of the width", photographs(composer, scenes_count, (low, high))
    elif section == "no face":
        photos = map(read_known, composer.photos.paths)
        yield "held-out photographs", ((photo, np.zeros(photo.shape[:2], np.uint8)) for photo in photos)


# --- Measuring ------------------------------------------------------------------------------------------------------
def measure(segmenter, samples) -> dict:
    """Figures of counts pooled over (image, target), and the mean Dice of the tenth of pictures where it is lowest.

    A third item, boolean (H, W), marks the face pixels under an occluder; of these the fraction predicted as face is
    `occluded_false_positive_rate`. What is undefined is None: most figures without a face in the targets, and the
    number of pictures with many false positives where there is one.
    """
    each, occluded, wrong = [], 0, 0
    for image, target, *hidden in samples:
        logits = segmenter.logits([image])[0]
        each.append(Counts().add(logits > 0, target > 127).add_bce(logits, target > 127))
        for under in hidden:
            occluded += int(np.count_nonzero(under))
            wrong += int(np.count_nonzero(under & (logits > 0)))
    total = sum(each, Counts())
    lowest = sorted(one.dice for one in each)[: max(1, len(each) // 10)]
    many = sum(one.predicted_positive_rate > MANY_POSITIVES for one in each)
    has_face = total.tp + total.fn > 0
    return {
        **total.summary(),
        "lowest_decile_dice": float(np.mean(lowest)) if has_face else None,
        "predicted_positive_rate": total.predicted_positive_rate,
        "occluded_false_positive_rate": wrong / occluded if occluded else None,
        "pictures_with_many_positives": None if has_face else many,
        "pictures": len(each),
    }


def run(segmenter, args) -> tuple[dict, dict]:
    """The tables of the sections, {section: {row: figures}}, and what was skipped, {section: what it needs}."""
    folders = (args.data / f"{kind}_val" for kind in ("images", "masks", "persons"))
    store = scenes.FaceStore(*folders, limit=args.limit)
    held_out = scenes.find_backgrounds(args.backgrounds, held_out=True) if args.backgrounds else []
    cutouts = photographed.OccluderStore(args.occluders, held_out=True) if args.occluders else None
    composer = scenes.SceneComposer(store, scenes.PhotoStore(held_out), cutouts)
    needs = {}
    if not cutouts:
        needs["photographed occluders"] = "hands, objects, face masks and textures in --occluders"
    if not held_out:
        needs["no face"] = "at least five photographs in --backgrounds"
    if not any(person for _, _, person in store.entries):
        needs["photographs"] = "silhouettes of the people: python data_preprocessing.py --persons"
    tables, skipped = {}, {}
    for section in args.only:
        if section in needs:
            skipped[section] = needs[section]
            print(f"{section}: skipped, it needs {needs[section]}")
            continue
        for name, samples in rows_of(section, composer, args.scenes):
            figures = tables.setdefault(section, {})[name] = measure(segmenter, samples)
            cells = (f"{title} {cell}" for title, cell in cells_of(figures).items() if cell != "-")
            print(f"{section:15} {name:32} {'  '.join(cells)}")
    return tables, skipped


def cells_of(figures: dict) -> dict[str, str]:
    """A row's figures by the table's heads; a dash for what is undefined. "Lowest decile": the mean Dice of the tenth
    of pictures where it is lowest."""
    has_face = figures["dice"] is not None  # else every positive is a false one
    positive_rate = figures["predicted_positive_rate"]
    cells = {
        "Dice": (figures["dice"], ".4f"),
        "IoU": (figures["iou"], ".4f"),
        "boundary IoU": (figures["boundary_iou"], ".4f"),
        "lowest decile": (figures["lowest_decile_dice"], ".4f"),
        "predicted positive": (positive_rate if has_face else None, ".2%"),
        "false positive": (None if has_face else positive_rate, ".2%"),
        f"pictures over {MANY_POSITIVES:.1%}": (figures["pictures_with_many_positives"], "d"),
        "false positive on occluded pixels": (figures["occluded_false_positive_rate"], ".2%"),
        "pictures": (figures["pictures"], "d"),
    }
    return {title: "-" if value is None else format(value, form) for title, (value, form) in cells.items()}


def to_markdown(tables: dict, skipped: dict) -> str:
    """The figures in one table, and what was skipped."""
    rows = [{"": f"{section}: {row}", **cells_of(one)} for section, rows in tables.items() for row, one in rows.items()]
    left_out = [f"{section}: skipped, it needs {needed}" for section, needed in skipped.items()]
    return "\n\n".join([table(rows), *left_out]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.robustness", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--weights", default="bundled", help="a file, 'bundled' or 'published'")
    add("--data", type=Path, default=const.CELEB_DIR, help="prepared folders, with persons_val")
    add("--backgrounds", type=Path, help="photographs without faces; every fifth is used")
    add("--occluders", type=Path, help="photographed hands/, objects/, masks/, textures/; every fifth of each is used")
    add("--limit", type=positive, help="the first N validation faces alone")
    add("--out", type=Path, default=const.RUNS_DIR / "robustness")
    add("--scenes", type=positive, default=150, help="composed photographs per row")
    add("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="these tables alone")
    add("--passes", type=int, choices=(1, 2))
    add("--flip", action="store_true")
    add("--precision", choices=("fp32", "bf16", "int8"), default="fp32")
    add("--device", default="auto")
    args = parser.parse_args(argv)

    def work() -> None:
        if not is_prepared(args.data):
            raise UserError(f"{args.data} holds no prepared faces; run `python data_preprocessing.py --persons`.")
        for folder in (args.backgrounds, args.occluders):
            if folder is not None and not folder.is_dir():
                raise UserError(f"There is no folder {folder}.")
        runner = Runner(args.device).load(args.weights, flip=args.flip, passes=args.passes, precision=args.precision)
        tables, skipped = run(runner.segmenter, args)
        about = {**runner.described(), "limit": args.limit, "skipped": skipped}
        write_json(args.out / "robustness.json", about | tables)
        write_text(args.out / "robustness.md", to_markdown(tables, skipped))
        print(f"robustness.json and robustness.md are in {args.out}")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
