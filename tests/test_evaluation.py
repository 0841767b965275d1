import numpy as np
import pytest
from sklearn import metrics
from sklearn.datasets import load_digits

from gpusoftmax import SoftmaxRegression, evaluate, expected_calibration_error, held_out
from gpusoftmax.calibration import wilson_interval

X, Y = load_digits(return_X_y=True)
WEIGHTS = np.random.default_rng(0).random(697)


@pytest.fixture(scope="module", params=[2, 10])
def case(request):
    y = Y if request.param == 10 else np.where(Y % 2, "odd", "even")
    return SoftmaxRegression().fit(X[:1100], y[:1100]), X[1100:], y[1100:]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_figures_are_those_of_scikit_learn(case, weights):
    clf, X, y = case
    found = evaluate(clf, X, y, weights)
    probabilities, predicted = clf.predict_proba(X), clf.predict(X)
    assert found.accuracy == pytest.approx(clf.score(X, y, weights))
    np.testing.assert_allclose(found.confidence, probabilities.max(axis=1), rtol=1e-12)
    assert found.log_loss == pytest.approx(metrics.log_loss(y, probabilities, sample_weight=weights))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        y, predicted, sample_weight=weights, zero_division=np.nan
    )
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.f1, f1)
    _, targets = np.unique(y, return_inverse=True)
    np.testing.assert_allclose(found.support, np.bincount(targets, weights))
    np.testing.assert_array_equal(found.classes[found.predictions], predicted)
    ece = expected_calibration_error(y, probabilities, sample_weight=weights)
    assert found.expected_calibration_error == pytest.approx(ece)
    shares = np.broadcast_to(found.support / found.support.sum(), probabilities.shape)
    assert found.chance_log_loss == pytest.approx(metrics.log_loss(y, shares, sample_weight=weights))


def test_mistakes_are_the_largest_entries_off_the_diagonal(case):
    clf, X, y = case
    matrix = metrics.confusion_matrix(y, clf.predict(X), sample_weight=WEIGHTS)
    np.fill_diagonal(matrix, 0)
    found = evaluate(clf, X, y, WEIGHTS).mistakes(3)
    np.testing.assert_allclose([weight for _, _, weight in found], np.sort(matrix.ravel())[::-1][: len(found)])
    assert all(matrix[true, predicted] == pytest.approx(weight) for true, predicted, weight in found)


def test_the_interval_is_that_of_scipy_and_weights_widen_it(case):
    stats = pytest.importorskip("scipy.stats")
    clf, X, y = case
    found = evaluate(clf, X, y, np.full(697, 3.0))
    n_right = int((clf.predict(X) == y).sum())
    expected = stats.binomtest(n_right, 697).proportion_ci(method="wilson")
    np.testing.assert_allclose(found.accuracy_interval, (expected.low, expected.high), rtol=1e-4)
    one_counts = evaluate(clf, X, y, np.r_[1e9, np.ones(696)])
    assert one_counts.n_effective == pytest.approx(1, rel=1e-4)
    assert one_counts.accuracy_interval[1] - one_counts.accuracy_interval[0] > 0.7


@pytest.mark.parametrize("scale", [1e-320, 1e307])
def test_the_size_of_all_weights_counts_for_support_only(case, scale):
    weights = np.random.default_rng(0).choice([1, 2, 4], 697)  # exact at the smallest scale too
    few, many = (evaluate(*case, size * weights) for size in (1.0, scale))
    figures = ("accuracy", "accuracy_interval", "n_effective", "log_loss", "chance_log_loss", "precision", "recall")
    for name in (*figures, "f1", "frequencies", "expected_calibration_error"):
        np.testing.assert_allclose(getattr(many, name), getattr(few, name), err_msg=name)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(many.support, few.support * scale)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rounding_takes_no_interval_out_of_zero_to_one(share):
    low, high = wilson_interval(share, np.arange(1, 100))
    assert (low >= 0).all()
    assert (high <= 1).all()


def test_mistakes_without_weight_are_none(case):
    clf, X, y = case
    assert evaluate(clf, X, y, (clf.predict(X) == y).astype(float)).mistakes(3) == []


def test_no_mistakes():
    x = np.arange(4.0)[:, np.newaxis]
    found = evaluate(SoftmaxRegression().fit(x, x[:, 0] > 1), x, x[:, 0] > 1)
    assert found.mistakes(3) == []


def test_classes_that_are_not_there_have_no_precision_and_no_recall():
    clf = SoftmaxRegression().fit(X, Y)
    is_there = Y == 3
    found = evaluate(clf, X[is_there], Y[is_there])
    assert np.flatnonzero(~np.isnan(found.recall)).tolist() == [3]
    assert np.flatnonzero(found.support).tolist() == [3]
    assert np.isnan(found.precision[found.classes != 3]).all()


def test_losses_are_finite_where_the_probability_is_not():
    x = np.array([[-1.0], [1.0]])
    clf = SoftmaxRegression().fit(x, [0, 1])
    clf.coef_ *= 1e4
    found = evaluate(clf, x, [1, 0])
    np.testing.assert_allclose(found.losses, abs(clf.decision_function(x)))


def test_blocks_of_rows_change_nothing(case, monkeypatch):
    clf, X, y = case
    whole = evaluate(clf, X, y)
    monkeypatch.setattr(held_out, "BLOCK_NUMBERS", 100)
    parts = evaluate(clf, X, y)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-9)
    np.testing.assert_array_equal(parts.predictions, whole.predictions)


def test_soft_targets_are_refused(case):
    clf, X, _ = case
    n_classes = len(clf.classes_)
    with pytest.raises(ValueError, match=rf"y must have shape \(n_samples,\), got \(697, {n_classes}\)"):
        evaluate(clf, X, np.full((697, n_classes), 1 / n_classes))
