"""loss_and_gradient against a formula written out here, and what it refuses."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from gpusoftmax import WorkspaceError, loss_and_gradient

STEP = 1e-30
SHAPES = [  # rows, features, classes
    (1, 1, 1),
    (1, 3, 2),
    (1, 7, 31),
    (2, 1, 3),
    (13, 1, 2),
    (97, 5, 1),
    (97, 5, 2),
    (101, 7, 3),
    (257, 17, 31),
    (257, 17, 33),
    (1009, 3, 3),
    (211, 2, 1000),
    (5003, 11, 7),
    (1500, 600, 13),
    (307, 37, 129),
]


def mean_loss(X, T, W, b, weights):
    """The formula, holomorphic in W and b."""
    Z = X @ W + b
    m = Z.real.max(axis=1, keepdims=True)
    rows = m[:, 0] + np.log(np.exp(Z - m).sum(axis=1)) - (T * Z).sum(axis=1)
    return (weights * rows).sum() / weights.sum()


def gradients(X, T, W, b, weights):
    Z = X @ W + b
    Z -= Z.max(axis=1, keepdims=True)
    Y = np.exp(Z)
    Y /= Y.sum(axis=1, keepdims=True)
    G = weights[:, np.newaxis] * (Y - T) / weights.sum()
    return X.T @ G, G.sum(axis=0)


def data(shape, seed=0):
    n_rows, n_features, n_classes = shape
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_rows, n_features))
    W = rng.standard_normal((n_features, n_classes)) / np.sqrt(n_features)
    b = rng.standard_normal(n_classes)
    return X, rng.integers(n_classes, size=n_rows), W, b, rng


def soft(rng, n_rows, n_classes):
    return rng.dirichlet(np.ones(n_classes), n_rows)


def assert_relative(actual, expected, tolerance):
    """Compare with the largest entry expected; a gradient that is zero must be zero to rounding."""
    assert np.shape(actual) == np.shape(expected)
    assert np.abs(actual - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-6)


def case(shape, is_soft, has_weights, label_smoothing, seed=0):
    """Return the arguments of a call and the target matrix and weights that they mean."""
    X, targets, W, b, rng = data(shape, seed)
    n_rows, _, n_classes = shape
    weights = rng.random(n_rows) * 3 if has_weights else np.ones(n_rows)
    if has_weights and n_rows > 5:
        weights[1::5] = 0
    if is_soft:
        targets = soft(rng, n_rows, n_classes)
    T = targets if is_soft else np.eye(n_classes)[targets]
    T = (1 - label_smoothing) * T + label_smoothing / n_classes
    return X, targets, W, b, T, weights


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize(("has_weights", "label_smoothing"), [(False, 0.0), (True, 0.0), (False, 0.1), (True, 0.3)])
def test_matches_the_formula(shape, is_soft, has_weights, label_smoothing):
    X, targets, W, b, T, weights = case(shape, is_soft, has_weights, label_smoothing)
    options = {"sample_weight": weights if has_weights else None, "label_smoothing": label_smoothing}

    loss, grad_W, grad_b = loss_and_gradient(X, targets, W, b, **options)
    expected_W, expected_b = gradients(X, T, W, b, weights)
    assert isinstance(loss, float)
    assert grad_W.dtype == grad_b.dtype == np.float64
    assert_relative(loss, mean_loss(X, T, W, b, weights), 1e-10)
    assert_relative(grad_W, expected_W, 1e-10)
    assert_relative(grad_b, expected_b, 1e-10)

    single = [array.astype(np.float32) for array in (X, W, b)]  # the oracle sees the same numbers
    loss, grad_W, grad_b = loss_and_gradient(single[0], targets, *single[1:], **options)
    X, W, b = (array.astype(np.float64) for array in single)
    expected_W, expected_b = gradients(X, T, W, b, weights)
    assert grad_W.dtype == grad_b.dtype == np.float32
    assert_relative(loss, mean_loss(X, T, W, b, weights), 1e-6)
    assert_relative(grad_W, expected_W, 1e-6)
    assert_relative(grad_b, expected_b, 1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 2), (13, 1, 3), (29, 5, 7)], ids=str)
@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradients_are_the_complex_step_of_the_loss(shape, is_soft, label_smoothing):
    X, targets, W, b, T, weights = case(shape, is_soft, True, label_smoothing)
    _, grad_W, grad_b = loss_and_gradient(X, targets, W, b, sample_weight=weights, label_smoothing=label_smoothing)
    for index in np.ndindex(W.shape):
        shifted = W.astype(complex)
        shifted[index] += STEP * 1j
        assert_allclose(grad_W[index], mean_loss(X, T, shifted, b, weights).imag / STEP, rtol=1e-10, atol=1e-14)
    for k in range(len(b)):
        shifted = b.astype(complex)
        shifted[k] += STEP * 1j
        assert_allclose(grad_b[k], mean_loss(X, T, W, shifted, weights).imag / STEP, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3, 33])
def test_large_logits(dtype, is_soft, n_classes):
    rng = np.random.default_rng(0)
    X = rng.integers(-100, 101, (89, 3)).astype(dtype)
    W = rng.integers(-60, 61, (3, n_classes)).astype(dtype)  # integers: the logits are exact in float32 too
    b = rng.integers(-10_000, 10_001, n_classes).astype(dtype)
    assert np.abs(X @ W + b).max() > 1e4
    targets = soft(rng, 89, n_classes) if is_soft else rng.integers(n_classes, size=89)
    T = targets if is_soft else np.eye(n_classes)[targets]
    loss, grad_W, grad_b = loss_and_gradient(X, targets, W, b)
    X, W, b = (array.astype(np.float64) for array in (X, W, b))
    expected_W, expected_b = gradients(X, T, W, b, np.ones(89))
    tolerance = 1e-6 if dtype == np.float32 else 1e-10
    assert_relative(loss, mean_loss(X, T, W, b, np.ones(89)), tolerance)
    assert_relative(grad_W, expected_W, tolerance)
    assert_relative(grad_b, expected_b, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sure_and_right_model_keeps_its_small_loss(dtype):
    # log(probability) would be 0, and so would the residual as probability minus one
    gap = np.array([20.0, 40.0, 80.0], dtype)
    for z in gap:
        loss, grad_W, grad_b = loss_and_gradient(np.ones((1, 1), dtype), [0], np.array([[z, 0]], dtype), np.zeros(2))
        expected = np.exp(-np.float64(z))
        assert_allclose(loss, expected, rtol=1e-5)
        assert_allclose(grad_b, [-expected, expected], rtol=1e-5)
        assert_allclose(grad_W, [[-expected, expected]], rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 3), (101, 7, 3), (211, 2, 100)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_an_intercept(shape, dtype):
    X, targets, W, b, _ = data(shape)
    X, W = X.astype(dtype), W.astype(dtype)
    loss, grad_W, grad_b = loss_and_gradient(X, targets, W)
    zero_loss, zero_W, _ = loss_and_gradient(X, targets, W, np.zeros_like(b))
    assert grad_b is None
    assert loss == zero_loss
    assert_array_equal(grad_W, zero_W)


@pytest.mark.parametrize("storage", [np.float16, np.int8, np.int64, bool, ">f8", ">f4"])
def test_storage_of_x(storage):
    X, targets, W, b, _ = data((101, 7, 3))
    X = (3 * X).astype(storage)
    computed = np.float32 if storage in (np.float16, ">f4") else np.float64
    loss, grad_W, _ = loss_and_gradient(X, targets, W, b)
    plain_loss, plain_W, _ = loss_and_gradient(X.astype(computed), targets, W, b)
    assert grad_W.dtype == computed
    assert_allclose(loss, plain_loss, rtol=1e-6)
    assert_allclose(grad_W, plain_W, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
        lambda a: a.tolist(),
    ],
    ids=["fortran", "strided", "reversed", "list"],
)
def test_layout_of_every_argument(layout):
    X, _, W, b, rng = data((101, 7, 3))
    arguments = (X, soft(rng, 101, 3), W, b)
    weights = rng.random(101)
    expected = loss_and_gradient(*arguments, sample_weight=weights)
    found = loss_and_gradient(*(layout(a) for a in arguments), sample_weight=layout(weights))
    for one, other in zip(found, expected, strict=True):
        assert_allclose(one, other, rtol=1e-12, atol=1e-15)


def test_arguments_are_not_modified():
    X, targets, W, b, rng = data((101, 7, 3))
    T, weights = soft(rng, 101, 3), rng.random(101)
    arguments = (X, targets, T, W, b, weights)
    before = [a.copy() for a in arguments]
    for a in arguments:
        a.flags.writeable = False
    loss_and_gradient(X, targets, W, b, sample_weight=weights, label_smoothing=0.1)
    loss_and_gradient(X, T, W, b, sample_weight=weights, label_smoothing=0.1)
    for a, kept in zip(arguments, before, strict=True):
        assert_array_equal(a, kept)


@pytest.mark.parametrize("shape", [(101, 7, 3), (5003, 11, 7)], ids=str)
def test_results_are_not_views_of_reused_memory(shape):
    X, targets, W, b, _ = data(shape)
    first = loss_and_gradient(X, targets, W, b)
    kept = [np.copy(part) for part in first]
    second = loss_and_gradient(X, targets, -W, b + 1)
    for part, copy_ in zip(first, kept, strict=True):
        assert_array_equal(part, copy_)
    assert not np.shares_memory(first[1], second[1])
    assert not np.shares_memory(first[1], W)
    first[1][:] = 7  # nor are the two gradients views of each other
    assert_array_equal(first[2], kept[2])


def test_same_bits_again():
    X, targets, W, b, _ = data((5003, 11, 7))
    first, second = (loss_and_gradient(X.astype(np.float32), targets, W, b) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize("is_soft", [False, True])
def test_a_small_budget_changes_nothing(is_soft):
    X, targets, W, b, rng = data((1009, 13, 11))
    if is_soft:
        targets = soft(rng, 1009, 11)
    whole = loss_and_gradient(X, targets, W, b)
    with pytest.raises(WorkspaceError, match=r"at least memory_budget=\d+") as error:
        loss_and_gradient(X, targets, W, b, memory_budget=1)
    budget = int(re.search(r"at least memory_budget=(\d+)", str(error.value)).group(1))
    for memory_budget in (budget, 4 * budget):
        for one, other in zip(loss_and_gradient(X, targets, W, b, memory_budget=memory_budget), whole, strict=True):
            assert_allclose(one, other, rtol=1e-10, atol=1e-14)
    with pytest.raises(WorkspaceError):
        loss_and_gradient(X, targets, W, b, memory_budget=budget - 1)


# Laws

few = settings(deadline=None, max_examples=25)
shapes = st.tuples(st.integers(1, 60), st.integers(1, 6), st.integers(1, 9))


@few
@given(shapes, st.booleans(), st.floats(-50, 50), st.integers(0, 99))
def test_a_constant_added_to_all_logits_changes_nothing(shape, is_soft, constant, seed):
    X, targets, W, b, rng = data(shape, seed)
    if is_soft:
        targets = soft(rng, shape[0], shape[2])
    shift = rng.standard_normal((shape[1], 1))
    for one, other in zip(
        loss_and_gradient(X, targets, W + shift, b + constant), loss_and_gradient(X, targets, W, b), strict=True
    ):
        assert_allclose(one, other, rtol=0, atol=1e-12)


@few
@given(shapes, st.integers(0, 99))
def test_permuting_rows_and_classes_permutes_results(shape, seed):
    X, targets, W, b, rng = data(shape, seed)
    rows, classes = rng.permutation(shape[0]), rng.permutation(shape[2])
    loss, grad_W, grad_b = loss_and_gradient(X, targets, W, b)
    moved = loss_and_gradient(X[rows], np.argsort(classes)[targets][rows], W[:, classes], b[classes])
    assert_allclose(moved[0], loss, rtol=1e-12, atol=1e-14)
    assert_allclose(moved[1], grad_W[:, classes], rtol=0, atol=1e-13)
    assert_allclose(moved[2], grad_b[classes], rtol=0, atol=1e-13)


@few
@given(shapes, st.booleans(), st.integers(0, 99))
def test_weights_are_repetition_and_zero_is_absence(shape, is_soft, seed):
    X, targets, W, b, rng = data(shape, seed)
    if is_soft:
        targets = soft(rng, shape[0], shape[2])
    counts = rng.integers(4, size=shape[0])
    counts[0] = 1
    repeated = loss_and_gradient(np.repeat(X, counts, axis=0), np.repeat(targets, counts, axis=0), W, b)
    weighted = loss_and_gradient(X, targets, W, b, sample_weight=counts)
    for one, other in zip(weighted, repeated, strict=True):
        assert_allclose(one, other, rtol=1e-12, atol=1e-14)


@few
@given(shapes, st.floats(0, 0.99), st.integers(0, 99))
def test_smoothing_is_smoothed_targets(shape, label_smoothing, seed):
    X, targets, W, b, _ = data(shape, seed)
    T = (1 - label_smoothing) * np.eye(shape[2])[targets] + label_smoothing / shape[2]
    for one, other in zip(
        loss_and_gradient(X, targets, W, b, label_smoothing=label_smoothing),
        loss_and_gradient(X, T, W, b),
        strict=True,
    ):
        assert_allclose(one, other, rtol=0, atol=1e-13)


@few
@given(shapes, st.integers(0, 99))
def test_the_gradient_sums_to_zero_over_classes(shape, seed):
    X, targets, W, b, _ = data(shape, seed)
    _, grad_W, grad_b = loss_and_gradient(X, targets, W, b)
    assert_allclose(grad_W.sum(axis=1), 0, atol=1e-13)
    assert_allclose(grad_b.sum(), 0, atol=1e-13)


# What it refuses

GOOD = {
    "X": np.arange(12.0).reshape(4, 3),
    "targets": np.array([0, 1, 1, 0]),
    "W": np.ones((3, 2)),
    "b": np.ones(2),
    "sample_weight": np.ones(4),
}
THIRDS = np.full((4, 2), 0.5)
BAD = {
    "NaN in X": ({"X": GOOD["X"] * np.nan}, ValueError, "X|NaN"),
    "Inf in X": ({"X": GOOD["X"] + np.inf}, ValueError, "X|infinity"),
    "complex X": ({"X": GOOD["X"] + 1j}, ValueError, "Complex"),
    "text X": ({"X": GOOD["X"].astype(str)}, ValueError, "strings"),
    "1-d X": ({"X": np.ones(4)}, ValueError, "2D"),
    "no rows": ({"X": np.ones((0, 3)), "targets": [], "sample_weight": None}, ValueError, "0 sample"),
    "no features": ({"X": np.ones((4, 0)), "W": np.ones((0, 2))}, ValueError, "0 feature"),
    "NaN in W": ({"W": GOOD["W"] * np.nan}, ValueError, "W|NaN"),
    "complex W": ({"W": GOOD["W"] + 1j}, ValueError, "Complex"),
    "W of another height": ({"W": np.ones((2, 2))}, ValueError, r"W|\(3|\(2, 2\)"),
    "1-d W": ({"W": np.ones(3)}, ValueError, "2D"),
    "no classes": ({"W": np.ones((3, 0)), "b": np.ones(0)}, ValueError, "0 feature"),
    "Inf in b": ({"b": np.array([np.inf, 0])}, ValueError, "b|infinity"),
    "b of another length": ({"b": np.ones(3)}, ValueError, r"b|\(2,\)|\(3,\)"),
    "2-d b": ({"b": np.ones((1, 2))}, ValueError, r"b|\(1, 2\)"),
    "too few targets": ({"targets": [0, 1]}, ValueError, r"targets|\(2,\)"),
    "targets of too many classes": ({"targets": np.full((4, 3), 1 / 3)}, ValueError, r"targets|\(4, 3\)"),
    "3-d targets": ({"targets": THIRDS[np.newaxis]}, ValueError, "targets"),
    "class index too large": ({"targets": [0, 1, 2, 0]}, ValueError, r"\[0, 2\)|2"),
    "class index negative": ({"targets": [0, 1, -1, 0]}, ValueError, r"\[0, 2\)|-1"),
    "class index float": ({"targets": [0.0, 1.0, 1.0, 0.0]}, ValueError, "integers|float64"),
    "class index text": ({"targets": ["a", "b", "b", "a"]}, ValueError, "integers"),
    "soft targets negative": ({"targets": THIRDS + np.array([0.6, -0.6])}, ValueError, "non-negative|row 0"),
    "soft targets that do not sum to one": ({"targets": THIRDS * [[1], [1], [2], [1]]}, ValueError, "row 2|sum 2"),
    "soft targets NaN": ({"targets": THIRDS * np.nan}, ValueError, "row 0|nan"),
    "soft targets text": ({"targets": np.full((4, 2), "a")}, (TypeError, ValueError), "Soft targets must be numbers"),
    "soft targets complex": ({"targets": THIRDS + 0j}, (TypeError, ValueError), "Soft targets must be numbers"),
    "NaN in weights": ({"sample_weight": [1, 1, np.nan, 1]}, ValueError, "sample_weight|NaN"),
    "negative weight": ({"sample_weight": [1, 1, -2, 1]}, ValueError, "sample_weight|-2"),
    "weights all zero": ({"sample_weight": np.zeros(4)}, ValueError, "sample_weight|zero"),
    "weights of another length": ({"sample_weight": np.ones(3)}, ValueError, r"sample_weight|\(4,\)|\(3,\)"),
    "2-d weights": ({"sample_weight": np.ones((4, 1))}, ValueError, r"sample_weight|\(4, 1\)"),
    "scalar weight": ({"sample_weight": 1.0}, (TypeError, ValueError), "dimension"),
    "smoothing of one": ({"label_smoothing": 1.0}, ValueError, r"label_smoothing|\[0, 1\)"),
    "smoothing below zero": ({"label_smoothing": -0.1}, ValueError, "label_smoothing|-0.1"),
    "smoothing NaN": ({"label_smoothing": np.nan}, ValueError, "label_smoothing|nan"),
    "unknown device": ({"device": "tpu"}, ValueError, "device|tpu|cpu"),
    "budget of zero": ({"memory_budget": 0}, ValueError, "memory_budget"),
    "budget below zero": ({"memory_budget": -5}, ValueError, "memory_budget"),
}


@pytest.mark.parametrize(("change", "exception", "words"), BAD.values(), ids=BAD)
def test_refuses(change, exception, words):
    arguments = {**GOOD, **change}
    with pytest.raises(exception) as error:
        loss_and_gradient(**arguments)
    for word in words.split("|"):
        assert re.search(word, str(error.value)), f"{word!r} is not in: {error.value}"


def test_good_arguments_are_good():
    loss_and_gradient(**GOOD)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_that_overflow_are_an_error(dtype):
    large = np.finfo(dtype).max / 2
    X, W = np.full((4, 3), large, dtype), np.array([[9, -9]] * 3, dtype)
    with pytest.raises(ValueError, match=np.dtype(dtype).name):
        loss_and_gradient(X, [0, 1, 1, 0], W)
