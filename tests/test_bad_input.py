"""Bad input: an error that names the argument, what was expected and what was found, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import on_one_backend  # noqa: F401
from torch import Tensor

from fastndsm import (
    DriftProcess,
    DSMLoss,
    GaussianMixture,
    LangevinProcess,
    NDSMLoss,
    OUProcess,
    ResidualScore,
    _checks,
    compile_drift,
    functional,
    latent,
    log_likelihood,
    sample,
)
from fastndsm.networks import MLP, TimeEmbedding, UNet
from fastndsm.training import TrainConfig, Trainer

NAN, INF = float("nan"), float("inf")


def never(*_: Any) -> Tensor:
    raise AssertionError("called in spite of bad input")


def ou(**options: Any) -> OUProcess:
    return OUProcess(2, **{"T": 1.0, "n_steps": 10, **options})


def mixture(**changes: Any) -> GaussianMixture:
    arguments = {
        "weights": [0.25, 0.75],
        "means": [[0.0, 0.0], [1.0, 1.0]],
        "covariances": [1.0, 2.0],
        "covariance_type": "spherical",
    }
    return GaussianMixture(**{**arguments, **changes})


def fit(X: Any = None, n_components: Any = 2, **options: Any) -> GaussianMixture:
    return GaussianMixture.fit(np.zeros((5, 2)) if X is None else X, n_components, **options)


def with_value(value: float, *shape: int) -> Tensor:
    x = torch.zeros(*shape)
    x.view(-1)[-1] = value
    return x


def meta(*shape: int) -> Tensor:
    return torch.zeros(*shape, device="meta")


class Case:
    def __init__(self, id: str, call: Callable[[], Any], error: type[Exception], message: str) -> None:
        self.call, self.error, self.message = call, error, message
        self.id = id


V, T = ValueError, TypeError
full = {"covariance_type": "full"}
eye = [[1.0, 0.0], [0.0, 1.0]]
x2 = torch.zeros(3, 2)
loss_arguments = {"scores": torch.zeros(3, 2), "noise": torch.zeros(3, 2), "std": torch.ones(3), "estimator": "plain"}


def ndsm(**changes: Any) -> Tensor:
    return functional.ndsm_loss(**{**loss_arguments, **changes})


def drift_process(drift: Any = None, **options: Any) -> DriftProcess:
    prior = GaussianMixture.standard_normal(2)
    return DriftProcess(drift or (lambda x, t: -x), prior, **{"T": 1.0, "n_steps": 4, **options})


# fmt: off
CASES = [
    # the mixture's parameters
    Case("weights sum", lambda: mixture(weights=[0.5, 0.4]), V,
         "weights: expected non-negative values that sum to 1, found sum 0.9"),
    Case("weights negative", lambda: mixture(weights=[-0.5, 1.5]), V,
         "weights: expected non-negative values that sum to 1, found -0.5 among them"),
    Case("weights shape", lambda: mixture(weights=[1.0]), V, "weights: expected shape (2,), found (1,)"),
    Case("weights NaN", lambda: mixture(weights=[NAN, 1.0]), V,
         "weights: expected finite values, found 1 NaN or infinite, first at (0,)"),
    Case("means shape", lambda: mixture(means=[0.0, 1.0]), V, "means: expected shape [K, d], found (2,)"),
    Case("means empty", lambda: mixture(means=np.zeros((0, 2))), V, "means: expected shape [K, d], found (0, 2)"),
    Case("means infinite", lambda: mixture(means=[[0.0, INF], [0.0, 0.0]]), V,
         "means: expected finite values, found 1 NaN or infinite, first at (0, 1)"),
    Case("means complex", lambda: mixture(means=torch.zeros(2, 2, dtype=torch.complex64)), T,
         "means: expected a floating point dtype, found torch.complex64"),
    Case("covariances shape", lambda: mixture(covariances=[1.0]), V,
         "covariances: expected shape (2,) for 'spherical', found (1,)"),
    Case("covariances shape full", lambda: mixture(covariances=[1.0, 1.0], **full), V,
         "covariances: expected shape (2, 2, 2) for 'full', found (2,)"),
    Case("covariances zero", lambda: mixture(covariances=[1.0, 0.0]), V,
         "covariances: expected positive variances, found 0.0 in component 1"),
    Case("covariances negative diag",
         lambda: mixture(covariances=[[1.0, 1.0], [1.0, -2.0]], covariance_type="diag"), V,
         "covariances: expected positive variances"),
    Case("covariances not positive definite",
         lambda: mixture(covariances=[eye, [[1.0, 2.0], [2.0, 1.0]]], **full), V,
         "covariances: expected positive definite matrices, found component 1 is not; fit with a larger reg_covar"),
    Case("covariances not positive definite tied",
         lambda: mixture(covariances=[[1.0, 2.0], [2.0, 1.0]], covariance_type="tied"), V,
         "covariances: expected positive definite matrices"),
    Case("covariances not symmetric", lambda: mixture(covariances=[eye, [[1.0, 0.5], [0.0, 1.0]]], **full), V,
         "covariances: expected symmetric matrices, found asymmetry 0.5"),
    Case("covariance_type", lambda: mixture(covariance_type="round"), V,
         "covariance_type: expected one of 'spherical', 'diag', 'tied', 'full', found 'round'"),
    Case("event_shape", lambda: mixture(event_shape=(3, 1)), V, "event_shape: expected 2 values, found (3, 1)"),
    # fitting
    Case("fit n_components above samples", lambda: fit(n_components=6), V,
         "n_components: expected at most the number of samples, 5, found 6"),
    Case("fit n_components zero", lambda: fit(n_components=0), V,
         "n_components: expected an integer of at least 1, found 0"),
    Case("fit n_components float", lambda: fit(n_components=2.0), T, "n_components: expected an integer, found 2.0"),
    Case("fit NaN", lambda: fit(with_value(NAN, 5, 2)), V,
         "X: expected finite values, found 1 NaN or infinite, first at (4, 1)"),
    Case("fit infinite", lambda: fit(with_value(-INF, 5, 2).numpy()), V, "X: expected finite values, found 1 NaN"),
    Case("fit empty", lambda: fit(np.zeros((0, 2))), V, "X: expected shape [n, ...] with n >= 1, found (0, 2)"),
    Case("fit flat", lambda: fit(np.zeros(5)), V, "X: expected shape [n, ...] with n >= 1, found (5,)"),
    Case("fit text", lambda: fit(np.array([["a", "b"]])), T, "X: expected numbers, found dtype <U1"),
    Case("fit covariance_type", lambda: fit(covariance_type="round"), V, "covariance_type: expected one of"),
    Case("fit reg_covar", lambda: fit(reg_covar=-1.0), V, "reg_covar: expected a non-negative number, found -1.0"),
    Case("fit reg_covar NaN", lambda: fit(reg_covar=NAN), V, "reg_covar: expected a non-negative number, found nan"),
    Case("fit eigenvalue_floor", lambda: fit(eigenvalue_floor=0.0), V,
         "eigenvalue_floor: expected a number in (0, 1], found 0.0"),
    Case("fit weights_init", lambda: fit(weights_init=[0.5, 0.6]), V,
         "weights_init: expected non-negative values that sum to 1, found sum 1.1"),
    Case("fit means_init", lambda: fit(means_init=[[0.0, 0.0]]), V, "means_init: expected shape (2, 2), found (1, 2)"),
    Case("fit precisions_init", lambda: fit(precisions_init=[1.0, -1.0]), V,
         "precisions_init: expected positive values or positive definite matrices"),
    Case("fit precisions_init tied", lambda: fit(precisions_init=[[1.0, 2.0], [2.0, 1.0]], covariance_type="tied"), V,
         "precisions_init: expected positive values or positive definite matrices"),
    Case("fit sample_weight", lambda: fit(sample_weight=[1.0, -1.0, 1.0, 1.0, 1.0]), V,
         "sample_weight: expected non-negative values, not all 0"),
    Case("fit sample_weight shape", lambda: fit(sample_weight=[1.0]), V, "sample_weight: expected shape (5,)"),
    Case("fit one row", lambda: fit(np.zeros((1, 2)), 1), V, "X: expected at least 2 samples, found 1"),
    Case("fit unknown option", lambda: fit(n_starts=2), T, "GaussianMixture.__init__() got an unexpected keyword"),
    Case("conditioned floor", lambda: mixture().conditioned(1.5), V,
         "floor: expected a number in (0, 1], found 1.5"),
    Case("conditioned floor NaN", lambda: mixture().conditioned(NAN), V,
         "floor: expected a number in (0, 1], found nan"),
    Case("from_points bandwidth", lambda: GaussianMixture.from_points(np.zeros((3, 2)), 0.0), V,
         "bandwidth: expected a finite positive number, found 0.0"),
    Case("from_points NaN", lambda: GaussianMixture.from_points(with_value(NAN, 3, 2), 1.0), V,
         "X: expected finite values"),
    Case("standard_normal", lambda: GaussianMixture.standard_normal(0), V,
         "d: expected an integer of at least 1, found 0"),
    # symmetrized
    Case("maps rotation of diag",
         lambda: mixture(covariances=[[1.0, 2.0], [1.0, 1.0]], covariance_type="diag").symmetrized(
             [torch.tensor([[0.6, -0.8], [0.8, 0.6]])]), V,
         "maps[0]: expected an invertible map that keeps 'diag' covariances; use 'full'"),
    Case("maps shear of spherical",
         lambda: mixture().symmetrized([torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 1.0]])]), V,
         "maps[1]: expected an invertible map that keeps 'spherical' covariances; use 'full'"),
    Case("maps small shear of spherical",
         lambda: mixture().symmetrized([1e-4 * torch.tensor([[1.0, 1.0], [0.0, 1.0]])]), V,
         "maps[0]: expected an invertible map that keeps 'spherical' covariances"),
    Case("maps changing tied",
         lambda: mixture(covariances=[[2.0, 0.0], [0.0, 1.0]], covariance_type="tied").symmetrized(
             [torch.tensor([[0.0, 1.0], [1.0, 0.0]])]), V,
         "maps: expected maps that keep the tied covariance, found one that changes it; use 'full'"),
    Case("maps singular", lambda: mixture(covariances=[eye, eye], **full).symmetrized([torch.zeros(2, 2)]), V,
         "maps[0]: expected an invertible map"),
    Case("maps shape", lambda: mixture().symmetrized([torch.eye(3)]), V,
         "maps[0]: expected shape (2, 2), found (3, 3)"),
    Case("maps not affine", lambda: mixture(means=[[0.5, 2.0], [1.0, 3.0]]).symmetrized([lambda x: x**2]), V,
         "maps[0]: expected an affine map, found one that is not"),
    Case("maps type", lambda: mixture().symmetrized(["flip"]), T,
         "maps[0]: expected a matrix or a callable on points, found str"),
    Case("maps result", lambda: mixture().symmetrized([lambda x: x[:, :1]]), V,
         "maps[0](points): expected the shape of points, (5, 2), found (5, 1)"),
    # points given to a mixture
    Case("x shape", lambda: mixture().score(torch.zeros(3, 5)), V,
         "x: expected shape [B, ...] with 2 values a sample, found (3, 5)"),
    Case("x flat", lambda: mixture().log_prob(torch.zeros(2)), V,
         "x: expected shape [B, ...] with 2 values a sample, found (2,)"),
    Case("x empty", lambda: mixture().score(torch.zeros(0, 2)), V,
         "x: expected at least one sample, found an empty batch of shape (0, 2)"),
    Case("x integer", lambda: mixture().score(torch.zeros(3, 2, dtype=torch.int64)), T,
         "x: expected a floating point dtype, found torch.int64"),
    Case("x array", lambda: mixture().score(np.zeros((3, 2))), T, "x: expected a torch.Tensor, found ndarray"),
    Case("x device", lambda: mixture().score(meta(3, 2)), V,
         "x: expected the device of mixture, cpu, found meta; move one with .to()"),
    Case("v shape", lambda: mixture().hvp(x2, torch.zeros(2, 2)), V,
         "v: expected the shape of x, (3, 2), found (2, 2)"),
    Case("v device", lambda: mixture().hvp(x2, meta(3, 2)), V, "v: expected the device of x, cpu, found meta"),
    Case("responsibilities device", lambda: mixture().responsibilities(meta(3, 2)), V,
         "x: expected the device of mixture, cpu, found meta"),
    Case("sample n", lambda: mixture().sample(0), V, "n: expected an integer of at least 1, found 0"),
    # noise
    Case("seed float", lambda: mixture().sample(2, seed=1.5), T,
         "seed: expected an integer, a tensor or None, found 1.5"),
    Case("seed tensor", lambda: mixture().sample(2, seed=torch.zeros(2)), T,
         "seed: expected one integer, found torch.float32 of shape (2,)"),
    Case("seed too large", lambda: mixture().sample(2, seed=2**64), V,
         "seed: expected an integer of at most 64 bits, found 18446744073709551616"),
    Case("first_path negative", lambda: mixture().sample(2, first_path=-1), V,
         "first_path: expected an integer of at least 0, found -1"),
    Case("first_path large", lambda: ou().simulate(x2, first_path=2**56), V,
         "first_path: expected an integer below 2^56, found 72057594037927936"),
    Case("first_path of drawn steps", lambda: ou().draw_steps(2, first_path="0"), T,
         "first_path: expected an integer, found '0'"),
    Case("stream", lambda: functional.philox_normal(1, 1, seed=0, stream=256), V,
         "stream: expected an integer in 0..255, found 256"),
    Case("philox step", lambda: functional.philox_normal(1, 1, seed=0, step=2**32), V,
         "step: expected a value in 0..4294967295, found 4294967296"),
    Case("philox step negative", lambda: functional.philox_normal(2, 1, seed=0, step=torch.tensor([0, -1])), V,
         "step: expected values in 0..4294967295, found -1..0"),
    Case("philox dtype", lambda: functional.philox_normal(1, 1, seed=0, dtype=torch.int64), T,
         "dtype: expected a floating point dtype, found torch.int64"),
    Case("philox dim", lambda: functional.philox_normal(1, 0, seed=0), V,
         "dim: expected an integer of at least 1, found 0"),
    # building a process
    Case("reference type", lambda: LangevinProcess(np.zeros(3)), T,
         "reference: expected a GaussianMixture, found ndarray"),
    Case("T", lambda: ou(T=0.0), V, "T: expected a finite positive number, found 0.0"),
    Case("T NaN", lambda: ou(T=NAN), V, "T: expected a finite positive number, found nan"),
    Case("n_steps", lambda: ou(n_steps=0), V, "n_steps: expected an integer of at least 1, found 0"),
    Case("n_steps float", lambda: ou(n_steps=10.0), T, "n_steps: expected an integer, found 10.0"),
    Case("sigma", lambda: ou(sigma=-1.0), V, "sigma: expected a finite positive number, found -1.0"),
    Case("sigma of time", lambda: ou(sigma=lambda t: 0.5 - t), V,
         "sigma(0.5): expected a finite positive number, found 0.0"),
    Case("grid name", lambda: ou(grid="cubic"), V,
         "grid: expected one of 'uniform', 'quadratic', 'stiff', found 'cubic'"),
    Case("grid stiff and sigma of time", lambda: ou(grid="stiff", sigma=lambda t: 1.0), V,
         "grid: expected 'stiff' with a constant sigma, found a callable"),
    Case("grid stiff and n_steps", lambda: ou(T=4.0, grid="stiff", n_steps=10), V,
         "n_steps: expected at least 11 with grid 'stiff', whose steps are 0.4 at most, and T = 4, found 10"),
    Case("grid stiff of a drift", lambda: DriftProcess(lambda x, t: -x, mixture(), T=1.0, grid="stiff"), V,
         "grid: expected one of 'uniform', 'quadratic', found 'stiff'"),
    Case("grid order", lambda: ou(T=None, grid=[0.0, 0.2, 0.1]), V,
         "grid: expected times that increase from 0, found [0.0, 0.2, 0.1]"),
    Case("grid start", lambda: ou(T=None, grid=[0.1, 0.2]), V, "grid: expected times that increase from 0"),
    Case("grid repeated", lambda: ou(T=None, grid=[0.0, 0.1, 0.1]), V, "grid: expected times that increase from 0"),
    Case("grid NaN", lambda: ou(T=None, grid=[0.0, NAN]), V, "grid: expected finite values"),
    Case("grid short", lambda: ou(T=None, grid=[0.0]), V, "grid: expected N+1 times with N >= 1, found shape (1,)"),
    Case("grid empty", lambda: ou(T=None, grid=[]), V, "grid: expected N+1 times with N >= 1, found shape (0,)"),
    Case("grid type", lambda: ou(T=None, grid=None), T,
         "grid: expected 'uniform', 'quadratic' or N+1 times, found None"),
    Case("grid against T", lambda: ou(T=2.0, grid=[0.0, 0.1]), V, "T: expected the last time of grid, 0.1, found 2.0"),
    Case("OU dim", lambda: OUProcess(0), V, "dim: expected an integer of at least 1, found 0"),
    Case("OU event_shape", lambda: ou(event_shape=(3,)), V, "event_shape: expected 2 values, found (3,)"),
    Case("drift type", lambda: drift_process(3.0), T, "drift: expected a callable (x, t) -> like x, found float"),
    Case("drift prior", lambda: DriftProcess(never, 3.0, T=1.0), T,
         "prior: expected a GaussianMixture or the like, found float"),
    Case("drift horizon", lambda: drift_process(T=None), V, "T: expected a horizon, found None"),
    Case("drift rate", lambda: drift_process(rate=4.0), V, "rate: expected rate * dt below 1, found 4.0 * 0.25"),
    Case("drift output", lambda: drift_process(lambda x, t: x[:, :1]).simulate(x2), V,
         "drift: expected output of the shape of x, (3, 2), found (3, 1)"),
    # noising
    Case("x0 NaN", lambda: ou().noised(with_value(NAN, 3, 2)), V,
         "x0: expected finite values, found 1 NaN or infinite, first at (2, 1)"),
    Case("x0 infinite", lambda: ou().transition(with_value(INF, 3, 2)), V, "x0: expected finite values"),
    Case("x0 NaN simulate", lambda: ou().simulate(with_value(NAN, 3, 2)), V, "x0: expected finite values"),
    Case("x0 NaN exact", lambda: ou().exact_noised(with_value(NAN, 3, 2)), V, "x0: expected finite values"),
    Case("x0 shape", lambda: ou().noised(torch.zeros(3, 1, 3)), V,
         "x0: expected shape [B, ...] with 2 values a sample, found (3, 1, 3)"),
    Case("x0 empty", lambda: ou().noised(torch.zeros(0, 2)), V,
         "x0: expected at least one sample, found an empty batch of shape (0, 2)"),
    Case("x0 dtype", lambda: ou().noised(torch.zeros(3, 2, dtype=torch.int32)), T,
         "x0: expected a floating point dtype, found torch.int32"),
    Case("x0 device", lambda: ou().simulate(meta(3, 2)), V,
         "x0: expected the device of process, cpu, found meta; move one with .to()"),
    Case("step range", lambda: ou().noised(x2, 10), V, "step: expected a value in 0..9, found 10"),
    Case("step negative", lambda: ou().transition(x2, -1), V, "step: expected a value in 0..9, found -1"),
    Case("step tensor range", lambda: ou().transition(x2, torch.tensor([0, 3, 12])), V,
         "step: expected values in 0..9, found 0..12"),
    Case("step shape", lambda: ou().noised(x2, torch.zeros(4, dtype=torch.int64)), V,
         "step: expected an integer or shape [3] or [3, R], found shape (4,)"),
    Case("step dtype", lambda: ou().noised(x2, torch.zeros(3)), T, "step: expected integers, found torch.float32"),
    Case("step type", lambda: ou().noised(x2, 1.5), T,
         "step: expected an integer or an integer tensor, found 1.5"),
    Case("steps range", lambda: ou().simulate(x2, 11), V, "steps: expected a value in 0..10, found 11"),
    Case("steps minimum", lambda: functional.simulate_transition(x2, ou(), 0, seed=0), V,
         "steps: expected at least 1, found 0"),
    # the losses
    Case("process type", lambda: NDSMLoss(mixture()), T, "process: expected a noising process, found GaussianMixture"),
    Case("estimator", lambda: NDSMLoss(ou(), "best"), V,
         "estimator: expected one of 'path', 'control_variate', 'plain', found 'best'"),
    Case("antithetic", lambda: NDSMLoss(ou(), "control_variate", antithetic=True), V,
         "antithetic: expected False with estimator 'control_variate', found True"),
    Case("control_variate", lambda: NDSMLoss(ou(), "path", control_variate=never), V,
         "control_variate: expected None with estimator 'path', found a network"),
    Case("control_variate type", lambda: NDSMLoss(ou(), "control_variate", control_variate=3), T,
         "control_variate: expected a callable (x, t) -> like x, found int"),
    Case("weighting", lambda: NDSMLoss(ou(), weighting="snr"), V,
         "weighting: expected 'variance', None or a callable(t) -> [B], found 'snr'"),
    Case("weighting result", lambda: NDSMLoss(ou(), weighting=lambda t: t[:1])(lambda x, t: x, x2), V,
         "weighting: expected it to return shape (3,), found (1,)"),
    Case("reduction", lambda: NDSMLoss(ou(), reduction="max"), V,
         "reduction: expected one of 'mean', 'sum', 'none', found 'max'"),
    Case("DSM process", lambda: DSMLoss(drift_process()), T,
         "process: expected an OUProcess or an EDMProcess, found DriftProcess"),
    Case("score_net type", lambda: NDSMLoss(ou())(3, x2), T,
         "score_net: expected a callable (x, t) -> like x, found int"),
    *(
        Case(f"score_net shape, {name}", lambda loss=loss: loss()(lambda x, t: x[:, :1], x2), V,
             f"score_net: expected output of the shape of x, ({rows}, 2), found ({rows}, 1)")
        for name, loss, rows in (
            ("path", lambda: NDSMLoss(ou()), 3),
            ("plain", lambda: NDSMLoss(ou(), "plain"), 3),
            ("control variate", lambda: NDSMLoss(ou(), "control_variate"), 6),
            ("dsm", lambda: DSMLoss(ou()), 3),
        )
    ),
    Case("score_net transposed", lambda: NDSMLoss(ou())(lambda x, t: x.T, x2), V,
         "score_net: expected output of the shape of x, (3, 2), found (2, 3)"),
    Case("score_net tuple", lambda: NDSMLoss(ou())(lambda x, t: (x, x), x2), T,
         "score_net: expected it to return a tensor like x, found tuple"),
    Case("score_net integers", lambda: NDSMLoss(ou())(lambda x, t: x.long(), x2), T,
         "score_net: expected floating point output, found torch.int64"),
    Case("score_net not called on NaN", lambda: NDSMLoss(ou())(never, with_value(NAN, 3, 2)), V,
         "x0: expected finite values"),
    Case("score_net not called on an empty batch", lambda: DSMLoss(ou())(never, torch.zeros(0, 2)), V,
         "x0: expected at least one sample"),
    Case("residual process", lambda: ResidualScore(torch.nn.Identity(), drift_process()), T,
         "process: expected a LangevinProcess, found DriftProcess"),
    Case("residual net", lambda: ResidualScore(3, ou()), T, "net: expected a module (x, t) -> like x, found int"),
    # the ops
    Case("scores shape", lambda: ndsm(scores=torch.zeros(3, 3)), V,
         "scores: expected shape (3, 2) for 'plain', found (3, 3)"),
    Case("scores rows", lambda: ndsm(estimator="control_variate"), V,
         "scores: expected shape (6, 2) for 'control_variate', found (3, 2)"),
    Case("scores device", lambda: ndsm(scores=meta(3, 2)), V, "noise: expected the device of scores, meta, found cpu"),
    Case("scores dtype", lambda: ndsm(scores=torch.zeros(3, 2, dtype=torch.int64)), T,
         "scores: expected a floating point dtype, found torch.int64"),
    Case("noise empty", lambda: ndsm(scores=torch.zeros(0, 2), noise=torch.zeros(0, 2), std=torch.zeros(0)), V,
         "noise: expected shape [B, ...] with B >= 1, found (0, 2)"),
    Case("noise with gradient", lambda: ndsm(noise=torch.zeros(3, 2, requires_grad=True)), V,
         "noise: expected a tensor that needs no gradient; detach it"),
    Case("std shape", lambda: ndsm(std=torch.ones(4)), V, "std: expected shape (3,), found (4,)"),
    Case("weight shape", lambda: ndsm(weight=torch.ones(3, 1)), V, "weight: expected shape (3,), found (3, 1)"),
    Case("op estimator", lambda: ndsm(estimator="path"), V,
         "estimator: expected one of 'plain', 'control_variate', found 'path'"),
    Case("op reduction", lambda: ndsm(reduction="max"), V, "reduction: expected one of"),
    Case("dsm target", lambda: functional.dsm_loss(x2, torch.zeros(3, 3)), V,
         "target: expected the shape of score, (3, 2), found (3, 3)"),
    Case("dsm empty", lambda: functional.dsm_loss(torch.zeros(0, 2), torch.zeros(0, 2)), V,
         "score: expected shape [B, ...] with B >= 1, found (0, 2)"),
    Case("reverse step score", lambda: functional.reverse_step(x2, torch.zeros(3, 3), ou(), 0, seed=0), V,
         "score: expected the shape of y, (3, 2), found (3, 3)"),
    Case("reverse step y", lambda: functional.reverse_step(meta(3, 2), meta(3, 2), ou(), 0, seed=0), V,
         "y: expected the device of process, cpu, found meta"),
    Case("reverse step step", lambda: functional.reverse_step(x2, x2, ou(), 10, seed=0), V,
         "step: expected a value in 0..9, found 10"),
    Case("reverse step steps", lambda: functional.reverse_step(x2, x2, ou(), torch.zeros(3).long(), seed=0), V,
         "step: expected one integer, found shape (3,)"),
    Case("latent config", lambda: latent.LatentModel.fit(EIGHT, latent.PCA.fit(EIGHT), 1, config={"steps": 1}), T,
         "config: expected a TrainConfig, found dict"),
    Case("reverse step method", lambda: functional.reverse_step(x2, x2, ou(), 0, seed=0, method="heun"), V,
         "method: expected one of 'sde', 'ode', found 'heun'"),
    # the sampler
    Case("sampler n", lambda: sample(never, ou(), 0), V, "n: expected an integer of at least 1, found 0"),
    Case("sampler method", lambda: sample(never, ou(), 2, method="heun"), V,
         "method: expected one of 'sde', 'ode', found 'heun'"),
    Case("sampler batch_size", lambda: sample(never, ou(), 2, batch_size=0), V,
         "batch_size: expected an integer of at least 1, found 0"),
    Case("sampler process", lambda: sample(never, mixture(), 2), T,
         "process: expected a noising process, found GaussianMixture"),
    Case("sampler score_net", lambda: sample(None, ou(), 2), T,
         "score_net: expected a callable (x, t) -> like x, found NoneType"),
    Case("sampler output", lambda: sample(lambda x, t: x[:, :1], ou(), 2), V,
         "score_net: expected output of the shape of x, (2, 2), found (2, 1)"),
    Case("sampler first_path", lambda: sample(never, ou(), 2, first_path=-1), V,
         "first_path: expected an integer of at least 0, found -1"),
    Case("likelihood x", lambda: log_likelihood(never, ou(), with_value(NAN, 3, 2)), V, "x: expected finite values"),
    Case("likelihood shape", lambda: log_likelihood(never, ou(), torch.zeros(3, 3)), V,
         "x: expected shape [B, ...] with 2 values a sample, found (3, 3)"),
    Case("likelihood probes", lambda: log_likelihood(never, ou(), x2, n_probes=0), V,
         "n_probes: expected an integer of at least 1, found 0"),
    Case("likelihood output", lambda: log_likelihood(lambda x, t: x[:, 0], ou(), x2), V,
         "score_net: expected output of the shape of x, (3, 2), found (3,)"),
]
# fmt: on


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_message(case: Case) -> None:
    with pytest.raises(case.error, match="^" + re.escape(case.message)):
        case.call()


def test_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("dtype", "large"), [(torch.float16, 6e4), (torch.bfloat16, 3e38), (torch.float32, 3e38), (torch.float64, 1e308)]
)
def test_finite_values_whose_sum_is_not_are_finite(dtype: torch.dtype, large: float) -> None:
    x = torch.full((9, 3), large, dtype=dtype)
    assert _checks.finite("x", x) is x
    for bad in (float("nan"), float("inf"), -float("inf")):
        x[4, 1] = bad
        with pytest.raises(ValueError, match=r"x: expected finite values, found 1 NaN or infinite, first at \(4, 1\)"):
            _checks.finite("x", x)
    opposed = torch.tensor([float("inf"), -float("inf")], dtype=dtype)
    with pytest.raises(ValueError, match="found 2 NaN or infinite"):
        _checks.finite("x", opposed)


class Anything:
    """An object of no use, whose repr is short."""

    def __repr__(self) -> str:
        return "Anything()"


BAD: dict[str, Any] = {
    "None": None,
    "NaN": NAN,
    "inf": INF,
    "-1": -1,
    "-0.5": -0.5,
    "0": 0,
    "0.5": 0.5,
    "True": True,
    "string": "x",
    "2**70": 2**70,
    "integers": torch.zeros(3, dtype=torch.int64),
    "complex": torch.zeros(3, 2, dtype=torch.complex64),
    "no rows": torch.zeros(0, 2),
    "NaNs": torch.full((3, 2), NAN),
    "list": [1, "a"],
    "dict": {"a": 1},
    "empty": [],
    "array": np.array(["a", "b"]),
    "object": Anything(),
    "class": GaussianMixture,
}


def identity(x: Tensor, t: Tensor) -> Tensor:
    return x


def trainer(**options: Any) -> Any:
    given = {"score_net": MLP(2, (4,), embedding_dim=4), "loss": NDSMLoss(ou()), "data": torch.zeros(8, 2)}
    return Trainer(**{**given, "config": TrainConfig(steps=1), **options})


# What is accepted besides the value given here, for it has a meaning. Everything else is refused by name.
SEED, STEP, PATH, FLAG = "None -1 0", "None 0 integers", "0", "True"
TIME = "-1 -0.5 0 0.5 2**70 integers"
EIGHT = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0], [3.0, 1.0], [4.0, 2.0], [5.0, 7.0], [6.0, 4.0], [7.0, 5.0]])
PURE = "NaNs"  # NaN in, NaN out
PROCESS = {"n_steps": (10, "None"), "sigma": (0.5, "0.5 2**70"), "grid": ("uniform", "")}
DRAW = {"seed": (0, SEED), "first_path": (0, PATH)}
NETWORK = {"horizon": (1.0, "0.5 2**70"), "embedding_dim": (4, "")}
BACKEND = {"backend": ("reference", "")}
COUNTS = ("steps", "batch_size", "checkpoint_every", "noised_ahead", "pool_passes", "records_per_path")
SOUND = {
    "GaussianMixture": (
        GaussianMixture,
        {
            "weights": ([1.0], ""),
            "means": ([[0.0, 0.0]], ""),
            "covariances": ([1.0], ""),
            "covariance_type": ("spherical", ""),
            "event_shape": (None, "None"),
        },
    ),
    "GaussianMixture.fit": (
        lambda X, **options: GaussianMixture.fit(X, **options),
        {
            "X": (torch.linspace(0, 1, 40).reshape(20, 2), ""),
            "n_components": (1, ""),
            "covariance_type": ("spherical", ""),
            "reg_covar": (1e-2, "0 0.5 2**70"),
            "eigenvalue_floor": (0.01, "None 0.5"),
            "sample_weight": (None, "None"),
            "tol": (1e-3, "0 0.5 2**70"),
            "max_iter": (2, "0"),
            "n_init": (1, ""),
            "init_params": ("random", ""),
            "weights_init": (None, "None"),
            "means_init": (None, "None"),
            "precisions_init": (None, "None"),
            "random_state": (0, "None True 0"),
        },
    ),
    "GaussianMixture.conditioned": (lambda floor: mixture().conditioned(floor), {"floor": (0.01, "0.5")}),
    "GaussianMixture.score": (lambda x: mixture().score(x), {"x": (x2, PURE)}),
    "GaussianMixture.log_prob": (lambda x: mixture().log_prob(x), {"x": (x2, PURE)}),
    "GaussianMixture.responsibilities": (lambda x: mixture().responsibilities(x), {"x": (x2, PURE)}),
    "GaussianMixture.hvp": (lambda x, v: mixture().hvp(x, v), {"x": (x2, PURE), "v": (x2, PURE)}),
    "GaussianMixture.sample": (lambda n, **o: mixture().sample(n, **o), {"n": (3, ""), **DRAW}),
    "LangevinProcess": (
        lambda **o: LangevinProcess(**o),
        {"reference": (mixture(), ""), "T": (0.5, "None 0.5 2**70"), **PROCESS},
    ),
    "OUProcess": (
        lambda **o: OUProcess(**o),
        {"dim": (2, ""), "T": (0.5, "None 0.5 2**70"), **PROCESS, "event_shape": (None, "None")},
    ),
    "DriftProcess": (
        DriftProcess,
        {
            "drift": (lambda x, t: -x, ""),
            "prior": (mixture(), ""),
            "T": (0.5, "0.5 2**70"),
            **PROCESS,
            "rate": (0.0, "-1 -0.5 0 0.5"),
            "compiled": ("auto", FLAG),
        },
    ),
    "compile_drift": (compile_drift, {"drift": (lambda x, t: -x, ""), "dim": (2, "")}),
    "CompiledDrift()": (lambda x, t: compile_drift(lambda x, t: -x, 2)(x, t), {"x": (x2, PURE), "t": (0.5, TIME)}),
    "drift": (lambda x, t: ou().drift(x, t), {"x": (x2, PURE), "t": (0.5, TIME)}),
    "DriftProcess.drift": (lambda x, t: drift_process().drift(x, t), {"x": (x2, PURE), "t": (0.5, TIME)}),
    "variance_at": (lambda t: ou().variance_at(t), {"t": (torch.zeros(3), "NaNs, no rows")}),
    "simulate": (lambda x0, **o: ou().simulate(x0, **o), {"x0": (x2, ""), "steps": (3, STEP), **DRAW}),
    "noised": (
        lambda x0, **o: ou().noised(x0, **o),
        {"x0": (x2, ""), "step": (3, STEP), **DRAW, "antithetic": (False, FLAG)},
    ),
    "noised records": (lambda **o: ou().noised(x2, **o), {"records": (2, "None")}),
    "transition": (
        lambda x0, **o: ou().transition(x0, **o),
        {"x0": (x2, ""), "step": (3, STEP), **DRAW, "antithetic": (False, FLAG)},
    ),
    "exact_noised": (lambda x0, **o: ou().exact_noised(x0, **o), {"x0": (x2, ""), "step": (3, STEP), **DRAW}),
    "draw_steps": (lambda n, **o: ou().draw_steps(n, **o), {"n": (3, ""), **DRAW, "records": (2, "None")}),
    "NDSMLoss": (
        NDSMLoss,
        {
            "process": (ou(), ""),
            "estimator": ("path", ""),
            "antithetic": (False, FLAG),
            "control_variate": (None, "None"),
            "weighting": ("variance", "None"),
            "reduction": ("mean", ""),
        },
    ),
    "DSMLoss": (DSMLoss, {"process": (ou(), ""), "weighting": ("variance", "None"), "reduction": ("mean", "")}),
    "NDSMLoss()": (
        lambda score_net, x0, **o: NDSMLoss(ou())(score_net, x0, **o),
        {
            "score_net": (identity, ""),
            "x0": (x2, ""),
            "seed": (0, SEED),
            "step": (3, STEP),
            "first_path": (0, "None 0"),
        },
    ),
    "DSMLoss()": (
        lambda score_net, x0, **o: DSMLoss(ou())(score_net, x0, **o),
        {
            "score_net": (identity, ""),
            "x0": (x2, ""),
            "seed": (0, SEED),
            "step": (3, STEP),
            "first_path": (0, "None 0"),
        },
    ),
    "ResidualScore": (
        ResidualScore,
        {"net": (torch.nn.Identity(), ""), "process": (ou(), ""), "features": (False, FLAG)},
    ),
    "MLP": (MLP, {"dim": (2, ""), "hidden": ((4,), ""), "in_dim": (None, "None"), **NETWORK}),
    "MLP()": (lambda x, t: MLP(2, (4,), embedding_dim=4)(x, t), {"x": (x2, PURE), "t": (torch.zeros(3), "")}),
    "UNet": (
        UNet,
        {
            "channels": (1, ""),
            "size": (8, ""),
            "base": (8, ""),
            "multipliers": ((1,), ""),
            "in_channels": (None, "None"),
            **NETWORK,
        },
    ),
    "TimeEmbedding": (TimeEmbedding, {"dim": (4, ""), "horizon": NETWORK["horizon"]}),
    "TrainConfig": (
        TrainConfig,
        {
            **{name: (5, "") for name in COUNTS},
            "lr": (1e-3, "0.5 2**70"),
            "ema": (0.9, "0 0.5"),
            "seed": (0, "-1 0"),
            "paths": ("fresh", ""),
            "grad_clip": (None, "None 0.5 2**70"),
        },
    ),
    "Trainer": (
        trainer,
        {
            "score_net": (MLP(2, (4,), embedding_dim=4), ""),
            "loss": (NDSMLoss(ou()), ""),
            "data": (torch.zeros(8, 2), ""),
            "config": (TrainConfig(), "None"),
            "optimizer": (None, "None"),
            "directory": (None, "None string"),
            "meta": (None, "None dict"),
        },
    ),
    "Trainer.fit": (lambda progress: trainer().fit(progress), {"progress": (False, FLAG)}),
    "sample": (
        lambda score_net, process, n, **o: sample(score_net, process, n, **o),
        {
            "score_net": (identity, ""),
            "process": (ou(), ""),
            "n": (2, ""),
            "method": ("sde", "None"),
            "batch_size": (None, "None"),
            **DRAW,
            "progress": (False, FLAG),
            "cuda_graph": ("auto", ""),
            "fused": ("auto", ""),
            "dtype": (None, "None"),
        },
    ),
    "log_likelihood": (
        lambda score_net, process, x, **o: log_likelihood(score_net, process, x, **o),
        {"score_net": (identity, ""), "process": (ou(), ""), "x": (x2, ""), "n_probes": (1, ""), "seed": (0, SEED)},
    ),
    "latent.PCA.fit": (
        latent.PCA.fit,
        {"X": (EIGHT, ""), "dim": (1, "None"), "whiten": (False, FLAG)},
    ),
    "latent.Autoencoder.fit": (
        lambda **o: latent.Autoencoder.fit(**{"steps": 1, **o}),
        {
            "X": (EIGHT, ""),
            "dim": (1, ""),
            "hidden": ((4,), ""),
            "kl_weight": (0.0, "0 0.5 2**70"),
            "batch_size": (2, ""),
            "lr": (1e-3, "0.5 2**70"),
            "seed": (0, "-1 0"),
        },
    ),
    "latent.Autoencoder": (
        latent.Autoencoder,
        {"dim": (1, ""), "event_shape": ((2,), ""), "hidden": ((4,), ""), "kl_weight": (0.0, "0 0.5 2**70")},
    ),
    "latent.LatentModel.fit": (
        lambda **o: latent.LatentModel.fit(
            **{"config": TrainConfig(steps=1), "progress": False, "n_init": 1, "hidden": (4,), **o}
        ),
        {
            "X": (EIGHT, ""),
            "encoder": (latent.PCA.fit(EIGHT), ""),
            "n_components": (1, ""),
            "covariance_type": ("spherical", ""),
            "hidden": ((4,), ""),
            "progress": (False, FLAG),
        },
    ),
    "philox_normal": (
        functional.philox_normal,
        {
            "n_paths": (2, ""),
            "dim": (2, ""),
            "step": (0, "0"),
            "stream": (0, "0"),
            **DRAW,
            "dtype": (torch.float32, ""),
            "device": ("cpu", ""),
            **BACKEND,
        },
    ),
    **{
        name: (
            getattr(functional, name),
            {"x0": (x2, ""), "process": (ou(), ""), "steps": (3, steps), **DRAW, **flags, **BACKEND},
        )
        for name, steps, flags in (
            ("simulate", STEP, {}),
            ("simulate_transition", "None", {}),
            ("simulate_target", STEP, {"antithetic": (False, FLAG)}),
        )
    },
    "reverse_step": (
        functional.reverse_step,
        {
            "y": (x2, PURE),
            "score": (x2, PURE),
            "process": (ou(), ""),
            "step": (0, "0"),
            **DRAW,
            "method": ("sde", ""),
            **BACKEND,
        },
    ),
    "mixture_score": (functional.mixture_score, {"x": (x2, PURE), "mixture": (mixture(), ""), **BACKEND}),
    "mixture_log_prob": (functional.mixture_log_prob, {"x": (x2, PURE), "mixture": (mixture(), ""), **BACKEND}),
    "mixture_hvp": (
        functional.mixture_hvp,
        {"x": (x2, PURE), "v": (x2, PURE), "mixture": (mixture(), ""), **BACKEND},
    ),
    "mixture_sample": (
        functional.mixture_sample,
        {"n": (2, ""), "mixture": (mixture(), ""), **DRAW, "dtype": (None, "None"), **BACKEND},
    ),
    "ndsm_loss": (
        functional.ndsm_loss,
        {
            "scores": (x2, PURE),
            "noise": (x2, PURE),
            "std": (torch.ones(3), ""),
            "estimator": ("plain", ""),
            "weight": (None, "None"),
            "reduction": ("mean", ""),
            **BACKEND,
        },
    ),
    "dsm_loss": (
        functional.dsm_loss,
        {
            "score": (x2, PURE),
            "target": (x2, PURE),
            "weight": (None, "None"),
            "reduction": ("mean", ""),
            **BACKEND,
        },
    ),
}
OF_TWO = {("dsm_loss", "score", "no rows"): "target"}  # the message names the other of two that disagree
REFUSED_AS_A_WHOLE = r"(LangevinProcess|OUProcess): q = "  # T and sigma, where the scheme is unstable


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, (_, given) in SOUND.items() for argument in given]
)
@pytest.mark.filterwarnings("ignore")
def test_every_argument_has_a_meaning_or_an_error_that_begins_with_its_name(name: str, argument: str) -> None:
    call, given = SOUND[name]
    values = {key: value for key, (value, _) in given.items()}
    call(**values)
    accepted = []
    for label, bad in BAD.items():
        try:
            call(**{**values, argument: bad})
            accepted.append(label)
        except (ValueError, TypeError) as error:
            named = OF_TWO.get((name, argument, label), argument)
            if re.match(REFUSED_AS_A_WHOLE, str(error)) and argument in ("T", "sigma"):
                accepted.append(label)
                continue
            assert re.match(rf"{named}\b.*: expected ", str(error)), (label, str(error))
            assert len(str(error)) < 300, (label, str(error))
    known = {label for label in BAD if re.search(rf"(^|[ ,]){re.escape(label)}($|[ ,])", given[argument][1])}
    assert set(accepted) == known


class TestDrift:
    """The value of a drift is looked at wherever it is called."""

    @pytest.mark.parametrize(
        ("drift", "error", "message"),
        [
            (lambda x, t: (x, x), TypeError, "expected it to return a tensor like x, found tuple"),
            (lambda x, t: None, TypeError, "expected it to return a tensor like x, found NoneType"),
            (lambda x, t: x[:, :1], ValueError, "expected output of the shape of x, (3, 2), found (3, 1)"),
            (lambda x, t: x.sum(), ValueError, "expected output of the shape of x, (3, 2), found ()"),
            (lambda x, t: x.long(), TypeError, "expected floating point output, found torch.int64"),
            (lambda x, t: x.to(torch.complex64), TypeError, "expected floating point output, found torch.complex64"),
        ],
    )
    @pytest.mark.parametrize("method", ["drift", "simulate", "noised", "transition"])
    def test_bad_output(self, method: str, drift: Any, error: type[Exception], message: str) -> None:
        process = drift_process(drift)
        with pytest.raises(error, match="^" + re.escape(f"drift: {message}")):
            process.drift(x2, 0.5) if method == "drift" else getattr(process, method)(x2, 2)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_a_constant_in_another_dtype_does_not_widen_the_samples(self, dtype: torch.dtype) -> None:
        rates = torch.tensor([1.0, 0.5], dtype=torch.float64)
        process = drift_process(lambda x, t: -rates * x)
        assert process.noised(x2.to(dtype), 2, seed=0).x.dtype == dtype
        assert process.simulate(x2.to(dtype), seed=0).dtype == dtype
        assert process.drift(x2.to(dtype), 0.5).dtype == dtype

    @pytest.mark.parametrize("dim", [None, 2.5, -1, "two", torch.zeros(2), True])
    def test_a_prior_of_no_dimension(self, dim: Any) -> None:
        class Prior:
            def sample(self, n: int, **_: Any) -> Tensor:
                return torch.zeros(n, 2)

        prior = Prior()
        prior.dim = dim  # type: ignore[attr-defined]
        with pytest.raises((ValueError, TypeError), match=r"^prior\.dim: expected an integer"):
            DriftProcess(lambda x, t: -x, prior, T=1.0)
