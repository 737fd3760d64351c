"""OpenVINO in place of PyTorch on a CPU, and networks in int8, which OpenVINO alone runs.

    python main.py predict photo.jpg --backend openvino
    python main.py export --int8 --data CelebAMask-HQ     NAME-int8.zip beside the weights
    python main.py predict photo.jpg --precision int8     takes it

openvino, and for `export --int8` nncf, are optional: `pip install openvino nncf`. A network is converted once; what
came of it stays in .cache/openvino/, in a folder that a hash of weights, code and version names.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

import const
import devices
import inference
import model as networks
from common import UserError, replacing, temporary_name, write_text
from inference import Segmenter, fused, normalized
from metrics import Counts

CACHE = const.CACHE_DIR / "openvino"
KEPT = 8  # networks in the cache
FACES = 200  # for the ranges of int8
LEAST_IOU = 0.98  # of int8 masks and those in fp32, over the sample photographs; below it the file is not kept
FILES = ("network.xml", "network.bin")
SUMS = "sums.json"  # of the files of a folder: damage that keeps their lengths would give wrong masks
_CONVERTING = threading.Lock()  # what silences the converter is the whole process's


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _import(name: str):
    sys.modules.setdefault("openvino_telemetry", None)  # it would report every conversion over the network
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"The package {error.name or name} is missing: pip install {error.name or name}.") from None


@contextlib.contextmanager
def _one_sentence(what: str):
    """Whatever OpenVINO and its converter raise, as a UserError.

    Compiling a network gives the thread a stack of OpenVINO's for signals, which is freed with the network: the next
    signal, such as Ctrl-C or that of a loader process that ends, would be a segmentation fault. The thread gets back
    the stack that it had.
    """
    stack = (ctypes.c_void_p * 3)()  # stack_t of signal.h
    sigaltstack = ctypes.CDLL(None).sigaltstack if sys.platform.startswith("linux") else lambda new, old: None
    sigaltstack(None, stack)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  of many kinds, most often a RuntimeError of many lines
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{what} ({reason}).") from None
    finally:
        sigaltstack(stack, None)


# --- Running --------------------------------------------------------------------------------------------------------
class Backend:
    """Computes logits for `inference.Segmenter`: uint8 (N, H, W, 3) -> float32 (N, H, W), on as many cores as PyTorch
    would take in the calling thread. Threads share what is compiled. Pictures may have any size: a network compiled for
    one size would be 4 % faster, and take a tenth of a second for each. Raises UserError: it cannot be compiled.

    Args:
        network: the path of a network.xml; what OpenVINO compiles stays beside it, for a quick start.
        precision: "fp32", "bf16" or "int8"; int8 needs a network of `quantize`. The attribute says what it became:
            OpenVINO takes fp32 where the processor has no bf16.
    """

    name = "openvino"

    def __init__(self, network: Path, precision: str):
        ov = _import("openvino")
        self._core, self._network, self._cores = ov.Core(), network, torch.get_num_threads()
        hint = "bf16" if precision == "bf16" or (precision == "int8" and devices.cpu_has_bf16()) else "f32"
        self._config = {"INFERENCE_PRECISION_HINT": hint, "CACHE_DIR": str(network.parent), "ENABLE_CPU_PINNING": False}
        self._compiled: dict[int, object] = {}  # by the number of threads of a call
        self._lock, self._own = threading.Lock(), threading.local()
        # Its table of NumPy types is made at first use; two threads doing that at once wait for each other for ever.
        ov.Type.f32.to_dtype()
        computes = self._request().get_compiled_model().get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = "fp32" if precision == "bf16" and computes == "f32" else precision  # a processor without bf16

    def _request(self):
        """This thread's infer request. Where PyTorch gave a thread a part of the cores, each part is a stream."""
        threads = min(self._cores, torch.get_num_threads())
        requests = self._own.__dict__.setdefault("requests", {})
        if threads not in requests:
            streams = self._cores // threads
            config = self._config | {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams * threads}
            with self._lock, _one_sentence("OpenVINO cannot run this network"):
                if threads not in self._compiled:
                    self._compiled[threads] = self._core.compile_model(str(self._network), "CPU", config)
                    with contextlib.suppress(OSError):  # a full disk, or another process removed the folder
                        _note_sums(self._network.parent)
            requests[threads] = self._compiled[threads].create_infer_request()
        return requests[threads]

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        return self._request().infer([pictures], share_inputs=True)[0]


def choose(choice: str, net: torch.nn.Module, weights: Path, device: torch.device, precision: str, *, log=print):
    """The backend to predict with, or None for PyTorch's. Raises UserError: OpenVINO was asked for, or int8, and cannot
    be had.

    Args:
        choice: "torch", "openvino", or "auto", which takes OpenVINO where it is installed, on a CPU, for the bundled
            kind of network (for DeepLabV3 it is no faster), and leaves fp32, for measuring, to PyTorch.
        weights: the file that `net` is of.
    """
    asked, on_cpu = choice == "openvino" or precision == "int8", device.type == "cpu"
    if choice == "torch" and precision == "int8":
        raise UserError("PyTorch does not compute in int8 here; leave out --backend.")
    fits = on_cpu and precision in ("auto", "bf16") and isinstance(net, networks.Lite) and is_installed("openvino")
    if choice == "torch" or not (asked or fits):
        return None
    if not on_cpu or precision == "fp16":
        raise UserError("OpenVINO computes on the CPU here, in fp32, bf16 or int8; choose one, or --backend torch.")
    if precision == "auto":
        precision = devices.fastest_precision(device)
    network = None
    try:
        network = converted(net, weights, int8=precision == "int8", log=log)
        backend = Backend(network, precision)
    except UserError as error:
        if network:
            shutil.rmtree(network.parent, ignore_errors=True)  # it may be damaged; the next run converts it anew
        if asked:
            raise
        log(f"{error} Going on with PyTorch.")
        return None
    instead = " for want of bf16 in this processor" if (precision, backend.precision) == ("bf16", "fp32") else ""
    log(f"OpenVINO computes, in {backend.precision}{instead}.")
    return backend


# --- Converting -----------------------------------------------------------------------------------------------------
def converted(net: torch.nn.Module, weights: Path, *, int8: bool = False, log=print) -> Path:
    """The network.xml of a network in the cache, put there if it is missing. Raises UserError: it cannot be converted,
    the cache not be written, or there is no int8 file of these weights."""
    source = int8_path(weights) if int8 else weights
    if int8 and not source.is_file():
        raise UserError(f"There is no {source}: make it by `python main.py export --int8 --weights {weights}`.")
    key = hashlib.sha256(_import("openvino").__version__.encode())
    for file in (networks.__file__, inference.__file__, __file__, source, weights):
        key.update(Path(file).read_bytes())
    network = CACHE / key.hexdigest()[:16] / FILES[0]
    what = f"The network cannot be converted for OpenVINO, or {CACHE} cannot be written; try --backend torch"
    with _CONVERTING, _one_sentence(what):
        if network.is_file():
            if _is_whole(network.parent):
                return network
            shutil.rmtree(network.parent, ignore_errors=True)
        if not int8:
            log(f"The network is converted for OpenVINO, this once; it stays in {CACHE}.")
        _into_cache(network.parent, partial(_unpack, source, weights) if int8 else partial(_convert, net))
    return network


def _into_cache(folder: Path, fill: Callable[[Path], object]) -> None:
    """Make a folder of the cache, whole or not at all; the oldest beyond `KEPT` go."""
    CACHE.mkdir(parents=True, exist_ok=True)
    temporary = CACHE / temporary_name(folder.name)
    temporary.mkdir()
    try:
        fill(temporary)
        _note_sums(temporary)
        os.replace(temporary, folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):  # another process removes them as well
        for old in sorted(CACHE.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def _note_sums(folder: Path) -> None:
    """Keep the sums of the files of a folder; OpenVINO adds some to it when it compiles a network."""
    file = folder / SUMS
    known = json.loads(file.read_text()) if file.is_file() else {}
    names = {path.name for path in folder.iterdir() if path.suffix in (".xml", ".bin", ".blob")} - {*known}
    if names:
        write_text(file, json.dumps(known | {name: zlib.crc32((folder / name).read_bytes()) for name in names}))


def _is_whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / SUMS).read_text())
        return all(zlib.crc32((folder / name).read_bytes()) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


class _FromPixels(torch.nn.Module):
    """uint8 (N, H, W, 3) -> logits (N, H, W)."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.net(normalized(pictures))[:, 0]


def _convert(net: torch.nn.Module, folder: Path) -> None:
    ov = _import("openvino")
    example = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
    module, pixels = _FromPixels(fused(net)).eval(), [([-1, -1, -1, 3], ov.Type.u8)]
    with warnings.catch_warnings(), torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the tracer's future
        model = ov.convert_model(module, example_input=example, input=pixels)
    ov.save_model(model, folder / FILES[0], compress_to_fp16=False)


# --- int8 -----------------------------------------------------------------------------------------------------------
def int8_path(weights: Path) -> Path:
    """Where the int8 network of a weights file is looked for."""
    return weights.with_name(f"{weights.stem}-int8.zip")


def _is_int8(path: Path) -> bool:
    """Whether it is a file of `quantize`'s, or holds nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) == set(FILES)
    except (OSError, zipfile.BadZipFile):
        return path.is_file() and not path.stat().st_size


def _unpack(path: Path, weights: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.comment != _sha256(weights):
                raise UserError(f"{path} was made of other weights than {weights}: export --int8 makes it anew.")
            for name in FILES:
                archive.extract(name, folder)
    except (zipfile.BadZipFile, KeyError, EOFError):
        raise UserError(f"{path} is damaged: export --int8 makes it anew.") from None


def _sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).hexdigest().encode()


def quantize(
    segmenter: Segmenter, weights: Path, faces: Iterable[np.ndarray], samples: list[np.ndarray], out: Path, *, log=print
) -> float:
    """Write a network in int8, by NNCF's post-training quantization (https://github.com/openvinotoolkit/nncf), and
    return the IoU of its masks with those of fp32 over `samples`. Raises UserError: a package is missing, or the masks
    agree by less than `LEAST_IOU`: nothing is written; OSError: the file cannot be written.

    Args:
        segmenter: one with the network of the file `weights`.
        faces, samples: pictures uint8 (H, W, 3) RGB; `faces` give the range of each layer, as its passes see them.
    """
    if os.path.lexists(out) and out != int8_path(weights) and not _is_int8(out):
        raise UserError(f"{out} is there and no int8 network; choose another --out or move it.")
    ov, nncf = _import("openvino"), _import("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    network = converted(segmenter.net, weights, log=log)
    backend, seen = Backend(network, "fp32"), []

    def with_backend(backend) -> Segmenter:
        return Segmenter(segmenter.net, segmenter.info, passes=segmenter.passes, precision="fp32", backend=backend)

    def record(pictures: np.ndarray) -> np.ndarray:
        seen.extend(picture[None] for picture in pictures)
        return backend(pictures)

    record.precision = backend.precision
    recording = with_backend(record)
    for face in faces:
        recording.logits([face])
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / FILES[0]
        with _one_sentence("The network cannot be quantized"):
            mixed = nncf.QuantizationPreset.MIXED  # activations are not symmetric about 0
            model = ov.Core().read_model(str(network))
            # Without VNNI a processor adds products in 16 bits, which only weights of 7 bits cannot overflow.
            narrow = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
            options = {"preset": mixed, "subset_size": len(seen), "advanced_parameters": narrow}
            ov.save_model(nncf.quantize(model, nncf.Dataset(seen), **options), file)
        quantized, fp32, counts = with_backend(Backend(file, "int8")), with_backend(None), Counts()
        for sample in samples:
            counts.add(quantized.mask(sample) > 0, fp32.mask(sample) > 0, boundary=False)
        if not counts.iou >= LEAST_IOU:
            raise UserError(f"In int8 the masks agree with those in fp32 by an IoU of {counts.iou:.3f}; not kept.")
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.comment = _sha256(weights)
            for name in FILES:
                archive.write(file.with_name(name), name)
    size = f"{out.stat().st_size / 2**20:.1f} MiB"
    log(f"{out}: {size}; its masks agree with those in fp32 by an IoU of {counts.iou:.4f} on {len(samples)} pictures.")
    return counts.iou
