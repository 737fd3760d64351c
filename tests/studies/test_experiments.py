"""The experiments: the real command on drawn faces and a tiny plan, what it leaves alone, and the tables."""

import json
import re
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from conftest import fingerprints, history, leftovers, one_sentence
from PIL import Image

import const
import model
from main import Runner
from metrics import Counts
from studies import benchmark, experiments, report

RUNS = ["cutout-on-1", "cutout-off-1", "cutout-image-only-1", "glasses-left-in-1", "faces-6-1"]


def command(place, *more) -> int:
    return experiments.main([str(a) for a in (*more, "--quick", "--runs", place / "runs", "--out", place / "out")])


@pytest.fixture(scope="module")
def networks(small_bundled):
    """No pretrained weights at hand, and the bundled weights at half their size."""
    build = model.build

    def offline(name, *, pretrained=False):
        if pretrained:
            raise model.ModelError(f"The pretrained weights of {name} cannot be fetched.")
        return build(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(const, "BUNDLED_WEIGHTS", small_bundled[0])
        patch.setattr(const, "BUNDLED_SHA256", small_bundled[1])
        patch.setattr(model, "build", offline)
        yield


@pytest.fixture(scope="module")
def place(networks, prepared, celeb_source, occluder_dir, tmp_path_factory):
    """The whole of --gpu on the CPU: one training killed after its first epoch."""
    place = tmp_path_factory.mktemp("experiments")
    data = ["--source", celeb_source, "--data", prepared, "--occluders", occluder_dir]
    with pytest.MonkeyPatch.context() as patch:
        context = experiments.find_context(
            experiments.build_parser().parse_args([str(a) for a in ("--quick", "--runs", place / "runs", *data)])
        )
        folder = context.folder / "cutout-on-1"
        Runner("cpu").train(context.configs["cutout-on-1"], prepared, folder, workers=0, cache=True, stop_after=1)
        calls, logged = [], []
        patch.setattr(benchmark, "main", calls.append)
        patch.setattr(Runner, "__init__", logging_to(logged, Runner.__init__))
        assert command(place, "--gpu", *data) == 0
    assert calls == [["--out", str(place / "out" / "benchmark.json"), "start", "--quick"]]
    return place, logged


def logging_to(lines, init):
    def patched(self, device="auto", *, log=print):
        init(self, device, log=lines.append if log is print else log)

    return patched


def test_everything_is_trained_to_its_end_and_measured(place):
    place, logged = place
    assert any("Resuming" in line and "cutout-on-1" in line for line in logged)
    results = json.loads((place / "out" / "results.json").read_text())
    assert set(results["runs"]) == set(RUNS)
    for name in RUNS:
        folder = place / "runs" / "claims" / name
        assert [row["epoch"] for row in history(folder)] == [1, 2]
        assert not (folder / "last.pth").exists()
        assert json.loads((folder / "config.json").read_text())["limit"] == (6 if name == "faces-6-1" else None)
        run = results["runs"][name]
        assert run["kinds"]["clean"]["pictures"] == 6  # not the limit
        assert ("photographed hands" in run["kinds"]) == name.startswith("cutout")
        assert ("real glasses" in run["kinds"]) == (name in ("cutout-on-1", "glasses-left-in-1"))
    assert not leftovers(place)


def test_the_original_s_networks_are_trained_but_for_those_whose_weights_cannot_be_had(place):
    place, logged = place
    networks = json.loads((place / "out" / "results.json").read_text())["networks"]
    assert set(networks) == {"deeplabv3-64", "unet-64", "bundled"}
    for name in ("deeplabv3-64", "unet-64"):
        assert any(line.startswith(f"{name}-pretrained is left out") for line in logged)
    for network in networks.values():
        assert {"clean", "hand", "photographed hands", "glasses", "real glasses"} <= network["kinds"].keys()
        assert network["seconds"] > 0
    tables = (place / "out" / "tables.md").read_text()
    assert re.search(r"\| unet-64 \| 64 \| random \| 1 of 1 \| [01]\.", tables)
    assert "mean nothing" in tables
    assert {p.name for p in (place / "out").glob("*.png")} == {
        "occluders.png", "data-size.png", "models.png", "claims.png", "occluders-faces.png", "glasses-faces.png",
        "models-faces.png",
    }  # fmt: skip


def test_glasses_left_in_the_masks(place, prepared):
    """The same faces; masks differ where glasses are worn, and only by more face."""
    place, worn = place[0], {}
    for split in ("train", "val"):
        masks = sorted((prepared / f"masks_{split}").iterdir())
        whole = place / "runs" / "claims" / "glasses-left-in-data" / f"masks_{split}"
        assert [p.name for p in masks] == sorted(p.name for p in whole.iterdir())
        for path in masks:
            ours, theirs = np.asarray(Image.open(path)) > 0, np.asarray(Image.open(whole / path.name)) > 0
            assert (theirs | ours == theirs).all()
            worn[split] = worn.get(split, 0) + (theirs != ours).any()
    runs = json.loads((place / "out" / "results.json").read_text())["runs"]
    assert runs["cutout-on-1"]["kinds"]["real glasses"]["pictures"] == worn["val"] > 0
    assert worn["train"] > 0


def test_a_second_call_trains_and_measures_nothing(place, prepared, celeb_source, occluder_dir, capsys, monkeypatch):
    monkeypatch.setattr(experiments, "draw_figures", lambda context, weights: None)  # the same once more
    place, _ = place
    before = fingerprints(place / "runs" / "claims")
    tables = (place / "out" / "tables.md").read_text()
    data = ["--source", celeb_source, "--data", prepared, "--occluders", occluder_dir]
    assert command(place, "data-size", *data) == 0
    assert "---" not in (printed := capsys.readouterr().out)
    assert "2 trainings of 16 pictures at 64 pixels, 2 of them finished" in printed
    after = fingerprints(place / "runs" / "claims")
    assert {path for path in after if after[path] != before.get(path)} == {place / "runs" / "claims" / "plan.json"}
    assert tables.count("\n") == (place / "out" / "tables.md").read_text().count("\n")  # the rest is kept


def test_the_plan_is_kept_and_other_settings_are_refused(place, prepared, tmp_path, capsys):
    data = ["--data", prepared, "--runs", tmp_path / "runs"]
    shutil.copytree(place[0] / "runs" / "claims" / "cutout-on-1", tmp_path / "runs" / "claims" / "cutout-on-1")
    (tmp_path / "runs" / "claims" / "plan.json").write_text('{"size": 96, "seeds": [1], "of another version": 1}')
    assert experiments.main([str(a) for a in ("data-size", "--quick", *data, "--out", tmp_path / "out")]) == 1
    one_sentence(capsys.readouterr().err, "cutout-on-1", "size 64, not 96", "--runs")
    assert not (tmp_path / "out").exists()
    kept = tmp_path / "runs" / "claims" / "plan.json"
    kept.write_text('{"seeds": [1]}')
    assert experiments.main([str(a) for a in ("data-size", "--quick", *data, "--size", 96)]) == 1
    one_sentence(capsys.readouterr().err, "size 64, not 96")
    assert kept.read_text() == '{"seeds": [1]}'  # what was refused leaves no trace
    shutil.copytree(prepared, tmp_path / "fewer")
    for kind in ("images", "masks"):
        next((tmp_path / "fewer" / f"{kind}_val").glob("24000*")).unlink()
    assert experiments.main([str(a) for a in ("data-size", "--quick", *data, "--data", tmp_path / "fewer")]) == 1
    one_sentence(capsys.readouterr().err, "val_pictures 6, not 5")


def test_a_full_run_is_not_overwritten_by_a_quick_one(prepared, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text('{"quick": false}')
    assert command(tmp_path, "data-size", "--data", prepared) == 1
    one_sentence(capsys.readouterr().err, tmp_path, "full", "--out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["cover"], ["cover", "data-size"]),
        (["occluders", "--data", "nowhere"], ["CelebAMask-HQ"]),
        (["glasses", "--quick", "--source", "nowhere.zip"], ["nowhere.zip"]),
        (["--gpu", "--device", "cpu"], ["GPU"]),
        (["--quick", "--occluders", "nowhere"], ["nowhere"]),
    ],
)
def test_mistakes_are_one_sentence(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if experiments.const.CELEB_DIR.is_dir():
        pytest.skip("the data set is here")
    assert experiments.main([*args, "--runs", "runs", "--out", "out"]) == 1
    one_sentence(capsys.readouterr().err, *words)
    assert not (tmp_path / "out").exists()


# --- Figures, tables and plots ---------------------------------------------------------------------------------------
class Rising:
    """In a segmenter's place: logits that rise from left to right."""

    def logits(self, images):
        return [np.tile(np.linspace(-2, 2, image.shape[1], dtype=np.float32), (image.shape[0], 1)) for image in images]


def test_the_original_s_average_is_not_the_pooled_figure():
    targets = [np.zeros((40, 40), np.uint8) for _ in range(5)]  # a batch of four, and one of one
    for i, target in enumerate(targets):
        target[:, 20 - 4 * i :] = 255
    figures = experiments.measure_clean(Rising(), ((str(i), np.zeros((40, 40, 3)), t) for i, t in enumerate(targets)))
    each = [Counts().add(Rising().logits([target])[0] > 0, target > 127) for target in targets]
    batches = [sum(each[:4], Counts()), each[4]]
    assert figures["dice"] == sum(each, Counts()).dice
    assert figures["thresholds"]["0.0"]["batch_iou"] == pytest.approx(sum(b.iou for b in batches) / 2)
    assert figures["thresholds"]["0.9"]["recall"] < figures["recall"]
    assert [name for _, name in figures["worst"]] == ["4", "3", "2", "1", "0"]
    assert figures["pictures"] == 5


def results_of(plan) -> dict:
    """Random figures in the place of measured ones, of every run of a plan and of three networks."""
    rng = np.random.default_rng(0)

    def figures(**more):
        return {"dice": float(rng.random()), report.RATE: float(rng.random()), "pictures": 6, **more}

    def kinds():
        t = {key: float(rng.random()) for key in ("dice", "iou", "batch_dice", "batch_iou")}
        clean = dict.fromkeys(("precision", "recall", "boundary_iou", "bce", "iou"), 0.4)
        clean |= {"worst": [[0.1, "24001"]], "thresholds": {str(logit): t for logit in experiments.LOGITS}}
        occluded = {kind: figures() for kind in (*experiments.OCCLUDED, *experiments.GLASSES)}
        return {"clean": figures(**clean), **occluded}

    epochs = [{"epoch": i + 1, "seconds": 60.0, "dice": 0.5 + i / 10, "val_loss": 1 / (i + 1)} for i in range(3)]
    variants = [*experiments.VARIANTS, *(f"faces-{n}" for n in plan.counts)]
    network = {"model": "unet", "size": 256, "pretrained": False, "epochs": 8, "device": "cpu", "cpu_threads": 2,
               "precision_used": "bf16", "peak_memory_mb": 1360, "history": epochs}  # fmt: skip
    return {
        "quick": False, "plan": asdict(plan), "faces": {"train": 2000, "val": 2000},
        "machine": {"gpu": None, "processor": "a processor", "cores": 2, "torch": "2", "date": "today"},
        "cutout": {cutout: [0.1, 0.2] for cutout in report.CUTOUTS.values()},
        "runs": {f"{v}-{s}": {"variant": v, "seed": s, "precision_used": "bf16", "history": epochs, "kinds": kinds()}
                 for s in plan.seeds for v in variants},
        "networks": {"unet-256": {**network, "seconds": 0.1, "kinds": kinds()},
                     "deeplabv3-256": {**network, "peak_memory_mb": None, "seconds": 0.1, "kinds": kinds()},
                     "bundled": {"seconds": 0.1, "kinds": kinds()}},
    }  # fmt: skip


def test_every_table_and_plot(tmp_path):
    results = results_of(experiments.Plan())
    trained = {key: value for key, value in results["networks"]["unet-256"].items() if key != "seconds"}
    trained["history"] = [{**epoch, "iou": 0.625} for epoch in trained["history"]]
    results["networks"]["unmeasured"] = {**trained, "kinds": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    report.write(tmp_path)
    page = (tmp_path / "tables.md").read_text()
    assert "| unmeasured | 256 | random | 3 of 8 | 0.7000 | 0.6250 |  |  |  | 0.3333 | 60 |  | 1.4 GB |" in page
    for name in ("occluders", "glasses", "data-size", "models", "published"):
        assert f"`python -m studies.experiments {name}`" in page
    assert "0.923" in page  # the IoU that goes with Dice 0.96
    assert "nan" not in page
    assert "| unet-256 | 256 | random | 3 of 8 |" in page
    assert "| 0.4000 | 60 | 0.100 | 1.4 GB | CPU, 2 threads, bf16 |" in page
    results["runs"]["cutout-on-1"]["kinds"]["hand"]["dice"] += 8 * 3 * 0.1  # one of eight kinds, one of three seeds
    drawn = re.search(r"\| image\+mask (?:\|[^|]*){4}\| (0\.\d+) ±", page)[1]
    for run in results["runs"].values():
        report.add_drawn(run["kinds"])
    after = re.search(r"\| image\+mask (?:\|[^|]*){4}\| (0\.\d+) ±", report.occluders_table(results))[1]
    assert float(after) - float(drawn) == pytest.approx(0.1, abs=0.002)
    assert {p.name for p in tmp_path.glob("*.png")} == {"occluders.png", "models.png", "data-size.png", "claims.png"}
    assert all(p.stat().st_size < 300_000 for p in tmp_path.glob("*.png"))
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_tables_of_what_is_finished_so_far(tmp_path):
    """One seed, two variants, no network, nothing photographed: the other tables are left out."""
    results = results_of(experiments.Plan(seeds=(1,), counts=(50, 500)))
    for name in ("cutout-off-1", "cutout-image-only-1", "glasses-left-in-1", "faces-50-1"):
        del results["runs"][name]
    for run in results["runs"].values():
        run["kinds"] = {k: v for k, v in run["kinds"].items() if k not in (*report.PHOTOGRAPHED, "real glasses")}
    results["networks"] = {}
    (tmp_path / "results.json").write_text(json.dumps(results))
    report.write(tmp_path)
    page = (tmp_path / "tables.md").read_text()
    assert "The original's networks" not in page
    assert not [line for line in page.splitlines() if line.startswith("|") and "photo" in line]
    assert "±" not in page.split("## ", 1)[1]
    assert re.search(r"\| 500 \| 24 \| 0\.\d{4} \|", page)


def test_the_page_in_the_repository_agrees_with_its_tables(tmp_path):
    """The tables are made from results.json; the figures in the page's conclusions, written by hand, are theirs."""
    committed = experiments.RESULTS_DIR
    shutil.copy(committed / "results.json", tmp_path)
    tables = (committed / "tables.md").read_text()
    if "plan" not in json.loads((committed / "results.json").read_text()):
        pytest.skip("the results are of an earlier version of the experiments")
    report.write(tmp_path)
    assert (tmp_path / "tables.md").read_text() == tables
    page = (committed / "README.md").read_text()
    conclusions = "".join(line for line in page.splitlines() if line.startswith("- **"))
    figures = re.findall(r"\d\.\d+ ± \d\.\d+|\d+\.\d %", conclusions)
    assert figures
    for figure in figures:
        assert figure in tables, figure
    shown = re.findall(r"\]\(([\w-]+\.(?:png|md))\)", page)
    files = {p.name for p in committed.iterdir() if p.is_file()}
    assert files == {"README.md", "results.json", "benchmark.json", *shown}


def test_the_hole_as_meant_and_as_lost():
    mask = np.zeros((512, 512), np.uint8)
    mask[150:430, 120:390] = 255
    picture, face = experiments.cutout_fraction("image+mask", 128, [mask], draws=200)
    assert 0.14 < picture < 0.21  # 0.45 of the height x 0.55 of the width x p 0.7
    assert 0.25 < face < 0.5  # which lies in the middle
    picture, face = experiments.cutout_fraction("image-only", 128, [mask], draws=200)
    assert 0 < picture < 0.05
    assert face == 0
    assert experiments.cutout_fraction("none", 128, [mask], draws=5) == (0, 0)
