"""A segmenter: pictures in, logits and masks of their size out, in one pass of the network or two.

One pass sees the whole picture scaled to the network's size, aspect kept. With two passes, coarse to fine, the first
finds the faces in the whole picture, and the second segments each of them again, enlarged to fill its square.
"""

from __future__ import annotations

import copy
import os
import threading
from itertools import pairwise

import cv2
import numpy as np
import torch

import const
import devices
from common import UserError
from drawing import find_boxes, scaled
from model import Info

FINE_MARGIN = 1.5  # side of the fine pass's square, in longer sides of the face's box
NEAR = 2.5  # a fine pass that enlarges less than this sees no more than the coarse one: the two are averaged
COARSE_THRESHOLD = 0.25  # probability in the coarse pass from which a region gets a fine pass
# The confidence of a region is the mean probability of the more probable half of its pixels. `Info.confidence` is
# that of a face in the open (0.985 for the bundled weights); that of one that is mostly occluded, or of a part, may be
# as low as this.
MIN_CONFIDENCE = Info.confidence

if hasattr(os, "register_at_fork"):  # a forked process would wait for ever for its parent's OpenMP threads
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def fused(net: torch.nn.Module) -> torch.nn.Module:
    """A copy of a network in evaluation mode whose batch normalisations are part of the convolutions before them; a
    network without any as it is."""
    if not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules()):
        return net
    net = copy.deepcopy(net)
    for parent in net.modules():
        for (name, conv), (next_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                setattr(parent, name, torch.nn.utils.fuse_conv_bn_eval(conv, norm))
                setattr(parent, next_name, torch.nn.Identity())
    return net


def normalized(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W), channels last, by ImageNet's mean and deviation."""
    mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) * 255 for v in
                 (const.IMAGENET_MEAN, const.IMAGENET_STD))  # fmt: skip
    return (pictures.permute(0, 3, 1, 2) - mean) / std


class TorchBackend:
    """Computes logits with a fused copy of the network: uint8 (N, H, W, 3) -> float32 (N, H, W). `precision` is what it
    computes in; 16 bits take half of the time for the small model, and change Dice by 0.0002 at most."""

    name = "torch"

    def __init__(self, net: torch.nn.Module, device: torch.device, precision: str = "auto"):
        self.device, self._net = device, fused(net)
        if self._net is net:  # the caller's own, which stays as it is
            precision = "fp32"
        self.precision = devices.fastest_precision(device) if precision == "auto" else precision
        self._dtype = devices.DTYPES[self.precision]
        self._net.to(self._dtype)

    @torch.inference_mode()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        x = normalized(torch.from_numpy(pictures).to(self.device))
        return self._net(x.to(self._dtype))[:, 0].float().cpu().numpy()


class Segmenter:
    """A network of model.py ready to predict. `net` stays as it was given; its `backend` computes.

    Args:
        flip: average with the mirrored picture; twice the time, a little more accurate.
        passes: 1 or 2; as the weights say without it.
        precision: "fp32", "bf16" or "fp16"; "auto" is the fastest of the device.
        backend: what computes in place of `TorchBackend`; may be called by several threads at once.
        log: told when fp16 overflows, which some cards always do, and fp32 takes over.
    """

    def __init__(
        self, net, info: Info, device="cpu", *, flip=False, passes=None, precision="auto", backend=None, log=print
    ):
        self.device = torch.device(device)
        self.net = net.to(self.device, memory_format=torch.channels_last).eval()
        self.info, self.flip, self.passes, self.log = info, flip, passes or info.passes, log
        self.backend = backend or TorchBackend(self.net, self.device, precision)
        self._lock = threading.Lock()

    def _logits(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Pictures of one shape, uint8 (H, W, 3) -> finite logits float32 (N, H, W)."""
        batch = np.stack(pictures)
        for _ in range(2):
            logits = self._run(batch)
            if np.isfinite(logits).all():
                return logits
            with self._lock:  # threads share a segmenter
                if self.backend.precision == "fp16":
                    self.log("fp16 overflows here; going on in fp32.")
                    self.backend = TorchBackend(self.net, self.device, "fp32")
        raise UserError("The weights give values that are not finite (NaN), so no masks; take other weights.")

    def _run(self, batch: np.ndarray) -> np.ndarray:
        logits = self.backend(batch)
        if self.flip:
            mirrored = self.backend(np.ascontiguousarray(batch[:, :, ::-1]))
            logits = (logits + mirrored[:, :, ::-1]) / 2
        return logits

    def logits(self, pictures: list[np.ndarray], boxes: list[list[tuple]] | None = None) -> list[np.ndarray]:
        """Pictures uint8 (H, W, 3) RGB of any sizes -> logits float32 (H, W) of these sizes. `boxes`: of each picture
        the squares (x, y, side) that hold its faces, where they are known: there is no coarse pass then. Raises
        UserError: the weights give values that are not finite."""
        coarse = [None] * len(pictures)
        if boxes is None or self.passes == 1:
            coarse = self._coarse_pass(pictures)
            if self.passes == 1:
                return [_enlarge(c, p.shape[:2]) for c, p in zip(coarse, pictures, strict=True)]
            boxes = [self.face_boxes(c, p.shape[:2]) for c, p in zip(coarse, pictures, strict=True)]
        # The fine pass sees the mirrored square: where the two are averaged, their errors are less alike.
        crops = [_crop(p, b, self.info.size)[:, ::-1] for p, bs in zip(pictures, boxes, strict=True) for b in bs]
        fine = iter([x[:, ::-1] for i in range(0, len(crops), 8) for x in self._logits(crops[i : i + 8])])
        return [
            _reject_unconfident(_assemble(c, p.shape[:2], [(b, next(fine)) for b in bs]), bs, self.info.confidence)
            for c, p, bs in zip(coarse, pictures, boxes, strict=True)
        ]

    def _coarse_pass(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        padded = [_padded(p, self.info.size) for p in pictures]
        logits: dict[int, np.ndarray] = {}
        for shape in {s.shape for s, _ in padded}:
            same = [i for i, (s, _) in enumerate(padded) if s.shape == shape]
            logits.update(zip(same, self._logits([padded[i][0] for i in same]), strict=True))
        return [logits[i][:h, :w] for i, (_, (h, w)) in enumerate(padded)]

    def face_boxes(self, coarse: np.ndarray, shape: tuple[int, int], threshold=COARSE_THRESHOLD) -> list[tuple]:
        """Squares (x, y, side) in pixels of a picture of `shape` (H, W) around what its logits, float32 at any lower
        resolution, take for faces from a probability of `threshold`."""
        logit = float(np.log(threshold / (1 - threshold)))
        sy, sx = shape[0] / coarse.shape[0], shape[1] / coarse.shape[1]  # unequal for thin pictures
        squares = []
        for x0, y0, x1, y1 in find_boxes(coarse > logit, 6):
            side = max((x1 - x0) * sx * FINE_MARGIN, (y1 - y0) * sy * FINE_MARGIN, 8)
            cx, cy = (x0 + x1) / 2 * sx, (y0 + y1) / 2 * sy
            squares.append((round(cx - side / 2), round(cy - side / 2), round(side)))
        return squares

    def mask(self, picture: np.ndarray, threshold: float = const.THRESHOLD) -> np.ndarray:
        """One picture uint8 (H, W, 3) RGB -> mask uint8 (H, W), 0/255, at a probability threshold."""
        return to_mask(self.logits([picture])[0], threshold)


def to_mask(logits: np.ndarray, threshold: float) -> np.ndarray:
    """Logits float (H, W) to a mask uint8 (H, W), 0/255, at a probability threshold in (0, 1), else a ValueError."""
    if not 0 < threshold < 1:
        raise ValueError(f"the threshold is a probability between 0 and 1, not {threshold}")
    logit = logits.dtype.type(np.log(threshold / (1 - threshold)))
    return (logits > logit).view(np.uint8) * np.uint8(255)


def _padded(picture: np.ndarray, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The picture with its longer side at `side`, padded to multiples of 32: (padded, (h, w) of the content)."""
    small = scaled(picture, side)
    h, w = small.shape[:2]
    return cv2.copyMakeBorder(small, 0, -h % 32, 0, -w % 32, cv2.BORDER_REPLICATE), (h, w)


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


def _assemble(coarse: np.ndarray | None, shape: tuple[int, int], fine: list[tuple]) -> np.ndarray:
    """The picture's logits from its fine passes, (square (x, y, side), logits); nothing is a face outside these."""
    h, w = shape
    total, weight = np.full((h, w), -8.0, np.float32), np.zeros((h, w), np.float32)
    for (x, y, side), logits in fine:
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, w), min(y + side, h)
        if x0 >= x1 or y0 >= y1:
            continue
        box = np.s_[y0:y1, x0:x1]
        # Sample the square's logits at the picture's pixel centres.
        scale = logits.shape[0] / side
        matrix = np.float32([[scale, 0, (x0 - x + 0.5) * scale - 0.5], [0, scale, (y0 - y + 0.5) * scale - 0.5]])
        options = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_REPLICATE}
        patch = cv2.warpAffine(np.ascontiguousarray(logits), matrix, (x1 - x0, y1 - y0), **options)
        if coarse is not None and scale * h / coarse.shape[0] < NEAR:
            patch = (patch + _enlarge(coarse, shape)[box]) / 2
        ramp_x = 1.001 - np.abs((np.arange(x0, x1) + 0.5 - x) / side * 2 - 1)
        ramp_y = 1.001 - np.abs((np.arange(y0, y1) + 0.5 - y) / side * 2 - 1)
        near = np.minimum(ramp_y[:, None], ramp_x[None]).astype(np.float32)  # the middle of a square knows best
        old = weight[box]
        total[box] = np.where(old > 0, (total[box] * old + patch * near) / (old + near), patch)
        weight[box] = old + near
    return total


def _reject_unconfident(logits: np.ndarray, squares: list[tuple[int, int, int]], confidence: float) -> np.ndarray:
    """Logits float32 (H, W), changed in place: a region below `MIN_CONFIDENCE` is rejected, and so is, in a picture
    with a region that reaches `confidence`, one that shares no square (x, y, side) of the fine pass with it."""
    h, w = logits.shape
    small = scaled(logits, min(256, max(h, w)))
    found = small > 0
    regions = []  # (where, own, the squares that it lies in)
    for x0, y0, x1, y1 in find_boxes(found):
        box = np.s_[y0:y1, x0:x1]
        probability = np.sort(1 / (1 + np.exp(-small[box][found[box]])))
        cx, cy = (x0 + x1) / 2 * w / small.shape[1], (y0 + y1) / 2 * h / small.shape[0]
        within = {s for s in squares if s[0] <= cx <= s[0] + s[2] and s[1] <= cy <= s[1] + s[2]}
        regions.append((box, probability[probability.size // 2 :].mean(), within))
    rejected, kept = np.zeros(small.shape, np.uint8), np.zeros(small.shape, np.uint8)
    needed = confidence if any(own >= confidence for _, own, _ in regions) else MIN_CONFIDENCE
    for box, own, within in regions:
        best = max([own, *(other for _, other, its in regions if its & within)])
        is_face = own >= MIN_CONFIDENCE and best >= needed
        (kept if is_face else rejected)[box] |= found[box]
    wide, wider = np.ones((3, 3), np.uint8), np.ones((9, 9), np.uint8)
    near = cv2.dilate(kept, wider)  # of these, at a threshold below 0.5, a little more
    regions = cv2.dilate(rejected, wide) & (kept == 0), cv2.dilate(kept, wide)
    rejected, kept = (cv2.resize(region, (w, h), interpolation=cv2.INTER_NEAREST) for region in regions)
    where = (rejected > 0) | ((kept == 0) & (logits > 0))  # specks too small for the small scale are no face either
    if rejected.any():  # nor what surrounds the rejected ones
        where |= cv2.resize(near, (w, h), interpolation=cv2.INTER_NEAREST) == 0
    logits[where] = np.minimum(logits[where], -4)
    return logits
