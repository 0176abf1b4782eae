"""Another name for `fastndsm.training.checkpoint`."""

from .training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoints,
    latest,
    load_checkpoint,
    load_model,
    process_from,
    process_parts,
    save_checkpoint,
    save_model,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "checkpoints",
    "latest",
    "load_checkpoint",
    "load_model",
    "process_from",
    "process_parts",
    "save_checkpoint",
    "save_model",
]
