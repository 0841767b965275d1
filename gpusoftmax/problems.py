"""What a sweep fits: strengths times folds, as arrays; folds are columns of row weights, never copies of X."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from gpusoftmax.sources import ArraySource, weight_per_class, weight_unit


@dataclass(frozen=True)
class Folds:
    """Which rows a model is fitted to, and on which it is judged.

    weights : array of shape (n_rows, n_folds), or None where one fold has all rows
        Multiplies sample weights; 0 for rows that are left out.
    is_held_out : bool array of shape (n_rows, n_folds), or None
    """

    weights: np.ndarray | None
    is_held_out: np.ndarray | None

    @property
    def n_folds(self) -> int:
        return 1 if self.weights is None else self.weights.shape[1]

    @classmethod
    def of(cls, cv: Any, X: Any, y: np.ndarray, groups: Any = None) -> Self:
        """Return the folds of whatever users say cross-validation is.

        Parameters
        ----------
        cv : None, int, splitter, iterable of (train, test) indices, or array of shape (n_rows, n_folds)
            None is one fold of all rows. An int is stratified folds. An array is the weights themselves: rows of
            weight 0 (or False) are held out.
        X : what splitters may look at
        y : array of shape (n_rows,), to stratify by
        groups : array of shape (n_rows,), or None

        Raises
        ------
        ValueError
            There are no folds, or the array is no weights of these rows.
        """
        if cv is None:
            return cls(None, None)
        if getattr(cv, "ndim", 0) in (1, 2):
            return cls._of_weights(np.asarray(cv), len(y))
        if np.iterable(cv) and not hasattr(cv, "split"):
            cv = [list(split) if np.iterable(split) else [] for split in cv]
            if not all(len(split) == 2 and not any(map(np.isscalar, split)) for split in cv):
                raise ValueError(
                    "cv as an iterable must hold pairs (train, test) of row indices; weights of rows must be an array "
                    "of shape (n_samples, n_folds)."
                )
        from sklearn.model_selection import check_cv  # 0.2 s that an import of this package need not take

        splits = list(check_cv(cv, y, classifier=True).split(X, y, groups))
        counts = [np.bincount(np.arange(len(y))[train], minlength=len(y)) for train, _ in splits]
        largest = max((count.max(initial=0) for count in counts), default=0)
        weights = np.empty((len(y), len(splits)), np.min_scalar_type(largest))
        is_held_out = np.zeros(weights.shape, bool)
        for fold, (count, (_, test)) in enumerate(zip(counts, splits, strict=True)):
            weights[:, fold] = count
            is_held_out[test, fold] = True
        return cls(weights, is_held_out)._checked()

    @classmethod
    def _of_weights(cls, weights: np.ndarray, n_rows: int) -> Self:
        is_numeric, is_shaped = weights.dtype.kind in "biuf", weights.ndim == 2 and len(weights) == n_rows
        if not is_numeric or not is_shaped or not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(
                f"cv as an array must hold finite, non-negative weights of shape (n_samples, n_folds) with {n_rows} "
                f"samples, got shape {weights.shape} and dtype {weights.dtype}."
            )
        return cls(weights, weights == 0)._checked()

    def _checked(self) -> Self:
        if self.n_folds == 0:
            raise ValueError("cv has no folds to fit a model to.")
        return self

    def absent_classes(
        self, rows: ArraySource, rows_of_folds: ArraySource, n_classes: int, to_host: Callable = np.asarray
    ) -> np.ndarray:
        """Say which classes each fold has no weight of to fit, though the data have: bool (n_folds, n_classes).

        Parameters
        ----------
        rows, rows_of_folds : the data, weighted as given and as `row_weights` returns
        n_classes : int
        to_host : copies an array of the targets' namespace to the host

        Raises
        ------
        ValueError
            A fold has no rows of positive weight to fit.
        """
        if self.weights is None:
            return np.zeros((1, n_classes), bool)
        _, of_all = weight_per_class(rows, 1, n_classes, to_host)
        total, of_folds = weight_per_class(rows_of_folds, self.n_folds, n_classes, to_host)
        if not total.all():
            raise ValueError(f"Fold {total.argmin()} of cv has no rows of positive weight to fit a model to.")
        return (of_folds == 0) & (of_all > 0)

    def order(self) -> np.ndarray:
        """Return the folds in an order of their own, whatever theirs is: so that it changes no bits of a sweep."""
        if self.weights is None:
            return np.arange(1)
        columns = [(self.weights[:, fold].tobytes(), fold) for fold in range(self.n_folds)]
        return np.array([fold for _, fold in sorted(columns)])

    def row_weights(self, sample_weight: np.ndarray | None, dtype: np.dtype) -> tuple[np.ndarray | None, np.ndarray]:
        """Return weights (n_rows, n_folds), (n_rows, 1) for one fold of all rows, or None for ones; and their units.

        The units (n_folds,) are powers of two, so weights of any size keep their precision in `dtype`.
        """
        if self.weights is None:
            return sample_weight, np.ones(1)
        weights, unit = self.weights, np.ones(self.n_folds)
        if weights.dtype.kind == "f":
            unit = weight_unit(weights.max(axis=0))
            weights = weights / unit
        if sample_weight is not None:
            weights = weights * sample_weight
        return (weights.astype(dtype, copy=False) if weights.dtype.kind == "f" else weights), unit

    def scoring_weights(self, rows: slice, folds: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
        """Return how some rows weigh in each problem's scores: of its training, then of what it holds out."""
        given = 1.0 if sample_weight is None else sample_weight[rows].astype(np.float64)
        if self.weights is None or self.is_held_out is None:
            return given * np.ones((len(range(*rows.indices(rows.stop))), 1))
        both = [each[rows][:, folds] for each in (self.weights, self.is_held_out)]
        return np.hstack(both) * given


@dataclass(frozen=True)
class Problems:
    """Every model of a sweep, as arrays of shape (n_problems,).

    C : inverse strength, as scikit-learn means it
    fold : which of the folds
    class_weight : which of the class weights swept over
    label_smoothing : its value

    Problem p has setting ``p // n_folds``: all but the fold.
    """

    C: np.ndarray
    fold: np.ndarray
    class_weight: np.ndarray
    label_smoothing: np.ndarray

    @classmethod
    def grid(cls, Cs: np.ndarray, n_folds: int, n_class_weights: int, label_smoothings: np.ndarray) -> Self:
        """Return every combination; folds vary fastest, then strengths, then class weights."""
        smoothing, class_weight, C, fold = np.meshgrid(
            label_smoothings, np.arange(n_class_weights), Cs, np.arange(n_folds), indexing="ij"
        )
        return cls(C.ravel(), fold.ravel(), class_weight.ravel(), smoothing.ravel())

    def __len__(self) -> int:
        return len(self.C)
