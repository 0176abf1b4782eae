"""The way of the data, from a loss to the first line of a kernel: short, and through no file twice."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from cpp_cases import kernels  # noqa: F401
from helpers import random_mixture

import fastndsm
from fastndsm import LangevinProcess, NDSMLoss, ResidualScore, functional, networks, use_backend
from fastndsm.backends import registry

PACKAGE = Path(fastndsm.__file__).parent
MOST = 12


def moves(call: Any, kernel: str) -> list[str]:
    """Return the files below fastndsm/ that calls lead to, until torch.ops.fastndsm_cpp.`kernel` is called."""
    found: list[str] = []
    arrived = False

    def place(frame: FrameType | None) -> str | None:
        """Return the file of the package that a frame is in, or that what it is in was called from."""
        while frame is not None:
            if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
                return str(Path(frame.f_code.co_filename).relative_to(PACKAGE))
            frame = frame.f_back
        return None

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal arrived
        if event != "call" or arrived:
            return
        if frame.f_code.co_name == "__call__":
            op = getattr(frame.f_locals.get("self"), "_qualified_op_name", None)
            arrived = op == f"fastndsm_cpp::{kernel}"
        elif Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            here = place(frame)
            if here != place(frame.f_back):
                found.append(str(here))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    assert arrived, f"{kernel} was not called"
    return found


@pytest.fixture
def process() -> LangevinProcess:
    registry.BACKENDS["cpp"].load()  # once in a process
    return LangevinProcess(random_mixture("diag", 3, 2, ratio=4.0), T=0.5, n_steps=10)


def check(way: list[str]) -> None:
    assert len(way) <= MOST, way
    twice = [name for name, times in Counter(way).items() if times > 1 and name != "_checks.py"]
    assert not twice, way


@pytest.mark.parametrize("estimator", ["path", "plain"])
def test_from_a_loss_to_the_kernel(estimator: str, process: LangevinProcess) -> None:
    net = ResidualScore(networks.MLP(2, (8,), horizon=process.T), process)
    loss, x0 = NDSMLoss(process, estimator), torch.randn(5, 2)
    kernel = "simulate_target" if estimator == "path" else "simulate_transition"
    with use_backend("cpp"):
        way = moves(lambda: loss(net, x0), kernel)
    assert way[0] == "objective.py" and "backends/cpp.py" in way[-2:]  # which asks the operands for their fields
    check(way)


@pytest.mark.parametrize("op", ["simulate", "simulate_transition", "simulate_target"])
def test_from_an_op_to_the_kernel(op: str, process: LangevinProcess) -> None:
    way = moves(lambda: getattr(functional, op)(torch.randn(5, 2), process, seed=0, backend="cpp"), op)
    assert len(way) <= MOST, way
    assert "process.py" not in way[way.index("dynamics.py") :], way
