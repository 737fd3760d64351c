"""What the experiments compare, and how it is measured; `experiments.py` is the command.

The measuring itself is that of the robustness study. What was measured is kept in RUNS/claims/measured/.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import const
from common import UserError, write_text
from main import Runner
from robust import occluders, photographed
from studies import report
from training import Config

NAMES = ("occluders", "glasses", "data-size", "models", "published")
VARIANTS = {  # what a training changes: of its settings, or of its masks
    "cutout-on": {},
    "cutout-off": {"cutout": "none"},
    "cutout-image-only": {"cutout": "image-only"},
    "glasses-left-in": {},
}
TRAINED = {"occluders": list(VARIANTS)[:3], "glasses": ["cutout-on", "glasses-left-in"], "data-size": ["cutout-on"]}
PHOTOGRAPHED = report.PHOTOGRAPHED
OCCLUDED = (*occluders.KINDS, *PHOTOGRAPHED)
GLASSES = ("glasses", "real glasses")
LOGITS = (0.0, 0.1, 0.5, 0.9)  # thresholds: probability 0.5, and the original's
BATCH = const.BATCH_SIZE  # whose ratios the original averaged
WORST = 10  # faces of lowest Dice that are listed


@dataclass(frozen=True)
class Plan:
    """Settings of the claims' trainings, and on how many faces they are measured."""

    model: str = "lite"
    pretrained: bool = True
    size: int = 192
    batch_size: int = 16
    epochs: int = 12
    epoch_size: int = 1000  # pictures shown in each: the same for 50 faces as for 2000
    lr: float = 1e-3
    ema: float = 0.99
    precision: str = "auto"
    val_limit: int = 300  # faces that choose the epoch
    seeds: Sequence[int] = (1, 2, 3)
    counts: Sequence[int] = (50, 100, 200, 500, 1000)  # training faces, beside all of them
    val_faces: int = 2000  # measured as they are
    occluded_faces: int = 200  # measured with every kind of occluder


PLANS = {
    "cpu": Plan(),
    "gpu": Plan(size=512, epochs=8, epoch_size=2000, val_faces=1000, occluded_faces=100),
    "quick": Plan(
        pretrained=False, size=64, batch_size=4, epochs=2, epoch_size=8, ema=0.9, seeds=(1,),
        counts=(6,), occluded_faces=2,
    ),
}  # fmt: skip


# --- Where it happens -----------------------------------------------------------------------------------------------
@dataclass
class Context:
    """The folders, the plan and the device of a call."""

    data: Path
    runs: Path
    out: Path
    plan: Plan
    runner: Runner
    names: tuple[str, ...] = NAMES
    source: str | None = None
    occluder_dir: Path | None = None
    workers: int | None = None
    quick: bool = False

    @property
    def folder(self) -> Path:
        """Of the claims' trainings."""
        return self.runs / "claims"

    @property
    def whole(self) -> Path:
        """The prepared folders whose masks keep the glasses."""
        return self.folder / "glasses-left-in-data"

    @cached_property
    def faces(self) -> dict[str, int]:
        return {split: len(ids_of(self.data / f"images_{split}")) for split in ("train", "val")}

    @property
    def variants(self) -> dict[str, dict]:
        """The variants of the claims asked for, the most telling first."""
        wanted = {variant for name in self.names for variant in TRAINED.get(name, ())}
        counts = [n for n in self.plan.counts if n < self.faces["train"]] if "data-size" in self.names else []
        return {v: change for v, change in VARIANTS.items() if v in wanted} | {
            f"faces-{n}": {"limit": n} for n in counts
        }

    def config(self, variant: str, seed: int) -> Config:
        shared = {f.name: getattr(self.plan, f.name) for f in fields(Config) if hasattr(self.plan, f.name)}
        return Config(**{**shared, **self.variants[variant], "seed": seed})

    def networks(self) -> dict[str, Path]:
        """The run directories of the original's two networks, and the bundled weights: {name: weights}."""
        import model

        found = {}
        for path in sorted(self.runs.glob("*/config.json")):
            config = json.loads(path.read_text(encoding="utf-8"))
            weights = path.with_name("model.best.pth")
            if config["recipe"] == "original" and config["model"] in ("unet", "deeplabv3") and weights.is_file():
                found[path.parent.name] = weights
        return {**found, "bundled": model.bundled_weights()}


def ids_of(folder: Path) -> set[int]:
    return {int(p.stem.split("_")[0]) for p in folder.iterdir() if p.stem.split("_")[0].isdecimal()}


def read_json(path: Path) -> dict:
    """What one of our records holds; empty without the file.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        raise UserError(f"{path} is damaged; delete it.") from None


def write_json(path: Path, record: dict) -> None:
    write_text(path, json.dumps(record, indent=1) + "\n")


# --- Measuring ------------------------------------------------------------------------------------------------------
def validation_faces(data: Path, limit: int | None = None) -> Iterator[tuple]:
    """(name, image uint8 (H, W, 3), target uint8 (H, W)), the image at the mask's size."""
    import cv2

    from dataset import Celeb
    from pictures import read_known

    for image, mask in Celeb(data / "images_val", data / "masks_val", limit=limit).pairs:
        target = read_known(mask, grey=True)
        yield image.stem, cv2.resize(read_known(image), target.shape[::-1], interpolation=cv2.INTER_AREA), target


def measure_clean(segmenter, faces) -> dict:
    """Figures of faces as they are, at each of `LOGITS`: of pooled counts, and as the original's mean over batches of
    each batch's ratio; and the faces of lowest Dice."""
    from metrics import Counts, SplitCounts

    batches = []
    for i, (name, image, target) in enumerate(faces):
        if i % BATCH == 0:
            batches.append(SplitCounts({str(t): t for t in LOGITS}))
        batches[-1].add(name, segmenter.logits([image])[0], target > 127)
    table = {}
    for t in map(str, LOGITS):
        parts = [batch.pooled[t] for batch in batches]
        means = {f"batch_{key}": sum(getattr(part, key) for part in parts) / len(parts) for key in ("dice", "iou")}
        table[t] = {**sum(parts, Counts()).summary(), **means}
    each = sorted((counts.dice, name) for batch in batches for name, counts in batch.per_picture)
    return {**table["0.0"], "thresholds": table, "worst": each[:WORST], "pictures": len(each)}


def samples(context: Context, kind: str) -> list[tuple]:
    """Validation faces of a kind: (image, target, boolean: what of the face is behind the occluder or the glasses)."""
    from robust import scenes
    from studies import pasted, robustness

    limit = context.plan.occluded_faces
    store = scenes.FaceStore(context.data / "images_val", context.data / "masks_val", limit=limit)
    if kind in PHOTOGRAPHED:
        cutouts = photographed.OccluderStore(context.occluder_dir, held_out=True)
        return list(pasted.pasted_faces(store, cutouts, kind.removeprefix("photographed ")))
    if kind != "real glasses":
        return list(robustness.occluded_faces(scenes.SceneComposer(store, scenes.PhotoStore([])), kind))
    both = zip(validation_faces(context.data), validation_faces(context.whole), strict=True)
    behind = ((image, target, (whole > 127) & (target <= 127)) for (_, image, target), (_, _, whole) in both)
    return [sample for sample in behind if sample[2].any()]


def kinds_of(context: Context, name: str) -> list[str]:
    """On what a network is measured."""
    variant = name.rsplit("-", 1)[0]
    kinds = ["clean"]
    if variant not in context.variants or variant in TRAINED["occluders"]:
        kinds += [kind for kind in OCCLUDED if context.occluder_dir or kind not in PHOTOGRAPHED]
    if variant not in context.variants or variant in TRAINED["glasses"]:
        kinds += [kind for kind in GLASSES if context.whole.is_dir() or kind == "glasses"]
    return kinds


def measure_all(context: Context, weights: dict[str, Path]) -> dict[str, dict]:
    """What has not been measured yet of these networks; of each {kind: figures}, kept in claims/measured/."""
    from studies import robustness

    kept, paths, loaded = {}, {}, {}
    for name, file in weights.items():
        paths[name] = context.folder / "measured" / f"{name}.json"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        of = [digest, context.plan.val_faces, context.plan.occluded_faces, str(context.occluder_dir)]
        record = read_json(paths[name])
        kept[name] = record if record.get("of") == of else {"of": of, "kinds": {}}
    for kind in ("clean", *OCCLUDED, *GLASSES):
        todo = [name for name in weights if kind in kinds_of(context, name) and kind not in kept[name]["kinds"]]
        if not todo:
            continue
        context.runner.log(f"--- measuring {len(todo)} networks: {kind}, {time.strftime('%H:%M')}")
        faces = None if kind == "clean" else samples(context, kind)
        for name in todo:
            loaded[name] = loaded.get(name) or segmenter(context, weights[name])
            if kind == "clean":
                figures = measure_clean(loaded[name], validation_faces(context.data, context.plan.val_faces))
            elif faces:
                figures = robustness.measure(loaded[name], faces)
            else:  # nobody wears glasses
                continue
            kept[name]["kinds"][kind] = figures
            write_json(paths[name], kept[name])
    return {name: record["kinds"] for name, record in kept.items()}


def segmenter(context: Context, weights: Path, *, precision: str = "fp32"):
    """Ready to predict; "fp32" is for measuring how good the weights are."""
    quiet = Runner(context.runner.device_name, log=lambda *words: None)
    return quiet.load(weights, precision=precision).segmenter


def speed(context: Context, weights: dict[str, Path], runs: int = 9) -> dict[str, float]:
    """Median seconds that `predict` takes for a 512x512 picture, interleaved."""
    from studies.timing import interleaved

    image = next(validation_faces(context.data))[1]
    networks = {name: segmenter(context, path, precision="auto") for name, path in weights.items()}
    return interleaved({name: lambda n=net: n.logits([image]) for name, net in networks.items()}, runs, at_least=0)


def cutout_fraction(cutout: str, size: int, masks: list, draws: int) -> tuple[float, float]:
    """The mean fractions of the picture and of the face that the augmentation's CoarseDropout takes.

    Args:
        masks: of faces, uint8 (512, 512), which it is drawn over in turn.
    """
    import cv2
    import numpy as np

    from dataset import train_transform

    white = np.full((size, size, 3), 255, np.uint8)
    masks = [(cv2.resize(mask, (size, size)) > 127).astype(np.uint8) for mask in masks]
    taken = np.zeros(2)
    for transform in train_transform(size, cutout=cutout).transforms:
        if type(transform).__name__ == "CoarseDropout":
            for seed in range(draws):
                mask = masks[seed % len(masks)]
                transform.set_random_seed(seed)
                out = transform(image=white, mask=mask)
                taken += (out["image"] != 255).any(2).mean(), 1 - out["mask"].sum() / max(mask.sum(), 1)
    return float(taken[0] / draws), float(taken[1] / draws)
