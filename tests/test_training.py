from dataclasses import replace

import numpy as np
import pytest
from oracle import FLOAT32, FLOAT64, assert_close, make_data

import gpusoftmax as gs
from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.kernels import reference
from gpusoftmax.solvers.base import Status
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.sources import ArraySource
from gpusoftmax.training import Training, feature_scale, find_center, start_intercept, train


def fit(data, C=(1.0,), dtype=FLOAT64, start=None, max_iter=1000, tol=1e-8, **options):
    source = ArraySource(data.X.astype(dtype), data.targets, data.weights, dtype)
    training = Training(np.array(C), data.params.shape[2], **options)
    return train(training, source, LBFGS(tol=tol, max_iter=max_iter), NumpyBackend(), start)


class TestCentre:
    def test_only_features_whose_offset_dwarfs_their_range(self):
        low, high = np.array([-1.0, 99.0, -101.0, 0.0]), np.array([1.0, 101.0, -99.0, 10.0])
        np.testing.assert_array_equal(find_center(low, high), [0.0, 100.0, -100.0, 0.0])

    def test_none_where_no_offset_matters(self):
        assert find_center(np.array([-1.0, 0.0, 5.0]), np.array([1.0, 3.0, 9.0])) is None

    def test_a_constant_feature_is_measured_by_the_others(self):
        assert find_center(np.array([-1.0, 5.0]), np.array([1.0, 5.0])) is None
        np.testing.assert_array_equal(find_center(np.array([-1.0, 500.0]), np.array([1.0, 500.0])), [0.0, 500.0])

    def test_no_overflow_at_the_ends_of_the_range(self):
        largest = np.finfo(float).max
        assert find_center(np.array([-largest]), np.array([largest])) is None

    @pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
    def test_an_offset_does_not_change_the_model(self, dtype):
        # 4096 is a power of two, and the features are of three bits: float32 holds the sum exactly.
        data = make_data(200, 4, 1, 3)
        data = replace(data, X=np.round(4 * data.X) / 4)
        tol = 1e-8 if dtype == FLOAT64 else 1e-6
        plain, none = fit(data, dtype=dtype, tol=tol)
        moved, center = fit(replace(data, X=data.X + 4096), dtype=dtype, tol=tol)
        assert none is None
        assert np.abs(center - 4096).max() < 4
        tolerance = 1e-6 if dtype == FLOAT64 else 1e-3
        assert_close(moved.params[:-1], plain.params[:-1], tolerance)
        intercept = moved.params[-1] + np.tensordot(4096 - center, moved.params[:-1], axes=1)
        assert_close(intercept, plain.params[-1], tolerance, scale=1)

    def test_without_an_intercept_nothing_is_centred(self):
        data = make_data(50, 4, 1, 3)
        _, center = fit(replace(data, X=data.X + 4096), has_intercept=False, max_iter=1)
        assert center is None


class TestStart:
    def test_is_where_it_was_said_to_be(self):
        data = make_data(50, 4, 1, 3)
        good = 0.5 * fit(data)[0].params + np.array([1.0, -2.0, 0.5, 3.0, 0.1])[:, np.newaxis, np.newaxis]
        for X in (data.X, data.X + 4096):
            start = good.copy()
            start[-1] -= ((X - data.X)[0] @ good[:-1, 0])[np.newaxis]
            solution, center = fit(replace(data, X=X), start=start, max_iter=0)
            assert (center is None) == (X is data.X)
            loss, _ = reference.loss_and_gradient(X, data.targets, data.full_weights(), start)
            centred = good[:-1] - good[:-1].mean(axis=2, keepdims=True)
            assert_close(solution.value, loss / 50 + (centred**2).sum() / 100, 1e-9)

    @pytest.mark.parametrize("scale", [3.0, 1e4, 1e200])
    def test_is_not_where_it_is_worse_than_without_coefficients(self, scale):
        data = make_data(50, 4, 2, 3, weights="each")
        good = fit(data, C=(1.0, 1.0))[0].params
        start = np.stack([good[:, 0], -scale * (good[:, 1] + 1)], axis=1)
        solution, _ = fit(data, start=start, C=(1.0, 1.0), max_iter=0, label_smoothing=0.1)
        assert_close(solution.params[:-1, 0], good[:-1, 0] - good[:-1, 0].mean(axis=1, keepdims=True), 1e-12)
        plain, _ = fit(data, C=(1.0, 1.0), max_iter=0, label_smoothing=0.1)
        np.testing.assert_array_equal(solution.params[:, 1], plain.params[:, 1])
        assert (solution.n_passes == plain.n_passes + 1).all()

    def test_is_the_log_class_frequencies_unless_said(self):
        data = make_data(200, 4, 1, 3)
        solution, _ = fit(data, max_iter=0)
        assert (solution.params[:-1] == 0).all()
        shares = np.exp(reference.log_softmax(solution.params[-1, 0]))
        assert_close(shares, np.bincount(data.targets, minlength=3) / 200, 1e-13)

    def test_log_frequencies_are_the_optimum_without_features(self):
        total, per_class = np.array([10.0, 4.0]), np.array([[5.0, 4.0, 1.0], [1.0, 1.0, 2.0]])
        for smoothing in (0.0, 0.3):
            shares = np.exp(reference.log_softmax(start_intercept(total, per_class, 100, smoothing)))
            assert_close(shares, (1 - smoothing) * per_class / total[:, np.newaxis] + smoothing / 3, 1e-13)

    def test_a_class_without_rows_starts_low_but_finite(self):
        start = start_intercept(np.array([10.0]), np.array([[10.0, 0.0]]), 10, 0.0)
        assert np.isfinite(start).all()
        assert_close(start.sum(axis=1), [0.0], 1e-15, scale=1)
        assert start[0, 0] > start[0, 1]


def test_feature_scale_is_a_power_of_two_near_the_inverse_of_the_largest():
    low, high = np.array([-3.0, 0.0, 1e-30, 0.0, -1e30]), np.array([1.0, 100.0, 2e-30, 0.0, 0.0])
    scale = feature_scale(low, high)
    np.testing.assert_array_equal(np.log2(scale), np.round(np.log2(scale)))
    largest = np.maximum(np.abs(low), np.abs(high)) * scale
    assert ((largest > 0.7) & (largest < 1.42))[[0, 1, 2, 4]].all()
    assert scale[3] == 1


def test_metric_is_scaled_by_the_spread_of_centred_features(monkeypatch):
    ranges = []

    def record(low, high):
        ranges.append((low, high))
        return feature_scale(low, high)

    monkeypatch.setattr("gpusoftmax.training.feature_scale", record)
    data = make_data(200, 4, 1, 3)
    fit(replace(data, X=data.X + 4096), max_iter=0)
    fit(data, max_iter=0)
    (low, high), (plain_low, plain_high) = ranges
    assert_close(high - low, plain_high - plain_low, 1e-12)
    assert np.abs([low, high]).max() < 10


class TestMetricRows:
    """Beyond 20,000 rows the metric is estimated from a sample."""

    @pytest.fixture(autouse=True)
    def small_sample(self, monkeypatch):
        monkeypatch.setattr("gpusoftmax.plan.METRIC_ROWS", 500)

    def test_features_that_the_sample_misses_cost_few_passes(self):
        rng, n = np.random.default_rng(0), 8000
        X, rare = np.zeros((n, 60)), rng.choice(n, 150, replace=False)
        X[:, :10] = rng.normal(size=(n, 10))
        X[rare, rng.integers(10, 60, 150)] = 1
        y = (X @ rng.normal(size=(60, 3)) + rng.gumbel(size=(n, 3))).argmax(axis=1)
        clf = gs.SoftmaxRegression(C=1e4).fit(X, y)
        assert clf.status_ is Status.CONVERGED
        assert clf.n_passes_ < 100

    def test_rows_that_weigh_nothing_are_no_part_of_it(self):
        rng, n = np.random.default_rng(0), 8000
        X, weights = rng.normal(size=(n, 5)), np.zeros(n)
        y = (X @ rng.normal(size=(5, 3)) + rng.gumbel(size=(n, 3))).argmax(axis=1)
        chosen = rng.choice(n, 60, replace=False)
        weights[chosen] = 1
        clf = gs.SoftmaxRegression(C=1e3, tol=1e-7).fit(X, y, weights)
        alone = gs.SoftmaxRegression(C=1e3, tol=1e-7).fit(X[chosen], y[chosen])
        assert clf.status_ is Status.CONVERGED
        assert_close(clf.coef_, alone.coef_, 1e-4)
        assert clf.n_passes_ < 1.2 * alone.n_passes_

    def test_offsets_cost_no_passes_where_it_is_diagonal(self, monkeypatch):
        monkeypatch.setattr("gpusoftmax.plan.MAX_METRIC_FEATURES", 10)
        data = make_data(300, 20, 1, 3)
        plain, _ = fit(data, tol=1e-6)
        shifted, center = fit(replace(data, X=data.X + np.linspace(0, 16, 20)), tol=1e-6)
        assert center is None
        assert abs(shifted.n_passes - plain.n_passes) <= 3
        assert_close(shifted.value, plain.value, 1e-9)


def test_strength_is_the_inverse_of_c_times_the_total_weight():
    data = make_data(60, 3, 2, 3, weights="each")
    solution, _ = fit(data, C=(0.5, 7.0))
    S = data.full_weights().sum(axis=0)
    _, grad = reference.loss_and_gradient(data.X, data.targets, data.full_weights(), solution.params)
    grad[:-1] += solution.params[:-1] / np.array([0.5, 7.0])[:, np.newaxis]
    assert np.abs(grad / S[:, np.newaxis]).max() < 1e-7


def test_a_problem_whose_weights_are_all_zero_is_an_error():
    data = make_data(20, 3, 2, 3, weights="each")
    weights = data.weights.copy()
    weights[:, 1] = 0
    with pytest.raises(ValueError, match="weights of all samples are zero"):
        fit(replace(data, weights=weights), C=(1.0, 1.0))
