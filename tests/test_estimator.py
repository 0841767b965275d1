"""SoftmaxRegression as its user sees it: attributes, dtypes, labels, weights, frames, layouts of X, predictions."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight

from gpusoftmax import SoftmaxRegression, Status

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])
ATTRIBUTES = {
    "coef_",
    "intercept_",
    "classes_",
    "n_iter_",
    "n_passes_",
    "status_",
    "objective_",
    "gradient_norm_",
    "history_",
    "temperature_",
    "n_features_in_",
}
PREDICTIONS = ["predict", "predict_proba", "predict_log_proba", "decision_function"]
TIGHT = {np.float32: 1e-5, np.float64: 1e-9}  # tol of fits that are compared
SAME = {np.float32: 2e-3, np.float64: 1e-6}  # absolute, for coefficients of order one fitted to TIGHT


def tight(dtype=np.float64, **params):
    return SoftmaxRegression(tol=TIGHT[dtype], **params)


def assert_same_model(one, other):
    dtype = one.coef_.dtype.type
    assert other.coef_.dtype == dtype
    assert_array_equal(one.classes_, other.classes_)
    assert_allclose(one.coef_, other.coef_, rtol=0, atol=SAME[dtype])
    assert_allclose(one.intercept_, other.intercept_, rtol=0, atol=SAME[dtype])


# What a fit leaves


@pytest.mark.smoke
def test_one_fit_and_one_predict():
    clf = SoftmaxRegression().fit(X, NAMES[Y])
    assert clf.status_ == Status.CONVERGED
    assert (clf.predict(X) == NAMES[Y]).mean() > 0.96


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_fitted_attributes(dtype, n_classes, largest_gradient):
    chosen = n_classes > Y
    clf = SoftmaxRegression()
    assert clf.fit(X[chosen].astype(dtype), Y[chosen]) is clf
    n_rows = 1 if n_classes == 2 else n_classes
    assert {name for name in vars(clf) if name.endswith("_")} == ATTRIBUTES
    assert clf.coef_.shape == (n_rows, 4)
    assert clf.coef_.dtype == dtype
    assert clf.coef_.flags.c_contiguous
    assert clf.intercept_.shape == (n_rows,)
    assert clf.intercept_.dtype == dtype
    assert_array_equal(clf.classes_, np.arange(n_classes))
    assert clf.n_iter_.shape == (1,)
    assert clf.n_iter_.dtype == np.int32
    assert 0 < clf.n_iter_[0] <= clf.n_passes_
    assert clf.n_features_in_ == 4
    assert clf.status_ is Status.CONVERGED
    assert "converged" in clf.status_.sentence
    assert 0 < clf.objective_ < np.log(n_classes)
    assert clf.gradient_norm_ <= clf.tol
    assert_allclose(clf.gradient_norm_, largest_gradient(clf, X[chosen], Y[chosen]), rtol=0.05, atol=1e-7)


def test_objective_is_the_formula():
    clf = SoftmaxRegression(C=0.3).fit(X, Y, np.arange(1.0, 151))
    weights = np.arange(1.0, 151)
    loss = -(weights * clf.predict_log_proba(X)[np.arange(150), Y]).sum() / weights.sum()
    assert_allclose(clf.objective_, loss + (clf.coef_**2).sum() / (2 * 0.3 * weights.sum()), rtol=1e-12)


def test_two_classes_report_the_objective_of_scikit_learn():
    chosen = Y > 0
    clf = SoftmaxRegression(C=0.3).fit(X[chosen], Y[chosen])
    loss = -clf.predict_log_proba(X[chosen])[np.arange(100), Y[chosen] - 1].mean()
    assert_allclose(clf.objective_, loss + (clf.coef_**2).sum() / (2 * 0.3 * 100), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_predictions_have_the_dtype_of_the_computation(dtype):
    clf = SoftmaxRegression().fit(X.astype(dtype), Y)
    computed = np.float32 if dtype in (np.float16, np.float32) else np.float64
    assert clf.coef_.dtype == computed
    for name in PREDICTIONS[1:]:
        assert getattr(clf, name)(X.astype(dtype)).dtype == computed


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_same_solution_as_scikit_learn(C, fit_intercept, n_classes):
    chosen = np.flatnonzero(Y + n_classes > 2)
    theirs = LogisticRegression(C=C, fit_intercept=fit_intercept, tol=1e-10, max_iter=100_000, solver="newton-cg")
    ours = tight(C=C, fit_intercept=fit_intercept).fit(X[chosen], Y[chosen])
    theirs.fit(X[chosen], Y[chosen])
    assert_allclose(ours.coef_, theirs.coef_, rtol=1e-5, atol=1e-5)
    intercept = theirs.intercept_ - (theirs.intercept_.mean() if n_classes > 2 else 0)
    assert_allclose(ours.intercept_, intercept, rtol=1e-5, atol=1e-5)
    assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)


def test_coefficients_and_intercepts_of_several_classes_sum_to_zero():
    clf = SoftmaxRegression().fit(X, Y)
    assert_allclose(clf.coef_.sum(axis=0), 0, atol=1e-12)
    assert_allclose(clf.intercept_.sum(), 0, atol=1e-12)


def test_without_an_intercept_it_is_zero():
    clf = SoftmaxRegression(fit_intercept=False).fit(X, Y)
    assert_array_equal(clf.intercept_, np.zeros(3))


def test_clone_and_params_survive_a_fit():
    params = {"C": 3, "label_smoothing": 0.1, "class_weight": {0: 1, 1: 2, 2: 3}, "memory_budget": 1 << 20}
    clf = SoftmaxRegression(**params).fit(X, Y)
    assert clone(clf).get_params() == SoftmaxRegression(**params).get_params()
    assert clf.get_params()["class_weight"] is params["class_weight"]


# Targets


LABELS = {
    "str": NAMES[Y],
    "str in objects": NAMES[Y].astype(object),
    "str in a list": NAMES[Y].tolist(),
    "float": Y.astype(float),
    "half": Y.astype(np.float16) - 1,
    "int in objects": Y.astype(object),
    "negative int": Y - 7,
    "huge unsigned int": Y.astype(np.uint64) + np.uint64(2**63),
    "int in a tuple": tuple(Y.tolist()),
    "date": np.datetime64("2020-01-01") + Y,
    "pandas": pd.Series(NAMES[Y]),
    "pandas string": pd.Series(NAMES[Y], dtype="string"),
    "pandas categorical": pd.Series(pd.Categorical(NAMES[Y])),
    "pandas nullable int": pd.Series(Y, dtype="Int64"),
    "polars": pl.Series(NAMES[Y]),
    "arrow": pa.array(NAMES[Y]),
    "strided": np.repeat(Y, 2)[::2],
    "reversed": np.ascontiguousarray(Y[::-1])[::-1],
    "big-endian": Y.astype(">i4"),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_of_any_ordered_dtype(labels):
    clf = SoftmaxRegression().fit(X, labels)
    plain = SoftmaxRegression().fit(X, Y)
    assert_array_equal(clf.coef_, plain.coef_)
    assert_array_equal(clf.classes_, np.unique(np.asarray(labels)))
    predicted = clf.predict(X)
    assert predicted.dtype == clf.classes_.dtype
    assert_array_equal(predicted, clf.classes_[plain.predict(X)])
    assert (predicted == np.asarray(labels)).mean() == plain.score(X, Y) == clf.score(X, labels)
    assert clf.score(X, labels, 1 + Y) == plain.score(X, Y, 1 + Y)


@pytest.mark.parametrize(
    "labels", [*LABELS.values(), Y.astype(str), Y.astype(object) + 0.5], ids=[*LABELS, "digit", "half in objects"]
)
def test_class_weight_by_labels_of_any_dtype(labels):
    names = np.unique(np.asarray(labels))
    by_class = SoftmaxRegression(class_weight=dict(zip(names, [1, 5, 0.5], strict=True))).fit(X, labels)
    plain = SoftmaxRegression(class_weight={0: 1, 1: 5, 2: 0.5}).fit(X, Y)
    assert_array_equal(by_class.coef_, plain.coef_)


@pytest.mark.parametrize("dtype", [bool, object])
def test_boolean_labels(dtype):
    clf = SoftmaxRegression().fit(X, (Y == 1).astype(dtype))
    assert_array_equal(clf.classes_, [False, True])
    assert_array_equal(clf.coef_, SoftmaxRegression().fit(X, (Y == 1).astype(int)).coef_)


def test_decision_function_of_two_classes_is_their_difference():
    chosen = Y < 2
    clf = SoftmaxRegression().fit(X[chosen], Y[chosen])
    decision = clf.decision_function(X)
    assert decision.shape == (150,)
    assert_allclose(decision, X @ clf.coef_[0] + clf.intercept_[0], rtol=1e-10)
    assert_array_equal(clf.predict(X), (decision > 0).astype(int))
    assert_allclose(clf.predict_proba(X)[:, 1], 1 / (1 + np.exp(-decision)), rtol=1e-10)


def test_predictions_agree_with_each_other():
    clf = SoftmaxRegression().fit(X, NAMES[Y])
    logits, proba = clf.decision_function(X), clf.predict_proba(X)
    assert_allclose(logits, X @ clf.coef_.T + clf.intercept_, rtol=1e-10, atol=1e-12)
    assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)
    assert_allclose(np.log(proba), clf.predict_log_proba(X), rtol=1e-9)
    assert_array_equal(clf.predict(X), clf.classes_[logits.argmax(axis=1)])


def soft_targets(seed=0, n_classes=3):
    return np.random.default_rng(seed).dirichlet(np.ones(n_classes), len(X))


@pytest.mark.parametrize("dtype", [bool, int, np.float16, np.float32, np.float64, object])
def test_one_hot_soft_targets_are_labels(dtype):
    assert_same_model(tight().fit(X, np.eye(3)[Y].astype(dtype)), tight().fit(X, Y))


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_soft_targets_are_rows_repeated_with_weights(n_classes):
    targets = soft_targets(n_classes=n_classes)
    labels = np.tile(np.arange(n_classes), len(X))
    repeated = tight().fit(np.repeat(X, n_classes, axis=0), labels, targets.ravel())
    assert_same_model(tight().fit(X, targets), repeated)


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, np.asfortranarray, np.ndarray.tolist])
def test_soft_targets_from_frames_and_lists(make):
    assert_same_model(tight().fit(X, make(soft_targets())), tight().fit(X, soft_targets()))


def test_soft_targets_name_their_columns():
    clf = SoftmaxRegression().fit(X, np.eye(3)[Y], classes=["c", "a", "b"])
    assert_array_equal(clf.classes_, ["c", "a", "b"])
    assert_array_equal(clf.predict(X), np.array(["c", "a", "b"])[SoftmaxRegression().fit(X, Y).predict(X)])
    assert_array_equal(SoftmaxRegression().fit(X, np.eye(3)[Y]).classes_, [0, 1, 2])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_label_smoothing_is_smoothed_targets(n_classes):
    chosen = n_classes > Y
    smooth = 0.8 * np.eye(n_classes)[Y[chosen]] + 0.2 / n_classes
    by_labels = tight(label_smoothing=0.2).fit(X[chosen], Y[chosen])
    assert_same_model(by_labels, tight().fit(X[chosen], smooth))
    assert_same_model(by_labels, tight(label_smoothing=0.2).fit(X[chosen], np.eye(n_classes)[Y[chosen]]))
    assert np.abs(by_labels.coef_ - tight().fit(X[chosen], Y[chosen]).coef_).max() > 0.1


# Weights


def test_class_weight_is_a_row_weight():
    by_class = tight(class_weight={0: 1, 1: 5, 2: 0.5}).fit(X, Y)
    assert_same_model(by_class, tight().fit(X, Y, np.array([1, 5, 0.5])[Y]))
    assert np.abs(by_class.coef_ - tight().fit(X, Y).coef_).max() > 0.05


def test_class_weight_by_name_multiplies_the_row_weights():
    rows = np.linspace(0.1, 3, 150)
    by_class = tight(class_weight={"versicolor": 5, "setosa": 1, "virginica": 0.5}).fit(X, NAMES[Y], rows)
    assert_same_model(by_class, tight().fit(X, NAMES[Y], rows * np.array([1, 5, 0.5])[Y]))


@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_class_weight_of_any_size_keeps_its_precision_in_float32(scale, is_soft):
    x, y = X.astype(np.float32), soft_targets() if is_soft else Y
    one, scaled = ({0: factor, 1: 5 * factor, 2: 0.5 * factor} for factor in (1, scale))
    plain = SoftmaxRegression(class_weight=one).fit(x, y)
    clf = SoftmaxRegression(C=1 / scale, class_weight=scaled).fit(x, y)
    assert clf.status_ == Status.CONVERGED
    assert clf.objective_ == pytest.approx(plain.objective_, rel=1e-5)
    assert_allclose(clf.predict_proba(x), plain.predict_proba(x), atol=1e-3)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_balanced_is_the_weight_of_scikit_learn(n_classes):
    chosen = np.flatnonzero(n_classes > Y)[17:]
    balanced = tight(class_weight="balanced").fit(X[chosen], Y[chosen])
    assert_same_model(balanced, tight().fit(X[chosen], Y[chosen], compute_sample_weight("balanced", Y[chosen])))


def test_balanced_counts_weights_as_repetition():
    counts = np.arange(150) % 4
    repeated = tight(class_weight="balanced").fit(np.repeat(X, counts, axis=0), np.repeat(Y, counts))
    assert_same_model(tight(class_weight="balanced").fit(X, Y, counts), repeated)


@pytest.mark.parametrize("class_weight", [{0: 1, 1: 5, 2: 0.5}, {0: 2, 1: 0, 2: 1}, "balanced"])
@pytest.mark.parametrize("has_weights", [False, True])
def test_class_weight_multiplies_every_term_of_soft_targets(class_weight, has_weights):
    targets, labels = soft_targets(), np.tile(np.arange(3), len(X))
    targets[:50] = np.eye(3)[Y[:50]]
    weights = np.linspace(0.1, 3, 150) if has_weights else np.ones(150)
    terms = (weights[:, np.newaxis] * targets).ravel()
    expected = tight(class_weight=class_weight).fit(np.repeat(X, 3, axis=0), labels, terms)
    soft = tight(class_weight=class_weight).fit(X, targets, weights if has_weights else None)
    if class_weight == {0: 2, 1: 0, 2: 1}:  # nothing bounds the intercept of a class without weight
        assert_allclose(soft.predict_proba(X), expected.predict_proba(X), atol=1e-6)
        assert_allclose(soft.objective_, expected.objective_, rtol=1e-9)
    else:
        assert_same_model(soft, expected)


def test_weights_of_one_change_nothing():
    plain = SoftmaxRegression().fit(X, Y)
    for ones in (np.ones(150), np.ones(150, int), [1] * 150, 1.0):
        assert_allclose(SoftmaxRegression().fit(X, Y, ones).coef_, plain.coef_, rtol=1e-9)


def test_score_takes_weights():
    clf = SoftmaxRegression().fit(X, Y)
    is_right = clf.predict(X) == Y
    assert clf.score(X, Y, is_right.astype(float)) == 1


# Laws


def small_data(seed, n_rows=40, n_features=3, n_classes=3):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(n_classes, size=n_rows - n_classes)])
    return rng.standard_normal((n_rows, n_features)) + labels[:, np.newaxis] / 2, labels, rng


seeds = st.integers(0, 2**32 - 1)
few = settings(deadline=None, max_examples=10)


@few
@given(seeds)
def test_order_of_rows_does_not_matter(seed):
    X, y, rng = small_data(seed)
    order = rng.permutation(len(X))
    assert_same_model(tight().fit(X, y), tight().fit(X[order], y[order]))


@few
@given(seeds, st.integers(2, 6))
def test_permuting_classes_permutes_the_model(seed, n_classes):
    X, y, rng = small_data(seed, n_classes=n_classes)
    order = rng.permutation(n_classes)
    one, other = tight().fit(X, y), tight().fit(X, order[y])
    assert_allclose(other.predict_proba(X)[:, order], one.predict_proba(X), atol=1e-6)
    if n_classes > 2:
        assert_allclose(other.coef_[order], one.coef_, atol=1e-6)
    assert_allclose(other.objective_, one.objective_, rtol=1e-9)


@few
@given(seeds, st.booleans())
def test_weights_are_repetition(seed, is_single):
    X, y, rng = small_data(seed)
    dtype = np.float32 if is_single else np.float64
    counts = np.concatenate([np.ones(3, int), rng.integers(4, size=len(X) - 3)])  # zero is absence
    repeated = tight(dtype).fit(np.repeat(X, counts, axis=0).astype(dtype), np.repeat(y, counts))
    assert_same_model(tight(dtype).fit(X.astype(dtype), y, counts), repeated)


@few
@given(seeds)
def test_weight_zero_is_absence(seed):
    X, y, rng = small_data(seed)
    kept = np.concatenate([np.ones(3, bool), rng.random(len(X) - 3) < 0.6])
    huge = np.where(kept[:, np.newaxis], X, 100 * X)
    assert_same_model(tight().fit(X[kept], y[kept]), tight().fit(huge, y, kept.astype(float)))


@few
@given(seeds, st.floats(0.001, 1000))
def test_scaling_all_weights_is_scaling_c(seed, factor):
    X, y, rng = small_data(seed)
    weights = rng.random(len(X)) + 0.1
    assert_same_model(tight(C=0.5).fit(X, y, weights), tight(C=0.5 / factor).fit(X, y, factor * weights))


# Warm start


@pytest.mark.parametrize("n_classes", [2, 3])
def test_warm_start_takes_fewer_passes_to_the_same_optimum(n_classes):
    chosen = n_classes > Y
    X_, y = X[chosen], Y[chosen]
    clf = tight(warm_start=True).fit(X_, y)
    cold = tight(C=1.2).fit(X_, y)
    again = clf.fit(X_, y)
    assert again.n_passes_ <= 3
    warm = clf.set_params(C=1.2).fit(X_, y)
    assert warm.n_passes_ < cold.n_passes_
    assert_same_model(warm, cold)


@pytest.mark.parametrize("scale", [0.5, 1e4])
def test_warm_start_from_far_away_loses_one_pass(scale):
    clf = SoftmaxRegression(warm_start=True).fit(X, Y)
    cold = clf.n_passes_
    clf.coef_ = scale * np.random.default_rng(0).normal(size=(3, 4))
    assert clf.fit(X, Y).n_passes_ == cold + 1
    assert clf.status_ == Status.CONVERGED


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", ["tall", "offset", "wide"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_warm_start_from_infinity_begins_anew_without_a_warning(value, shape, dtype):
    wide = np.tile(X, 400) + np.random.default_rng(0).normal(size=(150, 1600))
    x = {"tall": X, "offset": X + 1e4, "wide": wide}[shape].astype(dtype)
    clf = SoftmaxRegression(warm_start=True).fit(x, Y)
    cold = clf.objective_
    clf.coef_[0, 0] = value
    assert clf.fit(x, Y).objective_ == cold


def test_warm_start_continues_an_unfinished_fit():
    full = tight().fit(X, Y)
    clf = tight(warm_start=True, max_iter=3)
    with pytest.warns(match="max_iter"):
        clf.fit(X, Y)
    first = clf.objective_
    with pytest.warns(match="max_iter"):
        clf.fit(X, Y)
    assert full.objective_ < clf.objective_ < first


def test_warm_start_with_offset_features_starts_where_it_ended():
    clf = SoftmaxRegression(warm_start=True, tol=1e-7).fit(X + 1e4, Y)
    first = clf.n_passes_
    assert clf.fit(X + 1e4, Y).n_passes_ < first / 2


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_warm_start_without_an_intercept_keeps_none(offset):
    clf = tight(warm_start=True).fit(X + offset, Y)
    clf.set_params(fit_intercept=False).fit(X + offset, Y)
    cold = tight(fit_intercept=False).fit(X + offset, Y)
    assert not clf.intercept_.any()
    assert clf.objective_ == pytest.approx(cold.objective_, rel=1e-6)


def test_without_warm_start_a_fit_forgets():
    clf = SoftmaxRegression().fit(X[:, :2], Y == 0)
    assert_array_equal(clf.fit(X, Y).coef_, SoftmaxRegression().fit(X, Y).coef_)


@pytest.mark.parametrize("case", ["features", "classes", "names"])
def test_warm_start_refuses_another_problem(case):
    clf = SoftmaxRegression(warm_start=True).fit(X, Y)
    before = clf.coef_
    data = {"features": (X[:, :3], Y), "classes": (X[:100], Y[:100]), "names": (X, NAMES[Y])}[case]
    with pytest.raises(ValueError, match="warm_start"):
        clf.fit(*data)
    assert clf.coef_ is before
    assert clf.n_features_in_ == 4


# Frames and layouts


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table], ids=["pandas", "polars", "pyarrow"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_frames(make, dtype):
    columns = {name: X[:, i].astype(dtype) for i, name in enumerate("abcd")}
    clf = SoftmaxRegression().fit(make(columns), Y)
    plain = SoftmaxRegression().fit(X.astype(dtype), Y)
    assert_array_equal(clf.feature_names_in_, list("abcd"))
    assert_allclose(clf.coef_, plain.coef_, rtol=1e-4)
    assert clf.coef_.dtype == dtype
    assert_array_equal(clf.predict(make(columns)), plain.predict(X.astype(dtype)))


def test_feature_names_are_checked():
    frame = pd.DataFrame(X, columns=list("abcd"))
    clf = SoftmaxRegression().fit(frame, Y)
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(frame[list("dcba")])
    with pytest.warns(UserWarning, match="feature names"):
        clf.predict(X)
    clf.fit(X, Y)
    assert not hasattr(clf, "feature_names_in_")


def memory_mapped(X, folder):
    mapped = np.memmap(folder / "X.bin", X.dtype, "w+", shape=X.shape)
    mapped[:] = X
    mapped.flush()
    return np.memmap(folder / "X.bin", X.dtype, "r", shape=X.shape)


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


LAYOUTS = {
    "int64": lambda X: (10 * X).astype(np.int64),
    "uint8": lambda X: (10 * X).astype(np.uint8),
    "bool": lambda X: X.mean(axis=0) < X,
    "float16": lambda X: X.astype(np.float16),
    "float32": lambda X: X.astype(np.float32),
    "longdouble": lambda X: X.astype(np.longdouble),
    "big_endian": lambda X: X.astype(">f8"),
    "big_endian_32": lambda X: X.astype(">f4"),
    "fortran": np.asfortranarray,
    "fortran_32": lambda X: np.asfortranarray(X, np.float32),
    "columns_of_more": lambda X: np.hstack([X, X])[:, 2:6],
    "every_other_column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "every_other_row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "rows_reversed": lambda X: np.ascontiguousarray(X[::-1])[::-1],
    "columns_reversed": lambda X: np.ascontiguousarray(X[:, ::-1])[:, ::-1],
    "one_row_repeated": lambda X: np.broadcast_to(X[:, :1], X.shape),
    "unaligned": lambda X: np.frombuffer(b"x" + X.tobytes(), np.uint8)[1:].view(X.dtype).reshape(X.shape),
    "read_only": read_only,
    "object": lambda X: X.astype(object),
    "list": lambda X: X.tolist(),
}


@pytest.mark.parametrize("layout", [*LAYOUTS, "memory_mapped"])
@pytest.mark.parametrize("case", ["labels", "weights", "offset"])
def test_any_layout_gives_the_model_of_a_plain_copy(layout, case, tmp_path):
    wanted = X + 1000 if case == "offset" and layout not in ("uint8", "float16") else X
    given = memory_mapped(wanted, tmp_path) if layout == "memory_mapped" else LAYOUTS[layout](wanted)
    computed = np.float32 if layout in ("float16", "float32", "big_endian_32", "fortran_32") else np.float64
    plain = np.array(given, computed, order="C")
    before = np.array(given, order="K")
    weights = np.linspace(0.1, 3, 150) if case == "weights" else None
    clf, expected = tight(computed).fit(given, Y, weights), tight(computed).fit(plain, Y, weights)
    assert clf.coef_.dtype == computed
    assert_same_model(clf, expected)
    assert_array_equal(np.array(given, order="K"), before)  # X is not modified
    for name in PREDICTIONS:
        ours, theirs = getattr(clf, name)(given), getattr(clf, name)(plain)
        assert_allclose(ours, theirs, rtol=1e-4 if computed == np.float32 else 1e-10, atol=1e-6)


# Predictions


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_log_probabilities_stay_finite_where_probabilities_underflow(dtype, n_classes):
    chosen = n_classes > Y
    clf = SoftmaxRegression(C=100).fit(X[chosen].astype(dtype), Y[chosen])
    far = (1000 * X).astype(dtype)
    logarithm = clf.predict_log_proba(far)
    assert (clf.predict_proba(far) == 0).any()
    assert np.isfinite(logarithm).all()
    assert logarithm.min() < -1000
    assert (logarithm <= 0).all()
    logits = clf.decision_function(far).astype(np.float64)
    if n_classes == 2:
        logits = np.column_stack([-logits, logits]) / 2
    shifted = logits - logits.max(axis=1, keepdims=True)
    expected = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    assert_allclose(logarithm, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 7, 70])
@pytest.mark.parametrize("offset", [0, 1e5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_in_blocks_are_predictions(n_classes, offset, dtype):
    rng = np.random.default_rng(0)
    X = (rng.integers(-64, 65, (1009, 13)) / 16 + offset).astype(dtype)
    y = np.arange(1009) % n_classes
    clf = SoftmaxRegression(tol=1e-2).fit(X, y)
    whole = {name: getattr(clf, name)(X) for name in PREDICTIONS}
    clf.set_params(memory_budget=70_000)  # a few dozen rows
    for name, expected in whole.items():
        assert_allclose(getattr(clf, name)(X), expected, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-6)
        assert_allclose(getattr(clf, name)(X[:1]), expected[:1], rtol=1e-4 if dtype == np.float32 else 1e-11, atol=1e-6)


def test_a_fit_within_a_small_budget_is_the_same_fit():
    assert_same_model(tight(memory_budget=5000).fit(X, Y), tight().fit(X, Y))


def test_predictions_are_not_views_of_shared_memory():
    clf = SoftmaxRegression().fit(X, Y)
    for name in PREDICTIONS:
        first = getattr(clf, name)(X)
        kept = first.copy()
        getattr(clf, name)(X[::-1])
        assert_array_equal(first, kept)


# Progress


def test_verbose_reports_on_standard_error(capsys):
    SoftmaxRegression(verbose=1).fit(X, Y)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "gpusoftmax" in printed.err
    assert "objective" in printed.err
    assert "gradient" in printed.err
    SoftmaxRegression(verbose=0).fit(X, Y)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_verbose_does_not_change_the_fit(capsys):
    assert_array_equal(SoftmaxRegression(verbose=True).fit(X, Y).coef_, SoftmaxRegression().fit(X, Y).coef_)


def test_the_seed_does_not_change_the_optimum():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30_000, 3))  # more rows than the metric's sample
    y = (X + rng.gumbel(size=X.shape)).argmax(axis=1)
    one = SoftmaxRegression(tol=1e-8, random_state=1).fit(X, y)
    other = SoftmaxRegression(tol=1e-8, random_state=np.random.RandomState(2)).fit(X, y)
    assert_same_model(one, other)
    assert not np.array_equal(one.coef_, other.coef_)
