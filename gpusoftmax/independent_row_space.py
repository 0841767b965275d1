"""The spans of the rows of problems that share none: `row_space.RowSpace`, but with one for each problem."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from gpusoftmax.arrays import Arrays
from gpusoftmax.independent import IndependentObjective
from gpusoftmax.row_space import LEAST_SQUARE
from gpusoftmax.solvers.base import Callback, Solution, Status
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.training import feature_scale

BLOCK_NUMBERS = 1 << 19  # of X in float64 that are read at once


@dataclass(frozen=True)
class IndependentRowSpaces:
    """Params (n_rows + 1, n_problems, n_classes) of coordinates, and those of X with the same logits.

    Parameters
    ----------
    arrays : Arrays
    X : array of shape (n_problems, n_features + 1, n_rows)
        Feature-major, as in `kernels.independent`.
    combination : array of shape (n_problems, n_rows, n_rows), float64
        Each problem's X without its last feature, times this, has orthonormal columns, or zeros.
    """

    arrays: Arrays
    X: Any
    combination: Any

    @classmethod
    def of(cls, X, arrays: Arrays) -> tuple[Self, Any] | None:
        """Return the spaces and the coordinates (n_problems, n_rows + 1, n_rows), whose last feature is that of X.

        None where the squares of some problem's X leave the range of float64.
        """
        gram: Any = 0.0
        for block, _ in _features(X):
            gram += block.transpose(0, 2, 1) @ block
        gram = arrays.to_host(gram)
        largest = gram.max(axis=(1, 2))
        if not (np.isfinite(gram).all() and (largest > LEAST_SQUARE).all()):
            return None
        squares, basis = np.linalg.eigh(gram)
        least = len(gram[0]) * np.finfo(np.float64).eps * squares[:, -1:]
        singular = np.sqrt(np.where(squares > least, squares, 0))[:, np.newaxis]
        coordinates = arrays.xp.empty((len(X), len(gram[0]) + 1, len(gram[0])), X.dtype)
        coordinates[:, :-1] = arrays.to_device((basis * singular).transpose(0, 2, 1))
        coordinates[:, -1] = X[:, -1]
        combination = np.divide(basis, singular, out=np.zeros_like(basis), where=singular > 0)
        return cls(arrays, X, arrays.to_device(combination)), coordinates

    def lift(self, params):
        """Return params of X with the same logits, and of the least squares."""
        wide = self.combination @ params[:-1].transpose(1, 0, 2).astype(np.float64)
        out = self.arrays.xp.empty((self.X.shape[1], *params.shape[1:]), params.dtype)
        for block, features in _features(self.X):
            out[features] = (block @ wide).transpose(1, 0, 2)
        out[-1] = params[-1]
        return out


def feature_ranges(X, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest values (n_problems, n_features) of features but for the last, float64."""
    low, high = (arrays.to_host(bound).astype(np.float64) for bound in (X[:, :-1].min(axis=2), X[:, :-1].max(axis=2)))
    return low, high


def minimize_in_spans(
    solver: LBFGS, objective: IndependentObjective, params, callback: Callback | None = None
) -> Solution:
    """Minimise as the solver would from `params` without coefficients, but in the spans of the rows.

    What of the solution X itself finds wanting goes on from there.
    """
    arrays, rows = objective.arrays, objective.rows
    found = IndependentRowSpaces.of(rows.X, arrays)
    if found is None:
        return solver.minimize(objective, params, callback)
    spaces, X = found
    scale = arrays.to_device(feature_scale(*feature_ranges(X, arrays))[:, :, np.newaxis])
    scale = arrays.xp.concatenate([scale, objective.scale[:, -1:]], axis=1)
    within = replace(objective, rows=replace(rows, X=X), scale=scale)
    solution = solver.minimize(within, params[-X.shape[1] :], callback)

    params = spaces.lift(solution.params)
    value, gradient = objective.value_and_grad(params)
    value, norm = arrays.to_host(value), arrays.to_host(abs(gradient).max(axis=(0, 2)))
    allowed = solver.negligible_decrease(value) + 100 * objective.precision * np.abs(value)
    is_met = (norm <= solver.tol) & (value - solution.value <= allowed)
    n_passes = solution.n_passes + 1
    solution = replace(solution, params=params, value=value, gradient_norm=norm, n_passes=n_passes, gradient=None)
    short = np.flatnonzero((solution.status == Status.CONVERGED) & ~is_met)
    if short.size:
        places = arrays.to_device(short)
        last = solver.minimize(objective.select(short), params[:, places], callback)
        params[:, places] = last.params
        for name in ("value", "gradient_norm", "status"):
            getattr(solution, name)[short] = getattr(last, name)
        for name in ("n_iter", "n_passes"):
            getattr(solution, name)[short] += getattr(last, name)
    return solution


def _features(X) -> Iterator[tuple[Any, slice]]:
    """Yield some features of every problem's X, in float64, but for the last."""
    n_problems, n_features, n_rows = X.shape
    step = max(1, BLOCK_NUMBERS // (n_problems * n_rows))
    for start in range(0, n_features - 1, step):
        features = slice(start, min(start + step, n_features - 1))
        yield X[:, features].astype(np.float64, copy=False), features
