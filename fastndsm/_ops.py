"""The ops of the library: schemas, fake kernels, implementations and autograd, all in one place.

An op is opaque to the compiler; inside it `_backend` picks who serves it, at run time. Autograd is registered outside.
Where a gradient has no closed form among the ops, it re-runs the reference under autograd; so do higher derivatives.
A drift's program travels by its key (`compiler.programs`), its parameters as one tensor.
A mixture travels as (means, precisions, log_scale, covariance_type), see `reference.MixtureOperands`; its principal
axes, if tied or full, as (rotations, rates), see `reference.PrincipalAxes`; a seed as a 0-d int64 tensor, so that a new
one never recompiles a graph. `ranges`, int64 [B, 2], are the components start..stop that each row has; None is all.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import reference
from .backends import registry
from .compiler import programs
from .reference import MixtureOperands, NoisedOperands, PrincipalAxes, ProcessOperands
from .reference.far import near_alone

MIXTURE = "Tensor means, Tensor precisions, Tensor log_scale, str covariance_type"
PROCESS = f"Tensor drift_scale, Tensor noise_std, {MIXTURE}"
AXES = "Tensor? rotations, Tensor? rates"
NOISED = "Tensor means, Tensor variances, Tensor log_weights, Tensor? rotations, str covariance_type"
PATHS = "Tensor seed, SymInt first_path"
RANGES = "Tensor? ranges"
DRIFT_TABLES = "Tensor times, Tensor noise_std"
DRIFT_WALK = f"Tensor x0, Tensor parameters, Tensor steps, {DRIFT_TABLES}"
DRIFT_REVERSE = (
    "Tensor y, Tensor parameters, Tensor held, Tensor? slope, Tensor? rate, Tensor bounds, Tensor coefficients"
)
SCHEMAS = {
    "philox_normal": "(SymInt n_paths, SymInt dim, Tensor seed, Tensor step, int stream, SymInt first_path, "
    "ScalarType dtype, Device device, str backend) -> Tensor",
    "uniform_steps": f"(SymInt n_paths, SymInt n_steps, {PATHS}, Device device, SymInt? records, str backend) "
    "-> Tensor",
    "mixture_score": f"(Tensor x, {MIXTURE}, {RANGES}, str backend) -> Tensor",
    "mixture_log_prob": f"(Tensor x, {MIXTURE}, {RANGES}, str backend) -> Tensor",
    "mixture_hvp": f"(Tensor x, Tensor v, {MIXTURE}, {RANGES}, str backend) -> Tensor",
    "mixture_hvp_backward": f"(Tensor grad, Tensor x, Tensor v, {MIXTURE}, {RANGES}) -> Tensor",
    "noised_score": f"(Tensor x, Tensor variance, {NOISED}, str backend) -> Tensor",
    "noised_score_backward": f"(Tensor grad, Tensor x, Tensor variance, {NOISED}) -> (Tensor, Tensor)",
    "noised_log_prob": f"(Tensor x, Tensor variance, {NOISED}, str backend) -> Tensor",
    "noised_log_prob_backward": f"(Tensor grad, Tensor x, Tensor variance, {NOISED}) -> (Tensor, Tensor)",
    "mixture_sample": "(SymInt n, Tensor cumulative_weights, Tensor means, Tensor factors, str covariance_type, "
    f"{PATHS}, ScalarType dtype, {RANGES}, str backend) -> Tensor",
    "simulate": f"(Tensor x0, Tensor steps, {PROCESS}, {PATHS}, {RANGES}, str backend) -> Tensor",
    "simulate_backward": f"(Tensor grad, Tensor x0, Tensor steps, {PROCESS}, {PATHS}, {RANGES}) -> Tensor",
    "simulate_transition": f"(Tensor x0, Tensor steps, {PROCESS}, {PATHS}, {RANGES}, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    "simulate_target": f"(Tensor x0, Tensor steps, {PROCESS}, {AXES}, {PATHS}, bool antithetic, {RANGES}, "
    "str backend) -> (Tensor, Tensor, Tensor)",
    "simulate_target_backward": "(Tensor grad_x, Tensor grad_target, Tensor grad_variance, Tensor x0, Tensor steps, "
    f"{PROCESS}, {AXES}, {PATHS}, bool antithetic, {RANGES}) -> Tensor",
    "ndsm_loss": "(Tensor scores, Tensor noise, Tensor std, str estimator, bool antithetic, str backend) -> Tensor",
    "ndsm_loss_backward": "(Tensor grad, Tensor scores, Tensor noise, Tensor std, str estimator, bool antithetic, "
    "str backend) -> Tensor",
    "dsm_loss": "(Tensor score, Tensor target, str backend) -> Tensor",
    "dsm_loss_backward": "(Tensor grad, Tensor score, Tensor target, str backend) -> Tensor",
    "reverse_steps": "(Tensor y, Tensor held, Tensor? slope, Tensor? rate, Tensor bounds, Tensor coefficients, "
    f"{MIXTURE}, {PATHS}, {RANGES}, str backend) -> Tensor",
    "reverse_steps_backward": "(Tensor grad, Tensor y, Tensor held, Tensor? slope, Tensor? rate, "
    f"Tensor bounds, Tensor coefficients, {MIXTURE}, {PATHS}, {RANGES}) -> (Tensor, Tensor, Tensor, Tensor)",
    "drift_value": "(Tensor x, Tensor parameters, Tensor t, str program, str backend) -> Tensor",
    "drift_product": "(Tensor x, Tensor parameters, Tensor z, Tensor t, str program, str backend) -> (Tensor, Tensor)",
    "drift_simulate": f"({DRIFT_WALK}, str program, {PATHS}, str backend) -> Tensor",
    "drift_transition": f"({DRIFT_WALK}, str program, {PATHS}, str backend) -> (Tensor, Tensor, Tensor)",
    "drift_target": f"({DRIFT_WALK}, float rate, str program, {PATHS}, bool antithetic, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    "drift_reverse_steps": f"({DRIFT_REVERSE}, {DRIFT_TABLES}, str program, {PATHS}, str backend) -> Tensor",
}
# Of the drift ops: how many tensors they give, and of how many first arguments there are gradients.
DRIFT_OPS = {
    "drift_value": (1, 2),
    "drift_product": (2, 3),
    "drift_simulate": (1, 2),
    "drift_transition": (3, 2),
    "drift_target": (3, 2),
    "drift_reverse_steps": (1, 5),
}
for _name, (_made, _points) in DRIFT_OPS.items():
    _grads = ", ".join(f"Tensor grad{i}" for i in range(_made))
    _given = SCHEMAS[_name].partition(" ->")[0].removeprefix("(").removesuffix(", str backend)")
    SCHEMAS[f"{_name}_backward"] = f"({_grads}, {_given}) -> ({', '.join(['Tensor'] * _points)})"

library = torch.library.Library("fastndsm", "DEF")
for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema)
_implementations: dict[str, Callable[..., Any]] = {}


def _entry(name: str) -> Callable[..., Any]:
    op = getattr(torch.ops.fastndsm, name)

    def call(*arguments: Any) -> Any:
        if not torch.compiler.is_compiling() and (transforming() or near_alone.get()):
            return _implementations[name](*arguments[:-1], "reference")
        return op(*arguments)

    return call


def transforming() -> bool:
    """Return whether this is inside a torch.func transform, or a forward-mode AD level."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


# torch.ops.fastndsm; where torch.func, forward-mode AD or a trace would have to see into an op, the plain reference.
ops = SimpleNamespace(**{_name: _entry(_name) for _name in SCHEMAS})


def _implement(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        library.impl(name, function, "CompositeExplicitAutograd")
        _implementations[name] = function
        return function

    return register


def _fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return torch.library.register_fake(f"fastndsm::{name}", lib=library)


def _autograd(name: str, backward: Callable[..., Any], setup: Callable[..., Any]) -> None:
    torch.library.register_autograd(f"fastndsm::{name}", backward, setup_context=setup, lib=library)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _upcast(*tensors: Tensor) -> Any:
    dtype = compute_dtype(tensors[0].dtype)
    return tuple(t.to(dtype) for t in tensors)


def _operands(x: Tensor, means: Tensor, precisions: Tensor, log_scale: Tensor, kind: str) -> MixtureOperands:
    _, means, precisions, log_scale = _upcast(x, means, precisions, log_scale)
    return MixtureOperands(means, precisions, log_scale, kind)


def _new(like: Tensor, *shape: Any) -> Tensor:
    return like.new_empty(shape)


def _none(count: int) -> tuple[None, ...]:
    return (None,) * count


def _save_all(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.layout = [None if isinstance(a, Tensor) else (a,) for a in inputs]
    ctx.save_for_backward(*(a for a in inputs if isinstance(a, Tensor)))


def _arguments(ctx: Any) -> Any:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if other is None else other[0] for other in ctx.layout]


@contextlib.contextmanager
def _recording() -> Iterator[None]:
    """Have autograd record, also inside an op, where the dispatcher may have switched it off."""
    keys = torch._C.DispatchKey
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for key in (keys.AutogradFunctionality, keys.AutogradOther, keys.AutogradNestedTensor, keys.ADInplaceOrView):
        exclude = exclude.remove(key)
    guard = torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude)
    with torch.inference_mode(False), guard, torch.enable_grad():
        yield


def _reference_autograd(name: str, function: Callable[..., Any], differentiable: int) -> None:
    """Derive the op `name` in its first `differentiable` arguments, None perhaps, by autograd through `function`."""

    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        arguments = _arguments(ctx)
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            points = [
                a if a is None or (create_graph and a.requires_grad) else a.detach().requires_grad_()
                for a in arguments[:differentiable]
            ]
            points = [p if p is None or not create_graph else p.view_as(p) for p in points]
            outputs = function(*points, *arguments[differentiable:])
            found = _gradients(outputs, points, grads, create_graph)
        return *found, *_none(len(arguments) - differentiable)

    _autograd(name, backward, _save_all)


def _gradients(outputs: Any, points: Sequence[Any], grads: Sequence[Any], create_graph: bool) -> tuple[Any, ...]:
    """Return the gradients of sum <grad, output> in the points that are not None, 0 where nothing depends on them."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    given = [p for p in points if p is not None]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs], given, [g for _, g in pairs], create_graph=create_graph, materialize_grads=True
        )
    )
    return tuple(None if p is None else next(found) for p in points)


def _gradient_op(
    name: str, n_grads: int, differentiable: int, rerun: Callable[..., Any], n_points: int | None = None
) -> None:
    """Define the op (*grads, *points, *rest) -> gradients in the points of sum <grad, rerun(*points, *rest)>.

    By the reference's autograd. One point and one tensor where n_points is None; else a tuple, 0 for a point of None.
    """
    stop = n_grads + (1 if n_points is None else n_points)

    def gradient(arguments: Sequence[Any], create_graph: bool) -> Any:
        grads, points, rest = arguments[:n_grads], arguments[n_grads:stop], arguments[stop:]
        found = _gradients(rerun(*points, *rest), points, grads, create_graph)
        return found[0] if n_points is None else tuple(_zero_if_none(g, points[0]) for g in found)

    @_implement(name)
    def _(*arguments):  # type: ignore[no-untyped-def]
        with _recording():
            points = [None if p is None else p.detach().clone().requires_grad_() for p in arguments[n_grads:stop]]
            out = gradient([*arguments[:n_grads], *points, *arguments[stop:]], create_graph=False)
            return out.detach() if n_points is None else tuple(g.detach() for g in out)

    @_fake(name)
    def _(*arguments):  # type: ignore[no-untyped-def]
        points = arguments[n_grads:stop]
        made = tuple(_new(p, *p.shape) for p in (points[0] if p is None else p for p in points))
        return made[0] if n_points is None else made

    _reference_autograd(name, lambda *arguments: gradient(arguments, create_graph=True), differentiable)


def _zero_if_none(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


# --- noise -------------------------------------------------------------------------------------------------------


@_implement("philox_normal")
def _(n_paths, dim, seed, step, stream, first_path, dtype, device, backend):  # type: ignore[no-untyped-def]
    serve = registry.select("philox_normal", backend, device, [dtype])
    compute = compute_dtype(dtype)
    return serve(n_paths, dim, seed, step, stream, first_path, compute, device).to(dtype)


@_fake("philox_normal")
def _(n_paths, dim, seed, step, stream, first_path, dtype, device, backend):  # type: ignore[no-untyped-def]
    return torch.empty((n_paths, dim), dtype=dtype, device=device)


@_implement("uniform_steps")
def _(n_paths, n_steps, seed, first_path, device, records, backend):  # type: ignore[no-untyped-def]
    serve = registry.select("uniform_steps", backend, device, [torch.float32])
    return serve(n_paths, n_steps, seed, first_path, device, records)


@_fake("uniform_steps")
def _(n_paths, n_steps, seed, first_path, device, records, backend):  # type: ignore[no-untyped-def]
    shape = (n_paths,) if records is None else (n_paths, records)
    return torch.empty(shape, dtype=torch.int64, device=device)


# --- mixture -----------------------------------------------------------------------------------------------------


def _serve_rows(
    name: str, backend: str, device: torch.device, dtype: torch.dtype, ranges: Tensor | None
) -> Callable[..., Any]:
    """Return the function that serves rows of these ranges, bound to them if there are any."""
    serve = registry.select(name, backend, device, [dtype], ranges=ranges is not None)
    return serve if ranges is None else functools.partial(serve, ranges=ranges)


def _mixture_op(name: str) -> None:
    @_implement(name)
    def _(*arguments):  # type: ignore[no-untyped-def]
        *points, means, precisions, log_scale, covariance_type, ranges, backend = arguments
        x = points[0]
        serve = _serve_rows(name, backend, x.device, x.dtype, ranges)
        mixture = _operands(x, means, precisions, log_scale, covariance_type)
        return serve(*_upcast(*points), mixture).to(x.dtype)

    @_fake(name)
    def _(*arguments):  # type: ignore[no-untyped-def]
        x = arguments[0]
        return _new(x, x.shape[0]) if name == "mixture_log_prob" else _new(x, *x.shape)


for _name in ("mixture_score", "mixture_log_prob", "mixture_hvp"):
    _mixture_op(_name)


def _save_mixture(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.covariance_type, ranges, backend = inputs
    ctx.backend = registry.requested(backend)
    ctx.save_for_backward(*tensors, ranges)


def _score_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, *mixture, ranges = ctx.saved_tensors  # the hessian is symmetric
    return ops.mixture_hvp(x, grad.contiguous(), *mixture, ctx.covariance_type, ranges, ctx.backend), *_none(6)


def _log_prob_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, *mixture, ranges = ctx.saved_tensors
    return grad[:, None] * ops.mixture_score(x, *mixture, ctx.covariance_type, ranges, ctx.backend), *_none(6)


def _hvp_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, v, *mixture, ranges = ctx.saved_tensors
    grad = grad.contiguous()
    grad_x = ops.mixture_hvp_backward(grad, x, v, *mixture, ctx.covariance_type, ranges)
    return grad_x, ops.mixture_hvp(x, grad, *mixture, ctx.covariance_type, ranges, ctx.backend), *_none(6)


def _rerun_hvp(x, v, means, precisions, log_scale, covariance_type, ranges):  # type: ignore[no-untyped-def]
    mixture = _operands(x, means, precisions, log_scale, covariance_type)
    x, v = _upcast(x, v)
    return reference.mixture_hvp(x, v, mixture, ranges)


_gradient_op("mixture_hvp_backward", 1, 3, _rerun_hvp)
_autograd("mixture_score", _score_backward, _save_mixture)
_autograd("mixture_log_prob", _log_prob_backward, _save_mixture)
_autograd("mixture_hvp", _hvp_backward, _save_mixture)


@_implement("mixture_sample")
def _(n, cumulative_weights, means, factors, covariance_type, seed, first_path, dtype, ranges, backend):  # type: ignore[no-untyped-def]
    serve = _serve_rows("mixture_sample", backend, means.device, means.dtype, ranges)
    return serve(n, cumulative_weights, means, factors, covariance_type, seed, first_path, dtype)


@_fake("mixture_sample")
def _(n, cumulative_weights, means, factors, covariance_type, seed, first_path, dtype, ranges, backend):  # type: ignore[no-untyped-def]
    return means.new_empty((n, means.shape[1]), dtype=dtype)


# --- the mixture widened by noise of each row's own ----------------------------------------------------------------


def _noised(x: Tensor, means: Tensor, variances: Tensor, log_weights: Tensor, rotations: Any, kind: str) -> Any:
    _, means, variances, log_weights = _upcast(x, means, variances, log_weights)
    rotations = None if rotations is None else rotations.to(means.dtype)
    return NoisedOperands(means, variances, log_weights, rotations, kind)


def _noised_op(name: str, function: Callable[..., Tensor]) -> None:
    @_implement(name)
    def _(x, variance, *arguments):  # type: ignore[no-untyped-def]
        *mixture, backend = arguments
        serve = registry.select(name, backend, x.device, [x.dtype])
        return serve(*_upcast(x, variance), _noised(x, *mixture)).to(x.dtype)

    @_fake(name)
    def _(x, *rest):  # type: ignore[no-untyped-def]
        return _new(x, x.shape[0]) if name == "noised_log_prob" else _new(x, *x.shape)

    def rerun(x, variance, *mixture):  # type: ignore[no-untyped-def]
        return function(*_upcast(x, variance), _noised(x, *mixture))

    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        found = getattr(ops, f"{name}_backward")(grad.contiguous(), *_arguments(ctx))
        return *found, *_none(6)

    _autograd(name, backward, lambda ctx, inputs, output: _save_all(ctx, inputs[:-1], output))
    _gradient_op(f"{name}_backward", 1, 3, rerun, n_points=2)


_noised_op("noised_score", reference.noised_score)
_noised_op("noised_log_prob", reference.noised_log_prob)


# --- simulation --------------------------------------------------------------------------------------------------


def _process(x: Tensor, drift_scale: Tensor, noise_std: Tensor, *mixture: Any) -> ProcessOperands:
    _, drift_scale, noise_std = _upcast(x, drift_scale, noise_std)
    return ProcessOperands(drift_scale, noise_std, _operands(x, *mixture))


def _simulate_op(name: str) -> None:
    @_implement(name)
    def _(x0, steps, *arguments):  # type: ignore[no-untyped-def]
        *process, seed, first_path, ranges, backend = arguments
        serve = _serve_rows(name, backend, x0.device, x0.dtype, ranges)
        out = serve(*_upcast(x0), steps, _process(x0, *process), seed, first_path)
        return out.to(x0.dtype) if isinstance(out, Tensor) else tuple(o.to(x0.dtype) for o in out)

    @_fake(name)
    def _(x0, *rest):  # type: ignore[no-untyped-def]
        out = tuple(_new(x0, *x0.shape) for _ in range(3))
        return out[0] if name == "simulate" else out


for _name in ("simulate", "simulate_transition"):
    _simulate_op(_name)


def _save_simulation(ctx, inputs, output):  # type: ignore[no-untyped-def]
    """Save everything but the backend: the backward ops re-run the reference."""
    _save_all(ctx, inputs[:-1], output)
    if isinstance(output, tuple) and len(inputs) == 12:  # simulate_transition: the noise does not depend on x0
        ctx.mark_non_differentiable(output[2])


def _simulate_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return ops.simulate_backward(grad.contiguous(), *_arguments(ctx)), *_none(11)


def _transition_backward(ctx, grad_x, grad_mean, _grad_noise):  # type: ignore[no-untyped-def]
    # x - mean is noise, which does not depend on x0
    return ops.simulate_backward((grad_x + grad_mean).contiguous(), *_arguments(ctx)), *_none(11)


_autograd("simulate", _simulate_backward, _save_simulation)
_autograd("simulate_transition", _transition_backward, _save_simulation)


def _rerun_simulate(x0, steps, *arguments):  # type: ignore[no-untyped-def]
    *process, seed, first_path, ranges = arguments
    (x,) = _upcast(x0)
    return reference.simulate(x, steps, _process(x0, *process), seed, first_path, ranges)


_gradient_op("simulate_backward", 1, 2, _rerun_simulate)


def _axes(x: Tensor, rotations: Tensor | None, rates: Tensor | None) -> PrincipalAxes | None:
    if rotations is None or rates is None:
        return None
    return PrincipalAxes(*_upcast(x, rotations, rates)[1:])


@_implement("simulate_target")
def _(x0, steps, *arguments):  # type: ignore[no-untyped-def]
    *process, rotations, rates, seed, first_path, antithetic, ranges, backend = arguments
    serve = _serve_rows("simulate_target", backend, x0.device, x0.dtype, ranges)
    axes = _axes(x0, rotations, rates)
    out = serve(*_upcast(x0), steps, _process(x0, *process), axes, seed, first_path, antithetic)
    return tuple(o.to(x0.dtype) for o in out)


@_fake("simulate_target")
def _(x0, steps, drift_scale, noise_std, means, precisions, log_scale, covariance_type, *rest):  # type: ignore[no-untyped-def]
    *_, antithetic, _, _ = rest
    shape = x0.shape[0] * (2 if antithetic else 1), *steps.shape[1:], x0.shape[1]
    width = 1 if covariance_type == "spherical" else x0.shape[1]
    return _new(x0, *shape), _new(x0, *shape), _new(x0, *shape[:-1], width)


def _target_backward(ctx, *grads):  # type: ignore[no-untyped-def]
    return ops.simulate_target_backward(*(g.contiguous() for g in grads), *_arguments(ctx)), *_none(14)


_autograd("simulate_target", _target_backward, _save_simulation)


def _rerun_target(x0, steps, *arguments):  # type: ignore[no-untyped-def]
    *process, rotations, rates, seed, first_path, antithetic, ranges = arguments
    (x,) = _upcast(x0)
    axes = _axes(x0, rotations, rates)
    return reference.simulate_target(x, steps, _process(x0, *process), axes, seed, first_path, antithetic, ranges)


_gradient_op("simulate_target_backward", 3, 4, _rerun_target)


# --- losses ------------------------------------------------------------------------------------------------------


def _serve_loss(name: str, backend: str, tensors: Sequence[Tensor], *arguments: Any) -> Tensor:
    serve = registry.select(name, backend, tensors[0].device, [t.dtype for t in tensors])
    return serve(*tensors, *arguments)


def _loss_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


@_implement("ndsm_loss")
def _(scores, noise, std, estimator, antithetic, backend):  # type: ignore[no-untyped-def]
    return _serve_loss("ndsm_loss", backend, (scores, noise, std), estimator, antithetic)


@_fake("ndsm_loss")
def _(scores, noise, std, estimator, antithetic, backend):  # type: ignore[no-untyped-def]
    return noise.new_empty((noise.shape[0],), dtype=_loss_dtype(scores, noise))


@_implement("ndsm_loss_backward")
def _(grad, scores, noise, std, estimator, antithetic, backend):  # type: ignore[no-untyped-def]
    return _serve_loss("ndsm_loss_backward", backend, (grad, scores, noise, std), estimator, antithetic)


@_fake("ndsm_loss_backward")
def _(grad, scores, noise, std, estimator, antithetic, backend):  # type: ignore[no-untyped-def]
    return _new(scores, *scores.shape)


def _save_ndsm(ctx, inputs, output):  # type: ignore[no-untyped-def]
    scores, noise, std, ctx.estimator, ctx.antithetic, backend = inputs
    ctx.backend = registry.requested(backend)
    ctx.save_for_backward(scores, noise, std)


def _ndsm_backward(ctx, grad):  # type: ignore[no-untyped-def]
    arguments = ctx.estimator, ctx.antithetic, ctx.backend
    return ops.ndsm_loss_backward(grad, *ctx.saved_tensors, *arguments), *_none(5)


_autograd("ndsm_loss", _ndsm_backward, _save_ndsm)


def _ndsm_gradient(grad, scores, noise, std, estimator, antithetic, backend):  # type: ignore[no-untyped-def]
    return reference.ndsm_loss_backward(grad, scores, noise, std, estimator, antithetic)


_reference_autograd("ndsm_loss_backward", _ndsm_gradient, 2)


@_implement("dsm_loss")
def _(score, target, backend):  # type: ignore[no-untyped-def]
    return _serve_loss("dsm_loss", backend, (score, target))


@_fake("dsm_loss")
def _(score, target, backend):  # type: ignore[no-untyped-def]
    return score.new_empty((score.shape[0],), dtype=_loss_dtype(score, target))


@_implement("dsm_loss_backward")
def _(grad, score, target, backend):  # type: ignore[no-untyped-def]
    return _serve_loss("dsm_loss_backward", backend, (grad, score, target))


@_fake("dsm_loss_backward")
def _(grad, score, target, backend):  # type: ignore[no-untyped-def]
    return _new(score, *score.shape)


def _save_dsm(ctx, inputs, output):  # type: ignore[no-untyped-def]
    score, target, backend = inputs
    ctx.backend = registry.requested(backend)
    ctx.save_for_backward(score, target)


def _dsm_backward(ctx, grad):  # type: ignore[no-untyped-def]
    score, target = ctx.saved_tensors
    grad_score = grad_target = None
    if ctx.needs_input_grad[0]:
        grad_score = ops.dsm_loss_backward(grad, score, target, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_target = ops.dsm_loss_backward(grad, target, score, ctx.backend)
    return grad_score, grad_target, None


_autograd("dsm_loss", _dsm_backward, _save_dsm)


def _dsm_gradient(grad, score, target, backend):  # type: ignore[no-untyped-def]
    return reference.dsm_loss_backward(grad, score, target)


_reference_autograd("dsm_loss_backward", _dsm_gradient, 3)


# --- reverse process ---------------------------------------------------------------------------------------------


def _reverse_arguments(
    y: Tensor,
    held: Tensor,
    slope: Tensor | None,
    rate: Tensor | None,
    bounds: Tensor,
    coefficients: Tensor,
    *arguments: Any,
) -> tuple[Any, ...]:
    """Return the arguments of the reference's `reverse_steps`, in the compute dtype of y."""
    *mixture, seed, first_path = arguments
    wide, held, coefficients = _upcast(y, held, coefficients)
    slope, rate = (None if part is None else part.to(wide.dtype) for part in (slope, rate))
    return wide, held, slope, rate, bounds, coefficients, _operands(y, *mixture), seed, first_path


@_implement("reverse_steps")
def _(y, *rest):  # type: ignore[no-untyped-def]
    *arguments, ranges, backend = rest
    serve = _serve_rows("reverse_steps", backend, y.device, y.dtype, ranges)
    return serve(*_reverse_arguments(y, *arguments)).to(y.dtype)


@_fake("reverse_steps")
def _(y, *rest):  # type: ignore[no-untyped-def]
    return _new(y, *y.shape)


def _reverse_backward(ctx, grad):  # type: ignore[no-untyped-def]
    arguments = _arguments(ctx)
    found = ops.reverse_steps_backward(grad.contiguous(), *arguments)
    grads = [g if point is not None else None for point, g in zip(arguments[:4], found, strict=True)]
    return *grads, *_none(10)


_autograd("reverse_steps", _reverse_backward, _save_simulation)


def _rerun_reverse(*arguments):  # type: ignore[no-untyped-def]
    *rest, ranges = arguments
    return functools.partial(reference.reverse_steps, ranges=ranges)(*_reverse_arguments(*rest))


_gradient_op("reverse_steps_backward", 1, 5, _rerun_reverse, n_points=4)


# --- drifts that are programs ------------------------------------------------------------------------------------


def _drift_arguments(x: Tensor, *rest: Any) -> list[Any]:
    """Return the arguments of the reference: the program itself, and half precision in the compute dtype of x."""
    dtype = compute_dtype(x.dtype)
    half = (torch.float16, torch.bfloat16)
    out: list[Any] = [programs[a] if isinstance(a, str) else a for a in (x, *rest)]
    return [a.to(dtype) if isinstance(a, Tensor) and a.dtype in half else a for a in out]


def _drift_op(name: str, made: int, points: int) -> None:
    @_implement(name)
    def _(x, *rest):  # type: ignore[no-untyped-def]
        *arguments, backend = rest
        serve = registry.select(name, backend, x.device, [x.dtype])
        out = serve(*_drift_arguments(x, *arguments))
        return out.to(x.dtype) if isinstance(out, Tensor) else tuple(o.to(x.dtype) for o in out)

    @_fake(name)
    def _(x, parameters, steps, *rest):  # type: ignore[no-untyped-def]
        if name == "drift_target":
            shape = x.shape[0] * (2 if rest[-2] else 1), *steps.shape[1:], x.shape[1]
            return _new(x, *shape), _new(x, *shape), _new(x, *shape[:-1], 1)
        out = tuple(_new(x, *x.shape) for _ in range(made))
        return out[0] if made == 1 else out

    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        arguments = _arguments(ctx)
        found = getattr(ops, f"{name}_backward")(*(g.contiguous() for g in grads), *arguments)
        used = [None if point is None else g for point, g in zip(arguments[:points], found, strict=True)]
        return *used, *_none(len(arguments) - points + 1)

    def save(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _save_all(ctx, inputs[:-1], output)  # all but the backend: the backward ops re-run the reference
        if name == "drift_transition":
            ctx.mark_non_differentiable(output[2])  # the noise

    def rerun(*arguments):  # type: ignore[no-untyped-def]
        return getattr(reference, name)(*_drift_arguments(*arguments))

    _autograd(name, backward, save)
    _gradient_op(f"{name}_backward", made, made + points, rerun, n_points=points)


for _name, (_made, _points) in DRIFT_OPS.items():
    _drift_op(_name, _made, _points)
