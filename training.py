"""The training loop: epochs, validation, checkpoints, the run directory. `main.py train` is the command."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import pickle
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import const
import devices
import model as networks
from common import UserError, write_text
from metrics import Counts


class TrainingError(UserError):
    """A run that cannot go on; the message is one sentence for the user."""


@dataclass
class Config:
    """All that determines a run; written to `config.json`."""

    model: str = const.MODEL
    recipe: str = "original"
    size: int = const.IMG_SIZE
    batch_size: int = const.BATCH_SIZE
    epochs: int = const.EPOCHS
    lr: float = const.LR
    seed: int = const.SEED
    pretrained: bool = True
    limit: int | None = None
    accumulate: int = 1  # batches that make one step of the optimiser
    precision: str = "auto"  # auto, fp32, bf16 or fp16
    epoch_size: int | None = None  # pictures an epoch shows; all of them once without it
    ema: float = 0.0  # decay of the averaged weights, 0 for none
    # The original's recipe alone:
    cutout: str = (
        "image+mask"  # its CoarseDropout: image+mask, none, or image-only, as its code is under albumentations 2
    )
    # The robust recipe alone:
    repeat: int = 1  # times an epoch shows every face
    weight_decay: float = 0.0
    phases: list[tuple[float, int]] = field(default_factory=list)  # (share of the epochs, picture size): small first
    single_face: float = 0.55  # share of pictures with one large face; of the rest, 0.7 scenes, 0.3 without a face
    occlusion_p: float = 0.5
    glasses_p: float = 0.2
    init: str | None = None  # weights that the run starts from
    unlabelled: str | None = None  # a folder of more faces, whose masks `init` predicts
    backgrounds: str | None = None  # a folder of photographs without faces


# --- Losses ---------------------------------------------------------------------------------------------------------
def bce(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The original's loss; both (B, 1, H, W)."""
    return F.binary_cross_entropy_with_logits(logits, target)


def edge_bce_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """BCE that counts pixels near the contour four times, plus Dice loss over the pictures that show a face.

    Dice is taken picture by picture, so that a face of 15 pixels weighs as much as one of 150.
    """
    band = F.max_pool2d(target, 5, 1, 2) + F.max_pool2d(-target, 5, 1, 2)  # 1 within two pixels of the contour
    weight = 1 + 3 * band
    loss = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum() / weight.sum()
    probability = logits.sigmoid().flatten(1)
    t = target.flatten(1)
    shown = t.sum(1) > 0
    if shown.any():
        inter = (probability * t).sum(1)[shown]
        total = (probability.sum(1) + t.sum(1))[shown]
        loss = loss + (1 - (2 * inter + 1) / (total + 1)).mean()
    return loss


LOSSES = {"original": bce, "robust": edge_bce_dice}


# --- Averaged weights -----------------------------------------------------------------------------------------------
def moving_average(decay: float):
    """An exponential moving average for AveragedModel that forgets the random start: the decay grows to its value as
    (1 + n) / (10 + n) does with the steps."""

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], steps) -> None:
        d = min(decay, (1 + float(steps)) / (10 + float(steps)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - d)
        else:  # counters
            for a, c in zip(averaged, current, strict=True):
                a.copy_(c)

    return update


# --- The run --------------------------------------------------------------------------------------------------------
FORMATS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Trains one network; keeps `config.json`, `history.csv`, `curves.png`, `model.best.pth`, `last.pth` in a folder.

    In a job of several processes (`devices.process_group`) each takes its part of every step and of the validation
    pictures, and the first writes the files.

    Args:
        net: the network; moved to `device`.
        config: the run's settings.
        run_dir: where the files go.
        train_loader: called with the picture size, gives a loader whose sampler has `epoch`.
        val_loader: the validation pictures, without augmentation; of several processes, this one's share.
        device: where to compute.
        compiled: let torch.compile fuse the network's layers; the first steps then take a minute longer.
        loggers: called with (row of the history) after every epoch, in the first process.
    """

    def __init__(
        self,
        net: nn.Module,
        config: Config,
        run_dir: Path,
        *,
        train_loader,
        val_loader: DataLoader,
        device,
        compiled: bool = False,
        loggers=(),
    ):
        self.config, self.run_dir, self.device = config, Path(run_dir), torch.device(device)
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.make_train_loader, self.val_loader, self.loggers = train_loader, val_loader, list(loggers)
        self.loss = LOSSES[config.recipe]
        self.train_loader = train_loader(self.size_at(0))
        self.optimizer, self.scheduler = self._optimizer()
        self.averaged = None
        if config.ema:
            self.averaged = AveragedModel(self.net, multi_avg_fn=moving_average(config.ema), use_buffers=True)
        self._use_precision(None)
        self.parallel = self.net  # what a step calls; the two share their weights
        if compiled:
            self.net.compile()
        if dist.is_initialized():
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.net, device_ids=ids, process_group=devices.step_group())
        self.epoch, self.best, self.history = 0, float("inf"), []

    # -- number format
    def _use_precision(self, name: str | None) -> None:
        """Compute in the format of that name; in the config's one without it, found out by timing if that is auto."""
        if name is None and self.config.precision != "auto":
            name = self.config.precision
        if name is None:
            dtype = self._faster_dtype() if devices.rank() == 0 else None
            name = next(key for key, value in FORMATS.items() if value == dtype)
            name = devices.all_gather(name)[0]
        self.precision, self.dtype = name, FORMATS[name]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def _faster_dtype(self) -> torch.dtype | None:
        """Times two pictures forwards and backwards in a copy of the network, at 256 pixels at most."""
        side = min(256, self.size_at(10**9))
        image = torch.rand(2, 3, side, side, device=self.device).to(memory_format=torch.channels_last)
        net = copy.deepcopy(self.net).train()

        def run(dtype):
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                logits = net(image)
            logits.float().mean().backward()

        return devices.faster_dtype(run, self.device)

    def size_at(self, epoch: int) -> int:
        """The picture size of an epoch: `config.phases` lists (share of the epochs done, size)."""
        size = self.config.size
        for share, phase_size in self.config.phases:
            if epoch >= share * self.config.epochs:
                size = phase_size
        return size

    def _optimizer(self):
        c = self.config
        fused = self.device.type == "cuda"  # one kernel for all tensors
        if c.recipe == "original":
            optimizer = torch.optim.Adam(self.net.parameters(), lr=c.lr, fused=fused)
            return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=const.PATIENCE)
        matrices = [p for p in self.net.parameters() if p.ndim > 1]
        vectors = [p for p in self.net.parameters() if p.ndim <= 1]  # batch-norm and biases are not decayed
        groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=c.lr, fused=fused)
        steps = self.steps * c.epochs
        warm = 0.1 if c.init is None else 0.03
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, c.lr, total_steps=steps, pct_start=warm)

    @property
    def steps(self) -> int:
        """Steps of the optimiser in an epoch."""
        return len(self.train_loader) // self.config.accumulate

    # -- one run
    def fit(self, on_epoch=None, *, stop_after: int | None = None) -> list[dict]:
        """Train from `self.epoch` to the last epoch, or to `stop_after`; the history, one row an epoch.

        `on_epoch` is called with it after every epoch, the files being written.
        """
        if devices.rank() == 0:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            write_text(self.run_dir / "config.json", json.dumps(self._config_record(), indent=2) + "\n")
            if self.history:  # a run may be killed between last.pth and these
                self._write_history()
        while self.epoch < min(self.config.epochs, stop_after or self.config.epochs):
            started = time.perf_counter()
            loss = self.train_epoch()
            counts = self.validate()
            if not (math.isfinite(loss) and math.isfinite(counts.bce)):
                bad = next(x for x in (loss, counts.bce) if not math.isfinite(x))
                how = "resume with" if self.epoch else "start again with"
                raise TrainingError(f"The loss became {bad} in epoch {self.epoch + 1}; {how} a smaller --lr.")
            if self.config.recipe == "original":
                self.scheduler.step(counts.bce)
            self._record(loss, counts, time.perf_counter() - started)
            if on_epoch is not None:
                on_epoch(self.history)
        return self.history

    def train_epoch(self) -> float:
        """One pass over the training loader; the mean loss."""
        if self.size_at(self.epoch) != self.size_at(max(0, self.epoch - 1)):
            self.train_loader = self.make_train_loader(self.size_at(self.epoch))
        devices.barrier()  # from here on, none is to wait long for another
        self.train_loader.sampler.epoch = self.epoch
        torch.manual_seed(self.config.seed + self.epoch + 1_000_003 * devices.rank())  # dropout
        self.net.train()
        total = torch.zeros((), device=self.device)
        title = f"epoch {self.epoch + 1}/{self.config.epochs}"
        bar = tqdm(self.train_loader, desc=title, leave=False, disable=True if devices.rank() else None)
        for i, (image, target) in enumerate(bar):
            total += self.step(image, target, update=(i + 1) % self.config.accumulate == 0)
        shown = torch.tensor([total.item(), len(self.train_loader)], dtype=torch.float64)  # which MPS has not
        sums = devices.all_reduce_sum(shown, self.device)
        return (sums[0] / sums[1]).item()

    def step(self, image: torch.Tensor, target: torch.Tensor, *, update: bool = True) -> torch.Tensor:
        """Gradients of image (B, 3, H, W) and target (B, 1, H, W), then a step of the optimiser, or, without `update`,
        none yet: they add up to those of a batch larger than memory holds. The loss, detached."""
        image = image.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        target = target.to(self.device, non_blocking=True)
        waits = not update and self.parallel is not self.net
        with self.parallel.no_sync() if waits else nullcontext():
            with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                logits = self.parallel(image)
            loss = self.loss(logits.float(), target)
            self.scaler.scale(loss / self.config.accumulate).backward()
        if update:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if self.config.recipe != "original":
                self.scheduler.step()
            if self.averaged is not None:
                self.averaged.update_parameters(self.net)
        return loss.detach()

    @property
    def eval_model(self) -> nn.Module:
        """The network that is validated and kept: the averaged one where there is one."""
        return self.net if self.averaged is None else self.averaged.module

    @torch.inference_mode()
    def validate(self) -> Counts:
        """Pooled counts over the validation split, of all processes, at the loader's size, probability 0.5."""
        net = self.eval_model.eval()
        if dist.is_initialized():  # each process has its own running statistics; the first one's are kept
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)
        counts = Counts()
        for image, target in self.val_loader:
            image = image.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                logits = net(image)
            for x, y in zip(logits.float().cpu().numpy(), target.numpy() > 0.5, strict=True):
                counts.add(x[0] > 0, y[0], boundary=False).add_bce(x[0], y[0])
        return counts.summed(self.device)

    # -- its files
    def _config_record(self) -> dict:
        return {
            **asdict(self.config),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "cpu_threads": torch.get_num_threads(),
            "precision_used": self.precision,
            "world_size": devices.world_size(),
            "effective_batch": self.effective_batch,
            "train_pictures": len(self.train_loader.dataset),
            "val_pictures": len(self.val_loader.dataset),
        }

    @property
    def effective_batch(self) -> int:
        """Pictures that one step of the optimiser has seen, over all processes."""
        return self.config.batch_size * self.config.accumulate * devices.world_size()

    def _record(self, loss: float, counts: Counts, seconds: float) -> None:
        row = {
            "epoch": self.epoch + 1,
            "loss": loss,
            "val_loss": counts.bce,
            "dice": counts.dice,
            "iou": counts.iou,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
        }
        self.history.append(row)
        self.epoch += 1
        if devices.rank() != 0:
            self.best = min(self.best, counts.bce)
            return
        if counts.bce < self.best:
            self.best = counts.bce
            networks.save_state(self.eval_model.state_dict(), self.run_dir / "model.best.pth", self.info())
        networks.save_atomically(self.state(), self.run_dir / "last.pth")
        self._write_history()
        tqdm.write(
            f"epoch {row['epoch']:3d}/{self.config.epochs}  loss {loss:.4f}  val loss {counts.bce:.4f}  "
            f"Dice {counts.dice:.4f}  IoU {counts.iou:.4f}  lr {row['lr']:.1e}  {seconds:.0f} s"
        )
        for log in self.loggers:
            log(row)

    def _write_history(self) -> None:
        from drawing import save_curves

        write_history(self.run_dir / "history.csv", self.history)
        save_curves(self.history, self.run_dir / "curves.png")

    def info(self) -> networks.Info:
        return networks.Info(
            self.config.model, self.config.size, 2 if self.config.recipe == "robust" else 1, self.config.recipe
        )

    def state(self) -> dict:
        """Everything that a killed run needs to go on as if it had not been."""
        return {
            "config": asdict(self.config),
            "device": self.device.type,
            "precision": self.precision,
            "steps": self.steps,
            "epoch": self.epoch,
            "best": self.best,
            "history": self.history,
            "model": self.net.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def resume(self, state: dict) -> None:
        """Take up the state of `last.pth`. Random numbers need no keeping: order, augmentation and dropout are seeded
        by (seed, epoch)."""
        if self.config.precision == "auto" and state.get("device") == self.device.type:
            self._use_precision(state["precision"])  # timing might decide otherwise today
        self.net.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        fused = [group["fused"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, ours in zip(self.optimizer.param_groups, fused, strict=True):
            group["fused"] = ours  # the run may have begun on another kind of device
        if self.config.recipe == "original" or state.get("steps", self.steps) == self.steps:
            self.scheduler.load_state_dict(state["scheduler"])
        else:  # another number of processes, so another number of steps: the same place of the same cycle
            self.scheduler.last_epoch = state["epoch"] * self.steps
        if self.config.lr != state["config"]["lr"]:  # only the original's recipe may change its mind
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best, self.history = state["epoch"], state["best"], state["history"]
        self.train_loader = self.make_train_loader(self.size_at(self.epoch))


def write_history(path: Path, rows: list[dict]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


# --- Going on with an earlier run -----------------------------------------------------------------------------------
def settings_of(run_dir: Path) -> dict:
    """The settings of an earlier run from its config.json; none where that cannot be read."""
    try:
        record = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        return {f.name: record[f.name] for f in fields(Config) if f.name in record}
    except (OSError, ValueError, TypeError):
        return {}  # last.pth will say what is wrong


def state_to_resume(run_dir: Path, config: Config) -> dict:
    """The state that `last.pth` holds.

    Raises:
        TrainingError: there is none, it is damaged, or it is of a run with other settings.
    """
    path = run_dir / "last.pth"
    if not path.is_file():
        raise TrainingError(f"There is nothing to resume: {path} does not exist.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        old = dict(state["config"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path} is not the state of a run, or is damaged; start anew in another --run-dir."
        ) from error
    fixed = ["model", "recipe", "size", "batch_size", "accumulate", "seed", "limit", "epoch_size", "cutout", "ema"]
    if config.recipe == "robust":  # its schedule is drawn over all of the run
        fixed += ["epochs", "lr"]
    for name in fixed:
        if old.get(name, getattr(Config, name)) != getattr(config, name):
            raise TrainingError(f"The run in {run_dir} has {name} {old.get(name)}; resume it with the same.")
    return state
