"""Face segmentation that holds up when the face is occluded.

    python main.py                                   masks for the photographs of test_path/, into predictions/
    python main.py predict photo.jpg folder/ --out masks
    python main.py train --data CelebAMask-HQ        the original's experiment, into runs/
    python main.py evaluate --weights model.best.pth

Weights that are not named are the first that there are of model.best.pth beside this file, the original's published
checkpoint once it has been fetched, and the bundled small network; `python main.py` alone tries to fetch the published.
Only the parts of a command are imported by it: `--help` needs no PyTorch.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import const
from common import UserError, is_out_of_memory


class Runner:
    """Trains, evaluates and predicts; every method takes explicit values.

    Args:
        device: "auto" (a GPU where there is one), or what torch.device takes.
        log: where lines for the user go.

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
        """The torch.device.

        Raises:
            UserError: it cannot be used.
        """
        import devices

        found = devices.find_device(self.device_name, log=self.log)
        self.device_name = str(found)
        return found

    def load(
        self,
        weights: str | Path | None = None,
        *,
        online: bool = False,
        flip=False,
        passes=None,
        precision="auto",
        backend="auto",
    ) -> Runner:
        """Get ready to predict with a weights file, "bundled" or "published"; without a choice with the first that
        there is of model.best.pth beside main.py, the published checkpoint if it is cached (with `online`, fetched),
        and the bundled file. `precision` "fp32" is for measuring how good they are; `backend` is "torch", "openvino",
        or "auto": OpenVINO on a CPU if it is installed, see extras/openvino_backend.py.

        Raises:
            ModelError: the weights cannot be had or used. UserError: OpenVINO was asked for, and cannot be had.
        """
        import model as networks
        from extras import openvino_backend
        from inference import Segmenter

        path = networks.find_weights(weights, online=online, log=self.log)
        net, info = networks.load(path)
        self.weights, self.weights_name = path, path.name
        device, options = self.device, {"flip": flip, "passes": passes, "precision": precision, "log": self.log}
        chosen = openvino_backend.choose(backend, net, path, device, precision, log=self.log)
        self.segmenter = Segmenter(net, info, device, backend=chosen, **options)
        return self

    # -- predict
    def predict_image(self, picture, threshold: float = const.THRESHOLD):
        """A mask uint8 (H, W), 0/255, of a picture: a path, a Pillow image, or an array uint8 (H, W, 3) in RGB, (H, W)
        in grey or (H, W, 4) in RGBA, which is laid over white. Of a list of pictures, the list of masks.

        Raises:
            PictureError: the file cannot be read. ValueError: an array of another shape or type.
        """
        from pictures import to_array

        if self.segmenter is None:
            self.load()
        if isinstance(picture, (list, tuple)):
            return [self.predict_image(one, threshold) for one in picture]
        return self.segmenter.mask(to_array(picture), threshold)

    def predict(self, inputs, out: Path = const.PREDICTIONS_DIR, output=None, **options) -> list[str]:
        """Write results (`drawing.Output`; masks and overlays without it) for every picture of files and folders; see
        `pictures.predict` for the options. Gives a sentence for each picture that could not be read.

        Raises:
            UserError: no pictures, or results that cannot be written.
        """
        from pictures import predict

        if self.segmenter is None:
            self.load()
        return predict(self.segmenter, inputs, out, output, log=self.log, **options)

    def export(self, out: Path, *, faces: Path | None = None) -> float:
        """Write the loaded network as ONNX, compared with PyTorch on the sample photographs; the largest difference.
        With the prepared folders `faces` in int8 for OpenVINO, by some of their pictures; the IoU with fp32.

        Raises:
            UserError: a package is missing, the two disagree, or there are no pictures.
        """
        from extras import openvino_backend
        from extras.onnx_export import export
        from pictures import find_jobs, read_picture

        pictures = [read_picture(job.path) for job in find_jobs([const.TEST_DIR], out)]
        if not pictures:
            raise UserError(f"{const.TEST_DIR} holds no pictures to compare the export on.")
        if faces is None:
            return export(self.segmenter.net, self.segmenter.info, out, pictures, log=self.log)
        from data_preprocessing import ensure

        folder = ensure(faces, self.log) / "images_train"
        found = sorted(folder.glob("*.jpg"))
        some = (read_picture(path) for path in found[:: max(1, len(found) // openvino_backend.FACES)])
        return openvino_backend.quantize(self.segmenter, self.weights, some, pictures, out, log=self.log)

    # -- train
    def train(self, config, data: Path, run_dir: Path, **options) -> list[dict]:
        """Train as `config` says (training.Config or robust.recipe.RobustConfig) on the prepared folders of `data`; the
        files go to `run_dir`. See `training.run` for the options. Gives the history, one row an epoch.

        Raises:
            UserError: one sentence each.
        """
        import training

        recipe, _ = recipe_of(config.recipe)
        return training.run(recipe, config, Path(data), Path(run_dir), device=self.device, log=self.log, **options)

    # -- evaluate
    def evaluate(self, data: Path, out: Path, **options) -> dict:
        """Measure the loaded weights on the validation pictures of `data`; `metrics.json` and `worst.jpg` go to `out`.
        See `evaluation.evaluate` for the options.

        Returns:
            {threshold name: {"dice", "iou", "precision", "recall", "boundary_iou", ...}}.
        """
        import devices
        import evaluation

        with devices.process_group(self.device):
            options |= {"weights": self.weights_name, "log": self.log}
            return evaluation.evaluate(self.segmenter, data, out, **options)


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
_fraction = _number(float, 0, 1, "a number from 0 to 1")
_port = _number(int, 1, 65535, "a port from 1 to 65535")
_seconds = _number(float, 0, 1e9, "a number of seconds from 0 up")
BACKENDS = ("auto", "torch", "openvino")
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


def _kinds(text: str) -> list[str]:
    kinds = list(dict.fromkeys(text.split(",")))
    for kind in kinds:
        if kind not in const.RESULTS:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(const.RESULTS)}")
    return kinds


def _color(text: str) -> str:
    digits = text.removeprefix("#")
    if len(digits) != 6 or any(c not in "0123456789abcdefABCDEF" for c in digits):
        raise argparse.ArgumentTypeError(f"{text!r} is not a colour such as #8000ff")
    return text


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) <= 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 3/16")
    return int(part), int(parts)


_ROBUST_OPTIONS = (
    "backgrounds", "occluders", "init", "unlabelled", "exclude", "single_face", "occlusion_p", "glasses_p"
)  # fmt: skip


def _absolute(text: str) -> str:
    return str(_path(text).resolve())  # a run may be resumed from another folder


def _weights(text: str) -> str:
    return text if text == "bundled" else _absolute(text)


def _add_prediction(p: argparse.ArgumentParser, weights_help: str, device: dict) -> None:
    """The options of `predict`, in groups."""
    g = p.add_argument_group("results")
    g.add_argument("--out", type=_path, default=const.PREDICTIONS_DIR, help="where results go; default: predictions/")
    g.add_argument(
        "--save", type=_kinds, metavar="A,B", help=f"which results, of {','.join(const.RESULTS)}; default mask,overlay"
    )
    g.add_argument("--blur", action="store_true", help="hide the faces: write NAME_blurred")
    g.add_argument("--pixelate", action="store_true", help="hide the faces: write NAME_pixelated")
    g.add_argument("--color", type=_color, default=const.OVERLAY_COLOR, help="of overlay and contour; default #8000ff")
    g.add_argument("--alpha", type=_fraction, default=const.OVERLAY_ALPHA, help="of the overlay; default 0.7")
    g.add_argument("--gif", type=_path, metavar="F", help="also a GIF of the overlays, of a video or of all pictures")
    g.add_argument("--fail-empty", action="store_true", help="exit code 1 if a picture shows no face")
    g = p.add_argument_group("the network")
    g.add_argument("--weights", metavar="F", help=weights_help)
    g.add_argument(
        "--threshold",
        type=_probability,
        default=const.THRESHOLD,
        help="probability from which a pixel is face; default 0.5 (the original: logit 0.1, a probability of 0.525)",
    )
    g.add_argument("--flip", action="store_true", help="average with the mirrored picture: twice the time")
    g.add_argument(
        "--passes",
        type=int,
        choices=(1, 2),
        help="2: each face found is segmented again, enlarged; default: by weights",
    )
    g.add_argument("--device", **device)
    g.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
        default="auto",
        help="default: the fastest here, but for int8, which takes OpenVINO and a file of `export --int8`",
    )
    g.add_argument("--backend", choices=BACKENDS, default="auto", help="default: OpenVINO on a CPU if it is installed")
    g = p.add_argument_group("many pictures")
    g.add_argument("--batch-size", type=_count, default=4, help="pictures segmented together; default 4")
    g.add_argument(
        "--skip-existing", action="store_true", help="leave out pictures whose results are there, of the same file"
    )
    g.add_argument("--shard", type=_shard, metavar="I/N", help="the I-th of N parts; torchrun's ranks by themselves")
    g = p.add_argument_group("videos and cameras")
    g.add_argument("--masks", action="store_true", help="also NAME_mask.mp4")
    g.add_argument(
        "--frame-stride", type=_count, default=1, metavar="N", help="keep masks for N frames where the face is still"
    )
    g.add_argument("--start", type=_seconds, default=0.0, metavar="S", help="seconds")
    g.add_argument("--end", type=_seconds, metavar="S", help="seconds; for a camera, when to stop")
    g.add_argument(
        "--smooth",
        type=_number(float, 0, 0.99, "a number from 0 to 0.99"),
        default=0.0,
        help="fraction of the past in a mask where the frame is as it was: 0 to 0.99; 0.6 halves the flicker",
    )
    g.add_argument("--webcam", type=_workers_type, metavar="N", help="a camera by number; q ends, --out records")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Masks of the visible face, glasses and occluders cut out. Without a command: masks for the sample "
        "photographs of test_path/, written to predictions/.",
    )
    parser.add_argument("--version", action="version", version=f"face-segmentation {const.VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="{train,evaluate,predict,export,demo}")
    weights_help = (
        "a weights file, 'bundled' (the small network) or 'published' (the original's, fetched from Google Drive); "
        f"default: the first that there is of {const.MODEL_PATH.name} beside main.py, the published file once it has "
        "been fetched, and the bundled one"
    )
    device = {"default": "auto", "help": "cpu, cuda, cuda:1, mps ...; default: a GPU where there is one"}

    p = commands.add_parser(
        "predict",
        help="write masks and overlays of pictures, folders and videos",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python main.py predict photo.jpg holiday/ --out masks
  python main.py predict holiday/ --blur --fail-empty --out hidden
  python main.py predict clip.mp4 --save overlay,mask --smooth 0.5
""",
    )
    p.add_argument(
        "inputs",
        nargs="*",
        type=_path,
        metavar="INPUT",
        help="pictures, folders of pictures, videos; - reads one picture from standard input and writes its mask to "
        "standard output",
    )
    _add_prediction(p, weights_help, device)
    p.set_defaults(run=_predict)

    p = commands.add_parser("export", help="write a network as ONNX, or in int8 for OpenVINO")
    p.add_argument("--weights", metavar="F", help=weights_help)
    p.add_argument(
        "--out", type=_path, help="default: NAME.onnx in predictions/; of --int8 NAME-int8.zip beside the weights"
    )
    p.add_argument("--int8", action="store_true", help="in int8 for OpenVINO, by some of the training faces of --data")
    p.add_argument("--data", type=_path, default=const.CELEB_DIR, help="of --int8; default: CelebAMask-HQ/")
    p.set_defaults(run=_export)

    p = commands.add_parser("demo", help="open a page in the browser for photographs and videos")
    p.add_argument("--weights", metavar="F", help=weights_help)
    p.add_argument("--device", **device)
    p.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    p.add_argument("--port", type=_port, metavar="N", help="default: the first free one from 7860")
    p.add_argument("--share", action="store_true", help="also a public address through Gradio's tunnel, for a week")
    p.set_defaults(run=_demo)

    p = commands.add_parser("evaluate", help="measure weights on the validation faces")
    p.add_argument("--weights", metavar="F", required=True, help="a weights file, 'bundled' or 'published'")
    p.add_argument("--data", type=_path, default=const.CELEB_DIR, help="prepared folders; default: CelebAMask-HQ/")
    p.add_argument("--out", type=_path, help="where metrics.json and worst.jpg go; default: runs/evaluate-NAME")
    p.add_argument("--limit", type=_count, help="only the first N pictures")
    p.add_argument("--exclude", type=Path, metavar="F", help="a file of ids: one more row, without those faces")
    p.add_argument("--device", **device)
    p.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    p.add_argument("--passes", type=int, choices=(1, 2), help="default: by the weights")
    p.add_argument("--precision", choices=("fp32", "bf16", "fp16", "int8"), default="fp32", help="default fp32")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="default: PyTorch; OpenVINO in bf16 and int8")
    p.set_defaults(run=_evaluate)

    p = commands.add_parser("train", help="train a network; defaults are the original's")
    p.add_argument("--model", choices=("deeplabv3", "unet", "lite"), help=f"default {const.MODEL}; robust lite")
    p.add_argument("--recipe", choices=("original", "robust"), help="default original; robust: the bundled weights'")
    p.add_argument("--data", type=_path, default=const.CELEB_DIR, help="prepared folders; default: CelebAMask-HQ/")
    p.add_argument("--epochs", type=_count, help=f"default {const.EPOCHS}")
    p.add_argument("--batch-size", type=_count, help=f"default {const.BATCH_SIZE}")
    p.add_argument("--lr", type=_rate, help=f"default {const.LR}")
    p.add_argument("--size", type=_size, help=f"picture size; default {const.IMG_SIZE}")
    p.add_argument("--limit", type=_count, help="only the first N faces of each split")
    p.add_argument("--val-limit", type=_count, help="only the first N faces of the validation split")
    p.add_argument(
        "--workers",
        type=_workers_type,
        help="loader processes; default: cores - 1, at most 4; of the "
        "robust recipe each keeps up to 4.5 GB of decoded pictures",
    )
    p.add_argument("--accumulate", type=_count, metavar="N", help="batches that make one step; default 1")
    p.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="default auto: the fastest here")
    p.add_argument("--compile", action="store_true", help="torch.compile: a slow start, then faster steps")
    p.add_argument("--cache", action="store_true", help="keep decoded pictures in memory, 4 bytes a pixel a process")
    p.add_argument("--seed", type=_seed, help=f"default {const.SEED}")
    p.add_argument("--device", **device)
    p.add_argument("--resume", action="store_true", help="continue the run in --run-dir, or the latest one in runs/")
    p.add_argument(
        "--no-pretrained", dest="pretrained", action="store_false", default=None, help="start from random weights"
    )
    p.add_argument("--run-dir", type=_path, help="where the run's files go; default: runs/MODEL")
    p.add_argument("--stop-after", type=_count, metavar="N", help="stop after epoch N; --resume goes on")
    p.add_argument("--clearml", action="store_true", help="also report to ClearML, as the original did")
    p.add_argument("--tensorboard", action="store_true", help="also write logs for TensorBoard")
    g = p.add_argument_group("the robust recipe")
    g.add_argument("--backgrounds", type=_absolute, metavar="DIR", help="photographs without faces")
    g.add_argument("--occluders", type=_absolute, metavar="DIR", help="photographed hands/, objects/, masks/ ...")
    g.add_argument("--init", type=_weights, metavar="F", help="weights to start from: a file, or bundled")
    g.add_argument("--unlabelled", type=_absolute, metavar="DIR", help="more faces; --init predicts their masks")
    g.add_argument("--exclude", type=_absolute, metavar="F", help="a file with the ids of faces to leave out")
    g.add_argument("--single-face", type=_fraction, metavar="P", help="fraction of pictures with one large face")
    g.add_argument("--occlusion-p", type=_fraction, metavar="P", help="probability that a face is occluded")
    g.add_argument("--glasses-p", type=_fraction, metavar="P", help="probability of drawn glasses")
    p.set_defaults(run=_train)
    return parser


def _computing(args) -> dict:
    return {name: getattr(args, name) for name in ("flip", "passes", "precision", "backend")}


def _predict(args) -> int:
    if "-" in map(str, args.inputs):
        return _predict_stream(args)
    if not args.inputs and args.webcam is None:
        raise UserError("predict needs pictures, folders or videos, or --webcam N.")
    from drawing import Output

    hiding = ["blurred"] * args.blur + ["pixelated"] * args.pixelate
    style = {"threshold": args.threshold, "color": args.color, "alpha": args.alpha}
    output = Output((*(args.save or ([] if hiding else ["mask", "overlay"])), *hiding), **style)
    videos = [p for p in args.inputs if p.suffix.lower() in const.VIDEO_SUFFIXES and not os.path.isdir(p)]
    pictures = [p for p in args.inputs if p not in videos]
    shard, errors = _my_part(args.shard), []
    runner = Runner(args.device).load(args.weights, **_computing(args))
    if pictures:
        options = {name: getattr(args, name) for name in ("batch_size", "skip_existing", "fail_empty")}
        errors += runner.predict(pictures, args.out, output, shard=shard, **options)
    if videos or args.webcam is not None or args.gif is not None:
        try:
            errors += _predict_moving(args, runner, style, hiding, videos, shard)
        except UserError as error:  # what was said of the pictures is not lost
            errors.append(str(error))
    return _report_together(list(dict.fromkeys(errors)))  # a picture may fail a second time, for the GIF


def _predict_moving(args, runner: Runner, style: dict, hiding: list[str], videos: list[Path], shard) -> list[str]:
    """Videos; in the first process of a job a camera and a GIF besides. Gives a sentence for each that failed."""
    import devices
    from drawing import Output
    from extras import video

    kinds = [*(args.save or ([] if hiding else ["overlay"])), *hiding, *["mask"] * args.masks]
    none = [kind for kind in kinds if kind in const.PICTURES_ONLY]
    kinds = [kind for kind in dict.fromkeys(kinds) if kind not in none]
    if none and videos and not kinds:
        raise UserError(f"Of a video there is no {' and no '.join(none)}; save something else of it.")
    if none and videos:
        runner.log(f"Of videos there is no {' and no '.join(none)}.")
    output = Output(tuple(kinds), **style)
    timing = video.Timing(args.frame_stride, args.start, args.end, args.smooth)
    common, first = {"output": output, "timing": timing, "log": runner.log}, devices.rank() == 0
    gif = args.gif if first else None
    errors = video.predict_videos(runner.segmenter, args.inputs, args.out, shard=shard, gif=gif, **common)
    if first and args.webcam is not None:
        video.record_camera(runner.segmenter, args.webcam, args.out / "webcam_overlay.mp4", **common)
    return errors


def _predict_stream(args) -> int:
    if len(args.inputs) > 1:
        raise UserError("- stands alone: one picture from standard input.")
    from pictures import predict_stream

    runner = Runner(args.device, log=lambda *words: print(*words, file=sys.stderr))
    runner.load(args.weights, **_computing(args))
    if sys.stdin is None or sys.stdout is None:
        raise UserError("- needs an open standard input and output.")
    found = predict_stream(runner.segmenter, sys.stdin.buffer, sys.stdout.buffer, args.threshold)
    return _report([] if found or not args.fail_empty else ["The picture shows no face."])


def _export(args) -> int:
    runner = Runner("cpu").load(args.weights, backend="torch")
    if args.int8:
        from extras.openvino_backend import int8_path

        runner.export(args.out or int8_path(runner.weights), faces=args.data)
    else:
        runner.export(args.out or const.PREDICTIONS_DIR / f"{Path(runner.weights_name).stem}.onnx")
    return 0


def _demo(args) -> int:
    from extras import demo

    demo.serve(Runner(args.device).load(args.weights).segmenter, host=args.host, port=args.port, share=args.share)
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
    runner.load(args.weights, **_computing(args))
    path = Path(args.weights)
    name = path.parent.name if path.name == "model.best.pth" and path.parent.name else path.stem  # a run's, or its own
    out = args.out or const.RUNS_DIR / f"evaluate-{name}"
    runner.evaluate(args.data, out, limit=args.limit, exclude=args.exclude)
    return 0


def recipe_of(name: str) -> tuple[type, type]:
    """The class of a recipe and that of its settings."""
    if name == "robust":
        from robust.recipe import Robust, RobustConfig

        return Robust, RobustConfig
    from training import Config, Original

    return Original, Config


def _train(args) -> int:
    from dataclasses import fields

    import training

    run_dir = args.run_dir or (args.resume and args.model is None and training.latest_run(const.RUNS_DIR))
    run_dir = run_dir or const.RUNS_DIR / (args.model or const.MODEL)
    settings = training.read_run(run_dir)["config"] if args.resume else {}
    _, config_class = recipe_of(args.recipe or settings.get("recipe", "original"))
    names = {field.name for field in fields(config_class)}
    given = {name: value for name, value in vars(args).items() if value is not None}
    foreign = [name for name in _ROBUST_OPTIONS if name in given and name not in names]
    if foreign:
        raise UserError(f"--{foreign[0].replace('_', '-')} belongs to --recipe robust.")
    if not settings and config_class is not training.Config:
        settings = config_class.defaults(second=args.init is not None)
    if args.size is not None and args.size != settings.get("size"):
        settings["progressive"] = []  # one size throughout
    config = training.configured(config_class, settings | {name: given[name] for name in names & set(given)})
    logs = ["clearml"] * args.clearml + ["tensorboard"] * args.tensorboard
    if logs:
        from extras import trackers
    _runner(args.device).train(
        config,
        args.data,
        run_dir,
        resume=args.resume,
        workers=args.workers,
        stop_after=args.stop_after,
        cache=args.cache,
        compiled=args.compile,
        trackers=[trackers.LOGS[name] for name in logs],
    )
    return 0


def _report_together(errors: list[str]) -> int:
    """`_report` of all processes of a torchrun job, by the first one, when all are done: as soon as one has failed,
    torchrun ends those that still work."""
    if "MASTER_ADDR" not in os.environ:  # alone, or numbered by something else, which does not connect them
        return _report(errors)
    import torch

    import devices

    with devices.process_group(torch.device("cpu")):
        together = list(dict.fromkeys(error for part in devices.all_gather(errors) for error in part))
    return _report(together) if devices.rank() == 0 else int(bool(together))


def _report(errors: list[str]) -> int:
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot print is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:  # of standard output: closed early (| head), which is quiet, or full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python does at exit fails no more
        if isinstance(error, BrokenPipeError):
            return 141
        return _report([f"standard output: {error.strerror}."])


def _run(argv: list[str]) -> int:
    for option in argv:
        if (name := option.partition("=")[0]) in RENAMED:
            return _report([f"{name} is called {RENAMED[name]} now."])
    args = build_parser().parse_args(argv)
    try:
        return getattr(args, "run", _main_job)(args)
    except KeyboardInterrupt as error:
        print("stopped", file=sys.stderr)
        return next(iter(error.args), 130)
    except BrokenPipeError:  # standard output was closed: for `main`
        raise
    except Exception as error:
        if isinstance(error, UserError):
            return _report([str(error)])
        if is_out_of_memory(error):
            options = {"batch_size": "a smaller --batch-size", "size": "a smaller --size"}
            if type(error).__name__ == "OutOfMemoryError":  # of a GPU
                options["device"] = "--device cpu"
            advice = " or ".join(text for name, text in options.items() if hasattr(args, name))
            return _report([f"The memory does not suffice; give {advice or 'the machine more'}."])
        if isinstance(error, OSError):
            return _report([f"{error.filename or 'writing'}: {error.strerror or error}."])
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return _report([f"torch.compile does not work here ({reason}); train without --compile."])
        raise


if __name__ == "__main__":
    sys.exit(main())
