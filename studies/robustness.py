"""How weights hold up: whole photographs, covers, bad light, no face at all; measured as `predict` works.

    python data_preprocessing.py --persons
    python -m studies.robustness --weights bundled --backgrounds DIR

Nothing measured here was trained on: the faces are the validation split's, and of the photographs without faces every
fifth, in name order, is held out by the robust recipe. The drawn covers and changes have a fixed seed. Writes
`robustness.json` and `robustness.md` to --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

import const
from data_preprocessing import positive
from metrics import Counts
from robust import occluders, scenes

SEED = 7
SIZE = scenes.SIZE
Sample = tuple[np.ndarray, np.ndarray]  # image uint8 (H, W, 3), target uint8 (H, W)


# --- Changes of a face: image, target -> image, target ----------------------------------------------------------------
def grey(image, target) -> Sample:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2), target


def dim(image, target) -> Sample:
    return (image * 0.25).astype(np.uint8), target


def overexposed(image, target) -> Sample:
    return np.clip(image * 1.9 + 20, 0, 255).astype(np.uint8), target


def low_contrast(image, target) -> Sample:
    return (image * 0.4 + 80).astype(np.uint8), target


def rolled(degrees: float) -> Callable[..., Sample]:
    def change(image, target) -> Sample:
        matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1.0)
        turned = cv2.warpAffine(image, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT_101)
        return turned, cv2.warpAffine(target, matrix, (SIZE, SIZE), flags=cv2.INTER_NEAREST)

    return change


def blurred(image, target) -> Sample:
    return cv2.GaussianBlur(image, (0, 0), 4), target


def jpeg(image, target) -> Sample:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 20])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR), target


def noisy(image, target) -> Sample:
    noise = np.random.default_rng(SEED).normal(0, 20, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), target


def tiny(image, target) -> Sample:
    small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), target


CHANGES = {
    "greyscale": grey,
    "dim (a quarter of the light)": dim,
    "overexposed": overexposed,
    "low contrast": low_contrast,
    "rolled by 45 degrees": rolled(45),
    "rolled by -30 degrees": rolled(-30),
    "blurred (sigma 4)": blurred,
    "JPEG quality 20": jpeg,
    "noise (sigma 20)": noisy,
    "64 pixels, enlarged": tiny,
}


# --- Sets of samples ------------------------------------------------------------------------------------------------
def faces_of(store: scenes.FaceStore) -> Iterator[Sample]:
    for i in range(len(store)):
        yield store[i].image, store[i].mask


def covered_faces(composer: scenes.SceneComposer, kind: str) -> Iterator[Sample]:
    """Every face once with a cover of this kind, textured from the held-out photographs."""
    for i in range(len(composer.faces)):
        rng = np.random.default_rng((SEED, i))
        other = composer.faces[int(rng.integers(len(composer.faces)))]
        face = composer.faces[i]
        photo = composer.photos.draw(rng)
        image, mask, _ = occluders.draw_occluder(
            rng, face.image, face.mask, photo=photo, other=(other.image, other.mask), kind=kind
        )
        yield image, mask


def photographs(
    composer: scenes.SceneComposer, count: int, share: tuple[float, float], size=(480, 640)
) -> Iterator[Sample]:
    """Composed pictures with one to three of the people."""
    for i in range(count):
        rng = np.random.default_rng((SEED, i))
        people = rng.choice(len(composer.faces), size=min(1 + i % 3, len(composer.faces)), replace=False).tolist()
        image, target, _ = composer.photograph(rng, people, size, share)
        yield image, target


def skin_tone(image: np.ndarray, mask: np.ndarray) -> float:
    """Individual typology angle of a face, degrees: above 41 light, below 10 dark (Chardon et al. 1991)."""
    lab = cv2.cvtColor((image / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[mask > 127]
    lightness, _, yellow = np.median(lab, axis=0)
    return float(np.degrees(np.arctan2(lightness - 50, yellow)))


# --- Measuring ------------------------------------------------------------------------------------------------------
def measure(segmenter, samples) -> tuple[Counts, list[float]]:
    """Pooled counts over (image, target), and the Dice of each picture."""
    total, each = Counts(), []
    for image, target in samples:
        logits = segmenter.logits([image])[0]
        one = Counts().add(logits > 0, target > 127).add_bce(logits, target > 127)
        each.append(one.dice)
        total = total + one
    return total, each


SECTIONS = ("faces", "skin tone", "covers", "changes", "photographs", "no face", "speed")


def run(
    segmenter, data: Path, backgrounds: Path | None, *, scenes_count: int = 150, sections=SECTIONS, log=print
) -> dict:
    """The tables of these sections: {section: {row: {"dice", "iou", "boundary_iou", ...}}}."""
    store = scenes.FaceStore([data / "images_val"], [data / "masks_val"], [data / "persons_val"])
    held_out = scenes.find_backgrounds(backgrounds, held_out=True) if backgrounds else []
    composer = scenes.SceneComposer(store, scenes.PhotoStore(held_out))
    table: dict[str, dict[str, dict]] = {}
    for section in sections:
        if section == "speed":
            table[section] = speed(segmenter, store[0].image)
            for name, seconds in table[section].items():
                log(f"{seconds:.3f} s  {name}")
            continue
        for name, samples in _rows(section, composer, held_out, scenes_count):
            counts, each = measure(segmenter, samples)
            table.setdefault(section, {})[name] = {
                **counts.summary(), "worst_tenth_dice": float(np.mean(sorted(each)[: max(1, len(each) // 10)])),
                "painted": counts.painted, "pictures": len(each),
            }  # fmt: skip
            log(f"{section:12} {name:32} Dice {counts.dice:.4f}  IoU {counts.iou:.4f}"
                f"  boundary {counts.boundary_iou:.4f}  painted {counts.painted:.4f}")  # fmt: skip
    return table


def _rows(section: str, composer, held_out: list[Path], scenes_count: int) -> Iterator[tuple[str, Iterator[Sample]]]:
    """(name, samples) of each row of a section; none where its faces or photographs are missing."""
    store = composer.faces
    if section == "faces":
        yield "clean", faces_of(store)
    elif section == "skin tone":
        order = np.argsort([skin_tone(image, mask) for image, mask in faces_of(store)])
        thirds = np.array_split(order, 3)
        for name, ids in zip(("darkest third", "middle third", "lightest third"), thirds, strict=True):
            yield name, ((store[i].image, store[i].mask) for i in ids)
    elif section == "covers":
        if worn := [f for f in faces_of(store) if _wears_glasses(f[1])]:
            yield "real glasses", worn
        for kind in ("glasses", *occluders.KINDS):
            yield f"drawn: {kind}", covered_faces(composer, kind)
    elif section == "changes":
        for name, change in CHANGES.items():
            yield name, (change(*sample) for sample in faces_of(store))
    elif section == "photographs" and any(store[i].person is not None for i in range(len(store))):
        for low, high in ((0.06, 0.1), (0.1, 0.2), (0.2, 0.45), (0.06, 0.45)):
            name = f"faces {low:.0%} to {high:.0%} of the width"
            yield name, photographs(composer, scenes_count, (low, high))
    elif section == "no face" and held_out:
        yield "held-out photographs", ((p, np.zeros(p.shape[:2], np.uint8)) for p in map(_read, held_out))


def speed(segmenter, picture: np.ndarray, runs: int = 15) -> dict[str, float]:
    """Median seconds for one 512x512 picture as `predict` takes it, in the fastest number format, and in turn with it
    for torchvision's LR-ASPP MobileNetV3-Large, in full precision as torchvision gives it."""
    import torch
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    from inference import Segmenter

    swift = Segmenter(segmenter.net, segmenter.info, segmenter.device, flip=segmenter.flip, passes=segmenter.passes)
    other = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1).eval().to(segmenter.device)
    x = torch.zeros(1, 3, SIZE, SIZE, device=segmenter.device)
    times: dict[str, list[float]] = {"these weights, 512x512 picture": [], "LR-ASPP MobileNetV3-Large, 512x512": []}
    for _ in range(runs + 2):
        for name, run_one in zip(times, (lambda: swift.logits([picture]), lambda: other(x)["out"].cpu()), strict=True):
            started = time.perf_counter()
            with torch.inference_mode():
                run_one()
            times[name].append(time.perf_counter() - started)
    return {name: float(np.median(seconds[2:])) for name, seconds in times.items()}


def _wears_glasses(mask: np.ndarray) -> bool:
    """Whether the mask leaves out both eyes at their usual places, as it does where `eye_g` was annotated."""
    return not any(mask[y - 6 : y + 7, x - 6 : x + 7].any() for x, y in occluders.EYES)


def _read(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def to_markdown(table: dict) -> str:
    lines = [
        "| | Dice | IoU | boundary IoU | Dice of the worst tenth | painted | pictures |",
        "|---|---|---|---|---|---|---|",
    ]
    for section, rows in table.items():
        if section == "speed":
            lines += ["", *(f"{name}: {seconds:.3f} s (median)" for name, seconds in rows.items())]
            continue
        for name, v in rows.items():
            keys = ("dice", "iou", "boundary_iou", "worst_tenth_dice")
            ratios = " | ".join(
                "" if section == "no face" else f"{v[key]:.3f}" for key in keys
            )  # none without a target
            lines.append(f"| {section}: {name} | {ratios} | {v['painted']:.2%} | {v['pictures']} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Measure weights on covers, changes, composed photographs and no face."
    )
    parser.add_argument("--weights", default="bundled", help="a file, 'bundled' or 'published'")
    parser.add_argument("--data", type=Path, default=const.CELEB_DIR, help="prepared folders, with persons_val")
    parser.add_argument("--backgrounds", type=Path, help="photographs without faces; every fifth is used")
    parser.add_argument("--out", type=Path, default=const.RUNS_DIR / "robustness")
    parser.add_argument("--scenes", type=positive, default=150, help="composed photographs per row")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="these tables alone")
    parser.add_argument("--passes", type=int, choices=(1, 2))
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    from common import write_text
    from data_preprocessing import DataError, is_prepared
    from main import Runner, UserError
    from model import ModelError

    try:
        if not is_prepared(args.data):
            raise UserError(f"{args.data} holds no prepared faces; run `python data_preprocessing.py --persons`.")
        if args.backgrounds is not None and not args.backgrounds.is_dir():
            raise UserError(f"There is no folder {args.backgrounds}.")
        runner = Runner(args.device).load(args.weights, flip=args.flip, passes=args.passes, precision="fp32")
        table = run(runner.segmenter, args.data, args.backgrounds, scenes_count=args.scenes, sections=args.only)
        args.out.mkdir(parents=True, exist_ok=True)
        write_text(args.out / "robustness.json", json.dumps({"weights": runner.weights_name, **table}, indent=2) + "\n")
        write_text(args.out / "robustness.md", to_markdown(table))
    except (UserError, DataError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.out}: {error.strerror or error}.", file=sys.stderr)
        return 1
    print(f"robustness.json and robustness.md are in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
