"""Penalties on the coefficients: value and gradient, one strength per problem. The intercept is never penalised."""

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class L2:
    """Ridge penalty ``strength_p / 2 · ‖W_p‖²``.

    Parameters
    ----------
    strength : array of shape (n_problems,), float64
        ``1 / (C · S)`` per problem; zero for no penalty.
    """

    strength: np.ndarray

    def value(self, coefficients):
        """Return the penalty of `coefficients` (n_features, n_problems, n_classes), shape (n_problems,), float64."""
        # A square that overflows shows as an infinite objective, which the solver rejects; a zero strength stays zero.
        with np.errstate(over="ignore"):
            norm = np.einsum("dpk,dpk->p", coefficients, coefficients, dtype=np.float64)
            return 0.5 * np.multiply(self.strength, norm, out=np.zeros_like(norm), where=self.strength > 0)

    def add_gradient(self, coefficients, gradient) -> None:
        """Add ``strength_p · W_p`` to `gradient` in place."""
        gradient += self.strength[:, np.newaxis].astype(gradient.dtype) * coefficients

    def select(self, active) -> Self:
        return type(self)(self.strength[active])
