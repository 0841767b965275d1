"""The estimator that chooses C: every strength on every fold in one sweep, then one fit to all rows.

It does not know how problems are solved: `sweeps` does, and `estimator` how one is fitted, kept and asked.
"""

from copy import copy
from inspect import signature
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.callback import with_callbacks
from sklearn.utils._param_validation import Interval
from sklearn.utils.metadata_routing import (
    UNUSED,
    MetadataRouter,
    MethodMapping,
    _raise_for_params,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.validation import _check_method_params

from gpusoftmax.backends.choice import get_backend
from gpusoftmax.callbacks import FitTasks
from gpusoftmax.encoding import encode, with_class_weight
from gpusoftmax.estimator import SoftmaxRegression, unchanged_on_failure
from gpusoftmax.interop import receive, to_host
from gpusoftmax.problems import Folds, Problems
from gpusoftmax.sweep_result import strongest_within_error
from gpusoftmax.sweeps import check_strengths, labels_of, solve, warn_of_absent_classes, warn_unless_converged

FUSED = {"accuracy": ("held_out_accuracy", 1), "neg_log_loss": ("held_out_loss", -1)}  # what sweeps sum up themselves
SHARED = {  # parameters and what they may be
    name: allowed
    for name, allowed in SoftmaxRegression._parameter_constraints.items()
    if name not in ("C", "warm_start")
}
OF_MODEL = ("coef_", "intercept_", "classes_", "temperature_", "_center")
OF_REFIT = ("n_passes_", "status_", "objective_", "gradient_norm_", "history_")


class SoftmaxRegressionCV(SoftmaxRegression):
    """Softmax regression whose C is chosen by cross-validation, all strengths and folds fitted together.

    What scikit-learn's ``LogisticRegressionCV(use_legacy_attributes=False)`` computes, by `sweep`: all problems share
    X and each read of it, and accuracy and log loss of the rows held out come from the sweep's own sums.

    Parameters
    ----------
    Cs : int or array-like of shape (n_Cs,), default=10
        Inverse strengths; a number of them is spread evenly over the logarithm from 1e-4 to 1e4.
    cv : int, splitter, iterable of (train, test) indices, or None, default=None
        An int is that many stratified folds, by the likeliest class of soft targets; None is five.
    scoring : str, callable or None, default=None
        Name of a scorer, or ``scorer(estimator, X, y)``; None is "accuracy". Soft targets want "accuracy" or
        "neg_log_loss", or a callable that knows them. A scorer other than these two is called for every problem, on
        NumPy arrays.
    refit : bool, default=True
        Fit all rows with the C whose mean score is best, the first of equals. Otherwise coefficients, intercepts and
        C are means over each fold's best.
    one_standard_error : bool, default=False
        Choose the strongest penalty whose mean score is within one standard error of the best (Breiman, Friedman,
        Olshen & Stone 1984).
    fit_intercept, label_smoothing, tol, max_iter, random_state, verbose, device, precision : see `SoftmaxRegression`
    class_weight : dict, "balanced" or None, default=None
        As in `SoftmaxRegression`; "balanced" balances all rows, and every fold is fitted with those weights.
    memory_budget : int or None, default=None
        See `sweep`, and `SoftmaxRegression` for the fit to all rows.

    Attributes
    ----------
    C_ : float
        The one chosen.
    Cs_ : array of shape (n_Cs,)
    scores_ : array of shape (n_folds, 1, n_Cs)
        Of the rows held out. The axis of length one is scikit-learn's for L1 ratios, here and below.
    coefs_paths_ : array of shape (n_folds, 1, n_Cs, n_classes, n_features + 1)
        Coefficients, then the intercept if there is one; one row for two classes.
    n_iter_ : array of shape (n_folds, 1, n_Cs)
        Steps taken from the neighbouring strength's solution.
    coef_, intercept_, classes_, temperature_, n_features_in_, feature_names_in_ : see `SoftmaxRegression`
    status_, objective_, gradient_norm_, n_passes_, history_ : see `SoftmaxRegression`
        Of the fit to all rows; None with ``refit=False``.

    Notes
    -----
    A fold that has no rows of a class to fit is warned of, as `sweep` explains; KFold makes such folds of sorted rows.

    Callbacks hear of the steps of the fit to all rows, not of those of the sweep, whose problems run together.

    The log loss is computed from logits: where scikit-learn clips probabilities, at losses of 36 and more, it does not.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gpusoftmax import SoftmaxRegressionCV
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftmaxRegressionCV(Cs=[0.01, 1, 100], scoring="neg_log_loss").fit(X, y)
    >>> clf.C_
    100.0
    >>> clf.scores_.mean(axis=0).round(2)
    array([[-0.64, -0.14, -0.06]])
    """

    # The splitter asks for groups, not fit itself, and the scorer for weights, not score itself.
    __metadata_request__fit: ClassVar[dict[str, str]] = {"groups": UNUSED}
    __metadata_request__score: ClassVar[dict[str, str]] = {"sample_weight": UNUSED}

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "Cs": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "cv": ["cv_object"],
        "scoring": [str, callable, None],
        "refit": ["boolean"],
        "one_standard_error": ["boolean"],
        **SHARED,
    }

    def __init__(
        self,
        Cs=10,
        *,
        cv=None,
        scoring=None,
        refit=True,
        one_standard_error=False,
        fit_intercept=True,
        class_weight=None,
        label_smoothing=0.0,
        tol=1e-4,
        max_iter=1000,
        random_state=None,
        verbose=0,
        device="auto",
        precision="auto",
        memory_budget=None,
    ):
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.one_standard_error = one_standard_error
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.verbose = verbose
        self.device = device
        self.precision = precision
        self.memory_budget = memory_budget

    def fit(self, X, y, sample_weight=None, *, groups=None, classes=None, **params):
        """Fit every strength on every fold, choose one, and fit it to all rows.

        Parameters
        ----------
        X, y, sample_weight, classes : see `SoftmaxRegression.fit`
            Sample weights count in scores too; under scikit-learn's metadata routing, where the scorer requests them.
        groups : array-like of shape (n_samples,), default=None
            For splitters that keep groups together.
        **params : dict
            For splitter and scorer, under metadata routing only.

        Returns
        -------
        self : SoftmaxRegressionCV

        Raises
        ------
        ValueError, DeviceError, MemoryError
            As in `SoftmaxRegression.fit`; or a fold has no rows to fit, or no strength has a score.
        """
        with unchanged_on_failure(self):
            self._validate_params()
            if self.one_standard_error and not self.refit:
                raise ValueError("one_standard_error=True chooses by means over folds: it needs refit=True.")
            _scorer(self._scoring)  # a misspelt name must not wait for the sweep
            _raise_for_params(params, self, "fit")
            result, model = self._fit(X, y, sample_weight, groups, classes, params)
        warn_of_absent_classes(result)
        warn_unless_converged(result, self.tol)
        if self.refit:
            model._warn_unless_converged()
        return self

    def score(self, X, y, sample_weight=None, **params):
        """Return what `scoring` makes of the predictions; `params` are for the scorer, under metadata routing only."""
        _raise_for_params(params, self, "score")
        given = params | _given(sample_weight=to_host(sample_weight))
        if _routing_enabled():
            given = process_routing(self, "score", **given).scorer.score
        if self._scoring == "accuracy":
            return super().score(X, y, **given)
        model = copy(self)  # copies hold NumPy arrays
        model.set_output(predict_proba="default", predict_log_proba="default", decision_function="default")
        return _scorer(self._scoring)(model, to_host(X), to_host(y), **given)

    def get_metadata_routing(self):
        """Return a `MetadataRouter`: to the splitter in fit, to the scorer in fit and score."""
        router = MetadataRouter(owner=self).add_self_request(self)
        router.add(splitter=self.cv, method_mapping=MethodMapping().add(caller="fit", callee="split"))
        scored = MethodMapping().add(caller="fit", callee="score").add(caller="score", callee="score")
        return router.add(scorer=_scorer(self._scoring), method_mapping=scored)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.array_api_support = False  # what belongs to folds is NumPy's
        return tags

    @with_callbacks
    def _fit(self, X, y, sample_weight, groups, classes, params):
        """Fit what the user gave; return the sweep's result and the model that was chosen."""
        given = _given(sample_weight=to_host(sample_weight), groups=to_host(groups))
        split_params, score_params = self._route(given, params)
        received, home = receive(X)
        backend = get_backend(self.device, home.cuda_device)
        with backend.active():
            source, code = encode(self, received, home, y, sample_weight, classes, backend)
            tasks = FitTasks(self, X, y, sample_weight)
            self._check_scoring(source)
            folds, held_out = self._split(source, split_params)
            result = self._sweep(source, code, folds, backend)
            scores = self._scores(result, source, code, held_out, backend, score_params)
            model = self._choose(result, scores, code.home)
            if self.refit:
                model._fit_encoded(source, code, backend, tasks)
            self._keep(result, scores, model)
            tasks.end()
        return result, model

    @property
    def _scoring(self):
        return self.scoring or "accuracy"

    @property
    def _is_fused(self):
        """Say whether the sweep itself sums up the scores."""
        return isinstance(self._scoring, str) and self._scoring in FUSED

    def _check_scoring(self, source):
        """Raise if soft targets are to be scored by a scorer of labels, none of which knows them."""
        if source.targets.ndim == 1 or self._is_fused or callable(self._scoring):
            return
        if _scorer(self._scoring)._response_method == "predict":
            raise ValueError(
                f"scoring={self._scoring!r} compares labels, and y holds soft targets: give 'accuracy', "
                "'neg_log_loss', or a callable that knows soft targets."
            )

    def _route(self, given, params):
        """Return what the splitter and what the scorer are given beside X and y."""
        if _routing_enabled():
            routed = process_routing(self, "fit", **given, **params)
            return routed.splitter.split, routed.scorer.score
        return [{name: given[name]} if name in given else {} for name in ("groups", "sample_weight")]

    def _split(self, source, split_params):
        """Return the folds, and the indices of the rows that each holds out."""
        from sklearn.model_selection import check_cv  # 0.2 s that an import of this package need not take

        labels = labels_of(source)
        splits = list(check_cv(self.cv, labels, classifier=True).split(source.X, labels, **split_params))
        return Folds.of(splits, source.X, labels), [held_out for _, held_out in splits]

    def _sweep(self, source, code, folds, backend):
        """Fit every strength on every fold."""
        self.Cs_ = check_strengths(self.Cs)
        class_weight = self.class_weight
        if class_weight == "balanced":
            balanced, _ = with_class_weight(source, code, "balanced", backend)
            class_weight = dict(zip(code.classes, to_host(balanced.class_weight)[0], strict=True))
        template = SoftmaxRegression(**{name: getattr(self, name) for name in SHARED})
        problems = Problems.grid(self.Cs_, folds.n_folds, 1, np.array([self.label_smoothing]))
        return solve(template, source, code, folds, problems, [class_weight], backend, self.verbose)

    def _scores(self, result, source, code, held_out, backend, score_params):
        """Return scores of shape (n_folds, n_Cs)."""
        if self._is_fused:
            name, sign = FUSED[self._scoring]
            return sign * result.by_fold(name).T
        scorer = _scorer(self._scoring, code.classes)
        targets = to_host(source.targets)
        scores = np.empty((result.n_folds, len(self.Cs_)))
        for fold, rows in enumerate(held_out):
            X = to_host(source.X[backend.to_device(np.asarray(rows))])
            y = code.classes[targets[rows]] if targets.ndim == 1 else targets[rows]
            params = _check_method_params(source.X, score_params, indices=rows)
            for i in range(len(self.Cs_)):
                model = copy(result.to_estimator(i * result.n_folds + fold))  # copies hold NumPy arrays
                scores[fold, i] = scorer(model, X, y, **params)
        return scores

    def _choose(self, result, scores, home):
        """Choose C; return the mean of the folds' models that have it.

        A fit to all rows starts there and takes some 60 % of the passes from nothing; not where a fold lacks a class,
        whose intercept then says how far the solver went towards minus infinity.
        """
        means = scores.mean(axis=0)
        if np.isnan(means).all():
            why = "each must hold out rows of some weight" if self._is_fused else f"{self._scoring} returned NaN"
            raise ValueError(f"No strength has a score in every fold: {why}.")
        chosen = np.nanargmax(scores, axis=1)
        if self.refit:
            chosen[:] = np.nanargmax(means)
        if self.one_standard_error:
            chosen[:] = strongest_within_error(-scores.T, chosen[0], self.Cs_, ~np.isnan(means))
        problems = result.n_folds * chosen + np.arange(result.n_folds)
        model = result.to_estimator(int(problems[0])).set_params(warm_start=not result._is_absent.any())
        model.coef_ = home.send(result.coef[problems].mean(axis=0))
        model.intercept_ = home.send_exactly(result.intercept[problems].mean(axis=0))
        self.C_ = model.C if self.refit else float(self.Cs_[chosen].mean())
        return model

    def _keep(self, result, scores, model):
        """Set the fitted attributes, but for `C_` and `Cs_`."""
        for name in (*OF_MODEL, *OF_REFIT):
            setattr(self, name, None if name in OF_REFIT and not self.refit else getattr(model, name))
        self.scores_ = scores[:, np.newaxis]
        self.n_iter_ = result.by_fold("n_iter").T[:, np.newaxis]
        paths = result.coef
        if self.fit_intercept:
            paths = np.concatenate([paths, result.intercept[:, :, np.newaxis]], axis=2)
        self.coefs_paths_ = paths.reshape(-1, 1, result.n_folds, *paths.shape[1:]).transpose(2, 1, 0, 3, 4)


def _scorer(scoring, classes=None):
    """Return a scorer, with all classes as its labels, though a fold may not hold out rows of each."""
    from sklearn.metrics import get_scorer

    scorer = get_scorer(scoring)
    function = getattr(scorer, "_score_func", None)
    known = () if function is None or classes is None else signature(function).parameters
    if "labels" not in known:
        return scorer
    given = {"labels": classes}
    if len(classes) == 2 and "pos_label" in known:
        given["pos_label"] = classes[-1]
    scorer = copy(scorer)
    scorer._kwargs = given | scorer._kwargs
    return scorer


def _given(**params):
    return {name: value for name, value in params.items() if value is not None}
