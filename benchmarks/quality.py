"""Quality of the method's samples, estimator by estimator, against draws from the reference itself.

    python benchmarks/quality.py planar [--seeds 3] [--jobs 2]    four modes, ring, moons: energy distance, mode weights
    python benchmarks/quality.py digits                            8x8 digits: Frechet and nearest-training distance
    python benchmarks/quality.py known                             Gaussian data, whose score is known
    python benchmarks/quality.py variance                          gradient trace of each estimator on trained networks
    python benchmarks/quality.py records [--seeds 3] [--jobs 2]    digits by path at 1 to 32 records a path, equal steps
    python benchmarks/quality.py steps                             gradient trace of batches, steps drawn both ways

Each writes its rows to benchmarks/results/quality-NAME.json and prints them; tests/test_quality.py asserts on them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastndsm
from fastndsm import GaussianMixture, LangevinProcess, NDSMLoss, OUProcess, ResidualScore, data, metrics, networks
from fastndsm.cli.tables import markdown
from fastndsm.training.trainer import TrainConfig, Trainer

RESULTS = Path(__file__).parent / "results"
ESTIMATORS = {
    "path": {"estimator": "path"},
    "path antithetic": {"estimator": "path", "antithetic": True},
    "plain antithetic": {"estimator": "plain", "antithetic": True},
    "control_variate": {"estimator": "control_variate"},
    "plain": {"estimator": "plain"},
}
RECORDS = (1, 4, 8, 16, 32)  # a path
PLANAR = {"four_modes": 4, "ring": 10, "moons": 2}  # components: the numbers of modes
EVALUATED = 20_000  # samples and held-out points: at 5,000 the distances' own noise is as large as what is left to see
Row = dict[str, Any]


def train(net: nn.Module, process: LangevinProcess, estimator: str, x: Tensor, config: TrainConfig) -> nn.Module:
    """Return the moving average of `net` after training with the estimator."""
    trainer = Trainer(net, NDSMLoss(process, **ESTIMATORS[estimator]), x, config)  # type: ignore[arg-type]
    trainer.fit(progress=False)
    return trainer.ema_net


def planar(name: str, estimator: str, seed: int, steps: int = 4000) -> list[Row]:
    """Return the energy distance to held-out data and mode weights of a model of 5,000 points, and of draws from pi."""
    torch.manual_seed(seed)
    dataset = data.load(name, n=5000, seed=seed, n_test=EVALUATED)
    reference = GaussianMixture.fit(dataset.train, PLANAR[name], random_state=seed)
    process = LangevinProcess(reference, n_steps=100, grid="quadratic")
    model = ResidualScore(networks.MLP(2, (128, 128, 128), in_dim=4, horizon=process.T), process, features=True)
    batch = 512 if estimator == "path" else 256  # equal numbers of network evaluations
    started = time.perf_counter()
    model = train(model, process, estimator, dataset.train, TrainConfig(steps=steps, batch_size=batch, seed=seed))
    seconds = time.perf_counter() - started
    rows = []
    draws = {
        estimator: fastndsm.sample(model, process, EVALUATED, seed=seed),
        "pi": reference.sample(EVALUATED, seed).float(),
    }
    for who, samples in draws.items():
        row = {"data": name, "row": who, "seed": seed, "seconds": round(seconds if who != "pi" else 0.0, 1)}
        rows.append(row | metrics.evaluate(samples, dataset, max_points=EVALUATED))
    return rows


def digits(estimators: list[str], seed: int = 0, steps: int = 4000, pictures: Path | None = None) -> list[Row]:
    """Return Frechet distance, class weights, confidence, distance to nearest training image; of pi and data too."""
    dataset = data.load("digits")
    x = dataset.train.flatten(1)
    reference = digits_model(seed).process.reference
    classifier = metrics.FeatureClassifier.fit(dataset.train, dataset.labels, seed=0, n_classes=10)
    samples = {
        "held-out data": dataset.test,
        "pi": reference.sample(2000, seed).float().reshape(-1, *dataset.event_shape),
    }
    seconds = {}
    for estimator in estimators:
        model = digits_model(seed)
        started = time.perf_counter()
        model = train(model, model.process, estimator, x, TrainConfig(steps=steps, batch_size=256, seed=seed))
        seconds[estimator] = time.perf_counter() - started
        draws = fastndsm.sample(model, model.process, 2000, seed=seed)
        samples[estimator] = draws.reshape(-1, *dataset.event_shape)
        if pictures is not None:
            torch.save(draws, pictures / f"digits-{estimator}.pt")
    return [
        {"data": "digits", "row": who, "seed": seed, "seconds": round(seconds.get(who, 0.0), 1)}
        | metrics.evaluate(found, dataset, classifier=classifier)
        for who, found in samples.items()
    ]


def records(count: int, seed: int, steps: int = 4000) -> Row:
    """Return the Frechet distance of path at so many records a path, and the processor seconds of its training."""
    dataset = data.load("digits")
    classifier = metrics.FeatureClassifier.fit(dataset.train, dataset.labels, seed=0, n_classes=10)
    model = digits_model(seed)
    config = TrainConfig(steps=steps, batch_size=256, seed=seed, records_per_path=count)
    started = time.process_time()
    model = train(model, model.process, "path", dataset.train.flatten(1), config)
    seconds = time.process_time() - started
    draws = fastndsm.sample(model, model.process, 2000, seed=seed).reshape(-1, *dataset.event_shape)
    frechet = metrics.evaluate(draws, dataset, classifier=classifier)["frechet_distance"]
    return {"data": "digits", "records": count, "seed": seed, "seconds": round(seconds, 1), "frechet_distance": frechet}


def digits_model(seed: int) -> ResidualScore:
    """Return an untrained residual MLP 3x256 on the flat digits, with a spherical reference of ten components."""
    torch.manual_seed(seed)
    dataset = data.load("digits")
    reference = GaussianMixture.fit(dataset.train.flatten(1), 10, "spherical", 1e-2, random_state=seed)
    process = LangevinProcess(reference, n_steps=100)
    return ResidualScore(networks.MLP(64, (256, 256, 256), horizon=process.T), process)


def known_score(estimator: str, seed: int = 0, steps: int = 4000, dim: int = 2) -> Row:
    """Return the relative squared error of the score learnt from N(m, diag(c)) noised towards pi = N(0, I)."""
    torch.manual_seed(seed)
    mean, variance = torch.tensor([0.8, -0.5], device="cpu")[:dim], torch.tensor([0.3, 0.6], device="cpu")[:dim]
    process = OUProcess(dim, T=3.0, n_steps=100)
    x = mean + variance.sqrt() * torch.randn(20_000, dim, device="cpu")
    model = ResidualScore(networks.MLP(dim, (128, 128, 128), horizon=process.T), process)
    model = train(model, process, estimator, x, TrainConfig(steps=steps, batch_size=512, seed=seed))
    shrink = (1.0 - process.drift_scale).cumprod(0).float()
    noise = process.noise_variance.float()
    step = process.draw_steps(50_000, seed=seed + 1)
    x0 = mean + variance.sqrt() * torch.randn(50_000, dim, device="cpu")
    drawn = process.noised(x0, step, seed=seed + 2)
    law = shrink[step, None] ** 2 * x.var(0) + noise[step, None]  # the discrete chain's, for the sample the net saw
    exact = -(drawn.x - shrink[step, None] * x.mean(0)) / law
    with torch.no_grad():
        error = (model(drawn.x, drawn.t) - exact).square().sum(1)
    weight = process.noise_variance[step].float()
    relative = float((weight * error).mean() / (weight * exact.square().sum(1)).mean())
    return {"data": "gaussian", "row": estimator, "seed": seed, "relative_error": relative}


def gradient_trace(
    model: nn.Module, process: LangevinProcess, x0: Tensor, estimator: str, step: int, n: int = 2000, seed: int = 0
) -> float:
    """Return the trace of the covariance over samples (or antithetic pairs) of the loss gradient in the weights.

    Weight 1, so that only dt and the estimator speak; not the loss's variance, which a detached control variate fools.
    """
    parameters = {k: v.detach() for k, v in model.named_parameters()}
    loss = NDSMLoss(process, weighting=None, **ESTIMATORS[estimator])  # type: ignore[arg-type]
    x0 = x0[torch.arange(n, device="cpu") % len(x0)]
    drawn = loss.draw(x0, seed=seed, step=step)
    pairs = len(drawn.x) // n
    fields = [f.reshape(pairs, n, *f.shape[1:]).transpose(0, 1) for f in drawn]

    def one(weights: dict[str, Tensor], *parts: Tensor) -> Tensor:
        sample = type(drawn)(*parts)

        def net(x: Tensor, t: Tensor) -> Tensor:
            return torch.func.functional_call(model, weights, (x, t))

        return loss.evaluate(net, sample)

    squares = torch.zeros((), device="cpu")
    mean = [torch.zeros_like(p) for p in parameters.values()]
    for i in range(n):  # one by one: the ops are opaque to vmap
        weights = {k: v.clone().requires_grad_() for k, v in parameters.items()}
        grads = torch.autograd.grad(one(weights, *(f[i] for f in fields)), list(weights.values()), allow_unused=True)
        for m, g in zip(mean, grads, strict=True):
            if g is not None:
                m += g / n
                squares += g.square().sum() / n
    trace = squares - sum(m.square().sum() for m in mean)
    return float(trace) * n / (n - 1)


def variance(seed: int = 0, steps: int = 4000, n: int = 1000) -> list[Row]:
    """Return gradient traces on trained networks: four modes at last steps of 1e-3 and 0.1, digits at three times."""
    rows = []
    torch.manual_seed(seed)
    dataset = data.load("four_modes", n=5000, seed=seed)  # wide enough for a step of 0.1 to be stable
    reference = GaussianMixture.fit(dataset.train, 4, random_state=seed)
    process = LangevinProcess(reference, n_steps=100, grid="quadratic")
    model = ResidualScore(networks.MLP(2, (128, 128, 128), in_dim=4, horizon=process.T), process, features=True)
    model = train(model, process, "path", dataset.train, TrainConfig(steps=steps, batch_size=512, seed=seed))
    for dt in (1e-3, 0.1):
        times = torch.cat(
            [
                torch.linspace(0, process.T - dt, 100, dtype=torch.float64, device="cpu"),
                torch.tensor([process.T], device="cpu"),
            ]
        )
        probe = LangevinProcess(reference, grid=times)
        for estimator in ESTIMATORS:
            trace = gradient_trace(model, probe, dataset.train, estimator, 99, n, seed)
            rows.append({"data": "four_modes", "row": estimator, "dt": dt, "trace": trace})
    digits_net = digits_model(seed)
    x = data.load("digits").train.flatten(1)
    config = TrainConfig(steps=steps, batch_size=256, seed=seed)
    digits_net = train(digits_net, digits_net.process, "path", x, config)
    for fraction in (0.02, 0.2, 1.0):
        step = max(0, round(fraction * 100) - 1)
        for estimator in ESTIMATORS:
            trace = gradient_trace(digits_net, digits_net.process, x, estimator, step, n, seed)
            rows.append({"data": "digits", "row": estimator, "t/T": fraction, "trace": trace})
    return rows


def golden_steps(n: int, n_steps: int, first_path: int) -> Tensor:
    """Return steps [n] that consecutive paths spread over the grid: floor(N frac(path G)), G the golden ratio."""
    paths = torch.arange(n, device="cpu") + first_path
    return ((paths * 0x9E3779B9 & 0xFFFFFFFF) * n_steps) >> 32


def batch_trace(
    model: nn.Module, loss: NDSMLoss, x: Tensor, golden: bool, batch_size: int = 256, batches: int = 400, seed: int = 0
) -> float:
    """Return the trace of the covariance over batches of the gradient of the mean loss, as training draws them.

    golden: draw the steps by `golden_steps`, in place of independently.
    """
    parameters = list(model.parameters())
    total, squares = [torch.zeros_like(p) for p in parameters], 0.0
    order = torch.Generator("cpu").manual_seed(seed)
    for i in range(batches):
        rows = torch.randint(len(x), (batch_size,), generator=order, device="cpu")
        first = i * batch_size
        step = golden_steps(batch_size, loss.process.n_steps, first) if golden else None
        grads = torch.autograd.grad(loss(model, x[rows], seed, step, first), parameters)
        for t, g in zip(total, grads, strict=True):
            t += g / batches
            squares += float(g.square().sum()) / batches
    return (squares - float(sum(t.square().sum() for t in total))) * batches / (batches - 1)


def steps_drawn(seed: int = 0, steps: int = 4000, batches: int = 400) -> list[Row]:
    """Return batch traces of both ways to draw steps, on four modes and digits, untrained, half and wholly trained."""
    torch.manual_seed(seed)
    dataset = data.load("four_modes", n=5000, seed=seed)
    reference = GaussianMixture.fit(dataset.train, 4, random_state=seed)
    process = LangevinProcess(reference, n_steps=100, grid="quadratic")
    planar_net = ResidualScore(networks.MLP(2, (128, 128, 128), in_dim=4, horizon=process.T), process, features=True)
    runs = {
        "four_modes": (planar_net, dataset.train),
        "digits": (digits_model(seed), data.load("digits").train.flatten(1)),
    }
    rows = []
    for name, (model, x) in runs.items():
        for after in (0, steps // 20, steps):
            if after:
                config = TrainConfig(steps=after, batch_size=256, seed=seed)
                model = train(model, model.process, "path", x, config).requires_grad_()
            for weighting in ("variance", None):
                loss = NDSMLoss(model.process, weighting=weighting)
                independent, golden = (
                    batch_trace(model, loss, x, golden, batches=batches, seed=seed + 1) for golden in (False, True)
                )
                row = {"data": name, "after": after, "weighting": weighting or "1"}
                rows.append(row | {"independent": independent, "golden": golden, "ratio": golden / independent})
    return rows


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = ((row.get(c, "") for c in columns) for row in rows)
    return markdown(columns, ((f"{c:.4g}" if isinstance(c, float) else str(c) for c in line) for line in cells))


def _planar_job(job: tuple[str, str, int], steps: int) -> list[Row]:
    torch.set_num_threads(1)
    return planar(*job, steps=steps)


def _records_job(job: tuple[int, int], steps: int) -> Row:
    torch.set_num_threads(1)
    return records(*job, steps=steps)


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["planar", "digits", "known", "variance", "records", "steps"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--estimators", nargs="*", default=["path", "plain antithetic", "control_variate"])
    options = parser.parse_args(arguments)
    if options.what == "planar":
        jobs = [(d, e, s) for s in range(options.seeds) for d in PLANAR for e in options.estimators]
        with ProcessPoolExecutor(options.jobs) as pool:
            rows = [row for part in pool.map(partial(_planar_job, steps=options.steps), jobs) for row in part]
        rows = list({(r["data"], r["row"], r["seed"]): r for r in rows}.values())
    elif options.what == "digits":
        rows = digits(options.estimators, steps=options.steps)
    elif options.what == "known":
        rows = [known_score(e, steps=options.steps) for e in options.estimators]
    elif options.what == "records":
        pairs = [(count, seed) for count in RECORDS for seed in range(options.seeds)]
        with ProcessPoolExecutor(options.jobs) as pool:
            rows = list(pool.map(partial(_records_job, steps=options.steps), pairs))
    elif options.what == "steps":
        rows = steps_drawn(steps=options.steps)
    else:
        rows = variance(steps=options.steps)
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "fastndsm": fastndsm.__version__, "python": sys.version.split()[0]},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"quality-{options.what}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
