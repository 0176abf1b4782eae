"""Memory that a call takes: allocations as torch's profiler sees them, and the peak of a process of its own.

`python -m benchmarks.memory mixture_score CONTENDER K d B THREADS` prints, as JSON, the bytes of the inputs and the
most that was resident during the call beyond what was before.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastndsm import GaussianMixture, functional

ROOT = Path(__file__).resolve().parent.parent


def peak_allocated(run: Callable[[], Any]) -> int:
    """Return the most bytes of tensors alive at once during run() beyond those before, its result among them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    del kept
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def kernel_density(components: int, dim: int, rows: int) -> tuple[GaussianMixture, Tensor]:
    """Build a mixture with a component at each of K points of spread 1, wide enough that many share each x; float32."""
    generator = torch.Generator().manual_seed(components)
    weights = torch.full((components,), 1.0 / components, dtype=torch.float32, device="cpu")
    means = torch.randn(components, dim, generator=generator, device="cpu")
    variances = 0.05 * dim * (1.0 + torch.rand(components, generator=generator, device="cpu"))
    x = means[:rows] + variances[:rows, None].sqrt() * torch.randn(rows, dim, generator=generator, device="cpu")
    return GaussianMixture(weights, means, variances, "spherical"), x


def matmul_score(mixture: GaussianMixture) -> Callable[[Tensor], Tensor]:
    """Compute the score by softmax attention in plain PyTorch: two products and a softmax over all components."""
    means = mixture.means
    precisions = 1.0 / mixture.covariances
    offsets = mixture.weights.log() + 0.5 * mixture.dim * precisions.log()
    offsets -= 0.5 * precisions * torch.linalg.vecdot(means, means)

    def run(x: Tensor) -> Tensor:
        square = torch.linalg.vecdot(x, x)[:, None]
        logits = (x @ means.T).mul_(precisions).add_(offsets).addcmul_(square, precisions, value=-0.5)
        r = logits.softmax(1).mul_(precisions)
        return torch.addcmul(r @ means, x, r.sum(1, keepdim=True), value=-1.0)

    return torch.inference_mode()(run)


def fused_score(mixture: GaussianMixture) -> Callable[[Tensor], Tensor]:
    return lambda x: functional.mixture_score(x, mixture, backend="cpp")


CONTENDERS = {"ours": fused_score, "eager": matmul_score}


def resident(field: str) -> int:
    """Return VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def score_memory(contender: str, components: int, dim: int, rows: int) -> dict[str, int]:
    """Measure in a process of its own: `inputs` bytes, and `extra`, what the call adds to them at its peak."""
    command = [sys.executable, "-m", "benchmarks.memory", "mixture_score", contender]
    command += [str(components), str(dim), str(rows), str(torch.get_num_threads())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def main(op: str, contender: str, *numbers: str) -> None:
    assert op == "mixture_score"
    components, dim, rows, threads = map(int, numbers)
    torch.set_num_threads(threads)
    mixture, x = kernel_density(components, dim, rows)
    small, points = kernel_density(600, dim, rows)  # what threads and libraries take once for all is taken here
    CONTENDERS[contender](small)(points)
    run = CONTENDERS[contender](mixture)
    operands = mixture.operands(x.dtype)
    inputs = sum(t.nbytes for t in (x, operands.means, operands.precisions, operands.log_scale))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the peak of the call
    before = resident("VmRSS")
    out = run(x)
    extra = resident("VmHWM") - before
    assert out.shape == x.shape
    print(json.dumps({"inputs": inputs, "extra": extra}))


if __name__ == "__main__":
    main(*sys.argv[1:])
