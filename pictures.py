"""Any picture in, results out: reading what users bring, naming results, a folder predicted and written.

The network is no part of this file: `predict` is given the segmenter, and the reading is used by every other module.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np

import const
from common import UserError, usable_cores, write_bytes
from drawing import Output, encode

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")  # no others: EPS, say, runs a program
LONGEST_SIDE = 65_500  # pixels; what a JPEG, and so an overlay, can hold
BATCH_PIXELS = 24_000_000  # pictures in hand are batched up to this many pixels, so that memory has a bound
AT_ONCE = 4  # batches in hand at most; on machines of more cores, each gets several


class PictureError(UserError):
    """A picture that cannot be read; the message is one sentence for the user."""


# --- Reading --------------------------------------------------------------------------------------------------------
def read_picture(path: Path | io.BytesIO, *, name: str | None = None) -> np.ndarray:
    """Any picture as it is seen: uint8 (H, W, 3) RGB, upright, transparency over white. `name` is for messages.

    Greyscale, 16-bit, palette, CMYK, alpha and floating-point pictures are converted; of an animation the first frame
    is taken.

    Raises:
        PictureError: the file is missing, is no picture, or is cut short.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    shown = name or path
    if isinstance(path, Path) and not path.is_file():  # a pipe or a device would be read for ever
        raise PictureError(f"{shown} is no regular file." if os.path.lexists(path) else f"There is no file {shown}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # damaged tags, of which the pixels know nothing
            with Image.open(path, formats=FORMATS) as picture:
                picture.load()
                if max(picture.size) > LONGEST_SIDE:
                    raise PictureError(f"{shown} is longer than {LONGEST_SIDE} pixels; scale it down.")
                return _to_rgb(ImageOps.exif_transpose(picture))
    except PictureError:
        raise
    except UnidentifiedImageError:
        return _read_with_opencv(path, shown)
    except Image.DecompressionBombError:
        raise PictureError(f"{shown} has more pixels than can be read safely; scale it down.") from None
    except Exception as error:  # noqa: BLE001  decoders raise whatever they like at damaged bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PictureError(f"{shown} cannot be read as a picture ({reason}).") from None


def _to_rgb(picture) -> np.ndarray:
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits of grey
        grey = np.nan_to_num(np.asarray(picture).astype(np.float64))
        top = (
            1.0
            if picture.mode == "F" and grey.max(initial=0) <= 1
            else 255.0
            if grey.max(initial=0) <= 255
            else 65535.0
        )
        if picture.mode.startswith("I;16"):
            top = 65535.0
        grey = (grey / top * 255).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(picture.convert("RGB"))


def _read_with_opencv(path: Path | io.BytesIO, shown) -> np.ndarray:
    """TIFF that Pillow does not know, of 16-bit colour."""
    try:
        data = path.getvalue() if isinstance(path, io.BytesIO) else path.read_bytes()
        picture = None
        if data[:4] in (b"II*\0", b"MM\0*"):
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        raise PictureError(f"{shown} cannot be read ({str(error).splitlines()[0]}).") from None
    if picture is None:
        raise PictureError(f"{shown} is not a picture.")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


# --- Names of results ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    path: Path  # the picture
    name: str  # of its results, below the output folder, without suffix


def find_jobs(inputs: Iterable[Path], out: Path) -> list[Job]:
    """`iter_jobs` as a list."""
    return list(iter_jobs(inputs, out))


def iter_jobs(inputs: Iterable[Path], out: Path, skipped: list[str] | None = None) -> Iterator[Job]:
    """The pictures of files and folders (searched through, in name order), each with a name of its own; `skipped` gets
    a sentence for each folder that cannot be searched or holds no pictures.

    Results are named after the picture, below the same subfolders. Where two pictures would share a name, whatever the
    case of its letters, the later one gets its suffix appended (`cat_png`), then a number. Results of an earlier run
    into the searched folder itself, known by their tags, are not taken for pictures.
    """
    taken: set[str] = set()
    skipped = [] if skipped is None else skipped
    for given in map(Path, inputs):
        empty = given.is_dir()
        found = ((p, p.relative_to(given)) for p in _walk(given, Path(out), skipped)) if empty else _alone(given)
        for path, relative in found:
            empty = False
            stem = _shortened(relative.with_suffix("")).as_posix()
            name, n = stem, 1
            while name.casefold() in taken:
                suffix = relative.suffix.lstrip(".")
                name = f"{stem}_{suffix}" if n == 1 and suffix else f"{stem}_{n + 1}"
                n += 1
            taken.add(name.casefold())
            yield Job(path, name)
        if empty:
            skipped.append(f"{given} holds no pictures ({' '.join(const.IMAGE_SUFFIXES)}).")


def _alone(path: Path) -> list[tuple[Path, Path]]:
    return [(path, Path(path.name))]


def _shortened(path: Path) -> Path:
    """The path with its last part cut so that a result's ending fits behind it: file systems take 255 bytes."""
    room = 255 - len("_side-by-side.jpg") - 12  # and a suffix or number, where names would be the same
    if not path.name:
        return path
    return path.with_name(os.fsencode(path.name)[:room].decode("utf-8", "ignore") or "_")  # bytes that are no text go


def _walk(folder: Path, out: Path, skipped: list[str]) -> Iterator[Path]:
    seen = set()  # a link may lead to a folder above it

    def unsearched(error: OSError) -> None:
        skipped.append(f"{error.filename} cannot be searched ({error.strerror}).")

    for root, folders, files in os.walk(folder, onerror=unsearched, followlinks=True):
        identity = os.stat(root)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        own = Path(root).resolve().is_relative_to(out.resolve())
        for name in sorted(files):
            if name.startswith(".") or Path(name).suffix.lower() not in const.IMAGE_SUFFIXES:
                continue
            if not (own and read_tag(Path(root) / name)):
                yield Path(root) / name


# --- Tags: which picture a result is of -----------------------------------------------------------------------------
_TAG = re.compile(rb"face-segmentation ([0-9a-f]{16}) ([0-9]{12})")  # identity of the source, the result's size


def identity(path: Path) -> str:
    """16 hexadecimal digits of a file's name, size and time, by which its results know it."""
    status = path.stat()
    known = f"{path.name}|{status.st_size}|{status.st_mtime_ns}"
    return hashlib.sha256(os.fsencode(known)).hexdigest()[:16]


def tagged(data: bytes, suffix: str, source: str, before: int = 0) -> bytes:
    """A result's bytes, or those that follow the `before` that are written, with the `identity` of its picture in a
    comment of the format."""
    extra = {".png": 20, ".jpg": 4, ".gif": 4, ".mp4": 8}[suffix]  # bytes around the 47 of the text
    text = f"face-segmentation {source} {before + len(data) + extra + 47:012}".encode()
    if suffix == ".png":  # behind the signature and the header
        chunk = b"tEXtComment\0" + text
        return data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    if suffix == ".jpg":  # behind the marker and JFIF's header
        return data[:20] + struct.pack(">HH", 0xFFFE, 2 + len(text)) + text + data[20:]
    if suffix == ".gif":  # before the trailer
        return data[:-1] + struct.pack(">HB", 0x21FE, len(text)) + text + b"\0" + data[-1:]
    return data + struct.pack(">I4s", 8 + len(text), b"free") + text


def read_tag(path: Path) -> str | None:
    """The `identity` of the picture that a result is of; None for any other file, and for a result changed since."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return None
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(max(0, size - 64))
            found = _TAG.search(start) or _TAG.search(file.read())
    except OSError:
        return None
    return found[1].decode() if found and int(found[2]) == size else None


def forbidden(results: Iterable[Path], inputs: set[Path]) -> str | None:
    """A sentence on the first result that would take the name of one of `inputs` (resolved), or of a file that this
    program did not write."""
    for path in results:
        if os.path.lexists(path) and (path.resolve() in inputs or read_tag(path) is None):
            return f"{path} is there and no result of this program, or an input; choose another folder or move it."
    return None


# --- Many pictures at once --------------------------------------------------------------------------------------------
def predict_files(
    segmenter, jobs: Iterable[Job], *, batch_size: int, on_result: Callable, workers: int | None = None
) -> Iterator[tuple[Job, str | None]]:
    """Read, segment and write at the same time; yields each job when it is done, with a sentence if it failed.

    A few threads take a batch each through all three, and share the cores: a core that computes need not wait for one
    that reads, and none for the slowest part of a layer that both would work on.

    Args:
        segmenter: an inference.Segmenter.
        batch_size: pictures segmented together, where there are many.
        on_result: called in one of the threads with (job, picture uint8 (H, W, 3), logits float32 (H, W)).
        workers: the threads; one a core without it, at most `AT_ONCE`, on a GPU at least two.

    Raises:
        OSError: a result could not be written (a full disk, no permission): the pictures after it would fail as well.
    """
    import torch

    import devices

    if workers is None:
        device = getattr(segmenter, "device", torch.device("cpu"))
        workers = max(1 if device.type == "cpu" else 2, min(AT_ONCE, usable_cores() // devices.local_world_size()))
    todo = iter(jobs)
    first = list(islice(todo, workers * batch_size))
    if not first:
        return
    workers = min(workers, len(first))
    size = min(batch_size, -(-len(first) // workers))  # a few pictures are shared out evenly
    todo = chain(first, todo)
    batches = iter(lambda: list(islice(todo, size)), [])
    threads = torch.get_num_threads()
    each = max(1, threads // workers)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
        try:
            work = (pool.submit(_predict_batch, segmenter, b, BATCH_PIXELS // workers, on_result) for b in batches)
            going = deque(islice(work, workers + 1))
            while going:
                done = going.popleft().result()
                going.extend(islice(work, 1))
                yield from done
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(threads)


def _predict_batch(segmenter, jobs: list[Job], pixels: int, on_result) -> list[tuple[Job, str | None]]:
    """The jobs with their errors; segmented together are as many as have `pixels` in all, and at least one."""
    done: list[tuple[Job, str | None]] = []
    batch: list[tuple[Job, np.ndarray]] = []

    def finish() -> None:
        found = segmenter.logits([picture for _, picture in batch]) if batch else []
        for (job, picture), logits in zip(batch, found, strict=True):
            on_result(job, picture, logits)
            done.append((job, None))
        batch.clear()

    for job in jobs:
        try:
            picture = read_picture(job.path)
        except PictureError as error:
            done.append((job, str(error)))
            continue
        if sum(p.size // 3 for _, p in batch) + picture.size // 3 > pixels:
            finish()
        batch.append((job, picture))
    finish()
    return done


# --- A folder predicted and written ---------------------------------------------------------------------------------
def predict(
    segmenter,
    inputs: Iterable[str | Path],
    out: str | Path,
    output: Output | None = None,
    *,
    batch_size: int = 4,
    skip_existing: bool = False,
    shard: tuple[int, int] = (1, 1),
    log=print,
) -> list[str]:
    """Write results, by default NAME_mask.png and NAME_overlay.jpg, for every picture of files and folders.

    Folders are searched twice, once to count their pictures and once for the work, so that a million are never listed.

    Args:
        segmenter: an inference.Segmenter.
        skip_existing: leave out pictures whose results are all there, of the same file.
        shard: (i, n): the i-th of n parts of the pictures, for as many processes or machines.

    Returns:
        A sentence for each picture that could not be read or whose results would replace another file, and for each
        folder without pictures.

    Raises:
        UserError: no pictures, or results that cannot be written.
    """
    from tqdm.auto import tqdm

    from inference import to_mask

    inputs, out, output, errors = [Path(p) for p in inputs], Path(out), output or Output(), []
    total = sum(1 for _ in iter_jobs(inputs, out, errors))
    if not total:
        raise UserError(errors[0])
    done, skipped, given = 0, 0, {path.resolve() for path in inputs}

    def paths(job: Job) -> dict[str, Path]:
        return {kind: out / f"{job.name}_{kind}{const.RESULTS[kind]}" for kind in output.results}

    def todo() -> Iterator[Job]:
        nonlocal skipped
        for job in islice(iter_jobs(inputs, out), shard[0] - 1, None, shard[1]):
            results = paths(job).values()
            if refusal := forbidden(results, given):
                errors.append(refusal)
            elif skip_existing and _is_done(job.path, results):
                skipped += 1
            else:
                yield job

    def write(job: Job, picture: np.ndarray, logits: np.ndarray) -> None:
        mask = to_mask(logits, output.threshold)
        for kind, path in paths(job).items():
            data = encode(output.draw(kind, picture, mask), path.suffix)
            write_bytes(path, tagged(data, path.suffix, identity(job.path)))

    part = len(range(shard[0] - 1, total, shard[1]))
    try:
        out.mkdir(parents=True, exist_ok=True)
        ended = predict_files(segmenter, todo(), batch_size=batch_size, on_result=write)
        for _, error in tqdm(ended, total=part, unit="picture", disable=None, delay=2):
            done += not error
            errors += [error] if error else []
    except OSError as error:
        raise UserError(f"The results cannot be written to {out} ({error.strerror or error}).") from error
    of = f"{part} pictures" + (f" of part {shard[0]}/{shard[1]}" if shard[1] > 1 else "")
    before = f", {skipped} were there already" if skipped else ""
    log(f"{done} of {of} done{before}: {_listing(output.results)} are in {out}")
    return errors


def predict_stream(segmenter, source, sink, threshold: float = const.THRESHOLD) -> None:
    """Read one picture from a binary stream, write its mask as PNG to another.

    Raises:
        PictureError: the stream holds no picture.
    """
    picture = read_picture(io.BytesIO(source.read()), name="standard input")
    sink.write(encode(segmenter.mask(picture, threshold), ".png"))
    sink.flush()


def _is_done(picture: Path, results: Iterable[Path]) -> bool:
    """Whether all results are there, and of this very picture."""
    try:
        return {identity(picture)} == {read_tag(path) for path in results}
    except OSError:  # of the picture, which reading it will name
        return False


def _listing(kinds: Sequence[str]) -> str:
    names = [f"{kind}s" if kind in ("mask", "overlay", "cutout", "contour") else f"{kind} pictures" for kind in kinds]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
