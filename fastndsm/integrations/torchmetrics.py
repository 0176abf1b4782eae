"""The features of `metrics.FeatureClassifier` for torchmetrics' image metrics, in place of Inception's.

    from torchmetrics.image.fid import FrechetInceptionDistance
    fid = FrechetInceptionDistance(feature=Features(classifier))       # and KernelInceptionDistance, InceptionScore

Images go in as the classifier was fitted on them, [n, *event] of floating point. For data that Inception never saw.
"""

from __future__ import annotations

from torch import Tensor, nn

from .. import _checks
from ..metrics import FeatureClassifier

__all__ = ["Features"]


class Features(nn.Module):
    """A classifier's feature layer as torchmetrics asks for one: x [n, *event] -> [n, num_features].

    Args:
        classifier: a fitted `metrics.FeatureClassifier`.
    """

    def __init__(self, classifier: FeatureClassifier) -> None:
        super().__init__()
        _checks.instance("classifier", classifier, FeatureClassifier, "a metrics.FeatureClassifier")
        self.classifier = classifier

    @property
    def num_features(self) -> int:
        """Size of a feature vector."""
        return self.classifier.feature_dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [n, num_features] of x [n, *event]."""
        return self.classifier.features(x)
