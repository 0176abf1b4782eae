"""Whole trajectories of drifts given as Python functions, compiled, against eager PyTorch, jitted JAX and torchsde.

Every contender takes the same Euler-Maruyama steps; on the same noise ours and the peers agree with the reference in
float64, path by path. A mixture written as a function is raced with the kernel made for mixtures.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastndsm import DriftProcess, GaussianMixture, LangevinProcess, drifts, functional, use_backend
from fastndsm.functional import philox_normal
from fastndsm.testing import deviation, random_mixture

from . import peers, peers_jax
from .problems import CHECKED_ROWS, TINY
from .rows import Row

ROWS, STEPS, HORIZON = (64, 4, 0.04) if TINY else (65536, 100, 1.0)
TOLERANCE = 1e-4  # of float32, where steps magnify it
SOFT, STRENGTH = 0.3, 0.1  # of the particles' repulsion

Function = Callable[[Any, Any], Any]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A drift in PyTorch, and the same in JAX, made of jax.numpy."""

    name: str
    dim: int
    drift: Function
    in_jax: Callable[[Any, Any], Callable[[Any], Any]]  # (jax, jax.numpy) -> x -> F
    times_faster: dict[str, float]
    sigma: float = 1.0
    horizon: float = HORIZON
    start: tuple[float, ...] = (0.0,)  # paths start about it, by a deviation
    spread: float = 0.5

    @property
    def label(self) -> str:
        return f"{self.name} d={self.dim} B={ROWS:,} N={STEPS}"

    @cached_property
    def process(self) -> DriftProcess:
        prior = GaussianMixture.standard_normal(self.dim)
        options: Any = {"T": self.horizon, "n_steps": STEPS, "sigma": self.sigma}
        return DriftProcess(self.drift, prior, **options, compiled=True)

    @cached_property
    def x0(self) -> Tensor:
        return torch.tensor(self.start, device="cpu") + self.spread * philox_normal(
            ROWS, self.dim, seed=5, backend="cpp"
        )

    def noise(self, rows: int) -> Tensor:
        """Return that of `functional.simulate` with seed 1, [N, rows, d]."""
        return torch.stack([philox_normal(rows, self.dim, seed=1, step=n, backend="cpp") for n in range(STEPS)])

    @property
    def tables(self) -> tuple[float, float]:
        """dt and s."""
        dt = self.horizon / STEPS
        return dt, self.sigma * dt**0.5


def well_in_jax(jax: Any, jnp: Any) -> Callable[[Any], Any]:
    return lambda x: x * (1.0 - x * x)


def mueller_brown_in_jax(jax: Any, jnp: Any) -> Callable[[Any], Any]:
    height, a, b, c, x_k, y_k = (jnp.asarray(row, jnp.float32) for row in zip(*drifts.MUELLER_BROWN, strict=True))

    def drift(x: Any) -> Any:
        p, q = x[:, :1] - x_k, x[:, 1:] - y_k
        weight = -0.05 * height * jnp.exp(a * p * p + b * p * q + c * q * q)
        return jnp.stack([(weight * (2 * a * p + b * q)).sum(1), (weight * (b * p + 2 * c * q)).sum(1)], 1)

    return drift


def particles(x: Tensor, t: Tensor) -> Tensor:
    """Return the drift of four particles of the plane that repel and attract each other, in a bowl."""
    q = x.reshape(-1, 4, 2)
    apart = q[:, :, None] - q[:, None]
    inverse = 1.0 / (apart.square().sum(-1, keepdim=True) + SOFT)
    force = apart * inverse * inverse * (6.0 * STRENGTH * inverse * inverse - 2.0)
    return force.sum(2).reshape(x.shape) - x


def particles_in_jax(jax: Any, jnp: Any) -> Callable[[Any], Any]:
    def drift(x: Any) -> Any:
        q = x.reshape(-1, 4, 2)
        apart = q[:, :, None] - q[:, None]
        inverse = 1.0 / ((apart * apart).sum(-1, keepdims=True) + SOFT)
        force = apart * inverse * inverse * (6.0 * STRENGTH * inverse * inverse - 2.0)
        return force.sum(2).reshape(x.shape) - x

    return drift


CASES = {
    case.name: case
    for case in (
        Case("double well", 2, drifts.DoubleWell(), well_in_jax, {"jax": 8.0, "torchsde": 100.0}),
        Case(
            *("Mueller-Brown", 2, drifts.MuellerBrown(0.05), mueller_brown_in_jax, {"jax": 5.0}, 0.5, 0.1 * HORIZON),
            *((-0.558, 1.442), 0.1),  # in the deepest valley: far from all of them the potential falls without end
        ),
        Case("particles", 8, particles, particles_in_jax, {"jax": 5.0}),
    )
}


@cache
def exact(name: str) -> Tensor:
    """Return the reference's paths in float64, by the Python function itself."""
    case = CASES[name]
    with use_backend("reference"):
        return case.process.simulate(case.x0[:CHECKED_ROWS].double(), seed=1)


def eager(case: Case, x0: Tensor, noise: Tensor | None) -> Tensor:
    """Run the loop as a user of PyTorch writes it."""
    dt, s = case.tables
    t, x, buffer = torch.zeros(len(x0), device="cpu"), x0.clone(), torch.empty_like(x0)
    for n in range(STEPS):
        z = buffer.normal_() if noise is None else noise[n]
        x = x + dt * case.drift(x, t) + s * z
    return x


def jax_runs(case: Case, generator: str) -> tuple[Callable[[Tensor, Tensor], Tensor], dict[str, Run]]:
    """Return JAX's solver on given noise, and configurations of it on its own."""
    import jax
    import jax.numpy as jnp

    drift, (dt, s) = case.in_jax(jax, jnp), case.tables
    key = jax.random.key(0, impl=generator)
    start = jnp.asarray(case.x0.numpy())

    def on_noise(x0: Any, noise: Any) -> Any:
        return jax.lax.scan(lambda x, z: (x + dt * drift(x) + s * z, None), x0, noise)[0]

    def on_own(x0: Any, key: Any, unroll: int) -> Any:
        def body(x: Any, key: Any) -> tuple[Any, None]:
            return x + dt * drift(x) + s * jax.random.normal(key, x.shape, x.dtype), None

        return jax.lax.scan(body, x0, jax.random.split(key, STEPS), unroll=unroll)[0]

    def ahead(x0: Any, key: Any) -> Any:
        return on_noise(x0, jax.random.normal(key, (STEPS, *x0.shape), x0.dtype))

    given = jax.jit(on_noise)
    own = {
        "scan": jax.jit(partial(on_own, unroll=1)),
        "scan, unroll=4": jax.jit(partial(on_own, unroll=4)),
        "noise drawn ahead": jax.jit(ahead),
    }

    def run(solver: Any) -> Any:
        return jax.block_until_ready(solver(start, key))

    def checked(x0: Tensor, noise: Tensor) -> Tensor:
        return from_dlpack(jax.block_until_ready(given(jnp.asarray(x0.numpy()), jnp.asarray(noise.numpy()))))

    return checked, {name: partial(run, solver) for name, solver in own.items()}


def torchsde_run(case: Case) -> Run:
    library = importlib.import_module("torchsde")

    class Equation(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return case.drift(y, t)  # type: ignore[no-any-return]

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.full_like(y, case.sigma)

    dt, _ = case.tables
    times = torch.tensor([0.0, case.horizon], device="cpu")

    @torch.no_grad()
    def run() -> Tensor:
        path = library.BrownianInterval(0.0, times[-1], size=case.x0.shape, dtype=case.x0.dtype, dt=dt)
        return library.sdeint(Equation(), case.x0, times, bm=path, method="euler", dt=dt)[-1]  # type: ignore[no-any-return]

    return run


CONTENDERS = ("ours", "eager", *peers_jax.GENERATORS, "torchsde")


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("name", CASES)
def test_simulate_drift(name: str, contender: str, race: Any) -> None:
    """The state after all steps."""
    case = CASES[name]
    if contender.startswith("jax") and not peers_jax.available():
        pytest.skip("jax is not installed")
    if contender == "torchsde" and not peers.torchsde_available():
        pytest.skip("torchsde is not installed")
    few, noise, check = case.x0[:CHECKED_ROWS], case.noise(CHECKED_ROWS), "float64 reference, same noise"
    runs: dict[str, Run]
    if contender == "ours":
        found: Tensor | None = functional.simulate(few, case.process, seed=1, backend="cpp")
        runs = {"": partial(functional.simulate, case.x0, case.process, seed=1, backend="cpp")}
    elif contender == "eager":
        step = torch.inference_mode()(eager)
        found, runs = step(case, few, noise), {"": partial(step, case, case.x0, None)}
    elif contender == "torchsde":
        found, check, runs = None, "its own noise: moments", {"dt known": torchsde_run(case)}
        torch.testing.assert_close(
            runs["dt known"]().std(0), case.process.simulate(case.x0, seed=2).std(0), rtol=0.3, atol=0.1
        )
    else:
        given, runs = jax_runs(case, peers_jax.GENERATORS[contender])
        found = given(few, noise)
    error = 0.0 if found is None else deviation((found,), (exact(name),))
    assert error <= TOLERANCE
    row = Row("simulate drift", case.label, contender, "a sample-step", ROWS * STEPS, check, deviation=error)
    row.targets = case.times_faster if contender == "ours" else {}
    race(row, runs)


# --- a mixture as a function -------------------------------------------------------------------------------------

COMPONENTS = 10


@cache
def mixture_processes() -> tuple[DriftProcess, LangevinProcess]:
    """Return Langevin dynamics towards one mixture as a Python function, and as the process made for it."""
    m = random_mixture("diag", COMPONENTS, 2, ratio=4.0)
    pulls, precisions = (m.means / m.covariances).float(), (1.0 / m.covariances).float()
    offsets = m.weights.log() - 0.5 * (m.covariances.log() + m.means**2 / m.covariances).sum(1)
    offsets = offsets.float()

    def drift(x: Tensor, t: Tensor) -> Tensor:
        logits = x @ pulls.to(x.dtype).T - 0.5 * (x * x) @ precisions.to(x.dtype).T + offsets.to(x.dtype)
        r = logits.softmax(1)
        return 0.5 * (r @ pulls.to(x.dtype) - x * (r @ precisions.to(x.dtype)))

    fixed: Any = {"T": 0.02 * STEPS * float(m.covariances.min()), "n_steps": STEPS}
    return DriftProcess(drift, m, **fixed, compiled=True), LangevinProcess(m, **fixed)


@pytest.mark.parametrize("contender", ["ours", "mixture kernel"])
def test_mixture_as_a_function(contender: str, race: Any) -> None:
    """Within twice the time of the kernel that is made for mixtures."""
    as_function, made = mixture_processes()
    x0 = philox_normal(ROWS, 2, seed=5, backend="cpp")
    few = x0[:CHECKED_ROWS]
    error = deviation((as_function.simulate(few, seed=1),), (made.simulate(few.double(), seed=1),))
    assert error <= TOLERANCE
    case = f"mixture as a function d=2 K={COMPONENTS} B={ROWS:,} N={STEPS}"
    row = Row(
        "simulate drift", case, contender, "a sample-step", ROWS * STEPS, "the mixture's in float64", deviation=error
    )
    row.targets = {"mixture kernel": 0.5} if contender == "ours" else {}
    race(row, partial(functional.simulate, x0, as_function if contender == "ours" else made, seed=1, backend="cpp"))
