"""Runs the experiments, and writes figures and page from their rows.

    python examples/experiments/run.py all --data ~/mnist        everything that has no row yet, then figures and page
    python examples/experiments/run.py symmetry --seeds 1         one experiment
    python examples/experiments/run.py page                       figures and page alone, from the rows there are
    python examples/experiments/run.py samples                    the samples that figures show again, then the figures
    python examples/experiments/run.py plan                       what has been run, what has not, and its cost

Each finished run is one line of rows/NAME.jsonl, so that an interrupted command continues where it stopped. Seed 0 of
every experiment comes first, and of each seed the most telling runs. Samples are not in the repository: a figure that
shows some stays as it is until `samples` has made them again, which leaves the rows as they were measured. --data is
the folder of the MNIST files; without it FASTNDSM_DATA or OpenML serves.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from experiments import EXPERIMENTS, trained  # noqa: E402
from experiments.store import Config, Store, key  # noqa: E402


def pending(store: Store, names: Sequence[str], seeds: int, quick: bool) -> list[tuple[str, Config]]:
    """Return the runs that have no row, seed by seed, the most telling runs of a seed first."""
    found = {name: store.read(name) for name in names}
    runs = [
        (seed, EXPERIMENTS[name].priority(config), name, config)
        for seed in range(seeds)
        for name in names
        for config in EXPERIMENTS[name].configs(seed, quick)
        if key(config, EXPERIMENTS[name].VERSION) not in found[name]
    ]
    return [run[2:] for run in sorted(runs, key=lambda run: run[:2])]


def perform(folder: Path, runs: list[tuple[str, Config]], samples_alone: bool = False) -> None:
    """Run one after the other, each written as soon as it is done; of the samples alone no row."""
    torch.set_num_threads(1)
    store, trained.folder = Store(folder), folder / "networks"
    for name, config in runs:
        experiment, started = EXPERIMENTS[name], time.process_time()
        result, samples = experiment.perform(config)
        cost = time.process_time() - started
        if samples_alone:
            store.keep(key(config, experiment.VERSION), samples)
        else:
            store.add(name, config, experiment.VERSION, result | {"cpu_seconds": round(cost, 1)}, samples)
        figures = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items())
        print(f"{name} {config.get('data', '')} {config['row']} seed {config['seed']}: {figures}", flush=True)


def together(run: tuple[str, Config]) -> tuple[Any, ...]:
    """Return a key: runs equal in it follow each other and share data, encoder and reference."""
    name, config = run
    return (name, config["seed"], *(str(config.get(part)) for part in ("data", "case", "n", "encoder", "space")))


def perform_all(folder: Path, runs: list[tuple[str, Config]], jobs: int, samples_alone: bool = False) -> None:
    """Perform the runs in so many processes."""
    if jobs == 1:
        perform(folder, runs, samples_alone)
        return
    with ProcessPoolExecutor(jobs) as pool:
        groups = [list(group) for _, group in groupby(runs, together)]
        for done in [pool.submit(perform, folder, group, samples_alone) for group in groups]:
            done.result()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*EXPERIMENTS, "all", "page", "samples", "plan"])
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--data", help="folder of MNIST's four IDX files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of rows, figures and page; default this one")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each; default 1")
    parser.add_argument("--quick", action="store_true", help="tiny runs that show only that everything works")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        raise SystemExit("--seeds, --jobs: expected positive numbers")
    if options.quick and options.out == HERE:
        raise SystemExit("--quick: expected a folder of its own, by --out")
    if options.data is not None:
        os.environ["FASTNDSM_DATA"] = options.data
    names = list(EXPERIMENTS) if options.name in ("all", "page", "samples", "plan") else [options.name]
    rows = options.out / "rows"
    runs = pending(Store(rows), names, options.seeds, options.quick)
    if options.name == "plan":
        for name in names:
            planned = [c for s in range(options.seeds) for c in EXPERIMENTS[name].configs(s, options.quick)]
            left = sum(1 for found, _ in runs if found == name)
            print(f"{name:12} {len(planned) - left:4} of {len(planned):4} runs done")
        return 0
    if options.name not in ("page", "samples"):
        perform_all(rows, runs, options.jobs)
    from experiments import page  # matplotlib, only here

    missing = page.write(options.out, Store(rows), options.seeds, options.quick)
    if options.name == "samples":
        perform_all(rows, [(name, row["config"]) for name, row in missing], options.jobs, samples_alone=True)
        missing = page.write(options.out, Store(rows), options.seeds, options.quick)
    if missing:
        minutes = sum(row["result"]["cpu_seconds"] for _, row in missing) / 60
        print(
            f"figures of samples stay as they are: those of {len(missing)} runs are missing; "
            f"`python examples/experiments/run.py samples` makes them again ({minutes:.0f} processor minutes)"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
