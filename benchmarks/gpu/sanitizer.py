"""The ops of a backend under compute-sanitizer, which finds accesses out of bounds and races, where it is installed.

`python -m benchmarks.gpu.sanitizer BACKEND FAMILY` is what it watches: one launch of every case, without comparisons.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from . import cases
from .device import device, lender, refusal, synchronize
from .log import Check, Log
from .processes import end_with

ROOT = Path(__file__).resolve().parent.parent.parent
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
ERRORS = 9  # its exit status where it found any
SPARE = 5.0  # seconds before this section would be killed
TOOL = "compute-sanitizer"
ENDED = "launched all"


def run(log: Log, backend: str, tool: str, family: str) -> None:
    """Run the cases of a family under a tool of it and log what it found; what it did not see to the end has failed.

    Where it is not installed that is said, and is no failure.
    """
    if device().type != "cuda":
        log.write("note", f"{TOOL} did not run: there is no GPU")
        launch_all(backend, family)  # the code path
        return
    if not any(served(backend, case.op) for case in cases.of(family)):
        return
    command = shutil.which(TOOL) or shutil.which(TOOL, path=os.pathsep.join(PLACES))
    if command is None:
        log.write("note", f"{TOOL} did not run: it is not installed")
        return
    watched = [sys.executable, "-m", __name__, backend, family]
    status, said = output_of([command, "--tool", tool, "--error-exitcode", str(ERRORS), *watched], log.left() - SPARE)
    print(said[-20_000:])
    found, passed = verdict(status, said)
    log.check(Check(TOOL, f"{tool} {family}", found, passed))


def output_of(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Return a command's exit status, None where it was killed after so many seconds, and what it said."""
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that arrays do not lie side by side
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(end_with, os.getpid()),
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        output.seek(0)
        return status, output.read()


def verdict(status: int | None, said: str) -> tuple[str, bool]:
    """Return what was found and whether it passed: it came to its end, by itself, and found nothing."""
    launched = re.findall(r"^launched (\d+)$", said, re.MULTILINE)
    reached = f"{launched[-1] if launched else 0} cases"
    errors = len(re.findall(r"^=+ (?:Invalid|Misaligned|Program hit|Error:|Warning:.*hazard)", said, re.MULTILINE))
    ended = re.search(f"^{ENDED}$", said, re.MULTILINE) is not None
    if status == 0 and ended and launched and not errors:
        return f"no errors, {reached}", True
    how = "stopped at its limit" if status is None else f"exit status {status}"
    return f"{errors} errors, {reached}, {how}" + ("" if ended else f": {said.strip()[-300:]}"), False


def served(backend: str, op: str) -> bool:
    """Return whether the backend has an op of its own."""
    return refusal(backend, op) is None and not lender(backend, op)


def launch_all(backend: str, family: str) -> None:
    """Launch every case once, saying how many after each."""
    count = 0
    for case in cases.of(family):
        if served(backend, case.op):
            with contextlib.suppress(NotImplementedError):  # shapes that it does not take
                case.call(backend, torch.float32)
                synchronize()
                count += 1
                print(f"launched {count}", flush=True)
    print(ENDED)


if __name__ == "__main__":
    launch_all(*sys.argv[1:])
