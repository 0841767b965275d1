"""SoftmaxRegression among scikit-learn's tools: estimator checks, searches, pipelines, tables and routed metadata."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from gpusoftmax import SoftmaxRegression

# Solvers that are to agree: Newton's method ends well below its tol, so that the answers differ by ours alone.
PRECISE = [SoftmaxRegression(tol=1e-8), LogisticRegression(tol=1e-8, solver="newton-cholesky")]
OUTPUTS = ["predict", "predict_proba", "predict_log_proba", "decision_function"]
ROUNDING_IN_SINGLE_PRECISION = {
    "check_sample_weight_equivalence_on_dense_data": "compares two fits to rtol=1e-7, less than the rounding of float32"
}
TABLES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}


class SinglePrecision(SoftmaxRegression):
    """SoftmaxRegression that sees X in float32."""

    def fit(self, X, y, sample_weight=None):
        return super().fit(in_single_precision(X), y, sample_weight)

    def predict(self, X):
        return super().predict(in_single_precision(X))

    def predict_proba(self, X):
        return super().predict_proba(in_single_precision(X))

    def predict_log_proba(self, X):
        return super().predict_log_proba(in_single_precision(X))

    def decision_function(self, X):
        return super().decision_function(in_single_precision(X))


def in_single_precision(X):
    is_numeric = isinstance(X, np.ndarray) and X.dtype.kind in "fiu"
    return X.astype(np.float32) if is_numeric or isinstance(X, pd.DataFrame) else X


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture
def weights(iris):
    return np.random.default_rng(0).uniform(0.1, 3, len(iris[1]))


@parametrize_with_checks([SoftmaxRegression()])
def test_estimator_check(estimator, check):
    check(estimator)


@parametrize_with_checks([SinglePrecision()], expected_failed_checks=lambda estimator: ROUNDING_IN_SINGLE_PRECISION)
def test_estimator_check_in_single_precision(estimator, check):
    check(estimator)


def test_single_precision_is_single_precision(iris):
    clf = SinglePrecision().fit(*iris)
    assert clf.coef_.dtype == clf.predict_proba(iris[0]).dtype == np.float32


def test_no_estimator_check_is_left_out(monkeypatch):
    monkeypatch.delenv("SCIPY_ARRAY_API", raising=False)
    results = check_estimator(SoftmaxRegression(), on_skip=None, on_fail=None)
    not_passed = {result["check_name"]: result["status"] for result in results if result["status"] != "passed"}
    # These want SCIPY_ARRAY_API; test_interop.py runs them in a process that has it.
    array_api = {"check_array_api_input", "check_array_api_mixed_inputs", "check_array_api_same_namespace"}
    assert not_passed == dict.fromkeys(array_api, "skipped")
    assert len(results) > 50


def test_grid_search_agrees_with_logistic_regression(iris):
    grid, options = {"C": np.logspace(-4, 2, 7)}, {"scoring": "neg_log_loss", "cv": 3}
    ours, theirs = (GridSearchCV(estimator, grid, **options).fit(*iris) for estimator in PRECISE)
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], rtol=1e-6)
    assert ours.best_params_ == theirs.best_params_
    np.testing.assert_allclose(ours.best_estimator_.coef_, theirs.best_estimator_.coef_, atol=1e-4)


def test_cross_val_score_agrees_with_logistic_regression(iris):
    options = {"scoring": "neg_log_loss", "cv": 4}
    ours, theirs = (cross_val_score(estimator, *iris, **options) for estimator in PRECISE)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_pipeline_is_its_steps(iris):
    X, y = iris
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression(C=0.1)).fit(X, y)
    X_scaled = StandardScaler().fit_transform(X)
    direct = SoftmaxRegression(C=0.1).fit(X_scaled, y)
    for output in OUTPUTS:
        np.testing.assert_array_equal(getattr(pipeline, output)(X), getattr(direct, output)(X_scaled))
    assert pipeline.score(X, y) == direct.score(X_scaled, y)
    pipeline.set_params(softmaxregression__C=10).fit(X, y)
    assert np.linalg.norm(pipeline[-1].coef_) > np.linalg.norm(direct.coef_)


def test_clone_has_the_parameters_and_nothing_else(iris):
    changed = {
        "C": 0.5,
        "fit_intercept": False,
        "class_weight": {0: 2.0, 1: 1.0, 2: 1.0},
        "label_smoothing": 0.1,
        "tol": 1e-6,
        "max_iter": 77,
        "warm_start": True,
        "random_state": 3,
        "memory_budget": 10**8,
    }
    fitted = SoftmaxRegression(**changed).fit(*iris)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert changed.items() <= copy.get_params().items()
    with pytest.raises(NotFittedError):
        copy.predict(iris[0])


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1000])  # at 1000 the fit keeps the features' centre
@pytest.mark.parametrize("n_classes", [2, 3])
def test_pickle_keeps_the_predictions(iris, n_classes, offset, dtype, protocol):
    X, y = iris
    X, y = (X[y < n_classes] + offset).astype(dtype), np.array(["a", "b", "c"])[y[y < n_classes]]
    fitted = SoftmaxRegression().fit(X, y)
    loaded = pickle.loads(pickle.dumps(fitted, protocol))
    for output in OUTPUTS:
        np.testing.assert_array_equal(getattr(loaded, output)(X), getattr(fitted, output)(X))
    assert loaded.status_ is fitted.status_
    np.testing.assert_array_equal(loaded.fit(X, y).coef_, fitted.coef_)


@pytest.mark.parametrize("library", TABLES)
def test_table_is_its_values_and_names(iris, library):
    X, y = iris
    names = ["sepal length", "sepal width", "petal length", "petal width"]
    table = TABLES[library](dict(zip(names, X.T, strict=True)))
    clf, direct = SoftmaxRegression().fit(table, y), SoftmaxRegression().fit(X, y)
    # A table may be laid out by columns, and other sums round otherwise.
    np.testing.assert_allclose(clf.coef_, direct.coef_, rtol=1e-6)
    np.testing.assert_allclose(clf.predict_proba(table), direct.predict_proba(X), rtol=1e-6)
    assert clf.feature_names_in_.tolist() == names


@pytest.mark.parametrize("library", TABLES)
def test_other_feature_names_are_refused(iris, library):
    X, y = iris
    make = TABLES[library]
    clf = SoftmaxRegression().fit(make(dict(zip("abcd", X.T, strict=True))), y)
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(make(dict(zip("abce", X.T, strict=True))))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        clf.predict(X)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output_hands_names_to_the_classifier(iris, library):
    X, y = iris
    table = TABLES[library](dict(zip("abcd", X.T, strict=True)))
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression()).set_output(transform=library).fit(table, y)
    assert pipeline[-1].feature_names_in_.tolist() == ["a", "b", "c", "d"]
    plain = make_pipeline(StandardScaler(), SoftmaxRegression()).fit(X, y)
    # A table may be laid out by columns, and other sums round otherwise.
    np.testing.assert_allclose(pipeline.predict_proba(table), plain.predict_proba(X), rtol=1e-6)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_labels_and_weights_may_be_columns(iris, weights, library):
    X, y = iris
    column = {"pandas": pd.Series, "polars": pl.Series}[library]
    labels = np.array(["setosa", "versicolor", "virginica"])[y]
    clf = SoftmaxRegression().fit(X, column(labels), sample_weight=column(weights))
    direct = SoftmaxRegression().fit(X, labels, sample_weight=weights)
    np.testing.assert_array_equal(clf.coef_, direct.coef_)
    np.testing.assert_array_equal(clf.predict(X), direct.predict(X))


@config_context(enable_metadata_routing=True)
def test_grid_search_routes_sample_weight_to_fit_and_score(iris, weights):
    ours, theirs = (
        GridSearchCV(
            clone(estimator).set_fit_request(sample_weight=True).set_score_request(sample_weight=True),
            {"C": [1e-3, 1e-2, 1e-1]},
        ).fit(*iris, sample_weight=weights)
        for estimator in PRECISE
    )
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], rtol=1e-12)
    np.testing.assert_allclose(ours.best_estimator_.coef_, theirs.best_estimator_.coef_, atol=1e-5)


def test_tags_state_what_is_supported():
    tags = get_tags(SoftmaxRegression())
    assert tags.estimator_type == "classifier"
    assert tags.target_tags.required
    assert tags.classifier_tags.multi_class
    assert not tags.input_tags.allow_nan
    assert tags.array_api_support
