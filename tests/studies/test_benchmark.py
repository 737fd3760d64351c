"""The measuring script: cheap sections as a person would run them, the table, and that both ways do the same."""

import json
import signal
import sys
from functools import partial
from subprocess import Popen
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import leftovers, one_sentence, run

import const
import main
import model
from inference import Segmenter
from studies import benchmark, shared

MESH = """#!/bin/sh
exec {python} -c "import sys
while data := sys.stdin.buffer.read(128 * 128 * 3):
    sys.stdout.buffer.write(bytes(x // 128 for x in data[::3]))
    sys.stdout.buffer.flush()"
"""


def test_a_section_is_measured_printed_and_saved(tmp_path, monkeypatch, capsys):
    for name, number in (("IDS_TRAIN", 2), ("IDS_VAL", 1)):
        monkeypatch.setattr(const, name, getattr(const, name)[:number])
    monkeypatch.setattr(benchmark, "interleaved", partial(shared.interleaved, at_least=0))
    out = tmp_path / "results" / "numbers.json"
    out.parent.mkdir()
    kept = {"machine": {}, "quick": True, "rows": []}
    out.write_text(json.dumps({"sections": {"growth": kept}}))
    mesh = tmp_path / "mesh"  # stands for a Python with MediaPipe: bright pixels are face
    mesh.write_text(MESH.format(python=sys.executable))
    mesh.chmod(0o755)
    assert benchmark.main(["predict", "--quick", "--out", str(out), "--mediapipe", str(mesh)]) == 0
    assert "predict (" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["sections"]["growth"] == kept
    section = record["sections"]["predict"]
    assert {"processor", "cores", "torch", "date"} <= section["machine"].keys()
    baseline, *rows = section["rows"]
    assert baseline["what"].endswith("(baseline)")
    for row in rows:
        assert row["times as fast"] == pytest.approx(baseline["ms"] / row["ms"])
    dice = {row["what"]: row["dice"] for row in rows if "dice" in row}
    assert all(f"bundled, {passes}, PyTorch" in " ".join(dice) for passes in ("1 pass", "2 passes"))
    assert all(0 < value < 1 for value in dice.values())
    assert rows[-1]["what"].startswith("MediaPipe")
    assert rows[-1]["what"] in out.with_suffix(".md").read_text()
    assert not leftovers(tmp_path)


def test_commands_are_timed_alone_and_on_a_busy_machine(small_bundled, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(const, "BUNDLED_WEIGHTS", small_bundled[0])
    monkeypatch.setattr(const, "BUNDLED_SHA256", small_bundled[1])
    monkeypatch.setattr(benchmark, "usable_cores", lambda: 3)
    others = []

    def output(command, text):
        assert main.main(command[2:]) == 0
        return capsys.readouterr().out

    def other(command):  # of which two would take this machine from the tests beside this one
        assert command == [sys.executable, "-c", "while True: pass"]
        others.append(Popen([sys.executable, "-c", "import time; time.sleep(99)"]))
        return others[-1]

    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(check_output=output, Popen=other))
    context = benchmark.Context(tmp_path, quick=True)
    rows = benchmark.busy(context)
    assert [row["what"] for row in rows] == ["torch, 1 pass"]
    assert all(row["idle frames/s"] > 0 and row["busy frames/s"] > 0 for row in rows)
    assert [process.returncode for process in others] == [-signal.SIGKILL] * 3


def test_ways_are_interleaved(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(shared.time, "perf_counter", lambda: clock[0])

    def way(name, durations):
        def go():
            order.append(name)
            clock[0] += next(durations)

        return go

    took = shared.interleaved({"a": way("a", iter([9, 1, 5, 2])), "b": way("b", iter([9, 4, 3, 8]))}, 3)
    assert order == ["a", "b"] * 4  # the first round warms up
    assert took == {"a": 2, "b": 4}

    order.clear()
    took = shared.interleaved({"a": way("a", iter([3, 3, 6, 0])), "b": way("b", iter([9, 4]))}, 1, at_least=7)
    assert order == ["a", "b", "a", "a", "a", "b"]  # what is short is repeated
    assert took == {"a": 3, "b": 4}


def test_the_baselines_do_the_same(prepared, lite_weights):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    net, info = model.load(lite_weights)
    full = Segmenter(net, info, precision="fp32").logits([picture])[0]
    assert np.allclose(benchmark.baseline_segmenter(net, info).logits([picture])[0], full, atol=1e-3)
    assert (benchmark.baseline_mask(model.load(lite_weights)[0], picture, 64) == (full > 0)).mean() > 0.999


def test_the_baseline_loop_and_the_trainer_lose_alike(prepared, tmp_path):
    context = benchmark.Context(tmp_path, quick=True, data=prepared)
    line = benchmark.train_side_by_side(context, "lite", 64, 6)
    assert line["our loss"] == pytest.approx(line["baseline loss"], abs=0.02)
    assert line["times as fast"] == pytest.approx(line["ours steps/s"] / line["baseline steps/s"])


MACHINE = {"processor": "A Processor", "cores": 2, "bf16": True, "gpu": None, "torch": "2.0", "date": "2026-01-02"}
ROWS = [{"what": "one", "ms": 2.0, "dice": 0.99912}, {"what": "two", "ms": 1234.5, "peak MB": 612.3}]


def test_sections_of_one_machine_share_its_line():
    predict = {"machine": MACHINE, "quick": False, "rows": ROWS}
    text = benchmark.to_markdown({"sections": {"load": predict, "predict": predict}})
    assert text.count("processor A Processor, cores 2, bf16 True, torch 2.0, date 2026-01-02") == 1
    assert "## predict\n\n|  | ms | dice | peak MB |\n| --- | --- | --- | --- |\n| one | 2 | 0.9991 |  |\n" in text
    assert "| two | 1234 |  | 612 |" in text
    other = {**predict, "machine": {**MACHINE, "cores": 8}}
    assert benchmark.to_markdown({"sections": {"predict": predict, "load": other}}).count("A Processor") == 2


def test_the_table_in_the_repository_is_made_from_its_file():
    record = shared.read_json(benchmark.RESULTS)
    assert record["sections"].keys() <= set(benchmark.SECTIONS)
    assert not any(section["quick"] for section in record["sections"].values())
    assert benchmark.RESULTS.with_suffix(".md").read_text(encoding="utf-8") == benchmark.to_markdown(record)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, ["nonsense", "predict"]),
        (["load", "--data", "nowhere"], 1, ["nowhere", "data_preprocessing.py"]),
        (["load", "--out", "damaged.json"], 1, ["damaged.json", "remove it"]),
        (["predict", "--quick", "--mediapipe", "nowhere", "--out", "x.json"], 1, ["nowhere", "--mediapipe"]),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, code, words, tmp_path):
    (tmp_path / "damaged.json").write_text("[]")
    done = run("studies.benchmark", *arguments, cwd=tmp_path)
    assert done.returncode == code
    one_sentence(done.stderr, *words)
