"""Philox and its normals in Triton: interpreted, against `reference`; compiled ahead of time; and the backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from _kernels import CPU, TARGETS, Row, check_resources, compile_ahead, interpreted_by, main, poisoned
from philox_cases import KNOWN_ANSWERS, edge_words, words_of
from torch import Tensor

from fastndsm import reference
from fastndsm.backends import registry
from fastndsm.reference.philox import philox4x32_10

# --- what is computed --------------------------------------------------------------------------------------------

SHAPES = [(n, dim) for n in (1, 31, 33) for dim in (1, 2, 3, 4, 5, 67)] + [(300, 2), (300, 3), (140, 8), (150, 16)]
SPLIT = (1, 16, 0, 15, 1)  # pieces of 33 paths
SEED = -0x123456789ABCDEF

Arguments = tuple[int, int, Tensor, Tensor, int, int]  # n_paths, dim, seed, step, stream, first_path


def random_words(*shape: int) -> Tensor:
    return torch.randint(0, 2**32, shape, generator=torch.Generator().manual_seed(1))


def counters() -> tuple[Tensor, Tensor]:
    """Return counters [n, 4] and keys [n, 2] as int64: the known answers' and random ones."""
    known = [[words_of(text) for text in answer[:2]] for answer in KNOWN_ANSWERS.values()]
    drawn = random_words(1000, 6)
    return (
        torch.cat([torch.tensor([counter for counter, _ in known]), drawn[:, :4]]),
        torch.cat([torch.tensor([key for _, key in known]), drawn[:, 4:]]),
    )


def draws() -> Iterator[tuple[str, Arguments]]:
    """Return calls of philox_normal by name; most cross from 32-bit path numbers to longer ones."""
    seed = torch.tensor(SEED)
    for n, dim in SHAPES:
        yield f"{n}x{dim}", (n, dim, seed, torch.tensor(2**32 - 2), 255, 2**32 - 7)
        yield f"{n}x{dim} a step each", (n, dim, seed, random_words(2 * n)[::2], 3, 2**56 - n)
    steps = random_words(sum(SPLIT))
    yield "whole", (33, 6, seed, steps, 1, 2**32 - 12)
    start = 0
    for i, n in enumerate(SPLIT):
        yield f"piece {i}", (n, 6, seed, steps[start : start + n], 1, 2**32 - 12 + start)
        start += n


def step_draws() -> dict[str, tuple[int, int, Tensor, int, torch.device, int | None]]:
    """Return calls of uniform_steps by name; most cross from 32-bit path numbers to longer ones."""
    shapes = {"one": (1, 1, None), "several": (257, 1000, None), "records": (67, 2**31 - 1, 5)}
    return {
        name: (n, n_steps, torch.tensor(SEED), 2**32 - 7, CPU, records)
        for name, (n, n_steps, records) in shapes.items()
    }


# --- in the interpreter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return interpreted_by(__file__, tmp_path_factory.mktemp("interpret"))


def assert_few_ulp(actual: Tensor, exact: Tensor) -> None:
    """Require 4 x 2^-23, relatively; the absolute term is the rounding of float64's pi where a cosine is 0."""
    assert actual.dtype == torch.float32 and exact.dtype == torch.float64
    torch.testing.assert_close(actual.double(), exact, rtol=4 * torch.finfo(torch.float32).eps, atol=1e-15)


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_words_of_the_known_answers(name: str, interpreted: dict[str, Any]) -> None:
    row = list(KNOWN_ANSWERS).index(name)
    assert interpreted["words"][row].tolist() == words_of(KNOWN_ANSWERS[name][2])


def test_words_of_random_counters(interpreted: dict[str, Any]) -> None:
    counter, key = counters()
    expected = torch.stack(philox4x32_10(counter.unbind(1), key.unbind(1)), dim=1)  # type: ignore[arg-type]
    assert torch.equal(interpreted["words"], expected)


def test_normals_at_the_seams_of_their_functions(interpreted: dict[str, Any]) -> None:
    radius_word, angle_word = edge_words()
    radius = ((radius_word.double() + 0.5) * 2.0**-32).log().mul(-2.0).sqrt()
    # near 1 the logarithm is that of the exact complement
    complement = -((2**32 - radius_word).double() - 0.5) * 2.0**-32
    radius = torch.where(radius_word < 2**31, radius, complement.log1p().mul(-2.0).sqrt())
    angle = angle_word.to(torch.int32).double() * (2.0 * math.pi * 2.0**-32)
    assert_few_ulp(interpreted["edges"], torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1))


@pytest.mark.parametrize("name", [name for name, _ in draws()])
def test_normals_agree_with_the_reference(name: str, interpreted: dict[str, Any]) -> None:
    """Every output was NaN before, as was the memory around them, which stays so."""
    arguments = dict(draws())[name]
    made, untouched = interpreted["normals"][name]
    assert_few_ulp(made, reference.philox_normal(*arguments, torch.float64, CPU))
    assert untouched


@pytest.mark.parametrize("name", step_draws())
def test_steps_are_those_of_the_reference(name: str, interpreted: dict[str, Any]) -> None:
    made, untouched = interpreted["steps"][name]
    assert untouched and torch.equal(made, reference.uniform_steps(*step_draws()[name]))


def test_a_batch_may_be_split(interpreted: dict[str, Any]) -> None:
    pieces = [interpreted["normals"][f"piece {i}"][0] for i in range(len(SPLIT))]
    assert torch.equal(torch.cat(pieces), interpreted["normals"]["whole"][0])


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5])
def test_more_dimensions_leave_the_first_ones_as_they_were(dim: int, interpreted: dict[str, Any]) -> None:
    """Whatever the tiles, which depend on dim."""
    widest = interpreted["normals"]["33x67"][0]
    assert torch.equal(interpreted["normals"][f"33x{dim}"][0], widest[:, :dim])


def test_normals_do_not_depend_on_the_grid(interpreted: dict[str, Any]) -> None:
    """Two programs take three tiles of rows."""
    made, untouched = interpreted["short grid"]
    assert torch.equal(made, interpreted["normals"]["150x16"][0])
    assert untouched


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dtype", "dtype: expected torch.float32, found torch.float64"),
        ("seed dtype", "seed: expected torch.int64, found torch.int32"),
        ("seed shape", "seed: expected a 0-d tensor, found shape (1,)"),
        ("step dtype", "step: expected torch.int64, found torch.float32"),
        ("step shape", "step: expected a 0-d tensor or shape (3,), found (2,)"),
    ],
    ids=["dtype", "seed dtype", "seed shape", "step dtype", "step shape"],
)
def test_bad_arguments_are_refused(name: str, message: str, interpreted: dict[str, Any]) -> None:
    assert interpreted["refused"][name] == message


def interpret() -> dict[str, Any]:
    """Return what the interpreter gives, to be judged by the tests above."""
    global philox, tl, triton  # a kernel sees globals alone
    import triton
    import triton.language as tl
    from fastndsm.kernels import ops, philox

    @triton.jit
    def words_kernel(out, counter, key, n, SIZE: tl.constexpr):
        i = tl.arange(0, SIZE)
        inside = i < n
        c0, c1 = tl.load(counter + 4 * i, mask=inside), tl.load(counter + 4 * i + 1, mask=inside)
        c2, c3 = tl.load(counter + 4 * i + 2, mask=inside), tl.load(counter + 4 * i + 3, mask=inside)
        k0, k1 = tl.load(key + 2 * i, mask=inside), tl.load(key + 2 * i + 1, mask=inside)
        path = c0 | ((c1 & 0xFFFFFF) << 32)
        w0, w1, w2, w3 = philox.philox_words(k0.to(tl.uint32), k1.to(tl.uint32), path, c2, c3, c1 >> 24)
        tl.store(out + 4 * i, w0.to(tl.int64), mask=inside)
        tl.store(out + 4 * i + 1, w1.to(tl.int64), mask=inside)
        tl.store(out + 4 * i + 2, w2.to(tl.int64), mask=inside)
        tl.store(out + 4 * i + 3, w3.to(tl.int64), mask=inside)

    @triton.jit
    def normals_kernel(out, radius_word, angle_word, n, SIZE: tl.constexpr):
        i = tl.arange(0, SIZE)
        inside = i < n
        w0, w1 = tl.load(radius_word + i, mask=inside), tl.load(angle_word + i, mask=inside)
        n0, n1 = philox.normals(w0.to(tl.uint32), w1.to(tl.uint32))
        tl.store(out + 2 * i, n0, mask=inside)
        tl.store(out + 2 * i + 1, n1, mask=inside)

    counter, key = (t.contiguous() for t in counters())
    words = torch.full_like(counter, -1)
    words_kernel[(1,)](words, counter, key, len(words), triton.next_power_of_2(len(words)))

    edges = edge_words()
    pairs = torch.full((len(edges[0]), 2), math.nan)
    normals_kernel[(1,)](pairs, *edges, len(pairs), triton.next_power_of_2(len(pairs)))

    ops.prepare()
    calls = dict(draws())
    normals = {name: poisoned(ops.philox_normal, *arguments, torch.float32, CPU) for name, arguments in calls.items()}
    with mock.patch.object(philox, "MAX_GRID_Y", 2):
        short_grid = poisoned(ops.philox_normal, *calls["150x16"], torch.float32, CPU)

    def refusal(**changed: Any) -> str:
        good = {"seed": torch.tensor(1), "step": torch.tensor(0), "dtype": torch.float32}
        try:
            ops.philox_normal(3, 2, stream=0, first_path=0, device=CPU, **good | changed)
        except (TypeError, ValueError) as error:
            return str(error)
        return "accepted"

    refused = {
        "dtype": refusal(dtype=torch.float64),
        "seed dtype": refusal(seed=torch.tensor(1, dtype=torch.int32)),
        "seed shape": refusal(seed=torch.tensor([1])),
        "step dtype": refusal(step=torch.tensor(1.0)),
        "step shape": refusal(step=torch.tensor([1, 2])),
    }
    steps = {name: poisoned(ops.uniform_steps, *arguments) for name, arguments in step_draws().items()}
    return {
        "words": words,
        "edges": pairs,
        "normals": normals,
        "short grid": short_grid,
        "steps": steps,
        "refused": refused,
    }


# --- compiled ahead of time --------------------------------------------------------------------------------------

REGISTERS = 64  # a thread: 1,024 threads fit a multiprocessor's 65,536
SHARED = 8 << 10  # bytes


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for(target: str, compiled: list[Row]) -> None:
    """Every configuration of the table, its lightest and its heaviest variant: no spills, few registers."""
    rows = [row for row in compiled if row["target"] == target]
    assert {row["constants"].get("ALIGNED") for row in rows} == {True, False, None}
    for row in rows:
        check_resources(row, REGISTERS, SHARED)
        assert not row["constants"].get("ALIGNED") or row["vector_stores"], row


def compile_all() -> Iterator[Row]:
    """Yield resources of every kernel on every target."""
    from fastndsm.kernels import philox
    from fastndsm.kernels.configurations import configurations

    signature = {
        "out_ptr": "*fp32",
        "seed_ptr": "*i64",
        "step_ptr": "*i64",
        "n_paths": "i64",
        "dim": "i64",
        "stream": "i32",
        "first_path": "i64",
    }
    for target in TARGETS:
        for tile in configurations("philox_normal", target):
            for aligned in (True, False):
                constants = {"STEP_PER_PATH": not aligned, "ALIGNED": aligned} | dict(tile.constants)
                kernel = philox.philox_normal_kernel
                yield compile_ahead(kernel, signature, constants, target, **tile.options, enable_fp_fusion=False)
        types = {name: "i64" for name in ("n_values", "n_records", "n_steps", "first_path")}
        types |= {"out_ptr": "*i64", "seed_ptr": "*i64"}
        yield compile_ahead(philox.uniform_steps_kernel, types, {}, target, num_warps=4)


# --- as a backend ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cuda", torch.float64, "it computes in torch.float32, found torch.float64"),
        ("cpu", torch.float32, "it serves cuda tensors, found cpu"),
    ],
)
def test_the_backend_takes_float32_on_a_gpu(device: str, dtype: torch.dtype, reason: str) -> None:
    assert registry.BACKENDS["triton"].refuses("philox_normal", torch.device(device), dtype) == reason


WHY_NOT = """
import sys
import fastndsm
from fastndsm.backends import registry
fastndsm.functional.philox_normal(2, 2, seed=0)
assert "triton" not in sys.modules
if sys.argv[1] == "absent":
    sys.modules["triton"] = None
print(registry.BACKENDS["triton"].unavailable())
"""


@pytest.mark.parametrize(
    ("case", "environment", "reason"),
    [
        ("absent", {}, "Triton cannot be imported: "),
        ("no GPU", {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": None}, "it needs a GPU, and PyTorch finds none\n"),
        ("interpreter", {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}, "None\n"),
    ],
    ids=["absent", "no GPU", "interpreter"],
)
def test_why_it_cannot_run(case: str, environment: dict[str, Any], reason: str, run_python: Callable[..., str]) -> None:
    """Also: neither the package nor its other backends import Triton."""
    assert run_python(WHY_NOT, case, FASTNDSM_DISABLE_JIT="1", **environment).startswith(reason)


if __name__ == "__main__":
    main(interpret, compile_all)
