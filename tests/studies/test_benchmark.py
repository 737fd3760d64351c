"""The measuring script: cheap sections as a person would run them, the table, and that both ways do the same."""

import json

import numpy as np
import pytest
from conftest import leftovers, one_sentence, run

import model
from inference import Segmenter
from studies import benchmark, timing


def test_a_section_is_measured_printed_and_saved(tmp_path):
    out = tmp_path / "results" / "numbers.json"
    out.parent.mkdir()
    kept = {"machine": {}, "quick": True, "rows": []}
    out.write_text(json.dumps({"sections": {"growth": kept}}))
    done = run("studies.benchmark", "prepare", "--quick", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "faces prepared" in done.stdout
    record = json.loads(out.read_text())
    assert record["sections"]["growth"] == kept
    section = record["sections"]["prepare"]
    assert {"processor", "cores", "torch", "date"} <= section["machine"].keys()
    for line in section["rows"]:
        assert 0 < line["baseline"] < 60
        assert line["ratio"] == pytest.approx(line["baseline"] / line["ours"])
    assert "200 faces prepared" in out.with_suffix(".md").read_text()
    assert not leftovers(tmp_path)


def test_ways_are_interleaved(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def way(name, durations):
        def go():
            order.append(name)
            clock[0] += next(durations)

        return go

    took = timing.interleaved({"a": way("a", iter([9, 1, 5, 2])), "b": way("b", iter([9, 4, 3, 8]))}, 3)
    assert order == ["a", "b"] * 4  # the first round warms up
    assert took == {"a": 2, "b": 4}

    order.clear()
    took = timing.interleaved({"a": way("a", iter([3, 3, 6, 0])), "b": way("b", iter([9, 4]))}, 1, at_least=7)
    assert order == ["a", "b", "a", "a", "a", "b"]  # what is short is repeated
    assert took == {"a": 3, "b": 4}


def test_ratios_say_how_many_times_as_fast():
    assert benchmark.row("x", 2.0, 0.5)["ratio"] == 4
    assert benchmark.row("x", 2.0, 8.0, "images/s")["ratio"] == 4


def test_the_baselines_do_the_same(prepared, lite_weights):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    net, info = model.load(lite_weights)
    full = Segmenter(net, info, precision="fp32").logits([picture])[0]
    assert np.allclose(benchmark.baseline_segmenter(net, info).logits([picture])[0], full, atol=1e-3)
    assert (benchmark.baseline_mask(model.load(lite_weights)[0], picture, 64) == (full > 0)).mean() > 0.999


def test_the_baseline_loop_and_the_trainer_lose_alike(prepared, tmp_path):
    context = benchmark.Context(tmp_path, quick=True, data=prepared)
    line = benchmark._train_side_by_side(context, "lite", 64, 6)
    assert line["loss_ours"] == pytest.approx(line["loss_baseline"], abs=0.02)
    assert line["baseline"] > 0


MACHINE = {"processor": "A Processor", "cores": 2, "bf16": True, "gpu": None, "torch": "2.0", "date": "2026-01-02"}
ROWS = [
    {"what": "one", "baseline": 2.0, "ours": 0.5, "unit": "s", "ratio": 4.0, "mask_iou": 0.99912},
    {"what": "two", "ours": 1234.5, "unit": "s", "peak_mb": 612.3},
]


def test_sections_of_one_machine_share_a_table():
    predict = {"machine": MACHINE, "quick": False, "rows": ROWS}
    text = benchmark.to_markdown({"sections": {"load": predict, "predict": predict}})
    assert text.count("| baseline |") == 1
    assert "processor A Processor, cores 2, bf16 True, torch 2.0, date 2026-01-02" in text
    assert "| predict | one | 2 | 0.5 | s | 4 | mask iou 0.9991 |" in text
    assert "| predict | two |  | 1234 | s |  | peak mb 612 |" in text
    other = {**predict, "machine": {**MACHINE, "cores": 8}}
    assert benchmark.to_markdown({"sections": {"predict": predict, "load": other}}).count("| baseline |") == 2


def test_the_table_in_the_repository_is_made_from_its_file():
    record = benchmark.read_record(benchmark.RESULTS)
    assert set(record["sections"]) == set(benchmark.SECTIONS)
    assert not any(section["quick"] for section in record["sections"].values())
    assert benchmark.RESULTS.with_suffix(".md").read_text(encoding="utf-8") == benchmark.to_markdown(record)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, ["nonsense", "predict"]),
        (["load", "--data", "nowhere"], 1, ["nowhere", "data_preprocessing.py"]),
        (["load", "--out", "damaged.json"], 1, ["damaged.json", "remove it"]),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, code, words, tmp_path):
    (tmp_path / "damaged.json").write_text("[]")
    done = run("studies.benchmark", *arguments, cwd=tmp_path)
    assert done.returncode == code
    one_sentence(done.stderr, *words)
