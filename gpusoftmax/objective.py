"""The objective: sums over the rows become means, and the penalty joins them.

f_p(W, b) = 1/S_p Σ_i s_ip ℓ(t_i, x_i W + b) + strength_p / 2 · ‖W‖²
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gpusoftmax.arrays import Arrays
from gpusoftmax.backends.base import FusedPass
from gpusoftmax.penalties import L2
from gpusoftmax.plan import MetricPlan
from gpusoftmax.preconditioner import KroneckerMetric, kronecker_metric

LARGE_SAMPLE = 8192  # a smaller one costs little, and all of it keeps weights and repetition on the same path


@dataclass(frozen=True)
class MetricRows:
    """The rows from which the metric is estimated, and what brings their features to comparable size.

    rows : array of int, ascending; scale : array of shape (n_features,), powers of two; rare_squares : array of shape
    (n_features,), mean squares over all rows of features that are rare over these, else zero; or None.
    """

    plan: MetricPlan
    rows: np.ndarray
    scale: np.ndarray
    rare_squares: np.ndarray | None = None


@dataclass(frozen=True)
class SoftmaxObjective:
    """Mean cross-entropy of softmax regression plus a penalty, for every problem at once.

    Parameters
    ----------
    arrays : Arrays
        Where `fused_pass` and its params live.
    fused_pass : FusedPass
    penalty : L2
    total_weight : array of shape (n_problems,), float64
        S_p, the sum of each problem's row weights.
    has_intercept : bool
        Without one, the last feature row of every gradient is zero.
    label_smoothing : float in [0, 1)
    metric_rows : MetricRows
    has_lasting_metric : bool
        Whether metrics will be wanted for other penalties too.
    """

    arrays: Arrays
    fused_pass: FusedPass
    penalty: L2
    total_weight: np.ndarray
    has_intercept: bool
    label_smoothing: float
    metric_rows: MetricRows
    has_lasting_metric: bool = False

    @property
    def precision(self) -> float:
        """Relative rounding error of the pass's arithmetic."""
        return self.fused_pass.rounding

    def value_and_grad(self, params):
        """Evaluate every problem's objective and gradient in one pass over the rows.

        Parameters
        ----------
        params : array of shape (n_features + 1, n_problems, n_classes)
            The last feature row is the intercept. Not modified.

        Returns
        -------
        value : array of shape (n_problems,), float64
            Not finite where the logits leave the range of the compute dtype.
        grad : array of the shape and dtype of `params`
        """
        loss, grad = self.fused_pass.loss_and_gradient(params, self.label_smoothing)
        grad /= self.total_weight[:, np.newaxis].astype(grad.dtype)
        if not self.has_intercept:
            grad[-1] = 0
        self.penalty.add_gradient(params[:-1], grad[:-1])
        return loss / self.total_weight + self.penalty.value(params[:-1]), grad

    def metric(self, params, *, is_rough: bool = False) -> KroneckerMetric:
        """Estimate the inverse Hessian at `params` from a sample of the rows, a rough one from half of a large one."""
        sample = self.metric_rows
        rows = sample.rows[:: 2 if is_rough and len(sample.rows) >= LARGE_SAMPLE else 1]
        sums = self.fused_pass.curvature(params, sample.scale, sample.plan, rows)
        return kronecker_metric(
            self.arrays,
            sums.gram,
            self.arrays.to_host(sums.classes),
            self.arrays.to_host(sums.weight),
            self.arrays.to_host(self.penalty.strength),
            sample.scale,
            has_intercept=self.has_intercept,
            precision=self.precision,
            n_passes=len(rows) / self.fused_pass.n_rows,
            offsets=sums.offsets,
            rare_squares=sample.rare_squares,
            is_lasting=self.has_lasting_metric,
        )

    def select(self, active) -> Self:
        """Return the objective of the problems in `active`, an array of indices."""
        return replace(
            self,
            fused_pass=self.fused_pass.select(active),
            penalty=self.penalty.select(active),
            total_weight=self.total_weight[self.arrays.to_device(active)],
        )
