"""Quality of samples: distances to the data, mode weights, and a classifier's view of labelled images."""

from __future__ import annotations

from ._classifier import FeatureClassifier
from ._distances import energy_distance, frechet_distance, nearest_distance, sliced_wasserstein
from ._evaluate import evaluate, label_weights
from ._weights import class_balance, confidence, mode_weights, total_variation

__all__ = [
    "FeatureClassifier",
    "class_balance",
    "confidence",
    "energy_distance",
    "evaluate",
    "frechet_distance",
    "label_weights",
    "mode_weights",
    "nearest_distance",
    "sliced_wasserstein",
    "total_variation",
]
