"""Whole trajectories of the Langevin noising process: which kernel serves the size, and its launch.

    x_{n+1} = x_n + a_n grad log pi(x_n) + s_n z_n

and the path estimator's target along the way, see `fastndsm.reference.simulate`. In small dimensions the state stays in
registers (`simulate_small`), in large ones it lives in the outputs (`simulate_tiled`): one launch for all steps either
way. Full covariances in more than a few dimensions take launches in each step (`simulate_full`).

The bits of a path depend on its number, x0 and steps alone, and x is the same from all three functions; but with full
covariances in more than a few dimensions rounding may differ with the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .configurations import SMALL, architecture_of, configuration
from .mixture_lanes import pitch
from .operands import Mixture, Process
from .philox import on_device
from .precision_product import dot_precision, precision_product
from .simulate_full import simulate_full
from .simulate_small import simulate_small_kernel
from .simulate_tiled import scratch_arrays, simulate_tiled_kernel

KINDS = ("spherical", "diag", "tied", "full")
NOTHING = -2.0e38  # log density scale of a component that weighs nothing, as energy still a number of float32
# Rows from which on they are ordered by their last step, so that those of a program finish together: below, in small
# dimensions all programs run at once, and the ordering would take longer than what it saves.
ORDERED_ROWS, ORDERED_TILED_ROWS = 1 << 16, 1 << 8


def simulate(
    x0: Tensor,
    steps: Tensor,
    process: Process,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    """Return x [B, d] after steps [B] steps of the Langevin process from x0 [B, d]; path i is number first_path + i.

    Raises:
        TypeError: if a floating point argument is not float32, or steps or seed is not int64.
        ValueError: if shapes do not fit each other.
    """
    return run("state", x0, steps, process, seed, first_path, False)[0]


def simulate_transition(
    x0: Tensor,
    steps: Tensor,
    process: Process,
    seed: Tensor,
    first_path: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, and mean and noise of the last step, each [B, d], after steps [B] >= 1 steps; raises as `simulate`."""
    return run("transition", x0, steps, process, seed, first_path, False)


def simulate_target(
    x0: Tensor,
    steps: Tensor,
    process: Process,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [B, d], target [B, d] and variance ([B, 1] spherical, else [B, d]); 2B rows if antithetic, those of
    mirrored noise last. Raises as `simulate`."""
    return run("target", x0, steps, process, seed, first_path, antithetic)


def run(
    output: str,
    x0: Tensor,
    steps: Tensor,
    process: Process,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, with mean and noise (transition) or target and variance (target); x in place of what is not asked."""
    drift_scale, noise_std, mixture = process.drift_scale, process.noise_std, process.mixture
    check(x0, steps, drift_scale, noise_std, mixture, seed)
    kind = mixture.covariance_type
    dim, rows = x0.shape[1], x0.shape[0] * (2 if antithetic else 1)
    x = torch.empty((rows, dim), dtype=x0.dtype, device=x0.device)
    second, third = x, x
    if output != "state":
        second = torch.empty_like(x)
        width = 1 if output == "target" and kind == "spherical" else dim
        third = torch.empty((rows, width), dtype=x0.dtype, device=x0.device)
    if x.numel() == 0:
        return x, second, third
    operands = [t.contiguous() for t in (x0, steps, drift_scale, noise_std)]
    parameters = mixture.means.contiguous(), mixture.precisions.contiguous(), mixture.log_scale.contiguous()
    with torch.cuda.device_of(x):
        if kind == "full" and dim > SMALL:
            simulate_full((x, second, third), output, *operands, parameters, seed, first_path, antithetic)
        else:
            launch = launch_small if dim <= SMALL else launch_tiled
            launch((x, second, third), output, operands, parameters, kind, seed, first_path, antithetic)
    return x, second, third


def check(x0: Tensor, steps: Tensor, drift_scale: Tensor, noise_std: Tensor, mixture: Mixture, seed: Tensor) -> None:
    """Refuse tensors of several dtypes, or of shapes that do not fit each other."""
    floats = {"x0": x0, "drift_scale": drift_scale, "noise_std": noise_std, "means": mixture.means}
    for name, value in floats.items():
        if value.dtype != torch.float32:
            raise TypeError(f"{name}: expected torch.float32, found {value.dtype}")
    for name, value in (("steps", steps), ("seed", seed)):
        if value.dtype != torch.int64:
            raise TypeError(f"{name}: expected torch.int64, found {value.dtype}")
    if mixture.covariance_type not in KINDS:
        raise ValueError(f"covariance_type: expected one of {', '.join(KINDS)}, found {mixture.covariance_type!r}")
    dim = mixture.means.shape[1]
    if x0.ndim != 2 or x0.shape[1] != dim:
        raise ValueError(f"x0: expected shape [B, {dim}], found {tuple(x0.shape)}")
    if steps.shape != x0.shape[:1]:
        raise ValueError(f"steps: expected shape ({x0.shape[0]},), found {tuple(steps.shape)}")
    if drift_scale.ndim != 1 or noise_std.shape != drift_scale.shape:
        found = f"{tuple(drift_scale.shape)} and {tuple(noise_std.shape)}"
        raise ValueError(f"drift_scale, noise_std: expected one shape [N], found {found}")
    if seed.ndim != 0:
        raise ValueError(f"seed: expected a 0-d tensor, found shape {tuple(seed.shape)}")


def order_of(steps: Tensor, n_steps: int, ordered_rows: int) -> Tensor | None:
    """Return the rows by descending number of steps, or None where they stay as they are."""
    if len(steps) < ordered_rows:
        return None
    keys = steps.to(torch.int16) if n_steps < 1 << 15 else steps  # short keys sort faster
    return torch.sort(keys, descending=True, stable=True)[1]


def launch_small(
    outputs: tuple[Tensor, Tensor, Tensor],
    output: str,
    operands: list[Tensor],
    parameters: tuple[Tensor, Tensor, Tensor],
    kind: str,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> None:
    """Fill the outputs; see `simulate_small_kernel`."""
    x0, steps, drift_scale, _ = operands
    (rows, dim), n_steps, n_components = x0.shape, len(drift_scale), len(parameters[0])
    tile = configuration("simulate_small", dim, n_components, architecture_of(x0.device))
    order = order_of(steps, n_steps, ORDERED_ROWS)
    resident = n_components <= tile["COMPONENTS"]
    options: dict[str, Any] = tile.launch
    if resident:
        options["COMPONENTS"] = n_components
    parameters = whole_blocks(parameters, kind, resident, tile["COMPONENTS"])
    simulate_small_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
        *outputs,
        x0,
        steps,
        order,
        *operands[2:],
        *parameters,
        on_device(seed, x0.device),
        rows,
        n_steps,
        len(parameters[0]),
        first_path,
        KIND=kind,
        OUTPUT=output,
        ANTITHETIC=antithetic,
        RESIDENT=resident,
        D=dim,
        **options,
        enable_fp_fusion=False,
    )


def launch_tiled(
    outputs: tuple[Tensor, Tensor, Tensor],
    output: str,
    operands: list[Tensor],
    parameters: tuple[Tensor, Tensor, Tensor],
    kind: str,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> None:
    """Fill the outputs; see `simulate_tiled_kernel`."""
    x0, steps, drift_scale, _ = operands
    (rows, dim), n_steps, n_components = x0.shape, len(drift_scale), len(parameters[0])
    architecture = architecture_of(x0.device)
    tile = configuration(f"simulate_{kind}", dim, n_components, architecture)
    order = order_of(steps, n_steps, ORDERED_TILED_ROWS)
    resident = n_components <= tile["COMPONENTS"]
    options: dict[str, Any] = tile.launch
    if resident:
        options["COMPONENTS"] = n_components
    parameters = whole_blocks(parameters, kind, resident, tile["COMPONENTS"])
    n_components = len(parameters[0])
    arrays = sum(scratch_arrays(kind, output, resident))
    scratch = torch.empty((arrays, rows, dim), dtype=x0.dtype, device=x0.device) if arrays else x0
    simulate_tiled_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
        *outputs,
        x0,
        steps,
        order,
        *operands[2:],
        *tiled_operands(parameters, kind, tile["COLUMNS"]),
        scratch,
        on_device(seed, x0.device),
        rows,
        n_steps,
        n_components,
        first_path,
        KIND=kind,
        OUTPUT=output,
        ANTITHETIC=antithetic,
        RESIDENT=resident,
        D=dim,
        PRECISION=dot_precision(architecture),
        **options,
        enable_fp_fusion=False,
    )


def whole_blocks(
    parameters: tuple[Tensor, Tensor, Tensor], kind: str, resident: bool, components: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pad means, precisions and log_scale with components of responsibility 0 up to a multiple of `components`."""
    means, precisions, log_scale = parameters
    more = -len(means) % components
    if resident or more == 0:
        return parameters
    if kind != "tied":
        precisions = torch.nn.functional.pad(precisions, (0, 0) * (precisions.ndim - 1) + (0, more))
    log_scale = torch.nn.functional.pad(log_scale, (0, more), value=NOTHING)
    return torch.nn.functional.pad(means, (0, 0, 0, more)), precisions, log_scale


def tiled_operands(
    parameters: tuple[Tensor, Tensor, Tensor], kind: str, columns: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return means, precisions, log_scale and pulls as `simulate_tiled_kernel` takes them."""
    means, precisions, log_scale = parameters
    dim = means.shape[1]
    pulls = precision_product(means - means[:1], precisions) if kind == "tied" else means
    means, pulls = (whole_tiles(t, dim, columns) for t in (means, pulls))
    if kind != "spherical":
        precisions = whole_tiles(precisions, dim, columns, square=kind in ("tied", "full"))
    return means, precisions, log_scale, pulls


def whole_tiles(parameter: Tensor, dim: int, columns: int, square: bool = False) -> Tensor:
    """Pad a parameter [., d], of a square one the rows too, with zeros up to a multiple of `columns`."""
    more = pitch(dim, columns) - dim
    return torch.nn.functional.pad(parameter, (0, more, 0, more if square else 0)) if more else parameter
