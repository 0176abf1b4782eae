"""The log-likelihood of the probability flow, from which the mixture cancels.

    dx/dt = -1/2 sigma^2 r,    d log p(x_t) / dt = 1/2 sigma^2 div r,    r = s - grad log pi

By the method of Adams and Bashforth of order 2 for sqrt(v) r in w = int sigma^2 dt / sqrt(v), in which it is smooth.

Sources: Song et al. 2021; Hutchinson 1989 for the divergence in many dimensions.
"""

from __future__ import annotations

from itertools import pairwise

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


def log_likelihood(
    score_net: ScoreNet,
    process: NoisingProcess,
    x: Tensor,
    *,
    n_evaluations: int | None = None,
    n_probes: int = 8,
    seed: int | Tensor | None = 0,
    condition: Condition | None = None,
) -> Tensor:
    """Return log p(x) in nats under the probability-flow ODE, x [B, ...] -> [B]; with a condition y, log p(x | y).

    The result has the wider of x's and the network's dtypes.

    log p_0(x) = log prior(x_T) - int_0^T 1/2 sigma^2 div r dt, with n_evaluations of the network on a cubic grid
    (default one a step of the process's); the first is at t_1, the earliest time it was trained at. The divergence is
    exact up to 16 dimensions and by Hutchinson's estimator with `n_probes` Rademacher probes (from `seed`) beyond.

    A module is evaluated in eval mode and in its own dtype, and left in the modes it came in. A condition is a tensor
    [B, ...] or a dict of them, on the device of x.

    Source: Song et al. 2021; Hutchinson 1989.
    """
    _checks.network("score_net", score_net)
    _checks.instance("process", process, NoisingProcess, "a noising process")
    check_process(score_net, process)
    _checks.data("x", x, process.dim)
    _checks.same_device("x", x, "process", process.times.device)
    _checks.count("n_probes", n_probes)
    points = [0, *evaluation_indices(process.times, n_evaluations, "cubic")[::-1]]
    key = _checks.seed(seed)
    check_condition(score_net, condition, len(x), process.times.device)
    check_prior(process, condition)
    with torch.inference_mode(False), torch.no_grad(), evaluating(score_net):
        return _integrated(score_net, process, x, points, n_probes, key, condition)


def _integrated(
    score_net: ScoreNet,
    process: NoisingProcess,
    x: Tensor,
    points: list[int],
    n_probes: int,
    seed: Tensor,
    condition: Condition | None,
) -> Tensor:
    evaluated = network_dtype(score_net) or x.dtype
    dtype = torch.promote_types(torch.promote_types(x.dtype, evaluated), torch.float32)
    process.check_dtype("x", dtype)
    x = x.detach().to(dtype, copy=True)  # an inference tensor could not be part of a gradient
    condition = None if condition is None else mapped(torch.clone, condition)  # for the same reason
    flat, shape = x.flatten(1), x.shape
    probes = _probes(flat, n_probes, seed)
    scheme = process.reverse_scheme("ode", "score")
    w = scheme.at.tolist()  # int sigma^2 dt / sqrt(v)
    scale = 1.0 if _exact(flat) else 1.0 / len(probes)

    def residual(y: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return r at y and t_n, times sqrt(v), and its divergence; [B, d] and [B]."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            shaped = y.reshape(shape)
            point = shaped.to(evaluated)
            t = process.times[n].to(torch.promote_types(evaluated, torch.float32)).expand(len(y))
            score = score_at(score_net, point, t, condition).to(dtype)
            step = torch.tensor(n - 1, device=y.device)
            value = (score - process.dynamics.drift_score(shaped, step)).reshape(y.shape)
            divergence = torch.zeros_like(value[:, 0])
            for probe in probes:
                (along,) = torch.autograd.grad(value, y, probe, retain_graph=True)
                divergence = divergence + (along * probe).sum(1)
        std = scheme.variance[n].to(dtype).sqrt()
        return std * value.detach(), scale * std * divergence.detach()

    y, integral = flat, torch.zeros_like(flat[:, 0])
    before: tuple[Tensor, Tensor] | None = None
    for k, (start, end) in enumerate(pairwise(points)):
        now = residual(y, max(start, 1))
        step = 0.5 * (w[end] - w[start])
        # by how much of the last interval this one extrapolates to its middle
        ahead = 0.0 if before is None else 0.5 * (w[end] - w[start]) / (w[start] - w[points[k - 1]])
        velocity, divergence = (
            a if before is None else a + ahead * (a - b) for a, b in zip(now, before or now, strict=True)
        )
        y, integral = y - step * velocity, integral - step * divergence
        before = now
    return process.prior_log_prob(y.reshape(shape), condition) + integral


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
