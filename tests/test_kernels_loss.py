"""The losses of the Triton backend: interpreted, against `reference`; compiled ahead of time.

`interpret` and `compile_all` run in processes of their own, see _kernels.py; the tests judge what they gave.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from _kernels import TARGETS, Row, check_resources, compile_ahead, interpreted_by, main, poisoned
from helpers import normals
from torch import Tensor

from fastndsm import functional, reference, use_backend
from fastndsm.backends import registry

EPS = torch.finfo(torch.float32).eps
HALVES = (torch.bfloat16, torch.float16)
SHAPES = [(1, 1), (31, 2), (33, 3), (600, 2), (130, 5), (17, 31), (2, 33), (9, 128), (5, 785), (1, 2049)]
KINDS = {"plain": ("plain", False), "control_variate": ("control_variate", False), "antithetic": ("plain", True)}


# --- what is computed --------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """Inputs of a loss; its gradient takes `grad` before them."""

    kind: str  # of KINDS, or dsm
    grad: Tensor
    tensors: tuple[Tensor, ...]

    def results(self, ops: Any) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient."""
        name, rest = ("dsm_loss", ()) if self.kind == "dsm" else ("ndsm_loss", KINDS[self.kind])
        return (
            getattr(ops, name)(*self.tensors, *rest),
            getattr(ops, f"{name}_backward")(self.grad, *self.tensors, *rest),
        )

    def to(self, change: Callable[[Tensor], Tensor]) -> Call:
        return Call(self.kind, change(self.grad), tuple(map(change, self.tensors)))

    def magnitudes(self) -> tuple[Tensor, Tensor]:
        """Return the sums of the absolute values of what is added up in the loss and in its gradient, float64."""
        grad, (first, second, *std) = self.grad.double().abs(), (t.double().abs() for t in self.tensors)
        if self.kind == "dsm":
            second = -second  # score - target becomes a sum
        elif self.kind != "plain":
            first[len(second) :] *= -1.0  # and so does s - h
        loss, gradient = Call(self.kind, grad, (first, second, *std)).results(reference)
        return loss, gradient.abs()


def call(kind: str, rows: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Call:
    grad = normals(rows, seed=seed + 1, dtype=torch.float32)
    if kind == "dsm":
        return Call(kind, grad, (normals(rows, dim, seed=seed).to(dtype), normals(rows, dim, seed=seed + 2).to(dtype)))
    scores = normals(rows if kind == "plain" else 2 * rows, dim, seed=seed).to(dtype)
    std = normals(rows, seed=seed + 3, dtype=torch.float32).abs() + 0.05
    return Call(kind, grad, (scores, normals(rows, dim, seed=seed + 2).to(dtype), std))


def shaped() -> dict[str, Call]:
    return {f"{kind} {n}x{d}": call(kind, n, d) for kind in (*KINDS, "dsm") for n, d in SHAPES}


def low_precision() -> dict[str, Call]:
    return {f"{kind} {dtype}": call(kind, 33, 65, dtype) for kind in (*KINDS, "dsm") for dtype in HALVES}


def columns_apart(t: Tensor) -> Tensor:
    return t.T.contiguous().T if t.ndim == 2 else torch.stack([t, t], 1)[:, 0]


def rows_apart(t: Tensor) -> Tensor:
    """Set rows 4 values further apart than they are long: also aligned where they were."""
    return torch.nn.functional.pad(t, (0, 4))[:, : t.shape[1]] if t.ndim == 2 else columns_apart(t)


def shifted(t: Tensor) -> Tensor:
    """Return a copy that is not aligned to more than a value."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


LAYOUTS = {"columns apart": columns_apart, "rows apart": rows_apart, "shifted": shifted}


def laid_out() -> dict[str, Call]:
    return {f"{kind} {name}": call(kind, 7, 36).to(LAYOUTS[name]) for kind in (*KINDS, "dsm") for name in LAYOUTS}


def expanded() -> dict[str, Call]:
    """Expand one row to all rows, as the gradient of a sum does."""
    made = {}
    for kind in (*KINDS, "dsm"):
        one = call(kind, 7, 12)
        made[kind] = one.to(lambda t: t[:1].expand_as(t))
    return made


# --- in the interpreter ------------------------------------------------------------------------------------------

Results = dict[str, Any]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return interpreted_by(__file__, tmp_path_factory.mktemp("interpret"))


@pytest.mark.parametrize("name", shaped())
def test_losses_and_gradients_agree_with_the_reference(name: str, interpreted: Results) -> None:
    """Within the rounding of a sum of d terms, whatever cancels; every output was NaN before, as was what is around."""
    made = shaped()[name]
    exact = made.to(Tensor.double).results(reference)
    for (found, untouched), truth, scale, bound in zip(
        interpreted["shaped"][name], exact, made.magnitudes(), (8.0 * EPS, 2.0 * EPS), strict=True
    ):
        assert untouched
        assert found.dtype == torch.float32 and found.shape == truth.shape
        assert bool(((found.double() - truth).abs() <= bound * scale).all())


@pytest.mark.parametrize("name", low_precision())
def test_low_precision(name: str, interpreted: Results) -> None:
    """Error against float64 on the same rounded inputs: at most twice that of PyTorch in the same dtype."""
    made = low_precision()[name]
    dtype = made.tensors[0].dtype

    def autograd(change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        score, *others = (change(t) for t in made.tensors)
        score.requires_grad_()
        losses = eager(made.kind, score, *others)
        return losses.detach(), torch.autograd.grad(losses, score, change(made.grad))[0]

    exact, theirs = autograd(Tensor.double), autograd(lambda t: t.to(dtype).clone())
    for (found, untouched), truth, peer in zip(interpreted["low precision"][name], exact, theirs, strict=True):
        assert untouched
        error, allowed = ((t.double() - truth).abs().amax() for t in (found, peer))
        assert float(error) <= 2.0 * float(allowed)
    (loss, _), (gradient, _) = interpreted["low precision"][name]
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    assert float(((loss.double() - exact[0]).abs() / made.magnitudes()[0]).amax()) <= 8.0 * EPS


def eager(kind: str, score: Tensor, other: Tensor, *std: Tensor) -> Tensor:
    """Return the loss as one would write it in PyTorch, in the dtype of its inputs."""
    if kind == "dsm":
        return 0.5 * (score - other).square().sum(1)
    if kind == "plain":
        return 0.5 * score.square().sum(1) + (other * score).sum(1) / std[0]
    s, h = score.chunk(2)
    if kind == "control_variate":
        return 0.5 * s.square().sum(1) + (other * (s - h)).sum(1) / std[0]
    return 0.25 * (s.square() + h.square()).sum(1) + 0.5 * (other * (s - h)).sum(1) / std[0]


@pytest.mark.parametrize("name", laid_out())
def test_strides_change_nothing(name: str, interpreted: Results) -> None:
    kind = name.split()[0]
    for found, expected in zip(interpreted["laid out"][name], interpreted["contiguous"][kind], strict=True):
        assert torch.equal(found, expected)
    assert interpreted["unchanged"]


@pytest.mark.parametrize("kind", [*KINDS, "dsm"])
def test_expanded_inputs(kind: str, interpreted: Results) -> None:
    for found, expected in zip(interpreted["expanded"][kind], interpreted["spelled out"][kind], strict=True):
        assert torch.equal(found, expected) and bool(found.isfinite().all())


@pytest.mark.parametrize("kind", [*KINDS, "dsm"])
def test_a_sample_does_not_see_the_others(kind: str, interpreted: Results) -> None:
    """Its loss in a batch of another size has the same bits, and a NaN stays in its own row."""
    whole, part, one_bad = (interpreted[key][kind] for key in ("contiguous", "part", "one bad"))
    assert torch.equal(part, whole[0][:3])
    others = torch.tensor([True, True, False, True, True, True, True])
    assert torch.equal(one_bad[0].isnan(), ~others)
    assert torch.equal(one_bad[0][others], whole[0][others])
    assert torch.equal(one_bad[1].isnan().any(1)[: len(others)], ~others)


def test_mixed_dtypes(interpreted: Results) -> None:
    """A score in bfloat16 beside noise in float32: the loss as if both were float32, the gradient like the score."""
    made = mixed()
    (loss, gradient), exact = interpreted["mixed"], made.to(Tensor.double).results(reference)
    assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert bool(((loss.double() - exact[0]).abs() <= 8.0 * EPS * made.magnitudes()[0]).all())
    # to the last place: the interpreter cuts off where a GPU rounds
    assert bool(((gradient.double() - exact[1]).abs() <= 2.0**-7 * exact[1].abs() + 2.0 * EPS).all())


def mixed() -> Call:
    made = call("antithetic", 9, 20)
    return made._replace(tensors=(made.tensors[0].to(torch.bfloat16), *made.tensors[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_as_a_backend_under_autograd(dtype: torch.dtype, interpreted: Results) -> None:
    """Weights, reduction and both gradients of dsm_loss; half precision reaches the kernels too."""
    torch.manual_seed(0)
    with use_backend("reference"):
        expected = trained(dtype)
    for found, value in zip(interpreted["trained"][str(dtype)], expected, strict=True):
        assert found.dtype == value.dtype
        torch.testing.assert_close(found, value, rtol=2.0**-7 if dtype in HALVES else 1e-5, atol=1e-6)


def trained(dtype: torch.dtype) -> list[Tensor]:
    """Return losses and gradients as a user of fastndsm.functional has them."""
    scores, noise = normals(14, 2, 3).to(dtype).requires_grad_(), normals(7, 2, 3, seed=1).to(dtype)
    target = normals(7, 2, 3, seed=2).to(dtype).requires_grad_()
    std, weight = (normals(7, seed=seed, dtype=torch.float32).abs() + 0.2 for seed in (3, 4))
    losses = [
        functional.ndsm_loss(scores, noise, std, estimator="control_variate", weight=weight),
        functional.dsm_loss(scores[:7], target, weight, reduction="sum"),
    ]
    gradients = torch.autograd.grad(losses[0], scores), torch.autograd.grad(losses[1], (scores, target))
    return [loss.detach() for loss in losses] + [g for pair in gradients for g in pair]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dtype", "scores: expected one of torch.float32, torch.bfloat16, torch.float16, found torch.float64"),
        ("scores", "scores: expected shape (6, 4), found (3, 4)"),
        ("std", "std: expected shape (3,), found (2,)"),
        ("grad", "grad: expected shape (3,), found (3, 1)"),
        ("target", "target: expected shape (3, 4), found (3, 5)"),
    ],
    ids=["dtype", "scores", "std", "grad", "target"],
)
def test_bad_arguments_are_refused(name: str, message: str, interpreted: Results) -> None:
    assert interpreted["refused"][name] == message


def test_an_empty_batch(interpreted: Results) -> None:
    assert [tuple(t.shape) for t in interpreted["empty"]] == [(0,), (0, 3)]


class Poisoned:
    """The backend's ops in memory that was NaN: what they gave, and whether the memory around it stayed NaN."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def __getattr__(self, name: str) -> Callable[..., tuple[Tensor, bool]]:
        return functools.partial(poisoned, getattr(self.ops, name))


def interpret() -> Results:
    """Return what the interpreter gives, to be judged by the tests above."""
    from fastndsm.kernels import ops

    ops.prepare()
    kinds = (*KINDS, "dsm")
    strided = laid_out()
    before = {name: made.to(Tensor.clone) for name, made in strided.items()}
    found: Results = {
        "shaped": {name: made.results(Poisoned(ops)) for name, made in shaped().items()},
        "low precision": {name: made.results(Poisoned(ops)) for name, made in low_precision().items()},
        "laid out": {name: made.results(ops) for name, made in strided.items()},
        "contiguous": {kind: call(kind, 7, 36).results(ops) for kind in kinds},
        "expanded": {kind: made.results(ops) for kind, made in expanded().items()},
        "spelled out": {kind: made.to(Tensor.contiguous).results(ops) for kind, made in expanded().items()},
        "mixed": mixed().results(ops),
        "part": {},
        "one bad": {},
    }
    found["unchanged"] = all(
        torch.equal(a, b)
        for name, made in strided.items()
        for a, b in zip((made.grad, *made.tensors), (before[name].grad, *before[name].tensors), strict=True)
    )
    for kind in kinds:
        whole = call(kind, 7, 36)
        scores, *others = whole.tensors
        halves = scores.split(7)
        few = (torch.cat([half[:3] for half in halves]), *(t[:3] for t in others))
        found["part"][kind] = Call(kind, whole.grad[:3], few).results(ops)[0]
        bad = scores.clone()
        bad[2, 35] = torch.nan
        found["one bad"][kind] = Call(kind, whole.grad, (bad, *others)).results(ops)

    triton = registry.BACKENDS["triton"]
    registry.BACKENDS["triton"] = dataclasses.replace(triton, devices=("cpu",))
    with use_backend("triton"):
        found["trained"] = {str(dtype): trained(dtype) for dtype in (torch.float32, *HALVES)}

    def refusal(run: Callable[[], Any]) -> str:
        try:
            run()
        except (TypeError, ValueError) as error:
            return str(error)
        return "accepted"

    a, row = torch.ones(3, 4), torch.ones(3)
    found["refused"] = {
        "dtype": refusal(lambda: ops.ndsm_loss(a.double(), a, row, "plain", False)),
        "scores": refusal(lambda: ops.ndsm_loss(a, a, row, "plain", True)),
        "std": refusal(lambda: ops.ndsm_loss(a, a, row[:2], "plain", False)),
        "grad": refusal(lambda: ops.ndsm_loss_backward(row[:, None], a, a, row, "plain", False)),
        "target": refusal(lambda: ops.dsm_loss(a, torch.ones(3, 5))),
    }
    nothing = torch.ones(0, 3)
    found["empty"] = ops.dsm_loss(nothing, nothing), ops.dsm_loss_backward(nothing[:, 0], nothing, nothing)
    return found


# --- compiled ahead of time --------------------------------------------------------------------------------------

REGISTERS = 64  # a thread: 32 warps, each with 3 loads of 2 vectors in flight, on a multiprocessor's 65,536
SHARED = 1 << 10  # bytes


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for(target: str, compiled: list[Row]) -> None:
    """Every configuration of the table: no spills, few registers, whole vectors stored where they fit."""
    rows = [row for row in compiled if row["target"] == target]
    assert len({row["kernel"] for row in rows}) == 4
    for row in rows:
        check_resources(row, REGISTERS, SHARED)
        wide = row["constants"]["VECTOR"] >= (4 if "bf16" in row["types"] else 2)
        assert row["vector_stores"] == (wide and "backward" in row["kernel"]), row


def compile_all() -> Iterator[Row]:
    """Yield resources of every kernel on every target: the heaviest estimator, and at one size all variants."""
    from fastndsm.kernels import loss
    from fastndsm.kernels.configurations import configurations

    ndsm = (loss.ndsm_loss_kernel, loss.ndsm_loss_backward_kernel)
    for target in TARGETS:
        for kernel in (*ndsm, loss.dsm_loss_kernel, loss.dsm_loss_backward_kernel):
            variants: list[dict[str, Any]] = [{"ESTIMATOR": kind} for kind in KINDS] if kernel in ndsm else [{}]
            for config in configurations("loss", target):
                widest = min(4, config.dim or 4)
                cases = [("fp32", {"VECTOR": widest} | variants[-1])]
                if config.dim == 1024:
                    cases += [("bf16", {"VECTOR": 8} | variants[-1]), ("fp32", {"VECTOR": 1} | variants[-1])]
                    cases += [("fp32", {"VECTOR": 4} | variant) for variant in variants[:-1]]
                for dtype, constants in cases:
                    signature = {name: type_of(name, dtype) for name in kernel.arg_names if name.islower()}
                    made = {**constants, **config.constants}
                    options = {**config.options, "enable_fp_fusion": False}
                    yield compile_ahead(kernel, signature, made, target, **options) | {"types": dtype}


def type_of(name: str, dtype: str) -> str:
    """Return the type of a kernel's argument."""
    if name in ("loss_ptr", "grad_ptr", "std_ptr"):
        return "*fp32"
    if name.endswith("_ptr"):
        return f"*{dtype}"
    return "i32" if name == "column_tiles" else "i64"


if __name__ == "__main__":
    main(interpret, compile_all)
