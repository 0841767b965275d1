"""What cannot be fitted or predicted is refused in words that help, and the estimator stays as it was."""

import copy
import re
import warnings

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError

from gpusoftmax import ConvergenceWarning, NonFiniteError, SoftmaxRegression, WorkspaceError

X, Y = load_iris(return_X_y=True)
SOFT = np.full((150, 3), 1 / 3)
MIXED = np.array([1, "a"] * 75, object)


def with_entry(array, value, at=17):
    """Return a copy with one entry replaced."""
    array = np.array(array, np.result_type(array, np.asarray(value)))
    array[at] = value
    return array


def state(clf):
    """Return the attributes themselves and copies of what they hold."""
    return vars(clf).copy(), copy.deepcopy(vars(clf))


def assert_unchanged(clf, before):
    now = vars(clf)
    attributes, contents = before
    assert list(now) == list(attributes)
    for name, value in attributes.items():
        assert now[name] is value, f"{name} is another object"
        held, copied = (getattr(each, "__dict__", each) for each in (value, contents[name]))  # a history's arrays
        np.testing.assert_equal(held, copied, err_msg=f"{name} was written to")


def assert_says(error, words):
    for word in words:
        assert re.search(word, str(error.value), re.IGNORECASE), f"{word!r} is not in: {error.value}"


FIT = {  # what: (arguments of fit beside good ones, exception, words of the message)
    "NaN in X": ({"X": with_entry(X, np.nan)}, ValueError, ["X", "NaN"]),
    "Inf in X": ({"X": with_entry(X, -np.inf)}, ValueError, ["X", "infinity"]),
    "Inf in X, float16": ({"X": with_entry(X, np.inf).astype(np.float16)}, ValueError, ["X", "infinity", "float16"]),
    "complex X": ({"X": X + 1j}, ValueError, ["complex"]),
    "text X": ({"X": X.astype(str)}, ValueError, ["numeric", "strings"]),
    "text in objects": ({"X": with_entry(X.astype(object), "high")}, ValueError, ["high"]),
    "bytes X": ({"X": X.astype("S")}, ValueError, ["numeric", "bytes"]),
    "date X": ({"X": X.astype(int).astype("datetime64[D]")}, TypeError, ["X", "datetime64", "number"]),
    "duration X": ({"X": X.astype(int).astype("timedelta64[s]")}, TypeError, ["X", "timedelta64", "number"]),
    "sparse X": ({"X": scipy.sparse.csr_array(X)}, TypeError, ["sparse", "dense", "toarray"]),
    "1-d X": ({"X": X[:, 0]}, ValueError, ["2D array", "1D array", "reshape"]),
    "3-d X": ({"X": X[np.newaxis]}, ValueError, ["dim 3"]),
    "ragged X": ({"X": [[1.0], [1.0, 2.0]], "y": [0, 1]}, ValueError, ["inhomogeneous"]),
    "X a number": ({"X": 3.0}, ValueError, ["2D array", "scalar"]),
    "no X": ({"X": None}, ValueError, ["2D array"]),
    "no rows": ({"X": X[:0], "y": Y[:0]}, ValueError, ["0 sample"]),
    "no features": ({"X": X[:, :0]}, ValueError, ["0 feature"]),
    "more labels than rows": ({"X": X[:100]}, ValueError, ["inconsistent", "100", "150"]),
    "more rows than labels": ({"y": Y[:100]}, ValueError, ["inconsistent", "100", "150"]),
    "no y": ({"y": None}, ValueError, ["requires y"]),
    "one class": ({"y": np.full(150, 7)}, ValueError, ["2 classes", "one class", "7"]),
    "one row": ({"X": X[:1], "y": Y[:1]}, ValueError, ["2 classes", "one class"]),
    "one class of text": ({"y": np.full(150, "only")}, ValueError, ["2 classes", "one class", "only"]),
    "NaN in y": ({"y": with_entry(Y, np.nan)}, ValueError, ["y", "NaN"]),
    "Inf in y": ({"y": with_entry(Y, np.inf)}, ValueError, ["y", "infinity"]),
    "continuous y": ({"y": X[:, 0] / 7}, ValueError, ["continuous"]),
    "complex y": ({"y": Y + 1j}, ValueError, ["complex"]),
    "labels of mixed types": ({"y": MIXED}, TypeError, ["labels cannot be ordered", "int", "str", "astype"]),
    "None among the labels": ({"y": with_entry(MIXED.astype(str).astype(object), None)}, (TypeError, ValueError), []),
    "NaN among the labels": ({"y": with_entry(MIXED.astype(str).astype(object), np.nan)}, ValueError, ["NaN"]),
    "sparse y": ({"y": scipy.sparse.csr_array(np.eye(3)[Y])}, TypeError, ["y", "sparse", "dense"]),
    "3-d y": ({"y": np.full((150, 3, 1), 1 / 3)}, ValueError, ["dim 3"]),
    "soft targets below zero": (
        {"y": with_entry(SOFT, [0.6, 0.6, -0.2])},
        ValueError,
        ["non-negative", "row 17", "-0.2", "divide each row"],
    ),
    "soft targets that sum to two": ({"y": with_entry(SOFT, [1, 0.5, 0.5])}, ValueError, ["sum to one", "row 17", "2"]),
    "soft targets that sum to zero": ({"y": with_entry(SOFT, 0)}, ValueError, ["sum to one", "row 17", "sum 0"]),
    "soft targets nearly right": ({"y": with_entry(SOFT, [0.33, 0.33, 0.33])}, ValueError, ["row 17", "0.99"]),
    "NaN in soft targets": ({"y": with_entry(SOFT, np.nan)}, ValueError, ["y", "NaN"]),
    "soft targets of text": ({"y": SOFT.astype(str)}, (TypeError, ValueError), ["soft targets must be numbers"]),
    "soft targets of words": (
        {"y": np.full((150, 3), "a", object)},
        (TypeError, ValueError),
        ["soft targets", "numbers"],
    ),
    "one column of soft targets": ({"y": np.ones((150, 1)).tolist()}, ValueError, ["2 classes"]),
    "too few class names": ({"y": SOFT, "classes": ["a", "b"]}, ValueError, ["classes", "3 columns", r"\(2,\)"]),
    "too many class names": ({"y": SOFT, "classes": list("abcd")}, ValueError, ["classes", "3 columns", r"\(4,\)"]),
    "class names twice": ({"y": SOFT, "classes": ["a", "b", "a"]}, ValueError, ["classes", "distinct"]),
    "class names NaN": ({"y": SOFT, "classes": [0, 1, np.nan]}, ValueError, ["classes", "nan"]),
    "class names of two dimensions": (
        {"y": SOFT, "classes": [["a", "b", "c"]]},
        ValueError,
        ["classes", "one dimension", r"\(1, 3\)"],
    ),
    "class names with labels": ({"classes": [0, 1, 2]}, ValueError, ["classes", "soft targets", "leave it out"]),
    "NaN in weights": ({"sample_weight": with_entry(np.ones(150), np.nan)}, ValueError, ["sample_weight", "NaN"]),
    "Inf in weights": ({"sample_weight": with_entry(np.ones(150), np.inf)}, ValueError, ["sample_weight", "infinity"]),
    "negative weight": ({"sample_weight": with_entry(np.ones(150), -1.0)}, ValueError, ["sample_weight", "negative"]),
    "weights all zero": ({"sample_weight": np.zeros(150)}, ValueError, ["weights", "zero"]),
    "too few weights": ({"sample_weight": np.ones(149)}, ValueError, ["sample_weight", "149", "150"]),
    "2-d weights": ({"sample_weight": np.ones((150, 1))}, ValueError, ["sample.weight", "1D", "2D"]),
    "complex weights": ({"sample_weight": np.ones(150) + 1j}, ValueError, ["complex"]),
    "weights of text": ({"sample_weight": ["a"] * 150}, ValueError, ["float", "'a'"]),
}

PARAMS = {  # parameter: (values that are refused, words of the message beside the parameter's name and the value)
    "C": ([0, -1.0, np.nan, "1", None, [1.0]], ["range"]),
    "fit_intercept": (["yes", 2, None], ["bool"]),
    "class_weight": (["balance", 3, [1, 1, 1]], ["dict", "balanced"]),
    "label_smoothing": ([1, 1.5, -0.1, np.nan, "0", None], ["range"]),
    "tol": ([-1e-9, np.nan, np.inf, "0", None], ["range"]),
    "max_iter": ([-1, 1.5, np.inf, "9", None], ["range"]),
    "warm_start": (["no", 2, None], ["bool"]),
    "random_state": (["seed", -1, 1.5], ["RandomState"]),
    "verbose": ([-1, 1.5, "yes", None], ["range"]),
    "device": (["gpu", "CUDA", "CPU", "", None, 0], ["cpu", "cuda", "auto"]),
    "precision": (["low", "tf32", "", None, 16], ["auto", "highest", "high", "medium"]),
    "memory_budget": ([0, -1, 1.5, "1GB", np.inf], ["range"]),
}

CLASS_WEIGHT = {  # what: (class_weight, exception, words)
    "class weight of an unknown class": ({7: 1}, ValueError, ["class_weight", "classes"]),
    "negative class weight": ({0: -1}, ValueError, ["class_weight", "non-negative", "-1"]),
    "NaN class weight": ({1: np.nan}, ValueError, ["class_weight", "finite", "nan"]),
    "Inf class weight": ({1: np.inf}, ValueError, ["class_weight", "finite", "inf"]),
    "class weight of text": ({1: "heavy"}, ValueError, ["heavy"]),
    "class weights all zero": ({0: 0, 1: 0, 2: 0}, ValueError, ["zero", "class_weight", "sample_weight"]),
}


@pytest.fixture(params=["unfitted", "fitted"])
def clf(request):
    clf = SoftmaxRegression()
    return clf.fit(X, Y) if request.param == "fitted" else clf


@pytest.mark.parametrize(("change", "exception", "words"), FIT.values(), ids=FIT)
@pytest.mark.filterwarnings("ignore:A column-vector y was passed")  # beside the error for one column
def test_fit_refuses(clf, change, exception, words):
    before = state(clf)
    with pytest.raises(exception) as error:
        clf.fit(**{"X": X, "y": Y, **change})
    assert_says(error, words)
    assert_unchanged(clf, before)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [(name, value, words) for name, (values, words) in PARAMS.items() for value in values],
)
def test_fit_refuses_parameter(clf, name, value, words):
    clf.set_params(**{name: value})
    before = state(clf)
    with pytest.raises(InvalidParameterError) as error:
        clf.fit(X, Y)
    assert_says(error, [f"'{name}' parameter", re.escape(f"Got {value!r}"), *words])
    assert_unchanged(clf, before)


def test_every_parameter_is_checked():
    assert PARAMS.keys() == SoftmaxRegression().get_params().keys()


@pytest.mark.parametrize(("class_weight", "exception", "words"), CLASS_WEIGHT.values(), ids=CLASS_WEIGHT)
@pytest.mark.parametrize("targets", [Y, SOFT], ids=["labels", "soft"])
def test_fit_refuses_class_weight(clf, class_weight, exception, words, targets):
    clf.set_params(class_weight=class_weight)
    before = state(clf)
    with pytest.raises(exception) as error:
        clf.fit(X, targets)
    assert_says(error, words)
    assert_unchanged(clf, before)


@pytest.mark.parametrize("targets", [Y, np.eye(3)[Y]], ids=["labels", "soft"])
def test_fit_refuses_weights_that_are_zero_together(clf, targets):
    clf.set_params(class_weight={0: 0, 1: 1, 2: 1})
    before = state(clf)
    with pytest.raises(ValueError, match=r"zero.*sample_weight.*class_weight"):
        clf.fit(X, targets, (Y == 0).astype(float))
    assert_unchanged(clf, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fit_refuses_features_that_overflow(clf, dtype):
    before = state(clf)
    with pytest.raises(NonFiniteError) as error:
        clf.fit((X / 8 * np.finfo(dtype).max).astype(dtype), Y)
    assert_says(error, [np.dtype(dtype).name, "StandardScaler"])
    assert_unchanged(clf, before)


def test_huge_features_of_both_signs_warn_or_are_refused(clf):
    before = state(clf)
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:  # whether the solver finds a way is its own affair; a RuntimeWarning is neither answer
            clf.fit((5e37 * rng.standard_normal((150, 4))).astype(np.float32), Y)
        except NonFiniteError:
            assert_unchanged(clf, before)
            assert not caught
        else:
            assert [warning.category for warning in caught] == [ConvergenceWarning]


def test_warm_start_refuses_coefficients_whose_logits_overflow():
    clf = SoftmaxRegression(C=1e4, warm_start=True).fit(X.astype(np.float32), Y)
    assert np.abs(clf.coef_).max() > 5
    before = state(clf)
    with pytest.raises(NonFiniteError, match="float32"):
        clf.fit((X * 4e37).astype(np.float32), Y)
    assert_unchanged(clf, before)


PREDICTIONS = ["predict", "predict_proba", "predict_log_proba", "decision_function"]
PREDICT = {  # what: (X, exception, words)
    "too few features": (X[:, :3], ValueError, ["3 features", "4 features"]),
    "too many features": (np.hstack([X, X]), ValueError, ["8 features", "4 features"]),
    "NaN": (with_entry(X, np.nan), ValueError, ["X", "NaN"]),
    "Inf": (with_entry(X, np.inf), ValueError, ["X", "infinity"]),
    "one row alone": (X[0], ValueError, ["2D array", "reshape"]),
    "no rows": (X[:0], ValueError, ["0 sample"]),
    "sparse": (scipy.sparse.csr_array(X), TypeError, ["sparse", "toarray"]),
    "complex": (X + 1j, ValueError, ["complex"]),
    "text": (X.astype(str), ValueError, ["strings"]),
}


@pytest.mark.parametrize("method", PREDICTIONS)
@pytest.mark.parametrize(("X", "exception", "words"), PREDICT.values(), ids=PREDICT)
def test_predictions_refuse(method, X, exception, words):
    clf = SoftmaxRegression().fit(*load_iris(return_X_y=True))
    before = state(clf)
    with pytest.raises(exception) as error:
        getattr(clf, method)(X)
    assert_says(error, words)
    assert_unchanged(clf, before)


@pytest.mark.parametrize("method", PREDICTIONS)
def test_predictions_want_a_fit(method):
    clf = SoftmaxRegression()
    with pytest.raises(NotFittedError, match="not fitted"):
        getattr(clf, method)(X)
    assert "n_features_in_" not in vars(clf)


@pytest.mark.parametrize("method", PREDICTIONS)
def test_predictions_refuse_logits_that_overflow(method):
    clf = SoftmaxRegression(C=1e4).fit(X.astype(np.float32), Y)
    assert np.abs(clf.coef_).max() > 5
    before = state(clf)
    far = (X * 4e37).astype(np.float32)
    with pytest.raises(NonFiniteError, match="float32"):
        getattr(clf, method)(far)
    assert_unchanged(clf, before)
    assert np.isfinite(getattr(clf, method)(far.astype(np.float64)).astype(float)).all()  # as the message advises


def named_budget(error):
    return int(re.search(r"at least memory_budget=(\d+)", str(error.value)).group(1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("kind", ["labels", "soft", "offset"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # the smallest budget has no good metric
def test_a_budget_that_is_too_small_names_one_that_works(clf, dtype, kind):
    data = (X + 1000 if kind == "offset" else X).astype(dtype)
    targets = np.eye(3)[Y] if kind == "soft" else Y
    clf.set_params(memory_budget=10)
    before = state(clf)
    with pytest.raises(WorkspaceError) as error:
        clf.fit(data, targets)
    assert_says(error, ["memory_budget=10 bytes", "4 features", "3 classes"])
    assert_unchanged(clf, before)
    budget = named_budget(error)
    clf.set_params(memory_budget=budget).fit(data, targets)
    assert clf.score(data, Y) > 0.9
    before = state(clf.set_params(memory_budget=budget - 1))
    with pytest.raises(WorkspaceError):
        clf.fit(data, targets)
    assert_unchanged(clf, before)


@pytest.mark.parametrize("method", PREDICTIONS)
@pytest.mark.parametrize("offset", [0, 1000])
def test_a_budget_too_small_for_predictions_names_one_that_works(method, offset):
    clf = SoftmaxRegression().fit(X + offset, Y)
    expected = getattr(clf, method)(X + offset)
    clf.set_params(memory_budget=10)
    with pytest.raises(WorkspaceError, match="memory_budget=10 bytes") as error:
        getattr(clf, method)(X + offset)
    clf.set_params(memory_budget=named_budget(error))
    np.testing.assert_allclose(getattr(clf, method)(X + offset), expected, rtol=1e-9, atol=1e-9)
