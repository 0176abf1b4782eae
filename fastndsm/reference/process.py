"""A Langevin noising process as an op needs it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .components import MixtureOperands


@dataclass(frozen=True)
class ProcessOperands:
    """Tables of the grid and the mixture that the process drifts towards, in an op's compute dtype.

    drift_scale [N] (a_n), noise_std [N] (s_n).
    """

    drift_scale: Tensor
    noise_std: Tensor
    mixture: MixtureOperands

    @property
    def flat(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str]:
        """The fields in a row, as op schemas list them."""
        return self.drift_scale, self.noise_std, *self.mixture
