"""Sampling by the reverse process from Y ~ prior, in few evaluations of the network.

    sde   dY = [1/2 sigma^2 grad log pi(Y) + sigma^2 r(Y, t)] |dt| + sigma dW,     r = s - grad log pi
    ode   dY = 1/2 sigma^2 r(Y, t) |dt|                                            (probability flow)

The mixture's part and the noise are stepped on the process's grid, in one op between two evaluations of the network,
whose part is held or extrapolated (`fastndsm._scheme`): a multirate method.

Sources: Anderson 1982; Song et al. 2021; Lu et al., arXiv 2211.01095; Knoth and Wolke 1998; MRI-GARK, Sandu 2019.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import _checks
from .._condition import Condition, rows_of
from .._linear import LinearNoising
from .._scheme import METHODS, PREDICTIONS, Schedule, evaluation_indices
from ..backends import registry
from ..dynamics import Dynamics
from ..objective import ScoreNet
from ..process import NoisingProcess
from ..score import check_process, evaluating, network_dtype
from . import cuda_graph as graphs
from .fused_mlp import FusedNetwork, fused_network
from .guidance import Guidance, Guide, check_prior

FEWEST_EVALUATIONS_FOR_A_GRAPH = 10  # by itself: recording takes the time of a few
EVALUATIONS = 10  # by default
STIFF = 20.0  # ratio of eigenvalues from which evaluations lie denser towards t = 0

State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.no_grad()
def sample(
    score_net: ScoreNet,
    process: NoisingProcess,
    n: int,
    method: str | None = None,
    *,
    n_evaluations: int | None = None,
    order: int = 2,
    prediction: str = "auto",
    grid: str | Sequence[float] | Tensor | None = None,
    seed: int | Tensor | None = None,
    batch_size: int | None = None,
    first_path: int = 0,
    progress: bool = False,
    cuda_graph: str | bool = "auto",
    fused: str | bool = "auto",
    dtype: torch.dtype | None = None,
    condition: Condition | None = None,
    guidance: float | None = None,
    guide: Guide | None = None,
    start: tuple[Tensor, float] | float | None = None,
    x_T: Tensor | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    trajectory: int | None = None,
) -> Tensor:
    """Draw n samples [n, *event_shape]; sample i's noise depends on seed and first_path + i alone, not on batch_size.

    Args:
        score_net: callable (x [B, ...], t [B]) -> like x, with a condition (x, t, condition) -> like x. A module is
            evaluated in eval mode, and left in the modes it came in.
        process: the noising process it was trained on, or one of the same mixture, sigma and T on another grid.
        method: "sde" (default), or "ode" (probability flow); of a FlowProcess "ode" alone.
        n_evaluations: M, of the network for each sample, at most process.n_steps; default 10, or all steps if fewer.
            With M = process.n_steps, order=1 and prediction="score" these are Euler-Maruyama steps.
        order: 1 holds what the network gave until its next evaluation, 2 extrapolates it from the last two.
        prediction: what of the network is held, as `fastndsm._scheme` has it: "linear", "data", "score", or "auto",
            which takes "data" under linear noising (SDE-DPM-Solver++, or DPM-Solver++ for the flow), whose law at T
            is one spherical component, "score" of a FlowProcess, and "linear" elsewhere.
        grid: times of evaluation: "uniform", "quadratic" (default), "cubic" (default for "score", and where the
            reference's eigenvalues differ by a factor above 20), or the times themselves, each taken to the nearest of
            the process's. Where it is not given, an EDMProcess has its own levels, one an evaluation, and a FlowProcess
            equal steps, however many steps they were made with.
        batch_size: samples held at once; default all.
        progress: show a bar.
        cuda_graph: on a CUDA device, record an evaluation and the steps after it once a batch and launch them from
            there, with the same result; the network is then called from Python three times and not at every
            evaluation. "auto": where that is possible, else the plain loop, saying once why. True: raise where it is
            not. False: the plain loop; for a network that records graphs of its own, such as torch.compile in mode
            "reduce-overhead".
        fused: let compiled code evaluate the network itself, all of it in one call, with the same noise and the same
            result to rounding: for `networks.MLP`, alone or in `ResidualScore`, in up to 32 dimensions and in float32,
            where all samples have one condition, or none.
            "auto": where that is possible, and cuda_graph is not True. True: raise where it is not. False: call the
            network.
        dtype: of the samples; default that of the network's parameters, or PyTorch's default dtype where it has none.
            The network is evaluated in its own; what is carried from step to step is at least float32.
        condition: of the samples, a tensor [n, ...] or a dict of them, on the process's device.
        guidance: w in s(x, t, 0) + w (s(x, t, y) - s(x, t, 0)), 0 the null condition: 0 is unconditional, 1 as without
            it, more stresses the condition. One evaluation is then one call with twice the rows. The network needs
            `null_condition`, and training with condition_dropout.
        guide: callable (x [B, ...], t [B]) -> like x, added to the score, in which x may be differentiated: of a
            classifier or an inverse problem, grad log p(y | x) at time t.
        start: (x [n, ...], t): go on from noised x at time t, taken to the nearest of the process's, in place of the
            prior's draws at T; n_evaluations are made from there on. x_T: the same at T. Or a time t alone, of an
            OUProcess or EDMProcess with a reference: go on from draws of the reference noised to t, which skips the
            part where the network adds nothing to its score (Wang and Vastola, arXiv 2412.09726).
        callback: called at each evaluation of a batch with {"step": k, "t": its time, "x": the samples there, "score":
            theirs}, in tensors that are not to be written into; not with a CUDA graph or the fused network.
        trajectory: k, to return states [k + 1, n, *event_shape], the first at the start, the last the samples, after
            every M / k evaluations (to the nearest); not with the fused network.

    Warns where a null condition is called for that was never trained, and where the prior does not know the condition,
    though the noising has not forgotten it by T: `process.fit_prior` fits one of classes; for others there is x_T.

    Raises:
        FloatingPointError: if the samples become non-finite, naming the evaluation and its time.
        ValueError: if n_evaluations exceeds the process's steps.
        ValueError: if cuda_graph is True and the process is not on a CUDA device, or there is a callback.
        RuntimeError: if cuda_graph is True and the network or the process cannot be recorded, with the reason.
        ValueError: if fused is True and the network, the process or the backend is not one for it, with the reason.
    """
    _checks.network("score_net", score_net)
    _checks.instance("process", process, NoisingProcess, "a noising process")
    _checks.count("n", n)
    method = process.default_method if method is None else _checks.choice("method", method, METHODS)
    _check_cuda_graph(cuda_graph, process, callback)
    prediction = _prediction(process, prediction)
    if n_evaluations is not None:
        _checks.count("n_evaluations", n_evaluations)
    first, time = _start(process, n, start, x_T)
    if grid is None:
        process = process.for_evaluations(n_evaluations or EVALUATIONS, time)
    last_index, prior = process.n_steps, process.draw_prior
    if time is not None:
        last_index = int((process.times[1:] - time).abs().argmin()) + 1
        if first is None:
            prior = partial(process.draw_prior, t=float(process.times[last_index]))  # type: ignore[call-arg]
    schedule = _schedule(process, method, n_evaluations, order, prediction, grid, last_index)
    followed = Guidance.of(score_net, condition, guidance, guide, n, process.times.device)
    if first is None:
        check_prior(process, followed.condition)
    evaluated = network_dtype(score_net)
    default = evaluated or torch.get_default_dtype()
    dtype = default if dtype is None else _checks.floating_dtype("dtype", dtype)
    state = torch.promote_types(dtype, torch.float32)
    process.check_dtype("dtype", state)
    first_path = _checks.first_path(first_path)
    _checks.flag("progress", progress)
    batch_size = n if batch_size is None else _checks.count("batch_size", batch_size)
    key = _checks.seed(seed)
    schedule = _cast(schedule, state)
    n_evaluations = len(schedule.evaluations)
    kept = _kept(trajectory, n_evaluations)
    batches = []
    total = len(range(0, n, batch_size)) * n_evaluations
    with evaluating(score_net), tqdm(total=total, disable=not progress, desc="sample", unit="evaluation") as bar:
        reason = None if followed.alike else "samples have conditions that differ, or are guided"
        if callback is not None or trajectory is not None:
            reason = "there are no states on the way for a callback or a trajectory"
        network = _fused(score_net, process, schedule, fused, cuda_graph, state, reason, followed.of_all)
        check_process(score_net, process)
        times = process.times[schedule.bounds[:-1]]
        for begin in range(0, n, batch_size):
            rows = slice(begin, min(begin + batch_size, n))
            score, path = followed.score(score_net, rows), first_path + begin
            condition = rows_of(followed.condition, rows)
            dynamics = process.dynamics_under(condition, rows.stop - begin)
            reverse = _Reverse(
                *(score, dynamics, schedule, times, prediction, order, key, path, evaluated or state, callback)
            )
            if first is None:
                y = prior(rows.stop - begin, key, path, condition)
            else:
                y = first[rows]
            y = y.to(device=process.times.device, dtype=state)
            done = None if network is None else _run_fused(reverse, y, fused, *network)
            if done is not None:
                bar.update(n_evaluations)
            states = _run(reverse, y, cuda_graph, bar.update, kept) if done is None else [done]
            batches.append(torch.stack(states).to(dtype))
    made = torch.cat(batches, dim=1)
    return made[-1] if trajectory is None else made


def _start(
    process: NoisingProcess, n: int, start: tuple[Tensor, float] | float | None, x_T: Tensor | None
) -> tuple[Tensor | None, float | None]:
    """Return the states to start from, None for draws of the prior, and their time, None for T."""
    if x_T is not None:
        if start is not None:
            raise ValueError("start, x_T: expected one of them, found both")
        name, x, t = "x_T", x_T, None
    elif start is None:
        return None, None
    elif isinstance(start, tuple | list) and len(start) == 2:
        name, x, t = "start", start[0], _time(process, start[1])
    elif isinstance(start, int | float):
        if not isinstance(process, LinearNoising):
            raise TypeError(f"start: expected (x, t) with a {type(process).__name__}, found a time alone")
        return None, _time(process, start)
    else:
        raise TypeError(f"start: expected (x, t), found {_checks.shown(start)}")
    _checks.data(name, x, process.dim)
    if len(x) != n:
        raise ValueError(f"{name}: expected {n} rows, one for each sample, found shape {tuple(x.shape)}")
    _checks.same_device(name, x, "process", process.times.device)
    return x.detach(), t


def _time(process: NoisingProcess, value: Any) -> float:
    t = _checks.positive("start", value.item() if isinstance(value, Tensor) and value.numel() == 1 else value)
    if t > process.T * (1.0 + 1e-6):
        raise ValueError(f"start: expected a time of at most T = {process.T:.6g}, found {t:.6g}")
    return t


def _kept(trajectory: int | None, n_evaluations: int) -> list[int]:
    """Return after how many evaluations a state is kept: after all of them, and of a trajectory before and between."""
    if trajectory is None:
        return [n_evaluations]
    k = _checks.count("trajectory", trajectory)
    if k > n_evaluations:
        raise ValueError(f"trajectory: expected at most n_evaluations = {n_evaluations}, found {k}")
    return [round(j * n_evaluations / k) for j in range(k + 1)]


def _prediction(process: NoisingProcess, prediction: str) -> str:
    """Return what is held: for "auto" what the process has for its default."""
    _checks.choice("prediction", prediction, ("auto", *PREDICTIONS))
    return process.default_prediction if prediction == "auto" else prediction


def _schedule(
    process: NoisingProcess,
    method: str,
    n_evaluations: int | None,
    order: int,
    prediction: str,
    grid: str | Sequence[float] | Tensor | None,
    start: int,
) -> Schedule:
    """Return when the network is evaluated and what is done in between, from grid point `start` down."""
    if _checks.count("order", order) > 2:
        raise ValueError(f"order: expected 1 or 2, found {order}")
    if grid is None:
        grid = "cubic" if prediction == "score" or process.stiffness > STIFF else "quadratic"
    if n_evaluations is None and isinstance(grid, str):
        n_evaluations = min(EVALUATIONS, start)
    indices = evaluation_indices(process.times[: start + 1], n_evaluations, grid)
    return process.reverse_scheme(method, prediction).schedule(indices, order)


def _cast(schedule: Schedule, dtype: torch.dtype) -> Schedule:
    return Schedule(schedule.bounds, schedule.coefficients.to(dtype), schedule.evaluations.to(dtype))


@dataclass(frozen=True)
class _Reverse:
    """The reverse process of a batch. An evaluation k is a 0-d tensor on the device of y."""

    score_net: ScoreNet
    dynamics: Dynamics
    schedule: Schedule
    times: Tensor  # of evaluation [M]
    prediction: str
    order: int
    seed: Tensor
    first_path: int
    evaluated: torch.dtype  # of the network
    callback: Callable[[dict[str, Any]], object] | None

    def score(self, y: Tensor, k: Tensor) -> Tensor:
        """Evaluate the network at its time k, in its own dtype but for t."""
        t = self.times.index_select(0, k.reshape(1))
        x = y.to(self.evaluated)
        t = t.to(torch.promote_types(x.dtype, torch.float32)).expand(len(y))
        return _checks.score_output(self.score_net(x, t), x).to(y.dtype)

    def advance(self, y: Tensor, before: Tensor, rate_before: Tensor, failed: Tensor, k: Tensor) -> State:
        """Evaluate the network at y and go on to its next evaluation.

        before, rate_before: what was held last, like y, and omega [B, 1, ...]. failed []: the first evaluation after
        which values were not finite, -1 while there is none.
        """
        row = k.reshape(1)
        bounds = self.schedule.bounds.index_select(0, torch.cat([row, row + 1]))
        of_y, of_reference, of_residual, inverse_gap, ratio, limit = self.schedule.evaluations.index_select(0, row)[0]
        reference = self.dynamics.drift_score(y, bounds[0] - 1)
        score = self.score(y, k)
        if self.callback is not None:
            self.callback({"step": int(k), "t": float(self.times[k]), "x": y, "score": score})
        residual = score - reference
        held = of_y * y + of_reference * reference + of_residual * residual
        slope, rate = None, None
        if self.order == 2:
            slope = inverse_gap * (held - ratio * (before - rate_before * y))
        if self.prediction == "linear":
            flat = residual.flatten(1)
            rate = torch.linalg.vecdot(flat, score.flatten(1)) / flat.shape[1]
            rate = torch.minimum(rate.clamp(min=0.0), limit)
            rate_before = rate.reshape(rate_before.shape)
            held = held + rate_before * y
        after = self.dynamics.reverse_steps(
            y, held, slope, rate, bounds, self.schedule.coefficients, self.seed, self.first_path, "auto"
        )
        failed = torch.where((failed < 0) & ~torch.isfinite(after).all(), k, failed)
        return after, held, rate_before, failed, k + 1


def _run(
    reverse: _Reverse, y: Tensor, cuda_graph: str | bool, done: Callable[[], object], kept: Sequence[int]
) -> list[Tensor]:
    """Run all of it, y_N -> y_0, and return the states after so many evaluations; done is called after each."""
    n_evaluations = len(reverse.schedule.evaluations)
    failed = torch.full((), -1, device=y.device)
    rate = y.new_zeros(len(y), *[1] * (y.ndim - 1))
    state: State = y, torch.zeros_like(y), rate, failed, torch.zeros_like(failed)
    replay = None
    enough = n_evaluations >= FEWEST_EVALUATIONS_FOR_A_GRAPH or cuda_graph is True
    if cuda_graph and enough and reverse.callback is None and graphs.supports(y.device):
        state = (y.clone(), *state[1:])  # to be written into
        replay = _recorded(reverse, state, cuda_graph)
    states = [y] if kept[0] == 0 else []
    for k in range(n_evaluations):
        if replay is not None:
            replay()
        else:
            state = reverse.advance(*state)
        if k + 1 in kept:
            states.append(state[0] if replay is None else state[0].clone())  # a replay writes into it
        done()
    _check_finite(state[3], reverse.times)
    return states


def _check_finite(failed: Tensor, times: Tensor) -> None:
    found = int(failed)
    if found >= 0:
        raise FloatingPointError(
            f"score_net: expected finite samples, found NaN or infinite ones after evaluation {found + 1} of "
            f"{len(times)}, t = {float(times[found]):.4g}; check the network's output there and the weights it has"
            f"{_checks.cure('non-finite-samples')}"
        )


def _fused(
    score_net: ScoreNet,
    process: NoisingProcess,
    schedule: Schedule,
    fused: str | bool,
    cuda_graph: str | bool,
    dtype: torch.dtype,
    reason: str | None,
    condition: Condition | None,
) -> tuple[Callable[..., tuple[Tensor, Tensor]], FusedNetwork] | None:
    """Return the function that evaluates the network, and its parameters; None where the network is to be called.

    reason: why it is, if that is settled. condition [1, ...]: that of all samples, if they have one.
    """
    _checks.flag_or_auto("fused", fused)
    if fused is False or (fused == "auto" and cuda_graph is True):
        return None
    network = reason or fused_network(score_net, process, schedule, dtype, condition)
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
    registry.log_once(logging.INFO, f"sample: the network is called at every evaluation: {reason}")


def _run_fused(
    reverse: _Reverse,
    y: Tensor,
    fused: str | bool,
    serve: Callable[..., tuple[Tensor, Tensor]],
    network: FusedNetwork,
) -> Tensor | None:
    """Run y_N -> y_0 by the backend's evaluation of the network; None where the backend has none for this network."""
    bounds, coefficients, _ = reverse.schedule
    try:
        flat, failed = serve(
            y.flatten(1),
            *(network.weights, network.biases, network.scales, network.shifts, network.feature_scale),
            *(bounds, coefficients, network.evaluations),
            network.mixture,
            *(reverse.seed, reverse.first_path),
        )
    except NotImplementedError as error:
        _not_fused(fused, str(error))
        return None
    _check_finite(failed, reverse.times)
    return flat.reshape(y.shape)


def _recorded(reverse: _Reverse, state: tuple[Tensor, ...], cuda_graph: str | bool) -> Callable[[], None] | None:
    """Record an advance of the state, in place; return None where the plain loop is to serve."""
    try:
        return graphs.replayed(reverse.advance, state, graphs.CUDAGraph(state[0].device))
    except graphs.CaptureError as error:
        if cuda_graph is True:
            raise RuntimeError(
                f"cuda_graph: expected a network and a process that can be recorded, found: {error}; "
                "use 'auto' or False for the plain loop"
            ) from error
        registry.log_once(logging.WARNING, f"sample: the plain loop instead of a CUDA graph: {error}")
        return None


def _check_cuda_graph(cuda_graph: str | bool, process: NoisingProcess, callback: Any) -> None:
    _checks.flag_or_auto("cuda_graph", cuda_graph)
    if callback is not None:
        _checks.function("callback", callback, "a callable of a dict")
        if cuda_graph is True:
            raise ValueError("cuda_graph: expected 'auto' or False with a callback, found True")
    device = process.times.device
    if cuda_graph is True and not graphs.supports(device):
        raise ValueError(
            f"cuda_graph: expected 'auto' or False for a process on {device}, found True; move it to a GPU with .to()"
        )
