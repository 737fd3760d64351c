"""Folders of many pictures: parts for several processes, going on where one stopped, bounded memory."""

import os

import numpy as np
import pytest
from conftest import one_sentence
from PIL import Image

import main
import pictures


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(11):
        sub = tmp_path / "in" / ("a" if i % 2 else "b")
        sub.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)).save(sub / f"{i}.png")
    return tmp_path / "in"


def names(out):
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png"))


def test_shards_cover_everything_once(folder, tmp_path, lite_weights, capsys, monkeypatch):
    whole, parts = tmp_path / "whole", []
    base = ["predict", str(folder), "--weights", str(lite_weights), "--save", "mask"]
    assert main.main([*base, "--out", str(whole)]) == 0
    for i in (1, 2, 3):
        assert main.main([*base, "--out", str(tmp_path / f"part{i}"), "--shard", f"{i}/3"]) == 0
        parts.append(names(tmp_path / f"part{i}"))
    assert sorted(name for part in parts for name in part) == names(whole)
    assert len(names(whole)) == 11
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    monkeypatch.setenv("RANK", "1")  # as torchrun sets them
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main.main([*base, "--out", str(tmp_path / "rank1")]) == 0
    assert names(tmp_path / "rank1") == parts[1]


def test_no_file_is_replaced_but_a_result(folder, tmp_path, lite_weights, capsys):
    base = ["predict", "--weights", str(lite_weights), "--save", "mask"]
    target = folder / "a" / "1_mask.png"  # such as a hand-drawn mask beside its picture
    Image.new("L", (48, 40), 255).save(target)
    before = target.read_bytes()
    assert main.main([*base, str(folder), "--out", str(folder)]) == 1
    one_sentence(capsys.readouterr().err, target)
    assert target.read_bytes() == before
    assert (folder / "a" / "1_mask_mask.png").exists()  # it is a picture like any other
    assert (folder / "a" / "3_mask.png").exists()
    assert not (folder / "a" / "3_mask_mask.png").exists()
    result = folder / "a" / "3_mask.png"  # a result, and an input now
    before = result.read_bytes()
    assert main.main([*base, str(folder / "a" / "3.png"), str(result), "--out", str(folder / "a")]) == 1
    one_sentence(capsys.readouterr().err, result)
    assert result.read_bytes() == before


def test_skip_existing_knows_whose_results_are_there(folder, tmp_path, lite_weights, capsys):
    """A picture that takes another's name, and one replaced by an older file, are segmented."""
    base = ["predict", str(folder / "a"), "--weights", str(lite_weights), "--out", str(tmp_path / "out")]
    assert main.main(base) == 0
    Image.new("RGB", (30, 20)).save(folder / "a" / "1.jpg")  # comes before 1.png
    (folder / "b" / "0.png").replace(folder / "a" / "3.png")
    os.utime(folder / "a" / "3.png", (1, 1))
    capsys.readouterr()
    assert main.main([*base, "--skip-existing"]) == 0
    assert "3 of 6 pictures done, 3 were there already" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "1_mask.png") as mask:
        assert mask.size == (30, 20)


@pytest.mark.parametrize(
    "given",
    [
        {"WORLD_SIZE": "2"}, {"RANK": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "", "WORLD_SIZE": ""}, {"WORLD_SIZE": "0"},
    ],
)  # fmt: skip
def test_a_numbering_that_leaves_pictures_out_is_refused(given, folder, tmp_path, lite_weights, capsys, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    command = ["predict", str(folder), "--weights", str(lite_weights), "--out", str(tmp_path / "out")]
    assert main.main(command) == 1
    one_sentence(capsys.readouterr().err, "RANK" if "RANK" in given else "WORLD_SIZE", "torchrun")
    assert not (tmp_path / "out").exists()


def test_processes_that_cannot_meet_are_refused(prepared, tmp_path, lite_weights, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["evaluate", "--data", str(prepared), "--weights", str(lite_weights), "--out", str(tmp_path / "out")]
    assert main.main(command) == 1
    one_sentence(capsys.readouterr().err, "MASTER_ADDR", "torchrun")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_no_shard(text, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["predict", "folder", f"--shard={text}"])
    assert stop.value.code == 2
    assert "3/16" in capsys.readouterr().err


def test_skip_existing_does_only_what_is_missing(folder, tmp_path, lite_weights, capsys):
    out = tmp_path / "out"
    base = ["predict", str(folder), "--weights", str(lite_weights), "--out", str(out)]
    assert main.main(base) == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.*")}
    (out / "a" / "3_mask.png").unlink()
    capsys.readouterr()
    assert main.main([*base, "--skip-existing"]) == 0
    assert "1 of 11 pictures done, 10 were there already" in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*.*")}
    assert after.keys() == before.keys()
    assert {p.name for p in after if after[p] != before[p]} == {"3_mask.png", "3_overlay.jpg"}
    later = max(before.values()) / 1e9 + 10
    os.utime(folder / "a" / "3.png", (later, later))  # another picture by now
    assert main.main([*base, "--skip-existing"]) == 0
    assert "1 of 11 pictures done, 10 were there already" in capsys.readouterr().out


def test_few_pictures_are_in_memory_at_a_time(monkeypatch):
    """However many there are, a handful are read ahead and a handful wait to be written."""
    held = {"now": 0, "most": 0}

    def read(path, **options):
        held["now"] += 1
        held["most"] = max(held["most"], held["now"])
        return np.zeros((8, 8, 3), np.uint8)

    def written(job, picture, logits):
        held["now"] -= 1

    class Net:
        def logits(self, pictures):
            return [np.zeros((8, 8), np.float32) for _ in pictures]

    monkeypatch.setattr(pictures, "read_picture", read)
    jobs = (pictures.Job(f"{i}", f"{i}") for i in range(2000))
    done = sum(1 for _ in pictures.predict_files(Net(), jobs, batch_size=4, on_result=written))
    assert done == 2000
    assert held["most"] <= 20
