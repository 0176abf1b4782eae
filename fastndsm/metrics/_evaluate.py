"""The figures that apply to a data set, the same for samples, draws from the reference and real data."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .. import _checks
from ..data import Dataset
from ._classifier import FeatureClassifier
from ._distances import energy_distance, frechet_distance, nearest_distance, nearest_index, sliced_wasserstein
from ._weights import class_balance, confidence, mode_weights, total_variation

__all__ = ["evaluate", "label_weights"]

_PLANAR = 3  # up to this many values per sample, neighbours tell labels; beyond it, a classifier does


def label_weights(samples: Tensor, dataset: Dataset, *, classifier: FeatureClassifier | None = None) -> Tensor | None:
    """Return the weight of each of the data's labels among samples: [n_classes] float64, or None without labels.

    A sample's label is that of the nearest center where the data have centers; in up to three dimensions,
    that of the nearest training sample; else the classifier's (one is fitted if none is given).
    """
    samples = _like(samples, dataset)
    if dataset.labels is None:
        return None
    if dataset.n_classes == 1:
        return samples.new_ones(1, dtype=torch.float64)
    if dataset.centers is not None:
        return mode_weights(samples, dataset.centers)
    if dataset.dim <= _PLANAR:
        found = dataset.labels[nearest_index(samples, dataset.train)]
        return torch.bincount(found, minlength=dataset.n_classes).double() / len(found)
    return class_balance(_classifier(dataset, classifier, 0).probabilities(samples))


def evaluate(
    samples: Tensor,
    dataset: Dataset,
    *,
    classifier: FeatureClassifier | None = None,
    seed: int = 0,
    max_points: int = 5000,
) -> dict[str, float]:
    """Compare samples [n, *event] (or flat [n, d]) with the data.

    All data: `energy_distance` and `sliced_wasserstein` to the held-out data, and `nearest_distance`, the
    mean distance to the nearest training sample. Labelled data in up to three dimensions, or with centers:
    `mode_tv`, the total variation between the modes' weights among the samples and among the training data.
    Other labelled data, by the classifier: `class_tv`, likewise, `confidence`, and `frechet_distance` between
    the features of the samples and of the training data, as is usual for images.

    The held-out data themselves, recognised by their values, are compared with the training data throughout:
    the row beside which others are read. Compare rows of equal n.

    Args:
        samples: in the units of dataset.train.
        dataset: the data.
        classifier: fitted on the data; if it is needed and None is given, one is fitted with `seed`. Give it
            to save the time.
        seed: of the projections, the choice of `max_points` and the classifier.
        max_points: the three distances use at most this many samples, and as many held out, chosen at random.
    """
    _checks.integer("max_points", max_points, 2)
    samples = _like(samples, dataset)
    held_out = samples.shape == dataset.test.shape and torch.equal(samples, dataset.test)
    generator = torch.Generator("cpu").manual_seed(seed)
    x, y = (_some(z, max_points, generator) for z in (samples, dataset.train if held_out else dataset.test))
    figures = {
        "energy_distance": energy_distance(x, y),
        "sliced_wasserstein": sliced_wasserstein(x, y, seed=seed),
        "nearest_distance": float(nearest_distance(x, dataset.train).mean()),
    }
    if dataset.class_weights is None or dataset.n_classes < 2:
        return figures
    if dataset.centers is not None or dataset.dim <= _PLANAR:
        weights = label_weights(samples, dataset)
        assert weights is not None
        figures["mode_tv"] = total_variation(weights, dataset.class_weights)
        return figures
    classifier = _classifier(dataset, classifier, seed)
    probs = classifier.probabilities(samples)
    figures["class_tv"] = total_variation(class_balance(probs), dataset.class_weights)
    figures["confidence"] = confidence(probs)
    least = classifier.feature_dim + 1
    if min(len(samples), len(dataset.train)) >= least:
        features = (classifier.features(z) for z in (samples, dataset.train))
        figures["frechet_distance"] = frechet_distance(*features)
    else:
        found = f"{len(samples)} samples and {len(dataset.train)} of training data"
        warnings.warn(f"frechet_distance left out: it takes {least} or more, found {found}", stacklevel=2)
    return figures


def _like(samples: Tensor, dataset: Dataset) -> Tensor:
    _checks.samples("samples", samples, least=2)
    if samples[0].numel() != dataset.dim:
        raise ValueError(f"samples: expected events of shape {dataset.event_shape}, found {tuple(samples.shape)}")
    return samples.detach().to(dataset.train).reshape(-1, *dataset.event_shape)


def _classifier(dataset: Dataset, classifier: FeatureClassifier | None, seed: int) -> FeatureClassifier:
    if classifier is None:
        assert dataset.labels is not None
        return FeatureClassifier.fit(dataset.train, dataset.labels, seed=seed, n_classes=dataset.n_classes)
    if classifier.event_shape != dataset.event_shape or classifier.n_classes != dataset.n_classes:
        raise ValueError(
            f"classifier: expected one of {dataset.n_classes} classes of events {dataset.event_shape}, "
            f"found {classifier.n_classes} classes of {classifier.event_shape}"
        )
    return classifier


def _some(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    return x if len(x) <= most else x[torch.randperm(len(x), generator=generator, device="cpu")[:most].to(x.device)]
