"""Penalties on the coefficients: value and gradient, one strength per problem. The intercept is never penalised."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from gpusoftmax.arrays import Arrays


@dataclass(frozen=True)
class L2:
    """Ridge penalty ``strength_p / 2 · ‖W_p‖²``.

    Parameters
    ----------
    arrays : Arrays
        Where coefficients and strengths live.
    strength : array of shape (n_problems,), float64
        ``1 / (C · S)`` per problem; zero for no penalty.
    """

    arrays: Arrays
    strength: np.ndarray

    def value(self, coefficients):
        """Return the penalty of `coefficients` (n_features, n_problems, n_classes), shape (n_problems,), float64."""
        # A square that overflows shows as an infinite objective, which the solver rejects; a zero strength stays zero.
        xp = self.arrays.xp
        with np.errstate(over="ignore", invalid="ignore"):
            norm = xp.einsum("dpk,dpk->p", coefficients, coefficients, dtype=np.float64)
            return xp.where(self.strength > 0, 0.5 * self.strength * norm, 0.0)

    def add_gradient(self, coefficients, gradient) -> None:
        """Add ``strength_p · W_p`` to `gradient` in place."""
        gradient += self.strength[:, np.newaxis].astype(gradient.dtype) * coefficients

    def select(self, active) -> Self:
        return type(self)(self.arrays, self.strength[self.arrays.to_device(active)])
