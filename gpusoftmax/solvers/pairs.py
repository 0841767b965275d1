"""What L-BFGS remembers of each problem: steps, gradient differences, and the inverse Hessian they imply.

Vectors stay where they live. All that is decided here is decided on the host, from their inner products: a direction
is a combination of stored vectors, and its coefficients need no vector (compact form: Byrd, Nocedal & Schnabel 1994,
Math. Program. 63, 129-156).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import numpy as np

from gpusoftmax.arrays import Arrays


class Products(NamedTuple):
    """Inner products (n_problems, n_slots) of stored vectors with a candidate's, and (n_problems,) of its own."""

    Sg: np.ndarray
    Sy: np.ndarray
    Ys: np.ndarray
    YHg: np.ndarray
    YHy: np.ndarray
    ss: np.ndarray
    yy: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Slots of pairs, one of which per problem, the one at `candidate`, is for the pair that the next step may add.

    Parameters
    ----------
    arrays : Arrays
    vectors : array of shape (n_problems, 3 n_slots, n_params)
        Gradient differences Y, steps S, and the metric times the former, HY.
    SY, YHY : arrays of shape (n_problems, n_slots, n_slots), host, float64
        Inner products S Yᵀ, zero where there is no pair, and Y HYᵀ.
    age : array of shape (n_problems, n_slots), host
        Orders each problem's pairs in time; 0 where there is none.
    candidate : array of shape (n_problems,), host
    """

    arrays: Arrays
    vectors: np.ndarray
    SY: np.ndarray
    YHY: np.ndarray
    age: np.ndarray
    candidate: np.ndarray

    @classmethod
    def empty(cls, arrays: Arrays, n_problems: int, n_pairs: int, n_params: int, dtype: np.dtype) -> Self:
        """Return room for `n_pairs` pairs and a candidate for each of `n_problems`."""
        n_slots = n_pairs + 1
        SY, YHY = (np.zeros((n_problems, n_slots, n_slots)) for _ in range(2))
        age, candidate = np.zeros((n_problems, n_slots), np.int64), np.zeros(n_problems, np.int64)
        return cls(arrays, arrays.xp.zeros((n_problems, 3 * n_slots, n_params), dtype), SY, YHY, age, candidate)

    @property
    def n_slots(self) -> int:
        return self.age.shape[1]

    def hold(self, new, old) -> None:
        """Store the candidates: from old to new points, each params, gradient g and the metric times that, Hg."""
        for place, after, before in zip(self._places(), new, old, strict=True):
            self.vectors[place] = after - before

    def products(self, g, Hg) -> Products:
        """Return the inner products with the held candidates and their points' g and Hg, not yet on the host."""
        Y, S = self.vectors[:, : self.n_slots], self.vectors[:, self.n_slots : 2 * self.n_slots]
        s, y, Hy = self._places()  # each a copy where it is read: one at a time
        return Products(
            Sg=times(S, g),
            Sy=times(S, self.vectors[y]),
            Ys=times(Y, self.vectors[s]),
            YHg=times(Y, Hg),
            YHy=times(Y, self.vectors[Hy]),
            ss=dot(self.vectors[s], self.vectors[s]),
            yy=dot(self.vectors[y], self.vectors[y]),
        )

    def _places(self):
        """Return where the candidates' s, y and Hy are among the vectors."""
        rows, slot, n = self.arrays.xp.arange(len(self.age)), self.arrays.to_device(self.candidate), self.n_slots
        return (rows, slot + n), (rows, slot), (rows, slot + 2 * n)

    def differences_times(self, vectors):
        """Return the inner products of Y with one vector a problem, (n_problems, n_slots), not yet on the host."""
        return times(self.vectors[:, : self.n_slots], vectors)

    def accept(self, taken: np.ndarray, products: Products) -> None:
        """Make pairs of the held candidates of the problems in `taken` whose function curves along them."""
        sy = products.Sy[np.arange(len(taken)), self.candidate]
        for p in np.flatnonzero(taken & (sy > 1e-10 * np.sqrt(products.ss * products.yy))).tolist():
            slot = self.candidate[p]
            self.SY[p, slot], self.SY[p, :, slot] = products.Ys[p], products.Sy[p]
            self.YHY[p, slot] = self.YHY[p, :, slot] = products.YHy[p]
            self.age[p, slot] = self.age[p].max() + 1
            self.candidate[p] = oldest = self.age[p].argmin()
            self.age[p, oldest] = self.SY[p, oldest] = self.SY[p, :, oldest] = 0

    def coefficients(self, Sg: np.ndarray, YHg: np.ndarray):
        """Return a, b and c with ``c (H g - HYᵀ a) + Sᵀ b`` the inverse Hessian times g.

        It starts from the metric H times c and satisfies every pair's secant equation in turn.
        """
        is_pair, diagonal = self.age > 0, np.arange(self.n_slots)
        D = self.SY[:, diagonal, diagonal]
        R = self.SY * (self.age[:, :, np.newaxis] <= self.age[:, np.newaxis, :])
        R[:, diagonal, diagonal] = np.where(is_pair, D, 1.0)
        inverse = np.linalg.inv(R)
        c = self.metric_scale()
        a = times(inverse, np.where(is_pair, Sg, 0.0))
        Y_step = c[:, np.newaxis] * (YHg - times(self.YHY, a))
        return a, times(inverse.transpose(0, 2, 1), np.where(is_pair, D * a - Y_step, 0.0)), c

    def metric_scale(self) -> np.ndarray:
        """Return what to multiply the metric by, given the curvature along each problem's newest step.

        The classical scale sᵀy / yᵀHy trusts that one step alone, no scale trusts the metric alone; their geometric
        mean needed fewest passes to a gap of 1e-4 on MNIST-10k, digits and letters. It keeps unit steps acceptable.
        """
        everyone, newest = np.arange(len(self.age)), self.age.argmax(axis=1)
        curvature = self.YHY[everyone, newest, newest]
        is_known = self.age.any(axis=1) & (curvature > 0)
        ratio = np.divide(self.SY[everyone, newest, newest], curvature, out=np.ones(len(newest)), where=is_known)
        return np.sqrt(ratio)

    def combine(self, a: np.ndarray, b: np.ndarray):
        """Return each problem's ``Sᵀ b - HYᵀ a``."""
        weights = self.arrays.to_device(np.concatenate([b, -a], axis=1)[:, np.newaxis], self.vectors.dtype)
        return (weights @ self.vectors[:, self.n_slots :])[:, 0]

    def change_metric(self, apply_metric: Callable) -> None:
        """Apply another metric to the gradient differences."""
        n = self.n_slots
        for slot in np.flatnonzero(self.age.any(axis=0)).tolist():
            self.vectors[:, 2 * n + slot] = apply_metric(self.vectors[:, slot])
        Y, HY = self.vectors[:, :n], self.vectors[:, 2 * n :]
        is_pair = self.age > 0
        YHY = self.arrays.to_host(Y @ HY.transpose(0, 2, 1))
        self.YHY[:] = np.where(is_pair[:, :, np.newaxis] & is_pair[:, np.newaxis, :], YHY, 0.0)

    def forget(self, problems: np.ndarray) -> None:
        """Drop the pairs of some problems, and whatever their candidate left."""
        self.vectors[self.arrays.to_device(problems)] = 0
        self.age[problems] = self.SY[problems] = 0

    def select(self, kept: np.ndarray) -> Self:
        """Return the pairs of the problems in `kept`."""
        host = {field.name: getattr(self, field.name)[kept] for field in fields(self)[2:]}
        return replace(self, vectors=self.vectors[self.arrays.to_device(kept)], **host)


def times(matrices, vectors):
    """Return each problem's matrix (n_problems, m, n) times its vector (n_problems, n)."""
    return (matrices @ vectors[:, :, np.newaxis])[:, :, 0]


def dot(a, b):
    """Return each problem's inner product of vectors (n_problems, n)."""
    return times(a[:, np.newaxis], b)[:, 0]
