"""Whole trajectories of the Langevin noising process: which kernel serves the size, and its launch.

    x_{n+1} = x_n + a_n grad log pi(x_n) + s_n z_n

and the path estimator's target along the way, see `fastndsm.reference.simulate`. In small dimensions the state stays in
registers (`simulate_small`), in large ones it lives in the outputs (`simulate_tiled`): one launch for all steps either
way. Under full covariances blocks of whole rows are in registers from 9 to 32 dimensions (`simulate_whole`), and beyond
launches are taken in each step (`simulate_full`).

The bits of a path depend on its number, x0 and steps alone, and x is the same from all three functions; but with full
covariances in more than 32 dimensions rounding may differ with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from .configurations import PAIRED, SMALL_PATHS, WHOLE_FULL, architecture_of, configuration, small_op
from .operands import Axes, Mixture, Process
from .packing import packed, packed_axes
from .philox import on_device
from .precision_product import dot_precision, precision_product
from .simulate_full import simulate_full
from .simulate_small import simulate_small_kernel
from .simulate_tiled import LANE, scratch_arrays, simulate_tiled_kernel
from .simulate_whole import simulate_whole_kernel
from .turning import turn

KINDS = ("spherical", "diag", "tied", "full")
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
    axes: Axes | None,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [B, d], target [B, d] and variance ([B, 1] spherical, else [B, d]); 2B rows if antithetic, those of
    mirrored noise last. With steps [B, R], [B, R, ...] of records. axes: of tied and full covariances. Raises as
    `simulate`."""
    return run("target", x0, steps, process, seed, first_path, antithetic, axes)


def run(
    output: str,
    x0: Tensor,
    steps: Tensor,
    process: Process,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
    axes: Axes | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, with mean and noise (transition) or target and variance (target); x in place of what is not asked."""
    drift_scale, noise_std, mixture = process.drift_scale, process.noise_std, process.mixture
    check(x0, steps, drift_scale, noise_std, mixture, seed, records=output == "target")
    kind = mixture.covariance_type
    turned = check_axes(axes, mixture) if output == "target" and kind in ("tied", "full") else None
    dim, rows = x0.shape[1], (x0.shape[0] * (2 if antithetic else 1), *steps.shape[1:])
    x = torch.empty((*rows, dim), dtype=x0.dtype, device=x0.device)
    second, third = x, x
    if output != "state":
        second = torch.empty_like(x)
        width = 1 if output == "target" and kind == "spherical" else dim
        third = torch.empty((*rows, width), dtype=x0.dtype, device=x0.device)
    if x.numel() == 0:
        return x, second, third
    steps, records = steps.sort(dim=1) if steps.numel() > len(steps) else (steps.flatten(), None)
    small = dim <= SMALL_PATHS
    order = None
    if small or kind != "full" or dim <= WHOLE_FULL:
        order = order_of(steps, len(drift_scale), ORDERED_ROWS if small else ORDERED_TILED_ROWS)
    x0, steps, drift_scale, noise_std = (t.contiguous() for t in (x0, steps, drift_scale, noise_std))
    parameters = mixture.means.contiguous(), mixture.precisions.contiguous(), mixture.log_scale.contiguous()
    with torch.cuda.device_of(x):
        outputs = x.view(-1, dim), second.view(-1, dim), third.view(-1, third.shape[-1])
        tables = drift_scale, noise_std
        if kind == "full" and dim > WHOLE_FULL:
            simulate_full(
                outputs, output, x0, steps, *tables, records, parameters, turned, seed, first_path, antithetic
            )
        else:
            launch = launch_small if small else launch_whole if kind == "full" else launch_tiled
            own_seed = on_device(seed, x.device)
            rest = records, order, parameters, kind, turned, own_seed, first_path, antithetic
            launch(Paths(outputs, output, x0, steps, *tables, *rest))
    return x, second, third


def check(
    x0: Tensor,
    steps: Tensor,
    drift_scale: Tensor,
    noise_std: Tensor,
    mixture: Mixture,
    seed: Tensor,
    records: bool = False,
) -> None:
    """Refuse tensors of several dtypes, or of shapes that do not fit each other; steps [B], or with records [B, R]."""
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
    if steps.ndim not in (1, 2 if records else 1) or steps.shape[0] != x0.shape[0]:
        more = f" or ({x0.shape[0]}, R)" if records else ""
        raise ValueError(f"steps: expected shape ({x0.shape[0]},){more}, found {tuple(steps.shape)}")
    if drift_scale.ndim != 1 or noise_std.shape != drift_scale.shape:
        found = f"{tuple(drift_scale.shape)} and {tuple(noise_std.shape)}"
        raise ValueError(f"drift_scale, noise_std: expected one shape [N], found {found}")
    if seed.ndim != 0:
        raise ValueError(f"seed: expected a 0-d tensor, found shape {tuple(seed.shape)}")


def check_axes(axes: Axes | None, mixture: Mixture) -> Axes:
    """Return the axes; refuse those that do not fit the mixture."""
    kind = mixture.covariance_type
    if axes is None:
        raise ValueError(f"axes: expected the principal axes of {kind} covariances, found None")
    shape = mixture.precisions.shape
    if axes.rotations.shape != shape or axes.rates.shape != shape[:-1]:
        found = f"{tuple(axes.rotations.shape)} and {tuple(axes.rates.shape)}"
        raise ValueError(f"rotations, rates: expected shapes {tuple(shape)} and {tuple(shape[:-1])}, found {found}")
    return axes


def order_of(steps: Tensor, n_steps: int, ordered_rows: int) -> Tensor | None:
    """Return the rows by descending number of steps [B] or [B, R], or None where they stay as they are.

    As they do where all have one number of steps, which an expanded tensor tells without a look at its values.
    """
    if len(steps) < ordered_rows or steps.stride(0) == 0:
        return None
    steps = steps if steps.ndim == 1 else steps[:, -1]
    keys = steps.to(torch.int16) if n_steps < 1 << 15 else steps  # short keys sort faster
    return torch.sort(keys, descending=True, stable=True)[1]


class Paths(NamedTuple):
    """Paths to be simulated, as `simulate_small_kernel` has them; parameters are the mixture's."""

    outputs: tuple[Tensor, Tensor, Tensor]
    output: str
    x0: Tensor
    steps: Tensor
    drift_scale: Tensor
    noise_std: Tensor
    records: Tensor | None
    order: Tensor | None
    parameters: tuple[Tensor, Tensor, Tensor]
    kind: str
    axes: Axes | None
    seed: Tensor
    first_path: int
    antithetic: bool

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """Arguments of every kernel after the outputs."""
        return self.x0, self.steps, self.records, self.order, self.drift_scale, self.noise_std

    @property
    def n_records(self) -> int:
        """Number of records a path."""
        return 1 if self.records is None else self.records.shape[1]

    def sizes(self, n_components: int) -> tuple[Tensor | int, ...]:
        """Return the seed and the numbers that every kernel takes; n_components is as the mixture is packed."""
        return self.seed, len(self.x0), self.n_records, len(self.drift_scale), n_components, self.first_path

    def in_whole_lanes(self) -> Paths:
        """Return paths whose rows are padded to multiples of LANE: those of other rows cannot be read as vectors."""
        dim = self.x0.shape[1]
        more = -dim % LANE
        if not more:
            return self

        def padded(out: Tensor) -> Tensor:
            if out.shape[1] != dim:
                return out
            return torch.empty((len(out), dim + more), dtype=out.dtype, device=out.device)

        x = padded(self.outputs[0])
        rest = (x, x) if self.output == "state" else map(padded, self.outputs[1:])
        return self._replace(outputs=(x, *rest), x0=F.pad(self.x0, (0, more)))

    def take(self, wide: Paths) -> None:
        """Fill the outputs from those of `in_whole_lanes`."""
        for out, padded in zip(self.outputs[: 1 if self.output == "state" else 3], wide.outputs, strict=False):
            if padded is not out:
                out.copy_(padded[:, : out.shape[1]])

    def launches(self, together: bool) -> Iterator[tuple[tuple[Tensor, ...], dict[str, bool]]]:
        """Yield the outputs of each launch, and whose they are: one for pairs together, else one for either path.

        Apart where registers do not hold both; the noise that is drawn twice is the smaller part of a step.
        """
        apart = self.antithetic and not together
        halves = zip(*(out.chunk(2) for out in self.outputs), strict=True) if apart else [self.outputs]
        for mirrored, half in enumerate(halves):
            yield half, {"ANTITHETIC": self.antithetic and not apart, "MIRRORED": bool(mirrored)}


def launch_small(paths: Paths) -> None:
    """Fill the outputs; see `simulate_small_kernel`."""
    x0, axes = paths.x0, paths.axes
    (rows, dim), n_components = x0.shape, len(paths.parameters[0])
    op = small_op(paths.kind, dim, paths.output == "target")
    tile = configuration(op, dim, n_components, architecture_of(x0.device))
    options: dict[str, Any] = tile.launch_with(n_components)
    resident = options["RESIDENT"]
    mixture = packed(paths.parameters, paths.kind, 1 if resident else tile["COMPONENTS"])
    turns = (None, None) if axes is None else (axes.rotations.contiguous(), axes.rates.contiguous())
    for outputs, members in paths.launches(together=dim <= PAIRED):
        simulate_small_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            *outputs,
            *paths.inputs,
            *mixture,
            *turns,
            *paths.sizes(len(mixture[0])),
            KIND=paths.kind,
            OUTPUT=paths.output,
            **members,
            D=dim,
            **options,
            enable_fp_fusion=False,
        )


def launch_whole(paths: Paths) -> None:
    """Fill the outputs; see `simulate_whole_kernel`."""
    x0, axes = paths.x0, paths.axes
    (rows, dim), n_components = x0.shape, len(paths.parameters[0])
    architecture = architecture_of(x0.device)
    tile = configuration("simulate_whole", dim, n_components, architecture)
    width = triton.next_power_of_2(dim)
    members = 2 if paths.antithetic else 1
    programs = triton.cdiv(members * rows, tile["ROWS"])
    turns = (None, None) if axes is None else packed_axes(axes, width)
    component, scratch = paths.steps, x0
    if axes is not None:
        component = torch.empty(rows, dtype=torch.int64, device=x0.device)
        scratch = torch.empty((2, programs * tile["ROWS"], width), dtype=x0.dtype, device=x0.device)
    simulate_whole_kernel[(programs,)](
        *paths.outputs,
        *paths.inputs,
        *packed(paths.parameters, paths.kind, 1, width)[:3],
        *turns,
        component,
        scratch,
        *paths.sizes(n_components),
        dim,
        OUTPUT=paths.output,
        ANTITHETIC=paths.antithetic,
        D=dim,
        W=width,
        PRECISION=dot_precision(architecture),
        **tile.launch,
        enable_fp_fusion=False,
    )
    if axes is not None:
        of_row = component.repeat_interleave(paths.n_records).repeat(members)
        _, target, variance = paths.outputs
        back = turn(target, variance, axes.rotations.contiguous(), of_row, back=True)
        target.copy_(back[0]), variance.copy_(back[1])


def launch_tiled(paths: Paths) -> None:
    """Fill the outputs; see `simulate_tiled_kernel`."""
    x0, axes = paths.x0, paths.axes
    (rows, dim), n_components = x0.shape, len(paths.parameters[0])
    architecture = architecture_of(x0.device)
    tile = configuration(f"simulate_{paths.kind}", dim, n_components, architecture)
    options: dict[str, Any] = tile.launch_with(n_components)
    resident = options["RESIDENT"]
    mixture = packed(paths.parameters, paths.kind, 1 if resident else tile["COMPONENTS"], tile["COLUMNS"])
    turns = (None, None) if axes is None else packed_axes(axes, tile["COLUMNS"])
    wide = paths.in_whole_lanes()
    width = wide.x0.shape[1]
    arrays = sum(scratch_arrays(paths.kind, paths.output, resident))
    scratch = torch.empty((arrays, rows, width), dtype=x0.dtype, device=x0.device) if arrays else x0
    for outputs, members in wide.launches(together=paths.records is None):
        simulate_tiled_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            *outputs,
            *wide.inputs,
            *mixture,
            *turns,
            scratch,
            *paths.sizes(len(mixture[0])),
            KIND=paths.kind,
            OUTPUT=paths.output,
            **members,
            DIM=dim,
            D=width,
            PRECISION=dot_precision(architecture),
            **options,
            enable_fp_fusion=False,
        )
    paths.take(wide)
    if axes is not None:
        _, target, variance = paths.outputs
        target.copy_(precision_product(target, axes.rotations.mT))
        variance.copy_(precision_product(variance, axes.rotations.mT.square()))
