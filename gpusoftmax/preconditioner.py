"""The metric: a Kronecker-factored estimate of the Hessian whose inverse starts every L-BFGS direction.

The Hessian of problem p is ``E_p[(diag(y) - yyᵀ) ⊗ [x, 1]ᵀ[x, 1]] + strength_p · I`` (no penalty on the intercept),
bounded by Böhning (1992). Taking the expectation of the two factors apart gives ``B_p ⊗ A + strength_p · R``, with A
shared by all problems. An eigenproblem of the classes and one, or a Cholesky factor, of the features diagonalise it;
applying the inverse is two small products a side. Knows nothing of rows: it is made from the sums of
`kernels.reference.curvature`.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gpusoftmax.arrays import Arrays
from gpusoftmax.exceptions import NonFiniteError

LEAST_LEVEL = 1e-20  # of curvature: float32 can divide by it
SERVES = (
    32.0  # times the resolution of its shares is the weakest penalty that a metric serves, in those it was made with
)
ALIKE = 6.0  # largest spread of curvature over penalty that one Cholesky factor serves: more costs passes


@dataclass(frozen=True)
class KroneckerMetric:
    """An estimate of the inverse Hessian, ``(T ⊗ U_p) diag(1 / curvature_p) (T ⊗ U_p)ᵀ``.

    Parameters
    ----------
    arrays : Arrays
        Where all of these live, and gradients.
    features : array of shape (n_features + 1, n_features + 1), or (n_features + 1,) for a diagonal factor
        T, a basis that makes both A and the penalty diagonal, or all but.
    mean : array of shape (n_features,), or None
        Where the factor is diagonal, that of the features less these.
    classes : array of shape (n_problems, n_classes, n_classes), or None for the identity
        U, eigenvectors of each B_p, centred over the classes.
    spectrum : Spectrum
    n_passes : float
        Passes over the rows that making it took.
    """

    arrays: Arrays
    features: np.ndarray
    mean: np.ndarray | None
    classes: np.ndarray | None
    spectrum: "Spectrum"
    n_passes: float

    def apply(self, gradient):
        """Return the estimated inverse Hessian times `gradient` (n_features + 1, n_problems, n_classes).

        A constant over classes moves no logits apart, so that direction is projected out.
        """
        wide = gradient.astype(self.features.dtype, copy=False).reshape(len(gradient), -1)
        wide = self._features(wide, transpose=True)
        by_problem = wide.reshape(gradient.shape).transpose(1, 0, 2)
        if self.classes is None:
            by_problem = _centred(_centred(by_problem) / self.spectrum.curvature)
        else:
            by_problem = by_problem @ self.classes
            by_problem /= self.spectrum.curvature
            by_problem = by_problem @ self.classes.transpose(0, 2, 1)
        wide = by_problem.transpose(1, 0, 2).reshape(wide.shape)
        return self._features(wide, transpose=False).reshape(gradient.shape).astype(gradient.dtype, copy=False)

    def _features(self, wide, transpose: bool):
        if self.features.ndim == 2:
            return (self.features.T if transpose else self.features) @ wide
        if self.mean is not None and transpose:
            wide = wide.copy()
            wide[:-1] -= self.mean[:, np.newaxis] * wide[-1]
        wide = self.features[:, np.newaxis] * wide
        if self.mean is not None and not transpose:
            wide[-1] -= self.mean @ wide[:-1]
        return wide

    def select(self, active) -> Self:
        """Return the metric of the problems in `active`."""
        places = self.arrays.to_device(active)
        classes = None if self.classes is None else self.classes[places]
        return replace(self, classes=classes, spectrum=self.spectrum.select(active, places))

    def adapted(self, strength: np.ndarray, spread: np.ndarray) -> Self | None:
        """Return the metric with other penalties, at other params, which costs no pass; for one that is lasting.

        None where it cannot serve: beside the penalties that it was made with, rounding has left nothing of curvature
        that these do not outweigh.

        Parameters
        ----------
        strength, spread : arrays of shape (n_problems,), on the host
            Of the penalties, and the trace of E[diag(y) - yyᵀ] at those params: the level of the loss's curvature,
            which falls by powers of ten where a model separates its rows.
        """
        if strength.min(where=strength > 0, initial=np.inf) < SERVES * self.spectrum.resolution * self.spectrum.level:
            return None
        return replace(self, spectrum=self.spectrum.adapted(self.arrays, strength, spread), n_passes=0.0)


@dataclass(frozen=True)
class Spectrum:
    """Curvature along the directions of a metric: of the loss, and of the penalty.

    Parameters
    ----------
    classes : array of shape (n_problems, n_classes)
        Eigenvalues of each B_p, relative to a common level.
    spread : array of shape (n_problems,), on the host
        Trace of each B_p.
    share : array of shape (n_features + 1,)
        How much of the curvature along each direction is the loss's where classes and strength are at their level.
    level : float
        That of the strengths.
    least : float
        Undetermined directions must not magnify rounding.
    resolution : float
        Rounding error of `share`.
    curvature : array of shape (n_problems, n_features + 1, n_classes)
    """

    classes: np.ndarray
    spread: np.ndarray
    share: np.ndarray
    level: float
    least: float
    resolution: float
    curvature: np.ndarray

    @classmethod
    def of(
        cls, arrays: Arrays, classes, spread, share, *, level: float, least: float, resolution: float, strength
    ) -> Self:
        """Return the spectrum with penalties of some strength, (n_problems,) on the host."""
        curvature = classes[:, np.newaxis, :] * share[:, np.newaxis]
        relative = arrays.to_device(strength / level, share.dtype)
        curvature += relative[:, np.newaxis, np.newaxis] * (1 - share)[:, np.newaxis]
        largest = curvature.max(axis=(1, 2), keepdims=True)
        arrays.xp.maximum(curvature, least * largest.clip(LEAST_LEVEL, 1), out=curvature)
        return cls(classes, spread, share, level, least, resolution, curvature)

    def adapted(self, arrays: Arrays, strength: np.ndarray, spread: np.ndarray) -> Self:
        spread = np.where(spread > 0, spread, self.spread)  # neither is NaN one nor what has underflowed
        ratio = arrays.to_device(spread / self.spread, self.classes.dtype)
        classes = ratio[:, np.newaxis] * self.classes
        constants = {"level": self.level, "least": self.least, "resolution": self.resolution}
        return self.of(arrays, classes, spread, self.share, **constants, strength=strength)

    def select(self, kept: np.ndarray, places) -> Self:
        return replace(self, classes=self.classes[places], spread=self.spread[kept], curvature=self.curvature[places])


def kronecker_metric(
    arrays: Arrays,
    gram,
    classes,
    weight,
    strength,
    scale,
    *,
    has_intercept,
    precision,
    n_passes,
    offsets=None,
    rare_squares=None,
    is_lasting=False,
) -> KroneckerMetric:
    """Diagonalise ``B_p ⊗ A + strength_p · R``.

    Parameters
    ----------
    arrays : Arrays
        Where `gram` lives, and the metric will; all else is on the host, where small matrices are quicker.
    gram : array of shape (n_features + 1, n_features + 1), or its diagonal
        Summed curvature of features multiplied by `scale`; overwritten. The metric has its dtype.
    classes : array of shape (n_problems, n_classes, n_classes), or its diagonals
    weight, strength : arrays of shape (n_problems,)
        Total weight of the rows summed, and each problem's penalty.
    scale : array of shape (n_features,)
    has_intercept : bool
    precision : float
        Relative rounding error of the sums.
    n_passes : float
    offsets : array of shape (n_features,), or None
        Beside a diagonal: the last column of its matrix, without which features far from zero would seem independent
        of the intercept.
    rare_squares : array of shape (n_features,), or None
        Mean squares of features, not scaled, of which the rows summed tell too little; zero for others.
    is_lasting : bool
        Whether it will be `adapted`: only the eigenproblem's answer serves every strength.

    Raises
    ------
    NonFiniteError
        The sums are not finite.
    """
    corner = float(arrays.to_host(gram.reshape(-1)[-1:])[0])
    if not (arrays.to_host(arrays.xp.isfinite(gram).all()) and np.isfinite(classes).all()):
        raise NonFiniteError("The curvature of the objective left the range of its dtype: rescale the features.")
    tiny = np.finfo(np.float64).tiny
    B = classes / np.maximum(weight, tiny).reshape(-1, *(1,) * (classes.ndim - 1))
    n_classes = B.shape[-1]
    if B.ndim == 3:
        spread = np.trace(B, axis1=1, axis2=2)
        sigma, U = np.linalg.eigh(B + np.maximum(spread, tiny)[:, np.newaxis, np.newaxis] / n_classes)
        U = _centred(U.transpose(0, 2, 1)).transpose(0, 2, 1)
    else:
        spread, sigma, U = B.sum(axis=1), B, None
    level = max(float(np.exp(np.log(np.maximum(spread, tiny)).mean())) / max(n_classes - 1, 1), 1e-12)
    positive = strength[strength > 0]
    reference = float(np.exp(np.log(positive).mean())) if len(positive) else 0.0
    penalty = np.append(reference * scale**2, 0.0)
    resolution, mean = max(32 * precision, 1e-11), None
    if offsets is not None and has_intercept:
        mean = offsets / max(corner, tiny)
        gram[:-1] = arrays.xp.maximum(gram[:-1] - mean * offsets, resolution * gram[:-1])
        mean /= arrays.to_device(scale, gram.dtype)
    if rare_squares is not None:
        diagonal = gram if gram.ndim == 1 else gram.reshape(-1)[:: len(gram) + 1]
        diagonal[:-1] += arrays.to_device(corner * rare_squares * scale**2, gram.dtype)
    gram *= level / max(corner, tiny)
    if gram.ndim == 2 and not has_intercept:  # else the inverse would be that of the Schur complement
        gram[-1, :-1] = gram[:-1, -1] = 0
    sigma = np.maximum(sigma, tiny) / level
    ratio = strength[:, np.newaxis] / (sigma if U is None else sigma[:, :-1])  # the last moves all classes alike
    is_alike = ratio.size == 0 or ratio.max() <= ALIKE * ratio.min()
    T, share = _feature_basis(arrays, gram, penalty, resolution, is_alike and not is_lasting)
    units = arrays.to_device(np.append(scale, float(has_intercept)), gram.dtype)
    T *= units if T.ndim == 1 else units[:, np.newaxis]
    spectrum = Spectrum.of(
        arrays,
        arrays.to_device(sigma, gram.dtype),
        np.maximum(spread, tiny),
        arrays.to_device(share, gram.dtype),
        level=reference or 1.0,
        least=float(np.sqrt(precision)),
        resolution=resolution,
        strength=strength,
    )
    return KroneckerMetric(arrays, T, mean, None if U is None else arrays.to_device(U, gram.dtype), spectrum, n_passes)


def _feature_basis(arrays: Arrays, A, penalty, ridge, is_alike):
    """Return T and `share` with ``Tᵀ A T = diag(share)`` and ``Tᵀ (A + diag(penalty)) T = I``, up to the ridge.

    Solving against the sum of both, scaled to a unit diagonal, is accurate whichever of the two dominates a feature;
    the ridge grows where rounding asks. Where all weigh curvature and penalty alike, only the sum need be diagonal: a
    Cholesky factor does, in a seventh of the time. Overwrites A, and makes four more matrices of its size.
    """
    # A feature without curvature stays as it is: scaling by a penalty next to nothing would overflow.
    curvature = arrays.to_host(A.diagonal() if A.ndim == 2 else A)
    unit = 1 / np.sqrt(np.where(curvature > 0, curvature + penalty, 1.0))
    if A.ndim == 1:
        return arrays.to_device(unit, A.dtype), np.clip(unit**2 * curvature, 0, 1)
    units = arrays.to_device(unit, A.dtype)
    A *= units
    A *= units[:, np.newaxis]
    scaled_penalty = unit**2 * penalty
    while True:
        both = A.copy()
        both.reshape(-1)[:: len(A) + 1] += arrays.to_device(scaled_penalty + ridge, A.dtype)
        try:
            if is_alike:
                T = arrays.inverse_cholesky(both)
                share = 1 - arrays.to_host(arrays.to_device(scaled_penalty, A.dtype) @ (T * T))
            else:
                share, T = arrays.eigenvectors(A, both)
        except np.linalg.LinAlgError:
            ridge = 100 * ridge
        else:
            T *= units[:, np.newaxis]
            return T, np.clip(share, 0, 1)


def _centred(array):
    """Return `array` less its mean along the last axis."""
    return array - array.mean(axis=-1, keepdims=True)
