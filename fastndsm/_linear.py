"""Linear noising, x_t = alpha(t) x_0 + sqrt(v(t)) n, of data whose law is taken for a mixture.

The mixture noised to t is a mixture in closed form: means alpha m_k, covariances alpha^2 Sigma_k + v I, weights as they
were. Divided by alpha, x_t sees the means where they are and noise of variance v / alpha^2 alone, so that rows at times
of their own share all parameters but that number.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import _checks, functional
from ._condition import Condition
from .mixture import GaussianMixture


class LinearNoising:
    """Linear noising processes' closed forms; `reference` is the mixture taken for the law of the data."""

    times: Tensor
    reference: GaussianMixture
    T: Any
    keeps_scale: ClassVar[bool] = False  # alpha is 1

    @abstractmethod
    def scale_and_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha(t) and v(t) of times t of any shape, float64."""

    def noised_reference(self, t: float) -> GaussianMixture:
        """Return the reference noised to time t in closed form: the law of x_t, were the reference that of the data."""
        scale, variance = self.scale_and_variance(self.times.new_tensor(_checks.positive("t", t)))
        return self.reference.noised(float(scale), float(variance))

    def prior_at(self, t: float) -> GaussianMixture:
        """Return what sampling starts from at an earlier time t: the reference noised to it."""
        return self.noised_reference(t)

    @property
    def noised_prior(self) -> GaussianMixture:
        """The reference noised to T, made again when the reference, T or the device is another."""
        key = self.reference.digest, self.T, self.times.device, self.reference.means.dtype
        known: Any = self.__dict__.get("_kept_prior")
        if known is None or known[0] != key:
            known = self.__dict__["_kept_prior"] = key, self.noised_reference(self.T)
        return known[1]  # type: ignore[no-any-return]

    def loss_weight(self, drawn: Any) -> Tensor:
        """Return the weight [B] of `DSMLoss` that lets all times count alike for a residual network: v(t)."""
        return drawn.variance  # type: ignore[no-any-return]

    def reference_score(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the score of the reference noised to t [B], at x [B, ...] -> like x."""
        scaled, inverse, variance = self._unscaled(x, t)
        score = functional.noised_score(scaled, variance, self.reference)
        return (score if inverse is None else score * inverse).to(x.dtype)

    def reference_log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the log-density [B] of the reference noised to t [B], at x [B, ...]."""
        scaled, inverse, variance = self._unscaled(x, t)
        found = functional.noised_log_prob(scaled, variance, self.reference)
        return (found if inverse is None else found + x[0].numel() * inverse.flatten().log()).to(x.dtype)

    def _unscaled(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return x / alpha, 1 / alpha [B, 1, ...] (None for 1) and v / alpha^2, [B] or, of rows of one time, []."""
        _checks.time("t", t, len(x))
        wide = torch.promote_types(x.dtype, torch.float32)
        scale, variance = self.scale_and_variance(t)
        inverse = None if self.keeps_scale else 1.0 / scale
        variance = (variance if inverse is None else variance * inverse.square()).to(wide)
        variance = variance[0] if t.stride(0) == 0 or len(t) == 1 else variance  # as samplers ask
        if inverse is None:
            return x.to(wide), None, variance
        inverse = inverse.to(wide).reshape(-1, *[1] * (x.ndim - 1))
        return x.to(wide) * inverse, inverse, variance


def interpolated(times: Tensor, values: Tensor, t: Tensor) -> Tensor:
    """Return values at t of any shape, linear between the points `times` [N+1] they are of, and constant beyond."""
    t = t.to(times.dtype)
    right = torch.searchsorted(times, t.detach().contiguous()).clamp(1, len(times) - 1)
    low, high = times[right - 1], times[right]
    weight = ((t - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(values[right - 1], values[right], weight)
