"""The law at T of each class: the components of one mixture, with weights of the class's own.

What noising towards a mixture does not forget by T is which modes a class lies in; samples of the class start there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .mixture import GaussianMixture

_STEPS = 10  # of expectation maximisation
_VALUES = 1 << 24  # responsibilities held at once, which bounds the samples looked at


def is_labels(condition: Any) -> bool:
    """Return whether a condition is one of labels, integers [B]."""
    return isinstance(condition, Tensor) and condition.ndim == 1 and not condition.dtype.is_floating_point


def fitted_weights(mixture: GaussianMixture, x: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Fit the components' weights [C, K], float64, to the samples x [n, ...] of each class, from the mixture's own.

    A class without samples has the mixture's.
    """
    most = max(_VALUES // mixture.n_components, 1)
    pi = mixture.weights.double()
    fitted = pi.repeat(n_classes, 1)
    for c in labels.unique().tolist():
        r = mixture.responsibilities(x[labels == c][:most]).double()
        weights = pi
        for _ in range(_STEPS):
            posterior = r * (weights / pi.clamp_min(torch.finfo(pi.dtype).tiny))
            weights = (posterior / posterior.sum(1, keepdim=True)).mean(0)
        fitted[c] = weights / weights.sum()
    return fitted


def of_class(mixture: GaussianMixture, weights: Tensor) -> GaussianMixture:
    """Return the mixture with these weights [K]."""
    kind, shape = mixture.covariance_type, mixture.event_shape
    return GaussianMixture(weights, mixture.means, mixture.covariances, kind, event_shape=shape)


def sample_by_class(mixture: GaussianMixture, weights: Tensor, labels: Tensor, seed: Any, first_path: int) -> Tensor:
    """Draw [n, ...], row i of class labels[i], or of the mixture if that is no class; draw i depends on that alone."""
    drawn = mixture.sample(len(labels), seed, first_path=first_path)
    for c in labels.unique().tolist():
        if c < len(weights):
            own = of_class(mixture, weights[c]).sample(len(labels), seed, first_path=first_path)
            drawn = torch.where((labels == c).reshape(-1, *[1] * (drawn.ndim - 1)), own, drawn)
    return drawn


def log_prob_by_class(mixture: GaussianMixture, weights: Tensor, labels: Tensor, x: Tensor) -> Tensor:
    """Return log p(x) [n] at T, row i under class labels[i], or the mixture's if that is no class."""
    found = mixture.log_prob(x)
    for c in labels.unique().tolist():
        if c < len(weights):
            rows = labels == c
            found[rows] = of_class(mixture, weights[c]).log_prob(x[rows])
    return found
