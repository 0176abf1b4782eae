"""One step of the reverse process, from t_{n+1} to t_n.

    sde   y <- y - a_n grad log pi(y) + s_n^2 s(y, t_{n+1}) + s_n xi_n        no noise on the last step, n = 0
    ode   y <- y - a_n grad log pi(y) + 1/2 s_n^2 s(y, t_{n+1})

where a_n = 1/2 sigma^2 dt and s_n^2 = sigma^2 dt.
"""

from __future__ import annotations

from torch import Tensor

from . import philox
from .mixture import mixture_score
from .process import ProcessOperands


def reverse_update(
    y: Tensor, drift: Tensor, score: Tensor, step: int, noise_std: Tensor, seed: int, first_path: int, method: str
) -> Tensor:
    """Return the update for any drift increment F dt [B, d]; y, score [B, d] -> [B, d]."""
    s = noise_std[step]
    if method == "ode":
        return y - drift + 0.5 * s**2 * score
    y_mean = y - drift + s**2 * score
    if step == 0:
        return y_mean
    paths = philox.path_range(len(y), first_path, y.device)
    return y_mean + s * philox.normal(paths, y.shape[1], seed=seed, step=step, stream=philox.REVERSE, dtype=y.dtype)


def reverse_step(
    y: Tensor,
    score: Tensor,
    step: Tensor,
    process: ProcessOperands,
    seed: Tensor,
    first_path: int,
    method: str,
) -> Tensor:
    """Take the reverse step of y, score [B, d], step 0-d int64 -> [B, d]."""
    n = int(step)
    drift = process.drift_scale[n] * mixture_score(y, process.mixture)
    return reverse_update(y, drift, score, n, process.noise_std, int(seed), first_path, method)
