"""How well a model does on rows that it was not fitted to: every figure from one pass over them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gpusoftmax.calibration import Reliability, wilson_interval
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.held_out import HeldOut, without_scale
from gpusoftmax.interop import to_host


@dataclass(frozen=True)
class Evaluation:
    """What a model predicted for held-out rows; arrays have one entry per row.

    Every figure counts each row with its weight. Classes are places in `classes`.

    Parameters
    ----------
    classes : array of shape (n_classes,)
    targets, predictions : int arrays
    confidence : float array
        Probability of the class predicted.
    losses : float array
        Minus the logarithm of the probability of the target.
    weights : float array
    """

    classes: np.ndarray
    targets: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray
    losses: np.ndarray
    weights: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of the rows that is classified rightly, by weight."""
        return self._mean(self.predictions == self.targets)

    @property
    def n_effective(self) -> float:
        """How many rows of equal weight would tell as much, (Σ s)² / Σ s² (Kish 1965)."""
        return float(self._weights.sum() ** 2 / (self._weights**2).sum())

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, of as many rows (Wilson 1927)."""
        low, high = wilson_interval(self.accuracy, self.n_effective)
        return float(low), float(high)

    @property
    def log_loss(self) -> float:
        """Mean cross-entropy."""
        return self._mean(self.losses)

    @property
    def chance_log_loss(self) -> float:
        """Mean cross-entropy of a model that knows only how frequent the classes are among these rows."""
        shares = self.frequencies[self.frequencies > 0]
        return float(-shares @ np.log(shares))

    @property
    def expected_calibration_error(self) -> float:
        """That of 15 bins; see `gpusoftmax.expected_calibration_error`."""
        return self.reliability().expected_calibration_error

    def reliability(self, n_bins: int = 15) -> Reliability:
        """Return how often predictions of each confidence are right."""
        return Reliability.measure(self.confidence, self.predictions == self.targets, self.weights, n_bins)

    @cached_property
    def support(self) -> np.ndarray:
        """Weight of each class's rows, (n_classes,)."""
        return self._sums(self.targets, self.weights)

    @property
    def frequencies(self) -> np.ndarray:
        """Share of each class among the rows, (n_classes,)."""
        return self._support / self._support.sum()

    @property
    def precision(self) -> np.ndarray:
        """Share of right ones among the rows predicted as each class, (n_classes,); NaN where there are none."""
        return self._ratio(self._hits, self._sums(self.predictions, self._weights))

    @property
    def recall(self) -> np.ndarray:
        """Share of right ones among the rows of each class, (n_classes,); NaN where there are none."""
        return self._ratio(self._hits, self._support)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, (n_classes,); NaN where there is neither a row nor a prediction."""
        return self._ratio(2 * self._hits, self._support + self._sums(self.predictions, self._weights))

    def mistakes(self, n_largest: int) -> list[tuple[int, int, float]]:
        """Return class, class predicted and weight of the most frequent mistakes, most frequent first."""
        is_wrong = self.predictions != self.targets
        pairs, place = np.unique(
            np.stack([self.targets[is_wrong], self.predictions[is_wrong]]), axis=1, return_inverse=True
        )
        weight = np.bincount(place.ravel(), self.weights[is_wrong], minlength=pairs.shape[1])
        largest = np.argsort(-weight, kind="stable")[:n_largest]
        return [(int(pairs[0, i]), int(pairs[1, i]), float(weight[i])) for i in largest if weight[i] > 0]

    @cached_property
    def _weights(self) -> np.ndarray:
        """Weights for ratios, whose squares and sums are finite whatever the size of `weights`."""
        return without_scale(self.weights)

    @property
    def _support(self) -> np.ndarray:
        return self._sums(self.targets, self._weights)

    @property
    def _hits(self) -> np.ndarray:
        return self._sums(self.targets, self._weights * (self.predictions == self.targets))

    def _mean(self, values) -> float:
        return float(self._weights @ values / self._weights.sum())

    def _sums(self, places: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.bincount(places, values, minlength=len(self.classes))

    @staticmethod
    def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def evaluate(model: SoftmaxRegression, X, y, sample_weight=None) -> Evaluation:
    """Judge a fitted model by held-out rows, in one pass and without an array of shape (n_samples, n_classes).

    Parameters
    ----------
    model : SoftmaxRegression
        Fitted.
    X : array-like of shape (n_samples, n_features)
        Rows that the model was not fitted to.
    y : array-like of shape (n_samples,)
        Labels among ``model.classes_``.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative; None for ones.

    Returns
    -------
    evaluation : Evaluation

    Raises
    ------
    NotFittedError
        The model has not been fitted.
    TypeError, ValueError
        Rows, labels or weights are unusable; the message says why.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gpusoftmax import SoftmaxRegression, evaluate
    >>> X, y = load_iris(return_X_y=True)
    >>> evaluation = evaluate(SoftmaxRegression().fit(X[::2], y[::2]), X[1::2], y[1::2])
    >>> evaluation.accuracy, evaluation.log_loss
    (0.96, 0.16...)
    >>> evaluation.recall
    array([1.  , 0.96, 0.92])
    """
    held_out = HeldOut.check(model, X, y, sample_weight)
    n_rows = len(held_out.targets)
    predictions = np.empty(n_rows, np.intp)
    confidence, losses = np.empty(n_rows), np.empty(n_rows)
    for rows, logits in held_out.blocks():
        with np.errstate(under="ignore"):
            log_sums = np.log(np.exp(logits).sum(axis=1))  # the largest logit of each row is zero
        predictions[rows] = logits.argmax(axis=1)
        confidence[rows] = np.exp(-log_sums)
        of_targets = np.take_along_axis(logits, held_out.targets[rows][:, np.newaxis], axis=1)[:, 0]
        losses[rows] = log_sums - of_targets
    classes = to_host(model.classes_)
    return Evaluation(classes, held_out.targets, predictions, confidence, losses, held_out.weights)
