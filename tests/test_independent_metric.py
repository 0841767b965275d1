import numpy as np
import pytest
from oracle import FLOAT32, FLOAT64, assert_close

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.independent_metric import diagonal_metric, independent_metric
from gpusoftmax.preconditioner import kronecker_metric

P, D, K = 3, 4, 5
STRENGTH = np.array([0.3, 0.02, 1.0])


def made(seed=0):
    """Return grams, class curvature alike in all directions, and total weights."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(P, 50, D + 1))
    X[:, :, -1] = 1
    total = rng.uniform(10, 60, P)
    classes = np.stack([t * 0.1 * (np.eye(K) - 1 / K) for t in total])
    gram = 0.4 * X.transpose(0, 2, 1) @ X * (total / 50)[:, np.newaxis, np.newaxis]
    gram *= (np.trace(classes, axis1=1, axis2=2) / gram[:, -1, -1])[:, np.newaxis, np.newaxis]
    return gram, classes, total


def gradients(seed=1):
    g = np.random.default_rng(seed).normal(size=(D + 1, P, K))
    return g - g.mean(axis=2, keepdims=True)


def scales(*values):
    return np.tile(np.array([*values])[:, np.newaxis], (P, 1, 1))


@pytest.mark.parametrize("scale", [scales(1, 1, 1, 1, 1), scales(4.0, 0.25, 1, 2, 1)])
def test_it_is_the_kronecker_metric_of_each_problem(scale):
    gram, classes, total = made()
    metric = independent_metric(
        NumpyBackend(), gram * scale * scale.transpose(0, 2, 1), classes, total, STRENGTH, scale, precision=2e-16
    )
    g = gradients()
    actual = metric.apply(g)
    for p in range(P):
        one = kronecker_metric(
            *(NumpyBackend(), gram[p].copy(), classes[[p]], total[[p]], STRENGTH[[p]], np.ones(D)),
            has_intercept=True,
            precision=2e-16,
            n_passes=1,
        )
        assert_close(actual[:, p], one.apply(g[:, [p]])[:, 0], 1e-8)


def test_it_inverts_the_hessian_where_classes_are_alike():
    gram, classes, total = made()
    metric = independent_metric(NumpyBackend(), gram, classes, total, STRENGTH, scales(1, 1, 1, 1, 1), precision=2e-16)
    g = gradients()
    d = metric.apply(g)
    R = np.diag([1.0] * D + [0.0])
    for p in range(P):
        A = gram[p] / gram[p, -1, -1]
        assert_close(A @ d[:, p] @ (classes[p] / total[p]) + STRENGTH[p] * R @ d[:, p], g[:, p], 1e-7)


def test_a_diagonal_metric_inverts_the_mean_diagonal_of_centred_features():
    gram, _, total = made()
    corner, mean = gram[:, -1:, -1], gram[:, :-1, -1] / gram[:, -1:, -1]
    squares = np.diagonal(gram, axis1=1, axis2=2).copy()
    hessian = squares / (total * (K - 1))[:, np.newaxis]
    hessian[:, :-1] -= mean**2 * corner / (total * (K - 1))[:, np.newaxis]
    hessian[:, :-1] += STRENGTH[:, np.newaxis]
    scale = scales(2.0, 1, 0.5, 1, 1)
    scaled = squares * scale[:, :, 0] ** 2, gram[:, :, -1] * scale[:, :, 0]
    d = diagonal_metric(NumpyBackend(), *scaled, K, total, STRENGTH, scale, precision=2e-16).apply(gradients())
    for p in range(P):
        to_centred = np.eye(D + 1)
        to_centred[:-1, -1] = -mean[p]
        dense = to_centred.T @ np.diag(1 / hessian[p]) @ to_centred
        assert_close(d[:, p], dense @ gradients()[:, p], 1e-13)


@pytest.mark.parametrize("make", ["diagonal", "full"])
def test_without_an_intercept_it_has_no_step(make):
    gram, classes, total = made()
    gram[:, -1] = gram[:, :, -1] = 0
    scale = scales(1, 1, 1, 1, 0.0)
    if make == "diagonal":
        sums = np.diagonal(gram, axis1=1, axis2=2).copy()
        metric = diagonal_metric(NumpyBackend(), sums, gram[:, -1], K, total, STRENGTH, scale, precision=2e-16)
    else:
        metric = independent_metric(NumpyBackend(), gram, classes, total, STRENGTH, scale, precision=2e-16)
    d = metric.apply(gradients())
    assert (d[-1] == 0).all()
    assert np.isfinite(d).all()
    assert (d[:-1] != 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_a_gram_that_is_none_leaves_other_problems_theirs(value, dtype):
    gram, classes, total = (part.astype(dtype) for part in made())
    arguments = classes, total, STRENGTH, scales(1, 1, 1, 1, 1)
    precision = float(np.finfo(dtype).eps)
    g = gradients().astype(dtype)
    expected = independent_metric(NumpyBackend(), gram.copy(), *arguments, precision=precision).apply(g)
    gram[1, 0, 1] = gram[1, 1, 0] = value * 1e3
    actual = independent_metric(NumpyBackend(), gram, *arguments, precision=precision).apply(g)
    np.testing.assert_array_equal(actual[:, [0, 2]], expected[:, [0, 2]])
    assert np.isfinite(actual[:, 1]).all()
    assert ((actual * g)[:, 1].sum() > 0).all()
