"""Predictions as data frames: what `set_output` promises of names, index, values, and what keeps the choice."""

import copy
import pickle
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from cuda_device import cuda
from numpy.testing import assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from gpusoftmax import (
    EarlyStopping,
    SoftmaxRegression,
    SoftmaxRegressionCV,
    evaluate,
    fit_many,
    load_model,
    save_model,
    sweep,
)
from gpusoftmax.frames import as_frame

TYPES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.Table}
COLUMNS = {"pandas": pd.Series, "polars": pl.Series, "pyarrow": pa.DoubleArray}
ESTIMATORS = {"one": SoftmaxRegression(), "CV": SoftmaxRegressionCV(Cs=[0.1, 1], cv=2)}
METHODS = ["predict_proba", "predict_log_proba", "decision_function"]
NAMES = np.array(["ash", "birch", "cedar"])
X, Y = load_iris(return_X_y=True)

every_library = pytest.mark.parametrize("library", TYPES)
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


def data(n_classes=3, names=NAMES):
    rows = n_classes > Y
    return X[rows], names[Y[rows]]


def everywhere(estimator, library):
    return estimator.set_output(**dict.fromkeys(METHODS, library))


def columns_of(frame):
    return frame.column_names if isinstance(frame, pa.Table) else list(frame.columns)


@every_estimator
@every_library
@pytest.mark.parametrize("n_classes", [2, 3])
def test_frames_hold_the_arrays_by_class(estimator, library, n_classes):
    X, y = data(n_classes)
    clf = clone(estimator).fit(X, y)
    arrays = [getattr(clf, method)(X) for method in METHODS]
    assert everywhere(clf, library) is clf
    for method, array in zip(METHODS, arrays, strict=True):
        frame = getattr(clf, method)(X)
        assert_array_equal(np.asarray(frame), array, strict=True)
        if array.ndim == 1:
            assert isinstance(frame, COLUMNS[library])
            assert getattr(frame, "name", "birch") == "birch"
        else:
            assert isinstance(frame, TYPES[library])
            assert columns_of(frame) == NAMES[:n_classes].tolist()
    assert type(clf.predict(X)) is np.ndarray


@every_library
def test_single_precision_stays(library):
    clf = everywhere(SoftmaxRegression(), library).fit(X.astype(np.float32), Y)
    assert np.asarray(clf.predict_proba(X[:5].astype(np.float32))).dtype == np.float32


@pytest.mark.parametrize(
    "names",
    [np.array([30, 10, 20]), np.array([True, False]), np.array([2, 1.5], object), NAMES.astype(object)],
    ids=["int", "bool", "object of numbers", "object of text"],
)
@every_library
def test_names_that_are_not_strings(library, names):
    X, y = data(len(names), names)
    clf = SoftmaxRegression().set_output(predict_proba=library).fit(X, y)
    expected = sorted(names.tolist())
    assert columns_of(clf.predict_proba(X)) == (expected if library == "pandas" else [str(name) for name in expected])


@pytest.mark.parametrize("names", [np.array([0.5, -1.25, 3]), np.array(["2026-01-02", "2026-01-01"], "M8[D]")])
@every_library
def test_names_of_soft_targets(library, names):
    n_classes = len(names)
    X, y = data(n_classes, np.arange(3))
    clf = SoftmaxRegression().set_output(predict_proba=library).fit(X, np.eye(n_classes)[y], classes=names)
    frame = clf.predict_proba(X)
    if library == "pandas":
        assert_array_equal(frame.columns, names)
    else:
        assert columns_of(frame) == [str(name) for name in names]


@every_estimator
@pytest.mark.parametrize("n_classes", [2, 3])
def test_pandas_keeps_the_index(estimator, n_classes):
    X, y = data(n_classes)
    index = pd.Index([f"tree {i % 90}" for i in range(len(X))], name="tree")  # some twice
    clf = everywhere(clone(estimator), "pandas").fit(X, y)
    for method in METHODS:
        of_frame = getattr(clf.fit(pd.DataFrame(X, index), y), method)(pd.DataFrame(X, index))
        pd.testing.assert_index_equal(of_frame.index, index)
        of_array = getattr(clf.fit(X, y), method)(X)
        pd.testing.assert_index_equal(of_array.index, pd.RangeIndex(len(X)))


def test_pandas_copies_nothing():
    values = np.eye(3)
    assert np.shares_memory(as_frame(values, "pandas", X, NAMES).to_numpy(), values)
    assert np.shares_memory(as_frame(values[0], "pandas", X, NAMES).to_numpy(), values)


def test_each_method_has_its_own_choice():
    clf = SoftmaxRegression().fit(X, Y).set_output(predict_proba="polars").set_output(decision_function="pandas")
    assert [type(getattr(clf, method)(X)) for method in METHODS] == [pl.DataFrame, np.ndarray, pd.DataFrame]
    clf.set_output(predict_proba="default", predict_log_proba=None)
    assert [type(getattr(clf, method)(X)) for method in METHODS] == [np.ndarray, np.ndarray, pd.DataFrame]


@pytest.mark.parametrize("choice", ["arrow", "", True, pd])
def test_other_choices_are_refused(choice):
    clf = SoftmaxRegression().set_output(predict_proba="polars")
    with pytest.raises(ValueError, match=r"decision_function must be one of 'default', 'pandas', 'polars', 'pyarrow'"):
        clf.set_output(predict_proba="pandas", decision_function=choice)
    assert isinstance(clf.fit(X, Y).predict_proba(X), pl.DataFrame)


@every_estimator
def test_the_choice_is_kept(estimator):
    original = clone(estimator).set_output(predict_proba="polars")
    fitted = clone(original).fit(X, Y)
    for kept in (fitted, copy.copy(fitted), copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert isinstance(kept.predict_proba(X), pl.DataFrame)
    with pytest.raises(ValueError, match="NaN"):
        fitted.fit(np.full_like(X, np.nan), Y)
    assert isinstance(fitted.predict_proba(X), pl.DataFrame)
    for other in (clone(original), copy.copy(fitted)):
        other.set_output(predict_proba="pandas")
    assert isinstance(fitted.predict_proba(X), pl.DataFrame)
    assert clone(estimator).get_params() == clone(original).get_params()


def test_a_file_keeps_the_model_alone(tmp_path):
    clf = SoftmaxRegression().set_output(predict_proba="pandas").fit(X, Y)
    save_model(clf, tmp_path / "iris.safetensors")
    loaded = load_model(tmp_path / "iris.safetensors").predict_proba(X)
    assert_array_equal(loaded, clf.predict_proba(X).to_numpy(), strict=True)


def test_the_global_configuration_changes_nothing():
    clf = SoftmaxRegression().fit(X, Y)
    with config_context(transform_output="pandas"):
        assert type(clf.predict_proba(X)) is np.ndarray
        assert isinstance(clf.set_output(predict_proba="polars").predict_proba(X), pl.DataFrame)


@every_library
def test_a_missing_library_is_named(library, monkeypatch):
    clf = SoftmaxRegression().set_output(predict_proba=library).fit(X, Y)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"frames of {library}, which is not installed: pip install {library}, or"):
        clf.predict_proba(X)


@pytest.mark.parametrize(
    "result",
    [
        lambda: SoftmaxRegression().fit(X, Y).history_,
        lambda: sweep(X, Y, Cs=[1.0]),
        lambda: fit_many([X], [Y]),
    ],
    ids=["history", "sweep", "many"],
)
def test_tables_say_that_they_need_pandas(result, monkeypatch):
    result = result()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^to_frame needs pandas: pip install pandas$"):
        result.to_frame()


def test_results_of_torch_and_of_a_device_come_to_the_host():
    torch = pytest.importorskip("torch")
    clf = everywhere(SoftmaxRegression(device="cpu"), "pandas").fit(torch.asarray(X), torch.asarray(Y + 4))
    frame = clf.predict_proba(torch.asarray(X))
    assert frame.columns.tolist() == [4, 5, 6]
    assert_array_equal(frame, SoftmaxRegression(device="cpu").fit(X, Y).predict_proba(X))


def test_results_of_a_cuda_device_come_to_the_host():
    with cuda():
        import cupy

        there = cupy.asarray(X[:60:2])
        clf = SoftmaxRegression(C=0.01).fit(there, cupy.asarray(Y[:60:2]))
        array = cupy.asnumpy(clf.predict_proba(there))
        frame = clf.set_output(predict_proba="polars").predict_proba(there)
    assert frame.columns == ["0", "1"]
    assert_array_equal(frame.to_numpy(), array)


# Among scikit-learn's tools


@every_estimator
def test_in_a_pipeline(estimator):
    frame = pd.DataFrame(X, index=np.arange(len(X)) + 7, columns=list("abcd"))
    pipeline = make_pipeline(StandardScaler(), clone(estimator).set_output(predict_proba="pandas"))
    of_arrays = clone(pipeline).fit(frame, NAMES[Y]).predict_proba(frame)
    of_frames = clone(pipeline).set_output(transform="pandas").fit(frame, NAMES[Y]).predict_proba(frame)
    assert of_arrays.columns.tolist() == of_frames.columns.tolist() == NAMES.tolist()
    assert_array_equal(of_arrays.index, np.arange(len(X)))  # the scaler's arrays have no index
    assert_array_equal(of_frames.index, frame.index)
    pipeline = make_pipeline(StandardScaler(), clone(estimator)).set_output(transform="pandas").fit(frame, Y)
    assert type(pipeline.predict_proba(frame)) is np.ndarray


@every_library
@pytest.mark.parametrize(("n_classes", "scoring"), [(3, "neg_log_loss"), (3, "roc_auc_ovr"), (2, "roc_auc")])
def test_searches_score_frames(library, n_classes, scoring):
    X, y = data(n_classes)
    searches = [
        GridSearchCV(clf, {"C": [1e-3, 1e-2]}, scoring=scoring, cv=2, error_score="raise").fit(X, y)
        for clf in (SoftmaxRegression(), everywhere(SoftmaxRegression(), library))
    ]
    plain, framed = (search.cv_results_["mean_test_score"] for search in searches)
    assert_array_equal(framed, plain)
    assert isinstance(searches[1].predict_proba(X), TYPES[library])


@every_library
def test_two_classes_are_scored_by_probabilities_of_arrays_only(library):
    # The guide says so: scikit-learn takes the column of a class by probabilities[:, 1].
    X, y = data(2)
    search = GridSearchCV(SoftmaxRegression(), {"C": [1e-3, 1]}, scoring="neg_log_loss", cv=2).fit(X, y)
    best = search.best_estimator_.set_output(predict_proba=library)
    assert isinstance(search.predict_proba(X), TYPES[library])
    with pytest.raises((TypeError, pd.errors.InvalidIndexError)):
        get_scorer("neg_log_loss")(best, X, y)


@every_library
@pytest.mark.parametrize(
    ("method", "n_classes"), [("predict_proba", 2), ("decision_function", 2), ("predict_log_proba", 3)]
)
def test_cross_val_predict_returns_arrays(library, method, n_classes):
    X, y = data(n_classes)
    plain, framed = (
        cross_val_predict(clf, X, y, cv=2, method=method)
        for clf in (SoftmaxRegression(), everywhere(SoftmaxRegression(), library))
    )
    assert_array_equal(framed, plain, strict=True)


@every_library
@pytest.mark.parametrize("scoring", ["neg_log_loss", "neg_brier_score"])
def test_the_search_for_c_scores_two_classes(library, scoring):
    X, y = data(2, np.arange(3))
    plain = SoftmaxRegressionCV(Cs=[0.01, 1], cv=2, scoring=scoring).fit(X, y)
    framed = everywhere(clone(plain), library).fit(X, y)
    assert_array_equal(framed.scores_, plain.scores_)
    assert framed.score(X, y) == plain.score(X, y)
    assert isinstance(framed.predict_proba(X), TYPES[library])


def test_estimator_checks_that_index_no_arrays_pass():
    indexing = ["check_classifiers_classes", "check_classifiers_train", "check_decision_proba_consistency"]
    results = check_estimator(
        everywhere(SoftmaxRegression(), "pandas"),
        expected_failed_checks=dict.fromkeys(indexing, "takes what is returned for an array"),
        on_skip=None,
    )
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == set(indexing)


@every_library
@pytest.mark.parametrize("n_classes", [2, 3])
def test_what_judges_models_takes_frames(library, n_classes):
    X, y = data(n_classes)
    shown = []
    for clf in (SoftmaxRegression(C=10), everywhere(SoftmaxRegression(C=10), library)):
        clf.set_callbacks(EarlyStopping(X[::3], y[::3], patience=2)).fit(X[1::3], y[1::3])
        shown.append((clf.history_.validation_losses, evaluate(clf, X[2::3], y[2::3]).log_loss))
    assert_array_equal(shown[0][0], shown[1][0])
    assert shown[0][1] == shown[1][1]
