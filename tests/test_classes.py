"""References with classes: a row has the components of its class alone, in every op and whatever is beside it."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cpp_cases import kernels  # noqa: F401
from helpers import COVARIANCE_TYPES, full_covariances, normals, quietly, random_mixture
from torch import Tensor

import fastndsm
from fastndsm import GaussianMixture, LangevinProcess, NDSMLoss, ResidualScore, functional, networks
from fastndsm.backends import registry
from fastndsm.training import TrainConfig, Trainer, load_model, save_model
from fastndsm.training.batches import Batches

B, N = 37, 12
SIZES = {"few": (3, (2, 1, 4)), "looked up": (5, (30, 26, 24)), "many": (4, (270, 3, 30))}  # d, components of classes
LABELS = (torch.arange(B) * 7 % 5 - 1).to(torch.int64)  # -1 and 3 are no class
backends = pytest.mark.parametrize("backend", ["reference", "cpp"])
kinds = pytest.mark.parametrize("kind", COVARIANCE_TYPES)
sizes = pytest.mark.parametrize("size", SIZES)
Results = tuple[Tensor, ...]


def mixture_of(kind: str, size: str = "few") -> GaussianMixture:
    dim, counts = SIZES[size]
    m = random_mixture(kind, sum(counts), dim, ratio=4.0)
    ends = torch.tensor((0, *counts)).cumsum(0)
    return GaussianMixture(m.weights, m.means, m.covariances, kind, ranges=torch.stack([ends[:-1], ends[1:]], dim=1))


def process_of(reference: GaussianMixture) -> LangevinProcess:
    return quietly(reference, T=0.5, n_steps=N)


class Rows:
    """A batch, and what ops are asked of its rows."""

    def __init__(self, m: GaussianMixture, dtype: torch.dtype) -> None:
        self.mixture, self.process = m, process_of(m)
        self.x, self.v = normals(B, m.dim).to(dtype), normals(B, m.dim, seed=1).to(dtype)
        self.held, self.steps = normals(B, m.dim, seed=2).to(dtype), torch.arange(B) * 5 % (N + 1)
        self.rate = normals(B, seed=3).abs().to(dtype)
        self.coefficients = self.process.reverse_scheme(prediction="linear").coefficients(11, 1)

    def own(self, c: int) -> Rows:
        """Return the same rows under the mixture of one class."""
        made = copy.copy(self)
        made.mixture = self.mixture.of_class(c)
        made.process = LangevinProcess(made.mixture, grid=self.process.times)
        return made


def records(r: Rows, rows: slice) -> Tensor:
    return torch.stack([r.steps[rows], (r.steps[rows] + 3) % (N + 1)], dim=1)


# (rows, slice, labels or None, backend) -> outputs; rows of outputs are those of the slice, or twice those
OPS: dict[str, Callable[[Rows, slice, Any, str], Any]] = {
    "score": lambda r, s, y, b: functional.mixture_score(r.x[s], r.mixture, labels=y, backend=b),
    "log_prob": lambda r, s, y, b: functional.mixture_log_prob(r.x[s], r.mixture, labels=y, backend=b),
    "hvp": lambda r, s, y, b: functional.mixture_hvp(r.x[s], r.v[s], r.mixture, labels=y, backend=b),
    "sample": lambda r, s, y, b: functional.mixture_sample(
        len(r.x[s]), r.mixture, seed=5, first_path=s.start, labels=y, backend=b, dtype=r.x.dtype
    ),
    "simulate": lambda r, s, y, b: functional.simulate(
        r.x[s], r.process, r.steps[s], seed=4, first_path=s.start, condition=y, backend=b
    ),
    "transition": lambda r, s, y, b: functional.simulate_transition(
        r.x[s], r.process, r.steps[s].clamp(min=1), seed=4, first_path=s.start, condition=y, backend=b
    ),
    "target": lambda r, s, y, b: functional.simulate_target(
        r.x[s], r.process, records(r, s), seed=4, first_path=s.start, antithetic=True, condition=y, backend=b
    ),
    "reverse": lambda r, s, y, b: r.process.dynamics_under(y, len(r.x[s])).reverse_steps(
        *(r.x[s], r.held[s], r.v[s], r.rate[s], torch.tensor([11, 1])),
        *(r.coefficients.to(r.x), torch.tensor(6), s.start, b),
    ),
}
every_op = pytest.mark.parametrize("op", OPS)


def run(op: str, r: Rows, labels: Tensor | None, backend: str, rows: slice = slice(0, B)) -> Results:
    found = OPS[op](r, rows, None if labels is None else labels[rows], backend)
    return (found,) if isinstance(found, Tensor) else found


def select(results: Results, of: Tensor) -> Results:
    """Return the rows of a mask [B], of both halves of an antithetic draw."""
    return tuple(part[of.repeat(len(part) // B)] for part in results)


@every_op
@sizes
@kinds
@backends
def test_rows_of_all_classes_are_those_of_each_classs_own_mixture(backend: str, kind: str, size: str, op: str) -> None:
    rows = Rows(mixture_of(kind, size), torch.float64)
    found = run(op, rows, LABELS, backend)
    for c in range(3):
        alone = run(op, rows.own(c), None, "reference")
        for one, other in zip(select(found, LABELS == c), select(alone, LABELS == c), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    none = (LABELS < 0) | (LABELS >= 3)
    for one, other in zip(select(found, none), select(run(op, rows, None, backend), none), strict=True):
        assert torch.equal(one, other)  # a label that is no class stands for all components


@every_op
@sizes
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@backends
def test_bits_are_those_of_a_batch_of_one_class(
    backend: str, dtype: torch.dtype, kind: str, size: str, op: str
) -> None:
    rows = Rows(mixture_of(kind, size), dtype)
    whole = run(op, rows, LABELS, backend)
    for c in range(3):
        alone = run(op, rows, torch.full_like(LABELS, c), backend)
        for one, other in zip(select(whole, LABELS == c), select(alone, LABELS == c), strict=True):
            assert torch.equal(one, other)


@every_op
@sizes
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bits_depend_neither_on_the_batch_nor_on_threads(dtype: torch.dtype, kind: str, size: str, op: str) -> None:
    rows = Rows(mixture_of(kind, size), dtype)
    whole = run(op, rows, LABELS, "cpp")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for start, stop in ((0, 5), (5, 6), (6, B)):
            part = run(op, rows, LABELS, "cpp", slice(start, stop))
            inside = (torch.arange(B) >= start) & (torch.arange(B) < stop)
            for one, other in zip(select(whole, inside), part, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(threads)


@every_op
@kinds
def test_float32_agrees_with_the_reference_in_float64(kind: str, op: str) -> None:
    m = mixture_of(kind, "looked up")
    exact = run(op, Rows(m, torch.float64), LABELS, "reference")
    rounded = Rows(m, torch.float32)
    for mine, plain, truth in zip(
        run(op, rounded, LABELS, "cpp"), run(op, rounded, LABELS, "reference"), exact, strict=True
    ):
        allowed = 4.0 * float((plain.double() - truth).abs().amax()) + 2e-6 * float(truth.abs().amax())
        assert float((mine.double() - truth).abs().amax()) <= allowed


@backends
def test_far_rows_are_those_of_their_class(backend: str) -> None:
    """Rows whose densities overflow in float32 are taken about the nearest component of their own class."""
    m = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1e6, 0.0]], [1e-4, 1e-4], "spherical", ranges=[[0, 1], [1, 2]])
    x, labels = torch.tensor([[1e20, 0.0], [1e20, 0.0], [1e6, 0.0]]), torch.tensor([0, 1, 0])
    expected = (m.means[labels] - x.double()) / 1e-4
    torch.testing.assert_close(functional.mixture_score(x, m, labels=labels, backend=backend), expected.float())
    grown = x.clone().requires_grad_()
    functional.mixture_score(grown, m, labels=labels, backend=backend).sum().backward()
    torch.testing.assert_close(grown.grad, torch.full_like(x, -1e4))


@kinds
@backends
def test_gradients(backend: str, kind: str) -> None:
    m = mixture_of(kind)
    p, x, labels = process_of(m), normals(4, 3).requires_grad_(), torch.tensor([2, 0, -1, 2])
    with fastndsm.use_backend(backend):
        for function in (
            lambda x: m.log_prob(x, labels),
            lambda x: m.score(x, labels),
            lambda x: m.hvp(x, 2.0 * x, labels),
            lambda x: p.noised(x, 3, seed=1, antithetic=True, condition=labels)[:3],
            lambda x: functional.reverse_step(x, 0.5 * x, p, 2, seed=1, condition=labels),
        ):
            assert torch.autograd.gradcheck(function, (x,))
            compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), function(x), rtol=0.0, atol=0.0)
        assert torch.autograd.gradgradcheck(lambda x: m.log_prob(x, labels), (x,))


def test_transforms_see_labels() -> None:
    m, x, labels = mixture_of("diag"), normals(3, 3), torch.tensor([2, 0, -1])
    by_row = torch.func.vmap(torch.func.grad(lambda x, y: m.log_prob(x[None], y[None])[0]))(x, labels)
    torch.testing.assert_close(by_row, m.score(x, labels))


def test_density_of_a_class_integrates_to_one_and_classes_add_up() -> None:
    m = mixture_of("spherical")
    x = normals(50, 3)
    joint = torch.stack([m.log_prob(x, torch.full((50,), c)) + m.class_weights[c].log() for c in range(3)])
    torch.testing.assert_close(joint.logsumexp(0), m.log_prob(x))
    r = m.responsibilities(x, torch.full((50,), 1))
    assert bool((r[:, :2] == 0).all()) and torch.equal(r.sum(1), torch.ones_like(r[:, 0]))
    drawn = m.sample(50, seed=1, labels=torch.full((50,), 1))
    assert torch.equal(drawn, m.of_class(1).sample(50, seed=1))


# --- fit -----------------------------------------


def points(n: int = 400) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([0] * (n // 2) + [1] * (n // 2 - 10) + [2] * 10)[torch.randperm(n)]
    return normals(n, 2) + 6.0 * labels[:, None], labels


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@kinds
def test_fit_gives_each_class_its_share_and_components_of_its_own(kind: str) -> None:
    x, labels = points()
    m = GaussianMixture.fit(x, 12, kind, labels=labels, random_state=0)
    assert m.ranges.tolist() == [[0, 6], [6, 11], [11, 12]] and m.n_components == 12 and m.n_classes == 3
    torch.testing.assert_close(m.class_weights, labels.bincount().double() / len(labels), rtol=1e-14, atol=0.0)
    for c, count in enumerate((6, 5, 1)):
        own = GaussianMixture.fit(x[labels == c], count, kind, random_state=0)
        found = m.of_class(c)
        torch.testing.assert_close(found.means, own.means)
        torch.testing.assert_close(found.weights, own.weights)
        if kind != "tied":
            torch.testing.assert_close(found.covariances, own.covariances)
    if kind == "tied":
        each = [GaussianMixture.fit(x[labels == c], k, kind, random_state=0) for c, k in enumerate((6, 5, 1))]
        mean = sum(w * o.covariances for w, o in zip(m.class_weights, each, strict=True))
        torch.testing.assert_close(m.covariances, mean)


@pytest.mark.filterwarnings("ignore")
def test_numbers_of_components_are_shared_or_given() -> None:
    x, labels = points()

    def counts(n_components: Any, **options: Any) -> list[int]:
        m = GaussianMixture.fit(x, n_components, labels=labels, random_state=0, max_iter=1, **options)
        return (m.ranges[:, 1] - m.ranges[:, 0]).tolist()

    assert counts(3) == [1, 1, 1] and counts(400, reg_covar=1e-3) == [200, 190, 10]
    assert counts((1, 2, 3)) == counts({2: 3, 0: 1, 1: 2}) == counts(torch.tensor([1, 2, 3]).tolist()) == [1, 2, 3]
    weighted = GaussianMixture.fit(x, 3, labels=labels, sample_weight=1.0 + labels, random_state=0)
    torch.testing.assert_close(
        weighted.class_weights, (labels.bincount() * torch.tensor([1.0, 2.0, 3.0]) / 610).double()
    )
    plain, floored = (
        GaussianMixture.fit(x, (8, 8, 4), labels=labels, random_state=0, eigenvalue_floor=floor)
        for floor in (None, 0.9)
    )
    assert floored.digest == plain.conditioned(0.9).digest != plain.digest
    images = GaussianMixture.fit(x.reshape(-1, 1, 2).numpy(), 3, labels=labels.numpy(), random_state=0)
    assert images.sample(2, seed=0).shape == (2, 1, 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_components": 2}, r"^n_components: expected 3, one for each class, to 400, .*, found 2$"),
        ({"n_components": (1, 2)}, "^n_components: expected one for each of 3 classes, found 2$"),
        ({"n_components": (1, 1, 11)}, "^n_components: expected at most the samples of class 2, 10, found 11$"),
        ({"n_components": {0: 1, 1: 1}}, r"^n_components: expected the classes 0\.\.2, found \[0, 1\]$"),
        ({"n_components": (1, 0, 1)}, r"^n_components\[1\]: expected .* at least 1, found 0"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"^labels: expected \[400\], one for each sample of X"),
        ({"labels": torch.arange(400) - 1}, "^labels: expected labels from 0, found -1$"),
        ({"labels": torch.arange(400)}, "^labels: expected two samples or more of each class, found 1 of class 0$"),
        ({"sample_weight": torch.ones(399)}, r"^sample_weight: expected shape \(400,\), found \(399,\)$"),
        ({"means_init": [[0.0, 0.0]] * 3}, "^means_init: expected None with labels, found values$"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_fits_are_refused(arguments: dict[str, Any], message: str) -> None:
    x, labels = points()
    with pytest.raises(ValueError, match=message):
        GaussianMixture.fit(x, **{"n_components": 3, "labels": labels, **arguments})


def test_a_choice_judges_rows_under_their_labels() -> None:
    """Each class is one Gaussian: one component each is enough, however rare a class is."""
    x, labels = points(2100)
    for rows in (slice(None), slice(0, 900)):  # one split, and folds
        chosen = GaussianMixture.select(
            x[rows], (3, 9, 60), labels=labels[rows].to(torch.int32), n_init=1, random_state=0
        )
        assert chosen.chosen.n_components == 3 and len(chosen.table) == 3
        floor = {"eigenvalue_floor": 0.03, "random_state": 0}
        again = GaussianMixture.fit(x[rows], 3, labels=labels[rows].numpy(), **floor)
        assert chosen.mixture.digest == again.digest
        each = chosen.mixture.log_prob(x, labels).mean()
        assert abs(float(each) - float(chosen.chosen.held_out)) < 0.2  # type: ignore[arg-type]
    open_choice = GaussianMixture.select(x[:40], labels=labels[:40] % 2, random_state=0)
    assert open_choice.chosen.n_components >= 2


def test_bad_ranges_and_labels_are_refused() -> None:
    m = mixture_of("spherical")
    parts = m.weights, m.means, m.covariances, "spherical"
    for ranges in ([[0, 3], [3, 6]], [[0, 3], [4, 7]], [[0, 0], [0, 7]], [[3, 7], [0, 3]]):
        with pytest.raises(ValueError, match=r"^ranges: expected the 7 components, one class after another"):
            GaussianMixture(*parts, ranges=ranges)
    with pytest.raises(TypeError, match=r"^ranges: expected integers, found torch\.float32$"):
        GaussianMixture(*parts, ranges=[[0.0, 7.0]])
    with pytest.raises(ValueError, match=r"^ranges: expected shape \[C, 2\], found \(2,\)$"):
        GaussianMixture(*parts, ranges=[0, 7])
    with pytest.raises(ValueError, match=r"^weights: expected some for every class, found 0 for class 1$"):
        GaussianMixture([0.5, 0.5, 0.0], m.means[:3], m.covariances[:3], "spherical", ranges=[[0, 2], [2, 3]])
    x = normals(5, 3)
    with pytest.raises(ValueError, match=r"^labels: expected None for a mixture without classes, found some$"):
        m.of_class(0).score(x, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^labels: expected shape \(5,\), found \(4,\)$"):
        m.score(x, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^labels: expected integers \[B\]"):
        m.log_prob(x, torch.zeros(5))
    with pytest.raises(ValueError, match=r"^label: expected a class in 0\.\.2, found 3$"):
        m.of_class(3)
    ranges = torch.tensor([[0, 7]] * 4 + [[3, 8]])
    operands = m.operands(x.dtype)
    with pytest.raises(ValueError, match=r"^ranges: expected 0 <= start < stop <= 7, found 3 and 8 in row 4"):
        torch.ops.fastndsm_cpp.mixture_score(x, *operands, ranges)
    with pytest.raises(ValueError, match=r"^ranges: expected int64 \[5, 2\], found Long of shape \[4, 2\]"):
        torch.ops.fastndsm_cpp.mixture_score(x, *operands, ranges[:4])


# --- what a mixture goes through -----------------------------------------


def test_classes_are_copied_cast_pickled_moved_and_stored() -> None:
    m = mixture_of("diag")
    x, labels = normals(9, 3), torch.arange(9) % 4
    expected = m.score(x, labels)
    wider = torch.nn.ModuleDict({"m": copy.deepcopy(m)}).half()["m"]
    for made in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), m.conditioned(1e-3), wider):
        assert torch.equal(made.ranges, m.ranges) and torch.equal(made.score(x, labels), expected)
    cast = copy.deepcopy(m).float()
    assert cast.ranges.dtype == torch.int64 and cast.weights.dtype == torch.float32
    torch.testing.assert_close(cast.score(x, labels), expected, rtol=1e-4, atol=1e-4)
    plain = GaussianMixture(m.weights, m.means, m.covariances, "diag")
    assert plain.digest != m.digest and plain.n_classes == 0 and "n_classes=3" in repr(m)
    plain.load_state_dict(m.state_dict())
    assert torch.equal(plain.score(x, labels), expected) and plain.digest == m.digest
    old = {name: t for name, t in m.state_dict().items() if name != "ranges"}
    m.load_state_dict(old)  # of a file from before there were classes
    assert m.ranges is None and m.n_classes == 0


def test_images_of_a_class_under_maps_are_of_the_class() -> None:
    m = mixture_of("full")
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    made = m.symmetrized([flip])
    assert made.ranges.tolist() == [[0, 4], [4, 6], [6, 14]]
    x = normals(20, 3)
    for c in range(3):
        labels = torch.full((20,), c)
        both = torch.stack([m.log_prob(x, labels), m.log_prob(x @ flip, labels)]).logsumexp(0) - math.log(2.0)
        torch.testing.assert_close(made.log_prob(x, labels), both)
    torch.testing.assert_close(made.class_weights, m.class_weights)


def test_a_model_is_stored_with_its_classes(tmp_path: Path) -> None:
    p = LangevinProcess(mixture_of("spherical"), T=0.5, n_steps=400, class_key="digit")
    net = ResidualScore(networks.MLP(3, (8,), embedding_dim=8, classes=3), p)
    save_model(tmp_path / "model", net, p)
    loaded, process, _ = load_model(tmp_path / "model")
    assert torch.equal(process.reference.ranges, p.reference.ranges) and process.class_key == "digit"
    x, t, labels = normals(5, 3).float(), torch.full((5,), 0.2), torch.tensor([0, 1, 2, 3, 0])
    assert torch.equal(loaded(x, t, labels), net(x, t, labels)) and process.same_law(p)


def test_triton_and_cuda_say_why_they_do_not_serve(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    m, x, labels = mixture_of("diag"), normals(B, 3).float(), LABELS
    reason = "it has every row use all components, found rows with those of their class alone"
    here = dataclasses.replace(registry.BACKENDS["triton"], devices=("cpu",))
    monkeypatch.setitem(registry.BACKENDS, "triton", here)
    with pytest.raises(registry.BackendError, match=f"^backend 'triton' cannot serve mixture_score: {reason}; .* cpp"):
        functional.mixture_score(x, m, labels=labels, backend="triton")
    monkeypatch.setattr(registry, "_logged", set())
    with caplog.at_level(logging.WARNING, "fastndsm"), fastndsm.use_backend("auto"):
        found = [m.score(x, labels) for _ in range(2)]
    assert caplog.text.count(reason) == 1
    assert torch.equal(found[0], functional.mixture_score(x, m, labels=labels, backend="cpp"))


# --- processes, losses, training, sampling -----------------------------------------


def test_a_process_reads_labels_from_a_condition() -> None:
    p = process_of(mixture_of("diag"))
    x, labels = normals(B, 3), LABELS.to(torch.int32)
    expected = functional.simulate(x, p, 3, seed=1, condition=LABELS)
    assert torch.equal(p.simulate(x, 3, seed=1, condition=labels), expected)
    both = {"labels": labels, "other": normals(B, 2)}
    assert torch.equal(p.simulate(x, 3, seed=1, condition=both), expected)
    torch.testing.assert_close(p.drift(x, 0.1, labels), 0.5 * p.reference.score(x, labels))
    assert torch.equal(p.draw_prior(B, 2, 3, labels), p.reference.sample(B, 2, first_path=3, labels=labels))
    assert torch.equal(p.prior_log_prob(x, both), p.reference.log_prob(x, labels)) and p.prior_knows(labels)
    message = (
        r"^condition: expected class labels, integers \[B\], or a dict with them as 'labels', for a reference with 3"
    )
    for bad in (normals(B, 2), {"other": labels}):
        with pytest.raises(ValueError, match=message):
            p.noised(x, condition=bad)
    with pytest.raises(ValueError, match=r"^labels: expected shape \(37,\), found \(36,\)$"):
        p.noised(x, condition=labels[1:])
    with pytest.raises(ValueError, match=r"^fit_prior: expected a reference without classes"):
        p.fit_prior(x, LABELS.clamp(min=0))
    plain = process_of(GaussianMixture(p.reference.weights, p.reference.means, p.reference.covariances, "diag"))
    assert torch.equal(plain.simulate(x, 3, seed=1, condition=labels), plain.simulate(x, 3, seed=1))


@pytest.mark.parametrize("estimator", ["path", "plain", "control_variate"])
def test_the_loss_noises_and_judges_each_row_under_its_class(estimator: str) -> None:
    p = process_of(mixture_of("diag"))
    net = ResidualScore(lambda x, t, y: 0.0 * x, p)  # type: ignore[arg-type]
    x, labels = normals(B, 3), LABELS
    options = {"estimator": estimator, "antithetic": estimator == "plain"}
    found = NDSMLoss(p, **options, reduction="none")(net, x, seed=1, condition=labels)
    for c in range(3):
        own = LangevinProcess(p.reference.of_class(c), grid=p.times)
        loss = NDSMLoss(own, **options, reduction="none", weighting=lambda t: p.variance_at(t))
        alone = loss(ResidualScore(lambda x, t: 0.0 * x, own), x, seed=1)
        torch.testing.assert_close(found[labels == c], alone[labels == c])


def test_a_path_whose_condition_is_dropped_is_noised_towards_all_components() -> None:
    p = process_of(mixture_of("diag"))
    net = networks.MLP(3, (8,), embedding_dim=8, classes=3)
    x, labels = normals(60, 3).float(), torch.arange(60) % 3
    options: dict[str, Any] = {"steps": 3, "batch_size": 20, "seed": 2, "device": torch.device("cpu")}
    batches = Batches(x, NDSMLoss(p), **options, noised_ahead=3, conditions=labels, classes=labels, dropout=0.5)
    dropped = 0
    for step in range(3):
        drawn, condition = batches(step), batches.condition(step, net)
        rows = batches._origins[0][0][20 * step : 20 * step + 20]
        for first, (row, label) in enumerate(zip(rows.tolist(), condition.tolist(), strict=True), 20 * step):
            one = NDSMLoss(p).draw(x[row : row + 1], 2, None, first, condition=torch.tensor([label]))
            assert torch.equal(one.x[0], drawn.x[first - 20 * step])
            dropped += label == 3
    assert 15 < dropped < 45


def test_training_goes_on_alike_after_a_break(tmp_path: Path) -> None:
    p = process_of(mixture_of("spherical"))
    x, labels = p.reference.sample(300, seed=1).float(), torch.arange(300) % 3

    def trainer(folder: str) -> Trainer:
        torch.manual_seed(0)
        net = ResidualScore(networks.MLP(3, (8,), embedding_dim=8, classes=3), p)
        config = TrainConfig(steps=6, batch_size=16, checkpoint_every=3)
        return Trainer(net, NDSMLoss(p), x, config, directory=tmp_path / folder, conditions=labels)

    whole = trainer("whole")
    whole.fit(progress=False)
    shutil.copytree(tmp_path / "whole" / "step-000003", tmp_path / "broken" / "step-000003")
    resumed = trainer("broken")
    assert resumed.resume() == 3
    resumed.fit(progress=False)
    for one, other in zip(whole.ema_net.parameters(), resumed.ema_net.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_without_a_correction_samples_are_those_of_their_class(method: str) -> None:
    """A residual of zero leaves each class's mixture as it is, whose prior, drift and residual are then one."""
    p = process_of(mixture_of("spherical"))
    net = ResidualScore(networks.MLP(3, (8,), embedding_dim=8, classes=3), p)
    labels = torch.arange(3000) % 3
    options: dict[str, Any] = {"method": method, "n_evaluations": 4, "seed": 1, "dtype": torch.float64}
    drawn = fastndsm.sample(net, p, 3000, condition=labels, **options)
    for c in range(3):
        there = p.reference.of_class(c).sample(1000, seed=7)
        noise = fastndsm.metrics.energy_distance(p.reference.of_class(c).sample(1000, seed=8), there)
        assert fastndsm.metrics.energy_distance(drawn[labels == c], there) < abs(noise) + 0.02
    split = fastndsm.sample(net, p, 3000, condition=labels, batch_size=999, **options)
    assert torch.equal(split, drawn)
    whole = fastndsm.sample(net, p, 3000, condition=labels, guidance=1.0, **options)
    assert torch.equal(whole, drawn)


def test_guidance_of_zero_asks_for_no_class() -> None:
    p = process_of(mixture_of("spherical"))
    net = ResidualScore(networks.MLP(3, (8,), embedding_dim=8, classes=3), p)
    labels = torch.arange(9) % 3
    with pytest.warns(UserWarning, match="null condition"):
        without = fastndsm.sample(net, p, 9, seed=1)
        assert torch.equal(fastndsm.sample(net, p, 9, condition=labels, guidance=0.0, seed=1), without)
    nothing = fastndsm.sample(net, p, 9, condition=torch.full((9,), 3), seed=1)
    torch.testing.assert_close(nothing, without)


def test_one_class_is_sampled_by_the_fused_network() -> None:
    p = process_of(mixture_of("diag"))
    net = networks.MLP(3, (16,), embedding_dim=8, classes=3)
    with torch.no_grad():
        net.last.weight.normal_(std=0.1)
    score_net = ResidualScore(net, p)
    for label in (0, 2, 3):
        options: dict[str, Any] = {"seed": 1, "condition": torch.full((B,), label)}
        with fastndsm.use_backend("cpp"):
            fused = fastndsm.sample(score_net, p, B, fused=True, **options)
            called = fastndsm.sample(score_net, p, B, fused=False, **options)
        torch.testing.assert_close(fused, called, rtol=1e-3, atol=1e-3)


@kinds
def test_likelihood_of_gaussian_classes(kind: str) -> None:
    """Each class is a Gaussian that its reference knows, so that the flow stands still: log p(x | y) to 1%."""
    counts = random_mixture(kind, 3, 2, ratio=4.0)
    m = GaussianMixture(counts.weights, counts.means, counts.covariances, kind, ranges=[[0, 1], [1, 2], [2, 3]])
    p = process_of(m)
    net = ResidualScore(networks.MLP(2, (8,), embedding_dim=8, classes=3), p)
    x, labels = normals(12, 2), torch.arange(12) % 3
    found = fastndsm.log_likelihood(net, p, x, condition=labels)
    covariances = full_covariances(m)[labels]
    exact = torch.distributions.MultivariateNormal(m.means[labels], covariances).log_prob(x)
    torch.testing.assert_close(found, exact, rtol=0.01, atol=0.0)
