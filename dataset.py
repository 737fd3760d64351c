"""Datasets, transforms and the loader.

`Celeb` pairs prepared pictures with their masks, `TestCeleb` reads pictures alone. Each item is an image float32
(3, H, W) and, but for `TestCeleb`, a mask float32 (1, H, W) in {0, 1}.

Randomness: an item is asked for by its index, or by (index, seed) as `EpochSampler` does. With the pair, the item is a
function of the two alone, so an epoch is the same whatever the number of worker processes, and a resumed run sees what
an uninterrupted one would have seen. With the bare index the seed comes from torch's generator of the process at hand,
which a DataLoader seeds differently in every epoch and worker.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

import const
from common import usable_cores
from data_preprocessing import DataError
from pictures import read_known


# --- Transforms -----------------------------------------------------------------------------------------------------
def albumentations():
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks a package index for its version
    import albumentations as A

    return A


def train_transform(size: int = const.IMG_SIZE, *, seed: int | None = const.SEED, cutout: str = "image+mask"):
    """The original's augmentation, every argument that matters by its name of today (albumentations 2.0.8).

    Resize, ColorJitter (hue 0.2), HorizontalFlip, CoarseDropout (one hole of 0.2-0.7 of the height and 0.3-0.8 of the
    width, grey 120 on the image and 0 on the mask, p 0.7), Normalize.

    Args:
        cutout: "image+mask"; "none" leaves CoarseDropout out; "image-only" is what the original's
            code comes to under albumentations 2, which warns of its arguments' names and takes its defaults: one or two
            small black holes, of which the mask knows nothing.

    Raises:
        ValueError: for an argument that albumentations does not know, thanks to `strict=True`.
    """
    A = albumentations()
    holes = {
        "image+mask": [
            A.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=const.HOLE_HEIGHT,
                hole_width_range=const.HOLE_WIDTH,
                fill=const.HOLE_FILL,
                fill_mask=0,
                p=const.HOLE_P,
            )
        ],
        "none": [],
        "image-only": [A.CoarseDropout(p=const.HOLE_P)],
    }[cutout]
    return A.Compose(
        [
            A.Resize(height=size, width=size),
            A.ColorJitter(brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=(-0.2, 0.2), p=0.5),
            A.HorizontalFlip(p=0.5),
            *holes,
            A.Normalize(mean=const.IMAGENET_MEAN, std=const.IMAGENET_STD, max_pixel_value=255.0),
        ],
        strict=True,
        seed=seed,
    )


def val_transform(size: int = const.IMG_SIZE):
    """Resize and Normalize; nothing random."""
    A = albumentations()
    return A.Compose(
        [
            A.Resize(height=size, width=size),
            A.Normalize(mean=const.IMAGENET_MEAN, std=const.IMAGENET_STD, max_pixel_value=255.0),
        ],
        strict=True,
    )


def reseed(transform, seed: int) -> None:
    """Seed a Compose, every transform within it with a number of its own.

    `Compose.set_random_seed` hands the same seed to all of them, so that their first draws, which decide whether each
    is applied, would be one number: no picture mirrored but those with a hole.
    """
    transform.set_random_seed(seed)
    inner = [t for t in getattr(transform, "transforms", []) if hasattr(t, "set_random_seed")]
    for one, its_seed in zip(inner, np.random.SeedSequence(seed).generate_state(len(inner)).tolist(), strict=True):
        reseed(one, its_seed)


# --- Datasets -------------------------------------------------------------------------------------------------------
def _by_number(path: Path) -> tuple[int, str]:
    digits = path.name.split("_")[0].split(".")[0]
    return (int(digits), path.name) if digits.isdecimal() else (1 << 62, path.name)


def _pictures(folder: Path) -> list[Path]:
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder; prepare the data with `python data_preprocessing.py`.")
    found = [p for p in Path(folder).iterdir() if p.suffix.lower() in const.IMAGE_SUFFIXES and p.name[0] != "."]
    return sorted(found, key=_by_number)


def index_and_seed(key) -> tuple[int, int]:
    return key if isinstance(key, tuple) else (int(key), int(torch.randint(2**31, ())))


def to_tensor(array: np.ndarray) -> torch.Tensor:
    if array.ndim == 2:
        array = array[..., None]
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def read_ids(path: Path) -> frozenset[str]:
    """The ids of faces that a text file lists, separated by white space.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return frozenset(Path(path).read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a list of ids ({error}).") from None


class Celeb(Dataset):
    """Prepared faces with their masks, in the order of their ids.

    Args:
        image_dir, mask_dir: `images_*` and `masks_*` as data_preprocessing.py makes them.
        transform: an albumentations Compose that gets image and mask; without it the picture is only scaled to [0, 1],
            and the mask is enlarged to the picture's size.
        limit: use the first `limit` pairs only.
        cache: a size; pictures and masks are decoded once, scaled to size x size as the transform's first step would,
            and kept in memory that all loader processes share (4 bytes a pixel).

    Raises:
        DataError: no pictures, or a picture without its mask, or a mask without its picture.
    """

    def __init__(
        self, image_dir: Path, mask_dir: Path, transform=None, *, limit: int | None = None, cache: int | None = None
    ):
        images = _pictures(image_dir)
        masks = {p.name: p for p in _pictures(mask_dir)}
        missing = [p.name for p in images if f"{p.stem}_skin.png" not in masks]
        stems = {p.stem for p in images}
        missing += [name for name in masks if name.removesuffix("_skin.png") not in stems]
        if missing:
            raise DataError(
                f"{len(missing)} files of {image_dir} and {mask_dir} have no partner ({missing[0]} is the first); "
                "run `python data_preprocessing.py` again."
            )
        if not images:
            raise DataError(f"{image_dir} holds no pictures; prepare the data with `python data_preprocessing.py`.")
        self.pairs = [(p, masks[f"{p.stem}_skin.png"]) for p in images][:limit]
        self.transform = transform
        self._kept = self._filled(cache) if cache else None

    def __len__(self) -> int:
        return len(self.pairs)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture uint8 (H, W, 3) and mask uint8 (H, W), 0/1."""
        image_path, mask_path = self.pairs[index]
        image = read_known(image_path)
        mask = read_known(mask_path, grey=True)
        if mask.shape != image.shape[:2]:  # masks are 512x512, the official pictures 1024x1024
            mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        return image, (mask > 127).astype(np.uint8)

    def _filled(self, size: int) -> torch.Tensor:
        """All pictures with their masks as a fourth channel, uint8 (N, size, size, 4), in shared memory."""
        kept = torch.empty((len(self), size, size, 4), dtype=torch.uint8)
        try:
            kept.share_memory_()
        except RuntimeError:  # a container's /dev/shm is often 64 MB
            raise DataError(
                f"--cache needs {kept.nbytes / 1e6:.0f} MB of shared memory (/dev/shm), and there is less; train "
                "without it, or give the machine more."
            ) from None
        resize = val_transform(size).transforms[0]

        def fill(index: int) -> None:
            image, mask = self._read(index)
            scaled = resize(image=image, mask=mask)
            kept[index] = torch.from_numpy(np.dstack([scaled["image"], scaled["mask"]]))

        with ThreadPoolExecutor(usable_cores()) as pool:  # decoding lets go of the interpreter
            list(pool.map(fill, range(len(self))))
        return kept

    def __getitem__(self, key) -> tuple[torch.Tensor, torch.Tensor]:
        index, seed = index_and_seed(key)
        if self._kept is None:
            image, mask = self._read(index)
        else:
            both = self._kept[index].numpy()
            image, mask = np.ascontiguousarray(both[..., :3]), np.ascontiguousarray(both[..., 3])
        mask = mask.astype(np.float32)
        if self.transform is None:
            return to_tensor(image.astype(np.float32) / 255), to_tensor(mask)
        reseed(self.transform, seed)
        out = self.transform(image=image, mask=mask)
        return to_tensor(out["image"]), to_tensor(out["mask"])


class TestCeleb(Dataset):
    """The pictures of a folder, without masks, sorted: image float32 (3, H, W)."""

    __test__ = False  # pytest takes a name that begins with Test for its own

    def __init__(self, image_dir: Path, transform=None):
        self.paths = _pictures(image_dir)
        if not self.paths:
            raise DataError(f"{image_dir} holds no pictures.")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = read_known(self.paths[index])
        if self.transform is None:
            return to_tensor(image.astype(np.float32) / 255)
        return to_tensor(self.transform(image=image)["image"])


# --- Loading --------------------------------------------------------------------------------------------------------
class EpochSampler(Sampler):
    """Yields (index, seed) in an order and with seeds that depend on (seed, epoch) alone.

    Of several processes each gets its part of every group, so that together they see what one process would have seen.

    Args:
        length: pictures there are.
        size: pictures an epoch shows, in whole shuffled passes but for the last; `length` without it.
        group: how many pictures of an epoch one process takes for a step; what is left over at the end of an epoch,
            less than a step of all processes, is left out. 0: nothing is left out, every process takes its share.
        rank, processes: which of how many.
    """

    def __init__(
        self, length: int, *, seed: int, shuffle: bool, size: int | None = None, group: int = 1, rank=0, world_size=1
    ):
        self.length, self.seed, self.shuffle, self.epoch = length, seed, shuffle, 0
        self.size = size or length
        self.group, self.rank, self.world_size = group, rank, world_size

    def _shown(self) -> np.ndarray:
        """The places in the epoch's order that are this process's."""
        if self.group == 0:
            return np.arange(self.rank, self.size, self.world_size)
        steps = self.size // (self.group * self.world_size)
        return np.arange(steps * self.group * self.world_size).reshape(steps, self.world_size, -1)[:, self.rank].ravel()

    def __len__(self) -> int:
        return len(self._shown())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        passes = range(-(-self.size // self.length))
        order = np.concatenate([rng.permutation(self.length) if self.shuffle else np.arange(self.length)
                                for _ in passes])[: self.size]  # fmt: skip
        seeds = rng.integers(2**31, size=self.size)
        mine = self._shown()
        return iter(zip(order[mine].tolist(), seeds[mine].tolist(), strict=True))


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the worker processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches them too, but it is the run that ends them


def make_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    train: bool,
    workers: int = 0,
    seed: int = const.SEED,
    size: int | None = None,
    accumulate: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """A loader whose `sampler.epoch` is to be set before every epoch.

    A training loader shuffles and drops the last, smaller batch: batch normalisation after DeepLabV3's global pooling
    fails on a batch of one. Its length is a multiple of `accumulate`, the batches that make a step. Of several
    processes, each loads its share; see `EpochSampler`.
    """
    shard = {"group": batch_size * accumulate if train else 0, "rank": rank, "world_size": world_size}
    return DataLoader(
        dataset,
        batch_size,
        sampler=EpochSampler(len(dataset), seed=seed, shuffle=train, size=size, **shard),
        num_workers=workers,
        drop_last=train,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(seed),  # else each start of workers draws from dropout's generator
    )
