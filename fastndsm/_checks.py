"""One gate for bad input: every message names the argument, what was expected and what was found."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = 2**63 - 1  # that an integer argument of an op may be


def cure(heading: str) -> str:
    """Return the end of a message that users meet often: where the documentation has its cause and cure."""
    return f" (docs/troubleshooting.md#{heading})"


def shown(value: Any) -> str:
    """Return value for a message: a tensor or an array by dtype and shape, in place of its values."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} Tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"a {value.dtype} array of shape {value.shape}"
    return repr(value)


def index(name: str, value: Any, expected: str = "an integer") -> int:
    """Check that value is an integer of any kind; return it as an int."""
    try:
        if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected {expected}, found {shown(value)}") from None


def function(name: str, value: Any, expected: str) -> None:
    """Check that value is callable, and no class: that is most often one whose instance was meant."""
    if not callable(value) or isinstance(value, type):
        found = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name}: expected {expected}, found {found}")


def flag(name: str, value: Any) -> bool:
    """Check that value is a bool; return it as one. A string or a number would only seem to be."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, found {shown(value)}")
    return bool(value)


def flag_or_auto(name: str, value: Any) -> None:
    """Check that value is "auto", True or False."""
    if not isinstance(value, bool) and not (isinstance(value, str) and value == "auto"):
        raise ValueError(f"{name}: expected 'auto', True or False, found {shown(value)}")


def number(name: str, value: Any) -> float:
    """Check that value is a finite number; return it as a float."""
    if isinstance(value, bool) or not isinstance(value, Real) or not abs(float(value)) < float("inf"):
        raise ValueError(f"{name}: expected a finite number, found {shown(value)}")
    return float(value)


def floating(name: str, x: Any) -> Tensor:
    """Check that x is a floating point tensor; return it as it is."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, found {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a floating point dtype, found {x.dtype}")
    return x


def tensor(
    name: str, x: Any, expected: str = "a Tensor", dtypes: tuple[torch.dtype, ...] = (), found: str | None = None
) -> Tensor:
    """Check that x is a tensor, of one of the dtypes if there are any; return it. Messages call what is not `found`."""
    if not isinstance(x, Tensor) or (dtypes and x.dtype not in dtypes):
        of_what = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: expected {expected}, found {of_what if found is None else found}")
    return x


def shape(name: str, x: Any, expected: Sequence[int], note: str = "") -> None:
    """Check that x has that shape."""
    if tuple(x.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}{note}, found {tuple(x.shape)}")


def floating_dtype(name: str, dtype: Any) -> torch.dtype:
    """Check that data may be of that dtype; return it."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        raise TypeError(f"{name}: expected a floating point dtype, found {shown(dtype)}")
    return dtype


def device(name: str, value: Any, usable: bool = True) -> torch.device:
    """Check that value names a device, and if `usable` one that torch can use here; return it as a device."""
    if torch.compiler.is_compiling():
        return torch.device(value)
    try:
        found = torch.device(value)
        return torch.empty(0, device=found).device if usable else found
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name}: expected a device that torch can use, found {shown(value)} ({reason})") from error


def batch(name: str, x: Any, dim: int) -> Tensor:
    """Check that x [B, ...], B >= 1, has dim values a sample; return it as [B, dim]."""
    floating(name, x)
    if x.ndim < 2 or x[:1].numel() != dim:
        if not (x.ndim >= 1 and x.shape[0] == 0):
            raise ValueError(f"{name}: expected shape [B, ...] with {dim} values a sample, found {tuple(x.shape)}")
    if x.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one sample, found an empty batch of shape {tuple(x.shape)}")
    return x.reshape(x.shape[0], dim)


def data(name: str, x: Any, dim: int) -> Tensor:
    """Check as `batch` does, and that every value is finite (on the CPU; elsewhere it would stall the device)."""
    flat = batch(name, x, dim)
    if not torch.compiler.is_compiling() and x.device.type == "cpu":
        finite(name, flat)
    return flat


def finite(name: str, x: Tensor, located: bool = True) -> Tensor:
    """Check that every value is finite; return x as it is. If `located`, the message tells where the first is not."""
    # A finite sum has finite terms alone, and reads x once; one that overflows, or is not finite, settles nothing.
    if bool(x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32)).isfinite()):
        return x
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        found = f"NaN or infinite, first at {first}" if located else "that are not"
        raise ValueError(f"{name}: expected finite values, found {int(bad.sum())} {found}")
    return x


def samples(
    name: str,
    x: Any,
    least: int | None = 1,
    dtype: torch.dtype | None = None,
    events: tuple[int, ...] | None = None,
) -> Tensor:
    """Check that x [n, *event] holds `least` or more (None: any) finite samples of dtype and event shape; return it."""
    if dtype is None:
        tensor(name, x, "a floating-point Tensor", FLOATS)
    else:
        tensor(name, x, f"a {str(dtype).removeprefix('torch.')} Tensor", (dtype,))
    if x.ndim < 2 or len(x) < (least or 1) or x.numel() == 0:
        expected = "a non-empty [n, *event]" if least is None else f"[n, *event] with n >= {least}"
        raise ValueError(f"{name}: expected {expected}, found shape {tuple(x.shape)}")
    if events is not None and tuple(x.shape[1:]) != events:
        raise ValueError(f"{name}: expected events {events} as in train, found {tuple(x.shape[1:])}")
    return finite(name, x, located=False)


def pair(x_name: str, x: Any, y_name: str, y: Any, least: int = 1) -> tuple[Tensor, Tensor]:
    """Check two sets of samples of one dimension on one device; return them as [n, d] and [m, d] float64."""
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.device != y.device:
        raise ValueError(f"{y_name}: expected a Tensor on {x.device} as {x_name} is, found {y.device}")
    x, y = (samples(n, s, least).detach().flatten(1).double() for n, s in ((x_name, x), (y_name, y)))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{y_name}: expected {x.shape[1]} values a sample as in {x_name}, found {y.shape[1]}")
    return x, y


def labels(name: str, y: Any, n: int, of: str = "") -> Tensor:
    """Check labels y [n], int64 from 0; return them as they are. The message calls their samples `of`."""
    tensor(name, y, "an int64 Tensor", (torch.int64,))
    if y.shape != (n,):
        raise ValueError(f"{name}: expected [{n}], one for each sample{of and f' of {of}'}, found {tuple(y.shape)}")
    if int(y.min()) < 0:
        raise ValueError(f"{name}: expected labels from 0, found {int(y.min())}")
    return y


def probabilities(name: str, p: Any, ndim: int) -> Tensor:
    """Check that p [C] or [n, C] is non-negative with sums of one along the last dimension; return it as float64."""
    tensor(name, p, "a floating-point Tensor", FLOATS)
    if p.ndim != ndim or p.numel() == 0:
        raise ValueError(f"{name}: expected {'[C]' if ndim == 1 else '[n, C]'}, found shape {tuple(p.shape)}")
    p = p.detach().to(torch.float64)
    if not (bool((p >= 0).all()) and bool(((p.sum(-1) - 1).abs() < 1e-4).all())):
        least, sums = float(p.min()), p.sum(-1)
        raise ValueError(
            f"{name}: expected values >= 0 that sum to one, found a least value of {least:.4g} and "
            f"sums of {float(sums.min()):.4g} to {float(sums.max()):.4g}"
        )
    return p


def weights(name: str, w: Tensor, n: int) -> Tensor:
    """Check that w [n] is non-negative and sums to one; return it as it is."""
    shape(name, w, (n,))
    smallest, total = float(w.min()), float(w.double().sum())
    if smallest < 0 or abs(total - 1.0) > 1e-4:
        found = f"{smallest:.6g} among them" if smallest < 0 else f"sum {total:.6g}"
        raise ValueError(f"{name}: expected non-negative values that sum to 1, found {found}")
    return w


def unmasked(name: str, value: Any) -> Any:
    """Check that no entries of value are masked, as what lies below a mask is no data; return it as it is."""
    masked = getattr(value, "mask", None) if isinstance(value, np.ma.MaskedArray) else None
    if isinstance(value, torch.masked.MaskedTensor):
        masked = ~value.get_mask().cpu().numpy()
    if masked is not None and (count := int(np.count_nonzero(masked))):
        first = tuple(int(i) for i in np.argwhere(masked)[0])
        raise ValueError(
            f"{name}: expected no masked values, found {count}, first at {first}; fill them in or leave those rows out"
        )
    return value


def parameter(name: str, value: Any) -> Tensor:
    """Check finite numbers of any kind; return them as a floating point tensor of their own."""
    unmasked(name, value)
    try:
        made = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(np.asarray(value), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers, found {shown(value)}") from error
    if not made.dtype.is_floating_point:
        if made.dtype.is_complex or made.dtype == torch.bool:
            raise TypeError(f"{name}: expected a floating point dtype, found {made.dtype}")
        made = made.double()
    return finite(name, made)


def points(name: str, X: Any) -> tuple[np.ndarray[Any, np.dtype[np.float64]], tuple[int, ...]]:
    """Check data [n, ...] of any kind, finite numbers; return them as float64 [n, d], and their event shape."""
    unmasked(name, X)
    if isinstance(X, Tensor) and X.is_complex():
        raise TypeError(f"{name}: expected numbers, found dtype {X.dtype}")
    array = X.detach().cpu().double().numpy() if isinstance(X, Tensor) else np.asarray(X)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected numbers, found dtype {array.dtype}")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{name}: expected shape [n, ...] with n >= 1, found {array.shape}")
    array = array.astype(np.float64, copy=False)
    finite(name, torch.from_numpy(array))
    return array.reshape(len(array), -1), array.shape[1:]


def like(name: str, x: Any, other_name: str, other: Tensor) -> Tensor:
    """Check that x has the shape and device of `other`; return it."""
    floating(name, x)
    if x.shape != other.shape:
        raise ValueError(f"{name}: expected the shape of {other_name}, {tuple(other.shape)}, found {tuple(x.shape)}")
    if x.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, found {x.device}")
    return x


def same_device(name: str, x: Tensor, other_name: str, device: torch.device) -> None:
    """Check that x and the other share a device."""
    if x.device != device:
        raise ValueError(
            f"{name}: expected the device of {other_name}, {device}, found {x.device}; move one with .to()"
        )


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Check that value is one of `allowed`; return it."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, found {shown(value)}")
    return value


def positive(name: str, value: Any) -> float:
    """Check that value is a finite positive number; return it as a float."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < float(value) < float("inf"):
        raise ValueError(f"{name}: expected a finite positive number, found {shown(value)}")
    return float(value)


def non_negative(name: str, value: Any, expected: str = "a non-negative number") -> float:
    """Check that value is a finite number of at least 0; return it as a float."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) < float("inf"):
        raise ValueError(f"{name}: expected {expected}, found {shown(value)}")
    return float(value)


def fraction(name: str, value: Any) -> float:
    """Check that value is a number in (0, 1]; return it as a float."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < float(value) <= 1.0:
        raise ValueError(f"{name}: expected a number in (0, 1], found {shown(value)}")
    return float(value)


def integer(name: str, value: Any, least: int | None = None) -> int:
    """Check that value is an int of at least `least` (None: positive); return it."""
    smallest = 1 if least is None else least
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= LARGEST:
        expected = "a positive int" if least is None else f"an int >= {least}"
        raise ValueError(f"{name}: expected {expected}, found {shown(value)}")
    return value


def integers(name: str, values: Any) -> tuple[int, ...]:
    """Check one or more positive ints; return them as a tuple."""
    if isinstance(values, Tensor) or not isinstance(values, Iterable) or not (listed := tuple(values)):
        raise ValueError(f"{name}: expected one or more positive ints, found {shown(values)}")
    return tuple(integer(name, value) for value in listed)


def count(name: str, value: Any, minimum: int = 1) -> int:
    """Check that value is an integer of at least `minimum`; return it as an int."""
    if torch.compiler.is_compiling():
        return value
    found = index(name, value)
    if found < minimum:
        raise ValueError(f"{name}: expected an integer of at least {minimum}, found {found}")
    if found > LARGEST:
        raise ValueError(f"{name}: expected an integer of at most 64 bits, found {found}")
    return found


def grid_point(name: str, value: Any, least: int, most: int) -> int:
    """Check the number of a grid point in least..most; return it."""
    if torch.compiler.is_compiling():
        return value  # type: ignore[no-any-return]
    found = index(name, value)
    if not least <= found <= most:
        raise ValueError(f"{name}: expected an integer in {least}..{most}, found {found}")
    return found


def seed(value: Any) -> Tensor:
    """Check a seed; return it as a 0-d int64 tensor. None draws one from PyTorch's default generator."""
    if value is None:
        return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device="cpu")
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.dtype.is_floating_point or value.dtype == torch.bool:
            raise TypeError(f"seed: expected one integer, found {value.dtype} of shape {tuple(value.shape)}")
        return value.reshape(()).to(torch.int64)
    if not torch.compiler.is_compiling():  # a traced integer answers no questions
        value = index("seed", value, "an integer, a tensor or None")
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"seed: expected an integer of at most 64 bits, found {value}")
        value -= (value >> 63 & 1) << 64 if value > 0 else 0  # the same 64 bits, signed
    return torch.full((), value, dtype=torch.int64, device="cpu")


def first_path(value: Any) -> int:
    """Check the number of a first path, an integer in [0, 2^56); return it."""
    if torch.compiler.is_compiling():
        return value
    if count("first_path", value, minimum=0) >= 2**56:
        raise ValueError(f"first_path: expected an integer below 2^56, found {value}")
    return int(value)


def network(name: str, value: Any) -> None:
    """Check that value is callable as (x [B, ...], t [B]) -> like x."""
    function(name, value, "a callable (x, t) -> like x")


def network_inputs(x: Any, t: Any, weight: Tensor) -> None:
    """Check that a network with this weight can take x [B, *event] and t [B]."""
    for name, value in (("x", x), ("t", t)):
        tensor(name, value)
        tensor(name, value, "a floating-point Tensor", FLOATS)
        if value.device != weight.device:
            raise ValueError(f"{name}: expected the network's device, {weight.device}, found {value.device}")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x: expected {weight.dtype}, the network's dtype, found {x.dtype}")
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"x: expected [B, *event] with B >= 1, found {tuple(x.shape)}")
    if t.shape != x.shape[:1]:
        raise ValueError(f"t: expected [B] = [{x.shape[0]}] as x has, found {tuple(t.shape)}")


def score_output(found: Any, x: Tensor) -> Tensor:
    """Check that a score network's output is like x; return it."""
    if not isinstance(found, Tensor):
        raise TypeError(f"score_net: expected it to return a tensor like x, found {type(found).__name__}")
    if found.shape != x.shape:
        raise ValueError(f"score_net: expected output of the shape of x, {tuple(x.shape)}, found {tuple(found.shape)}")
    if not found.dtype.is_floating_point:
        raise TypeError(f"score_net: expected floating point output, found {found.dtype}")
    return found


def drift_output(found: Any, x: Tensor) -> Tensor:
    """Check that a drift's output is like x; return it in the dtype of x."""
    if not isinstance(found, Tensor):
        raise TypeError(f"drift: expected it to return a tensor like x, found {type(found).__name__}")
    if found.shape != x.shape:
        raise ValueError(f"drift: expected output of the shape of x, {tuple(x.shape)}, found {tuple(found.shape)}")
    if not found.is_floating_point():
        raise TypeError(f"drift: expected floating point output, found {found.dtype}")
    return found.to(x.dtype)


def time(name: str, value: Any, rows: int) -> None:
    """Check that value is a time, or one for each row: a number, or a real Tensor [] or [rows]."""
    if not isinstance(value, Tensor):
        if not torch.compiler.is_compiling():
            number(name, value)
    elif value.is_complex() or value.dtype == torch.bool or value.shape not in ((), (1,), (rows,)):
        raise ValueError(f"{name}: expected a number or real times [{rows}], found {shown(value)}")


def instance(name: str, value: Any, kind: type, expected: str) -> Any:
    """Check that value is an instance of `kind`; return it."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {expected}, found {type(value).__name__}")
    return value


def steps(
    name: str,
    value: Any,
    rows: int | None,
    maximum: int,
    device: torch.device | None,
    minimum: int = 0,
    *,
    records: bool = False,
) -> Tensor:
    """Check steps in minimum..maximum; return them as int64, 0-d, [rows] (rows None: 0-d alone) or, records, [rows, R].

    A tensor stays where it is if device is None. Values are looked at where that costs no synchronisation.
    """
    looks = not torch.compiler.is_compiling()
    if isinstance(value, Tensor):
        if value.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
            raise TypeError(f"{name}: expected integers, found {value.dtype}")
        several = records and value.ndim == 2 and value.shape[1] > 0
        if (value.ndim > 1 and not several) or (value.ndim > 0 and value.shape[0] != rows):
            more = f" or [{rows}, R]" if records else ""
            expected = "one integer" if rows is None else f"an integer or shape [{rows}]{more}"
            raise ValueError(f"{name}: expected {expected}, found shape {tuple(value.shape)}")
        out = value.to(device=value.device if device is None else device, dtype=torch.int64)
        looks = looks and out.device.type == "cpu"
        if looks:
            low, high = (int(v) for v in torch.aminmax(out))
            if low < 0 or high > maximum:
                raise ValueError(f"{name}: expected values in 0..{maximum}, found {low}..{high}")
    else:
        if looks:
            value = index(name, value, "an integer or an integer tensor")
            if not 0 <= value <= maximum:
                raise ValueError(f"{name}: expected a value in 0..{maximum}, found {value}")
            low = value
        out = torch.full((), value, dtype=torch.int64, device="cpu" if device is None else device)
    if looks and low < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, found {low}")
    return out


def paths(
    x0: Any, dim: int, device: torch.device, seed_value: Any, first: Any, antithetic: Any = False
) -> tuple[Tensor, int]:
    """Check x0 [B, ...], finite and on `device`, seed and first path of a simulation; return the last two."""
    flag("antithetic", antithetic)
    data("x0", x0, dim)
    same_device("x0", x0, "process", device)
    return seed(seed_value), first_path(first)


def loss_weights(name: str, value: Tensor) -> Tensor:
    """Check that weights are finite and >= 0 (on the CPU; elsewhere the check would stall the device); return them."""
    if not torch.compiler.is_compiling() and value.device.type == "cpu":
        low, high = (float(v) for v in torch.aminmax(value.detach()))  # NaN if one is
        if not 0.0 <= low <= high < float("inf"):
            wrong = value[~((value >= 0) & value.isfinite())]
            raise ValueError(f"{name}: expected finite weights of at least 0, found {float(wrong[0]):g}")
    return value


def is_frame(value: Any) -> bool:
    """Return whether it is a pandas DataFrame; pandas is not imported for that."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)
