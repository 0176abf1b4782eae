"""Flow matching from the mixture: straight lines from data to draws of their own components, as a process like others.

Sources: Lipman et al., arXiv 2210.02747; Tong et al., arXiv 2302.00482.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._condition import Condition
from ._scheme import METHODS, PREDICTIONS, ReverseScheme
from .dynamics import DriftlessDynamics
from .linear import Driftless
from .mixture import GaussianMixture
from .process import Noised, checked_reference, coordinate_dtype
from .reference.mixture import component_draws


class FlowDynamics(DriftlessDynamics):
    """The way back along a velocity; there is none forward, step by step."""

    def simulate(self, *_: Any) -> Any:
        raise TypeError("process: expected one that noises step by step, found a FlowProcess; use FlowMatchingLoss")

    def simulate_transition(self, *_: Any) -> Any:
        self.simulate()

    def simulate_target(self, *_: Any) -> Any:
        self.simulate()


class FlowProcess(Driftless):
    """Straight lines x_t = (1 - t) x_0 + t y from data to draws of the mixture, t from 0 to 1: flow matching.

    y is of the component that x_0 is in, drawn by its responsibilities, so that a line stays near its mode. The network
    learns the velocity x_0 - y, by `FlowMatchingLoss`; `sample` follows it back from draws of the mixture, in equal
    steps by the method of Adams and Bashforth (order=2) or Euler's (order=1). A velocity of zero leaves the mixture.

    Args:
        reference: the mixture to start from; `GaussianMixture.standard_normal(d)` is flow matching as usual.
        n_steps: of the grid that `log_likelihood` steps on.

    Source: Lipman et al., arXiv 2210.02747; couplings: Tong et al., arXiv 2302.00482. That by components is ours.
    """

    def __init__(self, reference: GaussianMixture, n_steps: int = 100) -> None:
        _checks.instance("reference", reference, GaussianMixture, "a GaussianMixture")
        checked_reference(reference, reference.dim)
        super().__init__(reference.dim, 1.0, n_steps, 1.0, "uniform")
        self.register_buffer("class_weights", None)
        self.reference = reference
        self._normal = GaussianMixture.standard_normal(self.dim)
        with torch.inference_mode(False):
            self.tabulate(self.times)
            self.to(reference.means.device)
        self._read_tables()

    def tabulate(self, times: Tensor) -> None:
        self.times = times
        self.noise_std = times.diff().sqrt()
        self.drift_scale = torch.zeros_like(self.noise_std)
        self.register_buffer("noise_variance", torch.ones_like(self.noise_std))
        self._read_tables()

    @property
    def dynamics(self) -> FlowDynamics:
        return FlowDynamics(self.drift_scale, self.noise_std, self._normal)

    @property
    def prior(self) -> GaussianMixture:  # type: ignore[override]
        """The law that sampling starts from: the mixture."""
        return self.reference

    @property
    def forgets(self) -> bool:
        return self.reference.n_components == 1

    def _noised_to_end(self, x0: Tensor) -> Tensor:
        return x0  # a line ends in the component that it starts from

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that it was made with besides its reference."""
        return {"n_steps": self.n_steps}

    def loss_weight(self, drawn: Noised) -> Tensor:
        """Return ones [B]."""
        return drawn.variance

    def reference_score(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return zeros like x [B, ...]: the velocity that a ResidualScore adds to."""
        return torch.zeros_like(x)

    @property
    def default_method(self) -> str:
        return "ode"

    @property
    def default_prediction(self) -> str:
        return "score"

    def for_evaluations(self, n_evaluations: int | None, start: float | None) -> FlowProcess:
        """Return the process on equal steps, one an evaluation, from `start` (None: 1) down to 0."""
        steps = self.n_steps if n_evaluations is None else n_evaluations
        fractions = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
        return self._on_grid(fractions * (self.T if start is None else start))

    def reverse_scheme(self, method: str = "ode", prediction: str = "score") -> ReverseScheme:
        """Return the steps y + dt velocity, the velocity held or extrapolated in t.

        Raises:
            ValueError: for another method than "ode", or another prediction than "score".
        """
        for name, value, known, only in (
            ("method", method, METHODS, "ode"),
            ("prediction", prediction, PREDICTIONS, "score"),
        ):
            if _checks.choice(name, value, known) != only:
                raise ValueError(f"{name}: expected {only!r} with a FlowProcess, found {value!r}")
        dt, at = self.times.diff(), 2.0 * self.times  # half of what the coordinate grows by is the step
        zero, one = torch.zeros_like(at), torch.ones_like(at)
        steps = torch.stack([one[1:], zero[1:], dt, zero[1:], zero[1:]])
        gains = torch.stack([zero, zero, one], dim=1)
        return ReverseScheme(steps, 0.5 * (at[:-1] + at[1:]), at, gains, one, zero, one, endless=False)

    def exact_noised(
        self,
        x0: Tensor,
        step: int | Tensor | None = None,
        seed: int | Tensor | None = None,
        first_path: int = 0,
    ) -> Noised:
        """Draw (1 - t) x_0 + t y with target x_0 - y for x0 [B, ...]; t is uniform on (0, 1), or t_{step+1}."""
        n, key, start = self._draw(x0, step, seed, first_path)
        u, v, *_ = self._uniform(len(x0), key, start)
        t = self.times[n + 1] if step is not None else u
        n = n if step is not None else self._step_at(t)
        t = t.to(coordinate_dtype(x0.dtype))
        with torch.no_grad():
            shares = self.reference.responsibilities(x0).double().cumsum(1)
        k = torch.searchsorted(shares, (v * shares[:, -1])[:, None], right=True)[:, 0].clamp(max=shares.shape[1] - 1)
        _, means, factors, kind = self.reference.sampling_operands()
        z = self._normal_numbers(x0, key, start).to(means.dtype)
        y = component_draws(k, z, means, factors, kind).reshape(x0.shape).to(x0.dtype)
        wide = t.reshape(-1, *[1] * (x0.ndim - 1))
        return Noised((x0 + wide * (y - x0)).to(x0.dtype), x0 - y, torch.ones_like(t), t, n)
