import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
from cuda_device import cuda
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator

from gpusoftmax import SoftmaxRegression, SoftmaxRegressionCV, calibrate, evaluate, expected_calibration_error, held_out

X, Y = load_digits(return_X_y=True)
FIT, HELD, TEST = slice(0, 900), slice(900, 1400), slice(1400, None)


@pytest.fixture(scope="module")
def models():
    """Fitted, overconfident: of ten classes, of two."""
    ten = SoftmaxRegression(C=10.0).fit(X[FIT], Y[FIT])
    two = SoftmaxRegression(C=10.0).fit(X[FIT], np.where(Y[FIT] % 2, "odd", "even"))
    return {10: ten, 2: two}


def labels(n_classes):
    return Y if n_classes == 10 else np.where(Y % 2, "odd", "even")


def logits_of(clf, X):
    z = clf.decision_function(X).astype(np.float64)
    return np.column_stack([np.zeros_like(z), z]) if z.ndim == 1 else z


def held_out_loss(clf, X, targets, weights=None):
    return np.average(-(targets * log_softmax(logits_of(clf, X), axis=1)).sum(axis=1), weights=weights)


def one_hot(clf, y):
    return (np.asarray(y)[:, np.newaxis] == clf.classes_).astype(np.float64)


@pytest.mark.parametrize("n_classes", [2, 10])
def test_the_temperature_minimises_the_held_out_loss(models, n_classes):
    clf, y = models[n_classes], labels(n_classes)
    calibrated = calibrate(clf, X[HELD], y[HELD])
    assert calibrated.temperature_ > 1.1
    targets = one_hot(clf, y[HELD])
    best = held_out_loss(calibrated, X[HELD], targets)
    assert best < held_out_loss(clf, X[HELD], targets)
    z = logits_of(clf, X[HELD]) / calibrated.temperature_
    for factor in (0.99, 1.01):
        assert best < -(targets * log_softmax(z * factor, axis=1)).sum(axis=1).mean()


@pytest.mark.parametrize("n_classes", [2, 10])
def test_logits_are_divided_and_labels_stay(models, n_classes):
    clf, y = models[n_classes], labels(n_classes)
    calibrated = calibrate(clf, X[HELD], y[HELD])
    np.testing.assert_allclose(
        calibrated.decision_function(X[TEST]),
        clf.decision_function(X[TEST]) / calibrated.temperature_,
        rtol=1e-12,
        atol=1e-13,
    )
    np.testing.assert_array_equal(calibrated.predict(X), clf.predict(X))


@pytest.mark.parametrize("n_classes", [2, 10])
def test_agrees_with_scikit_learn(models, n_classes):
    clf, y = models[n_classes], labels(n_classes)
    weights = np.random.default_rng(0).integers(0, 4, 500).astype(float)
    theirs = CalibratedClassifierCV(FrozenEstimator(clf), method="temperature")
    with pytest.warns(UserWarning, match="sample weights will only be used for the calibration itself"):
        theirs.fit(X[HELD], y[HELD], weights)
    ours = calibrate(clf, X[HELD], y[HELD], weights)
    np.testing.assert_allclose(ours.predict_proba(X[TEST]), theirs.predict_proba(X[TEST]), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-320, 1e307])
def test_the_size_of_all_weights_does_not_count(models, scale):
    weights = np.random.default_rng(0).choice([1, 2, 4], 500)  # exact at the smallest scale too
    few, many = (calibrate(models[10], X[HELD], Y[HELD], size * weights) for size in (1.0, scale))
    assert many.temperature_ == pytest.approx(few.temperature_, rel=1e-7)


def test_weights_equal_repetition_and_zero_equals_absence(models):
    weights = np.random.default_rng(0).integers(0, 4, 500)
    weighted = calibrate(models[10], X[HELD], Y[HELD], weights)
    repeated = calibrate(models[10], np.repeat(X[HELD], weights, axis=0), np.repeat(Y[HELD], weights))
    assert weighted.temperature_ == pytest.approx(repeated.temperature_, rel=1e-7)
    assert weighted.temperature_ != pytest.approx(calibrate(models[10], X[HELD], Y[HELD]).temperature_, rel=1e-3)


@pytest.mark.parametrize("n_classes", [2, 10])
def test_soft_targets_that_are_certain_equal_labels(models, n_classes):
    clf, y = models[n_classes], labels(n_classes)
    soft = calibrate(clf, X[HELD], one_hot(clf, y[HELD]))
    assert soft.temperature_ == pytest.approx(calibrate(clf, X[HELD], y[HELD]).temperature_, rel=1e-7)


def test_soft_targets_of_a_temperature_give_it_back(models):
    targets = softmax(models[10].decision_function(X[HELD]) / 3.25, axis=1)
    assert calibrate(models[10], X[HELD], targets).temperature_ == pytest.approx(3.25, rel=1e-7)


def test_classes_in_any_order():
    order = np.random.default_rng(0).permutation(10)
    targets = (Y[FIT, np.newaxis] == order).astype(float)
    clf = SoftmaxRegression().fit(X[FIT], targets, classes=order)
    usual = SoftmaxRegression().fit(X[FIT], Y[FIT])
    temperatures = [calibrate(model, X[HELD], Y[HELD]).temperature_ for model in (clf, usual)]
    assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-3)


def test_blocks_of_rows_change_nothing(models, monkeypatch):
    whole = calibrate(models[10], X[HELD], Y[HELD]).temperature_
    largest = []
    of_blocks = held_out.HeldOut.blocks

    def watched(self):
        for rows, logits in of_blocks(self):
            largest.append(logits.size)
            yield rows, logits

    monkeypatch.setattr(held_out, "BLOCK_NUMBERS", 130)
    monkeypatch.setattr(held_out.HeldOut, "blocks", watched)
    assert calibrate(models[10], X[HELD], Y[HELD]).temperature_ == pytest.approx(whole, rel=1e-7)
    assert max(largest) == 130


def test_centred_features_keep_their_digits():
    rng = np.random.default_rng(0)
    offset = 1e5 + rng.normal(size=(600, 5))
    y = (offset - 1e5) @ rng.normal(size=(5, 3)) + rng.gumbel(size=(600, 3))
    y, offset = y.argmax(axis=1), offset.astype(np.float32)
    clf = SoftmaxRegression(C=np.inf).fit(offset[:300], y[:300])
    assert clf._center is not None
    calibrated = calibrate(clf, offset[300:], y[300:])
    expected = clf.decision_function(offset) / calibrated.temperature_
    np.testing.assert_allclose(calibrated.decision_function(offset), expected, atol=1e-4)


def test_a_model_fitted_again_is_as_fitted(models):
    calibrated = calibrate(models[10], X[HELD], Y[HELD])
    assert calibrated.fit(X[FIT], Y[FIT]).temperature_ == 1.0
    np.testing.assert_array_equal(calibrated.coef_, models[10].coef_)


def test_the_model_given_is_not_changed(models):
    before = pickle.dumps(models[10])
    calibrate(models[10], X[HELD], Y[HELD])
    assert pickle.dumps(models[10]) == before


def test_calibrated_twice_is_calibrated_once(models):
    once = calibrate(models[10], X[HELD], Y[HELD])
    twice = calibrate(once, X[HELD], Y[HELD])
    assert twice.temperature_ == pytest.approx(once.temperature_, rel=1e-7)
    np.testing.assert_allclose(twice.coef_, once.coef_, rtol=1e-7)


def test_pickles_keep_the_temperature_and_clones_do_not(models):
    calibrated = calibrate(models[10], X[HELD], Y[HELD])
    again = pickle.loads(pickle.dumps(calibrated))
    assert again.temperature_ == calibrated.temperature_
    np.testing.assert_array_equal(again.predict_proba(X[TEST]), calibrated.predict_proba(X[TEST]))
    assert not hasattr(clone(calibrated), "temperature_")


def test_the_choice_of_cross_validation_can_be_calibrated():
    clf = SoftmaxRegressionCV(Cs=[0.01, 10.0], cv=3).fit(X[FIT], Y[FIT])
    calibrated = calibrate(clf, X[HELD], Y[HELD])
    assert isinstance(calibrated, SoftmaxRegressionCV)
    assert calibrated.C_ == clf.C_
    assert clf.temperature_ == 1.0 != calibrated.temperature_


def test_frames_are_taken_block_by_block(monkeypatch):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    monkeypatch.setattr(held_out, "BLOCK_NUMBERS", 1000)
    temperatures = []
    for frame in (pd.DataFrame(X).add_prefix("x"), pl.DataFrame(X)):
        clf = SoftmaxRegression().fit(frame[FIT], Y[FIT])
        temperatures.append(calibrate(clf, frame[HELD], pd.Series(Y[HELD])).temperature_)
    assert temperatures[0] == temperatures[1] > 1


def test_on_a_device_as_on_the_host():
    fit, held, test = ((X[rows, 18:24], Y[rows] % 3) for rows in (slice(0, 90), slice(900, 990), slice(1400, 1490)))
    here = SoftmaxRegression(device="cpu", C=10.0).fit(*fit)
    expected = calibrate(here, *held)
    with cuda():
        import cupy

        there = SoftmaxRegression(C=10.0).fit(*map(cupy.asarray, fit))
        calibrated = calibrate(there, *map(cupy.asarray, held))
        assert isinstance(calibrated.coef_, cupy.ndarray)
        assert isinstance(calibrated.intercept_, cupy.ndarray)
        assert calibrated.temperature_ == pytest.approx(expected.temperature_, rel=1e-3)
        found = evaluate(calibrated, *map(cupy.asarray, test))
    assert found.log_loss == pytest.approx(evaluate(expected, *test).log_loss, rel=1e-3)


@pytest.mark.parametrize("judge", [calibrate, evaluate])
def test_memory_does_not_grow_with_rows_times_classes(judge, monkeypatch):
    monkeypatch.setattr(held_out, "BLOCK_NUMBERS", 1 << 15)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 2)), rng.integers(0, 200, 4000)
    clf = SoftmaxRegression(memory_budget=1 << 19, max_iter=0)
    with pytest.warns(ConvergenceWarning):
        clf.fit(x, y)
    clf.coef_ += rng.normal(size=clf.coef_.shape)
    y[::2] = clf.predict(x[::2])
    judge(clf, x[:100], y[:100])  # what is made once
    tracemalloc.start()
    judge(clf, x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 4000 * 200 / 2.5  # of all logits


def test_a_model_that_is_always_right_ends_at_the_lower_bound():
    x = np.linspace(-1, 1, 20)[:, np.newaxis]
    clf = SoftmaxRegression().fit(x, x[:, 0] > 0)
    rows, y, weights = np.r_[x, [[1.0]]], np.r_[x[:, 0] > 0, False], np.r_[np.ones(20), 0.0]
    with pytest.warns(UserWarning, match="right on all 20 held-out rows.*lower bound") as caught:
        calibrated = calibrate(clf, rows, y, weights)
    assert caught[0].filename == __file__
    assert 0 < calibrated.temperature_ < 1e-3
    assert calibrated.score(x, x[:, 0] > 0) == 1
    assert np.isfinite(calibrated.predict_log_proba(x)).all()


@pytest.mark.parametrize("coef", [1.0, 0.0])
def test_a_model_that_knows_nothing_ends_at_the_upper_bound(coef, monkeypatch):
    monkeypatch.setattr(held_out, "BLOCK_NUMBERS", 1)  # a row alone, one without weight too
    x = np.linspace(-1, 1, 20)[:, np.newaxis]
    clf = SoftmaxRegression(fit_intercept=False).fit(x, x[:, 0] > 0)
    clf.coef_ *= coef
    with pytest.warns(UserWarning, match="no more about y than chance.*upper bound"):
        calibrated = calibrate(clf, x, x[:, 0] < 0)
    np.testing.assert_allclose(calibrated.predict_proba(x), 0.5, atol=1e-3)
    np.testing.assert_array_equal(calibrated.predict(x), clf.predict(x))
    rows, y, weights = np.r_[x, [[1e8]]], np.r_[x[:, 0] < 0, True], np.r_[np.ones(20), 0.0]
    with pytest.warns(UserWarning, match="upper bound") as caught:
        assert calibrate(clf, rows, y, weights).temperature_ == calibrated.temperature_
    assert caught[0].filename == __file__


def test_a_strong_penalty_is_no_bound():
    clf = SoftmaxRegression(C=1e-9, fit_intercept=False).fit(X[FIT], Y[FIT])
    wide = 1e8 * X[HELD][:1]  # a row that is right at every temperature says nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrated = calibrate(clf, X[HELD], Y[HELD])
        with_wide = calibrate(clf, np.r_[wide, X[HELD]], np.r_[clf.predict(wide), Y[HELD]], np.r_[1e3, np.ones(500)])
    assert calibrated.temperature_ < 1e-3
    assert with_wide.temperature_ == pytest.approx(calibrated.temperature_, rel=1e-7)


def test_what_is_wrong_is_said(models):
    clf = models[10]
    with pytest.raises(NotFittedError):
        calibrate(SoftmaxRegression(), X, Y)
    with pytest.raises(TypeError, match=r"fitted SoftmaxRegression, got FrozenEstimator"):
        calibrate(FrozenEstimator(clf), X, Y)
    with pytest.raises(ValueError, match=r"2 labels not among the 10 classes: 10, 11\. Leave"):
        calibrate(clf, X[:3], [1, 10, 11])
    with pytest.raises(ValueError, match=r"1 label not among the 10 classes: 'a'"):
        calibrate(clf, X[:1], ["a"])
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[3, 2\]"):
        calibrate(clf, X[:3], [1, 2])
    with pytest.raises(ValueError, match=r"\(n_samples,\) or \(n_samples, 10\), got \(3, 4\)"):
        calibrate(clf, X[:3], np.full((3, 4), 0.25))
    with pytest.raises(ValueError, match="sum to one"):
        calibrate(clf, X[:3], np.ones((3, 10)))
    with pytest.raises(ValueError, match="must not be negative"):
        calibrate(clf, X[:3], [1, 2, 3], [1, 1, -1])
    with pytest.raises(ValueError, match="NaN or infinity"):
        calibrate(clf, X[:3], [1, 2, 3], [1, 1, np.nan])
    with pytest.raises(ValueError, match="no held-out rows"):
        calibrate(clf, X[:0], Y[:0])
    with pytest.raises(ValueError, match="has 3 features"):
        calibrate(clf, X[:3, :3], [1, 2, 3])


# Five bins; by hand: (0.4, 0.6]: rows of 0.6 and 0.45, one right, and (0.8, 1]: 0.9, 1.0, 0.9, two right.
PROBABILITIES = np.array([[0.6, 0.3, 0.1], [0.25, 0.45, 0.3], [0.05, 0.05, 0.9], [1.0, 0.0, 0.0], [0.9, 0.1, 0.0]])
LABELS = ["a", "c", "c", "a", "b"]


def test_calibration_error_by_hand():
    by_hand = abs(1 / 2 - 0.525) * 2 / 5 + abs(2 / 3 - 2.8 / 3) * 3 / 5
    assert expected_calibration_error(LABELS, PROBABILITIES, n_bins=5) == pytest.approx(by_hand)


def test_calibration_error_by_hand_with_weights():
    by_hand = abs(1 / 4 - (0.6 + 3 * 0.45) / 4) * 4 / 7 + abs(1.0 - (0.9 + 2 * 1.0) / 3) * 3 / 7
    weights = [1, 3, 1, 2, 0]
    assert expected_calibration_error(LABELS, PROBABILITIES, sample_weight=weights, n_bins=5) == pytest.approx(by_hand)


def test_bins_are_closed_to_the_right():
    # With two bins, 0.5 belongs to (0, 0.5]: each row is then alone in its bin.
    error = expected_calibration_error([0, 0], [[0.5, 0.5], [0.3, 0.7]], classes=[0, 1], n_bins=2)
    assert error == pytest.approx((0.5 + 0.7) / 2)


def test_one_bin_is_the_distance_of_means():
    assert expected_calibration_error(LABELS, PROBABILITIES, n_bins=1) == pytest.approx(abs(3 / 5 - 3.85 / 5))


def test_calibration_error_of_labels_that_are_not_all_there():
    with pytest.raises(ValueError, match=r"2 different labels.*3 columns.*classes=model\.classes_"):
        expected_calibration_error(["a", "c"], PROBABILITIES[[0, 2]])
    named = expected_calibration_error(["a", "c"], PROBABILITIES[[0, 2]], classes=["a", "b", "c"])
    assert named == pytest.approx((0.4 + 0.1) / 2)


@pytest.mark.parametrize(
    ("y", "probabilities", "options", "words"),
    [
        ([0, 1], [0.1, 0.9], {}, "n_classes"),
        ([0, 1, 1], [[0.5, 0.5], [0.5, 0.5]], {}, "n_classes"),
        ([0, 1], [[0.5, 1.5], [0.5, 0.5]], {}, r"lie in \[0, 1\]"),
        ([0, 1], [[np.nan, np.nan], [0.5, 0.5]], {}, r"lie in \[0, 1\]"),
        ([0, 1], [[-5.0, 0.6], [0.5, 0.5]], {}, r"lie in \[0, 1\]"),
        ([0, 1], [[0.0, 0.0], [0.5, 0.5]], {}, "at least one above 0"),
        ([], np.empty((0, 2)), {}, "no held-out rows"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]], {"sample_weight": [1, np.inf]}, "NaN or infinity"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]], {"sample_weight": [1, np.nan]}, "NaN or infinity"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]], {"classes": [0, 0]}, "must be distinct"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]], {"classes": [0, np.nan]}, "hold no NaN"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]], {"n_bins": 0}, "n_bins must be at least 1, got 0"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]], {"sample_weight": [0, 0]}, "zero for every sample"),
        ([0, 7], [[0.5, 0.5], [0.5, 0.5]], {"classes": [0, 1]}, "1 label not among the 2 classes: 7"),
    ],
)
def test_calibration_error_says_what_is_wrong(y, probabilities, options, words):
    with pytest.raises(ValueError, match=words):
        expected_calibration_error(y, probabilities, **options)
