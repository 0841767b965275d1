"""Where features outnumber rows, the optimum lies in the span of the rows: no more numbers to find than rows.

X = R Q with orthonormal rows Q. Logits X W are R U for U = Q W, and the squares of W = Qᵀ U sum to those of U, so that
both problems have one optimum. R has orthogonal columns: the eigenvectors of X Xᵀ times its singular values. Q is never
made: its products are products of X. Singular values below 1e-7 of the largest drown in rounding, which leaves the last
word to passes over X.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from scipy.linalg import eigh

from gpusoftmax.arrays import Arrays
from gpusoftmax.sources import ArraySource

LEAST_SQUARE = np.finfo(np.float64).tiny / np.finfo(np.float64).eps  # of the largest row: less would lose its digits


@dataclass(frozen=True)
class RowSpace:
    """Params (n_rank + 1, n_problems, n_classes) of rows R, and those of rows X with the same logits.

    Parameters
    ----------
    arrays : Arrays
    source : ArraySource
        Of X.
    combination : array of shape (n_rows, n_rank), float64
        Qᵀ is Xᵀ times this.
    beyond : float
        Bound on the mean square, over the rows, of X along any direction beyond the space.
    block_features : int
        Columns of X that are read at once.
    """

    arrays: Arrays
    source: ArraySource
    combination: Any
    beyond: float
    block_features: int

    @classmethod
    def of(cls, source: ArraySource, arrays: Arrays, block_features: int) -> tuple[Self, ArraySource] | None:
        """Return the space and the source of R; None where the squares of X leave the range of float64."""
        gram = arrays.to_host(_gram(source, block_features))
        if not (np.isfinite(gram).all() and gram.diagonal().max() > LEAST_SQUARE):
            return None
        squares, basis = eigh(gram.T, driver="evd", overwrite_a=True, check_finite=False)
        beyond = np.finfo(np.float64).eps * squares[-1]
        kept = squares > len(gram) * beyond
        singular, basis = np.sqrt(squares[kept]), basis[:, kept]
        space = cls(arrays, source, arrays.to_device(basis / singular), float(beyond), block_features)
        return space, replace(source, X=arrays.to_device(basis * singular, source.dtype), center=None)

    def project(self, params):
        """Return Q times params of X: those of R with the same logits, of no part of W that moves none."""
        wide = params.reshape(len(params), -1)
        logits: Any = 0.0
        for X, columns in _columns(self.source, self.block_features):
            logits += X @ wide[columns].astype(np.float64)
        return self._with_intercept(self.combination.T @ logits, params)

    def lift(self, params):
        """Return Qᵀ times params of R: those of X with the same logits, and of the least squares."""
        wide = self.combination @ params[:-1].reshape(self.combination.shape[1], -1).astype(np.float64)
        out = self.arrays.xp.empty((self.source.n_features, wide.shape[1]), params.dtype)
        for X, columns in _columns(self.source, self.block_features):
            out[columns] = X.T @ wide
        return self._with_intercept(out, params)

    def _with_intercept(self, wide, params):
        out = self.arrays.xp.empty((len(wide) + 1, *params.shape[1:]), params.dtype)
        out[:-1] = wide.reshape(len(wide), *params.shape[1:])
        out[-1] = params[-1]
        return out


@dataclass(frozen=True)
class RowSpaceMetric:
    """An estimate of the inverse Hessian of params of X: `within` the space, and beyond it that of all that is there.

    Parameters
    ----------
    space : RowSpace
    within : Metric
    beyond : array of shape (n_problems, 1)
        Inverse of the curvature of the penalty and of what the space does not resolve.
    """

    space: RowSpace
    within: Any
    beyond: Any
    n_passes: float = 0.0

    def apply(self, gradient):
        """Return the estimated inverse Hessian times `gradient` (n_features + 1, n_problems, n_classes)."""
        part = self.space.project(gradient)
        out = self.space.lift(self.within.apply(part) - self.beyond * part)
        out += self.beyond * gradient
        return out

    def select(self, active) -> Self:
        """Return the metric of the problems in `active`."""
        beyond = self.beyond[self.space.arrays.to_device(active)]
        return replace(self, within=self.within.select(active), beyond=beyond)


def _gram(source: ArraySource, block_features: int):
    """Return X Xᵀ in float64."""
    gram: Any = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for X, _ in _columns(source, block_features):
            gram += X @ X.T
    return gram


def _columns(source: ArraySource, block_features: int) -> Iterator[tuple[Any, slice]]:
    """Yield columns of X, centred, in float64, and which they are: views of X or of one buffer."""
    xp, center = source.xp, source.center
    is_direct = center is None and source.X.dtype == np.float64
    buffer = xp.empty(0 if is_direct else source.n_rows * block_features)
    for start in range(0, source.n_features, block_features):
        columns = slice(start, min(start + block_features, source.n_features))
        X = source.X[:, columns]
        if not is_direct:
            out = buffer[: X.size].reshape(X.shape)
            X = xp.subtract(X, 0 if center is None else center[columns], out=out, casting="unsafe")
        yield X, columns
