"""A process in the form of Song et al.'s `sde_lib.SDE`, for samplers and likelihoods that were written for it.

    sde = SDE(process)
    drift, diffusion = sde.sde(x, t)                      # dX = drift dt + diffusion dW
    reverse = sde.reverse(score_net)                      # the same for its reverse, or for the probability flow
    x = sde.prior_sampling((64, 2))

Source: Song et al., arXiv 2011.13456; github.com/yang-song/score_sde_pytorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..objective import ScoreNet
from ..process import NoisingProcess, OUProcess
from ..score import score_at

__all__ = ["SDE", "ReverseSDE"]


class SDE:
    """A process by drift and diffusion, its prior, and its steps.

    Args:
        process: any noising process.

    Attributes:
        T: the horizon. N: its number of steps.
    """

    def __init__(self, process: NoisingProcess) -> None:
        self.process = _checks.instance("process", process, NoisingProcess, "a noising process")
        self.T, self.N = process.T, process.n_steps

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return drift, like x [B, ...], and diffusion [B] at times t [B]."""
        drift = self.process.drift(x, t)
        sigma = self.process.sigma
        if not callable(sigma):
            return drift, torch.full_like(t, sigma)
        values = [float(sigma(time)) for time in t.detach().cpu().tolist()]
        return drift, torch.tensor(values, dtype=t.dtype, device=t.device)

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean, like x [B, ...], and deviation [B] of the Gaussian law of x_t given x_0 = x.

        Raises NotImplementedError for a process whose noised samples are not Gaussian: all but OUProcess.
        """
        if not isinstance(self.process, OUProcess):
            raise NotImplementedError(
                "marginal_prob: expected a process with Gaussian transitions, such as OUProcess, found "
                f"{type(self.process).__name__}: the drift is not linear, so that x_t given x_0 is no Gaussian and "
                "has no closed form; process.noised(x0) draws x_t and a target of its score, as NDSMLoss takes them"
            )
        _checks.batch("x", x, self.process.dim)
        exponent = self._exponent(t).to(x.dtype)
        mean = (-exponent).exp().reshape(-1, *[1] * (x.ndim - 1)) * x
        return mean, (-(-2.0 * exponent).expm1()).sqrt()

    def _exponent(self, t: Tensor) -> Tensor:
        """Return int_0^t 1/2 sigma^2 for t [B], float64; sigma is that of the process's steps, constant in each."""
        times, steps = self.process.times, self.process.drift_scale
        n = self._step(t)
        share = (t.double() - times[n]) / (times[n + 1] - times[n])
        return (steps.cumsum(0) - steps)[n] + share * steps[n]

    def _step(self, t: Tensor) -> Tensor:
        """Return the number of the step that ends at t or contains it, int64 [B]."""
        end = self.process.times[1:]
        early = t.double() * (1.0 - 1e-6)  # times in float32 may be a little late
        return torch.searchsorted(end, early.contiguous()).clamp(max=self.N - 1)

    def prior_sampling(self, shape: Sequence[int], seed: int | Tensor | None = None) -> Tensor:
        """Draw shape[0] samples at T, of that shape, in PyTorch's default dtype and on the process's device."""
        rows, *event = shape
        drawn = self.process.draw_prior(_checks.count("shape", rows), seed)
        return drawn.reshape(rows, *event).to(torch.get_default_dtype())

    def prior_logp(self, z: Tensor) -> Tensor:
        """Return the log-density [B] of z [B, ...] at T."""
        return self.process.prior_log_prob(z)

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f, like x, and G [B] of the process's own step that ends at t [B]: x_{n+1} = x_n + f(x_n) + G z."""
        n = self._step(t)
        start, end = (self.process.times[index].to(t.dtype) for index in (n, n + 1))
        return self.process.drift(x, start) * _wide(end - start, x), self.process.noise_std[n].to(x.dtype)

    def reverse(self, score_fn: ScoreNet, probability_flow: bool = False) -> ReverseSDE:
        """Return the reverse SDE under the score (x, t) -> like x, or the probability-flow ODE, of the same form."""
        return ReverseSDE(self, score_fn, probability_flow)


class ReverseSDE:
    """The reverse of an `SDE`, from T to 0; `SDE.reverse` makes one.

    Attributes:
        T, N: as of the SDE. probability_flow: whether it is the ODE of the same marginals.
    """

    def __init__(self, sde: SDE, score_fn: ScoreNet, probability_flow: bool = False) -> None:
        _checks.network("score_fn", score_fn)
        self.forward_sde, self.score_fn = sde, score_fn
        self.probability_flow = _checks.flag("probability_flow", probability_flow)
        self.T, self.N = sde.T, sde.N

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return drift, like x [B, ...], and diffusion [B], in which time still runs forward."""
        drift, diffusion = self.forward_sde.sde(x, t)
        return drift - self._pull(x, t, diffusion), self._diffusion(diffusion)

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return f, like x, and G [B] of the step down from t [B]: x_n = x_{n+1} - f(x_{n+1}) + G z."""
        f, G = self.forward_sde.discretize(x, t)
        return f - self._pull(x, t, G), self._diffusion(G)

    def _pull(self, x: Tensor, t: Tensor, diffusion: Tensor) -> Tensor:
        half = 0.5 if self.probability_flow else 1.0
        return half * _wide(diffusion, x) ** 2 * score_at(self.score_fn, x, t)

    def _diffusion(self, diffusion: Tensor) -> Any:
        return torch.zeros_like(diffusion) if self.probability_flow else diffusion


def _wide(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
