"""Any picture in, results out: reading what users bring, naming results, a folder predicted and written.

The network is no part of this file: `predict` is given the segmenter, and the reading is used by every other module.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path

import cv2
import numpy as np

import const
from common import UserError, reason, sweep, usable_cores, write_bytes
from drawing import Output, encode, shows_face

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")  # and AVIF, HEIF; no others: EPS, say, runs a program
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")  # not MPO: a phone's JPEG with a second picture inside
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MOST_PIXELS = 178_956_970  # of one picture: Pillow's own limit
LONGEST_SIDE = 65_500  # pixels; what a JPEG, and so an overlay, can hold
BATCH_PIXELS = 24_000_000  # pictures are batched up to this many pixels over all threads
PIXELS_IN_HAND = 48_000_000  # at most over all threads, at about 17 bytes each, but for one picture that is larger
AT_ONCE = 4  # batches in hand at most; on machines of more cores, each gets several


class PictureError(UserError):
    """A picture that cannot be read; the message is one sentence for the user."""


# --- Reading --------------------------------------------------------------------------------------------------------
def read_picture(path: Path | io.BytesIO, *, name: str | None = None, animated=None) -> np.ndarray:
    """Any picture as it is seen, of any depth and colour space: uint8 (H, W, 3) RGB, upright, transparency over white;
    of an animation the first frame, and `animated` is called with its name. Messages have `name`, or the path. Raises
    PictureError: the file is missing, is no picture, or is cut short."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    shown = str(name or path)
    try:
        with _open(path, shown) as file:
            try:
                with Image.open(file, formats=_formats(file, shown)) as picture:
                    if max(picture.size) > LONGEST_SIDE:
                        raise PictureError(f"{shown} is longer than {LONGEST_SIDE} pixels; scale it down.")
                    if animated and picture.format in ANIMATED and getattr(picture, "is_animated", False):
                        animated(shown)
                    picture.load()
                    with suppress(Exception):  # a damaged tag of the orientation
                        ImageOps.exif_transpose(picture, in_place=True)
                    return _to_rgb(picture)
            except UnidentifiedImageError:
                return _read_tiff(file, shown)
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(f"{shown} has more pixels than can be read safely; scale it down.") from None
    except Exception as error:  # noqa: BLE001  decoders raise whatever they like at damaged bytes
        raise PictureError(f"{shown} cannot be read as a picture ({reason(error)}).") from None


def _open(path: Path | io.BytesIO, shown: str):
    """The bytes as a file; never those of a pipe or a device, which would be read for ever."""
    warnings.filterwarnings("ignore", module="PIL|pillow_heif")  # of large pictures, damaged tags
    if isinstance(path, io.BytesIO):
        return path
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise PictureError(f"{shown} is no regular file.")
        return open(path, "rb")
    except OSError as error:
        raise PictureError(f"{shown} cannot be read ({error.strerror}).") from None


def _formats(file, shown: str) -> tuple[str, ...]:
    """The formats that may be tried on a file."""
    from PIL import Image

    file.seek(0)
    start = file.read(64)
    if start[4:8] != b"ftyp":
        return FORMATS
    Image.init()  # loads the plugin of AVIF as well
    if "HEIF" not in Image.OPEN and start[8:12] in HEIC_BRANDS and b"avif" not in start:
        try:
            import pillow_heif
        except ImportError:
            raise PictureError(f"{shown} is a HEIC picture, which needs a package: pip install pillow-heif.") from None
        pillow_heif.register_heif_opener()
    if "AVIF" not in Image.OPEN and start[8:12] == b"avif":
        raise PictureError(f"{shown} is an AVIF picture, which needs Pillow 11.3: pip install -U Pillow.")
    return tuple(one for one in ("AVIF", "HEIF") if one in Image.OPEN)


def _to_rgb(picture) -> np.ndarray:
    """A Pillow image as uint8 (H, W, 3)."""
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits of grey
        return _to_8_bits(np.asarray(picture)[..., None], deep=picture.mode.startswith("I;16"))
    to_srgb = _color_transform(picture)
    if not picture.has_transparency_data:
        return np.array(to_srgb(picture))
    picture = picture.convert("RGBA")
    rgb = to_srgb(picture)
    rgb.putalpha(picture.getchannel("A"))
    return np.array(Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB"))


def _color_transform(picture) -> Callable:
    """Pillow image -> Pillow image in RGB, from the colours of the picture's embedded profile, if it has one that can
    be used, to sRGB."""
    with suppress(Exception):  # no profile, a damaged one, or a Pillow without LittleCMS
        data = picture.info["icc_profile"]
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        mode = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}[profile.profile.xcolor_space.strip()]
        fits = picture.mode in {"RGB": ("RGB", "RGBA", "P"), "CMYK": ("CMYK",), "L": ("L", "LA")}[mode]
        if fits and not ImageCms.getProfileDescription(profile).startswith("sRGB"):
            transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
            return lambda image: ImageCms.applyTransform(image.convert(mode), transform)
    return lambda image: image.convert("RGB")


@np.errstate(all="ignore")  # of NaN and infinity
def _to_8_bits(values: np.ndarray, *, deep: bool) -> np.ndarray:
    """Values (H, W, 1 or 3) of more than 8 bits as uint8 (H, W, 3); `deep` says that 65535 is white, else 255 or 65535
    is, by the largest value, or of floating-point numbers 1 if all but a few are below it: highlights lie above."""
    peak = np.fmax.reduce(values, axis=None, initial=0)
    white = 65535.0 if deep or peak > 255 else 255.0
    if values.dtype.kind == "f" and not deep:
        some = values[::8, ::8]
        lit = some[some > 0]
        white = 1.0 if peak <= 1 or (lit.size and np.quantile(lit, 0.95) <= 1) else white
    rgb = np.empty((*values.shape[:2], 3), np.uint8)
    for row, out in zip(values, rgb, strict=True):  # one by one, since float64 takes much memory
        out[:] = (np.nan_to_num(row.astype(np.float64)) / white * 255).clip(0, 255)
    return rgb


def _read_tiff(file, shown: str) -> np.ndarray:
    """A TIFF that Pillow does not know: of 16-bit or floating-point colour."""
    from PIL import Image

    file.seek(0)
    if file.read(4) not in (b"II*\0", b"MM\0*"):
        raise PictureError(f"{shown} is not a picture.")
    if _tiff_pixels(file) > MOST_PIXELS:
        raise Image.DecompressionBombError
    file.seek(0)
    with opencv_silent():
        picture = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None or max(picture.shape) > LONGEST_SIDE:
        raise PictureError(f"{shown} is not a picture, or is longer than {LONGEST_SIDE} pixels.")
    picture = picture[..., None] if picture.ndim == 2 else picture[..., 2::-1]
    if picture.dtype == np.uint8:
        return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))
    return _to_8_bits(picture, deep=picture.dtype == np.uint16)


@contextmanager
def opencv_silent():
    """Without OpenCV's own lines on standard error."""
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)


def _tiff_pixels(file) -> int:
    from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, ImageFileDirectory_v2

    file.seek(0)
    tags = ImageFileDirectory_v2(file.read(8))
    file.seek(tags.next)
    tags.load(file)
    return int(tags.get(IMAGEWIDTH, 0)) * int(tags.get(IMAGELENGTH, 0))


def count_pixels(path: Path) -> int:
    """The pixels that a picture will have by its header; 0 for one that cannot be read."""
    from PIL import Image, UnidentifiedImageError

    with suppress(Exception), _open(path, "") as file:
        try:
            with Image.open(file, formats=_formats(file, "")) as picture:
                return picture.size[0] * picture.size[1]
        except UnidentifiedImageError:
            return _tiff_pixels(file)
    return 0


def read_known(path: Path, *, grey: bool = False) -> np.ndarray:
    """A picture of a data set, uint8 (H, W, 3) RGB, or (H, W) with `grey`: as `read_picture`, but whole JPEGs, and with
    `grey` PNGs, by OpenCV, in half of the time."""
    data = b""
    with suppress(OSError, PictureError), _open(path, "") as file:  # read_picture says why
        data = file.read()
    known = data[:8] == b"\x89PNG\r\n\x1a\n" if grey else data[:3] == b"\xff\xd8\xff" and b"\xff\xd9" in data[-64:]
    if known and 0 < count_pixels(path) <= MOST_PIXELS:
        with suppress(MemoryError, cv2.error):
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
            if picture is not None:
                return picture if grey else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    picture = read_picture(path)
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if grey else picture


def to_array(picture) -> np.ndarray:
    """What Python code may hold as a picture, as uint8 (H, W, 3) RGB: a path, a Pillow image, or an array uint8
    (H, W, 3), (H, W) in grey or (H, W, 4) RGBA, which is laid over white; another array is a ValueError."""
    from PIL import Image, ImageOps

    if isinstance(picture, (str, os.PathLike)):
        return read_picture(Path(picture))
    if isinstance(picture, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(picture))
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or not array.size:
        raise ValueError(f"expected uint8 (H, W, 3), (H, W, 4) or (H, W), got {array.dtype} {array.shape}")
    return array if array.shape[2:] == (3,) else _to_rgb(Image.fromarray(np.ascontiguousarray(array)))


# --- Names of results ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    path: Path  # the picture
    name: str  # of its results, below the output folder, without suffix
    source: str | None = None  # the picture's `identity`, taken before it is read


def find_jobs(inputs: Iterable[Path], out: Path, skipped=None, passed=None) -> list[Job]:
    """The pictures of files and folders (searched through, in name order); lists get a sentence for each folder that
    cannot be searched or holds no pictures (`skipped`), and the files of folders that are no pictures (`passed`).

    Results are named after the picture, below the same subfolders. Where two pictures would share a name, whatever the
    case of its letters, the later one gets its suffix appended (`cat_png`), then a number. Results of an earlier run
    into the searched folder itself, and its GIFs anywhere, known by their tags, are not taken for pictures.
    """
    jobs, taken = [], set()
    skipped, passed = [] if skipped is None else skipped, [] if passed is None else passed
    for given in map(Path, inputs):
        is_folder = os.path.isdir(given)  # which, unlike Path's, takes a name of any length
        found = list(_walk(given, Path(out), skipped, passed)) if is_folder else [given]
        if not found:
            skipped.append(f"{given} holds no pictures ({' '.join(const.IMAGE_SUFFIXES)}).")
        for path in found:
            relative = path.relative_to(given) if is_folder else Path(path.name)
            stem, suffix = _stem(relative), relative.suffix.lstrip(".")
            others = [f"{stem}_{suffix}"] if suffix else []
            names = chain([stem], others, (f"{stem}_{n}" for n in count(2 + len(others))))
            name = next(name for name in names if name.casefold() not in taken)
            taken.add(name.casefold())
            jobs.append(Job(path, name))
    return jobs


def _stem(path: Path) -> str:
    """The path without its suffix and bytes that are no text, cut so that a result's ending fits behind it."""
    room = 255 - len("_side-by-side.jpg") - 12  # bytes that file systems take; a number, where names would be the same
    stem = os.fsencode(path.name.removesuffix(path.suffix))[:room].decode("utf-8", "ignore")
    return (path.parent / (stem if stem.strip(".") else "_")).as_posix()


def _walk(folder: Path, out: Path, skipped: list[str], passed: list[str]) -> Iterator[Path]:
    seen = set()  # a link may lead to a folder above it
    closed = []
    for root, folders, files in os.walk(folder, onerror=closed.append, followlinks=True):
        real = Path(root).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        own = real.is_relative_to(out.resolve())
        for name in sorted(files):
            path = Path(root) / name
            if name.startswith(".") or ((own or name.lower().endswith(".gif")) and read_tag(path)):
                continue
            if path.suffix.lower() in const.IMAGE_SUFFIXES:
                yield path
            else:
                passed.append(str(path))
    skipped += [f"{error.filename} cannot be searched ({error.strerror})." for error in closed]


# --- Tags: which picture a result is of -----------------------------------------------------------------------------
_TAG = re.compile(rb"face-segmentation ([0-9a-f]{16})([ -])([0-9]{12})")  # the source's identity, -: no face, the size
_COMMENTS = {  # suffix: where in the file a comment goes, what comes before and behind the 47 bytes of its text
    ".png": (33, b"\0\0\0\x37tEXtComment\0", b"\0\0\0\0"),  # behind the signature and the header; a checksum
    ".jpg": (20, b"\xff\xfe\0\x31", b""),  # behind the marker and JFIF's header
    ".gif": (-1, b"\x21\xfe\x2f", b"\0"),  # before the trailer
    ".json": (1, b'"tag": "', b'", '),  # the first field of an object
    ".onnx": (None, b"\x72\x36\x0a\x03tag\x12\x2f", b""),  # of the metadata, the message's field 14, of two texts
    ".mp4": (None, b"\0\0\0\x37free", b""),
}


def identity(path: Path) -> str:
    """16 hexadecimal digits of a file's name, size and time, by which its results know it."""
    status = path.stat()
    return hashlib.sha256(os.fsencode(f"{path.name}|{status.st_size}|{status.st_mtime_ns}")).hexdigest()[:16]


def tagged(data: bytes, suffix: str, source: str = "0" * 16, before: int = 0, *, faceless: bool = False) -> bytes:
    """A result's bytes, or those that follow the `before` that are written, with the `identity` of its picture, if it
    is of one, and whether that shows no face, in a comment of the format."""
    place, head, tail = _COMMENTS[suffix]
    place = len(data) if place is None else place
    size = before + len(data) + len(head) + 47 + len(tail)
    text = b"face-segmentation %s%c%012d" % (source.encode(), b"-" if faceless else b" ", size)
    if suffix == ".png":
        tail = zlib.crc32(head[4:] + text).to_bytes(4, "big")
    return data[:place] + head + text + tail + data[place:]


def read_tag(path: Path) -> str | None:
    """The `identity` of the picture that a result is of, with a "-" behind it if that shows no face; None for any other
    file, and for a result changed since."""
    try:
        with _open(path, "") as file:
            start = file.read(512)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64))
            found = _TAG.search(start) or _TAG.search(file.read())
    except (OSError, PictureError):
        return None
    return (found[1] + found[2]).decode().rstrip() if found and int(found[3]) == size else None


def done_before(results: Iterable[Path], source: str | None) -> bool | None:
    """Whether the picture of this `identity` shows a face, by the tags of its results; None if one is missing or is
    another picture's."""
    tags = {read_tag(path) for path in results} if source else set()
    return source in tags if tags in ({source}, {f"{source}-"}) else None


def forbidden(results: Iterable[Path], inputs: Iterable[Path] = ()) -> str | None:
    """A sentence on the first result that would take the name of one of `inputs` (resolved), or of a file that this
    program did not write. Empty files, which a full disk or a crash leaves, may be replaced."""
    for path in results:
        if not os.path.lexists(path):
            continue
        empty = os.path.isfile(path) and not path.stat().st_size
        if path.resolve() in inputs or not (empty or read_tag(path)):
            return f"{path} exists and is an input, or no result of this program; choose another folder or move it."
    return None


# --- Many pictures at once --------------------------------------------------------------------------------------------
def predict_files(
    segmenter, jobs: Iterable[Job], *, batch_size: int, on_result: Callable, workers: int | None = None, animated=None
) -> Iterator[tuple[Job, str | None]]:
    """Read, segment and write at the same time; yields each job when it is done, with a sentence if it failed.

    A few threads take a batch each through all three, and share the cores: none waits for the slowest of the others.

    Args:
        batch_size: pictures segmented together, where there are many.
        on_result: called in one of the threads with (job, picture uint8 (H, W, 3), logits float32 (H, W)); those of a
            picture of more than `PIXELS_IN_HAND` are smaller. A PictureError of its is the sentence of the job, an
            OSError (a full disk, no permission) ends the work.
        workers: the threads; one a core without it, at least two and at most `AT_ONCE`.
    """
    import torch

    import devices

    workers = workers or max(2, min(AT_ONCE, usable_cores() // devices.local_world_size()))
    todo = iter(jobs)
    first = list(islice(todo, workers * batch_size))
    if not first:
        return
    workers = min(workers, len(first))
    size = min(batch_size, -(-len(first) // workers))  # a few pictures are shared out evenly
    held, changed = [], threading.Condition()

    def predicted(group: list[Job], pixels: int) -> list[tuple[Job, str | None]]:
        with changed:  # a picture larger than all of the room has it alone
            changed.wait_for(lambda: not held or sum(held) + pixels <= PIXELS_IN_HAND)
            held.append(pixels)
        try:
            return list(_predict_group(segmenter, group, on_result, animated))
        finally:
            with changed:
                held.remove(pixels)
                changed.notify_all()

    threads = torch.get_num_threads()
    each = max(1, threads // workers)
    groups = _groups(chain(first, todo), size, BATCH_PIXELS // workers)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
        try:
            work = (pool.submit(predicted, *group) for group in groups)
            going = deque(islice(work, workers + 1))
            while going:
                done = going.popleft().result()
                going.extend(islice(work, 1))
                yield from done
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _groups(jobs: Iterable[Job], size: int, most: int) -> Iterator[tuple[list[Job], int]]:
    """(jobs that are segmented together, their pixels): up to `size`, with up to `most` pixels, and at least one."""
    group, total = [], 0
    for job in jobs:
        pixels = count_pixels(job.path)
        if group and (len(group) == size or total + pixels > most):
            yield group, total
            group, total = [], 0
        group.append(job)
        total += pixels
    yield group, total


def _predict_group(segmenter, jobs: list[Job], on_result, animated) -> Iterator[tuple[Job, str | None]]:
    batch = []
    for job in jobs:
        try:
            batch.append((job, read_picture(job.path, animated=animated)))
        except PictureError as error:
            yield job, str(error)
    found = segmenter.logits([_shrunk(picture) for _, picture in batch]) if batch else []
    for (job, picture), logits in zip(batch, found, strict=True):
        try:
            on_result(job, picture, logits)
            yield job, None
        except PictureError as error:
            yield job, str(error)


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """The picture with at most `PIXELS_IN_HAND`; logits of more would take twice its own memory."""
    scale = (PIXELS_IN_HAND / (picture.size // 3)) ** 0.5
    return picture if scale >= 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


# --- A folder predicted and written ---------------------------------------------------------------------------------
def predict(
    segmenter, inputs, out, output=None, *, batch_size=4, skip_existing=False, fail_empty=False, shard=(1, 1), log=print
) -> list[str]:
    """Write results, those of an `Output`, into the folder `out` for every picture of files and folders, `inputs`.

    Gives a sentence for each picture that could not be read or whose results would replace another file, and for each
    folder without pictures; a UserError if there are no pictures at all, or results cannot be written.

    Args:
        skip_existing: leave out pictures whose results are all there, of the same file.
        fail_empty: pictures without a face are an error; else they are only named.
        shard: (i, n): the i-th of n parts of the pictures, for as many processes or machines.
    """
    from tqdm.auto import tqdm

    inputs = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs  # or of one
    inputs, out, errors, passed = [Path(p) for p in inputs], Path(out), [], []
    jobs = find_jobs(inputs, out, errors, passed)
    if not jobs:
        raise UserError(" ".join([*errors[:1], *_said_of_passed(passed)]) or "There are no pictures.")
    jobs = jobs[shard[0] - 1 :: shard[1]]
    folder = _Results(out, output or Output(), {path.resolve() for path in inputs}, skip_existing)
    options = {"batch_size": batch_size, "on_result": folder.write, "animated": folder.animated.append}
    done = 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in {os.path.dirname(job.name) for job in jobs}:
            sweep(out / name)
        ended = predict_files(segmenter, folder.todo(jobs, errors), **options)
        for _, error in tqdm(ended, total=len(jobs), unit="picture", disable=None, delay=2):
            done += not error
            errors += [error] if error else []
    except OSError as error:
        raise UserError(f"The results cannot be written to {out} ({error.strerror or error}).") from error
    of = _counted(jobs, "picture") + (f" of part {shard[0]}/{shard[1]}" if shard[1] > 1 else "")
    before = f", {folder.skipped} were there already" if folder.skipped else ""
    where = f": {', '.join(folder.output.results)} in {out}" if done else "."
    log(f"{done} of {of} done{before}{where}")
    if folder.animated:
        log(f"{_listed(folder.animated, 'animation', ', of which the first frame was taken')}.")
    for sentence in _said_of_passed(passed):
        log(sentence)
    if folder.faceless:
        (errors.append if fail_empty else log)(folder.said_of_faceless(fail_empty))
    return errors


class _Results:
    """The results of one call of `predict`, and what there is to say of them."""

    def __init__(self, out: Path, output: Output, inputs: set[Path], skip_existing: bool):
        self.out, self.output, self.inputs, self.skip_existing = out, output, inputs, skip_existing
        self.skipped, self.faceless, self.animated = 0, [], []

    def paths(self, job: Job) -> dict[str, Path]:
        return {kind: self.out / f"{job.name}_{kind}{const.RESULTS[kind]}" for kind in self.output.results}

    def todo(self, jobs: Iterable[Job], errors: list[str]) -> Iterator[Job]:
        """The jobs that are to be done; `errors` gets a sentence for each that may not be."""
        for job in jobs:
            source = None
            with suppress(OSError):  # of the picture, which reading it will name
                source = identity(job.path)
            results = self.paths(job).values()
            face = done_before(results, source) if self.skip_existing else None
            if refusal := forbidden(results, self.inputs):
                errors.append(refusal)
            elif face is not None:
                self.skipped += 1
                if not face:
                    self.faceless.append(str(job.path))
            else:
                yield replace(job, source=source)

    def write(self, job: Job, picture: np.ndarray, logits: np.ndarray) -> None:
        from inference import to_mask

        if logits.shape != picture.shape[:2]:  # of a very large picture
            logits = cv2.resize(logits, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        mask = to_mask(logits, self.output.threshold)
        if faceless := not shows_face(mask):
            self.faceless.append(str(job.path))
        for kind, path in self.paths(job).items():
            if kind == "side-by-side" and 2 * picture.shape[1] > LONGEST_SIDE:
                raise PictureError(f"{path} would be wider than a JPEG can be, {LONGEST_SIDE} pixels; scale it down.")
            data = self.output.encode(kind, picture, mask, logits, str(job.path))
            write_bytes(path, tagged(data, path.suffix, job.source or "0" * 16, faceless=faceless))

    def said_of_faceless(self, fail_empty: bool) -> str:
        """Up to a thousand are named where somebody has to see to them."""
        most = 1000 if fail_empty or self.output.hiding else 20
        said = f"{_listed(self.faceless, 'picture', ' without a face', most)}."
        if not self.output.hiding:
            return said
        return f"{'' if fail_empty else 'Warning: '}{said} Nothing was hidden in them; they were written unchanged."


def _said_of_passed(passed: list[str]) -> list[str]:
    if not passed:
        return []
    videos = any(Path(name).suffix.lower() in const.VIDEO_SUFFIXES for name in passed)
    is_no = " is not a picture" if len(passed) == 1 else " are not pictures"
    return [f"{_listed(passed, 'file', is_no)}{'; give videos by name' if videos else ''}."]


def _counted(things: list, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _listed(names: list[str], noun: str, what: str, most: int = 3) -> str:
    return f"{_counted(names, noun)}{what}: {', '.join(names[:most])}{', ...' if len(names) > most else ''}"


def predict_stream(segmenter, source, sink, threshold: float) -> bool:
    """Read one picture from a binary stream, write its mask as PNG to another; whether it shows a face."""
    mask = segmenter.mask(read_picture(io.BytesIO(source.read()), name="standard input"), threshold)
    sink.write(encode(mask, ".png"))
    sink.flush()
    return shows_face(mask)
