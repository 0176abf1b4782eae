"""The C++ ops themselves, without the checks above them: what would read beyond an array is refused there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cpp_cases import kernels  # noqa: F401

X, SEED = torch.zeros(4, 2), torch.tensor(1)
MEANS, PRECISIONS, LOG_SCALE = torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(3)
MIXTURE = (MEANS, PRECISIONS, LOG_SCALE, "diag")
A, S = torch.full((5,), 0.01), torch.ones(5)  # drift_scale, noise_std
TABLE, BOUNDS = torch.ones(6, 5), torch.tensor([4, 1])  # of reverse_steps
STEPS, ROWS = torch.ones(4, dtype=torch.int64), torch.ones(4)
PATHS = (*MIXTURE, SEED, 0)
NO_AXES = (*MIXTURE, None, None, SEED, 0)
FULL = (MEANS, torch.eye(2).repeat(3, 1, 1), LOG_SCALE, "full")
WEIGHTS = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)  # cumulative
DRAW = (SEED, 0)
NOISE = (SEED, SEED, 0, 0, torch.float32)


def raw(name: str, *arguments: Any) -> Any:
    return getattr(torch.ops.fastndsm_cpp, name)(*arguments)


def mixtures() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    score = "mixture_score"
    yield score, r"x: expected shape \[B, 2\], found \[4, 3\]", (torch.zeros(4, 3), *MIXTURE)
    yield "mixture_log_prob", r"x: expected shape \[B, 2\], found \[4\]", (torch.zeros(4), *MIXTURE)
    yield "mixture_hvp", r"v: expected the shape of x, \[4, 2\], found \[3, 2\]", (X, X[:3], *MIXTURE)
    for kind, shape in (("spherical", "3"), ("diag", "3, 2"), ("tied", "2, 2"), ("full", "3, 2, 2")):
        message = rf"precisions: expected shape \[{shape}\], found \[3, 3\]"
        yield score, message, (X, MEANS, torch.ones(3, 3), LOG_SCALE, kind)
    yield score, r"log_scale: expected shape \[3\], found \[2\]", (X, MEANS, PRECISIONS, LOG_SCALE[:2], "diag")
    yield score, r"means: expected shape \[K, d\], found \[2\]", (X, MEANS[0], *MIXTURE[1:])
    empty = (MEANS[:0], PRECISIONS[:0], LOG_SCALE[:0], "diag")
    yield score, r"means: expected shape \[K, d\], found \[0, 2\]", (X, *empty)
    expected = "covariance_type: expected spherical, diag, tied or full, found round"
    yield score, expected, (X, *MIXTURE[:3], "round")
    yield (
        "mixture_sample",
        r"factors: expected shape \[3, 2\], found \[3\]",
        (4, WEIGHTS, MEANS, ROWS[:3], "diag", *DRAW),
    )
    expected = "cumulative_weights: expected float64, found Float"
    yield "mixture_sample", expected, (4, WEIGHTS.float(), *MIXTURE[:2], "diag", *DRAW)
    yield "mixture_sample", "n: expected at least 0, found -1", (-1, WEIGHTS, *MIXTURE[:2], "diag", *DRAW)


def processes() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    back = "reverse_steps"
    yield "simulate", r"x0: expected shape \[B, 2\], found \[4, 1\]", (X[:, :1], STEPS, A, S, *PATHS)
    yield "simulate", "steps: expected values in 0..5, found 6", (X, 6 * STEPS, A, S, *PATHS)
    yield "simulate_target", "steps: expected values in 0..5, found -1", (X, -STEPS, A, S, *NO_AXES, True)
    target, axes = (X, STEPS, A, S, *FULL), (FULL[1], PRECISIONS)
    expected = "rotations, rates: expected the principal axes of tied and full covariances, found None"
    for absent in ((None, None), (axes[0], None), (None, axes[1])):
        yield "simulate_target", expected, (*target, *absent, SEED, 0, False)
    expected = r"rotations: expected shape \[3, 2, 2\], found \[2, 2\]"
    yield "simulate_target", expected, (*target, axes[0][0], axes[1], SEED, 0, False)
    expected = r"rates: expected shape \[3, 2\], found \[3\]"
    yield "simulate_target", expected, (*target, axes[0], axes[1][:, 0], SEED, 0, False)
    yield "simulate", r"steps: expected int64 \[4\], found Int of shape \[4\]", (X, STEPS.int(), A, S, *PATHS)
    expected = r"steps: expected int64 \[4\], found Long of shape \[3\]"
    yield "simulate_transition", expected, (X, STEPS[:3], A, S, *PATHS)
    yield "simulate", r"noise_std: expected shape \[5\], found \[4\]", (X, STEPS, A, S[:4], *PATHS)
    expected = r"seed: expected a 0-d int64 tensor, found Long of shape \[1\]"
    yield "simulate", expected, (X, STEPS, A, S, *MIXTURE, SEED[None], 0)
    for first, last in ((6, 0), (1, 2), (2, -1)):
        expected = f"bounds: expected 5 >= first >= last >= 0, found {first} and {last}"
        yield back, expected, (X, X, None, None, torch.tensor([first, last]), TABLE, *PATHS)
    expected = r"bounds: expected int64 \[2\], found Long of shape \[3\]"
    yield back, expected, (X, X, None, None, STEPS[:3], TABLE, *PATHS)
    yield back, r"held: expected shape \[4, 2\], found \[3, 2\]", (X, X[:3], None, None, BOUNDS, TABLE, *PATHS)
    yield back, r"slope: expected shape \[4, 2\], found \[3, 2\]", (X, X, X[:3], None, BOUNDS, TABLE, *PATHS)
    yield back, r"rate: expected shape \[4\], found \[3\]", (X, X, None, ROWS[:3], BOUNDS, TABLE, *PATHS)
    yield back, r"coefficients: expected shape \[6, N\], found \[4, 5\]", (X, X, None, None, BOUNDS, TABLE[:4], *PATHS)
    expected = r"seed: expected a 0-d int64 tensor, found Long of shape \[1\]"
    yield back, expected, (X, X, None, None, BOUNDS, TABLE, *MIXTURE, SEED[None], 0)


def samplers() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    name, rows = "sample_mlp", torch.ones(2, 8)
    good = {
        "y": X,
        "weights": [torch.zeros(8, 2), torch.zeros(2, 8)],
        "biases": [torch.zeros(8), torch.zeros(2)],
        "scales": rows,
        "shifts": rows,
        "feature_scale": 0.0,
        "bounds": torch.tensor([5, 2, 0]),
        "coefficients": TABLE,
        "evaluations": torch.ones(2, 8),
    }
    for argument, value, message in (
        ("y", X[:, :1], r"y: expected shape \[B, d\] as means \[K, d\] \[3, 2\], found \[4, 1\]"),
        ("shifts", rows[:1], r"shifts: expected shape \[2, 8\], found \[1, 8\]"),
        ("feature_scale", 1.0, "weights: expected a network of 4 inputs and 2 outputs, found 2 and 2"),
        ("bounds", torch.tensor([5, 0]), r"bounds: expected shape \[3\], found \[2\]"),
        ("bounds", torch.tensor([6, 2, 0]), "bounds: expected 5 at most, then ever less, 0 at least"),
        ("bounds", torch.tensor([5, 2, 3]), "bounds: expected 5 at most, then ever less, 0 at least"),
        ("bounds", torch.tensor([5, 2, -1]), "bounds: expected 5 at most, then ever less, 0 at least"),
        ("coefficients", TABLE[0], r"coefficients: expected shape \[6, N\], found \[5\]"),
        ("evaluations", torch.ones(2, 2), r"evaluations: expected shape \[2, 8\], found \[2, 2\]"),
    ):
        yield name, message, (*(good | {argument: value}).values(), *PATHS)


NETWORK = {
    "x": X,
    "embedded": torch.zeros(3, 4),
    "index": torch.tensor([0, 2, 1, 0]),
    "weights": [torch.zeros(*shape) for shape in ((4, 4), (10, 4), (3, 2), (2, 3), (2, 2))],
    "biases": [torch.zeros(n) for n in (4, 10, 3, 2, 2)],
}
STATES = torch.zeros(3 * (8 + 10) + 4 * 10)


def networks() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    weights, biases = NETWORK["weights"], NETWORK["biases"]
    for argument, value, message in (
        ("x", X[0], r"x: expected shape \[B, inputs\], found \[2\]"),
        ("x", torch.zeros(4, 3), r"weights: expected shape \[3, 3\], found \[3, 2\]"),
        ("x", X[:3], r"index: expected shape \[3\], found \[4\]"),
        ("embedded", torch.zeros(3, 5), r"weights: expected shape \[4, 5\], found \[4, 4\]"),
        ("embedded", torch.zeros(2, 4), r"index: expected rows 0..1, found 2"),
        ("index", torch.tensor([0, -1, 1, 0]), r"index: expected rows 0..2, found -1"),
        ("index", None, r"embedded: expected 4 rows as x, found 3"),
        ("weights", weights[:2], r"weights: expected three layers or more, and as many biases, found 2 and 5"),
        ("weights", [*weights[:3], weights[3][0], weights[4]], r"weights: expected \[outputs, inputs\], found \[3\]"),
        ("weights", [weights[0], torch.zeros(8, 4), *weights[2:]], r"biases: expected shape \[8\], found \[10\]"),
        ("biases", [*biases[:4], biases[0]], r"biases: expected shape \[2\], found \[4\]"),
    ):
        yield "film_mlp", message, (*(NETWORK | {argument: value}).values(), True)
    narrow = [weights[0], torch.zeros(8, 4), *weights[2:]], [biases[0], torch.zeros(8), *biases[2:]]
    expected = r"weights: expected shape \[10, 4\], found \[8, 4\]"
    yield "film_mlp", expected, (X, NETWORK["embedded"], NETWORK["index"], *narrow, True)
    wanted = *NETWORK.values(), STATES, True, True
    yield "film_mlp_backward", r"grad: expected shape \[4, 2\], found \[4\]", (ROWS, *wanted)
    expected = r"states: expected shape \[94\], found \[93\]"
    yield "film_mlp_backward", expected, (X, *NETWORK.values(), STATES[1:], True, True)


def losses_and_noise() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    expected = "estimator: expected plain or control_variate, found fancy"
    yield "ndsm_loss", expected, (X, X, ROWS, "fancy", False)
    expected = r"scores: expected shape \[8, 2\], found \[4, 2\]"
    yield "ndsm_loss", expected, (X, X, ROWS, "control_variate", False)
    yield "ndsm_loss", expected, (X, X, ROWS, "plain", True)
    yield "ndsm_loss", r"std: expected shape \[4\], found \[3\]", (X, X, ROWS[:3], "plain", False)
    expected = r"grad: expected shape \[4\], found \[3\]"
    yield "ndsm_loss_backward", expected, (ROWS[:3], X, X, ROWS, "plain", False)
    yield "dsm_loss_backward", expected, (ROWS[:3], X, X)
    expected = r"target: expected the shape of score, \[4, 2\], found \[4, 1\]"
    yield "dsm_loss", expected, (X, X[:, :1])
    yield "dsm_loss_backward", expected, (ROWS, X, X[:, :1])
    yield "philox_normal", r"dim: expected 1 to 2\^33, found 0", (3, 0, *NOISE)
    yield "philox_normal", "n_paths: expected at least 0, found -1", (-1, 2, *NOISE)
    expected = r"step: expected an int64 tensor, 0-d or \[3\], found Long of shape \[2\]"
    yield "philox_normal", expected, (3, 2, SEED, STEPS[:2], *NOISE[2:])
    yield "philox_normal", "stream: expected 0 to 255, found 256", (3, 2, SEED, SEED, 256, *NOISE[3:])
    yield "philox_normal", "first_path: expected at least 0, found -1", (3, 2, SEED, SEED, 0, -1, torch.float32)


@pytest.mark.parametrize(
    ("name", "message", "arguments"),
    [
        pytest.param(*bad, id=f"{bad[0]}: {bad[1]}".replace("\\", ""))
        for bad in (*mixtures(), *processes(), *samplers(), *networks(), *losses_and_noise())
    ],
)
def test_values_and_shapes_are_refused(name: str, message: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        raw(name, *arguments)


@pytest.mark.parametrize(
    ("error", "message", "name", "arguments"),
    [
        (RuntimeError, "expected scalar type Double but found Float", "mixture_score", (X.double(), *MIXTURE)),
        (RuntimeError, "expected scalar type Float but found Double", "dsm_loss", (X, X.double())),
        (RuntimeError, "not implemented for 'Long'", "mixture_score", (X.long(), *MIXTURE)),
        (TypeError, "dtype: expected float32, float64, float16 or bfloat16, found Long", "philox_normal",
         (3, 2, *NOISE[:4], torch.int64)),
        (TypeError, "embedded: expected the dtype of x, found Double", "film_mlp",
         (*(NETWORK | {"embedded": NETWORK["embedded"].double()}).values(), True)),
        (TypeError, "index: expected int64, found Int", "film_mlp",
         (*(NETWORK | {"index": NETWORK["index"].int()}).values(), True)),
    ],
    ids=["parameters", "target", "integers", "noise", "times", "index"],
)  # fmt: skip
def test_dtypes_are_refused(error: type[Exception], message: str, name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(error, match=message):
        raw(name, *arguments)


def test_no_rows_are_served() -> None:
    """A batch of no rows cannot come through the public functions; the ops give back as many."""
    x, steps, std = X[:0], STEPS[:0], ROWS[:0]
    found = [
        raw("mixture_score", x, *MIXTURE),
        raw("mixture_log_prob", x, *MIXTURE),
        raw("mixture_hvp", x, x, *MIXTURE),
        raw("mixture_sample", 0, WEIGHTS, MEANS, PRECISIONS, "diag", *DRAW),
        raw("simulate", x, steps, A, S, *PATHS),
        *raw("simulate_transition", x, steps, A, S, *PATHS),
        *raw("simulate_target", x, steps, A, S, *NO_AXES, True),
        raw("reverse_steps", x, x, x, std, BOUNDS, TABLE, *PATHS),
        raw("philox_normal", 0, 2, *NOISE),
        raw("ndsm_loss", x, x, std, "plain", True),
        raw("ndsm_loss_backward", std, x, x, std, "plain", False),
        raw("dsm_loss", x, x),
        raw("dsm_loss_backward", std, x, x),
        raw("film_mlp", x, NETWORK["embedded"], steps, NETWORK["weights"], NETWORK["biases"], True)[0],
    ]
    assert [len(t) for t in found] == [0] * len(found)
