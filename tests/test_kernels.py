import mpmath
import numpy as np
import pytest
from oracle import (
    FLOAT32,
    FLOAT64,
    ROUNDING,
    STEP,
    assert_close,
    complex_step,
    hand_plan,
    make_data,
    one_hot,
    summed_losses,
)

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.kernels import cpu, reference
from gpusoftmax.kernels.curvature import CurvatureSums, curvature
from gpusoftmax.kernels.scores import ScoreSums, add_scores
from gpusoftmax.kernels.workspace import Sums, Workspace
from gpusoftmax.plan import MetricPlan
from gpusoftmax.sources import ArraySource, Block

DTYPES = [FLOAT64, FLOAT32]
LAYOUTS = pytest.mark.parametrize("is_class_major", [True, False], ids=["class-major", "row-major"])
SHAPES = [  # rows, features, problems, classes
    (1, 1, 1, 1),
    (1, 7, 3, 2),
    (13, 1, 1, 2),
    (13, 7, 3, 3),
    (101, 100, 1, 3),
    (101, 7, 3, 10),
    (127, 7, 1, 31),
    (64, 100, 1, 33),
    (97, 7, 3, 65),
    (31, 7, 1, 129),
    (11, 1, 1, 1000),
    (7, 7, 3, 1000),
]


def poisoned(plan):
    """Return a workspace whose every entry is NaN: what is read before it is written shows."""
    work = Workspace(plan)
    poison(work)
    return work


def poison(work):
    for buffer in (work.logits, work.scratch, work.soft, *work.vectors, work.product, work.rows):
        if buffer is not None:
            buffer.fill(np.nan)


def add_task(block, params, work, sums, label_smoothing=0.0):
    cpu.loss_and_gradient(block, cpu.Affine.of(params, work.plan.dtype), work, sums, label_smoothing)


def block_of(data, rows=slice(None)):
    return Block(data.X[rows], data.targets[rows], None if data.weights is None else data.weights[rows])


def run_lanes(plan, data, work, label_smoothing=0.0):
    """Return the sums of all lanes, added in their order."""
    total = Sums(plan)
    for lane in range(plan.n_lanes):
        sums = Sums(plan)
        for rows in plan.tasks(lane):
            add_task(block_of(data, rows), data.params, work, sums, label_smoothing)
        total.add(sums)
    return total


def expected_sums(data, label_smoothing=0.0):
    return reference.loss_and_gradient(data.X, data.targets, data.full_weights(), data.params, label_smoothing)


def put_logits(logits, work):
    """Write logits (rows, P, K) where `cpu.logits` would leave them."""
    chunk = work.chunk(0, len(logits))
    chunk.z[:] = logits.transpose(1, 2, 0)
    return chunk


def logits_of(X, params, work):
    """Return logits (rows, P, K) of a task."""
    affine = cpu.Affine.of(params, work.plan.dtype)
    return np.concatenate([chunk.z.transpose(2, 0, 1) for _, chunk in cpu.logits(X, affine, work)])


class TestReference:
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    @pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 2, 2), (17, 4, 3, 5)])
    def test_loss_and_gradient_follow_from_the_definition(self, shape, label_smoothing, targets):
        data = make_data(*shape, targets=targets, weights="each")

        def losses(params):
            return summed_losses(data.X, data.targets, data.full_weights(), params, label_smoothing)

        loss, gradient = expected_sums(data, label_smoothing)
        assert_close(loss, losses(data.params), 1e-13)
        assert_close(gradient, complex_step(losses, data.params), 1e-12)

    def test_residual_is_weighted_probability_minus_target(self):
        logits = np.log(np.array([[[0.5, 0.25, 0.25]], [[0.1, 0.2, 0.7]]]))
        G, loss = reference.residual(logits, np.array([0, 1]), np.array([[2.0], [0.5]]))
        assert_close(G, [[[-1.0, 0.5, 0.5]], [[0.05, -0.4, 0.35]]], 1e-15)
        assert_close(loss, [2 * np.log(2) + 0.5 * np.log(5)], 1e-15)

    def test_smoothed_targets(self):
        assert_close(reference.target_matrix(np.array([1]), 4, 0.2), [[0.05, 0.85, 0.05, 0.05]], 1e-15)
        soft = np.array([[0.5, 0.5, 0.0, 0.0]])
        assert_close(reference.target_matrix(soft, 4, 0.2), [[0.45, 0.45, 0.05, 0.05]], 1e-15)

    def test_class_curvature_is_the_hessian_in_the_intercept(self):
        data = make_data(19, 3, 2, 4, weights="each")
        _, classes = reference.curvature(data.X, data.full_weights(), data.params)
        for k in range(4):
            moved = data.params.astype(complex)
            moved[-1, :, k] += 1j * STEP
            _, gradient = reference.loss_and_gradient(data.X, data.targets, data.full_weights(), moved)
            assert_close(classes[:, k], gradient[-1].imag / STEP, 1e-13)

    def test_feature_curvature_is_the_hessian_summed_over_classes_and_problems(self):
        data = make_data(19, 3, 2, 4, weights="each")
        gram, _ = reference.curvature(data.X, data.full_weights(), data.params)
        expected = np.zeros((4, 4))
        for d in range(4):
            for k in range(4):
                moved = data.params.astype(complex)
                moved[d, :, k] += 1j * STEP
                _, gradient = reference.loss_and_gradient(data.X, data.targets, data.full_weights(), moved)
                expected[d] += gradient[:, :, k].imag.sum(axis=1) / STEP
        assert_close(gram, expected, 1e-13)


class TestLossAndGradient:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @LAYOUTS
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    @pytest.mark.parametrize("weights", [None, "shared", "each"])
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_equal_the_reference(self, shape, targets, weights, label_smoothing, is_class_major, dtype):
        data = make_data(*shape, targets=targets, weights=weights)
        plan = hand_plan(data, dtype=dtype, block_rows=4, stack=3, is_class_major=is_class_major)
        sums = run_lanes(plan, data.cast(dtype), poisoned(plan), label_smoothing)
        loss, gradient = expected_sums(data, label_smoothing)
        assert sums.loss.dtype == np.float64
        assert_close(sums.loss, loss, ROUNDING[dtype], scale=np.abs(loss).max() + data.full_weights().sum())
        # Each entry is a sum over the rows of terms of order one that may cancel: rounding goes with their sizes.
        size = np.abs(data.X).max() * data.full_weights().sum(axis=0).max()
        assert_close(sums.as_params(data.params), gradient, ROUNDING[dtype], scale=size)

    @pytest.mark.parametrize("block_rows", [1, 2, 7, 12, 13, None])
    @pytest.mark.parametrize("stack", [1, 2, 5])
    @pytest.mark.parametrize("n_lanes", [1, 3])
    @pytest.mark.parametrize("n_rows", [1, 12, 13, 53])
    def test_no_tail_is_lost_or_counted_twice(self, n_rows, n_lanes, stack, block_rows):
        data = make_data(n_rows, 3, 2, 4, weights="each")
        plan = hand_plan(data, block_rows=block_rows, stack=stack, n_lanes=n_lanes)
        sums = run_lanes(plan, data, poisoned(plan))
        loss, gradient = expected_sums(data)
        assert_close(sums.loss, loss, 1e-13)
        assert_close(sums.as_params(data.params), gradient, 1e-13)

    @pytest.mark.parametrize("order", ["C", "F"])
    @LAYOUTS
    def test_memory_order_of_the_rows(self, order, is_class_major):
        data = make_data(53, 6, 2, 4)
        X = np.asarray(data.X, order=order)
        plan = hand_plan(data, block_rows=5, stack=3, is_class_major=is_class_major)
        sums = Sums(plan)
        work = poisoned(plan)
        for rows in plan.tasks(0):
            add_task(Block(X[rows], data.targets[rows], None), data.params, work, sums)
        assert_close(sums.as_params(data.params), expected_sums(data)[1], 1e-13)

    @pytest.mark.parametrize("label_dtype", [np.uint8, np.uint16, np.int32, np.int64])
    def test_label_dtype_does_not_limit_offsets(self, label_dtype):
        # 300 rows of 129 classes: flat offsets beyond what uint8 and uint16 hold.
        data = make_data(701, 2, 1, 129)
        plan = hand_plan(data)
        sums = Sums(plan)
        block = Block(data.X, data.targets.astype(label_dtype), None)
        add_task(block, data.params, poisoned(plan), sums)
        assert_close(sums.as_params(data.params), expected_sums(data)[1], 1e-13)

    def test_adds_to_the_sums_it_is_given(self):
        data = make_data(13, 3, 1, 4)
        plan = hand_plan(data)
        work, sums = poisoned(plan), Sums(plan)
        for _ in range(3):
            add_task(block_of(data), data.params, work, sums)
        loss, gradient = expected_sums(data)
        assert_close(sums.loss, 3 * loss, 1e-13)
        assert_close(sums.as_params(data.params), 3 * gradient, 1e-13)

    def test_inputs_are_not_modified(self):
        for targets in ("labels", "soft"):
            data = make_data(13, 3, 2, 4, targets=targets, weights="each")
            copy = make_data(13, 3, 2, 4, targets=targets, weights="each")
            plan = hand_plan(data)
            run_lanes(plan, data, poisoned(plan), 0.3)
            for given, before in zip(vars(data).values(), vars(copy).values(), strict=True):
                np.testing.assert_array_equal(given, before)

    def test_sums_are_not_views_of_the_workspace(self):
        data = make_data(13, 3, 1, 4)
        plan = hand_plan(data)
        work = poisoned(plan)
        sums = run_lanes(plan, data, work)
        before = sums.as_params(data.params).copy()
        poison(work)
        np.testing.assert_array_equal(sums.as_params(data.params), before)

    @pytest.mark.parametrize("n_threads", [1, 3])
    def test_results_of_a_pass_survive_the_next(self, n_threads):
        data = make_data(53, 3, 2, 4)
        plan = hand_plan(data, block_rows=5, n_lanes=n_threads, n_threads=n_threads)
        fused_pass = NumpyBackend().fused_pass(ArraySource(data.X, data.targets, None, FLOAT64), plan)
        loss, gradient = fused_pass.loss_and_gradient(data.params, 0.0)
        loss_before, gradient_before = loss.copy(), gradient.copy()
        fused_pass.loss_and_gradient(-data.params, 0.0)
        np.testing.assert_array_equal(loss, loss_before)
        np.testing.assert_array_equal(gradient, gradient_before)

    def test_float32_sums_do_not_drift(self):
        # One row many times over: the lane adds up in float64, so that only each block's rounding is left.
        data = make_data(1, 3, 1, 4)
        n_blocks = 5000
        plan = hand_plan(data, dtype=FLOAT32)
        sums, work, single = Sums(plan), poisoned(plan), data.cast(FLOAT32)
        for _ in range(n_blocks):
            add_task(block_of(single), single.params, work, sums)
        loss, gradient = expected_sums(data)
        assert_close(sums.loss, n_blocks * loss, 1e-6)
        assert_close(sums.as_params(data.params), n_blocks * gradient, 1e-6)


class TestLogits:
    @LAYOUTS
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_equal_the_reference(self, shape, is_class_major):
        data = make_data(*shape)
        plan = hand_plan(data, is_class_major=is_class_major)
        assert_close(logits_of(data.X, data.params, poisoned(plan)), reference.logits(data.X, data.params), 1e-13)

    def test_blocks_follow_each_other(self):
        data = make_data(12, 3, 2, 4)
        plan = hand_plan(data, block_rows=4, stack=3)
        assert_close(logits_of(data.X, data.params, poisoned(plan)), reference.logits(data.X, data.params), 1e-13)


class TestResidual:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    @pytest.mark.parametrize("size", [1e4, -1e4, 80.0])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    @LAYOUTS
    def test_large_logits(self, is_class_major, size, label_smoothing, targets, dtype):
        data = make_data(41, 2, 2, 5, targets=targets, weights="each").cast(dtype)
        logits = np.random.default_rng(1).choice([-size, 0.0, size / 2, size], (41, 2, 5)).astype(dtype)
        plan = hand_plan(data, dtype=dtype, is_class_major=is_class_major)
        chunk = put_logits(logits, poisoned(plan))
        loss = cpu.residual(chunk, block_of(data), label_smoothing)
        args = (data.targets, data.full_weights(), label_smoothing)
        expected, expected_loss = reference.residual(logits.astype(float), *args)
        assert_close(chunk.z.transpose(2, 0, 1), expected, ROUNDING[dtype])
        assert_close(loss, expected_loss, ROUNDING[dtype])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("weight", [None, 3.0])
    @pytest.mark.parametrize("n_classes", [2, 3, 33])
    @pytest.mark.parametrize("lead", [40.0, 5.0, 0.0, -5.0, -40.0])
    @LAYOUTS
    def test_a_sure_model_keeps_relative_precision(self, is_class_major, lead, n_classes, weight, dtype):
        # At a lead of 40 the probability of the target rounds to one: log y and y - 1 would both be zero.
        data = make_data(1, 1, 1, n_classes)
        plan = hand_plan(data, dtype=dtype, is_class_major=is_class_major)
        logits = np.full((1, 1, n_classes), 0.5)
        logits[0, 0, 1] += lead
        chunk = put_logits(logits, poisoned(plan))
        weights = None if weight is None else np.array([[weight]], dtype)
        loss = cpu.residual(chunk, Block(data.X.astype(dtype), np.array([1], np.uint8), weights), 0.0)

        with mpmath.workdps(60):
            others = (n_classes - 1) * mpmath.exp(-lead)
            s = 1 if weight is None else weight
            expected_loss = float(s * mpmath.log1p(others))
            at_target = float(-s * others / (1 + others))
            elsewhere = float(s * mpmath.exp(-lead) / (1 + others))
        expected = np.full(n_classes, elsewhere)
        expected[1] = at_target
        relative = 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(loss, [expected_loss], rtol=relative)
        np.testing.assert_allclose(chunk.z[0, :, 0], expected, rtol=relative)

    @pytest.mark.parametrize("targets", ["labels", "soft"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("at_target", [True, False])
    @pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # `_Crew` silences it
    def test_a_logit_that_is_not_finite_shows_in_its_problem_only(self, at_target, label_smoothing, value, targets):
        data = make_data(5, 1, 2, 3)
        labels = np.array([0, 1, 2, 0, 1])
        plan = hand_plan(data, is_soft=targets == "soft")
        logits = np.random.default_rng(0).normal(size=(5, 2, 3))
        logits[3, 1, 0 if at_target else 2] = value
        given = labels if targets == "labels" else one_hot(labels, 3)
        loss = cpu.residual(put_logits(logits, poisoned(plan)), Block(data.X, given, None), label_smoothing)
        assert np.isfinite(loss[0])
        assert np.isnan(loss[1])

    @LAYOUTS
    def test_one_hot_soft_targets_equal_labels(self, is_class_major):
        data = make_data(31, 2, 2, 5, weights="each")
        logits = reference.logits(data.X, data.params)
        residuals, losses = [], []
        for targets in (data.targets, one_hot(data.targets, 5)):
            plan = hand_plan(data, is_soft=targets.ndim == 2, is_class_major=is_class_major)
            chunk = put_logits(logits, poisoned(plan))
            losses.append(cpu.residual(chunk, Block(data.X, targets, data.weights), 0.25))
            residuals.append(chunk.z.copy())
        assert_close(*losses, 1e-14)
        assert_close(*residuals, 1e-14)

    @pytest.mark.parametrize("targets", ["labels", "soft"])
    @LAYOUTS
    def test_rows_sum_to_zero_and_a_constant_changes_nothing(self, is_class_major, targets):
        data = make_data(31, 2, 2, 5, targets=targets, weights="each")
        plan = hand_plan(data, is_class_major=is_class_major)
        logits = reference.logits(data.X, data.params)
        chunk, moved = put_logits(logits, poisoned(plan)), put_logits(logits + 3.0, poisoned(plan))
        loss = cpu.residual(chunk, block_of(data), 0.1)
        assert_close(cpu.residual(moved, block_of(data), 0.1), loss, 1e-13)
        assert_close(moved.z, chunk.z, 1e-13)
        assert np.abs(chunk.z.sum(axis=1)).max() < 1e-13

    @LAYOUTS
    @pytest.mark.parametrize("is_soft", [False, True])
    def test_chunks_of_a_task_are_apart(self, is_soft, is_class_major):
        data = make_data(31, 2, 2, 5, targets="soft" if is_soft else "labels")
        plan = hand_plan(data, is_class_major=is_class_major)
        work, logits = poisoned(plan), reference.logits(data.X, data.params)
        starts = range(0, 31, 31 if is_class_major else 7)
        for start in starts:
            rows = slice(start, min(start + starts.step, 31))
            work.chunk(start, rows.stop - start).z[:] = logits[rows].transpose(1, 2, 0)
        for start in starts:
            rows = slice(start, min(start + starts.step, 31))
            cpu.residual(work.chunk(start, rows.stop - start), block_of(data, rows), 0.0)
        G, _ = reference.residual(logits, data.targets, data.full_weights())
        assert_close(work.chunk(0, 31).z.transpose(2, 0, 1), G, 1e-13)


class TestPredict:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @LAYOUTS
    @pytest.mark.parametrize("n_classes", [1, 2, 3, 33, 1000])
    @pytest.mark.parametrize("size", [1.0, 1e4])
    def test_equals_the_reference(self, size, n_classes, is_class_major, dtype):
        data = make_data(12, 3, 1, n_classes)
        data = (
            data.cast(dtype)
            if size == 1
            else data.__class__(data.X, data.targets, None, size * data.params).cast(dtype)
        )
        plan = hand_plan(data, dtype=dtype, block_rows=4, stack=3, is_class_major=is_class_major)
        logits = reference.logits(data.X.astype(float), data.params.astype(float))[:, 0]
        log_y = reference.log_softmax(logits)
        off = ROUNDING[dtype] * size  # of the logits themselves, relative to one
        for output, expected in {"logits": logits, "log_probabilities": log_y, "probabilities": np.exp(log_y)}.items():
            actual = cpu.predict(logits_of(data.X, data.params, poisoned(plan)).transpose(1, 2, 0), output)
            assert_close(actual, expected, 10 * off, scale=1)
        picked = cpu.predict(logits_of(data.X, data.params, poisoned(plan)).transpose(1, 2, 0), "classes")
        assert picked.shape == (12,)
        assert (logits[np.arange(12), picked] >= logits.max(axis=1) - 10 * off).all()

    def test_log_probabilities_stay_finite_where_probabilities_vanish(self):
        data = make_data(1, 1, 1, 2)
        plan = hand_plan(data)
        z = put_logits(np.array([[[0.0, 1e4]]]), poisoned(plan)).z
        assert_close(cpu.predict(z, "log_probabilities"), [[-1e4, 0.0]], 1e-15)

    @pytest.mark.parametrize("output", ["logits", "probabilities", "log_probabilities", "classes"])
    def test_every_row_lands_in_its_place(self, output):
        data = make_data(53, 3, 1, 4)
        plan = hand_plan(data, block_rows=5, stack=2, n_lanes=3, n_threads=3)
        source = ArraySource(data.X, data.targets, None, FLOAT64)
        out = np.full(53, -1) if output == "classes" else np.full((53, 4), np.nan)
        NumpyBackend().predict(source, plan, data.params, output, out)
        whole = hand_plan(data)
        expected = cpu.predict(logits_of(data.X, data.params, Workspace(whole)).transpose(1, 2, 0), output)
        assert_close(out, expected, 1e-13)


class TestCurvature:
    @pytest.mark.parametrize("weights", [None, "shared", "each"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(
        ("is_feature_full", "is_class_full"), [(True, True), (True, False), (False, True), (False, False)]
    )
    @pytest.mark.parametrize("shape", [(1, 1, 1, 1), (13, 7, 3, 2), (101, 7, 1, 3), (31, 4, 3, 33)], ids=str)
    def test_equals_the_reference(self, shape, is_feature_full, is_class_full, dtype, weights):
        data = make_data(*shape, weights=weights)
        scale = np.exp2(np.random.default_rng(0).integers(-3, 4, shape[1])).astype(float)
        plan = MetricPlan(dtype, 5, 1, is_feature_full, is_class_full, 0)
        sums = CurvatureSums(np, *shape[1:], plan)
        single = data.cast(dtype)
        for start in range(0, shape[0], 5):
            block = block_of(single, slice(start, start + 5))
            curvature(block.X, block.weights, single.params, scale, sums)
        same_logits = data.params / np.append(scale, 1)[:, np.newaxis, np.newaxis]
        gram, classes = reference.curvature(data.X * scale, data.full_weights(), same_logits)
        size = np.abs(gram).max() + shape[0]
        assert_close(sums.gram, gram if is_feature_full else np.diagonal(gram), ROUNDING[dtype], scale=size)
        if not is_feature_full:
            assert_close(sums.offsets, gram[:-1, -1], ROUNDING[dtype], scale=size)
        diagonals = np.diagonal(classes, axis1=1, axis2=2)
        assert_close(sums.classes, classes if is_class_full else diagonals, ROUNDING[dtype], scale=2 * shape[0])
        assert_close(sums.weight, data.full_weights().sum(axis=0), 1e-15)

    def test_full_factors_are_symmetric(self):
        data = make_data(31, 4, 2, 5, weights="each")
        sums = CurvatureSums(np, 4, 2, 5, MetricPlan(FLOAT64, 31, 1, True, True, 0))
        curvature(block_of(data).X, block_of(data).weights, data.params, np.ones(4), sums)
        assert_close(sums.gram, sums.gram.T, 1e-15)
        assert_close(sums.classes, sums.classes.transpose(0, 2, 1), 1e-15)


class TestScores:
    @pytest.mark.parametrize("weights", ["shared", "each"])
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    @pytest.mark.parametrize("n_rows", [1, 1638, 1639, 4000])  # a piece has 1638
    def test_are_the_reference_s(self, n_rows, targets, weights):
        data = make_data(n_rows, 4, 2, 5, targets=targets, weights=weights)
        logits = reference.logits(data.X, data.params)
        sums = ScoreSums(np, 1, 2)
        add_scores(logits.transpose(1, 2, 0).copy(), data.targets, data.weights, sums)
        loss, correct = reference.scores(logits, data.targets, data.full_weights())
        assert_close(sums.loss[0], loss, 1e-13)
        assert_close(sums.correct[0], correct, 1e-13)
        assert_close(sums.weight[0], data.full_weights().sum(axis=0), 1e-13)
        _, classes = reference.curvature(data.X, data.full_weights(), data.params)
        assert_close(sums.spread[0], np.trace(classes, axis1=1, axis2=2), 1e-13)

    def test_of_several_sets_of_rows(self):
        data = make_data(300, 4, 2, 5)
        train, held_out = np.random.default_rng(0).integers(0, 3, (2, 300, 2)).astype(float)
        logits = reference.logits(data.X, data.params)
        sums = ScoreSums(np, 2, 2)
        add_scores(logits.transpose(1, 2, 0).copy(), data.targets, np.hstack([train, held_out]), sums)
        for s, weights in enumerate((train, held_out)):
            loss, correct = reference.scores(logits, data.targets, weights)
            assert_close(sums.loss[s], loss, 1e-13)
            assert_close(sums.correct[s], correct, 1e-13)

    def test_the_first_of_equal_logits_is_the_prediction(self):
        sums = ScoreSums(np, 1, 1)
        add_scores(np.zeros((1, 3, 4)), np.array([0, 1, 2, 0]), np.ones((4, 1)), sums)
        assert sums.correct == 2

    def test_large_logits_do_not_overflow(self):
        sums = ScoreSums(np, 1, 1)
        z = np.array([[[1e4], [0.0]]], np.float32)
        add_scores(z, np.array([1]), np.ones((1, 1)), sums)
        assert sums.loss == 1e4
