"""Operands of the ops, as the fields that the kernels read (`fastndsm.reference` has the classes)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Mixture(Protocol):
    """means [K, d]; precisions [K], [K, d], [d, d] or [K, d, d]; log_scale [K]; covariance_type."""

    means: Tensor
    precisions: Tensor
    log_scale: Tensor
    covariance_type: str


class Axes(Protocol):
    """rotations [d, d] or [K, d, d], the principal axes in columns, and rates [d] or [K, d], the precisions."""

    rotations: Tensor
    rates: Tensor


class Process(Protocol):
    """drift_scale [N] (a_n), noise_std [N] (s_n) and the mixture that a Langevin process drifts towards."""

    @property
    def drift_scale(self) -> Tensor: ...
    @property
    def noise_std(self) -> Tensor: ...
    @property
    def mixture(self) -> Mixture: ...
