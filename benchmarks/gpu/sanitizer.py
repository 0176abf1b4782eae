"""Every op of a backend under compute-sanitizer, which finds accesses out of bounds, where it is installed.

`python -m benchmarks.gpu.sanitizer BACKEND` is what it watches: one launch of every case, without comparisons.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from . import cases
from .device import device, lender, refusal, synchronize
from .log import Check, Log

ROOT = Path(__file__).resolve().parent.parent.parent
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
ERRORS = 9  # its exit status where it found any
SPARE = 5.0  # seconds before this section would be killed
TOOL = "compute-sanitizer"


def run(log: Log, backend: str) -> None:
    """Run all cases under the tool and log what it found; where it is not installed that is said, and is no failure."""
    if device().type != "cuda":
        log.write("note", f"{TOOL} did not run: there is no GPU")
        launch_all(backend)  # the code path
        return
    tool = shutil.which(TOOL) or shutil.which(TOOL, path=os.pathsep.join(PLACES))
    if tool is None:
        log.write("note", f"{TOOL} did not run: it is not installed")
        return
    command = [tool, "--tool", "memcheck", "--error-exitcode", str(ERRORS), sys.executable, "-m", __name__, backend]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that arrays do not lie side by side
    ended = True
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            process.wait(log.left() - SPARE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ended = False
        output.seek(0)
        said = output.read()
    print(said[-20_000:])
    launched = re.findall(r"^launched (\d+)$", said, re.MULTILINE)
    if not launched:
        log.write("note", f"{TOOL} did not run over {backend}: {said.strip()[-300:]}")
        return
    found = len(re.findall(r"^=+ (?:Invalid|Misaligned|Program hit)", said, re.MULTILINE))
    reached = f"{launched[-1]} cases" + ("" if ended else f", stopped after {log.seconds:.0f} s")
    log.write("note", f"{TOOL} (memcheck) ran over {backend}: {reached}, {found} errors")
    log.check(Check(TOOL, "memcheck", f"{found} errors, {reached}", found == 0 and process.returncode in (0, -9)))


def launch_all(backend: str) -> None:
    """Launch every case once, saying how many after each."""
    count = 0
    for family in cases.FAMILIES:
        for case in cases.of(family):
            if refusal(backend, case.op) is not None or lender(backend, case.op):
                continue
            with contextlib.suppress(NotImplementedError):  # shapes that it does not take
                case.call(backend, torch.float32)
                synchronize()
                count += 1
                print(f"launched {count}", flush=True)


if __name__ == "__main__":
    launch_all(sys.argv[1])
