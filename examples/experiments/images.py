"""Images for the experiments: disjoint parts with the class weights wanted, and one judge for all.

The judge is a convolutional classifier trained on MNIST's 60,000 training images. Frechet distances are between its
features, of samples and of held-out images: `frechet` against these images as the encoder passes them, so that
only the generation counts; `frechet_raw` against the images themselves, so that the encoder's loss counts too.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
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
    source: str

    @property
    def judge(self) -> metrics.FeatureClassifier:
        """The classifier that judges images of the source."""
        return judge(self.source)


@lru_cache(maxsize=2)
def pool(source: str) -> Pool:
    """Return MNIST, or scikit-learn's 8x8 digits for quick runs."""
    dataset = data.load(source)
    assert dataset.labels is not None and dataset.test_labels is not None
    images, labels = torch.cat([dataset.train, dataset.test]), torch.cat([dataset.labels, dataset.test_labels])
    return Pool(images, labels, len(dataset.train), source)


@lru_cache(maxsize=2)
def judge(source: str) -> metrics.FeatureClassifier:
    """Train the classifier on a source's training images."""
    given = pool(source)
    images, labels = given.images[: given.n_train], given.labels[: given.n_train]
    return metrics.FeatureClassifier.fit(images, labels, n_classes=10, steps=2000 if source == "mnist" else 1000)


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
        self.encoder, self.pool, self.reference = encoder, given, reference
        self.z, self.z_reference, self.z_held_out = (encoder.encode(x) for x in (train, reference, held_out))
        self.weights = torch.bincount(labels, minlength=10).double() / len(labels)

    @cached_property
    def features(self) -> Tensor:
        """The judge's features of the reference images, as the encoder passes them."""
        return self.pool.judge.features(self.encoder.decode(self.z_reference))

    @cached_property
    def raw(self) -> Tensor:
        """The judge's features of the reference images themselves."""
        return self.pool.judge.features(self.reference)

    @cached_property
    def fresh(self) -> float:
        """The mean distance of held-out images to the nearest training image."""
        return float(metrics.nearest_distance(self.z_held_out[:NEAREST], self.z).mean())

    def measure(self, z: Tensor) -> dict[str, float]:
        """Measure samples z [n, d], latent vectors."""
        images = self.encoder.decode(z)
        judge = self.pool.judge
        features, probabilities = judge.features(images), judge.probabilities(images)
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

    def diversity(self, z: Tensor) -> dict[str, float]:
        """Measure fidelity and diversity of samples z [n, d] apart, in the judge's features."""
        features = self.pool.judge.features(self.encoder.decode(z))
        pair, balls = (
            metrics.precision_recall(features, self.features),
            metrics.density_coverage(features, self.features),
        )
        return {**pair._asdict(), **balls._asdict()}


def perform(config: dict[str, Any], scene: Scene, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    """Return the latent samples of a configuration's row and their cost."""
    if config["row"] == methods.HELD_OUT:
        return scene.z_held_out, {}
    return methods.draw(config["row"], scene.z, config, config["seed"], config["evaluated"], **options)


def kept(config: dict[str, Any], scene: Scene, z: Tensor) -> Tensor | None:
    """Return the samples kept for the pictures: those of seed 0."""
    return scene.encoder.decode(z[:KEPT]) if config["seed"] == 0 else None
