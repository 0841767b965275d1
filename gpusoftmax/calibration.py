"""Probabilities that mean what they say: one temperature fitted on held-out rows, and how far off they are."""

import warnings
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from scipy.optimize import brentq
from sklearn.base import clone

from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.held_out import HeldOut, check_row_weights, places_of, without_scale
from gpusoftmax.interop import receive, to_host
from gpusoftmax.targets import check_class_names, encode_labels

NEAR = 1.0  # of log t: where most temperatures are
FAR = 10.0  # of the logarithm of t over the widest range of a row's logits: above it nothing changes
TOLERANCE = 1e-9  # of log t
Z_95 = 1.96


def calibrate(model: SoftmaxRegression, X, y, sample_weight=None) -> SoftmaxRegression:
    """Return a copy of a fitted model whose probabilities have been fitted to held-out rows by one temperature.

    Temperature scaling (Guo, Pleiss, Sun & Weinberger 2017, "On calibration of modern neural networks") divides all
    logits by one t > 0, that which minimises the mean cross-entropy of rows that the model has not been fitted to::

        f(t) = 1/S Σ_i s_i · -Σ_k t_ik log softmax(z_i / t)_k,    S = Σ_i s_i

    It is convex in 1/t. The most likely class of every row stays what it is. A softmax regression at temperature t is a
    softmax regression, with ``coef_ / t`` and ``intercept_ / t``. Class weights and label smoothing of the fit play no
    part. Logits are computed block by block, anew in each of about ten passes; no array of shape
    (n_samples, n_classes) is made.

    Parameters
    ----------
    model : SoftmaxRegression
        Fitted, or calibrated before: only the product of the temperatures counts. Not modified.
    X : array-like of shape (n_samples, n_features)
        Rows that the model was not fitted to: it is sure of those it was.
    y : array-like of shape (n_samples,) or (n_samples, n_classes)
        Labels among ``model.classes_``, or soft targets.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative; None for ones.

    Returns
    -------
    calibrated : SoftmaxRegression
        ``temperature_`` is what the logits of the fit are divided by. Other fitted attributes tell of the fit.

    Raises
    ------
    NotFittedError
        The model has not been fitted.
    TypeError, ValueError
        Rows, labels or weights are unusable; the message says why.

    Warns
    -----
    UserWarning
        There is no best temperature, and a bound is taken. Either the model is right on every row, so that the surer
        the better: one at which all probabilities are 0 or 1. Or its logits are no better than none: e¹⁰ times the
        widest range of a row's logits. Rows of weight zero do not count.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from gpusoftmax import SoftmaxRegression, calibrate
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = SoftmaxRegression().fit(X[:1000], y[:1000])
    >>> calibrated = calibrate(clf, X[1000:1400], y[1000:1400])
    >>> calibrated.temperature_  # the logits were too large
    1.49...
    """
    held_out = HeldOut.check(model, X, y, sample_weight, allows_soft=True)
    calibrated = clone(model)
    vars(calibrated).update(vars(model))
    with np.errstate(under="ignore"):
        temperature = _best_temperature(held_out)
        calibrated.coef_, calibrated.intercept_ = _divided(model, temperature)
    calibrated.temperature_ = model.temperature_ * temperature
    return calibrated


def _best_temperature(held_out: HeldOut) -> float:
    """Return the temperature where the slope of the loss changes its sign, or the bound that it lies beyond."""
    held_out = replace(held_out, weights=without_scale(held_out.weights))

    @cache
    def slope(log_inverse: float) -> float:
        return _slope(held_out, np.exp(log_inverse))

    if slope(-NEAR) < 0 < slope(NEAR):
        return float(np.exp(-brentq(slope, -NEAR, NEAR, xtol=TOLERANCE)))
    widest = max(-logits[held_out.weights[rows] > 0].min(initial=0) for rows, logits in held_out.blocks()) or 1.0
    lowest, highest = (reach - np.log(widest) for reach in (-FAR, FAR))
    if slope(lowest) >= 0:
        warnings.warn(
            "The logits of the model say no more about y than chance does: the temperature is at its upper bound, "
            "where all classes are about as likely. Check that X and y belong to this model.",
            stacklevel=3,
        )
        return float(np.exp(-lowest))
    while slope(highest) < 0:  # where one row is much wider than others, those are not sure yet
        highest += FAR
    if slope(highest) == 0:  # no probability is left to a class that has none of the target's
        warnings.warn(
            f"The model is right on all {np.count_nonzero(held_out.weights)} held-out rows: the surer the better, "
            "and the temperature is at its lower bound. Calibrate with more rows, hard ones too.",
            stacklevel=3,
        )
        return float(np.exp(-highest))
    return float(np.exp(-brentq(slope, lowest, highest, xtol=TOLERANCE)))


def _slope(held_out: HeldOut, inverse: float) -> float:
    """Return the derivative of the mean loss by 1/t at `inverse`: Σ_i s_i (E_p[z_i] − E_t[z_i]) / S."""
    total = 0.0
    for rows, logits in held_out.blocks():
        targets = held_out.targets[rows]
        if targets.ndim == 1:
            of_targets = np.take_along_axis(logits, targets[:, np.newaxis], axis=1)[:, 0]
        else:
            of_targets = np.einsum("ik,ik->i", targets, logits)
        probabilities = np.exp(inverse * logits)
        expected = np.einsum("ik,ik->i", probabilities, logits) / probabilities.sum(axis=1)
        total += held_out.weights[rows] @ (expected - of_targets)
    return float(total / held_out.weights.sum())


def _divided(model: SoftmaxRegression, temperature: float):
    """Return coefficients and intercept at a temperature, where they live."""
    _, home = receive(model.coef_)
    coef, intercept = (to_host(array).astype(np.float64) for array in (model.coef_, model.intercept_))
    divided = (coef / temperature).astype(to_host(model.coef_).dtype)
    if model._center is None:
        intercept = (intercept / temperature).astype(to_host(model.intercept_).dtype)
        return home.send(divided), home.send_exactly(intercept)
    center = to_host(
        model._center
    )  # at it the logits stay exact: an offset times the rounding of a coefficient is large
    at_center = (intercept + coef @ center) / temperature
    return home.send(divided), home.send_exactly(at_center - divided.astype(np.float64) @ center)


@dataclass(frozen=True)
class Reliability:
    """How often predictions of each confidence are right; arrays have one entry per bin.

    Bin m of M holds the rows whose confidence, the probability of the class predicted, lies in ((m−1)/M, m/M].

    Parameters
    ----------
    edges : array of shape (n_bins + 1,)
    weight : array
        Total weight of the bin's rows, of which only ratios count.
    n_effective : array
        Rows of equal weight that would tell as much, (Σ s)² / Σ s² (Kish 1965).
    confidence, accuracy : arrays
        Weighted means; NaN where there is no weight.
    """

    edges: np.ndarray
    weight: np.ndarray
    n_effective: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @classmethod
    def measure(cls, confidence: np.ndarray, is_right: np.ndarray, weights: np.ndarray, n_bins: int) -> "Reliability":
        """Sort rows into bins; all arrays have shape (n_samples,)."""
        if n_bins < 1:
            raise ValueError(f"n_bins must be at least 1, got {n_bins}.")
        edges = np.linspace(0, 1, n_bins + 1)
        bins = np.searchsorted(edges[1:-1], confidence, side="left")
        weights = without_scale(weights)

        def sums(values):
            return np.bincount(bins, values, minlength=n_bins)

        weight = sums(weights)
        with np.errstate(invalid="ignore"):  # empty bins
            n_effective = weight**2 / sums(weights**2)
            return cls(
                edges, weight, n_effective, sums(weights * confidence) / weight, sums(weights * is_right) / weight
            )

    @cached_property
    def expected_calibration_error(self) -> float:
        """Mean distance between accuracy and confidence: Σ_m weight_m |accuracy_m − confidence_m| / Σ_m weight_m."""
        gaps = np.abs(self.accuracy - self.confidence)[self.weight > 0]
        return float(self.weight[self.weight > 0] @ gaps / self.weight.sum())


def wilson_interval(share, n_rows):
    """Return the ends of the 95 % interval of a share of some rows (Wilson 1927)."""
    shrink = 1 / (1 + Z_95**2 / n_rows)
    middle = shrink * (share + Z_95**2 / (2 * n_rows))
    half = shrink * Z_95 * np.sqrt(share * (1 - share) / n_rows + Z_95**2 / (4 * n_rows**2))
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)  # which rounding may miss


def reliability(y, probabilities, *, classes=None, sample_weight=None, n_bins=15) -> Reliability:
    """Return how often predictions of each confidence are right; see `expected_calibration_error`."""
    probabilities = np.asarray(to_host(probabilities))
    y = np.asarray(to_host(y))
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or y.shape != (len(probabilities),):
        raise ValueError(
            "y must have shape (n_samples,) and probabilities (n_samples, n_classes) with a column for each class, got "
            f"{y.shape} and {probabilities.shape}."
        )
    weights = check_row_weights(sample_weight, len(y))
    n_classes = probabilities.shape[1]
    if classes is None:
        classes, _ = encode_labels(y)
        if len(classes) != n_classes:
            raise ValueError(
                f"y holds {len(classes)} different labels, and probabilities has {n_classes} columns: name these by "
                "classes, for instance classes=model.classes_."
            )
    targets = places_of(y, check_class_names(to_host(classes), n_classes))
    predicted = probabilities.argmax(axis=1)
    confidence = np.take_along_axis(probabilities, predicted[:, np.newaxis], axis=1)[:, 0].astype(np.float64)
    if not ((probabilities.min(axis=1) >= 0) & (confidence <= 1 + 1e-6) & (confidence > 0)).all():
        raise ValueError("probabilities must lie in [0, 1], with at least one above 0 in each row.")
    return Reliability.measure(confidence, predicted == targets, weights, n_bins)


def expected_calibration_error(y, probabilities, *, classes=None, sample_weight=None, n_bins=15) -> float:
    """Return the expected calibration error of the predicted class: how far confidence is from accuracy.

    With rows sorted by their largest probability into `n_bins` bins of equal width, ((m−1)/M, m/M] (Naeini, Cooper &
    Hauskrecht 2015; Guo, Pleiss, Sun & Weinberger 2017, eq. 3)::

        ECE = Σ_m S_m / S · |accuracy_m − confidence_m|

    It is 0 for perfect probabilities and infinitely many rows; of few rows it is larger, by chance alone.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels.
    probabilities : array-like of shape (n_samples, n_classes)
    classes : array-like of shape (n_classes,), default=None
        Labels of the columns; None for those of y in ascending order, if there are as many.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative; None for ones.
    n_bins : int, default=15

    Returns
    -------
    error : float in [0, 1]

    Raises
    ------
    ValueError
        There are no rows, shapes disagree, probabilities or weights are out of range, or y holds labels that are not
        in `classes`.

    Examples
    --------
    >>> from gpusoftmax import expected_calibration_error
    >>> expected_calibration_error([0, 1, 1], [[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])  # |1/2 - 0.9| 2/3 + |1 - 0.8| 1/3
    0.333...
    """
    binned = reliability(y, probabilities, classes=classes, sample_weight=sample_weight, n_bins=n_bins)
    return binned.expected_calibration_error
