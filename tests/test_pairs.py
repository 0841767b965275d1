import numpy as np
import pytest
from oracle import assert_close

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.solvers.pairs import Pairs


def two_loop(pairs, g, apply_metric):
    """Return H g by the recursion of Nocedal (1980), oldest pair first in `pairs`."""
    q, a = g.copy(), []
    for s, y in reversed(pairs):
        a.append((s @ q) / (s @ y))
        q -= a[-1] * y
    r = apply_metric(q)
    for (s, y), coefficient in zip(pairs, reversed(a), strict=True):
        r += s * (coefficient - (y @ r) / (s @ y))
    return r


def push(pairs, problem, s, y, Hy):
    """Add a pair of one problem; the other problems' candidates stay candidates."""
    n_problems, _, n_params = pairs.Y.shape
    point = np.zeros((3, n_problems, n_params))
    point[:, problem] = s, y, Hy
    pairs.hold(point, np.zeros_like(point))
    pairs.accept(np.arange(n_problems) == problem, pairs.products(point[1]))


def inverse_hessian(pairs, g, Hg):
    """Return each problem's inverse Hessian times g, given the metric times g."""
    products = pairs.products(g)
    a, b, c = pairs.coefficients(products.Sg, products.YHg)
    c = c[:, np.newaxis]
    return c * Hg + pairs.combine(c * a, b)


def empty(n_problems, n_pairs, n_params):
    return Pairs.empty(NumpyBackend(), n_problems, n_pairs, n_params, np.dtype(float))


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 3), (5, 2), (5, 12), (6, 23)])
@pytest.mark.parametrize("change", [False, True])
def test_inverse_hessian_equals_the_two_loop_recursion(change, counts):
    rng = np.random.default_rng(0)
    n_pairs, n_params = 5, 9
    pairs = empty(2, n_pairs, n_params)
    kept = [[], []]
    A = rng.normal(size=(n_params, n_params))
    H = A @ A.T + np.eye(n_params)
    g, diagonal = rng.normal(size=(2, n_params)), rng.uniform(0.5, 2, n_params)
    for problem, count in enumerate(counts):
        for _ in range(count):
            s = rng.normal(size=n_params)
            y = H @ s + 0.1 * rng.normal(size=n_params)
            push(pairs, problem, s, y, y * diagonal)
            kept[problem] = [*kept[problem], (s, y)][-n_pairs:]
    if change:
        diagonal = rng.uniform(0.5, 2, n_params)
        pairs.change_metric(lambda rows: rows * diagonal)
    actual = inverse_hessian(pairs, g, g * diagonal)
    scale = pairs.metric_scale()
    for problem in range(2):
        initial = scale[problem] * diagonal
        expected = two_loop(kept[problem], g[problem], lambda row, initial=initial: row * initial)
        assert_close(actual[problem], expected, 1e-10)


def test_metric_scale_is_the_root_of_the_newest_curvature():
    pairs = empty(2, 3, 4)
    for factor in (1.0, 7.0, 2.0, 0.25, 9.0):
        s = np.array([1.0, 2.0, 0.0, -1.0])
        push(pairs, 0, s, factor * s, 2 * factor * s)  # sᵀy / yᵀHy = 1 / (2 · factor) for H = 2
    assert_close(pairs.metric_scale(), [(2 * 9.0) ** -0.5, 1.0], 1e-13)


def test_the_newest_pair_satisfies_its_secant_equation():
    rng = np.random.default_rng(1)
    pairs = empty(1, 4, 6)
    for _ in range(7):
        s = rng.normal(size=6)
        y = s * np.arange(1.0, 7.0)
        push(pairs, 0, s, y, y)
    assert_close(inverse_hessian(pairs, y[np.newaxis], y[np.newaxis])[0], s, 1e-10)


def test_forget():
    rng = np.random.default_rng(1)
    pairs = empty(2, 4, 6)
    for problem in (0, 1):
        s = rng.normal(size=6)
        push(pairs, problem, s, 2 * s, 2 * s)
    g = rng.normal(size=(2, 6))
    before = inverse_hessian(pairs, g, g)
    pairs.forget(np.array([0]))
    after = inverse_hessian(pairs, g, g)
    np.testing.assert_array_equal(after[0], g[0])
    np.testing.assert_array_equal(after[1], before[1])
