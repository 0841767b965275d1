"""The objective of problems that share no rows: `objective.SoftmaxObjective`, but with an X for each problem.

f_p(W, b) = 1/S_p Σ_i s_pi ℓ(t_pi, x_pi W + b) + strength_p / 2 · ‖W‖²
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gpusoftmax.arrays import Arrays
from gpusoftmax.independent_metric import DiagonalMetric, IndependentMetric, diagonal_metric, independent_metric
from gpusoftmax.kernels.independent import IndependentRows, curvature, diagonal_curvature, loss_and_gradient


@dataclass(frozen=True)
class IndependentObjective:
    """Mean cross-entropy of softmax regression plus a penalty, for every problem at once.

    Parameters
    ----------
    arrays : Arrays
        Where the rest lives, and params.
    rows : IndependentRows
    total_weight, strength : arrays of shape (n_problems,), float64
        S_p, and the penalty's multiplier.
    scale : array of shape (n_problems, n_features + 1, 1), float64
        Powers of two that bring features to comparable size; the last feature's is one, or zero without an intercept.
    n_factored : int
        Problems whose factors of a metric are made together; zero for diagonal metrics only.
    """

    arrays: Arrays
    rows: IndependentRows
    total_weight: np.ndarray
    strength: np.ndarray
    scale: np.ndarray
    n_factored: int

    @property
    def precision(self) -> float:
        """Relative rounding error of the pass's arithmetic."""
        return float(np.finfo(self.rows.X.dtype).eps)

    def value_and_grad(self, params):
        """Evaluate every problem's objective and gradient; see `objective.SoftmaxObjective.value_and_grad`."""
        W = params.transpose(1, 0, 2)
        loss, grad = loss_and_gradient(self.rows, W)
        grad /= self.total_weight[:, np.newaxis, np.newaxis].astype(grad.dtype)
        grad[:, :-1] += self.strength[:, np.newaxis, np.newaxis].astype(grad.dtype) * W[:, :-1]
        norm = (W[:, :-1] ** 2).sum(axis=(1, 2), dtype=np.float64)
        penalty = self.arrays.xp.where(self.strength > 0, 0.5 * self.strength * norm, 0.0)
        return loss / self.total_weight + penalty, grad.transpose(1, 0, 2)

    def metric(self, params, *, is_rough: bool = False) -> DiagonalMetric | IndependentMetric:
        """Estimate every problem's inverse Hessian at `params`, a rough one by the Hessian's diagonal alone."""
        W, scale = params.transpose(1, 0, 2), self.scale.astype(self.rows.X.dtype)
        scales = self.total_weight, self.strength, self.scale
        if is_rough or self.n_factored == 0:
            squares, column = diagonal_curvature(self.rows, W, scale)
            return diagonal_metric(self.arrays, squares, column, W.shape[2], *scales, precision=self.precision)
        parts = []
        for start in range(0, len(W), self.n_factored):
            some = slice(start, start + self.n_factored)
            gram, classes = curvature(self.rows.select(some), W[some], scale[some])
            own = (array[some] for array in scales)
            parts.append(independent_metric(self.arrays, gram, classes, *own, precision=self.precision))
        return IndependentMetric.joined(parts)

    def select(self, active) -> Self:
        """Return the objective of the problems in `active`, an array of indices."""
        active = self.arrays.to_device(active)
        return replace(
            self,
            rows=self.rows.select(active),
            total_weight=self.total_weight[active],
            strength=self.strength[active],
            scale=self.scale[active],
        )
