"""What a solver asks of an objective and what it answers: `Objective`, `Metric`, `Progress`, `Status`, `Solution`."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np

from gpusoftmax.arrays import Arrays


class Metric(Protocol):
    """An estimate of every problem's inverse Hessian: symmetric, positive semidefinite."""

    @property
    def n_passes(self) -> float:
        """Passes over the rows that making it took."""

    def apply(self, gradient):
        """Return the estimated inverse Hessian times `gradient`."""

    def select(self, active: np.ndarray) -> Self:
        """Return the metric of the problems in `active`."""


class Objective(Protocol):
    """Convex functions of ``params`` (n_features + 1, n_problems, n_classes), one per problem, evaluated together."""

    @property
    def arrays(self) -> Arrays:
        """Where params, values and gradients live."""

    @property
    def precision(self) -> float:
        """Relative rounding error of the arithmetic behind values and gradients, which may be coarser than params'."""

    def value_and_grad(self, params):
        """Return values (n_problems,) in float64 and the gradient, of the shape and dtype of `params`."""

    def metric(self, params, *, is_rough: bool) -> Metric:
        """Return an estimate of the inverse Hessian at `params`; a rough one, for few steps, may cost less."""

    def select(self, active: np.ndarray) -> Self:
        """Return the objective of the problems in `active`."""


class Status(enum.IntEnum):
    """How a problem ended. `sentence` says it for people."""

    sentence: str

    RUNNING = 0, "has not ended"
    CONVERGED = 1, "converged: the gradient and the estimated remaining decrease are within tol"
    PRECISION_REACHED = 2, "reached the limit of its floating-point precision: no step improves the objective further"
    ITERATION_LIMIT = 3, "stopped at max_iter before it converged"
    NON_FINITE = 4, "met values that are not finite and found no way round them"
    STOPPED = 5, "was stopped by a callback"

    def __new__(cls, value: int, sentence: str = "") -> Self:
        """Make a member that carries its sentence."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member

    def __str__(self) -> str:
        """Return the name, where an integer would show its number."""
        return self.name


@dataclass(frozen=True)
class Progress:
    """The state of a solve after an evaluation, over the problems that it started with.

    n_iter, values, gradient_norms : arrays of shape (n_problems,), steps taken and where they led
    n_finished : problems that have ended
    copy_params : returns a copy of every problem's params, where the objective has them; to be called before the
        solve goes on
    """

    n_evaluations: int
    n_passes: float
    n_iter: np.ndarray
    values: np.ndarray
    gradient_norms: np.ndarray
    n_finished: int
    copy_params: Callable[[], Any]


Callback = Callable[[Progress], bool | None]


@dataclass(frozen=True)
class Solution:
    """The answer of every solver; arrays have one entry per problem.

    params : array of shape (n_features + 1, n_problems, n_classes)
    value : objective at `params`, float64
    gradient_norm : largest absolute entry of the gradient at `params`
    remaining_decrease : estimate of how far `value` lies above the minimum
    n_iter : accepted steps
    n_passes : passes over the rows while the problem was running, those for the metric included
    status : `Status` of each problem
    gradient : at `params`, of their shape
    metric : the newest that was made while all problems ran, or None
    pairs : what the solver remembers of the way, for the next solve of the same problems; or None
    """

    params: np.ndarray
    value: np.ndarray
    gradient_norm: np.ndarray
    remaining_decrease: np.ndarray
    n_iter: np.ndarray
    n_passes: np.ndarray
    status: np.ndarray
    gradient: Any
    metric: Any = None
    pairs: Any = None

    def select(self, places, kept: np.ndarray) -> Self:
        """Return the solution of some problems, whose numbers `kept` are `places` where the params are.

        It may share the memory of the pairs.
        """
        numbers = ("value", "gradient_norm", "remaining_decrease", "n_iter", "n_passes", "status")
        chosen = {name: getattr(self, name)[kept] for name in numbers}
        metric = None if self.metric is None else self.metric.select(kept)
        pairs = None if self.pairs is None else self.pairs.only(kept)
        vectors = {"params": self.params[:, places], "gradient": self.gradient[:, places]}
        return replace(self, metric=metric, pairs=pairs, **vectors, **chosen)


@dataclass(frozen=True)
class Known:
    """What is known of an objective at the point where a solve begins, so that no pass need find it out.

    value : array of shape (n_problems,), float64, on the host, or None
    gradient : array of the shape of params, or None
    metric : Metric, or None
    pairs : Pairs that an earlier solve returned, or None
    n_iter : array of shape (n_problems,), steps taken before, which count; or None
    """

    value: np.ndarray | None = None
    gradient: Any = None
    metric: Any = None
    pairs: Any = None
    n_iter: np.ndarray | None = None


NOTHING_KNOWN = Known()
