"""The inputs and calls that tests, comparisons and benchmarks share: what they promise of themselves."""

from __future__ import annotations

import math

import pytest
import torch

from fastndsm import functional, testing
from fastndsm.testing import CALLS, COVARIANCE_TYPES, Call, deviation, random_arguments, random_mixture

each_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)


def test_every_op_has_a_call_and_every_call_a_name_of_its_own() -> None:
    assert {call.op for call in CALLS} == set(functional.__all__)
    assert len({call.name for call in CALLS}) == len(CALLS)


@each_call
def test_float32_sees_the_inputs_of_float64(call: Call) -> None:
    inputs = random_arguments("full", 9, 3, 4)
    exact = call.with_gradients(inputs, "reference")
    found = call.with_gradients(inputs.to(torch.float32), "reference")
    assert len(exact) == len(call(inputs, "reference")) + len(call.inputs)
    assert 0.0 < deviation(found, exact) < 1e-4


@each_call
def test_rows_are_those_of_the_whole(call: Call) -> None:
    """Compare them with the same paths, of both halves where there are two; but for the paths counted from the last."""
    inputs = random_arguments("diag", 9, 3, 4)
    part = call(inputs[4:7], "reference")
    for whole, found in zip(call(inputs, "reference"), part, strict=True):
        expected = torch.cat([half[4:7] for half in whole.split(9)])
        assert torch.equal(found, expected) == (call.name != "philox_normal at steps")


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_eigenvalues_are_in_their_range(kind: str) -> None:
    for options, low, high in (({"ratio": 10.0}, 0.1, 1.0), ({"overlapping": True}, 0.3, 1.3)):
        c = random_mixture(kind, 20, 5, **options).covariances  # type: ignore[arg-type]
        values = c if kind in ("spherical", "diag") else torch.linalg.eigvalsh(c)
        assert low - 1e-9 <= float(values.min()) < float(values.max()) <= high + 1e-9


def test_deviation_of_a_nan_is_below_no_bound() -> None:
    exact = torch.tensor([1.0, -4.0]), torch.tensor([2.0])
    assert deviation((torch.tensor([1.0, -3.0]), torch.tensor([2.1])), exact) == 0.25
    assert math.isnan(deviation((torch.tensor([1.0, -4.0]), torch.tensor([math.nan])), exact))


def test_gradients_are_along_a_fixed_direction() -> None:
    x = testing.normals(4, 2)
    out, gradient = testing.differentiated(lambda x: x.square(), x)
    torch.testing.assert_close(gradient, 2.0 * x * testing.normals(4, 2, seed=9))
    assert torch.equal(out, x.square()) and not out.requires_grad
