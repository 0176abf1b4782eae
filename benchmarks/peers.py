"""The simulator as users of PyTorch and torchsde write it: the drift in matmul form, two matrix products each way.

Each peer is a function of (problem, noise): noise None draws its own, as when it is timed; noise [N, B, d] runs the
same code on given normals, so that it can be compared path by path. `configurations` of a peer do the same work in
different ways; the fastest is the one that counts.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .problems import TINY, MatmulForm, Problem

Peer = Callable[[Problem, Tensor, Tensor | None], tuple[Tensor, ...]]  # (problem, x0, noise) -> x, or x and target


class TwoProducts:
    """Logits and posterior means by two products each."""

    def __init__(self, m: MatmulForm) -> None:
        self.pulls, self.precisions, self.offsets = m
        self.pulls_t, self.precisions_t = self.pulls.T.contiguous(), self.precisions.T.contiguous()

    def responsibilities(self, x: Tensor) -> Tensor:
        return torch.addmm(self.offsets, x, self.pulls_t).addmm(x * x, self.precisions_t, alpha=-0.5).softmax(1)

    def posterior_means(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return r b and r P."""
        return r @ self.pulls, r @ self.precisions

    def along(self, x: Tensor, z: Tensor) -> Tensor:
        """Return g_k . z [B, K]."""
        return torch.addmm(z @ self.pulls_t, x * z, self.precisions_t, alpha=-1.0)


class OneProduct:
    """The same with x and x^2 side by side, b and P too: one product each."""

    def __init__(self, m: MatmulForm) -> None:
        self.dim, self.offsets = m.pulls.shape[1], m.offsets
        self.right = torch.cat([m.pulls, m.precisions], 1)
        self.left = torch.cat([m.pulls, -0.5 * m.precisions], 1).T.contiguous()
        self.mixed = torch.cat([m.pulls, -m.precisions], 1).T.contiguous()

    def responsibilities(self, x: Tensor) -> Tensor:
        return torch.addmm(self.offsets, torch.cat([x, x * x], 1), self.left).softmax(1)

    def posterior_means(self, r: Tensor) -> tuple[Tensor, Tensor]:
        both = r @ self.right
        return both[:, : self.dim], both[:, self.dim :]

    def along(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.cat([z, x * z], 1) @ self.mixed


Form = TwoProducts | OneProduct


def score(form: Form, x: Tensor) -> Tensor:
    b, p = form.posterior_means(form.responsibilities(x))
    return torch.addcmul(b, x, p, value=-1.0)


def step(form: Form, x: Tensor, z: Tensor, a: float | Tensor, s: float | Tensor) -> Tensor:
    """Return x_{n+1} = x + a score(x) + s z."""
    return x + a * score(form, x) + s * z


def step_in_place(form: Form, x: Tensor, z: Tensor, a: float, s: float) -> Tensor:
    """Take the same step, in place where eager PyTorch can."""
    b, p = form.posterior_means(form.responsibilities(x))
    return x.addcmul_(x, p, value=-a).add_(b, alpha=a).add_(z, alpha=s)


def target_step(
    form: Form,
    x: Tensor,
    h: Tensor,
    v: Tensor,
    rate: Tensor,
    z: Tensor,
    a: float | Tensor,
    s: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take x, H and v of the path estimator from step n to n + 1."""
    r = form.responsibilities(x)
    c = r * form.along(x, z)
    b, p = form.posterior_means(r)
    cb, cp = form.posterior_means(c)
    g = b - x * p
    product = cb - x * cp - z * p - g * c.sum(1, keepdim=True)
    contraction = 1.0 - a * rate
    v_next = s * s + contraction * contraction * v
    rho = contraction * v / v_next
    h = rho * h + ((1.0 - rho) * z - rho * a * product) / s
    return x + a * g + s * z, h, v_next


def simulate(advance: Callable[..., Tensor], problem: Problem, x0: Tensor, noise: Tensor | None) -> tuple[Tensor, ...]:
    x, buffer = x0.clone(), torch.empty_like(x0)
    for n, (a, s) in enumerate(zip(problem.drift_scale, problem.noise_std, strict=True)):
        x = advance(x, buffer.normal_() if noise is None else noise[n], a, s)
    return (x,)


def simulate_target(
    advance: Callable[..., tuple[Tensor, Tensor, Tensor]],
    form: Form,
    problem: Problem,
    x0: Tensor,
    noise: Tensor | None,
) -> tuple[Tensor, ...]:
    x, buffer = x0.clone(), torch.empty_like(x0)
    h, v = torch.zeros_like(x), torch.zeros_like(x)
    rate = form.posterior_means(form.responsibilities(x))[1].contiguous()
    for n, (a, s) in enumerate(zip(problem.drift_scale, problem.noise_std, strict=True)):
        x, h, v = advance(x, h, v, rate, buffer.normal_() if noise is None else noise[n], a, s)
    return x, -h


def eager(problem: Problem, target: bool) -> dict[str, Peer]:
    """Return the simulator in plain PyTorch, under inference_mode."""
    configurations: dict[str, Peer] = {}
    for form in (TwoProducts(problem.matmul_form), OneProduct(problem.matmul_form)):
        run: Peer = (
            partial(simulate_target, partial(target_step, form), form)
            if target
            else partial(simulate, partial(step_in_place, form))
        )
        configurations[type(form).__name__] = torch.inference_mode()(run)
    return configurations


def compiled(problem: Problem, target: bool) -> dict[str, Peer]:
    """Return the simulator with its step by torch.compile, one graph; the loop and the noise in Python."""
    form = OneProduct(problem.matmul_form)
    torch.compiler.reset()
    whole = partial(target_step if target else step, form)
    advance = torch.compile(whole, fullgraph=True, dynamic=False, backend="eager" if TINY else "inductor")

    def with_tensors(*arguments: Any) -> Any:  # a Python number would be compiled into the graph
        *state, a, s = arguments
        return advance(*state, torch.tensor(a, device="cpu"), torch.tensor(s, device="cpu"))

    loop = partial(simulate_target, with_tensors, form) if target else partial(simulate, with_tensors)
    return {"OneProduct": torch.no_grad()(loop)}


def torchsde_available() -> bool:
    return importlib.util.find_spec("torchsde") is not None


def torchsde(problem: Problem, target: bool) -> dict[str, Peer]:
    """Return torchsde's Euler scheme with diagonal noise; it has no path estimator."""
    library = importlib.import_module("torchsde")
    assert not target
    form = TwoProducts(problem.matmul_form)
    horizon = problem.process.T
    dt = horizon / problem.steps

    class Langevin(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return 0.5 * score(form, y)

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.ones_like(y)

    class Given(library.BaseBrownian):  # type: ignore[misc, name-defined]
        """A Brownian path of given increments."""

        dtype, device, shape, levy_area_approximation = torch.float32, torch.device("cpu"), None, "none"

        def __init__(self, noise: Tensor) -> None:
            super().__init__()
            self.noise, self.shape = noise, noise.shape[1:]

        def __repr__(self) -> str:
            return f"Given({tuple(self.noise.shape)})"

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
            n = round(float(ta) / dt)  # rounding of the times may leave a last step of no length
            return self.noise[n] * dt**0.5 if n < len(self.noise) else torch.zeros_like(self.noise[0])

    sde, times = Langevin(), torch.tensor([0.0, horizon], device="cpu")

    def run(hint: dict[str, float], problem: Problem, x0: Tensor, noise: Tensor | None) -> tuple[Tensor, ...]:
        if noise is None:
            path = library.BrownianInterval(0.0, times[-1], size=x0.shape, dtype=x0.dtype, device=x0.device, **hint)
        else:
            path = Given(noise)
        return (library.sdeint(sde, x0, times, bm=path, method="euler", dt=dt)[-1],)

    hints: dict[str, dict[str, float]] = {"default": {}, "dt known": {"dt": dt}}
    return {name: torch.no_grad()(partial(run, hint)) for name, hint in hints.items()}
