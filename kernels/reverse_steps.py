"""Steps of the reverse process from t_first down to t_last, where the network's part is held: all in one launch.

    y_n = A e^-x y_{n+1} + f(x) [B grad log pi(y_{n+1}) + C (held + X slope)] + S f(2 x)^1/2 xi_n

for n = first - 1, ..., last, with x = rate R and f(x) = (1 - e^-x) / x; x = 0 without a rate.

first, last, the coefficients and the seed are read from device memory, the noise is drawn in place, and the launch
depends on shapes alone: a CUDA graph of it may be replayed while they change. Where B is 0 the mixture is not
evaluated, and where S is 0 no noise is drawn. In small dimensions the state stays in registers (`reverse_steps_small`),
in large ones it lives in the output (`reverse_steps_tiled`), with every kind of covariances. The bits of a row depend
on its path's number, its values and the steps alone, and are those of one step at a time.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .configurations import SMALL_PATHS, architecture_of, configuration, small_op
from .mixture_score import check
from .operands import Mixture
from .packing import packed
from .philox import on_device
from .precision_product import dot_precision
from .reverse_steps_small import reverse_steps_small_kernel
from .reverse_steps_tiled import reverse_steps_tiled_kernel, scratch_arrays
from .simulate import KINDS


def reverse_steps(
    y: Tensor,
    held: Tensor,
    slope: Tensor | None,
    rate: Tensor | None,
    bounds: Tensor,
    coefficients: Tensor,
    mixture: Mixture,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    """Take the steps of bounds = (first, last), int64 [2], from y [B, d] -> [B, d]; held, slope [B, d], rate >= 0 [B].

    coefficients [6, N] has rows A, B, C, X, S, R. bounds and the 0-d seed are read when the launch runs if they lie on
    y's device, and when it is made otherwise; bounds beyond 0..N count as these.

    Raises:
        TypeError: if a dtype is not float32, or int64 for bounds and seed.
        ValueError: if a shape does not fit.
    """
    check(mixture, **({"y": y, "held": held} if slope is None else {"y": y, "held": held, "slope": slope}))
    _check(len(y), rate, bounds, coefficients, mixture.covariance_type, seed)
    y, held = y.contiguous(), held.contiguous()
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    if out.numel() == 0:
        return out
    rows, dim = y.shape
    kind, device, architecture = mixture.covariance_type, y.device, architecture_of(y.device)
    small = dim <= SMALL_PATHS
    regime = f"{'reverse_steps' if kind in ('tied', 'full') else 'simulate'}_{kind}"
    tile = configuration(small_op(kind, dim) if small else regime, dim, len(mixture.means), architecture)
    parameters = mixture.means.contiguous(), mixture.precisions.contiguous(), mixture.log_scale.contiguous()
    launch = tile.launch_with(len(parameters[0]), held=kind != "full" or small)
    resident, options = launch["RESIDENT"], {"KIND": kind, "D": dim, "enable_fp_fusion": False} | launch
    operands = packed(parameters, kind, 1 if resident else tile["COMPONENTS"], None if small else tile["COLUMNS"])
    sizes = rows, coefficients.shape[1], len(operands[0]), first_path
    table = bounds.to(device).contiguous(), coefficients.to(device).contiguous()
    states = out, y, held, *(None if part is None else part.contiguous() for part in (slope, rate))
    grid = (triton.cdiv(rows, tile["ROWS"]),)
    with torch.cuda.device_of(y):
        key = on_device(seed, device)
        if small:
            reverse_steps_small_kernel[grid](*states, *table, *operands, key, *sizes, **options)
        else:
            arrays = sum(scratch_arrays(kind, resident))
            scratch = torch.empty((arrays, rows, dim), dtype=y.dtype, device=device) if arrays else y
            options["PRECISION"] = dot_precision(architecture)
            reverse_steps_tiled_kernel[grid](*states, *table, *operands, scratch, key, *sizes, **options)
    return out


def _check(n_rows: int, rate: Tensor | None, bounds: Tensor, coefficients: Tensor, kind: str, seed: Tensor) -> None:
    if rate is not None and rate.dtype != torch.float32:
        raise TypeError(f"rate: expected torch.float32, found {rate.dtype}")
    if rate is not None and rate.shape != (n_rows,):
        raise ValueError(f"rate: expected shape ({n_rows},), found {tuple(rate.shape)}")
    if coefficients.dtype != torch.float32:
        raise TypeError(f"coefficients: expected torch.float32, found {coefficients.dtype}")
    for name, value, shape in (("bounds", bounds, (2,)), ("seed", seed, ())):
        if value.dtype != torch.int64:
            raise TypeError(f"{name}: expected torch.int64, found {value.dtype}")
        if value.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, found {tuple(value.shape)}")
    if coefficients.ndim != 2 or len(coefficients) != 6:
        raise ValueError(f"coefficients: expected shape [6, N], found {tuple(coefficients.shape)}")
    if kind not in KINDS:
        raise ValueError(f"covariance_type: expected one of {', '.join(KINDS)}, found {kind!r}")
