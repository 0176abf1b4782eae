"""sbibm's posteriors: its simulators and classifier to the letter, the transport pairing, and a reduced run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.public import posteriors

FIRST = {  # seed, parameters and observation of the package's first observation
    "two_moons": (1000011, [-0.8176656, -0.5756806], [-0.6396706, 0.16234657]),
    "slcp": (
        1000000,
        [-2.8581212, -0.44451332, 2.9473476, 1.2396116, 2.9712725],
        [2.3718784, 0.49947417, 9.931435, 1.7136912, -10.436423, -1.9067793, -1.2343777, -0.09735],
    ),
}


@pytest.mark.parametrize("name", FIRST)
def test_simulators_draw_the_observations_of_the_package(name: str) -> None:
    seed, theta, x = FIRST[name]
    torch.manual_seed(seed)
    found = posteriors.TASKS[name].prior(1)
    torch.testing.assert_close(found, torch.tensor([theta]))
    torch.testing.assert_close(posteriors.TASKS[name].simulate(found), torch.tensor([x]))


def moons_posterior(x: Tensor, n: int) -> Tensor:
    """Draw n of the posterior at x [1, 2], in closed form."""
    shift = x - posteriors.two_moons(torch.zeros(n, 2))  # (-|theta_1 + theta_2|, theta_2 - theta_1) / sqrt(2)
    first = -shift[:, 0] * torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    return torch.stack([first - shift[:, 1], first + shift[:, 1]], dim=1) / math.sqrt(2.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write what the package has of two moons' first observation, from its closed form."""
    torch.manual_seed(0)
    x = FIRST["two_moons"][2]
    files = tmp_path / "sbibm" / "tasks" / "two_moons" / "files" / "num_observation_1"
    files.mkdir(parents=True)
    np.savetxt(files / "observation.csv", np.array([x]), delimiter=",", header="data_1,data_2", comments="")
    rows = moons_posterior(torch.tensor([x]), 1500)
    header = {"delimiter": ",", "header": "parameter_1,parameter_2", "comments": ""}
    np.savetxt(files / "reference_posterior_samples.csv.bz2", rows.numpy(), **header)
    return tmp_path / "sbibm"


def test_posterior_samples_give_the_observation(folder: Path) -> None:
    theta = posteriors.table(folder, "two_moons", 1, "reference_posterior_samples.csv.bz2")
    x = posteriors.table(folder, "two_moons", 1, "observation.csv")
    radius = (x - posteriors.TASKS["two_moons"].simulate(theta)).norm(dim=1)
    assert float(radius.max()) < 0.3  # twice a moon's radius, and noise


def test_c2st_of_one_law_and_of_two() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(400, 2), torch.randn(400, 2)
    assert posteriors.c2st(x, y) == pytest.approx(0.5, abs=0.06)
    assert posteriors.c2st(x, y + 1.0) == pytest.approx(0.76, abs=0.05)  # Phi(sqrt(2) / 2), the best there is


def test_logits_are_undone_and_bounded() -> None:
    task = posteriors.TASKS["slcp"]
    theta = torch.cat([task.prior(100), torch.full((1, 5), task.bound)])
    assert bool(torch.isfinite(task.encode(theta)).all())
    torch.testing.assert_close(task.decode(task.encode(theta)), theta, atol=1e-4, rtol=0)
    assert bool((task.decode(20.0 * torch.randn(100, 5)).abs() <= task.bound).all())


def test_draws_outside_the_prior_are_made_anew() -> None:
    task = posteriors.TASKS["two_moons"]
    drawn, outside = posteriors.inside(
        task, lambda n, seed: 4.0 * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) - 2.0, 500, 0
    )
    assert drawn.shape == (500, 2) and bool((drawn.abs() <= 1.0).all())
    assert outside == pytest.approx(0.75, abs=0.05)
    with pytest.raises(RuntimeError, match="within the prior's bounds"):
        posteriors.inside(task, lambda n, seed: torch.full((n, 2), 2.0), 10, 0)


def test_transport_pairs_shorten_lines_and_keep_both_ends() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    plain = posteriors.OptimalFlow.__mro__[1](posteriors.OptimalFlow(3).reference).exact_noised(x, seed=1)
    paired = posteriors.OptimalFlow(3).exact_noised(x, seed=1)
    ends = [x - drawn.target for drawn in (plain, paired)]
    torch.testing.assert_close(ends[0].sort(0).values, ends[1].sort(0).values)
    assert float(paired.target.square().sum()) < 0.8 * float(plain.target.square().sum())
    torch.testing.assert_close(paired.x, x - paired.t[:, None] * paired.target)


def test_a_lead_is_over_the_runs_that_both_have() -> None:
    def row(method: str, observation: int, **c2st: float) -> dict[str, Any]:
        return {"method": method, "observation": observation, "seed": 0, "c2st": c2st}

    rows = [row("path", 1, sde=0.6), row("path", 2, sde=0.9), row("VP", 1, sde=0.7, ode=0.5), row("flow", 3, ode=0.5)]
    assert posteriors.standing(rows, "path", ["VP", "flow"]) == ["behind by 0.100", "not run"]
    assert posteriors.nearest([{"c2st": {"": 0.6}}, {"c2st": {"sde": 0.8, "ode": 0.1}}]) == [0.6, 0.8]  # what both have
    rows.append(row("VP", 2, sde=0.9, ode=1.3))
    assert posteriors.standing(rows, "path", ["VP"]) == ["ahead by 0.050, 2 runs"]  # its nearer solver's mean is .8


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_a_reduced_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posteriors, "ITERATIONS", 60)  # of hundreds, which is most of the time of a run this small
    arguments = ["--sbibm", str(folder), "--tasks", "two_moons", "--observations", "1", "--sizes", "500"]
    arguments += ["--simulations", "500", "--steps", "40", "--samples", "200", "--out", str(tmp_path)]
    every = f"{posteriors.PATH}, every step"
    arguments += ["--methods", posteriors.TRUTH, posteriors.SPHERICAL, posteriors.PATH, every, *posteriors.UNMIXED]
    arguments += posteriors.AMORTISED
    assert posteriors.main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / posteriors.ROWS).read_text().splitlines()]
    found = {(row["part"], row["method"]): row["c2st"] for row in rows}
    path = found[posteriors.POSTERIOR, posteriors.PATH]["sde"]
    assert set(found[posteriors.POSTERIOR, every]) == set(posteriors.BOTH)
    assert path < 0.7 < found[posteriors.POSTERIOR, "linear VP DSM"]["sde"]
    for method in posteriors.AMORTISED:
        assert set(found[posteriors.AMORTISATION, method]) == {"1"}
    assert posteriors.main(arguments) == 0  # nothing is left to run
    assert len((tmp_path / posteriors.ROWS).read_text().splitlines()) == len(rows) == len(found)
    text = (tmp_path / posteriors.PAGE).read_text()
    assert "## Two moons: one posterior" in text and "*NPE*" in text
