"""A fit by objectives of rising precision: most steps where they are cheap, the last word where they are exact."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gpusoftmax.solvers.base import NOTHING_KNOWN, Callback, Known, Objective, Progress, Solution, Status
from gpusoftmax.solvers.lbfgs import LBFGS

MAX_STALLED = 4  # evaluations in a row that lower no gradient by a tenth: rounding is all that is left


def climb(
    solver: LBFGS,
    objectives: Sequence[Objective],
    params,
    callback: Callback | None = None,
    *,
    is_exact: bool = True,
    known: Known = NOTHING_KNOWN,
) -> Solution:
    """Minimise with each objective in turn, from where the one before ended; only the last says how the fit ended.

    Parameters
    ----------
    solver : LBFGS
        Its `max_iter` is for all of them together.
    objectives : coarsest first; the same functions, all but the last evaluated with coarser arithmetic
    params : array of shape (n_features + 1, n_problems, n_classes)
    callback : hears of all of them as of one solve
    is_exact : bool
        Whether the last of several objectives may take steps. If not, one evaluation of it judges where the others
        ended: a problem short of `tol` has then reached the precision that it was allowed.
    known : what is known at `params` of the last objective; of the others its metric and the steps taken hold
    """
    *coarse, exact = objectives
    spent: list[Solution] = []
    for objective in coarse:
        stop = _UntilRounding(objective.precision, _after(spent, callback))
        known = Known(metric=known.metric, pairs=known.pairs, n_iter=known.n_iter)
        solution = _with_steps(solver, _steps_left(solver, spent)).minimize(objective, params, stop, known)
        params, known = solution.params, replace(known, pairs=solution.pairs, n_iter=None)
        spent.append(replace(solution, pairs=None))
        if stop.is_interrupted:  # nothing exact has judged what had ended by then
            status = spent[-1].status
            spent[-1] = replace(spent[-1], status=np.where(status == Status.NON_FINITE, status, Status.STOPPED))
            return _in_all(spent)
    left = _steps_left(solver, spent)
    is_judge = bool(spent) and not is_exact
    last = _with_steps(solver, 0 if is_judge else left).minimize(exact, params, _after(spent, callback), known)
    if is_judge and left > 0:
        is_short = last.status == Status.ITERATION_LIMIT
        last = replace(last, status=np.where(is_short, Status.PRECISION_REACHED, last.status))
    return _in_all([*spent, last])


@dataclass
class _UntilRounding:
    """Ends a solve where its arithmetic is too coarse to lower any gradient much further."""

    rounding: float
    callback: Callback | None
    is_interrupted: bool = False
    _first: np.ndarray | None = None
    _best: np.ndarray = field(default_factory=lambda: np.array(np.inf))
    _n_stalled: int = 0

    def __call__(self, progress: Progress) -> bool:
        """Say whether to stop."""
        self.is_interrupted = bool(self.callback is not None and self.callback(progress))
        norms = progress.gradient_norms
        if self._first is None:
            self._first = norms
        self._n_stalled = 0 if (norms < 0.9 * self._best).any() else self._n_stalled + 1
        self._best = np.fmin(self._best, norms)
        is_low = (self._best <= self.rounding * self._first).all()
        return self.is_interrupted or bool(is_low) or self._n_stalled >= MAX_STALLED


def after(callback: Callback | None, n_passes: float, n_iter: int | np.ndarray = 0) -> Callback | None:
    """Return a callback that hears of a solve as of one that goes on after so many passes and steps."""
    if callback is None or not n_passes:
        return callback
    return lambda progress: callback(
        replace(
            progress,
            n_evaluations=progress.n_evaluations + int(n_passes),
            n_passes=progress.n_passes + n_passes,
            n_iter=progress.n_iter + n_iter,
        )
    )


def _after(spent: list[Solution], callback: Callback | None) -> Callback | None:
    """Return a callback to which a solve goes on where others ended."""
    n_passes = float(sum(solution.n_passes.max() for solution in spent))
    return after(callback, n_passes, sum(solution.n_iter for solution in spent))


def _steps_left(solver: LBFGS, spent: list[Solution]) -> int:
    return solver.max_iter - sum(int(solution.n_iter.max()) for solution in spent)


def _with_steps(solver: LBFGS, n_steps: int) -> LBFGS:
    return replace(solver, max_iter=n_steps)


def _in_all(spent: list[Solution]) -> Solution:
    """Return the last solution, with the steps and passes of all."""
    n_iter, n_passes = (sum(getattr(each, name) for each in spent) for name in ("n_iter", "n_passes"))
    return replace(spent[-1], n_iter=n_iter, n_passes=n_passes)
