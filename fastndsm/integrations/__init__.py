"""Adapters, thin, to libraries that a project already uses. Each is imported by its own name, and imports its library.

huggingface_hub   HubModel: save_pretrained, from_pretrained, push_to_hub
diffusers         DiffusersNetwork: a UNet2DModel or DiT as network; NDSMPipeline: the sampler as a DiffusionPipeline
lightning         NDSMModule: a LightningModule around the loss
torchmetrics      Features: metrics.FeatureClassifier as `feature=` of FrechetInceptionDistance
score_sde         SDE: a process in the form of Song et al.'s code; it needs no library

pip install "fastndsm[integrations]"
from fastndsm.integrations.huggingface_hub import HubModel
"""

from __future__ import annotations

from .. import _checks

__all__: list[str] = []


def _missing(package: str, error: ImportError) -> ImportError:
    """Return the error of an adapter whose library cannot be imported, and the reason."""
    return ImportError(
        f"{package}: expected it to be installed, found: {error}; pip install 'fastndsm[integrations]'"
        f"{_checks.cure('missing-packages')}",
        name=package,
    )
