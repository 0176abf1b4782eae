"""simulate and simulate_target, ours and other libraries' on the same GPU.

Ours and the peers agree with the float64 reference on the same noise, path by path; a peer's own draws agree with ours
in law. Nothing is timed before that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fastndsm import GaussianMixture, functional
from fastndsm.testing import deviation

from .. import peers, peers_jax, roofline
from ..problems import CHECKED_ROWS, TINY, Problem, law_deviation
from ..rows import Row
from .device import Run, backends, device, lender, refusal, timed, wall_clock
from .log import Log

FLOAT32 = 1e-5  # plus ten times the reference's own error in float32
MATMUL_FORM = 5e-5  # x P x - 2 x b cancels
LARGEST_Z = 6.0
Targets = dict[str, dict[str, float]]  # backend -> contender -> times ahead of it, to reach
LEAST_LEFT = 10.0  # seconds for another configuration of a peer


@dataclass(frozen=True)
class OnDevice(Problem):
    """A problem whose tensors are on the device."""

    @cached_property
    def mixture(self) -> GaussianMixture:
        return Problem.mixture.func(self).to(device())  # type: ignore[attr-defined]

    @cached_property
    def on_host(self) -> Problem:
        """The same for libraries that take their data from the host."""
        problem = Problem(self.dim, self.components, self.rows, self.steps)
        problem.__dict__["x0"] = self.x0.cpu()
        return problem

    def noise(self, rows: int, seed: int) -> Tensor:
        draw = partial(functional.philox_normal, rows, self.dim, seed=seed, device=device(), backend="reference")
        return torch.stack([draw(step=n) for n in range(self.steps)])


def _problem(dim: int, components: int, rows: int, steps: int) -> OnDevice:
    return OnDevice(dim, components, *((128, 3) if TINY else (rows, steps)))


PLANAR = _problem(2, 8, 1 << 20, 100)
IMAGES = _problem(784, 10, 4096, 200)
BROWNIAN = _problem(3, 1, 1 << 23, 256)  # the size of DiffEqGPU.jl's geometric Brownian motion
PATH_STEPS = 3.0e10  # a second: 10 times what DiffEqGPU.jl published for it


@dataclass(frozen=True)
class Race:
    """A problem, with or without the path target, and what is to be reached on it."""

    problem: OnDevice
    target: bool
    share: float | None = None
    targets: Targets = field(default_factory=dict)
    rate: float | None = None

    @property
    def op(self) -> str:
        return "simulate_target" if self.target else "simulate"

    def run(self, x0: Tensor, backend: str) -> tuple[Tensor, ...]:
        """Return x, or x and target, of the first paths."""
        if self.target:
            return functional.simulate_target(x0, self.problem.process, seed=1, backend=backend)[:2]
        return (functional.simulate(x0, self.problem.process, seed=1, backend=backend),)

    @cached_property
    def few(self) -> Tensor:
        return self.problem.x0[:CHECKED_ROWS]

    @cached_property
    def exact(self) -> tuple[Tensor, ...]:
        return self.run(self.few.double(), "reference")

    @cached_property
    def ours(self) -> tuple[Tensor, ...]:
        """Our results on all paths; in law every backend's are the same."""
        first = backends()[0]
        return self.checked(first if refusal(first, self.op) is None else "reference")[0]

    def checked(self, backend: str) -> tuple[tuple[Tensor, ...], float]:
        """Return a backend's results on all paths, and their error on the few."""
        own = deviation(self.run(self.few, "reference"), self.exact)
        found = self.run(self.problem.x0, backend)
        error = deviation(tuple(t[: len(self.few)] for t in found), self.exact)
        if not error <= FLOAT32 + 10.0 * own:
            raise AssertionError(f"{self.op} {self.problem.label}: error {error:.2g}, the reference's own {own:.2g}")
        return found, error

    def row(self, contender: str, check: str) -> Row:
        return Row(self.op, self.problem.label, contender, "a sample-step", self.problem.sample_steps, check)


RACES = (
    Race(PLANAR, False, share=0.5, targets={"triton": {"compiled": 20.0, "torchsde": 100.0}}),
    Race(IMAGES, False, targets={"triton": {"compiled": 10.0}}),
    Race(PLANAR, True),
    Race(IMAGES, True),
)
ALONE = (Race(BROWNIAN, False, rate=PATH_STEPS),)


def time_ours(log: Log, backend: str) -> None:
    for race in (*RACES, *ALONE):
        if lender(backend, race.op) is None:
            log.attempt(f"{race.op} {race.problem.label}", partial(_time_ours, backend, race, log))


def _time_ours(backend: str, race: Race, log: Log) -> None:
    reason = refusal(backend, race.op)
    if reason is not None:
        raise NotImplementedError(f"backend {backend}: {reason}")
    problem = race.problem
    _, error = race.checked(backend)
    count = roofline.simulate_target_multiply_adds if race.target else roofline.simulate_multiply_adds
    row = race.row(backend, f"float64 reference, same noise, error {error:.2g}")
    row.multiply_adds = problem.sample_steps * count(problem.dim, problem.components)
    row.normals = problem.sample_steps * problem.dim
    row.share, row.targets, row.rate = race.share, race.targets.get(backend, {}), race.rate
    timing = timed(lambda: race.run(problem.x0, backend))
    row.seconds, row.how = timing.seconds, timing.how
    log.row(row)


# --- peers -------------------------------------------------------------------------------------------------------


def time_peer(log: Log, family: str) -> None:
    if family == "jax" and not peers_jax.available():
        log.write("note", "jax is not installed")
        return
    if family == "torchsde" and not peers.torchsde_available():
        log.write("note", "torchsde is not installed")
        return
    # JAX alone compiles for long where everything is tiny
    for race in RACES[:1] if TINY and family == "jax" else RACES:
        if log.left() < LEAST_LEFT:
            log.write("note", f"{family}: no time was left for {race.op} {race.problem.label}")
        elif family != "torchsde" or not race.target:
            log.attempt(f"{race.op} {race.problem.label}", partial(PEERS[family], race, log))


def _check_paths(race: Race, peer: peers.Peer, problem: Problem, x0: Tensor, noise: Tensor) -> float:
    error = deviation(tuple(t.to(device()) for t in peer(problem, x0, noise)), race.exact)
    if not error <= MATMUL_FORM:
        raise AssertionError(f"error {error:.2g} on the same noise, at most {MATMUL_FORM}")
    return error


def _check_law(race: Race, found: tuple[Tensor, ...]) -> float:
    furthest = max(law_deviation(f.to(device()), o) for f, o in zip(found, race.ours, strict=True))
    if not furthest <= LARGEST_Z:
        raise AssertionError(f"its own draws are {furthest:.2g} standard errors from ours")
    return furthest


def _time_eager(race: Race, log: Log) -> None:
    configurations = peers.eager(race.problem, race.target)
    _time_configurations(race, "eager", configurations, race.problem, log, partial(timed, graph=False))


def _time_torchsde(race: Race, log: Log) -> None:
    configurations = peers.torchsde(race.problem, race.target)
    _time_configurations(race, "torchsde", configurations, race.problem, log, wall_clock)


def _time_jax(race: Race, log: Log) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the memory is shared with PyTorch
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")  # float32, as everybody's
    for name, generator in list(peers_jax.GENERATORS.items())[: 1 if TINY else None]:
        configurations = peers_jax.simulate(generator, race.problem.on_host, race.target)
        if log.left() > LEAST_LEFT:
            _time_configurations(race, name, configurations, race.problem.on_host, log, wall_clock)


def _time_configurations(
    race: Race,
    contender: str,
    configurations: dict[str, peers.Peer],
    problem: Problem,
    log: Log,
    clock: Callable[..., Any],
) -> None:
    few, noise = (t.to(problem.x0.device) for t in (race.few, race.problem.noise(CHECKED_ROWS, seed=1)))
    for i, (name, peer) in enumerate(configurations.items()):
        if i and log.left() < LEAST_LEFT:
            return
        error = _check_paths(race, peer, problem, few, noise)
        z = _check_law(race, peer(problem, problem.x0, None))
        row = race.row(contender, f"same noise, error {error:.2g}; law, largest z {z:.2g}")
        timing = clock(partial(peer, problem, problem.x0, None))
        row.seconds, row.how, row.configuration = timing.seconds, timing.how, name
        log.row(row)


def _time_compiled(race: Race, log: Log) -> None:
    """Time the step with its noise by torch.compile: all steps in one CUDA graph, and in mode "reduce-overhead"."""
    problem, form = race.problem, peers.OneProduct(race.problem.matmul_form)
    if race.target:
        step: Callable[..., Any] = partial(peers.target_step, form)
        loop: peers.Peer = partial(peers.simulate_target, step, form)
    else:
        step = partial(peers.step, form)
        loop = partial(peers.simulate, step)
    error = _check_paths(race, loop, problem, race.few, problem.noise(CHECKED_ROWS, seed=1))
    for name, run in _compiled(race, step, form):
        if log.left() < LEAST_LEFT:
            return
        with torch.no_grad():
            z = _check_law(race, run())
            timing = timed(run, graph=name != REDUCED)
        row = race.row("compiled", f"its step on the same noise, error {error:.2g}; law, largest z {z:.2g}")
        row.seconds, row.how, row.configuration = timing.seconds, timing.how, name
        log.row(row)


REDUCED = "mode reduce-overhead"


def _compiled(race: Race, step: Callable[..., Any], form: peers.Form) -> Iterator[tuple[str, Run]]:
    problem = race.problem
    scales = [torch.tensor(v, device=device()).unbind() for v in (problem.drift_scale, problem.noise_std)]

    def advance(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        *others, a, s = rest
        made = step(x, *others, torch.randn_like(x), a, s)
        return made if race.target else (made,)

    def start() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        x = problem.x0
        if not race.target:
            return (x,), ()
        zero = torch.zeros_like(x)
        return (x, zero, zero), (form.posterior_means(form.responsibilities(x))[1].contiguous(),)

    def finish(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (state[0], -state[1]) if race.target else state

    options: dict[str, Any] = {"backend": "eager"} if TINY else {}
    torch.compiler.reset()
    plain = torch.compile(advance, fullgraph=True, dynamic=False, **options)

    def all_steps() -> tuple[Tensor, ...]:
        state, fixed = start()
        for a, s in zip(*scales, strict=True):
            state = plain(*state, *fixed, a, s)
        return finish(state)

    yield "all steps in one graph", all_steps

    reduced = torch.compile(advance, fullgraph=True, dynamic=False, **options or {"mode": "reduce-overhead"})

    def step_by_step() -> tuple[Tensor, ...]:
        state, fixed = start()
        for a, s in zip(*scales, strict=True):
            torch.compiler.cudagraph_mark_step_begin()
            state = tuple(t.clone() for t in reduced(*state, *fixed, a, s))  # the next step writes over them
        return finish(state)

    yield REDUCED, step_by_step


PEERS: dict[str, Callable[[Race, Log], None]] = {
    "eager": _time_eager,
    "compiled": _time_compiled,
    "torchsde": _time_torchsde,
    "jax": _time_jax,
}
