"""The NDSM objective and the classical baseline, as drop-in losses.

Per sample, with x = x_{n+1}, t = t_{n+1} and weight lambda_n:

    plain            lambda [1/2 |s(x, t)|^2 + z . s(x, t) / s_n]
    control_variate  lambda [1/2 |s(x, t)|^2 + z . (s(x, t) - h(mean_n, t)) / s_n]
    path             lambda 1/2 |s(x, t) - target|^2, one evaluation of the network; the default

All have the same expected gradient in s. The variance of plain's gradient grows as 1/dt; that of the others does not.
Under a condition y, s(x, t) is s(x, t, y) throughout, and so is h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import _checks, functional
from ._condition import Condition, interleaved, repeated
from ._linear import LinearNoising
from .flow import FlowProcess
from .process import Noised, NoisingProcess, Transition
from .score import check_condition, check_process, score_at

ScoreNet = Callable[..., Tensor]  # (x, t) or (x, t, condition) -> like x
Weighting = str | None | Callable[[Tensor], Tensor]
ESTIMATORS = ("path", "control_variate", "plain")


def _first_path(first_path: int | None, x0: Any) -> int:
    """Return the first path, by default that of a data-parallel rank whose rows are its part of one large batch."""
    if first_path is not None:
        return first_path
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() * len(x0)
    return 0


class _Loss(nn.Module):
    """Weighting, reduction and the call, shared by the losses."""

    def __init__(self, process: NoisingProcess, weighting: Weighting, reduction: str) -> None:
        super().__init__()
        if not isinstance(process, NoisingProcess):
            raise TypeError(f"process: expected a noising process, found {type(process).__name__}")
        expected = "'variance', None or a callable(t) -> [B]"
        if callable(weighting):
            _checks.function("weighting", weighting, expected)
        elif weighting is not None and not (isinstance(weighting, str) and weighting == "variance"):
            raise ValueError(f"weighting: expected {expected}, found {_checks.shown(weighting)}")
        self.process = process
        self.weighting = weighting
        self.reduction = _checks.choice("reduction", reduction, functional.REDUCTIONS)

    def weight(self, t: Tensor, step: Tensor) -> Tensor | None:
        """Return lambda [B] at the given times and steps."""
        if self.weighting is None:
            return None
        if not callable(self.weighting):
            return self.process.noise_variance[step].to(t.dtype)
        weight = self.weighting(t)
        if not isinstance(weight, Tensor) or weight.shape != t.shape:
            found = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(f"weighting: expected it to return shape {tuple(t.shape)}, found {found}")
        return _checks.loss_weights("weighting", weight)

    def draw(
        self,
        x0: Tensor,
        seed: Any = None,
        step: Any = None,
        first_path: int | None = None,
        *,
        condition: Condition | None = None,
    ) -> Any:
        """Draw what `evaluate` needs of x0 [B, ...]: noised samples. No network is called."""
        raise NotImplementedError

    def evaluate(self, score_net: ScoreNet, drawn: Any, condition: Condition | None = None) -> Tensor:
        """Return the loss of a network on drawn samples; the condition has the rows of the x0 that they are of."""
        raise NotImplementedError

    def forward(
        self,
        score_net: ScoreNet,
        x0: Tensor,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        first_path: int | None = None,
        *,
        condition: Condition | None = None,
    ) -> Tensor:
        """Noise x0 [B, ...] afresh and return the loss: a scalar, or [B] for reduction "none".

        Args:
            score_net: callable (x [B, ...], t [B]) -> like x, or with a condition (x, t, condition) -> like x.
            seed: of the noise and of the drawn steps; None draws one from PyTorch's default generator.
            step: n in 0..N-1, int or [B], of "path" also [B, R]: R records of each path, as `process.noised` gives
                them; drawn uniformly if None.
            first_path: number of the first path; default 0, in a torch.distributed run rank * B, so that under one seed
                W ranks of B rows draw the noise that one process draws of W B rows. Ranks of unequal B give it.
            condition: of x0, a tensor [B, ...] or a dict of them, on its device.
        """
        _checks.network("score_net", score_net)
        check_process(score_net, self.process)
        if condition is not None:
            rows = len(_checks.batch("x0", x0, self.process.dim))
            self.check_condition(score_net, condition, rows, self.process.times.device)
        return self.evaluate(score_net, self.draw(x0, seed, step, first_path, condition=condition), condition)

    def check_condition(
        self, score_net: ScoreNet, condition: Condition | None, rows: int, device: torch.device | None
    ) -> None:
        """Refuse a condition that is not one of `rows` samples on that device, or that a network does not take."""
        check_condition(score_net, condition, rows, device)


class NDSMLoss(_Loss):
    """The NDSM objective, with the estimator that tames its variance.

    Args:
        process: a noising process.
        estimator: "path" (one network evaluation a sample), "control_variate" (two) or "plain".
        antithetic: two samples from each x0 with mirrored noise; not with "control_variate".
        control_variate: a separate network h(x, t), which takes a condition where the score network does, instead of
            the score network itself; the score's parameters then receive the gradient of the mean loss and h's that of
            its second moment.
        weighting: "variance" (v_{n+1}), None (1) or a callable(t [B]) -> [B].
        reduction: "mean", "sum" or "none" ([B], an antithetic pair averaged).

    Source: Birrell et al., arXiv 2405.15625 (plain, control_variate). path: this library's weights, exact for the
    Euler-Maruyama chain; targets of its kind are in Pidstrigach et al., arXiv 2504.03461 (ICML 2025), Domingo-Enrich et
    al., arXiv 2312.02027 (NeurIPS 2024), Mirafzali et al., arXiv 2503.16917 and 2507.05550, and Heng et al., arXiv
    2111.07243 (our plain). antithetic: this library's own.
    """

    def __init__(
        self,
        process: NoisingProcess,
        estimator: str = "path",
        antithetic: bool = False,
        control_variate: ScoreNet | None = None,
        weighting: Weighting = "variance",
        reduction: str = "mean",
    ) -> None:
        super().__init__(process, weighting, reduction)
        self.estimator = _checks.choice("estimator", estimator, ESTIMATORS)
        self.antithetic = _checks.flag("antithetic", antithetic)
        if self.antithetic and estimator == "control_variate":
            raise ValueError("antithetic: expected False with estimator 'control_variate', found True")
        if control_variate is not None and estimator != "control_variate":
            raise ValueError(f"control_variate: expected None with estimator {estimator!r}, found a network")
        if control_variate is not None:
            _checks.network("control_variate", control_variate)
        self.control_variate = control_variate

    def draw(
        self,
        x0: Tensor,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        first_path: int | None = None,
        records: int | None = None,
        *,
        condition: Condition | None = None,
    ) -> Noised | Transition:
        """Draw noised samples of x0 [B, ...]: `Noised` for "path", else `Transition`; 2B rows if antithetic.

        step, records, condition: as for `process.noised`; [B, R, ...] of several records a path is for "path" alone.
        """
        start = _first_path(first_path, x0)
        if self.estimator == "path":
            return self.process.noised(x0, step, seed, start, self.antithetic, records, condition=condition)
        if records is not None:
            raise ValueError(f"records: expected None with estimator {self.estimator!r}, found {records}")
        return self.process.transition(x0, step, seed, start, self.antithetic, condition=condition)

    def check_condition(
        self, score_net: ScoreNet, condition: Condition | None, rows: int, device: torch.device | None
    ) -> None:
        super().check_condition(score_net, condition, rows, device)
        if self.control_variate is not None:
            check_condition(self.control_variate, condition, rows, device, "control_variate")

    def evaluate(self, score_net: ScoreNet, drawn: Noised | Transition, condition: Condition | None = None) -> Tensor:
        if self.antithetic:
            condition = repeated(condition, 2)
        if isinstance(drawn, Noised):
            return self._path(score_net, drawn, condition)
        rows = len(drawn.x) // 2 if self.antithetic else len(drawn.x)
        weight = self.weight(drawn.t[:rows], drawn.step[:rows])
        if self.estimator == "plain":
            scores = score_at(score_net, drawn.x, drawn.t, condition)
            return self._loss(scores, drawn, rows, weight, self.reduction)
        if self.control_variate is None or self.control_variate is score_net:
            x, t = torch.cat([drawn.x, drawn.mean]), torch.cat([drawn.t, drawn.t])
            scores = score_at(score_net, x, t, repeated(condition, 2))
            return self._loss(scores, drawn, rows, weight, self.reduction)
        s = score_at(score_net, drawn.x, drawn.t, condition)
        h = score_at(self.control_variate, drawn.mean, drawn.t, condition)
        losses = self._loss(torch.cat([s, h.detach()]), drawn, rows, weight, "none")
        # Value zero: gives h the gradient of the second moment and the score none of it.
        square = self._loss(torch.cat([s.detach(), h]), drawn, rows, weight, "none").square()
        return functional.reduce(losses + (square - square.detach()), None, self.reduction)

    def _loss(self, scores: Tensor, drawn: Transition, rows: int, weight: Tensor | None, reduction: str) -> Tensor:
        return functional.ndsm_loss(
            scores,
            drawn.noise[:rows],
            drawn.std[:rows],
            estimator=self.estimator,
            antithetic=self.antithetic,
            weight=weight,
            reduction=reduction,
        )

    def _path(self, score_net: ScoreNet, drawn: Noised, condition: Condition | None) -> Tensor:
        shape = drawn.step.shape  # [B], or [B, R], whose records the network sees as so many rows
        t, step = drawn.t.flatten(), drawn.step.flatten()
        x, target = (part.reshape(*t.shape, *part.shape[len(shape) :]) for part in (drawn.x, drawn.target))
        score = score_at(score_net, x, t, interleaved(condition, math.prod(shape[1:])))
        losses = functional.dsm_loss(score, target, self.weight(t, step), reduction="none").reshape(shape)
        if self.antithetic:
            losses = losses.reshape(2, -1, *shape[1:]).mean(0)
        return functional.reduce(losses, None, self.reduction)


class DSMLoss(_Loss):
    """Classical denoising score matching under linear noising, by exact transitions: the linear baseline.

    Args:
        process: an OUProcess or an EDMProcess, with a reference or without.
        weighting: "variance" (of the exact transition; of an EDMProcess EDM's weight, sigma^4 / c_out^2), None (1) or a
            callable(t [B]) -> [B].
        reduction: "mean", "sum" or "none" ([B]).

    Source: Vincent 2011; Song et al. 2021; Karras et al., arXiv 2206.00364.
    """

    kind: ClassVar[type] = LinearNoising
    expected: ClassVar[str] = "an OUProcess or an EDMProcess"

    def __init__(self, process: Any, weighting: Weighting = "variance", reduction: str = "mean") -> None:
        _checks.instance("process", process, self.kind, self.expected)
        super().__init__(process, weighting, reduction)
        self.exact_process = process

    def draw(
        self,
        x0: Tensor,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        first_path: int | None = None,
        *,
        condition: Condition | None = None,
    ) -> Noised:
        """Draw exactly noised samples of x0 [B, ...], alike under every condition."""
        return self.exact_process.exact_noised(x0, step, seed, _first_path(first_path, x0))  # type: ignore[no-any-return]

    def evaluate(self, score_net: ScoreNet, drawn: Noised, condition: Condition | None = None) -> Tensor:
        score = score_at(score_net, drawn.x, drawn.t, condition)
        own = self.weighting == "variance"
        weight = self.exact_process.loss_weight(drawn) if own else self.weight(drawn.t, drawn.step)
        return functional.dsm_loss(score, drawn.target, weight, self.reduction)


class FlowMatchingLoss(DSMLoss):
    """Conditional flow matching, 1/2 |v(x_t, t) - (x_0 - y)|^2 with v the network, called as a score network is.

    Args:
        process: a FlowProcess, which draws y.
        weighting: "variance" or None (1), or a callable(t [B]) -> [B].
        reduction: "mean", "sum" or "none" ([B]).

    Source: Lipman et al., arXiv 2210.02747; Tong et al., arXiv 2302.00482.
    """

    kind = FlowProcess
    expected = "a FlowProcess"


def loss_for(process: NoisingProcess, **options: Any) -> NDSMLoss | DSMLoss:
    """Return the loss that trains a network on a process: so that a process is all that noisings differ in.

    With `options` it is DSMLoss under linear noising (OUProcess, EDMProcess), FlowMatchingLoss of a flow, and NDSMLoss
    of any other process.
    """
    _checks.instance("process", process, NoisingProcess, "a noising process")
    for kind in (DSMLoss, FlowMatchingLoss):
        if isinstance(process, kind.kind):
            return kind(process, **options)
    return NDSMLoss(process, **options)
