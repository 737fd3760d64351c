"""What a training run sees: the original's augmented faces, or the robust recipe's composed scenes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import const
import dataset
import devices
from common import usable_cores
from training import Config, TrainingError


def train_loader(
    config: Config, data: Path, *, workers: int, masks: Path | None = None, cache: bool = False, log=print
) -> Callable:
    """A function of the picture size that makes the training loader of `config.recipe`, of several processes this
    one's share.

    Args:
        data: prepared folders.
        workers: loader processes.
        masks: predicted masks of the faces in `config.unlabelled`, see `pseudo_label`.
        cache: keep the original recipe's pictures in memory, decoded.

    Raises:
        TrainingError: too few pictures, or a folder that is missing. DataError: pictures without their masks.
    """
    if config.recipe == "original":
        return _original(config, data, workers, cache)
    return _robust(config, data, workers, masks, log)


def _loader(config: Config, pictures, workers: int):
    shown = config.epoch_size or len(pictures)
    needed = config.batch_size * config.accumulate * devices.world_size()
    if shown < needed:
        kind = "a batch" if needed == config.batch_size else "an effective batch"
        raise TrainingError(f"{shown} pictures are less than {kind} of {needed}; give a smaller --batch-size.")
    return dataset.make_loader(
        pictures,
        config.batch_size,
        train=True,
        workers=workers,
        seed=config.seed,
        size=config.epoch_size,
        accumulate=config.accumulate,
        rank=devices.rank(),
        world_size=devices.world_size(),
    )


def _original(config: Config, data: Path, workers: int, cache: bool) -> Callable:
    def make(size: int):
        transform = dataset.train_transform(size, seed=config.seed, cutout=config.cutout)
        celeb = dataset.Celeb(
            data / "images_train", data / "masks_train", transform, limit=config.limit, cache=size if cache else None
        )
        return _loader(config, celeb, workers)

    return make


def _robust(config: Config, data: Path, workers: int, masks: Path | None, log) -> Callable:
    from robust import scenes

    if config.backgrounds is None:
        log("No --backgrounds: faces are pasted on drawn colours, and no photograph without a face is seen.")
    elif not Path(config.backgrounds).is_dir():
        raise TrainingError(f"There is no folder {config.backgrounds}.")
    if not (data / "persons_train").is_dir():
        log(f"No {data / 'persons_train'}: nobody is cut out; make it with `data_preprocessing.py --persons`.")
    sets = [(data / "images_train", data / "masks_train", data / "persons_train")]
    if masks is not None:  # the annotated faces twice, to keep their say
        sets += [*sets, (Path(config.unlabelled), masks, None)]
    faces = scenes.FaceStore(*zip(*sets, strict=True), limit=config.limit)
    if not len(faces):
        raise TrainingError(f"{data / 'masks_train'} holds no masks; run `python data_preprocessing.py` again.")
    photos = scenes.PhotoStore(scenes.find_backgrounds(config.backgrounds) if config.backgrounds else [])
    shares = {"single_face": config.single_face, "occlusion_p": config.occlusion_p, "glasses_p": config.glasses_p}
    composer = scenes.SceneComposer(faces, photos, **shares)

    def make(size: int):
        return _loader(config, dataset.Scenes(composer, size, repeat=config.repeat), workers)

    return make


def pseudo_label(segmenter, unlabelled: Path, masks: Path, *, log=print) -> Path:
    """Masks for aligned faces that have none, predicted and tidied; those already there are kept. Gives `masks`.

    One round of self-training (Xie et al. 2020, https://arxiv.org/abs/1911.04252).

    Raises:
        TrainingError: no pictures, or one that cannot be read.
    """
    from tqdm.auto import tqdm

    from common import write_bytes
    from drawing import encode
    from inference import find_jobs, predict_files, to_mask
    from regions import remove_small_components

    jobs = find_jobs([unlabelled], masks)
    if not jobs:
        raise TrainingError(f"{unlabelled} holds no pictures.")

    def write(job, _, logits):
        write_bytes(
            masks / f"{job.name}_mask.png", encode(remove_small_components(to_mask(logits, const.THRESHOLD)), ".png")
        )

    mine = jobs[devices.rank() :: devices.world_size()]
    todo = [job for job in mine if not (masks / f"{job.name}_mask.png").exists()]
    if todo:
        log(f"Predicting the masks of {len(todo)} faces")
    done = predict_files(segmenter, todo, batch_size=4, on_result=write)
    for _, fault in tqdm(done, total=len(todo), unit="face", disable=None):
        if fault:
            raise TrainingError(fault)
    devices.barrier()
    return masks


def usable_workers(given: int | None) -> int:
    """Loader processes: as asked, else up to four, one core being left to each training process of this machine."""
    if given is not None:
        return given
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(4, usable_cores() // local - 1))
