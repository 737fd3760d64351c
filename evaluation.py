"""A segmenter measured on pictures whose masks are known: the table, metrics.json and a sheet of the worst pictures.

python main.py evaluate --weights model.best.pth
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

import const
import dataset
import devices
from common import UserError, write_bytes
from data_preprocessing import ensure
from drawing import encode, worst_sheet
from metrics import Counts, counts_at
from pictures import forbidden, read_known, tagged

WORST = 10  # pictures on the sheet


def evaluate(
    segmenter, data: Path, out: Path, *, about=None, limit: int | None = None, exclude: Path | None = None, log=print
) -> dict:
    """Measure on the validation pictures of `data`, each at its mask's own size, from counts pooled over the split.
    Writes `metrics.json` and `worst.jpg` to `out`. The processes of a torchrun job share the pictures. Raises
    UserError: no data set, a picture or list that cannot be read, or files that would replace others.

    Args:
        segmenter: an inference.Segmenter; figures to compare are those of precision "fp32".
        about: what the record says of the network, see `Runner.described`.
        limit: only the first so many pictures.
        exclude: a file of ids, such as robust/label_noise.py writes: a further row leaves those faces out.
    """
    from tqdm.auto import tqdm

    files = [Path(out) / name for name in ("metrics.json", "worst.jpg")]
    if refusal := forbidden(files):
        raise UserError(refusal)
    excluded = dataset.read_ids(exclude) if exclude else frozenset()
    with devices.rank_zero_first():
        data = ensure(data, log)
    pairs = dataset.Celeb(data / "images_val", data / "masks_val", limit=limit).pairs
    if excluded and limit is None and not excluded & {image.stem for image, _ in pairs}:
        raise UserError(f"{exclude} names none of the {len(pairs)} faces; it lists ids such as {pairs[0][0].stem}.")
    rank, world_size = devices.rank(), devices.world_size()
    thresholds = {"probability 0.5": 0.0, f"logit {const.ORIGINAL_LOGIT_THRESHOLD}": const.ORIGINAL_LOGIT_THRESHOLD}
    mine = []
    for pair in tqdm(pairs[rank::world_size], unit="picture", disable=True if rank else None):
        _, target, logits = _segmented(segmenter, *pair)
        mine.append(counts_at(logits, target > 127, thresholds.values()))
    parts = devices.all_gather(mine)
    columns = zip(*(parts[i % world_size][i // world_size] for i in range(len(pairs))), strict=True)
    counts = dict(zip(thresholds, columns, strict=True))
    table = {name: sum(column, Counts()).summary() for name, column in counts.items()}
    if rank:
        return table
    per_picture, pictures = counts["probability 0.5"], dict.fromkeys(table, len(pairs))
    if exclude:
        rest = [one for pair, one in zip(pairs, per_picture, strict=True) if pair[0].stem not in excluded]
        row = f"0.5, {len(rest)} faces"
        table[row], pictures[row] = sum(rest, Counts()).summary(), len(rest)
    record = {
        **(about or {}),
        "data": str(data),
        "pictures": len(pairs),
        "exclude": exclude and str(exclude),
        "world_size": world_size,
        "metrics": table,
    }
    log(format_table(table, pictures))  # first: a file that cannot be written costs no figures
    write_bytes(files[0], tagged(json.dumps(record, indent=2).encode() + b"\n", ".json"))
    _write_worst(segmenter, pairs, per_picture, files[1])
    log(f"metrics.json and worst.jpg are in {out}")
    return table


def _segmented(segmenter, image: Path, mask: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(picture uint8 (H, W, 3), target uint8 (h, w), logits float32 (h, w)) of a picture and its mask."""
    picture, target = read_known(image), read_known(mask, grey=True)
    logits = segmenter.logits([picture])[0]
    if logits.shape != target.shape:
        logits = cv2.resize(logits, target.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return picture, target, logits


def _write_worst(segmenter, pairs, per_picture: list[Counts], path: Path) -> None:
    """The sheet of the pictures with the lowest Dice."""
    rows = []
    for i in sorted(range(len(pairs)), key=lambda i: per_picture[i].dice)[:WORST]:
        picture, target, logits = _segmented(segmenter, *pairs[i])
        title = f"{pairs[i][0].name}  Dice {_shown(per_picture[i].summary()['dice'], 3)}"
        rows.append((title, picture, np.where(logits > 0, 255, 0).astype(np.uint8), target))
    write_bytes(path, tagged(encode(worst_sheet(rows), ".jpg"), ".jpg"))


def format_table(table: dict[str, dict[str, float | None]], pictures: dict[str, int]) -> str:
    """Lines of fixed width, a row for each threshold; "-" where a figure is undefined."""
    names = list(next(iter(table.values())))
    lines = [f"{'':16}{'pictures':>9}" + "".join(f"{name.replace('_', ' '):>14}" for name in names)]
    for row, values in table.items():
        cells = [_shown(values[name]) if name in values else "" for name in names]
        lines.append(f"{row:16}{pictures[row]:9}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def _shown(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
