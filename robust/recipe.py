"""The robust recipe, which makes the bundled weights: occluded faces of all sizes on other backgrounds, and no faces.

    python main.py train --model lite --recipe robust --backgrounds DIR --occluders DIR

`recipe.sh` is the whole of it, in seven stages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import model as networks
from dataset import read_ids
from robust import scenes
from robust.photographed import OccluderStore
from training import Config, Original, TrainingError, is_on_cuda, train_loader


@dataclass
class RobustConfig(Config):
    """The original's settings with other defaults, and the recipe's own."""

    model: str = "lite"
    recipe: str = "robust"
    size: int = 192
    batch_size: int = 16
    epochs: int = 12
    lr: float = 1.5e-3
    ema: float = 0.998
    val_limit: int | None = 300
    weight_decay: float = 0.02
    encoder_lr: float = 0.4  # of the rate, for an encoder with ImageNet features
    progressive: list = field(default_factory=list)  # resizing: (fraction of the epochs, size)
    single_face: float = 0.6  # fraction of pictures with one large face; of the rest 0.7 scenes, 0.3 without a face
    occlusion_p: float = 0.5  # of a face, to be occluded
    glasses_p: float = 0.2  # of a face, to get drawn glasses
    init: str | None = None  # weights that the run starts from
    backgrounds: str | None = None  # a folder of photographs without faces
    occluders: str | None = None  # a folder of photographed occluders, see photographed.py
    exclude: str | None = None  # a file with the ids of faces to leave out, see label_noise.py

    @staticmethod
    def defaults(*, second: bool) -> dict:
        """The two stages: from ImageNet weights on small pictures; then, from weights, on larger ones in smaller
        steps."""
        if second:
            return {"size": 320, "epochs": 6, "lr": 8e-4, "single_face": 0.65, "progressive": [(0.0, 256), (0.5, 320)]}
        return {"progressive": [(0.0, 160), (0.33, 192)]}


def edge_bce_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """BCE that counts pixels near the contour four times, plus the Dice loss of each picture that shows a face, however
    small. Both (B, 1, H, W)."""
    band = F.max_pool2d(target, 5, 1, 2) + F.max_pool2d(-target, 5, 1, 2)  # 1 within two pixels of the contour
    weight = 1 + 3 * band
    loss = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum() / weight.sum()
    probability, t = logits.sigmoid().flatten(1), target.flatten(1)
    shown = t.sum(1) > 0
    if shown.any():
        inter, total = (probability * t).sum(1)[shown], (probability.sum(1) + t.sum(1))[shown]
        loss = loss + (1 - (2 * inter + 1) / (total + 1)).mean()
    return loss


class Robust:
    """See `training.Original`, whose members these are."""

    passes = 2
    fixed = (*Original.fixed, "epochs", "lr", "init")  # its schedule is drawn over the whole run
    loss = staticmethod(edge_bce_dice)

    @staticmethod
    def cost(row: dict) -> float:
        """By Dice: the BCE of wrongly labelled pixels grows while contours still improve."""
        return -row["dice"]

    def __init__(self, config: RobustConfig, data: Path, *, workers: int, log=print, **_):
        self.config, self.workers = config, workers
        for name in ("backgrounds", "occluders"):
            if (folder := getattr(config, name)) is not None and not Path(folder).is_dir():
                raise TrainingError(f"There is no folder {folder} (--{name}).")
        images, masks, persons = (data / f"{kind}_train" for kind in ("images", "masks", "persons"))
        if config.backgrounds is None:
            log("No --backgrounds: faces are pasted on drawn colours, and no photograph without a face is seen.")
        if config.occluders is None:
            log("No --occluders: what occludes a face is drawn, and photographed hands will be taken for faces.")
        exclude = read_ids(config.exclude) if config.exclude else frozenset()
        faces = scenes.FaceStore(images, masks, persons, limit=config.limit, exclude=exclude)
        if exclude:
            log(f"{faces.excluded} faces are left out, of {len(exclude)} that {config.exclude} lists.")
        if not len(faces):
            raise TrainingError(f"{config.exclude} lists every face of {images}.")
        if alone := sum(person is None for _, _, person in faces.entries):
            where = f"{alone} of {len(faces)} faces have no silhouette in {persons}"
            log(f"{where}, and are not cut out; make them with `data_preprocessing.py --persons`.")
        photos = scenes.PhotoStore(scenes.find_backgrounds(Path(config.backgrounds)) if config.backgrounds else [])
        if config.backgrounds and not photos.paths:
            raise TrainingError(f"{config.backgrounds} holds no photographs (--backgrounds).")
        store = OccluderStore(Path(config.occluders)) if config.occluders else None
        often = {name: getattr(config, name) for name in ("single_face", "occlusion_p", "glasses_p")}
        self.composer = scenes.SceneComposer(faces, photos, store, **often)

    def network(self) -> nn.Module:
        if self.config.init is None:
            return networks.build(self.config.model, pretrained=self.config.pretrained)
        net, info = networks.load(networks.find_weights(self.config.init))
        if info.model != self.config.model:
            raise TrainingError(f"{self.config.init} holds another network than {self.config.model}.")
        return net

    def size_at(self, epoch: int) -> int:
        """The picture size of an epoch: progressive resizing, small pictures first."""
        c = self.config
        return [c.size, *(size for fraction, size in c.progressive if epoch >= fraction * c.epochs)][-1]

    def loader(self, size: int):
        return train_loader(scenes.Scenes(self.composer, size), self.config, self.workers)

    def optimizer(self, net: nn.Module, steps: int):
        """AdamW without decay of batch norm and biases; one cycle of the rate (Smith and Topin 2018,
        https://arxiv.org/abs/1708.07120)."""
        c = self.config
        slow = {id(p) for p in net.encoder.parameters()} if hasattr(net, "encoder") else set()
        groups = []
        for is_matrix, is_encoder in product((True, False), (False, True)):
            params = [p for p in net.parameters() if (p.ndim > 1) == is_matrix and (id(p) in slow) == is_encoder]
            decay, rate = c.weight_decay if is_matrix else 0.0, c.lr * (c.encoder_lr if is_encoder else 1.0)
            groups += [{"params": params, "weight_decay": decay, "lr": rate}] if params else []
        optimizer = torch.optim.AdamW(groups, lr=c.lr, fused=is_on_cuda(net))
        warm = 0.1001 if c.init is None else 0.03  # 0.1 of ten steps is one, where OneCycleLR divides by zero
        return optimizer, OneCycleLR(optimizer, [g["lr"] for g in groups], total_steps=steps, pct_start=warm)
