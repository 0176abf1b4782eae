"""fastndsm train: from data to a model and a report, in one folder.

OUT/setup/  the settings and the fitted mixture      OUT/checkpoints/  of the training
OUT/model/  what `sample` and `evaluate` read        OUT/report/       metrics and pictures
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..backends import registry
from ..data import Dataset
from ..process import ReferenceProcess
from ..sampling.sampler import EVALUATIONS
from ..selection import Candidate, Selection
from ..training import checkpoint
from ..training.lock import LOCK_NAME, locked
from ..training.loggers import Logger, TensorBoard, WandB
from ..training.storage import CheckpointError, read_folder, write_folder
from ..training.trainer import Trainer
from . import _common
from ._settings import Settings, add_settings, make_loss, make_network, make_process
from .report import PATHS, STRICT, selection_table, write_report

NAME = "train"
PURPOSE = "Fit the mixture, train a score network, sample, and write a report."
EXAMPLE = "fastndsm train --data digits --out runs/demo"

FOLDERS = ("setup", "checkpoints", "model", "report")
WEAK = 0.5  # share of the variance of held-out samples below which an encoder keeps too little
SETUP_FILES = ("reference.safetensors", "encoder.safetensors")
CHANGEABLE = ("samples", "checkpoint_every", "validate_every", "patience")  # by a resumed run
LOGGERS = ("tensorboard", "wandb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--out", required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in --out and start anew")
    parser.add_argument("--strict", action="store_true", help=STRICT)
    parser.add_argument("--logger", choices=LOGGERS, help="where figures go besides; into the folder of that name")
    add_settings(parser)
    _common.add_run_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, sample, report."""
    out = Path(arguments.out)
    explicit = {name: getattr(arguments, name) for name in Settings().flat() if hasattr(arguments, name)}
    if "data" in explicit:
        explicit["data"] = _common.absolute(explicit["data"])
    if explicit.get("labels") not in (None, "auto"):
        explicit["labels"] = os.path.abspath(explicit["labels"])
    with _common.running(arguments) as device, _open(out, arguments.resume, arguments.overwrite) as stored:
        asked = Settings.from_flat(explicit) if stored is None else _merged(stored.settings, explicit)
        dataset = _common.load_data(asked.data, asked.n_train, asked.layout, asked.label_column, asked.labels)
        settings = asked.resolved(dataset)
        config, loggers = settings.training, _loggers(arguments.logger, out, settings)
        seconds: dict[str, float] = {}
        began = time.perf_counter()
        if stored is None:
            if settings.latent == "autoencoder":
                print(f"training an autoencoder to {settings.latent_dim} values", flush=True)
            units = _common.Units.of(dataset, settings.encoder, settings.latent_dim, config.seed)
            if settings.latent != "none":
                _judge_encoder(units.kept(dataset.test))
        else:
            units = stored.units
        x = units.inner(dataset.train)
        if settings.latent != "none":
            seconds["fit the encoder"] = time.perf_counter() - began
        began = time.perf_counter()
        labels = dataset.labels if settings.labels else None
        held_out = _split(x, labels, settings)
        if held_out:
            x, labels = held_out.pop("data"), held_out.pop("conditions")
        if stored is None:
            free = asked.grid == "auto" and asked.n_steps is None
            settings, process, choice = make_process(settings, x, free, labels)
            if labels is not None and not settings.class_reference:
                process.fit_prior(x, labels, dataset.n_classes)
        else:
            process, choice = stored.process, stored.choice
            settings = dataclasses.replace(settings, **stored.made)
        seconds["fit the mixture"] = time.perf_counter() - began
        described, tensors = checkpoint.process_parts(process)
        torch.manual_seed(config.seed)
        score_net = make_network(settings, process, dataset.n_classes).to(device)
        process = process.to(device)
        trainer = Trainer(
            score_net,
            make_loss(settings, process),
            x.float(),
            config,
            directory=out / "checkpoints",
            meta=settings.flat(),
            conditions=labels,
            loggers=loggers,
            **held_out,
        )
        made = {name: getattr(settings, name) for name in ("components", "covariance", "grid")}
        document = {"settings": asked.flat(), "process": described, "units": units.to_dict(), "made": made}
        if choice is not None:
            document["choice"] = {
                "table": [dataclasses.asdict(row) for row in choice.table],
                "chosen": choice.table.index(choice.chosen),
                "warning": choice.warning,
            }
        encoder = units.encoder_parts()
        files = {SETUP_FILES[0]: tensors}
        if encoder is not None:
            document["encoder"], files[SETUP_FILES[1]] = encoder
        write_folder(out / "setup", "setup.json", "setup", document, files)
        if choice is not None and stored is None:
            print(f"{selection_table(choice)}\n", flush=True)
            if choice.warning:
                warnings.warn(choice.warning, stacklevel=1)
        _announce(dataset, settings, process, score_net, device)
        if arguments.resume and (step := trainer.resume()):
            print(f"resumed at step {step:,} of {config.steps:,}")
        trainer.fit(progress=arguments.progress)
        if trainer.best is not None:
            why = f"; training ended at step {trainer.step:,}" if trainer.stopped_early else ""
            print(f"lowest loss on held-out data: {trainer.best.validation:.4g} at step {trainer.best.step:,}{why}")
        seconds["train"] = trainer.seconds
        meta: dict[str, Any] = {
            "data": settings.data,
            "n_train": settings.n_train,
            "settings": settings.flat(),
            "units": units.to_dict(),
            "classes": None if labels is None else _common.classes_of(dataset),
        }
        score_net = trainer.best_net  # the averaged weights, where nothing was held out
        checkpoint.save_model(out / "model", score_net, process, meta=meta, encoder=encoder)
        began = time.perf_counter()
        options: dict[str, Any] = {"seed": config.seed, "batch_size": _common.SAMPLE_ROWS}
        options |= _common.conditions(meta["classes"], settings.samples, config.seed)
        samples = _common.draw(score_net, process, units, settings.samples, arguments, **options)
        seconds["sample"] = time.perf_counter() - began
        few = min(PATHS, settings.samples)
        options |= _common.conditions(meta["classes"], few, config.seed)
        options |= {"method": "ode", "trajectory": min(EVALUATIONS, process.n_steps)}  # whose paths are smooth
        paths = _common.draw(score_net, process, units, few, arguments, **options)
        reference = _common.draw_reference(process, units, settings.samples, config.seed)
        report = write_report(
            out / "report",
            samples,
            dataset,
            reference=reference,
            history=trainer.history,
            paths=paths,
            config={**settings.flat(), "T": process.T},
            seconds=seconds,
            seed=config.seed,
            selection=choice,
        )
    if "missing" in report.pictures:
        print(f"no pictures: {report.pictures['missing']}")
    print(report.evaluation.table())
    if report.evaluation.weights:
        print(f"\n{report.evaluation.weights_table()}")
    print(f"\nreport: {report.folder / 'report.html'}")
    return _common.verdict(report.evaluation, arguments)


def _split(x: Tensor, labels: Tensor | None, settings: Settings) -> dict[str, Any]:
    """Return what is trained on and what is held out of x [n, *event], in a Trainer's words; nothing if nothing is."""
    if settings.validation is None:
        return {}
    count = round(settings.validation * len(x))
    if not 0 < count < len(x):
        raise ValueError(
            f"--validation: expected a share that holds out some of {len(x)} samples, found {count} held out"
        )
    generator = torch.Generator("cpu").manual_seed(settings.training.seed)
    order = torch.randperm(len(x), generator=generator, device="cpu")
    first, rest = order[:count].sort().values, order[count:].sort().values
    return {
        "data": x[rest],
        "conditions": None if labels is None else labels[rest],
        "validation": x[first].float(),
        "validation_conditions": None if labels is None else labels[first],
    }


def _loggers(name: str | None, out: Path, settings: Settings) -> list[Logger]:
    if name is None:
        return []
    folder = out / name
    return [TensorBoard(folder) if name == "tensorboard" else WandB(dir=str(folder), config=settings.flat())]


class Stored(NamedTuple):
    """A run as its folder has it; made: the settings that the fit of the mixture chose."""

    settings: Settings
    process: ReferenceProcess
    units: _common.Units
    choice: Selection[Any] | None
    made: dict[str, Any]


def _judge_encoder(kept: float) -> None:
    """Tell the share of the variance of held-out samples that the encoder keeps; warn if it is small."""
    print(f"the encoder keeps {kept:.0%} of the variance of held-out samples", flush=True)
    if kept < WEAK:
        hint = _checks.cure("weak-encoder")
        message = f"latent: expected a space that keeps {WEAK:.0%} of the variance, found {kept:.0%}{hint}"
        warnings.warn(message, stacklevel=2)


@contextlib.contextmanager
def _open(out: Path, resume: bool, overwrite: bool) -> Iterator[Stored | None]:
    """Give the run stored in `out`, or None where a new one starts; no other process enters it meanwhile."""
    if resume and overwrite:
        raise ValueError("--resume, --overwrite: expected one of them, found both")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, found the file {out}")
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    foreign = [name for name in names if ".tmp-" not in name and name != LOCK_NAME]
    if foreign and not (out / "setup").is_dir():
        raise ValueError(f"--out: expected a run or a new folder, found {out} with {', '.join(sorted(foreign)[:3])}")
    with locked(out, "--out"):
        yield _stored(out, resume, overwrite)


def _stored(out: Path, resume: bool, overwrite: bool) -> Stored | None:
    if not (out / "setup").is_dir():
        return None
    if overwrite:
        for name in (*FOLDERS, *LOGGERS):
            shutil.rmtree(out / name, ignore_errors=True)
        return None
    if not resume:
        if not checkpoint.latest(out / "checkpoints") and not any((out / name).exists() for name in FOLDERS[2:]):
            return None  # it failed before its first checkpoint
        hint = _checks.cure("existing-run")
        raise ValueError(f"--out: expected a new folder, found a run in {out}; add --resume or --overwrite{hint}")
    document, tensors = read_folder(out / "setup", "setup.json", "setup", SETUP_FILES[:1], SETUP_FILES[1:])
    try:
        process = checkpoint.process_from(document["process"], tensors[SETUP_FILES[0]])
        encoder = (document["encoder"], tensors[SETUP_FILES[1]]) if "encoder" in document else None
        units = _common.Units.from_stored(document.get("units"), encoder, process.event_shape)
        asked, choice = Settings.from_stored(document["settings"]), None
        reference = process.reference
        made = {
            "components": reference.n_components,
            "covariance": reference.covariance_type,
            **document.get("made", {}),
        }
        if "choice" in document:
            table = tuple(Candidate(**row) for row in document["choice"]["table"])
            chosen = table[document["choice"]["chosen"]]
            choice = Selection(process.reference, chosen, table, document["choice"]["warning"])
        return Stored(asked, process, units, choice, made)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{out / 'setup'}: expected settings of this version, found: {error}") from error


def _merged(stored: Settings, explicit: dict[str, Any]) -> Settings:
    """Return the stored settings, if those given agree with them."""
    known = {**stored.flat(), "data": _common.absolute(stored.data)}
    unequal = [
        f"--{name.replace('_', '-')} {value} (run: {known[name]})"
        for name, value in explicit.items()
        if name not in CHANGEABLE and value != known[name]
    ]
    if unequal:
        raise ValueError(f"--resume: expected the settings of the run, found {', '.join(unequal)}")
    return Settings.from_flat({**known, **explicit})


def _announce(
    dataset: Dataset,
    settings: Settings,
    process: ReferenceProcess,
    score_net: torch.nn.Module,
    device: torch.device,
) -> None:
    serving = registry.requested()
    if serving == "auto":
        serving = registry.serving("simulate_target", device, torch.float32)[0]
    reference = process.reference
    parameters = sum(p.numel() for p in score_net.parameters())
    shape = " x ".join(map(str, dataset.event_shape))
    classes = f", under {dataset.n_classes} classes" if settings.labels else ""
    encoders = {"standardizer": "standardised", "none": "scale kept", "pca": "principal components"}
    scale = encoders.get(settings.encoder, settings.encoder)
    if settings.latent_dim is not None:
        scale += f" of {settings.latent_dim}"
    lines = {
        "data": f"{dataset.name}: {len(dataset.train):,} training, {len(dataset.test):,} held-out, {shape}, {scale}",
        "reference": f"{reference.n_components} {reference.covariance_type} components"
        + (f" of {reference.n_classes} classes" if reference.n_classes else ""),
        "process": f"{settings.process}, T = {process.T:.4g}, {process.n_steps} steps, {settings.grid} grid",
        "objective": settings.estimator or ("flow matching" if settings.process == "flow" else "classical DSM"),
        "network": f"{settings.network}, {parameters:,} parameters{classes}",
        "backend": f"{serving} on {device}",
    }
    for name, text in lines.items():
        print(f"{name:10} {text}", flush=True)
