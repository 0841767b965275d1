import numpy as np
import pytest
from sklearn.model_selection import (
    GroupShuffleSplit,
    KFold,
    LeaveOneGroupOut,
    PredefinedSplit,
    RepeatedStratifiedKFold,
    ShuffleSplit,
    StratifiedKFold,
    TimeSeriesSplit,
)

from gpusoftmax.problems import Folds, Problems
from gpusoftmax.sources import ArraySource

Y = np.arange(60) % 3
X = np.zeros((60, 2))
GROUPS = np.arange(60) // 12


@pytest.mark.parametrize(
    "cv",
    [
        KFold(4),
        StratifiedKFold(3, shuffle=True, random_state=0),
        RepeatedStratifiedKFold(n_splits=2, n_repeats=3, random_state=0),
        ShuffleSplit(3, train_size=0.3, test_size=0.2, random_state=0),
        TimeSeriesSplit(3),
        PredefinedSplit(np.arange(60) % 5),
        LeaveOneGroupOut(),
        GroupShuffleSplit(2, random_state=0),
    ],
    ids=lambda cv: type(cv).__name__,
)
def test_any_splitter_becomes_columns(cv):
    groups = GROUPS if "Group" in type(cv).__name__ else None
    folds = Folds.of(cv, X, Y, groups)
    splits = list(cv.split(X, Y, groups))
    assert folds.n_folds == len(splits)
    for fold, (train, test) in enumerate(splits):
        np.testing.assert_array_equal(np.flatnonzero(folds.weights[:, fold]), np.sort(train))
        np.testing.assert_array_equal(np.flatnonzero(folds.is_held_out[:, fold]), np.sort(test))


def test_columns_take_a_byte_a_row():
    folds = Folds.of(5, X, Y)
    assert folds.weights.dtype == np.uint8
    assert folds.is_held_out.dtype == bool


def test_a_number_is_stratified_folds():
    folds = Folds.of(3, X, Y)
    for (train, _), column in zip(StratifiedKFold(3).split(X, Y), folds.weights.T, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(column), train)


def test_rows_drawn_twice_weigh_twice():
    folds = Folds.of([([0, 0, 1], [2, 3])], X, Y)
    np.testing.assert_array_equal(folds.weights[:4, 0], [2, 1, 0, 0])
    np.testing.assert_array_equal(np.flatnonzero(folds.is_held_out[:, 0]), [2, 3])


def test_an_array_is_weights_and_zeros_are_held_out():
    weights = np.random.default_rng(0).integers(0, 3, (60, 2)) / 2
    folds = Folds.of(weights, X, Y)
    np.testing.assert_array_equal(folds.weights, weights)
    np.testing.assert_array_equal(folds.is_held_out, weights == 0)


def test_sample_weights_multiply():
    s = np.arange(60.0)[:, np.newaxis]
    folds = Folds.of(3, X, Y)
    weighted, unit = folds.row_weights(s, np.dtype(np.float32))
    np.testing.assert_array_equal(weighted * unit, folds.weights * s)
    assert weighted.dtype == np.float32
    assert folds.row_weights(None, np.dtype(np.float32))[0] is folds.weights
    assert Folds.of(None, X, Y).row_weights(s, np.dtype(np.float32)) == (s, 1)
    assert Folds.of(None, X, Y).row_weights(None, np.dtype(np.float32)) == (None, 1)


@pytest.mark.parametrize("sample_weight", [None, np.full((60, 1), 1.5, np.float32)], ids=["plain", "weighted"])
def test_weights_of_each_fold_are_counted_in_a_power_of_two(sample_weight):
    scales = np.array([1e-300, 3.0, 1e300])
    folds = Folds.of(scales * (Y[:, np.newaxis] != np.arange(3)), X, Y)
    weights, unit = folds.row_weights(sample_weight, np.dtype(np.float32))
    np.testing.assert_array_equal(np.frexp(unit)[0], 0.5)
    assert ((weights.max(axis=0) >= 1) & (weights.max(axis=0) < 4)).all()
    np.testing.assert_allclose(weights * unit, folds.weights * (1 if sample_weight is None else 1.5), rtol=1e-7)


@pytest.mark.parametrize("sample_weight", [None, np.arange(60.0)[:, np.newaxis]], ids=["plain", "weighted"])
def test_scoring_weights_are_those_of_training_then_of_what_is_held_out(sample_weight):
    folds, rows, problems = Folds.of(3, X, Y), slice(10, 17), np.array([2, 0, 2])
    given = 1 if sample_weight is None else sample_weight[rows]
    expected = np.hstack([folds.weights[rows][:, problems], folds.is_held_out[rows][:, problems]]) * given
    np.testing.assert_array_equal(folds.scoring_weights(rows, problems, sample_weight), expected)
    everything = Folds.of(None, X, Y).scoring_weights(rows, problems, sample_weight)
    np.testing.assert_array_equal(everything, given * np.ones((7, 1)))


@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize(
    ("cv", "sample_weight", "expected"),
    [
        (3, None, []),
        (None, None, []),
        (KFold(2), None, []),
        (np.stack([Y != 1, Y > 1, Y >= 0], axis=1), None, [(0, 1), (1, 0), (1, 1)]),
        (np.stack([X[:, 0] == 0, np.arange(60) < 30], axis=1), np.where(np.arange(60) < 30, Y != 2, 1.0), [(1, 2)]),
        (3, Y != 2, []),  # no fold could have rows of a class that weighs nothing
    ],
)
def test_classes_that_a_fold_has_no_rows_of_to_fit(cv, sample_weight, expected, is_soft):
    folds, targets = Folds.of(cv, X, Y), np.eye(3)[Y] if is_soft else Y.astype(np.uint8)
    weights = None if sample_weight is None else np.asarray(sample_weight, float)[:, np.newaxis]
    of_folds, _ = folds.row_weights(weights, X.dtype)
    rows, of_folds = (ArraySource(X, targets, each, X.dtype) for each in (weights, of_folds))
    is_absent = folds.absent_classes(rows, of_folds, 3)
    assert is_absent.shape == (folds.n_folds, 3)
    assert [tuple(place) for place in np.argwhere(is_absent)] == expected


def test_order_is_that_of_the_columns_wherever_they_are():
    folds = Folds.of(4, X, Y)
    shuffled = Folds(folds.weights[:, [2, 0, 3, 1]], folds.is_held_out[:, [2, 0, 3, 1]])
    np.testing.assert_array_equal(folds.weights[:, folds.order()], shuffled.weights[:, shuffled.order()])


def test_grid_varies_folds_fastest():
    problems = Problems.grid(np.array([0.1, 1.0]), 3, 2, np.array([0.0, 0.5]))
    assert len(problems) == 2 * 3 * 2 * 2
    np.testing.assert_array_equal(problems.fold, np.tile([0, 1, 2], 8))
    np.testing.assert_array_equal(problems.C, np.tile(np.repeat([0.1, 1.0], 3), 4))
    np.testing.assert_array_equal(problems.class_weight, np.tile(np.repeat([0, 1], 6), 2))
    np.testing.assert_array_equal(problems.label_smoothing, np.repeat([0.0, 0.5], 12))
