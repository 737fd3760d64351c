"""The original's claims, measured: five of them, into tables, plots and results.json.

    python -m studies.experiments --source CelebAMask-HQ.zip --occluders DIR     all; results/ and runs/claims/
    python -m studies.experiments occluders data-size --seeds 1                  two of them, with one seed
    python -m studies.experiments --estimate                                     what is left to do, and for how long
    python -m studies.experiments --gpu --source F --occluders DIR               one GPU, about an hour, 512x512: the
                                                        original's experiment first, then the claims and the benchmark
    python -m studies.experiments --quick                                        the machinery alone, on drawn faces

occluders   does CoarseDropout help to leave out what occludes a face?
glasses     do masks without the glasses make the network avoid glasses?
data-size   Dice against the number of training faces
models      U-Net beside DeepLabV3
published   the published figures beside what the same training gives here

The first three train the small network from ImageNet features, each variant as long as the others, in RUNS/claims/.
The last two read the run directories of `main.py train --model unet` and `deeplabv3` that are in RUNS, and train
nothing but with --gpu. Seeds come one after the other and the results are written after each, so that a call may be
killed at any time: the same command goes on, with the settings that the first one left in RUNS/claims/plan.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import const
import data_preprocessing as preparation
from common import UserError, exit_code, usable_cores, write_text
from data_preprocessing import DataError, positive
from main import Runner
from robust import occluders, photographed
from studies import estimate, report
from training import Config

NAMES = ("occluders", "glasses", "data-size", "models", "published")
RESULTS_DIR = const.DIR_PATH / "results"
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
    "gpu": Plan(size=512, epochs=8, epoch_size=2000, val_faces=1000),
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
        return {split: len(_ids(self.data / f"images_{split}")) for split in ("train", "val")}

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


def _ids(folder: Path) -> set[int]:
    return {int(p.stem.split("_")[0]) for p in folder.iterdir() if p.stem.split("_")[0].isdecimal()}


def prepare_whole(context: Context) -> None:
    """The same faces with masks that keep the glasses: the part `skin` alone.

    Raises:
        DataError: no source with the part masks, or one that lacks some of the faces.
    """
    ids = {split: _ids(context.data / f"masks_{split}") for split in ("train", "val")}
    masks = {split: context.whole / f"masks_{split}" for split in ids}
    if all(masks[split].is_dir() and _ids(masks[split]) >= ids[split] for split in ids):
        return
    source = preparation.find_source(context.source)
    index = source.index

    def without_glasses(wanted):
        pictures, parts = index(wanted)
        return pictures, {i: {k: v for k, v in kinds.items() if k != const.GLASSES_PART} for i, kinds in parts.items()}

    source.index = without_glasses  # as if nobody wore any
    preparation.prepare(source, context.whole, ids_train=ids["train"], ids_val=ids["val"])
    if any(_ids(masks[split]) != ids[split] for split in ids):
        raise DataError(f"{source} does not hold all faces of {context.data}; give the --source that it was made from.")


# --- Training -------------------------------------------------------------------------------------------------------
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


def trained(context: Context, variant: str, seed: int) -> dict | None:
    """The record of a finished training; None for another.

    Raises:
        UserError: it had other settings.
    """
    path = context.folder / f"{variant}-{seed}" / "trained.json"
    record, wanted = read_json(path), asdict(context.config(variant, seed))
    for key, value in record.get("config", {}).items():
        if wanted[key] != value:
            raise UserError(f"{path.parent} holds a run with {key} {value}, not {wanted[key]}; give another --runs.")
    return record or None


def train(context: Context, variant: str, seed: int) -> None:
    """One training of the claims to its end, from where it stopped; nothing where it is finished."""
    if trained(context, variant, seed):
        return
    folder, config = context.folder / f"{variant}-{seed}", context.config(variant, seed)
    context.runner.log(f"--- {folder.name}, {time.strftime('%H:%M')}")
    data = context.whole if variant == "glasses-left-in" else context.data
    resume = (folder / "last.pth").exists()
    cache = config.size < 512  # larger ones need more shared memory than containers have
    history = context.runner.train(config, data, folder, resume=resume, workers=context.workers, cache=cache)
    precision = read_json(folder / "config.json")["precision_used"]
    write_json(folder / "trained.json", {"config": asdict(config), "precision": precision, "history": history})
    (folder / "last.pth").unlink()  # 58 MB, of use for nothing but to go on


def train_original(context: Context) -> None:
    """The original's experiment with both networks, from COCO or ImageNet weights and from random ones, in RUNS."""
    from model import ModelError

    tiny = {"size": 64, "epochs": 1, "limit": 4, "batch_size": 2} if context.quick else {}
    for model in ("deeplabv3", "unet"):
        for pretrained in (True, False):
            config = Config(model=model, pretrained=pretrained, **tiny)
            folder = context.runs / f"{model}-{config.size}{'' if pretrained else '-random'}"
            if len(report.history(folder)) >= config.epochs:
                continue
            context.runner.log(f"--- {folder.name}, {time.strftime('%H:%M')}")
            try:
                resume = (folder / "last.pth").exists()
                context.runner.train(config, context.data, folder, resume=resume, workers=context.workers)
            except ModelError as error:
                context.runner.log(f"{folder.name} is left out: {error}")


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
    store = scenes.FaceStore([context.data / "images_val"], [context.data / "masks_val"], [None], limit=limit)
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


def segmenter(context: Context, weights: Path, *, precision: str = "auto"):
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


# --- Results --------------------------------------------------------------------------------------------------------
def collect(context: Context) -> None:
    """Measure what is finished, and write results.json, the tables, the plots and the sheets of faces."""
    from studies.timing import machine

    context, networks = replace(context, names=NAMES), context.networks()
    runs = {f"{variant}-{seed}": (variant, seed) for seed in context.plan.seeds for variant in context.variants}
    finished = {name: record for name, run in runs.items() if (record := trained(context, *run))}
    weights = {name: context.folder / name / "model.best.pth" for name in finished} | networks
    kinds, times = measure_all(context, weights), speed(context, networks, 1 if context.quick else 9)
    masks, size = [target for _, _, target in validation_faces(context.data, 100)], context.plan.size
    results = {
        "quick": context.quick,
        "plan": asdict(context.plan),
        "faces": context.faces,
        "machine": machine(),
        "cutout": {
            cutout: cutout_fraction(cutout, size, masks, 20 if context.quick else 1000)
            for cutout in report.CUTOUTS.values()
        },
        "runs": {
            name: {"variant": runs[name][0], "seed": runs[name][1], **record, "kinds": kinds[name]}
            for name, record in finished.items()
        },
        "networks": {
            name: {"seconds": times[name], "kinds": kinds[name]}
            | (report.described(path.parent) if name != "bundled" else {})
            for name, path in networks.items()
        },
    }
    write_json(context.out / "results.json", results)
    report.write(context.out)
    draw_figures(context, weights)
    context.runner.log(f"tables.md, results.json and the plots are in {context.out}")


def draw_figures(context: Context, weights: dict[str, Path]) -> None:
    """Occluders drawn over freely licensed faces: the target, networks of the first seed, and the bundled network."""
    from pictures import find_jobs, read_picture
    from studies.readme_figure import SHOWN, face_square, occluded

    seed, finder = context.plan.seeds[0], Runner(context.runner.device_name, log=lambda *words: None).load("bundled")
    rows = {
        "occluders-faces": {report.CUTOUTS[v]: f"{v}-{seed}" for v in TRAINED["occluders"]},
        "glasses-faces": {report.GLASSES_MASKS[v]: f"{v}-{seed}" for v in TRAINED["glasses"]},
        "models-faces": {name: name for name in context.networks() if name != "bundled"},
    }
    examples = SHOWN[:1] if context.quick else SHOWN
    photos = {job.name: job.path for job in find_jobs([const.TEST_DIR], const.PREDICTIONS_DIR)}
    squares = {}
    for name in dict.fromkeys(name for name, _, _ in examples):
        photo, square = face_square(finder, read_picture(photos[name]))
        squares[name] = photo[square], finder.predict_image(photo)[square]
    for title, networks in rows.items():
        networks = {row: weights[name] for row, name in networks.items() if name in weights}
        if not networks:
            continue
        shown = examples if title != "glasses-faces" else [(name, "glasses", 0) for name in squares]
        faces = [occluded(*squares[name], kind, seed, None) for name, kind, seed in shown]
        masks = {"target": [left for _, left in faces]}
        for row, path in networks.items():
            network = segmenter(context, path)
            masks[row] = [network.mask(image) for image, _ in faces]
        masks["bundled"] = [finder.predict_image(image) for image, _ in faces]
        report.save_grid([image for image, _ in faces], masks, context.out / f"{title}.png")


# --- The command ----------------------------------------------------------------------------------------------------
def remaining(context: Context) -> str:
    """How long the rest takes: by the seconds of finished trainings, without any by FLOPs."""
    plan = context.plan
    all_runs = [(variant, seed) for seed in plan.seeds for variant in context.variants]
    records = [record for run in all_runs if (record := trained(context, *run))]
    if records:
        each = sum(row["seconds"] for record in records for row in record["history"]) / len(records) / 60
        how = "as long as the finished ones took"
    else:
        device = "H100" if context.runner.device.type == "cuda" else "2 CPU cores"
        pictures = {"trained": plan.epochs * plan.epoch_size, "predicted": plan.epochs * plan.val_limit}
        each = estimate.minutes(device, plan.model, plan.size, **pictures)
        how = f"estimated from FLOPs for {'an H100' if device == 'H100' else device}"
    measuring = 0.04 * (plan.val_faces + 0.4 * len(OCCLUDED) * plan.occluded_faces) / 60  # 0.4: not all on all kinds
    left = len(all_runs) - len(records)
    return (
        f"{len(all_runs)} trainings of {plan.epochs * plan.epoch_size} pictures at {plan.size} pixels, {len(records)} "
        f"of them finished; each {each:.1f} minutes ({how}) and {measuring:.1f} to measure, all that is left "
        f"{left * (each + measuring) / 60:.1f} hours."
    )


def run_all(context: Context, gpu: bool) -> None:
    """Train seed by seed, the results being written after each; with `gpu` the original's experiment before it and the
    benchmark after the first seed."""
    if (there := read_json(context.out / "results.json")) and there["quick"] != context.quick:
        kind = "quick" if there["quick"] else "full"
        raise UserError(f"{context.out} holds the results of a {kind} run; give another --out.")
    for seed in context.plan.seeds:
        for variant in context.variants:
            trained(context, variant, seed)  # other settings are refused before any work
    context.runner.log(remaining(context))
    if "glasses" in context.names:
        prepare_whole(context)
    if gpu:
        train_original(context)
    for seed in context.plan.seeds:
        for variant in context.variants:
            train(context, variant, seed)
        collect(context)
        if gpu and seed == context.plan.seeds[0]:
            from studies import benchmark

            path = context.out / "benchmark.json"
            on_gpu = [s["machine"]["gpu"] for s in read_json(path).get("sections", {}).values()]
            if context.runner.device.type != "cuda" or not on_gpu or not all(on_gpu):
                benchmark.main(["--out", str(path), *(["start", "--quick"] if context.quick else [])])


def find_context(args) -> Context:
    """Folders and plan as the command says; data is prepared from the source where it is missing.

    Raises:
        UserError: no data, no such folder, no GPU.
    """
    runner, runs, data, source = Runner(args.device), args.runs, args.data, args.source
    runs = runs or (const.RUNS_DIR / "experiments-quick" if args.quick else const.RUNS_DIR)
    on_gpu = runner.device.type == "cuda"
    if args.gpu and not (on_gpu or args.quick):
        raise UserError("--gpu needs a GPU, and there is none; without it the claims are trained on the CPU.")
    if args.occluders is not None and not args.occluders.is_dir():
        raise UserError(f"There is no folder {args.occluders}.")
    if args.quick and data is None and source is None:
        from studies.drawn_faces import draw_celeb_tree

        source, data = str(runs / "drawn"), runs / "drawn" / "prepared"
        draw_celeb_tree(runs / "drawn", [*const.IDS_TRAIN[:12], *const.IDS_VAL[:6]], image_size=256)
    data = data or const.CELEB_DIR
    if source is None or preparation.is_prepared(data):
        preparation.ensure(data, runner.log)
    else:
        preparation.prepare(preparation.find_source(source), data)
    plan = PLANS["quick" if args.quick else "gpu" if on_gpu else "cpu"]
    given = {name: value for name in PLAN_OPTIONS if (value := getattr(args, name)) is not None}
    kept = read_json(runs / "claims" / "plan.json")
    plan = replace(plan, **{name: kept[name] for name in asdict(plan) if name in kept} | given)
    out = args.out or (RESULTS_DIR.with_name("results-quick") if args.quick else RESULTS_DIR)
    names = tuple(name for name in NAMES if name in (args.names or NAMES))
    workers = args.workers if args.workers is not None else 0 if args.quick else usable_cores() - 1
    return Context(data, runs, out, plan, runner, names, source, args.occluders, workers, args.quick)


PLAN_OPTIONS = {  # fields of the plan: nargs, help
    "seeds": ("+", "default 1 2 3"),
    "counts": ("+", "training faces; default 50 100 200 500 1000"),
    "size": (None, "pixels; default 192, on a GPU 512"),
    "epochs": (None, "default 12, on a GPU 8"),
    "epoch_size": (None, "pictures in each; default 1000, on a GPU 2000"),
    "val_faces": (None, "measured as they are; default 2000, on a GPU 1000"),
    "occluded_faces": (None, "measured with each occluder; default 200"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the original's claims; tables and plots go to results/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which, of {', '.join(NAMES)}; all without a name")
    parser.add_argument("--quick", action="store_true", help="the machinery on drawn faces: the figures mean nothing")
    parser.add_argument("--gpu", action="store_true", help="also the original's trainings at 512x512 and the benchmark")
    parser.add_argument("--estimate", action="store_true", help="say how long it takes, and do nothing")
    parser.add_argument("--source", metavar="PATH", help="the official zip or folder, whose part masks glasses needs")
    parser.add_argument("--data", type=Path, help="prepared folders; default CelebAMask-HQ/")
    parser.add_argument("--occluders", type=Path, help="photographed hands/, objects/, masks/, textures/")
    parser.add_argument("--runs", type=Path, help="with the two networks' run directories and claims/; default runs/")
    parser.add_argument("--out", type=Path, help="where the results go; default results/")
    parser.add_argument("--device", default="auto", help="cpu, cuda ...; default: a GPU where there is one")
    parser.add_argument("--workers", type=int, help="loader processes; default: cores - 1")
    plan = parser.add_argument_group("the plan, kept in claims/plan.json")
    for name, (nargs, text) in PLAN_OPTIONS.items():
        plan.add_argument(f"--{name.replace('_', '-')}", type=positive, nargs=nargs, metavar="N", help=text)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def work() -> None:
        for name in args.names:
            if name not in NAMES:
                raise UserError(f"There is no experiment {name}; there are {', '.join(NAMES)}.")
        context = find_context(args)
        if args.estimate:
            print(remaining(context))
            return
        write_json(context.folder / "plan.json", asdict(context.plan))
        run_all(context, args.gpu)

    return exit_code(work, "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
