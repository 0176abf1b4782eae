"""Sampling by the reverse process from Y ~ prior, and the log-likelihood of the probability flow.

    sde   y <- y - F dt + sigma^2 s(y, t) dt + sigma sqrt(dt) xi        no noise on the last step
    ode   y' = F - 1/2 sigma^2 s, by Heun's method, its last step an Euler step

Sources: Anderson 1982; Song et al. 2021; Heun for diffusions: Karras et al. 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import _checks, functional
from .objective import ScoreNet
from .process import NoisingProcess
from .reference import philox

EXACT_DIVERGENCE_DIM = 16


@torch.no_grad()
def sample(
    score_net: ScoreNet,
    process: NoisingProcess,
    n: int,
    method: str = "sde",
    seed: int | Tensor | None = None,
    batch_size: int | None = None,
    first_path: int = 0,
    progress: bool = False,
) -> Tensor:
    """n samples [n, *event_shape]; sample i's noise depends on seed and first_path + i alone, not on batch_size.

    Args:
        score_net: callable (x [B, ...], t [B]) -> like x.
        process: the noising process it was trained on.
        method: "sde", or "ode" (probability flow; two evaluations a step).
        batch_size: samples held at once; default all.
        progress: show a bar.

    Raises:
        FloatingPointError: if the samples become non-finite, naming the step.
    """
    _checks.network("score_net", score_net)
    _check_process(process)
    _checks.count("n", n)
    _checks.choice("method", method, functional.METHODS)
    first_path = _checks.first_path(first_path)
    batch_size = n if batch_size is None else _checks.count("batch_size", batch_size)
    key = _checks.seed(seed)
    times = process.times
    batches = []
    steps = len(range(0, n, batch_size)) * process.n_steps
    with tqdm(total=steps, disable=not progress, desc="sample", unit="step") as bar:
        for start in range(0, n, batch_size):
            rows = min(batch_size, n - start)
            begin = first_path + start
            y = _prior_draw(process, rows, key, begin)
            failed = torch.full((), -1, device=y.device)  # the step that first gave non-finite values, read at the end
            for step in reversed(range(process.n_steps)):
                t = times[step + 1].to(y.dtype).expand(rows)
                score = _checks.score_output(score_net(y, t), y)
                euler = functional.reverse_step(
                    y, score, process, step, seed=key, first_path=begin, method=method
                )
                if method == "ode" and step > 0:
                    earlier = times[step].to(y.dtype).expand(rows)
                    score = _checks.score_output(score_net(euler, earlier), euler)
                    # y + (k1 + k2) / 2, written with two Euler steps
                    second = functional.reverse_step(euler, score, process, step, seed=key, method=method)
                    euler = 0.5 * (y + second)
                y = euler
                failed = torch.where((failed < 0) & ~torch.isfinite(y).all(), step, failed)
                bar.update()
            if int(failed) >= 0:
                raise FloatingPointError(
                    f"score_net: expected finite samples, found NaN or infinite ones at step {int(failed)}, "
                    f"t = {float(times[int(failed) + 1]):.4g}; check the network's output there and the weights it has"
                )
            batches.append(y)
    return torch.cat(batches)


def _check_process(process: NoisingProcess) -> None:
    if not isinstance(process, NoisingProcess):
        raise TypeError(f"process: expected a noising process, found {type(process).__name__}")


def _prior_draw(process: NoisingProcess, rows: int, seed: Tensor, first_path: int) -> Tensor:
    """Draws of the prior in the default dtype, as a score network expects."""
    y = process.prior.sample(rows, seed=seed, first_path=first_path)
    return y.to(torch.get_default_dtype()).to(process.times.device)


def log_likelihood(
    score_net: ScoreNet,
    process: NoisingProcess,
    x: Tensor,
    *,
    n_probes: int = 8,
    seed: int | Tensor | None = 0,
) -> Tensor:
    """log p(x) in nats under the probability-flow ODE, x [B, ...] -> [B].

    log p_0(x) = log prior(x_T) + int_0^T div(F - 1/2 sigma^2 s) dt, by Heun's method on the process's grid; in the
    first interval the score is taken at t_1, the earliest time it was trained at. The divergence is exact up to 16
    dimensions and by Hutchinson's estimator with `n_probes` Rademacher probes (from `seed`) beyond.

    Source: Song et al. 2021; Hutchinson 1989.
    """
    _checks.network("score_net", score_net)
    _check_process(process)
    flat = _checks.data("x", x, process.dim)
    _checks.count("n_probes", n_probes)
    shape = x.shape
    probes = _probes(flat, n_probes, _checks.seed(seed))
    times = process.times.to(x.dtype)

    def slope(y: Tensor, step: int, t: Tensor) -> tuple[Tensor, Tensor]:
        """dy/dt [B, d] and its divergence [B] with the coefficients of `step`."""
        dt = times[step + 1] - times[step]
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            shaped = y.reshape(shape)
            score = _checks.score_output(score_net(shaped, t.expand(len(y))), shaped)
            drift = process.drift(shaped, float(process.times[step]))
            half = 0.5 * (process.noise_std[step] ** 2).to(y.dtype) / dt
            velocity = (drift - half * score).reshape(y.shape)
            divergence = torch.zeros_like(velocity[:, 0])
            for probe in probes:
                (along,) = torch.autograd.grad(velocity, y, probe, retain_graph=True)
                divergence = divergence + (along * probe).sum(1)
        scale = 1.0 if _exact(flat) else 1.0 / len(probes)
        return velocity.detach(), divergence.detach() * scale

    y, integral = flat.detach(), torch.zeros_like(flat[:, 0])
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
    """The unit vectors, or Rademacher vectors of the probe stream, each [B, d]."""
    rows, dim = x.shape
    if _exact(x):
        return [unit.expand(rows, dim) for unit in torch.eye(dim, dtype=x.dtype, device=x.device)]
    draw = functional.philox_normal
    return [
        draw(rows, dim, seed=seed, step=i, stream=philox.PROBE, dtype=x.dtype, device=x.device).sign()
        for i in range(n_probes)
    ]
