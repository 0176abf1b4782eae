"""fastndsm sample: draw from a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from . import _common

NAME = "sample"
PURPOSE = "Draw samples from a trained model into a .npy file, and a picture if asked."
EXAMPLE = "fastndsm sample runs/demo --n 64 --out samples.npy --png samples.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    _common.add_sampling_options(parser, 64)
    parser.add_argument(
        "--label",
        nargs="+",
        default=(),
        metavar="NAME",
        help="classes to draw, in turn, of a model trained with --labels; default all, in the shares of its data",
    )
    parser.add_argument("--out", default="samples.npy", help="file to write, .npy; default samples.npy")
    parser.add_argument("--png", help="picture to write, .png")
    _common.add_run_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Sample, and write."""
    for option, value, suffix in (("--out", arguments.out, ".npy"), ("--png", arguments.png, ".png")):
        if value is not None:
            if Path(value).suffix != suffix:
                raise ValueError(f"{option}: expected a name ending in {suffix}, found {value!r}")
            if not Path(value).resolve().parent.is_dir():
                raise ValueError(f"{option}: expected an existing folder, found {str(Path(value).parent)!r}")
    with _common.running(arguments) as device:
        score_net, process, units, meta = _common.load(arguments, device)
        options = _common.sampling_options(arguments)
        options |= _common.conditions(
            meta.get("classes"), arguments.n, arguments.seed, arguments.guidance, arguments.label
        )
        samples = _common.draw(score_net, process, units, arguments.n, arguments, **options)
    np.save(arguments.out, samples.numpy())
    print(f"{arguments.out}: {tuple(samples.shape)} {str(samples.dtype).removeprefix('torch.')}")
    if arguments.png is not None:
        from .report import draw_samples

        draw_samples(Path(arguments.png), {"samples": samples})
        print(arguments.png)
    return 0
