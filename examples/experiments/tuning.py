"""0. Tuning: three tries for each family of noising, on data and seed of their own, before anything else.

The best of each three, by energy distance in the plane and by Frechet distance on MNIST, is what the experiments use.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import imbalance, methods, planar

NAME, VERSION = "tuning", 1
SEED = 100
TRIES: dict[str, dict[str, Any]] = {
    "linear, T = 10, quadratic": {"row": methods.LINEAR, "linear": {"T": 10.0, "grid": "quadratic"}},
    "linear, T = 10, uniform": {"row": methods.LINEAR, "linear": {"T": 10.0, "grid": "uniform"}},
    "linear, T = 6, quadratic": {"row": methods.LINEAR, "linear": {"T": 6.0, "grid": "quadratic"}},
    "linear mixture, T = 1": {"row": methods.LINEAR_MIXTURE, "linear_mixture": {"T": 1.0, "grid": "quadratic"}},
    "linear mixture, T = 3": {"row": methods.LINEAR_MIXTURE, "linear_mixture": {"T": 3.0, "grid": "quadratic"}},
    "linear mixture, T = 10": {"row": methods.LINEAR_MIXTURE, "linear_mixture": {"T": 10.0, "grid": "quadratic"}},
    "path, T = 3, quadratic": {"row": methods.PATH, "nonlinear": {"T": 3.0, "grid": "quadratic"}},
    "path, T = 3, uniform": {"row": methods.PATH, "nonlinear": {"T": 3.0, "grid": "uniform"}},
    "path, T = 6, quadratic": {"row": methods.PATH, "nonlinear": {"T": 6.0, "grid": "quadratic"}},
}
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return all tries, which belong to the first seed; they run at a seed of their own."""
    if seed:
        return []
    plane = [c for c in planar.configs(SEED, quick) if c["n"] == (100 if quick else 5000) and c["data"] != "ring"]
    longer = {} if quick else {"steps": 3000}
    mnist = [c | longer for c in imbalance.configs(SEED, quick) if c["case"] == "one at 2%"]
    untuned = {part: methods.DEFAULTS[part] for part in ("linear", "linear_mixture", "nonlinear")}
    # tried with one start of EM, before the experiments took five
    new = ("n_init", "shorten")
    made = []
    for base, kind in ((plane[0], "planar"), (plane[-1], "planar"), (mnist[0], "imbalance")):
        old = {k: v for k, v in base.items() if k not in new}
        made += [old | untuned | {"kind": kind, "try": name} | chosen for name, chosen in TRIES.items()]
    return made


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return 0


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures."""
    module: Any = planar if config["kind"] == "planar" else imbalance
    return module.perform(config)
