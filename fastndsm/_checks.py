"""One gate for bad input: every message names the argument, what was expected and what was found."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def floating(name: str, x: Any) -> Tensor:
    """x as it is, if it is a floating point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, found {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a floating point dtype, found {x.dtype}")
    return x


def batch(name: str, x: Any, dim: int) -> Tensor:
    """x [B, ...] as [B, dim]; B >= 1."""
    floating(name, x)
    if x.ndim < 2 or x[:1].numel() != dim:
        if not (x.ndim >= 1 and x.shape[0] == 0):
            raise ValueError(f"{name}: expected shape [B, ...] with {dim} values a sample, found {tuple(x.shape)}")
    if x.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one sample, found an empty batch of shape {tuple(x.shape)}")
    return x.reshape(x.shape[0], dim)


def data(name: str, x: Any, dim: int) -> Tensor:
    """As `batch`, and every value finite (on the CPU; elsewhere the check would stall the device)."""
    flat = batch(name, x, dim)
    if not torch.compiler.is_compiling() and x.device.type == "cpu":
        finite(name, flat)
    return flat


def finite(name: str, x: Tensor) -> Tensor:
    """x as it is, if every value is finite."""
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(f"{name}: expected finite values, found {int(bad.sum())} NaN or infinite, first at {first}")
    return x


def like(name: str, x: Any, other_name: str, other: Tensor) -> Tensor:
    """x, if it has the shape and device of `other`."""
    floating(name, x)
    if x.shape != other.shape:
        raise ValueError(f"{name}: expected the shape of {other_name}, {tuple(other.shape)}, found {tuple(x.shape)}")
    if x.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, found {x.device}")
    return x


def same_device(name: str, x: Tensor, other_name: str, device: torch.device) -> None:
    """x and the other must share a device."""
    if x.device != device:
        raise ValueError(
            f"{name}: expected the device of {other_name}, {device}, found {x.device}; move one with .to()"
        )


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """value, if it is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, found {value!r}")
    return str(value)


def positive(name: str, value: Any) -> float:
    """value as a float, finite and positive."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < float(value) < float("inf"):
        raise ValueError(f"{name}: expected a finite positive number, found {value!r}")
    return float(value)


def count(name: str, value: Any, minimum: int = 1) -> int:
    """value as an int of at least `minimum`."""
    if torch.compiler.is_compiling():
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, found {value!r}")
    if int(value.__index__()) < minimum:
        raise ValueError(f"{name}: expected an integer of at least {minimum}, found {int(value)}")
    return int(value.__index__())


def seed(value: Any) -> Tensor:
    """A seed as a 0-d int64 tensor; None draws one from PyTorch's default generator."""
    if value is None:
        return torch.randint(0, 2**63 - 1, (), dtype=torch.int64)
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.dtype.is_floating_point or value.dtype == torch.bool:
            raise TypeError(f"seed: expected one integer, found {value.dtype} of shape {tuple(value.shape)}")
        return value.reshape(()).to(torch.int64)
    if not torch.compiler.is_compiling():  # a traced integer answers no questions
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"seed: expected an integer, a tensor or None, found {value!r}")
        value = int(value)
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"seed: expected an integer of at most 64 bits, found {value}")
        value -= (value >> 63 & 1) << 64 if value > 0 else 0  # the same 64 bits, signed
    return torch.full((), value, dtype=torch.int64)


def first_path(value: Any) -> int:
    """The number of a first path: an integer in [0, 2^56)."""
    if torch.compiler.is_compiling():
        return value
    if count("first_path", value, minimum=0) >= 2**56:
        raise ValueError(f"first_path: expected an integer below 2^56, found {value}")
    return int(value)


def network(name: str, value: Any) -> None:
    """value must be callable as (x [B, ...], t [B]) -> like x."""
    if not callable(value):
        raise TypeError(f"{name}: expected a callable (x, t) -> like x, found {type(value).__name__}")


def score_output(found: Any, x: Tensor) -> Tensor:
    """What a score network returned for x, if it is like x."""
    if not isinstance(found, Tensor):
        raise TypeError(f"score_net: expected it to return a tensor like x, found {type(found).__name__}")
    if found.shape != x.shape:
        raise ValueError(f"score_net: expected output of the shape of x, {tuple(x.shape)}, found {tuple(found.shape)}")
    if not found.dtype.is_floating_point:
        raise TypeError(f"score_net: expected floating point output, found {found.dtype}")
    return found


def instance(name: str, value: Any, kind: type, expected: str) -> Any:
    """value, if it is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {expected}, found {type(value).__name__}")
    return value


def steps(
    name: str, value: Any, rows: int | None, maximum: int, device: torch.device | None, minimum: int = 0
) -> Tensor:
    """value as int64, 0-d or [rows] (rows None: 0-d alone), in minimum..maximum.

    A tensor stays where it is if device is None. Values are looked at where that costs no synchronisation.
    """
    looks = not torch.compiler.is_compiling()
    if isinstance(value, Tensor):
        if value.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
            raise TypeError(f"{name}: expected integers, found {value.dtype}")
        if value.ndim > 1 or (value.ndim == 1 and value.shape[0] != rows):
            expected = "one integer" if rows is None else f"an integer or shape [{rows}]"
            raise ValueError(f"{name}: expected {expected}, found shape {tuple(value.shape)}")
        out = value.to(device=value.device if device is None else device, dtype=torch.int64)
        looks = looks and out.device.type == "cpu"
        if looks:
            low, high = (int(v) for v in torch.aminmax(out))
            if low < 0 or high > maximum:
                raise ValueError(f"{name}: expected values in 0..{maximum}, found {low}..{high}")
    else:
        if looks:
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(f"{name}: expected an integer or an integer tensor, found {value!r}")
            if not 0 <= value <= maximum:
                raise ValueError(f"{name}: expected a value in 0..{maximum}, found {value}")
            low = int(value)
        out = torch.full((), value, dtype=torch.int64, device="cpu" if device is None else device)
    if looks and low < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, found {low}")
    return out


def paths(x0: Any, dim: int, device: torch.device, seed_value: Any, first: Any) -> tuple[Tensor, int]:
    """The seed and the first path's number of a simulation from x0 [B, ...], which must be finite and on `device`."""
    data("x0", x0, dim)
    same_device("x0", x0, "process", device)
    return seed(seed_value), first_path(first)
