"""Experiment logs that a run may report to besides its own files; their packages are optional.

Each is made with (config, run folder), called with every row of the history, and closed at the end.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from common import UserError, reason
from training import Config

PROJECT = "face-seg"  # the original's project in ClearML
METRICS = {"loss": "train", "val_loss": "validation", "dice": "validation", "iou": "validation", "lr": "train"}


class TensorBoardLog:
    """Scalars for `tensorboard --logdir runs`, in the run's folder. Raises UserError: tensorboard is not installed."""

    def __init__(self, config: Config, run_dir: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard.") from None
        self.writer = SummaryWriter(str(run_dir))
        self.writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in asdict(config).items()))

    def __call__(self, row: dict) -> None:
        for name, part in METRICS.items():
            self.writer.add_scalar(f"{name.removeprefix('val_')}/{part}", row[name], row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class ClearMLLog:
    """Scalars and settings for ClearML, under the original's project. A run that is resumed is a task of its own, whose
    epochs go on counting. `CLEARML_OFFLINE_MODE=1` keeps everything in a local archive. Raises UserError: clearml is
    not installed, or its server cannot be reached or is not set up."""

    def __init__(self, config: Config, run_dir: Path):
        try:
            from clearml import Task
        except ImportError:
            raise UserError("--clearml needs the package clearml: pip install clearml.") from None
        # It reports from a thread. The process that it forks by default may inherit the pipe to the git command that it
        # runs at the same time, and then each waits for the other for ever.
        Task._report_subprocess_enabled = False
        try:
            self.task = Task.init(
                project_name=PROJECT,
                task_name=f"{config.model} {run_dir.name}",
                reuse_last_task_id=False,
                auto_connect_frameworks=False,
                auto_connect_arg_parser=False,
                auto_resource_monitoring=False,
            )
        except Exception as error:  # noqa: BLE001  of many kinds: no settings, no server, a refused key
            advice = "run clearml-init, or set CLEARML_OFFLINE_MODE=1"
            raise UserError(f"ClearML cannot be used ({reason(error)}); {advice}.") from None
        self.task.connect(asdict(config), name="config")

    def __call__(self, row: dict) -> None:
        log = self.task.get_logger()
        for name, part in METRICS.items():
            log.report_scalar(name.removeprefix("val_"), part, row[name], row["epoch"])

    def close(self) -> None:
        self.task.close()


LOGS = {"clearml": ClearMLLog, "tensorboard": TensorBoardLog}
