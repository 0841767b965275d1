"""Features of mean zero and deviation one for a fit, and a model of the features as they are made of its result."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches

from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.interop import to_host

BLOCK_NUMBERS = 1 << 20  # of X that are looked at together


@dataclass(frozen=True)
class Scaling:
    """Each feature's weighted mean, and its standard deviation or 1 where it is constant, (n_features,), float64."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, X, sample_weight=None) -> Self:
        """Return the scaling of the rows of X, (n_rows, n_features); those of weight zero play no part."""
        scaler = StandardScaler()
        for rows in _blocks(X):
            weights = None if sample_weight is None else sample_weight[rows]
            if weights is None or weights.any():
                scaler.partial_fit(np.asarray(X[rows], np.float64), sample_weight=weights)
        return cls(scaler.mean_, scaler.scale_)

    def apply(self, X) -> np.ndarray:
        """Return scaled features: a copy, of single precision where X is of half or single precision."""
        is_single = X.dtype in (np.float16, np.float32)
        out = np.empty(X.shape, np.float32 if is_single else np.float64)
        for rows in _blocks(X):
            out[rows] = (X[rows] - self.mean) / self.scale
        return out

    def unfold(self, model: SoftmaxRegression) -> None:
        """Make of a model of scaled features one of the features as they are: the same logits, in place.

        (x − mean) / scale · w + b = (x − mean) · (w / scale) + b. The mean becomes the center that predictions
        subtract, so that a large one costs no precision.
        """
        dtype = to_host(model.coef_).dtype
        coef = (to_host(model.coef_) / self.scale).astype(dtype)
        model.intercept_ = to_host(model.intercept_).astype(np.float64) - coef.astype(np.float64) @ self.mean
        model.coef_ = coef
        model._center = self.mean


def _blocks(X):
    return gen_batches(len(X), max(1, BLOCK_NUMBERS // X.shape[1]))
