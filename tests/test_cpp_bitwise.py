"""The C++ backend gives the same bits however it is run: threads, splits, neighbours, what memory held before."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cpp_cases import (  # noqa: F401
    BITWISE,
    LOSSES,
    OPS,
    POOL,
    assert_same,
    case,
    dtypes,
    kernels,
    kinds,
    loss_inputs,
    new_case,
    run,
    sizes,
)
from helpers import normals
from torch import Tensor

import fastndsm
from fastndsm import functional
from fastndsm._ops import ops
from fastndsm.testing import FIRST_PATH, SEED, Arguments

PIECES = (1, 15, 16, 17, 2, 13)  # of POOL rows; tiles hold 4 to 32


def joined(pieces: list[tuple[Tensor, ...]], rows: list[int]) -> tuple[Tensor, ...]:
    """Join outputs of the whole from those of its pieces; antithetic ones go after all others."""
    out = []
    for parts in zip(*pieces, strict=True):
        halves = zip(*(part.split(n) for part, n in zip(parts, rows, strict=True)), strict=True)
        out.append(torch.cat([part for half in halves for part in half]))
    return tuple(out)


@dtypes
@kinds
@sizes
def test_results_do_not_depend_on_threads_or_on_how_a_batch_is_split(
    size: tuple[int, int], kind: str, dtype: torch.dtype
) -> None:
    assert sum(PIECES) == POOL
    c = case(kind, *size)
    starts = list(itertools.accumulate((0, *PIECES)))
    for op in OPS:
        torch.set_num_threads(1)
        whole = run(op, c, "cpp", dtype)
        pieces = [run(op, c, "cpp", dtype, slice(i, i + n)) for i, n in zip(starts, PIECES, strict=False)]
        assert_same(joined(pieces, list(PIECES)), whole)
        alone = [run(op, c, "cpp", dtype, slice(i, i + 1)) for i in range(20)]
        for i, single in enumerate(alone):
            assert_same(single, tuple(t[i::POOL] for t in whole))
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert_same(run(op, c, "cpp", dtype), whole)


@dtypes
@kinds
def test_mixture_ops_do_not_depend_on_the_order_of_rows(kind: str, dtype: torch.dtype) -> None:
    order = torch.randperm(POOL, generator=torch.Generator().manual_seed(0))
    for size in BITWISE:
        c, moved = case(kind, *size), new_case(kind, *size)
        moved.x, moved.v = c.x[order], c.v[order]
        rows_alone = "mixture_log_prob", "mixture_score", "mixture_hvp", "reverse_step ode", "reverse_step last sde"
        for op in (*rows_alone, "reverse_steps ode"):
            assert_same(run(op, moved, "cpp", dtype), tuple(t[order] for t in run(op, c, "cpp", dtype)))


def walk_back(c: Arguments, y: Tensor, slope: Tensor | None, method: str, cuts: Sequence[int]) -> Tensor:
    """Go from t_cuts[0] to t_cuts[-1] by a call for each part."""
    coefficients = c.process.reverse_scheme(method, "linear").coefficients(12, 0).to(y.dtype)
    rate = None if slope is None else c.v.square().mean(1)
    for first, last in itertools.pairwise(cuts):
        bounds, paths = torch.tensor([first, last]), (torch.tensor(SEED), FIRST_PATH)
        y = c.process.dynamics.reverse_steps(y, c.v, slope, rate, bounds, coefficients, *paths, "cpp")
    return y


@dtypes
@kinds
@pytest.mark.parametrize("method", ["sde", "ode"])
def test_steps_back_do_not_depend_on_how_they_are_split_into_calls(method: str, kind: str, dtype: torch.dtype) -> None:
    """With components left out (d = 67) and not; and a row that overflows changes no bit of others."""
    for size in BITWISE:
        c = case(kind, *size).to(dtype)
        spoilt = c.x.clone()
        spoilt[5] = torch.finfo(dtype).max ** 0.6
        for slope in (0.25 * c.v.flip(1), None):
            whole, other = (walk_back(c, y, slope, method, (12, 0)) for y in (c.x, spoilt))
            assert torch.equal(walk_back(c, c.x, slope, method, (4, 4)), c.x)
            for cuts in ((12, 7, 0), range(12, -1, -1)):
                assert torch.equal(walk_back(c, c.x, slope, method, cuts), whole)
                assert torch.equal(walk_back(c, spoilt, slope, method, cuts), other)
            others = torch.arange(POOL) != 5
            assert torch.equal(whole[others], other[others]) and bool(other.isfinite().all())


@dtypes
@kinds
def test_a_trajectory_does_not_depend_on_the_steps_of_others(kind: str, dtype: torch.dtype) -> None:
    for size in BITWISE:
        c, other = case(kind, *size), new_case(kind, *size)
        kept = torch.arange(POOL) % 3 == 0
        other.steps = torch.where(kept, c.steps, 12 - c.steps)
        for op in ("simulate", "simulate_transition", "simulate_target", "simulate_target antithetic"):
            before, after = run(op, c, "cpp", dtype), run(op, other, "cpp", dtype)
            for one, two in zip(before, after, strict=True):
                rows = kept.repeat(len(one) // POOL)
                assert torch.equal(one[rows], two[rows]) and not torch.equal(one, two)


@pytest.mark.parametrize("dim", [5, 16])
@pytest.mark.parametrize("kind", ["spherical", "diag"])
def test_trajectories_have_the_bits_of_a_mixture_whose_numbers_fill_no_cache(kind: str, dim: int) -> None:
    """In few dimensions and components C++ may read them from another place; those without weight change nothing."""
    weights, (means, far) = torch.full((6,), 1 / 6), normals(206, dim, seed=1).split((6, 200))
    covariances = 0.5 + normals(206, *((dim,) if kind == "diag" else ()), seed=2).abs()
    few = fastndsm.GaussianMixture(weights, means, covariances[:6], kind)
    many = fastndsm.GaussianMixture(
        torch.cat([weights, torch.full((200,), 1e-30)]), torch.cat([means, far + 1e3]), covariances, kind
    )
    x0, held = normals(100, dim, seed=3).float(), normals(100, dim, seed=4).float()
    found = []
    for mixture in (few, many):
        process = fastndsm.LangevinProcess(mixture.float(), T=1.0, n_steps=12)
        steps = torch.arange(100) % 13
        outputs = [functional.simulate(x0, process, steps, seed=SEED, backend="cpp")]
        outputs += functional.simulate_target(x0, process, steps, seed=SEED, backend="cpp")
        outputs.append(functional.reverse_steps(x0, held, None, process, 12, 0, seed=SEED, backend="cpp"))
        found.append(tuple(outputs))
    assert_same(*found)


def loss_and_gradient(inputs: tuple[Tensor, ...], options: tuple[Any, ...], i: int, j: int) -> tuple[Tensor, ...]:
    """Return loss and gradient of the rows i..j."""
    grad, scores, noise, std = inputs
    part = torch.cat([half[i:j] for half in scores.split(len(noise))]), noise[i:j], std[i:j]
    return ops.ndsm_loss(*part, *options), ops.ndsm_loss_backward(grad[i:j], *part, *options)


@dtypes
def test_losses_and_normals_do_not_depend_on_threads_or_splits(dtype: torch.dtype) -> None:
    """Large enough that several threads have work."""
    rows, dim = 300, 784
    for estimator, antithetic in LOSSES:
        pairs = antithetic or estimator != "plain"
        inputs = normals(rows, seed=3).to(dtype), *loss_inputs(rows, dim, pairs, dtype)
        both = functools.partial(loss_and_gradient, inputs, (estimator, antithetic, "cpp"))

        torch.set_num_threads(1)
        whole = both(0, rows)
        assert_same(joined([both(0, 1), both(1, 133), both(133, rows)], [1, 132, 167]), whole)
        torch.set_num_threads(3)
        assert_same(both(0, rows), whole)
    for dim in (1, 2, 3, 7, 64):
        torch.set_num_threads(1)
        draw = functools.partial(functional.philox_normal, dim=dim, seed=SEED, dtype=dtype, backend="cpp")
        whole = draw(20000, first_path=FIRST_PATH)
        assert torch.equal(torch.cat([draw(7, first_path=FIRST_PATH), draw(19993, first_path=FIRST_PATH + 7)]), whole)
        torch.set_num_threads(3)
        assert torch.equal(draw(20000, first_path=FIRST_PATH), whole)


@dtypes
@pytest.mark.parametrize("dim", [784, 785, 3])
def test_gradients_larger_than_caches_have_the_bits_of_their_parts(dim: int, dtype: torch.dtype) -> None:
    """Large ones are stored past the caches, rows that are not aligned as ever."""
    rows = (9 << 20) // (dim * dtype.itemsize)
    for estimator, antithetic in LOSSES:
        inputs = normals(rows, seed=3).to(dtype), *loss_inputs(rows, dim, antithetic or estimator != "plain", dtype)
        both = functools.partial(loss_and_gradient, inputs, (estimator, antithetic, "cpp"))
        starts = [*range(0, rows, rows // 8), rows]
        parts = [both(i, j) for i, j in itertools.pairwise(starts)]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert_same(both(0, rows), joined(parts, [j - i for i, j in itertools.pairwise(starts)]))
    grad, score, target = (normals(n, seed=i).to(dtype) for i, n in ((4, rows), (5, rows * dim), (6, rows * dim)))
    score, target = score.view(rows, dim), target.view(rows, dim)
    half = rows // 2
    whole = ops.dsm_loss_backward(grad, score, target, "cpp")
    for i, j in ((0, half), (half, rows)):
        assert torch.equal(ops.dsm_loss_backward(grad[i:j], score[i:j], target[i:j], "cpp"), whole[i:j])


PERTURBED = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import torch
from test_cpp_bitwise import BITWISE, LOSSES, OPS, case, functional, loss_inputs, ops, run
from helpers import COVARIANCE_TYPES
torch.set_num_threads(1)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64):
    outputs = [
        run(op, case(kind, *size), "cpp", dtype, slice(33))
        for op in OPS
        for kind in COVARIANCE_TYPES
        for size in BITWISE
    ]
    outputs += [(functional.philox_normal(33, d, seed=1, dtype=dtype, backend="cpp"),) for d in (1, 2, 3, 5, 67)]
    for estimator, antithetic in LOSSES:
        inputs = loss_inputs(33, 67, antithetic or estimator != "plain", dtype)
        rest = (*inputs, estimator, antithetic, "cpp")
        outputs.append((ops.ndsm_loss(*rest), ops.ndsm_loss_backward(inputs[2], *rest)))
    for out in outputs:
        for t in out:
            digest.update(t.numpy().tobytes())
fresh = set(torch.empty(5000, dtype=torch.uint8)[64:].tolist())
print(digest.hexdigest(), *fresh if len(fresh) == 1 else ["mixed"])
"""


def test_nothing_is_read_before_it_is_written(start_python: Callable[..., Any]) -> None:
    """New memory filled by glibc with one byte or another makes no difference; all outputs are in the digest."""
    processes = [start_python(PERTURBED, Path(__file__).parent, MALLOC_PERTURB_=p) for p in ("128", "1")]
    answers = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        answers.append(out.split())
    (first, *one), (second, *other) = answers
    if one != ["127"] or other != ["254"]:
        pytest.skip("the allocator does not fill new memory")
    assert first == second
