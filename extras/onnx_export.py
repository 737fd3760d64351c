"""A network as an ONNX file, compared with PyTorch on real pictures before it gets its name. `main.py export` runs it.

onnx, onnxscript and onnxruntime are optional: `pip install onnx onnxscript onnxruntime`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import cv2
import numpy as np
import torch

from common import UserError, replacing
from inference import normalized
from model import Info
from pictures import forbidden, tagged

OPSET = 18
TOLERANCE = 1e-3  # largest difference in probability that passes


class Probability(torch.nn.Module):
    """image float32 (B, 3, S, S), RGB, 0-255 -> probability float32 (B, 1, S, S); normalisation inside."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(normalized(image.permute(0, 2, 3, 1))).sigmoid()


def export(net: torch.nn.Module, info: Info, out: Path, pictures: list[np.ndarray], *, log=print) -> float:
    """Write `out`, and return the largest difference in probability from PyTorch over `pictures`. Raises UserError: an
    optional package is missing, a value is not finite, the difference is above `TOLERANCE`, or `out` would replace a
    file of another program; OSError: the file cannot be written.

    Args:
        net: a network with its weights.
        info: its picture size S.
        out: the file; its batch size is free, opset `OPSET`.
        pictures: uint8 (H, W, 3) RGB, at least one.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"Export needs the package {error.name}: pip install onnx onnxscript onnxruntime.") from None
    out = Path(out)
    if refusal := forbidden([out]):
        raise UserError(refusal)
    side = info.size
    batch = np.stack([cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pictures])
    images = torch.from_numpy(batch).permute(0, 3, 1, 2).float().contiguous().split(4)
    module = Probability(net.cpu().to(memory_format=torch.contiguous_format)).eval()
    with torch.inference_mode():
        expected = torch.cat([module(some) for some in images]).numpy()
    if not np.isfinite(expected).all():
        raise UserError("The weights give values that are not finite (NaN); take other weights.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        _trace(module, images[0][:1].repeat(2, 1, 1, 1), temporary)  # a batch of one would be taken for fixed
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        got = np.concatenate([session.run(None, {"image": some.numpy()})[0] for some in images])
        worst = float(np.abs(got - expected).max())  # NaN where there is one
        if not worst <= TOLERANCE:
            raise UserError(f"The exported network differs from PyTorch by {worst:.1e} in probability; it is not kept.")
        with temporary.open("ab") as file:
            file.write(tagged(b"", ".onnx", before=temporary.stat().st_size))
    log(
        f"{out}: {info.model}, opset {OPSET}, largest difference from PyTorch {worst:.1e} in probability on "
        f"{len(pictures)} pictures.\n"
        f"Input  image        float32 (batch, 3, {side}, {side}), RGB, 0 to 255; normalisation is inside\n"
        f"Output probability  float32 (batch, 1, {side}, {side}); a pixel from 0.5 up is face"
    )
    return worst


def _trace(module: torch.nn.Module, example: torch.Tensor, out: Path) -> None:
    """Export without the exporter's chatter."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = {"input_names": ["image"], "output_names": ["probability"]}
    options = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "opset_version": OPSET, "external_data": False}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (example,), out, dynamo=True, **names, **options)
