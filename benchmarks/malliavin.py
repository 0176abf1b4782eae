"""Gradient variance of the path estimator beside the modes of its prior art, on drifts that are no mixture's.

    python -m benchmarks.malliavin [--paths 16384] [--steps 100]

writes its rows, with date and versions, to benchmarks/results/malliavin.json and a table to malliavin.md beside it.

Along the Euler-Maruyama chain x_{m+1} = x_m + dt_m F(x_m) + s_m z_m, m < n, each

    T_k = -z_k / s_k + sum_{k < m < n} dt_m J_m^T z_m / s_m,      J_m = dF/dx at x_m, t_m,      k = 0 .. n-1

has E[T_k | x_n] = grad log p_n(x_n): shift the path by e from x_{k+1} on and use Stein's identity. So has every sum
sum_k w_k T_k with sum_k w_k = 1 whose weights depend on the step alone. The modes are

    first     w_0 = 1: all weight on the first step, the noise of all that follow transported by J
    last      w_{n-1} = 1: the last step alone, our `plain`; its variance grows as 1/dt
    average   w_k = (t_{k+1} - t_k) / (t_n - t_0)
    optimal   the weights of least E |sum_k w_k T_k|^2 over pilot paths of their own: w = C^-1 1 / (1^T C^-1 1),
              C_kl = E[T_k . T_l]; as the conditional mean is the same for all w, these are of least variance too
    path      ours: w_k = alpha_{k+1} - alpha_k, alpha_m = rho_m ... rho_{n-1}, rho_m = c_m v_m / v_{m+1},
              c_m = 1 - rate dt_m, v_{m+1} = s_m^2 + c_m^2 v_m; one fused pass, without pilot paths

`path antithetic` is ours on pairs of paths driven by z and -z, its variance that of a pair's mean, times two: per path.

These are modes of Pidstrigach et al. (arXiv 2504.03461), weights over the steps of a path, carried over to our setting:
they differentiate in the point that a path starts from and transport noise by the Jacobian of the flow; a score of
the point that it ends in takes J^T z at each step alone. Reparameterised by weights that are chosen for least
variance they stand in Domingo-Enrich et al. (arXiv 2312.02027). The toys have the names of those papers' (OU, sine,
double well, d = 1 and 10); drifts, sigma = 1, T = 2 and N(0, I / 4) to start from are our choice, and no figure here is
one of theirs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fastndsm import DriftProcess, GaussianMixture, compile_drift, drifts, functional
from fastndsm.cli.tables import markdown

from .record import machine, versions

RESULTS = Path(__file__).parent / "results"
TOYS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {  # drift, and -dF/dx where it is stable: our rate
    "OU": (lambda x, t: -x, 1.0),
    "sine": (lambda x, t: torch.sin(2.0 * x), 2.0),
    "double well": (drifts.DoubleWell(), 2.0),
}
DIMENSIONS = (1, 10)
HORIZON = 2.0
MODES = ("first", "last", "average", "optimal", "path")
PILOT, PATHS, TRAINED = 2**32, 0, 2**33  # first paths: of optimal weights, of the variances, of the network
Row = dict[str, Any]


def process(name: str, dim: int, n_steps: int, rate: float | None = None) -> DriftProcess:
    """Return the process of a toy; with another rate than its own, if one is given."""
    drift, own = TOYS[name]
    rate = own if rate is None else rate
    return DriftProcess(drift, GaussianMixture.standard_normal(dim), T=HORIZON, n_steps=n_steps, rate=rate)


def terms(p: DriftProcess, x0: Tensor, n: int, seed: int, first_path: int = 0) -> tuple[Tensor, Tensor]:
    """Return x_n [B, d] and T_k [n, B, d] of n steps from x0 [B, d], with the noise of `functional.simulate_target`."""
    drift, x = compile_drift(p.drift_function, p.dim), x0
    own, pushed = [], []
    for m in range(n):
        z = functional.philox_normal(len(x), p.dim, seed=seed, step=m, first_path=first_path, dtype=x.dtype)
        value, product = drift.product(x, float(p.times[m]), z)
        dt, std = float(p.times[m + 1] - p.times[m]), float(p.noise_std[m])
        own.append(-z / std)
        pushed.append(product * (dt / std))
        x = x + dt * value + std * z
    sums = torch.stack(pushed).flip(0).cumsum(0).flip(0)  # of step k and those that follow
    return x, torch.stack(own) + torch.cat([sums[1:], torch.zeros_like(sums[:1])])


def path_weights(p: DriftProcess, n: int) -> Tensor:
    """Return w_k [n] of our estimator after n steps."""
    v, rho = 0.0, []
    for m in range(n):
        s, c = float(p.noise_std[m]), 1.0 - p.rate * float(p.times[m + 1] - p.times[m])
        rho.append(c * v / (s * s + c * c * v))
        v = s * s + c * c * v
    alpha = torch.tensor([*rho, 1.0], dtype=torch.float64, device="cpu").flip(0).cumprod(0).flip(0)
    return alpha.diff()


def optimal_weights(each: Tensor) -> Tensor:
    """Return the weights [n] of least variance for the terms [n, B, d] of pilot paths."""
    flat = each.double().flatten(1)
    solved = torch.linalg.solve(flat @ flat.T / flat.shape[1], flat.new_ones(len(flat)))
    return solved / solved.sum()


def weights(p: DriftProcess, n: int, pilot: Tensor) -> dict[str, Tensor]:
    """Return the weights [n] of every mode after n steps; pilot: the terms of pilot paths."""
    first = torch.zeros(n, dtype=torch.float64, device="cpu")
    first[0] = 1.0
    average = p.times[: n + 1].diff() / (p.times[n] - p.times[0])
    chosen = first, first.flip(0), average, optimal_weights(pilot), path_weights(p, n)
    return dict(zip(MODES, chosen, strict=True))


def network(x: Tensor, target: Tensor, train_steps: int) -> nn.Module:
    """Return a small network that is trained on pairs of one time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, x.shape[1]))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for i in range(train_steps):
        rows = slice(i * 1024 % len(x), i * 1024 % len(x) + 1024)
        optimizer.zero_grad()
        (0.5 * (net(x[rows]) - target[rows]).square().sum(1)).mean().backward()
        optimizer.step()
    return net


def gradients(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of each sample's 1/2 |net(x) - target|^2 in the network's parameters, [B, P]."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def gradient(point: Tensor, aim: Tensor) -> Tensor:
        score, back = vjp(lambda p: functional_call(net, p, (point[None],))[0], parameters)
        return torch.cat([g.flatten() for g in back(score - aim)[0].values()])

    return vmap(gradient)(x, target)


def trace(samples: Tensor) -> float:
    """Return the trace of the covariance of samples [B, P]."""
    return float(samples.double().var(0).sum())


def measure(name: str, dim: int, n: int, n_steps: int, n_paths: int, train_steps: int) -> list[Row]:
    """Return a row a mode: the target's second moment, a value, and the trace of the gradient's covariance, a path."""
    p = process(name, dim, n_steps)
    starts = (0.5 * functional.philox_normal(3 * n_paths, dim, seed=11, stream=9)).split(n_paths)
    x, target, _ = functional.simulate_target(starts[0], p, n, seed=7, first_path=TRAINED)
    net = network(x, target, train_steps)
    chosen = weights(p, n, terms(p, starts[1], n, 7, PILOT)[1])
    x, each = terms(p, starts[2], n, 7, PATHS)
    found = {mode: (x, torch.einsum("k,kbd->bd", w.float(), each)) for mode, w in chosen.items()}
    rows: list[Row] = [
        {"mode": mode, "target": float(aims.square().mean()), "gradient": trace(gradients(net, points, aims))}
        for mode, (points, aims) in found.items()
    ]
    points, aims, _ = functional.simulate_target(starts[2], p, n, seed=7, first_path=PATHS, antithetic=True)
    pairs = gradients(net, points, aims).reshape(2, n_paths, -1).mean(0)
    rows.append({"mode": "path antithetic", "gradient": 2.0 * trace(pairs)})
    return [{"drift": name, "dim": dim, "t/T": n / n_steps, **row} for row in rows]


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--train-steps", type=int, default=300)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    sizes = [(name, dim, n) for name in TOYS for dim in DIMENSIONS for n in (options.steps // 10, options.steps)]
    rows = [row for size in sizes for row in measure(*size, options.steps, options.paths, options.train_steps)]
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "paths": options.paths,
        "steps": options.steps,
        "rows": rows,
    }
    options.results.mkdir(exist_ok=True)
    (options.results / "malliavin.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.results / "malliavin.md").write_text(page(record))
    print(page(record))
    return rows


def page(record: dict[str, Any]) -> str:
    """Return the rows as a page: gradient traces, a line a toy, dimension and time."""
    groups: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in record["rows"]:
        groups.setdefault((row["drift"], row["dim"], row["t/T"]), {})[row["mode"]] = row["gradient"]
    modes = [*MODES, "path antithetic"]
    body = [[*map(str, key), *(f"{values[mode]:.3g}" for mode in modes)] for key, values in groups.items()]
    parts = ", ".join(f"{name} {record['versions'][name]}" for name in ("fastndsm", "torch", "python"))
    where = "{cpu}, {instructions}, {threads} threads".format(**record["machine"])
    return (
        "# Gradient variance beside the modes of prior art\n\n"
        f"`python -m benchmarks.malliavin`, whose docstring defines the modes; {record['date']}, {where}, "
        f"{parts}; {record['paths']} paths of {record['steps']} steps.\n"
        "Trace of the covariance of the gradient of one path's loss, in a small network trained at that time.\n\n"
        + markdown(["drift", "d", "t/T", *modes], body)
        + "\n"
    )


if __name__ == "__main__":
    main()
