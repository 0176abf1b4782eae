"""The plane of TorchCFM: 2-Wasserstein distance at 1 to 100 network evaluations, beside its own flows.

    pip install --no-deps torchcfm==1.0.7 && pip install pot
    python -m benchmarks.public.plane             every run that has no row yet, then the page
    python -m benchmarks.public.plane --page      the page alone, from the rows there are

Sets, network and training are those of TorchCFM (Tong et al., TMLR 2024, arXiv 2302.00482; repository
atong01/conditional-flow-matching): eight Gaussians and moons as `torchcfm.utils` draws them, the S curve as its runner
does; an MLP of three layers of 64 with SELU that sees (x, t); 10,000 training points in batches of 512, 20,000 steps
(its 1,000 epochs) of AdamW at 1e-3 with weight decay 1e-5, without averages; seeds 42 to 46. Its flows run by its own
matchers, with the noise of its runner and without, from N(0, I), by Euler's method or the midpoint method,
whichever is nearer; the four that couple by optimal transport are trained at once, on the same couplings, and each is
charged the seconds of all these. Ours have the same network, number of steps, batches and optimizer, on data divided by
their standard deviation; the reference is what `GaussianMixture.select` chooses by the likelihood of held-out points,
the solver is `fastndsm.sample`'s default. The network sees our times as sqrt(t / T), the place on a quadratic grid.

W2 is that of 10,000 samples and 10,000 fresh points, exact (POT). "fresh points" is its value for points drawn
independently from the truth, below which chance alone leads: most of it is how many of them fall where. Eight
Gaussians are a mixture, which a reference of eight components knows; what it has there is no feat.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import make_moons, make_s_curve
from torch import Tensor, nn

import fastndsm
from fastndsm import GaussianMixture, LangevinProcess, ResidualScore, loss_for
from fastndsm.cli.tables import markdown

from .rows import complete, publish, read

RESULTS = Path(__file__).resolve().parent.parent / "results"
ROWS, PAGE = "public-plane.jsonl", "public-plane.md"
PACKAGES = ("torch", "torchcfm", "pot")
SEEDS = (42, 43, 44, 45, 46)
EVALUATIONS = (1, 2, 5, 10, 20, 100)
BATCH, HIDDEN = 512, 64
FRESH, PRIOR = "fresh points", "draws from the mixture"
PEERS: dict[str, tuple[str, float]] = {  # class of torchcfm, its sigma
    "I-CFM": ("ConditionalFlowMatcher", 0.1),
    "I-CFM, sigma 0": ("ConditionalFlowMatcher", 0.0),
    "OT-CFM": ("ExactOptimalTransportConditionalFlowMatcher", 0.1),
    "OT-CFM, sigma 0": ("ExactOptimalTransportConditionalFlowMatcher", 0.0),
    "SB-CFM": ("SchrodingerBridgeConditionalFlowMatcher", 1.0),
    "SB-CFM, sigma 0.1": ("SchrodingerBridgeConditionalFlowMatcher", 0.1),
    "VP-CFM": ("VariancePreservingConditionalFlowMatcher", 0.1),
}
COUPLED = tuple(method for method in PEERS if method.startswith(("OT-CFM", "SB-CFM")))
OURS: dict[str, Callable[[GaussianMixture], Any]] = {
    "path": lambda pi: LangevinProcess(pi, grid="quadratic"),
    "flow from the mixture": lambda pi: fastndsm.FlowProcess(pi),
    "EDM, mixture skip": lambda pi: fastndsm.EDMProcess(pi.dim, pi),
}


class Budget(NamedTuple):
    """Optimizer steps, training points, points of a distance."""

    steps: int = 20_000
    n: int = 10_000
    evaluated: int = 10_000


def eight_gaussians(n: int, seed: int) -> Tensor:
    """Return points around a circle of radius 5, of covariance sqrt(0.1) I."""
    generator = torch.Generator("cpu").manual_seed(seed)
    angle = torch.randint(8, (n,), generator=generator, device="cpu") * (math.pi / 4)
    noise = math.sqrt(math.sqrt(0.1)) * torch.randn(n, 2, generator=generator, device="cpu")
    return 5.0 * torch.stack([angle.cos(), angle.sin()], dim=1) + noise


def moons(n: int, seed: int) -> Tensor:
    """Return two half circles with noise 0.2, tripled."""
    points = torch.from_numpy(make_moons(n, noise=0.2, random_state=seed)[0]).float()
    return 3.0 * points - 1.0


def s_curve(n: int, seed: int) -> Tensor:
    """Return an S with noise 0.1, scaled to a standard deviation of 7 by the law's own mean and deviation."""
    points = torch.from_numpy(make_s_curve(n, noise=0.1, random_state=seed)[0][:, [0, 2]]).float()
    whole = torch.from_numpy(make_s_curve(100_000, noise=0.1, random_state=0)[0][:, [0, 2]]).float()
    return (points - whole.mean()) / whole.std() * 7.0


SETS: dict[str, Callable[[int, int], Tensor]] = {"8 Gaussians": eight_gaussians, "moons": moons, "S curve": s_curve}


class Network(nn.Module):
    """TorchCFM's MLP: (x [B, 2], t [B]) -> [B, 2].

    Args:
        time: of t, the number that it sees.
    """

    def __init__(self, time: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        super().__init__()
        widths = (3, HIDDEN, HIDDEN, HIDDEN)
        layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.SELU())]
        self.layers, self.time = nn.Sequential(*layers, nn.Linear(HIDDEN, 2)), time

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([x, self.time(t)[:, None]], dim=1))
        return out


def train(net: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> None:
    """Minimise loss(batch) by AdamW over shuffled batches of x, as TorchCFM's runner does."""
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-5)
    order, at = torch.randperm(len(x), device="cpu"), 0
    for _ in range(steps):
        if at + BATCH > len(x):
            order, at = torch.randperm(len(x), device="cpu"), 0
        batch, at = x[order[at : at + BATCH]], at + BATCH
        optimizer.zero_grad()
        loss(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Return the exact 2-Wasserstein distance of as many points: by POT, where it is installed, as it is faster."""
    costs = torch.cdist(a.double(), b.double()).square().numpy()
    if importlib.util.find_spec("ot") is None:
        return float(np.sqrt(costs[linear_sum_assignment(costs)].mean()))
    import ot

    return float(np.sqrt(ot.emd2([], [], costs, numItermax=100_000_000)))


@torch.no_grad()
def flowed(net: nn.Module, x: Tensor, evaluations: int, method: str) -> Tensor:
    """Return x carried from time 0 to 1 by Euler's method, or by the midpoint method in half as many steps."""
    steps = evaluations if method == "Euler" else evaluations // 2
    for i in range(steps):
        t, h = torch.full((len(x),), i / steps, device=x.device), 1.0 / steps
        slope = net(x, t)
        x = x + h * (slope if method == "Euler" else net(x + 0.5 * h * slope, t + 0.5 * h))
    return x


@lru_cache(maxsize=1)
def reference_of(name: str, seed: int, n: int) -> tuple[GaussianMixture, float, float]:
    """Return the mixture chosen for a training set, the scale that its data are divided by, and processor seconds."""
    x = SETS[name](n, seed)
    scale, started = float(x.std(0).mean()), time.process_time()
    return GaussianMixture.select(x / scale, random_state=seed).mixture, scale, time.process_time() - started


class SharedCouplings:
    """A sampler of couplings in the place of several matchers' own: those of a batch are drawn once, for all of them.

    Args:
        sampler: draws the pairs of (noise [B, d], batch [B, d]).
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.seconds = sampler, 0.0
        self.of: tuple[Tensor, Tensor] | None = None
        self.pairs: tuple[Tensor, Tensor]

    def sample_plan(self, noise: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        if self.of is None or self.of[0] is not noise or self.of[1] is not batch:
            started = time.process_time()
            self.of, self.pairs = (noise, batch), self.sampler.sample_plan(noise, batch)
            self.seconds += time.process_time() - started
        return self.pairs


def train_flows(matchers: dict[str, Any], x: Tensor, steps: int, seed: int) -> dict[str, tuple[Network, float]]:
    """Train a network by each matcher, all on the same batches and noise; return them with the seconds of each.

    AdamW takes every weight by itself, so that networks trained at once do not see each other.
    """
    torch.manual_seed(seed)
    nets = nn.ModuleList([Network()])
    nets.extend(copy.deepcopy(nets[0]) for _ in range(len(matchers) - 1))
    couplings = None
    if all(hasattr(matcher, "ot_sampler") for matcher in matchers.values()):
        couplings = SharedCouplings(next(iter(matchers.values())).ot_sampler)
        for matcher in matchers.values():
            matcher.ot_sampler = couplings

    def matched(batch: Tensor) -> Tensor:
        noise, loss = torch.randn_like(batch), batch.new_zeros(())
        for net, matcher in zip(nets, matchers.values(), strict=True):
            t, between, flow = matcher.sample_location_and_conditional_flow(noise, batch)
            loss = loss + (net(between, t) - flow).square().mean()
        return loss

    started = time.process_time()
    train(nets, matched, x, steps)
    shared = 0.0 if couplings is None else couplings.seconds
    alone = shared + (time.process_time() - started - shared) / len(matchers)
    return {method: (net, alone) for method, net in zip(matchers, nets, strict=True)}


@lru_cache(maxsize=1)
def flows(name: str, methods: tuple[str, ...], seed: int, budget: Budget) -> dict[str, tuple[Network, float]]:
    """Train TorchCFM's flows of these methods on one set."""
    matching = importlib.import_module("torchcfm.conditional_flow_matching")
    np.random.seed(seed)  # TorchCFM draws pairs from a plan by numpy's generator
    matchers = {method: getattr(matching, PEERS[method][0])(sigma=PEERS[method][1]) for method in methods}
    return train_flows(matchers, SETS[name](budget.n, seed), budget.steps, seed)


def perform(name: str, method: str, seed: int, budget: Budget) -> dict[str, Any]:
    """Train one method on one set, and measure its samples."""
    x, fresh = SETS[name](budget.n, seed), SETS[name](budget.evaluated, seed + 1000)
    row: dict[str, Any] = {"set": name, "method": method, "seed": seed, **budget._asdict()}
    torch.manual_seed(seed)
    if method == FRESH:
        many = SETS[name](20 * budget.evaluated, seed + 2000)
        drawn = many[torch.randperm(len(many), device="cpu")[: budget.evaluated]]  # independently, as samples are
        return row | {"w2": {"": {"": wasserstein(drawn, fresh)}}, "seconds": 0.0}
    found: dict[str, dict[str, float]] = {}
    if method in PEERS:
        net, seconds = flows(name, COUPLED if method in COUPLED else (method,), seed, budget)[method]
        start = torch.randn(budget.evaluated, 2, generator=torch.Generator().manual_seed(seed), device="cpu")
        for calls in EVALUATIONS:
            methods = ("Euler",) if calls % 2 else ("Euler", "midpoint")
            found[str(calls)] = {method: wasserstein(flowed(net, start, calls, method), fresh) for method in methods}
        return row | {"w2": found, "seconds": round(seconds, 1)}
    reference, scale, seconds = reference_of(name, seed, budget.n)
    row |= {"components": reference.n_components, "covariances": reference.covariance_type}
    if method == PRIOR:
        drawn = reference.sample(budget.evaluated, seed=seed).float() * scale
        return row | {"w2": {"": {"": wasserstein(drawn, fresh)}}, "seconds": round(seconds, 1)}
    process = OURS[method](reference)
    quadratic = isinstance(process, LangevinProcess)
    net = Network((lambda t: (t / process.T).sqrt()) if quadratic else (lambda t: t))
    score = net if isinstance(process, fastndsm.FlowProcess) else ResidualScore(net, process)
    loss = loss_for(process)
    started = time.process_time()
    train(net, lambda batch: loss(score, batch), x / scale, budget.steps)
    seconds += time.process_time() - started
    for calls in EVALUATIONS:
        drawn = fastndsm.sample(score, process, budget.evaluated, seed=seed, n_evaluations=calls)
        found[str(calls)] = {"": wasserstein(drawn * scale, fresh)}
    return row | {"w2": found, "seconds": round(seconds, 1)}


def plan(sets: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str, int]]:
    """Return all runs, seed by seed and set by set."""
    return [(name, method, seed) for seed in seeds for name in sets for method in methods]


def nearest(rows: Sequence[dict[str, Any]], calls: str) -> tuple[float, float] | None:
    """Return mean and standard deviation over seeds of W2, each solver's mean apart and the lowest taken."""
    cells = [row["w2"][calls] for row in rows if calls in row["w2"]]
    if not cells:
        return None
    solvers = {solver: np.array([cell[solver] for cell in cells]) for solver in cells[0]}
    best = min(solvers.values(), key=lambda values: float(values.mean()))
    return float(best.mean()), float(best.std())


def margin(rows: Sequence[dict[str, Any]], calls: str, theirs: str) -> str:
    """Say by how much path at some evaluations is nearer than the flow that is least behind at `theirs`.

    rows: of one set. Each of TorchCFM's flows is compared over the seeds that it and path have, by its nearer solver.
    """
    ours, found = [row for row in rows if row["method"] == "path"], []
    for method in PEERS:
        peers = [row for row in rows if row["method"] == method]
        seeds = {row["seed"] for row in ours} & {row["seed"] for row in peers}
        mine, peer = (
            nearest([row for row in few if row["seed"] in seeds], at) for few, at in ((ours, calls), (peers, theirs))
        )
        if mine is not None and peer is not None:
            found.append((peer[0] - mine[0], method, mine[0], peer[0]))
    if not found:
        return ""
    gap, method, mine_mean, peer_mean = min(found)
    return f"{'below' if gap > 0 else 'above'} by {abs(gap):.3f} ({mine_mean:.3f}, {method} {peer_mean:.3f})"


def missing(rows: Sequence[dict[str, Any]]) -> str:
    """Return the runs of one set that have no row: methods by seed, where a seed has any."""
    said, seeds = [], []
    for seed in SEEDS:
        mine = {row["method"] for row in rows if row["seed"] == seed}
        left = [method for method in (FRESH, PRIOR, *OURS, *PEERS) if method not in mine]
        if not mine:
            seeds.append(str(seed))
        elif left:
            said.append(f"seed {seed}: {'; '.join(left)}")
    return ". ".join(said + ([f"seeds {', '.join(seeds)}: all"] if seeds else [])) or "nothing"


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the page: how path stands beside TorchCFM's flows, what has not been run, and a table for each set."""
    assert __doc__ is not None
    parts = ["# TorchCFM's plane", "", *__doc__.split("\n\n", 2)[2].strip().splitlines()]
    of = {name: [row for row in rows if row["set"] == name] for name in SETS}
    standings = [
        [name, *(margin(of[name], *calls) for calls in (("5", "10"), ("10", "10"), ("100", "100"))), missing(of[name])]
        for name in SETS
    ]
    head = ["", "path at 5, flows at 10", "path at 10, flows at 10", "path at 100, flows at 100", "not run"]
    parts += ["", "## Path beside the flow that is least behind, so far", "", markdown(head, standings)]
    for name in SETS:
        lines = []
        for method in (FRESH, PRIOR, *OURS, *PEERS):
            mine = [row for row in of[name] if row["method"] == method]
            if not mine:
                continue
            cells = []
            for calls in ("", *map(str, EVALUATIONS)):
                found = nearest(mine, calls)
                spread = "" if found is None or len(mine) == 1 else f" ± {found[1]:.3f}"
                cells.append("" if found is None else f"{found[0]:.3f}{spread}")
            components = " / ".join(sorted({str(row["components"]) for row in mine if "components" in row}))
            seconds = float(np.mean([row["seconds"] for row in mine]))
            lines.append([method, *cells, components, f"{seconds:.0f}", str(len(mine))])
        if lines:
            head = ["W2", "no network", *map(str, EVALUATIONS), "components", "processor s", "seeds"]
            parts += ["", f"## {name}", "", markdown(head, lines)]
    return "\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [FRESH, PRIOR, *OURS, *PEERS]
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of rows and page; default benchmarks/results")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=every, default=every)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=Budget().steps, help="to try the code; default 20,000")
    parser.add_argument("--points", type=int, default=Budget().n, help="to try the code; default 10,000")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    options = parser.parse_args(arguments)
    path, budget = options.out / ROWS, Budget(options.steps, options.points, options.points)
    if not options.page:
        runs = plan(options.sets, options.methods, options.seeds)
        told = lambda row: [{calls: min(cell.values()) for calls, cell in row["w2"].items()}]  # noqa: E731
        complete(path, ("set", "method", "seed"), runs, partial(perform, budget=budget), PACKAGES, told)
    publish(options.out / PAGE, page(read(path)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
