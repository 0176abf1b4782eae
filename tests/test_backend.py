"""Choice of the backend: by argument, context manager, environment variable; refusals and what auto logs."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

import fastndsm
from fastndsm import BackendError, GaussianMixture, NDSMLoss, OUProcess, functional, reference, use_backend
from fastndsm.backends import registry
from fastndsm.backends.registry import REFERENCE, Backend

X = torch.zeros(3, 2)


def double_score(x: torch.Tensor, mixture: Any) -> torch.Tensor:
    """Return twice the score: a backend's op that can be told from the reference's."""
    return 2.0 * reference.mixture_score(x, mixture)


@pytest.fixture
def mixture() -> GaussianMixture:
    return GaussianMixture([1.0], [[1.0, 2.0]], [1.0], "spherical")


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> dict[str, Backend]:
    """Register a cpp that doubles mixture_score and has no other op, a triton that is broken, the reference."""
    name = f"fastndsm_test_{request.node.name.partition('[')[0]}"
    module = ModuleType(name)
    module.mixture_score = double_score  # type: ignore[attr-defined]
    module.prepared = 0  # type: ignore[attr-defined]

    def prepare() -> None:
        module.prepared += 1  # type: ignore[attr-defined]

    module.prepare = prepare  # type: ignore[attr-defined]
    module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    chosen = {
        "cuda": Backend("cuda", "fastndsm_no_such_module", devices=("cuda",)),
        "triton": Backend("triton", "fastndsm_no_such_package.ops", devices=("cpu",)),
        "cpp": Backend("cpp", name, devices=("cpu",), dtypes=(torch.float32,)),
        "reference": REFERENCE,
    }
    monkeypatch.setattr(registry, "BACKENDS", chosen)
    monkeypatch.setattr(registry, "_logged", set())
    return chosen


def scale(mixture: GaussianMixture, **options: Any) -> float:
    """Return 2 where the doubled op served, 1 where the reference did."""
    return float(functional.mixture_score(X, mixture, **options)[0, 0])


def test_auto_takes_the_fastest_that_can_serve(backends: Any, mixture: GaussianMixture) -> None:
    assert scale(mixture) == 2.0
    assert registry.serving("mixture_score", torch.device("cpu"), torch.float32) == ["cpp", "reference"]
    assert registry.serving("mixture_score", torch.device("cpu"), torch.float64) == ["reference"]
    assert registry.serving("simulate", torch.device("cpu"), torch.float32) == ["reference"]
    assert float(functional.mixture_score(X.double(), mixture)[0, 0]) == 1.0


def test_a_backend_is_prepared_once(backends: Any, mixture: GaussianMixture) -> None:
    for _ in range(3):
        scale(mixture)
    assert sys.modules[backends["cpp"].module].prepared == 1


def test_argument_context_and_environment(
    backends: Any, mixture: GaussianMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scale(mixture, backend="reference") == 1.0
    with use_backend("reference"):
        assert scale(mixture) == 1.0
        assert scale(mixture, backend="cpp") == 2.0  # the argument comes first
        with use_backend("auto"):
            assert scale(mixture) == 2.0
        assert scale(mixture) == 1.0
    assert scale(mixture) == 2.0
    monkeypatch.setenv("FASTNDSM_BACKEND", "reference")
    assert scale(mixture) == 1.0
    with use_backend("cpp"):  # before the environment
        assert scale(mixture) == 2.0
    monkeypatch.setenv("FASTNDSM_BACKEND", "")
    assert scale(mixture) == 2.0


def test_use_backend_ends_with_an_exception(backends: Any, mixture: GaussianMixture) -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert scale(mixture) == 2.0


def test_the_backward_runs_on_the_backend_of_the_forward(
    backends: Any, mixture: GaussianMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """log_prob's gradient is mixture_score: doubled on cpp."""
    monkeypatch.setattr(
        sys.modules[backends["cpp"].module], "mixture_log_prob", reference.mixture_log_prob, raising=False
    )
    x = X.clone().requires_grad_()
    for name, expected in (("cpp", 2.0), ("reference", 1.0)):
        with use_backend(name):
            value = mixture.log_prob(x).sum()
        assert float(torch.autograd.grad(value, x)[0][0, 0]) == expected


def test_an_unknown_name_is_refused(mixture: GaussianMixture, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "expected one of auto, cuda, triton, cpp, reference, found 'gpu'"
    with pytest.raises(ValueError, match=f"^name: {expected}"), use_backend("gpu"):
        pass
    with pytest.raises(ValueError, match=f"^backend: {expected}"):
        mixture_score = functional.mixture_score
        mixture_score(X, mixture, backend="gpu")
    monkeypatch.setenv("FASTNDSM_BACKEND", "gpu")
    with pytest.raises(ValueError, match=f"^FASTNDSM_BACKEND: {expected}"):
        mixture.score(X)


@pytest.mark.parametrize(
    ("name", "op", "x", "reason"),
    [
        ("cuda", "mixture_score", X, "it serves cuda tensors, found cpu; these can: cpp, reference"),
        ("cpp", "mixture_score", X.double(), "it computes in torch.float32, found torch.float64; these can: reference"),
        ("cpp", "mixture_log_prob", X, "it has no mixture_log_prob; these can: reference"),
        ("triton", "mixture_score", X, "No module named 'fastndsm_no_such_package'; these can: cpp, reference"),
    ],
    ids=["device", "dtype", "op", "missing"],
)
def test_a_named_backend_that_cannot_serve_says_why(
    backends: Any, mixture: GaussianMixture, name: str, op: str, x: torch.Tensor, reason: str
) -> None:
    function = getattr(functional, op)
    with pytest.raises(BackendError) as error:
        function(x, mixture, backend=name)
    assert str(error.value) == f"backend {name!r} cannot serve {op}: {reason} (docs/troubleshooting.md#backends)"
    with pytest.raises(BackendError), use_backend(name):
        function(x, mixture)


def test_what_a_backend_leaves_to_the_reference_it_serves_in_every_dtype(
    backends: dict[str, Backend], mixture: GaussianMixture
) -> None:
    """The prior of a fit is float64: `sample` on a backend of float32 alone draws from it all the same."""
    drawn = mixture.sample(3, seed=1)
    assert drawn.dtype == torch.float64
    with pytest.raises(BackendError, match=r"cannot serve mixture_sample: it computes in torch\.float32"):
        functional.mixture_sample(3, mixture, seed=1, backend="cpp")
    backends["cpp"] = replace(backends["cpp"], left=("mixture_sample",))
    assert torch.equal(functional.mixture_sample(3, mixture, seed=1, backend="cpp"), drawn)
    backends["triton"] = replace(backends["triton"], left=("mixture_sample",))
    with pytest.raises(BackendError, match="No module named"):  # it has to be there, even so
        functional.mixture_sample(3, mixture, seed=1, backend="triton")


def test_a_backend_that_fails_to_build_gives_its_reason(
    mixture: GaussianMixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "fastndsm_test_no_compiler.py").write_text(
        "def prepare():\n    raise RuntimeError('no C++ compiler found')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    broken = Backend("cpp", "fastndsm_test_no_compiler", devices=("cpu",))
    monkeypatch.setattr(registry, "BACKENDS", {"cpp": broken, "reference": REFERENCE})
    with pytest.raises(
        BackendError, match="cannot serve mixture_score: no C\\+\\+ compiler found; these can: reference"
    ):
        functional.mixture_score(X, mixture, backend="cpp")


def test_auto_logs_once_why_it_passed_one_over(
    backends: Any, mixture: GaussianMixture, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fastndsm"):
        for _ in range(3):
            mixture.score(X)
            mixture.log_prob(X)
            mixture.hvp(X, X)
    assert [record.getMessage() for record in caplog.records] == [
        "backend auto: triton passed over: No module named 'fastndsm_no_such_package' "
        "(docs/troubleshooting.md#passed-over)",
        "backend auto: cpp passed over: it has no mixture_log_prob",
        "backend auto: cpp passed over: it has no mixture_hvp",
    ]  # and nothing of cuda, which is not for tensors on a CPU


def test_every_op_runs_on_the_reference() -> None:
    """Also through the classes, whose backward and helper ops follow."""
    p = OUProcess(2, T=1.0, n_steps=10)
    with use_backend("reference"):
        for estimator in ("path", "plain", "control_variate"):
            x0 = torch.randn(5, 2, requires_grad=True)
            NDSMLoss(p, estimator)(lambda x, t: -x, x0).backward()
            assert bool(torch.isfinite(x0.grad).all())  # type: ignore[arg-type]
        assert fastndsm.sample(lambda x, t: -x, p, 3).shape == (3, 2)
