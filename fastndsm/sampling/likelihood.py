"""The log-likelihood of the probability flow, from which the mixture cancels.

    dx/dt = -1/2 sigma^2 r,    d log p(x_t) / dt = 1/2 sigma^2 div r,    r = s - grad log pi

By the method of Adams and Bashforth of order 2 for sqrt(v) r in w = int sigma^2 dt / sqrt(v), in which it is smooth.

Sources: Song et al. 2021; Hutchinson 1989 for the divergence in many dimensions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, overload

import torch
from torch import Tensor

from .. import _checks, functional
from .._condition import Condition, mapped
from .._scheme import evaluation_indices
from ..objective import ScoreNet
from ..process import NoisingProcess
from ..reference import philox
from ..score import check_condition, check_process, evaluating, network_dtype, score_at
from .guidance import check_prior

EXACT_DIVERGENCE_DIM = 16


@overload
def log_likelihood(
    score_net: ScoreNet,
    process: NoisingProcess,
    x: Tensor,
    *,
    n_evaluations: int | None = None,
    n_probes: int = 8,
    seed: int | Tensor | None = 0,
    condition: Condition | None = None,
    return_error: Literal[False] = False,
) -> Tensor: ...


@overload
def log_likelihood(
    score_net: ScoreNet,
    process: NoisingProcess,
    x: Tensor,
    *,
    n_evaluations: int | None = None,
    n_probes: int = 8,
    seed: int | Tensor | None = 0,
    condition: Condition | None = None,
    return_error: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def log_likelihood(
    score_net: ScoreNet,
    process: NoisingProcess,
    x: Tensor,
    *,
    n_evaluations: int | None = None,
    n_probes: int = 8,
    seed: int | Tensor | None = 0,
    condition: Condition | None = None,
    return_error: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return log p(x) in nats under the probability-flow ODE, x [B, ...] -> [B]; with a condition y, log p(x | y).

    The result has the wider of x's and the network's dtypes. It is differentiable where x requires a gradient, in x and
    in the network's parameters; the graph then holds every evaluation.

    log p_0(x) = log prior(x_T) - int_0^T 1/2 sigma^2 div r dt, with n_evaluations of the network on a cubic grid
    (default one a step of the process's); the first is at t_1, the earliest time it was trained at. The divergence is
    exact up to 16 dimensions and by Hutchinson's estimator with `n_probes` Rademacher probes (from `seed`) beyond.

    A module is evaluated in eval mode and in its own dtype, and left in the modes it came in. A condition is a tensor
    [B, ...] or a dict of them, on the device of x.

    Args:
        return_error: return (log p, error), error [B] an estimate of what integration gets wrong: how far the prior's
            term moves, and how far the integral does, on a second grid of half the evaluations, the first at t_2. It
            costs half as much again, and knows nothing of probes nor of how good the network is.

    Source: Song et al. 2021; Hutchinson 1989.
    """
    _checks.network("score_net", score_net)
    _checks.instance("process", process, NoisingProcess, "a noising process")
    check_process(score_net, process)
    _checks.data("x", x, process.dim)
    _checks.same_device("x", x, "process", process.times.device)
    _checks.count("n_probes", n_probes)
    indices = evaluation_indices(process.times, n_evaluations, "cubic")
    if _checks.flag("return_error", return_error) and len(indices) < 2:
        raise ValueError(f"return_error: expected it with n_evaluations of at least 2, found {len(indices)}")
    key = _checks.seed(seed)
    check_condition(score_net, condition, len(x), process.times.device)
    check_prior(process, condition)
    graph = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.set_grad_enabled(graph), evaluating(score_net):
        flow = _Flow(score_net, process, x, n_probes, key, condition)
        end, integral = flow.integrated(indices)
        value = end + integral
        if not return_error:
            return value
        with torch.no_grad():
            half = evaluation_indices(process.times, len(indices) // 2, "cubic")
            coarse_end, coarse_integral = flow.integrated(half, earliest=2)
        return value, ((end - coarse_end).abs() + (integral - coarse_integral).abs()).detach()


class _Flow:
    """The flow from x [B, ...] on; its graph is kept where gradients are enabled."""

    def __init__(
        self,
        score_net: ScoreNet,
        process: NoisingProcess,
        x: Tensor,
        n_probes: int,
        seed: Tensor,
        condition: Condition | None,
    ) -> None:
        self.score_net, self.process = score_net, process
        self.evaluated = network_dtype(score_net) or x.dtype
        self.dtype = torch.promote_types(torch.promote_types(x.dtype, self.evaluated), torch.float32)
        process.check_dtype("x", self.dtype)
        x = x if torch.is_grad_enabled() else x.detach()
        x = x.to(self.dtype, copy=True)  # an inference tensor could not be part of a gradient
        self.condition = None if condition is None else mapped(torch.clone, condition)  # for the same reason
        self.flat, self.shape = x.flatten(1), x.shape
        self.probes = _probes(self.flat.detach(), n_probes, seed)
        self.dynamics = process.dynamics_under(condition, len(x))
        self.scheme = process.reverse_scheme("ode", "score")

    def residual(self, y: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return r at y and t_n, times sqrt(v), and its divergence; [B, d] and [B]."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            y = y if graph else y.detach().requires_grad_()
            shaped = y.reshape(self.shape)
            point = shaped.to(self.evaluated)
            t = self.process.times[n].to(torch.promote_types(self.evaluated, torch.float32)).expand(len(y))
            score = score_at(self.score_net, point, t, self.condition).to(self.dtype)
            step = torch.tensor(n - 1, device=y.device)
            value = (score - self.dynamics.drift_score(shaped, step)).reshape(y.shape)
            divergence = torch.zeros_like(value[:, 0])
            for probe in self.probes:
                (along,) = torch.autograd.grad(value, y, probe, retain_graph=True, create_graph=graph)
                divergence = divergence + (along * probe).sum(1)
        std = self.scheme.variance[n].to(self.dtype).sqrt()
        scale = 1.0 if _exact(y) else 1.0 / len(self.probes)
        if not graph:
            value, divergence = value.detach(), divergence.detach()
        return std * value, scale * std * divergence

    def integrated(self, evaluations: list[int], earliest: int = 1) -> tuple[Tensor, Tensor]:
        """Return log prior(x_T) and minus the integral of the divergence, [B] each.

        The network is evaluated at these points of the grid, from the last down, but at none before `earliest`.
        """
        w = self.scheme.at.tolist()  # int sigma^2 dt / sqrt(v)
        points = [0, *evaluations[::-1]]
        y, integral = self.flat, torch.zeros_like(self.flat[:, 0])
        before: tuple[Tensor, Tensor] | None = None
        for k, (start, end) in enumerate(pairwise(points)):
            now = self.residual(y, max(start, earliest))
            step = 0.5 * (w[end] - w[start])
            # by how much of the last interval this one extrapolates to its middle
            ahead = 0.0 if before is None else 0.5 * (w[end] - w[start]) / (w[start] - w[points[k - 1]])
            velocity, divergence = (
                a if before is None else a + ahead * (a - b) for a, b in zip(now, before or now, strict=True)
            )
            y, integral = y - step * velocity, integral - step * divergence
            before = now
        return self.process.prior_log_prob(y.reshape(self.shape), self.condition), integral


def _exact(x: Tensor) -> bool:
    return x.shape[1] <= EXACT_DIVERGENCE_DIM


def _probes(x: Tensor, n_probes: int, seed: Tensor) -> list[Tensor]:
    """Return the unit vectors, or Rademacher vectors of the probe stream, each [B, d]."""
    rows, dim = x.shape
    if _exact(x):
        return [unit.expand(rows, dim) for unit in torch.eye(dim, dtype=x.dtype, device=x.device)]
    draw = functional.philox_normal
    return [
        draw(rows, dim, seed=seed, step=i, stream=philox.PROBE, dtype=x.dtype, device=x.device).sign()
        for i in range(n_probes)
    ]
