import tracemalloc

import numpy as np
import pytest
from oracle import FLOAT32, FLOAT64, assert_close, make_data
from test_training import fit

import gpusoftmax as gs
from gpusoftmax import training
from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.plan import plan_row_space
from gpusoftmax.row_space import RowSpace, RowSpaceMetric
from gpusoftmax.solvers.base import Status
from gpusoftmax.sources import ArraySource

N, D, P, K = 20, 300, 2, 3


def source_of(X, dtype=FLOAT64, center=None):
    return ArraySource(X.astype(dtype), np.zeros(len(X), int), None, dtype, center=center)


def wide(seed=0, **options):
    return make_data(N, D, P, K, seed=seed, **options)


def without_spaces(monkeypatch):
    monkeypatch.setattr(training, "plan_row_space", lambda *_: None)


class TestRowSpace:
    @pytest.mark.parametrize("block_features", [1, 7, 299, 300])
    @pytest.mark.parametrize("centred", [False, True])
    def test_keeps_logits_and_squares(self, block_features, centred):
        data = wide()
        center = data.X[0] / 2 if centred else None
        space, coordinates = RowSpace.of(source_of(data.X, center=center), NumpyBackend(), block_features)
        X = data.X - data.X[0] / 2 if centred else data.X
        assert coordinates.X.shape == (N, N)
        assert coordinates.center is None
        gram = coordinates.X.T @ coordinates.X
        assert_close(gram, np.diag(gram.diagonal()), 1e-12)
        U = np.random.default_rng(1).normal(size=(N + 1, P, K))
        W = space.lift(U)
        logits = np.tensordot(X, W[:-1], axes=1)
        assert_close(logits, np.tensordot(coordinates.X, U[:-1], axes=1), 1e-12)
        assert_close((W**2).sum(axis=(0, 2)), (U**2).sum(axis=(0, 2)), 1e-12)
        assert_close(space.project(W), U, 1e-12)
        part = space.lift(space.project(data.params))
        assert_close(np.tensordot(X, part[:-1], axes=1), np.tensordot(X, data.params[:-1], axes=1), 1e-12)
        np.testing.assert_array_equal(part[-1], data.params[-1])

    def test_leaves_out_directions_that_no_row_has(self):
        X = wide().X
        X[3], X[4], X[5] = X[1], 0, X[0] - X[1]
        space, coordinates = RowSpace.of(source_of(X), NumpyBackend(), 64)
        assert coordinates.X.shape == (N, N - 3)
        assert_close(coordinates.X @ coordinates.X.T, X @ X.T, 1e-12)
        U = np.random.default_rng(1).normal(size=(N - 2, P, K))
        assert_close(space.project(space.lift(U)), U, 1e-12)

    @pytest.mark.parametrize("scale", [0.0, 1e-160, 1e200])
    def test_is_none_where_squares_leave_the_range(self, scale):
        assert RowSpace.of(source_of(scale * wide().X), NumpyBackend(), 64) is None

    @pytest.mark.parametrize("scale", [1e-140, 1e140])
    def test_any_other_scale_will_do(self, scale):
        space, coordinates = RowSpace.of(source_of(scale * wide().X), NumpyBackend(), 64)
        assert coordinates.X.shape == (N, N)
        U = np.random.default_rng(1).normal(size=(N + 1, P, K))
        assert_close(space.project(space.lift(U)), U, 1e-12)

    def test_takes_no_more_memory_than_planned(self):
        source = source_of(np.random.default_rng(0).normal(size=(300, 20_000)), FLOAT32)
        block_features, workspace_bytes = plan_row_space(300, 20_000, np.inf)
        tracemalloc.start()
        RowSpace.of(source, NumpyBackend(), block_features)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= workspace_bytes + 50_000


class Diagonal:
    """A metric that is different in every direction and problem."""

    def __init__(self, values):
        self.values = values

    def apply(self, gradient):
        return self.values * gradient

    def select(self, active):
        return Diagonal(self.values[:, active])


def test_metric_is_that_of_the_space_and_beyond_it_a_constant():
    data, rng = wide(), np.random.default_rng(1)
    space, _ = RowSpace.of(source_of(data.X), NumpyBackend(), 64)
    values, beyond = rng.uniform(1, 2, (N + 1, P, 1)), np.array([[0.5], [0.25]])
    metric = RowSpaceMetric(space, Diagonal(values), beyond)
    Q = space.lift(np.eye(N + 1)[:, :, np.newaxis])[:, :, 0]
    for p in range(P):
        within = Q @ np.diag(values[:, p, 0]) @ Q.T
        dense = within + beyond[p] * (np.eye(D + 1) - Q @ Q.T)
        assert_close(metric.apply(data.params)[:, p], dense @ data.params[:, p], 1e-12)
    chosen = metric.select(np.array([1]))
    assert_close(chosen.apply(data.params[:, 1:]), metric.apply(data.params)[:, 1:], 1e-12)


class TestFit:
    def test_is_the_fit_without_a_space(self, monkeypatch):
        data = wide(weights="each")
        solution, _ = fit(data, C=(1.0, 10.0), tol=1e-10)
        without_spaces(monkeypatch)
        plain, _ = fit(data, C=(1.0, 10.0), tol=1e-10)
        assert (solution.status == Status.CONVERGED).all()
        assert_close(solution.params, plain.params, 1e-6)
        assert_close(solution.value, plain.value, 1e-12)
        assert solution.gradient.shape == plain.gradient.shape

    @pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
    def test_value_and_gradient_are_those_of_x(self, dtype):
        rng = np.random.default_rng(0)
        X, y = rng.normal(size=(60, 400)).astype(dtype), rng.integers(0, 3, 60)
        clf = gs.SoftmaxRegression(C=0.1).fit(X, y)
        loss, grad_W, grad_b = gs.loss_and_gradient(X.astype(float), y, clf.coef_.T.astype(float), clf.intercept_)
        grad_W += clf.coef_.T / (0.1 * 60)
        value = loss + (clf.coef_.astype(float) ** 2).sum() / (2 * 0.1 * 60)
        tolerance = 1e-6 if dtype == FLOAT32 else 1e-12
        assert clf.objective_ == pytest.approx(value, rel=tolerance)
        assert clf.gradient_norm_ == pytest.approx(max(abs(grad_W).max(), abs(grad_b).max()), abs=tolerance)

    def test_steps_are_limited_in_all(self):
        data = wide()
        for max_iter in (0, 1, 3):
            solution, _ = fit(data, C=(1.0, 100.0), max_iter=max_iter)
            assert (solution.n_iter == max_iter).all()
            assert (solution.status == Status.ITERATION_LIMIT).all()

    def test_a_problem_at_its_limit_takes_no_steps_from_others(self, monkeypatch):
        data, lift, lifted = wide(), RowSpace.lift, []

        def blurred(self, params):
            lifted.append(lift(self, params))
            if len(lifted) == 1:  # the solution, which X finds wanting then
                lifted[0][3, 0] += [1e-3, -1e-3, 0]
            return lifted[-1]

        monkeypatch.setattr(RowSpace, "lift", blurred)
        solution, _ = fit(data, C=(0.01, 1e6), max_iter=25)
        np.testing.assert_array_equal(solution.status, [Status.CONVERGED, Status.ITERATION_LIMIT])
        assert solution.n_iter[0] < solution.n_iter[1] == 25

    def test_a_better_start_is_worth_its_steps(self):
        data = wide()
        solution, _ = fit(data, C=(1.0, 10.0))
        beyond = np.linalg.svd(data.X)[2][-1]  # moves no logits
        start = solution.params + np.append(beyond, 0)[:, np.newaxis, np.newaxis] * np.array([1.0, 2.0, -3.0])
        again, _ = fit(data, C=(1.0, 10.0), start=start)
        assert_close(again.params, solution.params, 1e-6)
        assert (again.n_iter <= 1).all()

    def test_callbacks_hear_of_params_of_x(self):
        rng = np.random.default_rng(0)
        X, y, heard = rng.normal(size=(60, 400)) + 1000, rng.integers(0, 3, 60), []
        source = ArraySource(X, y, None, FLOAT64)
        options = training.Training(np.array([1.0]), 3), source, training.LBFGS(tol=1e-6), NumpyBackend()

        def hear(progress, center):
            params = progress.copy_params()
            assert params.shape == (401, 1, 3)
            difference = objective(X - center, y, params) - progress.values[0]
            heard.append((progress.n_evaluations, progress.n_passes, difference))
            return len(heard) == stop_after

        stop_after = None
        solution, _ = training.train(*options, callback=hear)
        counts = np.array(heard)
        assert (np.diff(counts[:, 1]) >= 0).all()
        assert counts[-1, 1] == solution.n_passes[0]
        assert_close(counts[:, 2], np.zeros(len(counts)), 1e-9, scale=1.0)
        stop_after = len(heard) + 3
        stopped, center = training.train(*options, callback=hear)
        assert stopped.status == Status.STOPPED
        assert len(heard) == stop_after
        assert_close(objective(X - center, y, stopped.params), stopped.value[0], 1e-9)


def objective(X, y, params):
    loss, *_ = gs.loss_and_gradient(X, y, params[:-1, 0], params[-1, 0])
    return loss + (params[:-1] ** 2).sum() / (2 * len(X))
