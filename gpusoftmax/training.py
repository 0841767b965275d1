"""The one place where source, plan, objective, penalty and solver meet."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import numpy as np
from scipy.special import log_softmax

from gpusoftmax.backends.base import Backend, FusedPass
from gpusoftmax.objective import MetricRows, SoftmaxObjective
from gpusoftmax.penalties import L2
from gpusoftmax.plan import least_fit_bytes, metric_sample, plan_fit, plan_row_space
from gpusoftmax.row_space import RowSpace, RowSpaceMetric
from gpusoftmax.solvers.base import NOTHING_KNOWN, Callback, Known, Progress, Solution, Status
from gpusoftmax.solvers.continuation import Trail
from gpusoftmax.solvers.ladder import after, climb
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.sources import ArraySource, feature_range, rare_squares, sample_rows, weight_per_class

DEFAULT_RANGE_BYTES = 2 << 20
OFFSET_RATIO = 32  # a feature is centred where its offset exceeds its half range by this: float32 would lose 5 bits


@dataclass(frozen=True)
class Training:
    """What is fitted, beside the data.

    C : array of shape (n_problems,), float64
        Inverse strengths, as scikit-learn means them; infinity for no penalty. Where problems follow paths, the first.
    n_classes : int
    has_intercept : bool
    label_smoothing : float in [0, 1)
    seed : int
        Of the sample of rows from which the metric is estimated.
    budget_bytes : int or None
        Most bytes of workspace; None for what runs best.
    precision : {"auto", "highest", "high", "medium"}
        Of products on a GPU whose tensor cores round float32. "auto" begins with rounded ones where that saves time and
        ends with exact ones; "high" (TF32) and "medium" (bfloat16) do with rounded ones, but for a last evaluation.
    """

    C: np.ndarray
    n_classes: int
    has_intercept: bool = True
    label_smoothing: float = 0.0
    seed: int = 0
    budget_bytes: int | None = None
    precision: str = "auto"


def train(
    training: Training,
    source: ArraySource,
    solver: LBFGS,
    backend: Backend,
    start: np.ndarray | None = None,
    callback: Callable[[Progress, np.ndarray | None], bool | None] | None = None,
) -> tuple[Solution, np.ndarray | None]:
    """Fit every problem.

    Parameters
    ----------
    training : Training
    source : ArraySource
        Not centred; its weights have one column per problem, or one for all.
    solver : LBFGS
    backend : Backend
    start : array of shape (n_features + 1, n_problems, n_classes), or None
        None starts from no coefficients and the log class frequencies, as do problems whose objective is lower there.
    callback : called with a Progress, and `center` as below, after every evaluation; True ends the fit

    Returns
    -------
    solution : Solution
        Its params belong to features minus `center`.
    center : array of shape (n_features,), float64, or None
        What the fit subtracted from the features, where offsets dwarf their spread.

    Raises
    ------
    ValueError
        All weights of a problem are zero.
    WorkspaceError
        `budget_bytes` is too small; the message names a budget that fits.
    """
    with backend.session():
        bound = bind(training, source, backend)
        params, known, n_passes = bound.first_params, NOTHING_KNOWN, 0
        if start is not None:
            (params, known), n_passes = bound.begin(training.C, bound.params_from(start)), 1
        hear = after(None if callback is None else lambda progress: callback(progress, bound.center), n_passes)
        solution = bound.solve(solver, training.C, params, bound.lifting(hear), known)
        solution = bound.finish(solver, training.C, solution, hear)
        passes = solution.n_passes + n_passes
        return replace(solution, params=backend.to_host(solution.params), n_passes=passes), bound.center


@dataclass(frozen=True)
class Stage:
    """How one stage of a batch of paths ended.

    C : array of shape (n_problems,), float64
    solution : Solution
        On the device.
    spread : array of shape (n_problems,), float64, on the host
        Trace of the mean of diag(y) - yyᵀ over the rows fitted.
    trail : Trail
        Of the logarithm of C, up to this solution.
    """

    C: np.ndarray
    solution: Solution
    spread: np.ndarray
    trail: Trail

    @property
    def is_finite(self) -> np.ndarray:
        """Say which problems have a finite solution."""
        return np.isfinite(self.solution.value) & np.isfinite(self.solution.gradient_norm)

    def select(self, places, kept: np.ndarray) -> Self:
        """Return the stage of some problems, whose numbers `kept` are `places` on the device."""
        solution, trail = self.solution.select(places, kept), self.trail.select(places, kept)
        return type(self)(self.C[kept], solution, self.spread[kept], trail)


@dataclass(frozen=True)
class Bound:
    """A training bound to its rows and a device: what every solve of it shares.

    passes : FusedPass of every precision, the coarsest first
    total_weight : array of shape (n_problems,), float64
    metric_rows : MetricRows
    center : array of shape (n_features,), float64, or None
        What is subtracted from the features.
    first_params : array of shape (n_features + 1, n_problems, n_classes)
        No coefficients, and the log class frequencies.
    first_value : array of shape (n_problems,), float64
        The objective of those.
    is_path : bool
        Whether other strengths follow.
    """

    training: Training
    backend: Backend
    passes: list[FusedPass]
    total_weight: np.ndarray
    metric_rows: MetricRows
    center: np.ndarray | None
    first_params: np.ndarray
    first_value: np.ndarray
    is_path: bool = False

    def params_from(self, start: np.ndarray) -> np.ndarray:
        """Return params for the centred features that give the logits of `start`."""
        params = np.empty(start.shape, self.first_params.dtype)
        params[:] = start - start.mean(axis=2, keepdims=True)  # moves no logits apart, and lowers the penalty
        if self.center is not None:
            params[-1] += np.tensordot(self.center, params[:-1], axes=1)
        return params

    def begin(self, C: np.ndarray, params: np.ndarray) -> tuple[np.ndarray, Known]:
        """Return where to begin if `params` are offered, and what one pass has found out.

        Far away, where the softmax is sure and wrong, there is no curvature to tell a step by: what is worse than no
        coefficients is not taken.
        """
        value, gradient = self.objectives(C)[-1].value_and_grad(self.backend.to_device(params))
        value = self.backend.to_host(value)
        is_taken = value <= self.first_value
        if is_taken.all():
            return params, Known(value, gradient)
        return np.where(is_taken[:, np.newaxis], params, self.first_params), NOTHING_KNOWN

    def objectives(self, C: np.ndarray) -> list[SoftmaxObjective]:
        """Return the objectives of every precision."""
        backend, training = self.backend, self.training
        largest = float(np.finfo(self.passes[-1].dtype).max)
        with np.errstate(over="ignore", divide="ignore"):
            of_features = (1 / self.metric_rows.scale.min(initial=1.0)) ** 2
            strongest = min(largest / 2, largest**0.85 * of_features)  # beyond, coefficients would underflow
            strength = np.minimum(1 / (C * self.total_weight), strongest)
        exact = SoftmaxObjective(
            arrays=backend,
            fused_pass=self.passes[-1],
            penalty=L2(backend, backend.to_device(strength)),
            total_weight=backend.to_device(self.total_weight),
            has_intercept=training.has_intercept,
            label_smoothing=training.label_smoothing,
            metric_rows=self.metric_rows,
            has_lasting_metric=self.is_path,
        )
        return [replace(exact, fused_pass=each) for each in self.passes]

    def solve(self, solver: LBFGS, C, params, callback: Callback | None = None, known=NOTHING_KNOWN) -> Solution:
        """Fit every problem; params are on the host or the device, those of the solution on the device."""
        is_exact = self.training.precision in ("auto", "highest")
        params = self.backend.to_device(params)
        return climb(solver, self.objectives(C), params, callback, is_exact=is_exact, known=known)

    def solve_next(self, solver: LBFGS, C, stage: Stage, callback: Callback | None = None) -> Solution:
        """Fit every problem again with other strengths, from where a stage ended and with what it knows.

        What the other penalty changes of value, gradient and pairs takes no pass, nor does the metric, which is told
        the softmax's spread; see `KroneckerMetric.adapted`. Where the trail promises more than the solver would mind,
        one pass finds out whether it keeps that. A problem without a finite solution starts anew.
        """
        before, is_finite = stage.solution, stage.is_finite
        old, new = (self.objectives(each)[-1].penalty for each in (stage.C, C))
        strength = self.backend.to_host(new.strength)
        metric = None if before.metric is None else before.metric.adapted(strength, stage.spread)
        pairs = before.pairs.in_first_order()
        pairs.forget(np.flatnonzero(~is_finite))
        pairs.revise(partial(_with_penalty, new.strength - old.strength, before.params.shape[2]))
        if not is_finite.all():
            chosen = self.backend.to_device(is_finite)[:, np.newaxis]
            params = self.backend.xp.where(chosen, before.params, self.backend.to_device(self.first_params))
            return self.solve(solver, C, params, callback, Known(metric=metric, pairs=pairs))
        W, gradient = before.params[:-1], before.gradient.copy()
        new.add_gradient(W, gradient[:-1])
        old.add_gradient(-W, gradient[:-1])
        value = before.value + self.backend.to_host(new.value(W) - old.value(W))
        params, value, gradient, n_passes = self._guess(solver, C, stage.trail, before.params, value, gradient)
        known = Known(value, gradient, metric, pairs)
        solution = self.solve(solver, C, params, after(callback, n_passes), known)
        return replace(solution, n_passes=solution.n_passes + n_passes)

    def lifting(self, callback: Callback | None) -> Callback | None:
        """Return a callback that hears of params of X."""
        return callback

    def finish(self, solver: LBFGS, C, solution: Solution, callback: Callback | None = None) -> Solution:
        """Return a solution for X."""
        return solution

    def _guess(self, solver: LBFGS, C, trail: Trail, params, value, gradient):
        """Return a better point of each problem that has one where its trail leads to, and the passes that took."""
        step = trail.step_to(np.log(C))
        if step is None:
            return params, value, gradient, 0
        slope = self.backend.to_host((gradient * step).sum(axis=(0, 2)))
        is_promising = -0.5 * slope > solver.negligible_decrease(value)
        if not is_promising.any():
            return params, value, gradient, 0
        guess = params + step
        guess_value, guess_gradient = self.objectives(C)[-1].value_and_grad(guess)
        guess_value = self.backend.to_host(guess_value)
        is_better = is_promising & (guess_value < value)
        chosen, where = self.backend.to_device(is_better)[:, np.newaxis], self.backend.xp.where
        value = np.where(is_better, guess_value, value)
        return where(chosen, guess, params), value, where(chosen, guess_gradient, gradient), 1

    def select(self, active: np.ndarray) -> Self:
        """Return the training of some problems."""
        return replace(
            self,
            passes=[each.select(active) for each in self.passes],
            total_weight=self.total_weight[active],
            first_params=self.first_params[:, active],
            first_value=self.first_value[active],
        )


@dataclass(frozen=True)
class SpannedBound(Bound):
    """A training bound to the coordinates of its rows in their span; `center` is that of X.

    whole : Bound
        The same training, bound to X.
    space : RowSpace
    """

    whole: Bound = field(kw_only=True)
    space: RowSpace = field(kw_only=True)

    def params_from(self, start: np.ndarray) -> np.ndarray:
        """Return params for the coordinates that give the logits of `start`."""
        return self.backend.to_host(self.space.project(self.backend.to_device(self.whole.params_from(start))))

    def lifting(self, callback: Callback | None) -> Callback | None:
        """Return a callback that hears of params of X."""
        if callback is None:
            return None
        return lambda progress: callback(replace(progress, copy_params=lambda: self.space.lift(progress.copy_params())))

    def finish(self, solver: LBFGS, C, solution: Solution, callback: Callback | None = None) -> Solution:
        """Return a solution for X: lifted, and there judged and, if need be, mended."""
        params = self.space.lift(solution.params)
        if (solution.status == Status.STOPPED).any():
            gradient = self.space.lift(solution.gradient)
            return replace(solution, params=params, gradient=gradient, metric=None, pairs=None)
        curvature = self.objectives(C)[-1].penalty.strength + 0.5 * self.space.beyond
        beyond = (1 / curvature)[:, np.newaxis].astype(params.dtype)
        known = Known(metric=RowSpaceMetric(self.space, solution.metric, beyond), n_iter=solution.n_iter)
        last = self.whole.solve(solver, C, params, after(callback, float(solution.n_passes.max())), known)
        return replace(last, n_passes=last.n_passes + solution.n_passes)

    def select(self, active: np.ndarray) -> Self:
        """Return the training of some problems."""
        return replace(super().select(active), whole=self.whole.select(active))


def _with_penalty(strength, n_classes: int, s, y):
    """Return steps and gradient differences (n_problems, n_params) under an L2 penalty of so much more strength.

    Both come centred over the classes: a part that is constant over them may be most of what rounding leaves of a short
    step, and no metric sees it.
    """
    s, y = (each.reshape(len(each), -1, n_classes) for each in (s, y))
    s, y = (each - each.mean(axis=2, keepdims=True) for each in (s, y))
    y[:, :-1] += strength[:, np.newaxis, np.newaxis].astype(y.dtype) * s[:, :-1]
    return s.reshape(len(s), -1), y.reshape(len(y), -1)


def bind(training: Training, source: ArraySource, backend: Backend, *, is_path: bool = False) -> Bound:
    """Plan a training and allocate what its passes work in; see `train` for parameters and errors.

    Where features outnumber rows, what is bound are coordinates in the span of the rows.
    """
    source, range_bytes = backend.place(source), training.budget_bytes or DEFAULT_RANGE_BYTES
    rows = _metric_rows(training, source, backend)
    low, high = feature_range(source, rows, backend, range_bytes)
    center = find_center(low, high) if training.has_intercept else None
    if center is not None:
        source = replace(source, center=backend.to_device(center))
        low, high = low - center, high - center
    sample = rows, feature_scale(low, high), rare_squares(source, rows, low, high, backend, range_bytes)
    found = _find_row_space(training, source, backend)
    if found is None:
        return replace(_bind(training, source, backend, sample, is_path=is_path), center=center)
    space, coordinates, training = found
    whole = _bind(training, source, backend, sample)
    rows = np.arange(source.n_rows)
    sample = rows, feature_scale(*feature_range(coordinates, rows, backend, range_bytes)), None
    bound = _bind(training, coordinates, backend, sample, is_path=is_path, is_orthogonal=True)
    return SpannedBound(**vars(bound) | {"center": center}, whole=whole, space=space)


def _find_row_space(training: Training, source: ArraySource, backend: Backend):
    """Return the span of the rows, their coordinates there, and the training with a budget for each; or None."""
    budget_bytes, room = training.budget_bytes, math.inf
    if budget_bytes is not None:
        room = budget_bytes - 2 * least_fit_bytes(
            *(source.n_rows, source.n_features, len(training.C), training.n_classes, source.dtype, backend.facts()),
            is_soft=source.targets.ndim == 2,
            is_direct=source.is_direct,
        )
    plan = plan_row_space(source.n_rows, source.n_features, room)
    found = None if plan is None else RowSpace.of(source, backend, plan[0])
    if plan is None or found is None:
        return None
    if budget_bytes is not None:
        training = replace(training, budget_bytes=(budget_bytes - plan[1]) // 2)
    return *found, training


def _bind(
    training: Training, source: ArraySource, backend: Backend, sample: tuple, *, is_path=False, is_orthogonal=False
) -> Bound:
    """Bind to rows, of which `sample` is what `MetricRows` knows beside a plan."""
    n_problems = len(training.C)
    plan, metric_plan = plan_fit(
        *(source.n_rows, source.n_features, n_problems, training.n_classes, source.dtype, backend.facts()),
        is_soft=source.targets.ndim == 2,
        is_direct=source.is_direct,
        is_orthogonal=is_orthogonal,
        budget_bytes=training.budget_bytes,
    )
    total, per_class = weight_per_class(source, n_problems, training.n_classes, backend.to_host)
    if not (total > 0).all():
        raise ValueError(
            "The weights of all samples are zero: sample_weight times class_weight must have a positive sum."
        )
    first_params = np.zeros((source.n_features + 1, n_problems, training.n_classes), plan.gradient_dtype)
    if training.has_intercept:
        first_params[-1] = start_intercept(total, per_class, source.n_rows, training.label_smoothing)
    frequency = class_frequency(total, per_class, training.label_smoothing)
    first_value = -(frequency * log_softmax(first_params[-1].astype(np.float64), axis=1)).sum(axis=1)
    fused_pass = backend.fused_pass(source, plan)
    return Bound(
        training,
        backend,
        [*fused_pass.cheaper(training.precision), fused_pass],
        total,
        MetricRows(metric_plan, *sample),
        None,
        first_params,
        first_value,
        is_path,
    )


def _metric_rows(training: Training, source: ArraySource, backend: Backend) -> np.ndarray:
    """Return the rows from which the metric is estimated, of those that weigh anything."""
    n_sample = metric_sample(source.n_rows, source.n_features)
    if source.weights is None or n_sample == source.n_rows:
        return sample_rows(source.n_rows, n_sample, training.seed)
    weighs = backend.to_host((source.weights > 0).any(axis=1))
    n_weighing = int(weighs.sum())
    if not 0 < n_weighing < source.n_rows / 2:
        return sample_rows(source.n_rows, n_sample, training.seed)
    return np.flatnonzero(weighs)[sample_rows(n_weighing, n_sample, training.seed)]


def find_center(low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """Return the middle of every feature whose offset dwarfs its range and zero for the others, or None.

    Features are along the last axis: those of several data sets may be stacked.
    """
    middle, half_range = low / 2 + high / 2, high / 2 - low / 2
    comparable = np.where(half_range > 0, half_range, half_range.max(axis=-1, keepdims=True, initial=0))
    is_offset = np.abs(middle) / OFFSET_RATIO > comparable
    return np.where(is_offset, middle, 0.0) if is_offset.any() else None


def feature_scale(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return powers of two that bring each feature's largest value near one."""
    largest = np.maximum(np.abs(low), np.abs(high))
    return np.exp2(-np.round(np.log2(np.where(largest > 0, largest, 1.0))))


def class_frequency(total: np.ndarray, per_class: np.ndarray, label_smoothing: float) -> np.ndarray:
    """Return the mean targets (n_problems, n_classes) of weights `total` (n_problems,) and those of every class."""
    return (1 - label_smoothing) * per_class / total[:, np.newaxis] + label_smoothing / per_class.shape[1]


def start_intercept(
    total: np.ndarray, per_class: np.ndarray, n_rows: int | np.ndarray, label_smoothing: float
) -> np.ndarray:
    """Return the log class frequencies, centred: the optimum where no feature says anything."""
    logarithm = np.log(np.maximum(class_frequency(total, per_class, label_smoothing), 0.1 / n_rows))
    return logarithm - logarithm.mean(axis=1, keepdims=True)
