"""The score that samples follow: under a condition, away from the unconditional one, with a pull of the user's own.

    s(x, t) = s(x, t, 0) + w [s(x, t, y) - s(x, t, 0)] + guide(x, t),     0 the network's null condition

w = 0 is unconditional, w = 1 conditional: one evaluation of the network each, else one of a batch of twice the rows.

Sources: Ho and Salimans, arXiv 2207.12598, whose weight is w - 1; Dhariwal and Nichol, arXiv 2105.05233.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._condition import Condition, mapped, rows_of
from ..objective import ScoreNet
from ..process import NoisingProcess
from ..score import (
    check_condition,
    has_null_condition,
    null_condition,
    null_trained,
    score_at,
    takes_condition,
    unwrapped,
)

NO_PRIOR = (
    "condition: expected a prior that knows it, found that of all the data, and noising that has not forgotten by T "
    "what is known of a sample: fit the reference with labels, call process.fit_prior(x0, labels), sample from x_T "
    "noised under the condition, or, where the reference is one component, take a longer T"
    f"{_checks.cure('start-under-a-condition')}"
)
Guide = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Guidance:
    """The condition of n samples, the weight w of it, and the user's pull; `score` gives what a batch follows."""

    condition: Condition | None = None
    weight: float = 1.0
    guide: Guide | None = None

    @classmethod
    def of(cls, score_net: ScoreNet, condition: Any, weight: Any, guide: Any, n: int, device: torch.device) -> Guidance:
        """Check what `sample` was given; warn where the null condition is called for but was not trained."""
        if guide is not None:
            _checks.function("guide", guide, "a callable (x, t) -> like x")
        if weight is not None:
            weight = _checks.number("guidance", weight)
            if condition is None:
                raise ValueError("condition: expected one with guidance, found None")
        check_condition(score_net, condition, n, device)
        if weight == 0.0:
            check_condition(score_net, None, n, device)
            condition = None
        doubled = condition is not None and weight not in (None, 1.0)
        net = unwrapped(score_net)
        if doubled and not has_null_condition(net):
            raise ValueError(
                "guidance: expected 0 or 1 for a network without null_condition(condition), "
                f"found {weight:g} for {type(net).__name__}"
            )
        if (doubled or (condition is None and takes_condition(net))) and not null_trained(net):
            warnings.warn(
                "score_net: expected a network whose null condition is trained, by condition_dropout, for samples "
                "without a condition or guided away from those; found one where it is not",
                stacklevel=4,
            )
        return cls(condition, weight if doubled else 1.0, guide)

    @property
    def of_all(self) -> Condition | None:
        """The condition [1, ...] of every sample, if they have the same, a tensor; else None."""
        if not isinstance(self.condition, Tensor) or not bool((self.condition == self.condition[:1]).all()):
            return None
        return self.condition[:1]

    @property
    def alike(self) -> bool:
        """True if samples follow the network alone, all under one condition or under none."""
        return self.weight == 1.0 and self.guide is None and (self.condition is None or self.of_all is not None)

    def score(self, score_net: ScoreNet, rows: slice) -> ScoreNet:
        """Return the score (x, t) -> like x of the batch of these rows of the samples."""
        if self.condition is None and self.guide is None:
            return score_net
        condition = rows_of(self.condition, rows)

        def score(x: Tensor, t: Tensor) -> Tensor:
            found = self._of_network(score_net, x, t, condition)
            return found if self.guide is None else found + _pull(self.guide, x, t).to(found.dtype)

        return score

    def _of_network(self, score_net: ScoreNet, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        if self.weight == 1.0:
            return score_at(score_net, x, t, condition)
        both = mapped(lambda *parts: torch.cat(parts), null_condition(score_net, condition), condition)
        without, under = score_at(score_net, torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return without + self.weight * (under - without)


def _pull(guide: Guide, x: Tensor, t: Tensor) -> Tensor:
    """Return guide(x, t), which may differentiate with respect to x."""
    with torch.inference_mode(False), torch.enable_grad():
        x, t = x.detach().clone(), t.clone()
        return _checks.like("guide", guide(x, t), "x", x).detach()


def check_prior(process: NoisingProcess, condition: Condition | None) -> None:
    """Warn if samples under the condition start from, or end in, a law that is not theirs."""
    if condition is not None and not process.prior_knows(condition):
        warnings.warn(NO_PRIOR, stacklevel=4)
