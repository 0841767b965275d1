import numpy as np
import pytest
from oracle import assert_close

import gpusoftmax.solvers.pairs
from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.solvers.pairs import PER_PROBLEM, Pairs, without_holes


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


def filled(n_problems=3, n_pairs=4, n_params=6, n_steps=7):
    """Return pairs of quadratics of their own, of which only some pushed every time, and the Hessians."""
    rng = np.random.default_rng(2)
    A = rng.normal(size=(n_problems, n_params, n_params))
    H = A @ A.transpose(0, 2, 1) + np.eye(n_params)
    pairs = empty(n_problems, n_pairs, n_params)
    for i in range(n_steps):
        for p in range(n_problems):
            if (i + p) % (p + 1) == 0:
                s = rng.normal(size=n_params)
                push(pairs, p, s, H[p] @ s, H[p] @ s)
    return pairs, H


def test_revised_pairs_are_those_of_the_other_functions():
    pairs, H = filled()
    more = np.linspace(-0.4, 3.0, 6)
    pairs.revise(lambda s, y: (s, y + more * s))
    g = np.random.default_rng(3).normal(size=(3, 6))
    pairs.change_metric(lambda rows: 0.5 * rows)
    actual = inverse_hessian(pairs, g, 0.5 * g)
    for p in range(3):
        order = [slot for slot in np.argsort(pairs.age[p]) if pairs.age[p, slot]]
        kept = [(s, (H[p] + np.diag(more)) @ s) for s in pairs.S_HY[p, order, 0]]
        scale = 0.5 * pairs.metric_scale()[p]
        assert_close(actual[p], two_loop(kept, g[p], lambda row, scale=scale: scale * row), 1e-10)


def test_a_pair_goes_that_has_next_to_no_curvature_left():
    pairs = empty(1, 3, 2)
    push(pairs, 0, np.array([1.0, 0.0]), np.array([2.0, 0.0]), np.array([2.0, 0.0]))
    push(pairs, 0, np.array([0.0, 1.0]), np.array([0.0, 2.0]), np.array([0.0, 2.0]))
    pairs.revise(lambda s, y: (s, y - np.array([1.999, 1.0]) * s))
    assert sorted(pairs.age[0].tolist()) == [0, 0, 0, 2]
    assert_close(pairs.Y.sum(axis=(0, 1)), [0.0, 1.0], 1e-15)
    pairs.change_metric(lambda rows: rows)
    assert_close(inverse_hessian(pairs, np.ones((1, 2)), np.ones((1, 2)))[0], [1.0, 1.0], 1e-14)


@pytest.mark.parametrize("piece", [7, 1 << 16])
def test_selected_pairs_share_memory_and_return_to_their_places(piece, monkeypatch):
    monkeypatch.setattr(gpusoftmax.solvers.pairs, "PIECE", piece)
    pairs, _ = filled()
    copies = {name: getattr(pairs, name).copy() for name in PER_PROBLEM}
    kept = without_holes(np.array([False, True, True]))
    assert kept.tolist() == [2, 1]
    chosen = pairs.select(kept)
    assert np.shares_memory(chosen.Y, pairs.Y)
    for name, copy in copies.items():
        np.testing.assert_array_equal(getattr(chosen, name), copy[kept], err_msg=name)
    last = chosen.select(without_holes(np.array([False, True])))
    np.testing.assert_array_equal(last.Y, copies["Y"][kept[1:]])
    pairs.in_first_order()
    for name, copy in copies.items():
        np.testing.assert_array_equal(getattr(pairs, name), copy, err_msg=name)


@pytest.mark.parametrize("kept", [[0, 1], [1, 2], [2, 0], [1]])
def test_only_some_pairs_are_whole_again(kept):
    pairs, _ = filled()
    copies = {name: getattr(pairs, name).copy() for name in PER_PROBLEM}
    pairs.select(without_holes(np.array([False, True, True])))
    some = pairs.only(np.array(kept))
    some.select(without_holes(np.arange(len(kept)) > 0))
    some.in_first_order()
    for name, copy in copies.items():
        np.testing.assert_array_equal(getattr(some, name), copy[kept], err_msg=name)


@pytest.mark.parametrize(
    ("is_kept", "kept"),
    [("1111", [0, 1, 2, 3]), ("0111", [3, 1, 2]), ("1100", [0, 1]), ("0101", [3, 1]), ("0000", []), ("0011", [2, 3])],
)
def test_holes_are_filled_from_the_end(is_kept, kept):
    assert without_holes(np.array([mark == "1" for mark in is_kept])).tolist() == kept
