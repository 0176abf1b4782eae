"""A small classifier trained on the data's labels, whose features and probabilities judge samples."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checks
from .._state import ordinary_modes

__all__ = ["FeatureClassifier"]

_BATCH = 128
_CHUNK = 1024  # samples evaluated at a time
_NOISE = 0.2  # of the data's deviation: features that do not turn on single pixels
_DROPOUT = 0.2


class FeatureClassifier(nn.Module):
    """A classifier with a feature layer. `FeatureClassifier.fit` makes one.

    A convolutional network for images [C, H, W] of more than 256 values, else a multilayer perceptron.
    Features have no unit, so that distances between them compare only within one classifier.

    Args:
        event_shape: of one sample.
        n_classes: C.
        feature_dim: size of the feature layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, event_shape: tuple[int, ...], n_classes: int, feature_dim: int = 64) -> None:
        super().__init__()
        for name, value, least in (("n_classes", n_classes, 2), ("feature_dim", feature_dim, 1)):
            _checks.integer(name, value, least)
        self.event_shape, self.n_classes, self.feature_dim = tuple(event_shape), n_classes, feature_dim
        dim = math.prod(self.event_shape)
        self.body: nn.Module
        if len(self.event_shape) == 3 and dim > 256:
            channels, height, width = self.event_shape
            self.body = nn.Sequential(
                nn.Conv2d(channels, 16, 5, stride=2, padding=2),
                nn.SiLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.SiLU(),
                nn.Flatten(),
                nn.Linear(32 * math.ceil(height / 4) * math.ceil(width / 4), feature_dim),
            )
        else:
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(dim, 256), nn.SiLU(), nn.Linear(256, feature_dim))
        self.head = nn.Linear(feature_dim, n_classes)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    @classmethod
    @ordinary_modes()
    def fit(
        cls,
        train: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        n_classes: int | None = None,
        steps: int = 2000,
        feature_dim: int = 64,
    ) -> FeatureClassifier:
        """Train a classifier on train [n, *event] with labels [n] int64 below n_classes, on train's device.

        AdamW with one cosine cycle over `steps` batches of 128: seconds for 64 values, half a minute for 28 x
        28 on two cores. The same arguments give the same classifier on the same machine; PyTorch's default
        generators are left as they were.
        """
        _checks.samples("train", train, least=2)
        _checks.labels("labels", labels, len(train), "train")
        least = int(labels.max()) + 1
        if n_classes is not None and n_classes < least:
            raise ValueError(f"n_classes: expected {least} or more for labels to {least - 1}, found {n_classes}")
        _checks.integer("steps", steps)
        devices = [train.device] if train.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            net = cls(tuple(train.shape[1:]), n_classes or least, feature_dim).to(train.device)
            net._train(train.detach().float(), labels, steps)
        return net.requires_grad_(False).eval()

    def _train(self, train: Tensor, labels: Tensor, steps: int) -> None:
        self.mean.copy_(train.mean())
        self.std.copy_(train.std().clamp_min(1e-6))
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
        order = torch.cat(
            [torch.randperm(len(train), device="cpu") for _ in range(math.ceil(steps * _BATCH / len(train)))]
        )
        self.train()
        for step in range(steps):
            batch = order[step * _BATCH : (step + 1) * _BATCH].to(train.device)
            x = train[batch]
            features = self._features(x + _NOISE * self.std * torch.randn_like(x))
            loss = F.cross_entropy(self.head(F.dropout(features, _DROPOUT)), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    def _features(self, x: Tensor) -> Tensor:
        return F.silu(self.body((x - self.mean) / self.std))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, C] of x [n, *event]."""
        logits: Tensor = self.head(self._features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate layer's activations [n, feature_dim] of x [n, *event], or flat [n, d]."""
        return torch.cat([self._features(chunk) for chunk in self._chunks(x)])

    def probabilities(self, x: Tensor) -> Tensor:
        """Return class probabilities [n, C] of x [n, *event], or flat [n, d]."""
        return torch.cat([self(chunk).softmax(1) for chunk in self._chunks(x)])

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Return the share of x [n, *event] whose most probable class is its label [n]."""
        _checks.labels("labels", labels, len(x), "x")
        return float((self.probabilities(x).argmax(1) == labels).double().mean())

    def _chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        _checks.samples("x", x)
        if x[0].numel() != math.prod(self.event_shape):
            raise ValueError(f"x: expected events of shape {self.event_shape}, found {tuple(x.shape)}")
        return torch.split(x.detach().to(self.mean).reshape(-1, *self.event_shape), _CHUNK)
