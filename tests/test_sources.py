from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import FLOAT32, FLOAT64, assert_close, make_data, one_hot, summed_losses

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.sources import ArraySource, compute_dtype, feature_range, rare_squares, sample_rows, weight_per_class

N_ROWS, N_FEATURES = 23, 5


def as_field(X):
    records = np.zeros(X.shape, np.dtype([("x", X.dtype), ("y", np.int8)]))
    records["x"] = X
    return records["x"]


LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "every other row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "every other column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "columns of a wider array": lambda X: np.concatenate([X, X], axis=1)[:, : X.shape[1]],
    "columns of a wider array, F": lambda X: np.asfortranarray(np.concatenate([X, X], axis=1))[:, : X.shape[1]],
    "rows of a longer array, F": lambda X: np.asfortranarray(np.concatenate([X, X]))[: len(X)],
    "negative row stride": lambda X: X[::-1].copy()[::-1],
    "negative column stride": lambda X: X[:, ::-1].copy()[:, ::-1],
    "transposed and reversed": lambda X: np.asfortranarray(X[::-1, ::-1])[::-1, ::-1],
    "unaligned": lambda X: np.frombuffer(b"x" + X.tobytes(), np.uint8)[1:].view(X.dtype).reshape(X.shape),
    "field of a record": as_field,
    "big-endian": lambda X: X.astype(X.dtype.newbyteorder(">")),
}
DIRECT = {
    "C",
    "F",
    "every other row",
    "columns of a wider array",
    "columns of a wider array, F",
    "rows of a longer array, F",
}


def made(dtype=FLOAT64):
    values = np.random.default_rng(0).integers(0, 100, (N_ROWS, N_FEATURES))
    return values.astype(dtype)


def source_of(X, dtype=FLOAT64, **options):
    return ArraySource(X, np.zeros(len(X), np.uint8), None, np.dtype(dtype), **options)


class TestBlocks:
    @pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_values_of_every_layout(self, layout, dtype):
        X = made(dtype)
        source = source_of(LAYOUTS[layout](X), dtype)
        assert source.is_direct == (layout in DIRECT)
        for rows in (slice(0, 7), slice(7, 23), slice(22, 23), np.array([0, 3, 3, 22])):
            block = source.block(rows)
            np.testing.assert_array_equal(block.X, X[rows])
            assert block.X.dtype == dtype
            assert block.X.dtype.isnative
            assert block.X.flags.aligned

    @pytest.mark.parametrize("layout", sorted(DIRECT))
    def test_a_direct_block_is_a_view(self, layout):
        X = LAYOUTS[layout](made())
        assert np.shares_memory(source_of(X).block(slice(3, 9)).X, X)

    @pytest.mark.parametrize("layout", sorted(DIRECT))
    @pytest.mark.parametrize("n_rows", [12, 4])
    def test_a_stack_of_blocks_of_a_direct_source_is_a_view(self, layout, n_rows):
        X = source_of(LAYOUTS[layout](made())).block(slice(4, 4 + n_rows)).X
        assert np.shares_memory(X.reshape(-1, 4, N_FEATURES), X)

    @pytest.mark.parametrize(
        "dtype", [np.float16, np.float32, np.int8, np.uint8, np.int64, np.uint64, bool, ">f8", ">i2"]
    )
    def test_storage_dtypes(self, dtype):
        X = made(dtype)
        source = source_of(X, compute_dtype(X.dtype))
        assert source.is_direct == (X.dtype == np.float32)
        np.testing.assert_array_equal(source.block(slice(2, 20)).X, X[2:20].astype(float))

    def test_a_buffer_is_written_from_its_start_and_holds_the_block(self):
        X = made(np.float16)
        buffer = np.full(10 * N_FEATURES, np.nan, np.float32)
        block = source_of(X, FLOAT32).block(slice(4, 11), buffer)
        assert np.shares_memory(block.X, buffer)
        np.testing.assert_array_equal(block.X, X[4:11])
        np.testing.assert_array_equal(buffer[: 7 * N_FEATURES], X[4:11].ravel())
        assert np.isnan(buffer[7 * N_FEATURES :]).all()

    def test_rows_picked_by_index_are_copied(self):
        X = made()
        block = source_of(X).block(np.array([5, 1]))
        assert not np.shares_memory(block.X, X)
        np.testing.assert_array_equal(block.X, X[[5, 1]])

    def test_read_only_memory_map(self, tmp_path):
        X = made(np.float32)
        X.tofile(tmp_path / "X.bin")
        mapped = np.memmap(tmp_path / "X.bin", np.float32, mode="r", shape=X.shape)
        source = source_of(mapped, FLOAT32)
        assert source.is_direct
        np.testing.assert_array_equal(source.block(slice(3, 9)).X, X[3:9])
        half = source_of(mapped, FLOAT64)
        np.testing.assert_array_equal(half.block(slice(3, 9)).X, X[3:9])

    def test_read_only_array(self):
        X = made()
        X.flags.writeable = False
        assert source_of(X).is_direct
        np.testing.assert_array_equal(source_of(X, center=np.ones(N_FEATURES)).block(slice(None)).X, X - 1)

    def test_one_row_and_one_column(self):
        for X in (made()[:1], made()[:, 2:3], made()[4:5, 1:2], made()[::-1][:, 2:3]):
            source = source_of(X)
            np.testing.assert_array_equal(source.block(slice(None)).X, X)
            assert source.n_rows == X.shape[0]
            assert source.n_features == X.shape[1]

    def test_a_broadcast_array_is_copied_block_by_block(self):
        for values in (np.arange(5.0), np.arange(float(N_ROWS))[:, np.newaxis]):
            X = np.broadcast_to(values, (N_ROWS, 5))
            assert not source_of(X).is_direct
            np.testing.assert_array_equal(source_of(X).block(slice(2, 6)).X, X[2:6])


class TestCentring:
    def test_every_block_is_centred(self):
        X, center = made(), np.arange(5.0)
        source = source_of(X, center=center)
        assert not source.is_direct
        np.testing.assert_array_equal(source.block(slice(2, 9)).X, X[2:9] - center)
        np.testing.assert_array_equal(source.block(np.array([1, 8])).X, X[[1, 8]] - center)

    def test_float64_offsets_leave_in_float64(self):
        # In float32, 1e8 + 1 is 1e8: the centre must be subtracted before the cast.
        X = 1e8 + np.arange(10.0).reshape(5, 2)
        block = source_of(X, FLOAT32, center=np.array([1e8, 1e8])).block(slice(None))
        assert block.X.dtype == np.float32
        np.testing.assert_array_equal(block.X, X - 1e8)

    def test_float32_storage_loses_nothing_more(self):
        X = (2.0**24 + 2 * np.arange(10.0).reshape(5, 2)).astype(np.float32)
        block = source_of(X, FLOAT32, center=np.full(2, 2.0**24 + 1)).block(slice(None), np.empty(10, np.float32))
        np.testing.assert_array_equal(block.X, 2 * np.arange(10.0).reshape(5, 2) - 1)


class TestTargetsAndWeights:
    def test_rows_without_weights(self):
        source = ArraySource(made(), np.arange(N_ROWS), None, FLOAT64)
        targets, weights = source.targets_and_weights(slice(3, 6))
        np.testing.assert_array_equal(targets, [3, 4, 5])
        assert weights is None

    def test_rows_with_weights(self):
        s = np.arange(2.0 * N_ROWS).reshape(N_ROWS, 2)
        block = ArraySource(made(), np.arange(N_ROWS), s, FLOAT64).block(np.array([2, 7]))
        np.testing.assert_array_equal(block.targets, [2, 7])
        np.testing.assert_array_equal(block.weights, s[[2, 7]])

    @pytest.mark.parametrize("weights", [None, "shared", "each"])
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    def test_class_weights_multiply_each_class_s_term_of_the_loss(self, targets, weights):
        data = make_data(N_ROWS, N_FEATURES, 2, 4, targets=targets, weights=weights)
        c = np.array([0.5, 0.0, 2.0, 7.0])
        source = ArraySource(data.X, data.targets, data.weights, FLOAT64, class_weight=c[np.newaxis])
        t, s = source.targets_and_weights(slice(None))
        s = np.broadcast_to(s, (N_ROWS, 2))
        rows = one_hot(data.targets, 4) if targets == "labels" else data.targets
        logits = np.einsum("nd,dpk->npk", data.X, data.params[:-1]) + data.params[-1]
        log_y = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
        expected = -(data.full_weights() * np.einsum("nk,k,npk->np", rows, c, log_y)).sum(axis=0)
        assert_close(summed_losses(data.X, t, s, data.params), expected, 1e-12)

    def test_class_weights_do_not_modify_soft_targets(self):
        data = make_data(N_ROWS, N_FEATURES, 1, 3, targets="soft")
        before = data.targets.copy()
        source = ArraySource(data.X, data.targets, None, FLOAT64, class_weight=np.array([[1.0, 2.0, 3.0]]))
        source.targets_and_weights(slice(None))
        np.testing.assert_array_equal(data.targets, before)

    def test_soft_targets_of_weightless_classes_have_no_weight(self):
        t = np.array([[1.0, 0.0], [0.5, 0.5]])
        source = ArraySource(made()[:2], t, None, FLOAT64, class_weight=np.array([[0.0, 1.0]]))
        targets, weights = source.targets_and_weights(slice(None))
        np.testing.assert_array_equal(weights, [[0.0], [0.5]])
        np.testing.assert_array_equal(targets, [[0.0, 0.0], [0.0, 1.0]])

    def test_select(self):
        s = np.arange(3.0 * N_ROWS).reshape(N_ROWS, 3)
        source = ArraySource(made(), np.zeros(N_ROWS, int), s, FLOAT64, center=np.ones(5), class_weight=np.ones((1, 1)))
        chosen = source.select(np.array([2, 0]))
        np.testing.assert_array_equal(chosen.targets_and_weights(slice(None))[1], s[:, [2, 0]])
        again = chosen.select(np.array([1]))
        np.testing.assert_array_equal(again.targets_and_weights(slice(2, 4))[1], s[2:4, :1])
        assert chosen.X is source.X
        assert chosen.weights is source.weights
        assert chosen.center is source.center
        assert chosen.class_weight is source.class_weight
        shared = replace(source, weights=s[:, :1]).select(np.array([1]))
        np.testing.assert_array_equal(shared.targets_and_weights(slice(None))[1], s[:, :1])
        none = replace(source, weights=None, class_weight=None).select(np.array([1]))
        assert none.targets_and_weights(slice(None))[1] is None

    def test_problems_share_columns_of_weights_and_class_weights(self):
        data = make_data(N_ROWS, N_FEATURES, 3, 4, weights="each")
        c = np.array([[1.0, 2, 3, 4], [0, 1, 0, 1], [5, 5, 1, 1]])
        source = ArraySource(
            data.X, data.targets, data.weights, FLOAT64, class_weight=c, columns=np.array([2, 0, 2, 1, 1])
        )
        _, weights = source.targets_and_weights(slice(None))
        np.testing.assert_array_equal(weights, (data.weights * c[:, data.targets].T)[:, [2, 0, 2, 1, 1]])
        total, per_class = weight_per_class(source, 5, 4)
        assert_close(total, weights.sum(axis=0), 1e-13)
        assert_close(per_class, weights.T @ one_hot(data.targets, 4), 1e-13)


class TestSampleRows:
    @given(st.integers(1, 10**9), st.integers(1, 3000), st.integers(0, 2**31))
    def test_sorted_distinct_and_one_per_stratum(self, n_rows, n_sample, seed):
        rows = sample_rows(n_rows, n_sample, seed)
        assert len(rows) == min(n_rows, n_sample)
        assert rows[0] >= 0
        assert rows[-1] < n_rows
        assert (np.diff(rows) > 0).all()
        width = n_rows / len(rows)
        stratum = np.arange(len(rows))
        # Each stratum's edges are rounded to rows.
        assert (rows > stratum * width - 1 - 1e-6 * width).all()
        assert (rows < (stratum + 1) * width + 1 + 1e-6 * width).all()

    def test_all_rows_where_there_are_no_more(self):
        np.testing.assert_array_equal(sample_rows(7, 7, 0), np.arange(7))
        np.testing.assert_array_equal(sample_rows(7, 100, 0), np.arange(7))

    def test_the_seed_decides(self):
        np.testing.assert_array_equal(sample_rows(10**6, 100, 5), sample_rows(10**6, 100, 5))
        assert (sample_rows(10**6, 100, 5) != sample_rows(10**6, 100, 6)).any()

    def test_every_row_of_equal_strata_has_the_same_chance(self):
        counts = np.zeros(12)
        for seed in range(3000):
            counts[sample_rows(12, 4, seed)] += 1
        assert np.abs(counts - 1000).max() < 6 * np.sqrt(1000)

    def test_no_row_is_out_of_reach(self):
        drawn = {row for seed in range(200) for row in sample_rows(12, 5, seed).tolist()}
        assert drawn == set(range(12))


class TestFeatureRange:
    @pytest.mark.parametrize("block_rows", [1, 4, 23, 100])
    def test_smallest_and_largest_over_the_rows_given(self, block_rows):
        X = np.random.default_rng(3).normal(size=(N_ROWS, N_FEATURES))
        rows = np.arange(1, N_ROWS, 3)
        low, high = feature_range(source_of(X), rows, NumpyBackend(), block_rows)
        np.testing.assert_array_equal(low, X[rows].min(axis=0))
        np.testing.assert_array_equal(high, X[rows].max(axis=0))
        assert low.dtype == high.dtype == np.float64

    def test_of_a_centred_source(self):
        X = made()
        low, high = feature_range(source_of(X, center=np.full(5, 3.0)), np.arange(N_ROWS), NumpyBackend(), 7)
        np.testing.assert_array_equal(low, X.min(axis=0) - 3)
        np.testing.assert_array_equal(high, X.max(axis=0) - 3)


class TestRareSquares:
    def rare(self, X, rows, **options):
        source = ArraySource(X, np.zeros(len(X), int), None, X.dtype, **options)
        low, high = feature_range(source, rows, NumpyBackend(), 1 << 20)
        return rare_squares(source, rows, low, high, NumpyBackend(), 1 << 14)

    @pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
    def test_are_those_of_features_that_few_sampled_rows_hold(self, dtype):
        X = np.random.default_rng(0).normal(size=(5000, 7)).astype(dtype)
        X[:, 1], X[:, 2], X[:, 3], X[:, 4] = 0, 0, -0.25, 5
        X[7, 1] = X[8, 1] = 3  # in the sample twice
        X[4001, 2] = 7  # not in the sample
        X[4500, 3] = 4  # nor this
        X[::200, 5] = 50  # in the sample five times, each as large as hundreds of others
        squares = self.rare(X, np.arange(1000))
        expected = (X.astype(float) ** 2).mean(axis=0)
        expected[[0, 6]] = 0
        assert_close(squares, expected, 1e-6)

    def test_are_of_centred_features(self):
        X = np.random.default_rng(0).normal(size=(5000, 2)) + 1000
        X[:, 1] = 1000
        X[4001, 1] = 1007
        squares = self.rare(X, np.arange(1000), center=np.array([1000.0, 1000.0]))
        assert_close(squares, np.array([0, 49 / 5000]), 1e-12)

    def test_are_none_where_none_are_rare_or_no_row_is_left_out(self):
        X = np.random.default_rng(0).normal(size=(5000, 3))
        assert self.rare(X, np.arange(1000)) is None
        X[:, 1] = 0
        assert self.rare(X, np.arange(5000)) is None


class TestWeightPerClass:
    @pytest.mark.parametrize("n_rows", [1, 23, 70_001])
    @pytest.mark.parametrize("weights", [None, "shared", "each"])
    @pytest.mark.parametrize("class_weight", [None, np.array([[0.5, 2.0, 0.0, 1.0]])])
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    def test_sums(self, targets, class_weight, weights, n_rows):
        data = make_data(n_rows, 1, 3, 4, targets=targets, weights=weights)
        source = ArraySource(data.X, data.targets, data.weights, FLOAT64, class_weight=class_weight)
        rows = one_hot(data.targets, 4) if targets == "labels" else data.targets
        per_class = data.full_weights().T @ (rows * (1 if class_weight is None else class_weight))
        actual_total, actual = weight_per_class(source, 3, 4)
        assert_close(actual, per_class, 1e-12)
        assert_close(actual_total, per_class.sum(axis=1), 1e-12)

    def test_float32_weights_are_summed_in_float64(self):
        n_rows = 200_000
        weights = np.full((n_rows, 1), 0.1, np.float32)
        source = ArraySource(np.zeros((n_rows, 1), np.float32), np.zeros(n_rows, np.uint8), weights, FLOAT32)
        total, per_class = weight_per_class(source, 1, 2)
        np.testing.assert_allclose(total, n_rows * float(np.float32(0.1)), rtol=1e-12)
        np.testing.assert_allclose(per_class, [[total[0], 0.0]], rtol=1e-12)


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("f2", "f4"),
        ("f4", "f4"),
        ("f8", "f8"),
        ("g", "f8"),
        (">f2", "f4"),
        (">f4", "f4"),
        (">f8", "f8"),
        ("?", "f8"),
        ("i1", "f8"),
        ("u8", "f8"),
    ],
)
def test_compute_dtype(stored, computed):
    assert compute_dtype(np.dtype(stored)) == np.dtype(computed)
    assert compute_dtype(np.dtype(stored)).isnative
