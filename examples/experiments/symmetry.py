"""4. Approximate symmetry: MNIST's digits 2 to 7 and 9, half or two fifths of the images mirrored.

5,000 training images in 32 principal components of images and mirror images together, in which mirroring is a linear
map; residual MLP 3x256. A classifier of digit and orientation (14 classes) judges. References: a plain fit; 25
components and their mirror images (`symmetrized`); the same with the weights fitted again; and, with the symmetrised
one, a network made exactly symmetric too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fastndsm import GaussianMixture, data, latent, metrics

from . import images, methods

NAME, VERSION = "symmetry", 1
CASES = {"50/50": 0.5, "60/40": 0.4}  # share of the mirrored
CHIRAL = (2, 3, 4, 5, 6, 7, 9)
SYMMETRIC, REWEIGHTED, EXACT = "path, symmetrized", "path, symmetrized, weights refitted", "path, exactly symmetric"
PI_SYMMETRIC = "draws from pi, symmetrized"
ROWS = (
    *(methods.PI, PI_SYMMETRIC, methods.FULL, methods.HELD_OUT),
    *(methods.LINEAR, methods.LINEAR_MIXTURE, methods.ONE),
    *(methods.PATH, SYMMETRIC, REWEIGHTED, EXACT),
    *(f"{e}, symmetrized" for e in ("control_variate", "plain antithetic", "path antithetic")),
)
SETTINGS = methods.DEFAULTS | methods.RETUNED_IMAGES
SETTINGS |= {"source": "mnist", "dim": 32, "n": 5000, "evaluated": 4000}
QUICK: dict[str, Any] = {"components": 6, "n_init": 1}
QUICK |= {"source": "digits", "dim": 16, "n": 200, "evaluated": 160, "steps": 40, "hidden": [32]}
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return one configuration for each run of a seed."""
    settings = SETTINGS | (QUICK if quick else {})
    return [{"case": case, "row": row, "seed": seed, **settings} for case in CASES for row in ROWS]


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return 0


@lru_cache(maxsize=1)
def judge(source: str) -> metrics.FeatureClassifier:
    """Train a classifier of digit (in the order of CHIRAL) and, plus 7, mirrored."""
    dataset = data.load(source)
    assert dataset.labels is not None
    x, y = _chiral(dataset.train, dataset.labels)
    x, y = torch.cat([x, x.flip(-1)]), torch.cat([y, y + len(CHIRAL)])
    return metrics.FeatureClassifier.fit(x, y, n_classes=2 * len(CHIRAL), steps=2000 if source == "mnist" else 300)


def _chiral(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    position = torch.full((10,), -1)
    position[list(CHIRAL)] = torch.arange(len(CHIRAL))
    kept = position[y] >= 0
    return x[kept], position[y[kept]]


class Mirrored:
    """The data of a run in the latent space, with the mirror map R there, and the figures of samples."""

    def __init__(self, share: float, source: str, dim: int, n: int, evaluated: int, seed: int) -> None:
        given = images.pool(source)
        x, _ = _chiral(given.images, given.labels)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: n + 2 * evaluated]
        x = x[order]
        flipped = (torch.arange(len(x)) % 5 < 5 * share) if share != 0.5 else torch.arange(len(x)) % 2 == 0
        x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
        train, reference, held_out = x.split([n, evaluated, evaluated])
        self.share = float(flipped[:n].double().mean())
        self.encoder = latent.PCA.fit(torch.cat([train, train.flip(-1)]), dim)
        self.judge = judge(source)
        self.z, self.z_held_out = self.encoder.encode(train), self.encoder.encode(held_out)
        z_reference = self.encoder.encode(reference)
        decoded = self.encoder.decode(z_reference)
        self.features, self.mirrored = self.judge.features(decoded), flipped[n : n + evaluated]
        basis = self.encoder.components.double()
        flip = basis.reshape(dim, *train.shape[1:]).flip(-1).reshape(dim, -1)
        # of eigenvectors of a symmetrised covariance each is even or odd: the nearest such matrix, exactly orthogonal
        u, _, v = torch.linalg.svd(basis @ flip.T)
        self.map = (u @ v).T

    def measure(self, z: Tensor) -> dict[str, float]:
        """Measure samples z [n, d]: balance, and quality in each orientation."""
        decoded = self.encoder.decode(z)
        features, found = self.judge.features(decoded), self.judge.probabilities(decoded)
        turned = found.argmax(1) >= len(CHIRAL)
        share = float(turned.double().mean())
        result = {
            "frechet": metrics.frechet_distance(features, self.features),
            "confidence": metrics.confidence(found),
            "mirrored": share,
            "orientation_tv": abs(share - self.share),
        }
        for name, mine, theirs in (("upright", ~turned, ~self.mirrored), ("mirrored", turned, self.mirrored)):
            enough = min(int(mine.sum()), int(theirs.sum())) > features.shape[1]
            if enough:
                result[f"frechet_{name}"] = metrics.frechet_distance(features[mine], self.features[theirs])
        return result


class Symmetric(nn.Module):
    """(s(x, t) + R s(R x, t)) / 2 for a mirror map R: exactly equivariant, for a process that is too."""

    def __init__(self, score_net: nn.Module, mirror: Tensor) -> None:
        super().__init__()
        self.score_net, self.mirror = score_net, mirror

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        both = self.score_net(torch.cat([x, x @ self.mirror.T]), torch.cat([t, t]))
        return 0.5 * (both[: len(x)] + both[len(x) :] @ self.mirror)


def refitted_weights(mixture: GaussianMixture, z: Tensor, rounds: int = 100) -> GaussianMixture:
    """Refit the mixture's weights by greatest likelihood on z, its components kept: EM in the weights alone."""
    for _ in range(rounds):
        weights = mixture.responsibilities(z.double()).mean(0)
        mixture = GaussianMixture(weights / weights.sum(), mixture.means, mixture.covariances, mixture.covariance_type)
    return mixture


scene = lru_cache(maxsize=1)(Mirrored)


def reference(config: Config, given: Mirrored) -> GaussianMixture:
    """Fit a row's pi: a plain fit of 50 components, or 25 and their mirror images."""
    row = config["row"]
    if row not in (PI_SYMMETRIC, SYMMETRIC, REWEIGHTED, EXACT) and not row.endswith("symmetrized"):
        return methods.fit_reference(given.z, config, config["seed"])
    half = methods.fit_reference(given.z, config | {"components": config["components"] // 2}, config["seed"])
    made = half.symmetrized([given.map])
    return refitted_weights(made, given.z) if row == REWEIGHTED else made


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures, and the samples to keep for the picture."""
    given = scene(CASES[config["case"]], *(config[k] for k in ("source", "dim", "n", "evaluated", "seed")))
    row, cost = config["row"], {}
    if row == methods.HELD_OUT:
        z = given.z_held_out
    elif row == EXACT:
        z, cost = exactly_symmetric(config, given)
    else:
        kind = {PI_SYMMETRIC: methods.PI, SYMMETRIC: methods.PATH, REWEIGHTED: methods.PATH}.get(row, row)
        kind = kind.removesuffix(", symmetrized")
        pi = None if kind in (methods.FULL, methods.LINEAR, methods.ONE) else reference(config, given)
        z, cost = methods.draw(kind, given.z, config, config["seed"], config["evaluated"], pi)
    kept = given.encoder.decode(z[: images.KEPT]) if config["seed"] == 0 else None
    return given.measure(z) | {"mirrored_expected": given.share} | cost, kept


def exactly_symmetric(config: Config, given: Mirrored) -> tuple[Tensor, dict[str, Any]]:
    """Fit symmetrised reference and network, half the batch: its network is evaluated at x and at R x."""
    pi, settings = reference(config, given), config | {"evaluations": config["evaluations"] // 2}
    fitted = methods.fit(
        methods.PATH, given.z, settings, config["seed"], pi, wrap=lambda net: Symmetric(net, given.map.float())
    )
    z = methods.euler_maruyama(fitted.score_net, fitted.process, config["evaluated"], config["seed"])
    return z, {
        "train_seconds": round(fitted.seconds, 2),
        "train_evaluations": 2 * fitted.evaluations,
        "sample_evaluations": 2 * fitted.process.n_steps,
    }
