"""From what users give to what is trained: features checked, labels encoded, weights counted in a power of two."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from gpusoftmax.backends.base import Backend
from gpusoftmax.interop import CHECKED_NUMBERS, HOST, Home, receive, shadow, to_host, validate
from gpusoftmax.sources import ArraySource, compute_dtype, weight_per_class, weight_unit
from gpusoftmax.targets import check_class_names, check_soft_targets, encode_labels


@dataclass(frozen=True)
class Code:
    """How data were encoded, and so how solutions are decoded.

    dtype : dtype
        In which it is computed.
    classes : array of shape (n_classes,)
    weight_unit : float
        Power of two that weights are counted in: only C times the total weight matters, so weights of any size keep
        their precision in the compute dtype.
    home, y_home : Home
        Where X and y live.
    """

    dtype: np.dtype
    classes: np.ndarray
    weight_unit: float
    home: Home
    y_home: Home

    def inner_strength(self, C):
        """Return the C that `train` is given: two classes are two columns, each with half the penalty."""
        return np.asarray(C) * (self.weight_unit / 2 if len(self.classes) == 2 else self.weight_unit)

    def decode(self, params: np.ndarray, center: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients (n_problems, n_classes, n_features) and intercepts (n_problems, n_classes).

        Of two classes there is one row, the difference. `params` (n_features + 1, n_problems, n_classes) belong to
        features minus `center`.
        """
        rows = params.transpose(1, 2, 0).astype(np.float64)
        if len(self.classes) == 2:
            rows = rows[:, 1:] - rows[:, :1]
        coef = np.ascontiguousarray(rows[:, :, :-1], self.dtype)
        if center is None:
            return coef, rows[:, :, -1].astype(self.dtype)
        return coef, rows[:, :, -1] - coef.astype(np.float64) @ center  # rounded: offset times rounding is no rounding


def encode(
    estimator: BaseEstimator, X, home: Home, y, sample_weight, classes, backend: Backend
) -> tuple[ArraySource, Code]:
    """Check data and return them as a source, with their code; its weights are (n_samples, 1), or None for ones.

    Parameters
    ----------
    estimator : BaseEstimator
        Remembers number and names of the features, and is named in messages.
    X, home : what `receive` returned
    y, sample_weight, classes : as users give them
    backend : Backend

    Raises
    ------
    TypeError, ValueError
        The data are unusable; the message says why.
    """
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None.")
    y, y_home = receive(y, "y")
    moves = y_home.is_cuda and not (y_home.cuda_device == home.cuda_device and y.ndim == 2 and y.shape[1] > 1)
    y, there = (to_host(y), HOST) if moves else (y, y_home)
    X, targets, targets_xp, classes = _check_data(estimator, X, home, y, there, to_host(classes), backend)
    dtype = compute_dtype(X.dtype)
    weights, unit = _row_weights(X, sample_weight, dtype)
    if weights is not None and targets_xp is not np:
        weights = backend.to_device(weights)
    source = ArraySource(X, targets, weights, dtype, targets_xp=targets_xp)
    return source, Code(dtype, classes, unit, home, y_home)


def with_class_weight(source: ArraySource, code: Code, class_weight, backend: Backend) -> tuple[ArraySource, Code]:
    """Return the source with a factor of each class's term of the loss: a dict's, or what balances each column.

    The code counts what a dict holds in a unit too.
    """
    classes, unit = code.classes, 1.0
    if class_weight is None:
        return source, code
    if class_weight == "balanced":
        n_columns = 1 if source.weights is None else source.weights.shape[1]
        total, per_class = weight_per_class(source, n_columns, len(classes), backend.to_host)
        balance = np.broadcast_to(total[:, np.newaxis] / len(classes), per_class.shape)
        factor = np.divide(balance, per_class, out=np.zeros(per_class.shape), where=per_class > 0)
    else:
        missing = [name for name in classes if name not in class_weight]
        if missing and len(classes) - len(missing) < len(class_weight):  # some key is no class: a name is misspelt
            raise ValueError(f"The classes, {np.array(missing).tolist()}, are not in class_weight.")
        factor = np.array([[class_weight.get(name, 1) for name in classes]], np.float64)
        if not (np.isfinite(factor) & (factor >= 0)).all():
            raise ValueError(f"class_weight must be finite and non-negative, got {class_weight}.")
        unit = weight_unit(factor.max())
    weighted = replace(source, class_weight=source.targets_xp.asarray(factor / unit))
    return weighted, replace(code, weight_unit=code.weight_unit * unit)


def check_features(estimator: BaseEstimator, X, home: Home, *y, **options) -> Any:
    """Return X, with y if given, as `validate_data` does; X keeps its dtype and memory."""

    def check(X, **more):
        with np.errstate(invalid="ignore", over="ignore"):  # its first look at finiteness is a sum
            return validate_data(estimator, X, *y, dtype="numeric", **options, **more)

    validated = validate(X, home, check, input_name="X", estimator=estimator)
    dtype = (validated[0] if y else validated).dtype
    if dtype.kind not in "biuf":
        raise TypeError(f"X must hold real numbers, got dtype {dtype}.")
    return validated


def _check_data(estimator, X, home, y, y_home, classes, backend):
    """Return X, the targets below the estimator, their namespace, and the classes."""
    shape = y.shape if y_home.is_cuda else np.asarray(y).shape
    is_soft = len(shape) == 2 and shape[1] > 1
    if y_home.is_cuda:  # soft targets beside X: they stay there
        X = check_features(estimator, X, home)
        check_consistent_length(shadow(X), shadow(y))
        y = validate(y, y_home, check_array, input_name="y", estimator=estimator)
        targets = check_soft_targets(y, backend.to_host, CHECKED_NUMBERS)
        return X, targets, backend.xp, check_class_names(classes, y.shape[1])
    X, y = check_features(estimator, X, home, y, multi_output=is_soft)
    if is_soft:
        return X, check_soft_targets(y), np, check_class_names(classes, y.shape[1])
    if classes is not None:
        raise ValueError("classes names the columns of soft targets; with labels, leave it out.")
    if y.dtype.kind != "O":  # scikit-learn knows no objects but strings; their order is all that is asked here
        check_classification_targets(y)
    classes, targets = encode_labels(y)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least 2 classes, got one class: {classes[0]!r}.")
    return X, targets, np, classes


def _row_weights(X, sample_weight, dtype):
    """Return weights (n_samples, 1), or None for ones, and the power of two they are counted in."""
    if sample_weight is None:
        return None, 1.0
    weights = _check_sample_weight(to_host(sample_weight), shadow(X), dtype=np.float64, ensure_non_negative=True)
    unit = weight_unit(weights.max())
    return (weights / unit).astype(dtype)[:, np.newaxis], unit
