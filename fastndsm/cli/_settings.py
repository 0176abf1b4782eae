"""The settings of `fastndsm train`: options, defaults that depend on the data, and what they build."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from .. import _checks, networks
from .._classes import can_fit
from .._grid import STEPS
from ..data import LAYOUTS, NAMES, SUFFIXES, Dataset
from ..flow import FlowProcess
from ..linear import EDMProcess
from ..mixture import GaussianMixture
from ..objective import ESTIMATORS, DSMLoss, NDSMLoss, loss_for
from ..process import LangevinProcess, OUProcess, ReferenceProcess
from ..reference.components import COVARIANCE_TYPES
from ..score import ResidualScore
from ..selection import Selection
from ..training.config import PRECISIONS, TrainConfig

PLANAR = 3  # up to this many values a sample: quadratic grid, features, a narrower network
LARGE_SIDE = 16  # pixels from which images get an autoencoder, or a U-Net
LATENTS = ("auto", "none", "autoencoder", "pca")
LATENT_DIM = {"autoencoder": 16, "pca": 32}
OU_HORIZON = 10.0
PROCESSES = ("langevin", "ou", "ou-mixture", "edm", "flow")
GRIDLESS = ("edm", "flow")  # that have times of their own


@dataclass(frozen=True)
class Settings:
    """The settings that define a run; stored with it. None and "auto" are chosen by the data."""

    data: str = "digits"
    n_train: int | None = None
    layout: str = "auto"
    label_column: str | None = None
    labels: str | None = None
    class_reference: bool | None = None
    standardize: bool = True
    latent: str = "auto"
    latent_dim: int | None = None
    components: int | str = "auto"
    covariance: str = "spherical"
    reg_covar: float = 1e-2
    eigenvalue_floor: float | None = None
    process: str = "langevin"
    T: float | None = None
    sigma: float = 1.0
    n_steps: int | None = None
    grid: str = "auto"
    estimator: str | None = None
    antithetic: bool = False
    network: str = "auto"
    hidden: list[int] | None = None
    base: int = 32
    features: bool | None = None
    residual: bool = True
    validation: float | None = None
    training: TrainConfig = field(default_factory=TrainConfig)
    samples: int = 2000

    def __post_init__(self) -> None:
        # Here too what the chosen process or network would not look at.
        _checks.count("base", self.base)
        if self.samples < 2:
            raise ValueError(f"samples: expected at least 2, found {self.samples}")
        if self.components != "auto":
            _checks.count("components", self.components)
        for name, least in (("n_train", 2), ("n_steps", 1), ("latent_dim", 1)):
            if getattr(self, name) is not None:
                _checks.count(name, getattr(self, name), least)
        _checks.choice("latent", self.latent, LATENTS)
        _checks.positive("sigma", self.sigma)
        _checks.non_negative("reg_covar", self.reg_covar)
        if self.eigenvalue_floor is not None:
            _checks.fraction("eigenvalue_floor", self.eigenvalue_floor)
        if self.T is not None:
            _checks.positive("T", self.T)
        if self.validation is not None and _checks.fraction("validation", self.validation) == 1.0:
            raise ValueError("validation: expected a number in (0, 1), found 1.0")
        if self.hidden is not None:
            _checks.integers("hidden", self.hidden)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Settings:
        """Make settings of values by name, as options and a run's folder give them, the training's among the others."""
        names = {known.name for known in fields(TrainConfig)}
        training = TrainConfig(**{name: value for name, value in values.items() if name in names})
        return cls(**{name: value for name, value in values.items() if name not in names}, training=training)

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> Settings:
        """Make the settings of a run's folder; one from before standardising, encoders or classes had none."""
        if values.get("components", "auto") is None:  # how a choice was called before there was one
            values = {**values, "components": "auto"}
        return cls.from_flat({"standardize": False, "latent": "none", "class_reference": False, **values})

    def flat(self) -> dict[str, Any]:
        """Return every value by name; `from_flat` makes the settings again."""
        values = dataclasses.asdict(self)
        training = values.pop("training")
        return {**values, **training}

    def resolved(self, dataset: Dataset) -> Settings:
        """Return the settings with every choice made that does not wait for the mixture."""
        latent, event_shape = self._latent(dataset), dataset.event_shape
        latent_dim = None
        if latent != "none":
            latent_dim = LATENT_DIM[latent] if self.latent_dim is None else self.latent_dim
            event_shape = (latent_dim,)
        image = len(event_shape) == 3
        planar = math.prod(event_shape) <= PLANAR
        network = self.network
        if network == "auto":
            network = "unet" if image and min(event_shape[1:]) >= LARGE_SIDE else "mlp"
        if network == "unet" and not image:
            raise ValueError(f"--network: expected mlp for samples of shape {event_shape}, found unet")
        if network == "unet" and self.hidden is not None:
            raise ValueError("--hidden: expected with --network mlp, found unet")
        features = planar and self.residual if self.features is None else self.features
        if self.process == "flow":
            features = False  # whose residual velocity starts from zero
        if features and not self.residual:
            raise ValueError("--features: expected with --residual, found --no-residual")
        if features and network == "mlp" and len(event_shape) > 1:
            raise ValueError(f"--features: expected --network unet for samples of shape {event_shape}, found mlp")
        if self.process != "langevin" and (self.estimator is not None or self.antithetic):
            raise ValueError(f"--estimator, --antithetic: expected with --process langevin, found {self.process}")
        if self.process in GRIDLESS and (self.T is not None or self.sigma != 1.0 or self.grid != "auto"):
            raise ValueError(
                f"--T, --sigma, --grid: expected without --process {self.process}, whose times are its own"
            )
        if self.training.patience is not None and self.validation is None:
            raise ValueError("--patience: expected with --validation, found without")
        if self.labels is not None and dataset.labels is None:
            raise ValueError(f"--labels: expected data with labels, or a file of them, found {dataset.name} without")
        if self.class_reference and (self.labels is None or self.process != "langevin"):
            found = "none" if self.labels is None else f"--process {self.process}"
            raise ValueError(f"--class-reference: expected with --labels and --process langevin, found {found}")
        return dataclasses.replace(
            self,
            latent=latent,
            latent_dim=latent_dim,
            class_reference=self._has_class_reference(dataset)
            if self.class_reference is None
            else self.class_reference,
            T=OU_HORIZON if self.process == "ou" and self.T is None else self.T,
            grid=("quadratic" if planar or self.process == "ou-mixture" else "uniform")
            if self.grid == "auto"
            else self.grid,
            estimator=self.estimator or "path" if self.process == "langevin" else None,
            network=network,
            hidden=self.hidden or ([128] * 3 if planar else [256] * 3) if network == "mlp" else None,
            features=features,
        )

    def _has_class_reference(self, dataset: Dataset) -> bool:
        """Return whether there are labels, and rows and components enough for a reference of each class."""
        if self.labels is None or dataset.labels is None or self.process != "langevin":
            return False
        return can_fit(dataset.labels, self.components)

    def _latent(self, dataset: Dataset) -> str:
        """Return the encoder: for large images an autoencoder, unless what was asked for needs pixels."""
        if self.latent == "auto":
            pixels = self.network == "unet" or not self.standardize
            shape = dataset.event_shape
            large = len(shape) == 3 and min(shape[1:]) >= LARGE_SIDE and not pixels
            latent = "autoencoder" if large or self.latent_dim is not None else "none"
        else:
            latent = self.latent
        if latent == "none" and self.latent_dim is not None:
            raise ValueError("--latent-dim: expected with --latent autoencoder or pca, found none")
        if latent != "none" and not self.standardize:
            raise ValueError(
                f"--no-standardize: expected with --latent none, found {latent}, which has a scale of its own"
            )
        if latent != "none" and self.network == "unet":
            raise ValueError(f"--network: expected mlp with --latent {latent}, found unet")
        return latent

    @property
    def encoder(self) -> str:
        """The kind of encoder, of resolved settings."""
        return self.latent if self.latent != "none" else "standardizer" if self.standardize else "none"


def make_process(
    settings: Settings, x: Tensor, free: bool = False, labels: Tensor | None = None
) -> tuple[Settings, ReferenceProcess, Selection[GaussianMixture] | None]:
    """Make the noising process of resolved settings; choose the mixture, or fit the one asked for, to x [n, *event].

    free: whether number and times of the steps were left open, so that a chosen mixture may have more than usual.
    labels: of x, int64 [n], if the samples have some.

    Returns:
        the settings with what was chosen, the process, and the choice (None where there was none).
    """
    options: dict[str, Any] = {name: getattr(settings, name) for name in ("T", "n_steps", "sigma")}
    if settings.process == "ou":
        shape = tuple(x.shape[1:])
        return settings, OUProcess(x[0].numel(), event_shape=shape, grid=settings.grid, **options), None
    given: dict[str, Any] = {"reg_covar": settings.reg_covar, "random_state": settings.training.seed % 2**32}
    if settings.class_reference:
        given["labels"] = labels
    if settings.eigenvalue_floor is not None:
        given["eigenvalue_floor"] = settings.eigenvalue_floor
    components = None if isinstance(settings.components, str) else settings.components
    if components is not None and settings.covariance != "auto":
        reference = GaussianMixture.fit(x, components, settings.covariance, **given)
        return settings, _around(reference, settings, x, options), None
    if settings.n_steps is not None:
        given["max_steps"] = settings.n_steps
    choice = GaussianMixture.select(x, components, settings.covariance, **given)
    chosen = choice.chosen
    settings = dataclasses.replace(
        settings,
        components=chosen.n_components,
        covariance=chosen.covariance_type,
        grid="stiff" if free and chosen.n_steps > STEPS and settings.process == "langevin" else settings.grid,
    )
    return settings, _around(choice.mixture, settings, x, options), choice


def _around(reference: GaussianMixture, settings: Settings, x: Tensor, options: dict[str, Any]) -> ReferenceProcess:
    """Make the process of a fitted mixture."""
    steps: dict[str, Any] = {} if settings.n_steps is None else {"n_steps": settings.n_steps}
    if settings.process == "flow":
        return FlowProcess(reference, **steps)
    if settings.process == "edm":
        return EDMProcess(reference.dim, reference, x, **steps)
    if settings.process == "ou-mixture":
        return OUProcess(reference.dim, reference=reference, grid=settings.grid, **options)
    return LangevinProcess(reference, grid=settings.grid, **options)


def make_network(settings: Settings, process: ReferenceProcess, n_classes: int) -> nn.Module:
    """Make the untrained score network of resolved settings."""
    width = 2 if settings.features else 1
    options: dict[str, Any] = {"horizon": process.T, "classes": n_classes if settings.labels else None}
    net: nn.Module
    if settings.network == "unet":
        channels, *size = process.event_shape
        net = networks.UNet(channels, size, settings.base, in_channels=width * channels, **options)
    else:
        assert settings.hidden is not None
        net = networks.MLP(process.dim, settings.hidden, in_dim=width * process.dim, **options)
    return ResidualScore(net, process, bool(settings.features)) if settings.residual else net


def make_loss(settings: Settings, process: ReferenceProcess) -> NDSMLoss | DSMLoss:
    """Make the objective of resolved settings."""
    if settings.process != "langevin":
        return loss_for(process)
    return NDSMLoss(process, settings.estimator or "path", settings.antithetic)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that define a run; those not given are absent from the namespace."""
    defaults = Settings().flat()

    def add(name: str, about: str, **options: Any) -> None:
        key = name.removeprefix("--").replace("-", "_")
        default = defaults[key]
        shown = "" if default is None or isinstance(default, bool) else f"; default {default}"
        group.add_argument(name, help=about + shown, default=argparse.SUPPRESS, **options)

    group = parser.add_argument_group("data and reference")
    add("--data", f"{', '.join(NAMES)}, or a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    add("--n-train", "training samples, where they can be chosen", type=int)
    add("--layout", "of a file's images, which become NCHW; rows: as they are", choices=LAYOUTS)
    add("--label-column", "of a table, the one that tells classes; default label")
    add(
        "--labels",
        "train under the classes of the samples: auto, those that the data have, or a .npy or text file, a label a row",
        metavar="auto|FILE",
    )
    add(
        "--class-reference",
        "with --labels: fit components of each class's own, towards which its samples are noised; default yes, "
        "where each class has two samples and --components is no less than the classes",
        action=argparse.BooleanOptionalAction,
    )
    add(
        "--standardize",
        "train at mean 0 and deviation 1, of each feature or of all pixels, and undo it in samples; default yes",
        action=argparse.BooleanOptionalAction,
    )
    add(
        "--latent",
        "train in a latent space: of an autoencoder, trained first, or of principal components; auto: autoencoder for "
        f"images from {LARGE_SIDE} x {LARGE_SIDE} pixels on, unless --network unet",
        choices=LATENTS,
    )
    add("--latent-dim", "values of a latent vector; default 16 of an autoencoder, 32 principal components", type=int)
    add("--components", "K of the mixture, or auto: chosen by the likelihood of held-out rows", type=_components)
    add("--covariance", "of the mixture; auto: chosen as K is", choices=(*COVARIANCE_TYPES, "auto"))
    add("--reg-covar", "added to variances, squared units of the standardised data", type=float)
    add(
        "--eigenvalue-floor",
        "raise the covariances' eigenvalues to this fraction of the mean variance; default none, 0.03 if K is chosen",
        type=float,
    )

    group = parser.add_argument_group("noising process and objective")
    add(
        "--process",
        "langevin; linear noising: ou without a mixture, by classical DSM with T = 10, ou-mixture with it for prior "
        "and residual, edm with it in EDM's form; flow: flow matching from the mixture",
        choices=PROCESSES,
    )
    add("--T", "horizon; default 3 lambda_max / sigma^2", type=float)
    add("--sigma", "diffusion coefficient", type=float)
    add("--n-steps", "noising steps N; default 100, or as many as a stiff grid takes", type=int)
    add("--grid", "times of the steps", choices=("auto", "uniform", "quadratic", "stiff"))
    add("--estimator", "of the objective; default path", choices=ESTIMATORS)
    add("--antithetic", "two samples a path, with mirrored noise", action="store_true")

    group = parser.add_argument_group("score network")
    add("--network", "mlp, or unet for images", choices=("auto", "mlp", "unet"))
    add("--hidden", "widths of the mlp, as 256,256,256; default 128 or 256 three times", type=_widths)
    add("--base", "channels of the unet's first level", type=int)
    add(
        "--features",
        "give it the reference's score; default up to 3-D",
        action=argparse.BooleanOptionalAction,
    )
    add("--residual", "add it to the reference's score; default yes", action=argparse.BooleanOptionalAction)

    group = parser.add_argument_group("training")
    add("--steps", "optimizer steps", type=int)
    add("--batch-size", "paths a step", type=int)
    add("--lr", "Adam's learning rate, with cosine decay", type=float)
    add("--ema", "decay of the weights' average", type=float)
    add("--grad-clip", "largest norm of the gradient; default no limit", type=float)
    add("--paths", "fresh, or the size of a pool of reused paths", type=_paths)
    add("--records-per-path", "samples from one path, each in a batch of its own; of estimator path", type=int)
    add("--noised-ahead", "batches whose paths are simulated by one call", type=int)
    add("--condition-dropout", "share of the paths trained without their class, for guidance", type=float)
    add("--accumulate", "parts of a batch, evaluated one after the other, for less memory", type=int)
    add("--precision", "of the network's evaluations; bfloat16: by autocast", choices=PRECISIONS)
    add(
        "--validation",
        "share of the training data that is held out, to see the loss on it and keep the best weights; default none",
        type=float,
    )
    add("--validate-every", "steps between looks at the loss on held-out data", type=int)
    add("--patience", "looks without a lower loss after which training ends; default: it does not", type=int)
    add("--checkpoint-every", "steps between checkpoints", type=int)
    add("--seed", "of everything random", type=int)
    add("--samples", "samples for the report", type=int)


def _widths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected widths such as 256,256,256, found {text!r}") from None


def _components(text: str) -> str | int:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected auto or a number, found {text!r}") from None


def _paths(text: str) -> str | int:
    try:
        return text if text == "fresh" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected fresh or a number, found {text!r}") from None
