"""The user's own arrays as a data set: dtype, layout of images, labels, and what is held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _checks
from ._dataset import Dataset
from ._standardizer import Standardizer

__all__ = ["LAYOUTS", "from_arrays", "make_dataset"]

LAYOUTS = ("auto", "NCHW", "NHWC", "NHW", "rows")
_CHANNELS, _SIDE = (1, 2, 3, 4), 4  # of what is taken for an image: channels, and the least height and width
_EXACT = (np.uint8, np.int8, np.uint16, np.int16, np.float16, np.float32)  # integers and floats that float32 holds
_LOST = 1e-3  # rounding to float32, over the data's deviation, from which data stay float64


def from_arrays(
    x: Any,
    labels: Any = None,
    test: Any = None,
    test_labels: Any = None,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    layout: str = "auto",
    name: str = "data",
) -> Dataset:
    """Make a data set of the user's samples x [n, *event] or [n], arrays or tensors of real numbers.

    Values keep their scale (`Standardizer` brings them to unit scale) and become float32, or float64 where float32
    would round away what varies. Images become [n, C, H, W]. Labels of any integers or texts become 0..C - 1 in their
    order; `label_names` keeps them.

    Args:
        labels: [n], the class of each sample, or None.
        test, test_labels: held-out samples and their labels; None: a share of x is held out.
        test_fraction: that share, in (0, 1).
        seed: chooses which.
        layout: of x and test: "NCHW", "NHWC" or "NHW" of images; "rows": as they are; "auto": four dimensions are
            NCHW if the second is 1 to 4 and no more than the last, else NHWC if the last is 1 to 4; three are NHW if
            both sides are 4 or more; anything else stays as it is.
        name: of the data set, for titles.

    Raises ValueError or TypeError, naming the array, for anything but two or more finite samples, for masked values,
    and for labels that are no classes.
    """
    arrays = {"x": x, "labels": labels, "test": test, "test_labels": test_labels}
    given = {argument: array for argument, array in arrays.items() if array is not None}
    return make_dataset(given, {}, test_fraction, seed, layout, name, name)


def make_dataset(
    arrays: Mapping[str, Any],
    called: Mapping[str, str],
    test_fraction: float,
    seed: int,
    layout: str,
    name: str,
    origin: str,
) -> Dataset:
    """Make a data set of arrays, named as for `from_arrays`; called: names in messages; origin: for the description."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number in (0, 1), found {test_fraction}")
    _checks.choice("layout", layout, LAYOUTS)

    def samples(argument: str) -> Tensor:
        return _samples(called.get(argument, argument), arrays[argument], layout)

    def classes(argument: str, n: int) -> NDArray[Any] | None:
        return _classes(called.get(argument, argument), arrays[argument], n) if argument in arrays else None

    train = samples("x")
    groups = [classes("labels", len(train))]
    if "test" in arrays:
        test = samples("test")
        groups.append(classes("test_labels", len(test)))
        if (groups[0] is None) != (groups[1] is None):
            raise ValueError(f"{origin}: expected labels for both x and test, or neither; found them for one")
    elif "test_labels" in arrays:
        raise ValueError(f"{called.get('test_labels', 'test_labels')}: expected them with test, found no test")
    numbers, names = _numbered([group for group in groups if group is not None])
    if "test" not in arrays:
        kept, out = _split(len(train), numbers[0] if numbers else None, test_fraction, seed)
        train, test = train[kept], train[out]
        numbers = [numbers[0][kept], numbers[0][out]] if numbers else []
    if torch.float64 in (train.dtype, test.dtype):
        train, test = train.double(), test.double()
    return Dataset(
        name=name,
        train=train,
        test=test,
        labels=numbers[0] if numbers else None,
        test_labels=numbers[1] if numbers else None,
        label_names=names,
        description=f"{origin}, scale kept: mean {train.mean():.3g}, standard deviation {train.std():.3g}",
    )


def _samples(name: str, values: Any, layout: str) -> Tensor:
    array = _array(name, values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, found dtype {array.dtype}")
    if array.ndim == 0 or len(array) < 2 or array.size == 0:
        raise ValueError(f"{name}: expected [n, *event] with n >= 2, found shape {array.shape}")
    array = _images(name, array, layout)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is reported below
        made = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))  # a copy: the user may write into theirs
    if bad := int((~made.isfinite()).sum()):
        first = tuple((~made.isfinite()).nonzero()[0].tolist())
        raise ValueError(f"{name}: expected values finite in float32, found {bad} that are not, first at {first}")
    made = made[:, None] if made.ndim == 1 else made
    if array.dtype.type in _EXACT:
        return made
    exact = torch.from_numpy(np.array(array, dtype=np.float64, order="C")).reshape(made.shape)
    scale = Standardizer.fit(exact).scale
    lost = ((exact - made).abs().flatten(1) > _LOST * scale) & (scale > 0)
    return exact if bool(lost.any()) else made


def _array(name: str, values: Any) -> NDArray[Any]:
    _checks.unmasked(name, values)
    if isinstance(values, Tensor):
        if values.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense Tensor, found {values.layout}")
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    return np.asarray(values)


def _images(name: str, array: NDArray[Any], layout: str) -> NDArray[Any]:
    """Return images as [N, C, H, W], anything else as it is."""
    if layout == "auto":
        layout = _layout(array.shape)
    if layout == "rows":
        return array
    if array.ndim != len(layout):
        raise ValueError(f"{name}: expected {len(layout)} dimensions for layout {layout}, found shape {array.shape}")
    if layout == "NHW":
        return array[:, None]
    return np.moveaxis(array, -1, 1) if layout == "NHWC" else array


def _layout(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and min(shape[1:]) >= _SIDE:
        return "NHW"
    if len(shape) == 4 and not (shape[1] in _CHANNELS and shape[1] <= shape[3]) and shape[3] in _CHANNELS:
        return "NHWC"
    return "rows"


def _classes(name: str, values: Any, n: int) -> NDArray[Any] | None:
    if values is None:
        return None
    array = _array(name, values)
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.ravel()):
        array = array.astype(str)
    if array.dtype.kind not in "iubUS":
        raise TypeError(f"{name}: expected integer labels, found dtype {array.dtype}; integers and texts name classes")
    if array.shape != (n,):
        raise ValueError(f"{name}: expected [{n}], one for each sample, found shape {array.shape}")
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def _numbered(groups: list[NDArray[Any]]) -> tuple[list[Tensor], tuple[str, ...] | None]:
    """Return labels as 0..C - 1, without a class that has no sample, and the classes' names."""
    if not groups:
        return [], None
    classes, inverse = np.unique(np.concatenate(groups), return_inverse=True)
    parts = np.split(inverse.reshape(-1).astype(np.int64), np.cumsum([len(group) for group in groups])[:-1])
    return [torch.from_numpy(part) for part in parts], tuple(map(str, classes))


def _split(n: int, labels: Tensor | None, test_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    n_test = min(max(1, round(test_fraction * n)), n - 1)
    out, kept = order[:n_test], order[n_test:]
    if labels is not None:  # a class that fell among the held-out alone is trained on
        absent = ~torch.isin(labels[out], labels[kept])
        if bool(absent.any()) and not bool(absent.all()):
            out, kept = out[~absent], torch.cat([kept, out[absent]])
    return kept, out
