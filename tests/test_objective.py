from dataclasses import replace

import numpy as np
import pytest
from oracle import FLOAT32, FLOAT64, assert_close, complex_step, make_data, mean_objective, one_hot

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.kernels import reference
from gpusoftmax.objective import MetricRows, SoftmaxObjective
from gpusoftmax.penalties import L2
from gpusoftmax.plan import DeviceFacts, plan_fit
from gpusoftmax.sources import ArraySource

N_ROWS, N_FEATURES, N_PROBLEMS, N_CLASSES = 67, 6, 3, 4
STRENGTH = np.array([0.0, 0.01, 2.0])
GRADIENT = {FLOAT32: 1e-6, FLOAT64: 1e-10}  # relative to the largest entry


def made(weights="each", targets="labels", seed=0, n_classes=N_CLASSES):
    return make_data(N_ROWS, N_FEATURES, N_PROBLEMS, n_classes, weights=weights, targets=targets, seed=seed)


def make_objective(
    data, strength=STRENGTH, dtype=FLOAT64, *, has_intercept=True, label_smoothing=0.0, n_threads=1, **options
):
    single = data.cast(dtype)
    source = ArraySource(single.X, single.targets, single.weights, dtype, **options)
    n_rows, n_problems, n_classes = len(data.X), *data.params.shape[1:]
    plan, metric_plan = plan_fit(
        *(n_rows, source.n_features, n_problems, n_classes, dtype, DeviceFacts(n_threads)),
        is_soft=data.targets.ndim == 2,
        is_direct=source.is_direct,
    )
    return SoftmaxObjective(
        arrays=NumpyBackend(),
        fused_pass=NumpyBackend().fused_pass(source, plan),
        penalty=L2(NumpyBackend(), strength),
        total_weight=data.full_weights().sum(axis=0),
        has_intercept=has_intercept,
        label_smoothing=label_smoothing,
        metric_rows=MetricRows(metric_plan, np.arange(n_rows), np.ones(source.n_features)),
    )


def evaluate(data, **options):
    return make_objective(data, **options).value_and_grad(data.params)


class TestGradient:
    @pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    @pytest.mark.parametrize("weights", [None, "shared", "each"])
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    @pytest.mark.parametrize("n_classes", [1, 2, 4, 33])
    def test_is_the_derivative_of_the_formula(self, n_classes, targets, weights, label_smoothing, dtype):
        data = made(weights, targets, n_classes=n_classes)

        def formula(params):
            args = (data.X, data.targets, data.full_weights(), params, STRENGTH, label_smoothing)
            return mean_objective(*args)

        value, grad = evaluate(data, dtype=dtype, label_smoothing=label_smoothing)
        assert value.dtype == np.float64
        assert grad.dtype == data.params.dtype
        assert_close(value, formula(data.params), 1e-6 if dtype == FLOAT32 else 1e-13, scale=1 + np.abs(value).max())
        assert_close(
            grad, complex_step(formula, data.params), GRADIENT[dtype], scale=np.abs(grad).max() + (n_classes == 1)
        )

    def test_params_are_not_modified_and_their_dtype_comes_back(self):
        data = made()
        for dtype in (np.float32, np.float64):
            params = data.params.astype(dtype)
            _, grad = make_objective(data, dtype=FLOAT32).value_and_grad(params)
            assert grad.dtype == dtype
            np.testing.assert_array_equal(params, data.params)

    def test_without_an_intercept_its_gradient_is_zero(self):
        data = made()
        value, grad = evaluate(data, has_intercept=False)
        expected_value, expected = evaluate(data)
        assert (grad[-1] == 0).all()
        np.testing.assert_array_equal(grad[:-1], expected[:-1])
        np.testing.assert_array_equal(value, expected_value)

    def test_the_intercept_is_not_penalised(self):
        data = made()
        _, strong = evaluate(data, strength=np.full(N_PROBLEMS, 1e3))
        _, weak = evaluate(data, strength=np.zeros(N_PROBLEMS))
        np.testing.assert_array_equal(strong[-1], weak[-1])
        assert_close(strong[:-1] - weak[:-1], 1e3 * data.params[:-1], 1e-13)

    @pytest.mark.filterwarnings("error")
    def test_logits_out_of_range_show_in_the_value_and_raise_no_warning(self):
        data = made()
        value, _ = make_objective(data, dtype=FLOAT32).value_and_grad(1e38 * data.params)
        assert not np.isfinite(value).any()


class TestLaws:
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    def test_weights_are_repetition(self, targets):
        data = made(weights=None, targets=targets)
        counts = np.random.default_rng(1).integers(0, 4, N_ROWS)
        weighted = evaluate(replace(data, weights=counts[:, np.newaxis].astype(float)))
        repeated = evaluate(replace(data, X=data.X.repeat(counts, axis=0), targets=data.targets.repeat(counts, axis=0)))
        for one, other in zip(weighted, repeated, strict=True):
            assert_close(one, other, 1e-13)

    def test_zero_weights_are_absence(self):
        data = made(weights=None)
        folds = np.random.default_rng(1).integers(0, 2, (N_ROWS, N_PROBLEMS)).astype(float)
        value, grad = evaluate(replace(data, weights=folds))
        for p in range(N_PROBLEMS):
            kept = folds[:, p] > 0
            there = replace(data, X=data.X[kept], targets=data.targets[kept])
            alone_value, alone_grad = evaluate(there)
            assert_close(value[p], alone_value[p], 1e-13)
            assert_close(grad[:, p], alone_grad[:, p], 1e-13)

    def test_only_ratios_of_weights_matter(self):
        data = made()
        for one, other in zip(evaluate(data), evaluate(replace(data, weights=1024 * data.weights)), strict=True):
            assert_close(one, other, 1e-14)

    @pytest.mark.parametrize("targets", ["labels", "soft"])
    def test_order_of_rows(self, targets):
        data, order = made(targets=targets), np.random.default_rng(1).permutation(N_ROWS)
        moved = replace(data, X=data.X[order], targets=data.targets[order], weights=data.weights[order])
        for one, other in zip(evaluate(data), evaluate(moved), strict=True):
            assert_close(one, other, 1e-13)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    def test_order_of_classes(self, targets, label_smoothing):
        data, order = made(targets=targets), np.array([2, 0, 3, 1])
        t = data.targets[:, order] if targets == "soft" else np.argsort(order)[data.targets].astype(np.uint8)
        value, grad = evaluate(data, label_smoothing=label_smoothing)
        moved = replace(data, targets=t, params=data.params[:, :, order])
        moved_value, moved_grad = evaluate(moved, label_smoothing=label_smoothing)
        assert_close(moved_value, value, 1e-13)
        assert_close(moved_grad, grad[:, :, order], 1e-13)

    def test_order_of_problems(self):
        data, order = made(), np.array([1, 2, 0])
        value, grad = evaluate(data)
        moved = replace(data, weights=data.weights[:, order], params=data.params[:, order])
        moved_value, moved_grad = evaluate(moved, strength=STRENGTH[order])
        assert_close(moved_value, value[order], 1e-13)
        assert_close(moved_grad, grad[:, order], 1e-13)

    def test_a_constant_added_to_all_classes_moves_no_loss(self):
        data = made()
        none = np.zeros(N_PROBLEMS)
        moved = replace(data, params=data.params + np.arange(N_FEATURES + 1.0)[:, np.newaxis, np.newaxis])
        for one, other in zip(evaluate(data, strength=none), evaluate(moved, strength=none), strict=True):
            assert_close(one, other, 1e-12)

    def test_labels_are_one_hot_soft_targets(self):
        data = made()
        soft = replace(data, targets=one_hot(data.targets, N_CLASSES))
        for one, other in zip(evaluate(data), evaluate(soft), strict=True):
            assert_close(one, other, 1e-13)

    def test_class_weights_are_row_weights(self):
        data, c = made(), np.array([0.5, 2.0, 0.0, 3.0])
        weights = data.weights * c[data.targets][:, np.newaxis]
        value, grad = evaluate(replace(data, weights=weights))
        actual = replace(make_objective(data, class_weight=c[np.newaxis]), total_weight=weights.sum(axis=0))
        actual_value, actual_grad = actual.value_and_grad(data.params)
        assert_close(actual_value, value, 1e-13)
        assert_close(actual_grad, grad, 1e-13)

    def test_centring_moves_the_intercept_alone(self):
        data, center = made(), np.linspace(-3, 3, N_FEATURES)
        moved = data.params.copy()
        moved[-1] += np.tensordot(center, data.params[:-1], axes=1)
        value, grad = evaluate(data)
        centred_value, centred_grad = make_objective(data, center=center).value_and_grad(moved)
        assert_close(centred_value, value, 1e-13)
        back = centred_grad.copy()
        back[:-1] += center[:, np.newaxis, np.newaxis] * centred_grad[-1]
        assert_close(back, grad, 1e-13)

    @pytest.mark.parametrize("n_threads", [1, 3])
    def test_the_same_bits_each_time(self, n_threads):
        data = make_data(20_011, 30, 2, 5, weights="each")  # more than one thread's worth
        strength = STRENGTH[:2]
        value, grad = evaluate(data, strength=strength, n_threads=n_threads)
        for _ in range(3):
            again, again_grad = evaluate(data, strength=strength, n_threads=n_threads)
            np.testing.assert_array_equal(again, value)
            np.testing.assert_array_equal(again_grad, grad)


class TestSelect:
    @pytest.mark.parametrize("weights", [None, "shared", "each"])
    @pytest.mark.parametrize("active", [[0], [2, 0], [1, 2], [0, 1, 2]])
    def test_is_the_objective_built_for_those_alone(self, active, weights):
        data = made(weights)
        active = np.array(active)
        own = data.weights[:, active] if weights == "each" else data.weights
        fewer = replace(data, weights=own, params=data.params[:, active])
        chosen = make_objective(data).select(active)
        alone = make_objective(fewer, strength=STRENGTH[active])
        for one, other in zip(chosen.value_and_grad(fewer.params), alone.value_and_grad(fewer.params), strict=True):
            np.testing.assert_array_equal(one, other)
        gradient = np.random.default_rng(0).normal(size=fewer.params.shape)
        assert_close(chosen.metric(fewer.params).apply(gradient), alone.metric(fewer.params).apply(gradient), 1e-12)


class TestMetric:
    def test_is_an_inverse_hessian_where_the_factors_are_exact(self):
        # One feature row in all (the intercept of constant features): A is one number and B ⊗ A the Hessian itself.
        data = made()
        data = replace(data, X=np.zeros_like(data.X))
        metric = make_objective(data).metric(data.params)
        _, classes = reference.curvature(data.X, data.full_weights(), data.params)
        rng = np.random.default_rng(0)
        step = rng.normal(size=data.params.shape)
        step -= step.mean(axis=2, keepdims=True)
        step[:-1] = 0
        gradient = np.zeros_like(step)
        for p, total in enumerate(data.full_weights().sum(axis=0)):
            gradient[-1, p] = classes[p] / total @ step[-1, p]
        assert_close(metric.apply(gradient), step, 1e-6)

    def test_passes_are_the_share_of_rows_sampled(self, monkeypatch):
        data = made()
        objective = make_objective(data)
        some = replace(objective.metric_rows, rows=np.arange(0, N_ROWS, 2))
        assert objective.metric(data.params).n_passes == 1
        assert objective.metric(data.params, is_rough=True).n_passes == 1
        monkeypatch.setattr("gpusoftmax.objective.LARGE_SAMPLE", N_ROWS)
        assert objective.metric(data.params, is_rough=True).n_passes == 34 / 67
        assert replace(objective, metric_rows=some).metric(data.params).n_passes == 34 / 67

    def test_the_scale_of_its_features_changes_nothing(self):
        data = made()
        objective = make_objective(data)
        scaled = replace(objective.metric_rows, scale=np.exp2(np.arange(-3.0, 3.0)))
        gradient = np.random.default_rng(0).normal(size=data.params.shape)
        expected = objective.metric(data.params).apply(gradient)
        assert_close(replace(objective, metric_rows=scaled).metric(data.params).apply(gradient), expected, 1e-6)
