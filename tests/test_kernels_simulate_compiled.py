"""The kernels of trajectories, compiled ahead of time for the GPUs they are meant for."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _kernels import TARGETS, Row, check_resources, compile_ahead, compiled_by, main

OPS = ("simulate_small", "simulate_spherical", "simulate_diag", "simulate_tied", "turn")
EIGHT = ("simulate_eight", "simulate_eight_full", "simulate_eight_full_target")  # in 5 to 8 dimensions
REGISTERS = dict.fromkeys(TARGETS, 255) | {"gfx942": 320}  # a thread
SHARED = 16 << 10  # bytes
LARGE = 784  # a dimension that is no multiple of a tile's columns
WHOLE = 128  # one that is
SOME = ("sm_80", "sm_100")  # targets for which each op's last configuration, which serves everything, speaks for all


def check_all(target: str, compiled: list[Row]) -> None:
    rows = [row for row in compiled if row["target"] == target]
    assert {row["op"] for row in rows} == {*OPS, *EIGHT, "simulate_whole"}
    for row in rows:
        check_resources(row, REGISTERS[target], SHARED)


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for(target: str, compiled: list[Row]) -> None:
    """Compile a heavy variant: no spills, registers below a ceiling."""
    check_all(target, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("target", SOME)
def test_every_configuration_compiles_for(target: str, tmp_path: Path) -> None:
    check_all(target, compiled_by(__file__, tmp_path, [target], EVERY_CONFIGURATION="1"))


def test_small_kernels_are_light(compiled: list[Row]) -> None:
    """The variants that throughput is measured on, on sm_90: enough warps at once to hide latencies."""
    light = {row["constants"]["D"]: row for row in compiled if row["op"] == "simulate_small" and not row["heavy"]}
    check_resources(light[2], 96, 0)
    check_resources(light[3], 64, 0)


def compile_all() -> Iterator[Row]:
    """Yield resources of every configuration, on SOME targets only with EVERY_CONFIGURATION.

    The variant is the path target of rows in order. Up to d = 5 with records of antithetic pairs, which double the
    program and are left out on two targets, for the time they take to compile; in 8 dimensions mirrored paths with
    them, with a target on one of them; above, pairs without records and, on one target, mirrored paths with them,
    as they are launched.
    """
    from fastndsm.kernels import simulate_small, simulate_tiled, simulate_whole, turning
    from fastndsm.kernels.configurations import configuration, configurations, small_op
    from fastndsm.kernels.precision_product import dot_precision

    def signature(kernel: Any) -> dict[str, str]:
        integers = ("steps_ptr", "records_ptr", "order_ptr", "seed_ptr", "component_ptr")
        pointers = {n: "*i64" if n in integers else "*fp32" for n in kernel.arg_names if n.endswith("_ptr")}
        return pointers | dict.fromkeys(("n_rows", "n_records", "n_steps", "n_components", "first_path", "dim"), "i64")

    def row(op: str, target: str, tile: Any, heavy: bool = True, **constants: Any) -> Row:
        small, whole = simulate_small.simulate_small_kernel, simulate_whole.simulate_whole_kernel
        others = {"simulate_small": small, "turn": turning.turn_kernel, "simulate_whole": whole}
        kernel = small if op in EIGHT else others.get(op, simulate_tiled.simulate_tiled_kernel)
        if kernel is small:
            constants.setdefault("MIRRORED", False)
        if kernel in (simulate_tiled.simulate_tiled_kernel, whole):
            constants["PRECISION"] = dot_precision(target)
        if kernel is simulate_tiled.simulate_tiled_kernel:
            constants["DIM"] = constants["D"]
        constants = dict(tile.constants) | constants
        types = {name: kind for name, kind in signature(kernel).items() if name not in constants}
        made = compile_ahead(kernel, types, constants, target, **tile.options, enable_fp_fusion=False)
        return made | {"op": op, "heavy": heavy}

    def eight(target: str, kind: str, dim: int, output: str, **constants: Any) -> Row:
        op = small_op(kind, dim, output == "target")
        tile = configuration(op, dim, 10, target)
        return row(op, target, tile, KIND=kind, D=dim, OUTPUT=output, **constants)

    for target in TARGETS:
        for tile, back in itertools.product(configurations("turn", target), (False, True)):
            yield row("turn", target, tile, BACK=back)
        paired = {"ANTITHETIC": target in ("sm_90", "gfx942"), "RESIDENT": False}
        mirrored = {"ANTITHETIC": False, "RESIDENT": False, "MIRRORED": True}
        yield eight(target, "full", 8, "transition", **mirrored)
        yield eight(target, "full", 5, "target", **paired)
        fewest = target == "sm_80"  # registers left, and half a minute for each
        yield eight(target, "tied", 8, "target" if fewest else "transition", **mirrored)
        if fewest:
            yield eight(target, "full", 8, "target", **mirrored)
        for width in (16, 32):
            tile = configuration("simulate_whole", width, 10, target)
            yield row("simulate_whole", target, tile, OUTPUT="target", ANTITHETIC=True, D=width - 1, W=width)
    for target, op in itertools.product(TARGETS, OPS[:-1]):
        for tile in configurations(op, target):
            resident = tile.components is not None
            last = tile.dim is None and not resident  # serves everything
            small = op == "simulate_small"
            dims = [tile.dim or (4 if small else LARGE)] + [WHOLE] * (last and not small and target == "sm_90")
            for dim in dims if last or target not in SOME or "EVERY_CONFIGURATION" in os.environ else ():
                common = {"KIND": "full" if small else op.removeprefix("simulate_"), "OUTPUT": "target"}
                common |= {"RESIDENT": resident, "D": dim}
                if small:
                    yield row(op, target, tile, **common | {"ANTITHETIC": target in ("sm_90", "gfx942")})
                    continue
                yield row(op, target, tile, **common, ANTITHETIC=True, MIRRORED=False, records_ptr=None)
                if target == "sm_90" and op != "simulate_tied":
                    yield row(op, target, tile, **common, ANTITHETIC=False, MIRRORED=True)
    if "sm_90" not in TARGETS:
        return
    plain = {"OUTPUT": "state", "ANTITHETIC": False, "RESIDENT": True, "order_ptr": None, "records_ptr": None}
    for tile in configurations("simulate_small", "sm_90"):
        if tile.components is not None and tile.dim == 2:
            yield row("simulate_small", "sm_90", tile, False, KIND="diag", D=2, COMPONENTS=8, **plain)
        if tile.components is not None and tile.dim == 4:
            yield row("simulate_small", "sm_90", tile, False, KIND="spherical", D=3, COMPONENTS=1, **plain)


if __name__ == "__main__":
    main(dict, compile_all)
