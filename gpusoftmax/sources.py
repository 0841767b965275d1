"""Where rows come from: a source hands out blocks of rows, cast and centred, without copying the whole of X.

Knows the layout of the data in memory. Does not know what is computed from a block.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from gpusoftmax.arrays import Arrays

Rows = slice | np.ndarray
RARE_ROWS = 20  # of a sample: too few to tell a feature's curvature


@dataclass(frozen=True)
class Block:
    """Rows that pass through a kernel together.

    X : (rows, n_features) in the compute dtype; targets : (rows,) class indices or (rows, n_classes) soft targets;
    weights : (rows, n_problems), or None where every weight is one.
    """

    X: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None

    def select(self, rows: slice) -> "Block":
        """Return some of the rows, as views."""
        return Block(self.X[rows], self.targets[rows], None if self.weights is None else self.weights[rows])


@dataclass(frozen=True)
class ArraySource:
    """Rows of an array in memory or of a memory-mapped file.

    Parameters
    ----------
    X : array of shape (n_rows, n_features)
        Any real dtype, any strides; never modified and never copied as a whole.
    targets : array of shape (n_rows,) or (n_rows, n_classes)
    weights : array of shape (n_rows, n_columns), one column where all problems share it, or None for ones
    dtype : dtype that blocks have
    center : array of shape (n_features,), dtype float64, or None
        Subtracted from every row of a block, in float64 where X's own precision would lose it.
    class_weight : array of shape (n_columns, n_classes), one row where all problems share it, float64, or None
        Multiplies every class's term of the loss. Soft targets allow one row only.
    columns : array of shape (n_problems,), int, or None
        Which column of `weights` and row of `class_weight` each problem has; None for one after the other.
    xp : namespace of X and center
    targets_xp : namespace of targets, weights and class_weight
    """

    X: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    dtype: np.dtype
    center: np.ndarray | None = None
    class_weight: np.ndarray | None = None
    columns: np.ndarray | None = None
    xp: Any = np
    targets_xp: Any = np

    @property
    def n_rows(self) -> int:
        return self.X.shape[0]

    @property
    def n_features(self) -> int:
        return self.X.shape[1]

    @property
    def is_direct(self) -> bool:
        """Whether a block can be a view of X: right dtype, not centred, and strides that BLAS reads as they are."""
        if self.center is not None or self.X.dtype != self.dtype:
            return False
        if self.xp is np and not self.X.flags.aligned:  # CuPy has no such flag: what it holds is aligned
            return False
        size, (rows, columns) = self.X.itemsize, self.X.strides
        n_rows, n_features = self.X.shape
        by_rows = (columns == size or n_features == 1) and rows >= n_features * size
        by_columns = rows == size and columns >= n_rows * size
        return (by_rows or by_columns) and rows % size == 0 and columns % size == 0

    def block(self, rows: Rows, buffer: np.ndarray | None = None) -> Block:
        """Return the rows as a Block, features as `features` does."""
        return Block(self.features(rows, buffer), *self.targets_and_weights(rows))

    def features(self, rows: Rows, buffer: np.ndarray | None = None):
        """Return the rows of X: a view where `rows` is a slice and `is_direct`, else written into `buffer`."""
        X = self.X[rows]
        if isinstance(rows, slice) and self.is_direct:
            return X
        out = self.xp.empty(X.shape, self.dtype) if buffer is None else buffer[: X.size].reshape(X.shape)
        if self.center is None:
            self.xp.copyto(out, X, casting="unsafe")
        else:
            self.xp.subtract(X, self.center, out=out, casting="unsafe")
        return out

    def targets_and_weights(self, rows: Rows) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the rows' targets and weights, class weights multiplied in.

        Soft targets t with class weights c have the loss of targets ``t c / Σ t c`` with the row weight ``Σ t c``.
        """
        targets = self.targets[rows]
        weights = None if self.weights is None else self.weights[rows]
        if self.class_weight is not None:
            if targets.ndim == 1:
                factor = self.class_weight[:, targets].T
            else:
                targets = targets.astype(self.dtype) * self.class_weight.astype(self.dtype)
                factor = targets.sum(axis=1, keepdims=True)
                targets /= self.targets_xp.where(factor > 0, factor, 1)
            weights = factor if weights is None else factor * weights
        if self.columns is not None and weights is not None and weights.shape[1] > 1:
            weights = weights[:, self.columns]
        return targets, weights

    def select(self, active: np.ndarray) -> Self:
        """Return this source for the problems in `active` only."""
        return replace(self, columns=active if self.columns is None else self.columns[active])


def sample_rows(n_rows: int, n_sample: int, seed: int) -> np.ndarray:
    """Return `n_sample` row indices, ascending: one at random from each of as many equal strata."""
    if n_sample >= n_rows:
        return np.arange(n_rows)
    edges = np.arange(n_sample + 1) * n_rows // n_sample
    offsets = np.random.default_rng(seed).random(n_sample)
    return edges[:-1] + (offsets * np.diff(edges)).astype(np.int64)


def feature_range(
    source: ArraySource, rows: np.ndarray, arrays: Arrays, budget_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest value of every feature over `rows`, float64, in blocks of `budget_bytes`."""
    block_rows = max(1, min(1024, budget_bytes // (2 * source.n_features * source.dtype.itemsize)))
    xp = arrays.xp
    low, high = xp.full(source.n_features, np.inf), xp.full(source.n_features, -np.inf)
    for start in range(0, len(rows), block_rows):
        X = source.features(arrays.to_device(rows[start : start + block_rows]))
        xp.minimum(low, X.min(axis=0), out=low)
        xp.maximum(high, X.max(axis=0), out=high)
    return arrays.to_host(low), arrays.to_host(high)


def rare_squares(
    source: ArraySource, rows: np.ndarray, low: np.ndarray, high: np.ndarray, arrays: Arrays, budget_bytes: int
) -> np.ndarray | None:
    """Return the mean square over all rows of each feature that is rare over `rows`, zero for others; None for none.

    Rare are features that are constant there, between `low` and `high`, or whose squares a few rows could hold:
    indicators, of which a sample may have hardly any.
    """
    if len(rows) == source.n_rows:
        return None
    squares = _mean_squares(source, rows, slice(None), arrays, budget_bytes)
    largest = np.maximum(np.abs(low), np.abs(high))
    rare = np.flatnonzero((low == high) | (squares * len(rows) <= RARE_ROWS * largest**2))
    if not rare.size:
        return None
    result = np.zeros(source.n_features)
    result[rare] = _mean_squares(source, range(source.n_rows), rare, arrays, budget_bytes)
    return result


def _mean_squares(source: ArraySource, rows, features, arrays: Arrays, budget_bytes: int) -> np.ndarray:
    """Return the mean squares of some features over rows, an array of indices or a range."""
    total, step = 0.0, max(1, min(1024, budget_bytes // (2 * source.n_features * source.dtype.itemsize)))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        X = source.features(slice(some.start, some.stop) if isinstance(some, range) else arrays.to_device(some))
        X = X[:, features] if isinstance(features, slice) else X[:, arrays.to_device(features)]
        total = total + arrays.xp.einsum("nd,nd->d", X, X).astype(np.float64)
    return arrays.to_host(total) / len(rows)


def weight_per_class(
    source: ArraySource, n_problems: int, n_classes: int, to_host: Callable = np.asarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each problem's total weight (n_problems,) and its weight per class (n_problems, n_classes), float64."""
    xp, columns = source.targets_xp, source.columns
    source = replace(source, columns=None)
    total: Any = 0.0
    per_class: Any = 0.0
    step = max(1, (1 << 16) // (n_classes if source.targets.ndim == 2 else 1))  # half a megabyte at most
    for start in range(0, source.n_rows, step):
        targets, weights = source.targets_and_weights(slice(start, start + step))
        weights = xp.ones((len(targets), 1)) if weights is None else weights.astype(np.float64)
        total = total + weights.sum(axis=0)
        if targets.ndim == 2:
            per_class = per_class + weights.T @ targets
        else:
            per_class = per_class + np.array([np.bincount(targets, column, n_classes) for column in weights.T])
    total, per_class = to_host(total), to_host(per_class)
    places = np.zeros(n_problems, int) if len(total) == 1 else columns
    return (total, per_class) if places is None else (total[places], per_class[places])


def weight_unit(largest):
    """Return the power of two that weights up to `largest`, a number or an array of them, are counted in."""
    return np.ldexp(1.0, np.frexp(largest)[1] - 1)


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which X is computed with: half and single precision in float32, all else in float64."""
    return np.dtype(np.float32 if dtype.newbyteorder("=") in (np.float16, np.float32) else np.float64)
