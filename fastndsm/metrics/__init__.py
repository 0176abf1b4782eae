"""Quality of samples: distances to the data, fidelity and diversity, likelihood, mode weights, a classifier's view."""

from __future__ import annotations

from ._bits import bits_per_dimension
from ._classifier import FeatureClassifier
from ._distances import energy_distance, frechet_distance, nearest_distance, sliced_wasserstein
from ._evaluate import evaluate, label_weights
from ._kernel import kernel_log_likelihood
from ._neighbours import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from ._weights import class_balance, confidence, mode_weights, total_variation

__all__ = [
    "DensityCoverage",
    "FeatureClassifier",
    "PrecisionRecall",
    "bits_per_dimension",
    "class_balance",
    "confidence",
    "density_coverage",
    "energy_distance",
    "evaluate",
    "frechet_distance",
    "kernel_log_likelihood",
    "label_weights",
    "mode_weights",
    "nearest_distance",
    "precision_recall",
    "sliced_wasserstein",
    "total_variation",
]
