"""The losses under PyTorch's own machinery: torch.compile, torch.func, autocast, DistributedDataParallel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import BACKEND, normals, on_one_backend, random_mixture  # noqa: F401
from torch import Tensor, nn

from fastndsm import DSMLoss, LangevinProcess, NDSMLoss, OUProcess, ResidualScore, functional

SEED = torch.tensor(3)


def process(covariance_type: str = "diag") -> LangevinProcess:
    return LangevinProcess(random_mixture(covariance_type, 3, 2, ratio=4.0), T=0.2, n_steps=5)


# --- torch.compile -----------------------------------------


@pytest.fixture
def compiler() -> Iterator[Callable[..., Any]]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda function, backend="aot_eager": torch.compile(function, fullgraph=True, backend=backend)
    torch._dynamo.reset()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def small_net(dtype: torch.dtype = torch.float32) -> Callable[[Tensor, Tensor], Tensor]:
    torch.manual_seed(1)
    layer = nn.Linear(3, 2, dtype=dtype)
    return lambda x, t: layer(torch.cat([x, t[:, None]], dim=1)).tanh()


COMPILED = [
    pytest.param(lambda: NDSMLoss(process(), "path"), id="path"),
    pytest.param(lambda: NDSMLoss(process(), "path", antithetic=True), id="path antithetic"),
    pytest.param(lambda: NDSMLoss(process(), "plain"), id="plain"),
    pytest.param(lambda: NDSMLoss(process(), "plain", antithetic=True), id="plain antithetic"),
    pytest.param(lambda: NDSMLoss(process(), "control_variate"), id="control variate"),
    pytest.param(lambda: DSMLoss(OUProcess(2, T=1.0, n_steps=10)), id="dsm"),
]


@pytest.mark.parametrize("build", COMPILED)
def test_losses_compile_to_one_graph_for_all_seeds(build: Callable[[], Any], compiler: Callable[..., Any]) -> None:
    loss, net, x0 = build(), small_net(), normals(16, 2, dtype=torch.float32).requires_grad_()
    compiled = compiler(lambda x0, seed: loss(net, x0, seed=seed))
    for seed in (1, 2, 2**40, -5):
        values = []
        for function in (compiled, lambda x0, seed: loss(net, x0, seed=seed)):
            x0.grad = None
            value = function(x0, seed)
            value.backward()
            values.append((value.detach(), x0.grad.clone()))
        torch.testing.assert_close(*values)
    assert graphs() <= 2  # the first seed is a constant, later ones are not
    before = graphs()
    torch.manual_seed(2)
    compiled(x0, None)  # a seed from PyTorch's generator
    compiled(x0, None)
    compiled(x0, torch.tensor(7))
    compiled(x0, torch.tensor(8))
    assert graphs() <= before + 2


@pytest.mark.slow
def test_path_loss_by_inductor(compiler: Callable[..., Any]) -> None:
    loss, x0 = NDSMLoss(process(), "path"), normals(16, 2, dtype=torch.float32)
    net = small_net()
    compiled = compiler(lambda x0, seed: loss(net, x0, seed=seed), backend="inductor")
    for seed in (1, 2, 3):
        torch.testing.assert_close(compiled(x0, seed), loss(net, x0, seed=seed))


class ScaledTime(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * t[:, None]


def test_everything_else_compiles(compiler: Callable[..., Any]) -> None:
    p = process("full")
    m = p.reference
    score = ResidualScore(ScaledTime(), p)

    def function(x: Tensor, v: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        return (
            m.log_prob(x),
            m.score(x),
            m.hvp(x, v),
            m.sample(4, seed=seed),
            functional.philox_normal(3, 2, seed=seed),
            p.simulate(x, 3, seed=seed),
            functional.reverse_step(x, v, p, 2, seed=seed),
            score(x, v[:, 0].abs()),
        )

    x, v = normals(5, 2), normals(5, 2, seed=1)
    for found, expected in zip(compiler(function)(x, v, SEED), function(x, v, SEED), strict=True):
        torch.testing.assert_close(found, expected)


# --- torch.func -----------------------------------------


@pytest.mark.parametrize("function", [functional.mixture_score, functional.mixture_log_prob], ids=["score", "log_prob"])
def test_torch_func_transforms(function: Callable[..., Tensor]) -> None:
    """Forward mode, vmap and per-sample gradients agree with reverse mode."""
    m = random_mixture("full", 3, 2)
    x, v = normals(5, 2), normals(5, 2, seed=1)
    value, along = torch.func.jvp(lambda point: function(point, m), (x,), (v,))
    torch.testing.assert_close(value, function(x, m))
    expected = torch.autograd.functional.jvp(lambda point: function(point, m), x, v)[1]  # by reverse mode, twice
    torch.testing.assert_close(along, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = function(torch.autograd.forward_ad.make_dual(x, v), m)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, expected)
    rows = torch.func.vmap(lambda row: function(row[None], m)[0])(x)
    torch.testing.assert_close(rows, function(x, m))


def test_per_sample_gradients_of_a_loss_by_torch_func() -> None:
    p, w, x0 = process(), normals(2, 2), normals(5, 2, seed=1)
    loss = NDSMLoss(p, "path", reduction="none")
    jacobian = torch.func.jacrev(lambda w: loss(lambda x, t: x @ w, x0, seed=1))(w)
    leaf_w = w.clone().requires_grad_()
    losses = loss(lambda x, t: x @ leaf_w, x0, seed=1)
    for i in range(5):
        torch.testing.assert_close(jacobian[i], torch.autograd.grad(losses[i], leaf_w, retain_graph=True)[0])


# --- autocast -----------------------------------------


@pytest.mark.parametrize("build", COMPILED)
def test_autocast(build: Callable[[], Any]) -> None:
    """bfloat16 scores against float32 noise: accumulated in float32, gradients where they belong."""
    loss, x0 = build(), normals(64, 2, dtype=torch.float32)
    torch.manual_seed(1)
    layer = nn.Linear(2, 2)
    seen: list[torch.dtype] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        out = layer(x)
        seen.append(out.dtype)
        return out

    expected = loss(net, x0, seed=1)
    (exact,) = torch.autograd.grad(expected, layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(net, x0, seed=1)
    (rounded,) = torch.autograd.grad(found, layer.weight)
    assert seen == [torch.float32, torch.bfloat16]
    assert found.dtype == torch.float32 and rounded.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


# --- distributed data parallel -----------------------------------------

RANK = """
import gc, json, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from fastndsm import GaussianMixture, LangevinProcess, NDSMLoss
torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
p = LangevinProcess(GaussianMixture.standard_normal(2), T=1.0, n_steps=10)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
    def forward(self, x, t):
        return self.layer(x)
torch.manual_seed(0)
net = Net()
parallel = DistributedDataParallel(net)
x0 = torch.ones(4, 2)
out = {}
for estimator in ("path", "plain", "control_variate"):
    loss = NDSMLoss(p, estimator)
    torch.manual_seed(5)
    drawn = loss.draw(x0)
    torch.manual_seed(5)
    net.zero_grad()
    value = loss(parallel, x0)
    value.backward()
    out[estimator] = {
        "x": drawn.x.tolist(), "loss": value.item(), "grad": net.layer.weight.grad.tolist()
    }
print(json.dumps(out))
# Nothing may hold the group when the interpreter ends: its threads would end with it.
del parallel, value
gc.collect()
dist.destroy_process_group()
"""


def test_data_parallel_ranks_draw_noise_of_their_own_and_agree_on_gradients(start_python: Any, tmp_path: Any) -> None:
    """Both ranks hold the same data and the same seed; one process with the rows of both gets the same gradient."""
    ranks = [start_python(RANK, rank, tmp_path / "store", FASTNDSM_BACKEND=BACKEND) for rank in range(2)]
    outputs = []
    for rank in ranks:
        out, err = rank.communicate(timeout=120)
        assert rank.returncode == 0, err
        outputs.append(json.loads(out.splitlines()[-1]))  # gloo of torch 2.9 greets on the standard output

    p, x0 = OUProcess(2, T=1.0, n_steps=10), torch.ones(4, 2)
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    for estimator in ("path", "plain", "control_variate"):
        first, second = (output[estimator] for output in outputs)
        assert first["x"] != second["x"]
        torch.testing.assert_close(torch.tensor(first["grad"]), torch.tensor(second["grad"]))
        torch.manual_seed(5)
        seed = torch.randint(0, 2**63 - 1, (), dtype=torch.int64)  # what both ranks drew
        loss = NDSMLoss(p, estimator)
        values = [loss(lambda x, t: layer(x), x0, seed=seed, first_path=rank * len(x0)) for rank in range(2)]
        (gradient,) = torch.autograd.grad(0.5 * (values[0] + values[1]), layer.weight)
        torch.testing.assert_close(gradient, torch.tensor(first["grad"]), rtol=1e-5, atol=1e-6)
        assert [v.item() for v in values] == pytest.approx([first["loss"], second["loss"]], rel=1e-5)
