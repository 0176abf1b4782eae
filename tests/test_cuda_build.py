"""The CUDA sources, compiled for three generations where nvcc is installed, and the rules around them.

No kernel runs. The library is linked and loaded where PyTorch is built with CUDA, which takes no GPU.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from fastndsm import BackendError, GaussianMixture, functional, use_backend
from fastndsm.backends import registry
from fastndsm.cli import diagnosis
from fastndsm.jit import cuda
from fastndsm.jit.cache import BuildError
from fastndsm.jit.core import COMPILE_FLAGS, csrc_directory
from fastndsm.jit.toolchain import find_compiler
from fastndsm.reference import mixture_score

ARCHITECTURES = (80, 90, 100)
try:
    NVCC: cuda.Nvcc | None = cuda.find_nvcc()
except BuildError:
    NVCC = None
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed: no CUDA source was compiled")

# --- every kernel, for every architecture ------------------------------------------------------------------------

Kernel = tuple[str, tuple[int, ...]]  # name, template arguments: a covariance type by its number, then the others
COVARIANCES = {"spherical": 0, "diag": 1, "full": 3}
# The most registers a thread may use.
SAMPLER = 200  # 256 threads
PACKING = 64


def sampler_kernels() -> Iterator[tuple[Kernel, int]]:
    for width in (64, 128):
        for resident in (0, 1):
            for kind in (0, 1, 3):
                yield ("sample_kernel", (width, resident, kind)), SAMPLER


def packing_kernels() -> Iterator[tuple[Kernel, int]]:
    for kind in COVARIANCES.values():
        yield ("pack_kernel", (kind,)), PACKING


SOURCES = {
    "pack.cu": dict(packing_kernels()),
    "sample_mlp.cu": dict(sampler_kernels()),
}
REPORT = re.compile(
    r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers",
    re.DOTALL,
)


def kernel_of(symbol: str) -> Kernel:
    """Return the kernel from its mangled name."""
    found = re.search(r"\d([a-z_]+_kernel)I(.*?E)EE?v", symbol)
    assert found is not None, symbol
    numbers = re.findall(r"L(?:NS\w*?_10CovarianceE|[ib])(\d+)E", found.group(2))
    return found.group(1), tuple(map(int, numbers))


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES)
def test_every_instantiation_compiles_without_spills(source: str, tmp_path: Path) -> None:
    assert NVCC is not None
    path = csrc_directory() / "cuda" / source
    flags = [*cuda.NVCC_FLAGS, *cuda.architecture_flags(ARCHITECTURES), "-Xptxas=-v", "-Werror=all-warnings"]
    command = [NVCC.command, *flags, "-c", str(path), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ceilings = SOURCES[source]
    found = [(int(m[2]), kernel_of(m[1]), int(m[3]) + int(m[4]), int(m[5])) for m in REPORT.finditer(done.stderr)]
    expected = sorted((architecture, kernel) for architecture in ARCHITECTURES for kernel in ceilings)
    assert sorted((architecture, kernel) for architecture, kernel, _, _ in found) == expected
    assert [entry for entry in found if entry[2] > 0] == []
    assert [entry for entry in found if entry[3] > ceilings[entry[1]]] == []


@needs_nvcc
def test_the_bindings_compile(tmp_path: Path) -> None:
    """Against PyTorch's headers; its builds without CUDA lack one, which says only how the library was built."""
    assert NVCC is not None
    lacking = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    lacking.parent.mkdir(parents=True)
    lacking.touch()
    compiler = find_compiler(COMPILE_FLAGS)
    includes = [*cpp_extension.include_paths(), str(NVCC.root / "include"), str(tmp_path)]
    flags = ["-std=c++20", "-Wall", "-Werror", "-fsyntax-only", *(f"-isystem{p}" for p in includes)]
    command = [*compiler.command, *flags, str(csrc_directory() / "cuda" / "ops.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


LINKED = """
import torch
import fastndsm
from fastndsm.backends import cuda as backend
from fastndsm.jit import cuda
from fastndsm.sampling.fused_mlp import fused_network
from fastndsm.networks import MLP

torch.ops.load_library(cuda.build(architectures=(90,)))
reference = fastndsm.GaussianMixture([1.0], [[1.0, 2.0]], [[1.0, 2.0]], "diag")
process = fastndsm.LangevinProcess(reference, T=1.0, n_steps=20)
x = torch.zeros(3, 2)
schedule = process.reverse_scheme().schedule([20, 5], 2)
for net in (MLP(2, (64,)), fastndsm.ResidualScore(MLP(2, (128, 128)), process)):
    *network, evaluations, mixture = vars(fused_network(net, process, schedule, torch.float32)).values()
    tables = schedule.bounds, schedule.coefficients.float(), evaluations
    try:
        backend.sample_mlp(x, *network, *tables, mixture, torch.tensor(1), 0)
    except NotImplementedError as error:  # its arguments are those of the schema
        print(str(error).partition(" This could")[0])
"""


@needs_nvcc
@pytest.mark.skipif(
    NVCC is None or (torch.version.cuda or "none").split(".")[0] != NVCC.version.split(".")[0],
    reason="no PyTorch with nvcc's CUDA: the bindings were not linked",
)
def test_the_library_links_and_its_op_is_called_by_its_schema(tmp_path: Path, run_python: Callable[..., str]) -> None:
    """Call it with tensors of the CPU, which no kernel is registered for."""
    said = run_python(LINKED, FASTNDSM_CACHE_DIR=str(tmp_path / "cache")).splitlines()
    assert said == ["Could not run 'fastndsm_cuda::sample_mlp' with arguments from the 'CPU' backend."] * 2


# --- the builder -------------------------------------------------------------------------------------------------


@pytest.fixture
def nvcc(fake_nvcc: Callable[[str], Path]) -> Path:
    return fake_nvcc("12.9")


def test_the_build_has_nvcc_the_architectures_and_every_source(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    builder = cuda.cuda_builder((80, 90))
    compiler = find_compiler(builder.compile_flags)
    text = builder._ninja_file(compiler)
    rule = re.search(r"rule cuda\n  command = (.*)", text)
    assert rule is not None and rule.group(1).startswith(f"{nvcc} -ccbin {compiler.command[0]} ")
    assert "-gencode=arch=compute_80,code=sm_80" in text and "-gencode=arch=compute_90,code=sm_90" in text
    assert "-march" not in text and "-lc10_cuda" in text and "-lcudart" in text
    built = re.findall(r"build \S+\.o: (cpp|cuda) \S*/(\S+)", text)
    assert sorted(built) == sorted([("cpp", "ops.cpp"), *(("cuda", name) for name in SOURCES)])


def test_the_key_depends_on_the_architecture_and_on_nvcc(nvcc: Path) -> None:
    compiler = find_compiler(COMPILE_FLAGS)
    keys = {cuda.cuda_builder(a).key(compiler) for a in ((80,), (90,), (80, 90))}
    nvcc.write_text(nvcc.read_text().replace("12.9", "13.0"))
    cuda._version.cache_clear()
    keys.add(cuda.cuda_builder((80,)).key(compiler))
    assert len(keys) == 4
    assert cuda.cuda_builder((80,)).key(compiler) in keys


def test_an_nvcc_of_another_cuda_than_pytorch_is_refused(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    builder = cuda.cuda_builder((90,))
    cuda._version.cache_clear()
    with pytest.raises(BuildError, match=r"^nvcc is of CUDA 12\.9, PyTorch was built with 13\.0$"):
        builder._ninja_file(find_compiler(builder.compile_flags))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildError, match=f"^nvcc is not in {tmp_path}/bin$"):
        cuda.find_nvcc()
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"^nvcc is not on PATH, and CUDA_HOME is not set$"):
        cuda.find_nvcc()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BuildError, match="is built without CUDA"):
        cuda.build()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BuildError, match=r"^it needs a GPU, and PyTorch finds none$"):
        cuda.build()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (7, 5))
    with pytest.raises(BuildError, match=r"^it needs compute capability 8\.0 or later, found 7\.5$"):
        cuda.build()
    monkeypatch.setenv("FASTNDSM_DISABLE_JIT", "1")
    with pytest.raises(BuildError, match="turned off by FASTNDSM_DISABLE_JIT"):
        cuda.build()


# --- who takes it ------------------------------------------------------------------------------------------------

X = torch.zeros(3, 2)
MIXTURE = GaussianMixture([1.0], [[1.0, 2.0]], [1.0], "spherical")


def test_the_cuda_backend_is_untested_and_says_so() -> None:
    assert [name for name, backend in registry.BACKENDS.items() if backend.untested] == ["cuda"]
    assert diagnosis.NOT_RUN_ON_GPU in diagnosis.diagnose()["backends"]["cuda"]["note"]
    with use_backend("cuda"), pytest.raises(BackendError, match="it serves cuda tensors, found cpu"):
        functional.mixture_score(X, MIXTURE)


def test_the_cuda_backend_has_the_sampler_and_takes_the_ops_from_triton() -> None:
    from fastndsm.kernels import ops

    from fastndsm.backends import cuda as backend

    assert backend.simulate_target is ops.simulate_target and backend.reverse_steps is ops.reverse_steps
    assert hasattr(backend, "sample_mlp") and not hasattr(ops, "sample_mlp")
    assert not hasattr(backend, "drift_simulate") and not hasattr(backend, "mixture_sample")


def test_auto_never_takes_an_untested_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor is it loaded, which would build it, until it is named."""
    (tmp_path / "fastndsm_test_untested.py").write_text(
        "prepared = []\n"
        "def prepare(): prepared.append(1)\n"
        "def mixture_score(x, mixture): return x + 7.0\n"
        "def sample_mlp(*arguments): raise AssertionError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import fastndsm_test_untested as module  # type: ignore[import-not-found]

    untested = registry.Backend("cuda", module.__name__, devices=("cpu",), untested=True)
    chosen: dict[str, Any] = {"cuda": untested, "reference": registry.REFERENCE}
    monkeypatch.setattr(registry, "BACKENDS", chosen)
    cpu = torch.device("cpu")
    score = functional.mixture_score(X, MIXTURE)
    torch.testing.assert_close(score, mixture_score(X, MIXTURE.operands(X.dtype)))
    assert registry.serving("mixture_score", cpu, torch.float32) == ["reference"]
    assert registry.find("sample_mlp", cpu, torch.float32) == "reference: it has no sample_mlp"
    assert module.prepared == []
    with use_backend("cuda"):
        assert torch.equal(functional.mixture_score(X, MIXTURE), X + 7.0)
        assert registry.find("sample_mlp", cpu, torch.float32) is module.sample_mlp
    assert module.prepared == [1]
