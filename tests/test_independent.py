"""The objective of independent problems and its kernels, against the reference problem by problem."""

import numpy as np
import pytest
from oracle import FLOAT32, FLOAT64, ROUNDING, assert_close, target_rows

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.independent import IndependentObjective
from gpusoftmax.independent_metric import IndependentMetric
from gpusoftmax.kernels import independent, reference
from gpusoftmax.kernels.independent import IndependentRows

P, N, D, K = 3, 23, 4, 5


def made(*, targets="labels", weighted=True, smoothing=0.0, dtype=FLOAT64, seed=0):
    """Return rows, and params (D + 1, P, K), as float32 can hold them."""
    rng = np.random.default_rng(seed)
    X = np.ones((P, D + 1, N))
    X[:, :-1] = rng.normal(size=(P, D, N)).astype(np.float32)
    labels = rng.integers(K, size=(P, N))
    t = labels
    if targets == "soft":
        t = rng.multinomial(16, np.full(K, 1 / K), size=(P, N)) / 16
        t = np.stack([target_rows(each, K, smoothing) for each in t]).transpose(2, 0, 1).astype(dtype)
    weights = rng.integers(0, 5, (P, N)).astype(dtype) if weighted else None
    params = rng.normal(size=(D + 1, P, K)).astype(np.float32)
    return IndependentRows(np, X.astype(dtype), t, weights, None), params.astype(dtype)


def alone(rows, p):
    """Return X, targets and weights of one problem, as the reference takes them."""
    X = rows.X[p, :-1].T.astype(float)
    weights = np.ones((N, 1)) if rows.weights is None else rows.weights[p][:, np.newaxis].astype(float)
    targets = rows.targets[p] if rows.targets.ndim == 2 else rows.targets[:, p].T
    return X, targets, weights


def objective(rows, strength=(0.1, 0.5, 0.0), n_factored=2):
    total = np.full(P, float(N)) if rows.weights is None else rows.weights.sum(axis=1, dtype=float)
    scale = np.ones((P, D + 1, 1))
    scale[:, 1] = 0.5
    return IndependentObjective(NumpyBackend(), rows, total, np.array(strength), scale, n_factored)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("targets", "smoothing"), [("labels", 0.0), ("soft", 0.0), ("soft", 0.3)])
def test_pass_equals_the_reference(targets, smoothing, weighted, dtype):
    rows, params = made(targets=targets, weighted=weighted, smoothing=smoothing, dtype=dtype)
    loss, gradient = independent.loss_and_gradient(rows, np.ascontiguousarray(params.transpose(1, 0, 2)))
    for p in range(P):
        X, t, weights = alone(rows, p)
        expected = reference.loss_and_gradient(X, t, weights, params[:, [p]].astype(float))
        assert_close(loss[p], expected[0][0], 4 * ROUNDING[dtype])
        assert_close(gradient[p], expected[1][:, 0], 4 * ROUNDING[dtype])


def test_a_sure_model_loses_no_digit():
    rows, _ = made(weighted=False)
    sure = np.zeros((P, D + 1, K))
    sure[:, -1, 2] = 60.0
    rows.targets[:] = 2
    loss, gradient = independent.loss_and_gradient(rows, sure)
    assert_close(loss, np.full(P, N * (K - 1) * np.exp(-60.0)), 1e-14)
    assert_close(gradient[:, -1, 2], np.full(P, -N * (K - 1) * np.exp(-60.0)), 1e-14)


def test_a_class_that_a_problem_lacks_has_no_part_in_it():
    rows, params = made()
    rows.targets[1] %= 3
    absence = np.zeros((K, P, 1))
    absence[3:, 1] = -1e30
    W = np.ascontiguousarray(params.transpose(1, 0, 2))
    lacking = IndependentRows(np, rows.X, rows.targets, rows.weights, absence)
    loss, gradient = independent.loss_and_gradient(lacking, W)
    X, t, weights = alone(rows, 1)
    expected = reference.loss_and_gradient(X, t, weights, params[:, [1], :3])
    assert_close(loss[1], expected[0][0], 1e-13)
    assert_close(gradient[1, :, :3], expected[1][:, 0], 1e-13)
    assert (gradient[1, :, 3:] == 0).all()


@pytest.mark.parametrize("weighted", [True, False])
def test_curvature_equals_the_reference(weighted):
    rows, params = made(weighted=weighted)
    scale = np.array([1.0, 0.5, 2.0, 1.0, 1.0])
    W, scales = np.ascontiguousarray(params.transpose(1, 0, 2)), np.tile(scale[:, np.newaxis], (P, 1, 1))
    gram, classes = independent.curvature(rows, W, scales)
    diagonal, column = independent.diagonal_curvature(rows, W, scales)
    for p in range(P):
        X, _, weights = alone(rows, p)
        expected = reference.curvature(X, weights, params[:, [p]])
        assert_close(gram[p], scale * expected[0] * scale[:, np.newaxis], 1e-13)
        assert_close(classes[p], expected[1][0], 1e-13)
        assert_close(diagonal[p], np.diagonal(gram[p]), 1e-13)
        assert_close(column[p], gram[p][:, -1], 1e-13)


def test_gradient_is_that_of_the_value():
    rows, params = made()
    f = objective(rows)
    value, gradient = f.value_and_grad(params)
    step = 1e-6
    for d in range(D + 1):
        for k in range(K):
            moved = np.zeros_like(params)
            moved[d, :, k] = step
            slope = (f.value_and_grad(params + moved)[0] - f.value_and_grad(params - moved)[0]) / (2 * step)
            assert_close(gradient[d, :, k], slope, 1e-7)
    W = params[:-1, 0]
    X, t, weights = alone(rows, 0)
    loss, _ = reference.loss_and_gradient(X, t, weights, params[:, [0]])
    assert_close(value[0], loss[0] / weights.sum() + 0.05 * (W**2).sum(), 1e-13)


def test_select_takes_all_of_a_problem():
    rows, params = made(targets="soft")
    f, kept = objective(rows), np.array([2, 0])
    some = f.select(kept)
    value, gradient = f.value_and_grad(params)
    assert_close(some.value_and_grad(params[:, kept])[0], value[kept], 1e-14)
    for is_rough in (True, False):
        expected = f.metric(params, is_rough=is_rough).apply(gradient)[:, kept]
        assert_close(some.metric(params[:, kept], is_rough=is_rough).apply(gradient[:, kept]), expected, 1e-13)
        selected = f.metric(params, is_rough=is_rough).select(kept)
        assert_close(selected.apply(gradient[:, kept]), expected, 1e-13)


@pytest.mark.parametrize("n_factored", [1, 2, 3, 50])
def test_factors_do_not_depend_on_how_many_are_made_together(n_factored):
    rows, params = made()
    _, gradient = objective(rows).value_and_grad(params)
    made_alone = objective(rows, n_factored=1).metric(params).apply(gradient)
    assert_close(objective(rows, n_factored=n_factored).metric(params).apply(gradient), made_alone, 1e-14)


def test_without_room_for_factors_every_metric_is_diagonal():
    rows, params = made()
    assert not isinstance(objective(rows, n_factored=0).metric(params), IndependentMetric)
