"""How fast this repository is: itself and the plain way side by side, in turns, in one run on the machine at hand.

    python -m studies.benchmark                  every section, into results/benchmark.json
    python -m studies.benchmark predict folder   only these sections; the others stay as they are in the file
    python -m studies.benchmark --quick          few pictures, three runs instead of five: not a result; results-quick/
    python -m studies.benchmark --readme         README.md's performance section from results/benchmark.json

The plain way is fp32, contiguous tensors, no worker processes, and the original's loop written as simply as can be. It
gets the same data, networks and weights. Without --data the pictures are drawn ones (drawn_faces.py): how long a
picture takes depends on its size, and hardly on what it shows.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import const
from common import write_text
from data_preprocessing import DataError, usable_cores

SECTIONS = ("predict", "start", "folder", "train", "load", "prepare", "growth")
RESULTS = const.DIR_PATH / "results" / "benchmark.json"
README = const.DIR_PATH / "README.md"
BEGIN, END = "<!-- benchmark.py --readme writes from here -->", "<!-- to here -->"
DISTINCT = 40  # faces drawn; more pictures are copies of their files
# ratios to be reached; a "most" is a cost in times of the plain way
TARGETS = {
    "predict deeplabv3": 2.5,
    "predict bundled": 20,
    "start": 1.5,
    "help": 0.5,
    "folder": 1.6,
    "prepare": 4,
}


@dataclass
class Place:
    """Where a section works, and how thoroughly."""

    temp: Path  # its own, removed afterwards
    quick: bool
    full: bool
    data: Path | None  # prepared folders, or None to draw faces

    @property
    def runs(self) -> int:
        return 3 if self.quick else 5

    def pictures(self, size: int = 1024) -> list[Path]:
        """Pictures of faces: those of --data, else drawn ones of this size."""
        if self.data is not None:
            return sorted((self.data / "images_train").glob("*.jpg"))
        return sorted((drawn_source(self, size) / "CelebA-HQ-img").glob("*.jpg"))

    def prepared(self) -> Path:
        """Prepared folders: those of --data, else of drawn faces."""
        if self.data is not None:
            return self.data
        import data_preprocessing

        out = self.temp / "prepared"
        data_preprocessing.prepare(drawn_source(self), out, progress=False)
        return out


def drawn_source(place: Place, size: int = 1024) -> Path:
    """The official layout with `DISTINCT` drawn training faces and four for validation; part masks are RGB, as most of
    the official ones are."""
    from studies import drawn_faces

    folder = place.temp / f"drawn{size}"
    if folder.is_dir():
        return folder / "CelebAMask-HQ"
    ids = [*const.IDS_TRAIN[: 12 if place.quick else DISTINCT], *const.IDS_VAL[:4]]
    return drawn_faces.draw_celeb_tree(folder, ids, image_size=size, part_modes=("RGB",))


# --- Timing ---------------------------------------------------------------------------------------------------------
def seconds(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def interleaved(
    ways: dict[str, Callable[[], object]], runs: int, *, warm: bool = True, at_least: float = 0.5
) -> dict[str, float]:
    """Median seconds of each way, one turn of each at a time, so that a slower minute of the machine slows all.

    A way that takes less than `at_least` seconds is repeated in its turn and its mean taken, as one call alone would
    find the caches as the way before it left them. Without `warm` nothing is repeated.
    """
    times = dict.fromkeys(ways, 1)
    if warm:
        for name, way in ways.items():
            times[name] = max(1, math.ceil(at_least / max(seconds(way), 1e-4)))

    def turn(name: str) -> float:
        return seconds(lambda: [ways[name]() for _ in range(times[name])]) / times[name]

    rounds = [{name: turn(name) for name in ways} for _ in range(runs)]
    return {name: statistics.median(one[name] for one in rounds) for name in ways}


def machine() -> dict:
    """What the numbers belong to."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor that does not say
    import devices

    return {
        "processor": name,
        "cores": usable_cores(),
        "bf16": devices.cpu_has_bf16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def row(what: str, plain: float, here: float, unit: str = "s", *, target: float | None = None, **more) -> dict:
    """A line of a table. `ratio` is how many times as good as the plain way: plain / here of seconds, here / plain of
    a rate such as "pictures/s"."""
    ratio = here / plain if unit.endswith("/s") else plain / here
    return {"what": what, "plain": plain, "here": here, "unit": unit, "ratio": ratio, "target": target, **more}


def cost(what: str, plain: float, here: float, *, target: float, **more) -> dict:
    """A line whose `ratio` is how many times as long as the plain way it takes, and `target` the most it may be."""
    return {"what": what, "plain": plain, "here": here, "unit": "s", "ratio": here / plain, "at_most": target, **more}


# --- The plain way --------------------------------------------------------------------------------------------------
def plain_input(picture, size: int):
    """uint8 (H, W, 3) to float32 (1, 3, size, size), squashed and normalised, as the original's loop did."""
    import cv2
    import numpy as np
    import torch

    small = cv2.resize(picture, (size, size)).astype(np.float32) / 255
    x = (small - np.float32(const.IMAGENET_MEAN)) / np.float32(const.IMAGENET_STD)
    return torch.from_numpy(x.transpose(2, 0, 1).copy())[None]


def plain_mask(net, picture, size: int):
    """(H, W) bool of one picture, one look."""
    import torch

    with torch.no_grad():
        return net(plain_input(picture, size))[0, 0].numpy() > 0


def plain_segmenter(net, info):
    """A Segmenter whose network is the plain one: fp32, contiguous, nothing fused. Its masks are the same."""
    import torch

    from inference import Segmenter

    segmenter = Segmenter(copy.deepcopy(net), info, precision="fp32")
    segmenter._fused = lambda x: net(x.contiguous(memory_format=torch.contiguous_format))
    return segmenter


def plain_training(net, batches: Iterable, lr: float) -> Iterator[float]:
    """The original's loop: the loss after each step."""
    import torch

    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    criterion = torch.nn.BCEWithLogitsLoss()
    net.train()
    for image, target in batches:
        optimizer.zero_grad()
        loss = criterion(net(image), target)
        loss.backward()
        optimizer.step()
        yield loss.item()


def plain_preparation(source: Path, out: Path) -> list[tuple[Path, Path]]:
    """The original's way: pictures and skin masks are moved out of the data set, nothing is checked. The moves."""
    moves = []
    for split, ids in (("train", const.IDS_TRAIN), ("val", const.IDS_VAL)):
        images, masks = out / f"images_{split}", out / f"masks_{split}"
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        folder = source / "CelebAMask-HQ-mask-anno" / str(ids[0] // const.IDS_PER_FOLDER)
        for name in os.listdir(folder):
            if "_skin" in name:
                number = name.split("_")[0].lstrip("0")
                pairs = ((folder / name, masks / f"{number}_skin.png"),
                         (source / "CelebA-HQ-img" / f"{number}.jpg", images / f"{number}.jpg"))  # fmt: skip
                for old, new in pairs:
                    os.rename(old, new)
                    moves.append((old, new))
    return moves


# --- Sections: each gives (rows, notes) -----------------------------------------------------------------------------
def briefly_trained(name: str, place: Place, size: int):
    """A network after some steps on the prepared faces: the logits of random weights lie along 0 everywhere, where
    every rounding shows in the mask."""
    import torch

    import dataset
    import model as networks

    steps = 25 if place.quick else 60
    torch.manual_seed(const.SEED)
    net = networks.build(name)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3  # its statistics have few steps to settle
    data = place.prepared()
    celeb = dataset.Celeb(data / "images_train", data / "masks_train", dataset.val_transform(size), limit=DISTINCT)
    loader = dataset.make_loader(celeb, 2, train=True)
    trainer = _trainer(place, net, name, size, loader, "cpu", 2, lr=1e-3)
    trainer.net.train()
    for image, target in itertools.islice(_epochs(loader), steps):
        trainer.step(image, target)
    return net.eval()


def predict(place: Place):
    """One picture on the CPU, at the original's 512x512."""
    import cv2
    import numpy as np
    import torch

    import devices
    import model as networks
    from inference import Segmenter, read_picture

    side = 128 if place.quick else const.IMG_SIZE
    pictures = [cv2.resize(read_picture(p), (side, side), interpolation=cv2.INTER_AREA) for p in place.pictures()[:8]]
    ways, agreement, formats = {}, {}, {}
    for name in ("deeplabv3", "unet"):
        net = briefly_trained(name, place, side)
        info = networks.Info(name, side)
        plain, here = copy.deepcopy(net), Segmenter(net, info)
        ways[f"{name} plain"] = lambda net=plain: plain_mask(net, pictures[0], side)
        ways[name] = lambda here=here: here.mask(pictures[0])
        pairs = [(plain_mask(plain, p, side), here.mask(p) > 0) for p in pictures[: 3 if place.quick else 8]]
        both = sum(np.count_nonzero(a & b) for a, b in pairs)
        either = sum(np.count_nonzero(a | b) for a, b in pairs)
        agreement[name] = both / either if either else None
        formats[name] = str(here.dtype).removeprefix("torch.")
    bundled = Segmenter(*networks.load(networks.bundled_weights()))
    ways["bundled"] = lambda: bundled.mask(pictures[0])
    took = interleaved(ways, place.runs)
    rows = [
        row(f"{shown}, {side}x{side}", took[f"{name} plain"], took[name], target=TARGETS.get(f"predict {name}"),
            iou=agreement[name], format=formats[name])
        for name, shown in (("deeplabv3", "DeepLabV3"), ("unet", "U-Net"))
    ]  # fmt: skip
    looks = "two looks" if bundled.passes == 2 else "one look"
    rows.append(
        row(f"bundled model ({looks}) against plain DeepLabV3", took["deeplabv3 plain"], took["bundled"],
            target=TARGETS["predict bundled"], format=str(bundled.dtype).removeprefix("torch."))
    )  # fmt: skip
    notes = [
        "DeepLabV3 and U-Net were trained for a few steps before, so that their masks have an edge to agree on; iou is "
        "that of the plain way's masks and these."
    ]
    if devices.autocast_dtype(torch.device("cpu")) == torch.bfloat16:
        full, half = (convolution_gflops(dtype, place.runs) for dtype in (torch.float32, torch.bfloat16))
        notes.append(
            f"A 3x3 convolution of 512 channels runs at {full:.0f} GFLOP/s in fp32 and at {half:.0f} in bf16, "
            f"{half / full:.1f} times as many: about what 16 bits can bring on this processor."
        )
    return rows, notes


def convolution_gflops(dtype, runs: int) -> float:
    """Median of what the CPU reaches in the convolution that DeepLabV3 spends most time in."""
    import torch

    channels, side = 512, 64
    x = torch.randn(1, channels, side, side).to(dtype, memory_format=torch.channels_last)
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1).to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        return 2 * 9 * (channels * side) ** 2 / interleaved({"": lambda: conv(x)}, runs)[""] / 1e9


def start(place: Place):
    """A command from the shell to its end."""
    from inference import Segmenter, read_picture
    from model import bundled_weights, load

    picture = place.pictures()[0]
    out = place.temp / "start"
    commands = {
        "import": ["-c", "import torch, torchvision"],
        "predict": [
            str(const.DIR_PATH / "main.py"),
            "predict",
            str(picture),
            "--weights",
            "bundled",
            "--out",
            str(out),
        ],
        "help": [str(const.DIR_PATH / "main.py"), "--help"],
    }
    ways = {
        name: lambda c=command: subprocess.run([sys.executable, *c], check=True, stdout=subprocess.DEVNULL)
        for name, command in commands.items()
    }
    took = interleaved(ways, place.runs)
    segmenter, pixels = Segmenter(*load(bundled_weights())), read_picture(picture)
    forward = interleaved({"forward": lambda: segmenter.mask(pixels)}, place.runs)["forward"]
    return [
        cost("predict one picture against importing torch and torchvision, and the forward pass",
             took["import"] + forward, took["predict"], target=TARGETS["start"]),
        {"what": "--help", "here": took["help"], "unit": "s", "at_most_s": TARGETS["help"]},
    ], ["Predicting with the bundled model imports no torchvision; DeepLabV3 and U-Net need it."]  # fmt: skip


def folder(place: Place):
    """A folder of 1024x1024 pictures to masks and overlays."""
    import cv2

    from drawing import overlay, parse_color
    from inference import read_picture
    from main import Runner
    from model import bundled_weights, load

    total = 40 if place.quick else 500
    inputs = place.temp / "folder"
    inputs.mkdir()
    for i, source in zip(range(total), itertools.cycle(place.pictures()), strict=False):
        shutil.copy(source, inputs / f"{i:05d}.jpg")
    runner = Runner("cpu", log=lambda *words: None).load("bundled")
    plain = plain_segmenter(*load(bundled_weights()))
    color, out = parse_color(const.OVERLAY_COLOR), place.temp / "folder-out"
    (out / "plain").mkdir(parents=True)

    def write(name, picture, mask):
        cv2.imwrite(str(out / "plain" / f"{name}_mask.png"), mask)
        painted = cv2.cvtColor(overlay(picture, mask, color, const.OVERLAY_ALPHA), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(out / "plain" / f"{name}_overlay.jpg"), painted, [cv2.IMWRITE_JPEG_QUALITY, 92])

    def in_turn():
        for path in sorted(inputs.iterdir()):
            picture = read_picture(path)
            write(path.stem, picture, plain.mask(picture))

    took = interleaved(
        {"plain": in_turn, "here": lambda: runner.predict([inputs], out / "here")}, place.runs, warm=False
    )
    some = sorted(inputs.iterdir())[:20]
    pictures = [read_picture(p) for p in some]
    masks = [runner.segmenter.mask(p) for p in pictures]
    stages = interleaved(
        {
            "read": lambda: [read_picture(p) for p in some],
            "infer": lambda: [runner.segmenter.mask(p) for p in pictures],
            "write": lambda: [write(p.stem, *both) for p, *both in zip(some, pictures, masks, strict=True)],
        },
        place.runs,
    )
    ms = {name: 1000 * value / len(some) for name, value in stages.items()}
    limit = max(ms, key=ms.get)
    rows = [
        row(f"{total} pictures, read, inferred, written", total / took["plain"], total / took["here"], "pictures/s",
            target=TARGETS["folder"])
    ]  # fmt: skip
    rows += [{"what": f"stage alone: {name}", "here": value, "unit": "ms a picture"} for name, value in ms.items()]
    verb = {"read": "reading", "infer": "inferring", "write": "writing"}[limit]
    return rows, [
        "500 pictures, the plain way: the same reader, painter and bundled weights, in fp32, contiguous, one after the "
        "other.",
        f"The limit is {verb}: {ms[limit]:.1f} of {sum(ms.values()):.1f} ms a picture.",
    ]


def train(place: Place):
    """Steps of training, the same pictures in the same order from the same weights."""
    import torch

    rows, notes = [], []
    for name, size, steps in (("lite", 256, 200), ("deeplabv3", 256, 20)):
        if place.quick:
            size, steps = 128, 30 if name == "lite" else 3
        rows.append(_train_side_by_side(place, name, size, steps))
    notes.append(
        "loss is the mean of the last quarter of the steps, with its standard error; the plain loop and this "
        "repository's get the same pictures in the same order from the same weights."
    )
    if torch.cuda.is_available():
        rows += _train_on_gpu(place)
    else:
        notes.append("There was no GPU in this run.")
    return rows, notes


def _training_loader(place: Place, size: int, workers: int, batch: int = const.BATCH_SIZE, cache: bool = False):
    import dataset

    data = place.prepared()
    celeb = dataset.Celeb(
        data / "images_train", data / "masks_train", dataset.train_transform(size), cache=size if cache else None
    )
    return dataset.make_loader(celeb, batch, train=True, workers=workers)


def _epochs(loader) -> Iterator:
    for epoch in itertools.count():
        loader.sampler.epoch = epoch
        yield from loader


def _trainer(place: Place, net, name: str, size: int, loader, device: str, batch: int = const.BATCH_SIZE, **more):
    from training import Config, Trainer

    config = Config(model=name, size=size, batch_size=batch, pretrained=False, **more)
    run_dir = place.temp / f"run-{name}"
    return Trainer(net, config, run_dir, train_loader=lambda _: loader, val_loader=loader, device=device)


def _train_side_by_side(place: Place, name: str, size: int, steps: int) -> dict:
    import torch

    import model as networks
    from recipes import usable_workers

    torch.manual_seed(const.SEED)
    net = networks.build(name)
    workers = usable_workers(None)
    plain = plain_training(copy.deepcopy(net), _epochs(_training_loader(place, size, 0)), const.LR)
    loader = _training_loader(place, size, workers)
    trainer = _trainer(place, net, name, size, loader, "cpu")
    trainer.net.train()
    here = (trainer.step(image, target).item() for image, target in _epochs(loader))
    losses: dict[str, list[float]] = {"plain": [], "here": []}

    def some(way, steps):
        for _ in range(steps):
            losses[way].append(next(plain if way == "plain" else here))

    ways = {way: lambda way=way: some(way, max(1, steps // place.runs)) for way in losses}
    some("plain", 1)
    some("here", 1)
    took = interleaved(ways, place.runs, warm=False)
    per_block = max(1, steps // place.runs)
    tail = max(2, len(losses["here"]) // 4)
    ends = {way: values[-tail:] for way, values in losses.items()}
    return row(
        f"{name}, {size}x{size}, batch {const.BATCH_SIZE}, {len(losses['here'])} steps",
        per_block / took["plain"], per_block / took["here"], "steps/s",
        format=trainer.precision, workers=workers,
        loss_plain=statistics.mean(ends["plain"]), loss_here=statistics.mean(ends["here"]),
        loss_error=statistics.stdev(ends["plain"]) / tail**0.5,
    )  # fmt: skip


def _train_on_gpu(place: Place) -> list[dict]:
    """DeepLabV3 at 512x512 on a GPU: batch 4 and the largest that fits, on drawn noise that lies on the card."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import model as networks

    def plain_step(net, optimizer, image, target):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(net(image), target).backward()
        optimizer.step()

    def measure(make_step, batch: int) -> tuple[float, float]:
        """(pictures a second, peak bytes)"""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        image = torch.randn(batch, 3, 512, 512, device="cuda")
        target = (torch.rand(batch, 1, 512, 512, device="cuda") > 0.5).float()
        step = make_step(batch)

        def steps():
            for _ in range(5):
                step(image, target)
            torch.cuda.synchronize()

        return 5 * batch / interleaved({"step": steps}, place.runs)["step"], torch.cuda.max_memory_allocated()

    def plain(batch: int):
        net = networks.build("deeplabv3").cuda().train()
        optimizer = torch.optim.Adam(net.parameters(), lr=const.LR)
        return lambda image, target: plain_step(net, optimizer, image, target)

    def here(batch: int):
        loader = _training_loader(place, 512, 0, batch=1)
        trainer = _trainer(place, networks.build("deeplabv3"), "deeplabv3", 512, loader, "cuda", batch)
        trainer.net.train()
        return trainer.step

    def largest(make_step) -> tuple[int, float, float]:
        """(batch, pictures a second, peak bytes) of the largest power of two that fits."""
        best = (0, 0.0, 0.0)
        for batch in (4 * 2**i for i in range(12)):
            try:
                best = (batch, *measure(make_step, batch))
            except torch.cuda.OutOfMemoryError:
                break
        return best

    net, image = networks.build("deeplabv3").cuda(), torch.randn(2, 3, 512, 512, device="cuda")
    with FlopCounterMode(display=False) as counter:
        net(image).mean().backward()
    per_picture = counter.get_total_flops() / 2
    del net
    rows = []
    small = {name: (4, *measure(step, 4)) for name, step in (("plain", plain), ("here", here))}
    large = {name: largest(step) for name, step in (("plain", plain), ("here", here))}
    for title, found in (("batch 4", small), ("largest batch", large)):
        rows.append(
            row(f"GPU, DeepLabV3, 512x512, {title} ({found['plain'][0]} and {found['here'][0]})", found["plain"][1],
                found["here"][1], "pictures/s", plain_gb=found["plain"][2] / 1e9, here_gb=found["here"][2] / 1e9,
                here_tflops=found["here"][1] * per_picture / 1e12)
        )  # fmt: skip
    return rows


def load(place: Place):
    """Pictures the loader brings in a second, against those a training step eats."""
    import model as networks

    sizes = (("lite", 128),) if place.quick else (("lite", 256), ("deeplabv3", 512))
    rows, notes = [], []
    for name, size in sizes:
        loader = _training_loader(place, size, 0)
        trainer = _trainer(place, networks.build(name), name, size, loader, "cpu")
        trainer.net.train()
        image, target = next(iter(loader))
        eats = len(image) / interleaved({"step": lambda i=image, t=target, s=trainer: s.step(i, t).item()},
                                     place.runs)["step"]  # fmt: skip
        batches = 10 if place.quick else 50
        for cache in (False, True):
            ways = {}
            for workers in (0, 1, 2):
                stream = _epochs(_training_loader(place, size, workers, cache=cache))
                ways[workers] = lambda stream=stream, n=batches: [next(stream) for _ in range(n)]
            took = interleaved(ways, place.runs)
            for workers, value in took.items():
                brings = batches * const.BATCH_SIZE / value
                what = f"{size}x{size}, {plural(workers, 'worker')}" + (", cached" if cache else "")
                rows.append(
                    {"what": what, "here": brings, "unit": "pictures/s", "times_what_a_step_eats": brings / eats}
                )
        bytes_each = 4 * size * size
        notes.append(
            f"A training step of {name} at {size}x{size} on this CPU eats {eats:.1f} pictures/s; the cache holds "
            f"{bytes_each / 1e6:.2f} MB a picture."
        )
    return rows, notes


def prepare(place: Place):
    """The data set of 4000 faces, as pictures of 1024x1024 and part masks of 512x512 in RGB."""
    import cv2
    import numpy as np

    import data_preprocessing as preparation

    count = 200 if place.quick else 4000
    source = _full_source(place, count)
    # None is removed before the end: ext4 makes new files up to ten times as slowly while it holds back the inodes of
    # many that were just removed, and 4000 faces took 8.5 s in place of 7.0.
    outs = (place.temp / f"out{i}" for i in itertools.count())

    def here() -> float:
        out = next(outs)
        return seconds(lambda: preparation.prepare(source, out, progress=False, ids_train=train_ids, ids_val=val_ids))

    def plain() -> float:
        out = next(outs)
        started = time.perf_counter()
        moves = plain_preparation(source, out)
        took = time.perf_counter() - started
        assert len(moves) == 2 * count
        for old, new in moves:  # it destroys its source
            os.rename(new, old)
        return took

    train_ids, val_ids = const.IDS_TRAIN[: count // 2], const.IDS_VAL[: count // 2]
    parts = source / "CelebAMask-HQ-mask-anno"
    used = [p for name in (const.FACE_PART, const.GLASSES_PART) for p in sorted(parts.glob(f"*/*_{name}.png"))]

    def codec() -> float:
        def one(path: Path) -> None:
            mask = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
            if path.name.endswith(f"_{const.FACE_PART}.png"):
                cv2.imencode(".png", mask)

        with ThreadPoolExecutor(usable_cores()) as pool:
            return seconds(lambda: list(pool.map(one, used)))

    rounds = [(plain(), here(), codec()) for _ in range(place.runs)]
    moved, made, coded = (statistics.median(values) for values in zip(*rounds, strict=True))
    return [
        cost(f"{count} faces prepared, against moving them unchecked", moved, made, target=TARGETS["prepare"]),
        cost(f"... against decoding the {len(used)} masks and encoding {count}", coded, made, target=2.0),
    ], [
        "Moving renames pictures and skin masks, checks nothing and destroys the source. Here the source is only read, "
        "every mask is decoded, checked and written as one channel, and pictures are hard links.",
        f"OpenCV's decoding and encoding alone take {coded:.2f} s on all cores, {coded / moved:.0f} times as long as "
        "moving: no way that looks at the masks with it can be faster.",
    ]  # fmt: skip


def _full_source(place: Place, count: int) -> Path:
    """The official layout with `count` faces, half of either split, every file one of its own."""
    drawn = drawn_source(place)
    full = place.temp / "full" / "CelebAMask-HQ"
    (full / "CelebA-HQ-img").mkdir(parents=True)
    originals = sorted(int(p.stem) for p in (drawn / "CelebA-HQ-img").glob("*.jpg"))
    contents = {}
    for i in originals:
        picture = (drawn / "CelebA-HQ-img" / f"{i}.jpg").read_bytes()
        masks = (drawn / "CelebAMask-HQ-mask-anno" / str(i // const.IDS_PER_FOLDER)).glob(f"{i:05d}_*.png")
        contents[i] = picture, {p.name.partition("_")[2]: p.read_bytes() for p in masks}
    ids = [*const.IDS_TRAIN[: count // 2], *const.IDS_VAL[: count // 2]]
    for i, like in zip(ids, itertools.cycle(originals), strict=False):
        picture, masks = contents[like]
        (full / "CelebA-HQ-img" / f"{i}.jpg").write_bytes(picture)
        folder = full / "CelebAMask-HQ-mask-anno" / str(i // const.IDS_PER_FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in masks.items():
            (folder / f"{i:05d}_{name}").write_bytes(data)
    return full


def growth(place: Place):
    """How time and memory grow: the predict command, from its start to its end."""
    import cv2

    from studies.drawn_faces import draw_face

    largest = draw_face([0, 0], 1024)[0][..., ::-1]
    rows = []

    def save(path: Path, size: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(largest, (size, size), interpolation=cv2.INTER_AREA))
        return path

    def many(name: str, size: int, count: int) -> Path:
        """A folder of `count` hard links to one picture."""
        first = save(place.temp / name / "0.jpg", size)
        for i in range(1, count):
            os.link(first, first.with_name(f"{i}.jpg"))
        return first.parent

    def add(what: str, inputs: Path, runs: int, *options, world_size: int = 1, **more) -> None:
        taken = [_watched_prediction(place, inputs, options, world_size) for _ in range(1 if place.quick else runs)]
        took, peak = (statistics.median(values) for values in zip(*taken, strict=True))
        rows.append({"what": what, "here": took, "unit": "s", "peak_mb": peak, **more})

    for size in (256, 1024) if place.quick else (256, 512, 1024, 2048, 4096, 6000):
        add(f"one picture of {size}x{size}", save(place.temp / f"{size}.jpg", size), place.runs)
    pictures = many("batches", 512, 16 if place.quick else 64)
    for batch in (1, 8) if place.quick else (1, 4, 16):
        add(f"{len(list(pictures.iterdir()))} pictures of 512x512, batch {batch}", pictures, place.runs,
            "--batch-size", str(batch))  # fmt: skip
    counts = (10, 40) if place.quick else (10, 100, 1000, 10_000)
    for count in counts:
        inputs = many(f"count{count}", 256, count)
        if count == 10_000 and not place.full and rows[-1]["here"] > 30:
            continue  # over five minutes
        add(f"{count} pictures of 256x256", inputs, place.runs if count < 1000 else 1, pictures=count)
    inputs, count = (many("shared", 256, 40), 40) if place.quick else (place.temp / "count1000", 1000)
    for world_size in (1, 2):
        add(f"{count} pictures of 256x256, {plural(world_size, 'process', 'processes')}", inputs,
            1 if count == 1000 else place.runs, world_size=world_size)  # fmt: skip
    return rows, [
        "Seconds include the start, peak_mb is that of the largest process; the bundled model, on the CPU. From 1000 "
        "pictures on they are of one run."
    ]


# A small process that runs a command and prints its peak memory. A child of a large process would be given the memory
# that this one held when it was started.
WATCH = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def _watched_prediction(place: Place, inputs: Path, options, world_size: int) -> tuple[float, float]:
    """(seconds, peak resident megabytes of the largest process) of `main.py predict`, in shards where there are several
    processes, which share the cores."""
    out = Path(tempfile.mkdtemp(dir=place.temp))
    command = [sys.executable, str(const.DIR_PATH / "main.py"), "predict", str(inputs), "--weights", "bundled"]
    env = {**os.environ, "LOCAL_WORLD_SIZE": str(world_size)}
    if world_size > 1:
        env["OMP_NUM_THREADS"] = str(max(1, usable_cores() // world_size))
    started = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WATCH, *command, "--out", str(out), "--shard", f"{i + 1}/{world_size}", *options],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(world_size)
    ]
    peaks = [process.communicate()[0] for process in running]
    took = time.perf_counter() - started
    if any(process.returncode for process in running):
        raise RuntimeError(f"main.py predict {inputs} failed")
    shutil.rmtree(out)
    return took, max(map(int, peaks)) / (1e6 if sys.platform == "darwin" else 1e3)


# --- Tables ---------------------------------------------------------------------------------------------------------
def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def shown(value) -> str:
    """A number for people: three digits, whole from a hundred up."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def table(rows: list[dict]) -> str:
    """Rows in columns, those that no row fills left out."""
    keys = [k for k in dict.fromkeys(k for r in rows for k in r) if any(r.get(k) is not None for r in rows)]
    cells = [[k.replace("_", " ") for k in keys], *([_cell(k, r.get(k)) for k in keys] for r in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(key: str, value) -> str:
    return f"{value:.4f}" if key in ("iou", "loss_plain", "loss_here", "loss_error") and value else shown(value)


def readme_section(record: dict) -> str:
    """README's performance section: what stands between the two markers."""
    lines = []
    for when, names in _by_machine(record["sections"]):
        m = record["sections"][names[0]]["machine"]
        gpu = f", {m['gpu']}" if m["gpu"] else ""
        bf16 = "with" if m["bf16"] else "without"
        lines += [
            f"{m['processor']}, {m['cores']} cores, {bf16} bf16{gpu}; PyTorch {m['torch']}; {when}. Medians.",
            "",
            "| | the plain way | here | ratio | goal |",
            "|---|---|---|---|---|",
        ]
        for name in names:
            for r in record["sections"][name]["rows"]:
                if "plain" in r:
                    asked = f"at least {shown(r['target'])}" if r.get("target") else ""
                    asked = f"at most {shown(r['at_most'])}" if r.get("at_most") else asked
                    pair = (f"{shown(r[k])} {r['unit']}" for k in ("plain", "here"))
                    more = f" (masks agree at IoU {r['iou']:.4f})" if r.get("iou") else ""
                    if "loss_here" in r:
                        more = f" (loss {r['loss_plain']:.4f} ± {r['loss_error']:.4f}, here {r['loss_here']:.4f})"
                    lines.append(f"| {r['what']}{more} | {' | '.join(pair)} | {shown(r['ratio'])} | {asked} |")
        lines += ["", "| | | peak memory |", "|---|---|---|"]
        for name in names:
            for r in record["sections"][name]["rows"]:
                if "plain" not in r:
                    peak = f"{shown(r['peak_mb'])} MB" if "peak_mb" in r else ""
                    eats = r.get("times_what_a_step_eats")
                    more = f", {shown(eats)} times what a training step eats" if eats else ""
                    lines.append(f"| {r['what']} | {shown(r['here'])} {r['unit']}{more} | {peak} |")
        lines += ["", *(f"- {note}" for name in names for note in record["sections"][name]["notes"]), ""]
    return "\n".join(lines).strip()


def _by_machine(sections: dict) -> list[tuple[str, list[str]]]:
    """(dates, names of the sections measured then on one machine), in the order of `SECTIONS`."""
    groups: dict[str, tuple[set, list[str]]] = {}
    for name in SECTIONS:
        if name in sections:
            what = {key: value for key, value in sections[name]["machine"].items() if key != "date"}
            dates, names = groups.setdefault(json.dumps(what, sort_keys=True), (set(), []))
            dates.add(sections[name]["machine"]["date"])
            names.append(name)
    return [(" and ".join(sorted(dates)), names) for dates, names in groups.values()]


def rewrite_readme(readme: Path, record: dict) -> None:
    """Put the section between the markers of README.md.

    Raises:
        DataError: there is no such place, or the record holds no results, or quick ones.
    """
    if not record["sections"] or any(section["quick"] for section in record["sections"].values()):
        raise DataError("README shows results of every section measured without --quick")
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{readme} has no place for the numbers: a line {BEGIN} and a line {END}")
    write_text(readme, f"{before}{BEGIN}\n\n{readme_section(record)}\n\n{END}{after}")


# --- The command ----------------------------------------------------------------------------------------------------
def read_record(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for name, section in record["sections"].items():
            if name not in SECTIONS or not {"machine", "quick", "rows", "notes"} <= section.keys():
                raise ValueError
        return {"sections": record["sections"]}
    except FileNotFoundError:
        raise DataError(f"there is no {path}: measure first, with `python -m studies.benchmark`") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is not what this script writes; remove it and measure again") from None


def measure(names: Iterable[str], out: Path, *, quick: bool, full: bool, data: Path | None) -> dict:
    """Run sections, print their tables, and write them into the JSON, where others stay as they are."""
    record = read_record(out) if out.is_file() else {"sections": {}}
    for name in names:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="benchmark-") as temp:
            rows, notes = globals()[name](Place(Path(temp), quick, full, data))
        took = time.perf_counter() - started
        record["sections"][name] = {"machine": machine(), "quick": quick, "rows": rows, "notes": notes}
        print(f"\n{name} ({took:.0f} s)\n{table(rows)}")
        for note in notes:
            print(note)
        sys.stdout.flush()
        write_text(out, json.dumps(record, indent=1) + "\n")
    return record


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measures this repository against the plain way on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sections, of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared folders; default: drawn faces")
    parser.add_argument("--out", type=Path, metavar="F", help="default: results/benchmark.json, or results-quick/")
    parser.add_argument("--quick", action="store_true", help="few pictures and three runs: a look, not a result")
    parser.add_argument("--full", action="store_true", help="also 10,000 pictures where they take over five minutes")
    parser.add_argument("--readme", action="store_true", help="only write README.md's performance section from --out")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if args.readme and (args.names or args.quick):
        parser.error("--readme measures nothing: give it --out alone")
    args.out = args.out or (const.DIR_PATH / "results-quick" / RESULTS.name if args.quick else RESULTS)
    try:
        if args.readme:
            rewrite_readme(README, read_record(args.out))
            return 0
        if args.data is not None:
            from data_preprocessing import is_prepared

            if not is_prepared(args.data):
                raise DataError(f"{args.data} holds no prepared data; run `python data_preprocessing.py`")
        if args.out.is_dir():
            raise DataError(f"{args.out} is a folder; --out is the file to write")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(args.out.parent, os.W_OK):  # better now than after the first section
            raise DataError(f"{args.out.parent} cannot be written to; give another --out")
        measure(args.names or SECTIONS, args.out, quick=args.quick, full=args.full, data=args.data)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
