"""The drawn data set: the real command, and that it writes over nobody's pictures."""

import os

import cv2
from conftest import leftovers, one_sentence, run

from studies import drawn_faces


def command(out, *more) -> list[str]:
    return [str(a) for a in ("--out", out, "--train", 3, "--val", 2, "--image-size", 256, *more)]


def test_the_official_layout_is_drawn(tmp_path):
    result = run("studies.drawn_faces", *command(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "5 drawn faces" in result.stdout
    celeb = tmp_path / "CelebAMask-HQ"
    pictures = sorted((celeb / "CelebA-HQ-img").iterdir())
    assert [p.name for p in pictures] == ["16000.jpg", "16001.jpg", "16002.jpg", "24000.jpg", "24001.jpg"]
    assert cv2.imread(str(pictures[0])).shape == (256, 256, 3)
    assert (celeb / "CelebAMask-HQ-mask-anno" / ".DS_Store").exists()
    skin = celeb / "CelebAMask-HQ-mask-anno" / "8" / "16000_skin.png"
    assert 0.08 < (cv2.imread(str(skin), cv2.IMREAD_GRAYSCALE) > 127).mean() < 0.4
    assert not leftovers(tmp_path)
    assert run("studies.drawn_faces", *command(tmp_path)).returncode == 0  # once more, over its own
    wrong = run("studies.drawn_faces", "--out", tmp_path, "--train", -1)
    assert wrong.returncode == 2
    one_sentence(wrong.stderr, "--train")


def test_nothing_is_written_over_other_pictures(tmp_path, capsys):
    real = tmp_path / "CelebAMask-HQ" / "CelebA-HQ-img" / "16001.jpg"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"a photograph")
    assert drawn_faces.main(command(tmp_path)) == 1
    one_sentence(capsys.readouterr().err, real.parent.parent, "--out")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [real]

    drawn = tmp_path / "drawn"
    assert drawn_faces.main(command(drawn)) == 0
    linked = drawn / "CelebAMask-HQ" / "CelebA-HQ-img" / "16001.jpg"
    linked.unlink()
    os.link(real, linked)  # a photograph put into the drawn folder
    assert drawn_faces.main(command(drawn)) == 1
    one_sentence(capsys.readouterr().err, linked, "--out")
    assert real.read_bytes() == b"a photograph"
