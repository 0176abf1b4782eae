"""fastndsm evaluate: the metrics of a trained model."""

from __future__ import annotations

import argparse
import json

from ..data import LAYOUTS
from . import _common
from .report import STRICT, evaluate_samples

NAME = "evaluate"
PURPOSE = "Print the metrics of samples, of draws from the reference and of held-out data, as a table and as JSON."
EXAMPLE = "fastndsm evaluate runs/demo --n 2000 --method ode"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    _common.add_sampling_options(parser, 2000)
    parser.add_argument("--data", help="name or file, as for train; default what the model was trained on")
    parser.add_argument("--layout", choices=LAYOUTS, help="of a file's images, as for train; default the model's")
    parser.add_argument("--label-column", help="of a table, as for train; default the model's, if --data is")
    parser.add_argument("--strict", action="store_true", help=STRICT)
    _common.add_run_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Sample, evaluate, print."""
    with _common.running(arguments) as device:
        score_net, process, units, meta = _common.load(arguments, device)
        name = arguments.data or meta.get("data")
        if name is None:
            raise ValueError("--data: expected a name or a file, since the model does not tell; found none")
        known = meta.get("settings", {}) if arguments.data is None else {}
        dataset = _common.load_data(
            name,
            known.get("n_train"),
            arguments.layout or meta.get("settings", {}).get("layout", "auto"),
            arguments.label_column or known.get("label_column"),
            known.get("labels"),
        )
        if dataset.dim != units.dim:
            raise ValueError(f"--data: expected {units.dim} values a sample as the model has, found {dataset.dim}")
        options = _common.sampling_options(arguments)
        options |= _common.conditions(meta.get("classes"), arguments.n, arguments.seed, arguments.guidance)
        samples = _common.draw(score_net, process, units, arguments.n, arguments, **options)
        reference = _common.draw_reference(process, units, arguments.n, arguments.seed)
    found = evaluate_samples(samples, dataset, reference, seed=arguments.seed)
    print(found.table())
    if found.weights:
        print(f"\n{found.weights_table()}")
    print()
    shown = {"counts": found.counts, "metrics": found.metrics, "label_weights": found.weights}
    print(json.dumps({**shown, "label_names": found.label_names, "worse_than_reference": found.worse}))
    return _common.verdict(found, arguments)
