"""How fast this repository is: a baseline and ours, interleaved in one run on the machine at hand.

    python -m studies.benchmark                  every section, into results/benchmark.json and results/benchmark.md
    python -m studies.benchmark predict folder   only these sections; the others stay as they are in the file
    python -m studies.benchmark --quick          few pictures, three runs instead of five: not a result; results-quick/

The baseline is fp32, contiguous tensors, no worker processes, and the original's loop written as simply as can be. It
gets the same data, networks and weights. Without --data the pictures are drawn ones (drawn_faces.py): how long a
picture takes depends on its size, and hardly on what it shows.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import const
from common import UserError, exit_code, usable_cores, write_text
from studies.timing import interleaved, machine

SECTIONS = ("predict", "start", "folder", "train", "load", "prepare", "growth")
RESULTS = const.DIR_PATH / "results" / "benchmark.json"
DISTINCT = 40  # faces drawn; more pictures are copies of their files


@dataclass
class Context:
    """Where a section works, and how thoroughly."""

    temp: Path  # its own, removed afterwards
    quick: bool
    data: Path | None  # prepared folders, or None to draw faces

    @property
    def runs(self) -> int:
        return 3 if self.quick else 5

    def pictures(self) -> list[Path]:
        """Pictures of faces: those of --data, else drawn ones of 1024x1024."""
        if self.data is not None:
            return sorted((self.data / "images_train").glob("*.jpg"))
        return sorted((self.drawn_source() / "CelebA-HQ-img").glob("*.jpg"))

    def folder_of(self, count: int, size: int) -> Path:
        """A folder of `count` pictures of size x size: `DISTINCT` of them, the rest hard links."""
        import cv2

        folder = self.temp / f"{count}-of-{size}"
        if not folder.is_dir():
            folder.mkdir()
            sources = self.pictures()[:DISTINCT]
            files = [folder / f"{i:05d}.jpg" for i in range(count)]
            for source, file in zip(sources, files, strict=False):
                picture = cv2.resize(cv2.imread(str(source)), (size, size), interpolation=cv2.INTER_AREA)
                cv2.imwrite(str(file), picture)
            for i in range(len(sources), count):
                os.link(files[i % len(sources)], files[i])
        return folder

    def prepared(self) -> Path:
        """Prepared folders: those of --data, else of drawn faces."""
        if self.data is not None:
            return self.data
        import data_preprocessing

        out = self.temp / "prepared"
        data_preprocessing.prepare(self.drawn_source(), out, progress=False)
        return out

    def drawn_source(self) -> Path:
        """The official layout with `DISTINCT` drawn training faces and four for validation; part masks are RGB, as most
        of the official ones are."""
        from studies import drawn_faces

        folder = self.temp / "drawn"
        if folder.is_dir():
            return folder / "CelebAMask-HQ"
        ids = [*const.IDS_TRAIN[: 12 if self.quick else DISTINCT], *const.IDS_VAL[:4]]
        return drawn_faces.draw_celeb_tree(folder, ids, image_size=1024, part_modes=("RGB",))


def row(what: str, baseline: float, ours: float, unit: str = "s", **more) -> dict:
    """A line of a table. `ratio` is how many times as fast as the baseline ours is: baseline / ours of seconds, ours /
    baseline of a rate such as "images/s"."""
    ratio = ours / baseline if unit.endswith("/s") else baseline / ours
    return {"what": what, "baseline": baseline, "ours": ours, "unit": unit, "ratio": ratio, **more}


# --- The baseline ---------------------------------------------------------------------------------------------------
def baseline_input(picture, size: int):
    """uint8 (H, W, 3) to float32 (1, 3, size, size), squashed and normalised, as the original's loop did."""
    import cv2
    import numpy as np
    import torch

    small = cv2.resize(picture, (size, size)).astype(np.float32) / 255
    x = (small - np.float32(const.IMAGENET_MEAN)) / np.float32(const.IMAGENET_STD)
    return torch.from_numpy(x.transpose(2, 0, 1).copy())[None]


def baseline_mask(net, picture, size: int):
    """(H, W) bool of one picture, in one pass."""
    import torch

    with torch.no_grad():
        return net(baseline_input(picture, size))[0, 0].numpy() > 0


def baseline_segmenter(net, info):
    """A Segmenter whose network is the plain one: fp32, contiguous, nothing fused. Its masks are the same."""
    import torch

    from inference import Segmenter

    segmenter = Segmenter(copy.deepcopy(net), info, precision="fp32")
    segmenter.backend._net = lambda x: net(x.contiguous(memory_format=torch.contiguous_format))
    return segmenter


def baseline_training(net, batches: Iterable, lr: float) -> Iterator[float]:
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


# --- Sections: each gives its rows ----------------------------------------------------------------------------------
def predict(context: Context) -> list[dict]:
    """One picture on the CPU, at the original's 512x512."""
    import cv2

    import model as networks
    from inference import Segmenter
    from metrics import Counts
    from pictures import read_picture

    side = 128 if context.quick else const.IMG_SIZE
    read = (read_picture(path) for path in context.pictures()[: 3 if context.quick else 8])
    pictures = [cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in read]
    ways, details = {}, {}
    for name in ("deeplabv3", "unet"):
        net = briefly_trained(name, context, side)
        ours = Segmenter(net, networks.Info(name, side))
        net = copy.deepcopy(net)
        ways[f"{name} baseline"] = lambda net=net: baseline_mask(net, pictures[0], side)
        ways[name] = lambda ours=ours: ours.mask(pictures[0])
        agreement = Counts()
        for picture in pictures:
            agreement.add(ours.mask(picture) > 0, baseline_mask(net, picture, side), boundary=False)
        details[name] = {"mask_iou": agreement.iou, "precision": _dtype(ours)}
    bundled = Segmenter(*networks.load(networks.bundled_weights()))
    ways["bundled"] = lambda: bundled.mask(pictures[0])
    took = interleaved(ways, context.runs)
    rows = [
        row(f"{title}, {side}x{side}", took[f"{name} baseline"], took[name], **details[name])
        for name, title in (("deeplabv3", "DeepLabV3"), ("unet", "U-Net"))
    ]
    title = f"bundled model ({plural(bundled.passes, 'pass', 'passes')}) against DeepLabV3"
    rows.append(row(title, took["deeplabv3 baseline"], took["bundled"], precision=_dtype(bundled)))
    return rows


def _dtype(segmenter) -> str:
    return segmenter.backend.precision


def briefly_trained(name: str, context: Context, size: int):
    """A network after some steps on the prepared faces: the logits of random weights lie along 0 everywhere, where
    every rounding shows in the mask."""
    import torch

    import dataset
    import model as networks

    steps = 25 if context.quick else 60
    torch.manual_seed(const.SEED)
    net = networks.build(name)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3  # its statistics have few steps to settle
    data = context.prepared()
    celeb = dataset.Celeb(data / "images_train", data / "masks_train", dataset.val_transform(size), limit=DISTINCT)
    batches = _epochs(dataset.make_loader(celeb, 2, train=True))
    list(itertools.islice(baseline_training(net, batches, lr=1e-3), steps))
    return net.eval()


def start(context: Context) -> list[dict]:
    """A command from the shell to its end."""
    from inference import Segmenter
    from model import bundled_weights, load
    from pictures import read_picture

    picture, program = context.pictures()[0], str(const.DIR_PATH / "main.py")
    commands = {
        "import": ["-c", "import torch, torchvision"],
        "predict": [program, "predict", str(picture), "--weights", "bundled", "--out", str(context.temp / "start")],
        "help": [program, "--help"],
    }
    ways = {
        name: lambda c=command: subprocess.run([sys.executable, *c], check=True, stdout=subprocess.DEVNULL)
        for name, command in commands.items()
    }
    took = interleaved(ways, context.runs)
    segmenter, pixels = Segmenter(*load(bundled_weights())), read_picture(picture)
    forward = interleaved({"forward": lambda: segmenter.mask(pixels)}, context.runs)["forward"]
    return [
        row("predict one picture; baseline: import torch and torchvision, one mask", took["import"] + forward,
            took["predict"]),
        {"what": "--help", "ours": took["help"], "unit": "s"},
    ]  # fmt: skip


def folder(context: Context) -> list[dict]:
    """A folder of 1024x1024 pictures to masks and overlays."""
    import cv2

    from drawing import overlay, parse_color
    from main import Runner
    from model import bundled_weights, load
    from pictures import read_picture

    total = 40 if context.quick else 500
    inputs, out = context.folder_of(total, 1024), context.temp / "folder-out"
    runner = Runner("cpu", log=lambda *words: None).load("bundled")
    plain, color = baseline_segmenter(*load(bundled_weights())), parse_color(const.OVERLAY_COLOR)
    (out / "baseline").mkdir(parents=True)

    def write(name, picture, mask):
        cv2.imwrite(str(out / "baseline" / f"{name}_mask.png"), mask)
        drawn = cv2.cvtColor(overlay(picture, mask, color, const.OVERLAY_ALPHA), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(out / "baseline" / f"{name}_overlay.jpg"), drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])

    def baseline():
        for path in sorted(inputs.iterdir()):
            picture = read_picture(path)
            write(path.stem, picture, plain.mask(picture))

    ways = {"baseline": baseline, "ours": lambda: runner.predict([inputs], out / "ours")}
    took = interleaved(ways, context.runs, warm=False)
    some = sorted(inputs.iterdir())[:20]
    pictures = [read_picture(p) for p in some]
    masks = [runner.segmenter.mask(p) for p in pictures]
    stages = {
        "read": lambda: [read_picture(p) for p in some],
        "infer": lambda: [runner.segmenter.mask(p) for p in pictures],
        "write": lambda: [write(p.stem, *both) for p, *both in zip(some, pictures, masks, strict=True)],
    }
    ms = {name: 1000 * value / len(some) for name, value in interleaved(stages, context.runs).items()}
    return [
        row(f"{total} pictures of 1024x1024, read, segmented, written", total / took["baseline"], total / took["ours"],
            "images/s"),
        *({"what": f"stage alone: {name}", "ours": value, "unit": "ms/image"} for name, value in ms.items()),
    ]  # fmt: skip


def train(context: Context) -> list[dict]:
    """Steps of training, the same pictures in the same order from the same weights."""
    import torch

    rows = []
    for name, size, steps in (("lite", 256, 200), ("deeplabv3", 256, 20)):
        if context.quick:
            size, steps = 128, 30 if name == "lite" else 3
        rows.append(_train_side_by_side(context, name, size, steps))
    return rows + (_train_on_gpu(context) if torch.cuda.is_available() else [])


def _training_loader(context: Context, size: int, workers: int, batch: int = const.BATCH_SIZE, cache: bool = False):
    import dataset

    data = context.prepared()
    celeb = dataset.Celeb(
        data / "images_train", data / "masks_train", dataset.train_transform(size), cache=size if cache else None
    )
    return dataset.make_loader(celeb, batch, train=True, workers=workers)


def _epochs(loader) -> Iterator:
    for epoch in itertools.count():
        loader.sampler.epoch = epoch
        yield from loader


def _trainer(context: Context, net, name: str, size: int, loader, device: str, batch: int = const.BATCH_SIZE, **more):
    from training import Config, Original, Trainer

    config, run_dir = Config(model=name, size=size, batch_size=batch, pretrained=False, **more), context.temp / "run"
    recipe = Original(config, context.temp, run_dir, workers=0)
    recipe.loader = lambda _: loader
    return Trainer(recipe, run_dir, net=net, val_loader=loader, device=device)


def _train_side_by_side(context: Context, name: str, size: int, steps: int) -> dict:
    """The losses are means of the last quarter of the steps, `loss_error` the standard error of the baseline's."""
    import torch

    import model as networks

    torch.manual_seed(const.SEED)
    net = networks.build(name)
    workers = max(0, min(4, usable_cores() - 1))
    baseline = baseline_training(copy.deepcopy(net), _epochs(_training_loader(context, size, 0)), const.LR)
    loader = _training_loader(context, size, workers)
    trainer = _trainer(context, net, name, size, loader, "cpu")
    trainer.net.train()
    streams = {
        "baseline": baseline,
        "ours": (trainer.step(image, target).item() for image, target in _epochs(loader)),
    }
    block = max(1, steps // context.runs)
    losses = {way: [next(stream)] for way, stream in streams.items()}
    ways = {way: lambda way=way: losses[way].extend(itertools.islice(streams[way], block)) for way in losses}
    took = interleaved(ways, context.runs, warm=False)
    tail = max(2, len(losses["ours"]) // 4)
    ends = {way: values[-tail:] for way, values in losses.items()}
    return row(
        f"{name}, {size}x{size}, batch {const.BATCH_SIZE}, {len(losses['ours'])} steps",
        block / took["baseline"], block / took["ours"], "steps/s",
        precision=trainer.precision, workers=workers,
        loss_baseline=statistics.mean(ends["baseline"]), loss_ours=statistics.mean(ends["ours"]),
        loss_error=statistics.stdev(ends["baseline"]) / tail**0.5,
    )  # fmt: skip


def _train_on_gpu(context: Context) -> list[dict]:
    """DeepLabV3 at 512x512 on a GPU: batch 4 and the largest that fits, on noise that lies on the card."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import model as networks

    def baseline(batch: int):
        net = networks.build("deeplabv3").cuda().train()
        optimizer = torch.optim.Adam(net.parameters(), lr=const.LR)

        def step(image, target):
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(net(image), target).backward()
            optimizer.step()

        return step

    def ours(batch: int):
        loader = _training_loader(context, 512, 0, batch=1)
        trainer = _trainer(context, networks.build("deeplabv3"), "deeplabv3", 512, loader, "cuda", batch)
        trainer.net.train()
        return trainer.step

    net, image = networks.build("deeplabv3").cuda(), torch.randn(2, 3, 512, 512, device="cuda")
    with FlopCounterMode(display=False) as counter:
        net(image).mean().backward()
    flops = counter.get_total_flops() / 2  # of one picture
    del net
    rows = []
    for title, most in (("batch 4", 4), ("largest batch", 2**13)):
        found = [_largest_batch(step, most, context.runs) for step in (baseline, ours)]
        (batch, plain, plain_peak), (our_batch, rate, peak) = found
        rows.append(
            row(f"GPU, DeepLabV3, 512x512, {title} ({batch} and {our_batch})", plain, rate, "images/s",
                baseline_gb=plain_peak / 1e9, ours_gb=peak / 1e9, ours_tflops=rate * flops / 1e12)
        )  # fmt: skip
    return rows


def _largest_batch(make_step, most: int, runs: int) -> tuple[int, float, float]:
    """(batch, images/s, peak bytes) of the largest batch that fits on the GPU: 4, 8, ... `most`."""
    import torch

    best = (0, 0.0, 0.0)
    batch = 4
    while batch <= most:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            image = torch.randn(batch, 3, 512, 512, device="cuda")
            target = (torch.rand(batch, 1, 512, 512, device="cuda") > 0.5).float()
            step = make_step(batch)

            def steps(step=step, image=image, target=target):
                for _ in range(5):
                    step(image, target)
                torch.cuda.synchronize()

            rate = 5 * batch / interleaved({"step": steps}, runs)["step"]
        except torch.cuda.OutOfMemoryError:
            break
        best = (batch, rate, torch.cuda.max_memory_allocated())
        batch *= 2
    return best


def load(context: Context) -> list[dict]:
    """Images/s of a training step, and of a loader with one worker process that should keep it fed."""
    import model as networks

    size = 128 if context.quick else 256
    loader = _training_loader(context, size, 0)
    trainer = _trainer(context, networks.build("lite"), "lite", size, loader, "cpu")
    trainer.net.train()
    image, target = next(iter(loader))
    took = interleaved({"step": lambda: trainer.step(image, target).item()}, context.runs)
    step_rate = len(image) / took["step"]
    batches = 10 if context.quick else 50
    streams = {title: _epochs(_training_loader(context, size, 1, cache=cache))
               for title, cache in (("1 worker", False), ("1 worker, cached", True))}  # fmt: skip
    ways = {name: lambda s=stream: list(itertools.islice(s, batches)) for name, stream in streams.items()}
    return [
        row(f"lite, {size}x{size}: images/s of the step, of the loader ({title})", step_rate,
            batches * const.BATCH_SIZE / value, "images/s")
        for title, value in interleaved(ways, context.runs).items()
    ]  # fmt: skip


def prepare(context: Context) -> list[dict]:
    """The data set of 4000 faces, as pictures of 1024x1024 and part masks of 512x512 in RGB, against the least that it
    can take: every mask that is used decoded, and written as one channel, on all cores."""
    import cv2
    import numpy as np

    import data_preprocessing as preparation

    count = 200 if context.quick else 4000
    source = _full_source(context, count)
    # None is removed before the end: ext4 makes new files up to ten times as slowly while it holds back the inodes of
    # many that were just removed, and 4000 faces took 8.5 s in place of 7.0.
    outs = (context.temp / f"out{i}" for i in itertools.count())
    ids = {"ids_train": const.IDS_TRAIN[: count // 2], "ids_val": const.IDS_VAL[: count // 2]}
    parts = source / "CelebAMask-HQ-mask-anno"
    used = [p for name in (const.FACE_PART, const.GLASSES_PART) for p in sorted(parts.glob(f"*/*_{name}.png"))]

    def recode(path: Path) -> None:
        mask = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
        if path.name.endswith(f"_{const.FACE_PART}.png"):
            cv2.imencode(".png", mask)

    def baseline() -> None:
        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(recode, used))

    ways = {"baseline": baseline, "ours": lambda: preparation.prepare(source, next(outs), progress=False, **ids)}
    took = interleaved(ways, context.runs, warm=False)
    title = f"{count} faces prepared; baseline: {len(used)} masks decoded, {count} encoded"
    return [row(title, took["baseline"], took["ours"])]


def _full_source(context: Context, count: int) -> Path:
    """The official layout with `count` faces, half of either split, every file one of its own."""
    drawn, full = context.drawn_source(), context.temp / "full" / "CelebAMask-HQ"
    (full / "CelebA-HQ-img").mkdir(parents=True)
    originals = sorted((drawn / "CelebA-HQ-img").glob("*.jpg"))
    masks = {p: sorted((drawn / "CelebAMask-HQ-mask-anno").glob(f"*/{int(p.stem):05d}_*.png")) for p in originals}
    ids = [*const.IDS_TRAIN[: count // 2], *const.IDS_VAL[: count // 2]]
    for i, like in zip(ids, itertools.cycle(originals), strict=False):
        shutil.copyfile(like, full / "CelebA-HQ-img" / f"{i}.jpg")
        folder = full / "CelebAMask-HQ-mask-anno" / str(i // const.IDS_PER_FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        for mask in masks[like]:
            shutil.copyfile(mask, folder / f"{i:05d}_{mask.name.partition('_')[2]}")
    return full


def growth(context: Context) -> list[dict]:
    """How time and memory grow: the predict command, from its start to its end, with the bundled model on the CPU."""
    many = 40 if context.quick else 1000
    rows = []
    for size, count, batch, processes in (
        (512, 1, 4, 1),
        (1024 if context.quick else 6000, 1, 4, 1),
        (512, 16 if context.quick else 64, 16, 1),
        (256, many, 4, 1),
        (256, many, 4, 2),
    ):
        inputs = context.folder_of(count, size)
        runs = 1 if context.quick or count == many else context.runs
        taken = [_watched_prediction(context, inputs, batch, processes) for _ in range(runs)]
        took, peak = (statistics.median(values) for values in zip(*taken, strict=True))
        what = (
            f"{plural(count, 'picture')} of {size}x{size}, batch {batch}, {plural(processes, 'process', 'processes')}"
        )
        rows.append({"what": what, "ours": took, "unit": "s", "runs": runs, "peak_mb": peak})
    return rows


# A small process that runs a command and prints its peak memory. A child of a large process would be given the memory
# that this one held when it was started.
WATCH = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def _watched_prediction(context: Context, inputs: Path, batch: int, processes: int) -> tuple[float, float]:
    """(seconds, peak resident megabytes of the largest process) of `main.py predict`, in shards where there are several
    processes, which divide the cores between them."""
    out = Path(tempfile.mkdtemp(dir=context.temp))
    command = [sys.executable, str(const.DIR_PATH / "main.py"), "predict", str(inputs), "--weights", "bundled"]
    command += ["--batch-size", str(batch), "--out", str(out)]
    env = {**os.environ, "LOCAL_WORLD_SIZE": str(processes)}
    if processes > 1:
        env["OMP_NUM_THREADS"] = str(max(1, usable_cores() // processes))
    started = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WATCH, *command, "--shard", f"{i + 1}/{processes}"],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
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


def shown(value, key: str = "") -> str:
    """A number for people: three digits, whole from a hundred up; four decimals of an IoU or a loss."""
    if isinstance(value, float):
        if key == "mask_iou" or key.startswith("loss"):
            return f"{value:.4f}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def to_markdown(record: dict) -> str:
    """The sections in one table for each machine that they were measured on."""
    columns = ("what", "baseline", "ours", "unit", "ratio")
    lines = ["# Speed: the baseline and ours", "", "Medians of `python -m studies.benchmark`; ratio: times as fast."]
    told = None
    for name in (name for name in SECTIONS if name in record["sections"]):
        section = record["sections"][name]
        if section["machine"] != told:
            told = section["machine"]
            lines += ["", ", ".join(f"{key} {shown(value)}" for key, value in told.items() if value is not None), ""]
            lines += ["| | | baseline | ours | unit | ratio | |", "|---|---|---|---|---|---|---|"]
        for r in section["rows"]:
            more = ", ".join(f"{k.replace('_', ' ')} {shown(v, k)}" for k, v in r.items() if k not in columns)
            cells = [name + (", quick" if section["quick"] else ""), *(shown(r.get(key)) for key in columns), more]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# --- The command ----------------------------------------------------------------------------------------------------
def read_record(path: Path) -> dict:
    """The sections measured so far; none without a file."""
    if not path.exists():
        return {"sections": {}}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        to_markdown(record)
        return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not what this script writes; remove it and measure again.") from None


def measure(names: Iterable[str], out: Path, *, quick: bool, data: Path | None) -> None:
    """Run sections and write them into the JSON and the table, where others stay as they are."""
    record = read_record(out)
    for name in names:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="benchmark-") as temp:
            rows = globals()[name](Context(Path(temp), quick, data))
        print(f"{name} ({time.perf_counter() - started:.0f} s)")
        for r in rows:
            print("  " + ", ".join(f"{key} {shown(value, key)}" for key, value in r.items()), flush=True)
        record["sections"][name] = {"machine": machine(), "quick": quick, "rows": rows}
        write_text(out, json.dumps(record, indent=1) + "\n")
        write_text(out.with_suffix(".md"), to_markdown(record))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measures this repository against a baseline on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sections, of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared folders; default: drawn faces")
    parser.add_argument("--out", type=Path, metavar="F", help="default: results/benchmark.json, or results-quick/")
    parser.add_argument("--quick", action="store_true", help="few pictures and three runs: a check, not a result")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    out = args.out or (const.DIR_PATH / "results-quick" / RESULTS.name if args.quick else RESULTS)

    def work() -> None:
        if args.data is not None:
            from data_preprocessing import is_prepared

            if not is_prepared(args.data):
                raise UserError(f"{args.data} holds no prepared data; run `python data_preprocessing.py`.")
        if out.is_dir():
            raise UserError(f"{out} is a folder; --out is the file to write.")
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK):  # better now than after the first section
            raise UserError(f"{out.parent} cannot be written to; give another --out.")
        measure(args.names or SECTIONS, out, quick=args.quick, data=args.data)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
