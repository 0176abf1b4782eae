"""The Triton backend: the functions of `fastndsm.reference`, each one launch on a GPU, in float32.

Triton is imported by `prepare` or by the first op called, not with this module. It decides then whether it compiles
or, with TRITON_INTERPRET=1, interprets the kernels on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .mixture_score import Mixture


def prepare() -> None:
    """Raises RuntimeError with the reason if no kernel can run here: no Triton, or nothing to run on."""
    try:
        from triton import JITFunction

        from . import philox
    except ImportError as error:
        raise RuntimeError(f"Triton cannot be imported: {error}") from error
    compiled = isinstance(philox.philox_normal_kernel, JITFunction)
    if compiled and not torch.cuda.is_available():
        raise RuntimeError("it needs a GPU, and PyTorch finds none")


def philox_normal(
    n_paths: int,
    dim: int,
    seed: Tensor,
    step: Tensor,
    stream: int,
    first_path: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    from . import philox

    return philox.philox_normal(n_paths, dim, seed, step, stream, first_path, dtype, device)


def ndsm_loss(scores: Tensor, noise: Tensor, std: Tensor, estimator: str, antithetic: bool) -> Tensor:
    from . import loss

    return loss.ndsm_loss(scores, noise, std, estimator, antithetic)


def ndsm_loss_backward(
    grad: Tensor, scores: Tensor, noise: Tensor, std: Tensor, estimator: str, antithetic: bool
) -> Tensor:
    from . import loss

    return loss.ndsm_loss_backward(grad, scores, noise, std, estimator, antithetic)


def dsm_loss(score: Tensor, target: Tensor) -> Tensor:
    from . import loss

    return loss.dsm_loss(score, target)


def dsm_loss_backward(grad: Tensor, score: Tensor, target: Tensor) -> Tensor:
    from . import loss

    return loss.dsm_loss_backward(grad, score, target)


def simulate(
    x0: Tensor,
    steps: Tensor,
    drift_scale: Tensor,
    noise_std: Tensor,
    mixture: Mixture,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    from . import simulate as kernels

    return kernels.simulate(x0, steps, drift_scale, noise_std, mixture, seed, first_path)


def simulate_transition(
    x0: Tensor,
    steps: Tensor,
    drift_scale: Tensor,
    noise_std: Tensor,
    mixture: Mixture,
    seed: Tensor,
    first_path: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import simulate as kernels

    return kernels.simulate_transition(x0, steps, drift_scale, noise_std, mixture, seed, first_path)


def simulate_target(
    x0: Tensor,
    steps: Tensor,
    drift_scale: Tensor,
    noise_std: Tensor,
    mixture: Mixture,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import simulate as kernels

    return kernels.simulate_target(x0, steps, drift_scale, noise_std, mixture, seed, first_path, antithetic)


def mixture_log_prob(x: Tensor, mixture: Mixture) -> Tensor:
    from . import mixture_score

    return mixture_score.mixture_log_prob(x, mixture)


def mixture_score(x: Tensor, mixture: Mixture) -> Tensor:
    from . import mixture_score

    return mixture_score.mixture_score(x, mixture)


def mixture_hvp(x: Tensor, v: Tensor, mixture: Mixture) -> Tensor:
    from . import mixture_score

    return mixture_score.mixture_hvp(x, v, mixture)


def reverse_step(
    y: Tensor,
    score: Tensor,
    step: Tensor,
    drift_scale: Tensor,
    noise_std: Tensor,
    mixture: Mixture,
    seed: Tensor,
    first_path: int,
    method: str,
) -> Tensor:
    from . import reverse_step

    return reverse_step.reverse_step(y, score, step, drift_scale, noise_std, mixture, seed, first_path, method)
