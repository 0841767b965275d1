"""Every C x fold in one batched fit: which problems run when, and what became of each."""

import contextlib
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gpusoftmax.backends.base import Backend
from gpusoftmax.backends.choice import get_backend
from gpusoftmax.encoding import Code, encode, with_class_weight
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.exceptions import ConvergenceWarning
from gpusoftmax.interop import receive, to_host
from gpusoftmax.plan_sweep import plan_sweep
from gpusoftmax.problems import Folds, Problems
from gpusoftmax.progress_bar import ProgressBar
from gpusoftmax.solvers.base import Progress, Solution, Status
from gpusoftmax.solvers.continuation import LENGTH, Trail
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.sources import ArraySource
from gpusoftmax.sweep_result import SweepResult
from gpusoftmax.training import Bound, Stage, bind

C_RANGE = -4, 4  # powers of ten that a number of strengths spans, as in scikit-learn


def sweep(
    X,
    y,
    *,
    Cs=20,
    cv=None,
    groups=None,
    sample_weight=None,
    classes=None,
    class_weight=None,
    label_smoothing=0.0,
    fit_intercept=True,
    tol=1e-4,
    max_iter=1000,
    random_state=None,
    device="auto",
    precision="auto",
    memory_budget=None,
    verbose=0,
    on_interrupt="raise",
) -> SweepResult:
    """Fit every C on every fold: all share X and each read of it, none costs another its accuracy.

    Each problem's solution is that of `SoftmaxRegression` fitted alone to the fold's rows, if those have every class. A
    fold that has no rows of a class to fit is warned of: its intercept of that class runs to minus infinity, and how
    far, and so the loss of rows of the class that are held out, depends on where the solver stops.

    Parameters
    ----------
    X, y, sample_weight, classes : see `SoftmaxRegression.fit`
    Cs : int or array-like of shape (n_strengths,), default=20
        Inverse strengths; a number of them is spread evenly over the logarithm from 1e-4 to 1e4.
    cv : None, int, splitter, iterable of (train, test), or array of shape (n_samples, n_folds), default=None
        None fits all rows and holds none out. An int is that many stratified folds, by the likeliest class of soft
        targets. An array holds each fold's row weights, which multiply sample weights: rows of weight 0 are held out.
    groups : array-like of shape (n_samples,), default=None
        For splitters that keep groups together.
    class_weight : dict, "balanced", None, or a list of those, default=None
        A list is swept over. "balanced" balances each fold's rows.
    label_smoothing : float or sequence of floats in [0, 1), default=0.0
        A sequence is swept over.
    fit_intercept, tol, max_iter, random_state, device, precision : see `SoftmaxRegression`
    memory_budget : int or None, default=None
        Most bytes of workspace and of the solver's vectors, about 75 arrays of the size of the coefficients for each
        problem that runs, beside X, y, the weights and the result. Problems that do not fit together run in waves.
        None for what runs best.
    verbose : int, default=0
        Above 0, a progress bar on standard error, if that is a terminal, and one line at the end.
    on_interrupt : {"raise", "return"}, default="raise"
        What Ctrl-C does: end in KeyboardInterrupt, or return what is finished at the end of the pass going on.

    Returns
    -------
    result : SweepResult

    Raises
    ------
    ValueError
        Data or parameters are unusable; a fold has no rows to fit.
    WorkspaceError
        `memory_budget` is too small for one problem.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gpusoftmax import sweep
    >>> X, y = load_iris(return_X_y=True)
    >>> result = sweep(X, y, Cs=[0.01, 1, 100], cv=5)
    >>> len(result)
    15
    >>> result.best().C
    100.0
    """
    if on_interrupt not in ("raise", "return"):
        raise ValueError(f"on_interrupt must be 'raise' or 'return', got {on_interrupt!r}.")
    strengths = check_strengths(Cs)
    class_weights = class_weight if isinstance(class_weight, list) else [class_weight]
    smoothings = np.atleast_1d(np.asarray(label_smoothing, np.float64))
    template = SoftmaxRegression(
        fit_intercept=fit_intercept,
        tol=tol,
        max_iter=max_iter,
        random_state=random_state,
        device=device,
        precision=precision,
        memory_budget=memory_budget,
    )
    for one in class_weights:
        for smoothing in smoothings.tolist():
            template.set_params(class_weight=one, label_smoothing=smoothing)._validate_params()
    if not (class_weights and len(smoothings)):
        raise ValueError("class_weight and label_smoothing must not be empty lists.")
    X, home = receive(X)
    backend = get_backend(device, home.cuda_device)
    with backend.active():
        source, code = encode(template, X, home, y, sample_weight, classes, backend)
        folds = Folds.of(to_host(cv), source.X, labels_of(source), to_host(groups))
        problems = Problems.grid(strengths, folds.n_folds, len(class_weights), smoothings)
        with _interrupts(on_interrupt == "return") as is_interrupted:
            result = solve(template, source, code, folds, problems, class_weights, backend, verbose, is_interrupted)
    warn_of_absent_classes(result)
    warn_unless_converged(result, tol)
    return result


def solve(
    template: SoftmaxRegression,
    source: ArraySource,
    code: Code,
    folds: Folds,
    problems: Problems,
    class_weights: list,
    backend: Backend,
    verbose: int = 0,
    is_interrupted: threading.Event | None = None,
) -> SweepResult:
    """Fit problems to what `encode` returned; `template` has the parameters that they share."""
    event = is_interrupted or threading.Event()
    with ProgressBar(len(problems), n_rows=source.n_rows, is_shown=bool(verbose)) as bar:
        return _Run(template, source, code, folds, problems, class_weights, backend, bar, event).solve()


def check_strengths(Cs) -> np.ndarray:
    """Return inverse strengths as an array, float64.

    Raises
    ------
    ValueError
        They are not positive numbers, or there are none.
    """
    if np.ndim(Cs) == 0 and isinstance(Cs, int | np.integer) and not isinstance(Cs, bool):
        if Cs < 1:
            raise ValueError(f"Cs must be at least 1 strength, got {Cs}.")
        return np.logspace(*C_RANGE, Cs)
    strengths = np.asarray(to_host(Cs), np.float64)
    if strengths.ndim != 1 or not len(strengths) or not (strengths > 0).all():
        raise ValueError(f"Cs must be a number of strengths or an array of positive ones, got {Cs!r}.")
    return strengths


def labels_of(source: ArraySource) -> np.ndarray:
    """Return each row's class on the host, the likeliest where targets are soft."""
    return to_host(source.targets.argmax(axis=1) if source.targets.ndim == 2 else source.targets)


@contextlib.contextmanager
def _interrupts(is_caught: bool) -> Iterator[threading.Event]:
    """Set an event at the first Ctrl-C, if it is to be caught; the second raises as ever."""
    event = threading.Event()
    if not is_caught or threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def warn_unless_converged(result: SweepResult, tol: float) -> None:
    """Warn, on behalf of the caller's caller, of problems that did not converge."""
    is_short = ~(result.gradient_norm <= tol) | (result.status == Status.ITERATION_LIMIT)
    is_short &= result.status != Status.STOPPED
    if is_short.any():
        first = result.setting_of(int(np.flatnonzero(is_short)[0]))
        warnings.warn(
            f"{is_short.sum()} of {len(result)} problems did not converge (tol={tol:.2e}), the first with {first}. "
            "Their `status` says why: increase max_iter, scale the features, or give X as float64.",
            ConvergenceWarning,
            stacklevel=3,
        )


def warn_of_absent_classes(result: SweepResult) -> None:
    """Warn, on behalf of the caller's caller, of folds that have no rows of some class to fit."""
    places = np.argwhere(result._is_absent)
    if len(places):
        fold, i = places[0]
        warnings.warn(
            f"Fold {fold} of cv has no rows of class {result._code.classes.tolist()[i]!r} to fit; folds that lack some "
            f"class are {len(np.unique(places[:, 0]))} of {result.n_folds}. How models score on a class that they have "
            "not seen says nothing of a penalty: spread classes over folds by StratifiedKFold or shuffle=True.",
            stacklevel=3,
        )


class _Run:
    """One call of `sweep`: what every group of problems shares, and the results of all."""

    def __init__(
        self,
        template: SoftmaxRegression,
        source: ArraySource,
        code: Code,
        folds: Folds,
        problems: Problems,
        class_weights: list,
        backend: Backend,
        bar: ProgressBar,
        is_interrupted: threading.Event,
    ):
        self.template = template
        self.code = code
        self.folds = folds
        self.problems = problems
        self.class_weights = class_weights
        self.backend = backend
        self.bar = bar
        self.is_interrupted = is_interrupted
        self.solver = LBFGS(tol=template.tol, max_iter=template.max_iter)
        self.sample_weight = None if source.weights is None else backend.to_host(source.weights)
        weights, self.weight_unit = folds.row_weights(self.sample_weight, source.dtype)
        if weights is not None and source.targets_xp is not np:
            weights = backend.to_device(weights)
        self.source = replace(source, weights=weights)
        self.is_absent = folds.absent_classes(source, self.source, len(code.classes), backend.to_host)
        self.center: np.ndarray | None = None
        n, nan = len(problems), np.full(len(problems), np.nan)
        self.solution = Solution(
            params=np.full((source.n_features + 1, n, len(code.classes)), np.nan, code.dtype),
            value=nan.copy(),
            gradient_norm=nan.copy(),
            remaining_decrease=nan.copy(),
            n_iter=np.zeros(n, np.int32),
            n_passes=np.zeros(n),
            status=np.full(n, Status.STOPPED),
            gradient=None,
        )
        self.loss, self.accuracy = np.full((2, 2, n), np.nan)

    def solve(self) -> SweepResult:
        """Solve group by group: problems of one class weight and one smoothing, whose pass is one."""
        problems = self.problems
        settings, code = np.stack([problems.label_smoothing, problems.class_weight], axis=1), self.code
        for smoothing, i in np.unique(settings, axis=0):
            places = np.flatnonzero((settings == [smoothing, i]).all(axis=1))
            self.template.set_params(label_smoothing=float(smoothing), class_weight=self.class_weights[int(i)])
            source, self.code = with_class_weight(self.source, code, self.template.class_weight, self.backend)
            grid = places.reshape(-1, self.folds.n_folds)
            for part, folds in self.parts(source):
                self.solve_part(part, folds, grid[:, folds])
        return self.result()

    def parts(self, source: ArraySource) -> Iterator[tuple[ArraySource, np.ndarray]]:
        """Yield sources and their folds: one, unless class weights make other soft targets of every fold."""
        weights, balance = source.weights, source.class_weight
        if source.targets.ndim == 1 or weights is None or balance is None or len(balance) == 1:
            yield source, self.folds.order()
            return
        for fold in range(self.folds.n_folds):
            column = slice(fold, fold + 1)
            yield replace(source, weights=weights[:, column], class_weight=balance[column]), np.array([fold])

    def solve_part(self, source: ArraySource, folds: np.ndarray, grid: np.ndarray) -> None:
        """Solve problems that differ in strength and fold only, (n_strengths, n_folds), wave by wave."""
        backend, training = self.backend, self.template._training(self.code)
        source = backend.place(source)
        plan = plan_sweep(
            *(source.n_rows, source.n_features, len(folds)),
            self.problems.C[grid[:, 0]],
            *(len(self.code.classes), source.dtype, backend.facts()),
            vectors=self.solver.n_vectors + LENGTH,
            is_soft=source.targets.ndim == 2,
            is_direct=source.is_direct,
            budget_bytes=self.template.memory_budget,
        )
        with backend.session():
            for wave in plan.waves():
                if self.is_interrupted.is_set():
                    return
                of_all = np.where(wave >= 0, grid.reshape(-1)[wave], -1)
                columns = None if len(folds) == 1 else self.problems.fold[of_all[:, 0]]
                training = replace(training, C=self.strengths(of_all[:, 0]), budget_bytes=plan.pass_budget)
                bound = bind(training, replace(source, columns=columns), backend, is_path=plan.paths.shape[1] > 1)
                self.solve_wave(bound, of_all)

    def strengths(self, places: np.ndarray) -> np.ndarray:
        return self.code.inner_strength(self.problems.C[places] * self.weight_unit[self.problems.fold[places]])

    def solve_wave(self, bound: Bound, wave: np.ndarray) -> None:
        """Solve each path's problems, (n_paths, n_stages), one from where the one before ended."""
        self.center = bound.center
        stage: Stage | None = None
        for column in range(wave.shape[1]):
            kept = np.flatnonzero(wave[:, column] >= 0)
            if len(kept) < len(wave):
                wave, bound = wave[kept], bound.select(kept)
                stage = None if stage is None else stage.select(self.backend.to_device(kept), kept)
            places = wave[:, column]
            C = self.strengths(places)
            if stage is None:
                solution = bound.solve(self.solver, C, bound.first_params, self.hear)
                trail = Trail(self.backend)
            else:
                solution = bound.solve_next(self.solver, C, stage, self.hear)
                trail = stage.trail
            spread = self.record(bound, places, solution)
            stage = Stage(C, solution, spread, trail.extended(solution.params, np.log(C)))
            self.bar.finish(len(places))
            if self.is_interrupted.is_set():
                return

    def hear(self, progress: Progress) -> bool:
        self.bar.hear(progress)
        return self.is_interrupted.is_set()

    def record(self, bound: Bound, places: np.ndarray, solution: Solution) -> np.ndarray:
        """Write down a stage's solutions and how well they do; return the spread of their softmax on rows fitted."""
        of_all = self.solution
        finished = bound.finish(self.solver, self.strengths(places), solution, self.hear)
        of_all.params[:, places] = self.backend.to_host(finished.params)
        for name in ("value", "gradient_norm", "remaining_decrease", "n_iter", "n_passes", "status"):
            getattr(of_all, name)[places] = getattr(finished, name)
        n_sets = 1 if self.folds.weights is None else 2
        folds = self.problems.fold[places]
        sums = bound.passes[-1].scores(
            solution.params, lambda rows: self.folds.scoring_weights(rows, folds, self.sample_weight), n_sets
        )
        loss, correct, weight = (self.backend.to_host(each) for each in (sums.loss, sums.correct, sums.weight))
        with np.errstate(invalid="ignore"):
            self.loss[:n_sets, places], self.accuracy[:n_sets, places] = loss / weight, correct / weight
            return self.backend.to_host(sums.spread)[0] / weight[0]

    def result(self) -> SweepResult:
        solution = self.solution
        coef, intercept = self.code.decode(solution.params, self.center)
        return SweepResult(
            problems=self.problems,
            class_weights=self.class_weights,
            n_folds=self.folds.n_folds,
            status=np.array([Status(status) for status in solution.status], object),
            n_iter=solution.n_iter,
            n_passes=solution.n_passes,
            objective=solution.value,
            gradient_norm=solution.gradient_norm,
            train_loss=self.loss[0],
            train_accuracy=self.accuracy[0],
            held_out_loss=self.loss[1],
            held_out_accuracy=self.accuracy[1],
            coef=coef,
            intercept=intercept,
            _is_absent=self.is_absent,
            _solution=solution,
            _center=self.center,
            _code=self.code,
            _template=self.template,
        )
