"""Networks that are trained once, kept beside the rows, and sampled from as often as wanted.

A space gives the data. A row of `TRAINED` is a model with its loss; its configuration is all that its network depends
on, and the key of the file that keeps it. Mixtures are kept as well: fitting one takes longer than a short training.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastndsm import GaussianMixture, latent, networks
from fastndsm.process import NoisingProcess
from fastndsm.training.trainer import TrainConfig

from . import baselines, images, latent_space, methods, planar, sweeps

PATH, VP = methods.PATH, methods.LINEAR
EDM, SKIP, I_CFM, OT_CFM, FLOW = "EDM", "EDM, mixture skip", "I-CFM", "OT-CFM", "flow from the mixture"
TRAINED = (PATH, EDM, SKIP, FLOW, VP, OT_CFM, I_CFM)
WITH_MIXTURE = (PATH, SKIP, FLOW)
DENOISERS = (EDM, SKIP)
PLANE = tuple(planar.COMPONENTS)
STEPS_OF_VP = 1000  # of the grid that linear noising is trained on: the solvers take any times
Config = dict[str, Any]
Scene = images.Scene | planar.Points
folder = Path(__file__).resolve().parent / "rows" / "networks"

# What a network depends on, beside the row's own knob.
FIELDS = ("space", "source", "n", "encoder_steps", "seed", "row", "components", "hidden", "steps", "T")
FIELDS += ("p_mean", "antithetic", "records_per_path")  # of some rows


class Model(NamedTuple):
    """A network in its model, the process it was trained on (path, linear VP DSM) and the mixture it has, if any."""

    net: nn.Module
    process: NoisingProcess | None
    mixture: GaussianMixture | None
    seconds: float


def scene(config: Config) -> Scene:
    """Return the data of a space."""
    space, seed = config["space"], config["seed"]
    if space in PLANE:
        return planar.points(space, config["n"], seed, config["evaluated"])
    if space == "digits":
        return sweeps.scene(config["n"], config["evaluated"], seed)
    return _images(config["source"], space, config["n"], config["evaluated"], config["encoder_steps"], seed)


@lru_cache(maxsize=1)
def _images(source: str, space: str, n: int, evaluated: int, steps: int, seed: int) -> images.Scene:
    """Return images in the space of an encoder; one that was trained is kept."""
    x, options = latent_space.training_images(source, n, seed), latent_space.ENCODERS[space]
    if options["kind"] == "autoencoder":
        fields = {"space": space, "source": source, "n": n, "encoder_steps": steps, "seed": seed}
        made: latent.Encoder = latent.Autoencoder(options["dim"], x.shape[1:])
        state = _kept("encoder", fields, lambda: latent_space.make_encoder(space, x, steps, seed)[0].state_dict())
        made.shift = torch.zeros_like(state["shift"])  # a number until it is trained
        made.load_state_dict(state)
        made = made.eval().requires_grad_(False)
    else:
        made = latent_space.make_encoder(space, x, steps, seed)[0]
    return latent_space.scene_of(made, source, n, evaluated, seed)


def training_data(given: Scene) -> Tensor:
    """Return the points [n, d] that a row is trained on."""
    return given.train if isinstance(given, planar.Points) else given.z


def load(config: Config) -> Model:
    """Return the model of a configuration, trained now if it never was; of no steps, with an output of zero."""
    data = training_data(scene(config))
    model = untrained(config, data)
    if not config["steps"]:
        return model
    kept = _kept("network", {k: config[k] for k in FIELDS if k in config}, lambda: _train(config, data, model))
    seconds = float(kept.pop("seconds"))
    model.net.load_state_dict(kept, strict=False)  # what is missing is the mixture's, which is there
    return model._replace(net=model.net.eval(), seconds=seconds)


def mixture(config: Config, data: Tensor) -> GaussianMixture:
    """Return the mixture that is fitted to the data, from its file if it was before."""
    chosen = settings(config)
    fields = {k: config[k] for k in ("space", "source", "n", "encoder_steps", "seed", "components") if k in config}
    fields |= {k: chosen[k] for k in ("covariance", "reg_covar", "n_init")}

    def fit() -> dict[str, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EM at its last iteration
            made = methods.fit_reference(data, chosen, config["seed"])
        return {"weights": made.weights, "means": made.means, "covariances": made.covariances}

    kept = _kept("mixture", fields, fit)
    return GaussianMixture(kept["weights"], kept["means"], kept["covariances"], chosen["covariance"])


def settings(config: Config) -> Config:
    """Return the settings of `methods` for a configuration."""
    made = methods.DEFAULTS | (planar.SETTINGS if config["space"] in PLANE else methods.RETUNED_IMAGES)
    made |= {k: config[k] for k in ("components", "hidden", "steps", "records_per_path") if k in config}
    if config.get("components", 0) > 100:
        made["n_init"] = 1  # five starts of EM would take longer than the training
    if config["row"] == VP:
        made |= {"linear": {"T": config["T"], "grid": "quadratic"}, "n_steps": STEPS_OF_VP}
    elif "T" in config:
        made |= {"nonlinear": {"T": config["T"], "grid": "quadratic"}}
    return made


def untrained(config: Config, data: Tensor) -> Model:
    """Return the model of a row with an output of zero."""
    row, seed = config["row"], config["seed"]
    pi = mixture(config, data) if row in WITH_MIXTURE else None
    if row in (PATH, VP):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # q slightly above its bound
            process = methods.build(row, data, settings(config), seed, pi)
        return Model(methods.untrained(process, settings(config), seed), process, pi, 0.0)
    torch.manual_seed(seed)
    horizon = baselines.SIGMA_MAX if row in DENOISERS else 1.0
    net = networks.MLP(data.shape[1], config["hidden"], horizon=horizon)
    if row == SKIP:
        assert pi is not None
        return Model(baselines.MixtureDenoiser(net, data, pi), None, pi, 0.0)
    return Model(baselines.Denoiser(net, data) if row == EDM else baselines.Velocity(net), None, pi, 0.0)


def _train(config: Config, data: Tensor, model: Model) -> dict[str, Tensor]:
    row, seed, pairs = config["row"], config["seed"], config.get("antithetic", False)
    started = time.process_time()
    if model.process is not None:
        estimator, chosen = f"{row} antithetic" if pairs else row, settings(config)
        made = methods.train(estimator, model.net, model.process, data, chosen, seed, config.get("p_mean"))
        trained = made.score_net
    else:
        if row in DENOISERS:
            loss = baselines.denoising(config["p_mean"], pairs)
        else:
            loss = baselines.matching(_coupling(model, row))
        batch = methods.DEFAULTS["evaluations"] // (2 if pairs else 1)
        options = TrainConfig(steps=config["steps"], batch_size=batch, seed=seed)
        trained = baselines.train(model.net, loss, data, options)
    seconds = torch.tensor(time.process_time() - started)
    return {name: p.detach().clone() for name, p in trained.named_parameters()} | {"seconds": seconds}


def _coupling(model: Model, row: str) -> Callable[..., Tensor]:
    if row == FLOW:
        assert model.mixture is not None
        return baselines.component(model.mixture)
    return baselines.optimal if row == OT_CFM else baselines.independent


def _kept(kind: str, fields: Config, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a file named after the fields, made now if there is none."""
    text = json.dumps(fields, sort_keys=True)
    path = folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        tensors = make()
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({name: t.contiguous() for name, t in tensors.items()}, part, {"fields": text})
        os.replace(part, path)
        return tensors
    found: dict[str, Tensor] = load_file(path)
    return found
