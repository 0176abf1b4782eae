"""Another name for `fastndsm.training.trainer`."""

from .training.trainer import CheckpointError, History, NonFiniteLoss, Row, TrainConfig, Trainer

__all__ = ["CheckpointError", "History", "NonFiniteLoss", "Row", "TrainConfig", "Trainer"]
