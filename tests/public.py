"""An example of every public class, a call of every public function, and what one sees of the results.

Whoever adds a public class or function adds it here: `test_everywhere.py` fails until then.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import fastndsm
from fastndsm import (
    checkpoint,
    data,
    drifts,
    functional,
    latent,
    metrics,
    networks,
    reference,
    tabular,
    testing,
    training,
)
from fastndsm.integrations import score_sde, torchmetrics

SEED = 7
F = functional


class Given(NamedTuple):
    """The place where a result is made: the folder for files, and the dtype of data."""

    folder: Path
    dtype: torch.dtype = torch.float32


# --- what is public ----------------------------------------------------------------------------------------------


def modules() -> list[Any]:
    names = [name for name in fastndsm.__all__ if inspect.ismodule(getattr(fastndsm, name))]
    # What an adapter to a package that may be missing makes is copied in `test_integrations.py`.
    return [
        fastndsm,
        reference,
        score_sde,
        torchmetrics,
        *(importlib.import_module(f"fastndsm.{name}") for name in names),
    ]


def public() -> dict[str, Any]:
    """Return classes and functions by their full name, each once."""
    found = {}
    for module in modules():
        for name in module.__all__:
            value = getattr(module, name)
            alias = isinstance(value, GenericAlias)  # a class to Python 3.10
            if not alias and (inspect.isclass(value) or inspect.isfunction(value)):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


# --- ingredients -------------------------------------------------------------------------------------------------


def points(rows: int = 5, dim: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return testing.normals(rows, dim, seed=seed, dtype=dtype)


def mixture(kind: str = "diag", seed: int = 0, **options: Any) -> fastndsm.GaussianMixture:
    return testing.random_mixture(kind, 3, 2, seed=seed, ratio=3.0, **options)


def by_class(seed: int = 0) -> fastndsm.GaussianMixture:
    m = mixture(seed=seed)
    return fastndsm.GaussianMixture(m.weights, m.means, m.covariances, "diag", ranges=[[0, 1], [1, 3]])


def wave(t: float) -> float:
    return 1.0 + 0.1 * t


def pull(x: Tensor, t: Tensor) -> Tensor:
    return -0.5 * x


def quartic(x: Tensor) -> Tensor:
    return -(x**4).sum(1)


def seven(t: Tensor) -> Tensor:
    return 7.0 + t


def langevin(seed: int = 0, T: float = 0.5, sigma: Any = 1.0, kind: str = "diag") -> fastndsm.LangevinProcess:
    return testing.coarse_process(mixture(kind, seed), T=T, n_steps=6, sigma=sigma)


def drifting(rate: float = 0.3, T: float = 0.5, sigma: float = 1.0, seed: int = 0) -> fastndsm.DriftProcess:
    return fastndsm.DriftProcess(pull, mixture(seed=seed), T=T, n_steps=6, sigma=sigma, rate=rate)


def trained(net: nn.Module, seed: int = 0) -> Any:
    """Return the network with weights of every layer drawn anew on the CPU: one that starts at zero tells nothing."""
    g = testing.generator(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64, device="cpu"))
    return net


def mlp(horizon: float = 0.5, seed: int = 0, **options: Any) -> networks.MLP:
    return trained(networks.MLP(2, (6,), horizon=horizon, embedding_dim=8, **options), seed)


def unet(horizon: float = 0.5, seed: int = 0, **options: Any) -> networks.UNet:
    net = networks.UNet(1, 8, base=4, multipliers=(1, 2), horizon=horizon, embedding_dim=8, **options)
    return trained(net, seed)


def labels(rows: int = 5) -> Tensor:
    return torch.arange(rows, device="cpu") % 3


def ou_mixture(seed: int = 0, T: float = 0.5) -> fastndsm.OUProcess:
    return fastndsm.OUProcess(2, T, 10, reference=mixture("full", seed))


def edm(seed: int = 0, **options: Any) -> fastndsm.EDMProcess:
    return fastndsm.EDMProcess(2, mixture(seed=seed), n_steps=8, **options)


def flow(seed: int = 0) -> fastndsm.FlowProcess:
    return fastndsm.FlowProcess(mixture(seed=seed), n_steps=6)


def with_prior() -> fastndsm.LangevinProcess:
    process = langevin()
    process.fit_prior(points(9), labels(9))
    return process


def residual(seed: int = 0, features: bool = False, **options: Any) -> fastndsm.ResidualScore:
    net = networks.MLP(2, (6,), in_dim=4 if features else 2, horizon=options.get("T", 0.5), embedding_dim=8)
    return fastndsm.ResidualScore(trained(net, seed), langevin(seed, **options), features)


def pca(seed: int = 0) -> latent.PCA:
    return latent.PCA.fit(points(30, 4, seed) * torch.arange(1, 5, device="cpu"), 2)


def standardizer(seed: int = 0) -> data.Standardizer:
    return data.Standardizer.fit(points(30, 4, seed) * torch.arange(1, 5, device="cpu"))


def autoencoder(seed: int = 0) -> latent.Autoencoder:
    return latent.Autoencoder.fit(points(30, 4, seed), 2, hidden=(5,), steps=3, seed=seed)


def table_model() -> tabular.TabularModel:
    columns = {"a": points(20)[:, 0].double().numpy(), "b": ["u", "v"] * 10}
    return tabular.TabularModel.fit(columns, "b", generator="smoothed", levels=(0.5, 1.0), n_folds=2)


def latent_model(seed: int = 0) -> latent.LatentModel:
    return latent.LatentModel.fit(
        points(40, 4, seed),
        pca(seed),
        2,
        hidden=(6,),
        reg_covar=1e-3,
        n_init=1,
        config=training.TrainConfig(steps=3, batch_size=8, seed=seed),
        progress=False,
        n_steps=20,
    )


def classifier(seed: int = 0) -> metrics.FeatureClassifier:
    x = points(60, 3, seed)
    return metrics.FeatureClassifier.fit(x, (x[:, 0] > 0).long(), steps=3, feature_dim=4, seed=seed)


def dataset() -> data.Dataset:
    return data.moons(40, n_test=30)


def trainer(steps: int = 4) -> training.Trainer:
    net = residual()
    config = training.TrainConfig(steps=steps, batch_size=8, noised_ahead=2)
    return training.Trainer(net, fastndsm.NDSMLoss(net.process), points(20), config)


def arguments(dtype: torch.dtype = torch.float32) -> testing.Arguments:
    return testing.random_arguments("diag", 5, 2, 3, dtype=dtype)


# --- examples of classes -----------------------------------------------------------------------------------------


class Example(NamedTuple):
    """An object of a class: the way to make it, others of its class, and what is seen of one.

    parameters: it has what torch.nn's layers make, which is of the mode and the defaults that it is made under.
    """

    make: Callable[[], Any]
    seen: Callable[[Any], Any] = lambda value: value
    others: tuple[Callable[[], Any], ...] = ()
    parameters: bool = False
    kind: Any = None


def see_mixture(m: Any) -> Any:
    x, v = points(), points(seed=1)
    leaf = x.clone().requires_grad_()
    gradients = torch.autograd.grad(m.log_prob(leaf).sum() + (m.score(leaf) * v).sum(), leaf)
    return m.log_prob(x), m.score(x.double()), m.hvp(x, v), m.responsibilities(x), m.sample(4, seed=SEED), gradients


def see_process(p: Any) -> Any:
    x = points()
    tables = (
        p.times,
        p.drift_scale,
        p.noise_std,
        p.noise_variance,
        p.T,
        p.variance_at(torch.tensor([0.1, 9.0], dtype=torch.float32, device="cpu")),
    )
    drift = p.drift(x, 0.2), p.drift(x, torch.full((5,), 0.2, dtype=torch.float32, device="cpu"))
    return (
        tables,
        drift,
        p.prior.sample(3, seed=SEED),
        p.simulate(x, seed=SEED),
        p.transition(x, seed=SEED),
        p.noised(x, 3, SEED),
        p.draw_steps(5, 1),
    )


def see_classes(m: Any) -> Any:
    if m.n_classes == 0:
        return see_mixture(m)
    x, v, y = points(), points(seed=1), labels()
    under = m.log_prob(x, y), m.score(x, y), m.hvp(x, v, y), m.responsibilities(x, y), m.sample(5, SEED, labels=y)
    return see_mixture(m), under, m.class_weights, m.n_classes, m.of_class(1).score(x)


def see_process_of_classes(p: Any) -> Any:
    x, y = points(), {"labels": labels()}
    noised = p.simulate(x, seed=SEED, condition=y), p.transition(x, 3, SEED, condition=y)
    return see_process(p), noised, p.noised(x, 3, SEED, condition=y), p.draw_prior(5, SEED, 0, y)


def see_drift(drift: Any, dim: int = 2) -> Any:
    return drift(points(4, dim), torch.full((4,), 0.2, dtype=torch.float32, device="cpu"))


def see_ou(p: Any) -> Any:
    return see_process(p), p.marginal(), p.exact_noised(points(), seed=SEED)


def see_flow(p: Any) -> Any:
    t = torch.full((5,), 0.2, dtype=torch.float32, device="cpu")
    tables = p.times, p.noise_variance, p.T, p.variance_at(t), p.residual_scale(t), p.network_inputs(points(), t)
    return tables, p.prior.sample(3, seed=SEED), p.exact_noised(points(), seed=SEED), p.reference_score(points(), t)


def see_edm(p: Any) -> Any:
    return see_process(p), see_flow(p), p.output_scale(p.times[1:]), p.config


def see_network(net: Any) -> Any:
    p = next(net.parameters())
    x = points(3, 64).reshape(3, 1, 8, 8) if isinstance(net, networks.UNet) else points(3, 2)
    x, t = x.to(p.dtype).requires_grad_(), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, device="cpu").to(p.dtype)
    conditions = () if not net.takes_condition else (points(3, 4) if net.config["condition_dim"] else labels(3),)
    out = net(x, t, *conditions)
    return out, torch.autograd.grad(out.square().sum(), [x, *net.parameters()])


def see_embedding(e: Any) -> Any:
    return e(torch.linspace(0.0, 1.0, 4, device="cpu", dtype=torch.float32))


def see_loss(loss: Any) -> Any:
    return loss(pull, points(), seed=SEED)


def see_encoder(e: Any) -> Any:
    z = e.encode(points(4, 4))
    return z, e.decode(z)


def see_table(m: tabular.TabularModel) -> Any:
    made = m.sample(9, seed=SEED)
    return m.candidates, made["a"], made["b"].tolist()


def see_latent(m: Any) -> Any:
    return m.sample(4, seed=SEED), see_encoder(m.encoder)


def see_classifier(c: Any) -> Any:
    x = points(4, 3)
    return c(x), c.features(x), c.probabilities(x)


def see_features(f: Any) -> Any:
    return f(points(4, 3)), f.num_features


def see_sde(s: Any) -> Any:
    x, t = points(), torch.linspace(0.1, 0.5, 5, device="cpu", dtype=torch.float32)
    return s.T, s.N, s.sde(x, t), s.discretize(x, t)


def see_trainer(t: Any) -> Any:
    t = copy.deepcopy(t)
    t.fit(progress=False)
    return list(t.score_net.parameters()), list(t.ema_net.parameters()), [row.loss for row in t.history]


def see_error(error: Any) -> Any:
    return str(error), vars(error)


def see_backend(use: Any) -> Any:
    return use.name


def losses(seed: int = 0, T: float = 0.5, **options: Any) -> fastndsm.NDSMLoss:
    return fastndsm.NDSMLoss(langevin(seed, T), **options)


def made_backend() -> fastndsm.use_backend:
    use = fastndsm.use_backend("reference")
    use.__exit__()
    return use


EXAMPLES: dict[Any, list[Example]] = {
    fastndsm.GaussianMixture: [
        Example(
            lambda kind=kind: mixture(kind),
            see_mixture,
            tuple(
                lambda kind=kind, other=other: mixture(other, int(kind == other)) for other in testing.COVARIANCE_TYPES
            ),
        )
        for kind in testing.COVARIANCE_TYPES
    ]
    + [Example(by_class, see_classes, (mixture, lambda: by_class(1)))],
    fastndsm.LangevinProcess: [
        Example(
            lambda: testing.coarse_process(by_class(), T=0.5, n_steps=6),
            see_process_of_classes,
            (langevin, lambda: testing.coarse_process(by_class(1), T=0.5, n_steps=6)),
        ),
        Example(
            langevin,
            see_process,
            (
                lambda: langevin(1),
                lambda: langevin(T=0.3),
                lambda: langevin(sigma=1.5),
                lambda: langevin(kind="full"),
                lambda: langevin(sigma=wave),
            ),
        ),
        Example(lambda: langevin(sigma=wave), see_process, (lambda: langevin(1, sigma=wave), langevin)),
    ],
    fastndsm.OUProcess: [
        Example(
            lambda: fastndsm.OUProcess(2, 1.0, 10),
            see_ou,
            (lambda: fastndsm.OUProcess(2, 2.0, 10, 0.5), lambda: fastndsm.OUProcess(2, 1.0, 12)),
        ),
        Example(
            ou_mixture,
            lambda p: (see_ou(p), p.reference_score(points(), p.times[[1, 1, 2, 3, 9]])),
            (lambda: ou_mixture(1), lambda: ou_mixture(T=1.0), lambda: fastndsm.OUProcess(2, 1.0, 10)),
        ),
    ],
    fastndsm.EDMProcess: [Example(edm, see_edm, (lambda: edm(1), lambda: edm(sigma_max=3.0)))],
    fastndsm.FlowProcess: [Example(flow, see_flow, (lambda: flow(1),))],
    fastndsm.DriftProcess: [
        Example(
            drifting,
            see_process,
            (lambda: drifting(0.1), lambda: drifting(T=0.3), lambda: drifting(sigma=2.0), lambda: drifting(seed=1)),
        )
    ],
    drifts.DoubleWell: [Example(drifts.DoubleWell, see_drift, (lambda: drifts.DoubleWell(2.0),))],
    drifts.MuellerBrown: [Example(drifts.MuellerBrown, see_drift, (lambda: drifts.MuellerBrown(0.5),))],
    drifts.Lorenz: [Example(drifts.Lorenz, lambda drift: see_drift(drift, 3), (lambda: drifts.Lorenz(1.0),))],
    drifts.LotkaVolterra: [Example(drifts.LotkaVolterra, see_drift, (lambda: drifts.LotkaVolterra(2.0),))],
    drifts.Langevin: [Example(lambda: drifts.Langevin(quartic), see_drift)],
    drifts.Sum: [Example(lambda: drifts.Sum(pull, drifts.DoubleWell()), see_drift)],
    fastndsm.ResidualScore: [
        Example(
            lambda features=features: residual(features=features),
            see_network,
            (
                lambda features=features: residual(1, features),
                lambda features=features: residual(0, features, T=0.3),
                lambda features=features: residual(0, features, sigma=2.0),
                lambda features=features: residual(0, not features),
            ),
            parameters=True,
        )
        for features in (False, True)
    ],
    fastndsm.NDSMLoss: [
        Example(
            lambda options=options: losses(**options),
            see_loss,
            (lambda options=options: losses(1, **options), lambda options=options: losses(T=0.3, **options)),
        )
        for options in (
            {},
            {"weighting": seven},
            {"estimator": "control_variate", "weighting": None},
            {"estimator": "plain", "antithetic": True},
        )
    ],
    fastndsm.DSMLoss: [
        Example(
            lambda: fastndsm.DSMLoss(fastndsm.OUProcess(2, 1.0, 10)),
            see_loss,
            (lambda: fastndsm.DSMLoss(fastndsm.OUProcess(2, 2.0, 10)),),
        ),
        Example(lambda: fastndsm.DSMLoss(edm()), see_loss, (lambda: fastndsm.DSMLoss(edm(1)),)),
    ],
    fastndsm.FlowMatchingLoss: [
        Example(lambda: fastndsm.FlowMatchingLoss(flow()), see_loss, (lambda: fastndsm.FlowMatchingLoss(flow(1)),))
    ],
    fastndsm.Noised: [Example(lambda: langevin().noised(points(), seed=SEED))],
    fastndsm.Transition: [Example(lambda: langevin().transition(points(), seed=SEED))],
    fastndsm.BackendError: [Example(lambda: fastndsm.BackendError("no"), see_error)],
    fastndsm.use_backend: [Example(made_backend, see_backend)],
    **{
        kind: [
            Example(
                lambda make=make, options=options: make(**options),
                see_network,
                (lambda make=make, options=options: make(2.0, 1, **options),),
                parameters=True,
            )
            for options in ({}, {"classes": 3}, {"condition_dim": 4})
        ]
        for kind, make in ((networks.MLP, mlp), (networks.UNet, unet))
    },
    networks.TimeEmbedding: [
        Example(lambda: networks.TimeEmbedding(8, 0.5), see_embedding, (lambda: networks.TimeEmbedding(8, 3.0),), True)
    ],
    latent.Encoder: [Example(lambda: latent.Encoder(2, (4,)), lambda e: (e.dim, e.event_shape))],
    latent.PCA: [Example(pca, see_encoder, (lambda: pca(1),))],
    latent.Autoencoder: [Example(autoencoder, see_encoder, (lambda: autoencoder(1),))],
    latent.LatentModel: [Example(latent_model, see_latent, (lambda: latent_model(1),))],
    tabular.Candidate: [Example(lambda: tabular.Candidate("smoothed", "mean", 1.0, 0.5, 0.0))],
    tabular.TabularModel: [Example(table_model, see_table)],
    metrics.DensityCoverage: [Example(lambda: metrics.density_coverage(points(), points(4, seed=1), 2))],
    metrics.PrecisionRecall: [Example(lambda: metrics.precision_recall(points(), points(4, seed=1), 2))],
    metrics.FeatureClassifier: [Example(classifier, see_classifier, (lambda: classifier(1),))],
    torchmetrics.Features: [
        Example(
            lambda: torchmetrics.Features(classifier()), see_features, (lambda: torchmetrics.Features(classifier(1)),)
        )
    ],
    score_sde.SDE: [Example(lambda: score_sde.SDE(langevin(sigma=wave)), see_sde)],
    score_sde.ReverseSDE: [
        Example(lambda flow=flow: score_sde.SDE(langevin()).reverse(pull, flow), see_sde) for flow in (False, True)
    ],
    data.Dataset: [Example(dataset)],
    data.Standardizer: [Example(standardizer, see_encoder, (lambda: standardizer(1),))],
    checkpoint.Checkpoint: [
        Example(lambda: checkpoint.Checkpoint(3, {"w": points()}, {"w": points(seed=1)}, {"lr": 0.1}, {"a": 1}, {}))
    ],
    checkpoint.CheckpointError: [Example(lambda: checkpoint.CheckpointError("no"), see_error)],
    training.NonFiniteLoss: [Example(lambda: training.NonFiniteLoss("loss", 3, None), see_error)],
    training.Row: [Example(lambda: training.Row(1, 2.0, 0.1, 3.0, 4.0))],
    training.TrainConfig: [Example(lambda: training.TrainConfig(steps=3))],
    training.Trainer: [Example(trainer, see_trainer, parameters=True)],
    testing.Arguments: [Example(arguments, lambda a: vars(a) | {"process": see_process(a.process)})],
    testing.Call: [Example(lambda call=call: call, lambda c: c(arguments())) for call in testing.CALLS],
    reference.NoisedOperands: [Example(lambda: mixture("full").noised_operands(torch.float32))],
    reference.MixtureOperands: [Example(lambda: mixture().operands(torch.float32))],
    reference.PrincipalAxes: [Example(lambda: mixture("full").principal_axes(torch.float32))],
    reference.ProcessOperands: [Example(lambda: langevin().dynamics.operands(torch.float32))],
}


# --- calls of functions ------------------------------------------------------------------------------------------


def two_dimensional(n: int = 30, **options: Any) -> data.Dataset:
    return data.four_modes(n, n_test=20, **options)


@cache
def once() -> tuple[Any, Any, Any]:
    """Return networks that are the same whatever mode they are used in."""
    return residual(), mlp(), mlp(classes=3)


def values(net: Any) -> Tensor:
    return net(points(), torch.full((5,), 0.2, dtype=torch.float32, device="cpu"))


def saved_model(given: Given) -> Path:
    net = once()[0]
    checkpoint.save_model(given.folder / "model", net, net.process)
    return given.folder / "model"


def saved_latent(given: Given) -> Path:
    latent_model().save(given.folder / "latent")
    return given.folder / "latent"


def saved_checkpoint(given: Given) -> Path:
    folder = given.folder / "checkpoints"
    return checkpoint.save_checkpoint(folder, 3, {"w": points()}, {"w": points(seed=1)}, {"lr": [0.1]}, {"a": 1})


def saved_points(given: Given) -> Path:
    np.save(given.folder / "points.npy", points(20).numpy())
    return given.folder / "points.npy"


def saved_idx(given: Given) -> Path:
    path = given.folder / "labels-idx1-ubyte"
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2, 3]))
    return path


def call_sample(given: Given) -> Any:
    return [
        fastndsm.sample(net, process, 3, method, seed=SEED, dtype=torch.float32)
        for process in (langevin(), drifting())
        for net in (pull, once()[1])
        for method in F.METHODS
    ] + [fastndsm.sample(once()[2], with_prior(), 5, seed=SEED, dtype=torch.float32, condition=labels(), guidance=2.0)]


def call_sample_sharded(given: Given) -> Any:
    options = {"batch_size": 2, "seed": SEED, "dtype": torch.float32}
    return [fastndsm.sample_sharded(once()[1], process, 5, **options) for process in (langevin(), drifting())]


def written_samples(given: Given) -> Path:
    folder = given.folder / "samples"
    shutil.rmtree(folder, ignore_errors=True)
    fastndsm.write_samples(folder, once()[1], langevin(), 5, seed=SEED, batch_size=2, dtype=torch.float32)
    return folder


def call_log_likelihood(given: Given) -> Any:
    wide = testing.coarse_process(fastndsm.GaussianMixture.standard_normal(17), T=0.3, n_steps=3)
    return [
        fastndsm.log_likelihood(pull, process, points(3, process.dim), seed=SEED)
        for process in (langevin(), drifting(), wide)
    ] + [fastndsm.log_likelihood(once()[2], with_prior(), points(), condition=labels(), return_error=True)]


def call_bits(given: Given) -> Any:
    x = torch.tensor([[0, 3], [2, 1]], device="cpu")
    return metrics.bits_per_dimension(pull, langevin(), x, levels=4, n_draws=2, return_error=True)


def call_evaluate(given: Given) -> Any:
    digits = points(80, 4).reshape(80, 1, 2, 2)
    labelled = data.Dataset(
        "x", digits, digits[:70] + 0.1, (digits.sum((1, 2, 3)) > 0).long(), torch.arange(70, device="cpu") % 2
    )
    fitted = metrics.FeatureClassifier.fit(labelled.train, labelled.labels, steps=2, feature_dim=3)
    return [
        metrics.evaluate(points(10), two_dimensional(), max_points=8),
        metrics.evaluate(points(9), dataset()),
        metrics.evaluate(points(9, 4), labelled, classifier=fitted),
    ]


def of_call(name: str) -> Callable[[Given], Any]:
    return lambda given: [call(arguments(given.dtype)) for call in testing.CALLS if call.op == name]


def of_reference(name: str) -> Callable[[Given], Any]:
    """Call a reference as the op does, in float32 or float64."""

    def call(given: Given) -> Any:
        made = arguments(torch.promote_types(given.dtype, torch.float32))
        return [call(made, "reference") for call in testing.CALLS if call.op == name]

    return call


def call_compiled(given: Given) -> Any:
    drift = fastndsm.compile_drift(pull, 2)
    return drift(points(), 0.2), drift.product(points(), 0.2, points(seed=1))


def of_drift(name: str) -> Callable[[Given], Any]:
    """Call the reference of an op of a drift's program."""

    def call(given: Given) -> Any:
        x, v = points(), points(seed=1)
        traced = fastndsm.compile_drift(pull, 2).traced(x.dtype)
        program, parameters, steps = traced.program, traced.parameters(x), torch.arange(5, device="cpu")
        p, seed, t = drifting(), torch.tensor(SEED, device="cpu"), torch.full((5,), 0.2, dtype=x.dtype, device="cpu")
        walk = x, parameters, steps, p.times, p.noise_std
        bounds, table = torch.tensor([4, 1], device="cpu"), p.reverse_scheme().coefficients(4, 1).to(x.dtype)
        back = x, parameters, v, None, None, bounds, table, p.times, p.noise_std, program, seed, 0
        return {
            "value": lambda: reference.drift_value(x, parameters, t, program),
            "product": lambda: reference.drift_product(x, parameters, v, t, program),
            "simulate": lambda: reference.drift_simulate(*walk, program, seed, 0),
            "transition": lambda: reference.drift_transition(*walk, program, seed, 0),
            "target": lambda: reference.drift_target(*walk, 0.5, program, seed, 0, True),
            "reverse_steps": lambda: reference.drift_reverse_steps(*back),
        }[name]()

    return call


def of_network(given: Given) -> Any:
    """Call the reference of a whole network: of two hidden layers."""
    shapes = ((4, 4), (12, 4), (3, 2), (3, 3), (2, 3))
    weights = [points(*shape, seed=i) for i, shape in enumerate(shapes)]
    biases = [points(1, len(weight), seed=9)[0] for weight in weights]
    return reference.film_mlp(points(), points(5, 4, seed=8), None, weights, biases)


def gradients_of(name: str) -> Callable[[Given], Any]:
    def call(given: Given) -> Any:
        made = arguments(torch.promote_types(given.dtype, torch.float32))
        return [call.with_gradients(made, "reference") for call in testing.CALLS if call.op == name]

    return call


OPS = ("mixture_hvp", "mixture_log_prob", "mixture_sample", "mixture_score", "simulate", "simulate_target")
OPS += (
    "noised_log_prob",
    "noised_score",
    "simulate_transition",
    "reverse_steps",
    "ndsm_loss",
    "dsm_loss",
    "philox_normal",
)
OPS += ("simulate_transition", "reverse_steps", "ndsm_loss", "dsm_loss", "philox_normal")
DRIFTS = ("value", "product", "simulate", "transition", "target", "reverse_steps")
PARTS = checkpoint.process_parts

FUNCTIONS: dict[Any, Callable[[Given], Any]] = {
    **{getattr(functional, name): of_call(name) for name in (*OPS, "reverse_step")},
    **{getattr(reference, name): of_reference(name) for name in OPS},
    reference.film_mlp: of_network,
    reference.uniform_steps: lambda given: [
        reference.uniform_steps(5, 7, torch.tensor(SEED, device="cpu"), 3, torch.device("cpu"), records)
        for records in (None, 2)
    ],
    **{getattr(reference, f"{name}_backward"): gradients_of(name) for name in ("ndsm_loss", "dsm_loss")},
    **{getattr(reference, f"drift_{name}"): of_drift(name) for name in DRIFTS},
    fastndsm.compile_drift: call_compiled,
    reference.philox4x32_10: lambda given: reference.philox4x32_10((torch.arange(3, device="cpu"),) * 4, (5, 6)),
    fastndsm.loss_for: lambda given: [see_loss(fastndsm.loss_for(p)) for p in (langevin(), edm(), flow())],
    fastndsm.sample: call_sample,
    fastndsm.sample_sharded: call_sample_sharded,
    fastndsm.write_samples: lambda given: sorted(path.name for path in written_samples(given).iterdir()),
    fastndsm.read_samples: lambda given: fastndsm.read_samples(written_samples(given)),
    fastndsm.log_likelihood: call_log_likelihood,
    checkpoint.checkpoints: lambda given: [
        saved_checkpoint(given).name,
        *map(str, checkpoint.checkpoints(given.folder)),
    ],
    checkpoint.latest: lambda given: str(checkpoint.latest(saved_checkpoint(given).parent)),
    checkpoint.load_checkpoint: lambda given: checkpoint.load_checkpoint(saved_checkpoint(given)),
    checkpoint.load_encoder: lambda given: checkpoint.load_encoder(saved_latent(given)),
    checkpoint.load_model: lambda given: values(checkpoint.load_model(saved_model(given))[0]),
    checkpoint.process_from: lambda given: see_process(checkpoint.process_from(*PARTS(langevin()))),
    checkpoint.process_parts: lambda given: PARTS(langevin()),
    checkpoint.save_checkpoint: lambda given: str(saved_checkpoint(given)),
    checkpoint.save_model: lambda given: str(saved_model(given)),
    latent.encoder_from: lambda given: see_encoder(latent.encoder_from(*latent.encoder_parts(autoencoder()))),
    latent.encoder_parts: lambda given: latent.encoder_parts(pca()),
    data.dequantize: lambda given: data.dequantize(torch.tensor([[0, 3]], device="cpu"), seed=SEED),
    data.digits: lambda given: data.digits(),
    data.four_modes: lambda given: two_dimensional(),
    data.from_arrays: lambda given: data.from_arrays(points(30, 4).numpy(), [1, 7, 7] * 10),
    data.from_file: lambda given: data.from_file(saved_points(given)),
    data.load: lambda given: data.load("ring", n=10, n_test=5),
    data.moons: lambda given: data.moons(10, n_test=5),
    data.read_idx: lambda given: data.read_idx(saved_idx(given), 1),
    data.ring: lambda given: data.ring(10, n_test=5),
    metrics.bits_per_dimension: call_bits,
    metrics.class_balance: lambda given: metrics.class_balance(points().softmax(1)),
    metrics.confidence: lambda given: metrics.confidence(points().softmax(1)),
    metrics.density_coverage: lambda given: metrics.density_coverage(points(), points(4, seed=1), 2),
    metrics.energy_distance: lambda given: metrics.energy_distance(points(), points(4, seed=1)),
    metrics.evaluate: call_evaluate,
    metrics.frechet_distance: lambda given: metrics.frechet_distance(points(), points(4, seed=1)),
    metrics.kernel_log_likelihood: lambda given: metrics.kernel_log_likelihood(points(), points(4, seed=1)),
    metrics.label_weights: lambda given: [metrics.label_weights(points(), d) for d in (two_dimensional(), dataset())],
    metrics.mode_weights: lambda given: metrics.mode_weights(points(), points(2, seed=1)),
    metrics.nearest_distance: lambda given: [metrics.nearest_distance(points(5, d), points(4, d, 1)) for d in (2, 40)],
    metrics.precision_recall: lambda given: metrics.precision_recall(points(), points(4, seed=1), 2),
    metrics.sliced_wasserstein: lambda given: metrics.sliced_wasserstein(points(), points(4, seed=1), 5),
    metrics.total_variation: lambda given: metrics.total_variation(*points(2).softmax(1)),
    networks.build: lambda given: networks.build("mlp", dim=2, hidden=[4], embedding_dim=8).config,
    testing.coarse_process: lambda given: see_process(langevin()),
    testing.deviation: lambda given: testing.deviation((points(),), (points(seed=1),)),
    testing.differentiated: lambda given: testing.differentiated(torch.sin, points()),
    testing.generator: lambda given: torch.rand(3, generator=testing.generator(1), device="cpu", dtype=torch.float64),
    testing.normals: lambda given: testing.normals(3, 2),
    testing.random_arguments: lambda given: vars(arguments(given.dtype)) | {"process": None},
    testing.random_mixture: lambda given: [mixture(kind).state_dict() for kind in testing.COVARIANCE_TYPES],
    testing.strided: lambda given: testing.strided(points()),
}
TAKES_GRADIENTS = (testing.differentiated, reference.ndsm_loss_backward, reference.dsm_loss_backward)
ELSEWHERE = {  # test_cli.py: programs of their own; data.mnist: files that are not here; test_trainer_options.py
    "fastndsm.training.loggers.Logger": "two methods, and no more",
    "fastndsm.training.loggers.TensorBoard": "needs a package that may not be here",
    "fastndsm.training.loggers.WandB": "needs a package that may not be here",
    "fastndsm.cli.main": "a program",
    "fastndsm.cli.parser": "a program",
    "fastndsm.data._images.mnist": "needs files that are not here",
}


# --- comparison --------------------------------------------------------------------------------------------------


def leaves(value: Any) -> Iterator[Any]:
    """Yield the tensors, numbers and strings that a result holds."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (str(key), *leaves(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, np.ndarray):
        yield torch.from_numpy(value.copy())
    else:
        assert value is None or isinstance(value, bool | int | float | str), f"nothing is known of a {type(value)}"
        yield value


def seen(example: Example, value: Any) -> list[Any]:
    """Return what one sees of the object, with the same random numbers each time."""
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [t.clone() if isinstance(t, Tensor) else t for t in leaves(example.seen(value))]


def same(found: list[Any], expected: list[Any]) -> bool:
    """Return whether two results are equal, bit for bit, devices and dtypes included."""

    def equal(a: Any, b: Any) -> bool:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return bool(a == b) and type(a) is type(b)
        alike = a.dtype == b.dtype and a.device == b.device and a.shape == b.shape
        return alike and torch.equal(torch.nan_to_num(a, 1.5), torch.nan_to_num(b, 1.5))

    return len(found) == len(expected) and all(map(equal, found, expected))


ALL = {
    kind.__name__ + (f"-{i}" if len(examples) > 1 else ""): example._replace(kind=kind)
    for kind, examples in EXAMPLES.items()
    for i, example in enumerate(examples)
}
