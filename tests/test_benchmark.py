"""The measuring script: cheap sections as a person would run them, and README's table from the file."""

import json

import pytest
from conftest import ROOT, leftovers, one_sentence, run

from studies import benchmark


def test_a_section_is_measured_printed_and_saved(tmp_path):
    out = tmp_path / "results" / "numbers.json"
    out.parent.mkdir()
    kept = {"machine": {}, "quick": True, "rows": [], "notes": []}
    out.write_text(json.dumps({"sections": {"growth": kept}}))
    done = run("studies.benchmark", "prepare", "--quick", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "faces prepared" in done.stdout
    record = json.loads(out.read_text())
    assert record["sections"]["growth"] == kept
    section = record["sections"]["prepare"]
    assert {"processor", "cores", "torch", "date"} <= section["machine"].keys()
    for line in section["rows"]:
        assert 0 < line["plain"] < 60
        assert line["ratio"] == pytest.approx(line["here"] / line["plain"])
    assert not leftovers(tmp_path)


def test_ways_are_measured_in_turns(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])

    def way(name, durations):
        def go():
            order.append(name)
            clock[0] += next(durations)

        return go

    took = benchmark.interleaved({"a": way("a", iter([9, 1, 5, 2])), "b": way("b", iter([9, 4, 3, 8]))}, 3)
    assert order == ["a", "b"] * 4  # the first round warms up
    assert took == {"a": 2, "b": 4}

    order.clear()
    took = benchmark.interleaved({"a": way("a", iter([3, 3, 6, 0])), "b": way("b", iter([9, 4]))}, 1, at_least=7)
    assert order == ["a", "b", "a", "a", "a", "b"]  # what is short is repeated
    assert took == {"a": 3, "b": 4}


def test_ratios_say_how_many_times_as_good():
    assert benchmark.row("x", 2.0, 0.5)["ratio"] == 4
    assert benchmark.row("x", 2.0, 8.0, "pictures/s")["ratio"] == 4
    assert benchmark.cost("x", 2.0, 3.0, target=4)["ratio"] == 1.5


def test_the_plain_ways_do_the_same(prepared, lite_weights, tmp_path):
    import numpy as np

    import model
    from inference import Segmenter

    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    net, info = model.load(lite_weights)
    exact = Segmenter(net, info, precision="fp32").logits([picture])[0]
    assert np.allclose(benchmark.plain_segmenter(net, info).logits([picture])[0], exact, atol=1e-3)
    assert (benchmark.plain_mask(model.load(lite_weights)[0], picture, 64) == (exact > 0)).mean() > 0.999


def test_the_plain_loop_and_the_trainer_lose_alike(prepared, tmp_path):
    place = benchmark.Place(tmp_path, quick=True, full=False, data=prepared)
    line = benchmark._train_side_by_side(place, "lite", 64, 6)
    assert line["loss_here"] == pytest.approx(line["loss_plain"], abs=0.02)
    assert line["plain"] > 0


RECORD = {
    "sections": {
        "predict": {
            "machine": {
                "processor": "A Processor",
                "cores": 2,
                "bf16": True,
                "gpu": None,
                "torch": "2.0",
                "python": "3.12",
                "date": "2026-01-02",
            },
            "quick": False,
            "rows": [
                {"what": "one", "plain": 2.0, "here": 0.5, "unit": "s", "ratio": 4.0, "target": 2.5, "iou": 0.99912},
                {"what": "two", "here": 1234.5, "unit": "s", "peak_mb": 612.3},
            ],
            "notes": ["The limit is reading."],
        }
    }
}


def test_the_readme_gets_what_the_file_says(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{benchmark.BEGIN}\nold\n{benchmark.END}\n\nThe rest.\n")
    benchmark.rewrite_readme(readme, RECORD)
    text = readme.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("The rest.\n")
    assert "old" not in text
    assert "A Processor, 2 cores, with bf16; PyTorch 2.0; 2026-01-02" in text
    assert "| one (masks agree at IoU 0.9991) | 2 s | 0.5 s | 4 | at least 2.5 |" in text
    assert "| two | 1234 s | 612 MB |" in text
    assert "- The limit is reading." in text
    benchmark.rewrite_readme(readme, RECORD)
    assert readme.read_text() == text


def test_sections_of_two_days_on_one_machine_share_a_table():
    predict = RECORD["sections"]["predict"]
    later = {**predict, "machine": {**predict["machine"], "date": "2026-01-03"}}
    text = benchmark.readme_section({"sections": {"predict": predict, "load": later}})
    assert text.count("| goal |") == 1
    assert "2026-01-02 and 2026-01-03" in text
    other = {**predict, "machine": {**predict["machine"], "cores": 8}}
    assert benchmark.readme_section({"sections": {"predict": predict, "load": other}}).count("| goal |") == 2


def test_the_readme_is_up_to_date():
    """README's numbers are those of the file; without the file there are none."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(benchmark.BEGIN) == text.count(benchmark.END)
    shown = text.partition(benchmark.BEGIN)[2].partition(benchmark.END)[0].strip()
    if benchmark.RESULTS.is_file():
        record = benchmark.read_record(benchmark.RESULTS)
        assert shown == benchmark.readme_section(record)
        assert not any(section["quick"] for section in record["sections"].values())
    else:
        assert not shown


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, ["nonsense", "predict"]),
        (["load", "--data", "nowhere"], 1, ["nowhere", "data_preprocessing.py"]),
        (["--readme", "--out", "nothing.json"], 1, ["nothing.json", "python -m studies.benchmark"]),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, code, words, tmp_path):
    done = run("studies.benchmark", *arguments, cwd=tmp_path)
    assert done.returncode == code
    one_sentence(done.stderr, *words)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "r.json").write_text("[]")
    done = run("studies.benchmark", "--readme", "--out", tmp_path / "r.json")
    assert done.returncode == 1
    one_sentence(done.stderr, "r.json")
