"""Videos, cameras and GIFs: frame by frame in constant memory, masks that do not flicker, results as MP4.

The results have the input's size, frame rate and orientation; sound is not carried over.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

import const
from common import UserError, replacing
from drawing import Output, save_gif
from pictures import find_jobs, forbidden, identity, iter_jobs, read_picture, tagged

CUT = 40.0  # mean grey-level change, of 255, between two frames that is taken for a cut: smoothing starts anew
GIF_FPS = 10.0  # of a GIF of videos; pictures stay for a second each


class VideoError(UserError):
    """A video or camera that cannot be read or written; the message is one sentence for the user."""


@dataclass(frozen=True)
class Timing:
    """Which frames of a video are segmented.

    Args:
        frame_stride: every Nth frame is segmented, and its mask kept until the next.
        start, end: seconds; for a camera, `end` stops it.
        smooth: fraction of the past in each frame's mask, from 0 to below 1.
    """

    frame_stride: int = 1
    start: float = 0.0
    end: float | None = None
    smooth: float = 0.0


# --- Reading --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Clip:
    """What a file says of itself."""

    path: Path
    fps: float
    frames: int  # 0 where the file does not say


def is_video(path: Path) -> bool:
    return path.suffix.lower() in const.VIDEO_SUFFIXES and not path.is_dir()


def probe(path: Path) -> Clip:
    """Open a video once, and read its first frame.

    Raises:
        VideoError: the file is missing, is no video, or has no frame that can be read.
    """
    if not os.path.isfile(path):  # which takes a name of any length
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


# --- Masks over time ------------------------------------------------------------------------------------------------
class Smoother:
    """Logits averaged over time: `keep` of the past, the rest of the present; a cut in the video starts anew."""

    def __init__(self, keep: float):
        self.keep, self.past, self.thumbnail = keep, None, None

    def __call__(self, logits: np.ndarray, frame: np.ndarray) -> np.ndarray:
        thumbnail = cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        cut = self.thumbnail is None or float(np.abs(thumbnail - self.thumbnail).mean()) > CUT
        self.thumbnail = thumbnail
        bounded = np.clip(logits, -8, 8)  # else one frame of extreme logits outweighs many
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
    segmenter, frames: Iterable[np.ndarray], *, threshold: float, frame_stride: int = 1, smooth: float = 0.0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(frame, mask uint8 (H, W) 0/255) for each frame; every `frame_stride`th is segmented, its mask held between."""
    from inference import to_mask

    smoother, mask = Smoother(smooth) if smooth > 0 else None, None
    for i, frame in enumerate(frames):
        if i % frame_stride == 0 or mask is None or mask.shape != frame.shape[:2]:
            logits = segmenter.logits([frame])[0]
            mask = to_mask(smoother(logits, frame) if smoother else logits, threshold)
        yield frame, mask


# --- Writing --------------------------------------------------------------------------------------------------------
def _allowed(results: Iterable[Path], inputs: Iterable[Path] = ()) -> None:
    if refusal := forbidden(results, {Path(path).resolve() for path in inputs}):
        raise VideoError(refusal)


def _count(path: Path) -> int:
    """The frames that a file holds; 0 where none can be read."""
    try:
        return probe(path).frames
    except VideoError:
        return 0


@contextmanager
def writing(path: Path, fps: float, source: str = "0" * 16) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds a frame uint8 (H, W, 3) RGB to an MP4 file, which gets its name when it is whole, and the
    tag of `source`.

    Raises:
        VideoError: this OpenCV cannot write the format, no frame came, or not all of them are in the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        file, written = cv2.VideoWriter(), 0

        def write(frame: np.ndarray) -> None:
            nonlocal written
            h, w = frame.shape[:2]
            if not file.isOpened() and not file.open(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), fps, (w, h)):
                raise VideoError(f"{path} cannot be written: no permission, or an OpenCV without MP4.")
            file.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))  # says nothing of a full disk
            written += 1

        try:
            yield write
        finally:
            file.release()
        if not written or _count(temporary) != written:
            raise VideoError(f"{path} could not be written: no frame came, or the disk is full.")
        with temporary.open("ab") as end:
            end.write(tagged(b"", ".mp4", source, temporary.stat().st_size))


def predict_videos(
    segmenter, videos: list[Path], out: Path, output: Output, timing: Timing, *, shard=(1, 1), log=print
) -> list[str]:
    """`predict_video` for each, or for the i-th of n parts, named as pictures are; a sentence for each that failed."""
    errors = []
    for job in find_jobs(videos, out)[shard[0] - 1 :: shard[1]]:
        try:
            predict_video(segmenter, job.path, out, output, timing, name=job.name, inputs=videos, log=log)
        except VideoError as error:
            errors.append(str(error))
    return errors


def predict_video(
    segmenter,
    path: Path,
    out: Path,
    output: Output | None = None,
    timing: Timing | None = None,
    *,
    name: str | None = None,
    inputs: Iterable[Path] = (),
    log=print,
) -> list[Path]:
    """Write NAME_overlay.mp4, or whatever of `const.RESULTS` a video can hold, of a video; the files. NAME is that of
    the video where none is given; no result takes the name of one of `inputs`.

    Raises:
        VideoError: no video, nothing between `start` and `end`, results that cannot be written, or a frame that cannot
            be read: the results end there, whole and playable.
        UserError: a cut-out, since MP4 has no transparency.
    """
    from tqdm.auto import tqdm

    output, timing = output or Output(results=("overlay",)), timing or Timing()
    if "cutout" in output.results:
        raise UserError("A video holds no transparency, so no cut-outs; save something else of it.")
    start, end, clip = timing.start, timing.end, probe(path)
    results = {Path(out) / f"{name or Path(path).stem}_{kind}.mp4": kind for kind in output.results}
    _allowed(results, [path, *inputs])
    frames = read_frames(str(path), start=start, end=end, fps=clip.fps)
    expected = clip.frames and max(0, min(clip.frames, round((end or 1e9) * clip.fps)) - round(start * clip.fps))
    began, written = time.perf_counter(), 0
    with ExitStack() as stack:
        writers = {result: stack.enter_context(writing(result, clip.fps, identity(clip.path))) for result in results}
        masked = masked_frames(
            segmenter, frames, threshold=output.threshold, frame_stride=timing.frame_stride, smooth=timing.smooth
        )
        for frame, mask in tqdm(masked, total=expected or None, unit="frame", disable=None):
            for result, kind in results.items():
                drawn = output.draw(kind, frame, mask)
                writers[result](cv2.cvtColor(drawn, cv2.COLOR_GRAY2RGB) if drawn.ndim == 2 else drawn)
            written += 1
        if not written:
            raise VideoError(f"{path} has no frames between {start:g} s and {f'{end:g} s' if end else 'its end'}.")
    if written < expected:
        bad = written + round(start * clip.fps) + 1
        raise VideoError(f"{path}: frame {bad} of {clip.frames} cannot be read; the results end there.")
    seconds = time.perf_counter() - began
    names = ", ".join(map(str, results))
    log(f"{written} frames of {path} in {seconds:.1f} s ({written / seconds:.1f} frames/s): {names}")
    return list(results)


def record_camera(
    segmenter, camera: int, path: Path, output: Output | None = None, timing: Timing | None = None, *, log=print
) -> int:
    """Show the overlays of a camera live, where OpenCV has windows, and record them; the number of frames.
    `q` in the window, Ctrl-C, or `timing.end` seconds stop it.

    Raises:
        VideoError: there is no such camera, or it gives no picture.
    """
    output, timing = output or Output(), timing or Timing()
    _allowed([path])
    probed = _open(camera)
    there = probed.isOpened() and probed.read()[0]
    fps = probed.get(cv2.CAP_PROP_FPS)
    probed.release()
    if not there:
        raise VideoError(f"Camera {camera} gives no picture; is it connected, and not in use?")
    window, written, began = True, 0, time.perf_counter()
    masked = masked_frames(segmenter, read_frames(camera), threshold=output.threshold, smooth=timing.smooth)
    with writing(path, fps if 0 < fps <= 1000 else 25.0) as write:
        try:
            for frame, mask in masked:
                drawn = output.draw("overlay", frame, mask)
                write(drawn)
                written += 1
                if window:
                    try:
                        cv2.imshow("face segmentation, q ends", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
                        if cv2.waitKey(1) & 0xFF == ord("q"):
                            break
                    except cv2.error:
                        window = False
                        log(f"This OpenCV has no windows; recording to {path} until Ctrl-C.")
                if timing.end is not None and time.perf_counter() - began >= timing.end:
                    break
        except KeyboardInterrupt:
            pass  # the usual end: what was recorded is kept
    log(f"{written} frames recorded: {path}")
    return written


def gif(
    segmenter,
    inputs: Iterable[Path],
    path: Path,
    out: Path,
    output: Output | None = None,
    timing: Timing | None = None,
    *,
    log=print,
) -> None:
    """A GIF of the overlays of videos, frame by frame at about ten a second, and of pictures, one a frame; results in
    `out` are not taken for pictures.

    Raises:
        UserError: nothing to show. VideoError, PictureError: an input that cannot be read.
    """
    output, timing, inputs = output or Output(), timing or Timing(), list(inputs)
    _allowed([path], inputs)
    videos = [p for p in inputs if is_video(p)]
    fps = GIF_FPS if videos else 1.0

    def drawn() -> Iterator[np.ndarray]:
        for video in videos:
            clip = probe(video)
            shown = read_frames(str(video), start=timing.start, end=timing.end, fps=clip.fps)
            some = itertools.islice(shown, 0, None, max(1, round(clip.fps / fps)))
            for frame, mask in masked_frames(segmenter, some, threshold=output.threshold, smooth=timing.smooth):
                yield output.draw("overlay", frame, mask)
        for job in iter_jobs([p for p in inputs if p not in videos], out):
            picture = read_picture(job.path)
            yield output.draw("overlay", picture, segmenter.mask(picture, output.threshold))

    try:
        with replacing(path) as temporary:
            save_gif(drawn(), temporary, fps=fps)
            temporary.write_bytes(tagged(temporary.read_bytes(), ".gif", "0" * 16))
    except ValueError:
        raise UserError("There is no frame for the GIF.") from None
    log(f"GIF: {path} ({path.stat().st_size / 1e6:.1f} MB)")
