"""Preconditioned L-BFGS for many problems at once.

Every evaluation serves all problems; each has its own direction, line search, history and end, and none waits for
another: a problem whose trial step is accepted takes its next direction while others still shorten theirs.

Inside, vectors are problem-major: params (n_features + 1, n_problems, n_classes) become rows (n_problems, n_params).
They stay where the objective has them. What decides a step is on the host: one number a problem, or a few, read once
after each evaluation.
"""

from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from gpusoftmax.solvers.base import NOTHING_KNOWN, Callback, Known, Metric, Objective, Progress, Solution, Status
from gpusoftmax.solvers.line_search import Bracket, is_acceptable, is_too_short, next_step
from gpusoftmax.solvers.pairs import Pairs, Products, dot, without_holes

STEP_GROWTH = 8.0  # of the first trial over the last step taken, up to one: where units are too long, they stay so
MAX_TRIALS = 30  # of one line search
N_OTHER_VECTORS = 20  # points, directions and the like of one problem, those of a step included
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
    known_refresh : int
        `first_refresh` where the first metric is known from elsewhere.
    n_rough : int
        Evaluations before which metrics are rough, as the first is.
    """

    tol: float = 1e-4
    max_iter: int = 1000
    n_pairs: int = 16
    first_refresh: int = 6
    refresh_growth: float = 5.0
    known_refresh: int = 24
    n_rough: int = 0

    @property
    def n_vectors(self) -> int:
        """Arrays of the size of one problem's params that a solve holds for it at most."""
        return 3 * (self.n_pairs + 1) + N_OTHER_VECTORS

    def negligible_decrease(self, value: np.ndarray) -> np.ndarray:
        """Return how much lower the minimum may lie than the value of a problem that has converged."""
        return DECREASE_PER_TOL * self.tol * np.maximum(np.abs(value), self.tol)

    def minimize(
        self, objective: Objective, params, callback: Callback | None = None, known: Known = NOTHING_KNOWN
    ) -> Solution:
        """Minimise every problem's objective from `params`, which are not modified.

        Nor is what is `known` there, but for pairs, whose memory goes on to the solution.
        """
        run = _Run(self, objective, params, known)
        while True:
            if callback is not None and callback(run.progress()):
                run.end(np.full(run.state.problem.shape, Status.STOPPED))
            if not run.state.problem.size:
                pairs = replace(run.pairs_of_all, n_held=run.pairs.n_held)
                return replace(run.solution, metric=run.metric_of_all, pairs=pairs)
            run.advance()


@dataclass
class _Vectors:
    """Of each running problem, (n_problems, n_params), where the objective has them."""

    x: np.ndarray
    gradient: np.ndarray
    preconditioned: np.ndarray  # the metric times the gradient
    direction: np.ndarray


@dataclass
class _State:
    """The problems that still run, on the host; `problem` is each one's place among those that the solve started with.

    Sg, YHg, squared_norm : inner products of the current gradient g with stored steps, and of the metric times g with
    stored gradient differences and g
    """

    problem: np.ndarray
    value: np.ndarray
    gradient_norm: np.ndarray
    Sg: np.ndarray
    YHg: np.ndarray
    squared_norm: np.ndarray
    step: np.ndarray
    decrease: np.ndarray
    marked_value: np.ndarray
    marked_decrease: np.ndarray
    n_trials: np.ndarray
    n_stalled: np.ndarray
    bracket: Bracket


class _Trial(NamedTuple):
    """What the host reads of a trial point: one number a problem, and inner products."""

    value: np.ndarray
    gradient_norm: np.ndarray
    slope: np.ndarray
    squared_norm: np.ndarray
    has_moved: np.ndarray
    products: Products


class _Run:
    """One call of `minimize`: the problems that run, and the results of all."""

    def __init__(self, solver: LBFGS, objective: Objective, params, known: Known):
        self.solver = solver
        self.objective = objective
        self.arrays = objective.arrays
        self.noise = 10 * objective.precision
        self.n_evaluations = 0
        self.metric: Metric | None = known.metric
        self.metric_of_all: Metric | None = known.metric
        self.refresh_at = solver.first_refresh if known.metric is None else solver.known_refresh
        self.refresh_interval = float(self.refresh_at)
        n_problems = params.shape[1]
        self.solution = Solution(
            params=params.copy(),
            value=np.full(n_problems, np.nan),
            gradient_norm=np.full(n_problems, np.nan),
            remaining_decrease=np.full(n_problems, np.inf),
            n_iter=np.zeros(n_problems, np.int32) if known.n_iter is None else known.n_iter.copy(),
            n_passes=np.zeros(n_problems),
            status=np.full(n_problems, Status.RUNNING),
            gradient=self.arrays.xp.zeros_like(params),
        )
        self.start(_to_rows(params), known)
        finite = np.isfinite(self.state.value) & np.isfinite(self.state.gradient_norm)
        self.end(np.where(finite, Status.RUNNING, Status.NON_FINITE))
        if self.state.problem.size:
            self.change_metric(self.metric or self.make_metric(is_rough=True))
            self.aim(np.full(self.state.problem.shape, True))
            self.end(self.judge())

    def start(self, x, known: Known) -> None:
        """Evaluate the starting point, unless it is known."""
        n_problems, n_params = x.shape
        if known.pairs is None:
            self.pairs = Pairs.empty(self.arrays, n_problems, self.solver.n_pairs, n_params, x.dtype)
        else:
            self.pairs = known.pairs.in_first_order()
        self.pairs_of_all = self.pairs
        problem = np.arange(n_problems)
        if known.value is None:
            value, gradient = self.evaluate(problem, x)
        else:
            value, gradient = self.arrays.to_device(known.value), _to_rows(known.gradient)
        with np.errstate(invalid="ignore"):  # a gradient that is not finite ends its problem
            Sg = self.pairs.steps_times(gradient)
        value, gradient_norm, Sg = self.read(value, abs(gradient).max(axis=1), Sg)
        zeros, infinite = np.zeros(n_problems), np.full(n_problems, np.inf)
        self.vectors = _Vectors(x.copy(), gradient, self.arrays.xp.zeros_like(x), self.arrays.xp.zeros_like(x))
        self.state = _State(
            problem=problem,
            value=value,
            gradient_norm=gradient_norm,
            Sg=Sg,
            YHg=np.zeros_like(Sg),
            squared_norm=zeros.copy(),
            step=np.ones(n_problems),
            decrease=infinite.copy(),
            marked_value=infinite.copy(),
            marked_decrease=infinite,
            n_trials=np.zeros(n_problems, int),
            n_stalled=np.zeros(n_problems, int),
            bracket=Bracket.open(value, zeros),
        )

    def evaluate(self, problem: np.ndarray, x):
        """Return values and gradients of the running problems: one pass."""
        value, gradient = self.objective.value_and_grad(self.to_params(x))
        self.n_evaluations += 1
        self.solution.n_passes[problem] += 1
        return value, _to_rows(gradient)

    def read(self, *numbers) -> list[np.ndarray]:
        """Return numbers (n_problems,) or (n_problems, n) on the host, in float64: one copy, one wait."""
        columns = [column.reshape(len(column), -1) for column in numbers]
        packed = self.arrays.to_host(self.arrays.xp.concatenate(columns, axis=1, dtype=np.float64))
        stops = [0, *accumulate(column.shape[1] for column in columns)]
        return [
            packed[:, start:stop].reshape(number.shape)
            for (start, stop), number in zip(pairwise(stops), numbers, strict=True)
        ]

    def to_params(self, rows):
        """Return problem-major rows in the shape that the objective knows."""
        n_rows, _, n_classes = self.solution.params.shape
        return rows.reshape(-1, n_rows, n_classes).transpose(1, 0, 2)

    def make_metric(self, *, is_rough: bool) -> Metric:
        """Estimate the metric where the running problems are."""
        is_of_all = len(self.state.problem) == len(self.solution.status)
        self.metric = None  # its memory serves to make the next
        if is_of_all:
            self.metric_of_all = None
        metric = self.objective.metric(self.to_params(self.vectors.x), is_rough=is_rough)
        self.solution.n_passes[self.state.problem] += metric.n_passes
        if is_of_all:
            self.metric_of_all = metric
        return metric

    def change_metric(self, metric: Metric) -> None:
        self.metric = metric
        vectors, state = self.vectors, self.state
        vectors.preconditioned = self.apply_metric(vectors.gradient)
        self.pairs.change_metric(self.apply_metric)
        state.YHg, state.squared_norm = self.read(
            self.pairs.differences_times(vectors.preconditioned), dot(vectors.gradient, vectors.preconditioned)
        )

    def apply_metric(self, rows):
        assert self.metric is not None  # made before the first direction is
        return _to_rows(self.metric.apply(self.to_params(rows)))

    def advance(self) -> None:
        """Evaluate every problem's trial step; take those that are acceptable, propose others for the rest."""
        state, vectors = self.state, self.vectors
        x = vectors.x + self.per_problem(state.step) * vectors.direction
        trial, point = self.try_out(x)
        state.n_trials += 1
        acceptable = is_acceptable(state.bracket, state.step, trial.value, trial.slope, self.noise)
        is_last = (state.n_trials >= MAX_TRIALS) | ~trial.has_moved
        taken = acceptable & (is_last | ~is_too_short(state.bracket, trial.slope))
        failed = ~taken & is_last
        if not taken.all():
            steps, bracket = next_step(state.bracket, state.step, trial.slope, acceptable)
            state.step = np.where(taken, state.step, steps)
            _assign(state.bracket, ~taken, bracket)

        self.take(taken, trial, point)
        if self.n_evaluations >= self.refresh_at:  # whoever has taken a step: no problem's path depends on the others'
            self.change_metric(self.make_metric(is_rough=self.n_evaluations < self.solver.n_rough))
            self.refresh_interval *= self.solver.refresh_growth
            self.refresh_at = self.n_evaluations + int(self.refresh_interval)
        is_hopeless = failed & ~self.pairs.age.any(axis=1)
        if failed.any():
            self.pairs.forget(np.flatnonzero(failed))
            state.step[failed] = 1.0
        self.aim(taken | (failed & ~is_hopeless))
        self.count_stalls(taken)
        limit = np.where(np.isfinite(trial.value), Status.PRECISION_REACHED, Status.NON_FINITE)
        self.end(np.where(is_hopeless, limit, self.judge()))

    def try_out(self, x) -> tuple[_Trial, tuple]:
        """Evaluate trial points and read all that the host needs to know of them, however it decides: one wait.

        Also return the points: params, gradients and the metric times those.
        """
        vectors = self.vectors
        value, g = self.evaluate(self.state.problem, x)
        Hg = self.apply_metric(g)
        point = x, g, Hg
        self.pairs.hold(point, (vectors.x, vectors.gradient, vectors.preconditioned))
        slope, squared_norm, has_moved = dot(g, vectors.direction), dot(g, Hg), (x != vectors.x).any(axis=1)
        value, norm, slope, squared_norm, has_moved, *products = self.read(
            value, abs(g).max(axis=1), slope, squared_norm, has_moved, *self.pairs.products(g)
        )
        return _Trial(value, norm, slope, squared_norm, has_moved != 0, Products(*products)), point

    def take(self, taken: np.ndarray, trial: _Trial, point: tuple) -> None:
        """Move problems to their trial points and remember how the gradient changed."""
        if not taken.any():
            return
        state, vectors, (x, g, Hg) = self.state, self.vectors, point
        self.pairs.accept(taken, trial.products)
        vectors.x = self.choose(taken, x, vectors.x)
        vectors.gradient = self.choose(taken, g, vectors.gradient)
        vectors.preconditioned = self.choose(taken, Hg, vectors.preconditioned)
        state.value = np.where(taken, trial.value, state.value)
        state.gradient_norm = np.where(taken, trial.gradient_norm, state.gradient_norm)
        state.squared_norm = np.where(taken, trial.squared_norm, state.squared_norm)
        state.Sg = np.where(taken[:, np.newaxis], trial.products.Sg, state.Sg)
        state.YHg = np.where(taken[:, np.newaxis], trial.products.YHg, state.YHg)
        self.solution.n_iter[state.problem[taken]] += 1

    def choose(self, chosen: np.ndarray, new, old):
        """Return the new vectors of the problems chosen and the old ones of the others."""
        return new if chosen.all() else self.arrays.xp.where(self.arrays.to_device(chosen)[:, np.newaxis], new, old)

    def per_problem(self, numbers: np.ndarray):
        """Return one number a problem in the shape that multiplies vectors."""
        return self.arrays.to_device(numbers[:, np.newaxis], self.vectors.x.dtype)

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
        state, vectors = self.state, self.vectors
        a, b, c = self.pairs.coefficients(state.Sg, state.YHg)
        slope = -c * (state.squared_norm - (a * state.YHg).sum(axis=1)) - (b * state.Sg).sum(axis=1)
        is_uphill = chosen & ~(slope < 0)
        if is_uphill.any():
            self.pairs.forget(np.flatnonzero(is_uphill))
            a[is_uphill], b[is_uphill], c[is_uphill] = 0, 0, 1
            slope = np.where(is_uphill, -state.squared_norm, slope)
        direction = -self.per_problem(c) * vectors.preconditioned
        direction -= self.pairs.combine(c[:, np.newaxis] * a, b)
        vectors.direction = self.choose(chosen, direction, vectors.direction)
        state.step = np.where(chosen, np.minimum(1.0, STEP_GROWTH * state.step), state.step)
        state.decrease = np.where(chosen, -0.5 * slope, state.decrease)
        state.n_trials[chosen] = 0
        _assign(state.bracket, chosen, Bracket.open(state.value, slope))

    def judge(self) -> np.ndarray:
        """Return each running problem's status."""
        state, tol = self.state, self.solver.tol
        is_small = (state.gradient_norm <= tol) & (state.decrease <= self.solver.negligible_decrease(state.value))
        is_at_limit = self.solution.n_iter[state.problem] >= self.solver.max_iter
        status = np.where(is_at_limit, Status.ITERATION_LIMIT, Status.RUNNING)
        status = np.where(state.n_stalled >= MAX_STALLED, Status.PRECISION_REACHED, status)
        return np.where(is_small, Status.CONVERGED, status)

    def end(self, status: np.ndarray) -> None:
        """Write down the problems that have ended, and leave them out of the stack."""
        is_running = status == Status.RUNNING
        if is_running.all():
            return
        state, solution, vectors = self.state, self.solution, self.vectors
        places = self.arrays.to_device(state.problem)
        solution.params[:, places] = self.to_params(vectors.x)
        solution.gradient[:, places] = self.to_params(vectors.gradient)
        solution.value[state.problem] = state.value
        solution.gradient_norm[state.problem] = state.gradient_norm
        solution.remaining_decrease[state.problem] = state.decrease
        solution.status[state.problem] = status
        kept = without_holes(is_running)
        self.state = _select(state, kept)
        if kept.size:
            self.vectors = _select(vectors, self.arrays.to_device(kept))
            self.pairs = self.pairs.select(kept)
            self.objective = self.objective.select(kept)
            if self.metric is not None:
                self.metric = self.metric.select(kept)

    def progress(self) -> Progress:
        """Return the state of every problem, ended or not."""
        state, solution = self.state, self.solution
        solution.value[state.problem], solution.gradient_norm[state.problem] = state.value, state.gradient_norm
        return Progress(
            n_evaluations=self.n_evaluations,
            n_passes=float(solution.n_passes.max()),
            n_iter=solution.n_iter.copy(),
            values=solution.value.copy(),
            gradient_norms=solution.gradient_norm.copy(),
            n_finished=len(solution.status) - len(state.problem),
            copy_params=self.copy_params,
        )

    def copy_params(self):
        params = self.solution.params.copy()
        if self.state.problem.size:
            params[:, self.arrays.to_device(self.state.problem)] = self.to_params(self.vectors.x)
        return params


def _select(record, kept):
    """Return a record of arrays, or of such records, with the entries in `kept` only."""
    values = [getattr(record, field.name) for field in fields(record)]
    return type(record)(*(_select(value, kept) if isinstance(value, Bracket) else value[kept] for value in values))


def _assign(record, chosen: np.ndarray, source) -> None:
    """Copy the chosen entries of a record's arrays from another of its kind."""
    for field in fields(record):
        getattr(record, field.name)[chosen] = getattr(source, field.name)[chosen]


def _to_rows(params):
    """Return params problem-major, (n_problems, n_params)."""
    return params.transpose(1, 0, 2).reshape(params.shape[1], -1)
