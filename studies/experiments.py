"""The original's claims, measured: five of them, into tables, plots and results.json.

    python -m studies.experiments --source CelebAMask-HQ.zip --occluders DIR     all; results/ and runs/claims/
    python -m studies.experiments occluders data-size --seeds 1                  two of them, with one seed
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

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path

import cv2
import numpy as np

import const
import data_preprocessing as preparation
import dataset
import metrics
import model as networks
from common import UserError, exit_code, positive, small, usable_cores
from main import Runner
from pictures import read_known, read_picture
from robust import occluders, photographed, scenes
from studies import benchmark, pasted, report, robustness
from studies.drawn_faces import draw_celeb_tree
from studies.readme_figure import SHOWN, face_square, occluded
from studies.report import CUTOUTS, GLASSES_MASKS, PHOTOGRAPHED
from studies.shared import interleaved, machine, read_json, write_json
from training import Config

RESULTS_DIR = const.DIR_PATH / "results"
NAMES = ("occluders", "glasses", "data-size", "models", "published")
# What a training changes: of its settings, or of its masks
VARIANTS = {**{variant: {"cutout": cutout} for variant, cutout in CUTOUTS.items()}, "glasses-left-in": {}}
TRAINED = {"occluders": CUTOUTS, "glasses": GLASSES_MASKS, "data-size": ["cutout-on"]}
OCCLUDED = (*occluders.KINDS, *PHOTOGRAPHED)
GLASSES = ("glasses", "real glasses")
LOGITS = (0.0, 0.1, 0.5, 0.9)  # thresholds: probability 0.5, and the original's
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


@dataclass
class Context:
    """The folders, the plan and the device of a call."""

    data: Path
    runs: Path
    out: Path
    plan: Plan
    runner: Runner
    names: tuple[str, ...]
    source: str | None
    occluder_dir: Path | None
    workers: int
    quick: bool

    folder = property(lambda self: self.runs / "claims")  # of the claims' trainings
    whole = property(lambda self: self.folder / "glasses-left-in-data")  # prepared folders whose masks keep the glasses

    @cached_property
    def faces(self) -> dict[str, int]:
        return {split: len(ids_of(self.data / f"images_{split}")) for split in ("train", "val")}

    @cached_property
    def configs(self) -> dict[str, Config]:
        """{VARIANT-SEED: settings} of the trainings asked for, seed by seed, the most telling variant first."""
        variants = {variant: VARIANTS[variant] for name in self.names for variant in TRAINED.get(name, ())}
        if "data-size" in self.names:
            variants |= {f"faces-{n}": {"limit": n} for n in self.plan.counts if n < self.faces["train"]}
        shared = {f.name: getattr(self.plan, f.name) for f in fields(Config) if hasattr(self.plan, f.name)}
        return {
            f"{variant}-{seed}": Config(**{**shared, **change, "seed": seed})
            for seed in self.plan.seeds
            for variant, change in variants.items()
        }

    def trained(self) -> dict[str, dict]:
        """The records of the trainings that are finished. Raises UserError: one had other settings."""
        records = {}
        for name, config in self.configs.items():
            record, folder = report.described(self.folder / name), self.folder / name
            if len(record["history"]) < config.epochs:
                continue
            pictures = config.limit or self.faces["train"], min(config.val_limit, self.faces["val"])
            wanted = asdict(config) | dict(zip(("train_pictures", "val_pictures"), pictures, strict=True))
            for key, value in wanted.items():
                if record[key] != value:
                    raise UserError(f"{folder} holds a run with {key} {record[key]}, not {value}; give another --runs.")
            records[name] = record
        return records

    def networks(self) -> dict[str, Path]:
        """The run directories of the original's two networks, and the bundled weights: {name: weights}."""
        found = {}
        for path in sorted(self.runs.glob("*/config.json")):
            config, weights = json.loads(path.read_text(encoding="utf-8")), path.with_name("model.best.pth")
            if config["recipe"] == "original" and config["model"] in ("unet", "deeplabv3") and weights.is_file():
                found[path.parent.name] = weights
        return {**found, "bundled": networks.bundled_weights()}

    def segmenter(self, weights: Path, *, precision: str = "fp32"):
        """Ready to predict; "fp32" is for measuring how good the weights are."""
        quiet = Runner(self.runner.device_name, log=lambda *words: None)
        return quiet.load(weights, precision=precision).segmenter


# --- Faces ----------------------------------------------------------------------------------------------------------
def ids_of(folder: Path) -> set[int]:
    return {int(p.stem.split("_")[0]) for p in folder.iterdir() if p.stem.split("_")[0].isdecimal()}


def prepare_whole(context: Context) -> None:
    """The same faces with masks that keep the glasses: the part `skin` alone. Raises UserError: no source with the part
    masks, or one that lacks some of the faces."""
    ids = {split: ids_of(context.data / f"masks_{split}") for split in ("train", "val")}
    options = {"ids_train": ids["train"], "ids_val": ids["val"], "ignored": (const.GLASSES_PART,)}
    preparation.prepare(context.source, context.whole, **options)
    if any(ids_of(context.whole / f"masks_{split}") != ids[split] for split in ids):
        raise UserError(f"Faces of {context.data} are missing in the source; give the --source that it was made from.")


def validation_faces(data: Path, limit: int | None = None) -> Iterator[tuple]:
    """(name, image uint8 (H, W, 3), target uint8 (H, W)), the image at the mask's size."""
    for image, mask in dataset.Celeb(data / "images_val", data / "masks_val", limit=limit).pairs:
        target = read_known(mask, grey=True)
        yield image.stem, cv2.resize(read_known(image), target.shape[::-1], interpolation=cv2.INTER_AREA), target


def samples(context: Context, kind: str) -> list[tuple]:
    """Validation faces of a kind: (image, target, boolean: what of the face is behind the occluder or the glasses)."""
    if kind == "real glasses":
        both = zip(validation_faces(context.data), validation_faces(context.whole), strict=True)
        behind = ((image, target, (whole > 127) & (target <= 127)) for (_, image, target), (_, _, whole) in both)
        return [sample for sample in behind if sample[2].any()]
    folders = context.data / "images_val", context.data / "masks_val"
    store = scenes.FaceStore(*folders, limit=context.plan.occluded_faces)
    if kind in PHOTOGRAPHED:
        cutouts = photographed.OccluderStore(context.occluder_dir, held_out=True)
        return list(pasted.pasted_faces(store, cutouts, kind.removeprefix("photographed ")))
    return list(robustness.occluded_faces(scenes.SceneComposer(store, scenes.PhotoStore([])), kind))


# --- Training -------------------------------------------------------------------------------------------------------
def train_in(context: Context, folder: Path, config: Config, data: Path, **options) -> None:
    """A training to its end, from where it stopped."""
    context.runner.log(f"--- {folder.name}, {time.strftime('%H:%M')}")
    options |= {"resume": (folder / "last.pth").exists(), "workers": context.workers}
    context.runner.train(config, data, folder, **options)


def train(context: Context, name: str) -> None:
    """One training of the claims to its end."""
    folder, config = context.folder / name, context.configs[name]
    data = context.whole if name.startswith("glasses-left-in") else context.data
    # larger pictures need more shared memory than containers have
    train_in(context, folder, config, data, cache=config.size < 512)
    (folder / "last.pth").unlink()  # 58 MB, of use for nothing but to go on


def train_original(context: Context) -> None:
    """The original's experiment with both networks, from COCO or ImageNet weights and from random ones, in RUNS."""
    tiny = {"size": 64, "epochs": 1, "limit": 4, "batch_size": 2} if context.quick else {}
    for model, pretrained in itertools.product(("deeplabv3", "unet"), (True, False)):
        config = Config(model=model, pretrained=pretrained, **tiny)
        folder = context.runs / f"{model}-{config.size}{'-pretrained' if pretrained else ''}"
        if len(report.history(folder)) < config.epochs:
            try:
                train_in(context, folder, config, context.data)
            except networks.ModelError as error:
                context.runner.log(f"{folder.name} is left out: {error}")


# --- Measuring ------------------------------------------------------------------------------------------------------
def measure_clean(segmenter, faces) -> dict:
    """Figures of faces as they are, at each of `LOGITS`: of pooled counts, and as the original's mean over batches of
    each batch's ratio; and the faces of lowest Dice."""
    names, counts, table = [], [], {}
    for name, image, target in faces:
        names.append(name)
        counts.append(metrics.counts_at(segmenter.logits([image])[0], target > 127, LOGITS))
    columns = list(zip(*counts, strict=True))
    for t, column in zip(map(str, LOGITS), columns, strict=True):
        starts = range(0, len(column), const.BATCH_SIZE)
        parts = [sum(column[i : i + const.BATCH_SIZE], metrics.Counts()) for i in starts]
        means = {f"batch_{key}": sum(getattr(part, key) for part in parts) / len(parts) for key in ("dice", "iou")}
        table[t] = {**sum(parts, metrics.Counts()).summary(), **means}
    each = sorted((one.dice, name) for name, one in zip(names, columns[0], strict=True))
    return {**table["0.0"], "thresholds": table, "worst": each[:WORST], "pictures": len(each)}


def kinds_of(context: Context, name: str) -> list[str]:
    """On what a network is measured."""
    variant, kinds = name.rsplit("-", 1)[0] if name in context.configs else None, ["clean"]
    if variant in (None, *CUTOUTS):
        kinds += [kind for kind in OCCLUDED if context.occluder_dir or kind not in PHOTOGRAPHED]
    if variant in (None, *GLASSES_MASKS):
        kinds += [kind for kind in GLASSES if preparation.is_prepared(context.whole) or kind == "glasses"]
    return kinds


def measure_all(context: Context, weights: dict[str, Path]) -> dict[str, dict]:
    """What has not been measured yet of these networks; of each {kind: figures}, kept in claims/measured/."""
    kept, folder, segmenter = {}, context.folder / "measured", cache(context.segmenter)
    for name, file in weights.items():
        code = [Path(one.__file__) for one in (metrics, occluders, pasted, robustness)]
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (file, *code)]
        folders = str(context.data.resolve()), str(context.occluder_dir)
        of = [*digests, *folders, context.faces, context.plan.val_faces, context.plan.occluded_faces]
        record = read_json(folder / f"{name}.json")
        kept[name] = record if record.get("of") == of else {"of": of, "kinds": {}}
    for kind in ("clean", *OCCLUDED, *GLASSES):
        todo = [name for name in weights if kind in kinds_of(context, name) and kind not in kept[name]["kinds"]]
        if not todo:
            continue
        context.runner.log(f"--- measuring {len(todo)} networks: {kind}, {time.strftime('%H:%M')}")
        faces = [] if kind == "clean" else samples(context, kind)
        for name in todo:
            if kind == "clean":
                whole_split = validation_faces(context.data, context.plan.val_faces)
                kept[name]["kinds"][kind] = measure_clean(segmenter(weights[name]), whole_split)
            elif faces:  # else nobody wears glasses
                kept[name]["kinds"][kind] = robustness.measure(segmenter(weights[name]), faces)
            write_json(folder / f"{name}.json", kept[name])
    return {name: record["kinds"] for name, record in kept.items()}


def speed(context: Context, weights: dict[str, Path]) -> dict[str, float]:
    """Median seconds that `predict` takes for a 512x512 picture, interleaved."""
    image = next(validation_faces(context.data))[1]
    segmenters = {name: context.segmenter(path, precision="auto") for name, path in weights.items()}
    ways = {name: lambda s=segmenter: s.logits([image]) for name, segmenter in segmenters.items()}
    return interleaved(ways, 1 if context.quick else 9, at_least=0)


def cutout_fraction(cutout: str, size: int, masks: list, draws: int) -> tuple[float, float]:
    """The mean fractions of the picture and of the face that the augmentation's CoarseDropout takes, drawn in turn over
    masks of faces, uint8 (512, 512)."""
    white = np.full((size, size, 3), 255, np.uint8)
    masks = [(cv2.resize(mask, (size, size)) > 127).astype(np.uint8) for mask in masks]
    taken, transforms = np.zeros(2), dataset.train_transform(size, cutout=cutout).transforms
    for dropout in (one for one in transforms if type(one).__name__ == "CoarseDropout"):
        for seed, mask in zip(range(draws), itertools.cycle(masks), strict=False):
            dropout.set_random_seed(seed)
            out = dropout(image=white, mask=mask)
            taken += (out["image"] != 255).any(2).mean(), 1 - out["mask"].sum() / max(mask.sum(), 1)
    return tuple((taken / draws).tolist())


# --- Results --------------------------------------------------------------------------------------------------------
def collect(context: Context) -> None:
    """Measure what is finished, and write results.json, the tables, the plots and the sheets of faces."""
    context, originals = replace(context, names=NAMES), context.networks()
    finished = context.trained()
    weights = {name: context.folder / name / "model.best.pth" for name in finished} | originals
    kinds, times = measure_all(context, weights), speed(context, originals)
    masks, draws = [target for *_, target in validation_faces(context.data, 100)], 20 if context.quick else 1000
    results = {
        "quick": context.quick,
        "plan": asdict(context.plan),
        "faces": context.faces,
        "machine": machine(),
        "cutout": {name: cutout_fraction(name, context.plan.size, masks, draws) for name in CUTOUTS.values()},
        "runs": {
            name: {**record, "variant": name.rsplit("-", 1)[0], "kinds": kinds[name]}
            for name, record in finished.items()
        },
        "networks": {
            name: {"seconds": times[name], "kinds": kinds[name]}
            | (report.described(path.parent) if name != "bundled" else {})
            for name, path in originals.items()
        },
    }
    write_json(context.out / "results.json", results)
    report.write(context.out)
    draw_figures(context, weights)
    context.runner.log(f"tables.md, results.json and the plots are in {context.out}")


def draw_figures(context: Context, weights: dict[str, Path]) -> None:
    """Occluders over freely licensed faces: the target, networks of the first seed, and the bundled network."""
    seed, finder = context.plan.seeds[0], Runner(context.runner.device_name, log=lambda *words: None).load("bundled")
    sheets = {
        "occluders-faces": {label: f"{variant}-{seed}" for variant, label in CUTOUTS.items()},
        "glasses-faces": {label: f"{variant}-{seed}" for variant, label in GLASSES_MASKS.items()},
        "models-faces": {name: name for name in context.networks() if name != "bundled"},
    }
    examples, squares = SHOWN[:1] if context.quick else SHOWN, {}
    for name, _, _ in examples:
        photo, square = face_square(finder, read_picture(next(const.TEST_DIR.glob(f"{name}.*"))))
        squares[name] = photo[square], finder.predict_image(photo)[square]
    for title, names in sheets.items():
        rows = {row: context.segmenter(weights[name]) for row, name in names.items() if name in weights}
        if not rows:
            continue
        shown = examples if title != "glasses-faces" else [(name, "glasses", 0) for name in squares]
        images, targets = zip(*(occluded(*squares[name], kind, s) for name, kind, s in shown), strict=True)
        rows["bundled"] = finder.segmenter
        masks = {row: [segmenter.mask(image) for image in images] for row, segmenter in rows.items()}
        report.save_grid(images, {"target": targets, **masks}, context.out / f"{title}.png")


# --- The command ----------------------------------------------------------------------------------------------------
def run_all(context: Context, gpu: bool) -> None:
    """Train seed by seed, the results being written after each; with `gpu` the original's experiment before it and the
    benchmark after the first seed."""
    if (there := read_json(context.out / "results.json")) and there["quick"] != context.quick:
        kind = "quick" if there["quick"] else "full"
        raise UserError(f"{context.out} holds the results of a {kind} run; give another --out.")
    plan, finished = context.plan, context.trained()  # refuses other settings than those of what is finished
    pictures = f"{plan.epochs * plan.epoch_size} pictures at {plan.size} pixels"
    context.runner.log(f"{len(context.configs)} trainings of {pictures}, {len(finished)} of them finished.")
    write_json(
        context.folder / "plan.json",
        asdict(context.plan) | {"occluders": context.occluder_dir and str(context.occluder_dir)},
    )
    if "glasses" in context.names:
        prepare_whole(context)
    if gpu:
        train_original(context)
    for seed in context.plan.seeds:
        for name, config in context.configs.items():
            if config.seed == seed and name not in context.trained():
                train(context, name)
        collect(context)
        if gpu and seed == context.plan.seeds[0]:
            path = context.out / "benchmark.json"
            sections = read_json(path).get("sections", {}).values()
            if not sections or not all(section["machine"]["gpu"] for section in sections):
                benchmark.main(["--out", str(path), *(["start", "--quick"] if context.quick else [])])


def find_context(args) -> Context:
    """Folders and plan as the command says; data is prepared from the source where it is missing. Raises UserError: no
    data, no such folder, no GPU."""
    runner, data, source = Runner(args.device), args.data, args.source
    runs = args.runs or (const.RUNS_DIR / "experiments-quick" if args.quick else const.RUNS_DIR)
    on_gpu = runner.device.type == "cuda"
    if args.gpu and not (on_gpu or args.quick):
        raise UserError("--gpu needs a GPU, and there is none; without it the claims are trained on the CPU.")
    kept = read_json(runs / "claims" / "plan.json")
    given = args.occluders or kept.get("occluders")
    occluder_dir = Path(given).resolve() if given else None
    if occluder_dir and not occluder_dir.is_dir():
        raise UserError(f"There is no folder {occluder_dir}.")
    if args.quick and data is None and source is None:
        source, data = str(runs / "drawn"), runs / "drawn" / "prepared"
        draw_celeb_tree(runs / "drawn", [*const.IDS_TRAIN[:12], *const.IDS_VAL[:6]], image_size=256)
    data = data or const.CELEB_DIR
    if source is None or preparation.is_prepared(data):
        preparation.ensure(data, runner.log)
    else:
        preparation.prepare(source, data)
    plan = PLANS["quick" if args.quick else "gpu" if on_gpu or args.gpu else "cpu"]
    settings = kept | vars(args)
    plan = replace(plan, **{name: settings[name] for name in asdict(plan) if name in settings})
    out = args.out or (RESULTS_DIR.with_name("results-quick") if args.quick else RESULTS_DIR)
    names = tuple(name for name in NAMES if name in (args.names or NAMES))
    workers = args.workers if args.workers is not None else 0 if args.quick else usable_cores() - 1
    return Context(data, runs, out, plan, runner, names, source, occluder_dir, workers, args.quick)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.experiments", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which, of {', '.join(NAMES)}; all without a name")
    parser.add_argument("--quick", action="store_true", help="the machinery on drawn faces: the figures mean nothing")
    parser.add_argument("--gpu", action="store_true", help="also the original's trainings at 512x512 and the benchmark")
    parser.add_argument("--source", metavar="PATH", help="the official zip or folder, whose part masks glasses needs")
    parser.add_argument("--data", type=Path, help="prepared folders; default CelebAMask-HQ/")
    parser.add_argument("--occluders", type=Path, help="photographed hands/, objects/, masks/, textures/")
    parser.add_argument("--runs", type=Path, help="with the two networks' run directories and claims/; default runs/")
    parser.add_argument("--out", type=Path, help="where the results go; default results/")
    parser.add_argument("--device", default="auto", help="cpu, cuda ...; default: a GPU where there is one")
    parser.add_argument("--workers", type=small, help="loader processes; default: cores - 1")
    add = parser.add_argument_group("the plan, kept in claims/plan.json").add_argument
    number = {"type": positive, "metavar": "N", "default": argparse.SUPPRESS}
    add("--seeds", nargs="+", help="default 1 2 3", **number)
    add("--counts", nargs="+", help="training faces; default 50 100 200 500 1000", **number)
    add("--size", help="pixels; default 192, on a GPU 512", **number)
    add("--epochs", help="default 12, on a GPU 8", **number)
    add("--epoch-size", help="pictures in each; default 1000, on a GPU 2000", **number)
    add("--val-faces", help="measured as they are; default 2000, on a GPU 1000", **number)
    add("--occluded-faces", help="measured with each occluder; default 200, on a GPU 100", **number)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def work() -> None:
        if unknown := [name for name in args.names if name not in NAMES]:
            raise UserError(f"There is no experiment {unknown[0]}; there are {', '.join(NAMES)}.")
        run_all(find_context(args), args.gpu)

    return exit_code(work, "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
