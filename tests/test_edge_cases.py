"""Data and moments that are unusual: extreme scales and offsets, degenerate shapes, limits, interruption, threads."""

import os
import signal
import threading
import time
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits, load_iris
from threadpoolctl import threadpool_info, threadpool_limits

from gpusoftmax import (
    ConvergenceWarning,
    NonFiniteError,
    SoftmaxRegression,
    SoftmaxRegressionCV,
    Status,
    calibrate,
    evaluate,
    fit_many,
    sweep,
)
from gpusoftmax.kernels import cpu

X, Y = load_iris(return_X_y=True)
DTYPES = [np.float32, np.float64]


def fit_honestly(clf, X, y, largest_gradient):
    """Fit; a warning must say what the status and the gradient say, and a converged fit must be at its optimum."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf.fit(X, y)
    assert all(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    assert clf.status_ in (Status.CONVERGED, Status.PRECISION_REACHED, Status.ITERATION_LIMIT)
    assert np.isfinite(clf.coef_).all()
    assert np.isfinite(clf.intercept_).all()
    true_norm = largest_gradient(clf, X, y)
    # float32 logits and coefficients are rounded: the gradient cannot be known better than this
    slack = 0 if clf.coef_.dtype == np.float64 else 1e-6 * max(1, np.abs(X).max())
    if clf.status_ == Status.CONVERGED:
        assert true_norm <= clf.tol + slack
        assert not caught
    if true_norm > clf.tol + slack or clf.status_ == Status.ITERATION_LIMIT:
        assert len(caught) == 1
        assert clf.status_.sentence in str(caught[0].message)
    return clf


# Scale and offset


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e20, 1e10, 1e6, 1e-6, 1e-20])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_extreme_scales_end_honestly(dtype, scale, n_classes, largest_gradient):
    chosen = np.flatnonzero(Y + n_classes > 2)
    X_, y = (X[chosen] * scale).astype(dtype), Y[chosen]
    clf = fit_honestly(SoftmaxRegression(max_iter=300), X_, y, largest_gradient)
    if scale > 1:  # as good as unpenalised
        assert clf.score(X_, y) > 0.96
    else:  # the penalty leaves nothing but the class frequencies, which are equal
        assert_allclose(clf.predict_proba(X_), 1 / n_classes, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [2.0**66, 2.0**20, 2.0**-20, 2.0**-66])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # tol means another thing at every scale
def test_a_scale_taken_up_by_c_changes_nothing(dtype, scale):
    plain = SoftmaxRegression(tol=1e-5).fit(X.astype(dtype), Y)
    clf = SoftmaxRegression(C=1 / scale**2, tol=1e-5 * min(1, scale)).fit((X * scale).astype(dtype), Y)
    assert_allclose(clf.coef_.astype(float) * scale, plain.coef_, atol=5e-3)
    assert_allclose(clf.objective_, plain.objective_, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e20, 1e-20])
def test_one_feature_of_another_scale(dtype, scale, largest_gradient):
    X_ = X * np.where(np.arange(4) == 1, scale, 1.0)
    clf = fit_honestly(SoftmaxRegression(), X_.astype(dtype), Y, largest_gradient)
    assert clf.score(X_.astype(dtype), Y) >= 0.96
    if scale < 1:  # the feature is as good as absent
        assert_allclose(clf.objective_, SoftmaxRegression().fit(X[:, [0, 2, 3]], Y).objective_, rtol=1e-4)


def offset_data(seed=0):
    """Return features in multiples of 1/16, the last that float32 holds beside an offset of 1e6, and labels."""
    rng = np.random.default_rng(seed)
    X = np.round(16 * rng.standard_normal((4000, 6))) / 16
    return X, (X @ rng.standard_normal((6, 5)) + rng.gumbel(size=(4000, 5))).argmax(axis=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1e6, -1e6, np.array([0, 1e6, -1e4, 3, 0, 1e5])], ids=["1e6", "-1e6", "various"])
def test_offset_features_are_fitted_as_without_the_offset(dtype, offset):
    X, y = offset_data()
    moved = (X + offset).astype(dtype)
    assert_array_equal(moved - offset, X)
    plain = SoftmaxRegression(tol=1e-6).fit(X, y)
    clf = SoftmaxRegression(tol=1e-6).fit(moved, y)
    assert clf.status_ == Status.CONVERGED
    assert clf.coef_.dtype == dtype
    tolerance = 1e-4 if dtype == np.float32 else 1e-5
    assert_allclose(clf.coef_, plain.coef_, atol=tolerance)
    assert_allclose(clf.objective_, plain.objective_, rtol=1e-6)
    assert_allclose(clf.predict_proba(moved), plain.predict_proba(X), atol=1e-4)
    assert (clf.predict(moved) == plain.predict(X)).mean() > 0.999
    assert clf.score(moved, y) >= plain.score(X, y) - 0.001
    center = np.full(6, np.mean(offset)) if np.ndim(offset) == 0 else offset
    intercept = clf.intercept_ + clf.coef_.astype(float) @ center
    assert_allclose(intercept, plain.intercept_, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_offset_features_with_soft_targets_and_weights(dtype):
    X, y = offset_data()
    soft = 0.9 * np.eye(5)[y] + 0.02
    weights = np.linspace(0.5, 2, len(X))
    plain = SoftmaxRegression(tol=1e-6).fit(X, soft, weights)
    clf = SoftmaxRegression(tol=1e-6).fit((X + 1e6).astype(dtype), soft, weights)
    assert_allclose(clf.predict_proba((X + 1e6).astype(dtype)), plain.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_offset_features_without_an_intercept_end_honestly(dtype, largest_gradient):
    X, y = offset_data()
    fit_honestly(SoftmaxRegression(fit_intercept=False), (X + 1e3).astype(dtype), y, largest_gradient)


# Degenerate features and shapes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, -1e6])
@pytest.mark.parametrize("C", [1.0, np.inf])
def test_a_constant_feature_gets_no_coefficient_and_changes_nothing(dtype, value, C):
    X, y = offset_data()
    more = np.column_stack([X, np.full(len(X), value)]).astype(dtype)
    plain = SoftmaxRegression(C=C, tol=1e-5).fit(X, y)
    clf = SoftmaxRegression(C=C, tol=1e-5).fit(more, y)
    assert_allclose(clf.predict_proba(more), plain.predict_proba(X), atol=1e-3)
    assert_allclose(clf.objective_, plain.objective_, rtol=1e-5)
    if C == 1:
        assert_allclose(clf.coef_[:, -1], 0, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 3.0, 1e6])
def test_nothing_but_constant_features_gives_the_class_frequencies(dtype, value):
    clf = SoftmaxRegression(tol=1e-7).fit(np.full((60, 3), value, dtype), np.repeat([0, 1, 2], [10, 20, 30]))
    assert clf.status_ == Status.CONVERGED
    assert_allclose(clf.predict_proba(np.full((1, 3), value, dtype)), [[1 / 6, 2 / 6, 3 / 6]], atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicated_features_share_their_coefficient(dtype):
    doubled = np.hstack([X, X]).astype(dtype)
    clf = SoftmaxRegression(tol=1e-5).fit(doubled, Y)
    plain = SoftmaxRegression(tol=1e-5, C=2).fit(X.astype(dtype), Y)  # halves of w cost half of ‖w‖²
    assert_allclose(clf.coef_[:, :4], clf.coef_[:, 4:], atol=2e-3)
    assert_allclose(clf.coef_[:, :4] + clf.coef_[:, 4:], plain.coef_, atol=1e-2)
    assert_allclose(clf.objective_, plain.objective_, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicated_features_without_a_penalty(dtype, largest_gradient):
    X, y = offset_data()
    plain = SoftmaxRegression(C=np.inf).fit(X, y)
    doubled = np.hstack([X, X]).astype(dtype)
    clf = fit_honestly(SoftmaxRegression(C=np.inf), doubled, y, largest_gradient)
    assert_allclose(clf.objective_, plain.objective_, rtol=1e-5)
    assert_allclose(clf.predict_proba(doubled), plain.predict_proba(X), atol=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [1.0, np.inf])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_one_row_per_class(dtype, C, n_classes, largest_gradient):
    X, y = np.eye(n_classes, dtype=dtype), np.arange(n_classes)
    clf = fit_honestly(SoftmaxRegression(C=C), X, y, largest_gradient)
    assert_array_equal(clf.predict(X), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [1.0, 1e6, np.inf])
def test_more_features_than_rows(dtype, C, largest_gradient):
    X = np.random.default_rng(0).standard_normal((20, 100)).astype(dtype)
    y = np.arange(20) % 3
    clf = fit_honestly(SoftmaxRegression(C=C), X, y, largest_gradient)
    assert_array_equal(clf.predict(X), y)
    if C == 1:
        assert clf.status_ == Status.CONVERGED


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_class_with_one_sample(dtype, largest_gradient):
    y = np.where(np.arange(150) == 7, 99, Y)
    clf = fit_honestly(SoftmaxRegression(), X.astype(dtype), y, largest_gradient)
    assert clf.status_ == Status.CONVERGED
    assert_array_equal(clf.classes_, [0, 1, 2, 99])
    # without a penalty on the intercept, mean probabilities are the class frequencies
    assert_allclose(clf.predict_proba(X.astype(dtype)).mean(axis=0), np.array([49, 50, 50, 1]) / 150, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", [255, 256, 257, 400])
def test_many_classes(dtype, n_classes, largest_gradient):
    rng = np.random.default_rng(0)
    y = np.arange(3 * n_classes) % n_classes
    X = np.eye(12)[y % 12] + 0.1 * rng.standard_normal((3 * n_classes, 12)) + (y / n_classes)[:, np.newaxis]
    clf = fit_honestly(SoftmaxRegression(C=100), X.astype(dtype), y, largest_gradient)
    assert clf.gradient_norm_ <= clf.tol
    assert clf.status_ == Status.CONVERGED or dtype == np.float32
    assert_array_equal(clf.classes_, np.arange(n_classes))
    proba = clf.predict_proba(X.astype(dtype))
    assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert_array_equal(clf.predict(X.astype(dtype)), proba.argmax(axis=1))
    assert proba[np.arange(len(y)), y].mean() > 5 / n_classes
    assert clf.predict(X.astype(dtype)).max() >= n_classes - 20  # no index wraps round


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tol", [1e-4, 1e-8])
@pytest.mark.parametrize("data", ["two classes", "iris", "digits"])
def test_separable_data_without_a_penalty(dtype, tol, data, largest_gradient):
    X, y = load_digits(return_X_y=True) if data == "digits" else load_iris(return_X_y=True)
    if data == "two classes":
        X, y = X[:100], y[:100]
    X_ = (X / X.max()).astype(dtype)
    clf = fit_honestly(SoftmaxRegression(C=np.inf, tol=tol), X_, y, largest_gradient)
    assert clf.score(X_, y) > (0.97 if data == "iris" else 0.999)  # iris is not quite separable
    assert np.isfinite(clf.predict_log_proba(X_)).all()


# Limits


@pytest.mark.parametrize("dtype", DTYPES)
def test_tol_zero_goes_to_the_limit_of_precision(dtype):
    clf = SoftmaxRegression(tol=0)
    with pytest.warns(ConvergenceWarning, match="precision"):
        clf.fit(X.astype(dtype), Y)
    assert clf.status_ == Status.PRECISION_REACHED
    assert clf.gradient_norm_ < (1e-4 if dtype == np.float32 else 1e-10)
    assert clf.objective_ <= SoftmaxRegression().fit(X.astype(dtype), Y).objective_ * (1 + 1e-6)


@pytest.mark.parametrize("max_iter", [0, 1, 3])
def test_too_few_iterations_warn(max_iter):
    clf = SoftmaxRegression(max_iter=max_iter)
    with pytest.warns(ConvergenceWarning, match="max_iter") as caught:
        clf.fit(X, Y)
    assert caught[0].filename == __file__  # the line that called fit
    assert clf.status_ == Status.ITERATION_LIMIT
    assert clf.n_iter_[0] == max_iter
    assert clf.gradient_norm_ > clf.tol
    if max_iter == 0:
        assert_allclose(clf.predict_proba(X), 1 / 3, atol=1e-6)


# Interruption, threads and repeatability


def large_data(n_rows=300_000):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, 20)).astype(np.float32)
    return X, (X @ rng.standard_normal((20, 6)) + rng.gumbel(size=(n_rows, 6))).argmax(axis=1)


needs_the_main_thread = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals are delivered to the main thread"
)


@pytest.fixture
def two_blas_threads():
    """State how many threads BLAS has, whatever other tests left behind."""
    with threadpool_limits(2, user_api="blas"):
        yield


class CtrlC:
    """Sends this process SIGINT after a while, from another thread; `sent` is when it did."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.thread = threading.Thread(target=self.send)

    def send(self):
        time.sleep(self.seconds)
        self.sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def ctrl_c(heeds_ctrl_c):
    ctrl_c = CtrlC(seconds=0.3)
    yield ctrl_c
    ctrl_c.thread.join()


def fit_until_interrupted(clf, X, y, ctrl_c):
    ctrl_c.thread.start()
    while True:  # one fit would do on most machines; a finished fit would show as changed attributes
        clf.fit(X, y)


@needs_the_main_thread
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("is_fitted", [False, True])
def test_ctrl_c_stops_a_fit_and_leaves_everything_as_it_was(is_fitted, ctrl_c, two_blas_threads):
    X_, y = large_data()
    clf = SoftmaxRegression()
    if is_fitted:
        clf.fit(X, Y)
    clf.set_params(tol=0)
    before, limits = vars(clf).copy(), threadpool_info()
    with pytest.raises(KeyboardInterrupt):
        fit_until_interrupted(clf, X_, y, ctrl_c)
    assert time.monotonic() - ctrl_c.sent < 3  # a task takes milliseconds, the machine may be busy
    assert list(vars(clf)) == list(before)
    assert all(vars(clf)[name] is value for name, value in before.items()), "a finished fit, or one half done"
    assert threadpool_info() == limits
    small = clf.set_params(tol=1e-4).fit(X, Y)
    assert_array_equal(small.coef_, SoftmaxRegression().fit(X, Y).coef_)


@needs_the_main_thread
def test_ctrl_c_stops_within_a_pass(ctrl_c, two_blas_threads, monkeypatch):
    pytest.importorskip("polars")  # its signal handler has system calls restarted: no wait without end is interrupted
    starts = []
    evaluate = cpu.loss_and_gradient

    def evaluate_slowly(*arguments):
        starts.append(time.monotonic())
        time.sleep(0.2)
        evaluate(*arguments)

    monkeypatch.setattr(cpu, "loss_and_gradient", evaluate_slowly)
    X, y = large_data()  # about fifty tasks
    with pytest.raises(KeyboardInterrupt):
        fit_until_interrupted(SoftmaxRegression(), X, y, ctrl_c)
    assert sum(start > ctrl_c.sent for start in starts) <= 4  # those that were about to start, one a thread


def test_blas_threads_are_restored(two_blas_threads):
    X, y = large_data()
    limits = threadpool_info()
    clf = SoftmaxRegression().fit(X, y)
    assert threadpool_info() == limits
    clf.predict(X)
    assert threadpool_info() == limits
    far = np.full(X.shape, 3e38, np.float32)
    with pytest.raises(NonFiniteError):
        clf.set_params(C=np.inf).fit(far * (y == 0)[:, np.newaxis], y)
    assert threadpool_info() == limits


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_again(dtype):
    X, y = large_data(30_000)
    one, other = (SoftmaxRegression().fit(X.astype(dtype), y) for _ in range(2))
    assert_array_equal(one.coef_, other.coef_)
    assert_array_equal(one.intercept_, other.intercept_)
    assert one.objective_ == other.objective_
    assert_array_equal(one.predict_proba(X), other.predict_proba(X))


def test_fits_at_once_are_each_as_alone(two_blas_threads):
    X, y = large_data(100_000)
    X = X.astype(np.float64)  # float32 coefficients would round differences away
    weights = np.linspace(0.1, 2, len(X))
    limits = threadpool_info()
    alone, alone_behind = SoftmaxRegression().fit(X, y), SoftmaxRegression().fit(X, y, weights)
    is_over, behind = threading.Event(), []

    def fit_behind():
        while not is_over.is_set():
            behind.append(SoftmaxRegression().fit(X, y, weights))

    thread = threading.Thread(target=fit_behind)
    thread.start()
    try:
        together = [SoftmaxRegression().fit(X, y) for _ in range(3)]  # each starts at another moment of those behind
        proba = alone.predict_proba(X)
    finally:
        is_over.set()
        thread.join()
    assert threadpool_info() == limits
    assert behind
    assert_array_equal(proba, alone.predict_proba(X))
    for one, others in ((alone, together), (alone_behind, behind)):
        for other in others:
            assert_array_equal(one.coef_, other.coef_)
            assert_array_equal(one.intercept_, other.intercept_)
            assert one.n_passes_ == other.n_passes_


@pytest.mark.parametrize("C", [1e20, 1e100, 1e300])
def test_a_penalty_next_to_nothing_is_none(C):
    X, y = offset_data()
    X = np.column_stack([X, np.zeros(len(X))])
    weak, none = SoftmaxRegression(C=C).fit(X, y), SoftmaxRegression(C=np.inf).fit(X, y)
    assert weak.status_ == none.status_ == Status.CONVERGED
    assert_allclose(weak.objective_, none.objective_, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [1e-45, 1e-100, 1e-320])
def test_a_penalty_out_of_range_leaves_no_coefficients(dtype, C):
    alone = SoftmaxRegression(C=C).fit(X.astype(dtype), Y)
    result = sweep(X.astype(dtype), Y, Cs=[C, 1.0])
    for clf in (alone, result.to_estimator(0)):
        assert clf.gradient_norm_ < 1e-5
        assert np.abs(clf.coef_).max() < 1e-30
        assert clf.objective_ == pytest.approx(np.log(3), rel=1e-6)
        assert_allclose(clf.predict_proba(X.astype(dtype)), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("scale", [2.0**-130, 2.0**120])
def test_weights_of_any_size_are_counted_in_a_unit_of_their_own(scale):
    X, y = offset_data()
    X = X.astype(np.float32)
    weights = np.linspace(0.5, 2, len(X))
    plain = SoftmaxRegression().fit(X, y, weights)
    scaled = SoftmaxRegression(C=1 / scale).fit(X, y, weights * scale)
    assert_array_equal(plain.coef_, scaled.coef_)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("dtype", "C"), [(np.float64, np.inf), (np.float32, 1e6)])
def test_callers_who_let_numpy_raise_get_what_others_get(dtype, C):
    X, y = load_digits(return_X_y=True)
    X = X.astype(dtype)
    clf = SoftmaxRegression(C=C, max_iter=200).fit(X[:900], y[:900])
    with np.errstate(all="raise"):
        again = SoftmaxRegression(C=C, max_iter=200).fit(X[:900], y[:900])
        assert_array_equal(again.coef_, clf.coef_)
        assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
        sweep(X, y, Cs=[1, 1e6], cv=2, max_iter=100)
        fit_many([X[:200], X[200:500]], [y[:200], y[200:500]], C=C)
        SoftmaxRegressionCV(Cs=[1, 1e6], cv=2, max_iter=100).fit(X, y)
        calibrate(clf, X[900:], y[900:])
        evaluate(clf, X[900:], y[900:])
