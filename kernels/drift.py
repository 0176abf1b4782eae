"""Whole trajectories, and their reverse, of a drift that is a program: a lane is a path, its state in registers.

The program is two device functions, printed from a Python drift and passed to the kernels as constants: value(x, t, p)
-> F, and value_and_product(x, t, z, p) -> (F, J^T z), of tuples of d tensors and the pointer of the parameters.
F has the same bits from both. What a path gets depends neither on its lane nor on its neighbours.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import architecture_of, configuration
from .mixture_small import add_multiple, load_vector, scaled, store_vector, zeros_like_vector
from .philox import on_device, seed_words
from .reverse_steps_small import REVERSE, bounds_of, coefficients_of, under_rate
from .simulate import ORDERED_ROWS, order_of
from .simulate_small import kept, lanes_of, noise, opposite, write_due, write_pair
from .trajectory import target_step


class Functions(Protocol):
    """The device functions of a program, see above."""

    value: Any
    value_and_product: Any


# --- device functions --------------------------------------------------------------------------------------------


@triton.jit
def advance(x, second, third, z, active, table, rate, p_ptr, DRIFT: tl.constexpr, OUTPUT: tl.constexpr):
    """Return x, second and third (see the kernel; h and v for the target) after the step with the noise z."""
    time, dt, std = table
    mean, after = (), ()
    if OUTPUT == "target":
        f, product = DRIFT(x, time, z, p_ptr)
        h, v = target_step(second, third, (rate,), product, 1.0, z, dt, std)
        second, third = kept(active, h, second, len(x)), kept(active, v, third, 1)
    else:
        f = DRIFT(x, time, p_ptr)
    for j in tl.static_range(len(x)):
        mean += (tl.fma(dt, f[j], x[j]),)
        after += (tl.fma(std, z[j], mean[j]),)
    if OUTPUT == "transition":
        second, third = kept(active, mean, second, len(x)), kept(active, z, third, len(x))
    return kept(active, after, x, len(x)), second, third


@triton.jit
def table_of(table_ptr, n, n_steps):
    """Return t_n, dt_n and s_n."""
    return tl.load(table_ptr + n), tl.load(table_ptr + n_steps + n), tl.load(table_ptr + 2 * n_steps + n)


# --- kernels -----------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_rows", "n_records", "n_steps", "first_path"])
def drift_walk_kernel(
    x_ptr,
    second_ptr,
    third_ptr,
    x0_ptr,
    steps_ptr,
    records_ptr,
    order_ptr,
    table_ptr,
    p_ptr,
    seed_ptr,
    n_rows: tl.int64,
    n_records: tl.int64,
    n_steps: tl.int64,
    first_path: tl.int64,
    rate: tl.float32,
    DRIFT: tl.constexpr,
    OUTPUT: tl.constexpr,
    ANTITHETIC: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Run x [n_rows, D] from x0: x <- x + dt_n F(x, t_n) + s_n z_n; all as in `simulate_small_kernel`.

    DRIFT is value_and_product for the target, whose variance is [n_rows, 1], else value. table [3, n_steps] has rows
    t_n, dt_n, s_n; rate is that of 1 - dt_n rate, by which the target's recursion contracts.
    """
    row, inside, steps = lanes_of(steps_ptr, records_ptr, order_ptr, n_rows, n_records, n_steps, ROWS)
    path, last = first_path + row, tl.max(steps, axis=0)
    key_low, key_high = seed_words(seed_ptr)

    x = load_vector(x0_ptr, row, inside, D)
    zeros = zeros_like_vector(x)
    second, third = x, zeros
    if OUTPUT == "target":
        second, third = zeros, zeros[:1]
    if ANTITHETIC:
        antithetic_x, antithetic_second, antithetic_third = x, second, third

    cursor, out_rows, outputs = tl.zeros((ROWS,), tl.int32), n_rows * n_records, (x_ptr, second_ptr, third_ptr)
    for n in range(0, last):
        if records_ptr is not None:
            pair = (x, second, third), ()
            if ANTITHETIC:
                pair = (x, second, third), (antithetic_x, antithetic_second, antithetic_third)
            cursor = write_due(
                n, outputs, steps_ptr, records_ptr, row, n_records, cursor, out_rows, inside, pair, (), OUTPUT, D
            )
        active, table = n < steps, table_of(table_ptr, n, n_steps)
        z = noise(key_low, key_high, path, n, D)
        x, second, third = advance(x, second, third, z, active, table, rate, p_ptr, DRIFT, OUTPUT)
        if ANTITHETIC:
            antithetic_x, antithetic_second, antithetic_third = advance(
                antithetic_x, antithetic_second, antithetic_third, opposite(z), active, table, rate, p_ptr, DRIFT,
                OUTPUT,
            )  # fmt: skip

    pair = (x, second, third), ()
    if ANTITHETIC:
        pair = (x, second, third), (antithetic_x, antithetic_second, antithetic_third)
    if records_ptr is None:
        write_pair(outputs, row, out_rows, inside, pair, (), OUTPUT, D)
    else:
        write_due(last, outputs, steps_ptr, records_ptr, row, n_records, cursor, out_rows, inside, pair, (), OUTPUT, D)


@triton.jit(do_not_specialize=["n_rows", "n_steps", "first_path"])
def drift_reverse_kernel(
    out_ptr,
    y_ptr,
    held_ptr,
    slope_ptr,
    rate_ptr,
    bounds_ptr,
    coefficients_ptr,
    table_ptr,
    p_ptr,
    seed_ptr,
    n_rows: tl.int64,
    n_steps: tl.int64,
    first_path: tl.int64,
    DRIFT: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Take y [n_rows, D] back from bounds[0] to bounds[1] as `reverse_steps_small_kernel` does, with F dt_n / a_n,
    a_n = s_n^2 / 2, in the place of the score; table as in `drift_walk_kernel`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n_rows
    path = first_path + row
    first, last = bounds_of(bounds_ptr, n_steps)
    key_low, key_high = seed_words(seed_ptr)
    y = load_vector(y_ptr, row, inside, D)
    held = load_vector(held_ptr, row, inside, D)
    if slope_ptr is not None:
        slope = load_vector(slope_ptr, row, inside, D)
    if rate_ptr is not None:
        rate = tl.load(rate_ptr + row, mask=inside, other=0.0)
    for taken in range(0, first - last):
        n = first - 1 - taken
        decay, drift, weight, position, std, rate_scale = coefficients_of(coefficients_ptr, n, n_steps)
        time, dt, forward_std = table_of(table_ptr, n, n_steps)
        drifts, noisy = drift != 0.0, std != 0.0
        drift *= 2.0 * dt / (forward_std * forward_std)
        if rate_ptr is not None:
            decay, drift, weight, std = under_rate(decay, drift, weight, std, rate * rate_scale)
        network = held
        if slope_ptr is not None:
            network = add_multiple(held, position, slope)
        after = add_multiple(scaled(y, decay), weight, network)
        if drifts:
            after = add_multiple(after, drift, DRIFT(y, time, p_ptr))
        if noisy:
            after = add_multiple(after, std, noise(key_low, key_high, path, n, D, REVERSE))
        y = after
    store_vector(out_ptr, row, y, inside, D)


@triton.jit(do_not_specialize=["n_rows"])
def drift_value_kernel(
    value_ptr,
    product_ptr,
    x_ptr,
    t_ptr,
    z_ptr,
    p_ptr,
    n_rows: tl.int64,
    DRIFT: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Store F(x, t) for x [n_rows, D], t [n_rows], and with z J^T z; DRIFT is value_and_product then, else value."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n_rows
    x, t = load_vector(x_ptr, row, inside, D), tl.load(t_ptr + row, mask=inside, other=0.0)
    if z_ptr is not None:
        value, product = DRIFT(x, t, load_vector(z_ptr, row, inside, D), p_ptr)
        store_vector(product_ptr, row, product, inside, D)
    else:
        value = DRIFT(x, t, p_ptr)
    store_vector(value_ptr, row, value, inside, D)


# --- the ops -----------------------------------------------------------------------------------------------------


def drift_value(x: Tensor, parameters: Tensor, t: Tensor, functions: Functions) -> Tensor:
    """Return F(x, t) [B, d] for x [B, d], t [B]."""
    return _values(x, parameters, t, None, functions)[0]


def drift_product(x: Tensor, parameters: Tensor, z: Tensor, t: Tensor, functions: Functions) -> tuple[Tensor, Tensor]:
    """Return F(x, t) and J(x, t)^T z, [B, d] each."""
    return _values(x, parameters, t, z, functions)


def drift_simulate(
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    functions: Functions,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    """Return x [B, d] after steps [B] steps of dX = F dt + sigma dW from x0 [B, d]; steps beyond N count as N."""
    return _walk("state", x0, parameters, steps, times, noise_std, 0.0, functions, seed, first_path)[0]


def drift_transition(
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    functions: Functions,
    seed: Tensor,
    first_path: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, and mean and noise of the last step, each [B, d]."""
    return _walk("transition", x0, parameters, steps, times, noise_std, 0.0, functions, seed, first_path)


def drift_target(
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    rate: float,
    functions: Functions,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x and target [B, d] and variance [B, 1], or [B, R, ...] with steps [B, R]; 2B rows if antithetic."""
    return _walk("target", x0, parameters, steps, times, noise_std, rate, functions, seed, first_path, antithetic)


def drift_reverse_steps(
    y: Tensor,
    parameters: Tensor,
    held: Tensor,
    slope: Tensor | None,
    rate: Tensor | None,
    bounds: Tensor,
    coefficients: Tensor,
    times: Tensor,
    noise_std: Tensor,
    functions: Functions,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    """Take the steps of bounds = (first, last) back, as `reverse_steps` does with a mixture."""
    _check(y=y, parameters=parameters, held=held)
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    if y.numel() == 0:
        return out
    states = (None if part is None else part.contiguous() for part in (y, held, slope, rate))
    tables = bounds.to(y.device).contiguous(), coefficients.to(y.device).contiguous(), _table(times, noise_std, y)
    options, grid = _launch(y, functions.value)
    with torch.cuda.device_of(y):
        drift_reverse_kernel[grid](
            *(out, *states, *tables, parameters.contiguous(), on_device(seed, y.device)),
            *(len(y), len(noise_std), first_path),
            **options,
        )
    return out


def _values(x: Tensor, parameters: Tensor, t: Tensor, z: Tensor | None, functions: Functions) -> tuple[Tensor, Tensor]:
    """Return F and, with z, J^T z; else F twice."""
    _check(x=x, parameters=parameters, t=t, **({} if z is None else {"z": z}))
    value = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    product = value if z is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return value, product
    given = x.contiguous(), t.contiguous(), None if z is None else z.contiguous(), parameters.contiguous()
    options, grid = _launch(x, functions.value if z is None else functions.value_and_product)
    with torch.cuda.device_of(x):
        drift_value_kernel[grid](value, product, *given, len(x), **options)
    return value, product


def _walk(
    output: str,
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    rate: float,
    functions: Functions,
    seed: Tensor,
    first_path: int,
    antithetic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, with mean and noise (transition) or target and variance (target); x in place of what is not asked."""
    _check(x0=x0, parameters=parameters)
    dim, rows = x0.shape[1], (len(x0) * (2 if antithetic else 1), *steps.shape[1:])
    x = torch.empty((*rows, dim), dtype=x0.dtype, device=x0.device)
    second, third = x, x
    if output != "state":
        second = torch.empty_like(x)
        third = torch.empty((*rows, 1 if output == "target" else dim), dtype=x0.dtype, device=x0.device)
    if x.numel() == 0:
        return x, second, third
    steps, records = steps.sort(dim=1) if steps.numel() > len(steps) else (steps.flatten(), None)
    order = order_of(steps, len(noise_std), ORDERED_ROWS)
    options, grid = _launch(x0, functions.value_and_product if output == "target" else functions.value)
    with torch.cuda.device_of(x):
        drift_walk_kernel[grid](
            *(x, second, third, x0.contiguous(), steps.contiguous(), records, order),
            *(_table(times, noise_std, x0), parameters.contiguous(), on_device(seed, x0.device)),
            *(len(x0), 1 if records is None else records.shape[1], len(noise_std), first_path, rate),
            OUTPUT=output,
            ANTITHETIC=antithetic,
            **options,
        )
    return x, second, third


def _check(**floats: Tensor) -> None:
    for name, value in floats.items():
        if value.dtype != torch.float32:
            raise TypeError(f"{name}: expected torch.float32, found {value.dtype}")


def _table(times: Tensor, noise_std: Tensor, like: Tensor) -> Tensor:
    """Return t_n, dt_n and s_n [3, N], differences taken before they are rounded."""
    return torch.stack([times[:-1], times.diff(), noise_std]).to(like)


def _launch(x: Tensor, drift: Any) -> tuple[dict[str, Any], tuple[int]]:
    """Return constants and options of a launch, and its grid."""
    tile = configuration("drift", x.shape[1], architecture=architecture_of(x.device))
    options = {"DRIFT": drift, "D": x.shape[1], **tile.launch, "enable_fp_fusion": False}
    return options, (triton.cdiv(len(x), tile["ROWS"]),)
