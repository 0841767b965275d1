"""Check every numbered identity of docs/derivation.md, symbolically for small sizes and in floating point.

The formulas are written out here, from the page: nothing of the package is imported, so a slip in a kernel
cannot hide behind the same slip in its specification. `@checks("D3")` says which identities a test checks;
the last tests compare those numbers with the page.
"""

import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

PAGE = Path(__file__).parents[1] / "docs" / "derivation.md"
CHECKED = set()

CLOSE = 1e-10  # relative, for complex-step derivatives, which have no cancellation
ROUNDING = 1e-13  # absolute, for eigenvalues and identities of float64 numbers near 1
STEP = 1e-30


def checks(*labels):
    def record(test):
        assert test.__name__.startswith("test_"), f"{test.__name__} would not be collected"
        CHECKED.update(labels)
        return test

    return record


def assert_close(actual, expected, tolerance=CLOSE):
    """Compare arrays of one shape, relative to the largest entry expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(np.abs(expected).max(), np.finfo(float).tiny)


# The formulas in floating point: holomorphic, so that a complex step passes through them.


def log_sum_exp(Z):
    m = Z.real.max(axis=-1, keepdims=True)
    return m + np.log(np.exp(Z - m).sum(axis=-1, keepdims=True))


def softmax(Z):
    return np.exp(Z - log_sum_exp(Z))


def row_losses(Z, T):
    return (T * (log_sum_exp(Z) - Z)).sum(axis=-1)


def mean_loss(X, W, b, T, s):
    return (s * row_losses(X @ W + b, T)).sum() / s.sum()


def mean_gradient(X, W, b, T, s):
    G = s[:, None] * (softmax(X @ W + b) - T)
    return X.T @ G / s.sum(), G.sum(axis=0) / s.sum()


def complex_step(function, point):
    """Derivative of `function` by each entry of `point`, on new last axes of the shape of `point`."""
    slopes = []
    for index in range(point.size):
        moved = point.astype(complex)
        moved.flat[index] += STEP * 1j
        slopes.append(np.imag(function(moved)) / STEP)
    return np.stack(slopes, axis=-1).reshape(np.shape(slopes[0]) + point.shape)


def random_problem(seed, n_rows=11, n_features=3, n_classes=4):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, n_features))
    W = rng.normal(size=(n_features, n_classes))
    b = rng.normal(size=n_classes)
    T = rng.dirichlet(np.ones(n_classes), size=n_rows)
    s = rng.uniform(0.2, 3.0, size=n_rows)
    s[0] = 0.0
    return X, W, b, T, s


def one_row(seed, n_classes=4):
    X, W, b, T, _ = random_problem(seed, n_rows=1, n_classes=n_classes)
    return X[0], W, b, T[0]


seeds = pytest.mark.parametrize("seed", range(3))
classes = pytest.mark.parametrize("n_classes", [2, 3])
features = pytest.mark.parametrize("n_features", [1, 2])


# The formulas in symbols.


def symbols(name, *shape):
    """Matrix of real symbols; a vector is a column."""
    rows, columns = (*shape, 1)[:2]
    return sp.Matrix(rows, columns, lambda i, j: sp.Symbol(f"{name}_{i}_{j}", real=True))


def symbolic_softmax(z):
    total = sum(sp.exp(entry) for entry in z)
    return z.applyfunc(lambda entry: sp.exp(entry) / total)


def symbolic_loss(z, t):
    return -sum(target * sp.log(y) for target, y in zip(t, symbolic_softmax(z), strict=True))


def simplex(name, n_classes):
    """Column of symbols that sums to one."""
    free = symbols(name, n_classes - 1)
    return sp.Matrix([*free, 1 - sum(free)])


def gradient(scalar, point):
    return point.applyfunc(lambda entry: sp.diff(scalar, entry))


def assert_zero(expression):
    """Bring to one fraction and expand its numerator: exact for rational functions of exponentials."""
    for entry in expression if isinstance(expression, sp.MatrixBase) else [expression]:
        assert sp.expand(sp.numer(sp.together(entry))) == 0


# 2 to 5: softmax, loss, Jacobian, chain rule


@checks("D1")
@classes
def test_a_constant_added_to_all_logits_changes_nothing(n_classes):
    z, c = symbols("z", n_classes), sp.Symbol("c", real=True)
    assert_zero(symbolic_softmax(z + c * sp.ones(n_classes, 1)) - symbolic_softmax(z))
    Z = np.random.default_rng(0).normal(size=(5, n_classes))
    assert_close(softmax(Z + 700.0), softmax(Z), tolerance=1e-12)


@checks("D2")
@classes
def test_log_probability_from_the_shifted_log_sum_exp(n_classes):
    z, m = symbols("z", n_classes), sp.Symbol("m", real=True)
    shifted = sp.exp(m) * sum(sp.exp(entry - m) for entry in z)
    assert_zero(shifted - sum(sp.exp(entry) for entry in z))
    for entry, y in zip(z, symbolic_softmax(z), strict=True):
        assert_zero(sp.exp(entry) / shifted - y)


@checks("D2")
@pytest.mark.parametrize("offset", [0.0, -1e4, 1e4, 1e300])
def test_log_sum_exp_stays_in_range(offset):
    assert log_sum_exp(np.full((1, 5), offset)) == pytest.approx(offset + np.log(5), rel=1e-15)


@checks("D3")
@classes
def test_loss_falls_as_the_target_probability_rises(n_classes):
    y, t = sp.symbols(f"y:{n_classes}", positive=True), symbols("t", n_classes)
    loss = -sum(target * sp.log(entry) for target, entry in zip(t, y, strict=True))
    for target, entry in zip(t, y, strict=True):
        assert_zero(sp.diff(loss, entry) - (-target / entry))
    probabilities = softmax(np.random.default_rng(1).normal(size=n_classes))
    targets = np.linspace(0.3, 0.7, n_classes)
    slopes = complex_step(lambda p: -(targets * np.log(p)).sum(), probabilities)
    assert_close(slopes, -targets / probabilities)
    assert (slopes < 0).all()


@checks("D4")
@classes
def test_softmax_jacobian(n_classes):
    z = symbols("z", n_classes)
    y = symbolic_softmax(z)
    assert_zero(y.jacobian(z) - sp.Matrix(n_classes, n_classes, lambda k, j: y[k] * (int(k == j) - y[j])))
    point = np.random.default_rng(2).normal(size=n_classes)
    p = softmax(point)
    assert_close(complex_step(softmax, point), np.diag(p) - np.outer(p, p))


@checks("D5")
@classes
def test_chain_rule_for_targets_of_any_sum(n_classes):
    z, t = symbols("z", n_classes), symbols("t", n_classes)
    y = symbolic_softmax(z)
    direct = gradient(symbolic_loss(z, t), z)
    for j in range(n_classes):
        chained = sum(-t[k] / y[k] * y[k] * (int(k == j) - y[j]) for k in range(n_classes))
        assert_zero(chained - (y[j] * sum(t) - t[j]))
        assert_zero(direct[j] - chained)


@checks("D6")
@classes
def test_logit_gradient_needs_targets_that_sum_to_one(n_classes):
    z, t = symbols("z", n_classes), simplex("t", n_classes)
    assert_zero(gradient(symbolic_loss(z, t), z) - (symbolic_softmax(z) - t))
    tau = 1.7
    Z, T = np.random.default_rng(3).normal(size=n_classes), np.linspace(1, 2, n_classes)
    T = T / T.sum()
    slopes = complex_step(lambda v: row_losses(v, tau * T), Z)
    assert_close(slopes, tau * (softmax(Z) - T))
    assert np.abs(slopes - (softmax(Z) - tau * T)).max() > 0.1


# 6 and 7: params, rows, weights, smoothing, penalty


@checks("D7")
@classes
@features
def test_one_row_gradient_is_an_outer_product(n_classes, n_features):
    x, W, b = symbols("x", n_features), symbols("W", n_features, n_classes), symbols("b", n_classes)
    t = simplex("t", n_classes)
    z = W.T * x + b
    loss, y = symbolic_loss(z, t), symbolic_softmax(z)
    assert_zero(gradient(loss, b) - (y - t))
    assert_zero(gradient(loss, W) - x * (y - t).T)


@checks("D8")
@classes
def test_sum_over_rows_is_a_matrix_product(n_classes):
    X, W, b = symbols("x", 2, 1), symbols("W", 1, n_classes), symbols("b", n_classes)
    T = sp.Matrix.vstack(simplex("t", n_classes).T, simplex("u", n_classes).T)
    rows = [(X[i, :] * W + b.T).T for i in range(2)]
    loss = sum(symbolic_loss(z, T[i, :]) for i, z in enumerate(rows))
    residual = sp.Matrix.vstack(*(symbolic_softmax(z).T for z in rows)) - T
    assert_zero(gradient(loss, b).T - sp.ones(1, 2) * residual)
    assert_zero(gradient(loss, W) - X.T * residual)


@checks("D7", "D8", "D9")
@seeds
@pytest.mark.parametrize("n_rows", [1, 2, 11])
def test_gradient_of_the_weighted_mean(seed, n_rows):
    X, W, b, T, s = random_problem(seed, n_rows)
    s[0] = 0.7
    grad_W, grad_b = mean_gradient(X, W, b, T, s)
    assert_close(complex_step(lambda v: mean_loss(X, v, b, T, s), W), grad_W)
    assert_close(complex_step(lambda v: mean_loss(X, W, v, T, s), b), grad_b)


@checks("D9")
def test_weights_and_their_sum_in_symbols():
    X, W, b, T = symbols("x", 2, 1), symbols("W", 1, 2), symbols("b", 2), sp.eye(2)
    s, total = sp.symbols("s:2", positive=True), sp.Symbol("S", positive=True)
    rows = [(X[i, :] * W + b.T).T for i in range(2)]
    loss = sum(s[i] * symbolic_loss(z, T[i, :]) for i, z in enumerate(rows)) / total
    G = sp.diag(*s) * (sp.Matrix.vstack(*(symbolic_softmax(z).T for z in rows)) - T)
    assert_zero(gradient(loss, W) - X.T * G / total)
    assert_zero(gradient(loss, b).T - sp.ones(1, 2) * G / total)


@checks("D10")
@seeds
def test_weights_are_repetition(seed):
    X, W, b, T, _ = random_problem(seed)
    r = np.random.default_rng(seed).integers(0, 4, size=len(X))
    r[:2] = 0, 3
    repeated_X, repeated_T = np.repeat(X, r, axis=0), np.repeat(T, r, axis=0)
    ones = np.ones(r.sum())
    assert_close(mean_loss(X, W, b, T, r), mean_loss(repeated_X, W, b, repeated_T, ones), tolerance=1e-13)
    weighted, repeated = mean_gradient(X, W, b, T, r), mean_gradient(repeated_X, W, b, repeated_T, ones)
    for actual, expected in zip(weighted, repeated, strict=True):
        assert_close(actual, expected, tolerance=1e-13)


@checks("D11")
@classes
def test_label_smoothing_is_a_soft_target(n_classes):
    z, t, epsilon = symbols("z", n_classes), simplex("t", n_classes), sp.Symbol("epsilon", positive=True)
    uniform = sp.ones(n_classes, 1) / n_classes
    smoothed = (1 - epsilon) * t + epsilon * uniform
    mixture = (1 - epsilon) * symbolic_loss(z, t) + epsilon * symbolic_loss(z, uniform)
    assert sp.expand(sum(smoothed)) == 1
    assert sp.expand(symbolic_loss(z, smoothed) - mixture) == 0
    assert_zero(gradient(symbolic_loss(z, smoothed), z) - (symbolic_softmax(z) - smoothed))


@checks("D11")
@seeds
def test_label_smoothing_in_numbers(seed):
    X, W, b, _, s = random_problem(seed)
    epsilon, T = 0.1, np.eye(4)[np.arange(len(X)) % 4]
    smoothed = (1 - epsilon) * T + epsilon / 4
    slopes = complex_step(lambda v: mean_loss(X, W, v, smoothed, s), b)
    assert_close(slopes, s @ (softmax(X @ W + b) - smoothed) / s.sum())


@checks("D12")
@seeds
def test_penalty_leaves_the_intercept_free(seed):
    X, W, b, T, s = random_problem(seed)
    strength = 0.3
    grad_W, grad_b = mean_gradient(X, W, b, T, s)

    def objective(W, b):
        return mean_loss(X, W, b, T, s) + strength / 2 * (W * W).sum()

    assert_close(complex_step(lambda v: objective(v, b), W), grad_W + strength * W)
    assert_close(complex_step(lambda v: objective(W, v), b), grad_b)


@checks("D12")
@classes
@features
def test_penalty_gradient_in_symbols(n_classes, n_features):
    W, strength = symbols("W", n_features, n_classes), sp.Symbol("strength", positive=True)
    assert_zero(gradient(strength / 2 * sum(entry**2 for entry in W), W) - strength * W)


@checks("D13")
@seeds
@pytest.mark.parametrize("C", [1e-3, 1.0, 50.0])
def test_objective_of_scikit_learn_is_a_multiple_of_ours(seed, C):
    X, W, b, T, s = random_problem(seed)
    S, penalty = s.sum(), (W * W).sum() / 2
    theirs = C * (s * row_losses(X @ W + b, T)).sum() + penalty
    assert_close(C * S * (mean_loss(X, W, b, T, s) + penalty / (C * S)), theirs, tolerance=1e-13)


@checks("D14")
@seeds
def test_gradient_sums_to_the_penalty_over_the_classes(seed):
    X, W, b, T, s = random_problem(seed)
    strength = 0.3
    grad_W, grad_b = mean_gradient(X, W, b, T, s)
    G = s[:, None] * (softmax(X @ W + b) - T)
    assert np.abs(G.sum(axis=1)).max() < ROUNDING
    assert np.abs((grad_W + strength * W).sum(axis=1) - strength * W.sum(axis=1)).max() < ROUNDING
    assert abs(grad_b.sum()) < ROUNDING


@checks("D14")
@classes
def test_residual_sums_to_zero_in_symbols(n_classes):
    z, t = symbols("z", n_classes), simplex("t", n_classes)
    assert_zero(sum(symbolic_softmax(z) - t))


# 8: two classes


def one_column_loss(X, w, c, t, s):
    u = X @ w + c
    shift = np.maximum(u.real, 0)
    return (s * (shift + np.log(np.exp(-shift) + np.exp(u - shift)) - t * u)).sum() / s.sum()


def newton(gradient_of, params):
    """Minimise by full Newton steps, the Hessian by complex step, its null space left alone."""
    for _ in range(12):
        params = params - np.linalg.pinv(complex_step(gradient_of, params), rcond=1e-10) @ gradient_of(params)
    return params


@checks("D15")
@features
def test_two_logits_are_one_sigmoid(n_features):
    x, W, b, t = symbols("x", n_features), symbols("W", n_features, 2), symbols("b", 2), simplex("t", 2)
    z = W.T * x + b
    u = ((W[:, 1] - W[:, 0]).T * x)[0] + b[1] - b[0]
    assert_zero(symbolic_softmax(z)[1] - 1 / (1 + sp.exp(-u)))
    one_column = sp.log(1 + sp.exp(u)) - t[1] * u
    for entry in [*W, *b]:
        assert_zero(sp.diff(symbolic_loss(z, t) - one_column, entry))


@checks("D16", "D17")
@features
def test_only_the_penalty_sees_the_split(n_features):
    v, w, strength = symbols("v", n_features), symbols("w", n_features), sp.Symbol("strength", positive=True)

    def squared(vector):
        return (vector.T * vector)[0]

    both = squared(v - w / 2) + squared(v + w / 2)
    assert_zero(both - (2 * squared(v) + squared(w) / 2))
    doubled = 2 * strength / 2 * both.subs(dict.fromkeys(v, 0))
    assert_zero(doubled - strength / 2 * squared(w))


@checks("D15", "D17")
@seeds
def test_objectives_and_gradients_agree_on_the_antisymmetric_split(seed):
    X, W, b, T, s = random_problem(seed, n_classes=2)
    w, c, strength = W[:, 1] - W[:, 0], b[1] - b[0], 0.3

    def one_column(w, c):
        return one_column_loss(X, w, c, T[:, 1], s) + strength / 2 * (w * w).sum()

    def two_columns(W, b):
        return mean_loss(X, W, b, T, s) + 2 * strength / 2 * (W * W).sum()

    W = np.stack([-w / 2, w / 2], axis=1)
    grad_w = complex_step(lambda v: one_column(v, c), w)
    grad_W = complex_step(lambda v: two_columns(v, b), W)
    grad_c = complex_step(lambda v: one_column(w, v[0]), np.array([c]))
    assert_close(two_columns(W, b), one_column(w, c), tolerance=1e-13)
    assert_close(grad_W, np.stack([-grad_w, grad_w], axis=1))
    assert_close(complex_step(lambda v: two_columns(W, v), b), np.stack([-grad_c[0], grad_c[0]]))


@checks("D14", "D16", "D17")
@seeds
def test_doubled_strength_gives_the_optimum_of_logistic_regression(seed):
    X, _, _, T, s = random_problem(seed, n_rows=23, n_classes=2)
    strength = 0.3
    n_features = X.shape[1]
    columns = np.column_stack([X, np.ones(len(X))])
    free = np.append(np.ones(n_features), 0.0)

    def one_column(params):
        sigmoid = 1 / (1 + np.exp(-columns @ params))
        return columns.T @ (s * (sigmoid - T[:, 1])) / s.sum() + strength * free * params

    def two_columns(params):
        W = params.reshape(n_features + 1, 2)
        G = s[:, None] * (softmax(columns @ W) - T)
        return (columns.T @ G / s.sum() + 2 * strength * free[:, None] * W).ravel()

    single = newton(one_column, np.zeros(n_features + 1))
    double = newton(two_columns, np.zeros(2 * n_features + 2)).reshape(n_features + 1, 2)
    assert np.abs(one_column(single)).max() < ROUNDING
    assert_close(double[:, 1] - double[:, 0], single)
    assert np.abs(double.sum(axis=1)).max() < 1e-12


@checks("D18")
@given(st.lists(st.tuples(*[st.integers(-1000, 1000)] * 2), min_size=1, max_size=5))
@settings(deadline=None)
def test_an_l1_strength_stays(pairs):
    v, w = np.array(pairs, dtype=float).T
    cost = np.abs(v - w / 2).sum() + np.abs(v + w / 2).sum()
    assert cost >= np.abs(w).sum()
    assert (cost == np.abs(w).sum()) == (np.abs(v) <= np.abs(w) / 2).all()


# 9: the Hessian, its bound, its estimate


def covariance(Y):
    """diag(y) - y yᵀ for each row of Y."""
    return Y[..., None] * np.eye(Y.shape[-1]) - Y[..., None] * Y[..., None, :]


def weighted_mean_kron(s, left, right):
    """1/S Σ_i s_i left_i ⊗ right_i, with both factors as stacks of matrices."""
    return sum(weight * np.kron(a, b) for weight, a, b in zip(s, left, right, strict=True)) / s.sum()


def augmented(X):
    return np.column_stack([X, np.ones(len(X))])


def outer_products(X):
    return X[:, :, None] * X[:, None, :]


def loss_hessian(X, W, b, s):
    return weighted_mean_kron(s, covariance(softmax(X @ W + b)), outer_products(augmented(X)))


def bound(n_classes):
    return (np.eye(n_classes) - 1 / n_classes) / 2


def smallest_eigenvalue(matrix):
    return np.linalg.eigvalsh(matrix)[0]


@checks("D19")
@classes
@features
def test_one_row_hessian_is_a_kronecker_product(n_classes, n_features):
    x, params = symbols("x", n_features), symbols("W", n_features + 1, n_classes)
    t = simplex("t", n_classes)
    row = sp.Matrix([*x, 1])
    z = params.T * row
    y = symbolic_softmax(z)
    stacked = params.T.reshape(params.rows * n_classes, 1)  # SymPy reshapes by rows: this stacks the columns
    residual = row * (y - t).T
    M = sp.diag(*y) - y * y.T
    hessian = residual.T.reshape(len(stacked), 1).jacobian(stacked)
    assert_zero(hessian - sp.kronecker_product(M, row * row.T))


@checks("D19", "D20")
@seeds
@pytest.mark.parametrize("n_rows", [1, 11])
def test_hessian_of_the_objective(seed, n_rows):
    X, W, b, T, s = random_problem(seed, n_rows)
    s[0] = 0.7
    strength, free = 0.3, np.diag([1.0, 1.0, 1.0, 0.0])

    def stacked_gradient(params):
        stacked = params.reshape(4, 4).T
        grad_W, grad_b = mean_gradient(X, stacked[:-1], stacked[-1], T, s)
        return (np.vstack([grad_W, grad_b]) + strength * free @ stacked).ravel(order="F")

    slopes = complex_step(stacked_gradient, np.vstack([W, b]).ravel(order="F"))
    assert_close(slopes, loss_hessian(X, W, b, s) + strength * np.kron(np.eye(4), free))


@checks("D21")
@classes
def test_curvature_is_a_variance(n_classes):
    v, y = symbols("v", n_classes), simplex("y", n_classes)
    mean = (v.T * y)[0]
    variance = sum(y[k] * (v[k] - mean) ** 2 for k in range(n_classes))
    assert_zero((v.T * (sp.diag(*y) - y * y.T) * v)[0] - variance)


@checks("D21")
@seeds
def test_hessian_is_positive_semidefinite(seed):
    X, W, b, _, s = random_problem(seed)
    assert smallest_eigenvalue(loss_hessian(X, W, b, s)) >= -ROUNDING


@checks("D22")
@seeds
def test_null_space_is_one_direction_per_feature_and_intercept(seed):
    X, W, b, _, s = random_problem(seed)
    n_params, n_classes = 4, 4
    H = loss_hessian(X, W, b, s)
    shared = np.kron(np.ones((n_classes, 1)), np.eye(n_params))
    assert np.abs(H @ shared).max() < ROUNDING
    assert np.linalg.matrix_rank(H, tol=1e-10) == H.shape[0] - n_params
    assert np.linalg.matrix_rank(covariance(softmax(b)), tol=1e-10) == n_classes - 1


@checks("D22")
@seeds
@pytest.mark.parametrize("n_rows", [2, 11])
def test_penalty_leaves_one_null_direction(seed, n_rows):
    X, W, b, _, s = random_problem(seed, n_rows)
    H = loss_hessian(X, W, b, s) + 0.3 * np.kron(np.eye(4), np.diag([1.0, 1.0, 1.0, 0.0]))
    assert np.abs(H @ np.tile([0.0, 0.0, 0.0, 1.0], 4)).max() < ROUNDING
    assert np.linalg.matrix_rank(H, tol=1e-10) == H.shape[0] - 1


@checks("D23")
@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-300, 1.0)), min_size=2, max_size=8).filter(any))
@settings(deadline=None)
def test_boehning_bound_for_any_probabilities(masses):
    y = np.array(masses) / sum(masses)
    assert smallest_eigenvalue(bound(len(y)) - covariance(y)) >= -ROUNDING


@checks("D23")
@pytest.mark.parametrize("n_classes", [2, 3, 31])
def test_boehning_bound_is_reached_by_two_equal_classes(n_classes):
    rng = np.random.default_rng(n_classes)
    y = np.zeros(n_classes)
    y[:2] = 0.5
    v = np.zeros(n_classes)
    v[:2] = 1, -1
    assert v @ covariance(y) @ v == v @ bound(n_classes) @ v == 1.0
    for concentration in (1e-3, 0.1, 1.0, 100.0):
        Y = rng.dirichlet(np.full(n_classes, concentration), size=50)
        assert np.linalg.eigvalsh(bound(n_classes) - covariance(Y)).min() >= -ROUNDING


@checks("D24")
@seeds
def test_bound_on_the_hessian_needs_the_weights_in_the_gram_matrix(seed):
    X, W, b, _, s = random_problem(seed)
    H, columns = loss_hessian(X, W, b, s), augmented(X)
    gram = columns.T @ (s[:, None] * columns) / s.sum()
    assert smallest_eigenvalue(np.kron(bound(4), gram) - H) >= -ROUNDING


@checks("D24")
def test_gram_matrix_without_weights_is_no_bound():
    X, s = np.array([[10.0], [0.1]]), np.array([5.0, 0.5])
    H = loss_hessian(X, np.zeros((1, 2)), np.zeros(2), s)
    columns = augmented(X)
    assert smallest_eigenvalue(np.kron(bound(2), columns.T @ columns / s.sum()) - H) < -1


@checks("D25")
@seeds
def test_kronecker_estimate_drops_the_covariance_over_rows(seed):
    X, W, b, _, s = random_problem(seed)
    M, outer = covariance(softmax(X @ W + b)), outer_products(augmented(X))
    B, A = (np.tensordot(s, stack, axes=1) / s.sum() for stack in (M, outer))
    dropped = weighted_mean_kron(s, M - B, outer - A)
    assert_close(np.kron(B, A) + dropped, loss_hessian(X, W, b, s), tolerance=1e-13)
    assert np.abs(dropped).max() > 1e-3
    assert_close(np.kron(covariance(np.full(4, 0.25)), A), loss_hessian(X, 0 * W, 0 * b, s), tolerance=1e-13)


@checks("D26")
@seeds
def test_kronecker_estimate_keeps_the_sum_of_diagonal_blocks(seed):
    X, W, b, _, s = random_problem(seed)
    Y = softmax(X @ W + b)
    B = np.tensordot(s, covariance(Y), axes=1) / s.sum()
    curvature = 1 - (Y * Y).sum(axis=1)
    A = np.tensordot(s * curvature, outer_products(augmented(X)), axes=1) / s.sum() / np.trace(B)

    def sum_of_diagonal_blocks(matrix):
        return np.einsum("kikj->ij", matrix.reshape(4, 4, 4, 4))

    assert_close(np.trace(covariance(Y), axis1=1, axis2=2), curvature, tolerance=1e-13)
    expected = sum_of_diagonal_blocks(loss_hessian(X, W, b, s))
    assert_close(sum_of_diagonal_blocks(np.kron(B, A)), expected, tolerance=1e-13)
    assert_close(A * np.trace(B), expected, tolerance=1e-13)
    assert np.abs(B.sum(axis=1)).max() < ROUNDING


# 10: centring


@checks("D27")
@classes
@features
def test_intercept_absorbs_a_shift_of_the_features(n_classes, n_features):
    X, W = symbols("x", 2, n_features), symbols("W", n_features, n_classes)
    b, mu, ones = symbols("b", n_classes), symbols("mu", n_features), sp.ones(2, 1)
    shifted_b = b + W.T * mu
    assert_zero((X - ones * mu.T) * W + ones * shifted_b.T - (X * W + ones * b.T))


@checks("D28")
@seeds
def test_gradient_in_centred_coordinates(seed):
    X, W, b, T, s = random_problem(seed)
    mu = np.array([2.0, -3.0, 0.5])
    centred_b = b + W.T @ mu
    assert_close((X - mu) @ W + centred_b, X @ W + b, tolerance=1e-13)
    grad_centred, grad_b = mean_gradient(X - mu, W, centred_b, T, s)
    assert_close(complex_step(lambda v: mean_loss(X, W, v, T, s), b), grad_b)
    assert_close(complex_step(lambda v: mean_loss(X, v, b, T, s), W), grad_centred + np.outer(mu, grad_b))


# 11: numerics


dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def extreme_logits(dtype):
    """Yield rows of logits: ties, certain and hopeless targets, spreads to the edge of underflow."""
    rng = np.random.default_rng(7)
    edge = 80.0 if dtype == np.float32 else 700.0
    for spread in (0.0, 1e-3, 1.0, 20.0, edge / 2, edge):
        for n_classes in (2, 3, 7):
            z = rng.uniform(-spread, 0, size=n_classes)
            z[0], z[-1] = 0, -spread
            yield (z + rng.choice([0, 5, -300])).astype(dtype)


def cancellation_free(z, target):
    """Loss and residual of one row at its target (D29, D30), in the dtype of `z`."""
    m = z.max()
    e, o = np.exp(z[target] - m), np.exp(np.delete(z, target) - m).sum()
    return np.log1p(o + (e - 1)) + (m - z[target]), -o / (o + e)


def exactly(z, target):
    """Loss and residual of one row to hundreds of digits."""
    terms = [mpmath.exp(mpmath.mpf(float(entry))) for entry in z]
    probability = terms[target] / mpmath.fsum(terms)
    return -mpmath.log(probability), probability - 1


def assert_accurate(actual, exact, z):
    """Allow one rounding per unit of the spread, which exp turns into a relative error, and a few more."""
    unit = np.finfo(z.dtype)
    error = abs(mpmath.mpf(float(actual)) - exact)
    assert actual.dtype == z.dtype
    assert error <= (8 + np.ptp(z)) * float(unit.eps) * abs(exact) + float(unit.tiny)


@checks("D29", "D30")
@dtypes
def test_target_terms_keep_their_digits(dtype):
    with mpmath.workdps(700):
        for z in extreme_logits(dtype):
            for target in range(len(z)):
                pairs = zip(cancellation_free(z, target), exactly(z, target), strict=True)
                for actual, exact in pairs:
                    assert_accurate(actual, exact, z)


@checks("D29", "D30")
@classes
def test_target_terms_in_symbols(n_classes):
    z, m = symbols("z", n_classes), sp.Symbol("m", real=True)
    e, o = sp.exp(z[0] - m), sum(sp.exp(entry - m) for entry in z[1:])
    y = symbolic_softmax(z)[0]
    assert_zero((1 + (o + (e - 1))) * sp.exp(m - z[0]) - 1 / y)
    assert_zero(y - 1 - (-o / (o + e)))


@checks("D29", "D30")
@pytest.mark.parametrize(("dtype", "gap"), [(np.float32, 20), (np.float64, 40)])
def test_plain_forms_lose_every_digit(dtype, gap):
    z = np.array([0, -gap, -gap], dtype=dtype)
    y = softmax(z)
    assert y.dtype == dtype
    assert np.log(y[0]) == 0
    assert y[0] - 1 == 0
    loss, residual = cancellation_free(z, 0)
    assert loss > 0
    assert residual < 0


@checks("D31")
@dtypes
def test_soft_target_loss_has_no_negative_term(dtype):
    with mpmath.workdps(700):
        for z in extreme_logits(dtype):
            for share in (0.0, 2.0**-20, 0.125):
                t = np.full(len(z), share, dtype=dtype)
                t[0] = 1 - t[1:].sum()
                others = np.exp(np.delete(z, z.argmax()) - z.max()).sum()
                terms = np.append(t * (z.max() - z), np.log1p(others))
                exact = mpmath.fsum(float(t[k]) * exactly(z, k)[0] for k in range(len(z)))
                assert (terms >= 0).all()
                assert_accurate(terms.sum(), exact, z)


# The page


def labels_on(page):
    return re.findall(r"\*\*\((D\d+)\)\*\*", page)


def test_every_identity_of_the_page_has_a_test():
    assert set(labels_on(PAGE.read_text(encoding="utf-8"))) == CHECKED


def test_identities_are_numbered_in_order_and_references_resolve():
    page = PAGE.read_text(encoding="utf-8")
    labels = labels_on(page)
    assert labels == [f"D{n}" for n in range(1, len(labels) + 1)]
    assert set(re.findall(r"\bD\d+\b", page)) <= set(labels)
