"""Minutes that the notebook's steps take on a T4, and the FLOPs of the networks.

    python -m studies.estimate

A backward pass costs two forward ones. Reading pictures is not counted.
"""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

import const
import model as networks

FACES = len(const.IDS_TRAIN)  # as many to validate
# FLOP/s that such networks reach on a T4 in mixed precision, by the published throughput of ResNet-50 and
# EfficientNet-B0 in training; far below its peak
RATES = {"deeplabv3": 10e12, "unet": 10e12, "lite": 1.5e12}


@cache
def flops(model: str, size: int) -> int:
    """Of one forward pass over a picture of size x size; a multiplication and an addition are two."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        networks.build(model).eval()(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


def minutes(model: str, size: int, *, trained: int = 0, predicted: int = 0) -> float:
    """On a T4, of so many pictures trained on, and so many predicted."""
    return (3 * trained + predicted) * flops(model, size) / RATES[model] / 60


def notebook_steps() -> dict[str, float]:
    """Minutes of the steps that compute, with the data set at hand: the original's experiment."""
    large, shown = (const.MODEL, const.IMG_SIZE), const.EPOCHS * FACES
    return {
        "5 Training": minutes(*large, trained=shown, predicted=shown),
        "6 Evaluation": minutes(*large, predicted=FACES + 24 + 10),  # thresholds on 24, the worst 10
        "7 Prediction": minutes(*large, predicted=6) + minutes("lite", 384, predicted=100),
    }


def shown(value: float) -> str:
    """ "about 32 minutes"."""
    return "less than a minute" if value < 1 else f"about {value:.0f} minute{'s' if value >= 1.5 else ''}"


if __name__ == "__main__":
    for step, value in notebook_steps().items():
        print(f"{step:14} {shown(value)} on a T4, estimated from FLOPs")
    for model in RATES:
        print(f"{model:10} {flops(model, 256) / 1e9:6.1f} GFLOPs at 256x256, {flops(model, 512) / 1e9:6.1f} at 512x512")
