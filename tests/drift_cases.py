"""Drifts to compile: every operator that has a rule, and what people integrate.

Side by side in one drift, block by block, as many as its dimension allows: to build one for each would take minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastndsm import DriftProcess, GaussianMixture, drifts, functional
from fastndsm.compiler.trace import value_and_product

Function = Callable[[Tensor, Tensor], Tensor]
generator = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Block(NamedTuple):
    """A function of some dimensions, and between which values it is to be tried."""

    name: str
    function: Function
    dim: int = 1
    low: float = -3.0
    high: float = 3.0


def gradient(energy: Callable[[Tensor], Tensor]) -> Function:
    """Return -grad of an energy [B, d] -> [B]."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        point = x if x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad():
            return -torch.autograd.grad(energy(point).sum(), point, create_graph=True)[0]

    return drift


MATRIX, BIAS, WEIGHTS = drawn(3, 3), drawn(3), drawn(4)
WIDE = 0.2 * drawn(24, 24)
CENTRES = drawn(6, 2)
PAIRS = torch.triu_indices(4, 4, 1)
MASK = torch.tensor([True, False, True])
with torch.random.fork_rng():  # the same in every process
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    normed = torch.nn.Sequential(torch.nn.LayerNorm(3, eps=0.1), torch.nn.Linear(3, 3), torch.nn.SiLU()).double()


def with_dtype(module: torch.nn.Module, x: Tensor) -> Tensor:
    named = {name: p.to(x.dtype) for name, p in module.named_parameters()}
    return torch.func.functional_call(module, named, (x,))


def particles(x: Tensor) -> Tensor:
    q = x.reshape(-1, 4, 2)
    square = (q[:, PAIRS[0]] - q[:, PAIRS[1]]).square().sum(-1) + 0.3
    return (0.1 / square**3 - 1.0 / square).sum(-1) + 0.5 * x.square().sum(-1)


def mueller_brown(x: Tensor) -> Tensor:
    rows = x.new_tensor([[-200, -1, 0, -10, 1, 0], [-100, -1, 0, -10, 0, 0.5], [-170, -6.5, 11, -6.5, -0.5, 1.5],
                         [15, 0.7, 0.6, 0.7, -1, 1]])  # fmt: skip
    height, a, b, c, x0, y0 = rows.unbind(1)
    u, v = x[:, :1] - x0, x[:, 1:] - y0
    return 0.05 * (height * (a * u * u + b * u * v + c * v * v).exp()).sum(1)


def mixture(x: Tensor, t: Tensor) -> Tensor:
    weights = (-0.5 * (x[:, None] - CENTRES.to(x.dtype)).square().sum(-1)).softmax(1)
    return weights @ CENTRES.to(x.dtype) - x


def lorenz(x: Tensor, t: Tensor) -> Tensor:
    a, b, c = x.unbind(1)
    return torch.stack([10.0 * (b - a), a * (28.0 - c) - b, a * b - 8.0 / 3.0 * c], 1)


def in_place(x: Tensor, t: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] += x[:, 1] ** 2
    y.mul_(2.0)
    out = torch.zeros_like(x)
    out[:, 1] = y[:, 0]
    out[:, 0].copy_(y[:, 1]).add_(t)
    return out


def accumulated(x: Tensor, t: Tensor) -> Tensor:
    index = torch.tensor([0, 1, 0])
    y = torch.zeros_like(x).index_add(1, index, x).scatter_add(1, index.expand_as(x), x.sin())
    return y.index_put((torch.arange(len(x))[:, None], index), x, accumulate=True)


UNARY: dict[str, tuple[Function, float, float]] = {
    "neg": (lambda x, t: -x, -3, 3),
    "abs": (lambda x, t: x.abs(), -3, 3),
    "sqrt": (lambda x, t: x.sqrt(), 0.01, 9),
    "rsqrt": (lambda x, t: x.rsqrt(), 0.01, 9),
    "reciprocal": (lambda x, t: x.reciprocal(), 0.1, 9),
    "square": (lambda x, t: x.square(), -3, 3),
    "exp": (lambda x, t: x.exp(), -20, 20),
    "exp2": (lambda x, t: x.exp2(), -20, 20),
    "expm1": (lambda x, t: x.expm1(), -5, 5),
    "log": (lambda x, t: x.log(), 1e-4, 1e4),
    "log2": (lambda x, t: x.log2(), 1e-4, 1e4),
    "log10": (lambda x, t: x.log10(), 1e-4, 1e4),
    "log1p": (lambda x, t: x.log1p(), -0.9, 9),
    "sin": (lambda x, t: x.sin(), -30, 30),
    "cos": (lambda x, t: x.cos(), -30, 30),
    "tan": (lambda x, t: x.tan(), -1.4, 1.4),
    "sin and cos": (lambda x, t: x.sin() * x.cos(), -4, 4),
    "large angles": (lambda x, t: x.sin(), -1e6, 1e6),
    "tanh": (lambda x, t: x.tanh(), -4, 4),
    "sinh": (lambda x, t: x.sinh(), -9, 9),
    "cosh": (lambda x, t: x.cosh(), -9, 9),
    "asin": (lambda x, t: x.asin(), -0.9, 0.9),
    "acos": (lambda x, t: x.acos(), -0.9, 0.9),
    "atan": (lambda x, t: x.atan(), -9, 9),
    "asinh": (lambda x, t: x.asinh(), -9, 9),
    "acosh": (lambda x, t: x.acosh(), 1.1, 9),
    "atanh": (lambda x, t: x.atanh(), -0.9, 0.9),
    "sigmoid": (lambda x, t: x.sigmoid(), -20, 20),
    "erf": (lambda x, t: x.erf(), -3, 3),
    "erfc": (lambda x, t: x.erfc(), -3, 1),
    "sign": (lambda x, t: x.sign() * x, -3, 3),
    "sgn": (lambda x, t: x.sgn() * x, -3, 3),
    "floor": (lambda x, t: x.floor() * x, -3, 3),
    "ceil": (lambda x, t: x.ceil() * x, -3, 3),
    "round": (lambda x, t: x.round() * x, -3, 3),
    "trunc": (lambda x, t: x.trunc() * x, -3, 3),
    "relu": (lambda x, t: F.relu(x), -3, 3),
    "leaky relu": (lambda x, t: F.leaky_relu(x, 0.1), -3, 3),
    "elu": (lambda x, t: F.elu(x), -3, 3),
    "silu": (lambda x, t: F.silu(x), -9, 9),
    "gelu": (lambda x, t: F.gelu(x), -3, 3),
    "gelu by tanh": (lambda x, t: F.gelu(x, approximate="tanh"), -3, 3),
    "softplus": (lambda x, t: F.softplus(x), -9, 30),
    "hardtanh": (lambda x, t: F.hardtanh(x) * x, -3, 3),
    "clamp": (lambda x, t: x.clamp(-1.0, 2.0) + x.clamp_min(0.5) - x.clamp_max(1.5), -3, 3),
    "integer power": (lambda x, t: x**3 + x**-2 + x**4.0, 0.5, 2),
    "half power": (lambda x, t: x**0.5 + x**-0.5, 0.5, 2),
    "power": (lambda x, t: x**1.7, 0.5, 5),
    "power of a number": (lambda x, t: 2.5**x, -3, 3),
    "power of itself": (lambda x, t: x**x, 0.5, 3),
    "time": (lambda x, t: t[:, None].sin() * x + (t[:, None] < 0.5) * x.square(), -3, 3),
    "nan mask": (lambda x, t: torch.where(x.isnan() | x.isinf(), 0.0, x), -3, 3),
    "comparisons": (lambda x, t: (x > 0) * x + (x >= 1) * x - (x <= -1) * x + (x == 2) * x + (x != 1) * x, -3, 3),
    "logic": (lambda x, t: ((x > 0) & ~(x > 1) | (x < -2) ^ (x < -1)) * x, -3, 3),
    "logical": (
        lambda x, t: x * torch.logical_and(x, x > 1).logical_or(x < -1).logical_xor(x < 0).logical_not(),
        *(-3, 3),
    ),
    "masked fill": (lambda x, t: x.masked_fill(x < 0, 0.25) * x, -3, 3),
    "cast": (lambda x, t: (x > 0).to(x.dtype) * x, -3, 3),
    "integers": (lambda x, t: x.long() * x, -3, 3),
    "zero times": (lambda x, t: x * 0.0 + x, -3, 3),
}
BINARY: dict[str, Function] = {
    "maximum": lambda x, t: torch.maximum(x, x.flip(1)),
    "minimum": lambda x, t: torch.minimum(x, x.flip(1) * 2.0),
    "max of two": lambda x, t: torch.max(x, x.flip(1)) + torch.min(x, x.flip(1)).exp(),
    "atan2": lambda x, t: torch.atan2(x, x.flip(1)),
    "hypot": lambda x, t: torch.hypot(x, x.flip(1)),
    "fmod": lambda x, t: torch.fmod(x, x.flip(1).abs() + 0.5),
    "remainder": lambda x, t: torch.remainder(x, x.flip(1) + 5.0),
    "logaddexp": lambda x, t: torch.logaddexp(x, x.flip(1)),
    "addcmul": lambda x, t: torch.addcmul(x, x, x.flip(1), value=0.5),
    "addcdiv": lambda x, t: torch.addcdiv(x, x, x.flip(1).square() + 1.0, value=0.5),
    "lerp": lambda x, t: torch.lerp(x, x.flip(1), 0.3),
    "sub and rsub": lambda x, t: torch.sub(x, x.flip(1), alpha=2.0) + (1.0 - x),
    "division": lambda x, t: x / (1.0 + x.flip(1).square()) + x / 3.0 + torch.div(x, 0.7, rounding_mode="floor") * x,
    "in place": in_place,
    "cumsum": lambda x, t: x.cumsum(1),
    "amax": lambda x, t: x.amax(1, keepdim=True) * x + x.amin(1, keepdim=True),
    "any and all": lambda x, t: x * (x > 0).any(1, keepdim=True) + x * (x > 1).all(1, keepdim=True),
    "prod": lambda x, t: x.prod(1, keepdim=True).expand_as(x),
    "norm": lambda x, t: x / x.norm(dim=1, keepdim=True),
    "other norms": lambda x, t: x * (x.norm(1, dim=1) + x.norm(3, dim=1) + x.norm(math.inf, dim=1))[:, None],
    "mixture": mixture,
    "Mueller-Brown": gradient(mueller_brown),
    "energy of a network": lambda x, t: with_dtype(net, torch.cat([x, t[:, None]], 1)),
    "double well": gradient(lambda x: (0.25 * x**4 - 0.5 * x**2).sum(1)),
}
TERNARY: dict[str, Function] = {
    "Lorenz": lorenz,
    "linear": lambda x, t: x @ MATRIX.to(x.dtype).T + BIAS.to(x.dtype),
    "linear layer": lambda x, t: F.linear(x, MATRIX.to(x.dtype).softmax(0), BIAS.to(x.dtype)),
    "einsum": lambda x, t: torch.einsum("bi,ij,bj->bj", x, MATRIX.to(x.dtype), x),
    "bmm": lambda x, t: (x[:, :, None] * MATRIX.to(x.dtype)).bmm(x[:, :, None])[..., 0],
    "baddbmm": lambda x, t: torch.baddbmm(x[:, None], x[:, None], MATRIX.to(x.dtype).expand(len(x), 3, 3))[:, 0],
    "mv and dot": lambda x, t: torch.stack([torch.mv(MATRIX.to(x.dtype), r) * torch.dot(r, r) for r in x.unbind(0)]),
    "inverse": lambda x, t: x @ torch.linalg.inv(MATRIX.to(x.dtype)).T,
    "softmax": lambda x, t: x.softmax(1),
    "log-softmax": lambda x, t: x.log_softmax(1) + x.logsumexp(1, keepdim=True),
    "layer norm": lambda x, t: with_dtype(normed, x),
    "mean and variance": lambda x, t: (x - x.mean(1, keepdim=True)) / x.var(1, keepdim=True).add(0.1).sqrt(),
    "index": lambda x, t: x[:, [2, 0, 1]] * x.roll(1, 1) + torch.where(MASK, x, x.sin()),
    "gather": lambda x, t: x.gather(1, torch.tensor([[1, 1, 0]]).expand(len(x), 3)) * x,
    "accumulated": accumulated,
    "triangles": lambda x, t: (x[:, :, None] * x[:, None]).tril().sum(2) + (x[:, :, None] - x[:, None]).triu(1).sum(1),
    "padded": lambda x, t: F.pad(x[:, 1:], (1, 0)) * x + F.pad(x[:, :-1], (0, 1)),
    "scan": lambda x, t: torch.stack([x[:, 0], x[:, 0] * x[:, 1], x[:, 1] * x[:, 2]], 1).clone().repeat(1, 2)[:, :3],
}
LARGE = [
    Block("particles", gradient(particles), 8),
    Block("wide", lambda x, t: torch.tanh(x @ WIDE.to(x.dtype)) - x, 24),
]


def blocks() -> list[Block]:
    """Return every block, the small ones first."""
    return [
        *(Block(name, function, 1, low, high) for name, (function, low, high) in UNARY.items()),
        *(Block(name, function, 2, -2.0, 2.0) for name, function in BINARY.items()),
        *(Block(name, function, 3, -2.0, 2.0) for name, function in TERNARY.items()),
        *LARGE,
    ]


def groups(every: Sequence[Block], largest: int = 64) -> list[list[Block]]:
    """Return blocks in groups whose dimensions together are at most the largest."""
    out: list[list[Block]] = [[]]
    for block in every:
        if sum(b.dim for b in out[-1]) + block.dim > largest:
            out.append([])
        out[-1].append(block)
    return out


def side_by_side(group: Sequence[Block]) -> Function:
    """Return the drift of all dimensions of a group, each block of its own."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        parts = x.split([block.dim for block in group], dim=1)
        return torch.cat([block.function(part, t) for block, part in zip(group, parts, strict=True)], dim=1)

    return drift


def points(group: Sequence[Block], rows: int, seed: int = 0) -> Tensor:
    """Draw points [rows, d] where the blocks are to be tried, values of float32 in float64."""
    uniform = torch.rand((rows, sum(b.dim for b in group)), generator=torch.Generator().manual_seed(seed))
    low = torch.cat([torch.full((b.dim,), b.low) for b in group])
    high = torch.cat([torch.full((b.dim,), b.high) for b in group])
    return (low + uniform * (high - low)).double()


SPECIAL = [math.inf, -math.inf, math.nan, 0.0, 1.0]


def special_points(group: Sequence[Block]) -> Tensor:
    """Return points of float32 whose blocks begin with special values."""
    x, first = points(group, len(SPECIAL), seed=3).float(), 0
    for block in group:
        x[:, first] = torch.tensor(SPECIAL)
        first += block.dim
    return x


def expected(function: Function, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        value, product = value_and_product(function, x.clone().requires_grad_(), t, z)
    return value.detach(), product.detach()


def close(found: Tensor, exact: Tensor, tolerance: float) -> bool:
    """Return whether values agree, relatively to their own size or that of the others in their column."""
    scale = exact.abs().maximum(exact.abs().mean(0))
    return bool(((found - exact).abs() <= tolerance * scale + 1e-30).all())


# --- processes of drifts, and every call of them -------------------------------------------------------------------

WEIGHT = torch.nn.Parameter(0.5 * torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def turning(x: Tensor, t: Tensor) -> Tensor:
    """Depend on time, on a parameter, and on all five dimensions."""
    return torch.tanh(x @ WEIGHT.to(x.dtype)) * (1.0 + t[:, None]) - x


def well(**options: Any) -> DriftProcess:
    fixed: dict[str, Any] = {"T": 1.0, "n_steps": 8, "rate": 0.4, "compiled": True}
    return DriftProcess(drifts.DoubleWell(2.0), GaussianMixture.standard_normal(2), **fixed | options)


def turn(**options: Any) -> DriftProcess:
    fixed: dict[str, Any] = {"T": 1.0, "n_steps": 8, "rate": 0.7, "grid": "quadratic", "compiled": True}
    sigma = lambda t: 1.0 + t  # noqa: E731
    return DriftProcess(turning, GaussianMixture.standard_normal(5), sigma=sigma, **fixed | options)


def calls(p: DriftProcess, x: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Return what every op of the process gives from x [37, d]."""
    n = len(x)
    steps = torch.arange(n) % (p.n_steps + 1)
    records = torch.stack([steps, steps.flip(0), torch.full_like(steps, 3)], 1)
    held, slope, rate = x.sin(), x.cos(), x[:, 0].abs()
    back = {"seed": 3, "first_path": 2**33 + 5}
    return {
        "simulate": (functional.simulate(x, p, steps, seed=1, first_path=7),),
        "transition": functional.simulate_transition(x, p, steps.clamp(min=1), seed=1),
        "target": functional.simulate_target(x, p, steps, seed=1),
        "antithetic": functional.simulate_target(x, p, steps, seed=1, antithetic=True),
        "records": functional.simulate_target(x, p, records, seed=1, antithetic=True),
        "reverse": (functional.reverse_steps(x, held, slope, p, 7, 2, **back),),
        "reverse score": (functional.reverse_steps(x, held, None, p, 8, 0, prediction="score", **back),),
        "reverse linear": (functional.reverse_steps(x, held, slope, p, 8, 1, rate=rate, prediction="linear", **back),),
        "reverse ode": (functional.reverse_steps(x, held, slope, p, 8, 0, method="ode", **back),),
        "reverse step": (functional.reverse_step(x, held, p, 3, **back),),
    }
