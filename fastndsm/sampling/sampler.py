"""Sampling by the reverse process from Y ~ prior.

    sde   y <- y - F dt + sigma^2 s(y, t) dt + sigma sqrt(dt) xi        no noise on the last step
    ode   y' = F - 1/2 sigma^2 s, by Heun's method, its last step an Euler step

Sources: Anderson 1982; Song et al. 2021; Heun for diffusions: Karras et al. 2022.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import _checks, functional
from ..backends import registry
from ..objective import ScoreNet
from ..process import NoisingProcess
from ..score import check_process, evaluating, network_dtype
from . import cuda_graph as graphs
from .fused_mlp import FusedNetwork, fused_network

FEWEST_STEPS_FOR_A_GRAPH = 10  # by itself: recording takes the time of a few steps


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
    cuda_graph: str | bool = "auto",
    fused: str | bool = "auto",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw n samples [n, *event_shape]; sample i's noise depends on seed and first_path + i alone, not on batch_size.

    Args:
        score_net: callable (x [B, ...], t [B]) -> like x. A module is evaluated in eval mode, and left in the modes it
            came in.
        process: the noising process it was trained on, or one of the same mixture, sigma and T on another grid.
        method: "sde", or "ode" (probability flow; two evaluations a step).
        batch_size: samples held at once; default all.
        progress: show a bar.
        cuda_graph: on a CUDA device, record network and step once a batch and launch them from there, with the same
            result; the network is then called from Python three times and not at every step. "auto": where that is
            possible, else the plain loop, saying once why. True: raise where it is not. False: the plain loop; for
            a network that records graphs of its own, such as torch.compile in mode "reduce-overhead".
        fused: let compiled code evaluate the network itself, all steps in one call, with the same noise and the same
            result to rounding: for `networks.MLP`, alone or in `ResidualScore`, in up to 32 dimensions and in float32.
            "auto": where that is possible, and cuda_graph is not True. True: raise where it is not. False: call the
            network.
        dtype: of the samples; default that of the network's parameters, or PyTorch's default dtype where it has none.
            The network is evaluated in its own; what is carried from step to step is at least float32.

    Raises:
        FloatingPointError: if the samples become non-finite, naming the step.
        ValueError: if cuda_graph is True and the process is not on a CUDA device.
        RuntimeError: if cuda_graph is True and the network or the process cannot be recorded, with the reason.
        ValueError: if fused is True and the network, the process or the backend is not one for it, with the reason.
    """
    _checks.network("score_net", score_net)
    _checks.instance("process", process, NoisingProcess, "a noising process")
    _checks.count("n", n)
    _checks.choice("method", method, functional.METHODS)
    _check_cuda_graph(cuda_graph, process)
    evaluated = network_dtype(score_net)
    default = evaluated or torch.get_default_dtype()
    dtype = default if dtype is None else _checks.floating_dtype("dtype", dtype)
    state = torch.promote_types(dtype, torch.float32)
    process.check_dtype("dtype", state)
    first_path = _checks.first_path(first_path)
    _checks.flag("progress", progress)
    batch_size = n if batch_size is None else _checks.count("batch_size", batch_size)
    key = _checks.seed(seed)
    batches = []
    steps = len(range(0, n, batch_size)) * process.n_steps
    with evaluating(score_net), tqdm(total=steps, disable=not progress, desc="sample", unit="step") as bar:
        network = _fused(score_net, process, fused, cuda_graph, state)
        check_process(score_net, process)
        for start in range(0, n, batch_size):
            rows = min(batch_size, n - start)
            reverse = _Reverse(score_net, process, method, key, first_path + start, evaluated or state)
            y = process.prior.sample(rows, seed=key, first_path=reverse.first_path)
            y = y.to(device=process.times.device, dtype=state)
            done = None if network is None else _run_fused(reverse, y, fused, *network)
            if done is not None:
                bar.update(process.n_steps)
            batches.append((_run(reverse, y, cuda_graph, bar.update) if done is None else done).to(dtype))
    return torch.cat(batches)


@dataclass(frozen=True)
class _Reverse:
    """The reverse process of a batch. A step n is an int, or a 0-d tensor on the device of y."""

    score_net: ScoreNet
    process: NoisingProcess
    method: str
    seed: Tensor
    first_path: int
    evaluated: torch.dtype  # of the network

    def score(self, y: Tensor, n: int | Tensor) -> Tensor:
        """Evaluate the network at t_n, in its own dtype but for t."""
        times = self.process.times
        t = times.index_select(0, n.reshape(1)) if isinstance(n, Tensor) else times[n]
        x = y.to(self.evaluated)
        t = t.to(torch.promote_types(x.dtype, torch.float32)).expand(len(y))
        return _checks.score_output(self.score_net(x, t), x).to(y.dtype)

    def euler(self, y: Tensor, score: Tensor, n: int | Tensor) -> Tensor:
        return functional.reverse_step(
            y, score, self.process, n, seed=self.seed, first_path=self.first_path, method=self.method
        )

    def step(self, y: Tensor, failed: Tensor, n: int | Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """Take a step y_{n+1} -> y_n; failed [] keeps the step that first gave non-finite values, -1 while none has."""
        after = self.euler(y, self.score(y, n + 1), n)
        if self.method == "ode" and not last:
            # y + (k1 + k2) / 2, written with two Euler steps
            after = 0.5 * (y + self.euler(after, self.score(after, n), n))
        return after, torch.where((failed < 0) & ~torch.isfinite(after).all(), n, failed)

    def step_down(self, y: Tensor, failed: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `step` and the number of the next one. For the SDE the last step is like the others."""
        return *self.step(y, failed, n, last=False), n - 1


def _run(reverse: _Reverse, y: Tensor, cuda_graph: str | bool, done: Callable[[], object]) -> Tensor:
    """Run all steps, y_N -> y_0; done is called after each step."""
    n_steps = reverse.process.n_steps
    failed = torch.full((), -1, device=y.device)
    replay = None
    enough = n_steps >= FEWEST_STEPS_FOR_A_GRAPH or cuda_graph is True
    if cuda_graph and enough and graphs.supports(y.device):
        y = y.clone()  # to be written into
        replay = _recorded(reverse, (y, failed, torch.full_like(failed, n_steps - 1)), cuda_graph)
    for n in reversed(range(n_steps)):
        last = n == 0
        if replay is not None and not (last and reverse.method == "ode"):
            replay()
        else:
            y, failed = reverse.step(y, failed, n, last)
        done()
    _check_finite(failed, reverse.process)
    return y


def _check_finite(failed: Tensor, process: NoisingProcess) -> None:
    found = int(failed)
    if found >= 0:
        raise FloatingPointError(
            f"score_net: expected finite samples, found NaN or infinite ones at step {found}, "
            f"t = {float(process.times[found + 1]):.4g}; check the network's output there and the weights it has"
        )


def _fused(
    score_net: ScoreNet, process: NoisingProcess, fused: str | bool, cuda_graph: str | bool, dtype: torch.dtype
) -> tuple[Callable[..., tuple[Tensor, Tensor]], FusedNetwork] | None:
    """Return the function that evaluates the network, and its parameters; None where the network is to be called."""
    _checks.flag_or_auto("fused", fused)
    if fused is False or (fused == "auto" and cuda_graph is True):
        return None
    network = fused_network(score_net, process, dtype)
    serve = network if isinstance(network, str) else registry.find("sample_mlp", process.times.device, dtype)
    if not isinstance(network, str) and not isinstance(serve, str):
        return serve, network
    _not_fused(fused, str(serve))
    return None


def _not_fused(fused: str | bool, reason: str) -> None:
    if fused is True:
        raise ValueError(
            f"fused: expected a network, a process and a backend for it, found: {reason}; use 'auto' or False"
        )
    registry.log_once(logging.INFO, f"sample: the network is called at every step: {reason}")


def _run_fused(
    reverse: _Reverse,
    y: Tensor,
    fused: str | bool,
    serve: Callable[..., tuple[Tensor, Tensor]],
    network: FusedNetwork,
) -> Tensor | None:
    """Run y_N -> y_0 by the backend's evaluation of the network; None where the backend has none for this network."""
    process: Any = reverse.process
    try:
        flat, failed = serve(
            y.flatten(1),
            *(network.weights, network.biases, network.scales, network.shifts),
            *(network.inverse_std, network.feature_scale),
            process.dynamics.operands(y.dtype),
            *(reverse.seed, reverse.first_path, reverse.method),
        )
    except NotImplementedError as error:
        _not_fused(fused, str(error))
        return None
    _check_finite(failed, process)
    return flat.reshape(y.shape)


def _recorded(
    reverse: _Reverse, state: tuple[Tensor, Tensor, Tensor], cuda_graph: str | bool
) -> Callable[[], None] | None:
    """Record a step of the state, in place; return None where the plain loop is to serve."""
    try:
        return graphs.replayed(reverse.step_down, state, graphs.CUDAGraph(state[0].device))
    except graphs.CaptureError as error:
        if cuda_graph is True:
            raise RuntimeError(
                f"cuda_graph: expected a network and a process that can be recorded, found: {error}; "
                "use 'auto' or False for the plain loop"
            ) from error
        registry.log_once(logging.WARNING, f"sample: the plain loop instead of a CUDA graph: {error}")
        return None


def _check_cuda_graph(cuda_graph: str | bool, process: NoisingProcess) -> None:
    _checks.flag_or_auto("cuda_graph", cuda_graph)
    device = process.times.device
    if cuda_graph is True and not graphs.supports(device):
        raise ValueError(
            f"cuda_graph: expected 'auto' or False for a process on {device}, found True; move it to a GPU with .to()"
        )
