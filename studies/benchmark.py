"""How fast this repository is: a baseline and ours, interleaved in one run on the machine at hand.

    python -m studies.benchmark                  every section, into results/benchmark.json and results/benchmark.md
    python -m studies.benchmark predict folder   only these sections; the others stay as they are in the file
    python -m studies.benchmark --quick          few pictures, one run instead of five: not a result; results-quick/
    python -m studies.benchmark --data CelebAMask-HQ --mediapipe mesh/bin/python

The baseline is fp32, contiguous tensors, no worker processes, and the original's loop written as simply as can be. It
gets the same data, networks and weights. Without --data the faces are drawn ones (drawn_faces.py): how long a picture
takes depends on its size, and hardly on what it shows, but their Dice says nothing. MediaPipe's face mesh needs a
Python of its own: `python -m venv mesh && mesh/bin/pip install mediapipe==0.10.21`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
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

import const
from common import UserError, exit_code, usable_cores, write_text
from studies.timing import interleaved, machine

SECTIONS = ("predict", "start", "folder", "busy", "train", "load", "growth")
RESULTS = const.DIR_PATH / "results" / "benchmark.json"
DISTINCT = 40  # faces drawn; more pictures are copies of their files
PROGRAM = str(const.DIR_PATH / "main.py")


@dataclass
class Context:
    """Where a section works, and how thoroughly."""

    temp: Path  # its own, removed afterwards
    quick: bool
    data: Path | None = None  # prepared folders, or None to draw faces
    mediapipe: str | None = None  # a Python that has it

    @property
    def runs(self) -> int:
        return 1 if self.quick else 5

    @cached_property
    def prepared(self) -> Path:
        """Prepared folders: those of --data, else of `DISTINCT` drawn training faces and four for validation."""
        if self.data is not None:
            return self.data
        import data_preprocessing
        from studies import drawn_faces

        ids = [*const.IDS_TRAIN[: 12 if self.quick else DISTINCT], *const.IDS_VAL[:4]]
        drawn = drawn_faces.draw_celeb_tree(self.temp / "drawn", ids, image_size=1024, part_modes=("RGB",))
        data_preprocessing.prepare(drawn, self.temp / "prepared", progress=False)
        return self.temp / "prepared"

    def folder_of(self, count: int, size: int) -> Path:
        """A folder of `count` pictures of size x size: `DISTINCT` of them, the rest hard links."""
        import cv2

        folder = self.temp / f"{count}-of-{size}"
        if not folder.is_dir():
            folder.mkdir()
            sources = sorted((self.prepared / "images_train").glob("*.jpg"))[:DISTINCT]
            files = [folder / f"{i:05d}.jpg" for i in range(count)]
            for source, file in zip(sources, files, strict=False):
                picture = cv2.resize(cv2.imread(str(source)), (size, size), interpolation=cv2.INTER_AREA)
                cv2.imwrite(str(file), picture)
            for i in range(len(sources), count):
                os.link(files[i % len(sources)], files[i])
        return folder


# --- The baseline ---------------------------------------------------------------------------------------------------
def baseline_mask(net, picture, size: int):
    """(H, W) bool of one picture uint8 (H, W, 3), squashed and normalised as the original's loop did, in one pass."""
    import cv2
    import numpy as np
    import torch

    small = cv2.resize(picture, (size, size)).astype(np.float32) / 255
    x = (small - np.float32(const.IMAGENET_MEAN)) / np.float32(const.IMAGENET_STD)
    with torch.no_grad():
        logits = net(torch.from_numpy(x.transpose(2, 0, 1).copy())[None])
    return (logits["out"] if isinstance(logits, dict) else logits)[0, 0].numpy() > 0


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


# --- One picture ----------------------------------------------------------------------------------------------------
def predict(context: Context) -> list[dict]:
    """One picture on the CPU, at the original's 512x512, and the Dice of what is trained, on validation faces."""
    import cv2

    from dataset import Celeb
    from metrics import Counts
    from pictures import read_picture

    side = 128 if context.quick else const.IMG_SIZE
    data = context.prepared
    faces = []
    for image, mask in Celeb(data / "images_val", data / "masks_val", limit=4 if context.quick else 100).pairs:
        picture = cv2.resize(read_picture(image), (side, side), interpolation=cv2.INTER_AREA)
        target = cv2.resize(cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE), (side, side), interpolation=cv2.INTER_AREA)
        faces.append((picture, target > 127))
    ways = {name: (way, None) for name, way in untrained_ways(side).items()} | bundled_ways()
    with face_mesh(context.mediapipe, side) if context.mediapipe else nullcontext() as mesh:
        if mesh:
            ways["MediaPipe's face mesh, hull of its oval"] = (mesh, "fp32")
        took = interleaved({name: lambda w=way: w(faces[0][0]) for name, (way, _) in ways.items()}, context.runs)
        rows = []
        for name, (way, precision) in ways.items():
            row = {"what": name, "ms": 1000 * took[name], "times as fast": next(iter(took.values())) / took[name]}
            if precision is not None:
                counts = Counts()
                for picture, target in faces:
                    counts.add(way(picture) > 0, target, boundary=False)
                row |= {"precision": precision, "dice": counts.dice, "faces": len(faces)}
            rows.append(row)
    return rows


def untrained_ways(side: int) -> dict[str, Callable]:
    """Networks of random weights, which take as long as any: the baseline first."""
    import torch
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    import model as networks
    from inference import Segmenter

    torch.manual_seed(const.SEED)
    net = networks.build("deeplabv3").eval()
    ours = Segmenter(copy.deepcopy(net), networks.Info("deeplabv3", side))
    small = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1).eval()
    return {
        "DeepLabV3, plain (baseline)": lambda picture: baseline_mask(net, picture, side),
        f"DeepLabV3, {ours.backend.precision}": ours.mask,
        "LR-ASPP MobileNetV3-Large of torchvision, plain": lambda picture: baseline_mask(small, picture, side),
    }


def bundled_ways() -> dict[str, tuple[Callable, str]]:
    """{name: (picture -> mask, precision)} of the bundled network, for each backend there is."""
    from extras import openvino_backend
    from main import Runner

    kinds = [("torch", "auto")]
    if openvino_backend.is_installed("openvino"):
        has_int8 = openvino_backend.int8_path(const.BUNDLED_WEIGHTS).is_file()
        kinds += [("openvino", "auto"), *[("openvino", "int8")] * has_int8]
    ways = {}
    for (backend, precision), passes in itertools.product(kinds, (1, 2)):
        options = {"backend": backend, "precision": precision, "passes": passes}
        segmenter = Runner("cpu", log=lambda *words: None).load("bundled", **options).segmenter
        computes, title = segmenter.backend.precision, {"torch": "PyTorch", "openvino": "OpenVINO"}[backend]
        ways[f"bundled, {plural(passes, 'pass', 'passes')}, {title} {computes}"] = (segmenter.mask, computes)
    return ways


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
    """Picture uint8 (side, side, 3) -> mask (side, side) of 0 and 1, computed by a Python that has MediaPipe.

    Raises:
        UserError: it does not run.
    """
    import numpy as np

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "bufsize": 0}
    process = subprocess.Popen([python, "-c", MESH, str(side)], **pipes)

    def mask(picture):
        with suppress(BrokenPipeError):
            process.stdin.write(picture.tobytes())
        got = b""
        while len(got) < side * side:
            if not (part := process.stdout.read(side * side - len(got))):
                raise UserError(f"{python} does not run MediaPipe's face mesh: pip install mediapipe==0.10.21 there.")
            got += part
        return np.frombuffer(got, np.uint8).reshape(side, side)

    try:
        yield mask
    finally:
        process.kill()
        process.communicate()


# --- Commands -------------------------------------------------------------------------------------------------------
def backends() -> list[str]:
    from extras.openvino_backend import is_installed

    return ["torch", "openvino"] if is_installed("openvino") else ["torch"]


def start(context: Context) -> list[dict]:
    """A command from the shell to its end."""
    picture = next(iter((context.prepared / "images_val").glob("*.jpg")))
    command = [PROGRAM, "predict", str(picture), "--weights", "bundled", "--out", str(context.temp / "start")]
    commands = {f"predict one picture, {backend}": [*command, "--backend", backend] for backend in backends()}
    commands |= {"import torch, torchvision": ["-c", "import torch, torchvision"], "--help": [PROGRAM, "--help"]}

    def run(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    took = interleaved({name: lambda a=arguments: run(a) for name, arguments in commands.items()}, context.runs)
    return [{"what": name, "s": value} for name, value in took.items()]


def folder(context: Context) -> list[dict]:
    """A folder of 1024x1024 pictures to masks and overlays, with the bundled network."""
    import cv2

    from drawing import overlay, parse_color
    from main import Runner
    from model import bundled_weights, load
    from pictures import read_picture

    total, some = (8, 4) if context.quick else (500, 50)
    inputs, out = context.folder_of(total, 1024), context.temp / "folder-out"
    plain, color = baseline_segmenter(*load(bundled_weights())), parse_color(const.OVERLAY_COLOR)
    out.mkdir()

    def baseline():
        for path in sorted(inputs.iterdir())[:some]:
            picture = read_picture(path)
            mask = plain.mask(picture)
            drawn = cv2.cvtColor(overlay(picture, mask, color, const.OVERLAY_ALPHA), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(out / f"{path.stem}_mask.png"), mask)
            cv2.imwrite(str(out / f"{path.stem}_overlay.jpg"), drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])

    ways = {"one after the other, fp32 (baseline)": baseline}
    for name in backends():
        runner = Runner("cpu", log=lambda *words: None).load("bundled", backend=name)
        ways[f"{total} pictures, {name}"] = lambda n=name, r=runner: r.predict([inputs], out / n)
    took = interleaved(ways, min(3, context.runs), warm=False)
    rates = {name: (some if name.endswith("(baseline)") else total) / value for name, value in took.items()}
    first = next(iter(rates.values()))
    return [{"what": name, "images/s": rate, "times as fast": rate / first} for name, rate in rates.items()]


def busy(context: Context) -> list[dict]:
    """A video of 720p, decoding and encoding included, alone and with another process computing on each core."""
    import cv2

    video, frames = context.temp / "clip.mp4", 4 if context.quick else 25
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 25, (1280, 720))
    picture = cv2.imread(str(const.TEST_DIR / "obama.jpg"))
    for i in range(frames):
        writer.write(cv2.resize(picture[4 * i : 4 * i + 512], (1280, 720), interpolation=cv2.INTER_AREA))
    writer.release()
    command = ["predict", str(video), "--weights", "bundled", "--out", str(context.temp / "video")]
    ways = {}
    for name, passes in itertools.product(*(["torch"], "1") if context.quick else (backends(), "21")):
        title = f"{name}, {plural(int(passes), 'pass', 'passes')}"
        ways[title] = [PROGRAM, *command, "--backend", name, "--passes", passes]

    def rate(arguments: list[str]) -> float:
        env = {**os.environ, "PYTHONPATH": str(const.DIR_PATH)}
        said = subprocess.check_output([sys.executable, *arguments], env=env, stderr=subprocess.DEVNULL, text=True)
        return float(re.search(r"([0-9.]+) frames/s", said)[1])

    idle = {name: rate(arguments) for name, arguments in ways.items()}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(usable_cores())]
    try:
        return [{"what": name, "idle frames/s": idle[name], "busy frames/s": rate(ways[name])} for name in ways]
    finally:
        for other in others:
            other.kill()
            other.wait()


# --- Training -------------------------------------------------------------------------------------------------------
def train(context: Context) -> list[dict]:
    """Steps of training, the same pictures in the same order from the same weights."""
    steps = {"lite": 4, "deeplabv3": 2} if context.quick else {"lite": 100, "deeplabv3": 10}
    return [train_side_by_side(context, name, 64 if context.quick else 256, count) for name, count in steps.items()]


def _loader(context: Context, size: int, workers: int, cache: bool = False):
    import dataset

    transform, data = dataset.train_transform(size), context.prepared
    celeb = dataset.Celeb(data / "images_train", data / "masks_train", transform, cache=size if cache else None)
    return dataset.make_loader(celeb, const.BATCH_SIZE, train=True, workers=workers)


def _epochs(loader) -> Iterator:
    for epoch in itertools.count():
        loader.sampler.epoch = epoch
        yield from loader


def _trainer(context: Context, net, name: str, size: int, loader):
    from training import Config, Original, Trainer

    config, run_dir = Config(model=name, size=size, pretrained=False), context.temp / "run"
    recipe = Original(config, context.temp, run_dir, workers=0)
    recipe.loader = lambda _: loader
    trainer = Trainer(recipe, run_dir, net=net, val_loader=loader, device="cpu")
    trainer.net.train()
    return trainer


def train_side_by_side(context: Context, name: str, size: int, steps: int) -> dict:
    """The losses are means of the last quarter of the steps."""
    import torch

    import model as networks

    torch.manual_seed(const.SEED)
    net = networks.build(name)
    workers = max(0, min(4, usable_cores() - 1))
    loader = _loader(context, size, workers)
    trainer = _trainer(context, copy.deepcopy(net), name, size, loader)
    streams = {
        "baseline": baseline_training(net, _epochs(_loader(context, size, 0)), const.LR),
        "ours": (trainer.step(image, target).item() for image, target in _epochs(loader)),
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
    import model as networks

    size, batches = (64, 2) if context.quick else (256, 50)
    loader = _loader(context, size, 0)
    trainer = _trainer(context, networks.build("lite"), "lite", size, loader)
    image, target = next(iter(loader))
    ways = {f"a step of lite, {size}x{size}": (lambda: trainer.step(image, target).item(), 1)}
    for title, cache in (("loader, 1 worker", False), ("loader, 1 worker, cached", True)):
        stream = _epochs(_loader(context, size, 1, cache))
        ways[title] = (lambda s=stream: list(itertools.islice(s, batches)), batches)
    took = interleaved({name: way for name, (way, _) in ways.items()}, context.runs)
    return [{"what": name, "images/s": count * const.BATCH_SIZE / took[name]} for name, (_, count) in ways.items()]


# --- Growth ---------------------------------------------------------------------------------------------------------
# A small process that runs a command and prints its peak memory. A child of a large process would be given the memory
# that this one held when it was started.
WATCH = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def growth(context: Context) -> list[dict]:
    """How time and memory grow: the predict command, from its start to its end, with the bundled network."""
    large, many = (512, 8) if context.quick else (6000, 1000)
    rows = []
    for size, count, batch in ((512, 1, 4), (large, 1, 4), (512, many // 8, 16), (256, many, 4)):
        inputs, out = context.folder_of(count, size), Path(tempfile.mkdtemp(dir=context.temp))
        command = [sys.executable, "-c", WATCH, sys.executable, PROGRAM, "predict", str(inputs), "--weights", "bundled"]
        began = time.perf_counter()
        peak = int(subprocess.check_output([*command, "--batch-size", str(batch), "--out", str(out)]))
        took = time.perf_counter() - began
        what = f"{plural(count, 'picture')} of {size}x{size}, batch {batch}"
        rows.append({"what": what, "s": took, "peak MB": peak / (1e6 if sys.platform == "darwin" else 1e3)})
    return rows


# --- Tables ---------------------------------------------------------------------------------------------------------
def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def shown(value, key: str = "") -> str:
    """A number for people: three digits, whole from a hundred up; four decimals of a Dice or a loss."""
    if isinstance(value, float):
        if key == "dice" or key.endswith("loss"):
            return f"{value:.4f}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def to_markdown(record: dict) -> str:
    """A table a section, with the machine that it was measured on where it is another than the section's before."""
    lines, told = ["# Speed: the baseline and ours", "", "Medians of `python -m studies.benchmark`."], None
    for name in (name for name in SECTIONS if name in record["sections"]):
        section = record["sections"][name]
        if section["machine"] != told:
            told = section["machine"]
            lines += ["", ", ".join(f"{key} {shown(value)}" for key, value in told.items() if value is not None)]
        columns = list(dict.fromkeys(key for row in section["rows"] for key in row))
        lines += ["", f"## {name}{', quick: no result' if section['quick'] else ''}", ""]
        lines += [f"| {' | '.join(['', *columns[1:]])} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(shown(row.get(key), key) for key in columns)} |" for row in section["rows"]]
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


def measure(names: Iterable[str], out: Path, **options) -> None:
    """Run sections and write them into the JSON and the table, where others stay as they are."""
    record = read_record(out)
    for name in names:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="benchmark-") as temp:
            rows = globals()[name](Context(Path(temp), **options))
        print(f"{name} ({time.perf_counter() - started:.0f} s)")
        for row in rows:
            print("  " + ", ".join(f"{key} {shown(value, key)}" for key, value in row.items()), flush=True)
        record["sections"][name] = {"machine": machine(), "quick": options["quick"], "rows": rows}
        write_text(out, json.dumps(record, indent=1) + "\n")
        write_text(out.with_suffix(".md"), to_markdown(record))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measures this repository against a baseline on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sections, of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared folders; default: drawn faces")
    parser.add_argument("--mediapipe", metavar="PYTHON", help="a Python with mediapipe 0.10.21, for its face mesh")
    parser.add_argument("--out", type=Path, metavar="F", help="default: results/benchmark.json, or results-quick/")
    parser.add_argument("--quick", action="store_true", help="few pictures, one run: a check, not a result")
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
        if args.mediapipe and not shutil.which(args.mediapipe):
            raise UserError(f"{args.mediapipe} is no program; give --mediapipe the Python that has it.")
        if out.is_dir():
            raise UserError(f"{out} is a folder; --out is the file to write.")
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK):  # better now than after the first section
            raise UserError(f"{out.parent} cannot be written to; give another --out.")
        measure(args.names or SECTIONS, out, quick=args.quick, data=args.data, mediapipe=args.mediapipe)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
