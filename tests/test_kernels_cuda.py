"""The CUDA kernels, compiled by the real NVRTC and run by the PTX emulator, against the float64 specification."""

from dataclasses import replace

import cuda_device
import numpy as np
import pytest
from cuda_cases import (
    SURE_TOLERANCE,
    TOLERANCE,
    assert_fused_right,
    assert_right,
    errors,
    largest_error,
    make_case,
    make_fused_case,
    make_sure_case,
    make_sure_fused_case,
    solve,
    solve_fused,
    sure_class,
    sure_hessian,
)
from cuda_emulation import NO_NVRTC, Card, GiantArray, device, empty, kernels

from gpusoftmax.kernels import launches
from gpusoftmax.kernels.cuda import Kernels

pytestmark = pytest.mark.skipif(NO_NVRTC is not None and not cuda_device.is_real, reason=str(NO_NVRTC))

MANY_ROWS, FEW_ROWS = 70, 5  # a tile and a tail; enough for a kernel that takes a block per row
CLASSES = [1, 2, 3, 10, 31, 32, 33, 64, 65, 129, 257, 512, 513, 1000, 1025, 4097]
FUSED_SHAPES = (  # rows, features, classes, problems
    ((500, 16, 3, 1), {}),
    ((130, 16, 3, 4), {"label_smoothing": 0.1}),
    ((130, 54, 7, 1), {"targets": "soft", "label_smoothing": 0.1}),
    ((70, 1, 1, 1), {}),
    ((70, 7, 2, 5), {"weights": "shared", "has_intercept": False}),
    ((1, 33, 10, 2), {"weights": "column"}),
    ((70, 127, 31, 1), {"weights": None}),
    ((70, 8, 3, 60), {}),
    ((70, 72, 10, 1), {}),  # float64: above 48 KiB of shared memory with the static array only
)
ARCHITECTURES = ["compute_75", "compute_90", "compute_120"]


def rows_for(classes):
    return MANY_ROWS if classes <= 65 else 9 if classes <= 512 else FEW_ROWS


@pytest.fixture(scope="module")
def run():
    return kernels()


class TestResidual:
    @pytest.mark.parametrize("classes", CLASSES)
    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    @pytest.mark.parametrize(
        "options",
        [
            {"problems": 3},
            {"targets": "soft", "label_smoothing": 0.1, "weights": "shared"},
            {"label_smoothing": 0.1, "weights": None, "bias": False},
        ],
        ids=["weights of each problem", "soft", "smoothed, no bias, no weights"],
    )
    def test_equals_the_reference(self, run, classes, dtype, options):
        case = make_case(rows_for(classes), classes, dtype=dtype, **options)
        assert_right(case, solve(run, case, in_place=True))

    @pytest.mark.parametrize("mode", ["LOSS", "PROBABILITIES", "LOG_PROBABILITIES", "HESSIAN"])
    @pytest.mark.parametrize("classes", [1, 2, 10, 33, 129, 1000])
    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    def test_every_mode_equals_the_reference(self, run, mode, classes, dtype):
        case = make_case(rows_for(classes), classes, 2, dtype, label_smoothing=0.1)
        assert_right(case, solve(run, case, mode), mode)

    @pytest.mark.parametrize("mode", launches.MODES)
    @pytest.mark.parametrize("classes", [10, 129, 1025])
    def test_logits_of_ten_thousand(self, run, mode, classes):
        case = make_case(rows_for(classes), classes, size=1e4)
        assert_right(case, solve(run, case, mode), mode)

    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    @pytest.mark.parametrize("classes", [2, 10, 33, 2105])
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    def test_a_sure_row_keeps_its_digits(self, run, dtype, classes, targets):
        case, expected = make_sure_case(classes, dtype, targets)
        answer = solve(run, case)
        loss, output = expected
        relative = SURE_TOLERANCE[case.dtype.name]
        np.testing.assert_allclose(answer.tile_loss.sum(), loss.sum(), rtol=relative)
        np.testing.assert_allclose(answer.output[:, 0, :classes], output, rtol=relative)
        log_y = solve(run, case, "LOG_PROBABILITIES").output[:, 0, sure_class(classes)]
        np.testing.assert_allclose(log_y * case.weights, -loss, rtol=relative)

    @pytest.mark.parametrize("classes", [3, 63, 2105])
    def test_the_hessian_of_a_sure_row_keeps_its_digits(self, run, classes):
        case, _ = make_sure_case(classes, "f4")
        output = solve(run, case, "HESSIAN").output[:, 0, :classes]
        np.testing.assert_allclose(output, sure_hessian(case), rtol=2e-5, atol=1e-12 * np.exp(-20))

    @pytest.mark.parametrize("out", ["float16", "bfloat16"])
    @pytest.mark.parametrize("classes", [1, 3, 10, 129, 1000])
    def test_sixteen_bits_are_the_rounded_residual(self, run, out, classes):
        case = make_case(rows_for(classes), classes, 2)
        exact, rounded = solve(run, case), solve(run, case, out=out)
        expected = np.zeros_like(rounded.output)
        residual = exact.output[:, :, :classes]
        expected[:, :, :classes] = residual.astype("f2") if out == "float16" else bfloat16_bits(residual)
        np.testing.assert_array_equal(rounded.output.view("u2"), expected.view("u2"))
        np.testing.assert_array_equal(rounded.tile_loss, exact.tile_loss)

    @pytest.mark.parametrize("out", ["float16", "bfloat16"])
    def test_sixteen_bits_keep_what_is_not_finite(self, run, out):
        case = make_case(2, 3, weights=None)
        case.z[1, 0, 2] = np.nan
        bits = solve(run, case, out=out).output[:, 0, :3].view("u2").astype("u4")
        values = (bits << 16).view("f4") if out == "bfloat16" else bits.astype("u2").view("f2")
        assert np.isnan(values[1]).all()
        assert np.isfinite(values[0]).all()

    @pytest.mark.parametrize("classes", [3, 33, 1000])
    @pytest.mark.parametrize("mode", ["GRADIENT", "HESSIAN"])
    def test_rows_may_be_longer_than_needed(self, run, classes, mode):
        case = make_case(rows_for(classes), classes, 2)
        answer = solve(run, case, mode, extra_columns=3)  # touching what lies between is a fault
        assert answer.bits() == solve(run, case, mode).bits()
        assert_right(case, answer, mode)

    @pytest.mark.parametrize("classes", [3, 33, 1000])
    def test_in_place_equals_another_matrix(self, run, classes):
        case = make_case(rows_for(classes), classes, 2)
        assert solve(run, case, in_place=True).bits() == solve(run, case).bits()

    @pytest.mark.parametrize("weights", ["shared", "column", "each"])
    def test_weights_are_strided(self, run, weights):
        for classes in (3, 600):
            case = make_case(rows_for(classes), classes, 3, weights=weights)
            assert_right(case, solve(run, case))
            assert_right(case, solve(run, case, by_problem=True))

    @pytest.mark.parametrize("classes", [3, 1000])
    def test_a_weight_of_zero_leaves_nothing(self, run, classes):
        case = make_case(rows_for(classes), classes, 2, label_smoothing=0.1)
        case.weights[::2, 1] = 0
        answer = solve(run, case)
        assert not answer.output[::2, 1].any()
        assert_right(case, answer)
        case.weights[:] = 0
        answer = solve(run, case)
        assert not answer.output.any()
        assert not answer.tile_loss.any()

    @pytest.mark.parametrize("classes", [2, 33, 1000])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    @pytest.mark.parametrize("weight", [0.0, 1.0])
    def test_a_logit_that_is_not_finite_shows_in_its_problem_only(self, run, classes, value, targets, weight):
        case = make_case(FEW_ROWS, classes, 2, targets=targets)
        case.weights[3, 1] = weight  # bad data is not hidden by a weight of zero
        case.z[3, 1, classes - 1] = value
        answer = solve(run, case)
        assert np.isnan(answer.output[3, 1, :classes]).all()
        assert np.isnan(answer.tile_loss[1]).all()
        assert np.isfinite(answer.output[np.arange(FEW_ROWS) != 3]).all()
        assert np.isfinite(answer.tile_loss[0]).all()

    @pytest.mark.parametrize("classes", [3, 1000])
    def test_rows_without_a_finite_logit_are_nan(self, run, classes):
        case = make_case(3, classes, bias=False)
        case.z[1] = -np.inf
        answer = solve(run, case)
        assert np.isnan(answer.tile_loss).all()
        assert np.isnan(answer.output[1, 0, :classes]).all()

    @pytest.mark.parametrize("classes", [33, 1000])
    def test_lowest_logits_are_numbers(self, run, classes):
        case = make_case(2, classes, bias=False)
        case.z[...] = np.finfo("f4").min
        answer = solve(run, case)
        np.testing.assert_allclose(answer.tile_loss.sum(), case.weights.astype("f8").sum() * np.log(classes), rtol=1e-6)

    def test_equal_largest_logits(self, run):
        for classes in (4, 33, 1000):
            case = make_case(rows_for(classes), classes, bias=False)
            case.z[:, :, : classes // 2] = case.z[:, :, :classes].max() + 1
            for mode in launches.MODES:
                assert_right(case, solve(run, case, mode), mode)

    def test_one_hot_soft_targets_equal_labels(self, run):
        for classes in (10, 1000):
            case = make_case(rows_for(classes), classes, label_smoothing=0.25)
            soft = replace(case, labels=None, targets=np.eye(classes, dtype="f4")[case.labels])
            labels, one_hot = solve(run, case), solve(run, soft)
            assert largest_error(one_hot.output, labels.output) < 1e-6
            assert largest_error(one_hot.tile_loss, labels.tile_loss) < 1e-7


class TestBits:
    CASES = (make_case(330, 10, 2), make_case(330, 33, targets="soft"), make_case(330, 600, weights="shared", seed=3))

    @pytest.mark.parametrize("case", CASES, ids=["labels", "soft", "block per row"])
    def test_blocks_of_rows_give_the_bits_of_one(self, run, case):
        whole = solve(run, case, in_place=True)
        for size in (64, 192, 320):
            parts = [solve(run, case.rows(slice(i, i + size)), in_place=True) for i in range(0, 330, size)]
            assert np.concatenate([p.output for p in parts]).tobytes() == whole.output.tobytes()
            assert np.concatenate([p.tile_loss for p in parts], axis=1).tobytes() == whole.tile_loss.tobytes()

    @pytest.mark.parametrize("classes", [10, 33, 600])
    def test_the_order_of_blocks_does_not_matter(self, run, classes):
        case = make_case(130 if classes < 600 else 8, classes, 2)
        backwards = kernels(reverse_blocks=True, threads_at_once=256)
        for mode in launches.MODES:
            assert solve(backwards, case, mode).bits() == solve(run, case, mode).bits()

    @pytest.mark.parametrize("arch", ARCHITECTURES)
    def test_architectures_agree(self, run, arch):
        other = kernels(arch)
        for classes, dtype in ((1, "f4"), (10, "f8"), (31, "f4"), (129, "f4"), (1000, "f8"), (4097, "f4")):
            case = make_case(rows_for(classes), classes, 2, dtype, label_smoothing=0.1)
            for mode in ("GRADIENT", "HESSIAN"):
                answer = solve(other, case, mode)
                assert_right(case, answer, mode)
                assert answer.bits() == solve(run, case, mode).bits()
        case = make_case(9, 10)
        for out in ("float16", "bfloat16"):
            assert solve(other, case, out=out).bits() == solve(run, case, out=out).bits()

    @pytest.mark.parametrize("arch", ARCHITECTURES)
    def test_architectures_agree_on_the_fused_pass(self, run, arch):
        case = make_fused_case(130, 54, 7)
        answers = [b"".join(a.tobytes() for a in solve_fused(k, case)) for k in (run, kernels(arch))]
        assert answers[0] == answers[1]


class TestBeyondTwoToTheThirtyOne:
    """Matrices of more than 2^31 elements, of which only the touched pages exist."""

    @pytest.mark.parametrize("classes", [24, 1000])
    @pytest.mark.parametrize("mode", ["GRADIENT", "HESSIAN"])
    def test_residual(self, classes, mode):
        problems = 3
        stride = launches.padded(classes, 4)
        ld = 3_000_000  # a row of many problems, of which this launch takes the first ones
        tile = 2**31 // ld // 64 + 2
        case = make_case(64, classes, problems, weights=None, targets="soft" if mode == "GRADIENT" else "labels")
        rows, first = (tile + 1) * 64, tile * 64
        block = tile * problems if classes < 512 else first * problems
        n_blocks = problems if classes < 512 else problems * 2

        def fill(values):
            def at(elements):
                row, column = np.divmod(elements, ld)
                inside = column < problems * stride
                return values.reshape(64, -1)[np.clip(row - first, 0, 63), np.where(inside, column, 0)]

            return at

        z = GiantArray((rows, ld), "f4", fill(case.z))
        g = GiantArray((rows, ld), "f4")
        direction = GiantArray((rows, ld), "f4", fill(case.direction))
        targets = None
        if case.targets is not None:

            def soft(elements):
                row, column = np.divmod(elements, ld)
                return case.targets[np.clip(row - first, 0, 63), np.minimum(column, classes - 1)]

            targets = GiantArray((rows, ld), "f4", soft)
            targets.shape = (rows, classes)
        labels = np.zeros(rows, "i4")
        labels[first:] = 0 if case.labels is None else case.labels
        run = kernels(blocks=range(block, block + n_blocks))
        has_loss = mode == "GRADIENT"
        by_row = launches.needs_row_losses(classes, "f4")
        losses = empty((problems, rows if by_row else tile + 1))
        # `tile_losses` would read rows whose blocks do not run: its own test goes past 2^31 by itself.
        run.tile_losses = lambda *_: None
        run.residual(
            z, g, classes, problems, mode=mode, bias=device(case.bias), labels=None if has_loss else device(labels),
            targets=targets, direction=direction, direction_bias=device(case.direction_bias),
            row_loss=losses if by_row else None, tile_loss=None if by_row else losses,
        )  # fmt: skip
        n_rows = 64 if not by_row else 2
        part = case.rows(slice(0, n_rows))
        expected = part.expected(mode)[0]
        row, problem, column = np.ix_(np.arange(n_rows), np.arange(problems), np.arange(classes))
        places = (first + row) * ld + problem * stride + column
        assert places.min() > 2**31
        actual = g.buffer.values(places.ravel()).reshape(places.shape)
        assert largest_error(actual, expected) < TOLERANCE["float32"]

    def test_column_sums_and_parts(self):
        ld, columns = 2**22, 70
        rows = 2048
        ones = GiantArray((rows, ld), "f4", lambda elements: (elements // ld + elements % ld).astype("f4"))
        ones.shape = (rows, columns)
        groups = launches.column_sum_parts(rows)
        last = range(2 * (groups - 1), 2 * groups)
        run = kernels(blocks=last)
        parts, out = empty((groups, columns)), empty((columns,))
        run.sum_parts = lambda *_, **__: None
        run.column_sums(ones, parts, out)
        expected = np.add.outer(np.arange(rows - 512, rows), np.arange(columns)).sum(axis=0)
        np.testing.assert_array_equal(np.asarray(parts)[-1], expected)

    def test_fused_small(self):
        ld, features, tile = 2**24, 6, 3
        case = make_fused_case(64, features, 3)
        rows = 64 * (tile + 1)

        def fill(elements):
            row, column = np.divmod(elements, ld)
            return case.X[np.clip(row - 64 * tile, 0, 63), np.minimum(column, features - 1)]

        X = GiantArray((rows, ld), "f4", fill)
        X.shape = (rows, features)
        run = kernels(blocks=[tile])
        parts, tile_loss = empty((tile + 1, *case.params.shape), "f4"), empty((1, tile + 1))
        pad = [np.zeros(64 * tile, "i4"), case.labels], [np.zeros((64 * tile, 1), "f4"), case.weights]
        labels, weights = (device(np.concatenate(p)) for p in pad)
        run.fused_small(X, device(case.params), parts, tile_loss, labels=labels, weights=weights)
        assert ld * 64 * tile > 2**31
        loss, gradient = case.expected()
        assert largest_error(np.asarray(parts)[tile], gradient) < TOLERANCE["float32"]
        assert largest_error(np.asarray(tile_loss)[:, tile], loss) < 1e-6


class TestFused:
    @pytest.mark.parametrize(
        ("dtype", "shape", "options"),
        [(dtype, *shape) for dtype in ("f4", "f8") for shape in FUSED_SHAPES] + [("f4", (40, 784, 10, 1), {})],
        ids=str,
    )
    def test_equals_the_reference(self, run, dtype, shape, options):
        case = make_fused_case(*shape, dtype, **options)
        assert_fused_right(case, *solve_fused(run, case))

    @pytest.mark.parametrize("shared_limit", [12_500, 19_000, 40_000])
    def test_less_shared_memory_takes_fewer_rows_at_once(self, run, shared_limit):
        rounds = launches.fused_rows_per_round(100, 7, 1, "f4", shared_limit)
        assert rounds == {12_500: 16, 19_000: 32, 40_000: 64}[shared_limit]
        case = make_fused_case(130, 100, 7)
        assert_fused_right(case, *solve_fused(run, case, shared_limit=shared_limit))

    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    def test_sure_rows_keep_their_digits(self, run, dtype):
        case, (loss, residual) = make_sure_fused_case(10, dtype)
        found_loss, _, gradient = solve_fused(run, case)
        relative = SURE_TOLERANCE[case.X.dtype.name]
        np.testing.assert_allclose(found_loss, [loss], rtol=relative)
        np.testing.assert_allclose(gradient[:, 0], [residual, residual], rtol=relative)

    def test_logits_beyond_the_exponent(self, run):
        case = make_fused_case(70, 3, 4, 2, "f8", spread=1e3)  # exp of one of them would be infinite
        assert_fused_right(case, *solve_fused(run, case))

    def test_weights_are_strided(self, run):
        case = make_fused_case(70, 3, 4, 2)
        assert_fused_right(case, *solve_fused(run, case, by_problem=True))

    @pytest.mark.parametrize("columns", [6, 8])
    def test_rows_of_x_may_be_strided(self, run, columns):
        case = make_fused_case(70, 6, 4)
        wide = device(np.full((70, columns + 3 if columns == 6 else columns), np.nan, "f4"))
        wide[:, :6] = case.X
        assert_fused_right(case, *solve_fused(run, case, X=wide[:, :6]))

    def test_x_may_start_anywhere(self, run):
        case = make_fused_case(70, 4, 3)
        memory = device(np.full(70 * 4 + 1, np.nan, "f4"))
        memory[1:] = case.X.ravel()
        assert_fused_right(case, *solve_fused(run, case, X=memory[1:].reshape(70, 4)))

    def test_the_order_of_blocks_does_not_matter(self, run):
        case = make_fused_case(300, 16, 3, 2)
        backwards = kernels(reverse_blocks=True, threads_at_once=256)
        for first, second in zip(solve_fused(run, case), solve_fused(backwards, case), strict=True):
            assert first.tobytes() == second.tobytes()

    def test_tile_losses_are_those_of_the_residual_kernel(self, run):
        # Same logits to the bit: one feature, and a params that keeps products exact.
        fused = make_fused_case(130, 1, 10, 2, weights="each", has_intercept=False)
        fused.params[...] = np.round(fused.params * 4) / 4
        fused.X[...] = np.round(fused.X * 4) / 4
        z = np.zeros((130, 2, 12), "f4")
        z[:, :, :10] = fused.X[:, :, np.newaxis] * fused.params[0]
        case = replace(make_case(130, 10, 2, bias=False), z=z, labels=fused.labels, weights=fused.weights)
        _, tile_loss, _ = solve_fused(run, fused)
        assert largest_error(tile_loss, solve(run, case).tile_loss) < 1e-7

    def test_more_tiles_than_blocks(self, run, monkeypatch):
        monkeypatch.setattr(launches, "FUSED_GRID", 2)
        case = make_fused_case(500, 6, 3, 2)
        assert_fused_right(case, *solve_fused(run, case))


class TestSums:
    @pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
    @pytest.mark.parametrize("accumulate", [False, True])
    def test_sum_losses(self, run, count, accumulate):
        values = np.random.default_rng(0).random((3, count + 2))
        total = device(np.array([1.0, 2.0, 3.0])) if accumulate else empty((3,))
        run.sum_losses(device(values)[:, :count], total, accumulate=accumulate)
        expected = values[:, :count].sum(axis=1) + ([1, 2, 3] if accumulate else 0)
        np.testing.assert_allclose(total, expected, rtol=1e-14)

    @pytest.mark.parametrize("rows", [1, 32, 33, 64, 65, 200])
    def test_tile_losses(self, run, rows):
        values = np.random.default_rng(0).random((2, rows))
        tiles = empty((2, launches.n_tiles(rows)))
        run.tile_losses(device(values), tiles)
        np.testing.assert_allclose(tiles, np.add.reduceat(values, np.arange(0, rows, 64), axis=1), rtol=1e-15)

    @pytest.mark.parametrize(("part", "out"), [("f4", "f4"), ("f8", "f4"), ("f4", "f8"), ("f8", "f8")])
    @pytest.mark.parametrize("accumulate", [False, True])
    def test_sum_parts(self, run, part, out, accumulate):
        parts = np.random.default_rng(0).normal(size=(7, 30, 10)).astype(part)
        before = np.full((30, 10), 2.0, out)
        total = device(before) if accumulate else empty((30, 10), out)
        run.sum_parts(device(parts), total, scale=0.75, accumulate=accumulate)
        expected = 0.75 * parts.astype("f8").sum(axis=0) + (before if accumulate else 0)
        np.testing.assert_allclose(total, expected, rtol=1e-13, atol=np.finfo(out).eps * 8)

    def test_parts_are_added_in_double(self, run):
        total = empty((4,), "f4")
        run.sum_parts(device(np.array([[1e8] * 4, [1.0] * 4, [-1e8] * 4], "f4")), total)
        np.testing.assert_array_equal(total, 1)

    @pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "bfloat16"])
    @pytest.mark.parametrize("shape", [(1, 2), (7, 64), (512, 66), (1030, 12)])
    def test_column_sums(self, run, dtype, shape):
        values = np.random.default_rng(0).normal(size=shape).astype("f4" if dtype == "bfloat16" else dtype)
        g = values
        if dtype == "bfloat16":
            g = bfloat16_bits(values)
            values = (g.astype("u4") << 16).view("f4")
        roomy = device(np.zeros((shape[0], shape[1] + 8), g.dtype))
        roomy[:, : shape[1]] = g
        out = device(np.ones(shape[1]))
        parts = empty((launches.column_sum_parts(shape[0]), shape[1]))
        run.column_sums(roomy[:, : shape[1]], parts, out, scale=2.0, accumulate=True)
        np.testing.assert_allclose(out, 1 + 2 * values.astype("f8").sum(axis=0), rtol=1e-13, atol=1e-12)

    @pytest.mark.parametrize("out", ["f4", "f8", "f2", "bfloat16"])
    @pytest.mark.parametrize(("rows", "classes", "problems"), [(1, 1, 1), (5, 3, 4), (9, 16, 2), (3, 33, 1)])
    @pytest.mark.parametrize("given", ["f4", "f8"])
    def test_padding_and_back(self, run, given, out, rows, classes, problems):
        dtype = np.dtype("u2" if out == "bfloat16" else out)
        values = np.random.default_rng(0).normal(size=(rows, problems * classes)).astype(given)
        stride = launches.padded(classes, dtype.itemsize)
        padded = empty((rows, problems * stride + 16), dtype)
        view = padded[:, : problems * stride]
        view.valid = padded.valid[:, : problems * stride]
        run.pad_classes(device(values), classes, problems, view)
        expected = np.zeros((rows, problems, stride), dtype)
        rounded = (
            bfloat16_bits(values) if out == "bfloat16" else values.astype("f8" if out == "f8" else "f4").astype(out)
        )
        expected[:, :, :classes] = rounded.reshape(rows, problems, classes)
        np.testing.assert_array_equal(np.asarray(view).reshape(expected.shape), expected)
        if dtype.itemsize == 2:
            return
        back, scale = empty((rows, problems * classes), "f8"), np.arange(1.0, problems + 1)
        run.unpad_classes(device(view), classes, problems, stride, back, scale=device(scale))
        np.testing.assert_array_equal(back, values.astype(out).astype("f8") * np.repeat(scale, classes))
        plain = empty((rows, problems * classes), "f4")
        run.unpad_classes(device(view), classes, problems, stride, plain)
        np.testing.assert_array_equal(plain, values.astype("f4"))


def bfloat16_bits(values):
    """Return float32 numbers rounded to bfloat16, as uint16: to nearest, ties to even."""
    bits = np.ascontiguousarray(values, "f4").view("u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("u2")


class TestChecks:
    """What the host refuses, since a kernel sees only addresses."""

    def call(self, **changes):
        case = make_case(4, 3, 2)
        arrays = {"z": device(case.z.reshape(4, -1)), "labels": device(case.labels), "weights": device(case.weights)}
        arrays |= {"tile_loss": empty((2, 1)), "bias": device(case.bias)} | changes
        z = arrays.pop("z")
        kernels().residual(z, arrays.pop("g", z), 3, 2, **arrays)

    def test_what_it_takes(self):
        self.call()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": device(np.zeros(4, "i8"))}, "labels must be int32; got int64"),
            ({"weights": device(np.ones((4, 2)))}, "weights must be float32; got float64"),
            ({"weights": device(np.ones((4, 3), "f4"))}, "weights must have 4 rows and 1 or 2 columns"),
            ({"weights": device(np.ones((3, 2), "f4"))}, "weights must have 4 rows"),
            ({"labels": device(np.zeros(3, "i4"))}, r"labels must have shape \(4,\); got \(3,\)"),
            ({"bias": device(np.zeros((2, 3), "f4"))}, r"bias must have shape \(2, 4\)"),
            ({"tile_loss": empty((1, 2))}, r"tile_loss must have shape \(2, 1\)"),
            ({"z": device(np.zeros((4, 4), "f4"))}, "z needs 2 x 4 columns"),
            ({"g": device(np.zeros((4, 8), "u2"))}, "g needs 2 x 8 columns"),
            ({"mode": "PROBABILITIES", "g": device(np.zeros((4, 16), "f2"))}, "16-bit output"),
            ({"tile_loss": empty((2, 1), "f4")}, "tile_loss must be float64; got float32"),
            ({"tile_loss": None}, "needs tile_loss"),
            ({"z": device(np.zeros((4, 12), "f4"))[:, 1:]}, "must start at multiples of 16 bytes"),
            ({"z": device(np.zeros((4, 9), "f4"))[:, :8]}, "must start at multiples of 16 bytes"),
            ({"z": device(np.zeros((8, 4), "f4")).T, "tile_loss": empty((2, 1))}, "contiguous rows"),
            ({"labels": device(np.zeros(8, "i4"))[::2]}, "labels must be contiguous"),
            ({"mode": "HESSE"}, "mode must be one of"),
            ({"z": device(np.zeros((4, 8), "i4"))}, "int32|float"),
        ],
        ids=str,
    )
    def test_what_it_refuses(self, changes, message):
        with pytest.raises((ValueError, TypeError), match=message):
            self.call(**changes)

    def test_more_blocks_than_cuda_takes(self):
        with pytest.raises(ValueError, match="use fewer rows per block"):
            launches.residual(2**30, 1000, 3, "f4")

    def test_a_problem_too_large_for_the_fused_kernel(self):
        assert launches.fused_rows_per_round(5000, 10, 1, "f4") is None
        with pytest.raises(ValueError, match="cannot hold 5000 features x 1 problems x 10 classes"):
            launches.fused_small(100, 5000, 10, 1, "f4")

    def test_a_module_is_compiled_once(self):
        run = kernels()
        assert run.function("tile_losses") is run.function("tile_losses")


@pytest.mark.parametrize("classes", [10, 1000])
def test_what_goes_to_a_card_comes_back(classes):
    case = make_case(rows_for(classes), classes, 2, label_smoothing=0.1)
    with cuda_device.cuda():
        assert_right(case, solve(Kernels(Card()), case, in_place=True))


def test_the_comparison_can_fail(run):
    case = make_case(9, 3)
    answer = solve(run, case)
    answer.output[0, 0, 0] += 1e-5
    assert errors(case, answer)[0] > TOLERANCE["float32"]
