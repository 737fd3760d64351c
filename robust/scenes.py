"""Pictures of known target: faces at every size and place, on other backgrounds, occluded, or no face at all.

A network trained on CelebAMask-HQ alone calls face whatever stands in the middle. `Scenes` composes pictures of the
prepared faces, the people cut out along their annotated parts (`persons_*`) and photographs without faces (copy-paste:
Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

import const
from dataset import Celeb, albumentations, index_and_seed, reseed, to_tensor
from pictures import read_known
from robust import occluders, photographed
from robust.occluders import FACE_CENTRE, FACE_WIDTH, SIZE, blank
from robust.photographed import Recent


@dataclass(frozen=True)
class Face:
    image: np.ndarray  # uint8 (512, 512, 3), RGB
    mask: np.ndarray  # uint8 (512, 512), 0/255: the visible face
    person: np.ndarray | None  # uint8 (512, 512), 0/255: everything of the person; None where not annotated

    nbytes = 5 * SIZE * SIZE  # at most

    def outline(self) -> np.ndarray:
        """The person, or the whole picture where nobody is annotated."""
        return 255 - blank() if self.person is None else self.person

    def softened(self) -> Face:
        return replace(self, person=cv2.GaussianBlur(self.person, (0, 0), 1.5))


class FaceStore:
    """Prepared faces of three folders by index, without the ids in `exclude`; kept as `Recent` (1.3 MB each)."""

    def __init__(self, images: Path, masks: Path, persons: Path | None = None, *, limit=None, exclude=frozenset()):
        entries: list[tuple[Path, Path, Path | None]] = []
        self.excluded = 0
        for image, mask in Celeb(images, masks).pairs:
            person = persons and persons / f"{image.stem}_person.png"
            if image.stem in exclude:
                self.excluded += 1
            else:
                entries.append((image, mask, person if person and person.exists() else None))
        self.entries = entries[:limit]
        self._recent = Recent(3 * 2**30)  # by the mask's path: a face may be listed more than once

    def __len__(self) -> int:
        return len(self.entries)

    def draw(self, rng: np.random.Generator) -> Face:
        return self[int(rng.integers(len(self)))]

    def __getitem__(self, index: int) -> Face:
        image, mask, person = self.entries[index]
        return self._recent.get(mask, lambda: Face(_read(image), *(p and _read(p, mask=True) for p in (mask, person))))


def _read(path: Path, *, mask: bool = False) -> np.ndarray:
    picture = read_known(path, grey=mask)
    if mask:
        return np.where(cv2.resize(picture, (SIZE, SIZE)) > 127, np.uint8(255), np.uint8(0))
    shrink = picture.shape[0] > SIZE
    return cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def find_backgrounds(folder: Path, *, held_out: bool = False) -> list[Path]:
    """Photographs without faces; every fifth, in name order, is held out of training for measuring."""
    paths = sorted(p for p in Path(folder).rglob("[!.]*") if p.suffix.lower() in const.IMAGE_SUFFIXES)
    return [p for i, p in enumerate(paths) if (i % 5 == 4) == held_out]


class PhotoStore:
    """Photographs by random choice, kept as `Recent`; drawn colours where there are none."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self._recent = Recent(2**30)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        if not self.paths:
            return occluders.flat(rng)
        path = self.paths[int(rng.integers(len(self.paths)))]
        return self._recent.get(path, lambda: read_known(path))


# --- Geometry -------------------------------------------------------------------------------------------------------
def similarity(face_width: float, degrees: float, centre, *, flip=False, stretch=1.0) -> np.ndarray:
    """The 2x3 matrix that takes the aligned 512x512 square to a canvas on which the face oval is `face_width` pixels
    wide, turned by `degrees`, with its centre at `centre` (x, y)."""
    rotation = occluders.rotation(np.radians(degrees))
    linear = face_width / FACE_WIDTH * rotation @ np.diag([(-1.0 if flip else 1.0) * stretch, 1.0 / stretch])
    offset = np.asarray(centre) - linear @ np.asarray(FACE_CENTRE, float)
    return np.column_stack([linear, offset]).astype(np.float32)


def warp(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border=cv2.BORDER_CONSTANT) -> np.ndarray:
    """warpAffine to (height, width) without aliasing: the picture is halved first while it shrinks by more than two."""
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    matrix = matrix.copy()
    while scale < 0.5:
        picture = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        matrix[:, 2] += matrix[:, :2] @ np.array([0.5, 0.5], np.float32)  # pixel centres: x = 2 x' + 0.5
        matrix[:, :2] *= 2
        scale *= 2
    return cv2.warpAffine(picture, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=border)


def background(rng: np.random.Generator, photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A random part of a photograph at (height, width), mirrored at random; uint8 (H, W, 3)."""
    h, w = photo.shape[:2]
    aspect = size[1] / size[0]
    ch = max(1, int(min(h, w / aspect) * rng.uniform(0.4, 1.0) ** 0.7))
    cw = max(1, min(w, int(ch * aspect)))
    y, x = int(rng.integers(0, h - ch + 1)), int(rng.integers(0, w - cw + 1))
    part = photo[y : y + ch, x : x + cw]
    part = cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA if ch > size[0] else cv2.INTER_LINEAR)
    return np.ascontiguousarray(part[:, ::-1]) if rng.random() < 0.5 else part


def paste(canvas, target, face: Face, matrix) -> tuple[np.ndarray, np.ndarray]:
    """Lay a warped person over a canvas: target is 0 under it, the face's own mask where it shows."""
    size = target.shape
    image, mask = warp(face.image, matrix, size, cv2.BORDER_REPLICATE), warp(face.mask, matrix, size)
    opacity = warp(face.person, matrix, size)
    canvas = occluders.blend(image, canvas, opacity.astype(np.float32) / 255)
    return canvas, np.where(opacity > 127, mask, target)


def with_body(face: Face, cloth: np.ndarray | None = None) -> Face:
    """The person prolonged by 512 rows like the last, so that it does not float as a bust; `cloth` uint8 (512, 512, 3)
    fills them."""
    image = cv2.copyMakeBorder(face.image, 0, SIZE, 0, 0, cv2.BORDER_REPLICATE)
    if cloth is not None:
        blend = np.clip(np.arange(SIZE, dtype=np.float32) / 40, 0, 1)[:, None].repeat(SIZE, 1)
        image[SIZE:] = occluders.blend(cloth, image[SIZE:], blend)
    person = cv2.copyMakeBorder(face.person, 0, SIZE, 0, 0, cv2.BORDER_REPLICATE)
    return Face(image, np.vstack([face.mask, blank()]), person)


# --- Scenes ---------------------------------------------------------------------------------------------------------
class SceneComposer:
    """Draws training pictures: `compose(rng, index, size)` -> (image uint8 (S, S, 3), target uint8 (S, S) 0/255)."""

    def __init__(
        self, faces: FaceStore, photos: PhotoStore, store=None, *, single_face=0.6, occlusion_p=0.5, glasses_p=0.2
    ):
        self.faces, self.photos, self.occluders = faces, photos, store  # the last an OccluderStore, or None
        self.single_face, self.occlusion_p, self.glasses_p = single_face, occlusion_p, glasses_p

    def photo(self, rng: np.random.Generator) -> np.ndarray:
        """A photograph without faces; one in five in shades of somebody's skin, which alone makes no face."""
        photo = self.photos.draw(rng)
        if rng.random() >= 0.2:
            return photo
        face = self.faces.draw(rng)
        color = occluders.skin_color(rng, face.image, face.mask).astype(np.float32)
        grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
        light = 1 + rng.uniform(0.3, 1.0) * (grey / max(grey.mean(), 1) - 1)
        return (light[..., None] * color).clip(0, 255).astype(np.uint8)

    def compose(self, rng: np.random.Generator, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        kind = rng.random()
        if kind < self.single_face:
            return self.single_face_picture(rng, index, size)
        if kind < self.single_face + 0.7 * (1 - self.single_face):
            return self.scene(rng, index, size)
        return self.empty(rng, index, size)

    def occluded(self, rng: np.random.Generator, index: int, *, cut: bool) -> Face:
        """A face, occluded or not, cut out with its occluders, or with all of its picture."""
        face = self.faces[index]
        image, mask, alpha = face.image, face.mask, face.outline() if cut else 255 - blank()
        bare_eyes = all(mask[y, x] for x, y in occluders.EYES)
        kinds = ["glasses"] if bare_eyes and rng.random() < self.glasses_p else []
        if rng.random() < self.occlusion_p:
            kinds += [None] * (1 if rng.random() < 0.75 else 2)
        for kind in kinds:
            if kind is None and self.occluders is not None and rng.random() < 0.65:
                image, mask, opacity = photographed.lay(rng, image, mask, self.occluders, self._texture(rng))
            else:
                other = self.faces.draw(rng)
                image, mask, opacity = occluders.draw_occluder(
                    rng, image, mask, photo=self._texture(rng), other=(other.image, other.mask), kind=kind
                )
            alpha = np.maximum(alpha, opacity)
        return Face(image, mask, alpha)

    def _texture(self, rng: np.random.Generator) -> np.ndarray:
        """A photograph, or the part of another person's picture that shows no face (hair, cloth, background)."""
        if self.occluders is not None and rng.random() < 0.25:
            return self.occluders.draw(rng, "textures")
        patch = self.faceless_patch(rng) if rng.random() >= 0.6 else None
        return self.photo(rng) if patch is None else patch

    def faceless_patch(self, rng: np.random.Generator) -> np.ndarray | None:
        face = self.faces.draw(rng)
        for _ in range(6):
            side = int(rng.integers(90, 220))
            y, x = int(rng.integers(0, SIZE - side)), int(rng.integers(0, SIZE - side))
            box = np.s_[y : y + side, x : x + side]
            if not face.mask[box].any():
                return face.image[box]
        return None

    def single_face_picture(self, rng: np.random.Generator, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """One face large in the picture, as in CelebAMask-HQ and in the fine pass of prediction."""
        swap = self.faces[index].person is not None and rng.random() < 0.3
        face = self.occluded(rng, index, cut=swap)
        width, degrees, centre = size * rng.uniform(0.34, 0.80), _roll(rng, 10), size * (0.5 + rng.normal(0, 0.07, 2))
        matrix = similarity(width, degrees, centre, flip=rng.random() < 0.5, stretch=rng.uniform(0.92, 1.08))
        border = rng.random()
        if not swap and border < 0.35:  # the picture reflected beyond its edge, the target with it
            both = face.image, face.mask
            return tuple(warp(part, matrix, (size, size), cv2.BORDER_REFLECT_101) for part in both)
        if border < 0.55:
            color = rng.uniform(0, 255, 3) if rng.random() < 0.5 else np.full(3, rng.choice([0, 255, 128]))
            canvas = np.full((size, size, 3), color.astype(np.uint8))
        else:
            canvas = background(rng, self.photo(rng), (size, size))
        return paste(canvas, np.zeros((size, size), np.uint8), face, matrix)

    def scene(self, rng: np.random.Generator, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """One to four people, faces from 3 to 50 % of the width, anywhere, over one another; here and there a hand."""
        canvas, target = background(rng, self.photo(rng), (size, size)), np.zeros((size, size), np.uint8)
        if self.faces.entries[index][2] is None and rng.random() < 0.7:  # one who can be cut out, rather
            index = int(rng.integers(len(self.faces)))
        people = [index, *rng.integers(len(self.faces), size=int(rng.choice([0, 1, 2, 3], p=[0.4, 0.3, 0.2, 0.1])))]
        widths = np.sort(size * np.exp(rng.uniform(np.log(0.03), np.log(0.5), len(people))))  # the near ones last
        for who, width in zip(people, widths, strict=True):
            canvas, target = self.add_person(rng, canvas, target, int(who), width)
        if rng.random() < 0.3:
            canvas, target = self.add_hand(rng, canvas, target, int(people[-1]), widths[-1] * rng.uniform(0.7, 1.3))
        return canvas, target

    def add_hand(self, rng, canvas, target, index: int, width: float) -> tuple[np.ndarray, np.ndarray]:
        """A hand, drawn or photographed, anywhere in the picture, as large as a face `width` pixels wide asks."""
        face = self.faces[index]
        if self.occluders is not None and rng.random() < 0.75:
            layer = photographed.lone_hand(rng, self.occluders, face.image, face.mask)
            picture, alpha = layer[..., :3], layer[..., 3].astype(np.float32) / 255
        else:
            picture, alpha = occluders.hand(rng, occluders.skin_color(rng, face.image, face.mask))
        matrix = similarity(width, rng.uniform(0, 360), rng.uniform(0.05, 0.95, 2) * target.shape[::-1])
        return paste(canvas, target, Face(picture, blank(), (alpha * 255).astype(np.uint8)), matrix)

    def add_person(self, rng, canvas, target, index: int, width: float) -> tuple[np.ndarray, np.ndarray]:
        cut = self.faces[index].person is not None and rng.random() < 0.8
        face = self.occluded(rng, index, cut=cut)
        if rng.random() < 0.7:  # another lamp: a gain for each channel
            gain = rng.uniform(0.6, 1.3) * rng.uniform(0.9, 1.1, 3)
            table = (np.arange(256)[:, None] * gain).clip(0, 255).astype(np.uint8)
            face = replace(face, image=cv2.LUT(face.image, table[None]))
        if cut and rng.random() < 0.6:
            cloth = occluders.photo_patch(rng, self._texture(rng)) if rng.random() < 0.6 else None
            face = with_body(face, cloth)
        degrees, centre = _roll(rng, 8), rng.uniform(-0.02, 1.02, 2) * target.shape[::-1]
        matrix = similarity(width, degrees, centre, flip=rng.random() < 0.5)
        return paste(canvas, target, face.softened() if cut else face, matrix)

    def photograph(self, rng, people: list[int], size, widths) -> tuple[np.ndarray, np.ndarray]:
        """A test picture at (height, width): these people side by side, cut out, their faces `widths` (from, to) of the
        picture's; (image, target)."""
        canvas, target = background(rng, self.photos.draw(rng), size), np.zeros(size, np.uint8)
        fractions = np.sort(np.exp(rng.uniform(*np.log(widths), len(people))))
        for who, part, column in zip(people, fractions, rng.permutation(len(people)), strict=True):
            x, y = (column + rng.uniform(0.3, 0.7)) / len(people) * size[1], rng.uniform(0.25, 0.7) * size[0]
            matrix = similarity(part * size[1], rng.normal(0, 6), (x, y), flip=rng.random() < 0.5)
            canvas, target = paste(canvas, target, with_body(self.faces[who]).softened(), matrix)
        return canvas, target

    def empty(self, rng: np.random.Generator, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """No face: a photograph, a patch of hair or cloth, or people whose face is wholly hidden."""
        nothing = np.zeros((size, size), np.uint8)
        kind = rng.random()
        canvas = background(rng, self.photo(rng), (size, size))
        if kind < 0.62:
            turns = int(rng.integers(1, 4)) if rng.random() < 0.25 else 0
            return np.ascontiguousarray(np.rot90(canvas, turns)), nothing
        if kind < 0.75:
            patch = self.faceless_patch(rng)
            return canvas if patch is None else cv2.resize(patch, (size, size)), nothing
        if kind < 0.85:
            return self.add_hand(rng, canvas, nothing, index, size * rng.uniform(0.2, 0.9))
        face = self.faces[index]  # hair, ears, neck, clothes: no face
        hidden = cv2.dilate(face.mask, np.ones((15, 15), np.uint8))
        hidden = cv2.GaussianBlur(cv2.morphologyEx(hidden, cv2.MORPH_CLOSE, np.ones((61, 61), np.uint8)), (0, 0), 3)
        texture = occluders.photo_patch(rng, self._texture(rng)) if rng.random() < 0.6 else occluders.flat(rng)
        image = occluders.blend(texture, face.image, hidden.astype(np.float32) / 255)
        matrix = similarity(size * rng.uniform(0.1, 0.7), rng.normal(0, 10), rng.uniform(0.2, 0.8, 2) * size)
        return paste(canvas, nothing, Face(image, blank(), face.outline()), matrix)


def _roll(rng: np.random.Generator, spread: float) -> float:
    """Degrees: mostly upright, a fifth up to 70, one in fourteen at any angle."""
    kind = rng.random()
    if kind < 0.73:
        return rng.normal(0, spread)
    return rng.uniform(-70, 70) if kind < 0.93 else rng.uniform(-180, 180)


# --- The dataset ----------------------------------------------------------------------------------------------------
def photo_transform():
    """What cameras, lamps and file formats do to a photograph: light, colour, blur, grain, small size, compression."""
    A = albumentations()
    enlarge = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}
    unsharp = [
        A.GaussianBlur(sigma_limit=(0.4, 2.2), blur_limit=0, p=1.0),
        A.MotionBlur(blur_limit=(3, 9), p=1.0),
        A.Downscale(scale_range=(0.2, 0.6), interpolation_pair=enlarge, p=1.0),
    ]
    transforms = [
        A.RandomBrightnessContrast(brightness_limit=(-0.4, 0.35), contrast_limit=(-0.4, 0.4), p=0.5),
        A.RandomGamma(gamma_limit=(40, 220), p=0.3),
        A.HueSaturationValue(hue_shift_limit=(-25, 25), sat_shift_limit=(-60, 50), val_shift_limit=(-20, 20), p=0.35),
        A.RGBShift(r_shift_limit=(-25, 25), g_shift_limit=(-25, 25), b_shift_limit=(-25, 25), p=0.2),
        A.ToGray(p=0.12),
        A.OneOf(unsharp, p=0.25),
        A.GaussNoise(std_range=(0.01, 0.08), p=0.15),
        A.ImageCompression(compression_type="jpeg", quality_range=(12, 80), p=0.25),
    ]
    return A.Compose(transforms, strict=True, seed=const.SEED)


def normalize(image: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) RGB to float32, with the ImageNet mean and deviation."""
    mean, std = np.float32(const.IMAGENET_MEAN), np.float32(const.IMAGENET_STD)
    return image * (1 / (255 * std)) - mean / std


class Scenes(Dataset):
    """The robust recipe's pictures: `SceneComposer`, then `photo_transform`, at size x size pixels."""

    def __init__(self, composer: SceneComposer, size: int):
        self.pairs = composer.faces.entries
        self.composer, self.size, self.photo = composer, size, photo_transform()

    def __len__(self) -> int:
        return len(self.composer.faces)

    def __getitem__(self, key) -> tuple[torch.Tensor, torch.Tensor]:
        index, seed = index_and_seed(key)
        image, target = self.composer.compose(np.random.default_rng(seed), index, self.size)
        reseed(self.photo, seed)
        image = self.photo(image=image)["image"]
        return to_tensor(normalize(image)), to_tensor(target.astype(np.float32) / 255)
