"""The one place where source, plan, objective, penalty and solver meet."""

from dataclasses import dataclass, replace

import numpy as np

from gpusoftmax.backends.base import Backend
from gpusoftmax.objective import MetricRows, SoftmaxObjective
from gpusoftmax.penalties import L2
from gpusoftmax.plan import metric_sample, plan_fit
from gpusoftmax.solvers.base import Callback, Solution
from gpusoftmax.solvers.ladder import climb
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.sources import ArraySource, feature_range, sample_rows, weight_per_class

DEFAULT_RANGE_BYTES = 2 << 20
OFFSET_RATIO = 32  # a feature is centred where its offset exceeds its half range by this: float32 would lose 5 bits


@dataclass(frozen=True)
class Training:
    """What is fitted, beside the data.

    C : array of shape (n_problems,), float64
        Inverse strengths, as scikit-learn means them; infinity for no penalty.
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
    callback: Callback | None = None,
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
        None starts from no coefficients and the log class frequencies.
    callback : called with a Progress after every evaluation; True ends the fit

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
    n_problems = len(training.C)
    shape = (source.n_features + 1, n_problems, training.n_classes)
    source = backend.place(source)
    rows = sample_rows(source.n_rows, metric_sample(source.n_rows, source.n_features), training.seed)
    low, high = feature_range(source, rows, backend, training.budget_bytes or DEFAULT_RANGE_BYTES)
    center = find_center(low, high) if training.has_intercept else None
    if center is not None:
        source = replace(source, center=backend.to_device(center))
        low, high = low - center, high - center
    plan, metric_plan = plan_fit(
        *(source.n_rows, source.n_features, n_problems, training.n_classes, source.dtype, backend.facts()),
        is_soft=source.targets.ndim == 2,
        is_direct=source.is_direct,
        budget_bytes=training.budget_bytes,
    )
    total, per_class = weight_per_class(source, n_problems, training.n_classes, backend.to_host)
    if not (total > 0).all():
        raise ValueError(
            "The weights of all samples are zero: sample_weight times class_weight must have a positive sum."
        )

    params = np.zeros(shape, plan.gradient_dtype)
    if start is not None:
        params[:] = start - start.mean(axis=2, keepdims=True)  # moves no logits apart, and lowers the penalty
        if center is not None:
            params[-1] += np.tensordot(center, params[:-1], axes=1)
    elif training.has_intercept:
        params[-1] = start_intercept(total, per_class, source.n_rows, training.label_smoothing)

    objective = SoftmaxObjective(
        arrays=backend,
        fused_pass=backend.fused_pass(source, plan),
        penalty=L2(backend, backend.to_device(1 / (training.C * total))),
        total_weight=backend.to_device(total),
        has_intercept=training.has_intercept,
        label_smoothing=training.label_smoothing,
        metric_rows=MetricRows(metric_plan, rows, feature_scale(low, high)),
    )
    with backend.session():
        passes = [*objective.fused_pass.cheaper(training.precision), objective.fused_pass]
        objectives = [replace(objective, fused_pass=each) for each in passes]
        is_exact = training.precision in ("auto", "highest")
        solution = climb(solver, objectives, backend.to_device(params), callback, is_exact=is_exact)
        return replace(solution, params=backend.to_host(solution.params)), center


def find_center(low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """Return the middle of every feature whose offset dwarfs its range and zero for the others, or None."""
    middle, half_range = low / 2 + high / 2, high / 2 - low / 2
    comparable = np.where(half_range > 0, half_range, half_range.max(initial=0))
    is_offset = np.abs(middle) / OFFSET_RATIO > comparable
    return np.where(is_offset, middle, 0.0) if is_offset.any() else None


def feature_scale(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return powers of two that bring each feature's largest value near one."""
    largest = np.maximum(np.abs(low), np.abs(high))
    return np.exp2(-np.round(np.log2(np.where(largest > 0, largest, 1.0))))


def start_intercept(total: np.ndarray, per_class: np.ndarray, n_rows: int, label_smoothing: float) -> np.ndarray:
    """Return the log class frequencies, centred: the optimum where no feature says anything."""
    n_classes = per_class.shape[1]
    frequency = (1 - label_smoothing) * per_class / total[:, np.newaxis] + label_smoothing / n_classes
    logarithm = np.log(np.maximum(frequency, 0.1 / n_rows))
    return logarithm - logarithm.mean(axis=1, keepdims=True)
