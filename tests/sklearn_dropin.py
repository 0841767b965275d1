"""A pytest plugin that points scikit-learn's own tests of LogisticRegression at SoftmaxRegression, or of both's CV.

    pytest -p sklearn_dropin --listed sklearn_allowed.txt --pyargs sklearn.linear_model.tests.test_logistic

`--listed` runs the tests that the file names and no other. `--sabotaged` breaks the adapter for each of them in the way
that heads its section of the file: each must then fail, or it would check nothing of ours. `--sabotage NAME` breaks
it in one way for all: so a test's section is found. LogisticRegressionCV is ours only in sections whose sabotage breaks
it; elsewhere it is scikit-learn's, to be compared with. `test_sklearn_own_tests.py` does the first two, out of reach of
the pytest configuration of this project.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn.linear_model
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import get_tags

from gpusoftmax import SoftmaxRegression, SoftmaxRegressionCV

SMOOTH_SOLVERS = {"lbfgs", "newton-cg", "newton-cholesky", "sag", "saga"}  # their one minimum is ours


class LogisticRegression(SoftmaxRegression):
    """SoftmaxRegression behind LogisticRegression's signature.

    What SoftmaxRegression cannot do raises NotImplementedError, which no test of scikit-learn's expects: the test fails
    and cannot be listed.
    """

    def __init__(
        self,
        penalty="deprecated",
        *,
        C=1.0,
        l1_ratio=0.0,
        dual=False,
        tol=1e-4,
        fit_intercept=True,
        intercept_scaling=1,
        class_weight=None,
        random_state=None,
        solver="lbfgs",
        max_iter=100,
        verbose=0,
        warm_start=False,
        n_jobs=None,
    ):
        super().__init__(
            C=C,
            fit_intercept=fit_intercept,
            class_weight=class_weight,
            tol=tol,
            max_iter=max_iter,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.penalty = penalty
        self.l1_ratio = l1_ratio
        self.dual = dual
        self.intercept_scaling = intercept_scaling
        self.solver = solver
        self.n_jobs = n_jobs

    def fit(self, X, y, sample_weight=None):
        # liblinear penalises the intercept: without one it solves our problem.
        has_our_minimum = self.solver in SMOOTH_SOLVERS or (self.solver == "liblinear" and not self.fit_intercept)
        refuse_what_is_not_ours(self, has_our_minimum, l1_ratio=0, intercept_scaling=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().fit(self._dense(X), y, sample_weight)
        for warning in caught:
            warnings.warn(_in_their_words(warning), warning.category, stacklevel=2)
        return self

    def predict(self, X):
        return super().predict(self._dense(X))

    def predict_proba(self, X):
        return super().predict_proba(self._dense(X))

    def predict_log_proba(self, X):
        return super().predict_log_proba(self._dense(X))

    def decision_function(self, X):
        return super().decision_function(self._dense(X))

    def _dense(self, X):
        # Some tests of dense X end with a sparse one. Only they are listed, no test of sparse X itself.
        return X.toarray() if issparse(X) and not get_tags(self).input_tags.sparse else X


class LogisticRegressionCV(SoftmaxRegressionCV):
    """SoftmaxRegressionCV behind LogisticRegressionCV's signature, with its attributes from scikit-learn 1.10 on."""

    def __init__(
        self,
        *,
        Cs=10,
        l1_ratios="warn",
        fit_intercept=True,
        cv=None,
        dual=False,
        penalty="deprecated",
        scoring="warn",
        solver="lbfgs",
        tol=1e-4,
        max_iter=100,
        class_weight=None,
        n_jobs=None,
        verbose=0,
        refit=True,
        intercept_scaling=1.0,
        random_state=None,
        use_legacy_attributes="warn",
    ):
        super().__init__(
            Cs=Cs,
            cv=cv,
            scoring=None if scoring == "warn" else scoring,
            refit=refit,
            fit_intercept=fit_intercept,
            class_weight=class_weight,
            tol=tol,
            max_iter=max_iter,
            random_state=random_state,
            verbose=verbose,
        )
        self.l1_ratios = l1_ratios
        self.dual = dual
        self.penalty = penalty
        self.solver = solver
        self.n_jobs = n_jobs
        self.intercept_scaling = intercept_scaling
        self.use_legacy_attributes = use_legacy_attributes

    def fit(self, X, y, sample_weight=None, *, groups=None, **params):
        has_our_minimum = self.solver in SMOOTH_SOLVERS or (self.solver == "liblinear" and not self.fit_intercept)
        is_ours = self.l1_ratios in ("warn", (0,)) and self.use_legacy_attributes is not True
        refuse_what_is_not_ours(self, has_our_minimum and is_ours, intercept_scaling=1)
        return super().fit(X, y, sample_weight, groups=groups, **params)


def refuse_what_is_not_ours(estimator, has_our_minimum, **ours):
    ours = {"penalty": "deprecated", "dual": False, "n_jobs": None} | ours
    given = estimator.get_params()
    foreign = {name: given[name] for name in ours if given[name] != ours[name]}
    if foreign or not has_our_minimum:
        raise NotImplementedError(f"{type(estimator).__name__} has no {foreign or estimator.solver!r}.")


def _in_their_words(warning):
    is_unconverged = issubclass(warning.category, ConvergenceWarning)
    return f"lbfgs failed to converge: {warning.message}" if is_unconverged else str(warning.message)


class NegatedCoefficients(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        super().fit(X, y, sample_weight)
        self.coef_ *= -1
        return self


class ShiftedCoefficients(LogisticRegression):
    """The same probabilities from another of the equivalent solutions."""

    def fit(self, X, y, sample_weight=None):
        super().fit(X, y, sample_weight)
        self.coef_ += 1e-6
        return self


class WeakPenalty(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        C, self.C = self.C, 2 * self.C
        super().fit(X, y, sample_weight)
        self.C = C
        return self


class NoSampleWeights(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        return super().fit(X, y)


class NoClassWeights(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        class_weight, self.class_weight = self.class_weight, None
        super().fit(X, y, sample_weight)
        self.class_weight = class_weight
        return self


class ScaledWeights(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        super().fit(X, y, sample_weight)
        if sample_weight is not None:
            sample_weight *= 2
        return self


class ColdStart(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        if hasattr(self, "coef_"):
            del self.coef_
        return super().fit(X, y, sample_weight)


class HotStart(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        warm_start, self.warm_start = self.warm_start, True
        super().fit(X, y, sample_weight)
        self.warm_start = warm_start
        return self


class NoLimit(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        max_iter, self.max_iter = self.max_iter, 1000
        super().fit(X, y, sample_weight)
        self.max_iter = max_iter
        return self


class Silent(LogisticRegression):
    """Errors become a fit of what is left of the data, warnings nothing."""

    def fit(self, X, y, sample_weight=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            X = np.nan_to_num(self._dense(X))
            return super().fit(X[: len(y)], y[: len(X)], sample_weight)


class Noisy(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        warnings.warn("fitted", UserWarning, stacklevel=2)
        return super().fit(X, y, sample_weight)


class DoublePrecision(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        return super().fit(np.asarray(self._dense(X), np.float64), y, sample_weight)


class SinglePrecision(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        return super().fit(np.asarray(self._dense(X), np.float32), y, sample_weight)


class DriftingWarmStart(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        is_warm = self.warm_start and hasattr(self, "coef_")
        super().fit(X, y, sample_weight)
        self.coef_ *= 1.1 if is_warm else 1.0
        return self


class SecondClassOnTies(LogisticRegression):
    def predict(self, X):
        return self.classes_[1 - self.predict_proba(X)[:, ::-1].argmax(axis=1)]


class UniformProbabilities(LogisticRegression):
    def predict_proba(self, X):
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))


class ShiftedIntercept(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        super().fit(X, y, sample_weight)
        self.intercept_ += 0.1
        return self


class ScalarCount(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        super().fit(X, y, sample_weight)
        self.n_iter_ = self.n_iter_[0]
        return self


class WithoutCallbacks(LogisticRegression):
    def set_callbacks(self, *callbacks):
        return self


class FrozenPredictions(LogisticRegression):
    """Predicts from the fit, whatever is written to its attributes since."""

    def fit(self, X, y, sample_weight=None):
        super().fit(X, y, sample_weight)
        self._fitted = self.coef_.copy(), self.intercept_.copy()
        return self

    def _params(self, coef):
        if hasattr(self, "_fitted"):
            coef, self.intercept_ = self._fitted
        return super()._params(coef)


class NoScoring(LogisticRegressionCV):
    _scoring = "accuracy"


class FoldsWithoutWeights(LogisticRegressionCV):
    def fit(self, X, y, sample_weight=None, **params):
        return super().fit(X, y, **params)


class ScoresWithRoutedWeightsOnly(LogisticRegressionCV):
    def score(self, X, y, sample_weight=None, **params):
        return super().score(X, y, sample_weight if get_config()["enable_metadata_routing"] else None, **params)


class AnyParams(LogisticRegressionCV):
    def fit(self, X, y, sample_weight=None, **params):
        return super().fit(X, y, sample_weight)


ADAPTERS = [LogisticRegression, LogisticRegressionCV]
SABOTAGES = {cls.__name__: cls for adapter in ADAPTERS for cls in adapter.__subclasses__()}


def read_listed(path):
    """Return the listed ids, each with the sabotage that heads its section."""
    listed, section = {}, None
    for line in Path(path).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            listed[line] = section
    return listed


def pytest_addoption(parser):
    parser.addoption("--listed", type=Path, help="run the tests that this file lists")
    parser.addoption("--sabotaged", action="store_true", help="break the adapter as each test's section says")
    parser.addoption("--sabotage", choices=SABOTAGES, help="break the adapter in one way for every test")


def pytest_configure(config):
    sklearn.linear_model.LogisticRegression = LogisticRegression  # before the tests import it


def pytest_collection_modifyitems(config, items):
    if path := config.getoption("listed"):
        listed = read_listed(path)
        config.hook.pytest_deselected(items=[item for item in items if item.name not in listed])
        items[:] = [item for item in items if item.name in listed]


@pytest.fixture(autouse=True)
def _adapt(request, monkeypatch):
    listed, name = request.config.getoption("listed"), request.config.getoption("sabotage")
    is_sabotaged = name is not None or request.config.getoption("sabotaged")
    if name is None and listed:
        name = read_listed(listed)[request.node.name]
    if name:
        sabotage = SABOTAGES[name]
        adapter = next(adapter for adapter in ADAPTERS if issubclass(sabotage, adapter))
        monkeypatch.setattr(request.module, adapter.__name__, sabotage if is_sabotaged else adapter)
