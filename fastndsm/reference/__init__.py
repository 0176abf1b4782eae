"""Pure PyTorch reference of every op: the specification that the fused backends are tested against.

Readable beside docs/method.md; float32 and float64; differentiable by plain autograd,
so that it is also the gradient oracle. Imports nothing but torch.
"""

from .components import MixtureOperands, PrincipalAxes
from .drift import (
    drift_product,
    drift_reverse_steps,
    drift_simulate,
    drift_target,
    drift_transition,
    drift_value,
)
from .loss import dsm_loss, dsm_loss_backward, ndsm_loss, ndsm_loss_backward
from .mixture import mixture_hvp, mixture_log_prob, mixture_sample, mixture_score
from .network import film_mlp
from .noised import NoisedOperands, noised_log_prob, noised_score
from .philox import philox4x32_10, philox_normal, uniform_steps
from .process import ProcessOperands
from .reverse_steps import reverse_steps
from .simulate import simulate, simulate_target, simulate_transition

__all__ = [
    "MixtureOperands",
    "NoisedOperands",
    "PrincipalAxes",
    "ProcessOperands",
    "drift_product",
    "drift_reverse_steps",
    "drift_simulate",
    "drift_target",
    "drift_transition",
    "drift_value",
    "dsm_loss",
    "dsm_loss_backward",
    "film_mlp",
    "mixture_hvp",
    "mixture_log_prob",
    "mixture_sample",
    "mixture_score",
    "ndsm_loss",
    "ndsm_loss_backward",
    "noised_log_prob",
    "noised_score",
    "philox4x32_10",
    "philox_normal",
    "reverse_steps",
    "simulate",
    "simulate_target",
    "simulate_transition",
    "uniform_steps",
]
