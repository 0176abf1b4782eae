"""Predicted times on an H100: how instructions are counted, and ceilings on those of the kernels that matter most.

A ceiling is what is compiled now and a little; a design that takes fewer lowers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from _kernels import Row, in_own_process, main
from test_cuda_build import needs_nvcc

from benchmarks.gpu import predict, sass

SETTINGS = {"FASTNDSM_BENCH_SIZE": "full", "FASTNDSM_BENCH_DEVICE": "cpu", "FASTNDSM_DISABLE_JIT": "1"}
# Of a row of the table, by its first words: warp instructions a row and step, and times the floor.
CEILINGS = {
    "simulate diag d=784": (3400, 2.1),
    "simulate_target diag d=784": (5500, 2.0),
    "simulate full d=5": (33, 2.0),
    "simulate full d=8": (61, 2.0),
    "simulate full d=16": (200, 2.0),
    "simulate full d=32": (590, 1.7),
    "mixture_score spherical d=784 K=60,000": (3e6, 3.0),
    "reverse_steps spherical d=2": (12.5, 2.0),
    "reverse_steps spherical d=784": (2750, 1.2),
}
SAMPLER = (780, 2.3)

PROGRAM = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00 */
                                                                              /* 0x01 */
        /*0010*/              @!P4 EXIT ;                                     /* 0x02 */
        /*0020*/                   FFMA R2, R3, R4, R2 ;                      /* 0x03 */
        /*0030*/                   HGMMA.64x32x8.F32.TF32 R24, R8, gdesc ;    /* 0x04 */
        /*0040*/                   IADD3 R5, P2, R5, 0x100, RZ ;              /* 0x05 */
        /*0050*/               @P0 BRA 0x30 ;                                 /* 0x06 */
        /*0060*/                   LDG.E.128 R8, desc[UR4][R2.64] ;           /* 0x07 */
        /*0070*/               @P1 BRA 0xb0 ;                                 /* 0x08 */
        /*0080*/               @P1 BRA 0x20 ;                                 /* 0x09 */
        /*0090*/                   EXIT ;                                     /* 0x0a */
        /*00a0*/                   BRA 0x20 ;                                 /* 0x0b */
        /*00b0*/                   BRA 0xb0;                                  /* 0x0c */
"""


def test_loops_are_found_and_counted() -> None:
    """Of what is behind the last EXIT only a way back is of the program."""
    whole = sass.program(PROGRAM)
    (outer,) = whole.inner
    (inner,) = outer.inner
    assert (outer.first, outer.last, inner.first, inner.last) == (0x20, 0xA0, 0x30, 0x50)
    assert (outer.depth, outer.leaf, inner.depth, inner.leaf) == (1, False, 2, True)
    assert inner.stride(0x40) == 4 and inner.stride(0x30) == 1


def test_instructions_go_to_their_pipes() -> None:
    found = sass.count(sass.program(PROGRAM), lambda loop: 10.0 if loop.depth == 1 else 4.0)
    assert found.instructions == 2 + 10 * (6 + 4 * 3)
    assert found.cycles == {"fp32": 10.0, "tensor": 640.0, "alu": 80.0, "global memory": 160.0}
    assert found.most == ("tensor", 640.0)


def test_the_fullest_multiprocessor_takes_longest() -> None:
    """Four warps are needed to keep its four quarters busy."""
    seconds = []
    for grid, warps in ((132, 4), (133, 4), (1, 1), (264, 1)):
        made = predict.Prediction("", 1.0)
        made.add(grid, warps, sass.Count(1.755e6), 1.0)
        seconds.append(1e3 * made.seconds)
    assert seconds == pytest.approx([1.0, 2.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return torch.load(in_own_process(__file__, "interpret", tmp_path_factory.mktemp("predict"), **SETTINGS))


@pytest.mark.parametrize("name", CEILINGS)
def test_no_more_instructions_than(name: str, predicted: list[Row]) -> None:
    (row,) = [row for row in predicted if row["name"].startswith(name)]
    most, ratio = CEILINGS[name]
    assert row["spilled"] == 0
    assert 0 < row["instructions"] <= most
    assert 1.0 <= row["seconds"] / row["floor"] <= ratio


def test_trajectories_are_one_launch(predicted: list[Row]) -> None:
    """Beside checks and casts of arguments, whose number is not that of steps."""
    rows = [row for row in predicted if row["name"].startswith("simulate")]
    assert len(rows) == 6 and all(row["launches"] <= 14 for row in rows)


@needs_nvcc
def test_the_sampler_takes_no_more_instructions_than() -> None:
    found = predict.sampler()
    assert found.instructions <= SAMPLER[0] and found.ratio <= SAMPLER[1]


def rows() -> list[Row]:
    return [asdict(predict.predict(case)) for case in predict.cases()]


def nothing() -> Iterator[Any]:
    return iter(())


if __name__ == "__main__":
    main(rows, nothing)
