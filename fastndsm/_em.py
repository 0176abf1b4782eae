"""Expectation maximisation for Gaussian mixtures, with nothing of size n x K in memory.

A component's log-density is linear in features of x, log w_k N(x; m_k, Sigma_k) = theta_k . phi(x) + c(x):

    spherical  phi = (x, |x|^2, 1)       diag  phi = (x, x_j^2, 1)       full  phi = (x, x_i x_j with i <= j, 1)
    tied       phi = (x, 1)              with c(x) = -1/2 x^T P x, of which responsibilities know nothing

An E-step is a product with theta, and an M-step takes sum_i r_ik phi(x_i): both in chunks of rows. The rules are those
of scikit-learn: from the same start, the same parameters after as many iterations. Data are to be centred, since
variances are differences E x^2 - (E x)^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks

__all__ = ["Fit", "Parameters", "check", "fit", "random_state"]

INITS = ("kmeans", "k-means++", "random", "random_from_data")
_ENTRIES = 1 << 19  # responsibilities, or features, that are held at a time: what a cache holds
_FEWEST = 64  # rows of a chunk, as every chunk reads all of theta
_EMPTY = 10.0 * torch.finfo(torch.float64).eps  # scikit-learn's, so that no component is of weight 0


class Parameters(NamedTuple):
    """Weights [K], means [K, d] and covariances of scikit-learn's shapes, float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


@dataclass(frozen=True)
class Fit:
    """A fit and how it went.

    Attributes:
        lower_bounds: the rows' mean log-density before each M-step, in nats.
        converged: whether the last of them gained less than the tolerance.
    """

    parameters: Parameters
    lower_bounds: tuple[float, ...]
    converged: bool


def random_state(value: Any) -> Any:
    """Check what scikit-learn takes for a random state; return the numpy.random.RandomState of it."""
    from sklearn.utils import check_random_state

    try:
        return check_random_state(value)
    except ValueError as error:
        expected = "an int in [0, 2^32), a numpy.random.RandomState or None"
        raise ValueError(f"random_state: expected {expected}, found {_checks.shown(value)}") from error


def check(options: Any, dim: int) -> None:
    """Check the options of scikit-learn's estimator for data of `dim` values; make tensors of given starts.

    Raises:
        ValueError, TypeError: naming the option, what was expected and what was found.
    """
    k, kind = options.n_components, options.covariance_type
    _checks.non_negative("tol", options.tol)
    _checks.count("max_iter", options.max_iter, 0)
    _checks.count("n_init", options.n_init)
    _checks.choice("init_params", options.init_params, INITS)
    random_state(options.random_state)
    precisions = {"spherical": (k,), "diag": (k, dim), "tied": (dim, dim), "full": (k, dim, dim)}[kind]
    for name, shape in (("weights_init", (k,)), ("means_init", (k, dim)), ("precisions_init", precisions)):
        if getattr(options, name) is not None:
            made = _checks.parameter(name, getattr(options, name)).double().cpu()
            _checks.shape(name, made, shape)
            setattr(options, name, made)
    if options.weights_init is not None:
        _checks.weights("weights_init", options.weights_init, k)
    if (given := options.precisions_init) is not None:
        matrices = kind in ("tied", "full")
        if matrices and not torch.allclose(given, given.mT):
            raise ValueError("precisions_init: expected symmetric matrices, found others")
        bad = torch.linalg.cholesky_ex(given)[1] > 0 if matrices else ~(given > 0.0)
        if bool(bad.any()):
            raise ValueError("precisions_init: expected positive values or positive definite matrices, found others")


def fit(x: Tensor, options: Any, sample_weight: Tensor | None = None) -> Fit:
    """Fit a mixture to centred x [n, d], float64, on its device; return the most likely fit of options.n_init starts.

    Args:
        options: scikit-learn's estimator, for its options alone; see `check`.
        sample_weight: of the rows [n]; None is 1.

    Raises:
        ValueError: if a covariance is not positive definite.
    """
    generator = random_state(options.random_state)
    model = _Model(x, options.covariance_type, options.n_components, options.reg_covar, sample_weight)
    best: Fit | None = None
    for start in range(options.n_init):
        made = _iterate(model, _start(model, options, generator), options.max_iter, options.tol)
        if best is None or made.lower_bounds[-1:] > best.lower_bounds[-1:]:
            best = made
        if options.verbose:
            density = made.lower_bounds[-1] if made.lower_bounds else math.nan
            print(f"start {start}: {len(made.lower_bounds)} iterations, mean log-density {density:.6g}")
    assert best is not None
    return best


def _iterate(model: _Model, parameters: Parameters, max_iter: int, tol: float) -> Fit:
    bounds: list[float] = []
    converged = False
    while len(bounds) < max_iter and not converged:
        bound, sums = model.e_step(parameters)
        parameters = model.m_step(sums)
        converged = bool(bounds) and abs(bound - bounds[-1]) < tol
        bounds.append(bound)
    return Fit(parameters, tuple(bounds), converged)


class _Model:
    """The rows and the family of mixtures."""

    def __init__(
        self, x: Tensor, covariance_type: str, n_components: int, reg_covar: float, sample_weight: Tensor | None
    ) -> None:
        self.x, self.covariance_type, self.n_components, self.reg_covar = x, covariance_type, n_components, reg_covar
        self.n, self.dim = x.shape
        self.sample_weight = sample_weight if sample_weight is None else sample_weight * (self.n / sample_weight.sum())
        if covariance_type == "full":
            self.upper = torch.triu_indices(self.dim, self.dim, device=x.device)
        self.n_features = self.features(x[:1]).shape[1]
        if covariance_type == "tied":
            weighed = x if self.sample_weight is None else x * self.sample_weight[:, None]
            self.second_moment = x.T @ weighed / self.n

    def chunks(self) -> Iterator[slice]:
        """Yield slices of rows, few enough for their features and responsibilities to be held."""
        size = max(_FEWEST, _ENTRIES // max(self.n_components, self.n_features))
        return (slice(first, first + size) for first in range(0, self.n, size))

    def features(self, x: Tensor) -> Tensor:
        """Return phi(x) [n, F]."""
        parts = [x]
        if self.covariance_type == "spherical":
            parts.append(x.square().sum(1, keepdim=True))
        elif self.covariance_type == "diag":
            parts.append(x.square())
        elif self.covariance_type == "full":
            parts.append(x[:, self.upper[0]] * x[:, self.upper[1]])
        return torch.cat([*parts, x.new_ones(len(x), 1)], 1)

    def weighed(self, rows: slice) -> Tensor:
        """Return the features of rows times their weights."""
        features = self.features(self.x[rows])
        return features if self.sample_weight is None else features * self.sample_weight[rows, None]

    def theta(self, parameters: Parameters) -> Tensor:
        """Return the coefficients [F, K] of the log-densities."""
        means, covariances = parameters.means, parameters.covariances
        if self.covariance_type in ("spherical", "diag"):
            _check_definite(~(covariances > 0.0).reshape(len(covariances), -1).all(1))
            precisions = 1.0 / covariances.reshape(len(covariances), -1)
            linear = means * precisions
            log_det = precisions.log().sum(1) * (self.dim if self.covariance_type == "spherical" else 1.0)
            quadratic = [-0.5 * precisions]
        else:
            factors, info = torch.linalg.cholesky_ex(covariances)
            _check_definite(info.reshape(-1) > 0)
            precisions = torch.cholesky_inverse(factors)
            linear = (precisions @ means[..., None]).squeeze(-1)
            log_det = -2.0 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            quadratic = []
            if self.covariance_type == "full":
                i, j = self.upper
                quadratic = [precisions[:, i, j] * torch.where(i == j, -0.5, -1.0)]
        constant = parameters.weights.log() + 0.5 * (
            log_det - (linear * means).sum(1) - self.dim * math.log(2 * math.pi)
        )
        return torch.cat([linear, *quadratic, constant[:, None]], 1).T.contiguous()

    def e_step(self, parameters: Parameters) -> tuple[float, Tensor]:
        """Return the mean log-density in nats and the sums [K, F] of responsibility times features."""
        theta = self.theta(parameters)
        sums, bound, held = torch.zeros_like(theta), theta.new_zeros(()), theta.new_empty(0)
        for rows in self.chunks():
            features = self.features(self.x[rows])
            if held.shape != (len(features), self.n_components):  # made once, as fresh pages are slow
                held = theta.new_empty(len(features), self.n_components)
            responsibilities = torch.mm(features, theta, out=held)
            largest = responsibilities.amax(1, keepdim=True)
            total = responsibilities.sub_(largest).exp_().sum(1, keepdim=True)
            norm, scale = largest + total.log(), 1.0 / total
            if self.sample_weight is not None:
                norm, scale = (t * self.sample_weight[rows, None] for t in (norm, scale))
            bound += norm.sum()
            sums.addmm_((features * scale).T, responsibilities)
        bound /= self.n
        if self.covariance_type == "tied":
            bound -= 0.5 * torch.linalg.solve(parameters.covariances, self.second_moment).trace()
        return float(bound), sums.T

    def m_step(self, sums: Tensor) -> Parameters:
        """Return the parameters of sums [K, F]."""
        counts = sums[:, -1] + _EMPTY
        means = sums[:, : self.dim] / counts[:, None]
        second = sums[:, self.dim : -1]
        if self.covariance_type == "spherical":
            covariances = (second[:, 0] / counts - means.square().sum(1)) / self.dim + self.reg_covar
        elif self.covariance_type == "diag":
            covariances = second / counts[:, None] - means.square() + self.reg_covar
        else:
            if self.covariance_type == "tied":
                covariances = (self.second_moment * self.n - (counts * means.T) @ means) / counts.sum()
            else:
                i, j = self.upper
                covariances = means.new_empty(self.n_components, self.dim, self.dim)
                covariances[:, i, j] = second / counts[:, None] - means[:, i] * means[:, j]
                covariances[:, j, i] = covariances[:, i, j]
            covariances.diagonal(dim1=-2, dim2=-1).add_(self.reg_covar)
        return Parameters(counts / counts.sum(), means, covariances)


def _check_definite(bad: Tensor) -> None:
    if bool(bad.any()):
        raise ValueError(
            f"covariances: expected positive definite matrices, found component {int(bad.nonzero()[0])} is not, as of "
            "rows in a plane or too few; fit with a larger reg_covar or fewer components"
        )


def _start(model: _Model, options: Any, generator: Any) -> Parameters:
    """Return the parameters that iterations start from: what options give of them, the rest by their method."""
    covariances = options.precisions_init
    if covariances is not None:
        matrices = model.covariance_type in ("tied", "full")
        covariances = torch.linalg.inv(covariances) if matrices else 1.0 / covariances
    given = (options.weights_init, options.means_init, covariances)
    found: Any = given
    if any(value is None for value in given):
        found = model.m_step(_start_sums(model, options.init_params, generator))
    return Parameters(*(theirs if own is None else own.to(model.x) for own, theirs in zip(given, found, strict=True)))


def _start_sums(model: _Model, method: str, generator: Any) -> Tensor:
    """Return the sums [K, F] of the responsibilities by which a method starts, drawn as scikit-learn draws them."""
    from sklearn import cluster

    x, k, weights = model.x, model.n_components, model.sample_weight
    rows = x.cpu().numpy()
    row_weights = None if weights is None else weights.cpu().numpy()
    if method in ("k-means++", "random_from_data"):
        if method == "k-means++":
            _, chosen = cluster.kmeans_plusplus(rows, k, sample_weight=row_weights, random_state=generator)
        else:
            chosen = generator.choice(model.n, size=k, replace=False)
        chosen = torch.as_tensor(chosen, device=x.device)
        sums = model.features(x[chosen])
        return sums if weights is None else sums * weights[chosen, None]
    sums = x.new_zeros(k, model.n_features)
    if method == "kmeans":
        means = cluster.KMeans(k, n_init=1, random_state=generator).fit(rows, sample_weight=row_weights)
        labels = torch.as_tensor(means.labels_, dtype=torch.int64, device=x.device)
    for chunk in model.chunks():
        features = model.weighed(chunk)
        if method == "kmeans":
            sums.index_add_(0, labels[chunk], features)
        else:
            drawn = torch.as_tensor(generator.uniform(size=(len(features), k)), device=x.device)
            sums += (drawn / drawn.sum(1, keepdim=True)).T @ features
    return sums
