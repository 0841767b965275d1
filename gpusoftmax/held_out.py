"""Rows that a model has not been fitted to, with their targets: checked once, then read as blocks of logits.

An array of all logits is never made: each reading computes them anew, a few megabytes at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.utils import _safe_indexing, check_consistent_length, column_or_1d, gen_batches
from sklearn.utils.validation import _num_samples, check_is_fitted

from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.functional import check_weights
from gpusoftmax.interop import to_host
from gpusoftmax.targets import check_soft_targets, encode_labels

BLOCK_NUMBERS = 1 << 20  # logits of a block: 8 MB


@dataclass(frozen=True)
class HeldOut:
    """A fitted model and the rows it is judged by.

    Parameters
    ----------
    model : SoftmaxRegression
    X : array-like of shape (n_samples, n_features), as the user gave it
    targets : array of shape (n_samples,) or (n_samples, n_classes)
        Places in ``model.classes_``, or soft targets.
    weights : array of shape (n_samples,), float64, as the user gave them
    """

    model: SoftmaxRegression
    X: Any
    targets: np.ndarray
    weights: np.ndarray

    @classmethod
    def check(cls, model, X, y, sample_weight=None, *, allows_soft: bool = False) -> Self:
        """Return rows as users give them, checked.

        Raises
        ------
        NotFittedError
            The model has not been fitted.
        TypeError, ValueError
            There are no rows, lengths disagree, the model knows none of some labels, or weights or soft targets are
            not what they must be.
        """
        if not isinstance(model, SoftmaxRegression):
            raise TypeError(f"model must be a fitted SoftmaxRegression, got {type(model).__name__}.")
        check_is_fitted(model)
        y = np.asarray(to_host(y))
        check_consistent_length(X, y)
        weights = check_row_weights(sample_weight, _num_samples(X))
        classes = to_host(model.classes_)
        if y.ndim == 2 and y.shape[1] > 1:
            if not allows_soft or y.shape[1] != len(classes):
                allowed = f"(n_samples,) or (n_samples, {len(classes)})" if allows_soft else "(n_samples,)"
                raise ValueError(f"y must have shape {allowed}, got {y.shape}.")
            return cls(model, X, check_soft_targets(y), weights)
        return cls(model, X, places_of(column_or_1d(y), classes), weights)

    @property
    def n_classes(self) -> int:
        return len(self.model.classes_)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield which rows, and their logits (n_rows, n_classes) on the host, float64, the largest of each row zero."""
        for rows in gen_batches(len(self.targets), max(1, BLOCK_NUMBERS // self.n_classes)):
            logits = np.asarray(to_host(self.model.decision_function(_safe_indexing(self.X, rows))), np.float64)
            if logits.ndim == 1:  # two classes: their difference
                logits = np.column_stack([np.zeros_like(logits), logits])
            yield rows, logits - logits.max(axis=1, keepdims=True)


def check_row_weights(sample_weight, n_rows: int) -> np.ndarray:
    """Return weights of held-out rows, (n_rows,) float64, ones for None.

    Raises
    ------
    ValueError
        There are no rows, or weights are of another shape, not finite, negative or all zero.
    """
    if n_rows == 0:
        raise ValueError("There are no held-out rows: give at least one.")
    if sample_weight is None:
        return np.ones(n_rows)
    weights = np.asarray(to_host(sample_weight), np.float64)
    if not np.isfinite(weights).all():
        raise ValueError("sample_weight must be finite: it holds NaN or infinity.")
    with np.errstate(over="ignore"):  # of their sum, of which only the sign counts here
        check_weights(weights, n_rows)
    return weights


def without_scale(weights: np.ndarray) -> np.ndarray:
    """Return weights over the power of two below the largest: the same means, and squares and sums that are finite."""
    return np.ldexp(weights, 1 - np.frexp(weights.max())[1])


def places_of(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return each label's place among the classes, or raise ValueError if some label has none."""
    known, indices = encode_labels(labels)
    places = {name: place for place, name in enumerate(classes.tolist())}
    strange = [label for label in known.tolist() if label not in places]
    if strange:
        shown = ", ".join(repr(label) for label in strange[:5]) + (", …" if len(strange) > 5 else "")
        raise ValueError(
            f"y holds {len(strange)} label{'s'[: len(strange) != 1]} not among the {len(classes)} classes: {shown}. "
            "Leave these rows out, or fit a model to rows of every class."
        )
    return np.array([places[label] for label in known.tolist()])[indices]
