"""The report of a run: metrics beside those of the reference's own draws and of held-out data, and pictures.

FOLDER/report.html, one file that opens anywhere, report.md, report.json, samples.png, paths.png, curve.png
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..data import Dataset
from ..selection import Selection
from ..training.config import Row
from ..training.storage import write_text
from .diagnosis import machine, versions
from .page import Block, Heading, Picture, Table, Text, as_html, as_markdown
from .pictures import PicturesMissingError, draw_curve, draw_paths, draw_samples
from .tables import markdown

__all__ = [
    "PATHS",
    "Evaluation",
    "PicturesMissingError",
    "Report",
    "draw_samples",
    "evaluate_samples",
    "selection_table",
    "write_report",
]

STRICT = "fail (status 1) if the samples are worse than draws from the reference"
ROWS = {
    "samples": "samples",
    "fewer": "as few of them",
    "reference": "draws from the reference",
    "held_out": "held-out data",
}
READING = {  # of metrics.evaluate
    "energy_distance": "of the two laws, an estimate without bias: near 0 chance makes it negative as often as not",
    "sliced_wasserstein": "the mean along random directions, in the data's unit; falls as n grows, whatever the law",
    "nearest_distance": "to the nearest training sample, the mean; far below held-out data's: copies",
    "mode_tv": "of the modes' weights from the training data's: the share of samples in another mode than due",
    "class_tv": "of the classes' weights from the training data's: the share of samples of another class than due",
    "confidence": "the classifier's in its own label, the mean; low where samples lie between the classes",
    "frechet_distance": "of the classifier's features from the training data's; falls as n grows, whatever the law",
}
CAPTIONS = {
    "samples": "Images, points or histograms; of vectors the first two principal components of the training data.",
    "paths": "From the reference to samples (images: left to right) by the probability flow: what the network adds.",
    "curve": "The training loss, and apart its first steps, which the larger scale leaves out. Targets are noisy: the "
    "loss falls no further than their variance. Compare it within a run, and runs by the metrics.",
}
PATHS = 200  # samples whose way from the reference is drawn
_PARTS, _JUDGED = 20, 5000  # of each set: parts for the spread of a distance, and how many are looked at
_PLANAR = 3  # up to this many values a sample no classifier is needed


@dataclass(frozen=True)
class Evaluation:
    """Metrics and label weights by row: "samples", "reference", "held_out"; weights have "data" besides.

    "fewer" is the first of the samples, as many as there are held-out data, where those are fewer: compare these two.
    """

    counts: dict[str, int]
    metrics: dict[str, dict[str, float]]
    weights: dict[str, list[float]]
    label_names: tuple[str, ...] | None = None
    worse: str | None = None  # in one sentence, that the samples are worse than draws from the reference

    def table(self) -> str:
        """Return the metrics as a Markdown table, one metric a line."""
        return markdown(*self.metric_lines(), aligned=True)

    def metric_lines(self) -> Table:
        """Return the metrics, one a line."""
        names = list(self.metrics["samples"])
        head = ["", *(f"{ROWS[row]} (n = {self.counts[row]:,})" for row in self.metrics)]
        return Table(head, [[name, *(_figure(self.metrics[row].get(name)) for row in self.metrics)] for name in names])

    def weights_table(self) -> str:
        """Return the label weights as a Markdown table, one label a line; empty without labels."""
        return markdown(*self.weight_lines(), aligned=True) if self.weights else ""

    def weight_lines(self) -> Table:
        """Return the label weights, one label a line."""
        titles = {"data": "training data", **ROWS}
        columns = list(self.weights.values())
        names = self.label_names or tuple(map(str, range(len(columns[0]))))
        body = [[name, *(f"{column[i]:.3f}" for column in columns)] for i, name in enumerate(names)]
        return Table(["label", *(titles[row] for row in self.weights)], body)


@dataclass(frozen=True)
class Report:
    """A written report: its folder, its figures and its pictures."""

    folder: Path
    evaluation: Evaluation
    pictures: dict[str, str]  # file name, or why there is none


def evaluate_samples(
    samples: Tensor, dataset: Dataset, reference: Tensor | None = None, *, seed: int = 0
) -> Evaluation:
    """Evaluate samples [n, *event], draws from the reference (if given) and held-out data by `metrics.evaluate`.

    One classifier, fitted on the training data with `seed`, judges all rows.
    """
    classifier = None
    if dataset.labels is not None and dataset.n_classes > 1 and dataset.centers is None and dataset.dim > _PLANAR:
        classifier = metrics.FeatureClassifier.fit(dataset.train, dataset.labels, seed=seed)
    rows = {"samples": samples}
    if len(dataset.test) < len(samples):
        rows["fewer"] = samples[: len(dataset.test)]
    if reference is not None:
        rows["reference"] = reference
    rows["held_out"] = dataset.test
    found = {name: metrics.evaluate(values, dataset, classifier=classifier, seed=seed) for name, values in rows.items()}
    weights: dict[str, list[float]] = {}
    if dataset.class_weights is not None and dataset.n_classes > 1:
        weights["data"] = dataset.class_weights.tolist()
        for name, values in rows.items():
            if name == "fewer":
                continue
            counted = metrics.label_weights(values, dataset, classifier=classifier)
            assert counted is not None
            weights[name] = counted.tolist()
    counts = {name: len(values) for name, values in rows.items()}
    worse = None if reference is None else _worse(samples, reference, dataset.test, found)
    return Evaluation(counts, found, weights, dataset.label_names, worse)


def write_report(
    folder: str | Path,
    samples: Tensor,
    dataset: Dataset,
    *,
    reference: Tensor | None = None,
    history: Sequence[Row] = (),
    paths: Tensor | None = None,
    config: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    seed: int = 0,
    selection: Selection[Any] | None = None,
) -> Report:
    """Evaluate samples [n, *event] and write the report folder; without matplotlib all but the pictures.

    Args:
        reference: draws from the reference mixture, like samples.
        history: of the Trainer.
        paths: states [k + 1, m, *event] of samples on their way, as `fastndsm.sample(trajectory=k)` gives them, here
            by the probability flow.
        config: JSON-able, of the run.
        seconds: what took how long.
        seed: of the metrics.
        selection: how the reference was chosen.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = evaluate_samples(samples, dataset, reference, seed=seed)
    pictures = _draw(folder, samples, dataset, reference, history, paths)
    document = {
        "data": {
            "name": dataset.name,
            "description": dataset.description,
            "training_samples": len(dataset.train),
            "label_names": dataset.label_names,
        },
        "counts": evaluation.counts,
        "metrics": evaluation.metrics,
        "label_weights": evaluation.weights,
        "worse_than_reference": evaluation.worse,
        "config": dict(config or {}),
        "seconds": dict(seconds or {}),
        "history": [row._asdict() for row in history],
        "selection": None if selection is None else [dataclasses.asdict(row) for row in selection.table],
        "pictures": pictures,
        "versions": versions(),
        "machine": machine(),
    }
    write_text(folder / "report.json", json.dumps(_finite(document), indent=1, allow_nan=False) + "\n")
    blocks = _blocks(dataset, evaluation, pictures, document, selection)
    write_text(folder / "report.md", as_markdown(blocks))
    write_text(folder / "report.html", as_html(blocks, folder))
    return Report(folder, evaluation, pictures)


def selection_table(selection: Selection[Any]) -> str:
    """Return the candidates as a Markdown table, one a line, log-densities in nats a sample."""
    return markdown(*_candidates(selection), aligned=True)


def _candidates(selection: Selection[Any]) -> Table:
    head = ("components", "covariance", "held-out", "behind the best", "training", "variances", "noising steps", "s")
    body = [
        (
            f"{row.n_components:,}{' (chosen)' if row == selection.chosen else ''}",
            row.covariance_type,
            "-" if row.held_out is None else f"{row.held_out:.2f}",
            f"{row.behind:.2f} +- {row.error:.2f}",
            f"{row.train:.2f}",
            f"{row.smallest_variance:.3g} to {row.largest_variance:.3g}",
            f"{row.n_steps:,}",
            f"{row.seconds:.1f}",
        )
        for row in selection.table
    ]
    return Table(head, body)


def _worse(
    samples: Tensor, reference: Tensor, held_out: Tensor, found: Mapping[str, Mapping[str, float]]
) -> str | None:
    """Return a message if the energy distance is larger than the reference's and chance does not explain it.

    The difference is held against its standard error, of a jackknife that leaves out a part of each set at a time, by
    Student's t, one-sided at 1%.
    """
    from scipy.special import stdtrit

    own, theirs = (found[row]["energy_distance"] for row in ("samples", "reference"))
    sets = [values[:_JUDGED].flatten(1).double() for values in (samples, reference, held_out)]
    parts = min(_PARTS, *(len(values) // 2 for values in sets))
    if own <= theirs or parts < 2:
        return None
    x, r, y = ([(values - sets[2].mean(0))[i::parts] for i in range(parts)] for values in sets)
    far = (_mean_distances(x, y) - _mean_distances(r, y)) * 2 - _mean_distances(x, x) + _mean_distances(r, r)
    whole, without = far[-1], far[:-1]
    error = float((without - without.mean()).square().mean().mul(parts - 1).sqrt())
    if float(whole) <= error * float(stdtrit(parts - 1, 0.99)):
        return None
    return (
        f"The samples are worse than draws from the reference: an energy distance of {own:.4g} to the held-out data "
        f"against {theirs:.4g}. Train longer or with a smaller lr, or take more steps of the process."
    )


def _mean_distances(x: list[Tensor], y: list[Tensor]) -> Tensor:
    """Return the mean |a - b| over a in all parts x but one and b in all parts y but that one, each; last, over all."""
    sums = torch.stack([torch.stack([torch.cdist(a, b).sum() for b in y]) for a in x])
    counts = sums.new_tensor([[len(a) * len(b) for b in y] for a in x])
    if x is y:  # a sample has no distance to itself
        counts -= torch.diag(counts.diagonal().sqrt())
    kept = torch.cat([1 - torch.eye(len(x), dtype=sums.dtype, device=sums.device), sums.new_ones(1, len(x))])
    return torch.einsum("ki,ij,kj->k", kept, sums, kept) / torch.einsum("ki,ij,kj->k", kept, counts, kept)


def _draw(
    folder: Path,
    samples: Tensor,
    dataset: Dataset,
    reference: Tensor | None,
    history: Sequence[Row],
    paths: Tensor | None,
) -> dict[str, str]:
    panels = {"training data": dataset.train, "samples": samples}
    if reference is not None:
        panels["draws from the reference"] = reference
    pictures: dict[str, str] = {}
    try:
        draw_samples(folder / "samples.png", panels)
        pictures["samples"] = "samples.png"
        if paths is not None:
            draw_paths(folder / "paths.png", paths)
            pictures["paths"] = "paths.png"
        if history:
            draw_curve(folder / "curve.png", history)
            pictures["curve"] = "curve.png"
    except PicturesMissingError as error:
        pictures["missing"] = str(error)
    return pictures


def _blocks(
    dataset: Dataset,
    evaluation: Evaluation,
    pictures: Mapping[str, str],
    document: Mapping[str, Any],
    selection: Selection[Any] | None,
) -> list[Block]:
    """Return the parts of the report, each with what its figures mean."""
    parts: list[Block] = [Heading(dataset.name, 1)]
    parts.append(Text(f"{dataset.description}. {len(dataset.train):,} training samples."))
    if evaluation.worse:
        parts.append(Text(evaluation.worse, warning=True))
    if "missing" in pictures:
        parts.append(Text(f"No pictures: {pictures['missing']}"))
    parts += [Picture(pictures[name], CAPTIONS[name]) for name in ("samples", "paths") if name in pictures]
    parts += [Heading("Metrics"), evaluation.metric_lines()]
    known = [name for name in evaluation.metrics["samples"] if name in READING]
    parts += [Table(["", "what it is"], [[name, READING[name]] for name in known])]
    compared = "Distances of laws are to the held-out data, and of these to the training data."
    if "fewer" in evaluation.metrics:
        compared += f" The first {evaluation.counts['fewer']:,} samples are as many as the held-out data: compare these"
        compared += " two columns, as several figures depend on how many there are."
    parts.append(Text(compared))
    if evaluation.weights:
        parts += [Heading("Label weights"), evaluation.weight_lines()]
    if "curve" in pictures:
        parts += [Heading("Training"), Picture(pictures["curve"], CAPTIONS["curve"])]
    if selection is not None:
        parts += [Heading("Choice of the reference"), _candidates(selection)]
        parts += [Text(selection.warning, warning=True)] if selection.warning else []
    if document["seconds"]:
        body = [[name, f"{value:.1f}"] for name, value in document["seconds"].items()]
        parts += [Heading("Seconds"), Table(["", "s"], body)]
    if document["config"]:
        settings = [[key, str(value)] for key, value in document["config"].items() if value is not None]
        parts += [Heading("Settings"), Table(["", "value"], settings)]
    installed = {key: value for key, value in document["versions"].items() if value is not None}
    parts.append(Text(", ".join(f"{key} {value}" for key, value in installed.items())))
    parts.append(Text(f"{document['machine']['processor']}, {document['machine']['threads']} threads"))
    return parts


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _finite(node: Any) -> Any:
    """Return the tree with null for NaN, which JSON does not have."""
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
