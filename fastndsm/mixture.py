"""Gaussian mixture reference pi(x) = sum_k w_k N(x; m_k, Sigma_k), fitted to data in an inexpensive preprocessing step.

Covariances have scikit-learn's shapes: [K] spherical, [K, d] diag, [d, d] tied, [K, d, d] full.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import _checks, _classes, _em, functional, selection
from ._state import KeepsDtype
from .reference.components import COVARIANCE_TYPES, MixtureOperands, PrincipalAxes, component_scores
from .reference.far import far_rows, with_far_rows
from .reference.noised import NoisedOperands
from .selection import Selection

if TYPE_CHECKING:
    import sklearn.mixture


class GaussianMixture(KeepsDtype):
    """A Gaussian mixture with its parameters in buffers, on any device.

    Parameters keep the dtype they are given in (a fit is float64), whatever a module around them is cast to; densities
    and scores are computed in the dtype of x.

    Args:
        weights: [K], non-negative, summing to one.
        means: [K, d].
        covariances: [K] spherical, [K, d] diag, [d, d] tied, [K, d, d] full; symmetric positive definite.
        covariance_type: "spherical", "diag", "tied" or "full".
        event_shape: shape of one sample, d values; default (d,). `sample` returns [n, *event_shape].
        ranges: of a class-conditional mixture, the components of each class, int64 [C, 2]: start..stop, one class after
            another. Rows with labels then have the components of their class alone, at weights that sum to one; a
            label that is no class (-1, or C) stands for all components.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what was found.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    ranges: Tensor | None
    _precisions: Tensor
    _log_scale: Tensor
    _factors: Tensor

    def __init__(
        self,
        weights: Any,
        means: Any,
        covariances: Any,
        covariance_type: str = "full",
        *,
        event_shape: Sequence[int] | None = None,
        ranges: Any = None,
    ) -> None:
        super().__init__()
        self.covariance_type = _checks.choice("covariance_type", covariance_type, COVARIANCE_TYPES)
        with torch.inference_mode(False):  # tensors made inside could never be part of a gradient
            means = _checks.parameter("means", means)
            weights = _checks.parameter("weights", weights).to(means)
            covariances = _checks.parameter("covariances", covariances).to(means)
        if means.ndim != 2 or means.numel() == 0:
            raise ValueError(f"means: expected shape [K, d], found {tuple(means.shape)}")
        n_components, dim = means.shape
        _checks.weights("weights", weights, n_components)
        expected = _covariance_shape(covariance_type, n_components, dim)
        _checks.shape("covariances", covariances, expected, f" for {covariance_type!r}")
        self.event_shape = (dim,) if event_shape is None else _checks.integers("event_shape", event_shape)
        if math.prod(self.event_shape) != dim:
            raise ValueError(f"event_shape: expected {dim} values, found {self.event_shape}")
        with torch.inference_mode(False):
            ranges = _classes.checked_ranges(ranges, n_components, means.device)
        self.register_buffer("ranges", ranges)
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("covariances", covariances)
        for name in ("_precisions", "_log_scale", "_factors"):
            self.register_buffer(name, None, persistent=False)
        self._derive()
        self.register_load_state_dict_post_hook(_derive_again)  # type: ignore[no-untyped-call]

    @torch.inference_mode(False)
    def _derive(self) -> None:
        """Compute precisions, log normalisers and Cholesky factors, in float64 and then in the parameters' dtype."""
        weights, covariances = self.weights.double(), self.covariances.double()
        if self.covariance_type in ("spherical", "diag"):
            bad = ~(covariances > 0)
            if bool(bad.any()):
                k = int(bad.reshape(len(covariances), -1).any(1).nonzero()[0])
                raise ValueError(f"covariances: expected positive variances, found {covariances[k]} in component {k}")
            precisions, factors = 1.0 / covariances, covariances.sqrt()
            terms = precisions.log() * (self.dim if self.covariance_type == "spherical" else 1.0)
            log_det = terms if terms.ndim == 1 else terms.sum(1)
        else:
            asymmetry = (covariances - covariances.mT).abs().amax()
            if float(asymmetry) > 1e-4 * float(covariances.abs().amax()):
                raise ValueError(f"covariances: expected symmetric matrices, found asymmetry {float(asymmetry):.3g}")
            factors, info = torch.linalg.cholesky_ex(covariances)
            if bool((info > 0).any()):
                k = int(info.reshape(-1).nonzero()[0])
                raise ValueError(
                    f"covariances: expected positive definite matrices, found component {k} is not; fit with a larger "
                    "reg_covar"
                )
            precisions = torch.cholesky_inverse(factors)
            log_det = -2.0 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_scale = weights.log() + 0.5 * log_det - 0.5 * self.dim * math.log(2.0 * math.pi)
        dtype = self.means.dtype
        self._precisions, self._log_scale, self._factors = (t.to(dtype) for t in (precisions, log_scale, factors))
        self._largest_mean = float(self.means.double().abs().amax())
        if self.ranges is not None and not bool((self.class_weights > 0.0).all()):
            empty = int((self.class_weights <= 0.0).nonzero()[0])
            raise ValueError(f"weights: expected some for every class, found 0 for class {empty}")
        self._forget()

    def _forget(self) -> None:
        """Forget what was kept of earlier parameters."""
        self._cast: dict[torch.dtype, MixtureOperands] = {}
        self._cast_axes: dict[torch.dtype, PrincipalAxes] = {}
        self._cast_noised: dict[torch.dtype, NoisedOperands] = {}
        self._axes: PrincipalAxes | None = None
        self._eigenvalues: tuple[Tensor, Tensor] | None = None
        self._largest: builtins.float | None = None
        self._smallest: builtins.float | None = None
        self._digest: str | None = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> GaussianMixture:
        self._cast, self._cast_axes, self._cast_noised = {}, {}, {}  # values do not change: the rest still holds
        return super()._apply(fn, recurse)

    # A module around the mixture does not change its dtype (see KeepsDtype); asked itself, it changes.

    def to(self, *args: Any, **kwargs: Any) -> GaussianMixture:
        """Move to a device, cast to a dtype, or both, as torch.nn.Module.to does; in place."""
        super().to(*args, **kwargs)
        dtype = torch._C._nn._parse_to(*args, **kwargs)[1]
        return self if dtype is None else self._cast_to(dtype)

    def float(self) -> GaussianMixture:
        """Cast to float32."""
        return self._cast_to(torch.float32)

    def double(self) -> GaussianMixture:
        """Cast to float64."""
        return self._cast_to(torch.float64)

    def half(self) -> GaussianMixture:
        """Cast to float16."""
        return self._cast_to(torch.float16)

    def bfloat16(self) -> GaussianMixture:
        """Cast to bfloat16."""
        return self._cast_to(torch.bfloat16)

    def _cast_to(self, dtype: torch.dtype) -> GaussianMixture:
        with torch.inference_mode(False):
            for name, buffer in self.named_buffers():
                if buffer.is_floating_point():
                    setattr(self, name, buffer.to(dtype))
        self._forget()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cast": {}, "_cast_axes": {}, "_cast_noised": {}}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # shapes alone do not tell tied from diag where K = d
            destination._metadata.setdefault(prefix[:-1], {})["covariance_type"] = self.covariance_type

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        stored = local_metadata.get("covariance_type", self.covariance_type)
        if stored != self.covariance_type:
            raise ValueError(f"state_dict: expected {self.covariance_type!r} covariances, found {stored!r}")
        ranges = state_dict.get(f"{prefix}ranges")
        self.ranges = None if ranges is None else torch.empty_like(ranges, device=self.means.device)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)  # type: ignore[no-untyped-call]

    @property
    def digest(self) -> str:
        """A hash of type and parameters: that of equal mixtures is equal, on every device."""
        if self._digest is None:
            made = hashlib.sha256(self.covariance_type.encode())
            ranges = () if self.ranges is None else (self.ranges,)
            for tensor in (self.weights, self.means, self.covariances, *ranges):
                made.update(tensor.detach().double().cpu().numpy().tobytes())
            self._digest = made.hexdigest()
        return self._digest

    # --- construction ------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        X: Any,
        n_components: int | Sequence[int] | Mapping[int, int],
        covariance_type: str = "spherical",
        reg_covar: builtins.float = 1e-2,
        random_state: int | None = None,
        *,
        eigenvalue_floor: builtins.float | None = None,
        sample_weight: Any = None,
        labels: Any = None,
        **sklearn_options: Any,
    ) -> GaussianMixture:
        """Fit by expectation maximisation in float64, on the device of X, as scikit-learn's GaussianMixture does.

        Args:
            X: data [n, ...], finite, n >= max(2, n_components); the event shape is kept.
            n_components: K. With labels, their sum over classes, shared by the classes' sizes (one each at least), or
                each class's own in a sequence or by class.
            reg_covar: added to the covariances' diagonal, in squared units of the data; 1e-2 suits data of unit scale.
                Warns where it exceeds a tenth of the data's variance.
            random_state, sklearn_options: as scikit-learn's (n_init, tol, max_iter, init_params, means_init, ...).
            eigenvalue_floor: in (0, 1]; the fit's eigenvalues below this fraction of the mean variance are raised to
                it, as by `conditioned`. It takes stiffness away at less cost than a large reg_covar.
            sample_weight: how much each row counts for, [n], not negative; default equally.
            labels: the class of each row, integers [n] from 0, of every class two rows or more. Each class is fitted by
                itself, and its components weigh its share of the rows: the mixture is class-conditional (`ranges`).
                A tied covariance is the mean of the classes'.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as Estimator

        _checks.choice("covariance_type", covariance_type, COVARIANCE_TYPES)
        if labels is not None:
            options = {"covariance_type": covariance_type, "reg_covar": reg_covar, "random_state": random_state}
            fitted = cls._fit_classes(X, labels, n_components, sample_weight, **options, **sklearn_options)
            return fitted if eigenvalue_floor is None else fitted.conditioned(eigenvalue_floor)
        n_components = _checks.count("n_components", n_components)
        points, event_shape = _checks.points("X", X)
        if len(points) < 2:
            raise ValueError(f"X: expected at least 2 samples, found {len(points)}")
        if len(points) < n_components:
            raise ValueError(
                f"n_components: expected at most the number of samples, {len(points)}, found {n_components}"
                f"{_checks.cure('too-many-components')}"
            )
        _checks.non_negative("reg_covar", reg_covar)
        if eigenvalue_floor is not None:
            _checks.fraction("eigenvalue_floor", eigenvalue_floor)
        if sample_weight is not None:
            sample_weight = _checks.parameter("sample_weight", sample_weight)
            _checks.shape("sample_weight", sample_weight, (len(points),))
            if float(sample_weight.min()) < 0.0 or float(sample_weight.max()) == 0.0:
                raise ValueError("sample_weight: expected non-negative values, not all 0, found others")
        spread = float(points.var(axis=0).mean())
        if reg_covar > 0.1 * spread:
            warnings.warn(
                f"reg_covar: expected at most a tenth of the data's mean variance, {0.1 * spread:.3g}, found "
                f"{reg_covar:g}, which widens every component; give a smaller one, or standardise the data"
                f"{_checks.cure('wide-components')}",
                stacklevel=2,
            )
        options = Estimator(
            n_components,
            covariance_type=covariance_type,
            reg_covar=float(reg_covar),
            random_state=random_state,
            **sklearn_options,
        )
        _em.check(options, points.shape[1])
        # About the mean: far from 0, variances would be differences of large numbers.
        centre = torch.from_numpy(points.mean(axis=0))
        if options.means_init is not None:
            options.means_init -= centre
        device = X.device if isinstance(X, Tensor) else torch.device("cpu")
        x = (torch.from_numpy(points) - centre).to(device)
        found = _em.fit(x, options, None if sample_weight is None else sample_weight.to(x))
        if not found.converged and options.max_iter > 0:
            warnings.warn(
                f"max_iter: expected convergence to tol = {options.tol:g}, found none after {options.max_iter} "
                "iterations; give a larger max_iter or tol, or look for degenerate data",
                ConvergenceWarning,
                stacklevel=2,
            )
        weights, means, covariances = found.parameters
        fitted = cls(weights, means + centre.to(device), covariances, covariance_type, event_shape=event_shape)
        return fitted if eigenvalue_floor is None else fitted.conditioned(eigenvalue_floor)

    @classmethod
    def _fit_classes(
        cls, X: Any, labels: Any, n_components: Any, sample_weight: Any, **options: Any
    ) -> GaussianMixture:
        """Fit each class by itself; the options are those of `fit`."""
        if given := sorted({"means_init", "weights_init", "precisions_init"} & options.keys()):
            raise ValueError(f"{given[0]}: expected None with labels, found values")
        points, event_shape = _checks.points("X", X)
        y = _classes.checked_labels(labels, len(points), "cpu").numpy()
        sizes = np.bincount(y)
        if sizes.min() < 2:
            few = int(sizes.argmin())
            raise ValueError(f"labels: expected two samples or more of each class, found {sizes[few]} of class {few}")
        counts = _classes.components_by_class(n_components, sizes.tolist())
        device = X.device if isinstance(X, Tensor) else "cpu"
        each = _checks.parameter("sample_weight", np.ones(len(y)) if sample_weight is None else sample_weight).cpu()
        _checks.shape("sample_weight", each, (len(y),))
        rows = each.numpy()
        parts = []
        for c, count in enumerate(counts):
            of_class = torch.from_numpy(points[y == c]).reshape(-1, *event_shape).to(device)
            weight = None if sample_weight is None else rows[y == c]
            parts.append(cls.fit(of_class, count, sample_weight=weight, **options))
        shares = np.bincount(y, rows) / rows.sum()
        kind = parts[0].covariance_type
        covariances = (
            torch.cat([part.covariances for part in parts])
            if kind != "tied"
            else sum(share * part.covariances for share, part in zip(shares, parts, strict=True))
        )
        return cls(
            torch.cat([share * part.weights for share, part in zip(shares, parts, strict=True)]),
            torch.cat([part.means for part in parts]),
            covariances,
            kind,
            event_shape=event_shape,
            ranges=_classes.consecutive(counts),
        )

    @classmethod
    def select(
        cls,
        X: Any,
        n_components: int | Sequence[int] | None = None,
        covariance_types: str | Sequence[str] = "spherical",
        *,
        by: str = "held-out",
        reg_covar: builtins.float = 1e-2,
        eigenvalue_floor: builtins.float | None = 0.03,
        n_init: int | None = None,
        max_steps: int = 300,
        random_state: int | None = None,
        labels: Any = None,
        **options: Any,
    ) -> Selection[GaussianMixture]:
        """Choose K and covariance type by the likelihood of held-out rows; return the mixture fitted to all rows.

        Taken is the simplest candidate within one standard error of the best, or 0.01 nats a dimension. Likelihood is
        best at 10 to 20 rows a component (MNIST, 32 principal components, 1,000 to 50,000 rows); at 5 and fewer, draws
        repeat training rows.

        Args:
            X: data [n, ...], finite, n >= 4; below 2,000 rows five folds take turns, else at most 10,000 are held out.
            n_components: K to try; default 1 to 1,000, as many as leave ten values of data to a parameter.
            covariance_types: to try; "auto" is all four. Spherical references of many components train best.
            by: "held-out", or "bic" for the Bayesian information criterion of fits to all rows.
            reg_covar, eigenvalue_floor, options: as for `fit`, for every candidate.
            n_init: starts; default 5 for few components, 1 from sixteen on.
            max_steps: the most noising steps that a candidate may ask for (T = 3 lambda_max / sigma^2, q = 0.2).
            random_state: of starts and of the split; with an int the mixture is that of `fit` with the same options.
            labels: as for `fit`; K is shared by the classes, and rows are judged under their labels.
        """
        return selection.select(
            cls.fit,
            X,
            n_components,
            covariance_types,
            by=by,
            reg_covar=reg_covar,
            eigenvalue_floor=eigenvalue_floor,
            n_init=n_init,
            max_steps=max_steps,
            random_state=random_state,
            labels=labels,
            **options,
        )

    @classmethod
    def from_sklearn(
        cls, gm: sklearn.mixture.GaussianMixture, *, event_shape: Sequence[int] | None = None
    ) -> GaussianMixture:
        """Return the mixture of a fitted scikit-learn estimator."""
        if not hasattr(gm, "weights_"):
            raise ValueError("gm: expected a fitted sklearn.mixture.GaussianMixture, found one without weights_")
        weights = np.asarray(gm.weights_, dtype=np.float64)
        return cls(weights / weights.sum(), gm.means_, gm.covariances_, gm.covariance_type, event_shape=event_shape)

    @classmethod
    def standard_normal(cls, d: int) -> GaussianMixture:
        """Return N(0, I) in d dimensions, the stationary law of the Ornstein-Uhlenbeck process."""
        _checks.count("d", d)
        return cls([1.0], np.zeros((1, d)), [1.0], "spherical")

    @classmethod
    def from_points(cls, X: Any, bandwidth: builtins.float) -> GaussianMixture:
        """Make a kernel density estimate: a spherical component of deviation `bandwidth` at each row of X [n, ...]."""
        points, event_shape = _checks.points("X", X)
        n = len(points)
        variances = np.full(n, _checks.positive("bandwidth", bandwidth) ** 2)
        return cls(np.full(n, 1.0 / n), points, variances, "spherical", event_shape=event_shape)

    def conditioned(self, floor: builtins.float) -> GaussianMixture:
        """Return the mixture with eigenvalues of its covariances below floor x mean variance raised to it.

        The mean variance is that of the components, sum_k w_k trace(Sigma_k) / d; eigenvalues are the variances
        themselves if spherical or diag. Weights, means and eigenvectors stay, and so do covariances with no eigenvalue
        below. The smallest eigenvalue sets the steps of a LangevinProcess, so that this is the cure for stiffness.

        Args:
            floor: in (0, 1], a fraction of the mean variance.
        """
        least = _checks.fraction("floor", floor) * self.mean_variance
        covariances = self.covariances.double()
        if self.covariance_type in ("spherical", "diag"):
            raised = covariances.clamp(min=least)
        else:
            eigenvalues, axes = torch.linalg.eigh(covariances)
            missing = (least - eigenvalues).clamp(min=0.0)
            added = (axes * missing[..., None, :]) @ axes.mT
            raised = covariances + 0.5 * (added + added.mT)
        return GaussianMixture(
            self.weights,
            self.means,
            raised.to(self.covariances.dtype),
            self.covariance_type,
            event_shape=self.event_shape,
            ranges=self.ranges,
        )

    def noised(self, scale: builtins.float, variance: builtins.float) -> GaussianMixture:
        """Return the law of scale x + sqrt(variance) n for x of this mixture and n of N(0, I): a mixture again.

        Means become scale m_k, covariances scale^2 Sigma_k + variance I; weights and covariance type stay.
        """
        scale, variance = _checks.positive("scale", scale), _checks.non_negative("variance", variance)
        with torch.inference_mode(False):
            added = self.covariances.new_tensor(variance)
            if self.covariance_type in ("tied", "full"):
                added = added * torch.eye(self.dim, dtype=added.dtype, device=added.device)
            means, covariances = scale * self.means, scale**2 * self.covariances + added
            kind, shape = self.covariance_type, self.event_shape
            return GaussianMixture(self.weights, means, covariances, kind, event_shape=shape)

    def symmetrized(self, maps: Sequence[Tensor | Callable[[Tensor], Tensor]]) -> GaussianMixture:
        """Return the average of this mixture and its images under affine maps: the identity and each of `maps`.

        Args:
            maps: matrices [d, d], or callables on points [n, *event_shape] (a flip, a rotation); each must be affine.

        Raises:
            ValueError: if an image has no covariance of this covariance_type (a rotation of unequal diag variances).
        """
        images = [(self.means.double(), self.covariances.double())]
        for index, given in enumerate(maps):
            matrix, offset = self._affine(given, f"maps[{index}]")
            identity = torch.eye(self.dim, dtype=torch.float64, device=matrix.device)
            if torch.allclose(matrix, identity) and torch.allclose(offset, torch.zeros_like(offset)):
                continue
            images.append((self.means.double() @ matrix.T + offset, self._image(matrix, f"maps[{index}]")))
        means = torch.cat([m for m, _ in images])
        if self.covariance_type == "tied":
            if not all(torch.allclose(c, images[0][1], rtol=1e-6, atol=1e-12) for _, c in images):
                raise ValueError(
                    "maps: expected maps that keep the tied covariance, found one that changes it; use 'full'"
                )
            covariances = images[0][1]
        else:
            covariances = torch.cat([c for _, c in images])
        weights = self.weights.double().repeat(len(images)) / len(images)
        ranges = self.ranges
        if ranges is not None:  # the images of a class's components are of the class
            order = _classes.of_component(ranges).repeat(len(images)).argsort(stable=True)
            weights, means, ranges = weights[order], means[order], ranges * len(images)
            covariances = covariances if self.covariance_type == "tied" else covariances[order]
        dtype = self.means.dtype
        return GaussianMixture(
            weights.to(dtype),
            means.to(dtype),
            covariances.to(dtype),
            self.covariance_type,
            event_shape=self.event_shape,
            ranges=ranges,
        )

    def _affine(self, given: Tensor | Callable[[Tensor], Tensor], name: str) -> tuple[Tensor, Tensor]:
        """Return A and b of the map x -> A x + b."""
        device = self.means.device
        if isinstance(given, Tensor):
            _checks.shape(name, given, (self.dim, self.dim))
            return given.to(device, torch.float64), torch.zeros(self.dim, dtype=torch.float64, device=device)
        eye = torch.eye(self.dim, dtype=torch.float64, device=device)
        if not callable(given):
            raise TypeError(f"{name}: expected a matrix or a callable on points, found {type(given).__name__}")
        probe = torch.cat([torch.zeros(1, self.dim, dtype=torch.float64, device=device), eye, self.means.double()])
        points = probe.reshape(-1, *self.event_shape)
        image = _checks.like(f"{name}(points)", given(points), "points", points).reshape(probe.shape)
        offset, matrix = image[0], (image[1 : self.dim + 1] - image[0]).T
        if not torch.allclose(self.means.double() @ matrix.T + offset, image[self.dim + 1 :], rtol=1e-6, atol=1e-8):
            raise ValueError(f"{name}: expected an affine map, found one that is not")
        return matrix, offset

    def _image(self, matrix: Tensor, name: str) -> Tensor:
        """Return Sigma -> A Sigma A^T in this covariance type."""
        covariances = self.covariances.double()
        gram = matrix @ matrix.T
        if self.covariance_type in ("tied", "full"):
            image = matrix @ covariances @ matrix.T
            image = 0.5 * (image + image.mT)
            fits = not bool(torch.linalg.cholesky_ex(image)[1].any())
        elif self.covariance_type == "spherical":
            scale = gram.diagonal().mean()
            eye = torch.eye(self.dim, dtype=gram.dtype, device=gram.device)
            fits = float(scale) > 0.0 and torch.allclose(gram / scale, eye, atol=1e-6)
            image = covariances * scale
        else:
            image = covariances @ matrix.square().T
            off = torch.einsum("ij,kj,lj->kil", matrix, covariances, matrix) - torch.diag_embed(image)
            fits = float(image.amin()) > 0.0 and float(off.abs().amax()) <= 1e-6 * float(image.amax())
        if not fits:
            raise ValueError(
                f"{name}: expected an invertible map that keeps {self.covariance_type!r} covariances; use 'full'"
            )
        return image

    def to_sklearn(self) -> sklearn.mixture.GaussianMixture:
        """Return a fitted scikit-learn estimator with these parameters, on the CPU in float64."""
        from sklearn.mixture import GaussianMixture as Estimator

        gm = Estimator(self.n_components, covariance_type=self.covariance_type)
        gm.weights_ = self.weights.double().cpu().numpy()
        gm.means_ = self.means.double().cpu().numpy()
        gm.covariances_ = self.covariances.double().cpu().numpy()
        precisions = self._precisions.double().cpu()
        if self.covariance_type in ("spherical", "diag"):
            gm.precisions_cholesky_ = precisions.sqrt().numpy()
        else:  # scikit-learn keeps the upper factor U with U U^T = P
            eye = torch.eye(self.dim, dtype=torch.float64, device="cpu").expand_as(precisions)
            factors = self._factors.double().cpu()
            gm.precisions_cholesky_ = torch.linalg.solve_triangular(factors, eye, upper=False).mT.contiguous().numpy()
        gm.precisions_ = precisions.numpy()
        gm.n_features_in_ = self.dim
        gm.converged_, gm.n_iter_, gm.lower_bound_ = True, 0, -math.inf
        return gm

    # --- what it is --------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Dimension d, the number of values in a sample."""
        return int(self.means.shape[1])

    @property
    def n_components(self) -> int:
        """K, the number of components."""
        return int(self.means.shape[0])

    @property
    def n_classes(self) -> int:
        """C, the number of classes that components belong to; 0 of a mixture without."""
        return 0 if self.ranges is None else len(self.ranges)

    @property
    def class_weights(self) -> Tensor:
        """The weight of each class, the sum of its components', float64 [C]."""
        weights = self.weights.double()
        if self.ranges is None:
            return weights[:0]
        return weights.new_zeros(self.n_classes).index_add_(0, _classes.of_component(self.ranges), weights)

    def of_class(self, label: int) -> GaussianMixture:
        """Return the mixture of one class's components, at weights that sum to one."""
        if self.ranges is None:
            raise ValueError("label: expected a mixture with classes, found one without")
        if not 0 <= _checks.index("label", label) < self.n_classes:
            raise ValueError(f"label: expected a class in 0..{self.n_classes - 1}, found {label}")
        start, stop = self.ranges[label].tolist()
        weights = self.weights[start:stop].double()
        return GaussianMixture(
            (weights / weights.sum()).to(self.weights.dtype),
            self.means[start:stop],
            self.covariances if self.covariance_type == "tied" else self.covariances[start:stop],
            self.covariance_type,
            event_shape=self.event_shape,
        )

    def ranges_of(self, labels: Any, n: int) -> Tensor:
        """Return the components start..stop of each of n labels, int64 [n, 2]; all of them where one is no class."""
        ranges = self._ranges()
        return _classes.by_label(ranges, ranges.new_tensor([[0, self.n_components]]), self._labels(labels, n))

    def class_log_weights(self, labels: Any, n: int) -> Tensor:
        """Return the log of the weight of each of n labels' classes, float64 [n]; 0 where one is no class."""
        weights = self.class_weights.log()
        return _classes.by_label(weights, weights.new_zeros(1), self._labels(labels, n))

    def _ranges(self) -> Tensor:
        if self.ranges is None:
            raise ValueError("labels: expected None for a mixture without classes, found some")
        return self.ranges

    def _labels(self, labels: Any, n: int) -> Tensor:
        """Check labels [n], integers, of a mixture with classes."""
        self._ranges()
        _checks.tensor("labels", labels, "integers [B]", _classes.INTEGERS)
        if labels.shape != (n,):
            raise ValueError(f"labels: expected shape ({n},), found {tuple(labels.shape)}")
        _checks.same_device("labels", labels, "mixture", self.means.device)
        return labels  # type: ignore[no-any-return]

    def covariance_eigenvalues(self) -> tuple[Tensor, Tensor]:
        """Return the smallest and largest eigenvalue of each covariance, float64 [K] ([1] if tied)."""
        if self._eigenvalues is not None:
            return self._eigenvalues
        with torch.inference_mode(False):
            made = self._extreme_eigenvalues()
        if type(made[0]) is Tensor:
            self._eigenvalues = made
        return made

    def _extreme_eigenvalues(self) -> tuple[Tensor, Tensor]:
        covariances = self.covariances.detach().double().cpu()
        if self.covariance_type == "spherical":
            return covariances, covariances
        if self.covariance_type == "diag":
            return covariances.amin(1), covariances.amax(1)
        eigenvalues = torch.linalg.eigvalsh(covariances.reshape(-1, self.dim, self.dim))
        return eigenvalues[:, 0], eigenvalues[:, -1]

    @property
    def largest_variance(self) -> builtins.float:
        """lambda_max, the largest eigenvalue of any covariance."""
        if self._largest is None:
            self._largest = float(self.covariance_eigenvalues()[1].max())
        return self._largest

    @property
    def smallest_variance(self) -> builtins.float:
        """lambda_min, the smallest eigenvalue of any covariance."""
        if self._smallest is None:
            self._smallest = float(self.covariance_eigenvalues()[0].min())
        return self._smallest

    @property
    def mean_variance(self) -> builtins.float:
        """The mean variance of a component's coordinate, sum_k w_k trace(Sigma_k) / d."""
        covariances = self.covariances.detach().double()
        if self.covariance_type in ("tied", "full"):
            covariances = covariances.diagonal(dim1=-2, dim2=-1)
        means = covariances if self.covariance_type == "spherical" else covariances.mean(-1)
        return float(means if self.covariance_type == "tied" else (self.weights.double() * means).sum())

    @property
    def largest_mean(self) -> builtins.float:
        """The largest absolute value of a mean's coordinates."""
        return self._largest_mean

    def operands(self, dtype: torch.dtype) -> MixtureOperands:
        """Return what ops take, in the compute dtype of data of `dtype` (kept, as there may be 60,000 components)."""
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        if compute in self._cast:
            return self._cast[compute]
        inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
        with torch.inference_mode(False) if inference else contextlib.nullcontext():
            means, precisions, log_scale = (
                t.to(compute).contiguous() for t in (self.means, self._precisions, self._log_scale)
            )
        made = MixtureOperands(means, precisions, log_scale, self.covariance_type)
        if all(type(t) is Tensor for t in made[:3]):  # of fake tensors: what a mode made ends with it
            self._cast[compute] = made
        return made

    def principal_axes(self, dtype: torch.dtype) -> PrincipalAxes | None:
        """Return eigenvectors and eigenvalues of the precisions, as `operands` returns the mixture; None for spherical
        and diag covariances, whose axes are the data's own."""
        if self.covariance_type in ("spherical", "diag"):
            return None
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        if compute in self._cast_axes:
            return self._cast_axes[compute]
        inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
        with torch.inference_mode(False) if inference else contextlib.nullcontext():
            if self._axes is None:
                variances, rotations = torch.linalg.eigh(self.covariances.detach().double().cpu())
                axes = PrincipalAxes(rotations, 1.0 / variances)
            else:
                axes = self._axes
            made = PrincipalAxes(*(t.to(self.means.device, compute).contiguous() for t in axes))
        if all(type(t) is Tensor for t in (*axes, *made)):
            self._axes, self._cast_axes[compute] = axes, made
        return made

    def operands_and_axes(self, dtype: torch.dtype) -> tuple[MixtureOperands, PrincipalAxes | None]:
        """Return `operands` and `principal_axes`: what the path estimator's target takes."""
        return self.operands(dtype), self.principal_axes(dtype)

    def noised_operands(self, dtype: torch.dtype) -> NoisedOperands:
        """Return the mixture by its covariances' axes, as `operands` returns it: what `noised_score` takes."""
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        if compute in self._cast_noised:
            return self._cast_noised[compute]
        axes = self.principal_axes(torch.float64)
        inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
        with torch.inference_mode(False) if inference else contextlib.nullcontext():
            means, variances, log_weights = self.means.double(), self.covariances.double(), self.weights.double().log()
            if axes is not None:
                variances = 1.0 / axes.rates
                means = means @ axes.rotations if self.covariance_type == "tied" else means
            means, variances, log_weights = (t.to(compute).contiguous() for t in (means, variances, log_weights))
            rotations = None if axes is None else axes.rotations.to(compute).contiguous()
        made = NoisedOperands(means, variances, log_weights, rotations, self.covariance_type)
        if type(made.means) is Tensor:
            self._cast_noised[compute] = made
        return made

    def widened_operands(self, dtype: torch.dtype, variance: Tensor) -> MixtureOperands:
        """Return `operands` of the mixture with covariances Sigma_k + variance I, variance 0-d, unseen."""
        own = self.noised_operands(torch.float64)
        wide = own.variances + variance.double()
        log_det = wide.log()
        if self.covariance_type == "spherical":
            log_det = self.dim * log_det
        else:
            log_det = log_det.sum(-1)
        log_scale = own.log_weights - 0.5 * (log_det + self.dim * math.log(2.0 * math.pi))
        precisions = 1.0 / wide
        if own.rotations is not None:
            precisions = (own.rotations * precisions[..., None, :]) @ own.rotations.mT
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        return MixtureOperands(
            self.operands(dtype).means, precisions.to(compute), log_scale.to(compute), self.covariance_type
        )

    def sampling_operands(self) -> tuple[Tensor, Tensor, Tensor, str]:
        """Return cumulative weights (float64), means, Cholesky factors or standard deviations, and covariance type."""
        cumulative = self.weights.double().cumsum(0)
        return cumulative / cumulative[-1], self.means, self._factors, self.covariance_type

    def extra_repr(self) -> str:
        classes = "" if self.ranges is None else f", n_classes={self.n_classes}"
        return f"n_components={self.n_components}, dim={self.dim}, covariance_type={self.covariance_type!r}{classes}"

    # --- what it computes --------------------------------------------------------------------------------------

    # labels [B], of a mixture with classes: each row has the components of its class alone, whose weights sum to one.

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log pi(x) in nats, [B, ...] -> [B], under labels [B] if there are any."""
        return functional.mixture_log_prob(x, self, labels=labels)

    def score(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return grad log pi(x), [B, ...] -> like x, under labels [B] if there are any."""
        return functional.mixture_score(x, self, labels=labels)

    def hvp(self, x: Tensor, v: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the Hessian of log pi at x times v, [B, ...] -> like x, under labels [B] if there are any."""
        return functional.mixture_hvp(x, v, self, labels=labels)

    def responsibilities(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return r_k(x), [B, ...] -> [B, K], under labels [B] if there are any; B x K values are stored."""
        flat = _checks.batch("x", x, self.dim)
        mixture = self.operands(x.dtype)
        _checks.same_device("x", x, "mixture", mixture.means.device)
        flat = flat.to(mixture.means.dtype)
        ranges = None if labels is None else self.ranges_of(labels, len(flat))
        size = max(1, (1 << 22) // max(1, flat.numel()))
        blocks = [(k, mixture.block(k, min(k + size, self.n_components))) for k in range(0, self.n_components, size)]

        def weights(x: Tensor) -> Tensor:
            return torch.cat([component_scores(x, block, ranges, k)[0] for k, block in blocks], dim=1).softmax(1)

        made = weights(flat)
        rows = far_rows(made.amax(1))
        return with_far_rows(made, rows, flat, mixture, lambda far, _: far.weights, weights, ranges).to(x.dtype)

    def sample(
        self, n: int, seed: int | Tensor | None = None, *, first_path: int = 0, labels: Tensor | None = None
    ) -> Tensor:
        """Draw n exact samples [n, d] ([n, *event_shape]), of labels [n] if there are any.

        Draw i depends on seed, first_path + i and its label alone.
        """
        return functional.mixture_sample(n, self, seed=seed, first_path=first_path, labels=labels)


def _derive_again(mixture: GaussianMixture, _: Any) -> None:
    mixture._derive()
    _ = mixture.largest_variance, mixture.smallest_variance  # as constants of what may be compiled


def _covariance_shape(covariance_type: str, n_components: int, dim: int) -> tuple[int, ...]:
    return {
        "spherical": (n_components,),
        "diag": (n_components, dim),
        "tied": (dim, dim),
        "full": (n_components, dim, dim),
    }[covariance_type]
