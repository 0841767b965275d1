"""What L-BFGS remembers of each problem: steps, gradient differences, and the inverse Hessian they imply.

Vectors stay where they live. All that is decided here is decided on the host, from their inner products: a direction
is a combination of stored vectors, and its coefficients need no vector (compact form: Byrd, Nocedal & Schnabel 1994,
Math. Program. 63, 129-156).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np

from gpusoftmax.arrays import Arrays

PER_PROBLEM = ("Y", "S_HY", "D", "R_inverse", "YHY", "age", "candidate")
LEAST_LEFT = 0.01  # of a pair's curvature: below, what rounding had added to it matters
PIECE = 1 << 16  # numbers that change places together


class Products(NamedTuple):
    """Inner products (n_problems, n_slots) of stored vectors with a candidate's, and (n_problems,) of its own."""

    Sg: np.ndarray
    Sy: np.ndarray
    YHg: np.ndarray
    YHy: np.ndarray
    ss: np.ndarray
    yy: np.ndarray


@dataclass
class Pairs:
    """Slots of pairs, one of which per problem, the one at `candidate`, is for the pair that the next step may add.

    Slots fill from the first on, at most one for every candidate held: products leave out those that none can have
    reached. That count, unlike a look at who uses what, is the same whatever problems share the stack.

    Parameters
    ----------
    arrays : Arrays
    Y : array of shape (n_problems, n_slots, n_params)
        Gradient differences.
    S_HY : array of shape (n_problems, n_slots, 2, n_params)
        Steps, and the metric times Y.
    n_held : int
        How many candidates each problem has had.
    D : array of shape (n_problems, n_slots), host, float64
        Inner products sᵀy of each pair.
    R_inverse : array of shape (n_problems, n_slots, n_slots), host, float64
        Inverse of the upper triangle, in order of age, of S Yᵀ; zero where there is no pair. The newest pair adds a
        column to it, and what the oldest leaves behind is the inverse of the rest.
    YHY : array of shape (n_problems, n_slots, n_slots), host, float64
        Inner products Y HYᵀ.
    age : array of shape (n_problems, n_slots), host
        Orders each problem's pairs in time; 0 where there is none.
    candidate : array of shape (n_problems,), host
    moves : list of (int, int)
        Places that `select` made two problems change, the first change first; shared by all that it returned.
    """

    arrays: Arrays
    Y: np.ndarray
    S_HY: np.ndarray
    n_held: int
    D: np.ndarray
    R_inverse: np.ndarray
    YHY: np.ndarray
    age: np.ndarray
    candidate: np.ndarray
    moves: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def empty(cls, arrays: Arrays, n_problems: int, n_pairs: int, n_params: int, dtype: np.dtype) -> Self:
        """Return room for `n_pairs` pairs and a candidate for each of `n_problems`."""
        shape = n_problems, n_pairs + 1
        return cls(
            arrays,
            Y=arrays.xp.zeros((*shape, n_params), dtype),
            S_HY=arrays.xp.zeros((*shape, 2, n_params), dtype),
            n_held=0,
            D=np.zeros(shape),
            R_inverse=np.zeros((*shape, n_pairs + 1)),
            YHY=np.zeros((*shape, n_pairs + 1)),
            age=np.zeros(shape, np.int64),
            candidate=np.zeros(n_problems, np.int64),
        )

    @property
    def n_slots(self) -> int:
        return self.age.shape[1]

    @property
    def n_used(self) -> int:
        """How many slots, from the first on, may hold anything."""
        return min(self.n_held, self.n_slots)

    def hold(self, new, old) -> None:
        """Store the candidates: from old to new points, each params, gradient g and the metric times that, Hg."""
        rows, slot = self._places()
        (x, g, Hg), (old_x, old_g, old_Hg) = new, old
        self.S_HY[rows, slot, 0] = x - old_x
        self.Y[rows, slot] = g - old_g
        self.S_HY[rows, slot, 1] = Hg - old_Hg
        self.n_held += 1

    def products(self, g) -> Products:
        """Return the inner products with the held candidates and their points' gradient g, not yet on the host."""
        rows, slot = self._places()
        s, y = self.S_HY[rows, slot, 0], self.Y[rows, slot]
        with_g, with_y = self._products_with(g), self._products_with(y)
        return Products(
            Sg=with_g[:, :, 0],
            Sy=with_y[:, :, 0],
            YHg=with_g[:, :, 1],
            YHy=with_y[:, :, 1],
            ss=dot(s, s),
            yy=dot(y, y),
        )

    def _places(self):
        """Return where the candidates are among the slots."""
        return self.arrays.xp.arange(len(self.age)), self.arrays.to_device(self.candidate)

    def _products_with(self, vectors):
        """Return the inner products of S and HY with one vector a problem, (n_problems, n_slots, 2)."""
        result = self.arrays.xp.zeros(self.S_HY.shape[:3], vectors.dtype)
        result[:, : self.n_used] = times(self._used(), vectors).reshape(len(vectors), self.n_used, 2)
        return result

    def _used(self):
        used = self.S_HY[:, : self.n_used]
        return used.reshape(len(used), 2 * self.n_used, used.shape[3])

    def steps_times(self, vectors):
        """Return the inner products of S with one vector a problem, (n_problems, n_slots), not yet on the host."""
        return self._products_with(vectors)[:, :, 0]

    def differences_times(self, vectors):
        """Return the inner products of Y with one vector a problem, (n_problems, n_slots), not yet on the host."""
        return times(self.Y, vectors)

    def accept(self, taken: np.ndarray, products: Products) -> None:
        """Make pairs of the held candidates of the problems in `taken` whose function curves along them."""
        sy = products.Sy[np.arange(len(taken)), self.candidate]
        p = np.flatnonzero(taken & (sy > 1e-10 * np.sqrt(products.ss * products.yy)))
        slot, sy = self.candidate[p], sy[p]
        column = times(self.R_inverse[p], np.where(self.age[p] > 0, products.Sy[p], 0.0))
        self.R_inverse[p, :, slot] = -column / sy[:, np.newaxis]
        self.R_inverse[p, slot, slot] = 1 / sy
        self.D[p, slot] = sy
        self.YHY[p, slot] = self.YHY[p, :, slot] = products.YHy[p]
        self.age[p, slot] = self.age[p].max(axis=1) + 1
        self.candidate[p] = oldest = self.age[p].argmin(axis=1)
        self.age[p, oldest] = self.R_inverse[p, oldest] = self.R_inverse[p, :, oldest] = 0

    def coefficients(self, Sg: np.ndarray, YHg: np.ndarray):
        """Return a, b and c with ``c (H g - HYᵀ a) + Sᵀ b`` the inverse Hessian times g.

        It starts from the metric H times c and satisfies every pair's secant equation in turn.
        """
        is_pair, c = self.age > 0, self.metric_scale()
        a = times(self.R_inverse, np.where(is_pair, Sg, 0.0))
        Y_step = c[:, np.newaxis] * (YHg - times(self.YHY, a))
        return a, times(self.R_inverse.transpose(0, 2, 1), np.where(is_pair, self.D * a - Y_step, 0.0)), c

    def metric_scale(self) -> np.ndarray:
        """Return what to multiply the metric by, given the curvature along each problem's newest step.

        The classical scale sᵀy / yᵀHy trusts that one step alone, no scale trusts the metric alone; their geometric
        mean needed fewest passes to a gap of 1e-4 on MNIST-10k, digits and letters. It keeps unit steps acceptable.
        """
        everyone, newest = np.arange(len(self.age)), self.age.argmax(axis=1)
        curvature = self.YHY[everyone, newest, newest]
        is_known = self.age.any(axis=1) & (curvature > 0)
        ratio = np.divide(self.D[everyone, newest], curvature, out=np.ones(len(newest)), where=is_known)
        return np.sqrt(ratio)

    def combine(self, a: np.ndarray, b: np.ndarray):
        """Return each problem's ``Sᵀ b - HYᵀ a``."""
        weights = np.stack([b, -a], axis=2)[:, : self.n_used].reshape(len(a), 1, 2 * self.n_used)
        return (self.arrays.to_device(weights, self.Y.dtype) @ self._used())[:, 0]

    def change_metric(self, apply_metric: Callable) -> None:
        """Apply another metric to the gradient differences."""
        xp, slots = self.arrays.xp, np.flatnonzero(self.age.any(axis=0)).tolist()
        if not slots:
            return
        for slot in slots:
            self.S_HY[:, slot, 1] = apply_metric(self.Y[:, slot])
        each = (xp.ascontiguousarray(self.Y[:, slot]) for slot in slots)  # one at a time
        columns = xp.stack([self._products_with(y)[:, :, 1] for y in each], axis=2)
        is_pair = self.age > 0
        both = is_pair[:, :, np.newaxis] & is_pair[:, np.newaxis, slots]
        self.YHY[:, :, slots] = np.where(both, self.arrays.to_host(columns), 0.0)

    def forget(self, problems: np.ndarray) -> None:
        """Drop the pairs of some problems, and whatever their candidate left."""
        places = self.arrays.to_device(problems)
        self.Y[places] = self.S_HY[places] = 0
        self.age[problems] = self.R_inverse[problems] = 0

    def revise(self, change: Callable) -> None:
        """Account for other functions: ``change(s, y)`` returns a slot's steps and differences as they are of those.

        Where that leaves no curvature along a step, or next to none of what there was, its pair goes. The metric is to
        be changed next.
        """
        if not self.n_used:
            return
        xp, is_pair = self.arrays.xp, self.age > 0
        before = np.where(is_pair, self.D, 0.0)
        for slot in range(self.n_used):
            self.S_HY[:, slot, 0], self.Y[:, slot] = change(self.S_HY[:, slot, 0], self.Y[:, slot])
        each = (
            xp.ascontiguousarray(self.Y[:, slot]) for slot in range(self.n_used)
        )  # one at a time: all would be a copy
        SY = np.zeros_like(self.YHY)
        SY[:, :, : self.n_used] = self.arrays.to_host(xp.stack([self.steps_times(y) for y in each], axis=2))
        self.D = np.einsum("pss->ps", SY).copy()
        lost = ~is_pair | (LEAST_LEFT * before >= self.D)
        places = self.arrays.to_device(lost)
        self.Y[places] = self.S_HY[places] = 0
        self.age[lost] = self.R_inverse[:] = 0
        self.candidate = self.age.argmin(axis=1)
        for age, inner, inverse in zip(self.age, SY, self.R_inverse, strict=True):
            slots = np.argsort(age)[np.count_nonzero(age == 0) :]
            here = np.ix_(slots, slots)
            inverse[here] = np.linalg.inv(np.triu(inner[here]))

    def select(self, kept: np.ndarray) -> Self:
        """Return the pairs of the problems in `kept`, whose places are of `without_holes`.

        They stay in the same memory, those of the others behind them.
        """
        for place, other in enumerate(kept.tolist()):
            if place != other:
                self.swap(place, other)
                self.moves.append((place, other))
        return replace(self, **{name: getattr(self, name)[: len(kept)] for name in PER_PROBLEM})

    def in_first_order(self) -> Self:
        """Return the pairs of all problems, where `empty` had them, if `select` has only been asked of these."""
        while self.moves:
            self.swap(*self.moves.pop())
        return self

    def only(self, kept: np.ndarray) -> Self:
        """Return the pairs of some problems as those of all; the first ones' stay in the same memory."""
        whole, is_first = self.in_first_order(), np.array_equal(kept, np.arange(len(kept)))
        places = slice(len(kept)) if is_first else self.arrays.to_device(kept)
        chosen: dict[str, Any] = {"Y": whole.Y[places], "S_HY": whole.S_HY[places]}
        chosen |= {name: getattr(whole, name)[kept] for name in PER_PROBLEM if name not in chosen}
        return replace(whole, moves=[], **chosen)

    def swap(self, place: int, other: int) -> None:
        for array in (getattr(self, name) for name in PER_PROBLEM):
            a, b = array[place : place + 1].reshape(-1), array[other : other + 1].reshape(-1)
            for start in range(0, a.size, PIECE):
                piece = slice(start, start + PIECE)
                spare = a[piece].copy()
                a[piece], b[piece] = b[piece], spare


def without_holes(is_kept: np.ndarray) -> np.ndarray:
    """Return the places of what is kept, the last of which fill the holes between the first: few need move."""
    kept = np.arange(np.count_nonzero(is_kept))
    kept[~is_kept[: len(kept)]] = len(kept) + np.flatnonzero(is_kept[len(kept) :])
    return kept


def times(matrices, vectors):
    """Return each problem's matrix (n_problems, m, n) times its vector (n_problems, n)."""
    return (matrices @ vectors[:, :, np.newaxis])[:, :, 0]


def dot(a, b):
    """Return each problem's inner product of vectors (n_problems, n)."""
    return times(a[:, np.newaxis], b)[:, 0]
