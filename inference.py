"""Pictures in, masks out: reading what users bring, looking at it once or twice, writing results as they come.

A mask is as large as the picture is seen (orientation tags applied). A network that looks once sees the whole picture
scaled to its size, aspect kept. One that looks twice finds the faces in the whole picture first, then looks at each
again, enlarged to fill its square, which is what makes faces of a few per cent of the width come out sharp.
"""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import torch

import const
import devices
from common import UserError, usable_cores
from drawing import RESULTS
from model import Info
from regions import merge_boxes

FINE_MARGIN = 1.5  # side of the second look's square, in lengths of the face found
NEAR = 2.5  # a second look that enlarges less than this sees no more than the first: the two are averaged
COARSE_THRESHOLD = 0.25  # probability from which the second look is worth taking
# How sure a network is of a region: the mean probability of the surer half of its pixels. The weights say how sure they
# are of a face in the open; one that is mostly covered, or a part that a cover divides from the rest, may be as unsure
# as this. For the bundled weights the first is 0.965: of 554 faces pasted into photographs 549 reach it, and one of the
# other regions that were found there and in 39 photographs without a face.
MIN_CONFIDENCE = Info.confidence
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # damaged tags, of which the pixels know nothing
            with Image.open(path) as picture:
                picture.load()
                if max(picture.size) > LONGEST_SIDE:
                    raise PictureError(f"{shown} is longer than {LONGEST_SIDE} pixels; scale it down.")
                return _to_rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError:
        raise PictureError(f"There is no file {shown}.") from None
    except UnidentifiedImageError:
        return _read_with_opencv(path, shown)
    except Image.DecompressionBombError:
        raise PictureError(f"{shown} has more pixels than can be read safely; scale it down.") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
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
    """What Pillow does not know, such as 16-bit colour TIFF."""
    try:
        data = np.frombuffer(path.getvalue(), np.uint8) if isinstance(path, io.BytesIO) else np.fromfile(path, np.uint8)
    except OSError as error:
        raise PictureError(f"{shown} cannot be read ({error.strerror}).") from None
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise PictureError(f"{shown} is not a picture.")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


# --- Looking --------------------------------------------------------------------------------------------------------
def fused(net: torch.nn.Module) -> torch.nn.Module:
    """A copy of a network in evaluation mode whose batch normalisations are part of the convolutions before them.

    In the networks of model.py the two are neighbours. A network without any is returned as it is.
    """
    if not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules()):
        return net
    net = copy.deepcopy(net)
    for parent in net.modules():
        for (name, conv), (next_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                setattr(parent, name, torch.nn.utils.fuse_conv_bn_eval(conv, norm))
                setattr(parent, next_name, torch.nn.Identity())
    return net


class Segmenter:
    """A network ready to predict. `net` stays as it was given; what looks is a fused copy.

    The copy computes in 16 bits where the device is fast in them: half of the time for the small model. Rounding moves
    single pixels of an edge, and decides where it is a close call whether a region is a face: of 400 composed
    photographs no mask, and of 100 faces one agreed with full precision at an IoU below 0.97, and Dice changed by
    0.0002 at most.

    Args:
        net: a network of model.py, with its weights.
        info: what is known of the weights.
        device: where to compute.
        flip: average with the mirrored picture; twice the time, a little more accurate.
        looks: 1 or 2; as the weights say without it.
        precision: "fp32" for measuring how good weights are; "auto" is the faster one of the device.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        info: Info,
        device="cpu",
        *,
        flip: bool = False,
        passes: int | None = None,
        precision: str = "auto",
    ):
        self.device = torch.device(device)
        self.net = net.to(self.device, memory_format=torch.channels_last).eval()
        self.info, self.flip, self.passes = info, flip, passes or info.passes
        dtype = None if precision == "fp32" else devices.autocast_dtype(self.device)
        self._fused = fused(self.net)
        if self._fused is not self.net:
            self._fused.to(dtype or torch.float32)
        self.dtype = next((p.dtype for p in self._fused.parameters()), torch.float32)  # what it computes in

    @torch.inference_mode()
    def _logits(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Pictures of one shape, uint8 (H, W, 3) -> logits float32 (N, H, W)."""
        x = torch.from_numpy(np.stack(pictures)).to(self.device).permute(0, 3, 1, 2)  # (N, 3, H, W), channels last
        mean = torch.tensor(const.IMAGENET_MEAN, device=self.device).view(1, 3, 1, 1) * 255
        std = torch.tensor(const.IMAGENET_STD, device=self.device).view(1, 3, 1, 1) * 255
        x = ((x - mean) / std).to(self.dtype)
        logits = self._fused(x).float()
        if self.flip:
            logits = (logits + self._fused(x.flip(3)).flip(3).float()) / 2
        return logits[:, 0].cpu().numpy()

    def _scaled(self, picture: np.ndarray, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        """The picture with its longer side at `side`, padded to multiples of 32: (padded, (h, w) of the content)."""
        h, w = picture.shape[:2]
        scale = side / max(h, w)
        size = max(1, round(h * scale)), max(1, round(w * scale))
        small = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        pad = -size[0] % 32, -size[1] % 32
        small = cv2.copyMakeBorder(small, 0, pad[0], 0, pad[1], cv2.BORDER_REPLICATE)
        return small, size

    def logits(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        """Pictures uint8 (H, W, 3) RGB of any sizes -> logits float32 (H, W), each at its picture's size."""
        first = self._coarse_pass(pictures)
        if self.passes == 1:
            return [_enlarge(c, p.shape[:2]) for c, p in zip(first, pictures, strict=True)]
        boxes = [self._faces(c, p.shape[:2]) for c, p in zip(first, pictures, strict=True)]
        crops = [_crop(p, b, self.info.size) for p, bs in zip(pictures, boxes, strict=True) for b in bs]
        # The second look is taken in the mirror: where the two are averaged, their errors are less alike.
        crops = [np.ascontiguousarray(c[:, ::-1]) for c in crops]
        second = iter([x[:, ::-1] for i in range(0, len(crops), 8) for x in self._logits(crops[i : i + 8])])
        return [
            _reject_unconfident(_assemble(c, p.shape[:2], [(b, next(second)) for b in bs]), bs, self.info.confidence)
            for c, p, bs in zip(first, pictures, boxes, strict=True)
        ]

    def _coarse_pass(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        scaled = [self._scaled(p, self.info.size) for p in pictures]
        out: list[np.ndarray | None] = [None] * len(pictures)
        for shape in {s.shape for s, _ in scaled}:
            same = [i for i, (s, _) in enumerate(scaled) if s.shape == shape]
            for i, logits in zip(same, self._logits([scaled[i][0] for i in same]), strict=True):
                h, w = scaled[i][1]
                out[i] = logits[:h, :w]
        return out

    def _faces(self, coarse: np.ndarray, shape: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Squares (x, y, side) in the picture's pixels around what the first look took for faces."""
        logit = float(np.log(COARSE_THRESHOLD / (1 - COARSE_THRESHOLD)))
        n, _, stats, _ = cv2.connectedComponentsWithStats((coarse > logit).astype(np.uint8))
        boxes = [tuple(map(float, (x, y, x + w, y + h))) for x, y, w, h, area in stats[1:n] if area >= 6]
        sy, sx = shape[0] / coarse.shape[0], shape[1] / coarse.shape[1]  # unequal for thin pictures
        squares = []
        for x0, y0, x1, y1 in merge_boxes(boxes):
            side = max((x1 - x0) * sx, (y1 - y0) * sy) * FINE_MARGIN
            cx, cy = (x0 + x1) / 2 * sx, (y0 + y1) / 2 * sy
            squares.append((round(cx - side / 2), round(cy - side / 2), max(8, round(side))))
        return squares

    def mask(self, picture: np.ndarray, threshold: float = const.THRESHOLD) -> np.ndarray:
        """One picture uint8 (H, W, 3) RGB -> mask uint8 (H, W), 0/255, at a probability threshold."""
        return to_mask(self.logits([picture])[0], threshold)


def to_mask(logits: np.ndarray, threshold: float) -> np.ndarray:
    """Logits float (H, W) to a mask uint8 (H, W), 0/255, at a probability threshold in (0, 1)."""
    logit = logits.dtype.type(np.log(threshold / (1 - threshold)))
    return (logits > logit).view(np.uint8) * np.uint8(255)


def _enlarge(logits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(logits, shape[::-1], interpolation=cv2.INTER_LINEAR)


def _crop(picture: np.ndarray, box: tuple[int, int, int], size: int) -> np.ndarray:
    """The square (x, y, side) of a picture at size x size, edge pixels repeated beyond the picture."""
    x, y, side = box
    h, w = picture.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, w), min(y + side, h)
    part = picture[y0:y1, x0:x1]
    scale = size / side
    inner = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    part = cv2.resize(part, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = min(round((x0 - x) * scale), size - 1), min(round((y0 - y) * scale), size - 1)
    part = part[: size - top, : size - left]
    return cv2.copyMakeBorder(
        part, top, size - top - part.shape[0], left, size - left - part.shape[1], cv2.BORDER_REPLICATE
    )


def _assemble(
    coarse: np.ndarray, shape: tuple[int, int], looks: list[tuple[tuple[int, int, int], np.ndarray]]
) -> np.ndarray:
    """The picture's logits from its second looks; nothing is a face where none was taken."""
    h, w = shape
    total = np.full((h, w), -8.0, np.float32)
    weight = np.zeros((h, w), np.float32)
    for (x, y, side), logits in looks:
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, w), min(y + side, h)
        if x0 >= x1 or y0 >= y1:
            continue
        # Sample the square's logits at the picture's pixel centres.
        scale = logits.shape[0] / side
        matrix = np.float32([[scale, 0, (x0 - x + 0.5) * scale - 0.5], [0, scale, (y0 - y + 0.5) * scale - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        patch = cv2.warpAffine(
            np.ascontiguousarray(logits), matrix, (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        zoom = scale / (coarse.shape[0] / h)
        if zoom < NEAR:
            patch = (patch + _enlarge(coarse, shape)[y0:y1, x0:x1]) / 2
        if len(looks) == 1:
            total[y0:y1, x0:x1] = patch
            return total
        ramp_x = 1.001 - np.abs((np.arange(x0, x1) + 0.5 - x) / side * 2 - 1)
        ramp_y = 1.001 - np.abs((np.arange(y0, y1) + 0.5 - y) / side * 2 - 1)
        near = np.minimum(ramp_y[:, None], ramp_x[None]).astype(np.float32)  # the middle of a square knows best
        box = np.s_[y0:y1, x0:x1]
        old = weight[box]
        total[box] = np.where(old > 0, (total[box] * old + patch * near) / (old + near), patch)
        weight[box] = old + near
    return total


def _reject_unconfident(logits: np.ndarray, squares: list[tuple[int, int, int]], confidence: float) -> np.ndarray:
    """Logits float32 (H, W), changed in place: a region below `MIN_CONFIDENCE` is rejected, and so is, in a picture
    with a region that reaches `confidence`, one that shares no square (x, y, side) of the fine pass with it."""
    h, w = logits.shape
    scale = min(1.0, 256 / max(h, w))
    size = max(1, round(w * scale)), max(1, round(h * scale))
    small = cv2.resize(logits, size, interpolation=cv2.INTER_AREA)
    n, labels, stats, _ = cv2.connectedComponentsWithStats((small > 0).astype(np.uint8))
    boxes = [tuple(map(float, (x, y, x + bw, y + bh))) for x, y, bw, bh, _ in stats[1:n]]
    regions = []  # (where, own, the squares that it lies in)
    for x0, y0, x1, y1 in merge_boxes(boxes):
        box = np.s_[int(y0) : int(y1), int(x0) : int(x1)]
        inside = small[box][small[box] > 0]
        probability = np.sort(1 / (1 + np.exp(-inside)))
        cx, cy = (x0 + x1) / 2 * w / size[0], (y0 + y1) / 2 * h / size[1]
        within = {s for s in squares if s[0] <= cx <= s[0] + s[2] and s[1] <= cy <= s[1] + s[2]}
        regions.append((box, probability[inside.size // 2 :].mean(), within))
    rejected, kept = np.zeros_like(labels, np.uint8), np.zeros_like(labels, np.uint8)
    needed = confidence if any(own >= confidence for _, own, _ in regions) else MIN_CONFIDENCE
    for box, own, within in regions:
        beside = [other for _, other, its in regions if its & within]
        is_face = own >= MIN_CONFIDENCE and max([own, *beside]) >= needed
        (kept if is_face else rejected)[box] |= labels[box] > 0
    wide = np.ones((3, 3), np.uint8)
    rejected = cv2.dilate(rejected, wide) & (kept == 0)
    where = cv2.resize(rejected, (w, h), interpolation=cv2.INTER_NEAREST) > 0
    # Specks too small for the small scale belong to no face either.
    where |= (cv2.resize(cv2.dilate(kept, wide), (w, h), interpolation=cv2.INTER_NEAREST) == 0) & (logits > 0)
    logits[where] = np.minimum(logits[where], -4)
    return logits


# --- Files in, files out --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    path: Path  # the picture
    name: str  # of its results, below the output folder, without suffix


def find_jobs(inputs: Iterable[Path], out: Path) -> list[Job]:
    """`iter_jobs` as a list."""
    return list(iter_jobs(inputs, out))


def iter_jobs(inputs: Iterable[Path], out: Path, faults: list[str] | None = None) -> Iterator[Job]:
    """The pictures of files and folders (searched through, in name order), each with a name of its own; `faults` gets a
    sentence for each folder that cannot be searched.

    Results are named after the picture, below the same subfolders. Where two pictures would share a name, whatever the
    case of its letters, the later one gets its suffix appended (`cat_png`), then a number. Results of an earlier run
    into the searched folder itself are not taken for pictures.
    """
    taken: set[str] = set()
    for given in map(Path, inputs):
        if given.is_dir():
            found = ((p, p.relative_to(given)) for p in _walk(given, Path(out), [] if faults is None else faults))
        else:
            found = [(given, Path(given.name))]
        for path, relative in found:
            stem = _shortened(relative.with_suffix("")).as_posix()
            name, n = stem, 1
            while name.casefold() in taken:
                suffix = relative.suffix.lstrip(".")
                name = f"{stem}_{suffix}" if n == 1 and suffix else f"{stem}_{n + 1}"
                n += 1
            taken.add(name.casefold())
            yield Job(path, name)


def _shortened(path: Path) -> Path:
    """The path with its last part cut so that a result's ending fits behind it: file systems take 255 bytes."""
    room = 255 - len("_side-by-side.jpg") - 12  # and a suffix or number, where names would be the same
    return path.with_name(os.fsencode(path.name)[:room].decode("utf-8", "ignore")) if path.name else path


def _walk(folder: Path, out: Path, faults: list[str]) -> Iterator[Path]:
    own_endings = tuple(f"_{kind}{suffix}" for kind, suffix in RESULTS.items())
    seen = set()  # a link may lead to a folder above it

    def fault(error: OSError) -> None:
        faults.append(f"{error.filename} cannot be searched ({error.strerror}).")

    for root, folders, files in os.walk(folder, onerror=fault, followlinks=True):
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
            if own and name.endswith(own_endings):
                continue
            yield Path(root) / name


def predict_files(
    segmenter: Segmenter, jobs: Iterable[Job], *, batch_size: int, on_result, workers: int | None = None
) -> Iterator[tuple[Job, str | None]]:
    """Read, look and write at the same time; yields each job when it is done, with a sentence if it failed.

    A few threads take a batch each through all three, and share the cores: a core that looks need not wait for one that
    reads, and none for the slowest part of a layer that both would work on.

    Args:
        batch_size: pictures looked at together, where there are many.
        on_result: called in one of the threads with (job, picture uint8 (H, W, 3), logits float32 (H, W)).
        workers: the threads; one a core without it, at most `AT_ONCE`, on a GPU at least two.

    Raises:
        OSError: a result could not be written (a full disk, no permission): the pictures after it would fail as well.
    """
    if workers is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of a torchrun job on this machine
        device = getattr(segmenter, "device", torch.device("cpu"))
        workers = max(1 if device.type == "cpu" else 2, min(AT_ONCE, usable_cores() // here))
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


def _predict_batch(segmenter: Segmenter, jobs: list[Job], pixels: int, on_result) -> list[tuple[Job, str | None]]:
    """The jobs with their faults; looked at together are as many as have `pixels` in all, and at least one."""
    done: list[tuple[Job, str | None]] = []
    batch: list[tuple[Job, np.ndarray]] = []

    def finish() -> None:
        looked = segmenter.logits([picture for _, picture in batch]) if batch else []
        for (job, picture), logits in zip(batch, looked, strict=True):
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
