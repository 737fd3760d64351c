"""Video files and cameras in, MP4 out, frame by frame: by PyAV where it is installed, else by OpenCV.

PyAV (`pip install av`) writes H.264 with the video's sound, colours and time stamps, which browsers and phones play;
OpenCV writes MPEG-4 without sound at a constant frame rate. Both keep the orientation.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from common import UserError, reason, replacing
from pictures import opencv_silent, tagged

try:
    import av
except ImportError:
    av = None

FPS = Fraction(25)  # where a file or a camera does not say
COPIED = ("aac", "mp3", "mp3float")  # sound that every player of MP4 knows; other is encoded again, as AAC
WITHOUT_PYAV = (
    "PyAV is missing (pip install av): videos are written without sound and as MPEG-4, which no browser plays."
)


class VideoError(UserError):
    """A video or camera that cannot be read or written; the message is one sentence for the user."""


def find_pyav() -> bool:
    """Whether PyAV is installed, with an H.264 encoder."""
    return av is not None and "libx264" in av.codecs_available


# --- Reading --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Clip:
    """What a file or a camera says of itself, and the part of it that is wanted."""

    path: Path | int  # or the camera's number
    fps: Fraction
    frames: int = 0  # 0 where the file does not say, as with `seconds`
    seconds: Fraction = Fraction(0)
    tick: Fraction = Fraction(1, 1000)  # seconds; the unit of its time stamps
    aspect: Fraction = Fraction(1)  # of a pixel, upright
    colors: tuple[int, int, int] = (2, 2, 2)  # matrix, primaries and transfer, as H.273 numbers them; 2: unknown
    sound: bool = False
    start: Fraction = Fraction(0)  # seconds
    end: Fraction | float = math.inf


def probe(path: Path, start: float = 0.0, end: float | None = None) -> Clip:
    """Open a video once, and read its first frame. Raises VideoError: the file is missing, is no video, or has no frame
    that can be read."""
    if not os.path.isfile(path):  # a pipe or a device would be read for ever
        raise VideoError(f"{path} is no regular file." if os.path.lexists(path) else f"There is no file {path}.")
    try:
        clip = _probe_with_pyav(path) if find_pyav() else _probe_with_opencv(path)
        return replace(clip, start=exact(start), end=exact(end))
    except Exception:  # noqa: BLE001  decoders raise whatever they like at damaged bytes
        raise VideoError(f"{path} holds no frame that can be read; is it a whole video?") from None


def rate(fps: float | Fraction | None) -> Fraction:
    """Frames a second as a file or a camera says, if it can be."""
    return Fraction(fps).limit_denominator(1001) if fps and 0 < fps <= 1000 else FPS


def exact(seconds: float | None) -> Fraction | float:
    """A time without the error of its float, 0.2 being just above a fifth; None is never."""
    return math.inf if seconds is None else Fraction(seconds).limit_denominator(1_000_000)


def _open_with_pyav(path: Path):
    # The path is made absolute, and only files are read: a name such as "concat:a.mp4" would be taken for an address.
    options = {"protocol_whitelist": "file"}
    return av.open(str(path.absolute()), container_options=options, metadata_errors="replace")


def _probe_with_pyav(path: Path) -> Clip:
    with _open_with_pyav(path) as file:
        stream = file.streams.best("video")
        codec = stream.codec_context
        a, b, _, _ = _orientation(next(file.decode(stream)))
        colors = codec.colorspace, codec.color_primaries, codec.color_trc
        fps, sound = rate(stream.average_rate or stream.guessed_rate), bool(file.streams.audio)
        ends = Fraction(0 if sound else file.duration or 0, 1_000_000)  # that of the sound may be longer
        if stream.duration:
            ends = ((stream.start_time or 0) + stream.duration) * stream.time_base
        elif len(times := stream.metadata.get("DURATION", "").split(":")) == 3:  # of Matroska
            ends = sum(Fraction(part) * 60**i for i, part in enumerate(reversed(times)))
        seconds = max(Fraction(0), ends - _zero(file))
        aspect = stream.sample_aspect_ratio or Fraction(1)
        aspect = 1 / aspect if abs(b) > abs(a) else aspect
        return Clip(path, fps, stream.frames, seconds, stream.time_base, aspect, tuple(map(int, colors)), sound)


def _zero(file) -> Fraction:
    """When a PyAV file begins, seconds on its own clock."""
    return Fraction(file.start_time or 0, 1_000_000)


def _probe_with_opencv(path: Path) -> Clip:
    with captured(path) as capture:
        if not capture.read()[0]:
            raise VideoError
        fps, frames = rate(capture.get(cv2.CAP_PROP_FPS)), max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        return Clip(path, fps, frames, frames / fps)


@contextmanager
def captured(source: Path | int) -> Iterator[cv2.VideoCapture]:
    """A file or a camera, opened without OpenCV's complaints on standard error."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with nullcontext(source) if isinstance(source, int) else _utf8_name(source) as name:
        with opencv_silent():
            capture = cv2.VideoCapture(name)
        try:
            yield capture
        finally:
            capture.release()


@contextmanager
def _utf8_name(path: Path) -> Iterator[str]:
    """A name of the file, there already or not, that OpenCV takes: others end in a segmentation fault of it."""
    try:
        str(path).encode()
        yield str(path)
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / f"link{path.suffix}"
            link.symlink_to(path.absolute())
            yield str(link)


def read(clip: Clip, errors: list[str]) -> Iterator[tuple[Fraction, np.ndarray]]:
    """The (seconds as Fraction, frame uint8 (H, W, 3) RGB, upright) of a clip from its start to its end, counted from
    its start. A thread reads a few frames ahead. `errors` gets a sentence if frames are missing."""
    if isinstance(clip.path, int) or not find_pyav():
        return ahead(_read_with_opencv(clip, errors), 1 if isinstance(clip.path, int) else 4)
    return ahead(_read_with_pyav(clip, errors))


def _read_with_pyav(clip: Clip, errors: list[str]) -> Iterator[tuple[Fraction, np.ndarray]]:
    step, until, seen, bad = 1 / clip.fps, Fraction(0), 0, 0
    with _open_with_pyav(clip.path) as file:
        stream, zero = file.streams.best("video"), _zero(file)
        stream.thread_type = "AUTO"
        seeking = clip.start > 1 and {"mp4", "matroska"} & set(file.format.name.split(","))
        if seeking:
            file.seek(int((clip.start + zero) * 1_000_000))  # to the key frame before it
        with suppress(av.error.FFmpegError):  # of a file that was cut short: the count shows how much is missing
            for packet in file.demux(stream):
                try:
                    frames = packet.decode()
                except ValueError:  # PyAV's InvalidDataError among them
                    bad += 1
                    continue
                for frame in frames:
                    now = until
                    if frame.pts is not None and file.format.name != "avi":  # which holds no times; those are guessed
                        microseconds = math.ceil(frame.pts * frame.time_base * 1_000_000)  # `zero` is rounded to these
                        now = Fraction(microseconds, 1_000_000) - zero
                    until = now + ((getattr(frame, "duration", None) or 0) * stream.time_base or step)  # new in PyAV 15
                    seen += 1
                    if now >= clip.end:
                        return
                    if now >= clip.start:
                        yield now - clip.start, _upright(frame)
    # edit lists may leave out frames
    if (seen < clip.frames or seeking or not clip.frames) and until + step < clip.seconds:
        errors.append(_broken_off(clip, until))
    elif bad:
        errors.append(f"{clip.path}: some frames cannot be read and are left out.")


def _broken_off(clip: Clip, until: Fraction) -> str:
    return f"{clip.path} breaks off at {float(until):.2f} s, and so do the results."


def _read_with_opencv(clip: Clip, errors: list[str]) -> Iterator[tuple[Fraction, np.ndarray]]:
    began = None
    with captured(clip.path) as capture:
        for number in itertools.count():
            now = number / clip.fps
            there, frame = capture.read()
            if isinstance(clip.path, int):
                began = began or time.monotonic_ns()
                now = Fraction((time.monotonic_ns() - began) // 1000, 1_000_000)
            if now >= clip.end:
                return
            if not there:
                if now < clip.seconds:
                    errors.append(_broken_off(clip, now))
                return
            if now >= clip.start:
                yield now - clip.start, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _upright(frame) -> np.ndarray:
    """PyAV's frame as uint8 (H, W, 3) RGB, turned and mirrored as its display matrix (ISO 14496-12) says."""
    image, (a, b, c, d) = frame.to_ndarray(format="rgb24"), _orientation(frame)
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _orientation(frame) -> tuple[int, int, int, int]:
    """(a, b, c, d) of the display matrix of PyAV's frame: x' = a x + c y, y' = b x + d y."""
    matrix = next((np.frombuffer(data, np.int32) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), ())
    return tuple(int(matrix[i]) for i in (0, 1, 3, 4)) if len(matrix) == 9 else (1, 0, 0, 1)


def ahead(items: Iterator, size: int = 4) -> Iterator:
    """The items of a generator, which a thread runs up to `size` ahead; what it raises is raised here."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(size))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, items, None))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
            items.close()


# --- Writing --------------------------------------------------------------------------------------------------------
@contextmanager
def writing(path: Path, clip: Clip, tag: dict, *, log=print) -> Iterator[Callable[[Fraction, np.ndarray], None]]:
    """A function that adds a frame uint8 (H, W, 3) RGB at a time in seconds to an MP4 file, which gets its name when
    it is whole, and a tag of what `tag` holds by then (see `pictures.tagged`). With PyAV the clip's sound goes with it.

    The format wants even sizes: a last row or column that is odd is repeated. Raises VideoError: the format cannot be
    written here, no frame came, or not all of them are in the file."""
    file = None
    with _written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, _utf8_name(temporary) as name:

        def write(seconds: Fraction, frame: np.ndarray) -> None:
            nonlocal file
            h, w = frame.shape[:2]
            frame = cv2.copyMakeBorder(frame, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
            with _written(path):
                file = file or (_PyavFile if find_pyav() else _OpencvFile)(name, clip, frame.shape[1::-1], log)
                file.write(seconds, frame)

        try:
            yield write
        except BaseException:
            if file is not None:
                file.abandon()
            raise
        with _written(path):
            there = 0
            if file is not None:
                file.close()
                with suppress(VideoError):
                    there = probe(temporary).frames
            if not there or there != file.written:  # OpenCV says nothing of a full disk
                raise VideoError("no frame came, or the disk is full")
            with temporary.open("ab") as last:
                last.write(tagged(b"", ".mp4", **tag, before=temporary.stat().st_size))


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        why = getattr(error, "strerror", None) or reason(error)
        raise VideoError(f"{path} could not be written ({why}).") from error


class _PyavFile:
    """H.264 and the sound of a clip."""

    def __init__(self, name: str, clip: Clip, size: tuple[int, int], log):
        self.clip, self.written, self.last = clip, 0, -math.inf
        self.file = av.open(name, "w", format="mp4", options={"movflags": "faststart"})
        # hardly told from the input; veryfast takes 2.5 times as long
        self.video = self.file.add_stream("libx264", rate=clip.fps, options={"preset": "superfast", "crf": "20"})
        self.video.width, self.video.height, self.video.pix_fmt = *size, "yuv420p"
        context = self.video.codec_context
        self.video.time_base = context.time_base = clip.tick
        context.colorspace, context.color_primaries, context.color_trc = clip.colors
        context.sample_aspect_ratio = clip.aspect
        self.sound = _sound(clip, self.file, log) if clip.sound else iter(())
        self.waiting = next(self.sound, None)

    def write(self, seconds: Fraction, image: np.ndarray) -> None:
        matrix = self.clip.colors[0] if self.clip.colors[0] in (1, 9) else 5  # BT.709, BT.2020 or BT.601
        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=1)
        self.last = max(round(seconds / self.clip.tick), self.last + 1)
        frame.pts, frame.time_base = self.last, self.clip.tick
        self.file.mux(self.video.encode(frame))
        self.written += 1
        self._mux_sound(seconds)

    def _mux_sound(self, until: Fraction | float) -> None:
        while self.waiting is not None and self.waiting[0] <= until:
            self.file.mux(self.waiting[1])
            self.waiting = next(self.sound, None)

    def close(self) -> None:
        self.file.mux(self.video.encode(None))
        self._mux_sound(math.inf)
        self.file.close()

    def abandon(self) -> None:
        with suppress(Exception):
            self.file.close()


def _sound(clip: Clip, out, log) -> Iterator[tuple[Fraction, object]]:
    """The (seconds, packets) of a clip's sound, seconds counted from its start; its streams are added to the PyAV file
    `out` at the first."""
    with _open_with_pyav(clip.path) as file:
        zero, to, encoded, past = _zero(file) + clip.start, {}, [], set()
        for stream in file.streams.audio:
            codec = stream.codec_context
            if codec is None:
                log(f"{clip.path}: the sound of track {stream.index} is of an unknown kind and left out.")
            elif codec.name in COPIED:
                to[stream.index] = out.add_stream_from_template(stream)
            else:
                layout = "mono" if codec.layout.nb_channels == 1 else "stereo"
                to[stream.index] = out.add_stream("aac", rate=min(codec.sample_rate, 48000), layout=layout)
                encoded.append(stream.index)
        try:
            for packet in file.demux(*(file.streams[i] for i in to)) if to else ():
                if len(past) == len(to):
                    break
                index = packet.stream.index
                for part in packet.decode() if index in encoded else [packet]:
                    if part.pts is None:
                        continue
                    at = part.pts * part.time_base - zero
                    if at >= clip.end - clip.start:
                        past.add(index)
                        break
                    if clip.start and at < 0:
                        continue
                    part.pts -= round(zero / part.time_base)
                    if index in encoded:
                        yield at, to[index].encode(part)
                    else:
                        part.dts, part.stream = part.pts, to[index]
                        yield at, part
            for index in encoded:
                yield Fraction(0), to[index].encode(None)
        except (av.error.FFmpegError, ValueError):
            log(f"{clip.path}: the sound cannot be read to its end.")


class _OpencvFile:
    """MPEG-4 at a constant frame rate: frames are repeated or left out where the times want it."""

    def __init__(self, name: str, clip: Clip, size: tuple[int, int], log):
        self.fps, self.written, self.next, self.before = clip.fps, 0, None, None
        self.file = cv2.VideoWriter()
        if not self.file.open(name, cv2.VideoWriter_fourcc(*"mp4v"), float(clip.fps), size):
            raise VideoError("no permission, or an OpenCV without MP4")

    def write(self, seconds: Fraction, image: np.ndarray) -> None:
        slot = round(seconds * self.fps)
        self.next = slot if self.next is None else self.next
        while self.next <= slot:
            self.before = self.before if self.next < slot else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            self.file.write(self.before)
            self.written, self.next = self.written + 1, self.next + 1

    def close(self) -> None:
        self.file.release()

    abandon = close
