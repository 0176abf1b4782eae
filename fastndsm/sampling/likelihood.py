"""The log-likelihood of the probability flow.

    dx/dt = F - 1/2 sigma^2 s,    d log p(x_t) / dt = -div(F - 1/2 sigma^2 s)

Sources: Song et al. 2021; Hutchinson 1989 for the divergence in many dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, functional
from ..objective import ScoreNet
from ..process import NoisingProcess
from ..reference import philox
from ..score import check_process, evaluating, network_dtype

EXACT_DIVERGENCE_DIM = 16


def log_likelihood(
    score_net: ScoreNet,
    process: NoisingProcess,
    x: Tensor,
    *,
    n_probes: int = 8,
    seed: int | Tensor | None = 0,
) -> Tensor:
    """Return log p(x) in nats under the probability-flow ODE, x [B, ...] -> [B].

    The result has the wider of x's and the network's dtypes.

    log p_0(x) = log prior(x_T) + int_0^T div(F - 1/2 sigma^2 s) dt, by Heun's method on the process's grid; in the
    first interval the score is taken at t_1, the earliest time it was trained at. The divergence is exact up to 16
    dimensions and by Hutchinson's estimator with `n_probes` Rademacher probes (from `seed`) beyond.

    A module is evaluated in eval mode and in its own dtype, and left in the modes it came in.

    Source: Song et al. 2021; Hutchinson 1989.
    """
    _checks.network("score_net", score_net)
    _checks.instance("process", process, NoisingProcess, "a noising process")
    check_process(score_net, process)
    _checks.data("x", x, process.dim)
    _checks.same_device("x", x, "process", process.times.device)
    _checks.count("n_probes", n_probes)
    key = _checks.seed(seed)
    with torch.inference_mode(False), torch.no_grad(), evaluating(score_net):
        return _integrated(score_net, process, x, n_probes, key)


def _integrated(score_net: ScoreNet, process: NoisingProcess, x: Tensor, n_probes: int, seed: Tensor) -> Tensor:
    evaluated = network_dtype(score_net) or x.dtype
    dtype = torch.promote_types(torch.promote_types(x.dtype, evaluated), torch.float32)
    process.check_dtype("x", dtype)
    x = x.detach().to(dtype, copy=True)  # an inference tensor could not be part of a gradient
    flat, shape = x.flatten(1), x.shape
    probes = _probes(flat, n_probes, seed)
    times = process.times.to(dtype)

    def slope(y: Tensor, step: int, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return dy/dt [B, d] and its divergence [B] with the coefficients of `step`."""
        dt = times[step + 1] - times[step]
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            shaped = y.reshape(shape)
            point = shaped.to(evaluated)
            t_of_rows = t.to(torch.promote_types(evaluated, torch.float32)).expand(len(y))
            score = _checks.score_output(score_net(point, t_of_rows), point).to(dtype)
            drift = process.drift(shaped, float(process.times[step]))
            half = 0.5 * (process.noise_std[step] ** 2).to(y.dtype) / dt
            velocity = (drift - half * score).reshape(y.shape)
            divergence = torch.zeros_like(velocity[:, 0])
            for probe in probes:
                (along,) = torch.autograd.grad(velocity, y, probe, retain_graph=True)
                divergence = divergence + (along * probe).sum(1)
        scale = 1.0 if _exact(flat) else 1.0 / len(probes)
        return velocity.detach(), divergence.detach() * scale

    y, integral = flat, torch.zeros_like(flat[:, 0])
    for step in range(process.n_steps):
        dt = times[step + 1] - times[step]
        k1, d1 = slope(y, step, times[max(step, 1)])
        k2, d2 = slope(y + dt * k1, step, times[step + 1])
        y = y + 0.5 * dt * (k1 + k2)
        integral = integral + 0.5 * dt * (d1 + d2)
    return process.prior.log_prob(y.reshape(shape)) + integral


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
