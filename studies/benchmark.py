"""How fast this repository is: a baseline and ours, interleaved in one run on the machine at hand.

    python -m studies.benchmark                  every section, into results/benchmark.json and results/benchmark.md
    python -m studies.benchmark predict folder   only these sections; the others stay as they are in the file
    python -m studies.benchmark --quick          few pictures, one run instead of five: not a result; results-quick/
    python -m studies.benchmark --data CelebAMask-HQ --mediapipe mesh/bin/python

The baseline is fp32, contiguous tensors, no worker processes, and the original's loop written as simply as can be, with
the same data, networks and weights. Without --data the faces are drawn ones (drawn_faces.py): how long a picture takes
depends on its size, and hardly on what it shows, but their Dice says nothing. MediaPipe's face mesh needs a Python of
its own: `python -m venv mesh && mesh/bin/pip install mediapipe==0.10.21`.
"""

import argparse
import copy
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import const
import data_preprocessing
import model as networks
from common import UserError, exit_code, usable_cores, write_text
from dataset import Celeb
from drawing import overlay, parse_color
from extras import openvino_backend
from inference import Segmenter
from main import Runner
from metrics import Counts
from pictures import read_picture
from studies import drawn_faces
from studies.shared import interleaved, machine, read_json, table, write_json
from training import Config, Original, Trainer

SECTIONS = ("predict", "start", "folder", "busy", "train", "gpu", "load", "growth")
RESULTS = const.DIR_PATH / "results" / "benchmark.json"
DISTINCT = 40  # faces drawn; more pictures repeat them
PASSES = {1: "1 pass", 2: "2 passes"}
PROGRAM = str(const.DIR_PATH / "main.py")


@dataclass
class Context:
    """Where a section works, and how thoroughly."""

    temp: Path  # its own, removed afterwards
    quick: bool
    data: Path | None = None  # prepared folders, or None to draw faces
    mediapipe: str | None = None  # a Python that has it

    runs = property(lambda self: 1 if self.quick else 5)

    @cached_property
    def prepared(self) -> Path:
        """Prepared folders: those of --data, else of `DISTINCT` drawn training faces and four for validation."""
        if self.data is not None:
            return self.data
        ids = [*const.IDS_TRAIN[: 12 if self.quick else DISTINCT], *const.IDS_VAL[:4]]
        drawn = drawn_faces.draw_celeb_tree(self.temp / "drawn", ids, image_size=1024, part_modes=("RGB",))
        data_preprocessing.prepare(drawn, self.temp / "prepared", progress=False)
        return self.temp / "prepared"

    def folder_of(self, count: int, size: int) -> Path:
        """A new folder of `count` pictures of size x size."""
        folder = Path(tempfile.mkdtemp(dir=self.temp))
        sources = sorted((self.prepared / "images_train").glob("*.jpg"))[:DISTINCT]
        for i, source in zip(range(count), itertools.cycle(sources), strict=False):
            picture = cv2.resize(cv2.imread(str(source)), (size, size), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(folder / f"{i:05d}.jpg"), picture)
        return folder


# --- The baseline ---------------------------------------------------------------------------------------------------
def baseline_mask(net, picture, size: int):
    """(H, W) bool of one picture uint8 (H, W, 3), squashed and normalised as the original's loop did, in one pass."""
    small = cv2.resize(picture, (size, size)).astype(np.float32) / 255
    x = (small - np.float32(const.IMAGENET_MEAN)) / np.float32(const.IMAGENET_STD)
    with torch.no_grad():
        logits = net(torch.from_numpy(x.transpose(2, 0, 1).copy())[None])
    return (logits["out"] if isinstance(logits, dict) else logits)[0, 0].numpy() > 0


def baseline_segmenter(net, info):
    """A Segmenter whose network is the plain one: fp32, contiguous, nothing fused. Its masks are the same."""
    segmenter = Segmenter(copy.deepcopy(net), info, precision="fp32")
    segmenter.backend._net = lambda x: net(x.contiguous(memory_format=torch.contiguous_format))
    return segmenter


def baseline_training(net, batches: Iterable) -> Iterator[float]:
    """The original's loop: the loss after each step."""
    optimizer = torch.optim.Adam(net.parameters(), lr=const.LR)
    criterion = torch.nn.BCEWithLogitsLoss()
    net.train()
    for image, target in batches:
        optimizer.zero_grad()
        loss = criterion(net(image), target)
        loss.backward()
        optimizer.step()
        yield loss.item()


# --- One picture ----------------------------------------------------------------------------------------------------
def predict(context: Context) -> list[dict]:
    """One picture on the CPU, at the original's 512x512, and the Dice of what is trained, on validation faces."""
    side, data = 128 if context.quick else const.IMG_SIZE, context.prepared
    faces = []
    for image, mask in Celeb(data / "images_val", data / "masks_val", limit=4 if context.quick else 100).pairs:
        both = read_picture(image), cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
        picture, target = (cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in both)
        faces.append((picture, target > 127))
    ways = untrained_ways(side) | bundled_ways()
    with face_mesh(context.mediapipe, side) if context.mediapipe else nullcontext() as mesh:
        if mesh:
            ways["MediaPipe's face mesh, hull of its oval"] = (mesh, "fp32")
        took = interleaved({name: lambda w=way: w(faces[0][0]) for name, (way, _) in ways.items()}, context.runs)
        rows = []
        for name, (way, precision) in ways.items():
            row = {"what": name, "ms": 1000 * took[name], "times as fast": next(iter(took.values())) / took[name]}
            if precision:
                each = (Counts().add(way(picture) > 0, target, boundary=False) for picture, target in faces)
                row |= {"precision": precision, "dice": sum(each, Counts()).dice, "faces": len(faces)}
            rows.append(row)
    return rows


def untrained_ways(side: int) -> dict[str, tuple[Callable, None]]:
    """{name: (picture -> mask, None)} of networks of random weights, which take as long as any: the baseline first."""
    torch.manual_seed(const.SEED)
    net = networks.build("deeplabv3").eval()
    ours = Segmenter(copy.deepcopy(net), networks.Info("deeplabv3", side))
    small = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1).eval()
    return {
        "DeepLabV3, plain (baseline)": (lambda picture: baseline_mask(net, picture, side), None),
        f"DeepLabV3, {ours.backend.precision}": (ours.mask, None),
        "LR-ASPP MobileNetV3-Large of torchvision, plain": (lambda picture: baseline_mask(small, picture, side), None),
    }


def bundled_ways() -> dict[str, tuple[Callable, str]]:
    """{name: (picture -> mask, precision)} of the bundled network, for each backend there is."""
    kinds = [(name, "auto") for name in backends()]
    if "openvino" in backends() and openvino_backend.int8_path(const.BUNDLED_WEIGHTS).is_file():
        kinds.append(("openvino", "int8"))
    ways = {}
    for (backend, precision), passes in itertools.product(kinds, (1, 2)):
        segmenter = bundled(backend=backend, precision=precision, passes=passes).segmenter
        computes, title = segmenter.backend.precision, {"torch": "PyTorch", "openvino": "OpenVINO"}[backend]
        ways[f"bundled, {PASSES[passes]}, {title} {computes}"] = (segmenter.mask, computes)
    return ways


def backends() -> list[str]:
    return ["torch", "openvino"] if openvino_backend.is_installed("openvino") else ["torch"]


def bundled(**options):
    """A Runner on the CPU with the bundled network, which says nothing."""
    return Runner("cpu", log=lambda *words: None).load("bundled", **options)


MESH = """
import os, sys
side, out = int(sys.argv[1]), open(os.dup(1), "wb")
os.dup2(2, 1)
import cv2, numpy as np, mediapipe
mesh = mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True)
oval = sorted({i for edge in mediapipe.solutions.face_mesh.FACEMESH_FACE_OVAL for i in edge})
while len(data := sys.stdin.buffer.read(side * side * 3)) == side * side * 3:
    mask = np.zeros((side, side), np.uint8)
    for face in mesh.process(np.frombuffer(data, np.uint8).reshape(side, side, 3)).multi_face_landmarks or []:
        points = np.array([(face.landmark[i].x * side, face.landmark[i].y * side) for i in oval])
        cv2.fillConvexPoly(mask, cv2.convexHull(points.round().astype(np.int32)), 1)
    out.write(mask.tobytes())
    out.flush()
"""


@contextmanager
def face_mesh(python: str, side: int) -> Iterator[Callable]:
    """Picture uint8 (side, side, 3) -> mask (side, side) of 0 and 1, computed by a Python that has MediaPipe; a
    UserError where it does not run."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([python, "-c", MESH, str(side)], **pipes)

    def mask(picture):
        with suppress(BrokenPipeError):
            process.stdin.write(picture.tobytes())
            process.stdin.flush()
        got = process.stdout.read(side * side)
        if len(got) < side * side:
            raise UserError(f"{python} does not run MediaPipe's face mesh: pip install mediapipe==0.10.21 there.")
        return np.frombuffer(got, np.uint8).reshape(side, side)

    try:
        yield mask
    finally:
        process.kill()
        process.communicate()


# --- Commands -------------------------------------------------------------------------------------------------------
def start(context: Context) -> list[dict]:
    """A command from the shell to its end."""
    picture = next(iter((context.prepared / "images_val").glob("*.jpg")))
    command = [PROGRAM, "predict", str(picture), "--weights", "bundled", "--out", str(context.temp / "start")]
    commands = {f"predict one picture, {backend}": [*command, "--backend", backend] for backend in backends()}
    commands |= {"import torch, torchvision": ["-c", "import torch, torchvision"], "--help": [PROGRAM, "--help"]}
    ways = {name: lambda a=args: subprocess.check_output([sys.executable, *a]) for name, args in commands.items()}
    took = interleaved(ways, context.runs)
    return [{"what": name, "s": value} for name, value in took.items()]


def folder(context: Context) -> list[dict]:
    """A folder of 1024x1024 pictures to masks and overlays, with the bundled network."""
    total, some = (8, 4) if context.quick else (500, 50)
    inputs, out = context.folder_of(total, 1024), context.temp / "folder-out"
    plain, color = baseline_segmenter(*networks.load(networks.bundled_weights())), parse_color(const.OVERLAY_COLOR)
    out.mkdir()

    def baseline():
        for path in sorted(inputs.iterdir())[:some]:
            picture = read_picture(path)
            mask = plain.mask(picture)
            drawn = cv2.cvtColor(overlay(picture, mask, color, const.OVERLAY_ALPHA), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(out / f"{path.stem}_mask.png"), mask)
            cv2.imwrite(str(out / f"{path.stem}_overlay.jpg"), drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])

    ways = {"one after the other, fp32 (baseline)": (some, baseline)}
    for name in backends():
        runner = bundled(backend=name)
        ways[f"{total} pictures, {name}"] = (total, lambda n=name, r=runner: r.predict([inputs], out / n))
    took = interleaved({name: way for name, (_, way) in ways.items()}, min(3, context.runs), warm=False)
    rates = {name: count / took[name] for name, (count, _) in ways.items()}
    first = next(iter(rates.values()))
    return [{"what": name, "images/s": rate, "times as fast": rate / first} for name, rate in rates.items()]


def busy(context: Context) -> list[dict]:
    """A video of 720p, decoding and encoding included, alone and with another process computing on each core."""
    video, frames = context.temp / "clip.mp4", 4 if context.quick else 25
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 25, (1280, 720))
    picture = cv2.imread(str(const.TEST_DIR / "obama.jpg"))
    for i in range(frames):
        writer.write(cv2.resize(picture[4 * i : 4 * i + 512], (1280, 720), interpolation=cv2.INTER_AREA))
    writer.release()
    command = [sys.executable, PROGRAM, "predict", str(video), "--weights", "bundled", "--out", str(context.temp)]
    ways = [("torch", 1)] if context.quick else list(itertools.product(backends(), (2, 1)))

    def rate(backend: str, passes: int) -> float:
        way = [*command, "--backend", backend, "--passes", str(passes)]
        return float(re.search(r"([0-9.]+) frames/s", subprocess.check_output(way, text=True))[1])

    idle = [rate(*way) for way in ways]
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(usable_cores())]
    try:
        return [
            {"what": f"{name}, {PASSES[passes]}", "idle frames/s": before, "busy frames/s": rate(name, passes)}
            for before, (name, passes) in zip(idle, ways, strict=True)
        ]
    finally:
        for other in others:
            other.kill()
            other.wait()


# --- Training -------------------------------------------------------------------------------------------------------
def train(context: Context) -> list[dict]:
    """Steps of training, the same pictures in the same order from the same weights."""
    steps = {"lite": 4, "unet": 2, "deeplabv3": 2} if context.quick else {"lite": 100, "unet": 20, "deeplabv3": 10}
    return [train_side_by_side(context, name, 64 if context.quick else 256, count) for name, count in steps.items()]


def gpu(context: Context) -> list[dict]:
    """The same on a GPU, at the original's 512x512."""
    size, steps = (64, 4) if context.quick else (const.IMG_SIZE, 50)
    return [train_side_by_side(context, name, size, steps, "cuda") for name in ("deeplabv3", "unet", "lite")]


def _recipe(context: Context, name: str, size: int, workers: int = 0, cache: bool = False):
    config = Config(model=name, size=size, pretrained=False)
    return Original(config, context.prepared, workers=workers, cache=cache)


def _epochs(loader) -> Iterator:
    for epoch in itertools.count():
        loader.sampler.epoch = epoch
        yield from loader


def train_side_by_side(context: Context, name: str, size: int, steps: int, device: str = "cpu") -> dict:
    """The losses are means of the last quarter of the steps."""
    torch.manual_seed(const.SEED)
    workers = max(0, min(4, usable_cores() - 1))
    recipe = _recipe(context, name, size, workers)
    net = recipe.network()
    trainer = Trainer(recipe, context.temp, net=copy.deepcopy(net).train(), val_loader=None, device=device)
    plain = ([part.to(device) for part in batch] for batch in _epochs(_recipe(context, name, size).loader(size)))
    streams = {
        "baseline": baseline_training(net.to(device), plain),
        "ours": (trainer.step(*batch).item() for batch in _epochs(trainer.train_loader)),
    }
    block = max(1, steps // context.runs)
    losses = {way: [next(stream)] for way, stream in streams.items()}
    ways = {way: lambda way=way: losses[way].extend(itertools.islice(streams[way], block)) for way in losses}
    took = interleaved(ways, context.runs, warm=False)
    ends = {way: statistics.mean(values[-max(2, len(values) // 4) :]) for way, values in losses.items()}
    return {
        "what": f"{name}, {size}x{size}, batch {const.BATCH_SIZE}, {len(losses['ours'])} steps",
        "baseline steps/s": block / took["baseline"], "ours steps/s": block / took["ours"],
        "times as fast": took["baseline"] / took["ours"], "precision": trainer.precision, "workers": workers,
        "baseline loss": ends["baseline"], "our loss": ends["ours"],
    }  # fmt: skip


def load(context: Context) -> list[dict]:
    """Images/s of a training step, and of a loader with one worker process that should keep it fed."""
    size, batches = (64, 2) if context.quick else (256, 50)
    recipe = _recipe(context, "lite", size)
    trainer = Trainer(recipe, context.temp, net=recipe.network().train(), val_loader=None, device="cpu")
    batch = next(iter(trainer.train_loader))
    ways = {f"a step of lite, {size}x{size}": (lambda: trainer.step(*batch).item(), 1)}
    for title, cache in (("loader, 1 worker", False), ("loader, 1 worker, cached", True)):
        stream = _epochs(_recipe(context, "lite", size, 1, cache).loader(size))
        ways[title] = (lambda s=stream: list(itertools.islice(s, batches)), batches)
    took = interleaved({name: way for name, (way, _) in ways.items()}, context.runs)
    return [{"what": name, "images/s": count * const.BATCH_SIZE / took[name]} for name, (_, count) in ways.items()]


# --- Growth ---------------------------------------------------------------------------------------------------------
# A small process that runs a command and prints its peak memory. A child of a large process would be given the memory
# that this one held when it was started.
WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def growth(context: Context) -> list[dict]:
    """How time and memory grow: the predict command, from its start to its end, with the bundled network."""
    large, many = (512, 8) if context.quick else (6000, 1000)
    rows = []
    for size, count, batch in ((512, 1, 4), (large, 1, 4), (512, many // 8, 16), (256, many, 4)):
        command = [sys.executable, "-c", WATCH, sys.executable, PROGRAM, "predict", str(context.folder_of(count, size))]
        command += ["--weights", "bundled", "--batch-size", str(batch), "--out", tempfile.mkdtemp(dir=context.temp)]
        began = time.perf_counter()
        peak = int(subprocess.check_output(command)) / (1e6 if sys.platform == "darwin" else 1e3)
        what = f"{count} picture{'s' if count > 1 else ''} of {size}x{size}, batch {batch}"
        rows.append({"what": what, "s": time.perf_counter() - began, "peak MB": peak})
    return rows


# --- Tables ---------------------------------------------------------------------------------------------------------
def shown(value, key: str = "") -> str:
    """A number for people: three digits, whole from a hundred up; four decimals of a Dice or a loss."""
    if isinstance(value, float):
        if key == "dice" or key.endswith("loss"):
            return f"{value:.4f}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def to_markdown(record: dict) -> str:
    """A table a section, with the machine that it was measured on where it is another than the section's before."""
    parts, told = ["# Speed: the baseline and ours", "Medians of `python -m studies.benchmark`."], None
    for name in (name for name in SECTIONS if name in record["sections"]):
        section = record["sections"][name]
        if section["machine"] != told:
            told = section["machine"]
            parts.append(", ".join(f"{key} {shown(value)}" for key, value in told.items() if value is not None))
        parts.append(f"## {name}{', quick: no result' if section['quick'] else ''}")
        rows = [{key: shown(value, key) for key, value in row.items()} for row in section["rows"]]
        parts.append(table(rows).replace("| what |", "|  |", 1))
    return "\n\n".join(parts) + "\n"


# --- The command ----------------------------------------------------------------------------------------------------
def measure(names: Iterable[str], out: Path, **options) -> None:
    """Run sections and write them into the JSON and the table, where others stay as they are."""
    record = read_json(out, "sections") or {"sections": {}}
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):  # better now than after the first section
        raise UserError(f"{out.parent} cannot be written to; give another --out.")
    for name in names:
        if name == "gpu" and not torch.cuda.is_available():
            print("gpu is left out: there is no GPU.")
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="benchmark-") as temp:
            rows = globals()[name](Context(Path(temp), **options))
        print(f"{name} ({time.perf_counter() - began:.0f} s)")
        for row in rows:
            print("  " + ", ".join(f"{key} {shown(value, key)}" for key, value in row.items()), flush=True)
        record["sections"][name] = {"machine": machine(), "quick": options["quick"], "rows": rows}
        write_json(out, record)
        write_text(out.with_suffix(".md"), to_markdown(record))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sections, of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared folders; default: drawn faces")
    parser.add_argument("--mediapipe", metavar="PYTHON", help="a Python with mediapipe 0.10.21, for its face mesh")
    parser.add_argument("--out", type=Path, metavar="F", help="default: results/benchmark.json, or results-quick/")
    parser.add_argument("--quick", action="store_true", help="few pictures, one run: a check, not a result")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    out = args.out or (const.DIR_PATH / "results-quick" / RESULTS.name if args.quick else RESULTS)

    def work() -> None:
        if args.data is not None and not data_preprocessing.is_prepared(args.data):
            raise UserError(f"{args.data} holds no prepared data; run `python data_preprocessing.py`.")
        if args.mediapipe and not shutil.which(args.mediapipe):
            raise UserError(f"{args.mediapipe} is no program; give --mediapipe the Python that has it.")
        measure(args.names or SECTIONS, out, quick=args.quick, data=args.data, mediapipe=args.mediapipe)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
