"""Things in front of a face, drawn: paper, cloth, hands, masks, mugs, microphones, hair, glasses.

Every occluder is drawn over a face in CelebAMask-HQ's alignment at 512x512. Realistic shapes and textures teach more
than CoarseDropout's grey box (Voo et al. 2022, https://arxiv.org/abs/2205.06218).
"""

from __future__ import annotations

import cv2
import numpy as np

SIZE = 512  # the side of the aligned square, pixels; in it, about:
EYES = ((203, 244), (309, 244))
MOUTH = (256, 380)
FACE_CENTRE = (256, 290)
FACE_WIDTH = 274  # of the oval


# --- Textures -------------------------------------------------------------------------------------------------------
def flat(rng: np.random.Generator, color=None) -> np.ndarray:
    """A colour with a soft gradient of light and a little grain, uint8 (512, 512, 3)."""
    if color is None:
        color = rng.uniform(0, 255, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0, 255))
    small = SIZE // 4  # drawn small and enlarged: a quarter of the time
    corners = rng.uniform(0.65, 1.2, (2, 2)).astype(np.float32)
    light = cv2.resize(corners, (small, small), interpolation=cv2.INTER_CUBIC)[..., None]
    picture = np.asarray(color, np.float32) * light
    if rng.random() < 0.5:
        picture += rng.normal(0, rng.uniform(1, 14), (small, small, 1))
    return cv2.resize(picture.clip(0, 255).astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def blend(over: np.ndarray, under: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """over * alpha + under * (1 - alpha) for uint8 pictures (H, W, 3) and float32 alpha (H, W)."""
    return cv2.blendLinear(over, under, alpha, 1 - alpha)


def shadowed(image: np.ndarray, alpha: np.ndarray, shift, width: int, strength: float) -> np.ndarray:
    """An aligned picture with the shadow of an opacity, float32, on it, moved by `shift` (x, y) and blurred."""
    shadow = cv2.warpAffine(alpha, np.float32([[1, 0, shift[0]], [0, 1, shift[1]]]), (SIZE, SIZE))
    return blend(np.zeros_like(image), image, cv2.blur(shadow, (width, width)) * np.float32(strength))


def paper(rng: np.random.Generator) -> np.ndarray:
    """A bright sheet, sometimes with lines of writing or stripes."""
    picture = flat(rng, rng.uniform(150, 255) * rng.uniform(0.92, 1.0, 3))
    kind = rng.random()
    if kind < 0.4:
        ink = rng.uniform(0, 120, 3).astype(int).tolist()
        step, left = int(rng.integers(10, 28)), int(rng.integers(20, 120))
        for y in range(int(rng.integers(0, 40)), SIZE, step):
            for x in range(left, SIZE - int(rng.integers(20, 160)), int(rng.integers(24, 60))):
                cv2.line(picture, (x, y), (x + int(rng.integers(8, 24)), y), ink, max(1, step // 5))
    elif kind < 0.55:
        ink, step = rng.uniform(0, 255, 3).astype(int).tolist(), int(rng.integers(16, 64))
        for x in range(0, SIZE, step):
            cv2.line(picture, (x, 0), (x + int(rng.integers(-40, 40)), SIZE), ink, step // 2)
    return picture


def photo_patch(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    """A random square of a photograph, enlarged to uint8 (512, 512, 3)."""
    h, w = photo.shape[:2]
    side = max(1, int(min(h, w) * rng.uniform(0.25, 1.0)))
    y, x = int(rng.integers(0, h - side + 1)), int(rng.integers(0, w - side + 1))
    patch = cv2.resize(photo[y : y + side, x : x + side], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        patch = np.rot90(patch, int(rng.integers(0, 4)))
    return np.ascontiguousarray(patch)


def skin_color(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean colour of a face, a little varied; float (3,)."""
    mean = np.array(cv2.mean(image, (mask > 127).astype(np.uint8))[:3])
    return (mean * rng.uniform(0.8, 1.2) * rng.uniform(0.95, 1.05, 3)).clip(10, 255)


# --- Shapes: opacity uint8 (512, 512) -------------------------------------------------------------------------------
def blank() -> np.ndarray:
    return np.zeros((SIZE, SIZE), np.uint8)


def polygon(points, alpha: np.ndarray | None = None) -> np.ndarray:
    """The polygon of points (x, y), filled, in `alpha` or alone."""
    alpha = blank() if alpha is None else alpha
    return cv2.fillPoly(alpha, [np.round(np.asarray(points) * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)


def _curve(alpha: np.ndarray, points, width: int, *, closed: bool) -> None:
    cv2.polylines(alpha, [np.round(points * 16).astype(np.int32)], closed, 255, width, cv2.LINE_AA, shift=4)


def _line(alpha: np.ndarray, start, end, width: float) -> None:
    cv2.line(alpha, [int(v) for v in start], [int(v) for v in end], 255, int(width), cv2.LINE_AA)


def _ellipse(alpha: np.ndarray, centre, axes, *, degrees: float = 0, width: int = -1) -> None:
    centre, axes = [int(v) for v in centre], [int(v) for v in axes]
    cv2.ellipse(alpha, centre, axes, degrees, 0, 360, 255, width, cv2.LINE_AA)


def unit(angle: float) -> np.ndarray:
    """The vector (x, y) of length 1 in a direction, radians."""
    return np.array([np.cos(angle), np.sin(angle)])


def rotation(angle: float) -> np.ndarray:
    """The matrix (2, 2) that turns (x, y) by radians."""
    (c, s) = unit(angle)
    return np.array([[c, -s], [s, c]])


def _place(rng: np.random.Generator) -> np.ndarray:
    """A point on or near the face oval."""
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1.0) ** 0.7
    return np.array(FACE_CENTRE) + radius * (unit(angle) * (150, 190))


def rectangle(rng: np.random.Generator) -> np.ndarray:
    w, h = rng.uniform(0.25, 1.0) * FACE_WIDTH, rng.uniform(0.25, 1.3) * FACE_WIDTH
    angle = rng.normal(0, 25) + (rng.random() < 0.2) * rng.uniform(0, 90)
    return polygon(cv2.boxPoints((tuple(map(float, _place(rng))), (float(w), float(h)), float(angle))))


def edge_sheet(rng: np.random.Generator) -> np.ndarray:
    """A sheet that comes in from one side and hides all of the face up to a line."""
    side, reach = rng.integers(0, 4), rng.uniform(110, 400)
    slope, far = rng.normal(0, 60), SIZE + 9
    points = [
        [(-9, -9), (reach + slope, -9), (reach - slope, far), (-9, far)],
        [(far, -9), (SIZE - reach + slope, -9), (SIZE - reach - slope, far), (far, far)],
        [(-9, -9), (far, -9), (far, reach * 0.8 + slope), (-9, reach * 0.8 - slope)],
        [(-9, far), (far, far), (far, SIZE - reach + slope), (-9, SIZE - reach - slope)],
    ]
    return polygon(points[side])


def blob(rng: np.random.Generator) -> np.ndarray:
    """A smooth closed shape: eight to fourteen radii, joined by a periodic curve."""
    n = int(rng.integers(8, 15))
    radii = rng.uniform(0.45, 1.0, n) * rng.uniform(50, 190)
    t = np.linspace(0, n, 120, endpoint=False)
    i, f = t.astype(int), (1 - np.cos((t % 1) * np.pi)) / 2
    r = radii[i % n] * (1 - f) + radii[(i + 1) % n] * f
    angle = t / n * 2 * np.pi
    points = np.stack([np.cos(angle) * r, np.sin(angle) * r * rng.uniform(0.5, 1.0)], 1)
    return polygon(points @ rotation(rng.uniform(0, 2 * np.pi)).T + _place(rng))


def hair_strands(rng: np.random.Generator) -> np.ndarray:
    """Bundles of strands that hang over the face from above."""
    alpha = blank()
    for _ in range(int(rng.integers(1, 6))):
        x0, bend, reach = rng.uniform(110, 400), rng.normal(0, 80), rng.uniform(140, 420)
        for _ in range(int(rng.integers(4, 30))):
            t = np.linspace(0, 1, 24)
            x = x0 + rng.normal(0, 12) + bend * t**2 + rng.normal(0, 14) * t
            y = 50 + rng.normal(0, 10) + reach * rng.uniform(0.8, 1.05) * t
            _curve(alpha, np.stack([x, y], 1), int(rng.integers(1, 6)), closed=False)
    return alpha


def face_mask(rng: np.random.Generator) -> np.ndarray:
    """A medical or cloth mask over nose, mouth and chin, with its ear loops."""
    top, bottom = rng.uniform(270, 345), rng.uniform(455, 500)
    left, right = rng.uniform(105, 140), rng.uniform(372, 407)
    dip = rng.uniform(-30, 25)
    t, low = np.linspace(0, 1, 20), np.linspace(0, np.pi, 24)
    upper = np.stack([left + (right - left) * t, top + dip * np.sin(np.pi * t)], 1)
    cx, rx = (left + right) / 2, (right - left) / 2
    lower = np.stack([cx + rx * np.cos(low), (bottom - 60) + 60 * np.sin(low) ** rng.uniform(0.6, 1.2)], 1)
    alpha = polygon(np.concatenate([upper, lower]))
    for x, ear in ((left, 100), (right, 412)):
        _line(alpha, (x, top + 6), (ear, top - rng.uniform(10, 50)), 3)
        _line(alpha, (x, bottom - 70), (ear, top + 20), 3)
    return alpha


def mug(rng: np.random.Generator) -> np.ndarray:
    """A cup at the mouth, seen from the front, with a handle."""
    w, h = rng.uniform(90, 190), rng.uniform(100, 200)
    x, y = MOUTH[0] + rng.normal(0, 45), MOUTH[1] + rng.normal(10, 40)
    taper = rng.uniform(0.75, 1.0)
    alpha = polygon([(x - w / 2, y), (x + w / 2, y), (x + w / 2 * taper, y + h), (x - w / 2 * taper, y + h)])
    for cy, rx in ((y, w / 2), (y + h, w / 2 * taper)):
        _ellipse(alpha, (x, cy), (rx, w * 0.1))
    handle = x + rng.choice([-1, 1]) * w * 0.55, y + h * 0.5
    _ellipse(alpha, handle, (w * 0.25, h * 0.3), width=int(rng.integers(8, 20)))
    return alpha


def microphone(rng: np.random.Generator) -> np.ndarray:
    alpha, head = blank(), MOUTH + rng.normal((0, 20), (50, 35))
    angle, r = np.pi / 2 + rng.normal(0, 0.5), rng.uniform(26, 60)
    _line(alpha, head, head + 300 * unit(angle), r * rng.uniform(0.6, 1.2))
    _ellipse(alpha, head, (r * 1.25, r), degrees=np.degrees(angle))
    return alpha


# --- Occluders: (picture uint8 (512, 512, 3), opacity float32 (512, 512) in [0, 1]) -----------------------------------
def hand(rng: np.random.Generator, color: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A palm and its fingers, shaded as round limbs; `color` is the skin's, float (3,)."""
    target = _place(rng)
    away = rng.uniform(0.15, 0.85) * np.pi if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)  # mostly from below
    direction = unit(away)
    thick = rng.uniform(26, 42)
    palm = target + direction * rng.uniform(60, 140)
    limbs = [(palm, palm + direction * 400, thick * rng.uniform(1.7, 2.6))]  # the wrist
    across = np.array([-direction[1], direction[0]])
    if rng.random() < 0.8:
        limbs.append((palm - across * thick * 0.9, palm + across * thick * 0.9, thick * rng.uniform(1.8, 2.6)))
    fingers, fan, base = int(rng.integers(1, 6)), rng.uniform(0.03, 0.3), rng.normal(0, 0.2)
    for k in range(fingers):
        offset = k - (fingers - 1) / 2
        turn = base + fan * offset
        along = -direction * np.cos(turn) + across * np.sin(turn)
        start = palm + across * offset * thick * 0.98
        reach = rng.uniform(95, 170) * (1 - 0.08 * offset**2)
        knuckle = start + along * reach * 0.5
        bend = turn + rng.normal(0, 0.25)
        tip = knuckle + (-direction * np.cos(bend) + across * np.sin(bend)) * reach * 0.5
        limbs += [(start, knuckle, thick), (knuckle, tip, thick * 0.92)]
    if rng.random() < 0.5:  # a thumb
        side = rng.choice([-1, 1])
        limbs.append((palm + across * side * thick, palm + across * side * thick * 3.2 - direction * 50, thick * 1.05))
    picture, opacity = np.zeros((SIZE, SIZE, 3), np.float32), blank()
    dark, light = rng.uniform(0.35, 0.75), rng.uniform(0.95, 1.15)
    for start, end, width in limbs:
        one = blank()
        _line(one, start, end, max(2, width))
        x, y, w, h = cv2.boundingRect(one)
        if w == 0:  # outside
            continue
        box = np.s_[y : y + h, x : x + w]
        depth = cv2.distanceTransform(one[box], cv2.DIST_L2, 3) / (width / 2)
        shade = dark + (light - dark) * np.sqrt(depth.clip(0, 1))
        a = one[box][..., None].astype(np.float32) / 255
        picture[box] = picture[box] * (1 - a) + color * shade[..., None] * a
        opacity[box] = np.maximum(opacity[box], one[box])
    picture += cv2.resize(rng.normal(0, 4, (128, 128, 1)).astype(np.float32), (SIZE, SIZE))[..., None]
    return picture.clip(0, 255).astype(np.uint8), opacity.astype(np.float32) / 255


def glasses(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rimless to sunglasses: (picture, opacity, hidden), the last boolean (512, 512): rims, lenses and what is seen
    through them, which CelebAMask-HQ's `eye_g` counts as glasses."""
    lens, rims = blank(), blank()
    rx, ry = rng.uniform(38, 58), rng.uniform(24, 48)
    power, droop = rng.uniform(2, 6), rng.uniform(-0.1, 0.25)  # superellipse: 2 is round, 6 a rounded box
    rim = int(rng.choice([1, 2, 3, 5, 8, 12]))
    shift = np.array([rng.normal(0, 4), rng.normal(4, 6)])
    apart = max(53 + rng.normal(2, 5), rx + 5)
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x, y = np.cos(t), np.sin(t)
    x, y = np.sign(x) * np.abs(x) ** (2 / power) * rx, np.sign(y) * np.abs(y) ** (2 / power) * ry
    y = y * (1 + 0.15 * (y > 0)) + ry * droop * 0.5
    centres = [np.array([256 + sign * apart, 244]) + shift for sign in (-1, 1)]
    for sign, centre in zip((-1, 1), centres, strict=True):
        outline = np.stack([centre[0] + sign * (x + x * (y / ry) * droop * 0.3), centre[1] + y], 1)
        polygon(outline, lens)
        _curve(rims, outline, rim, closed=True)
    (ax, ay), (bx, _) = centres
    bar = ay - ry * rng.uniform(0.1, 0.6)
    _line(rims, (ax + rx * 0.9, bar), (bx - rx * 0.9, bar), max(2, rim))
    for x0, sign in ((ax - rx, -1), (bx + rx, 1)):
        ear = (256 + sign * rng.uniform(138, 165), ay + rng.normal(-6, 10))
        _line(rims, (x0, ay - ry * 0.4), ear, max(2, rim))
    dark = rng.random() < 0.35
    picture = flat(rng, rng.uniform(0, 70, 3) if dark or rng.random() < 0.5 else rng.uniform(60, 255, 3))
    strength = rng.uniform(0.6, 1.0) if dark else rng.uniform(0.0, 0.25)
    opacity = lens.astype(np.float32) * np.float32(strength / 255)
    if rng.random() < 0.5:  # a reflection across the lenses
        streak = blank()
        x0, lean, width = rng.uniform(150, 350), rng.uniform(20, 80), rng.integers(6, 40)
        _line(streak, (x0, ay - ry), (x0 - lean, ay + ry), width)
        shine = (streak & lens).astype(np.float32) / 255 * np.float32(rng.uniform(0.2, 0.8))
        picture = blend(np.full_like(picture, 255), picture, shine)
        opacity = np.maximum(opacity, shine)
    rims = rims.astype(np.float32) / 255
    rim_color = rng.uniform(0, 60, 3) if rng.random() < 0.6 else rng.uniform(0, 255, 3)
    picture = blend(np.full_like(picture, 1) * rim_color.astype(np.uint8), picture, rims)
    opacity = np.maximum(opacity, rims * np.float32(1.0 if rim > 1 else rng.uniform(0.4, 1.0)))
    return picture, opacity, (lens > 127) | (rims > 0.4)


# --- Drawing over a face --------------------------------------------------------------------------------------------
KINDS = {  # how often each is drawn, and by what
    "sheet": (0.16, edge_sheet), "rectangle": (0.17, rectangle), "blob": (0.17, blob), "hand": (0.24, hand),
    "mask": (0.09, face_mask), "mug": (0.05, mug), "microphone": (0.05, microphone), "hair": (0.07, hair_strands),
}  # fmt: skip


def draw_occluder(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, *, photo=None, other=None, kind: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one random occluder over an aligned face: (image uint8 (512, 512, 3), mask uint8 (512, 512), 0/255) to the
    same, occluded, and the occluder's opacity uint8 (512, 512), all new. Pieces of `photo` uint8 (H, W, 3) serve as
    texture, flat colours without it; the skin of `other`, (image, mask), or of the face itself colours a hand; `kind`
    is one of `KINDS` or "glasses", random without it."""
    often = [fraction for fraction, _ in KINDS.values()]
    kind = kind or rng.choice(list(KINDS), p=np.array(often) / sum(often))
    if kind == "glasses":
        picture, alpha, hidden = glasses(rng)
    elif kind == "hand":
        source = other if other is not None and rng.random() < 0.35 else (image, mask)
        picture, alpha = hand(rng, skin_color(rng, *source))
    else:
        alpha = KINDS[kind][1](rng).astype(np.float32) / 255
        picture = _texture(rng, kind, image, photo)
    if kind not in ("glasses", "hair") and rng.random() < 0.5:  # its shadow on the face
        image = shadowed(image, alpha, rng.normal(0, 8, 2), 21, rng.uniform(0.1, 0.5))
    if rng.random() < 0.5 and kind != "glasses":
        alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.5, 3.0))
    mask = np.where(hidden if kind == "glasses" else alpha > 0.5, np.uint8(0), mask)
    return blend(picture, image, alpha), mask, (alpha * 255).astype(np.uint8)


def _texture(rng, kind, image, photo) -> np.ndarray:
    if kind == "hair":
        tops = image[20:70, 150:360].reshape(-1, 3)  # above the forehead: mostly hair
        return flat(rng, tops[rng.integers(len(tops))] * rng.uniform(0.5, 1.2))
    if kind == "microphone":
        return flat(rng, np.full(3, rng.uniform(5, 90)))
    if kind == "mask" and rng.random() < 0.7:
        return flat(rng, rng.choice([[150, 200, 225], [235, 240, 240], [25, 25, 28], [120, 170, 200], [230, 170, 180]]))
    choice = rng.random()
    if photo is not None and choice < 0.5:
        return photo_patch(rng, photo)
    return paper(rng) if choice < 0.75 else flat(rng)
