"""The kernels of trajectories, compiled ahead of time for the GPUs they are meant for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from _kernels import TARGETS, Row, check_resources, compile_ahead, main

OPS = ("simulate_small", "simulate_spherical", "simulate_diag", "simulate_tied")
REGISTERS = dict.fromkeys(TARGETS, 255) | {"gfx942": 320}  # a thread
SHARED = 16 << 10  # bytes
LARGE = 784  # a dimension that is no multiple of a tile's columns


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for(target: str, compiled: list[Row]) -> None:
    """Every configuration that may be taken, in a heavy variant: no spills, registers below a ceiling."""
    rows = [row for row in compiled if row["target"] == target]
    assert {row["op"] for row in rows} == set(OPS)
    for row in rows:
        check_resources(row, REGISTERS[target], SHARED)


def test_small_kernels_are_light(compiled: list[Row]) -> None:
    """The variants that throughput is measured on, on sm_90: enough warps at once to hide latencies."""
    light = {row["constants"]["D"]: row for row in compiled if row["op"] == "simulate_small" and not row["heavy"]}
    check_resources(light[2], 96, 0)
    check_resources(light[3], 64, 0)


def compile_all() -> Iterator[Row]:
    """Resources of every configuration on every target: the path target of rows in order, of mirrored pairs at that.

    In small dimensions, where a pair doubles the program, only on two targets, for the time it takes to compile.
    """
    from fastndsm.kernels import simulate_small, simulate_tiled
    from fastndsm.kernels.configurations import configurations
    from fastndsm.kernels.precision_product import dot_precision

    def signature(kernel: Any) -> dict[str, str]:
        integers = ("steps_ptr", "order_ptr", "seed_ptr")
        pointers = {n: "*i64" if n in integers else "*fp32" for n in kernel.arg_names if n.endswith("_ptr")}
        return pointers | dict.fromkeys(("n_rows", "n_steps", "n_components", "first_path"), "i64")

    def row(op: str, target: str, tile: Any, heavy: bool = True, **constants: Any) -> Row:
        kernel = (
            simulate_small.simulate_small_kernel if op == "simulate_small" else simulate_tiled.simulate_tiled_kernel
        )
        if op != "simulate_small":
            constants["PRECISION"] = dot_precision(target)
        constants = dict(tile.constants) | constants
        made = compile_ahead(kernel, signature(kernel), constants, target, **tile.options, enable_fp_fusion=False)
        return made | {"op": op, "heavy": heavy}

    for target, op in itertools.product(TARGETS, OPS):
        for tile in configurations(op, target):
            resident = tile.components is not None
            yield row(
                op,
                target,
                tile,
                KIND=3 if op == "simulate_small" else OPS.index(op) - 1,
                OUTPUT=2,
                MIRRORED=op != "simulate_small" or target in ("sm_90", "gfx942"),
                ORDERED=True,
                RESIDENT=resident,
                D=tile.dim or (4 if op == "simulate_small" else LARGE),
            )
            if tile.dim is None and not resident:
                break  # serves everything: those that follow are for other architectures
    plain = {"OUTPUT": 0, "MIRRORED": False, "ORDERED": False, "RESIDENT": True}
    for tile in configurations("simulate_small", "sm_90"):
        if tile.components is not None and tile.dim == 2:
            yield row("simulate_small", "sm_90", tile, False, KIND=1, D=2, COMPONENTS=8, **plain)
        if tile.components is not None and tile.dim == 4:
            yield row("simulate_small", "sm_90", tile, False, KIND=0, D=3, COMPONENTS=1, **plain)


if __name__ == "__main__":
    main(dict, compile_all)
