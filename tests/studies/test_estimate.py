"""Minutes from FLOPs, and that the notebook tells them."""

import json

import pytest
from conftest import ROOT

from studies import estimate


def test_flops_of_known_networks_and_of_larger_pictures():
    # torchvision gives 178.72 billion multiplications and additions for 520x520
    assert estimate.flops("deeplabv3", 512) == pytest.approx(2 * 178.72e9 * (512 / 520) ** 2, rel=0.06)
    assert estimate.flops("unet", 128) * 4 == pytest.approx(estimate.flops("unet", 256), rel=0.01)


def test_a_training_step_is_three_predictions():
    one = estimate.minutes("unet", 64, predicted=300)
    assert estimate.minutes("unet", 64, trained=100) == pytest.approx(one)


def test_the_notebook_tells_the_minutes_of_its_steps():
    cells = json.loads((ROOT / "notebooks" / "face_segmentation.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    for step, minutes in estimate.notebook_steps().items():
        (section,) = (text for text in texts if text.startswith(f"## {step}"))
        assert f"{estimate.shown(minutes)} on a T4" in section
    assert any("python -m studies.estimate" in text for text in texts)
