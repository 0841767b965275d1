"""Many independent small problems in one call: each has its own X, and waves of them share every step."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gpusoftmax.backends.base import Backend
from gpusoftmax.backends.choice import get_backend
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.frames import to_table
from gpusoftmax.independent import IndependentObjective
from gpusoftmax.independent_row_space import feature_ranges, minimize_in_spans
from gpusoftmax.kernels.independent import IndependentRows
from gpusoftmax.many_data import ManyData, OwnClasses, receive_many
from gpusoftmax.plan_many import N_PAIRS, is_wide, plan_waves
from gpusoftmax.progress_bar import ProgressBar
from gpusoftmax.solvers.base import Solution, Status
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.training import feature_scale, find_center, start_intercept

N_ROUGH = 40  # evaluations before a problem is worth a metric that costs a small one as much as a dozen
FIRST_REFRESH, REFRESH_GROWTH = 10, 1.5  # a stale metric underestimates what is left to gain
ABSENT = -1e30  # the logit of a class that a problem lacks: beyond all others, and finite in any product


@dataclass(frozen=True)
class ManyFits:
    """The fits of `fit_many`; arrays are NumPy's and have one entry per problem.

    Coefficients are kept for the classes that each problem has. `coef` and `intercept` spread them over the classes of
    all problems, n_problems x n_classes x n_features numbers, when first asked for; `to_estimator` does without.

    Parameters
    ----------
    classes : array of shape (n_classes,)
        Of all problems together.
    status : array of `Status`
    n_iter : array of int
        Steps taken.
    n_passes : array of float
        Evaluations of the objective, and estimates of the metric.
    objective, gradient_norm : arrays of float
        At the solution; see `SoftmaxRegression`.
    """

    classes: np.ndarray
    status: np.ndarray
    n_iter: np.ndarray
    n_passes: np.ndarray
    objective: np.ndarray
    gradient_norm: np.ndarray
    _own: OwnClasses = field(repr=False)
    _coef: np.ndarray = field(repr=False)
    _intercept: np.ndarray = field(repr=False)
    _center: np.ndarray = field(repr=False)
    _settings: dict[str, Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.status)

    @cached_property
    def coef(self) -> np.ndarray:
        """Array of shape (n_problems, 1, n_features) for two classes, else (n_problems, n_classes, n_features).

        Zero for a class that a problem lacks.
        """
        return self._spread(self._coef, 0)

    @cached_property
    def intercept(self) -> np.ndarray:
        """Array of shape (n_problems, 1) or (n_problems, n_classes).

        Minus infinity for a class that a problem lacks.
        """
        return self._spread(self._intercept, -np.inf)

    def _spread(self, values: np.ndarray, absent: float) -> np.ndarray:
        """Return values of the classes that each problem has as values of all classes."""
        n_classes = len(self.classes)
        if len(self._own.classes) == len(self) * n_classes:
            return values.reshape(len(self), -1, *values.shape[1:])
        spread = np.full((len(self), n_classes, *values.shape[1:]), absent, values.dtype)
        spread[np.repeat(np.arange(len(self)), self._own.n_classes), self._own.classes] = values
        return spread

    def to_estimator(self, p: int) -> SoftmaxRegression:
        """Return problem p as a fitted `SoftmaxRegression`, as if it had been fitted alone: to its own classes."""
        estimator = SoftmaxRegression(**self._settings | {"C": float(self._settings["C"][p])})
        [own], _ = self._own.of_wave(np.array([p]))
        rows = [p] if len(self.classes) == 2 else own
        coef, intercept = self._coef[rows], self._intercept[rows]
        if len(coef) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        estimator.coef_, estimator.intercept_ = coef, intercept
        estimator.classes_ = self.classes[self._own.classes[own]]
        estimator._center = self._center[p] if self._center[p].any() else None
        estimator.n_iter_, estimator.n_passes_ = self.n_iter[[p]], float(self.n_passes[p])
        estimator.status_, estimator.n_features_in_ = self.status[p], coef.shape[1]
        estimator.objective_, estimator.gradient_norm_ = float(self.objective[p]), float(self.gradient_norm[p])
        estimator.history_, estimator.temperature_ = None, 1.0
        return estimator

    def to_frame(self):
        """Return how each problem ended as a pandas DataFrame."""
        names = ("status", "n_iter", "n_passes", "objective", "gradient_norm")
        columns = {name: getattr(self, name) for name in names}
        return to_table(columns | {"status": [str(status) for status in self.status]})


def fit_many(
    Xs,
    ys,
    *,
    sample_weights=None,
    C=1.0,
    fit_intercept=True,
    label_smoothing=0.0,
    tol=1e-4,
    max_iter=1000,
    device="auto",
    precision="auto",
    memory_budget=None,
    verbose=0,
) -> ManyFits:
    """Fit a softmax regression to each of many data sets with the same features: subjects, layers, episodes.

    Each problem's objective and solution are those of its own ``SoftmaxRegression(...).fit(X, y)``. Problems are fitted
    in waves, stacked in batched products; each has its own steps and its own end.

    Parameters
    ----------
    Xs : array of shape (n_problems, n_samples, n_features), or list of arrays of shape (n_samples, n_features)
        In a list, numbers of samples may differ. Arrays as `SoftmaxRegression.fit` takes them, of finite numbers;
        copied wave by wave.
    ys : array of shape (n_problems, n_samples), or list of arrays of shape (n_samples,)
        Labels of any dtype that can be ordered; problems may have the same or their own. With one dimension more, of
        size n_classes: soft targets.
    sample_weights : array of shape (n_problems, n_samples), list of arrays of shape (n_samples,), or None for ones
        Non-negative. A class whose samples all weigh nothing is none of a problem's.
    C : float or array of shape (n_problems,)
    fit_intercept, label_smoothing, tol, max_iter, device, precision : see `SoftmaxRegression`
        Labels are smoothed over the classes that a problem has. Products are always exact.
    memory_budget : int or None
        Most bytes of the waves that run at once, with their copies of X and the solver's vectors; None for what runs
        best.
    verbose : int
        Above 0, a progress bar on standard error, if that is a terminal, and one line at the end.

    Returns
    -------
    ManyFits

    Raises
    ------
    ValueError, TypeError
        Data or parameters are unusable; the message names the problem.
    WorkspaceError
        `memory_budget` is too small for the largest problem; the message names one that fits.

    Warns
    -----
    ConvergenceWarning
        Some problems did not converge; `ManyFits.status` says which and how they ended.

    Examples
    --------
    >>> import numpy as np
    >>> import gpusoftmax as gs
    >>> rng = np.random.default_rng(0)
    >>> Xs = rng.normal(size=(50, 30, 4))
    >>> ys = np.where(Xs[:, :, 0] > 0, "right", "left")
    >>> fits = gs.fit_many(Xs, ys)
    >>> fits.coef.shape
    (50, 1, 4)
    >>> fits.to_estimator(7).predict([[-1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    array(['left', 'right'], dtype='<U5')
    """
    settings = {
        "fit_intercept": fit_intercept,
        "label_smoothing": label_smoothing,
        "tol": tol,
        "max_iter": max_iter,
        "device": device,
        "precision": precision,
        "memory_budget": memory_budget,
        "verbose": verbose,
    }
    SoftmaxRegression(**settings)._validate_params()
    data, cuda_device = receive_many(Xs, ys, sample_weights, C)
    backend = get_backend(device, cuda_device)
    fitting = _Fitting(data, settings, backend)
    fits = fitting.run(memory_budget, verbose)
    _warn_unless_converged(fits, tol)
    return fits


class _Fitting:
    """The fits of checked data on one backend."""

    def __init__(self, data: ManyData, settings: dict[str, Any], backend: Backend):
        self.data = data
        self.settings = settings
        self.backend = backend
        n_problems, n_features = len(data.Xs), data.Xs[0].shape[1]
        # One row for each class that a problem has, or for each problem where two classes are all.
        n_rows = n_problems if len(data.classes) == 2 else len(data.own.classes)
        self.coef = np.zeros((n_rows, n_features), data.dtype)
        self.intercept = np.zeros(n_rows)
        self.center = np.zeros((n_problems, n_features))
        self.records = np.zeros((5, n_problems))
        self.is_stopped = False

    def run(self, budget_bytes: int | None, verbose: int) -> ManyFits:
        """Fit all problems, wave by wave."""
        data, bar = self.data, ProgressBar(len(self.data.Xs), is_shown=bool(verbose))
        plan = plan_waves(
            data.n_rows,
            data.Xs[0].shape[1],
            data.own.n_classes,
            data.dtype,
            self.backend.name,
            self.backend.facts().n_threads,
            is_soft=data.is_soft or self.settings["label_smoothing"] > 0,
            budget_bytes=budget_bytes,
        )
        fit = partial(self.fit_wave, n_factored=plan.n_factored)
        with bar, self.backend.active(), self.backend.session(), ThreadPoolExecutor(plan.n_threads) as pool:
            run = pool.map if plan.n_threads > 1 else map
            try:
                for wave, _ in zip(plan.waves, run(fit, plan.waves), strict=True):
                    bar.finish(len(wave))
            finally:
                self.is_stopped = True
        return self.unpack()

    def fit_wave(self, wave: np.ndarray, *, n_factored: int) -> None:
        """Fit some problems together."""
        data, settings, backend = self.data, self.settings, self.backend
        if self.is_stopped:
            return
        places, has_class = data.own.of_wave(wave)
        total = data.total[wave]
        unit = np.ones(len(wave))
        if data.weights is not None:
            largest = np.array([data.weights[p].max() for p in wave])
            unit = np.ldexp(1.0, np.frexp(largest)[1] - 1)
        X, low, high = self.stack_features(wave)
        rows = self.stack_rows(X, wave, unit, has_class)
        # Two classes are a softmax with two columns, which share the weight of their difference.
        C = np.where(has_class.sum(axis=1) == 2, data.C[wave] / 2, data.C[wave])
        scale = np.append(feature_scale(low, high), np.full((len(wave), 1), float(settings["fit_intercept"])), axis=1)
        objective = IndependentObjective(
            arrays=backend,
            rows=rows,
            total_weight=backend.to_device(total / unit),
            strength=backend.to_device(1 / (C * total)),
            scale=backend.to_device(scale[:, :, np.newaxis]),
            n_factored=n_factored,
        )
        params = np.zeros((X.shape[1], *has_class.shape), data.dtype)
        if settings["fit_intercept"]:
            counts = data.n_rows[wave, np.newaxis]
            per_class = np.where(has_class, data.own.weight[places], 0)
            params[-1] = start_intercept(total, per_class, counts, settings["label_smoothing"])
        solver = LBFGS(
            tol=settings["tol"],
            max_iter=settings["max_iter"],
            n_pairs=N_PAIRS,
            first_refresh=FIRST_REFRESH,
            refresh_growth=REFRESH_GROWTH,
            n_rough=N_ROUGH,
        )
        with np.errstate(all="ignore"):  # what overflows ends as a status, and no other problem hears of it
            minimize = minimize_in_spans if is_wide(X.shape[2], X.shape[1] - 1) else LBFGS.minimize
            solution = minimize(solver, objective, backend.to_device(params), lambda _: self.is_stopped)
        self.keep(wave, places, has_class, backend.to_host(solution.params), solution)

    def stack_features(self, wave: np.ndarray):
        """Return X (n_problems, n_features + 1, n_rows) of a wave, centred, and each feature's range.

        Problems with fewer rows than the first repeat one, for no weight.
        """
        data, xp = self.data, self.backend.xp
        n_rows, n_features = data.Xs[wave[0]].shape
        X = xp.empty((len(wave), n_features + 1, n_rows), data.dtype)
        X[:, -1] = float(self.settings["fit_intercept"])
        for place, p in enumerate(wave.tolist()):
            own = self.backend.to_device(data.Xs[p]).T
            X[place, :-1, : own.shape[1]] = own
            X[place, :-1, own.shape[1] :] = own[:, :1]
        low, high = feature_ranges(X, self.backend)
        for p in wave[~np.isfinite(high - low).all(axis=1)].tolist():
            raise ValueError(f"Xs must hold finite numbers, got NaN or infinity in problem {p}.")
        center = find_center(low, high) if self.settings["fit_intercept"] else None
        if center is not None:
            center = center.astype(data.dtype)
            X[:, :-1] -= self.backend.to_device(center)[:, :, np.newaxis]
            self.center[wave] = center
            low, high = low - center, high - center
        return X, low, high

    def stack_rows(self, X, wave: np.ndarray, unit: np.ndarray, has_class: np.ndarray) -> IndependentRows:
        """Return the rows of a wave, weights counted in `unit` (n_problems,)."""
        data, backend, counts = self.data, self.backend, self.data.n_rows[wave]
        shape = len(wave), X.shape[2]
        weights = absence = None
        if data.weights is not None or counts.min() < X.shape[2]:
            weights = np.zeros(shape, data.dtype)
            for place, p in enumerate(wave.tolist()):
                weights[place, : counts[place]] = 1 if data.weights is None else data.weights[p] / unit[place]
        targets = np.zeros((*shape, has_class.shape[1]), data.dtype) if data.is_soft else np.zeros(shape, np.int64)
        for place, p in enumerate(wave.tolist()):
            targets[place, : counts[place]] = data.targets[p]
        if data.is_soft or self.settings["label_smoothing"]:
            targets = self.soft_targets(targets, has_class)
        if not has_class.all():
            absence = np.where(has_class.T[:, :, np.newaxis], 0, ABSENT).astype(data.dtype)
        return IndependentRows(
            backend.xp,
            X,
            targets=backend.to_device(targets),
            weights=None if weights is None else backend.to_device(weights),
            absence=None if absence is None else backend.to_device(absence),
        )

    def soft_targets(self, targets: np.ndarray, has_class: np.ndarray) -> np.ndarray:
        """Return smoothed targets (n_classes, n_problems, n_rows), labels spread over the classes of their problem."""
        dtype, smoothing = self.data.dtype, self.settings["label_smoothing"]
        if targets.ndim == 2:
            targets = targets[:, :, np.newaxis] == np.arange(has_class.shape[1])
        soft = np.ascontiguousarray(targets.transpose(2, 0, 1), dtype)
        soft *= dtype.type(1 - smoothing)
        soft += (smoothing * has_class / has_class.sum(axis=1, keepdims=True)).T[:, :, np.newaxis].astype(dtype)
        return soft

    def keep(
        self, wave: np.ndarray, places: np.ndarray, has_class: np.ndarray, params: np.ndarray, solution: Solution
    ) -> None:
        """Write down a wave's solution as users know it: it sums to zero over the classes that a problem has."""
        W, is_own = params.transpose(1, 2, 0).astype(np.float64), has_class[:, :, np.newaxis]
        mean = (W * is_own).sum(axis=1, keepdims=True) / is_own.sum(axis=1, keepdims=True)
        W -= mean
        if len(self.data.classes) == 2:
            W, places, has_class = W[:, 1:] - W[:, :1], wave[:, np.newaxis], has_class[:, :1]
        coef, intercept = W[:, :, :-1].astype(self.data.dtype, order="C"), W[:, :, -1]
        center = self.center[wave]
        if center.any():  # from the rounded coefficients: offset times rounding is no rounding
            intercept = intercept - (coef.astype(np.float64) @ center[:, :, np.newaxis])[:, :, 0]
        places = places[has_class]
        self.coef[places], self.intercept[places] = coef[has_class], intercept[has_class]
        record = solution.value, solution.gradient_norm, solution.n_iter, solution.n_passes, solution.status
        self.records[:, wave] = record

    def unpack(self) -> ManyFits:
        """Return what was written down."""
        data, intercept = self.data, self.intercept
        if not self.center.any():
            intercept = intercept.astype(data.dtype)
        objective, gradient_norm, n_iter, n_passes, status = self.records
        status = np.array([Status(int(number)) for number in status], object)
        records = status, n_iter.astype(np.int32), n_passes, objective, gradient_norm
        settings = self.settings | {"C": data.C}
        return ManyFits(data.classes, *records, data.own, self.coef, intercept, self.center, settings)


def _warn_unless_converged(fits: ManyFits, tol: float) -> None:
    is_short = ~(fits.gradient_norm <= tol) | (fits.status == Status.ITERATION_LIMIT)
    if not is_short.any():
        return
    short = np.flatnonzero(is_short)
    first = ", ".join(f"{p} ({fits.status[p]})" for p in short[:5].tolist())
    warnings.warn(
        f"{len(short)} of {len(fits)} problems did not converge: {first}{', …' * (len(short) > 5)}. Increase max_iter, "
        "scale the features, give Xs as float64, or loosen tol.",
        ConvergenceWarning,
        stacklevel=3,
    )
