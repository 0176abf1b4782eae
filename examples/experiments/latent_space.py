"""5. Latent space: MNIST in 16 to 64 dimensions, against pixels, quality beside cost.

All 60,000 training images, 50 components. Principal components (16, 32, 64; 32 whitened), autoencoders (16, 32), a
variational one (16): residual MLP 3x256. Pixels (784 values): residual MLP 3x512. 1,000 and 4,000 optimizer steps of
256 evaluations. Frechet distances of 4,000 samples to 4,000 held-out images themselves (`frechet_raw`), so that the
encoder's own loss counts.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastndsm import latent

from . import images, methods

NAME, VERSION = "latent", 1
ENCODERS: dict[str, dict[str, Any]] = {
    "AE 16": {"kind": "autoencoder", "dim": 16},
    "PCA 32": {"kind": "pca", "dim": 32},
    "pixels": {"kind": "pixels"},
    "VAE 16": {"kind": "autoencoder", "dim": 16, "kl_weight": 0.2},
    "AE 32": {"kind": "autoencoder", "dim": 32},
    "PCA 16": {"kind": "pca", "dim": 16},
    "PCA 64": {"kind": "pca", "dim": 64},
    "whitened PCA 32": {"kind": "pca", "dim": 32, "whiten": True},
}
LENGTHS = (1000, 4000)
LONG = 16_000  # in the first space and for the first seed alone
SETTINGS = methods.DEFAULTS | methods.RETUNED_IMAGES
SETTINGS |= {"source": "mnist", "n": 60_000, "evaluated": 4000, "encoder_steps": 4000}
QUICK: dict[str, Any] = {"components": 6, "n_init": 1}
QUICK |= {"source": "digits", "n": 1400, "evaluated": 150, "hidden": [32], "encoder_steps": 60}
PIXELS = {"hidden": [512, 512, 512]}
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return a configuration for each run of a seed; every row in the first space, the main ones in the others."""
    settings = SETTINGS | (QUICK if quick else {})
    made = []
    for encoder in ENCODERS:
        first = encoder == "AE 16"
        main = (methods.LINEAR, methods.PATH)
        extra = PIXELS if encoder == "pixels" and not quick else {}
        untrained = (methods.PI, methods.HELD_OUT) if encoder == "pixels" else methods.UNTRAINED
        base = {"encoder": encoder, "seed": seed, **settings, **extra}
        made += [base | {"row": row, "steps": 0} for row in untrained]
        for steps in (10, 20) if quick else LENGTHS:
            rows = (*methods.TRAINED, methods.LINEAR_FULL) if first and steps == LENGTHS[-1] else main
            made += [base | {"row": row, "steps": steps} for row in rows]
        if first and not seed:
            made += [base | {"row": row, "steps": 30 if quick else LONG} for row in main[::-1]]
    return made


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    if config["encoder"] == "AE 16":
        return 0 if config["row"] in (*methods.UNTRAINED, methods.LINEAR, methods.PATH) else 1
    return 1 if config["encoder"] in ("PCA 32", "pixels") else 2


class Pixels(latent.Encoder):
    """The pixels themselves, centred and scaled to a variance of one on average."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x[0].numel(), x.shape[1:])
        flat = x.flatten(1)
        self.mean, self.scale = flat.mean(0), flat.var(0).mean().sqrt()

    def _encode(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale

    def _decode(self, z: Tensor) -> Tensor:
        return (z * self.scale + self.mean).clamp(-1.0, 1.0)


def make_encoder(name: str, x: Tensor, steps: int, seed: int) -> tuple[latent.Encoder, float]:
    """Return the encoder of that name, fitted to x, and its processor seconds."""
    options = dict(ENCODERS[name])
    kind, started = options.pop("kind"), time.process_time()
    made: latent.Encoder
    if kind == "pixels":
        made = Pixels(x)
    elif kind == "pca":
        made = latent.PCA.fit(x, **options)
    else:
        made = latent.Autoencoder.fit(x, steps=steps, seed=seed, **options)
    return made, time.process_time() - started


@lru_cache(maxsize=1)
def scene(source: str, encoder: str, n: int, evaluated: int, steps: int, seed: int) -> tuple[images.Scene, float]:
    """Return the data of a run, and what the encoder cost."""
    fitted, seconds = make_encoder(encoder, training_images(source, n, seed), steps, seed)
    return scene_of(fitted, source, n, evaluated, seed), seconds


def training_images(source: str, n: int, seed: int) -> Tensor:
    """Return n of the training images."""
    given = images.pool(source)
    return given.images[torch.randperm(given.n_train, generator=torch.Generator().manual_seed(seed))[:n]]


def scene_of(encoder: latent.Encoder, source: str, n: int, evaluated: int, seed: int) -> images.Scene:
    """Return the images of a run in the encoder's space."""
    given = images.pool(source)
    generator = torch.Generator().manual_seed(seed)
    train = torch.randperm(given.n_train, generator=generator)[:n]
    others = given.n_train + torch.randperm(len(given.labels) - given.n_train, generator=generator)
    picked = (given.images[part] for part in (others[:evaluated], others[evaluated : 2 * evaluated]))
    return images.Scene(given.images[train], given.labels[train], *picked, encoder, given)


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures, and the samples to keep for the picture."""
    given, seconds = scene(*(config[k] for k in ("source", "encoder", "n", "evaluated", "encoder_steps", "seed")))
    z, cost = images.perform(config, given)
    result = given.measure(z) | cost | {"encoder_seconds": round(seconds, 1), "dim": given.encoder.dim}
    return result, images.kept(config, given, z)
