"""The simulator in JAX: one jitted lax.scan, the drift in matmul form, threefry or XLA's own generator.

Configurations: the step alone in the loop, four steps unrolled, and all noise drawn ahead of the loop.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from .peers import Peer
from .problems import Problem

GENERATORS = {"jax threefry": "threefry2x32", "jax rbg": "unsafe_rbg"}


def available() -> bool:
    return importlib.util.find_spec("jax") is not None and importlib.util.find_spec("jaxlib") is not None


class Solver:
    """simulate or simulate_target of one problem."""

    def __init__(self, problem: Problem, target: bool) -> None:
        import jax
        import jax.numpy as jnp

        self.jax, self.jnp = jax, jnp
        m = problem.matmul_form
        b, p = m.pulls.numpy(), m.precisions.numpy()
        self.dim, self.steps, self.offsets = problem.dim, problem.steps, jnp.asarray(m.offsets.numpy())
        self.left = jnp.asarray(np.concatenate([b, -0.5 * p], 1).T)
        self.mixed = jnp.asarray(np.concatenate([b, -p], 1).T)
        self.right = jnp.asarray(np.concatenate([b, p], 1))
        self.scales = tuple(jnp.asarray(v, jnp.float32) for v in (problem.drift_scale, problem.noise_std))
        self.target = target

    def responsibilities(self, x: Any) -> Any:
        return self.jax.nn.softmax(self.offsets + self.jnp.concatenate([x, x * x], 1) @ self.left, axis=1)

    def posterior_means(self, r: Any) -> tuple[Any, Any]:
        both = r @ self.right
        return both[:, : self.dim], both[:, self.dim :]

    def start(self, x0: Any) -> tuple[Any, ...]:
        if not self.target:
            return (x0,)
        return x0, self.jnp.zeros_like(x0), self.jnp.zeros_like(x0), self.posterior_means(self.responsibilities(x0))[1]

    def advance(self, state: tuple[Any, ...], z: Any, a: Any, s: Any) -> tuple[Any, ...]:
        """Take the state (x, or x, H, v and p) from step n to n + 1."""
        x = state[0]
        r = self.responsibilities(x)
        b, p = self.posterior_means(r)
        g = b - x * p
        after = x + a * g + s * z
        if not self.target:
            return (after,)
        _, h, v, rate = state
        c = r * (self.jnp.concatenate([z, x * z], 1) @ self.mixed)
        cb, cp = self.posterior_means(c)
        product = cb - x * cp - z * p - g * c.sum(1, keepdims=True)
        contraction = 1.0 - a * rate
        v_next = s * s + contraction * contraction * v
        rho = contraction * v / v_next
        return after, rho * h + ((1.0 - rho) * z - rho * a * product) / s, v_next, rate

    def finish(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return (state[0], -state[1]) if self.target else state

    def on_noise(self, x0: Any, noise: Any) -> tuple[Any, ...]:
        def body(state: tuple[Any, ...], at: tuple[Any, ...]) -> tuple[tuple[Any, ...], None]:
            return self.advance(state, *at), None

        return self.finish(self.jax.lax.scan(body, self.start(x0), (noise, *self.scales))[0])

    def on_own_noise(self, x0: Any, key: Any, unroll: int) -> tuple[Any, ...]:
        def body(state: tuple[Any, ...], at: tuple[Any, ...]) -> tuple[tuple[Any, ...], None]:
            key, a, s = at
            return self.advance(state, self.jax.random.normal(key, x0.shape, x0.dtype), a, s), None

        keys = self.jax.random.split(key, self.steps)
        return self.finish(self.jax.lax.scan(body, self.start(x0), (keys, *self.scales), unroll=unroll)[0])

    def on_noise_drawn_ahead(self, x0: Any, key: Any) -> tuple[Any, ...]:
        return self.on_noise(x0, self.jax.random.normal(key, (self.steps, *x0.shape), x0.dtype))


def simulate(generator: str, problem: Problem, target: bool) -> dict[str, Peer]:
    """Return configurations of the solver with threefry2x32 or unsafe_rbg."""
    solver = Solver(problem, target)
    jax, jnp = solver.jax, solver.jnp
    key = jax.random.key(0, impl=generator)
    given = jax.jit(solver.on_noise)

    def peer(own: Callable[[Any, Any], tuple[Any, ...]]) -> Peer:
        held: list[Any] = [None, None]  # x0, and x0 as a JAX array: not copied over in every call

        def run(problem: Problem, x0: Tensor, noise: Tensor | None) -> tuple[Tensor, ...]:
            if held[0] is not x0:
                held[:] = x0, jnp.asarray(x0.numpy())
            start = held[1]
            found = own(start, key) if noise is None else given(start, jnp.asarray(noise.numpy()))
            return tuple(from_dlpack(value) for value in jax.block_until_ready(found))

        return run

    return {
        "scan": peer(jax.jit(partial(solver.on_own_noise, unroll=1))),
        "scan, unroll=4": peer(jax.jit(partial(solver.on_own_noise, unroll=4))),
        "noise drawn ahead": peer(jax.jit(solver.on_noise_drawn_ahead)),
    }


def normals(generator: str, n: int) -> Callable[[], Tensor]:
    """Draw n standard normals in float32."""
    import jax

    key = jax.random.key(0, impl=generator)
    draw: Any = jax.jit(partial(jax.random.normal, shape=(n,), dtype="float32"))
    return lambda: from_dlpack(draw(key).block_until_ready())
