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
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import const
import data_preprocessing as preparation
from common import UserError, exit_code, usable_cores
from data_preprocessing import DataError, positive
from main import Runner
from studies import estimate, report
from studies.claims import (
    NAMES,
    OCCLUDED,
    PLANS,
    TRAINED,
    Context,
    cutout_fraction,
    ids_of,
    measure_all,
    read_json,
    segmenter,
    speed,
    validation_faces,
    write_json,
)  # fmt: skip
from training import Config

RESULTS_DIR = const.DIR_PATH / "results"


def prepare_whole(context: Context) -> None:
    """The same faces with masks that keep the glasses: the part `skin` alone.

    Raises:
        DataError: no source with the part masks, or one that lacks some of the faces.
    """
    ids = {split: ids_of(context.data / f"masks_{split}") for split in ("train", "val")}
    masks = {split: context.whole / f"masks_{split}" for split in ids}
    if all(masks[split].is_dir() and ids_of(masks[split]) >= ids[split] for split in ids):
        return
    source = preparation.find_source(context.source)
    index = source.index

    def without_glasses(wanted):
        pictures, parts = index(wanted)
        return pictures, {i: {k: v for k, v in kinds.items() if k != const.GLASSES_PART} for i, kinds in parts.items()}

    source.index = without_glasses  # as if nobody wore any
    preparation.prepare(source, context.whole, ids_train=ids["train"], ids_val=ids["val"])
    if any(ids_of(masks[split]) != ids[split] for split in ids):
        raise DataError(f"{source} does not hold all faces of {context.data}; give the --source that it was made from.")


# --- Training -------------------------------------------------------------------------------------------------------
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
        faces = [occluded(*squares[name], kind, seed) for name, kind, seed in shown]
        masks = {"target": [left for _, left in faces]}
        for row, path in networks.items():
            network = segmenter(context, path)
            masks[row] = [network.mask(image) for image, _ in faces]
        masks["bundled"] = [finder.predict_image(image) for image, _ in faces]
        report.save_grid([image for image, _ in faces], masks, context.out / f"{title}.png")


# --- The command ----------------------------------------------------------------------------------------------------
def remaining(context: Context, gpu: bool) -> str:
    """How long the rest takes: by the seconds of finished trainings, without any by FLOPs."""
    plan = context.plan
    all_runs = [(variant, seed) for seed in plan.seeds for variant in context.variants]
    records = [record for run in all_runs if (record := trained(context, *run))]
    if records:
        each = sum(row["seconds"] for record in records for row in record["history"]) / len(records) / 60
        how = "as long as the finished ones took"
    else:
        device = "H100" if gpu or context.runner.device.type == "cuda" else "2 CPU cores"
        pictures = {"trained": plan.epochs * plan.epoch_size, "predicted": plan.epochs * plan.val_limit}
        each = estimate.minutes(device, plan.model, plan.size, **pictures)
        how = f"estimated from FLOPs for {'an H100' if device == 'H100' else device}"
    measuring = 0.04 * (plan.val_faces + 0.4 * len(OCCLUDED) * plan.occluded_faces) / 60  # 0.4: not all on all kinds
    left = len(all_runs) - len(records)
    text = (
        f"{len(all_runs)} trainings of {plan.epochs * plan.epoch_size} pictures at {plan.size} pixels, {len(records)} "
        f"of them finished; each {each:.1f} minutes ({how}) and {measuring:.1f} to measure, all that is left "
        f"{left * (each + measuring) / 60:.1f} hours."
    )
    if gpu:
        shown = {"trained": const.EPOCHS * estimate.FACES, "predicted": const.EPOCHS * estimate.FACES}
        large = sum(2 * estimate.minutes("H100", model, const.IMG_SIZE, **shown) for model in ("deeplabv3", "unet"))
        text += f" Before them the original's four trainings, {large:.0f} minutes on an H100, estimated from FLOPs."
    return text


def run_all(context: Context, gpu: bool) -> None:
    """Train seed by seed, the results being written after each; with `gpu` the original's experiment before it and the
    benchmark after the first seed."""
    if (there := read_json(context.out / "results.json")) and there["quick"] != context.quick:
        kind = "quick" if there["quick"] else "full"
        raise UserError(f"{context.out} holds the results of a {kind} run; give another --out.")
    for seed in context.plan.seeds:
        for variant in context.variants:
            trained(context, variant, seed)  # other settings are refused before any work
    context.runner.log(remaining(context, gpu))
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
    if args.gpu and not (on_gpu or args.quick or args.estimate):
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
    plan = PLANS["quick" if args.quick else "gpu" if on_gpu or args.gpu else "cpu"]
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
            print(remaining(context, args.gpu))
            return
        write_json(context.folder / "plan.json", asdict(context.plan))
        run_all(context, args.gpu)

    return exit_code(work, "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
