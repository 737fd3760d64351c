"""Face segmentation that holds up when the face is occluded.

    python main.py                                   masks for the photographs of test_path/, into predictions/
    python main.py predict photo.jpg folder/ --out masks
    python main.py train --data CelebAMask-HQ        the original's experiment, into runs/
    python main.py evaluate --weights model.best.pth

Only the parts of a command are imported by it: `--help` needs no PyTorch.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from functools import cached_property
from pathlib import Path

import const
from common import UserError, exit_code, number, positive, small

BACKENDS, PRECISIONS = ("auto", "torch", "openvino"), ("auto", "fp32", "bf16", "fp16", "int8")


class Runner:
    """Trains, evaluates and predicts on a `device`, "auto" or what torch.device takes; every method takes explicit
    values, and raises UserError with one sentence. `log` is told lines for the user."""

    def __init__(self, device: str = "auto", *, log=print):
        self.device_name, self.log, self.segmenter = device, log, None

    @cached_property
    def device(self):
        """The torch.device, tried out."""
        import devices

        return devices.find_device(self.device_name, log=self.log)

    def load(self, weights: str | Path | None = None, *, online=False, precision="auto", backend="auto", **options):
        """Load weights to predict with: a file, "bundled" or "published"; by default model.best.pth, else the published
        file if it has been fetched (`online` fetches it), else the bundled one. Returns the runner. `precision` "fp32"
        is for measuring how good they are; `backend` is one of `BACKENDS`, "auto" being OpenVINO on a CPU if it is
        installed; `flip` and `passes` go to `inference.Segmenter`."""
        if backend not in BACKENDS or precision not in PRECISIONS:
            raise UserError(f"backend is one of {', '.join(BACKENDS)}, precision one of {', '.join(PRECISIONS)}.")
        import devices
        import model as networks
        from extras import openvino_backend
        from inference import Segmenter

        path = networks.find_weights(weights, online=online, log=self.log)
        net, info = networks.load(path)
        self.weights, device = path, self.device
        chosen = openvino_backend.choose(backend, net, path, device, precision, log=self.log)
        if chosen is None:
            devices.warn_of_emulation(precision, device, self.log)
        self.segmenter = Segmenter(net, info, device, backend=chosen, precision=precision, log=self.log, **options)
        return self

    def described(self) -> dict:
        """The weights and settings that figures were measured with."""
        import hashlib

        one, digest = self.segmenter, hashlib.sha256(self.weights.read_bytes()).hexdigest()
        computed = {"passes": one.passes, "flip": one.flip, "backend": one.backend.name}
        weights = {"weights": str(self.weights), "sha256": digest, "model": one.info.model}
        return {**weights, **computed, "precision": one.backend.precision, "device": str(self.device)}

    def predict_image(self, picture, threshold: float = const.THRESHOLD):
        """A mask uint8 (H, W), 0/255, of a picture, see `pictures.to_array`: a path, a Pillow image or an array. Of a
        list of pictures, the list of masks. An array of another shape or type is a ValueError."""
        from pictures import to_array

        if self.segmenter is None:
            self.load()
        if isinstance(picture, (list, tuple)):
            return [self.predict_image(one, threshold) for one in picture]
        return self.segmenter.mask(to_array(picture), threshold)

    def predict(self, inputs, out: Path = const.PREDICTIONS_DIR, output=None, **options) -> list[str]:
        """Write results (`drawing.Output`; masks and overlays without it) for every picture of files and folders; see
        `pictures.predict` for the options. Gives a sentence for each picture that could not be read."""
        from pictures import predict

        if self.segmenter is None:
            self.load()
        return predict(self.segmenter, inputs, out, output, log=self.log, **options)

    def export(self, out: Path | None = None, *, faces: Path | None = None) -> float:
        """Write the loaded network as ONNX to `out`, compared with PyTorch on the sample photographs; the largest
        difference. With prepared folders `faces` in int8 for OpenVINO, by some of their pictures; the IoU with fp32."""
        from extras import onnx_export, openvino_backend
        from pictures import find_jobs, read_picture

        pictures = [read_picture(job.path) for job in find_jobs([const.TEST_DIR], const.PREDICTIONS_DIR)]
        if not pictures:
            raise UserError(f"{const.TEST_DIR} holds no pictures to compare the export on.")
        if self.segmenter is None:
            self.load(backend="torch")
        if faces is None:
            out = out or const.PREDICTIONS_DIR / f"{_name_of(self.weights)}.onnx"
            return onnx_export.export(self.segmenter.net, self.segmenter.info, out, pictures, log=self.log)
        from data_preprocessing import ensure

        if not (found := sorted((ensure(faces, self.log) / "images_train").glob("*.jpg"))):
            raise UserError(f"{faces} holds no images_train/*.jpg, by which the ranges of int8 are found.")
        some = (read_picture(path) for path in found[:: max(1, len(found) // openvino_backend.FACES)])
        out = Path(out or openvino_backend.int8_path(self.weights))
        return openvino_backend.quantize(self.segmenter, self.weights, some, pictures, out, log=self.log)

    def train(self, config, data: Path, run_dir: Path, **options) -> list[dict]:
        """Train as `config` says (training.Config or robust.recipe.RobustConfig) on the prepared folders of `data`; the
        files go to `run_dir`. See `training.run` for the options. Gives the history, one row an epoch."""
        import training

        recipe, _ = recipe_of(config.recipe)
        return training.run(recipe, config, Path(data), Path(run_dir), device=self.device, log=self.log, **options)

    def evaluate(self, data: Path, out: Path, **options) -> dict:
        """Measure the loaded weights on the validation pictures of `data`; `metrics.json` and `worst.jpg` go to `out`.
        See `evaluation.evaluate` for the options and what is given."""
        import devices
        import evaluation

        if self.segmenter is None:
            raise UserError("Load the weights that are to be measured first: runner.load(F).")
        with devices.process_group(self.device):
            return evaluation.evaluate(self.segmenter, data, out, about=self.described(), log=self.log, **options)


# --- The command line -----------------------------------------------------------------------------------------------
_size = number(int, 32, 8192, "a whole number from 32 to 8192")
_seed = number(int, 0, 2**31 - 1, "a whole number from 0 up")
_rate = number(float, 1e-12, 1e3, "a number above 0")
_probability = number(float, 0.02, 0.98, "a probability from 0.02 to 0.98")  # rejected regions have 0.018
_fraction = number(float, 0, 1, "a number from 0 to 1")
_smoothing = number(float, 0, 0.99, "a number from 0 to 0.99")
_port = number(int, 1, 65535, "a port from 1 to 65535")
_seconds = number(float, 0, 1e9, "a number of seconds from 0 up")
RENAMED = {
    "--looks": "--passes",
    "--every": "--frame-stride",
    "--cover-p": "--occlusion-p",
    "--close-ups": "--single-face",
}


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("'' is not a path")
    return Path(text)


def _absolute(text: str) -> str:
    return str(_path(text).resolve())  # a run may be resumed from another folder


def _weights(text: str) -> str:
    return text if text == "bundled" else _absolute(text)


def _name_of(weights: Path) -> str:
    """That of a run, or the file's own."""
    path = weights.resolve()
    return path.parent.name if path.name == const.MODEL_PATH.name and path != const.MODEL_PATH else path.stem


def _kinds(text: str) -> list[str]:
    kinds = list(dict.fromkeys(text.replace(" ", "").split(",")))
    for kind in kinds:
        if kind not in const.RESULTS:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(const.RESULTS)}")
    return kinds


def _gif(text: str) -> Path:
    if not text.lower().endswith(".gif"):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a GIF, such as faces.gif")
    return _path(text)


def _color(text: str) -> str:
    if not re.fullmatch("#?[0-9a-fA-F]{6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a colour such as #8000ff")
    return text


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) <= 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 3/16")
    return int(part), int(parts)


# Options of several commands
_WEIGHTS = {
    "metavar": "F",
    "help": f"a weights file, 'bundled' or 'published'; default: {const.MODEL_PATH.name} beside main.py, else the "
    "published file if it has been fetched, else the bundled one",
}
_DEVICE = {"default": "auto", "help": "cpu, cuda, cuda:1, mps ...; default: a GPU where there is one"}
_DATA = {"type": _path, "default": const.CELEB_DIR, "help": "prepared folders; default: CelebAMask-HQ/"}
_PASSES = {"type": int, "choices": (1, 2), "help": "2: each face again, enlarged; default: as the weights say"}
_FLIP = {"action": "store_true", "help": "average with the mirrored picture: twice the time"}
_BACKEND = {"choices": BACKENDS, "default": "auto"}
_ROBUST = {  # options of the robust recipe alone
    "backgrounds": (_absolute, "DIR", "photographs without faces"),
    "occluders": (_absolute, "DIR", "photographed hands/, objects/, masks/ ..."),
    "init": (_weights, "F", "weights to start from: a file, or bundled"),
    "exclude": (_absolute, "F", "a file with the ids of faces to leave out"),
    "single_face": (_fraction, "P", "fraction of pictures with one large face; default 0.6, with --init 0.65"),
    "occlusion_p": (_fraction, "P", "probability that a face is occluded; default 0.5"),
    "glasses_p": (_fraction, "P", "probability of drawn glasses; default 0.2"),
}
_EXAMPLES = """examples:
  python main.py predict photo.jpg holiday/ --out masks
  python main.py predict holiday/ --blur --fail-empty --out hidden
  python main.py predict clip.mp4 --save overlay,mask --smooth 0.5
"""


def _add_predict(p: argparse.ArgumentParser) -> None:
    text = "pictures, folders of pictures, videos; - reads standard input"
    p.add_argument("inputs", nargs="*", type=_path, metavar="INPUT", help=text)
    add = p.add_argument_group("results").add_argument
    add("--out", type=_path, default=const.PREDICTIONS_DIR, help="where results go; default: predictions/")
    text = f"of {','.join(const.RESULTS)}; default mask,overlay, of videos overlay"
    add("--save", type=_kinds, metavar="A,B", help=text)
    add("--blur", action="store_true", help="hide the faces: write NAME_blurred")
    add("--pixelate", action="store_true", help="hide the faces: write NAME_pixelated")
    add("--color", type=_color, default=const.OVERLAY_COLOR, help="of overlay and contour; default #8000ff")
    add("--alpha", type=_fraction, default=const.OVERLAY_ALPHA, help="of the overlay; default 0.7")
    add("--gif", type=_gif, metavar="F", help="also a GIF, of a video or of all pictures")
    add("--fail-empty", action="store_true", help="exit code 1 if a picture or video shows no face")
    add = p.add_argument_group("the network").add_argument
    add("--weights", **_WEIGHTS)
    original = "the original: logit 0.1, a probability of 0.525"
    add("--threshold", type=_probability, default=const.THRESHOLD, help=f"probability; default 0.5 ({original})")
    add("--flip", **_FLIP)
    add("--passes", **_PASSES)
    add("--device", **_DEVICE)
    add("--precision", choices=PRECISIONS, default="auto", help="default: the fastest; int8: bundled, or after export")
    add("--backend", **_BACKEND, help="default: OpenVINO for lite on a CPU, if installed")
    add = p.add_argument_group("many pictures").add_argument
    add("--batch-size", type=positive, default=4, help="pictures segmented together; default 4")
    add("--skip-existing", action="store_true", help="leave out what has its results already")
    add("--shard", type=_shard, metavar="I/N", help="the I-th of N parts; under torchrun each process takes its own")
    add = p.add_argument_group("videos and cameras").add_argument
    add("--masks", action="store_true", help="also NAME_mask.mp4")
    add("--frame-stride", type=positive, default=1, metavar="N", help="segment every Nth frame of a still face")
    add("--start", type=_seconds, default=0.0, metavar="S", help="seconds")
    add("--end", type=_seconds, metavar="S", help="seconds; for a camera, when to stop")
    add("--smooth", type=_smoothing, default=0.0, help="weight of earlier frames; 0.6 leaves a third of the flicker")
    add("--webcam", type=small, metavar="N", help="a camera by number, recorded to --out; q ends it")


def _add_train(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--model", choices=("deeplabv3", "unet", "lite"), help=f"default {const.MODEL}; robust lite")
    add("--recipe", choices=("original", "robust"), help="default original; robust: the bundled weights'")
    add("--data", **_DATA)
    add("--epochs", type=positive, help=f"default {const.EPOCHS}; robust 12, with --init 6")
    add("--batch-size", type=positive, help=f"default {const.BATCH_SIZE}; robust 16")
    add("--lr", type=_rate, help=f"default {const.LR}; robust 1.5e-3, with --init 8e-4")
    add("--size", type=_size, help=f"picture size; default {const.IMG_SIZE}; robust 160 to 192, with --init 256 to 320")
    add("--limit", type=positive, help="only the first N faces of each split")
    add("--val-limit", type=positive, help="only the first N faces of the validation split; robust 300")
    add("--workers", type=small, help="loader processes, with robust up to 4.5 GB each; default: cores - 1, at most 4")
    add("--accumulate", type=positive, metavar="N", help="batches that make one step; default 1")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="default auto: the fastest here")
    add("--compile", action="store_true", help="torch.compile: a slow start, then faster steps")
    add("--cache", action="store_true", help="keep decoded pictures in memory, 4 bytes a pixel; not robust's")
    add("--seed", type=_seed, help=f"default {const.SEED}")
    add("--device", **_DEVICE)
    add("--resume", action="store_true", help="continue the run in --run-dir, of --model, or the latest in runs/")
    add("--no-pretrained", dest="pretrained", action="store_const", const=False, help="start from random weights")
    add("--run-dir", type=_path, help="where the run's files go; default: runs/MODEL")
    add("--stop-after", type=positive, metavar="N", help="stop after epoch N; --resume goes on")
    add("--clearml", action="store_true", help="also report to ClearML, as the original did")
    add("--tensorboard", action="store_true", help="also write logs for TensorBoard")
    robust = p.add_argument_group("the robust recipe")
    for name, (kind, metavar, text) in _ROBUST.items():
        robust.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)


def build_parser() -> argparse.ArgumentParser:
    text = "Masks of the visible face; without a command for the photographs of test_path/, into predictions/."
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--version", action="version", version=f"face-segmentation {const.VERSION}")
    parser.set_defaults(run=_main_job)
    commands = parser.add_subparsers(dest="command", metavar="{train,evaluate,predict,export,demo}")

    def command(name: str, run, text: str, **options) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", **options)
        p.set_defaults(run=run)
        return p

    raw = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": _EXAMPLES}
    _add_predict(command("predict", _predict, "write masks and overlays of pictures, folders and videos", **raw))

    add = command("export", _export, "write a network as ONNX, or in int8 for OpenVINO").add_argument
    add("--weights", **_WEIGHTS)
    add("--out", type=_path, help="default: NAME.onnx in predictions/; of --int8 NAME-int8.zip beside the weights")
    add("--int8", action="store_true", help="in int8 for OpenVINO, calibrated on training faces of --data")
    add("--data", **_DATA)

    add = command("demo", _demo, "open a page in the browser for photographs and videos").add_argument
    add("--weights", **_WEIGHTS)
    add("--device", **_DEVICE)
    add("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    add("--port", type=_port, metavar="N", help="default: the first free one from 7860")
    add("--share", action="store_true", help="also a public address through Gradio's tunnel, for a week")

    add = command("evaluate", _evaluate, "measure weights on the validation faces").add_argument
    add("--weights", metavar="F", required=True, help="a weights file, 'bundled' or 'published'")
    add("--data", **_DATA)
    add("--out", type=_path, help="where metrics.json and worst.jpg go; default: runs/evaluate-NAME")
    add("--limit", type=positive, help="only the first N pictures")
    add("--exclude", type=Path, metavar="F", help="a file of ids: one more row, without those faces")
    add("--device", **_DEVICE)
    add("--flip", **_FLIP)
    add("--passes", **_PASSES)
    add("--precision", choices=("fp32", "bf16", "fp16", "int8"), default="fp32", help="default fp32")
    add("--backend", **_BACKEND, help="default: PyTorch; OpenVINO in bf16 and int8")

    _add_train(command("train", _train, "train a network"))
    return parser


def _computing(args) -> dict:
    return {name: getattr(args, name) for name in ("flip", "passes", "precision", "backend")}


def _output(args, *default: str):
    from drawing import Output

    hiding = ["blurred"] * args.blur + ["pixelated"] * args.pixelate
    results = dict.fromkeys([*(args.save or ([] if hiding else default)), *hiding])
    return Output(tuple(results), args.threshold, args.color, args.alpha)


def _predict(args) -> int | None:
    if "-" in map(str, args.inputs):
        return _predict_stream(args)
    if not args.inputs and args.webcam is None:
        raise UserError("predict needs pictures, folders or videos, or --webcam N.")
    videos = [p for p in args.inputs if p.suffix.lower() in const.VIDEO_SUFFIXES and not os.path.isdir(p)]
    pictures = [p for p in args.inputs if p not in videos]
    shard, errors = _my_part(args.shard), []
    runner = Runner(args.device).load(args.weights, **_computing(args))
    try:
        if pictures:
            options = {name: getattr(args, name) for name in ("batch_size", "skip_existing", "fail_empty")}
            errors += runner.predict(pictures, args.out, _output(args, "mask", "overlay"), shard=shard, **options)
    except UserError as error:  # no hindrance to the others
        errors.append(str(error))
    try:
        if videos or args.webcam is not None or args.gif is not None:
            errors += _predict_moving(args, runner, videos, shard)
    except UserError as error:
        errors.append(str(error))
    return _report(errors)


def _predict_moving(args, runner: Runner, videos: list[Path], shard: tuple[int, int]) -> list[str]:
    """Videos; in the first process of a job a camera and a GIF besides. Gives a sentence for each that failed."""
    from dataclasses import replace

    import devices
    from extras import video

    output = _output(args, "overlay")
    kinds = dict.fromkeys([*output.results, *["mask"] * args.masks])
    none = [kind for kind in kinds if kind in const.PICTURES_ONLY]
    output = replace(output, results=tuple(kind for kind in kinds if kind not in none))
    if none and (videos or args.webcam is not None):
        sentence = f"A video has no {' and no '.join(none)}"
        if not output.results:
            raise UserError(f"{sentence}; choose another --save.")
        runner.log(f"{sentence}.")
    if output.hiding and args.frame_stride > 1:
        runner.log("--frame-stride is left out: where faces are to be hidden, every frame is segmented.")
    timing = video.Timing(args.frame_stride, args.start, args.end, args.smooth)
    common, first = {"output": output, "timing": timing, "log": runner.log}, devices.rank() == 0
    gif = args.gif if first else None
    options = {name: getattr(args, name) for name in ("skip_existing", "fail_empty")}
    errors = video.predict_videos(runner.segmenter, args.inputs, args.out, shard=shard, gif=gif, **options, **common)
    if first and args.webcam is not None:
        video.record_camera(runner.segmenter, args.webcam, args.out, **common)
    return errors


def _predict_stream(args) -> None:
    if len(args.inputs) > 1:
        raise UserError("- stands alone: one picture from standard input.")
    names = ("save", "blur", "pixelate", "masks", "gif", "webcam", "skip_existing", "shard")
    other = {name: getattr(args, name) for name in names} | {"out": args.out != const.PREDICTIONS_DIR}
    if given := [name for name, value in other.items() if value is not None and value is not False]:
        raise UserError(f"- writes the mask alone: leave out --{given[0].replace('_', '-')}, or give a file.")
    from pictures import predict_stream

    runner = Runner(args.device, log=lambda *words: print(*words, file=sys.stderr))
    runner.load(args.weights, **_computing(args))
    if sys.stdin is None or sys.stdout is None:
        raise UserError("- needs an open standard input and output.")
    found = predict_stream(runner.segmenter, sys.stdin.buffer, sys.stdout.buffer, args.threshold)
    if args.fail_empty and not found:
        raise UserError("The picture shows no face.")


def _export(args) -> None:
    runner = Runner("cpu").load(args.weights, backend="torch")
    runner.export(args.out, faces=args.data if args.int8 else None)


def _demo(args) -> None:
    from extras import demo

    demo.serve(Runner(args.device).load(args.weights).segmenter, host=args.host, port=args.port, share=args.share)


def _main_job(_) -> int:
    runner = Runner().load(online=True)
    return _report(runner.predict([const.TEST_DIR], const.PREDICTIONS_DIR, shard=_my_part(None)))


def _my_part(shard: tuple[int, int] | None) -> tuple[int, int]:
    """This process's part of the pictures: of a torchrun job, each has one of the part that was asked for."""
    import devices

    part, parts = shard or (1, 1)
    return (part - 1) * devices.world_size() + devices.rank() + 1, parts * devices.world_size()


def _runner(device: str) -> Runner:
    """A Runner that speaks in the first process of a torchrun job alone."""
    import devices

    return Runner(device, log=print if devices.rank() == 0 else lambda *words: None)


def _evaluate(args) -> None:
    runner = _runner(args.device).load(args.weights, **_computing(args))
    out = args.out or const.RUNS_DIR / f"evaluate-{_name_of(Path(args.weights))}"
    runner.evaluate(args.data, out, limit=args.limit, exclude=args.exclude)


def recipe_of(name: str | None) -> tuple[type, type]:
    """The class of a recipe, the original's without a name, and that of its settings."""
    if name == "robust":
        from robust.recipe import Robust, RobustConfig

        return Robust, RobustConfig
    if name not in (None, "original"):
        raise UserError(f"There is no recipe {name!r}, but 'original' and 'robust'.")
    from training import Config, Original

    return Original, Config


def _train(args) -> None:
    from dataclasses import fields

    import training
    from extras.trackers import LOGS

    run_dir = args.run_dir or (args.resume and args.model is None and training.latest_run(const.RUNS_DIR))
    run_dir = run_dir or const.RUNS_DIR / (args.model or recipe_of(args.recipe)[1].model)
    settings = training.read_run(run_dir)["config"] if args.resume else {}
    _, config_class = recipe_of(args.recipe or settings.get("recipe"))
    names = {field.name for field in fields(config_class)}
    given = {name: value for name, value in vars(args).items() if value is not None}
    if foreign := [name for name in _ROBUST if name in given and name not in names]:
        raise UserError(f"--{foreign[0].replace('_', '-')} belongs to --recipe robust.")
    if not settings and config_class is not training.Config:
        settings = config_class.defaults(second=args.init is not None)
        if args.size is not None:
            settings["progressive"] = []  # one size throughout
        if args.limit is not None:
            settings["val_limit"] = min(args.limit, config_class.val_limit)
    config = training.configured(config_class, settings | {name: given[name] for name in names & set(given)})
    options = {name: getattr(args, name) for name in ("resume", "workers", "stop_after", "cache")}
    trackers = [made for name, made in LOGS.items() if getattr(args, name)]
    runner = _runner(args.device)
    runner.train(config, args.data, run_dir, compiled=args.compile, trackers=trackers, **options)


def _report(errors: list[str]) -> int:
    """The exit code, once the first process has printed the errors of all processes of a torchrun job, when all are
    done: as soon as one has failed, torchrun ends those that still work."""
    if "MASTER_ADDR" in os.environ:  # else alone, or numbered by something that does not connect the processes
        import torch

        import devices

        with devices.process_group(torch.device("cpu")):
            errors = [error for part in devices.all_gather(errors) for error in part]
        if devices.rank() != 0:
            return int(bool(errors))
    for error in dict.fromkeys(errors):  # a picture may fail a second time, for the GIF
        print(f"error: {error}", file=sys.stderr)
    return int(bool(errors))


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot print is no error
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if argv is None else argv
    if old := [name for name in (option.partition("=")[0] for option in given) if name in RENAMED]:
        print(f"error: {old[0]} is called {RENAMED[old[0]]} now.", file=sys.stderr)
        return 1
    try:
        try:
            args = build_parser().parse_args(given)
            return exit_code(lambda: args.run(args), options=vars(args))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:  # of standard output: closed early (| head), which is quiet, or full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python does at exit fails no more
        if isinstance(error, BrokenPipeError):
            return 141
        print(f"error: standard output: {error.strerror}.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
