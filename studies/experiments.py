"""The original's claims, measured: each with its figure, its spread over seeds, and the command.

    python -m studies.experiments --source CelebAMask-HQ.zip     all five; tables and plots go to results/
    python -m studies.experiments occluders data-size            two of them
    python -m studies.experiments --quick                        the machinery alone, in a minute, on drawn faces

occluders   does CoarseDropout help to leave out what occludes a face?
glasses     do masks without the glasses make the network avoid glasses?
models      U-Net beside DeepLabV3: metrics, time, memory
data-size   Dice against the number of training faces
published   the published figures beside what the same training gives here

Every run of the tables below trains in a folder of its own under --runs. A run that was killed goes on where it
stopped, a finished one is not trained again, and what was measured of it is kept beside it in `evaluation.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import const
import data_preprocessing as preparation
from common import UserError, exit_code, usable_cores, write_text
from data_preprocessing import DataError
from main import Runner
from robust import occluders
from studies.timing import interleaved, processor
from training import Config, settings_of

# --- The table of settings ------------------------------------------------------------------------------------------
NAMES = ("occluders", "glasses", "models", "data-size", "published")
RESULTS_DIR = const.DIR_PATH / "results"

# What every run has in common. On a GPU that is the original's training; on a CPU what two cores do in 40 minutes.
SMALL = {"model": "lite", "lr": 1e-3, "pretrained": False, "precision": "fp32"}
BUDGETS = {
    "gpu": {"epoch_size": 2000},
    "cpu": {**SMALL, "size": 128, "batch_size": 16, "ema": 0.99, "epoch_size": 768, "epochs": 10},
    "quick": {**SMALL, "size": 64, "batch_size": 4, "ema": 0.9, "epoch_size": 8, "epochs": 2},
}
# The two large networks beside each other, with the original's batch, learning rate and optimiser.
RANDOM = {"pretrained": False, "precision": "fp32"}
MODEL_BUDGETS = {
    "gpu": {},
    "cpu": {**RANDOM, "size": 128, "epoch_size": 256, "epochs": 5},
    "quick": {**RANDOM, "size": 64, "batch_size": 2, "epoch_size": 4, "epochs": 1},
}
SEEDS = {"gpu": (1, 2, 3), "cpu": (1, 2, 3), "quick": (1,)}
FEWEST = {"gpu": 50, "cpu": 50, "quick": 6}  # training faces; doubled up to all of them
VARIANTS = {  # what a run changes of the budget; its name is this and the seed
    "cutout-on": {},
    "cutout-off": {"cutout": "none"},
    "cutout-image-only": {"cutout": "image-only"},
    "glasses-left-in": {},  # but for the masks
}
MODELS = {"models-unet": {"model": "unet"}, "models-deeplabv3": {"model": "deeplabv3"}}
MODEL_SEEDS = {"gpu": (42,), "cpu": (42, 43, 44), "quick": (42,)}
OCCLUDED = ["clean", *occluders.KINDS]
MEASURED = {  # on which validation faces the runs of an experiment are measured
    "occluders": OCCLUDED,
    "glasses": ["clean", "glasses", "real glasses"],
    "models": OCCLUDED,
    "data-size": ["clean"],
    "published": ["clean"],
}
OCCLUDED_FACES = 400  # validation faces that get occluders drawn over them, at most
LOGITS = (0.0, 0.1, 0.5, 0.9)  # thresholds: probability 0.5, and the original's
BATCH = const.BATCH_SIZE  # whose ratios the original averaged


@dataclass(frozen=True)
class Run:
    """One training: the folder's name, its settings, and whether its masks keep the glasses."""

    name: str
    config: Config
    glasses_left_in: bool = False
    alone: bool = False  # in a process of its own, so that its memory can be told


def face_counts(budget: str, faces: int) -> list[int]:
    """Numbers of training faces: doubled from the fewest, then all."""
    counts, n = [], FEWEST[budget]
    while n <= faces / 1.5:
        counts.append(n)
        n *= 2
    return [*counts, faces]


def runs_of(name: str, budget: str, faces: int) -> list[Run]:
    """The runs of an experiment on `faces` training faces."""

    def seeded(variant: str, **change) -> list[Run]:
        base = {**BUDGETS[budget], **VARIANTS.get(variant, {}), **change}
        return [
            Run(f"{variant}-{seed}", Config(**base, seed=seed), variant == "glasses-left-in") for seed in SEEDS[budget]
        ]

    two = [
        Run(f"{variant}-{seed}", Config(**{**MODEL_BUDGETS[budget], **change}, seed=seed), alone=True)
        for variant, change in MODELS.items()
        for seed in MODEL_SEEDS[budget]
    ]
    few = [run for n in face_counts(budget, faces)[:-1] for run in seeded(f"faces-{n}", limit=n)]
    return {
        "occluders": [run for variant in ("cutout-on", "cutout-off", "cutout-image-only") for run in seeded(variant)],
        "glasses": seeded("cutout-on") + seeded("glasses-left-in"),
        "models": two,
        "data-size": few + seeded("cutout-on"),
        "published": seeded("cutout-on") + two,
    }[name]


# --- Where it happens -----------------------------------------------------------------------------------------------
@dataclass
class Context:
    """The folders and the device of a call."""

    data: Path
    runs: Path
    runner: Runner
    budget: str
    source: str | None = None
    workers: int | None = None

    @cached_property
    def faces(self) -> int:
        """Training faces."""
        return len(_ids(self.data / "images_train"))

    @cached_property
    def store(self):
        """The validation faces at 512x512, masks without glasses."""
        from robust import scenes

        return scenes.FaceStore([self.data / "images_val"], [self.data / "masks_val"], [None])

    @cached_property
    def composer(self):
        """The faces that get occluders; textures are drawn, too."""
        from robust import scenes

        few = scenes.FaceStore([self.data / "images_val"], [self.data / "masks_val"], [None], limit=OCCLUDED_FACES)
        return scenes.SceneComposer(few, scenes.PhotoStore([]))

    @property
    def whole(self) -> Path:
        """The prepared folders whose masks keep the glasses."""
        return self.runs / "glasses-left-in-data"

    def folder(self, run: Run) -> Path:
        return self.runs / run.name


def _ids(folder: Path) -> set[int]:
    return {int(p.stem.split("_")[0]) for p in folder.iterdir() if p.stem.split("_")[0].isdecimal()}


def drawn_data(folder: Path) -> Path:
    """A drawn data set in the official layout, for --quick; nothing where it is there already."""
    from studies.drawn_faces import draw_celeb_tree

    if not (folder / "CelebAMask-HQ" / "DRAWN.txt").exists():
        draw_celeb_tree(folder, [*const.IDS_TRAIN[:12], *const.IDS_VAL[:6]], image_size=256)
    return folder


def find_source(given: str | None, data: Path):
    """The data set as it was fetched: as given, else in `data`, else in the usual places; DataError if nowhere."""
    if given is not None:
        return preparation.find_source(given)
    for where in (data, None):
        with suppress(DataError):
            return preparation.find_source(where)
    raise DataError(
        "CelebAMask-HQ was not found; name the official zip or folder by --source, or fetch it with "
        "`python data_preprocessing.py --download`."
    )


def prepare_whole(context: Context) -> None:
    """The same faces with masks that keep the glasses: the part `skin` alone.

    Raises:
        DataError: no source with the part masks, or one that lacks some of the faces.
    """
    ids = {split: _ids(context.data / f"masks_{split}") for split in ("train", "val")}
    masks = {split: context.whole / f"masks_{split}" for split in ids}
    if all(masks[split].is_dir() and _ids(masks[split]) >= ids[split] for split in ids):
        return
    source = find_source(context.source, context.data)
    index = source.index

    def without_glasses(wanted):
        pictures, parts = index(wanted)
        return pictures, {i: {k: v for k, v in kinds.items() if k != const.GLASSES_PART} for i, kinds in parts.items()}

    source.index = without_glasses  # as if nobody wore any
    preparation.prepare(source, context.whole, ids_train=ids["train"], ids_val=ids["val"])
    if any(_ids(masks[split]) != ids[split] for split in ids):
        raise DataError(f"{source} does not hold all faces of {context.data}; give the --source that it was made from.")


# --- Training -------------------------------------------------------------------------------------------------------
def training_record(folder: Path) -> dict | None:
    """When, where and with how much memory a finished run was trained; None for one that is not finished."""
    path = folder / "trained.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def check_settings(context: Context, run: Run) -> None:
    """Raises UserError where the run's folder holds one with other settings."""
    wanted, folder = asdict(run.config), context.folder(run)
    if not (folder / "last.pth").is_file():
        return
    for key, value in settings_of(folder).items():
        if wanted[key] != value:
            raise UserError(f"{folder} holds a run with {key} {value}, not {wanted[key]}; give another --runs.")


def train(context: Context, run: Run) -> None:
    """Train a run to its end, from where it stopped; nothing for a finished one."""
    folder = context.folder(run)
    if training_record(folder):
        return
    context.runner.log(f"--- {run.name}")
    data = context.whole if run.glasses_left_in else context.data
    job = run, data, folder, context.runner.device_name, context.workers
    if run.alone:  # a fresh process, so that its memory is this run's
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(train_here, *job).result()
    else:
        train_here(*job)


def train_here(run: Run, data: Path, folder: Path, device: str, workers: int | None) -> None:
    runner = Runner(device)
    resume = (folder / "last.pth").exists()
    runner.train(run.config, data, folder, resume=resume, workers=workers, cache=True)
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(runner.device),
        "peak_memory": peak_memory(runner.device),
    }
    write_text(folder / "trained.json", json.dumps(record, indent=2) + "\n")


def hardware(device) -> str:
    """The processor's or card's name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {usable_cores()} cores"


def peak_memory(device) -> int | None:
    """Bytes: of the card's memory what PyTorch had allocated at most, else what this process had resident at most;
    None where the system does not tell."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # ru_maxrss would count the process that this one was forked from
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


# --- Measuring ------------------------------------------------------------------------------------------------------
def samples(context: Context, kind: str) -> Iterator[tuple]:
    """Validation faces: (image uint8 (512, 512, 3), target boolean (512, 512), occluded boolean or None).

    `occluded` is the part of the face behind the occluder or the glasses. `kind` is clean, one of the occluders,
    glasses (drawn) or real glasses (the faces that wear some, where `prepare_whole` was called).
    """
    from robust import scenes
    from studies import robustness

    if kind == "clean":
        for image, mask in robustness.faces_of(context.store):
            yield image, mask > 127, None
    elif kind == "real glasses":
        whole = scenes.FaceStore([context.whole / "images_val"], [context.whole / "masks_val"], [None])
        for i in range(len(whole)):
            target = context.store[i].mask > 127
            occluded = (whole[i].mask > 127) & ~target
            if occluded.any():
                yield context.store[i].image, target, occluded
    else:
        for image, mask, occluded in robustness.occluded_faces(context.composer, kind):
            yield image, mask > 127, occluded


class Accumulator:
    """What one network predicts of one kind of faces."""

    def __init__(self):
        from metrics import Counts

        self.counts, self.box, self.occluded, self.called_face, self.pictures = Counts(), Counts(), 0, 0, 0
        self.each: list[list[Counts]] = []  # of clean faces: picture by picture, at each of LOGITS

    def add(self, logits, target, occluded) -> None:
        from metrics import Counts

        predicted = logits > 0
        self.pictures += 1
        self.counts.add(predicted, target, boundary=False)
        if occluded is None:
            self.counts.add_bce(logits, target)
            self.each.append([Counts().add(logits > t, target, boundary=False) for t in LOGITS])
        elif occluded.any():
            self.occluded += int(occluded.sum())
            self.called_face += int((predicted & occluded).sum())
            rows, columns = occluded.any(1).nonzero()[0], occluded.any(0).nonzero()[0]
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            self.box.add(predicted[box], target[box], boundary=False)

    def record(self) -> dict:
        """Plain numbers: pixel counts, and of clean faces the figures at each threshold, averaged either way."""
        record = {"pictures": self.pictures, "counts": _pixels(self.counts)}
        if self.each:
            record["bce"] = self.counts.bce
            record["thresholds"] = {str(t): averaged([counts[k] for counts in self.each]) for k, t in enumerate(LOGITS)}
        else:
            record |= {"box": _pixels(self.box), "occluded": self.occluded, "called_face": self.called_face}
        return record


def _pixels(counts) -> dict[str, int]:
    return {"tp": counts.tp, "fp": counts.fp, "fn": counts.fn, "tn": counts.tn}


def averaged(each: list, batch: int = BATCH) -> dict[str, float]:
    """Dice and IoU from pooled counts, and as the original's mean over batches of each batch's ratio."""
    from metrics import Counts

    batches = [sum(each[i : i + batch], Counts()) for i in range(0, len(each), batch)]
    pooled = sum(batches, Counts())
    return {
        "dice": pooled.dice,
        "iou": pooled.iou,
        "batch_dice": sum(b.dice for b in batches) / len(batches),
        "batch_iou": sum(b.iou for b in batches) / len(batches),
    }


def measure(segmenters: dict, faces) -> dict[str, dict]:
    """Every face, seen once by each of the networks: {run: record}."""
    from tqdm.auto import tqdm

    found = {name: Accumulator() for name in segmenters}
    for image, target, occluded in tqdm(faces, unit="face", disable=None, leave=False):
        for name, segmenter in segmenters.items():
            found[name].add(segmenter.logits([image])[0], target, occluded)
    return {name: one.record() for name, one in found.items()}


@dataclass
class Evaluation:
    """The kept `evaluation.json` of some weights, empty where it is of other weights or other faces."""

    folder: Path
    weights: Path
    faces: int

    def __post_init__(self):
        self.hash = hashlib.sha256(self.weights.read_bytes()).hexdigest()
        self.path, self.kinds, self.seconds = self.folder / "evaluation.json", {}, None
        if self.path.is_file():
            old = json.loads(self.path.read_text(encoding="utf-8"))
            if (old["weights"], old["faces"]) == (self.hash, self.faces):
                self.kinds, self.seconds = old["kinds"], old["seconds"]

    def save(self) -> None:
        record = {"weights": self.hash, "faces": self.faces, "seconds": self.seconds, "kinds": self.kinds}
        write_text(self.path, json.dumps(record, indent=1) + "\n")


def segmenter(context: Context, weights: Path, *, precision: str = "fp32"):
    """Ready to predict; "fp32" is for measuring how good the weights are."""
    import model as networks
    from inference import Segmenter

    net, info = networks.load(weights)
    return Segmenter(net, info, context.runner.device, precision=precision)


def measure_all(context: Context, names: list[str]) -> dict[str, Evaluation]:
    """What has not been measured yet of the finished runs of these experiments, and of the bundled weights."""
    wanted: dict[str, dict] = {}  # {run: {kind: None}}, a set in order
    for name in names:
        for run in runs_of(name, context.budget, context.faces):
            wanted.setdefault(run.name, {}).update(dict.fromkeys(MEASURED[name]))
    weights = {run: context.runs / run / "model.best.pth" for run in wanted}
    if "published" in names:
        import model as networks

        wanted["bundled"], weights["bundled"] = {"clean": None}, networks.bundled_weights()
    kept = {run: Evaluation(context.runs / run, weights[run], len(context.store)) for run in wanted}
    loaded = {}
    for kind in dict.fromkeys(kind for kinds in wanted.values() for kind in kinds):
        missing = [run for run in wanted if kind in wanted[run] and kind not in kept[run].kinds]
        if not missing:
            continue
        context.runner.log(f"--- measuring {len(missing)} networks: {kind}")
        for run in missing:
            loaded[run] = loaded.get(run) or segmenter(context, weights[run])
        for run, record in measure({run: loaded[run] for run in missing}, samples(context, kind)).items():
            kept[run].kinds[kind] = record
            kept[run].save()
    firsts = [f"{variant}-{MODEL_SEEDS[context.budget][0]}" for variant in MODELS]
    if "models" in names and any(kept[run].seconds is None for run in firsts):
        for run, seconds in speed(context, {run: weights[run] for run in firsts}).items():
            kept[run].seconds = seconds
            kept[run].save()
    return kept


def speed(context: Context, weights: dict[str, Path]) -> dict[str, float]:
    """Median seconds that `predict` takes for a 512x512 picture, interleaved."""
    networks = {run: segmenter(context, path, precision="auto") for run, path in weights.items()}
    image = context.store[0].image
    ways = {run: lambda network=network: network.logits([image]) for run, network in networks.items()}
    return interleaved(ways, 15, at_least=0)


def cutout_fraction(cutout: str, size: int, masks: list, draws: int = 1000) -> tuple[float, float]:
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


# --- Results: plain numbers, from the files of the runs --------------------------------------------------------------
def results_of(context: Context, name: str, kept: dict[str, Evaluation]) -> dict:
    """What results.json says of an experiment."""
    runs = runs_of(name, context.budget, context.faces)
    record = training_record(context.folder(runs[-1]))
    details = json.loads((context.folder(runs[-1]) / "config.json").read_text(encoding="utf-8"))
    ending = "--quick" if context.budget == "quick" else "--source CelebAMask-HQ.zip"
    variants = {"cutout-on": SEEDS[context.budget][0], **dict.fromkeys(MODELS, MODEL_SEEDS[context.budget][0])}
    first = {f"{variant}-{seed}" for variant, seed in variants.items()}
    out = {
        "command": f"python -m studies.experiments {name} {ending}",
        "budget": context.budget,
        "date": record["date"],
        "hardware": record["hardware"],
        "torch": details["torch"],
        "precision": details["precision_used"],
        "train_faces": context.faces,
        "val_faces": len(context.store),
        "seeds": list(MODEL_SEEDS[context.budget] if name == "models" else SEEDS[context.budget]),
        "settings": [_settings(context, run) for run in runs if run.name in first],
        "runs": {run.name: kept[run.name].kinds for run in runs},
    }
    if name == "occluders":
        masks = [context.store[i].mask for i in range(min(len(context.store), 100))]
        size = runs[0].config.size
        out["cutout"] = {cut: cutout_fraction(cut, size, masks) for cut in ("image+mask", "none", "image-only")}
    elif name == "glasses":
        out["wearers"] = {split: _wearers(context, split) for split in ("train", "val")}
    elif name == "models":
        models = [change["model"] for change in MODELS.values()]
        out["models"] = {m: _model_row(context, [run for run in runs if run.config.model == m], kept) for m in models}
    elif name == "data-size":
        out["counts"] = face_counts(context.budget, context.faces)
    elif name == "published":
        out["model_seeds"] = list(MODEL_SEEDS[context.budget])
        out["runs"]["bundled"] = kept["bundled"].kinds
    return out


def _settings(context: Context, run: Run) -> dict:
    c = run.config
    keys = ("model", "size", "batch_size", "epochs", "lr", "ema", "pretrained")
    steps = (c.epoch_size or context.faces) // c.batch_size * c.epochs
    seeds = list((MODEL_SEEDS if run.alone else SEEDS)[context.budget])
    return {**{key: getattr(c, key) for key in keys}, "steps": steps, "seeds": seeds}


def _wearers(context: Context, split: str) -> int:
    """Faces part of whose skin is behind annotated glasses."""
    import cv2

    def differs(mask: Path) -> bool:
        both = mask, context.whole / mask.parent.name / mask.name
        ours, whole = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in both)
        return bool((ours != whole).any())

    return sum(differs(mask) for mask in sorted((context.data / f"masks_{split}").glob("*_skin.png")))


def _model_row(context: Context, runs: list[Run], kept: dict[str, Evaluation]) -> dict:
    """Of the runs of one network, one a seed; seconds a picture are of the first."""
    import csv

    import model as networks

    histories = []
    for run in runs:
        with open(context.folder(run) / "history.csv", encoding="utf-8", newline="") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        histories.append([{key: row[key] for key in ("epoch", "seconds", "dice", "val_loss")} for row in rows])
    net, _ = networks.load(context.folder(runs[0]) / "model.best.pth")
    return {
        "parameters": sum(p.numel() for key, p in net.named_parameters() if "aux_classifier" not in key),
        "seconds_per_epoch": [min(row["seconds"] for row in history) for history in histories],
        "seconds_per_picture": kept[runs[0].name].seconds,
        "peak_memory": max(training_record(context.folder(run))["peak_memory"] or 0 for run in runs) or None,
        "histories": histories,
    }


# --- Photographs for the figures --------------------------------------------------------------------------------------
def aligned_photographs(runner: Runner) -> list:
    """The sample photographs' faces as CelebAMask-HQ aligns them: [(image uint8 (512, 512, 3), mask uint8), ...].

    The bundled network finds the face; its box gets the position and width that CelebAMask-HQ's have. Not turned
    upright.
    """
    import cv2
    import numpy as np

    from pictures import find_jobs, read_picture

    finder = Runner(runner.device_name, log=lambda *words: None).load("bundled")
    faces = []
    for job in find_jobs([const.TEST_DIR], const.PREDICTIONS_DIR):
        picture = read_picture(job.path)
        mask = finder.predict_image(picture)
        n, _, stats, _ = cv2.connectedComponentsWithStats(mask)
        if n < 2:
            continue
        x, y, w, h, _ = max(stats[1:].tolist(), key=lambda row: row[4])
        scale = occluders.FACE_WIDTH / w
        cx, cy = occluders.FACE_CENTRE
        matrix = np.float32([[scale, 0, cx - (x + w / 2) * scale], [0, scale, cy - (y + h / 2) * scale]])
        size = occluders.SIZE, occluders.SIZE
        image = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
        faces.append((image, cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST)))
    return faces


def occluded_photographs(faces: list, kinds: list[str], seed: int) -> tuple[list, list]:
    """The faces in turn, each with an occluder of the next kind drawn over it: images, and the masks that are left.

    Occluders are drawn anew until they hide a twentieth to six tenths of the face: less, or more, shows nothing.
    """
    import numpy as np

    images, masks = [], []
    for i, kind in enumerate(kinds):
        image, mask = faces[i % len(faces)]
        for attempt in range(100):
            rng = np.random.default_rng((seed, i, attempt))
            drawn, left, _ = occluders.draw_occluder(rng, image, mask, kind=kind)
            if 0.05 < 1 - left.sum() / max(mask.sum(), 1) < 0.6:
                break
        images.append(drawn)
        masks.append(left)
    return images, masks


FIGURE_SEED = 7  # of the drawn occluders
FIGURES = {  # experiment: kinds of occluder, {row: variant}
    "occluders": (
        list(occluders.KINDS),
        {"cutout:\nimage+mask": "cutout-on", "no cutout": "cutout-off", "cutout:\nimage only": "cutout-image-only"},
    ),
    "glasses": (
        ["glasses"] * 5,
        {"masks without\nglasses": "cutout-on", "glasses left\nin the masks": "glasses-left-in"},
    ),
}


def draw_figure(context: Context, name: str, path: Path) -> None:
    """The same occluded faces in each row: the target (the bundled network's mask of the bare face, less what is drawn
    over it), the first seed's networks of an experiment, and the bundled network."""
    import model as networks
    from studies.report import save_grid

    kinds, rows = FIGURES[name]
    images, targets = occluded_photographs(aligned_photographs(context.runner), kinds, FIGURE_SEED)
    seed = SEEDS[context.budget][0]
    weights = {title: context.runs / f"{variant}-{seed}" / "model.best.pth" for title, variant in rows.items()}
    weights["the bundled\nnetwork"] = networks.bundled_weights()
    masks = {"target": targets}
    for title, file in weights.items():
        network = segmenter(context, file)
        masks[title] = [network.mask(image) for image in images]
    save_grid(images, masks, path)


# --- The command ------------------------------------------------------------------------------------------------------
def run_all(context: Context, names: list[str], out: Path) -> None:
    """Train, measure, and write the results of these experiments; those of others are left as they are."""
    from studies import report

    results = _earlier(out, context.budget == "quick")
    for name in names:
        for run in runs_of(name, context.budget, context.faces):
            check_settings(context, run)
    if "glasses" in names:
        prepare_whole(context)
    for name in names:
        for run in runs_of(name, context.budget, context.faces):
            train(context, run)
    kept = measure_all(context, names)
    for name in names:
        results["experiments"][name] = results_of(context, name, kept)
        if name in FIGURES:
            draw_figure(context, name, out / f"{name}-faces.png")
    results["experiments"] = {name: results["experiments"][name] for name in NAMES if name in results["experiments"]}
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    report.write(out)


def _earlier(out: Path, quick: bool) -> dict:
    """The results that are in `out`; raises UserError where they are of the other kind, quick or full."""
    path = out / "results.json"
    if not path.is_file():
        return {"quick": quick, "experiments": {}}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        kind = results["quick"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; delete it.") from None
    if kind != quick:
        raise UserError(f"{out} holds the results of a {'quick' if kind else 'full'} run; give another --out.")
    return results


def find_context(args) -> Context:
    """Folders and budget as the command says; data is prepared from the source where it is missing.

    Raises:
        DataError: no data.
    """
    quick = "-quick" if args.quick else ""
    runs = args.runs or const.RUNS_DIR / f"experiments{quick}"
    data, source = args.data, args.source
    if args.quick and data is None and source is None:
        source, data = str(drawn_data(runs / "drawn")), runs / "drawn" / "prepared"
    data = data or const.CELEB_DIR
    runner = Runner(args.device)
    if not preparation.is_prepared(data):
        for face in preparation.prepare(find_source(source, data), data).skipped:
            runner.log(f"skipped: {face}")
    budget = "quick" if args.quick else "gpu" if runner.device.type == "cuda" else "cpu"
    return Context(data, runs, runner, budget, source, 0 if args.quick else args.workers)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the original's claims; tables and plots go to results/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which, of {', '.join(NAMES)}; all without a name")
    parser.add_argument("--quick", action="store_true", help="the machinery on drawn faces: the figures mean nothing")
    parser.add_argument("--source", metavar="PATH", help="the official zip or folder, whose part masks glasses needs")
    parser.add_argument("--data", type=Path, help="prepared folders; default CelebAMask-HQ/")
    parser.add_argument("--runs", type=Path, help="where the runs go; default runs/experiments")
    parser.add_argument("--out", type=Path, help="where the results go; default results/")
    parser.add_argument("--device", default="auto", help="cpu, cuda ...; default: a GPU where there is one")
    parser.add_argument("--workers", type=int, help="loader processes; default: cores - 1, at most 4")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = args.out or (RESULTS_DIR.with_name("results-quick") if args.quick else RESULTS_DIR)

    def work() -> None:
        for name in args.names:
            if name not in NAMES:
                raise UserError(f"There is no experiment {name}; there are {', '.join(NAMES)}.")
        run_all(find_context(args), list(dict.fromkeys(args.names)) or list(NAMES), out)
        print(f"tables.md, results.json and the plots are in {out}")

    return exit_code(work, "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
