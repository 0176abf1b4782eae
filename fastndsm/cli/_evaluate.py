"""fastndsm evaluate: the metrics of a trained model."""

from __future__ import annotations

import argparse
import json

from . import _common
from .report import evaluate_samples

NAME = "evaluate"
PURPOSE = "Print the metrics of samples, of draws from the reference and of held-out data, as a table and as JSON."
EXAMPLE = "fastndsm evaluate runs/demo --n 2000 --method ode"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    _common.add_sampling_options(parser, 2000)
    parser.add_argument("--data", help="name or .npy/.npz file; default what the model was trained on")
    _common.add_run_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Sample, evaluate, print."""
    with _common.running(arguments) as device:
        score_net, process, meta = _common.load(arguments, device)
        name = arguments.data or meta.get("data")
        if name is None:
            raise ValueError("--data: expected a name or a file, since the model does not tell; found none")
        dataset = _common.load_data(name, meta.get("n_train") if arguments.data is None else None)
        if dataset.dim != process.dim:
            raise ValueError(f"--data: expected {process.dim} values a sample as the model has, found {dataset.dim}")
        options = {"method": arguments.method, "seed": arguments.seed, "batch_size": arguments.batch_size}
        samples = _common.draw(score_net, process, arguments.n, arguments, **options)
        reference = process.reference.sample(arguments.n, seed=arguments.seed + 1).float().cpu()
    found = evaluate_samples(samples, dataset, reference, seed=arguments.seed)
    print(found.table())
    if found.weights:
        print(f"\n{found.weights_table()}")
    print()
    print(json.dumps({"counts": found.counts, "metrics": found.metrics, "label_weights": found.weights}))
    return 0
