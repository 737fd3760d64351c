"""Tables and plots of the experiments, made from `results.json` alone; `experiments.py` calls it.

    python -m studies.report results       results/tables.md and the plots, anew

The sentences are in results/README.md, written by hand. The sheets of faces need the networks: `experiments.py` draws
them.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np

import const
from common import write_bytes, write_text
from metrics import Counts
from robust import occluders

PUBLISHED = {  # (Dice, IoU, BCE)
    "DeepLabV3": (0.96, 0.94, 0.049),
    "U-Net": (0.96, 0.93, 0.053),
}
NETWORKS = {"deeplabv3": "DeepLabV3-ResNet50", "unet": "U-Net, ResNet-34", "lite": "small (`lite`)"}
CUTOUTS = {"cutout-on": "image+mask", "cutout-off": "none", "cutout-image-only": "image-only"}
COLORS = ("#1b6ca8", "#d1495b", "#8a8a8a")
DPI, CELL = 110, 1.3  # pixels an inch; inches of a face in the sheets
PREDICTED = (2000, 24000)  # training faces: the original's, and all of CelebAMask-HQ but its usual test faces


# --- Numbers --------------------------------------------------------------------------------------------------------
def spread(values, digits: int = 3, percent: bool = False) -> str:
    """ "0.912 ± 0.004": the mean and the standard deviation over seeds; the value alone where there is one."""
    values = np.asarray(list(values), float) * (100 if percent else 1)
    unit = " %" if percent else ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}{unit}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}{unit}"


def counts(record: dict, key: str = "counts") -> Counts:
    return Counts(**record[key])


def seeded(e: dict, variant: str) -> list[dict]:
    """What was measured of a variant's runs, one entry a seed: {kind: record}."""
    seeds = e["model_seeds"] if variant.startswith("models-") and "model_seeds" in e else e["seeds"]
    return [e["runs"][f"{variant}-{seed}"] for seed in seeds]


def occluded(kinds: dict) -> Counts:
    """Counts pooled over all kinds of occluders."""
    return sum((counts(kinds[kind]) for kind in occluders.KINDS), Counts())


def false_positives(*records: dict) -> float:
    """The fraction of the occluded pixels of faces that was called face."""
    return sum(r["called_face"] for r in records) / max(sum(r["occluded"] for r in records), 1)


def occluded_cells(runs: list[dict]) -> list[str]:
    """Dice and IoU on occluded faces, and the false-positive rate on occluded pixels, over seeds."""
    pooled = [occluded(run) for run in runs]
    rates = (false_positives(*(run[kind] for kind in occluders.KINDS)) for run in runs)
    return [spread(c.dice for c in pooled), spread(c.iou for c in pooled), spread(rates, 1, percent=True)]


def partner(dice: float) -> float:
    """The IoU of the same counts."""
    return dice / (2 - dice)


def power_law(n: np.ndarray, error: np.ndarray) -> tuple[float, float, float]:
    """a, b, c of error = a + b (n / 50)^-c by least squares, a and b not negative, c on a grid from 0.05 to 3."""
    from scipy.optimize import nnls

    fits = []
    for c in np.arange(0.05, 3.001, 0.05):
        (a, b), residual = nnls(np.column_stack([np.ones(len(n)), (n / 50.0) ** -c]), error)
        fits.append((residual, a, b, c))
    return tuple(float(v) for v in min(fits)[1:])


def law(parameters: tuple, n) -> np.ndarray:
    a, b, c = parameters
    return a + b * (np.asarray(n, float) / 50.0) ** -c


def dice_interval(errors: np.ndarray, n: np.ndarray, at) -> tuple[np.ndarray, np.ndarray]:
    """The 90 % interval of the fitted Dice at these numbers of faces; `errors` (sizes, seeds), seeds are resampled."""
    from scipy.stats import bootstrap

    def fitted(*rows):
        return 1 - law(power_law(np.repeat(n, [len(row) for row in rows]), np.concatenate(rows)), at)

    result = bootstrap(tuple(errors), fitted, n_resamples=300, vectorized=False, confidence_level=0.9,
                       method="percentile", random_state=np.random.default_rng(0))  # fmt: skip
    return result.confidence_interval.low, result.confidence_interval.high


# --- Plots ----------------------------------------------------------------------------------------------------------
def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path: Path, colors: int | None = None) -> None:
    """As a PNG; with a palette of so many colours, where photographs would make it too large."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format="png")
    picture = Image.open(file).convert("RGB")
    if colors:
        picture = picture.quantize(colors, kmeans=3, dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    write_bytes(path, file.getvalue())


def save_grid(images: list, masks: dict[str, list], path: Path) -> None:
    """Pictures in a row, and below them the same overlaid with the masks of each row.

    Args:
        images: uint8 (512, 512, 3).
        masks: {row: [uint8 (512, 512), ...]}.
    """
    from drawing import grid, overlay, parse_color

    color = parse_color(const.OVERLAY_COLOR)
    rows = [images, *([overlay(i, m, color, 0.6) for i, m in zip(images, row, strict=True)] for row in masks.values())]
    _save(grid(rows, names=["picture", *masks], side=CELL), path, 256)


def plot_occluders(e: dict, path: Path) -> None:
    """Dice, and the false-positive rate on occluded pixels, by kind of occluder: a dot a seed, a line at the mean."""
    figure = _figure(9, 3.6)
    axes = figure.subplots(1, 2)
    kinds = ["clean", *occluders.KINDS]
    for j, (variant, label) in enumerate(CUTOUTS.items()):
        runs = seeded(e, variant)
        dice = np.array([[counts(run[kind]).dice for run in runs] for kind in kinds])
        rate = np.array([[false_positives(run[kind]) for run in runs] for kind in occluders.KINDS]) * 100
        for axis, table in zip(axes, (dice, rate), strict=True):
            x = np.arange(len(table)) + (j - 1) * 0.22
            axis.hlines(table.mean(1), x - 0.09, x + 0.09, color=COLORS[j], lw=2, label=label)
            axis.plot(np.repeat(x, table.shape[1]), table.ravel(), ".", color=COLORS[j], ms=5, alpha=0.6)
    for axis, names in zip(axes, (kinds, list(occluders.KINDS)), strict=True):
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.grid(alpha=0.3, axis="y")
    axes[0].set(ylabel="Dice")
    axes[1].set(ylabel="occluded pixels called face, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="CoarseDropout in", loc="outside upper center", ncols=3, fontsize=8)
    _save(figure, path)


def plot_data_size(e: dict, path: Path) -> None:
    n, errors = data_size(e)
    figure = _figure(6.4, 3.8)
    axis = figure.subplots()
    axis.plot(np.repeat(n, errors.shape[1]), 1 - errors.ravel(), ".", color=COLORS[2], label="each seed")
    axis.plot(n, 1 - errors.mean(1), "o", color=COLORS[0], label="mean")
    if len(n) >= 3:
        at = np.geomspace(n[0], n[-1], 30)
        fit = power_law(np.repeat(n, errors.shape[1]), errors.ravel())
        axis.plot(at, 1 - law(fit, at), "-", color=COLORS[0], label="fit")
        label = "90 % interval, seeds resampled"
        axis.fill_between(at, *dice_interval(errors, n, at), color=COLORS[0], alpha=0.15, lw=0, label=label)
    axis.set(xscale="log", xlabel="training faces", ylabel="Dice, pooled counts", xlim=(n[0] / 1.1, n[-1] * 1.1))
    axis.set_xticks(n, [str(v) for v in n])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def plot_models(e: dict, path: Path) -> None:
    figure = _figure(6.4, 3.2)
    axis = figure.subplots()
    last = 0.0
    for j, (model, row) in enumerate(e["models"].items()):
        for i, history in enumerate(row["histories"]):
            minutes = np.cumsum([epoch["seconds"] for epoch in history]) / 60
            last = max(last, minutes[-1])
            dice = [epoch["dice"] for epoch in history]
            axis.plot(minutes, dice, "o-", color=COLORS[j], label=None if i else NETWORKS[model])
    axis.set(xlabel="minutes", ylabel="Dice after each epoch", xlim=(0, last * 1.03))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path)


# --- Tables ---------------------------------------------------------------------------------------------------------
def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def settings_table(experiments: dict) -> str:
    """The settings of every network beside the original's."""
    head = ["experiment", "network", "start", "pixels", "batch", "steps", "learning rate", "EMA", "seeds",
            "training faces", "validation faces", "measured on"]  # fmt: skip
    rows = [["the original", NETWORKS["deeplabv3"], "COCO", "512", "4", "4000", "0.0001", "", "1", "2000", "2000", ""]]
    for name, e in experiments.items():
        for s in e["settings"]:
            rows.append([
                name, NETWORKS[s["model"]], "pretrained" if s["pretrained"] else "random", str(s["size"]),
                str(s["batch_size"]), str(s["steps"]), f"{s['lr']:g}", str(s["ema"] or ""), str(len(s["seeds"])),
                str(e["train_faces"]), str(e["val_faces"]),
                f"{e['hardware']}, {e['precision']}, PyTorch {e['torch']}, {e['date']}",
            ])  # fmt: skip
    return table(head, rows)


def occluders_table(e: dict) -> str:
    head = ["CoarseDropout in", "of the picture", "of the face", "Dice, clean", "IoU, clean", "Dice, occluded",
            "IoU, occluded", "occluded pixels called face"]  # fmt: skip
    rows = []
    for variant, cutout in CUTOUTS.items():
        runs = seeded(e, variant)
        clean = [counts(run["clean"]) for run in runs]
        rows.append([
            cutout, *(f"{fraction:.1%}" for fraction in e["cutout"][cutout]),
            spread(c.dice for c in clean), spread(c.iou for c in clean), *occluded_cells(runs),
        ])  # fmt: skip
    return table(head, rows)


def glasses_table(e: dict) -> str:
    head, rows = ["masks in training"], []
    for variant, name in (("cutout-on", "skin without the glasses"), ("glasses-left-in", "skin, glasses left in")):
        runs, row = seeded(e, variant), [name]
        for kind in ("real glasses", "glasses"):
            if pictures := runs[0][kind]["pictures"]:
                row.append(spread((false_positives(run[kind]) for run in runs), 1, percent=True))
                row.append(spread(counts(run[kind], "box").iou for run in runs))
                row.append(spread(counts(run[kind]).iou for run in runs))
                if not rows:
                    title = f"{'real' if kind == 'real glasses' else 'drawn'} glasses ({pictures})"
                    head += [f"{title}: called face", "IoU in their box", "IoU of the face"]
        rows.append([*row, spread(counts(run["clean"]).dice for run in runs)])
    wearers = table(["", "training faces", "validation faces"],
                    [["wear glasses", str(e["wearers"]["train"]), str(e["wearers"]["val"])]])  # fmt: skip
    return table([*head, "Dice, all faces"], rows) + "\n\n" + wearers


def models_table(e: dict) -> str:
    head = ["network", "parameters", "s/epoch", "s/image", "peak memory", "Dice", "IoU", "BCE", "Dice, occluded",
            "IoU, occluded", "occluded pixels called face"]  # fmt: skip
    rows = []
    for model, row in e["models"].items():
        runs = seeded(e, f"models-{model}")
        clean = [counts(run["clean"]) for run in runs]
        rows.append([
            NETWORKS[model], f"{row['parameters'] / 1e6:.1f} M", spread(row["seconds_per_epoch"], 1),
            f"{row['seconds_per_picture']:.3f}",
            f"{row['peak_memory'] / 2**30:.2f} GiB" if row["peak_memory"] else "",
            spread(c.dice for c in clean), spread(c.iou for c in clean), spread(run["clean"]["bce"] for run in runs),
            *occluded_cells(runs),
        ])  # fmt: skip
    return table(head, rows)


def data_size(e: dict) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of training faces, and the errors 1 - Dice (sizes, seeds)."""
    n = np.array(e["counts"])
    variants = [*(f"faces-{k}" for k in n[:-1]), "cutout-on"]
    return n, np.array([[1 - counts(run["clean"]).dice for run in seeded(e, variant)] for variant in variants])


def data_size_table(e: dict) -> str:
    n, errors = data_size(e)
    shown = e["settings"][0]["steps"] * e["settings"][0]["batch_size"]
    rows = [
        [str(k), f"{shown / k:.0f}", spread(1 - row, 4), " ".join(f"{1 - v:.4f}" for v in row)]
        for k, row in zip(n, errors, strict=True)
    ]
    parts = [table(["training faces", "times each is shown", "Dice", "each seed"], rows)]
    if len(n) >= 3:
        at = np.array([n[-1], *(p for p in PREDICTED if p > n[-1])])
        a, b, c = fit = power_law(np.repeat(n, errors.shape[1]), errors.ravel())
        guess = power_law(np.repeat(n[:-1], errors.shape[1]), errors[:-1].ravel())
        intervals = zip(*dice_interval(errors, n, at), strict=True)
        rows = [[str(k), f"{1 - law(fit, k):.4f}", f"{low:.4f} to {high:.4f}"]
                for k, (low, high) in zip(at, intervals, strict=True)]  # fmt: skip
        rows.append([f"{n[-1]}, from the fit to the sizes below", f"{1 - law(guess, n[-1]):.4f}", ""])
        head = ["training faces", f"Dice = 1 - {a:.4f} - {b:.4f} (n / 50)^-{c:.2f}", "90 % interval, seeds resampled"]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def published_table(e: dict) -> str:
    logits = ("0.1", "0.5", "0.9")
    head = ["", "Dice", "IoU", "BCE", "Dice / (2 - Dice)", *(f"batch means, logit {t}: Dice / IoU" for t in logits),
            "batch means: IoU above Dice / (2 - Dice) by"]  # fmt: skip
    rows = [
        [f"published: {name}", f"{dice:.2f}", f"{iou:.2f}", f"{bce:.3f}", f"{partner(dice):.3f}", "", "", "",
         f"{iou - partner(dice):.4f}"]
        for name, (dice, iou, bce) in PUBLISHED.items()
    ]  # fmt: skip
    ours = {NETWORKS[model]: seeded(e, f"models-{model}") for model in ("deeplabv3", "unet")}
    ours |= {"the runs `cutout-on`": seeded(e, "cutout-on"), "the bundled weights": [e["runs"]["bundled"]]}
    for label, runs in ours.items():
        at = [run["clean"]["thresholds"] for run in runs]
        dice = [t["0.0"]["dice"] for t in at]
        means = [
            " / ".join(spread(t[logit][key] for t in at) for key in ("batch_dice", "batch_iou")) for logit in logits
        ]
        gaps = [t[logit]["batch_iou"] - partner(t[logit]["batch_dice"]) for t in at for logit in logits]
        rows.append([
            f"{label}, {len(runs)} seeds" if len(runs) > 1 else label, spread(dice),
            spread(t["0.0"]["iou"] for t in at), spread(run["clean"]["bce"] for run in runs),
            spread(map(partner, dice)), *means, f"{min(gaps):.4f} to {max(gaps):.4f}",
        ])  # fmt: skip
    return table(head, rows)


TABLES = {
    "occluders": ("Occluded faces", occluders_table),
    "glasses": ("Eyeglasses", glasses_table),
    "models": ("U-Net and DeepLabV3", models_table),
    "data-size": ("Number of training faces", data_size_table),
    "published": ("The published figures", published_table),
}
PLOTS = {"occluders": plot_occluders, "models": plot_models, "data-size": plot_data_size}


def write(out: Path) -> None:
    """tables.md and the plots of `out`/results.json."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    experiments = results["experiments"]
    parts = ["# Tables of the experiments"]
    if results["quick"]:
        parts.append("**A quick run, of the machinery alone: these figures mean nothing.**")
    for name, e in experiments.items():
        title, tabulate = TABLES[name]
        parts += [f"## {title}", f"`{e['command']}`", tabulate(e)]
        if name in PLOTS:
            PLOTS[name](e, out / f"{name}.png")
    parts += ["## Settings", settings_table(experiments)]
    write_text(out / "tables.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
