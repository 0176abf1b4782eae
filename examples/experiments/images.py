"""Images for the experiments: disjoint parts with the class weights wanted, and one judge for all.

The judge is a convolutional classifier trained on MNIST's 60,000 training images. Frechet distances are between its
features, of samples and of held-out images: `frechet` against these images as the encoder passes them, so that
only the generation counts; `frechet_raw` against the images themselves, so that the encoder's loss counts too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastndsm import data, latent, metrics

from . import methods
from .planar import copies

KEPT = 40  # samples kept of a run for the pictures
NEAREST = 1000  # samples whose distances to others are taken


class Pool(NamedTuple):
    """All images of a source [n, 1, H, W] with labels, the training part first, and the judge."""

    images: Tensor
    labels: Tensor
    n_train: int
    judge: metrics.FeatureClassifier


@lru_cache(maxsize=2)
def pool(source: str) -> Pool:
    """Return MNIST, or scikit-learn's 8x8 digits for quick runs."""
    dataset = data.load(source)
    assert dataset.labels is not None and dataset.test_labels is not None
    steps = 2000 if source == "mnist" else 1000
    judge = metrics.FeatureClassifier.fit(dataset.train, dataset.labels, n_classes=10, steps=steps)
    images, labels = torch.cat([dataset.train, dataset.test]), torch.cat([dataset.labels, dataset.test_labels])
    return Pool(images, labels, len(dataset.train), judge)


def parts(labels: Tensor, weights: Tensor, sizes: tuple[int, ...], seed: int) -> list[Tensor]:
    """Draw disjoint index sets of these sizes, each with class weights as given (to rounding)."""
    generator = torch.Generator().manual_seed(seed)
    orders = []
    for label in range(len(weights)):
        mine = (labels == label).nonzero()[:, 0]
        orders.append(mine[torch.randperm(len(mine), generator=generator)])
    used, found = [0] * len(weights), []
    for size in sizes:
        chosen = []
        for label, order in enumerate(orders):
            count = round(float(weights[label]) * size)
            if used[label] + count > len(order):
                raise ValueError(f"sizes: expected at most {len(order)} images of class {label}, found more")
            chosen.append(order[used[label] : used[label] + count])
            used[label] += count
        index = torch.cat(chosen)
        found.append(index[torch.randperm(len(index), generator=generator)])
    return found


class Scene:
    """Training, reference and held-out images in an encoder's latent space, and the figures of samples there."""

    def __init__(
        self, train: Tensor, labels: Tensor, reference: Tensor, held_out: Tensor, encoder: latent.Encoder, given: Pool
    ) -> None:
        self.encoder, self.judge = encoder, given.judge
        self.z, self.z_reference, self.z_held_out = (encoder.encode(x) for x in (train, reference, held_out))
        self.weights = torch.bincount(labels, minlength=10).double() / len(labels)
        self.decoded = encoder.decode(self.z_reference)
        self.features, self.raw = self.judge.features(self.decoded), self.judge.features(reference)
        self.fresh = float(metrics.nearest_distance(self.z_held_out[:NEAREST], self.z).mean())

    def measure(self, z: Tensor) -> dict[str, float]:
        """Measure samples z [n, d], latent vectors."""
        images = self.encoder.decode(z)
        features, probabilities = self.judge.features(images), self.judge.probabilities(images)
        weights = metrics.class_balance(probabilities)
        return {
            "frechet": metrics.frechet_distance(features, self.features),
            "frechet_raw": metrics.frechet_distance(features, self.raw),
            "confidence": metrics.confidence(probabilities),
            "class_tv": metrics.total_variation(weights, self.weights),
            "energy": metrics.energy_distance(z[:NEAREST], self.z_reference[:NEAREST]),
            "nearest_ratio": float(metrics.nearest_distance(z[:NEAREST], self.z).mean()) / self.fresh,
            "copies": copies(z[:NEAREST], self.z),
        }


def perform(config: dict[str, Any], scene: Scene, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    """Return the latent samples of a configuration's row and their cost."""
    if config["row"] == methods.HELD_OUT:
        return scene.z_held_out, {}
    return methods.draw(config["row"], scene.z, config, config["seed"], config["evaluated"], **options)


def kept(config: dict[str, Any], scene: Scene, z: Tensor) -> Tensor | None:
    """Return the samples kept for the pictures: those of seed 0."""
    return scene.encoder.decode(z[:KEPT]) if config["seed"] == 0 else None
