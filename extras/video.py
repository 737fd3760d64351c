"""Videos, cameras and GIFs, frame by frame in constant memory: results as MP4 and GIF.

The results have the input's size and orientation, and with PyAV its sound and its frames' times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

import const
from common import UserError, replacing, sweep
from drawing import Gif, Output, shows_face
from extras import video_files
from extras.video_files import Clip, VideoError, ahead, captured, exact, find_pyav, probe, rate, read, writing
from extras.video_masks import masked_frames
from pictures import PictureError, done_before, find_jobs, forbidden, identity, read_picture, tagged

GIF_STEP = Fraction(1, 10)  # seconds between a video's frames in a GIF


@dataclass(frozen=True)
class Timing:
    """Which frames of a video are segmented.

    Args:
        frame_stride: every Nth frame is segmented, and its mask kept until the next, or until the face changes.
        start, end: seconds; for a camera, `end` stops it.
        smooth: fraction of the past in a mask where the frame is as it was, from 0 to below 1.
    """

    frame_stride: int = 1
    start: float = 0.0
    end: float | None = None
    smooth: float = 0.0

    def masked(self, segmenter, frames: Iterator, output: Output) -> Iterator[tuple]:
        """`masked_frames`. Where faces are to be hidden, all of every frame is searched for them."""
        stride = 1 if output.hiding else self.frame_stride
        options = {"threshold": output.threshold, "frame_stride": stride, "smooth": self.smooth}
        return masked_frames(segmenter, frames, follow=not output.hiding, **options)


# --- Videos ---------------------------------------------------------------------------------------------------------
def predict_videos(
    segmenter, inputs, out, output, timing, *, skip_existing=False, fail_empty=False, shard=(1, 1), gif=None, log=print
) -> list[str]:
    """`predict_video` for each video of `inputs`, or for the i-th of n parts, named as pictures are.

    Args:
        skip_existing: leave out videos whose results are all there, of the same file; parts are always made.
        fail_empty: a video without a face is an error; else it is only named.
        gif: a path for a GIF of all videos, about ten frames a second, and of the pictures among `inputs`, a second
            each: the overlays, or the faces hidden. Results in `out` are not taken for pictures.

    Returns:
        A sentence for each file that failed.
    """
    errors: list[str] = []
    videos = [path for path in inputs if path.suffix.lower() in const.VIDEO_SUFFIXES and not os.path.isdir(path)]
    if videos and not find_pyav():
        log(video_files.WITHOUT_PYAV)
    if gif and (refusal := forbidden([gif], {path.resolve() for path in inputs})):
        errors.append(refusal)
        gif = None
    sweep(out)
    with _noting(errors, gif), writing_gif(gif, log) if gif else nullcontext() as shown:
        for i, job in enumerate(find_jobs(videos, out)):
            own = i % shard[1] == shard[0] - 1
            if not own and not shown:
                continue
            face, to = None, out if own else None
            with _noting(errors, job.path):
                part = timing.start or timing.end is not None
                if skip_existing and not (shown or part) and job.path.is_file():
                    face = done_before(_results(out, job.name, output), identity(job.path))
                if face is None:
                    options = {"name": job.name, "inputs": inputs, "gif": shown, "fail_empty": fail_empty, "log": log}
                    predict_video(segmenter, job.path, to, output, timing, **options)
                    continue
                log(f"{job.path} is skipped: its results exist.")
                if not face:
                    _tell_faceless(job.path, output, fail_empty, log)
        for job in find_jobs([path for path in inputs if shown and path not in videos], out):
            try:
                picture = read_picture(job.path)
            except PictureError as error:
                errors.append(str(error))
                continue
            mask = segmenter.mask(picture, output.threshold)
            shown.add(output.draw(output.hiding or "overlay", picture, mask), shown.end, 1.0)
    return errors


@contextmanager
def _noting(errors: list[str], path: Path) -> Iterator[None]:
    """Keep a sentence on what fails in the block, and go on behind it."""
    try:
        yield
    except VideoError as error:
        errors.append(str(error))
    except OSError as error:  # of its name, or of a full disk
        errors.append(f"{error.filename or path}: {error.strerror or error}.")


def predict_video(
    segmenter, path, out, output=None, timing=None, *, name=None, inputs=(), gif=None, fail_empty=False, log=print
) -> None:
    """Write NAME_overlay.mp4, or whatever of `const.RESULTS` a video can hold, of a video into the folder `out`, or
    nowhere without one. NAME is that of the video where none is given; no result takes the name of one of `inputs`.
    What `gif`, a `Gif`, shows goes there as well. Raises VideoError: no video, nothing between `start` and `end`,
    results that cannot be written, or frames that cannot be read: the results without them are whole and playable. With
    `fail_empty` as well: no frame shows a face; UserError: one of `const.PICTURES_ONLY`, which a video cannot hold."""
    from tqdm.auto import tqdm

    output, timing = output or Output(results=("overlay",)), timing or Timing()
    if none := [kind for kind in output.results if kind in const.PICTURES_ONLY]:
        raise UserError(f"A video has no {' and no '.join(none)}; choose another --save.")
    clip, name = probe(path, timing.start, timing.end), name or find_jobs([path], out)[0].name
    kinds = output.results if out else ()
    results = _results(out, name, output) if out else []
    if refusal := forbidden(results, {given.resolve() for given in (path, *inputs)}):
        raise VideoError(refusal)
    began, written, gif_began, gif_slot, errors = time.perf_counter(), 0, gif and gif.end, -1, []
    face, tag, total = False, {"source": identity(path)}, None
    if clip.seconds:  # else the file does not say how long it is
        total = max(0, round((min(clip.seconds, clip.end) - clip.start) * clip.fps))
    with ExitStack() as stack:
        writers = [stack.enter_context(writing(result, clip, tag, log=log)) for result in results]
        masked = ahead(timing.masked(segmenter, read(clip, errors), output), 2)
        for seconds, frame, mask in tqdm(masked, total=total, unit="frame", disable=None):
            for write, kind in zip(writers, kinds, strict=True):
                write(seconds, _drawn(output, kind, frame, mask))
            if gif and seconds // GIF_STEP > gif_slot:
                gif_slot = seconds // GIF_STEP
                drawn = output.draw(output.hiding or "overlay", frame, mask)
                gif.add(drawn, float(gif_began + seconds), float(GIF_STEP))
            written, face = written + 1, face or shows_face(mask)
        if not written:
            to = "its end" if timing.end is None else f"{timing.end:g} s"
            raise VideoError(*errors or [f"{path} has no frames between {timing.start:g} s and {to}."])
        tag["faceless"] = not face
        if errors or timing.start or timing.end is not None:  # of a part, for which `skip_existing` is not to take it
            del tag["source"]
    if results:
        took, names = time.perf_counter() - began, ", ".join(map(str, results))
        log(f"{written} frames of {path} in {took:.1f} s ({written / took:.1f} frames/s): {names}")
        if frame.shape[0] % 2 or frame.shape[1] % 2:
            log(f"{path} is of an odd size, which H.264 does not allow here: the last row or column is repeated.")
    if errors:
        raise VideoError(*errors)
    if not face:
        _tell_faceless(path, output, fail_empty, log)


def _tell_faceless(path: Path, output: Output, fail_empty: bool, log) -> None:
    said = f"{path} shows no face." + (" Nothing was hidden in it." if output.hiding else "")
    if fail_empty:
        raise VideoError(said)
    log(f"Warning: {said}" if output.hiding else said)


def _results(out: Path, name: str, output: Output) -> list[Path]:
    return [out / f"{name}_{kind}.mp4" for kind in output.results]


def _drawn(output: Output, kind: str, frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame of a result, uint8 (H, W, 3)."""
    drawn = output.draw(kind, frame, mask)
    return cv2.cvtColor(drawn, cv2.COLOR_GRAY2RGB) if drawn.ndim == 2 else drawn


# --- Cameras --------------------------------------------------------------------------------------------------------
def record_camera(
    segmenter, camera: int, out: Path, output: Output | None = None, timing: Timing | None = None, *, log=print
) -> list[Path]:
    """Show the first result of `output` of a camera live, where OpenCV has windows, and record all at the speed at
    which they were seen, into files of `out` named by camera and time, webcam-0_20261128-101500_overlay.mp4 and so on;
    the files. `q` in the window, Ctrl-C, or `timing.end` seconds stop it. Raises VideoError: there is no such camera,
    or it gives no picture."""
    output, timing = output or Output(results=("overlay",)), timing or Timing()
    with captured(camera) as probed:
        there, fps = probed.read()[0], probed.get(cv2.CAP_PROP_FPS)
    if not there:
        raise VideoError(f"Camera {camera} gives no picture; is it connected, and not in use?")
    if not find_pyav():
        log(video_files.WITHOUT_PYAV)
    clip, window, written = Clip(camera, rate(fps), start=exact(timing.start), end=exact(timing.end)), True, 0
    with ExitStack() as stack:
        results = _results(out, f"webcam-{camera}_{time.strftime('%Y%m%d-%H%M%S')}", output)
        names = ", ".join(map(str, results))
        writers = [stack.enter_context(writing(result, clip, {})) for result in results]
        try:
            for seconds, frame, mask in timing.masked(segmenter, read(clip, []), output):
                drawn = [_drawn(output, kind, frame, mask) for kind in output.results]
                for write, one in zip(writers, drawn, strict=True):
                    write(seconds, one)
                written += 1
                if window:
                    try:
                        cv2.imshow("face segmentation, q ends", cv2.cvtColor(drawn[0], cv2.COLOR_RGB2BGR))
                        if cv2.waitKey(1) & 0xFF == ord("q"):
                            break
                    except cv2.error:
                        window = False
                        log(f"This OpenCV has no windows; recording to {names} until Ctrl-C.")
        except KeyboardInterrupt:
            pass  # the usual end: what was recorded is kept
    log(f"{written} frames recorded: {names}")
    return results


# --- GIFs -----------------------------------------------------------------------------------------------------------
@contextmanager
def writing_gif(path: Path, log) -> Iterator[Gif]:
    """A GIF with the tag of this program, which gets its name when it is whole. Raises VideoError: no frame came;
    OSError: it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        gif = Gif(file)
        yield gif
        if not gif.end:
            raise VideoError("There is no frame for the GIF.")
        gif.close()
        file.write(tagged(b";", ".gif", before=file.seek(-1, os.SEEK_END)))
    log(f"GIF: {path} ({path.stat().st_size / 1e6:.1f} MB)")
