"""The pictures of README.md and of the site's start page.

    python docs/pictures.py samples         held-out data, draws from the mixture, linear and nonlinear, side by side
    python docs/pictures.py evaluations     quality against evaluations, from the rows of the experiments
    python docs/pictures.py fifteen-lines   what README's fifteen lines make

Each is written to docs/figures; samples trains six small networks, a minute or two.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor

import fastndsm
from fastndsm import data, networks, training

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "figures"
N = 500
SAMPLED = 2000
TITLES = ("held-out data", "draws from the mixture", "linear", "path (NDSM)")
COLOURS = ("black", "0.55", "tab:orange", "tab:blue")
COMPONENTS = {"four_modes": 4, "ring": 10, "moons": 8}


def trained(process: fastndsm.LangevinProcess, x: Tensor, **how: Any) -> Tensor:
    """Return samples of a network that was trained on x under the process, by 100 evaluations of it."""
    torch.manual_seed(0)
    net = fastndsm.ResidualScore(networks.MLP(2, (128, 128, 128), horizon=process.T), process)
    trainer = training.Trainer(net, fastndsm.loss_for(process), x, training.TrainConfig(steps=2000))
    trainer.fit(progress=False)
    return fastndsm.sample(trainer.ema_net, process, SAMPLED, n_evaluations=100, seed=0, **how)


def samples() -> None:
    """Draw the points of four laws for three data sets of 500 points: one network, steps and evaluations for all.

    Linear is sampled by Euler-Maruyama, which was better for it here than DPM-Solver++ or a shorter horizon.
    """
    figure, axes = pyplot.subplots(len(COMPONENTS), len(TITLES), figsize=(8.0, 6.2), layout="constrained")
    for i, (name, k) in enumerate(COMPONENTS.items()):
        x, held_out = data.load(name, n=N).train, data.load(name, n=SAMPLED, seed=1).train
        scaler = data.Standardizer.fit(x, per_feature=False)
        x, held_out = scaler.encode(x), scaler.encode(held_out)
        pi = fastndsm.GaussianMixture.fit(x, n_components=k, n_init=5, random_state=0)
        linear = trained(fastndsm.OUProcess(2, T=10.0, grid="quadratic"), x, prediction="score", order=1)
        path = trained(fastndsm.LangevinProcess(pi, grid="quadratic"), x)
        drawn = (held_out, pi.sample(SAMPLED, seed=0), linear, path)
        for axis, points, title, colour in zip(axes[i], drawn, TITLES, COLOURS, strict=True):
            axis.plot(*points.T.numpy(), ".", markersize=1.2, alpha=0.6, color=colour)
            axis.set(xlim=(-2.7, 2.7), ylim=(-2.7, 2.7), xticks=[], yticks=[], aspect="equal")
            if i == 0:
                axis.set_title(title, fontsize=10)
    figure.savefig(FIGURES / "samples.png", dpi=100)


def evaluations() -> None:
    """Draw Frechet distance against the number of evaluations: a few rows of section 7 of the experiments."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    from experiments import best, trained
    from experiments import evaluations as rows
    from experiments.store import Store
    from experiments.tables import Results

    results = Results(rows.NAME, Store(HERE.parent / "examples" / "experiments" / "rows"), 3)
    shown = {
        "linear VP DSM": (trained.VP, False, "tab:orange"),
        "EDM": (trained.EDM, False, "tab:red"),
        "EDM, mixture as skip, K = 1,000": (trained.SKIP, True, "tab:purple"),
        "flow from the mixture, K = 1,000": (trained.FLOW, True, "tab:green"),
        "path (NDSM), K = 50": (trained.PATH, False, "tab:cyan"),
        "path (NDSM), K = 1,000": (trained.PATH, True, "tab:blue"),
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(9.0, 3.6), sharey=True, layout="constrained")
    titles = ("32 principal components", "an autoencoder's 16 dimensions")
    for axis, space, title in zip(axes, rows.MAIN, titles, strict=True):
        for name, (row, many, colour) in shown.items():
            cells = [(calls, best.best(results, space, row, calls, many=many)) for calls in rows.CALLS]
            known = [(calls, cell) for calls, cell in cells if cell is not None]
            reach = [[c.mean - c.low for _, c in known], [c.high - c.mean for _, c in known]]
            mean = [c.mean for _, c in known]
            axis.errorbar([m for m, _ in known], mean, reach, label=name, color=colour, marker=".", capsize=2)
        axis.set(xscale="log", yscale="log", ylim=(1.5, 120.0), title=f"MNIST, {title}", xlabel="network evaluations")
        axis.set_xticks(rows.CALLS, [str(calls) for calls in rows.CALLS])
        axis.set_yticks((2, 3, 5, 10, 20, 50, 100), ["2", "3", "5", "10", "20", "50", "100"])
        axis.minorticks_off()
    axes[0].set_ylabel("Frechet distance")
    axes[1].legend(fontsize=8)
    figure.savefig(FIGURES / "evaluations.png", dpi=100)


def fifteen_lines() -> None:
    """Run README's fifteen lines in an empty folder; keep the picture that they make."""
    readme = (HERE.parent / "README.md").read_text()
    section = readme.partition("## In fifteen lines")[2]
    code = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[0]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec(compile(code, "README.md", "exec"), {})
            shutil.copy("samples.png", FIGURES / "fifteen-lines.png")
        finally:
            os.chdir(before)


PICTURES = {"samples": samples, "evaluations": evaluations, "fifteen-lines": fifteen_lines}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", choices=PICTURES)
    torch.set_num_threads(1)
    FIGURES.mkdir(exist_ok=True)
    for name in parser.parse_args().pictures:
        PICTURES[name]()
