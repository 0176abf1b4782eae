"""Loggers of a training's figures: a protocol of two methods, and those of TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Logger", "TensorBoard", "WandB"]


class Logger(Protocol):
    """A place for a training's figures, as `Trainer(loggers=)` takes it: any object with these two methods."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the figures of a step: loss, lr, gradient_norm, seconds, and validation where there is one."""

    def close(self) -> None:
        """Write what is held back; called when `fit` ends, however it ends."""


class TensorBoard:
    """Figures for TensorBoard, written to a folder; needs the package tensorboard.

    Args:
        directory: the folder.
        options: further arguments of torch.utils.tensorboard.SummaryWriter.
    """

    def __init__(self, directory: str | Path, **options: Any) -> None:
        _imported("torch.utils.tensorboard", "tensorboard")  # now, if it is not there, and not after hours
        self._options = {"log_dir": str(directory), **options}
        self._writer: Any = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write each figure as a curve's point."""
        if self._writer is None:
            module = _imported("torch.utils.tensorboard", "tensorboard")
            self._writer = module.SummaryWriter(**self._options)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file; a later `log` starts another in the same folder."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandB:
    """Figures for Weights & Biases; needs the package wandb.

    Args:
        options: of wandb.init: project, name, config, mode="offline" and so on. For a run that goes on after `resume`,
            id and resume="allow".
    """

    def __init__(self, **options: Any) -> None:
        _imported("wandb", "wandb")
        self._options = options
        self._run: Any = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the figures at the step."""
        if self._run is None:
            self._run = _imported("wandb", "wandb").init(**self._options)
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"loggers: expected the package {package}, found none: pip install {package}") from error
