import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusoftmax.targets import BLOCK_ROWS, check_class_indices, check_soft_targets, encode_labels


class TestEncodeLabels:
    @pytest.mark.parametrize(
        "y",
        [
            np.array([3, 1, 2, 3]),
            np.array([-1.5, 2.5, -1.5]),
            np.array(["b", "a", "c", "a"]),
            np.array(["b", "a", "c", "a"], dtype=object),
            np.array([True, False, True]),
            np.array([7]),
            np.array([2**63, 1], dtype=np.uint64),
        ],
        ids=str,
    )
    def test_indices_lead_back_to_the_labels(self, y):
        classes, indices = encode_labels(y)
        assert (classes[:-1] < classes[1:]).all()
        assert classes.dtype == y.dtype
        np.testing.assert_array_equal(classes[indices], y)
        assert set(indices.tolist()) == set(range(len(classes)))

    @given(st.lists(st.integers(-5, 5), min_size=1))
    def test_agrees_with_unique(self, labels):
        classes, indices = encode_labels(np.array(labels))
        expected_classes, expected = np.unique(labels, return_inverse=True)
        np.testing.assert_array_equal(classes, expected_classes)
        np.testing.assert_array_equal(indices, expected)

    @pytest.mark.parametrize("n_rows", [BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 3])
    def test_blocks_meet(self, n_rows):
        y = np.arange(n_rows) % 7
        y[-1] = 50  # a class that only the last block holds
        classes, indices = encode_labels(y)
        np.testing.assert_array_equal(classes, [*range(7), 50])
        np.testing.assert_array_equal(classes[indices], y)

    @pytest.mark.parametrize(("n_classes", "itemsize"), [(2, 1), (255, 1), (256, 2), (300, 2), (65_536, 4)])
    def test_smallest_dtype(self, n_classes, itemsize):
        y = np.arange(n_classes)
        _, indices = encode_labels(y)
        assert indices.dtype.itemsize == itemsize
        np.testing.assert_array_equal(indices, y)

    def test_no_labels(self):
        with pytest.raises(ValueError, match="There are no labels: give at least one"):
            encode_labels(np.array([]))

    def test_labels_without_an_order(self):
        with pytest.raises(TypeError, match=r"int, str.*astype\(str\)"):
            encode_labels(np.array([1, "a", 2], dtype=object))


class TestCheckClassIndices:
    def test_smallest_dtype(self):
        targets = check_class_indices(np.array([0, 2, 1]), 3)
        assert targets.dtype == np.uint8
        np.testing.assert_array_equal(targets, [0, 2, 1])
        np.testing.assert_array_equal(check_class_indices(np.array([0, 299]), 300), [0, 299])

    @pytest.mark.parametrize("targets", [[0, 3], [-1, 0], [0, 256]])
    def test_out_of_range(self, targets):
        with pytest.raises(ValueError, match=rf"\[0, 3\), got values from {min(targets)} to {max(targets)}"):
            check_class_indices(np.array(targets), 3)

    @pytest.mark.parametrize("targets", [[0.0, 1.0], [True, False], ["0", "1"]])
    def test_other_than_integers(self, targets):
        with pytest.raises(ValueError, match="must be integers, got dtype"):
            check_class_indices(np.array(targets), 3)


class TestCheckSoftTargets:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_rounding_of_their_own_dtype_is_allowed(self, dtype):
        t = np.random.default_rng(0).dirichlet(np.ones(10), 1000)
        check_soft_targets(t.astype(dtype))

    def test_one_hot_integers_and_booleans(self):
        check_soft_targets(np.eye(3, dtype=int))
        check_soft_targets(np.eye(3, dtype=np.uint8))

    @pytest.mark.parametrize(
        "row", [[0.5, 0.6], [0.5, 0.4], [1.5, -0.5], [0.0, 0.0], [np.nan, 1.0], [np.inf, 0.0], [0.5, 0.500005]]
    )
    @pytest.mark.parametrize("place", [0, 4, BLOCK_ROWS + 2])
    def test_a_row_that_is_no_distribution_is_named(self, place, row):
        t = np.full((BLOCK_ROWS + 5, 2), 0.5)
        t[place] = row
        with pytest.raises(
            ValueError, match=rf"row {place} has smallest entry .* and sum .*Divide each row by its sum"
        ):
            check_soft_targets(t)
