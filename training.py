"""The original's recipe, and the loop of every recipe: epochs, validation, checkpoints, the run directory.

`main.py train` is the command. From it to the loss: main.Runner.train, run, Trainer.fit, train_epoch, step, loss.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import threading
import time
import zlib
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from operator import itemgetter
from pathlib import Path
from typing import get_type_hints

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import const
import data_preprocessing
import dataset
import devices
import model as networks
from common import UserError, locked, reason, sweep, usable_cores, write_text
from metrics import Counts

COLUMNS = ("epoch", "loss", "val_loss", "dice", "iou", "lr", "seconds")  # of history.csv


class TrainingError(UserError):
    """A run that cannot go on; the message is one sentence for the user."""


@dataclass
class Config:
    """The settings that determine a run; written to `config.json`. A recipe may add its own (robust/recipe.py)."""

    model: str = const.MODEL
    recipe: str = "original"
    size: int = const.IMG_SIZE
    batch_size: int = const.BATCH_SIZE
    epochs: int = const.EPOCHS
    lr: float = const.LR
    seed: int = const.SEED
    pretrained: bool = True
    limit: int | None = None
    val_limit: int | None = None  # validation pictures, where they are to be other than `limit`
    accumulate: int = 1  # batches that make one step of the optimizer
    precision: str = "auto"  # auto, fp32, bf16 or fp16
    epoch_size: int | None = None  # pictures an epoch shows; all of them once without it
    ema: float = 0.0  # decay of the exponential moving average of the weights, 0 for none
    cutout: str = "image+mask"  # the original's CoarseDropout: image+mask, none, or image-only, see dataset.py


bce = F.binary_cross_entropy_with_logits  # the original's loss, of logits and target, both (B, 1, H, W)


# --- What a recipe is -----------------------------------------------------------------------------------------------
class Original:
    """The original's recipe; robust/recipe.py has another with the same members. `data` are the prepared folders."""

    passes = 1  # of prediction with the weights that it makes
    fixed = ("model", "recipe", "size", "batch_size", "accumulate", "seed", "limit", "val_limit", "epoch_size", "ema",
             "cutout")  # fmt: skip
    loss = staticmethod(bce)
    cost = itemgetter("val_loss")  # of a row of the history: the epoch of the least is kept

    def __init__(self, config: Config, data: Path, *, workers: int, cache: bool = False, **_):
        self.config, self.data, self.workers, self.cache = config, data, workers, cache

    def network(self) -> nn.Module:
        """The network to begin with."""
        return networks.build(self.config.model, pretrained=self.config.pretrained)

    def size_at(self, epoch: int) -> int:
        """The picture size of an epoch."""
        return self.config.size

    def loader(self, size: int) -> DataLoader:
        """The training pictures at a size, this process's part of every step."""
        transform = dataset.train_transform(size, seed=self.config.seed, cutout=self.config.cutout)
        options = {"limit": self.config.limit, "cache": size if self.cache else None}
        faces = dataset.Celeb(self.data / "images_train", self.data / "masks_train", transform, **options)
        return train_loader(faces, self.config, self.workers)

    def optimizer(self, net: nn.Module, steps: int):
        """Adam, and a rate that falls by ten when the validation loss has not fallen for two epochs; a schedule that
        changes with every step needs `steps`, those of the whole run."""
        optimizer = torch.optim.Adam(net.parameters(), lr=self.config.lr, fused=is_on_cuda(net))
        return optimizer, ReduceLROnPlateau(optimizer, patience=const.PATIENCE)


def train_loader(pictures, config: Config, workers: int) -> DataLoader:
    """A loader of training pictures, this process's part of every step; TrainingError if they make no batch."""
    shown = config.epoch_size or len(pictures)
    needed = config.batch_size * config.accumulate * devices.world_size()
    if shown < needed:
        kind = "a batch" if needed == config.batch_size else "an effective batch"
        raise TrainingError(f"{shown} pictures are less than {kind} of {needed}; give a smaller --batch-size.")
    options = {"seed": config.seed, "size": config.epoch_size, "accumulate": config.accumulate, "workers": workers}
    return dataset.make_loader(pictures, config.batch_size, train=True, **options)


def validation_loader(config: Config, data: Path, workers: int, cache: bool) -> DataLoader:
    """A loader of the validation pictures, this process's part of them."""
    options = {"limit": config.val_limit or config.limit, "cache": config.size if cache else None}
    transform = dataset.val_transform(config.size)
    faces = dataset.Celeb(data / "images_val", data / "masks_val", transform, **options)
    return dataset.make_loader(faces, config.batch_size, workers=workers, train=False)


def is_on_cuda(net: nn.Module) -> bool:
    return next(net.parameters()).device.type == "cuda"  # where `fused` is one kernel for all tensors


class Ema:
    """An exponential moving average of a network's weights and buffers that forgets the random start: after n steps the
    decay is min(decay, (1 + n) / (10 + n))."""

    def __init__(self, net: nn.Module, decay: float):
        self.module, self.decay, self.steps = copy.deepcopy(net), decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for averaged, current in zip(self.module.state_dict().values(), net.state_dict().values(), strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(current, 1 - decay)
            else:  # a counter
                averaged.copy_(current)

    def state_dict(self) -> dict:
        return {"steps": self.steps, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        self.module.load_state_dict(state["module"])


# --- The run --------------------------------------------------------------------------------------------------------


class Trainer:
    """Trains one network; keeps `config.json`, `history.csv`, `curves.png`, `model.best.pth`, `last.pth` in a folder.

    In a job of several processes (`devices.process_group`) each takes its part of every step and of the validation
    pictures, and the first writes the files.

    Args:
        recipe: what is trained on what, and how; `Original`, or another with its members.
        val_loader: the validation pictures, without augmentation; of several processes, this one's part.
        compiled: let torch.compile fuse the network's layers; the first steps then take a minute longer.
        trackers: called with (row of the history) after every epoch, in the first process.
    """

    def __init__(self, recipe, run_dir: Path, *, net: nn.Module, val_loader, device, compiled=False, trackers=()):
        self.recipe, self.config = recipe, recipe.config
        self.run_dir, self.device = Path(run_dir), torch.device(device)
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.val_loader, self.trackers = val_loader, list(trackers)
        if self.device.type == "cpu":
            devices.reuse_memory()
        self.size = recipe.size_at(0)
        self.train_loader = recipe.loader(self.size)
        shown = [loader.dataset for loader in (self.train_loader, val_loader) if loader is not None]
        names = [" ".join(image.stem for image, *_ in pictures.pairs) for pictures in reversed(shown)]
        # by which a resumed run knows its data
        self.pictures = [*map(len, shown), *(zlib.crc32(one.encode()) for one in names)]
        self.steps = len(self.train_loader) // self.config.accumulate  # of the optimizer, in an epoch
        self.effective_batch = self.config.batch_size * self.config.accumulate * devices.world_size()  # of such a step
        self.optimizer, self.scheduler = recipe.optimizer(self.net, self.steps * self.config.epochs)
        self.by_validation = isinstance(self.scheduler, ReduceLROnPlateau)  # others change with every step
        self.ema = Ema(self.net, self.config.ema) if self.config.ema else None
        self.eval_model = self.ema.module if self.ema else self.net  # what is validated and kept
        self._use_precision(self.config.precision)
        self.parallel = self.net  # what a step calls; the two share their weights
        if compiled:
            self.net.compile()
        if dist.is_initialized():
            devices.barrier()  # weights may have been fetched by one process after the other
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.net, device_ids=ids, process_group=devices.step_group())
        self.history = []  # a row an epoch
        self.peak_memory = 0  # MB, of all sittings
        self.asked = 0  # the number of a signal that came

    epoch = property(lambda self: len(self.history))  # the number of those that are done

    def _use_precision(self, name: str) -> None:
        """Compute in the precision of that name, "auto" being the device's fastest."""
        self.precision = name = devices.fastest_precision(self.device) if name == "auto" else name
        dtype = devices.DTYPES["bf16" if name == "fp32" else name]  # of no use in fp32, but float32 is warned of
        self.autocast = torch.autocast(self.device.type, dtype, enabled=name != "fp32")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=name == "fp16")

    def ask(self, number: int, _=None) -> None:
        """A signal: end the run between two batches, so never while workers start, a file is written, or in a callback
        that would swallow it; a second one ends it wherever it is."""
        self.check()
        self.asked = number
        if number == signal.SIGINT and devices.rank() == 0:
            os.write(2, b"stopping after this batch; Ctrl-C again stops at once\n")

    def check(self) -> None:
        """Raises KeyboardInterrupt, with the exit code, if a signal came."""
        if self.asked:
            raise KeyboardInterrupt(128 + self.asked)

    def fit(self, on_epoch=None, *, stop_after: int | None = None) -> list[dict]:
        """Train from `self.epoch` to the last epoch, or to `stop_after`; the history, one row an epoch, with which
        `on_epoch` is called after every epoch, the files being written."""
        if self.history and devices.rank() == 0:  # a run may be killed between last.pth and the other files
            self._write_rest()
        iter(self.val_loader)  # a process that starts after an epoch would keep a copy of what was freed since
        while self.epoch < min(self.config.epochs, stop_after or self.config.epochs):
            started = time.perf_counter()
            loss = self.train_epoch()
            counts = self.validate()
            if not counts.tp + counts.fn:
                raise TrainingError("No validation mask shows a face; in a mask 255 is face, and 0 is none.")
            if not math.isfinite(both := loss + counts.bce):
                or_resume = ", or --resume," if self.epoch and "lr" not in self.recipe.fixed else ""
                how = f"start again{or_resume} with a smaller --lr"
                raise TrainingError(f"The loss became {both} in epoch {self.epoch + 1}; {how}.")
            rate = self.optimizer.param_groups[0]["lr"]
            if self.by_validation:
                self.scheduler.step(counts.bce)
            self._record(loss, counts, rate, time.perf_counter() - started)
            if on_epoch is not None:
                on_epoch(self.history)
        return self.history

    def _batches(self, loader):
        """The batches, until a signal asks to stop; a loader process's error without the traceback that PyTorch puts
        into its message."""
        try:
            for batch in loader:
                self.check()
                yield batch
        except UserError as error:
            message = str(error).strip().splitlines()
            raise type(error)(message[-1].split("Error: ", 1)[-1]) from None

    def train_epoch(self) -> float:
        """One pass over the training loader; the mean loss."""
        if (size := self.recipe.size_at(self.epoch)) != self.size:
            devices.release_memory()
            self.size, self.train_loader = size, self.recipe.loader(size)
        devices.barrier()  # from here on, none is to wait long for another
        self.train_loader.sampler.epoch = self.epoch
        torch.manual_seed(self.config.seed + self.epoch + 1_000_003 * devices.rank())  # dropout
        self.net.train()
        total = torch.zeros((), device=self.device)
        title = f"epoch {self.epoch + 1}/{self.config.epochs}"
        bar = tqdm(self.train_loader, desc=title, leave=False, disable=True if devices.rank() else None)
        for i, (image, target) in enumerate(self._batches(bar)):
            total += self.step(image, target, update=(i + 1) % self.config.accumulate == 0)
        losses, batches = zip(*devices.all_gather((total.item(), len(self.train_loader))), strict=True)
        return sum(losses) / sum(batches)

    def _logits(self, net: nn.Module, image: torch.Tensor) -> torch.Tensor:
        """float32 (B, 1, H, W) of image (B, 3, H, W), computed in the run's precision."""
        image = image.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        with self.autocast:
            return net(image).float()

    def step(self, image: torch.Tensor, target: torch.Tensor, *, update: bool = True) -> torch.Tensor:
        """Gradients of image (B, 3, H, W) and target (B, 1, H, W), then a step of the optimizer, or, without `update`,
        none yet: they add up to those of a batch larger than memory holds. The loss, detached."""
        target = target.to(self.device, non_blocking=True)
        waits = not update and self.parallel is not self.net
        with self.parallel.no_sync() if waits else nullcontext():
            loss = self.recipe.loss(self._logits(self.parallel, image), target)
            self.scaler.scale(loss / self.config.accumulate).backward()
        if update:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if not self.by_validation:
                self.scheduler.step()
            if self.ema is not None:
                self.ema.update(self.net)
        return loss.detach()

    @torch.inference_mode()
    def validate(self) -> Counts:
        """Pooled counts over the validation split, of all processes, at the loader's size, probability 0.5."""
        net = self.eval_model.eval()
        if dist.is_initialized():  # each process has its own running statistics; the first one's are kept
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)
        counts, wide = Counts(), torch.float32 if self.device.type == "mps" else torch.float64
        for image, target in self._batches(self.val_loader):
            target, logits = target.to(self.device, non_blocking=True), self._logits(net, image)
            found, face = logits > 0, target > 0.5
            parts = found & face, found & ~face, ~found & face, ~found & ~face
            tp, fp, fn, tn = torch.stack([part.sum() for part in parts]).tolist()
            loss = bce(logits, target, reduction="none").to(wide).sum().item()
            counts += Counts(tp, fp, fn, tn, bce_sum=loss, bce_pixels=face.numel())
        return sum(devices.all_gather(counts), Counts())

    def _record(self, loss: float, counts: Counts, rate: float, seconds: float) -> None:
        values = self.epoch + 1, loss, counts.bce, counts.dice, counts.iou, rate, seconds
        row = dict(zip(COLUMNS, values, strict=True))
        self.history.append(row)
        self.peak_memory = max(self.peak_memory, devices.peak_memory_mb(self.device) or 0)
        if devices.rank() != 0:
            return
        networks.save_atomically(self.state(), self.run_dir / "last.pth")
        self._write_rest()
        tqdm.write(
            f"epoch {row['epoch']:3d}/{self.config.epochs}  loss {loss:.4f}  val loss {counts.bce:.4f}  "
            f"Dice {counts.dice:.4f}  IoU {counts.iou:.4f}  lr {rate:.1e}  {seconds:.0f} s"
        )
        for track in self.trackers:
            track(row)

    def _write_rest(self) -> None:
        """The other files, which follow from `last.pth`."""
        from drawing import save_curves

        if min(self.history, key=self.recipe.cost) is self.history[-1]:
            info = networks.Info(self.config.model, self.config.size, self.recipe.passes, self.config.recipe)
            networks.save_state(self.eval_model.state_dict(), self.run_dir / "model.best.pth", info)
        record = {
            **asdict(self.config),
            "epochs": max(self.config.epochs, self.epoch),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "cpu_threads": torch.get_num_threads(),
            "precision_used": self.precision,
            "world_size": devices.world_size(),
            "effective_batch": self.effective_batch,
            "train_pictures": len(self.train_loader.dataset),
            "val_pictures": len(self.val_loader.dataset),
            "peak_memory_mb": self.peak_memory or None,
        }
        write_text(self.run_dir / "config.json", json.dumps(record, indent=2) + "\n")
        lines = [COLUMNS, *([row[name] for name in COLUMNS] for row in self.history)]
        write_text(self.run_dir / "history.csv", "".join(",".join(map(str, line)) + "\n" for line in lines))
        save_curves(self.history, self.run_dir / "curves.png")

    def state(self) -> dict:
        """Everything that a killed run needs to go on as if it had not been."""
        return {
            "config": asdict(self.config),
            "device": self.device.type,
            "precision": self.precision,
            "steps": self.steps,
            "epoch": self.epoch,
            "history": self.history,
            "pictures": self.pictures,
            "peak_memory": self.peak_memory,
            "model": self.net.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            **{name: getattr(self, name).state_dict() for name in ("optimizer", "scheduler", "scaler")},
        }

    def resume(self, state: dict) -> None:
        """Take up the state of `last.pth`; TrainingError if it is damaged, of another network or of other data. Random
        numbers need no keeping: order, augmentation and dropout are seeded by (seed, epoch)."""
        state = {"pictures": self.pictures, "peak_memory": 0, **state}  # which a version before did not write
        if state["pictures"] not in (self.pictures, self.pictures[:3], self.pictures[:2]):  # once with fewer names
            what = "has other training or validation pictures"
            raise TrainingError(f"The run in {self.run_dir} {what}; resume it with the same --data.")
        try:
            if any(type(state[name]) is not type(value) for name, value in self.state().items()):
                raise ValueError("a part is of another kind")
            self.history, self.peak_memory = state["history"], state["peak_memory"]
            if self.epoch != state["epoch"] or any(set(row) != set(COLUMNS) for row in self.history):
                raise ValueError("epochs are missing")
            emulated = state["precision"] == "bf16" and devices.emulates_bf16(self.device)
            if self.config.precision == "auto" and state["device"] == self.device.type and not emulated:
                self._use_precision(state["precision"])  # of another processor, perhaps
            self.net.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            for group, ours in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
                group["fused"] = ours["fused"]  # the run may have begun on another kind of device
            self.optimizer.load_state_dict(state["optimizer"])
            if self.by_validation or state["steps"] == self.steps:
                self.scheduler.load_state_dict(state["scheduler"])
            else:  # another number of processes, so another number of steps: the same place of the same cycle
                self.scheduler.last_epoch = state["epoch"] * self.steps
            if state["scaler"]:  # a run in fp32 or bf16 leaves none
                self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(f"The state in {self.run_dir} does not fit this run; start anew elsewhere.") from error
        if self.config.lr != state["config"]["lr"]:  # of the original's recipe alone: others fix the rate
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr


def run(
    recipe_class,
    config: Config,
    data: Path,
    run_dir: Path,
    *,
    device: torch.device,
    resume: bool = False,
    workers: int | None = None,
    stop_after: int | None = None,
    on_epoch=None,
    cache: bool = False,
    compiled: bool = False,
    trackers=(),
    log=print,
) -> list[dict]:
    """One run as `config` says, from the prepared folders of `data`, which are made first where they are missing and a
    source is found; the history, one row an epoch. Under torchrun the processes share the work.

    Args:
        recipe_class: `Original`, or another class with its members.
        run_dir: where the files go; with `resume`, what is there is continued.
        workers: loader processes; without it one core less than there are, at most four.
        stop_after: the epoch after which to stop; a later resume goes on.
        on_epoch: called with the history after every epoch.
        trackers: functions of (config, run_dir), each giving what is called with every row of the history.
    """
    if config.batch_size == 1 and (config.model == "deeplabv3" or config.size <= 32):
        raise TrainingError("Batch normalisation needs more than one value per channel; give --batch-size 2 or more.")
    holding = held(run_dir, resume=resume) if devices.rank() == 0 else nullcontext()
    with devices.process_group(device), holding:
        state = state_to_resume(run_dir, config, recipe_class) if resume else None
        if state is not None:  # how the run began is no choice any more
            config = replace(config, pretrained=state["config"].get("pretrained", config.pretrained))
        with devices.rank_zero_first():
            data_preprocessing.ensure(data, log)
        if workers is None:  # one core is left to each training process of this machine
            workers = max(0, min(4, usable_cores() // devices.local_world_size() - 1))
        recipe = recipe_class(config, data, workers=workers, cache=cache, log=log)
        torch.manual_seed(config.seed)
        with devices.rank_zero_first():  # pretrained weights are fetched once
            net = recipe.network() if state is None else networks.build(config.model)
        val_loader = validation_loader(config, data, workers, cache)
        logs = [make(config, run_dir) for make in trackers if devices.rank() == 0]
        options = {"val_loader": val_loader, "compiled": compiled, "trackers": logs}
        trainer = Trainer(recipe, run_dir, net=net, device=device, **options)
        if state is not None:
            trainer.resume(state)
            log(f"Resuming {run_dir} after epoch {trainer.epoch}")
        announce(trainer, log, stop_after)
        with at_work(trainer):
            return trainer.fit(on_epoch, stop_after=stop_after)


@contextmanager
def at_work(trainer: Trainer):
    """Signals end the trainer between two batches, and its trackers are closed. A TrainingError says that a loader
    process died or torch.compile fails, a KeyboardInterrupt that a signal came, which may have ended others as well."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # others may set none
        handlers = {number: signal.signal(number, trainer.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception as error:
        trainer.check()
        if "DataLoader worker" in reason(error):
            how = f"start again{', or --resume,' if trainer.epoch else ''} with fewer --workers, or more memory"
            raise TrainingError(f"A loader process died ({reason(error)}); {how}.") from None
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            sentence = f"torch.compile does not work here ({reason(error)}); train without --compile."
            raise TrainingError(sentence) from None
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for track in trainer.trackers:
            track.close()


def announce(trainer: Trainer, log, stop_after: int | None = None) -> None:
    config = trainer.config
    shared = f", {devices.world_size()} processes" if devices.world_size() > 1 else ""
    pictures = f"{trainer.train_loader.sampler.size} pictures an epoch, {trainer.effective_batch} pictures a step"
    where = f"on {trainer.device}{shared} in {trainer.precision}; files in {trainer.run_dir}"
    validated = len(trainer.val_loader.dataset)
    log(f"Training {config.model} ({config.recipe}) on {pictures}, validating on {validated}, {where}")
    devices.warn_of_emulation(trainer.precision, trainer.device, log)
    if trainer.epoch >= config.epochs:
        longer = "" if "epochs" in trainer.recipe.fixed else "; --epochs N trains for longer"
        log(f"All {config.epochs} epochs are done{longer}.")
    elif stop_after and trainer.epoch >= stop_after:
        log(f"Epoch {stop_after} is done already; without --stop-after the run goes on.")


# --- The run directory ----------------------------------------------------------------------------------------------
@contextmanager
def held(run_dir: Path, *, resume: bool):
    """The run directory for this run alone, swept of what killed runs left unfinished; an error if it holds
    a run or another's files already, or a run is at work in it."""
    names = ("last.pth", "model.best.pth", "history.csv", "config.json", "curves.png")
    present = [name for name in names if (run_dir / name).exists()]
    if present and not resume:
        what = f"{run_dir} holds {', '.join(present)} already"
        raise TrainingError(f"{what}; continue a run with --resume, or give another --run-dir.")
    made = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run_dir / ".lock", f"Another run is at work in {run_dir}; give another --run-dir."):
            sweep(run_dir)
            yield
    finally:
        if made and not any(run_dir.iterdir()):  # refused before it wrote anything
            run_dir.rmdir()


def latest_run(runs: Path) -> Path | None:
    """The run directory in `runs` whose `last.pth` is the newest; None without any."""
    newest = max(Path(runs).glob("*/last.pth"), key=lambda path: path.stat().st_mtime, default=None)
    return newest and newest.parent


def configured(config_class: type, settings: dict) -> Config:
    """The settings as an instance of `config_class`, without names that it does not have; TrainingError for a value of
    another type."""
    names = {f.name for f in fields(config_class)}
    config = config_class(**{name: value for name, value in settings.items() if name in names})
    for name, kind in get_type_hints(config_class).items():
        value = getattr(config, name)
        if not isinstance(value, kind | int if kind is float else kind):
            raise TrainingError(f"The run's settings are damaged ({name}: {value!r}); start anew in another --run-dir.")
    return config


def read_run(run_dir: Path) -> dict:
    """What `last.pth` holds, with the run's settings as its "config"; TrainingError if there is none, it is damaged, or
    it is no state of a run."""
    path = Path(run_dir) / "last.pth"
    if not path.is_file():
        raise TrainingError(f"There is nothing to resume: {path} does not exist.")
    needed = {"model", "recipe", "size", "batch_size", "epochs", "lr", "seed"}
    with suppress(networks.ModelError):
        state = networks.read_checkpoint(path)
        settings = state.get("config") if isinstance(state, dict) else None
        if isinstance(settings, dict) and needed <= set(settings):
            return state
    raise TrainingError(f"{path} is not the state of a run, or is damaged; start anew in another --run-dir.")


def state_to_resume(run_dir: Path, config: Config, recipe_class=Original) -> dict:
    """`read_run`, once it is known to be of a run with these settings; else a TrainingError."""
    state = read_run(run_dir)
    for name in recipe_class.fixed:
        value = state["config"].get(name, getattr(config, name))
        if value != getattr(config, name):
            raise TrainingError(f"The run in {run_dir} has {name} {value}; resume it with the same value.")
    return state
