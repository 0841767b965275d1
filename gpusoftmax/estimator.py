"""The scikit-learn estimator: validate, encode, train, unpack. No arithmetic of its own beyond the two-class fold."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn._config import get_config  # sklearn.get_config, whose re-export mypy does not see
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from gpusoftmax.backends.choice import get_backend
from gpusoftmax.callbacks import FitTasks, Recorder
from gpusoftmax.encoding import check_features, encode, with_class_weight
from gpusoftmax.exceptions import NonFiniteError
from gpusoftmax.frames import LIBRARIES, as_frame
from gpusoftmax.interop import receive, to_host
from gpusoftmax.progress_bar import ProgressBar
from gpusoftmax.solvers.base import Status
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.sources import ArraySource, compute_dtype
from gpusoftmax.training import Training, train

ARRAYS = ("coef_", "intercept_", "classes_", "n_iter_", "_center")
METHODS = {
    "classes": "predict",
    "probabilities": "predict_proba",
    "log_probabilities": "predict_log_proba",
    "logits": "decision_function",
}


class SoftmaxRegression(CallbackSupportMixin, ClassifierMixin, BaseEstimator):
    """Softmax (multinomial logistic) regression, trained to a trustworthy optimum in bounded memory.

    Minimises exactly the objective of scikit-learn's ``LogisticRegression``::

        f(W, b) = 1/S Σ_i s_i · -Σ_k t_ik log y_ik + 1/(2 C S) ‖W‖²,    y_i = softmax(x_i W + b),    S = Σ_i s_i

    by preconditioned L-BFGS, each evaluation one fused pass over the rows: X is never copied as a whole and no array
    of shape (n_samples, n_classes) is made. With more features than rows it finds the solution in their span. Two
    classes are solved as a softmax with two columns whose difference is scikit-learn's solution.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the L2 penalty on the coefficients; ``np.inf`` for none. The intercept is not penalised.
    fit_intercept : bool, default=True
    class_weight : dict, "balanced" or None, default=None
        Multiplies the weight of each sample by the weight of its class. With soft targets, every class's term of the
        loss is multiplied. Label smoothing comes after: the smoothed row has the weight of the row before.
    label_smoothing : float in [0, 1), default=0.0
        Targets become ``(1 - label_smoothing) · t + label_smoothing / n_classes``.
    tol : float, default=1e-4
        The fit ends when the largest absolute entry of the gradient, of centred features where they were centred, is at
        most `tol` and f is estimated to lie within ``3e-4 · tol · max(f, tol)`` of its minimum: a relative distance
        for f above `tol`, an absolute one below. A smaller `tol` tells more where hardly any penalty lets f go to zero.
    max_iter : int, default=1000
    warm_start : bool, default=False
        Start from the coefficients of the previous fit, unless the objective is lower with none.
    random_state : int, RandomState instance or None, default=None
        Draws the rows from which the solver's metric is estimated when there are many; None draws the same ones always.
        It does not change the optimum.
    verbose : int, default=0
        Above 0, a progress bar on standard error while the fit runs, if that is a terminal, and one line at its end.
    device : {"auto", "cpu", "cuda"}, default="auto"
        Where to compute: "auto" is where X already is; for X on the host, a CUDA GPU if there is one that can be used.
    precision : {"auto", "highest", "high", "medium"}, default="auto"
        Of float32 products on a GPU with tensor cores, named as PyTorch names them; elsewhere all are the same. "auto"
        begins a fit with rounded products (TF32) where products take the time, and ends it with exact ones. "high"
        (TF32) and "medium" (bfloat16) make do with rounded ones, judged by one exact evaluation at the end: `status_`
        then says CONVERGED or PRECISION_REACHED. Predictions are exact.
    memory_budget : int or None, default=None
        Most bytes of workspace beside X, y, the weights and the solver's vectors, (n_features + 1) · n_classes numbers
        each; None for what runs best.

    Attributes
    ----------
    coef_ : array of shape (1, n_features) for two classes, else (n_classes, n_features)
        Of X's dtype: float32 stays float32, float16 is fitted in float32, every other dtype in float64.
    intercept_ : array of shape (1,) or (n_classes,)
        float64 where features were centred for precision (see the guide), else of the dtype of `coef_`.
    classes_ : array of shape (n_classes,)
        NumPy's, unless y was an array of numbers of another library: then that library's.
    n_iter_ : array of shape (1,), int32
        Steps taken.
    n_passes_ : float
        Evaluations of the objective, and estimates of the metric as the fraction of the rows that they read. Checking
        X for finite values and offsets reads it once more. Where features outnumber rows, all but the last few are
        shorter: over the rows' coordinates in their span.
    status_ : Status
        How the fit ended; ``status_.sentence`` says it in words.
    objective_ : float
        f at the solution.
    gradient_norm_ : float
        Largest absolute entry of the gradient of f at the solution, with respect to coefficients of centred features
        where they were centred for precision.
    history_ : History or None
        Passes, objective, gradient and seconds after each evaluation. None for a model out of a sweep, `fit_many` or a
        file.
    temperature_ : float
        What `calibrate` has divided the logits of the fit by; 1.0 after a fit.
    n_features_in_ : int
    feature_names_in_ : array of shape (n_features,)
        Where X had feature names that are all strings.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gpusoftmax import SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftmaxRegression().fit(X, y)
    >>> clf.status_.name
    'CONVERGED'
    >>> clf.predict(X[:2])
    array([0, 0])
    >>> clf.score(X, y)
    0.97...
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "C": [Interval(Real, 0, None, closed="right")],
        "fit_intercept": ["boolean"],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "device": [StrOptions({"auto", "cpu", "cuda"})],
        "precision": [StrOptions({"auto", "highest", "high", "medium"})],
        "memory_budget": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(
        self,
        C=1.0,
        *,
        fit_intercept=True,
        class_weight=None,
        label_smoothing=0.0,
        tol=1e-4,
        max_iter=1000,
        warm_start=False,
        random_state=None,
        verbose=0,
        device="auto",
        precision="auto",
        memory_budget=None,
    ):
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device
        self.precision = precision
        self.memory_budget = memory_budget

    def fit(self, X, y, sample_weight=None, *, classes=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Array, memory-mapped array or data frame of any real dtype. An array of CuPy or PyTorch, or whatever speaks
            DLPack or ``__cuda_array_interface__``, is not copied and stays on its device; fitted attributes and
            predictions are then arrays of that library on that device. Pickles and copies hold NumPy arrays.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Labels of any dtype that can be ordered; or soft targets, non-negative rows that sum to one.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; None for ones.
        classes : array-like of shape (n_classes,), default=None
            Labels of the columns of soft targets, by default 0, 1 and so on.

        Returns
        -------
        self : SoftmaxRegression

        Raises
        ------
        ValueError
            Data or parameters are unusable. The estimator is left as it was, as it is when the fit is interrupted or
            a callback raises.
        DeviceError
            A CUDA GPU is asked for and cannot be used; the message says why.
        MemoryError
            The device has too little memory.
        """
        with unchanged_on_failure(self):
            self._validate_params()
            self._fit(X, y, sample_weight, classes)
        self._warn_unless_converged()
        return self

    def predict(self, X):
        """Return the most likely class of each sample, shape (n_samples,)."""
        return self._map_logits(X, "classes")

    def predict_proba(self, X):
        """Return the probability of each class, shape (n_samples, n_classes)."""
        return self._answer(X, "probabilities")

    def predict_log_proba(self, X):
        """Return the log-probability of each class: a log-softmax, finite where the probability underflows."""
        return self._answer(X, "log_probabilities")

    def decision_function(self, X):
        """Return the logits, shape (n_samples, n_classes); for two classes their difference, shape (n_samples,)."""
        return self._answer(X, "logits")

    def set_output(self, *, predict_proba=None, predict_log_proba=None, decision_function=None):
        """Choose what three methods return: arrays where X lives, or data frames on the host.

        A frame has a column for each class, and that of pandas the index of X; logits of two classes become a Series
        named by the second, or a pyarrow.Array. As with scikit-learn's transformers, the choice stays with clones,
        copies and pickles. Tools that index arrays want arrays: the guide names them.

        Parameters
        ----------
        predict_proba, predict_log_proba, decision_function : {"default", "pandas", "polars", "pyarrow"}, default=None
            For the method of this name; None leaves it as it was, which is "default" at first: arrays.

        Returns
        -------
        self : SoftmaxRegression

        Raises
        ------
        ValueError
            There is no such choice.
        """
        given = {
            "predict_proba": predict_proba,
            "predict_log_proba": predict_log_proba,
            "decision_function": decision_function,
        }
        given = {method: library for method, library in given.items() if library is not None}
        choices = ("default", *LIBRARIES)
        for method, library in given.items():
            if library not in choices:
                raise ValueError(f"{method} must be one of {', '.join(map(repr, choices))}, or None; got {library!r}.")
        # A new dict, since copies share the old one; of this name, since scikit-learn's clone() keeps it.
        self._sklearn_output_config = getattr(self, "_sklearn_output_config", {}) | given
        return self

    def score(self, X, y, sample_weight=None):
        """Return the accuracy of `predict`, the share of `sample_weight` that is classified as `y` says."""
        from sklearn.metrics import accuracy_score  # 0.2 s that an import of this package need not take

        y, predicted = np.asarray(to_host(y)), to_host(self.predict(X))
        if y.dtype.kind == "O":  # of objects it knows strings only
            y, predicted = column_or_1d(y) == predicted, np.ones(len(y), bool)
        return accuracy_score(y, predicted, sample_weight=to_host(sample_weight))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags

    def __getstate__(self):
        # Pickles and copies hold NumPy arrays, and load where there is neither a GPU nor X's library.
        state = super().__getstate__()
        return state | {name: to_host(state[name]) for name in ARRAYS if name in state}

    @with_callbacks  # inside of `unchanged_on_failure`, which would take from it what it tears down
    def _fit(self, X, y, sample_weight, classes):
        """Fit what the user gave."""
        received, home = receive(X)
        backend = get_backend(self.device, home.cuda_device)
        with backend.active():
            source, code = encode(self, received, home, y, sample_weight, classes, backend)
            tasks = FitTasks(self, X, y, sample_weight)
            self._fit_encoded(source, code, backend, tasks)
            tasks.end()

    def _fit_encoded(self, source, code, backend, tasks):
        """Fit what `encode` returned."""
        source, code = with_class_weight(source, code, self.class_weight, backend)
        recorder = Recorder(source.n_rows, source.n_features, len(code.classes), backend.name)

        def hear(progress, center):
            recorder.hear(progress)
            bar.hear(progress)
            return tasks.hear(progress, lambda: self._attributes_at(progress, center, code, backend))

        with ProgressBar(1, n_rows=source.n_rows, tol=self.tol, is_shown=bool(self.verbose)) as bar:
            solution, center = train(
                self._training(code),
                source,
                LBFGS(tol=self.tol, max_iter=self.max_iter),
                backend,
                start=self._start(code.classes, source.n_features),
                callback=hear,
            )
            bar.finish(1, Status(int(solution.status[0])))
        if solution.status[0] == Status.NON_FINITE:
            raise NonFiniteError(
                f"The objective or its gradient left the range of {code.dtype.name}: features as large as these "
                "want rescaling (sklearn.preprocessing.StandardScaler, for instance) or float64."
            )
        self._unpack(solution, 0, center, code, recorder.history())
        recorder.log_end(self)

    def _training(self, code):
        """Return what to fit, as the parameters say it."""
        return Training(
            C=code.inner_strength([self.C]),
            n_classes=len(code.classes),
            has_intercept=self.fit_intercept,
            label_smoothing=self.label_smoothing,
            seed=0 if self.random_state is None else check_random_state(self.random_state).randint(2**31),
            budget_bytes=self.memory_budget,
            precision=self.precision,
        )

    def _start(self, classes, n_features):
        """Return the params of the previous fit, or None to start anew."""
        if not self.warm_start or not hasattr(self, "coef_"):
            return None
        old_classes, n_old = to_host(self.classes_), self.coef_.shape[1]
        if not np.array_equal(classes, old_classes) or n_old != n_features:
            raise ValueError(
                f"warm_start continues a fit of {n_old} features and the classes {list(old_classes)}; "
                f"this one has {n_features} features and the classes {list(classes)}. Set warm_start=False."
            )
        params = self._params(to_host(self.coef_))
        if not self.fit_intercept:
            params[-1] = 0
        return params if np.isfinite(params).all() else None

    def _params(self, coef):
        """Return `coef_`, given on the host, and `intercept_` as params (n_features + 1, 1, n_classes), float64."""
        rows = np.column_stack([coef, to_host(self.intercept_)]).astype(np.float64)
        if len(rows) == 1:
            rows = np.concatenate([-rows / 2, rows / 2])
        return rows.T[:, np.newaxis]

    def _unpack(self, solution, problem, center, code, history=None):
        """Set the fitted attributes from one problem of a solution on the host."""
        chosen = slice(problem, problem + 1)
        numbers = (getattr(solution, name)[chosen] for name in ("n_iter", "n_passes", "value", "gradient_norm"))
        for name, value in _fitted(code, solution.params[:, chosen], center, *numbers).items():
            setattr(self, name, value)
        self.status_ = Status(int(solution.status[problem]))
        self.history_ = history

    def _attributes_at(self, progress, center, code, backend):
        """Return the fitted attributes as they are in the middle of a fit."""
        params = backend.to_host(progress.copy_params())
        numbers = progress.n_iter, [progress.n_passes], progress.values, progress.gradient_norms
        return _fitted(code, params, center, *numbers) | {"status_": Status.RUNNING}

    def _warn_unless_converged(self):
        is_within_tol = self.gradient_norm_ <= self.tol and self.status_ != Status.ITERATION_LIMIT
        if is_within_tol or self.status_ == Status.STOPPED:
            return
        advice = (
            "Increase max_iter or scale the features."
            if self.status_ == Status.ITERATION_LIMIT
            else "Scale the features, give X as float64, or loosen tol."
        )
        warnings.warn(
            f"The fit {self.status_.sentence}. After {to_host(self.n_iter_)[0]} iterations the largest absolute "
            f"gradient entry is {self.gradient_norm_:.2e} (tol={self.tol:.2e}). {advice}",
            ConvergenceWarning,
            stacklevel=3,
        )

    def _answer(self, X, output):
        """Return an output of `_map_logits` as `set_output` says."""
        array = self._map_logits(X, output)
        library = getattr(self, "_sklearn_output_config", {}).get(METHODS[output], "default")
        return array if library == "default" else as_frame(to_host(array), library, X, to_host(self.classes_))

    def _map_logits(self, X, output):
        """Return an output of `kernels.cpu.predict` for every sample, where X lives; labels for "classes"."""
        check_is_fitted(self)
        X, home = receive(X)
        self._check_same_namespace(home, METHODS[output])
        backend = get_backend(self.device, home.cuda_device)
        with backend.active():
            X = check_features(self, X, home, reset=False)
            coef, classes = to_host(self.coef_), to_host(self.classes_)
            dtype = np.result_type(compute_dtype(X.dtype), coef.dtype)
            params, n_classes = self._params(coef), len(classes)
            center = None if self._center is None else to_host(self._center)
            if center is not None:
                params[-1] += np.tensordot(center, params[:-1], axes=1)
            source = backend.place(ArraySource(X, np.zeros(len(X), np.uint8), None, dtype, center=center))
            plan = backend.facts().plan_pass(
                *(*X.shape, 1, n_classes, dtype),
                is_direct=source.is_direct,
                budget_bytes=self.memory_budget,
            )
            is_index = output == "classes"
            shape = len(X) if is_index else (len(X), n_classes)
            out = home.empty(shape, np.min_scalar_type(n_classes) if is_index else dtype)
            backend.predict(source, plan, params, output, out)
            if is_index:
                return home.take_labels(classes, out)
            return home.send(out[:, 1] - out[:, 0] if output == "logits" and n_classes == 2 else out)

    def _check_same_namespace(self, home, method):
        """Raise, where scikit-learn dispatches on namespaces, if X is not where it was in fit, as its estimators do."""
        if not get_config()["array_api_dispatch"]:
            return
        _, fitted = receive(self.coef_)
        if home != fitted:
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace and the same device as "
                f"those passed to fit(), under array_api_dispatch: got {home}, fitted in {fitted}. Move X, or the "
                "estimator with sklearn.utils._array_api.move_estimator_to, or switch array_api_dispatch off."
            )


def _fitted(code, params, center, n_iter, n_passes, value, gradient_norm):
    """Return the fitted attributes of one problem; all but the code are on the host."""
    coef, intercept = code.decode(params, center)
    return {
        "_center": center,
        "coef_": code.home.send(coef[0]),
        "intercept_": code.home.send_exactly(intercept[0]),
        "classes_": code.y_home.send_labels(code.classes),
        "n_iter_": code.home.send(n_iter),
        "n_passes_": float(n_passes[0]),
        "objective_": float(value[0]),
        "gradient_norm_": float(gradient_norm[0]),
        "temperature_": 1.0,
    }


@contextmanager
def unchanged_on_failure(estimator: BaseEstimator) -> Iterator[None]:
    """Restore the estimator's attributes if anything is raised, Ctrl-C included."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise
