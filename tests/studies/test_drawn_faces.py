"""The drawn data set: the official layout, and that nobody's pictures are written over."""

import os

import cv2
import pytest
from conftest import leftovers

from common import UserError
from studies.drawn_faces import draw_celeb_tree

IDS = (16000, 16001, 24000)


def test_the_official_layout_is_drawn(tmp_path):
    celeb = draw_celeb_tree(tmp_path, IDS, image_size=256)
    assert celeb == tmp_path / "CelebAMask-HQ"
    pictures = sorted((celeb / "CelebA-HQ-img").iterdir())
    assert [p.name for p in pictures] == ["16000.jpg", "16001.jpg", "24000.jpg"]
    assert cv2.imread(str(pictures[0])).shape == (256, 256, 3)
    assert (celeb / "CelebAMask-HQ-mask-anno" / ".DS_Store").exists()
    skin = celeb / "CelebAMask-HQ-mask-anno" / "8" / "16000_skin.png"
    assert 0.08 < (cv2.imread(str(skin), cv2.IMREAD_GRAYSCALE) > 127).mean() < 0.4
    assert not leftovers(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in celeb.rglob("*")}
    draw_celeb_tree(tmp_path, IDS, image_size=256)  # once more, over its own
    assert {path: path.stat().st_mtime_ns for path in celeb.rglob("*")} == before


def test_nothing_is_written_over_other_pictures(tmp_path):
    real = tmp_path / "CelebAMask-HQ" / "CelebA-HQ-img" / "16001.jpg"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"a photograph")
    with pytest.raises(UserError, match="CelebAMask-HQ holds files that were not drawn here"):
        draw_celeb_tree(tmp_path, IDS, image_size=256)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [real]

    linked = draw_celeb_tree(tmp_path / "drawn", IDS, image_size=256) / "CelebA-HQ-img" / "16001.jpg"
    linked.unlink()
    os.link(real, linked)  # a photograph put into the drawn folder
    with pytest.raises(UserError, match="is another picture"):
        draw_celeb_tree(tmp_path / "drawn", IDS, image_size=256)
    assert real.read_bytes() == b"a photograph"
