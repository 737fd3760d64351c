"""Minutes that the steps of the notebook and of the experiments take, estimated from FLOPs.

    python -m studies.estimate           the notebook's steps on a T4, and the original's trainings on three devices

A step back costs two forward. `RATES` is what such networks reach on a device, far below its peak: on GPUs set after
the published throughput of ResNet-50 and EfficientNet-B0 in training, on the CPU measured. Reading pictures is not
counted.
"""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

import const
import model as networks

FACES = len(const.IDS_TRAIN)  # as many to validate
RATES = {  # FLOP/s, mixed precision
    "T4": {"deeplabv3": 10e12, "unet": 10e12, "lite": 1.5e12},
    "H100": {"deeplabv3": 100e12, "unet": 75e12, "lite": 15e12},
    "2 CPU cores": {"deeplabv3": 250e9, "unet": 250e9, "lite": 85e9},
}


@cache
def flops(model: str, size: int) -> int:
    """Of one picture of size x size forwards; a multiplication and an addition are two."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        networks.build(model).eval()(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


def minutes(device: str, model: str, size: int, *, trained: int = 0, predicted: int = 0) -> float:
    """Of so many pictures trained on, and so many predicted."""
    return (3 * trained + predicted) * flops(model, size) / RATES[device][model] / 60


def original(device: str, model: str = const.MODEL, size: int = const.IMG_SIZE) -> float:
    """Of the original's training."""
    return minutes(device, model, size, trained=const.EPOCHS * FACES, predicted=const.EPOCHS * FACES)


def notebook_steps() -> dict[str, float]:
    """Minutes of the steps that compute, with the data set at hand and a T4: the original's experiment."""
    large = "T4", const.MODEL, const.IMG_SIZE
    return {
        "5 Training": original("T4"),
        "6 Evaluation": minutes(*large, predicted=FACES + 24 + 10),  # thresholds on 24, the worst 10
        "7 Prediction": minutes(*large, predicted=6) + minutes("T4", "lite", 384, predicted=100),
    }


def shown(value: float) -> str:
    """ "about 32 minutes"."""
    return "less than a minute" if value < 1 else f"about {value:.0f} minute{'s' if value >= 1.5 else ''}"


if __name__ == "__main__":
    for step, value in notebook_steps().items():
        print(f"{step:14} {shown(value)} on a T4, estimated from FLOPs")
    print(f"\nminutes of {const.EPOCHS} epochs on {FACES} faces, validated on as many, estimated from FLOPs")
    print(f"{'network':10} {'pixels':>6} {'GFLOPs':>8} " + " ".join(f"{device:>12}" for device in RATES))
    for model in ("deeplabv3", "unet", "lite"):
        for size in (256, 512):
            cells = (f"{original(device, model, size):12.1f}" for device in RATES)
            print(f"{model:10} {size:6} {flops(model, size) / 1e9:8.1f} " + " ".join(cells))
