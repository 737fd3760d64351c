"""Tables and plots of the experiments, made from `results.json` alone; `experiments.py` calls it.

    python -m studies.report results       results/tables.md and the plots, anew

The sentences are in results/README.md, written by hand.
"""

import argparse
import csv
import io
import sys
from operator import itemgetter
from pathlib import Path

import numpy as np
from PIL import Image

import const
from common import UserError, exit_code, replacing, write_text
from drawing import grid, overlay, parse_color
from robust import occluders, photographed
from studies.shared import read_json, table

PUBLISHED = [  # rows of the tables, as the original rounded
    {"network": "published, DeepLabV3", "start": "COCO", "Dice": "0.96", "IoU": "0.94", "BCE": "0.049"},
    {"network": "published, U-Net", "start": "ImageNet", "Dice": "0.96", "IoU": "0.93", "BCE": "0.053"},
]
CUTOUTS = {"cutout-on": "image+mask", "cutout-off": "none", "cutout-image-only": "image-only"}
GLASSES_MASKS = {"cutout-on": "without glasses", "glasses-left-in": "glasses left in"}
PHOTOGRAPHED = tuple(f"photographed {kind}" for kind in photographed.KINDS)
OCCLUDED = {"drawn": "drawn", **dict(zip(PHOTOGRAPHED, photographed.KINDS, strict=True))}  # kinds, and their heads
RATE = "occluded_false_positive_rate"
LEGEND = (
    "±: standard deviation over seeds. FP: of the face's pixels behind the occluder, those predicted as face. Dice, "
    "IoU and boundary IoU: of counts pooled over the faces, at probability 0.5; on drawn occluders the mean over their "
    f"kinds ({', '.join(occluders.KINDS)}). Hands, objects and masks are photographed, unless called drawn. "
    "Where precision is missing, the others are of the validation while training, in the epoch kept."
)
COLORS = (
    "#1b6ca8", "#d1495b", "#8a8a8a", "#2e8b57", "#c98a1b", "#6a4c93", "#17a2b8", "#7f5539", "#d67ab1", "#2b2d42"
)  # fmt: skip
DPI, CELL = 110, 1.3  # pixels an inch; inches of a face in the sheets


# --- Run directories ------------------------------------------------------------------------------------------------
def history(run_dir: Path) -> list[dict]:
    """The rows of its history.csv; none without one."""
    if not (path := run_dir / "history.csv").is_file():
        return []
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return [{key: float(value) for key, value in row.items()} for row in rows]


def described(run_dir: Path) -> dict:
    """How a network was trained."""
    return {**read_json(run_dir / "config.json"), "history": history(run_dir)}


# --- Numbers --------------------------------------------------------------------------------------------------------
def spread(values, digits: int = 3, percent: bool = False) -> str:
    """ "0.912 ± 0.004": the mean and the standard deviation over seeds; the value alone where there is one."""
    values = np.asarray(list(values), float) * (100 if percent else 1)
    deviation = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}{' %' if percent else ''}"


def by_variant(results: dict) -> dict[str, list[dict]]:
    """The finished trainings of the claims, one entry a seed."""
    found: dict[str, list[dict]] = {}
    for run in sorted(results["runs"].values(), key=lambda run: run["seed"]):
        found.setdefault(run["variant"], []).append(run)
    return found


def measured(results: dict, names: dict) -> dict:
    """{name: what was measured, {kind: figures} for each seed} of the variants in {variant: name} that are finished."""
    found = by_variant(results)
    return {name: [run["kinds"] for run in found[variant]] for variant, name in names.items() if variant in found}


def add_drawn(kinds: dict) -> None:
    """Add to the figures of a network, as the kind "drawn", their means over the kinds of drawn occluders."""
    if kinds.keys() >= occluders.KINDS.keys():
        figures = {k: [kinds[kind][k] for kind in occluders.KINDS] for k in ("dice", RATE)}
        kinds["drawn"] = {k: float(np.mean([v for v in values if v is not None])) for k, values in figures.items()}


# --- Plots ----------------------------------------------------------------------------------------------------------
def _subplots(width: float, height: float, columns: int = 1) -> tuple:
    """A figure, inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _save(figure, path: Path, colors: int | None = None) -> None:
    """As a PNG; with a palette of so many colours, where photographs would make it too large."""
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format="png")
    picture = Image.open(file).convert("RGB")
    if colors:
        picture = picture.quantize(colors, kmeans=3, dither=Image.Dither.NONE)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG", optimize=True)


def save_grid(images: list, masks: dict[str, list], path: Path) -> None:
    """Pictures uint8 (512, 512, 3) in a row, and below them the same overlaid with the masks, {row: [uint8 (512, 512),
    ...]}."""
    color = parse_color(const.OVERLAY_COLOR)
    rows = [images, *([overlay(i, m, color, 0.6) for i, m in zip(images, row, strict=True)] for row in masks.values())]
    _save(grid(rows, names=["picture", *masks], side=CELL), path, 256)


def plot_occluders(results: dict, path: Path) -> None:
    """Dice, and the false-positive rate on occluded pixels, by kind of occluder: a dot a seed, a line at the mean."""
    if not (groups := measured(results, CUTOUTS)):
        return
    figure, axes = _subplots(11, 4, 2)
    kinds = [kind for kind in ("clean", *occluders.KINDS, *PHOTOGRAPHED) if kind in next(iter(groups.values()))[0]]
    for axis, names, key, scale in ((axes[0], kinds, "dice", 1), (axes[1], kinds[1:], RATE, 100)):
        for j, (label, runs) in enumerate(groups.items()):
            values = np.array([[run[kind][key] for run in runs] for kind in names]) * scale  # (kinds, seeds)
            x = np.arange(len(names)) + (j - 1) * 0.22
            axis.hlines(values.mean(1), x - 0.09, x + 0.09, color=COLORS[j], lw=2, label=label)
            axis.plot(np.repeat(x, len(runs)), values.ravel(), ".", color=COLORS[j], ms=5, alpha=0.6)
        names = [name.replace("photographed ", "photo: ") for name in names]
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.grid(alpha=0.3, axis="y")
    axes[0].set(ylabel="Dice")
    axes[1].set(ylabel="occluded pixels predicted as face, %", ylim=(0, None))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="CoarseDropout in", loc="outside upper center", ncols=3, fontsize=8)
    _save(figure, path)


def data_size(results: dict) -> tuple[np.ndarray, list[np.ndarray]]:
    """Numbers of training faces, and the errors 1 - Dice of each number's seeds."""
    counts = {f"faces-{n}": n for n in results["plan"]["counts"]} | {"cutout-on": results["faces"]["train"]}
    found = measured(results, counts)
    return np.array(list(found)), [np.array([1 - run["clean"]["dice"] for run in runs]) for runs in found.values()]


def plot_data_size(results: dict, path: Path) -> None:
    n, errors = data_size(results)
    if len(n) < 2:
        return
    figure, axis = _subplots(6.4, 3.8)
    each = np.repeat(n, list(map(len, errors))), 1 - np.concatenate(errors)
    axis.plot(*each, ".", color=COLORS[2], label="each seed")
    axis.plot(n, [1 - row.mean() for row in errors], "o", color=COLORS[0], label="mean")
    axis.set(xscale="log", xlabel="training faces", ylabel="Dice, pooled counts", xlim=(n[0] / 1.1, n[-1] * 1.1))
    axis.set_xticks(n, [str(v) for v in n])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def plot_curves(histories: dict[str, list[list[dict]]], path: Path) -> None:
    """Validation loss and Dice over the epochs, a line for each of a name's runs."""
    if not histories:
        return
    figure, axes = _subplots(9, 3.4, 2)
    last = max(len(rows) for runs in histories.values() for rows in runs)
    labels = {"val_loss": "validation loss (BCE)", "dice": "validation Dice"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for j, (name, runs) in enumerate(histories.items()):
            for i, rows in enumerate(runs):
                x, y = [row["epoch"] for row in rows], [row[key] for row in rows]
                axis.plot(x, y, ".-", color=COLORS[j % len(COLORS)], lw=1, label=None if i else name)
        axis.set(xlabel="epoch", ylabel=label, xlim=(0.8, last + 0.2))
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8, loc="lower right")
    _save(figure, path)


# --- Tables ---------------------------------------------------------------------------------------------------------
def dice_and_rate(runs: list[dict], kinds: dict[str, str]) -> dict[str, str]:
    """Cells of Dice and false-positive rate over seeds, for {kind: its name in the head}, of what was measured."""
    cells = {}
    for kind, name in kinds.items():
        if all(kind in run for run in runs):
            cells[f"{name}: Dice"] = spread(run[kind]["dice"] for run in runs)
            cells[f"{name}: FP"] = spread((run[kind][RATE] for run in runs), 1, percent=True)
    return cells


def occluders_table(results: dict) -> str:
    rows = []
    for cutout, runs in measured(results, CUTOUTS).items():
        picture, face = results["cutout"][cutout]
        rows.append({
            "CoarseDropout in": cutout, "of the picture": f"{picture:.1%}", "of the face": f"{face:.1%}",
            "seeds": len(runs), "clean: Dice": spread(run["clean"]["dice"] for run in runs),
            **dice_and_rate(runs, OCCLUDED),
        })  # fmt: skip
    return table(rows)


def glasses_table(results: dict) -> str:
    rows, kinds = [], {"real glasses": "real", "glasses": "drawn"}
    for name, runs in measured(results, GLASSES_MASKS).items():
        faces = {f"{kinds[k]}: faces": runs[0][k]["pictures"] for k in kinds if k in runs[0]}
        rows.append({
            "masks in training": name, "seeds": len(runs), **faces, **dice_and_rate(runs, kinds),
            "all faces: Dice": spread(run["clean"]["dice"] for run in runs),
        })  # fmt: skip
    return table(rows)


def data_size_table(results: dict) -> str:
    n, errors = data_size(results)
    shown = results["plan"]["epochs"] * results["plan"]["epoch_size"]
    return table([
        {"faces": k, "times each is shown": f"{shown / k:.0f}", "Dice": spread(1 - row, 4),
         "each seed": " ".join(f"{1 - v:.4f}" for v in row)}
        for k, row in zip(n, errors, strict=True)
    ])  # fmt: skip


def of_best_epoch(rows: list[dict]) -> dict:
    """What the history says of the epoch that was kept, for a network that was not measured."""
    best = min(rows, key=itemgetter("val_loss"))
    return {"dice": best["dice"], "iou": best["iou"], "bce": best["val_loss"]}


def models_table(results: dict) -> str:
    """The original's networks, trained and measured; beside them the published figures and the bundled network."""
    rows = [{**row, "pixels": 512, "epochs": 8} for row in PUBLISHED]
    figures = {"Dice": "dice", "IoU": "iou", "precision": "precision", "recall": "recall",
               "boundary IoU": "boundary_iou", "BCE": "bce"}  # fmt: skip
    occluded, worst = [], []
    kinds = {"glasses": "drawn glasses", "real glasses": "real glasses", **OCCLUDED}
    for name, e in results["networks"].items():
        clean = e["kinds"].get("clean") or of_best_epoch(e["history"])
        row = {head: clean.get(key) for head, key in figures.items()}
        if "history" in e:
            device = f"CPU, {e['cpu_threads']} threads" if e["device"] == "cpu" else e["device"]
            start = ("COCO" if e["model"] == "deeplabv3" else "ImageNet") if e["pretrained"] else "random"
            row |= {
                "pixels": e["size"], "start": start, "epochs": f"{len(e['history'])} of {e['epochs']}",
                "hardware": f"{device}, {e['precision_used']}",
                "s/epoch": f"{np.median([epoch['seconds'] for epoch in e['history']]):.0f}",
                "memory": f"{e['peak_memory_mb'] / 1000:.1f} GB" if e["peak_memory_mb"] else "",
            }  # fmt: skip
        rows.append({"network": name, **row, "s/picture": f"{e['seconds']:.3f}" if "seconds" in e else ""})
        if "clean" in e["kinds"]:
            occluded.append({"network": name, **dice_and_rate([e["kinds"]], kinds)})
            lowest = ", ".join(f"{i} ({dice:.2f})" for dice, i in clean["worst"])
            worst.append({"network": name, "faces of lowest Dice": lowest})
    heads = ["network", "pixels", "start", "epochs", *figures, "s/epoch", "s/picture", "memory", "hardware"]
    return "\n\n".join([table(rows, heads), table(occluded), table(worst)])


def published_table(results: dict) -> str:
    """At every threshold, pooled and as the original averaged; how far a mean's IoU lies above that of its Dice."""
    rows = []
    for row in PUBLISHED:
        partner = float(row["Dice"]) / (2 - float(row["Dice"]))  # the IoU of the same counts
        rows.append({"network": row["network"], "mean Dice": row["Dice"], "mean IoU": row["IoU"],
                     "IoU of that Dice": f"{partner:.3f}", "above it": float(row["IoU"]) - partner})  # fmt: skip
    for name, e in results["networks"].items():
        for logit, t in e["kinds"].get("clean", {"thresholds": {}})["thresholds"].items():
            partner = t["batch_dice"] / (2 - t["batch_dice"])
            rows.append({
                "network": name, "logit": logit, "Dice": t["dice"], "IoU": t["iou"], "mean Dice": t["batch_dice"],
                "mean IoU": t["batch_iou"], "IoU of that Dice": partner, "above it": t["batch_iou"] - partner,
            })  # fmt: skip
    return table(rows, list(rows[-1]))


def settings_table(results: dict) -> str:
    """How each variant of the claims was trained, and whether its curve is flat: the last third's gain in Dice."""
    rows, plan = [], results["plan"]
    for variant, runs in by_variant(results).items():
        gains = []
        for run in runs:
            dice = [epoch["dice"] for epoch in run["history"]]
            gains.append(max(dice) - max(dice[: max(1, len(dice) * 2 // 3)]))
        rows.append({
            "variant": variant, "seeds": " ".join(str(run["seed"]) for run in runs), "pixels": plan["size"],
            "batch": plan["batch_size"], "steps": plan["epochs"] * (plan["epoch_size"] // plan["batch_size"]),
            "rate": f"{plan['lr']:g}", "EMA": f"{plan['ema']:g}",
            "precision": " ".join(run["precision_used"] for run in runs),
            "Dice gained in the last third": spread(gains, 4),
        })  # fmt: skip
    return table(rows)


TABLES = {  # title: (the command's names, table, needs)
    "Occluded faces": ("occluders", occluders_table, "runs"),
    "Eyeglasses": ("glasses", glasses_table, "runs"),
    "Number of training faces": ("data-size", data_size_table, "runs"),
    "The original's networks": ("models", models_table, "networks"),
    "The published figures": ("published", published_table, "networks"),
    "How the claims' networks were trained": ("occluders glasses data-size", settings_table, "runs"),
}


def write(out: Path) -> None:
    """tables.md and the plots of `out`/results.json. Raises UserError: it has none, or none of this form."""
    results = read_json(out / "results.json", "machine", "runs", "networks")
    if not results:
        raise UserError(f"{out} holds no results.json.")
    for entry in (*results["runs"].values(), *results["networks"].values()):
        add_drawn(entry["kinds"])
    m = results["machine"]
    where = f"{m['gpu'] or m['processor']}, {m['cores']} cores, PyTorch {m['torch']}, {m['date']}"
    val, plan = results["faces"]["val"], results["plan"]
    faces = (
        f"{results['faces']['train']} training faces; measured on the first {min(val, plan['val_faces'])} of {val} "
        f"validation faces, and on {min(val, plan['occluded_faces'])} with each occluder"
    )
    parts = ["# Tables of the experiments", f"Measured on {where}; {faces}. {LEGEND}"]
    if results["quick"]:
        parts.append("**A quick run, of the machinery alone: these figures mean nothing.**")
    for title, (names, tabulate, needs) in TABLES.items():
        if results[needs] and (text := tabulate(results)):
            parts += [f"## {title}", f"`python -m studies.experiments {names}`", text]
    write_text(out / "tables.md", "\n\n".join(parts) + "\n")
    plot_occluders(results, out / "occluders.png")
    plot_data_size(results, out / "data-size.png")
    networks = {name: [e["history"]] for name, e in results["networks"].items() if "history" in e}
    plot_curves(networks, out / "models.png")
    claims = {variant: [run["history"] for run in runs] for variant, runs in by_variant(results).items()}
    plot_curves(claims, out / "claims.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m studies.report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with results.json; gets tables.md and the plots")
    folder = parser.parse_args().folder
    sys.exit(exit_code(lambda: write(folder)))
