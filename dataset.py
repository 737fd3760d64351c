"""Datasets, transforms and the loader.

An item is asked for by (index, seed), as `EpochSampler` does, and is a function of the two alone: an epoch is the same
whatever the number of worker processes, and in a resumed run. With a bare index the seed comes from torch's generator,
which a DataLoader seeds differently in every epoch and worker.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

import const
import devices
from common import usable_cores
from data_preprocessing import DataError
from pictures import read_known


# --- Transforms -----------------------------------------------------------------------------------------------------
def albumentations():
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks a package index for its version
    import albumentations as A

    return A


def train_transform(size: int = const.IMG_SIZE, *, seed: int | None = const.SEED, cutout: str = "image+mask"):
    """The original's augmentation, every argument that matters by its name in albumentations 2. With `cutout` "none"
    without CoarseDropout; with "image-only" as the original's code comes out under albumentations 2: one or two small
    black holes, of which the mask knows nothing. Raises ValueError: an argument that albumentations does not know."""
    A = albumentations()
    size_range = {"hole_height_range": const.HOLE_HEIGHT, "hole_width_range": const.HOLE_WIDTH}
    hole = {"num_holes_range": (1, 1), **size_range, "fill": const.HOLE_FILL, "fill_mask": 0}
    holes = {"image+mask": [hole], "none": [], "image-only": [{}]}[cutout]
    random = [
        A.ColorJitter(brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=(-0.2, 0.2), p=0.5),
        A.HorizontalFlip(p=0.5),
        *(A.CoarseDropout(p=const.HOLE_P, **options) for options in holes),
    ]
    return val_transform(size, random, seed)


def val_transform(size: int = const.IMG_SIZE, random: Sequence = (), seed: int | None = None):
    """Resize and Normalize, and what is `random` between them."""
    A = albumentations()
    normalize = A.Normalize(mean=const.IMAGENET_MEAN, std=const.IMAGENET_STD)
    # the default, INTER_NEAREST, would move masks by up to half a pixel
    resize = A.Resize(height=size, width=size, mask_interpolation=cv2.INTER_NEAREST_EXACT)
    return A.Compose([resize, *random, normalize], strict=True, seed=seed)


def reseed(transform, seed: int) -> None:
    """Seed a Compose, every transform within it with a number of its own: `Compose.set_random_seed` hands the same seed
    to all, and one number would decide which of them are applied: no picture mirrored but those with a hole."""
    transform.set_random_seed(seed)
    inner = [t for t in getattr(transform, "transforms", []) if hasattr(t, "set_random_seed")]
    for one, its_seed in zip(inner, np.random.SeedSequence(seed).generate_state(len(inner)).tolist(), strict=True):
        reseed(one, its_seed)


# --- Datasets -------------------------------------------------------------------------------------------------------
def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; prepare the data with `python data_preprocessing.py`.")
    found = [p for p in folder.iterdir() if p.suffix.lower() in const.IMAGE_SUFFIXES and p.name[0] != "."]
    return sorted(found, key=lambda path: path.stem.zfill(24))  # by number


def index_and_seed(key) -> tuple[int, int]:
    return key if isinstance(key, tuple) else (int(key), int(torch.randint(2**31, ())))


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """(H, W, C) or (H, W) to (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(array).transpose(2, 0, 1)))


def read_ids(path: Path) -> frozenset[str]:
    """The ids of faces that a text file lists, separated by white space; a # begins a comment. Raises DataError: it
    cannot be read."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        return frozenset(name for line in lines for name in line.partition("#")[0].split())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a list of ids ({error}).") from None


class Celeb(Dataset):
    """Prepared faces, in the order of their ids: image float32 (3, H, W), mask float32 (1, H, W) in {0, 1}. Raises
    DataError: no pictures, or one without its partner.

    Args:
        image_dir, mask_dir: `images_*` and `masks_*` as data_preprocessing.py makes them.
        transform: an albumentations Compose; without it the picture is only scaled to [0, 1].
        limit: use the first `limit` pairs only.
        cache: a size; pictures and masks are decoded once, scaled to it as the transform's first step would, and kept
            in memory that all loader processes share (4 bytes a pixel).
    """

    def __init__(self, image_dir: Path, mask_dir: Path, transform=None, *, limit=None, cache: int | None = None):
        paths = _pictures(image_dir)
        images = {f"{path.stem}_skin.png": path for path in paths}
        if len(images) < len(paths):
            raise DataError(f"Two pictures of {image_dir} differ only in the suffix, and have one mask; remove one.")
        masks = {path.name: path for path in _pictures(mask_dir)}
        if alone := sorted(images.keys() ^ masks.keys()):
            which = f"{len(alone)} files of {image_dir} and {mask_dir} ({(images | masks)[alone[0]].name} is the first)"
            raise DataError(f"{which} have no partner; run `python data_preprocessing.py` again.")
        if not images:
            raise DataError(f"{image_dir} holds no pictures; prepare the data with `python data_preprocessing.py`.")
        self.pairs = [(image, masks[name]) for name, image in images.items()][:limit]
        self.transform = transform
        self._kept = self._filled(cache) if cache else None

    def __len__(self) -> int:
        return len(self.pairs)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture uint8 (H, W, 3) and mask uint8 (H, W), 0/1."""
        image, mask = read_known(self.pairs[index][0]), read_known(self.pairs[index][1], grey=True)
        if mask.shape != image.shape[:2]:  # masks are 512x512, the official pictures 1024x1024
            mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return image, (mask > 127).astype(np.uint8)

    def _filled(self, size: int) -> torch.Tensor:
        """All pictures, their masks as a fourth channel, uint8 (N, size, size, 4), in shared memory."""
        kept = torch.empty((len(self), size, size, 4), dtype=torch.uint8)
        try:
            kept.share_memory_()
        except RuntimeError:  # a container's /dev/shm is often 64 MB
            need = f"{kept.nbytes / 1e6:.0f} MB of shared memory (/dev/shm)"
            raise DataError(f"--cache needs {need}, and there is less; train without it.") from None
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
            image, mask = np.ascontiguousarray(both[..., :3]), both[..., 3]
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
        self.paths, self.transform = _pictures(image_dir), transform
        if not self.paths:
            raise DataError(f"{image_dir} holds no pictures.")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = read_known(self.paths[index])
        return to_tensor(self.transform(image=image)["image"] if self.transform else image.astype(np.float32) / 255)


# --- Loading --------------------------------------------------------------------------------------------------------
class EpochSampler(Sampler):
    """Yields (index, seed) in an order and with seeds that depend on (seed, epoch) alone: of `length` pictures `size`
    an epoch (all without it), in whole passes but for the last. Processes together see what one would have seen: each
    takes `group` for a step, and what is less than a step of all is left out; with 0 nothing is."""

    def __init__(self, length: int, *, seed: int, shuffle: bool, size=None, group=1, rank=0, world_size=1):
        self.length, self.seed, self.shuffle, self.epoch, self.size = length, seed, shuffle, 0, size or length
        self.group, self.rank, self.world_size = group, rank, world_size

    def _shown(self) -> np.ndarray:
        """The places in the epoch's order that are this process's."""
        left_out = self.size % (self.group * self.world_size) if self.group else 0
        places = np.arange(self.size - left_out)
        return places[places // max(1, self.group) % self.world_size == self.rank]

    def __len__(self) -> int:
        return len(self._shown())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = np.arange(self.length)
        passes = [rng.permutation(order) if self.shuffle else order for _ in range(-(-self.size // self.length))]
        mine, seeds = self._shown(), rng.integers(2**31, size=self.size)
        return iter(zip(np.concatenate(passes)[mine].tolist(), seeds[mine].tolist(), strict=True))


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the worker processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches them too, but it is the run that ends them


def make_loader(dataset, batch_size: int, *, train, workers=0, seed=const.SEED, size=None, accumulate=1) -> DataLoader:
    """A loader of this process's part, whose `sampler.epoch` is to be set before every epoch. For training it shuffles,
    and drops what is less than a step of `accumulate` batches: DeepLabV3's batch normalisation fails on a batch of one.
    """
    group = batch_size * accumulate if train else 0
    shard = {"group": group, "rank": devices.rank(), "world_size": devices.world_size()}
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
