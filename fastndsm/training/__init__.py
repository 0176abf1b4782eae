"""Training a score network: the trainer, its settings, and checkpoints that resume bit for bit."""

from .checkpoint import load_model, save_model
from .config import History, NonFiniteLoss, Row, TrainConfig
from .loggers import Logger, TensorBoard, WandB
from .storage import CheckpointError
from .trainer import Trainer

__all__ = [
    "CheckpointError",
    "History",
    "Logger",
    "NonFiniteLoss",
    "Row",
    "TensorBoard",
    "TrainConfig",
    "Trainer",
    "WandB",
    "load_model",
    "save_model",
]
