"""Videos and cameras: frame by frame in constant memory, masks that do not flicker, results as MP4.

The results have the input's size, frame rate and orientation; sound is not carried over.

    python -m extras.video test_path/chris.jpg       how much masks flicker on a still face, and what smoothing does
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common import UserError, replacing

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
CUT = 40.0  # mean grey-level change, of 255, between two frames that is taken for a cut: smoothing starts anew


class VideoError(UserError):
    """A video or camera that cannot be read or written; the message is one sentence for the user."""


@dataclass(frozen=True)
class Clip:
    """What a file says of itself."""

    path: Path
    fps: float
    frames: int  # 0 where the file does not say


def probe(path: Path) -> Clip:
    """Open a video once, and read its first frame.

    Raises:
        VideoError: the file is missing, is no video, or has no frame that can be read.
    """
    if not Path(path).is_file():
        raise VideoError(f"There is no file {path}.")
    capture = _open(str(path))
    try:
        if not capture.isOpened() or not capture.read()[0]:
            raise VideoError(f"{path} holds no frame that can be read; is it a whole video?")
        fps = capture.get(cv2.CAP_PROP_FPS)
        return Clip(Path(path), fps if 0 < fps <= 1000 else 25.0, max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))))
    finally:
        capture.release()


def _open(source):
    """cv2.VideoCapture without its complaints on standard error."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    log = cv2.utils.logging
    level = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(source)
    finally:
        log.setLogLevel(level)


def read_frames(source, *, start: float = 0.0, end: float | None = None, fps: float = 25.0) -> Iterator[np.ndarray]:
    """Frames uint8 (H, W, 3) RGB, upright, of a file or camera number, from `start` to `end` seconds.

    A thread reads up to four frames ahead.
    """
    ahead: queue.Queue = queue.Queue(maxsize=4)
    stop = threading.Event()

    def read():
        capture = _open(source)
        number = 0
        try:
            while not stop.is_set():
                if end is not None and number >= round(end * fps):
                    break
                if number < round(start * fps):
                    if not capture.grab():
                        break
                else:
                    there, frame = capture.read()
                    if not there:
                        break
                    _put(ahead, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), stop)
                number += 1
        finally:
            capture.release()
            _put(ahead, None, stop)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while (frame := ahead.get()) is not None:
            yield frame
    finally:
        stop.set()
        thread.join()


def _put(ahead: queue.Queue, item, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return ahead.put(item, timeout=0.1)
        except queue.Full:
            continue


@contextmanager
def writing(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds a frame uint8 (H, W, 3) RGB to an MP4 file, which gets its name when it is whole.

    Raises:
        VideoError: this OpenCV cannot write the format, no frame came, or nothing arrived on the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        file = cv2.VideoWriter()

        def write(frame: np.ndarray) -> None:
            h, w = frame.shape[:2]
            if not file.isOpened() and not file.open(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), fps, (w, h)):
                raise VideoError(f"{path} cannot be written: no permission, or an OpenCV without MP4.")
            file.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

        try:
            yield write
        finally:
            file.release()
        if not temporary.is_file() or not temporary.stat().st_size:
            raise VideoError(f"{path} could not be written: no frame came, or the disk is full.")


class Smoother:
    """Logits averaged over time: `keep` of the past, the rest of the present; a cut in the film starts anew."""

    def __init__(self, keep: float):
        self.keep, self.past, self.thumbnail = keep, None, None

    def __call__(self, logits: np.ndarray, frame: np.ndarray) -> np.ndarray:
        thumbnail = cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        cut = self.thumbnail is None or float(np.abs(thumbnail - self.thumbnail).mean()) > CUT
        self.thumbnail = thumbnail
        bounded = np.clip(logits, -8, 8)  # else one very sure frame outweighs many
        if cut or self.past is None or self.past.shape != logits.shape:
            self.past = bounded
        else:
            self.past = cv2.addWeighted(self.past, self.keep, bounded, 1 - self.keep, 0)
        return self.past


def flicker(masks: list[np.ndarray]) -> float:
    """How much masks change from frame to frame: the mean of 1 - IoU of neighbours."""
    changes = []
    for a, b in itertools.pairwise(masks):
        union = np.count_nonzero(a | b)
        changes.append(1 - np.count_nonzero(a & b) / union if union else 0.0)
    return float(np.mean(changes)) if changes else 0.0


def masked_frames(
    segmenter, frames: Iterator[np.ndarray], *, threshold: float, every: int = 1, keep: float = 0.0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(frame, mask uint8 (H, W) 0/255) for each frame; every `every`th is looked at, its mask held in between."""
    from inference import to_mask

    smoother, mask = Smoother(keep) if keep > 0 else None, None
    for i, frame in enumerate(frames):
        if i % every == 0 or mask is None or mask.shape != frame.shape[:2]:
            logits = segmenter.logits([frame])[0]
            mask = to_mask(smoother(logits, frame) if smoother else logits, threshold)
        yield frame, mask


def record_camera(
    segmenter, camera: int, target: Path, draw, *, threshold: float, seconds: float | None, keep: float, log=print
) -> int:
    """Show `draw(frame, mask)` of a camera live, where OpenCV has windows, and record it; the number of frames.

    Raises:
        VideoError: there is no such camera, or it gives no picture.
    """
    probed = _open(camera)
    there = probed.isOpened() and probed.read()[0]
    fps = probed.get(cv2.CAP_PROP_FPS)
    probed.release()
    if not there:
        raise VideoError(f"Camera {camera} gives no picture; is it connected, and not in use?")
    window, written, began = True, 0, time.perf_counter()
    looked = masked_frames(segmenter, read_frames(camera), threshold=threshold, keep=keep)
    with writing(target, fps if 0 < fps <= 1000 else 25.0) as write:
        try:
            for frame, mask in looked:
                drawn = draw(frame, mask)
                write(drawn)
                written += 1
                if window:
                    try:
                        cv2.imshow("face segmentation, q ends", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
                        if cv2.waitKey(1) & 0xFF == ord("q"):
                            break
                    except cv2.error:
                        window = False
                        log(f"This OpenCV has no windows; recording to {target} until Ctrl-C.")
                if seconds is not None and time.perf_counter() - began >= seconds:
                    break
        except KeyboardInterrupt:
            pass  # the usual end: what was recorded is kept
    log(f"{written} frames recorded: {target}")
    return written


def predict_video(
    segmenter,
    path: Path,
    targets: dict[Path, Callable[[np.ndarray, np.ndarray], np.ndarray]],
    *,
    threshold: float,
    every: int = 1,
    start: float = 0.0,
    end: float | None = None,
    keep: float = 0.0,
    log=print,
) -> int:
    """Write each target file, of frames that its function makes of (frame, mask); the number of frames written.

    A frame that cannot be read ends the results there, whole and playable, and is reported.

    Raises:
        VideoError: no video, nothing between `start` and `end`, or results that cannot be written.
    """
    from tqdm.auto import tqdm

    clip = probe(path)
    frames = read_frames(str(path), start=start, end=end, fps=clip.fps)
    expected = clip.frames and max(0, min(clip.frames, round((end or 1e9) * clip.fps)) - round(start * clip.fps))
    began, written = time.perf_counter(), 0
    with ExitStack() as stack:
        writers = {target: stack.enter_context(writing(target, clip.fps)) for target in targets}
        looked = masked_frames(segmenter, frames, threshold=threshold, every=every, keep=keep)
        for frame, mask in tqdm(looked, total=expected or None, unit="frame", disable=None):
            for target, draw in targets.items():
                writers[target](draw(frame, mask))
            written += 1
        if not written:
            raise VideoError(f"{path} has no frames between {start:g} s and {f'{end:g} s' if end else 'its end'}.")
    if written < expected:
        bad = written + round(start * clip.fps) + 1
        log(f"{path}: frame {bad} of {clip.frames} cannot be read; the results end there.")
    seconds = time.perf_counter() - began
    names = ", ".join(map(str, targets))
    log(f"{written} frames of {path} in {seconds:.1f} s ({written / seconds:.1f} frames/s): {names}")
    return written


def main(argv: list[str] | None = None) -> int:
    """Print the frame-to-frame change of masks on 40 noisy frames of a still picture, by the share of the past."""
    import argparse
    import sys

    parser = argparse.ArgumentParser(description="The flicker of masks on a still face, with and without smoothing.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--noise", type=float, default=12.0, help="deviation of the grain, grey levels")
    args = parser.parse_args(argv)
    from inference import PictureError, read_picture
    from main import Runner
    from model import ModelError

    try:
        runner, still = Runner().load(args.weights), read_picture(args.picture)
    except (ModelError, PictureError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rng = np.random.default_rng(0)
    frames = [np.clip(still + rng.normal(0, args.noise, still.shape), 0, 255).astype(np.uint8) for _ in range(40)]
    for keep in (0.0, 0.3, 0.6, 0.8):
        looked = masked_frames(runner.segmenter, iter(frames), threshold=0.5, keep=keep)
        masks = [mask > 0 for _, mask in looked]
        print(f"--smooth {keep}: masks change by {flicker(masks[10:]):.2%} from frame to frame")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
