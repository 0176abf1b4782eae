"""Steps that are too large: a warning or an error that names step, component and what to change; the advice helps."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers import generator, on_one_backend, random_mixture  # noqa: F401

from fastndsm import GaussianMixture, LangevinProcess, OUProcess

UNEQUAL = [0.5, 0.01, 1.0]  # variances: component 1 is the stiff one


def stiff(**options: Any) -> LangevinProcess:
    means = torch.randn(3, 2, generator=generator(0), dtype=torch.float64)
    m = GaussianMixture([0.3, 0.3, 0.4], means, UNEQUAL, "spherical")
    return LangevinProcess(m, **options)


def advised_steps(message: str) -> int:
    (n,) = re.findall(r"n_steps=(\d+)", message)
    return int(n)


UNSTABLE = [
    # options, q, step and component named
    pytest.param({"T": 1.0, "n_steps": 40}, "1.25", 0, id="uniform"),
    pytest.param({"T": 1.0, "n_steps": 40, "grid": "quadratic"}, "2.47", 39, id="quadratic"),
    pytest.param({"T": 1.0, "n_steps": 40, "sigma": lambda t: 2.0 - t}, "5", 0, id="falling sigma"),
    pytest.param({"T": 1.0, "n_steps": 40, "sigma": lambda t: 0.5 + t}, "2.72", 39, id="rising sigma"),
]


@pytest.mark.parametrize(("options", "q", "step"), UNSTABLE)
def test_unstable_steps_are_refused_and_the_advice_helps(options: dict[str, Any], q: str, step: int) -> None:
    with pytest.raises(ValueError) as error:
        stiff(**options)
    message = str(error.value)
    assert message.startswith(
        f"LangevinProcess: q = a_n lambda_max(P_k) = {q} at step {step}, component 1; use n_steps="
    )
    assert "a smaller T or sigma, or a reference fitted with a larger reg_covar" in message
    assert "expected q < 1" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stiff(**{**options, "n_steps": advised_steps(message)})
    # and it is not far from the least that would do
    with pytest.warns(UserWarning, match="stationary variance"):
        stiff(**{**options, "n_steps": advised_steps(message) * 4 // 5})


def test_large_steps_warn_where_the_process_is_built() -> None:
    with pytest.warns(UserWarning) as record:
        p = stiff(T=1.0, n_steps=125)
    (warning,) = record
    message = str(warning.message)
    assert message.startswith("LangevinProcess: q = a_n lambda_max(P_k) = 0.4 at step 0, component 1; use ")
    assert "n_steps=253, a smaller T or sigma" in message
    assert message.endswith(
        "(q above 0.2: the stationary variance is 25% too wide) (docs/troubleshooting.md#large-steps)"
    )
    assert p.n_steps == 125
    with pytest.warns(UserWarning) as record:
        OUProcess(2, T=1.0, n_steps=2)
    assert record[0].filename == __file__ and str(record[0].message).startswith("OUProcess: q = ")
    with pytest.warns(UserWarning) as record:
        LangevinProcess(GaussianMixture.standard_normal(2), T=1.0, n_steps=2)
    assert record[0].filename == __file__


@pytest.mark.parametrize("covariance_type", ["diag", "tied", "full"])
def test_the_narrowest_direction_counts(covariance_type: str) -> None:
    m = random_mixture(covariance_type, 3, 2, ratio=100.0)
    smallest = m.covariance_eigenvalues()[0]
    T = 0.8 * 2 * float(smallest.min())
    with pytest.raises(ValueError, match=rf"= 1\.6 at step 0, component {int(smallest.argmin())}; use n_steps=9,"):
        LangevinProcess(m, T=2 * T, n_steps=1)
    with pytest.warns(UserWarning, match=r"= 0\.8 at step 0"):
        LangevinProcess(m, T=T, n_steps=1)


@pytest.mark.parametrize("covariance_type", ["spherical", "diag", "tied", "full"])
@pytest.mark.parametrize("grid", ["uniform", "quadratic", "times"])
def test_the_first_advice_is_a_floor_that_is_enough(grid: str, covariance_type: str) -> None:
    variances = torch.tensor([[1.0, 0.004, 2.0], [1.0, 1.0, 0.5]], dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(3, 3, generator=generator(0), dtype=torch.float64))[0]
    matrices = (axes * variances[:, None]) @ axes.mT
    covariances = {"spherical": [0.004, 1.0], "diag": variances, "tied": matrices[0], "full": matrices}
    m = GaussianMixture([0.5, 0.5], torch.zeros(2, 3), covariances[covariance_type], covariance_type)
    T = 2 * 40 * 0.6 * 0.004  # q = 0.6, or 1.2
    options: dict[str, Any] = {"T": T, "n_steps": 40, "grid": grid}
    if grid == "times":
        options = {"grid": np.linspace(0.0, T, 41)}
    with pytest.raises(ValueError) if grid == "quadratic" else pytest.warns(UserWarning) as caught:
        LangevinProcess(m, **options)
    message = str(caught.value if grid == "quadratic" else caught[0].message)
    (floor,) = re.findall(r"use reference\.conditioned\(([\d.e-]+)\)", message)
    assert f"conditioned({floor}) or a fit with eigenvalue_floor={floor}, " in message and float(floor) <= 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LangevinProcess(m.conditioned(float(floor)), **options)
    with pytest.warns(UserWarning, match="stationary variance"):
        LangevinProcess(m.conditioned(0.9 * (float(floor) - 0.001)), **options)


def test_no_floor_is_advised_that_would_spoil_the_mixture() -> None:
    with pytest.warns(UserWarning) as record:
        LangevinProcess(GaussianMixture.standard_normal(2), T=1.0, n_steps=2)
    assert "conditioned" not in str(record[0].message)


def test_a_grid_of_times_is_told_how_much_finer_to_be() -> None:
    grid = [0.0, 0.001, 0.02, 0.03]  # q = 0.95 at step 1
    with pytest.warns(
        UserWarning, match=r"= 0\.95 at step 1, component 1; use .*, steps 5 times finer, a smaller T or sigma"
    ):
        stiff(grid=grid)
    finer = np.interp(np.arange(16) / 5, np.arange(4), grid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stiff(grid=finer)


def test_the_other_advice_helps_too() -> None:
    """A smaller T, a smaller sigma, a larger reg_covar."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stiff(T=0.1, n_steps=40)
        stiff(T=1.0, n_steps=40, sigma=0.3)
        X = torch.randn(50, 2, generator=generator(0)).numpy() * [1.0, 1e-4]
        with pytest.warns(UserWarning, match="reg_covar: expected at most a tenth"):
            regularised = GaussianMixture.fit(X, 2, "full", reg_covar=0.1, random_state=0)
        LangevinProcess(regularised, T=1.0, n_steps=40)
    with pytest.raises(ValueError, match="larger reg_covar"):
        LangevinProcess(GaussianMixture.fit(X, 2, "full", reg_covar=1e-6, random_state=0), T=1.0, n_steps=40)
