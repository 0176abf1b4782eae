"""Pictures of samples and of a training curve. matplotlib is imported when the first is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..training.config import Row

GRID = 8  # images a side
MOST_POINTS = 5000
FIRST_STEPS = 200
ALIKE = 4.0  # ratio of the spans of x and y up to which both are drawn to one scale


class PicturesMissingError(ImportError):
    """Raised where matplotlib is not installed."""


def draw_samples(path: Path, panels: Mapping[str, Tensor], title: str = "") -> None:
    """Draw panels of samples [n, *event] side by side: images, points of the plane, histograms of numbers.

    Of other vectors, the first two principal components of the first panel are shown.
    """
    figure = _figure(4.2 * len(panels), 4.6)
    first = next(iter(panels.values()))
    event = tuple(first.shape[1:])
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    if len(event) == 3 and event[0] in (1, 3):
        low, high = float(first.min()), float(first.max())
        for axis, samples in zip(axes, panels.values(), strict=True):
            axis.imshow(_image_grid(samples, low, high), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
            axis.axis("off")
    else:
        points = _planar(list(panels.values()))
        limits = _limits(points[0])
        spans = [high - low for low, high in limits]
        alike = first[0].numel() == 2 and max(spans) < ALIKE * min(spans)
        for axis, values in zip(axes, points, strict=True):
            if values.shape[1] == 1:
                axis.hist(values[:, 0], bins=100, range=limits[0], density=True)
            else:
                axis.plot(values[:, 0], values[:, 1], ".", markersize=1.5, alpha=0.6)
                axis.set(xlim=limits[0], ylim=limits[1])
                axis.set_aspect("equal" if alike else "auto")
    for axis, name in zip(axes, panels, strict=True):
        axis.set_title(name)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=120)


def draw_paths(path: Path, states: Tensor) -> None:
    """Draw states [k + 1, m, *event] on the way from the reference, first, to samples, last.

    Images in a row for each sample; points of the plane, or their first two principal components at the end, joined
    from one end to the other; numbers against the state.
    """
    event = tuple(states.shape[2:])
    if len(event) == 3 and event[0] in (1, 3):
        shown = states[:, :GRID].transpose(0, 1)
        figure = _figure(0.9 * len(states), 0.9 * len(shown))
        axis = figure.subplots()
        low, high = float(shown[:, -1].min()), float(shown[:, -1].max())
        sheet = _image_sheet(shown.flatten(0, 1), len(shown), len(states), low, high)
        axis.imshow(sheet, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axis.axis("off")
    else:
        figure = _figure(4.6, 4.6)
        axis = figure.subplots()
        points = np.stack(_planar(list(states.flip(0)))[::-1])
        if points.shape[2] == 1:
            points = np.stack(np.broadcast_arrays(np.arange(len(points))[:, None], points[..., 0]), axis=-1)
        axis.plot(points[..., 0], points[..., 1], color="0.6", linewidth=0.5, alpha=0.5)
        for k, name in ((0, "from the reference"), (-1, "samples")):
            axis.plot(points[k, :, 0], points[k, :, 1], ".", markersize=3, label=name)
        axis.set_title("paths of the probability flow")
        axis.legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=120)


def draw_curve(path: Path, history: Sequence[Row]) -> None:
    """Draw the training loss against the step, as recorded and smoothed, and that on held-out data.

    A run of more than twice as many steps has its first 200 beside the whole: what is steep there is cut off there.
    """
    begun = [row for row in history if row.step <= FIRST_STEPS]
    apart = len(begun) > 1 and history[-1].step > 2 * FIRST_STEPS
    figure = _figure(9.8 if apart else 7.0, 4.2)
    axis, *first = figure.subplots(1, 2 if apart else 1, squeeze=False, width_ratios=(2.5, 1) if apart else None)[0]
    steps, losses = np.array([row.step for row in history]), np.array([row.loss for row in history])
    width = max(1, len(losses) // 20)
    axis.plot(steps, losses, alpha=0.35, label="mean of 20 steps")
    if width > 1:
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axis.plot(steps[width - 1 :], smooth, label=f"mean of the last {width} points")
    validated = [(row.step, row.validation) for row in history if row.validation is not None]
    if validated:
        axis.plot(*zip(*validated, strict=True), color="black", marker=".", label="held-out data")
    axis.set(xlabel="step", ylabel="loss")
    axis.set_ylim(_quantile_limits(np.concatenate([losses, [loss for _, loss in validated]])))
    axis.legend()
    for start in first:
        start.plot([row.step for row in begun], [row.loss for row in begun], marker=".")
        start.set(xlabel="step", title=f"the first {FIRST_STEPS} steps")
    figure.savefig(path, dpi=120)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise PicturesMissingError("pictures need matplotlib: pip install 'fastndsm[images]'") from error
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.04))


def _image_grid(samples: Tensor, low: float, high: float) -> np.ndarray[Any, Any]:
    """Return the first images, [n, C, H, W], as one array in [0, 1] with a line between them."""
    return _image_sheet(samples[: GRID * GRID], GRID, GRID, low, high)


def _image_sheet(images: Tensor, rows: int, columns: int, low: float, high: float) -> np.ndarray[Any, Any]:
    """Return images [n, C, H, W], row by row, as one array in [0, 1] with a line between them."""
    channels, height, width = images.shape[1:]
    sheet = torch.ones(channels, rows * (height + 1) - 1, columns * (width + 1) - 1, device="cpu")
    scaled = ((images.detach().cpu().float() - low) / max(high - low, 1e-12)).clamp(0.0, 1.0)
    for i, image in enumerate(scaled):
        y, x = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[:, y : y + height, x : x + width] = image
    return np.asarray(sheet[0] if channels == 1 else sheet.permute(1, 2, 0))


def _planar(panels: list[Tensor]) -> list[np.ndarray[Any, Any]]:
    """Return each panel as points of one or two coordinates."""
    flat = [panel[:MOST_POINTS].detach().cpu().flatten(1).double() for panel in panels]
    if flat[0].shape[1] > 2:
        mean = flat[0].mean(0)
        directions = torch.linalg.svd(flat[0] - mean, full_matrices=False).Vh[:2]
        flat = [(points - mean) @ directions.T for points in flat]
    return [np.asarray(points) for points in flat]


def _limits(points: np.ndarray[Any, Any]) -> list[tuple[float, float]]:
    low, high = points.min(0), points.max(0)
    margin = 0.15 * np.maximum(high - low, 1e-6)
    return [(float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True)]


def _quantile_limits(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.0, 0.98])
    margin = 0.05 * max(float(high - low), 1e-6)
    return float(low) - margin, float(high) + margin
