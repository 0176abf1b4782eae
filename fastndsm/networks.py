"""Score networks: an MLP for vectors and a small U-Net for images.

Both map (x, t) to an array like x, see the time through one embedding that modulates every hidden layer
(FiLM, Perez et al. 2018), and start at exactly zero, so that a residual score starts at the score of its
reference. `net.config` is a JSON-able dict of constructor arguments; `build(net.architecture, **net.config)`
makes an untrained network like it.

With `classes` or `condition_dim` they are called (x, t, condition), and an embedding of the condition is added to that
of the time. (x, t) is then under the null condition, that of samples without one, which `null_condition` gives too. A
network of your own takes part in condition dropout and in guidance if it has that method:

    null_condition(condition) -> like condition, for any rows: what stands for no condition (a dict for a dict)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _checks
from ._film_mlp import film_mlp, serves
from ._state import ExtraState, KeepsDtype, default_device

__all__ = ["MLP", "TimeEmbedding", "UNet", "build"]

_SMALLEST_TIME = 1e-5  # of t / horizon; keeps log(t / horizon) finite at t = 0
_SMALLEST_SIDE = 4  # pixels: a level of the U-Net never halves an image below this


class TimeEmbedding(ExtraState, KeepsDtype):
    """Sinusoids of u = t / horizon and of log u: t [B] -> [B, dim].

    The sinusoids of u, at 1/4 to 16 periods over the horizon, resolve late times; those of log u, with
    wavelengths from 24 down to 1, resolve early ones: every grid, uniform or quadratic, is seen at its own
    scale.
    """

    u_frequencies: Tensor
    log_frequencies: Tensor

    def __init__(self, dim: int, horizon: float = 1.0) -> None:
        super().__init__()
        _multiple_of_4("dim", dim)
        number = horizon.item() if isinstance(horizon, Tensor) and horizon.numel() == 1 else horizon
        self.horizon = _checks.positive("horizon", number)
        n, pi = dim // 4, math.pi
        self.register_buffer("u_frequencies", _geometric(pi / 2, 32 * pi, n), persistent=False)
        self.register_buffer("log_frequencies", _geometric(pi / 12, 2 * pi, n), persistent=False)

    def get_extra_state(self) -> Tensor:
        """Return the horizon, which defines the values as weights do."""
        return torch.tensor(self.horizon, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        self.horizon = float(state)

    def forward(self, t: Tensor) -> Tensor:
        # low-precision times would merge neighbouring steps of a fine grid
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        u = (t / self.horizon)[:, None]
        angles = torch.cat(
            [
                u * self.u_frequencies.to(u.dtype),
                u.clamp_min(_SMALLEST_TIME).log() * self.log_frequencies.to(u.dtype),
            ],
            dim=1,
        )
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class ConditionEmbedding(nn.Module):
    """The array added to the embedded time for a condition; [B, dim].

    Class k has row k of a table; a vector goes through a linear map. The null condition is class number `classes`, or a
    learnt vector, each of them zero at the start: it is trained by samples whose condition was replaced by it.
    """

    def __init__(self, classes: int | None, width: int | None, dim: int) -> None:
        super().__init__()
        if classes is not None and width is not None:
            raise ValueError(f"classes, condition_dim: expected one of them, found {classes} and {width}")
        self.classes, self.width = classes, width
        if classes is not None:
            self.table = nn.Embedding(_checks.integer("classes", classes) + 1, dim)
            nn.init.zeros_(self.table.weight[-1])
        else:
            self.linear = nn.Linear(_checks.integer("condition_dim", width), dim)
            self.null = nn.Parameter(torch.zeros_like(self.linear.weight[0]))

    @property
    def null_trained(self) -> bool:
        """True once the null condition has left its start."""
        return bool((self.null if self.classes is None else self.table.weight[-1]).any())

    def null_condition(self, condition: Tensor) -> Tensor:
        """Return the null condition, of the shape of `condition`."""
        if self.classes is not None:
            return torch.full_like(condition, self.classes)
        return self.null.expand(len(condition), -1).reshape(condition.shape)

    def forward(self, condition: Tensor | None, rows: int) -> Tensor:
        if condition is None:
            if self.classes is not None:
                return self.table.weight[-1].expand(rows, -1)
            null: Tensor = self.linear(self.null.expand(rows, -1))  # the bits that rows of a condition have
            return null
        condition = self.checked(condition, rows)
        out: Tensor
        if self.classes is not None:
            out = self.table(condition.long())
        else:
            vectors = condition.reshape(rows, -1).to(self.linear.weight.dtype)
            out = self.linear(vectors + 0.0 * self.null)  # DistributedDataParallel wants every parameter used
        return out

    def checked(self, condition: Any, rows: int) -> Tensor:
        """Check that a condition can be embedded: labels in 0..classes, where they can be looked at, or vectors."""
        _checks.tensor("condition", condition)
        if condition.ndim < 1 or len(condition) != rows:
            raise ValueError(f"condition: expected {rows} rows, as x has, found shape {tuple(condition.shape)}")
        if self.classes is None:
            _checks.tensor("condition", condition, "floating point values", _checks.FLOATS)
            if condition[0].numel() != self.width:
                found = tuple(condition.shape[1:])
                raise ValueError(f"condition: expected {self.width} values a row, found rows of shape {found}")
            return condition
        _checks.tensor("condition", condition, "integer labels", (torch.int64, torch.int32, torch.int16, torch.uint8))
        _checks.shape("condition", condition, (rows,))
        if condition.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(value) for value in torch.aminmax(condition))
            if low < 0 or high > self.classes:
                raise ValueError(
                    f"condition: expected labels in 0..{self.classes - 1}, or {self.classes} for none, "
                    f"found {low}..{high}"
                )
        return condition


class _Conditional(nn.Module):
    """A network that takes a condition, if it was made for one; the conditions are its FiLM's."""

    film: FiLM

    @property
    def takes_condition(self) -> bool:
        """True if it was made with classes or condition_dim."""
        return self.film.condition is not None

    @property
    def null_trained(self) -> bool:
        """True if it was trained on samples under the null condition."""
        return self.film.condition is not None and self.film.condition.null_trained

    def null_condition(self, condition: Tensor) -> Tensor:
        """Return the null condition, of the shape of `condition`; see `ConditionEmbedding`."""
        if self.film.condition is None:
            raise ValueError("condition: expected None for a network without classes and condition_dim, found one")
        return self.film.condition.null_condition(condition)

    def _condition_config(self) -> dict[str, int | None]:
        made = self.film.condition
        classes, width = (None, None) if made is None else (made.classes, made.width)
        return {"classes": classes, "condition_dim": width}


class MLP(_Conditional):
    """A residual multilayer perceptron with the time in every hidden layer.

    With E the embedded time and (scale_l, shift_l) one linear map of E per layer,

        h_l = [h_{l-1} +] SiLU(scale_l * (W_l h_{l-1} + c_l) + shift_l),       output = W h_L + c,

    the bracket where widths agree, W and c zero at the start.

    Args:
        dim: values per output.
        hidden: widths of the hidden layers.
        in_dim: values per input if different from dim (2 * dim where score features are concatenated).
        horizon: T, the largest time, in the units of t.
        embedding_dim: size of the time embedding, a multiple of 4.
        classes: number of classes; a condition is then integer labels [B].
        condition_dim: instead, number of values of a condition, floating point [B, ...].

    Call: x [B, *event] with prod(event) = in_dim, t [B], condition -> [B, *event]. If in_dim = k dim, and k divides the
    first side of the event, as where k arrays are concatenated along it, the output is shaped like one of
    them; else it is [B, dim].
    """

    architecture: ClassVar[str] = "mlp"

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        in_dim: int | None = None,
        horizon: float = 1.0,
        embedding_dim: int = 64,
        classes: int | None = None,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.dim = _checks.integer("dim", dim)
        self.in_dim = _checks.integer("in_dim", dim if in_dim is None else in_dim)
        self.hidden = _checks.integers("hidden", hidden)
        self.film = FiLM(self.hidden, embedding_dim, horizon, classes, condition_dim)
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip((self.in_dim, *self.hidden[:-1]), self.hidden, strict=True)
        )
        self.last = _zeroed(nn.Linear(self.hidden[-1], self.dim))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able."""
        return {
            "dim": self.dim,
            "hidden": list(self.hidden),
            "in_dim": self.in_dim,
            "horizon": self.film.embedding.horizon,
            "embedding_dim": self.film.embedding_dim,
            **self._condition_config(),
        }

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        _checks.network_inputs(x, t, self.last.weight)
        if x.ndim < 2 or x[0].numel() != self.in_dim:
            raise ValueError(f"x: expected [B, *event] of {self.in_dim} values each, found {tuple(x.shape)}")
        h = x.flatten(1)
        at_once = serves(h, self.last.weight) and changed(self) is None
        out = (self._at_once if at_once else self._by_layers)(h, t, condition).to(x.dtype)
        parts, rest = divmod(self.in_dim, self.dim)
        if rest or x.shape[1] % parts:
            return out
        return out.reshape(x.shape[0], x.shape[1] // parts, *x.shape[2:])

    def _by_layers(self, h: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        for layer, (scale, shift) in zip(self.layers, self.film(t, condition), strict=True):
            step = F.silu(torch.addcmul(shift, layer(h), scale))
            h = h + step if h.shape == step.shape else step
        out: Tensor = self.last(h)
        return out

    def _at_once(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        index = None
        if condition is None and self.film.condition is None and not t.requires_grad:
            t, index = _distinct(t)
        layers = [self.film.hidden, self.film.out, *self.layers, self.last]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return film_mlp(x, self.film.embed(t, condition), index, weights, biases)


class UNet(_Conditional):
    """A small U-Net (Ronneberger et al. 2015) of residual blocks, with the time in every block.

    Each level has one block on the way down and one on the way up and halves the image, unless that would
    leave fewer than 4 pixels a side: with two levels 28 -> 14 -> 7 and 8 -> 4. Odd sizes are rounded up and
    restored.

    Args:
        channels: C, of the output.
        size: H = W, or (H, W), in pixels.
        base: channels of the first level.
        multipliers: channels of each level over base.
        in_channels: channels of the input if different from C (2 * C where score features are concatenated).
        horizon, embedding_dim, classes, condition_dim: as for `MLP`.

    Call: x [B, in_channels, H, W], t [B], condition -> [B, C, H, W]; flat x [B, in_channels * H * W] -> [B, C * H * W].
    """

    architecture: ClassVar[str] = "unet"

    def __init__(
        self,
        channels: int = 1,
        size: int | Sequence[int] = 28,
        base: int = 32,
        multipliers: Sequence[int] = (1, 2),
        *,
        in_channels: int | None = None,
        horizon: float = 1.0,
        embedding_dim: int = 128,
        classes: int | None = None,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = _checks.integer("channels", channels)
        self.in_channels = _checks.integer("in_channels", channels if in_channels is None else in_channels)
        self.size = _checks.integers("size", (size, size) if isinstance(size, int) else size)
        if len(self.size) != 2:
            raise ValueError(f"size: expected one side or (H, W), found {size!r}")
        self.base = _checks.integer("base", base)
        self.multipliers = _checks.integers("multipliers", multipliers)

        widths = [self.base * m for m in self.multipliers]
        before = [self.base, *widths[:-1]]  # channels entering each level from above
        side = min(self.size)
        self.halved: list[bool] = []
        for _ in widths:
            smaller = (side + 1) // 2
            self.halved.append(smaller >= _SMALLEST_SIDE)
            side = smaller if self.halved[-1] else side

        self.stem = nn.Conv2d(self.in_channels, self.base, 3, padding=1)
        self.down = nn.ModuleList(_Block(a, b) for a, b in zip(before, widths, strict=True))
        self.shrink = nn.ModuleList(
            nn.Conv2d(w, w, 3, stride=2, padding=1) if half else nn.Identity()
            for w, half in zip(widths, self.halved, strict=True)
        )
        self.middle = nn.ModuleList(_Block(widths[-1], widths[-1]) for _ in range(2))
        self.up = nn.ModuleList(_Block(2 * b, a) for a, b in zip(before[::-1], widths[::-1], strict=True))
        self.film = FiLM(
            [*widths, widths[-1], widths[-1], *before[::-1]], embedding_dim, horizon, classes, condition_dim
        )
        self.last_norm = _group_norm(self.base)
        self.last = _zeroed(nn.Conv2d(self.base, self.channels, 3, padding=1))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able."""
        return {
            "channels": self.channels,
            "size": list(self.size),
            "base": self.base,
            "multipliers": list(self.multipliers),
            "in_channels": self.in_channels,
            "horizon": self.film.embedding.horizon,
            "embedding_dim": self.film.embedding_dim,
            **self._condition_config(),
        }

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        _checks.network_inputs(x, t, self.last.weight)
        image = (self.in_channels, *self.size)
        if tuple(x.shape[1:]) not in (image, (math.prod(image),)):
            listed = ", ".join(map(str, image))
            raise ValueError(f"x: expected [B, {listed}] or [B, {math.prod(image)}], found {tuple(x.shape)}")
        film = iter(self.film(t, condition))
        h = self.stem(x.reshape(-1, *image))
        skips: list[Tensor] = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            h = block(h, *next(film))
            skips.append(h)
            h = shrink(h)
        for block in self.middle:
            h = block(h, *next(film))
        for block in self.up:
            skip = skips.pop()
            if h.shape[-2:] != skip.shape[-2:]:
                h = F.interpolate(h, size=skip.shape[-2:], mode="nearest")
            h = block(torch.cat([h, skip], dim=1), *next(film))
        out: Tensor = self.last(F.silu(self.last_norm(h))).to(x.dtype)
        return out.flatten(1) if x.ndim == 2 else out


_ARCHITECTURES: dict[str, type[MLP | UNet]] = {cls.architecture: cls for cls in (MLP, UNet)}


def build(name: str, **config: Any) -> MLP | UNet:
    """Build the network of that architecture ("mlp" or "unet") with these constructor arguments.

    Raises ValueError for a name that is not one of them, TypeError for an argument its constructor does not
    have.
    """
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise ValueError(f"name: expected one of {sorted(_ARCHITECTURES)}, found {name!r}")
    return _ARCHITECTURES[name](**config)


class FiLM(nn.Module):
    """t [B] and a condition -> a scale and a shift [B, width] for each width, from one product of what embeds them."""

    def __init__(
        self,
        widths: Sequence[int],
        embedding_dim: int,
        horizon: float,
        classes: int | None = None,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.embedding_dim = _multiple_of_4("embedding_dim", embedding_dim)
        self.embedding = TimeEmbedding(embedding_dim, horizon)
        self.hidden = nn.Linear(embedding_dim, embedding_dim)
        self.out = nn.Linear(embedding_dim, 2 * sum(widths))
        self.widths = list(widths)
        with torch.no_grad():  # scales start around one, shifts around zero
            self.out.bias.zero_()
            self.out.bias[: sum(widths)] = 1.0
        conditional = classes is not None or condition_dim is not None
        self.condition = ConditionEmbedding(classes, condition_dim, embedding_dim) if conditional else None

    def embed(self, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return what embeds the times and conditions, [B, embedding_dim]."""
        embedded: Tensor = self.embedding(t).to(self.hidden.weight.dtype)
        if self.condition is not None:
            return embedded + self.condition(condition, len(t))
        if condition is not None:
            raise ValueError("condition: expected None for a network without classes and condition_dim, found one")
        return embedded

    def forward(self, t: Tensor, condition: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        parts = self.out(F.silu(self.hidden(self.embed(t, condition)))).split(self.widths * 2, dim=1)
        n = len(self.widths)
        return list(zip(parts[:n], parts[n:], strict=True))


class _Block(nn.Module):
    """shortcut(x) + conv(SiLU(scale * norm(conv(SiLU(norm(x)))) + shift))."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _group_norm(a), nn.Conv2d(a, b, 3, padding=1)
        self.norm2, self.conv2 = _group_norm(b), nn.Conv2d(b, b, 3, padding=1)
        self.shortcut = nn.Identity() if a == b else nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        h = torch.addcmul(shift[:, :, None, None], h, scale[:, :, None, None])
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(h))
        return out


def changed(net: MLP) -> str | None:
    """Return which part of a network was replaced, or has hooks, which an op for all of it would not call; or None."""
    film, condition = net.film, net.film.condition
    expected: list[tuple[nn.Module, type]] = [(film, FiLM), (film.embedding, TimeEmbedding)]
    linear = [film.hidden, film.out, *net.layers, net.last]
    if condition is not None:
        expected += [(condition, ConditionEmbedding)]
        linear += [] if condition.width is None else [condition.linear]
        expected += [] if condition.classes is None else [(condition.table, nn.Embedding)]
    expected += [(layer, nn.Linear) for layer in linear]
    for part, kind in expected:
        if type(part) is not kind:
            return f"a {kind.__name__} of the network has been replaced by {type(part).__name__}"
    if any(layer.bias is None for layer in linear):
        return "a layer of the network has no bias"
    return hooked(part for part, _ in expected)


def hooked(modules: Iterable[nn.Module]) -> str | None:
    """Return whether one of these modules has hooks, or a forward of its own, which are not called with it; or None."""
    found: Any = torch.nn.modules.module._has_any_global_hook()
    for part in modules:
        found = found or part._forward_hooks or part._forward_pre_hooks
        found = found or part._backward_hooks or part._backward_pre_hooks
        if "forward" in vars(part):
            return f"a {type(part).__name__} of the network has a forward of its own"
    return "the network has hooks" if found else None


def _distinct(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different times of t [B], and the number of each row's among them."""
    if t.stride(0) == 0 and len(t):
        return t[:1], torch.zeros(len(t), dtype=torch.int64, device=t.device)
    times, index = torch.unique(t, return_inverse=True)
    return times, index


def _multiple_of_4(name: str, value: Any) -> int:
    if _checks.integer(name, value) % 4:
        raise ValueError(f"{name}: expected a multiple of 4, found {value}")
    return int(value)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def _zeroed(layer: Any) -> Any:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _geometric(low: float, high: float, n: int) -> Tensor:
    values = torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64, device="cpu")
    return values.float().to(default_device())  # the same bits wherever the parameters beside it are made
