"""Video files and cameras in, MP4 out, frame by frame: by PyAV where it is installed, else by OpenCV.

PyAV (`pip install av`) writes H.264 with the video's sound, colours and time stamps, which browsers and phones play;
OpenCV writes MPEG-4 without sound at a constant frame rate. Both keep the orientation.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from common import UserError, replacing
from pictures import tagged

FPS = Fraction(25)  # where a file or a camera does not say
COPIED = ("aac", "mp3", "mp3float")  # sound that every player of MP4 knows; other is encoded again, as AAC
WITHOUT_PYAV = (
    "PyAV is missing (pip install av): videos are written without sound and as MPEG-4, no browser plays them."
)


class VideoError(UserError):
    """A video or camera that cannot be read or written; the message is one sentence for the user."""


def find_pyav():
    """The module, or None where it is not installed or was built without an H.264 encoder."""
    try:
        import av
    except ImportError:
        return None
    return av if "libx264" in av.codecs_available else None


# --- Reading --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Clip:
    """What a file or a camera says of itself."""

    path: Path | int  # or the camera's number
    fps: Fraction
    frames: int = 0  # 0 where the file does not say, as with `seconds`
    seconds: Fraction = Fraction(0)
    tick: Fraction = Fraction(1, 1000)  # seconds; the unit of its time stamps
    aspect: Fraction = Fraction(1)  # of a pixel, as the picture is stored
    colors: tuple[int, int, int] = (2, 2, 2)  # matrix, primaries and transfer, as H.273 numbers them; 2: unknown
    sound: bool = False


def probe(path: Path) -> Clip:
    """Open a video once, and read its first frame.

    Raises:
        VideoError: the file is missing, is no video, or has no frame that can be read.
    """
    path = Path(path)
    if not os.path.isfile(path):  # a pipe or a device would be read for ever
        raise VideoError(f"{path} is no regular file." if os.path.lexists(path) else f"There is no file {path}.")
    try:
        return _probe_with_pyav(path) if find_pyav() else _probe_with_opencv(path)
    except Exception:  # noqa: BLE001  decoders raise whatever they like at damaged bytes
        raise VideoError(f"{path} holds no frame that can be read; is it a whole video?") from None


def _rate(fps: float | Fraction | None) -> Fraction:
    return Fraction(fps).limit_denominator(1001) if fps and 0 < fps <= 1000 else FPS


def _open_with_pyav(path: Path):
    import av

    # The path is made absolute, and only files are read: a name such as "concat:a.mp4" would be taken for an address.
    options = {"protocol_whitelist": "file"}
    return av.open(str(path.absolute()), container_options=options, metadata_errors="replace")


def _probe_with_pyav(path: Path) -> Clip:
    with _open_with_pyav(path) as file:
        stream = file.streams.best("video")
        codec = stream.codec_context
        next(file.decode(stream))
        colors = codec.colorspace, codec.color_primaries, codec.color_trc
        fps, sound = _rate(stream.average_rate or stream.guessed_rate), bool(file.streams.audio)
        seconds = ((stream.start_time or 0) + (stream.duration or 0)) * stream.time_base - _zero(file)
        if not stream.duration:
            seconds = Fraction(0 if sound else file.duration or 0, 1_000_000)  # that of the sound may be longer
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return Clip(path, fps, stream.frames, seconds, stream.time_base, aspect, tuple(map(int, colors)), sound)


def _zero(file) -> Fraction:
    """When a PyAV file begins, seconds on its own clock."""
    return Fraction(file.start_time or 0, 1_000_000)


def _probe_with_opencv(path: Path) -> Clip:
    with _utf8_name(path) as name:
        capture = open_with_opencv(name)
        try:
            if not capture.read()[0]:
                raise VideoError
            fps, frames = _rate(capture.get(cv2.CAP_PROP_FPS)), max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            return Clip(path, fps, frames, frames / fps, 1 / fps)
        finally:
            capture.release()


def open_with_opencv(source: str | int) -> cv2.VideoCapture:
    """cv2.VideoCapture without its complaints on standard error."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    log = cv2.utils.logging
    level = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(source)
    finally:
        log.setLogLevel(level)


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


def _exact(seconds: float) -> Fraction:
    return Fraction(seconds).limit_denominator(1_000_000)  # the float 0.2 is just above a fifth


class Reader:
    """Iterates over the (seconds as Fraction, frame uint8 (H, W, 3) RGB, upright) of a clip from `start` to `end`
    seconds, counted from `start`. A thread reads a few frames ahead.

    Attributes:
        error: afterwards, a sentence if frames were missing.
    """

    def __init__(self, clip: Clip, start: float = 0.0, end: float | None = None):
        self.clip, self.error = clip, None
        self.start, self.end = _exact(start), None if end is None else _exact(end)

    def __iter__(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        if isinstance(self.clip.path, int):
            return ahead(self._camera(), 1)
        return ahead(self._pyav() if find_pyav() else self._opencv())

    def _pyav(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        step = 1 / self.clip.fps
        with _open_with_pyav(self.clip.path) as file:
            stream, zero = file.streams.best("video"), _zero(file)
            stream.thread_type = "AUTO"
            seeking = self.start > 1 and {"mp4", "matroska"} & set(file.format.name.split(","))
            if seeking:
                file.seek(int((self.start + zero) * 1_000_000))  # to the key frame before it
            until, seen, bad = Fraction(0), 0, 0
            for packet in _until_unreadable(file.demux(stream)):
                try:
                    frames = packet.decode()
                except ValueError:  # PyAV's InvalidDataError among them
                    bad += 1
                    continue
                for frame in frames:
                    now = until if frame.pts is None else frame.pts * frame.time_base - zero
                    until = now + ((getattr(frame, "duration", None) or 0) * stream.time_base or step)  # new in PyAV 15
                    seen += 1
                    if self.end is not None and now >= self.end:
                        return
                    if now >= self.start:
                        yield now - self.start, _upright(frame)
        if seen < self.clip.frames or seeking or not self.clip.frames:  # edit lists may leave out frames
            self._check(until, slack=step)
        if bad and not self.error:
            self.error = f"{self.clip.path}: {bad} frame{'s' * (bad > 1)} cannot be read and are left out."

    def _check(self, until: Fraction, slack=0) -> None:
        if until + slack < self.clip.seconds:
            self.error = f"{self.clip.path} breaks off at {float(until):.2f} s, and so do the results."

    def _opencv(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        with _utf8_name(self.clip.path) as name:
            capture = open_with_opencv(name)
            number = 0
            try:
                while self.end is None or number / self.clip.fps < self.end:
                    wanted = number / self.clip.fps >= self.start
                    there, frame = capture.read() if wanted else (capture.grab(), None)
                    if not there:
                        self._check(number / self.clip.fps)
                        break
                    if wanted:
                        yield number / self.clip.fps - self.start, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                    number += 1
            finally:
                capture.release()

    def _camera(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        capture, began = open_with_opencv(self.clip.path), None
        try:
            while (got := capture.read())[0]:
                began = began or time.monotonic_ns()
                now = Fraction((time.monotonic_ns() - began) // 1000, 1_000_000)
                if self.end is not None and now >= self.end:
                    break
                yield now, cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB)
        finally:
            capture.release()


def _until_unreadable(packets: Iterable) -> Iterator:
    """What there is of a file that was cut short: how much is missing shows by the count."""
    import av

    try:
        yield from packets
    except av.error.FFmpegError:
        return


def _upright(frame) -> np.ndarray:
    """PyAV's frame as uint8 (H, W, 3) RGB, turned and mirrored as its display matrix (ISO 14496-12) says."""
    image = frame.to_ndarray(format="rgb24")
    matrix = next((np.frombuffer(data, np.int32) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), ())
    if len(matrix) == 9:
        a, b, _, c, d = map(int, matrix[:5])  # x' = a x + c y, y' = b x + d y
        if abs(b) > abs(a):
            image, a, d = image.transpose(1, 0, 2), c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)


def ahead(items: Iterator, size: int = 4) -> Iterator:
    """The items of a generator, which a thread runs up to `size` ahead; what it raises is raised here."""
    ready: queue.Queue = queue.Queue(size)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001  raised again by the thread that waits for the items
            put((None, error))
        else:
            put(None)
        finally:
            items.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (got := ready.get()) is not None:
            if got[1] is not None:
                raise got[1]
            yield got[0]
    finally:
        stop.set()
        thread.join()


# --- Writing --------------------------------------------------------------------------------------------------------
@contextmanager
def writing(
    path: Path, clip: Clip, source: str = "0" * 16, *, start: float = 0.0, end: float | None = None, log=print
) -> Iterator[Callable[[Fraction, np.ndarray], None]]:
    """A function that adds a frame uint8 (H, W, 3) RGB at a time in seconds to an MP4 file, which gets its name when
    it is whole, and the tag of `source`. With PyAV the sound of `clip` from `start` to `end` goes with it.

    The format wants even sizes: a last row or column that is odd is repeated.

    Raises:
        VideoError: the format cannot be written here, no frame came, or not all of them are in the file.
    """
    path = Path(path)
    with _written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with _written(path):
            file = _PyavFile(temporary, clip, start, end, log) if find_pyav() else _OpencvFile(temporary, clip)

        def write(seconds: Fraction, frame: np.ndarray) -> None:
            h, w = frame.shape[:2]
            with _written(path):
                file.write(seconds, cv2.copyMakeBorder(frame, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE))

        try:
            yield write
        except BaseException:
            file.abandon()
            raise
        with _written(path):
            file.close()
            if not file.written or _count(temporary) != file.written:  # OpenCV says nothing of a full disk
                raise VideoError("no frame came, or the disk is full")
            with temporary.open("ab") as last:
                last.write(tagged(b"", ".mp4", source, temporary.stat().st_size))


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(f"{path} could not be written ({reason}).") from error


def _count(path: Path) -> int:
    """The frames that a file holds; 0 where none can be read."""
    try:
        return probe(path).frames
    except VideoError:
        return 0


class _PyavFile:
    """H.264 and the sound of a clip."""

    def __init__(self, path: Path, clip: Clip, start: float, end: float | None, log):
        import av

        self.file = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self.clip, self.written, self.log, self.last, self.video = clip, 0, log, None, None
        self.span = _exact(start), None if end is None else _exact(end)
        self.sound, self.waiting = iter(()), None

    def _open(self, frame) -> None:
        codec = self.video = self.file.add_stream("libx264", rate=self.clip.fps)
        codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "yuv420p"
        codec.options = {
            "preset": "superfast",
            "crf": "20",
        }  # hardly told from the input; veryfast takes 2.5 times as long
        codec.time_base = codec.codec_context.time_base = self.clip.tick
        context = codec.codec_context
        context.colorspace, context.color_primaries, context.color_trc = self.clip.colors
        context.sample_aspect_ratio = self.clip.aspect
        if self.clip.sound:
            self.sound = _sound(self.clip.path, self.file, *self.span, self.log)
            self.waiting = next(self.sound, None)

    def write(self, seconds: Fraction, image: np.ndarray) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        if self.video is None:
            self._open(frame)
        matrix = self.clip.colors[0] if self.clip.colors[0] in (1, 9) else 5  # BT.709, BT.2020 or BT.601
        frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=1)
        stamp = round(seconds / self.clip.tick)
        self.last = stamp if self.last is None else max(stamp, self.last + 1)
        frame.pts, frame.time_base = self.last, self.clip.tick
        self.file.mux(self.video.encode(frame))
        self.written += 1
        self._mux_sound(seconds)

    def _mux_sound(self, until: Fraction | None) -> None:
        while self.waiting is not None and (until is None or self.waiting[0] <= until):
            self.file.mux(self.waiting[1])
            self.waiting = next(self.sound, None)

    def close(self) -> None:
        if self.video is not None:
            self.file.mux(self.video.encode(None))
            self._mux_sound(None)
        self.file.close()

    def abandon(self) -> None:
        import av

        with suppress(av.error.FFmpegError, OSError, ValueError):
            self.file.close()


def _sound(path: Path, out, start: Fraction, end: Fraction | None, log) -> Iterator[tuple[Fraction, object]]:
    """The (seconds, packet) of a file's sound from `start` to `end`, which count from `start`; its streams are added to
    the PyAV file `out` at the first."""
    import av

    with _open_with_pyav(path) as file:
        zero, to = _zero(file) + start, {}
        for stream in file.streams.audio:
            codec = stream.codec_context
            if codec is None:
                log(f"{path}: the sound of track {stream.index} is of an unknown kind and left out.")
            elif codec.name in COPIED:
                to[stream.index] = out.add_stream_from_template(stream)
            else:
                layout = "mono" if codec.layout.nb_channels == 1 else "stereo"
                to[stream.index] = out.add_stream("aac", rate=min(codec.sample_rate, 48000), layout=layout)
        if not to:
            return
        copied = {i for i in to if file.streams[i].codec_context.name in COPIED}
        try:
            for packet in file.demux(*(file.streams[i] for i in to)):
                index = packet.stream.index
                for part in [packet] if index in copied else packet.decode():
                    if part.pts is None:
                        continue
                    at = part.pts * part.time_base - zero
                    if (start and at < 0) or (end is not None and at >= end - start):
                        continue
                    shift = round(zero / part.time_base)
                    part.pts -= shift
                    if index in copied:
                        part.dts, part.stream = part.pts, to[index]
                        yield at, part
                    else:
                        yield at, to[index].encode(part)
            for index in to.keys() - copied:
                yield Fraction(0), to[index].encode(None)
        except (av.error.FFmpegError, ValueError):
            log(f"{path}: the sound cannot be read to its end.")


class _OpencvFile:
    """MPEG-4 at a constant frame rate: frames are repeated or left out where the times want it."""

    def __init__(self, path: Path, clip: Clip):
        self.path, self.stack = path, ExitStack()
        self.clip, self.written, self.next, self.before = clip, 0, None, None
        self.file = cv2.VideoWriter()

    def write(self, seconds: Fraction, image: np.ndarray) -> None:
        h, w = image.shape[:2]
        slot = round(seconds * self.clip.fps)
        if self.next is None:
            self.next = slot
            name, code = self.stack.enter_context(_utf8_name(self.path)), cv2.VideoWriter_fourcc(*"mp4v")
            if not self.file.open(name, code, float(self.clip.fps), (w, h)):
                raise VideoError("no permission, or an OpenCV without MP4")
        while self.next <= slot:
            self.before = self.before if self.next < slot else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            self.file.write(self.before)
            self.written, self.next = self.written + 1, self.next + 1

    def close(self) -> None:
        self.file.release()
        self.stack.close()

    abandon = close
