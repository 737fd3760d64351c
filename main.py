"""Face segmentation that holds up when the face is covered.

    python main.py                                   masks for the photographs of test_path/, into predictions/
    python main.py predict photo.jpg folder/ --out masks
    python main.py train --data CelebAMask-HQ        the original's experiment, into runs/
    python main.py evaluate --weights model.best.pth

Only the parts of a command are imported by it: `--help` needs no PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import const
from common import UserError


class Runner:
    """Trains, evaluates and predicts; every method takes explicit values.

    Args:
        device: "auto" (a GPU where there is one), or what torch.device takes.
        say: where lines for the user go.

    From Python, masks are five lines away::

        from main import Runner
        runner = Runner()
        runner.load("bundled")
        mask = runner.predict_image("photo.jpg")  # uint8 (H, W), 0/255
    """

    def __init__(self, device: str = "auto", *, log=print):
        self.device_name, self.log, self.segmenter = device, log, None

    @property
    def device(self):
        import torch

        if self.device_name == "auto":
            self.device_name = self._best_device()
        if self.device_name == "cuda" and "LOCAL_RANK" in os.environ:  # under torchrun, a GPU each
            self.device_name = f"cuda:{int(os.environ['LOCAL_RANK']) % max(1, torch.cuda.device_count())}"
        try:
            device = torch.device(self.device_name)
            torch.empty(1, device=device).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"The device {self.device_name!r} cannot be used ({reason}); try --device cpu.") from None
        return device

    def _best_device(self) -> str:
        """A GPU where there is one that this PyTorch has kernels for (a P100 is found, but fails), else the CPU."""
        import torch

        if not torch.cuda.is_available():
            return "cpu"
        try:
            (torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).cpu()
            return "cuda"
        except RuntimeError as error:
            self.log(f"The GPU cannot be used ({str(error).splitlines()[0]}); going on with the CPU.")
            return "cpu"

    def _joined(self):
        """The processes of a torchrun job, connected."""
        import torch

        import devices

        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if self.device.type == "cuda" and here > torch.cuda.device_count():
            raise UserError(f"{here} processes need a GPU each, and there are {torch.cuda.device_count()}.")
        return devices.process_group(self.device)

    def load(
        self, weights: str | Path | None = None, *, online: bool = False, flip=False, passes=None, precision="auto"
    ) -> Runner:
        """Get ready to predict with a weights file, "bundled", "published", or the first that there is.

        `precision` "fp32" is for measuring how good they are.

        Raises:
            ModelError: the weights cannot be had or used.
        """
        import model as networks
        from inference import Segmenter

        path = networks.find_weights(weights, online=online, log=self.log)
        net, info = networks.load(path)
        self.weights_name = path.name
        self.segmenter = Segmenter(net, info, self.device, flip=flip, passes=passes, precision=precision)
        return self

    # -- predict
    def predict_image(self, picture, threshold: float = const.THRESHOLD):
        """A mask uint8 (H, W), 0/255, of a picture: a path, or an array uint8 (H, W, 3) in RGB or (H, W) in grey.

        Raises:
            PictureError: the file cannot be read. ValueError: an array of another shape or type.
        """
        import numpy as np

        from inference import read_picture

        if self.segmenter is None:
            self.load()
        if isinstance(picture, (str, Path)):
            picture = read_picture(Path(picture))
        picture = np.asarray(picture)
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, axis=2)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise ValueError(f"expected uint8 (H, W, 3) or (H, W), got {picture.dtype} {picture.shape}")
        return self.segmenter.mask(picture, threshold)

    def predict(
        self,
        inputs,
        out: Path = const.PREDICTIONS_DIR,
        *,
        threshold: float = const.THRESHOLD,
        batch_size: int = 4,
        color: str = const.OVERLAY_COLOR,
        alpha: float = const.OVERLAY_ALPHA,
        save: Sequence[str] = ("mask", "overlay"),
        skip_existing: bool = False,
        shard: tuple[int, int] = (1, 1),
    ) -> list[str]:
        """Write results, by default NAME_mask.png and NAME_overlay.jpg, for every picture of files and folders.

        Args:
            save: which of `drawing.RESULTS`.
            skip_existing: leave out pictures whose results are all there, and none older than the picture.
            shard: (i, n): the i-th of n parts of the pictures, for as many processes or machines.

        Returns:
            A sentence for each picture that could not be read, and for each folder without pictures.

        Raises:
            UserError: no pictures, or results that cannot be written.
        """
        from tqdm.auto import tqdm

        from common import write_bytes
        from drawing import RESULTS, encode, parse_color, render
        from inference import iter_jobs, predict_files, to_mask

        inputs, out, faults = [Path(p) for p in inputs], Path(out), []
        total = sum(1 for _ in iter_jobs(inputs, out, faults))  # counted, not kept: a folder may hold a million
        if not total:
            empty = f"{', '.join(map(str, inputs))} holds no pictures ({' '.join(const.IMAGE_SUFFIXES)})."
            raise UserError(faults[0] if faults else empty)
        rgb = parse_color(color)
        if self.segmenter is None:
            self.load()

        def write(job, picture, logits):
            mask = to_mask(logits, threshold)
            for kind, target in targets(job).items():
                write_bytes(target, encode(render(kind, picture, mask, rgb, alpha), target.suffix))

        def targets(job) -> dict[str, Path]:
            return {kind: out / f"{job.name}_{kind}{RESULTS[kind]}" for kind in save}

        def mine():
            nonlocal skipped
            for job in islice(iter_jobs(inputs, out), shard[0] - 1, None, shard[1]):
                if skip_existing and _is_done(job.path, targets(job).values()):
                    skipped += 1
                else:
                    yield job

        faults += [
            f"{p} holds no pictures." for p in inputs if p.is_dir() and not any(True for _ in iter_jobs([p], out))
        ]
        mine_total, done, unread, skipped = len(range(shard[0] - 1, total, shard[1])), 0, 0, 0
        try:
            out.mkdir(parents=True, exist_ok=True)
            looked = predict_files(self.segmenter, mine(), batch_size=batch_size, on_result=write)
            for _, fault in tqdm(looked, total=mine_total, unit="picture", disable=None, delay=2):
                done += not fault
                if fault:
                    faults.append(fault)
                    unread += 1
        except OSError as error:
            raise UserError(f"The results cannot be written to {out} ({error.strerror or error}).") from error
        before = f", {skipped} were there already" if skipped else ""
        part = f" of part {shard[0]}/{shard[1]}" if shard[1] > 1 else ""
        self.log(f"{done} of {mine_total} pictures{part} done{before}: {_listing(save)} are in {out}")
        return faults

    def predict_video(
        self,
        path: Path,
        out: Path = const.PREDICTIONS_DIR,
        *,
        threshold: float = const.THRESHOLD,
        color: str = const.OVERLAY_COLOR,
        alpha: float = const.OVERLAY_ALPHA,
        save: Sequence[str] = ("overlay",),
        every: int = 1,
        start: float = 0.0,
        end: float | None = None,
        smooth: float = 0.0,
    ) -> list[Path]:
        """Write NAME_overlay.mp4, or whatever of `drawing.RESULTS` a film can hold, of a video; the files.

        Args:
            every: look at every Nth frame, and keep its mask until the next.
            start, end: seconds.
            smooth: share of the past in each frame's mask, from 0 to below 1.

        Raises:
            VideoError: no video, or results that cannot be written. UserError: a cut-out of a film.
        """
        import cv2

        from drawing import parse_color, render
        from extras import video

        if "cutout" in save:
            raise UserError("A film holds no transparency, so no cut-outs; save something else of it.")
        rgb = parse_color(color)
        if self.segmenter is None:
            self.load()

        def drawer(kind):
            def draw(frame, mask):
                drawn = render(kind, frame, mask, rgb, alpha)
                return cv2.cvtColor(drawn, cv2.COLOR_GRAY2RGB) if drawn.ndim == 2 else drawn

            return draw

        targets = {Path(out) / f"{Path(path).stem}_{kind}.mp4": drawer(kind) for kind in save}
        video.predict_video(
            self.segmenter,
            Path(path),
            targets,
            threshold=threshold,
            every=every,
            start=start,
            end=end,
            keep=smooth,
            log=self.log,
        )
        return list(targets)

    def webcam(self, camera: int, out: Path, *, threshold, color, alpha, end=None, smooth=0.0) -> Path:
        """Overlays of a camera, live in a window where OpenCV has one, and recorded to webcam_overlay.mp4; the file.
        `q` in the window, Ctrl-C, or `end` seconds stop it.

        Raises:
            VideoError: no camera.
        """
        from drawing import overlay, parse_color
        from extras import video

        rgb = parse_color(color)
        target = Path(out) / "webcam_overlay.mp4"
        video.record_camera(
            self.segmenter,
            camera,
            target,
            lambda frame, mask: overlay(frame, mask, rgb, alpha),
            threshold=threshold,
            seconds=end,
            keep=smooth,
            log=self.log,
        )
        return target

    def gif(
        self, target: Path, inputs, out: Path, *, threshold, color, alpha, every=1, start=0.0, end=None, smooth=0.0
    ):
        """A GIF of the overlays of videos, frame by frame at about ten a second, and of pictures, one a frame.

        Raises:
            UserError: nothing to show. VideoError, PictureError: an input that cannot be read.
        """
        from drawing import overlay, parse_color, save_gif
        from extras import video
        from inference import iter_jobs, read_picture, to_mask

        rgb = parse_color(color)
        films = [p for p in inputs if p.suffix.lower() in video.SUFFIXES and not p.is_dir()]
        fps = 10.0 if films else 1.0

        def frames():
            for film in films:
                clip = video.probe(film)
                shown = video.read_frames(str(film), start=start, end=end, fps=clip.fps)
                step = max(1, round(clip.fps / fps))
                looked = video.masked_frames(
                    self.segmenter, islice(shown, 0, None, step), threshold=threshold, keep=smooth
                )
                for frame, mask in looked:
                    yield overlay(frame, mask, rgb, alpha)
            for job in iter_jobs([p for p in inputs if p not in films], out):
                picture = read_picture(job.path)
                yield overlay(picture, to_mask(self.segmenter.logits([picture])[0], threshold), rgb, alpha)

        try:
            save_gif(frames(), target, fps=fps)
        except ValueError:
            raise UserError("There is no frame for the GIF.") from None
        self.log(f"GIF: {target} ({target.stat().st_size / 1e6:.1f} MB)")

    def predict_stream(self, source, target, threshold: float = const.THRESHOLD) -> None:
        """Read one picture from a binary stream, write its mask as PNG to another.

        Raises:
            PictureError: what came is no picture.
        """
        import io

        from drawing import encode
        from inference import read_picture

        picture = read_picture(io.BytesIO(source.read()), name="standard input")
        target.write(encode(self.predict_image(picture, threshold), ".png"))
        target.flush()

    def export(self, out: Path) -> float:
        """Write the loaded network as ONNX, compared with PyTorch on the sample photographs; the largest difference.

        Raises:
            ExportError: a package is missing, or the two disagree. UserError: no sample photographs.
        """
        from extras.onnx_export import OPSET, export
        from inference import find_jobs, read_picture

        pictures = [read_picture(job.path) for job in find_jobs([const.TEST_DIR], out)]
        if not pictures:
            raise UserError(f"{const.TEST_DIR} holds no pictures to compare the export on.")
        info = self.segmenter.info
        worst = export(self.segmenter.net, info, out, pictures)
        side = info.size
        self.log(
            f"{out}: {info.model}, opset {OPSET}, largest difference from PyTorch {worst:.1e} in probability on "
            f"{len(pictures)} pictures.\n"
            f"Input  image        float32 (batch, 3, {side}, {side}), RGB, 0 to 255; normalisation is inside\n"
            f"Output probability  float32 (batch, 1, {side}, {side}); a pixel from 0.5 up is face"
        )
        return worst

    # -- train
    def train(
        self,
        config,
        data: Path,
        run_dir: Path,
        *,
        resume=False,
        workers=None,
        stop_after=None,
        on_epoch=None,
        cache=False,
        compiled=False,
        logs: Sequence[str] = (),
    ) -> list[dict]:
        """Train as `config` (training.Config) says on the prepared folders of `data`, which are made first where they
        are missing and a source is found. Files go to `run_dir`; `resume` continues what is there; `on_epoch` is called
        with the history after every epoch. Under torchrun the processes share the work.

        Args:
            cache: keep the original recipe's pictures in memory, decoded.
            compiled: let torch.compile fuse the network's layers.
            logs: experiment logs to report to besides, of `trackers.LOGS`.

        Returns:
            The history, one row an epoch.

        Raises:
            UserError, ModelError, DataError, TrainingError: one sentence each.
        """
        run_dir = Path(run_dir)
        with self._joined():
            return self._train(
                config, Path(data), run_dir, resume, workers, stop_after, on_epoch, cache, compiled, logs
            )

    def _train(self, config, data, run_dir, resume, workers, stop_after, on_epoch, cache, compiled, logs):
        from dataclasses import replace

        import torch

        import dataset
        import devices
        import model as networks
        import recipes
        from training import Trainer, state_to_resume

        state = state_to_resume(run_dir, config) if resume else None
        if not resume and (run_dir / "last.pth").exists():
            raise UserError(f"{run_dir} holds a run already; continue it with --resume, or give another --run-dir.")
        with devices.rank_zero_first():
            self.prepared(data)
        workers, masks = recipes.usable_workers(workers), None
        if config.unlabelled is not None:
            if config.init is None:
                raise UserError("--unlabelled needs --init: the weights that predict the masks.")
            teacher = Runner(self.device_name, log=self.log).load(config.init, flip=True).segmenter
            if teacher.passes == 2:  # masks as fine as they will be used
                teacher.info = replace(teacher.info, size=config.size)
            masks = recipes.pseudo_label(teacher, Path(config.unlabelled), run_dir / "pseudo", log=self.log)
        train_loader = recipes.train_loader(config, data, workers=workers, masks=masks, cache=cache, log=self.log)
        val_set = dataset.Celeb(
            data / "images_val",
            data / "masks_val",
            dataset.val_transform(config.size),
            limit=config.limit,
            cache=config.size if cache else None,
        )
        share = {"rank": devices.rank(), "world_size": devices.world_size()}
        val_loader = dataset.make_loader(val_set, config.batch_size, train=False, workers=workers, **share)
        if config.batch_size == 1 and (config.model == "deeplabv3" or config.size <= 32):
            raise UserError("Batch normalisation needs more than one value a channel; give --batch-size 2 or more.")
        torch.manual_seed(config.seed)
        net = networks.build(config.model, pretrained=config.pretrained and state is None)
        if config.init and state is None:
            init, info = networks.load(Path(config.init))
            if info.model != config.model:
                raise UserError(f"{config.init} holds the network {info.model}, not {config.model}.")
            net.load_state_dict(init.state_dict())
        loggers = []
        if logs and devices.rank() == 0:
            from extras import trackers

            loggers = [trackers.LOGS[name](config, run_dir) for name in logs]
        trainer = Trainer(
            net,
            config,
            run_dir,
            train_loader=train_loader,
            val_loader=val_loader,
            device=self.device,
            compiled=compiled,
            loggers=loggers,
        )
        if state is not None:
            trainer.resume(state)
            self.log(f"Resuming {run_dir} after epoch {trainer.epoch}")
        shared = f", {devices.world_size()} processes" if devices.world_size() > 1 else ""
        self.log(
            f"Training {config.model} ({config.recipe}) on {trainer.train_loader.sampler.size} pictures an epoch, "
            f"validating on {len(val_set)}, on {self.device}{shared} in {trainer.precision}; files in {run_dir}"
        )
        if trainer.effective_batch != config.batch_size:
            self.log(
                f"A step sees {trainer.effective_batch} pictures: {config.batch_size} at a time x {config.accumulate} "
                f"accumulated x {devices.world_size()} processes; the learning rate is {config.lr}, as given."
            )
        if trainer.epoch >= config.epochs:
            self.log(f"All {config.epochs} epochs are done; --epochs N trains for longer.")
        try:
            return trainer.fit(on_epoch, stop_after=stop_after)
        finally:
            for log in loggers:
                log.close()

    def prepared(self, data: Path) -> Path:
        """The folder `data` once it holds the prepared sets; they are made from a source in the usual places if not.

        Raises:
            DataError: nothing prepared and no source.
        """
        import data_preprocessing as preparation

        data = Path(data)
        if not preparation.is_prepared(data):
            try:
                source = preparation.find_source(data)
            except preparation.DataError:
                source = preparation.find_source()
            self.log(f"Preparing {data} from {source.path}")
            report = preparation.prepare(source, data)
            for reason in report.skipped:
                self.log(f"skipped: {reason}")
        return data

    # -- evaluate
    def evaluate(self, data: Path, out: Path, *, limit: int | None = None) -> dict:
        """Measure the loaded weights on the validation pictures of `data`, each at its mask's own size, from counts
        pooled over the split. Writes `metrics.json` and `worst.jpg` to `out`.

        Returns:
            {threshold name: {"dice", "iou", "precision", "recall", "boundary_iou", ...}}.
        """
        with self._joined():
            return self._evaluate(data, out, limit)

    def _evaluate(self, data: Path, out: Path, limit: int | None) -> dict:
        import cv2
        import numpy as np
        from tqdm.auto import tqdm

        import dataset
        import devices
        from common import write_text
        from drawing import worst_sheet
        from metrics import Counts, SplitCounts

        with devices.rank_zero_first():
            data = self.prepared(data)
        pairs = dataset.Celeb(data / "images_val", data / "masks_val", limit=limit).pairs
        out = Path(out)
        logit = const.ORIGINAL_LOGIT_THRESHOLD
        counts = SplitCounts({"probability 0.5": 0.0, f"logit {logit}": logit})

        def look(pair):
            picture = dataset.read_rgb(pair[0])
            target = cv2.imread(str(pair[1]), cv2.IMREAD_GRAYSCALE)
            if target is None:
                raise dataset.DataError(f"{pair[1]} cannot be read as a picture; prepare the data set again.")
            logits = self.segmenter.logits([picture])[0]
            if logits.shape != target.shape:
                logits = cv2.resize(logits, target.shape[::-1], interpolation=cv2.INTER_LINEAR)
            return picture, target, logits

        rank, world_size = devices.rank(), devices.world_size()
        for pair in tqdm(pairs[rank::world_size], unit="picture", disable=True if rank else None):
            _, target, logits = look(pair)
            counts.add(pair[0].name, logits, target > 127)
        # All processes' counts; a process with no picture of its own has none to add.
        shared = {name: counts.pooled.get(name, Counts()).summed(self.device) for name in counts.thresholds}
        table = {name: pooled.summary() for name, pooled in shared.items()}
        parts = devices.all_gather(counts.per_picture)
        if rank:
            return table
        per_picture = [parts[i % world_size][i // world_size] for i in range(len(pairs))]
        out.mkdir(parents=True, exist_ok=True)
        record = {
            "weights": self.weights_name,
            "model": self.segmenter.info.model,
            "passes": self.segmenter.passes,
            "data": str(data),
            "pictures": len(pairs),
            "device": str(self.device),
            "world_size": world_size,
            "metrics": table,
        }
        write_text(out / "metrics.json", json.dumps(record, indent=2) + "\n")
        worst = sorted(range(len(pairs)), key=lambda i: per_picture[i][1].dice)[:10]
        rows = []
        for i in worst:
            picture, target, logits = look(pairs[i])
            title = f"{pairs[i][0].name}  Dice {per_picture[i][1].dice:.3f}"
            rows.append((title, picture, np.where(logits > 0, 255, 0).astype(np.uint8), target))
        worst_sheet(rows, out / "worst.jpg")
        self.log(format_table(table))
        self.log(f"{len(pairs)} pictures; metrics.json and worst.jpg are in {out}")
        return table


def _is_done(picture: Path, results) -> bool:
    """Whether all results of a picture are there, and none older than it."""
    try:
        return all(path.stat().st_mtime >= picture.stat().st_mtime for path in results)
    except FileNotFoundError:
        return False


def _listing(kinds: Sequence[str]) -> str:
    names = [f"{kind}s" if kind in ("mask", "overlay", "cutout", "contour") else f"{kind} pictures" for kind in kinds]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def format_table(table: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(table.values())))
    lines = [f"{'':16}" + "".join(f"{n.replace('_', ' '):>14}" for n in names)]
    lines += [f"{row:16}" + "".join(f"{v.get(n, float('nan')):14.4f}" if n in v else f"{'':14}" for n in names)
              for row, v in table.items()]  # fmt: skip
    return "\n".join(lines)


# --- The command line -----------------------------------------------------------------------------------------------
def _number(kind, low, high, text_range):
    """An argparse type: a number of `kind` within [low, high]."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {text_range}")
        return value

    return parse


_count = _number(int, 1, 10**9, "a whole number from 1 up")
_size = _number(int, 32, 8192, "a whole number from 32 to 8192")
_workers_type = _number(int, 0, 256, "a whole number from 0 to 256")
_seed = _number(int, 0, 2**31 - 1, "a whole number from 0 up")
_rate = _number(float, 1e-12, 1e3, "a number above 0")
_probability = _number(float, 1e-6, 1 - 1e-6, "a probability between 0 and 1")


_share = _number(float, 0, 1, "a number from 0 to 1")
_seconds = _number(float, 0, 1e9, "a number of seconds from 0 up")
_KINDS = ("mask", "overlay", "cutout", "side-by-side", "contour", "blurred", "pixelated")


def _kinds(text: str) -> list[str]:
    kinds = list(dict.fromkeys(text.split(",")))
    for kind in kinds:
        if kind not in _KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(_KINDS)}")
    return kinds


def _color(text: str) -> str:
    digits = text.removeprefix("#")
    if len(digits) != 6 or any(c not in "0123456789abcdefABCDEF" for c in digits):
        raise argparse.ArgumentTypeError(f"{text!r} is not a colour such as #8000ff")
    return text


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 3/16")
    return int(part), int(parts)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Masks of the visible face, glasses and covers cut out. Without a command: masks for the sample "
        "photographs of test_path/, written to predictions/.",
    )
    commands = parser.add_subparsers(dest="command", metavar="{train,evaluate,predict,export}")
    weights_help = (
        "a weights file, 'bundled' (the small model) or 'published' (the original's, fetched from Google Drive); "
        f"default: {const.MODEL_PATH.name} beside main.py if there, else bundled"
    )
    device = {"default": "auto", "help": "cpu, cuda, cuda:1, mps ...; default: a GPU where there is one"}

    p = commands.add_parser("predict", help="write masks and overlays of pictures, folders and videos")
    p.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help="pictures, folders of pictures, videos; - reads one picture from standard input and writes its mask to "
        "standard output",
    )
    p.add_argument("--weights", metavar="F", help=weights_help)
    p.add_argument("--out", type=Path, default=const.PREDICTIONS_DIR, help="where results go; default: predictions/")
    p.add_argument(
        "--threshold",
        type=_probability,
        default=const.THRESHOLD,
        help="probability from which a pixel is face; default 0.5 (the original: logit 0.1, a probability of 0.525)",
    )
    p.add_argument("--device", **device)
    p.add_argument("--batch-size", type=_count, default=4, help="pictures looked at together; default 4")
    p.add_argument("--flip", action="store_true", help="average with the mirrored picture: twice the time")
    p.add_argument(
        "--passes", type=int, choices=(1, 2), help="2: look again at each face found; default: by the weights"
    )
    p.add_argument(
        "--save", type=_kinds, metavar="A,B", help=f"which results, of {','.join(_KINDS)}; default mask,overlay"
    )
    p.add_argument("--blur", action="store_true", help="hide the faces: write NAME_blurred")
    p.add_argument("--pixelate", action="store_true", help="hide the faces: write NAME_pixelated")
    p.add_argument("--color", type=_color, default=const.OVERLAY_COLOR, help="of overlay and contour; default #8000ff")
    p.add_argument("--alpha", type=_share, default=const.OVERLAY_ALPHA, help="default 0.7")
    p.add_argument("--gif", type=Path, metavar="F", help="also a GIF of the overlays, of a video or of all pictures")
    p.add_argument(
        "--skip-existing", action="store_true", help="leave out pictures whose results are there, and no older"
    )
    p.add_argument("--shard", type=_shard, metavar="I/N", help="the I-th of N parts; torchrun's ranks by themselves")
    film = p.add_argument_group("videos and cameras")
    film.add_argument("--masks", action="store_true", help="also NAME_mask.mp4")
    film.add_argument("--every", type=_count, default=1, metavar="N", help="look at every Nth frame only")
    film.add_argument("--start", type=_seconds, default=0.0, metavar="S", help="seconds")
    film.add_argument("--end", type=_seconds, metavar="S", help="seconds; for a camera, when to stop")
    film.add_argument(
        "--smooth",
        type=_number(float, 0, 0.99, "a number from 0 to 0.99"),
        default=0.0,
        help="share of the past: 0 to 0.99",
    )
    film.add_argument("--webcam", type=_workers_type, metavar="N", help="a camera by number; q ends, --out records")
    p.set_defaults(run=_predict)

    p = commands.add_parser("export", help="write a network as ONNX")
    p.add_argument("--weights", metavar="F", help=weights_help)
    p.add_argument("--out", type=Path, help="the file; default: NAME.onnx in predictions/")
    p.set_defaults(run=_export)

    p = commands.add_parser("evaluate", help="measure weights on the validation faces")
    p.add_argument("--weights", metavar="F", required=True, help=weights_help)
    p.add_argument("--data", type=Path, default=const.CELEB_DIR, help="prepared folders; default: CelebAMask-HQ/")
    p.add_argument("--out", type=Path, help="where metrics.json and worst.jpg go; default: runs/evaluate-NAME")
    p.add_argument("--limit", type=_count, help="only the first N pictures")
    p.add_argument("--device", **device)
    p.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    p.add_argument("--passes", type=int, choices=(1, 2), help="default: by the weights")
    p.set_defaults(run=_evaluate)

    p = commands.add_parser("train", help="train a network; defaults are the original's")
    p.add_argument("--model", choices=("deeplabv3", "unet", "lite"), help=f"default {const.MODEL}")
    p.add_argument(
        "--recipe",
        choices=("original", "robust"),
        help="default original; robust, which made the bundled weights: faces of all sizes, other backgrounds, covers",
    )
    p.add_argument("--data", type=Path, default=const.CELEB_DIR, help="prepared folders; default: CelebAMask-HQ/")
    p.add_argument("--epochs", type=_count, help=f"default {const.EPOCHS}; robust {const.ROBUST['epochs']}")
    p.add_argument("--batch-size", type=_count, help=f"default {const.BATCH_SIZE}; robust {const.ROBUST['batch_size']}")
    p.add_argument("--lr", type=_rate, help=f"default {const.LR}; robust {const.ROBUST['lr']}")
    p.add_argument("--size", type=_size, help=f"picture size; default {const.IMG_SIZE}; robust {const.ROBUST['size']}")
    p.add_argument("--limit", type=_count, help="only the first N faces of each split")
    p.add_argument("--workers", type=_workers_type, help="loader processes; default: cores - 1, at most 4")
    p.add_argument("--accumulate", type=_count, metavar="N", help="batches that make one step; default 1")
    p.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="default auto: the fastest here")
    p.add_argument("--compile", action="store_true", help="torch.compile: a slow start, then faster steps")
    p.add_argument(
        "--cache", action="store_true", help="original recipe: each process keeps decoded pictures, 4 bytes a pixel"
    )
    p.add_argument("--seed", type=_seed, help=f"default {const.SEED}")
    p.add_argument("--device", **device)
    p.add_argument(
        "--resume", action="store_true", help="continue the killed run in --run-dir; what is not given stays as it was"
    )
    p.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    p.add_argument("--run-dir", type=Path, help="where the run's files go; default: runs/MODEL")
    p.add_argument("--backgrounds", type=Path, metavar="DIR", help="robust: photographs without faces")
    p.add_argument("--init", metavar="F", help="robust: weights to start from")
    p.add_argument(
        "--unlabelled", type=Path, metavar="DIR", help="robust: more aligned faces, whose masks --init predicts"
    )
    p.add_argument("--stop-after", type=_count, metavar="N", help="stop after epoch N; --resume goes on")
    p.add_argument("--single-face", type=_share, metavar="P", help="robust: share of large faces; default 0.55")
    p.add_argument("--occlusion-p", type=_share, help="robust: share of covered faces")
    p.add_argument("--glasses-p", type=_share, help="robust: share of faces that get drawn glasses")
    p.add_argument("--clearml", action="store_true", help="also report to ClearML, as the original did")
    p.add_argument("--tensorboard", action="store_true", help="also write logs for TensorBoard")
    p.set_defaults(run=_train)
    return parser


def _predict(args) -> int:
    if "-" in map(str, args.inputs):
        return _predict_stream(args)
    if not args.inputs and args.webcam is None:
        raise UserError("predict needs pictures, folders or videos, or --webcam N.")
    import devices
    from extras.video import SUFFIXES, VideoError
    from inference import PictureError

    hiding = ["blurred"] * args.blur + ["pixelated"] * args.pixelate
    save = [*(args.save or ([] if hiding else ["mask", "overlay"])), *hiding]
    film_save = [*(args.save or ([] if hiding else ["overlay"])), *hiding, *["mask"] * args.masks]
    if set(film_save) != {"cutout"}:  # a film holds no transparency; asked for alone, that is said
        film_save = [kind for kind in film_save if kind != "cutout"]
    films = [p for p in args.inputs if p.suffix.lower() in SUFFIXES and not p.is_dir()]
    pictures = [p for p in args.inputs if p not in films]
    shard = _my_part(args.shard)
    runner = Runner(args.device).load(args.weights, flip=args.flip, passes=args.passes)
    look = {"threshold": args.threshold, "color": args.color, "alpha": args.alpha}
    timing = {"every": args.every, "start": args.start, "end": args.end, "smooth": args.smooth}
    faults, gif = [], []
    if pictures:
        faults += runner.predict(
            pictures,
            args.out,
            **look,
            batch_size=args.batch_size,
            save=save,
            skip_existing=args.skip_existing,
            shard=shard,
        )
    for film in films[shard[0] - 1 :: shard[1]]:
        try:
            gif += runner.predict_video(film, args.out, **look, **timing, save=dict.fromkeys(film_save))
        except VideoError as error:
            faults.append(str(error))
    if args.webcam is not None and devices.rank() == 0:
        runner.webcam(args.webcam, args.out, **look, end=args.end, smooth=args.smooth)
    if args.gif is not None and devices.rank() == 0:
        try:
            runner.gif(args.gif, args.inputs, args.out, **look, **timing)
        except (UserError, VideoError, PictureError) as error:
            faults.append(str(error))
    return _report_together(faults)


def _predict_stream(args) -> int:
    if len(args.inputs) > 1:
        raise UserError("- stands alone: one picture from standard input.")
    runner = Runner(args.device, log=lambda *words: print(*words, file=sys.stderr))
    runner.load(args.weights, flip=args.flip, passes=args.passes)
    runner.predict_stream(sys.stdin.buffer, sys.stdout.buffer, args.threshold)
    return 0


def _export(args) -> int:
    runner = Runner("cpu").load(args.weights)
    runner.export(args.out or const.PREDICTIONS_DIR / f"{Path(runner.weights_name).stem}.onnx")
    return 0


def _main_job(args) -> int:
    runner = Runner()
    runner.load(online=True)
    return _report_together(runner.predict([const.TEST_DIR], const.PREDICTIONS_DIR, shard=_my_part(None)))


def _my_part(shard: tuple[int, int] | None) -> tuple[int, int]:
    """This process's part of the pictures: of a torchrun job, each has one of the part that was asked for."""
    import devices

    part, parts = shard or (1, 1)
    return (part - 1) * devices.world_size() + devices.rank() + 1, parts * devices.world_size()


def _runner(device: str) -> Runner:
    """A Runner that speaks in the first process of a torchrun job alone."""
    import devices

    return Runner(device, log=print if devices.rank() == 0 else lambda *words: None)


def _evaluate(args) -> int:
    runner = _runner(args.device)
    runner.load(args.weights, flip=args.flip, passes=args.passes, precision="fp32")
    path = Path(args.weights)
    name = path.parent.name if path.name == "model.best.pth" and path.parent.name else path.stem  # a run's, or its own
    runner.evaluate(args.data, args.out or const.RUNS_DIR / f"evaluate-{name}", limit=args.limit)
    return 0


def _train(args) -> int:
    from training import Config, settings_of

    robust_only = {
        "--backgrounds": args.backgrounds,
        "--unlabelled": args.unlabelled,
        "--init": args.init,
        "--single-face": args.single_face,
        "--occlusion-p": args.occlusion_p,
        "--glasses-p": args.glasses_p,
    }
    given = [name for name, value in robust_only.items() if value is not None]
    if args.recipe != "robust" and given and not args.resume:
        raise UserError(f"{given[0]} belongs to --recipe robust.")
    run_dir = args.run_dir or const.RUNS_DIR / (args.model or const.MODEL)
    settings = settings_of(run_dir) if args.resume else {}
    if args.recipe == "robust":
        settings = {**(const.ROBUST if args.init is None else const.ROBUST_SECOND), **settings}
    if args.size is not None and not (args.resume and args.size == settings.get("size")):
        settings["phases"] = []  # one size throughout
    for name in (
        "model",
        "recipe",
        "epochs",
        "batch_size",
        "lr",
        "size",
        "limit",
        "seed",
        "init",
        "single_face",
        "occlusion_p",
        "glasses_p",
        "accumulate",
        "precision",
    ):
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    for name in ("backgrounds", "unlabelled"):
        if getattr(args, name) is not None:
            settings[name] = str(getattr(args, name).resolve())
    if "pretrained" not in settings:
        settings["pretrained"] = not args.no_pretrained and args.model != "lite" and args.init is None
    config = Config(**settings)
    _runner(args.device).train(
        config,
        args.data,
        run_dir,
        resume=args.resume,
        workers=args.workers,
        stop_after=args.stop_after,
        cache=args.cache,
        compiled=args.compile,
        logs=["clearml"] * args.clearml + ["tensorboard"] * args.tensorboard,
    )
    return 0


def _report_together(faults: list[str]) -> int:
    """`_report_faults` of all processes of a torchrun job, by the first one, when all are done: as soon as one has
    failed, torchrun ends those that still work."""
    if "MASTER_ADDR" not in os.environ:  # alone, or numbered by something else, which does not connect them
        return _report_faults(faults)
    import torch

    import devices

    with devices.process_group(torch.device("cpu")):
        together = list(dict.fromkeys(fault for part in devices.all_gather(faults) for fault in part))
    return _report_faults(together) if devices.rank() == 0 else int(bool(together))


def _report_faults(faults: list[str]) -> int:
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return getattr(args, "run", _main_job)(args)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
            return 1
        if isinstance(error, OSError):
            print(f"error: {error.filename or 'writing'}: {error.strerror or error}.", file=sys.stderr)
            return 1
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            print("error: The memory does not suffice; give a smaller --batch-size or --size.", file=sys.stderr)
            return 1
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"error: torch.compile does not work here ({reason}); train without --compile.", file=sys.stderr)
            return 1
        raise


if __name__ == "__main__":
    sys.exit(main())
