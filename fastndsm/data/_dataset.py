"""The data set: training and held-out samples, their labels, and how to undo the scaling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training and held-out samples of one distribution.

    Attributes:
        name: for titles and file names.
        train: [n, *event] float32, or float64 where float32 would round away what varies.
        test: [n_test, *event], of train's dtype, held out: never trained on.
        labels, test_labels: [n] and [n_test] int64, the class or mode of each sample, from 0; or None.
        label_names: what each label was called in the data, or None.
        centers: [M, *event], one per label, if the nearest center gives a sample's label; or None.
        scale, shift: original value = value * scale + shift.
        description: one line on origin and preprocessing.

    Raises ValueError or TypeError, naming the attribute, if these do not hold or a value is not finite.
    """

    name: str
    train: Tensor
    test: Tensor
    labels: Tensor | None = None
    test_labels: Tensor | None = None
    centers: Tensor | None = None
    scale: float = 1.0
    shift: float = 0.0
    description: str = ""
    label_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        wide = isinstance(self.train, Tensor) and self.train.dtype == torch.float64
        dtype = torch.float64 if wide else torch.float32
        _checks.samples("train", self.train, None, dtype)
        _checks.samples("test", self.test, None, dtype, self.event_shape)
        if (self.labels is None) != (self.test_labels is None):
            raise ValueError("labels, test_labels: expected both or neither, found one of them")
        if self.labels is not None:
            _checks.labels("labels", self.labels, len(self.train))
            _checks.labels("test_labels", self.test_labels, len(self.test))
        if self.centers is not None:
            _checks.samples("centers", self.centers, None, dtype, self.event_shape)
            found = -1 if self.labels is None else int(self.labels.max())
            if not 0 <= found < len(self.centers):
                raise ValueError(f"centers: expected one per label, found {len(self.centers)}, and labels to {found}")
        if self.label_names is not None and len(self.label_names) != self.n_classes:
            raise ValueError(f"label_names: expected {self.n_classes}, one per label, found {len(self.label_names)}")

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, train={len(self.train)}, test={len(self.test)}, "
            f"event_shape={self.event_shape}, n_classes={self.n_classes})"
        )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def dim(self) -> int:
        """Values per sample."""
        return self.train[0].numel()

    @property
    def n_classes(self) -> int:
        """Number of labels, 0 without labels."""
        if self.labels is None or self.test_labels is None:
            return 0
        if self.centers is not None:
            return len(self.centers)
        return int(max(self.labels.max(), self.test_labels.max())) + 1

    @property
    def class_weights(self) -> Tensor | None:
        """The labels' frequencies in the training data, [n_classes] float64; None without labels."""
        if self.labels is None:
            return None
        return torch.bincount(self.labels, minlength=self.n_classes).double() / len(self.labels)

    def restore(self, x: Tensor) -> Tensor:
        """Return samples in the data's original units, x * scale + shift."""
        return x * self.scale + self.shift
