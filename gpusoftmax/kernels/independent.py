"""The pass of problems that share no rows: each has its own X, and every product is a batched one.

Whatever namespace `xp` the arrays belong to computes it. X is feature-major, so that BLAS reads both products' factors
along their rows, and logits are class-major over the rows of all problems at once, so that the softmax is a few long
vector operations.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from gpusoftmax.kernels.curvature import softmax


@dataclass(frozen=True)
class IndependentRows:
    """The rows of every problem, as many for each: what a problem lacks has weight zero.

    Parameters
    ----------
    xp : namespace of all arrays
    X : array of shape (n_problems, n_features + 1, n_rows)
        The last feature is one, or zero without an intercept.
    targets : array of shape (n_problems, n_rows), class indices, or (n_classes, n_problems, n_rows), soft targets
    weights : array of shape (n_problems, n_rows), or None for ones
    absence : array of shape (n_classes, n_problems, 1), or None
        Added to the logits: hugely negative where a problem lacks a class, else zero.
    """

    xp: Any
    X: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    absence: np.ndarray | None

    def select(self, active) -> Self:
        """Return the rows of the problems in `active`."""
        return replace(
            self,
            X=self.X[active],
            targets=self.targets[active] if self.targets.ndim == 2 else self.targets[:, active],
            weights=None if self.weights is None else self.weights[active],
            absence=None if self.absence is None else self.absence[:, active],
        )


def logits(rows: IndependentRows, params):
    """Return the logits (n_classes, n_problems, n_rows) for params (n_problems, n_features + 1, n_classes)."""
    n_problems, _, n_rows = rows.X.shape
    z = rows.xp.empty((params.shape[2], n_problems, n_rows), rows.X.dtype)
    rows.xp.matmul(params.transpose(0, 2, 1), rows.X, out=z.transpose(1, 0, 2))
    if rows.absence is not None:
        z += rows.absence
    return z


def loss_and_gradient(rows: IndependentRows, params):
    """Return summed losses (n_problems,) in float64 and the gradient's sums, of the shape of `params`.

    See `kernels.reference.loss_and_gradient`; `params` is problem-major here, (n_problems, n_features + 1, n_classes).
    """
    xp, z = rows.xp, logits(rows, params)
    n_classes, n_problems, n_rows = z.shape
    wide = z.reshape(n_classes, -1)
    wide -= wide.max(axis=0)
    weights = None if rows.weights is None else rows.weights.reshape(-1)
    if rows.targets.ndim == 2:
        loss = _label_targets(xp, wide, rows.targets.reshape(-1), weights)
    else:
        loss = _soft_targets(xp, wide, rows.targets.reshape(n_classes, -1), weights)
    gradient = rows.X @ z.transpose(1, 2, 0)
    return loss.reshape(n_problems, n_rows).sum(axis=1, dtype=np.float64), gradient


def _label_targets(xp, z, labels, weights):
    """Turn shifted logits (n_classes, rows) into the residual of class indices; return each row's weighted loss.

    As `kernels.cpu` does it: neither the loss nor the residual cancels, however sure the model is.
    """
    places, flat = labels * z.shape[1] + xp.arange(z.shape[1]), z.reshape(-1)
    loss = flat[places]
    target = xp.exp(loss)
    flat[places] = -np.inf
    xp.exp(z, out=z)
    others = z.sum(axis=0)
    scale = 1 / (others + target)
    target -= 1
    target += others
    xp.subtract(xp.log1p(target, out=target), loss, out=loss)
    if weights is not None:
        loss *= weights
        scale *= weights
    z *= scale
    others *= scale
    flat[places] = -others
    return loss


def _soft_targets(xp, z, targets, weights):
    """Turn shifted logits (n_classes, rows) into the residual of soft targets; return each row's weighted loss."""
    expected = (z * targets).sum(axis=0)
    xp.exp(z, out=z)
    total = z.sum(axis=0)
    z *= 1 / total
    z -= targets
    loss = xp.log(total) - expected
    if weights is not None:
        z *= weights
        loss *= weights
    return loss


def probabilities(rows: IndependentRows, params):
    """Return the probabilities (n_classes, n_problems, n_rows)."""
    z = logits(rows, params)
    softmax(rows.xp, z.reshape(1, len(z), -1))
    return z


def trace(rows: IndependentRows, y):
    """Return each row's weight times the trace of its softmax's Jacobian, ``s_i (1 - ‖y_i‖²)``."""
    result = (y * (1 - y)).sum(axis=0)  # no cancellation where y is close to zero and one
    return result if rows.weights is None else result * rows.weights


def diagonal_curvature(rows: IndependentRows, params, scale):
    """Return the diagonals and the last columns of what `curvature` calls grams, (n_problems, n_features + 1) each."""
    shares, scaled = trace(rows, probabilities(rows, params))[:, :, np.newaxis], rows.X * scale
    column = (scaled @ shares)[:, :, 0]
    scaled *= scaled
    return (scaled @ shares)[:, :, 0], column


def curvature(rows: IndependentRows, params, scale):
    """Return each problem's gram and class curvature, for features times `scale` (n_problems, n_features + 1, 1).

    See `kernels.reference.curvature`: what is summed over problems there is apart here, (n_problems, n_features + 1,
    n_features + 1) and (n_problems, n_classes, n_classes).
    """
    xp, y = rows.xp, probabilities(rows, params)
    weighted = y if rows.weights is None else y * rows.weights
    total = weighted.sum(axis=2)
    classes = -(weighted.transpose(1, 0, 2) @ y.transpose(1, 2, 0))
    classes.reshape(len(classes), -1)[:, :: len(y) + 1] += total.T
    scaled = rows.X * scale
    scaled *= xp.sqrt(trace(rows, y))[:, np.newaxis]
    return scaled @ scaled.transpose(0, 2, 1), classes
