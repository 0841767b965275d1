"""The metrics of problems that share no rows: each problem's own, a diagonal at first and Kronecker-factored later.

A diagonal costs one pass and serves easy problems to the end; they are over before a Cholesky factor for each would
have been made. Those that still run when the metric is refreshed get the metric of `preconditioner`, with a factor of
their own for the features too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from gpusoftmax.arrays import Arrays


@dataclass(frozen=True)
class DiagonalMetric:
    """The inverse of the Hessian's diagonal for features less their mean, averaged over classes.

    A gradient sums to zero over its classes, and so do steps from it: a constant moves no logits apart.

    inverse : array of shape (n_problems, n_features + 1, n_classes)
    mean : array of shape (n_problems, n_features, 1)
    """

    arrays: Arrays
    inverse: np.ndarray
    mean: np.ndarray
    n_passes: float = 1.0

    def apply(self, gradient):
        part = gradient.transpose(1, 0, 2).copy()
        part[:, :-1] -= self.mean * part[:, -1:]
        part *= self.inverse
        part[:, -1:] -= self.mean.transpose(0, 2, 1) @ part[:, :-1]
        return part.transpose(1, 0, 2)

    def select(self, active) -> Self:
        active = self.arrays.to_device(active)
        return replace(self, inverse=self.inverse[active], mean=self.mean[active])


@dataclass(frozen=True)
class IndependentMetric:
    """Each problem's ``(T_p ⊗ U_p) diag(1 / curvature_p) (T_p ⊗ U_p)ᵀ``; see `preconditioner.KroneckerMetric`.

    features : array of shape (n_problems, n_features + 1, n_features + 1)
    classes : array of shape (n_problems, n_classes, n_classes)
    curvature : array of shape (n_problems, n_features + 1, n_classes)
    """

    arrays: Arrays
    features: np.ndarray
    classes: np.ndarray
    curvature: np.ndarray
    n_passes: float = 1.0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return one metric of the problems of several."""
        arrays, names = parts[0].arrays, ("features", "classes", "curvature")
        return cls(arrays, *(arrays.xp.concatenate([getattr(part, name) for part in parts]) for name in names))

    def apply(self, gradient):
        """Return the estimated inverse Hessian times `gradient` (n_features + 1, n_problems, n_classes)."""
        inner = self.features.transpose(0, 2, 1) @ (gradient.transpose(1, 0, 2) @ self.classes)
        inner /= self.curvature
        return (self.features @ inner @ self.classes.transpose(0, 2, 1)).transpose(1, 0, 2)

    def select(self, active) -> Self:
        active = self.arrays.to_device(active)
        return replace(
            self, features=self.features[active], classes=self.classes[active], curvature=self.curvature[active]
        )


def diagonal_metric(
    arrays: Arrays, sums, column, n_classes: int, total, strength, scale, *, precision: float
) -> DiagonalMetric:
    """Return the metric of the Hessian's diagonal, for features less their mean.

    Parameters
    ----------
    arrays : Arrays
        Where all of these live.
    sums, column : arrays of shape (n_problems, n_features + 1)
        See `kernels.independent.diagonal_curvature`.
    n_classes : int
    total, strength : arrays of shape (n_problems,), float64
    scale : array of shape (n_problems, n_features + 1, 1), float64, the last feature's zero without an intercept
    precision : float
        Relative rounding error of the sums.
    """
    xp = arrays.xp
    scale = scale[:, :, 0]
    corner = column[:, -1:]
    mean = xp.where(corner > 0, column[:, :-1] / xp.where(corner > 0, corner, 1), 0)
    sums[:, :-1] = xp.maximum(sums[:, :-1] - mean * column[:, :-1], 32 * precision * sums[:, :-1])
    mean = (mean / scale[:, :-1])[:, :, np.newaxis].astype(sums.dtype)
    curvature = sums / (total * max(n_classes - 1, 1))[:, np.newaxis]
    curvature = xp.maximum(curvature, np.sqrt(precision) * curvature.max(axis=1, keepdims=True))
    curvature[:, :-1] += strength[:, np.newaxis] * scale[:, :-1] ** 2
    inverse = xp.where(curvature > 0, scale**2 / curvature, 0)
    return DiagonalMetric(arrays, xp.repeat(inverse[:, :, np.newaxis].astype(sums.dtype), n_classes, axis=2), mean)


def independent_metric(arrays: Arrays, gram, classes, total, strength, scale, *, precision: float) -> IndependentMetric:
    """Diagonalise every problem's ``B_p ⊗ A_p + strength_p · R``, features by a Cholesky factor.

    Parameters
    ----------
    arrays : Arrays
        Where all of these live.
    gram : array of shape (n_problems, n_features + 1, n_features + 1)
    classes : array of shape (n_problems, n_classes, n_classes)
        See `kernels.independent.curvature`.
    total, strength, scale, precision
        As of `diagonal_metric`.
    """
    xp, tiny = arrays.xp, np.finfo(np.float64).tiny
    n_classes, dtype = classes.shape[-1], gram.dtype
    B = classes / total[:, np.newaxis, np.newaxis]
    spread = xp.maximum(xp.trace(B, axis1=1, axis2=2), tiny)
    # The largest eigenvalue is then that of the constants over classes, which move no logits apart.
    sigma, U = xp.linalg.eigh(xp.where(xp.isfinite(B), B, 0) + spread[:, np.newaxis, np.newaxis])
    U -= U.mean(axis=1, keepdims=True)
    level = spread / max(n_classes - 1, 1)
    A = gram * (level / spread / total)[:, np.newaxis, np.newaxis]
    penalty = strength[:, np.newaxis, np.newaxis] * scale**2
    penalty[:, -1] = 0
    T, share = _feature_bases(xp, A, penalty, max(4 * A.shape[1] * precision, 1e-11))
    sigma = xp.maximum(sigma, tiny) / level[:, np.newaxis]
    curvature = sigma[:, np.newaxis] * share[:, :, np.newaxis] + (1 - share)[:, :, np.newaxis]
    xp.maximum(curvature, np.sqrt(precision), out=curvature)
    T *= scale
    return IndependentMetric(arrays, T.astype(dtype), U.astype(dtype), curvature.astype(dtype))


def _feature_bases(xp: Any, A, penalty, ridge: float):
    """Return each problem's T with ``Tᵀ (A + diag(penalty)) T = I``, up to the ridge, and the diagonal of ``Tᵀ A T``.

    A problem whose matrix is not positive definite in its precision gets a diagonal T.
    """
    n = A.shape[1]
    both = xp.where(xp.isfinite(A), A, 0)
    diagonal = both.reshape(len(A), -1)[:, :: n + 1]
    diagonal += penalty[:, :, 0]
    unit = 1 / xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0))[:, :, np.newaxis]
    both *= unit
    both *= unit.transpose(0, 2, 1)
    diagonal[:] = 1 + ridge
    T = xp.linalg.inv(_cholesky_factors(xp, both)).transpose(0, 2, 1)
    share = 1 - (T * T * (unit**2 * penalty)).sum(axis=1)
    return unit * T, share.clip(0, 1)


def _cholesky_factors(xp: Any, A):
    """Return every problem's Cholesky factor, the identity where there is none."""
    try:
        L = xp.linalg.cholesky(A)
    except np.linalg.LinAlgError:  # NumPy's refuses the lot
        L = xp.stack([_cholesky_factors(xp, each[np.newaxis])[0] for each in A]) if len(A) > 1 else A * np.nan
    is_factor = xp.isfinite(L).all(axis=(1, 2))[:, np.newaxis, np.newaxis]
    return xp.where(is_factor, L, xp.eye(A.shape[1]))
