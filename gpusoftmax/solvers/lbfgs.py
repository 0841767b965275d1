"""Preconditioned L-BFGS for many problems at once.

Every evaluation serves all problems; each has its own direction, line search, history and end, and none waits for
another: a problem whose trial step is accepted takes its next direction while others still shorten theirs.

Inside, vectors are problem-major: params (n_features + 1, n_problems, n_classes) become rows (n_problems, n_params).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from gpusoftmax.solvers.base import Callback, Metric, Objective, Progress, Solution, Status
from gpusoftmax.solvers.line_search import Bracket, is_acceptable, is_too_short, next_step

STEP_GROWTH = 8.0  # of the first trial over the last step taken, up to one: where units are too long, they stay so
MAX_TRIALS = 30  # of one line search
MAX_STALLED = 12  # steps in a row that together lowered neither the objective nor its estimated remaining decrease
DECREASE_PER_TOL = 3e-4  # relative remaining decrease that goes with tol: 3e-8 at scikit-learn's 1e-4


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS (Nocedal 1980) whose initial matrix is the objective's metric.

    Parameters
    ----------
    tol : float
        A problem has converged when its largest absolute gradient entry is at most `tol` *and* its estimated remaining
        decrease, half the squared gradient norm in the inverse Hessian's estimate, is at most
        ``3e-4 · tol · max(|value|, tol)``: equal gradients are not equal objectives.
    max_iter : int
        Most steps a problem may take.
    n_pairs : int
        Pairs of steps and gradient differences kept per problem.
    first_refresh, refresh_growth : int, float
        The metric is estimated again after `first_refresh` evaluations, then at intervals that grow by this factor.
    """

    tol: float = 1e-4
    max_iter: int = 1000
    n_pairs: int = 16
    first_refresh: int = 6
    refresh_growth: float = 5.0

    def minimize(self, objective: Objective, params, callback: Callback | None = None) -> Solution:
        """Minimise every problem's objective from `params`, which are not modified."""
        run = _Run(self, objective, params)
        while True:
            if callback is not None and callback(run.progress()):
                run.end(np.full(run.state.problem.shape, Status.STOPPED))
            if not run.state.problem.size:
                return run.solution
            run.advance()


@dataclass
class _Pairs:
    """Steps S, gradient differences Y, the metric times those, HY, and products S Yᵀ; empty slots hold zeros.

    The inverse Hessian is applied in compact form (Byrd, Nocedal & Schnabel 1994, Math. Program. 63, 129-156): two
    batched products with S, one each with Y and HY, and no loop over pairs. `age` orders each problem's slots in time;
    0 is empty.
    """

    S: np.ndarray
    Y: np.ndarray
    HY: np.ndarray
    SY: np.ndarray
    age: np.ndarray

    @classmethod
    def empty(cls, n_problems: int, n_pairs: int, n_params: int, dtype: np.dtype) -> Self:
        """Return no pairs for each of `n_problems`."""
        S, Y, HY = (np.zeros((n_problems, n_pairs, n_params), dtype) for _ in range(3))
        return cls(S, Y, HY, np.zeros((n_problems, n_pairs, n_pairs)), np.zeros((n_problems, n_pairs), np.int64))

    def push(self, problem: int, s: np.ndarray, y: np.ndarray, Hy: np.ndarray) -> None:
        """Store a pair of one problem in the place of its oldest."""
        age = self.age[problem]
        slot = age.argmin()
        age[slot] = age.max() + 1
        self.S[problem, slot] = s
        self.Y[problem, slot] = y
        self.HY[problem, slot] = Hy
        self.SY[problem, slot] = self.Y[problem] @ s
        self.SY[problem, :, slot] = self.S[problem] @ y

    def inverse_hessian(self, g: np.ndarray, Hg: np.ndarray) -> np.ndarray:
        """Return what H, which starts from the metric and satisfies every pair's secant equation in turn, makes of g.

        `Hg` is the metric times `g`: its product with what the pairs leave of `g` is a combination of it and HY.
        """
        R = np.where(self.age[:, :, np.newaxis] <= self.age[:, np.newaxis, :], self.SY, 0.0)
        D = np.diagonal(self.SY, axis1=1, axis2=2)
        R += (self.age == 0)[:, :, np.newaxis] * np.eye(R.shape[1])
        inverse = np.linalg.inv(R)
        a = _products(inverse, _products(self.S, g))
        step = self.metric_scale()[:, np.newaxis].astype(g.dtype) * (Hg - _combine(self.HY, a))
        step += _combine(self.S, _products(inverse.transpose(0, 2, 1), D * a - _products(self.Y, step)))
        return step

    def metric_scale(self) -> np.ndarray:
        """Return what to multiply the metric by, given the curvature along each problem's newest step.

        The classical scale sᵀy / yᵀHy trusts that one step alone, no scale trusts the metric alone; their geometric
        mean needed fewest passes to a gap of 1e-4 on MNIST-10k, digits and letters. It keeps unit steps acceptable.
        """
        problems = np.arange(len(self.age))
        newest = self.age.argmax(axis=1)
        curvature = _dot(self.Y[problems, newest], self.HY[problems, newest])
        ratio = np.divide(self.SY[problems, newest, newest], curvature, out=np.ones(len(newest)), where=curvature > 0)
        return np.sqrt(ratio)

    def change_metric(self, apply_metric: Callable[[np.ndarray], np.ndarray]) -> None:
        """Apply another metric to the gradient differences."""
        for slot in np.flatnonzero(self.age.any(axis=0)).tolist():
            self.HY[:, slot] = apply_metric(self.Y[:, slot])

    def forget(self, problems: np.ndarray) -> None:
        """Drop the pairs of some problems."""
        for array in (self.S, self.Y, self.HY, self.SY, self.age):
            array[problems] = 0


@dataclass
class _State:
    """The problems that still run; `problem` is each one's place among those that the solve started with."""

    problem: np.ndarray
    x: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    preconditioned: np.ndarray  # the metric times the gradient
    direction: np.ndarray
    step: np.ndarray
    decrease: np.ndarray
    marked_value: np.ndarray
    marked_decrease: np.ndarray
    n_trials: np.ndarray
    n_stalled: np.ndarray
    bracket: Bracket
    pairs: _Pairs


class _Run:
    """One call of `minimize`: the problems that run, and the results of all."""

    def __init__(self, solver: LBFGS, objective: Objective, params):
        self.solver = solver
        self.objective = objective
        self.noise = 10 * objective.precision
        self.n_evaluations = 0
        self.metric: Metric | None = None
        self.refresh_at = solver.first_refresh
        self.refresh_interval = float(solver.first_refresh)
        n_problems = params.shape[1]
        self.solution = Solution(
            params=params.copy(),
            value=np.full(n_problems, np.nan),
            gradient_norm=np.full(n_problems, np.nan),
            remaining_decrease=np.full(n_problems, np.inf),
            n_iter=np.zeros(n_problems, np.int32),
            n_passes=np.zeros(n_problems),
            status=np.full(n_problems, Status.RUNNING),
        )
        self.state = self.start(_to_rows(params))
        finite = np.isfinite(self.state.value) & np.isfinite(self.state.gradient).all(axis=1)
        self.end(np.where(finite, Status.RUNNING, Status.NON_FINITE))
        if self.state.problem.size:
            self.refresh_metric()
            self.aim(np.full(self.state.problem.shape, True))
            self.end(self.judge())

    def start(self, x: np.ndarray) -> _State:
        """Evaluate the starting point."""
        n_problems, n_params = x.shape
        zeros, counts = np.zeros(n_problems), np.zeros(n_problems, int)
        problem = np.arange(n_problems)
        value, gradient = self.evaluate(problem, x)
        return _State(
            problem=problem,
            x=x.copy(),
            value=value,
            gradient=gradient,
            preconditioned=np.zeros_like(x),
            direction=np.zeros_like(x),
            step=np.ones(n_problems),
            decrease=np.full(n_problems, np.inf),
            marked_value=np.full(n_problems, np.inf),
            marked_decrease=np.full(n_problems, np.inf),
            n_trials=counts,
            n_stalled=counts.copy(),
            bracket=Bracket.open(value, zeros),
            pairs=_Pairs.empty(n_problems, self.solver.n_pairs, n_params, x.dtype),
        )

    def evaluate(self, problem: np.ndarray, x: np.ndarray):
        """Return values and gradients of the running problems: one pass."""
        value, gradient = self.objective.value_and_grad(self.to_params(x))
        self.n_evaluations += 1
        self.solution.n_passes[problem] += 1
        return value, _to_rows(gradient)

    def to_params(self, rows: np.ndarray):
        """Return problem-major rows in the shape that the objective knows."""
        n_rows, _, n_classes = self.solution.params.shape
        return rows.reshape(-1, n_rows, n_classes).transpose(1, 0, 2)

    def refresh_metric(self) -> None:
        self.metric = None  # its memory serves to make the next
        self.metric = self.objective.metric(self.to_params(self.state.x))
        self.solution.n_passes[self.state.problem] += self.metric.n_passes
        self.state.preconditioned = self.apply_metric(self.state.gradient)
        self.state.pairs.change_metric(self.apply_metric)

    def apply_metric(self, rows: np.ndarray) -> np.ndarray:
        assert self.metric is not None  # made before the first direction is
        return _to_rows(self.metric.apply(self.to_params(rows)))

    def advance(self) -> None:
        """Evaluate every problem's trial step; take those that are acceptable, propose others for the rest."""
        state = self.state
        trial = state.x + state.step[:, np.newaxis].astype(state.x.dtype) * state.direction
        value, gradient = self.evaluate(state.problem, trial)
        slope = _dot(gradient, state.direction)
        state.n_trials += 1
        acceptable = is_acceptable(state.bracket, state.step, value, slope, self.noise)
        is_last = (state.n_trials >= MAX_TRIALS) | ~(trial != state.x).any(axis=1)
        taken = acceptable & (is_last | ~is_too_short(state.bracket, slope))
        failed = ~taken & is_last
        if not taken.all():
            steps, bracket = next_step(state.bracket, state.step, slope, acceptable)
            state.step = np.where(taken, state.step, steps)
            _assign(state.bracket, ~taken, bracket)

        self.take(taken, trial, value, gradient)
        is_hopeless = failed & ~state.pairs.age.any(axis=1)
        if failed.any():
            state.pairs.forget(failed)
            state.step[failed] = 1.0
        self.aim(taken | (failed & ~is_hopeless))
        self.count_stalls(taken)
        limit = np.where(np.isfinite(value), Status.PRECISION_REACHED, Status.NON_FINITE)
        self.end(np.where(is_hopeless, limit, self.judge()))

    def take(self, taken: np.ndarray, x: np.ndarray, value: np.ndarray, gradient: np.ndarray) -> None:
        """Move problems to their trial points and remember how the gradient changed."""
        if not taken.any():
            return
        state = self.state
        old = state.x, state.gradient, state.preconditioned
        if not taken.all():
            is_new = taken[:, np.newaxis]
            x, gradient = np.where(is_new, x, state.x), np.where(is_new, gradient, state.gradient)
            value = np.where(taken, value, state.value)
        state.x, state.value, state.gradient = x, value, gradient
        state.preconditioned = self.apply_metric(state.gradient)
        new = state.x, state.gradient, state.preconditioned
        for p in np.flatnonzero(taken).tolist():
            s, y, Hy = (after[p] - before[p] for after, before in zip(new, old, strict=True))
            if s @ y > 1e-10 * np.sqrt((s @ s) * (y @ y)):
                state.pairs.push(p, s, y, Hy)
        self.solution.n_iter[state.problem[taken]] += 1
        if self.n_evaluations >= self.refresh_at:
            self.refresh_metric()
            self.refresh_interval *= self.solver.refresh_growth
            self.refresh_at = self.n_evaluations + int(self.refresh_interval)

    def count_stalls(self, taken: np.ndarray) -> None:
        """Count the steps since the objective or its estimated remaining decrease last fell by more than rounding."""
        state = self.state
        fell = state.marked_value - state.value > 0.1 * self.noise * np.abs(state.value)
        fell |= state.decrease < 0.8 * state.marked_decrease
        state.marked_value = np.where(fell, state.value, state.marked_value)
        state.marked_decrease = np.where(fell, state.decrease, state.marked_decrease)
        state.n_stalled = np.where(fell, 0, state.n_stalled + taken)

    def aim(self, chosen: np.ndarray) -> None:
        """Give some problems a direction, a fresh bracket and a first step: a unit one, or what the last suggests."""
        if not chosen.any():
            return
        state = self.state
        direction = -state.pairs.inverse_hessian(state.gradient, state.preconditioned)
        slope = _dot(direction, state.gradient)
        is_uphill = chosen & ~(slope < 0)
        if is_uphill.any():
            state.pairs.forget(is_uphill)
            direction[is_uphill] = -state.preconditioned[is_uphill]
            slope = _dot(direction, state.gradient)
        state.direction = np.where(chosen[:, np.newaxis], direction, state.direction)
        state.step = np.where(chosen, np.minimum(1.0, STEP_GROWTH * state.step), state.step)
        state.decrease = np.where(chosen, -0.5 * slope, state.decrease)
        state.n_trials[chosen] = 0
        _assign(state.bracket, chosen, Bracket.open(state.value, slope))

    def judge(self) -> np.ndarray:
        """Return each running problem's status."""
        state, tol = self.state, self.solver.tol
        small = DECREASE_PER_TOL * tol * np.maximum(np.abs(state.value), tol)
        is_small = (np.abs(state.gradient).max(axis=1) <= tol) & (state.decrease <= small)
        is_at_limit = self.solution.n_iter[state.problem] >= self.solver.max_iter
        status = np.where(is_at_limit, Status.ITERATION_LIMIT, Status.RUNNING)
        status = np.where(state.n_stalled >= MAX_STALLED, Status.PRECISION_REACHED, status)
        return np.where(is_small, Status.CONVERGED, status)

    def end(self, status: np.ndarray) -> None:
        """Write down the problems that have ended, and leave them out of the stack."""
        is_running = status == Status.RUNNING
        if is_running.all():
            return
        self.record(status)
        kept = np.flatnonzero(is_running)
        self.state = _select(self.state, kept)
        if kept.size:
            self.objective = self.objective.select(kept)
            if self.metric is not None:
                self.metric = self.metric.select(kept)

    def record(self, status: np.ndarray) -> None:
        """Copy the running problems' state into the solution."""
        state, solution = self.state, self.solution
        solution.params[:, state.problem] = self.to_params(state.x)
        solution.value[state.problem] = state.value
        solution.gradient_norm[state.problem] = np.abs(state.gradient).max(axis=1)
        solution.remaining_decrease[state.problem] = state.decrease
        solution.status[state.problem] = status

    def progress(self) -> Progress:
        """Return the state of every problem, ended or not."""
        self.record(np.full(self.state.problem.shape, Status.RUNNING))
        return Progress(
            n_evaluations=self.n_evaluations,
            n_passes=float(self.solution.n_passes.max()),
            values=self.solution.value.copy(),
            gradient_norms=self.solution.gradient_norm.copy(),
            n_finished=len(self.solution.status) - len(self.state.problem),
        )


def _select(record, kept: np.ndarray):
    """Return a record of arrays, or of such records, with the entries in `kept` only."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return type(record)(**{k: v[kept] if isinstance(v, np.ndarray) else _select(v, kept) for k, v in values.items()})


def _assign(record, chosen: np.ndarray, source) -> None:
    """Copy the chosen entries of a record's arrays from another of its kind."""
    for field in fields(record):
        getattr(record, field.name)[chosen] = getattr(source, field.name)[chosen]


def _to_rows(params) -> np.ndarray:
    """Return params problem-major, (n_problems, n_params)."""
    return params.transpose(1, 0, 2).reshape(params.shape[1], -1)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return each problem's inner product, float64."""
    return np.matmul(a[:, np.newaxis, :], b[:, :, np.newaxis])[:, 0, 0].astype(np.float64)


def _products(vectors: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Return each problem's inner products of its stored vectors with `g`, (n_problems, n_pairs)."""
    return np.matmul(vectors, g[:, :, np.newaxis])[:, :, 0].astype(np.float64)


def _combine(vectors: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Return each problem's linear combination of its stored vectors."""
    return np.matmul(coefficients.astype(vectors.dtype)[:, np.newaxis, :], vectors)[:, 0]
