"""Fixtures of all tests: a fixed generator, no settings from outside, and Python processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE

from fastndsm.backends import registry

ROOT = Path(__file__).resolve().parent.parent

# Threads of busy machines spin, and the tests run in several processes: one each, unless a test says otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start every test from seed 0 and default settings, and leave the number of threads as it was."""
    for name in ("FASTNDSM_BACKEND", "FASTNDSM_DISABLE_JIT"):
        monkeypatch.delenv(name, raising=False)
    registry._requested.set(None)  # a test may call use_backend as a program does
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `python -c code args...` in a process group of its own; what is left of it is killed in the end.

    Environment variables are given by name, None to unset one; stdin, stdout and stderr are pipes.
    """
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *args: object, **environment: str | None) -> subprocess.Popen[str]:
        merged: dict[str, Any] = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            pass
        process.communicate()


@pytest.fixture
def run_python(start_python: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Run `python -c code args...` to its end and return what it printed; it must succeed."""

    def run(code: str, *args: object, **environment: str | None) -> str:
        process = start_python(code, *args, **environment)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        return out

    return run


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what the file of the test, run as a program, says of its kernels compiled ahead of time."""
    from _kernels import compiled_by

    return compiled_by(str(request.path), tmp_path_factory.mktemp("compile"))


@pytest.fixture
def fake_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Make CUDA_HOME's compiler one that only tells the version it is given; return its path."""

    def make(version: str) -> Path:
        command, header = tmp_path / "cuda" / "bin" / "nvcc", tmp_path / "cuda" / "include" / "cuda_runtime.h"
        for path in (command, header):
            path.parent.mkdir(parents=True)
            path.touch()
        command.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
        command.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        return command

    return make
