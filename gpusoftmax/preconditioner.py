"""The metric: a Kronecker-factored estimate of the Hessian whose inverse starts every L-BFGS direction.

The Hessian of problem p is ``E_p[(diag(y) - yyᵀ) ⊗ [x, 1]ᵀ[x, 1]] + strength_p · I`` (no penalty on the intercept),
bounded by Böhning (1992). Taking the expectation of the two factors apart gives ``B_p ⊗ A + strength_p · R``, with A
shared by all problems. Two symmetric eigenproblems diagonalise it; applying the inverse is two small products a side.
Knows nothing of rows: it is made from the sums of `kernels.reference.curvature`.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import scipy.linalg

FLOOR = 1e-9  # of the metric's unit diagonal: directions that neither data nor penalty determine


@dataclass(frozen=True)
class KroneckerMetric:
    """An estimate of the inverse Hessian, ``(T ⊗ U_p) diag(1 / curvature_p) (T ⊗ U_p)ᵀ``.

    Parameters
    ----------
    features : array of shape (n_features + 1, n_features + 1), or (n_features + 1,) for a diagonal factor
        T, the basis that makes both A and the penalty diagonal.
    classes : array of shape (n_problems, n_classes, n_classes), or None for the identity
        U, eigenvectors of each B_p.
    curvature : array of shape (n_problems, n_features + 1, n_classes)
    n_passes : float
        Passes over the rows that making it took.
    """

    features: np.ndarray
    classes: np.ndarray | None
    curvature: np.ndarray
    n_passes: float

    def apply(self, gradient):
        """Return the estimated inverse Hessian times `gradient` (n_features + 1, n_problems, n_classes).

        A constant over classes moves no logits apart, so that direction is projected out.
        """
        shape = gradient.shape
        centred = gradient - gradient.mean(axis=2, keepdims=True)
        inner = self._features(centred.reshape(len(centred), -1), transpose=True).reshape(shape).transpose(1, 0, 2)
        if self.classes is not None:
            inner = inner @ self.classes
        inner = inner / self.curvature
        if self.classes is not None:
            inner = inner @ self.classes.transpose(0, 2, 1)
        outer = self._features(inner.transpose(1, 0, 2).reshape(len(centred), -1), transpose=False).reshape(shape)
        outer -= outer.mean(axis=2, keepdims=True)
        return outer

    def _features(self, wide, transpose: bool):
        if self.features.ndim == 1:
            return self.features[:, np.newaxis] * wide
        return (self.features.T if transpose else self.features) @ wide

    def select(self, active) -> Self:
        """Return the metric of the problems in `active`."""
        classes = None if self.classes is None else self.classes[active]
        return replace(self, classes=classes, curvature=self.curvature[active])


def kronecker_metric(gram, classes, weight, strength, scale, *, has_intercept, dtype, n_passes) -> KroneckerMetric:
    """Diagonalise ``B_p ⊗ A + strength_p · R``.

    Parameters
    ----------
    gram : array of shape (n_features + 1, n_features + 1), or its diagonal
        Summed curvature of features multiplied by `scale`.
    classes : array of shape (n_problems, n_classes, n_classes), or its diagonals
    weight, strength : arrays of shape (n_problems,)
        Total weight of the rows summed, and each problem's penalty.
    scale : array of shape (n_features,)
    has_intercept : bool
    dtype : dtype of the params that the metric will be applied to
    n_passes : float
    """
    tiny = np.finfo(np.float64).tiny
    A = gram / max(gram[-1, -1] if gram.ndim == 2 else gram[-1], tiny)
    B = classes / np.maximum(weight, tiny).reshape(-1, *(1,) * (classes.ndim - 1))
    n_classes = B.shape[-1]
    if B.ndim == 3:
        spread = np.trace(B, axis1=1, axis2=2)
        sigma, U = np.linalg.eigh(B + np.maximum(spread, tiny)[:, np.newaxis, np.newaxis] / n_classes)
        U = U.astype(dtype)
    else:
        spread, sigma, U = B.sum(axis=1), B, None
    level = max(float(np.exp(np.log(np.maximum(spread, tiny)).mean())) / max(n_classes - 1, 1), 1e-12)
    positive = strength[strength > 0]
    reference = float(np.exp(np.log(positive).mean())) if len(positive) else 0.0
    penalty = np.append(reference * scale**2, 0.0)
    T, share = _feature_basis(level * A, penalty, ridge=32 * np.finfo(dtype).eps)
    T = np.append(scale, float(has_intercept))[(slice(None),) + (np.newaxis,) * (T.ndim - 1)] * T
    penalised = strength / reference if reference else strength
    curvature = (np.maximum(sigma, 0) / level)[:, np.newaxis, :] * share[:, np.newaxis]
    curvature += penalised[:, np.newaxis, np.newaxis] * (1 - share)[:, np.newaxis]
    np.maximum(curvature, FLOOR, out=curvature)
    return KroneckerMetric(T.astype(dtype), U, curvature.astype(dtype), n_passes)


def _feature_basis(A, penalty, ridge):
    """Return T and `share` with ``Tᵀ A T = diag(share)`` and ``Tᵀ (A + diag(penalty)) T = I``, up to the ridge.

    Solving against the sum of both, scaled to a unit diagonal, is accurate whichever of the two dominates a feature.
    """
    diagonal = (np.diagonal(A) if A.ndim == 2 else A) + penalty
    unit = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    if A.ndim == 1:
        return unit, np.clip(unit**2 * A, 0, 1)
    scaled = unit[:, np.newaxis] * A * unit
    both = scaled + np.diag(unit**2 * penalty)
    both[np.diag_indices_from(both)] += ridge
    share, T = scipy.linalg.eigh(scaled, both, overwrite_a=True, overwrite_b=True, check_finite=False)
    return unit[:, np.newaxis] * T, np.clip(share, 0, 1)
