"""Photographed occluders pasted plainly over faces, for measuring.

The robust recipe lays its occluders with light, shadow and blur of its own (robust/photographed.py). A network may
learn the traces of that, and measuring by the same code would flatter it. Here a held-out cut-out is scaled to the
face, placed, and softened at its edge by a pixel; half of the hands get the mean colour of the face.
"""

from collections.abc import Iterator

import cv2
import numpy as np

from robust.photographed import OccluderStore

SEED = 11


def wrist_down(cut: np.ndarray) -> np.ndarray:
    """A hand's cut-out, turned by quarters until the side that it was cut off at is below, and prolonged there."""
    alpha = cut[..., 3] > 127
    sides = [alpha[-1], alpha[:, 0], alpha[0], alpha[:, -1]]  # below, left, above, right: counter-clockwise turns
    cut = np.rot90(cut, int(np.argmax([side.sum() for side in sides])))
    h = cut.shape[0]
    cut = np.pad(cut, ((0, 4 * h), (0, 0), (0, 0)), mode="edge")
    if (wrist := cut[h, :, 3] > 127).any():
        cut[h:, :, :3] = cut[h, wrist, :3].mean(0)  # a forearm or sleeve of one colour
    return cut


def paste(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, cut: np.ndarray, kind: str) -> tuple:
    """Paste a cut-out uint8 (h, w, 4), RGBA, over the face of an image uint8 (H, W, 3) and mask uint8 (H, W), 0/255:
    (the image, the smaller mask, boolean (H, W) what of the face is hidden)."""
    x, y, w, h = cv2.boundingRect(mask)
    height, width = cut.shape[:2]
    if kind == "hands":  # from below, or from either side; its middle is somewhere on the face
        cut = wrist_down(cut)
        height, width = cut.shape[0] // 5, cut.shape[1]
        scale = h * rng.uniform(0.5, 1.0) / height
        degrees = rng.choice([0, 0, 90, -90]) + rng.normal(0, 15)
        across, along = rng.uniform(0.15, 0.85), rng.uniform(0.35, 0.95)
        if rng.random() < 0.5:
            hand = cut[:height]
            shift = image[mask > 127].mean(0) - hand[hand[..., 3] > 127][:, :3].mean(0)
            cut = np.dstack([(cut[..., :3] + shift).clip(0, 255).astype(np.uint8), cut[..., 3]])
    elif kind == "masks":  # over nose and mouth
        scale, degrees = w * rng.uniform(0.9, 1.05) / width, rng.normal(0, 3)
        across, along = 0.5 + rng.normal(0, 0.02), 0.75 + rng.normal(0, 0.03)
    else:
        scale, degrees = w * rng.uniform(0.4, 0.9) / max(height, width), rng.normal(0, 20)
        across, along = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, scale)  # about the cut-out's middle
    matrix[:, 2] += (x + across * w - width / 2, y + along * h - height / 2)
    layer = cv2.warpAffine(cut, matrix, image.shape[1::-1], flags=cv2.INTER_AREA)
    alpha = cv2.GaussianBlur(cv2.erode(layer[..., 3], np.ones((3, 3), np.uint8)), (0, 0), 1)[..., None] / 255
    occluder = alpha[..., 0] > 0.5
    pasted = (layer[..., :3] * alpha + image * (1 - alpha)).round().astype(np.uint8)
    return pasted, np.where(occluder, 0, mask).astype(np.uint8), occluder & (mask > 127)


def pasted_faces(faces, store: OccluderStore, kind: str) -> Iterator[tuple]:
    """Every face of a `FaceStore` once with an occluder of the store: see `paste` for what each item is."""
    for i in range(len(faces)):
        rng = np.random.default_rng((SEED, i))
        yield paste(rng, faces[i].image, faces[i].mask, store.draw(rng, kind), kind)
