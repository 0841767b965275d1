import numpy as np
import pytest
import scipy.linalg
from oracle import FLOAT32, FLOAT64, assert_close, make_data

from gpusoftmax import preconditioner
from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.exceptions import NonFiniteError
from gpusoftmax.kernels import reference
from gpusoftmax.preconditioner import kronecker_metric

N_FEATURES, N_PROBLEMS, N_CLASSES = 4, 3, 5
STRENGTHS = {
    "one for all": np.full(N_PROBLEMS, 0.1),
    "each its own": np.array([1e-3, 0.5, 20.0]),
    "none": np.zeros(N_PROBLEMS),
    "some none": np.array([0.3, 0.0, 5.0]),
}


def centring(n_classes):
    return np.eye(n_classes) - 1 / n_classes


def curvature(scale, *, n_features=N_FEATURES, n_problems=N_PROBLEMS, n_classes=N_CLASSES):
    """Return what `kernels` would sum for features multiplied by `scale`, and the total weights."""
    data = make_data(200, n_features, n_problems, n_classes, weights="each")
    gram, classes = reference.curvature(data.X, data.full_weights(), data.params)
    augmented = np.append(scale, 1.0)
    return augmented[:, np.newaxis] * gram * augmented, classes, data.full_weights().sum(axis=0)


def made_metric(strength, scale=None, *, diagonal_features=False, diagonal_classes=False, dtype=FLOAT64, **options):
    scale = np.ones(N_FEATURES) if scale is None else scale
    gram, classes, weight = curvature(scale)
    if diagonal_features:
        gram = np.diagonal(gram).copy()
    if diagonal_classes:
        classes = np.diagonal(classes, axis1=1, axis2=2)
    precision = np.finfo(dtype).eps
    options = {"has_intercept": True, "precision": precision, "n_passes": 0.5} | options
    return kronecker_metric(NumpyBackend(), gram.astype(dtype), classes, weight, strength, scale, **options)


def dense_hessian(p, strength, *, diagonal_features=False, diagonal_classes=False, has_intercept=True):
    """Return ``A ⊗ B_p + strength_p · R`` of unscaled features, rows and columns in the order of params."""
    gram, classes, weight = curvature(np.ones(N_FEATURES))
    A, B = gram / gram[-1, -1], classes[p] / weight[p]
    if diagonal_features:
        A = np.diag(np.diagonal(A))
    if diagonal_classes:
        B = np.diag(np.diagonal(B))
    R = np.diag([strength[p]] * N_FEATURES + [0.0])
    if not has_intercept:
        A, R = A[:-1, :-1], R[:-1, :-1]
    return np.kron(A, B) + np.kron(R, np.eye(N_CLASSES))


def dense_inverse(p, strength, **options):
    """Return the inverse on the space orthogonal to constants over classes."""
    H = dense_hessian(p, strength, **options)
    P = np.kron(np.eye(len(H) // N_CLASSES), centring(N_CLASSES))
    if options.get("diagonal_classes"):
        return P @ np.linalg.inv(H) @ P
    return np.linalg.pinv(P @ H @ P, rcond=1e-12, hermitian=True)


def as_matrices(metric, shape):
    """Return `apply` as one matrix per problem, from its action on every unit vector."""
    n_rows, n_problems, n_classes = shape
    columns = []
    for index in range(n_rows * n_classes):
        unit = np.zeros((n_rows, n_problems, n_classes), metric.spectrum.curvature.dtype)
        unit[index // n_classes, :, index % n_classes] = 1
        columns.append(metric.apply(unit).transpose(1, 0, 2).reshape(n_problems, -1))
    return np.stack(columns, axis=2)


SHAPE = (N_FEATURES + 1, N_PROBLEMS, N_CLASSES)


@pytest.fixture
def by_eigenvectors(monkeypatch):
    """Serve no two curvatures by one Cholesky factor, so that the metric is exact."""
    monkeypatch.setattr(preconditioner, "ALIKE", 0.0)


@pytest.mark.usefixtures("by_eigenvectors")
class TestInverse:
    @pytest.mark.parametrize("diagonal_features", [False, True])
    @pytest.mark.parametrize("diagonal_classes", [False, True])
    @pytest.mark.parametrize("strength", STRENGTHS.values(), ids=STRENGTHS)
    def test_equals_the_dense_inverse(self, strength, diagonal_classes, diagonal_features):
        kind = {"diagonal_features": diagonal_features, "diagonal_classes": diagonal_classes}
        matrices = as_matrices(made_metric(strength, **kind), SHAPE)
        for p in range(N_PROBLEMS):
            assert_close(matrices[p], dense_inverse(p, strength, **kind), 1e-6)

    @pytest.mark.parametrize("strength", STRENGTHS.values(), ids=STRENGTHS)
    def test_without_an_intercept_its_row_is_zero_and_the_rest_the_inverse(self, strength):
        matrices = as_matrices(made_metric(strength, has_intercept=False), SHAPE)
        n = N_FEATURES * N_CLASSES
        for p in range(N_PROBLEMS):
            assert (matrices[p][n:] == 0).all()
            assert (matrices[p][:, n:] == 0).all()
            assert_close(matrices[p][:n, :n], dense_inverse(p, strength, has_intercept=False), 1e-6)

    @pytest.mark.parametrize("exponents", [(0, 3, -5, 1), (20, -20, 0, 10)])
    @pytest.mark.parametrize("strength", STRENGTHS.values(), ids=STRENGTHS)
    def test_scaling_the_features_of_the_sums_changes_nothing(self, strength, exponents):
        # `scale` only makes the sums comparable: the metric is that of the features as they are.
        scaled = made_metric(strength, scale=np.exp2(exponents))
        tolerance = 1e-6 if max(exponents) < 10 else 1e-4
        assert_close(as_matrices(scaled, SHAPE), as_matrices(made_metric(strength), SHAPE), tolerance)

    @pytest.mark.parametrize("strength", STRENGTHS.values(), ids=STRENGTHS)
    @pytest.mark.parametrize("diagonal_features", [False, True])
    def test_float32(self, diagonal_features, strength):
        single = made_metric(strength, diagonal_features=diagonal_features, dtype=FLOAT32)
        double = made_metric(strength, diagonal_features=diagonal_features)
        gradient = np.random.default_rng(0).normal(size=SHAPE)
        step = single.apply(gradient.astype(np.float32))
        assert step.dtype == np.float32
        assert_close(step, double.apply(gradient), 1e-3)

    def test_one_problem_is_its_part_of_many(self):
        strength = STRENGTHS["each its own"]
        gram, classes, weight = curvature(np.ones(N_FEATURES))
        options = {"has_intercept": True, "precision": 2.0**-52, "n_passes": 0.0}
        together = as_matrices(made_metric(strength), SHAPE)
        for p in range(N_PROBLEMS):
            one = slice(p, p + 1)
            alone = kronecker_metric(
                NumpyBackend(), gram.copy(), classes[one], weight[one], strength[one], np.ones(N_FEATURES), **options
            )
            assert_close(as_matrices(alone, (N_FEATURES + 1, 1, N_CLASSES))[0], together[p], 1e-6)


class TestCholesky:
    """One factor of the features serves all classes and problems that weigh curvature and penalty alike."""

    def test_exact_where_nothing_is_penalised(self, monkeypatch):
        monkeypatch.setattr(scipy.linalg, "eigh", None)
        matrices = as_matrices(made_metric(STRENGTHS["none"]), SHAPE)
        for p in range(N_PROBLEMS):
            assert_close(matrices[p], dense_inverse(p, STRENGTHS["none"]), 1e-6)

    @pytest.mark.parametrize("strength", [1e-3, 1.0, 1e3])
    def test_exact_for_two_classes(self, strength, monkeypatch):
        monkeypatch.setattr(scipy.linalg, "eigh", None)
        scale = np.exp2([0.0, 3.0, -5.0, 1.0])
        shape = {"n_problems": 1, "n_classes": 2}
        gram, classes, weight = curvature(scale, **shape)
        options = {"has_intercept": True, "precision": 2.0**-52, "n_passes": 0.0}
        metric = kronecker_metric(NumpyBackend(), gram, classes, weight, np.array([strength]), scale, **options)
        gram, classes, weight = curvature(np.ones(N_FEATURES), **shape)
        penalty = np.diag([strength] * N_FEATURES + [0.0])
        H = np.kron(gram / gram[-1, -1], classes[0] / weight[0]) + np.kron(penalty, np.eye(2))
        P = np.kron(np.eye(N_FEATURES + 1), centring(2))
        expected = np.linalg.pinv(P @ H @ P, rcond=1e-12, hermitian=True)
        assert_close(as_matrices(metric, (N_FEATURES + 1, 1, 2))[0], expected, 1e-6)

    @pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
    def test_near_the_inverse_where_curvatures_are_alike(self, strength, monkeypatch):
        strengths = np.full(N_PROBLEMS, strength)
        monkeypatch.setattr(scipy.linalg, "eigh", None)
        matrices = as_matrices(made_metric(strengths), SHAPE)
        for p in range(N_PROBLEMS):
            H = dense_hessian(p, strengths)
            nonzero = np.sort(np.linalg.eigvals(matrices[p] @ H).real)[N_FEATURES + 1 :]
            assert nonzero.min() > 0.5
            assert nonzero.max() < 2

    def test_different_strengths_get_eigenvectors(self, monkeypatch):
        monkeypatch.setattr(scipy.linalg, "cholesky", None)
        made_metric(STRENGTHS["each its own"])
        made_metric(STRENGTHS["some none"])


class TestProperties:
    @pytest.mark.parametrize("diagonal_features", [False, True])
    @pytest.mark.parametrize("diagonal_classes", [False, True])
    @pytest.mark.parametrize("strength", STRENGTHS.values(), ids=STRENGTHS)
    @pytest.mark.parametrize("has_intercept", [False, True])
    def test_symmetric_and_positive_on_all_but_constants(
        self, has_intercept, strength, diagonal_classes, diagonal_features
    ):
        kind = {"diagonal_features": diagonal_features, "diagonal_classes": diagonal_classes}
        matrices = as_matrices(made_metric(strength, has_intercept=has_intercept, **kind), SHAPE)
        for matrix in matrices:
            assert_close(matrix, matrix.T, 1e-12)
            eigenvalues = np.linalg.eigvalsh(matrix)
            assert eigenvalues.min() > -1e-12 * eigenvalues.max()
            n_positive = (N_FEATURES + has_intercept) * (N_CLASSES - 1)
            assert (eigenvalues > 1e-9 * eigenvalues.max()).sum() == n_positive

    @pytest.mark.parametrize("diagonal_classes", [False, True])
    def test_constants_over_classes_are_projected_out(self, diagonal_classes):
        metric = made_metric(STRENGTHS["some none"], diagonal_classes=diagonal_classes)
        gradient = np.random.default_rng(0).normal(size=SHAPE)
        step = metric.apply(gradient)
        assert_close(metric.apply(gradient + 7.0), step, 1e-12)
        assert np.abs(step.sum(axis=2)).max() < 1e-12 * np.abs(step).max()

    def test_the_step_has_the_dtype_of_the_gradient(self):
        gradient = np.random.default_rng(0).normal(size=SHAPE)
        metric = made_metric(STRENGTHS["none"], dtype=FLOAT32)
        step = metric.apply(gradient)
        assert step.dtype == np.float64
        np.testing.assert_array_equal(step, metric.apply(gradient.astype(np.float32)))

    def test_gradient_is_not_modified(self):
        gradient = np.random.default_rng(0).normal(size=SHAPE)
        before = gradient.copy()
        step = made_metric(STRENGTHS["none"]).apply(gradient)
        np.testing.assert_array_equal(gradient, before)
        assert not np.shares_memory(step, gradient)

    @pytest.mark.parametrize("diagonal_classes", [False, True])
    def test_select(self, diagonal_classes):
        metric = made_metric(STRENGTHS["each its own"], diagonal_classes=diagonal_classes)
        gradient = np.random.default_rng(0).normal(size=SHAPE)
        kept = np.array([2, 0])
        chosen = metric.select(kept)
        assert chosen.n_passes == metric.n_passes == 0.5
        assert_close(chosen.apply(gradient[:, kept]), metric.apply(gradient)[:, kept], 1e-13)


class TestOffsets:
    """Beside a diagonal: features far from zero are not independent of the intercept."""

    @pytest.mark.parametrize("strength", STRENGTHS.values(), ids=STRENGTHS)
    @pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
    def test_exact_where_features_less_their_means_are_uncorrelated(self, strength, dtype):
        X = np.linalg.qr(np.append(np.ones((40, 1)), np.random.default_rng(0).normal(size=(40, N_FEATURES)), axis=1))[0]
        X = 6 * X[:, 1:] * [1, 2, 0.5, 3] + [0, 5, -10, 30]
        scale = np.array([1.0, 2.0, 0.5, 0.25])
        scaled = np.append(X * scale, np.ones((40, 1)), axis=1)
        gram, (_, classes, weight) = scaled.T @ scaled, curvature(scale)
        precision = float(np.finfo(dtype).eps)
        options = {"has_intercept": True, "precision": precision, "n_passes": 0.5}
        sums = classes, weight, strength, scale
        full = kronecker_metric(NumpyBackend(), gram.astype(dtype), *sums, is_lasting=True, **options)
        diagonal, offsets = gram.diagonal().astype(dtype), gram[:-1, -1].astype(dtype)
        metric = kronecker_metric(NumpyBackend(), diagonal, *sums, offsets=offsets, **options)
        g = centred_gradient().astype(dtype)
        assert_close(metric.apply(g), full.apply(g), 2e-2 if dtype == FLOAT32 else 1e-7)
        plain = kronecker_metric(NumpyBackend(), gram.diagonal().astype(dtype), *sums, **options)
        assert abs(plain.apply(g) - full.apply(g)).max() > 0.1 * abs(full.apply(g)).max()

    def test_are_nothing_without_an_intercept(self):
        gram, classes, weight = curvature(np.ones(N_FEATURES))
        sums = classes, weight, np.full(N_PROBLEMS, 0.1), np.ones(N_FEATURES)
        options = {"has_intercept": False, "precision": 2e-16, "n_passes": 0.5}
        metric = kronecker_metric(NumpyBackend(), gram.diagonal().copy(), *sums, offsets=gram[:-1, -1], **options)
        plain = kronecker_metric(NumpyBackend(), gram.diagonal().copy(), *sums, **options)
        np.testing.assert_array_equal(metric.apply(centred_gradient()), plain.apply(centred_gradient()))

    def test_a_constant_feature_is_no_division_by_zero(self):
        gram, classes, weight = curvature(np.ones(N_FEATURES))
        gram[1] = gram[:, 1] = 3 * gram[-1]
        gram[1, 1] = 9 * gram[-1, -1]
        sums = classes, weight, np.zeros(N_PROBLEMS), np.ones(N_FEATURES)
        options = {"has_intercept": True, "precision": 2e-16, "n_passes": 0.5}
        metric = kronecker_metric(NumpyBackend(), gram.diagonal().copy(), *sums, offsets=gram[:-1, -1], **options)
        step, g = metric.apply(centred_gradient()), centred_gradient()
        assert np.isfinite(step).all()
        assert ((step * g).sum(axis=(0, 2)) > 0).all()


@pytest.mark.parametrize("diagonal_features", [False, True])
def test_mean_squares_of_rare_features_are_added(diagonal_features):
    scale, rare = np.array([1.0, 4.0, 1.0, 0.5]), np.array([0.0, 0.3, 0.0, 2.0])
    options = {"diagonal_features": diagonal_features}
    metric = made_metric(STRENGTHS["each its own"], scale, rare_squares=rare, **options)
    gram, classes, weight = curvature(scale)
    gram[np.arange(N_FEATURES), np.arange(N_FEATURES)] += gram[-1, -1] * rare * scale**2
    gram = gram.diagonal().copy() if diagonal_features else gram
    expected = kronecker_metric(
        *(NumpyBackend(), gram, classes, weight, STRENGTHS["each its own"], scale),
        has_intercept=True,
        precision=np.finfo(FLOAT64).eps,
        n_passes=0.5,
    )
    assert_close(metric.apply(centred_gradient()), expected.apply(centred_gradient()), 1e-12)


class TestExtremes:
    @pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
    @pytest.mark.parametrize("strength", [1e-30, 1e-9, 1.0, 1e12])
    def test_any_strength_gives_a_descent_direction(self, strength, dtype):
        metric = made_metric(np.array([strength, 1.0, 0.0]), dtype=dtype)
        gradient = np.random.default_rng(0).normal(size=SHAPE).astype(dtype)
        step = metric.apply(gradient)
        assert np.isfinite(step).all()
        assert (np.einsum("dpk,dpk->p", step, gradient) > 0).all()

    @pytest.mark.parametrize("size", [2.0**-60, 2.0**60])
    def test_a_feature_of_any_size(self, size):
        # A feature multiplied by c has its step divided by c², where no penalty holds it.
        data = make_data(200, N_FEATURES, 1, N_CLASSES)
        gram, classes = reference.curvature(data.X, data.full_weights(), data.params)
        factor = np.array([size, 1.0, 1.0, 1.0])
        options = {"has_intercept": True, "precision": 2.0**-52, "n_passes": 0.0}
        plain, scaled = (
            kronecker_metric(NumpyBackend(), gram.copy(), classes, np.array([200.0]), np.zeros(1), scale, **options)
            for scale in (np.ones(N_FEATURES), 1 / factor)
        )
        gradient = np.random.default_rng(0).normal(size=(N_FEATURES + 1, 1, N_CLASSES))
        by_feature = np.append(factor, 1.0)[:, np.newaxis, np.newaxis]
        assert_close(scaled.apply(gradient * by_feature) * by_feature, plain.apply(gradient), 1e-6)

    def test_a_feature_that_is_always_zero(self):
        scale = np.ones(N_FEATURES)
        gram, classes, weight = curvature(scale)
        gram[1] = gram[:, 1] = 0
        for strength in (0.0, 0.5):
            metric = kronecker_metric(
                NumpyBackend(),
                *(gram.copy(), classes, weight, np.full(N_PROBLEMS, strength), scale),
                has_intercept=True,
                precision=2.0**-52,
                n_passes=0.0,
            )
            assert np.isfinite(metric.apply(np.ones(SHAPE) * np.arange(N_CLASSES))).all()

    def test_a_model_sure_of_everything_has_no_curvature(self):
        metric = kronecker_metric(
            NumpyBackend(),
            *(np.zeros((3, 3)), np.zeros((1, 4, 4)), np.array([10.0]), np.array([0.1]), np.ones(2)),
            has_intercept=True,
            precision=2.0**-52,
            n_passes=0.0,
        )
        gradient = np.random.default_rng(0).normal(size=(3, 1, 4))
        step = metric.apply(gradient)
        assert np.isfinite(step).all()
        centred = gradient - gradient.mean(axis=2, keepdims=True)
        assert_close(step[:-1], centred[:-1] / 0.1, 1e-6)  # only the penalty is left

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_sums_that_are_not_finite_are_an_error(self, bad):
        options = {"has_intercept": True, "precision": 2.0**-52, "n_passes": 0.0}
        for spoilt in (0, 1):
            gram, classes, weight = curvature(np.ones(N_FEATURES))
            (gram, classes)[spoilt].flat[3] = bad
            with pytest.raises(NonFiniteError, match="rescale the features"):
                kronecker_metric(
                    NumpyBackend(), gram, classes, weight, np.ones(N_PROBLEMS), np.ones(N_FEATURES), **options
                )

    @pytest.mark.parametrize("n_classes", [1, 2])
    def test_few_classes(self, n_classes):
        gram, classes, weight = curvature(np.ones(2), n_features=2, n_problems=1, n_classes=n_classes)
        metric = kronecker_metric(
            NumpyBackend(),
            *(gram, classes, weight, np.array([0.1]), np.ones(2)),
            has_intercept=True,
            precision=2.0**-52,
            n_passes=0.0,
        )
        assert np.isfinite(metric.apply(np.ones((3, 1, n_classes)))).all()


class TestAdapted:
    """A lasting metric serves every strength and level of curvature: no more than those of it depend on params."""

    @pytest.mark.parametrize("diagonal_features", [False, True])
    @pytest.mark.parametrize("diagonal_classes", [False, True])
    @pytest.mark.parametrize("other", STRENGTHS.values(), ids=STRENGTHS)
    def test_gives_the_inverse_of_the_hessian_with_other_strengths(self, other, diagonal_features, diagonal_classes):
        options = {"diagonal_features": diagonal_features, "diagonal_classes": diagonal_classes}
        metric = made_metric(np.array([0.05, 0.1, 0.2]), is_lasting=True, **options)
        metric = metric.adapted(other, metric.spectrum.spread)
        other = np.maximum(other, 1e-300)
        gradient = centred_gradient()
        for p in range(N_PROBLEMS):
            expected = dense_inverse(p, other, **options) @ gradient[:, p].ravel()
            assert_close(metric.apply(gradient)[:, p].ravel(), expected, 1e-6)

    def test_less_curvature_of_the_loss_magnifies_as_less_strength_would(self):
        metric, factor = made_metric(np.full(N_PROBLEMS, 0.1), is_lasting=True), np.array([1.0, 1e-2, 1e-4])
        adapted = metric.adapted(0.1 * factor, factor * metric.spectrum.spread)
        gradient = centred_gradient()
        np.testing.assert_allclose(
            adapted.apply(gradient), metric.apply(gradient) / factor[:, np.newaxis], rtol=1e-6, atol=1e-9
        )

    def test_costs_no_pass_and_leaves_the_metric_as_it_was(self):
        metric = made_metric(np.full(N_PROBLEMS, 0.1), is_lasting=True)
        before = metric.spectrum.curvature.copy()
        assert metric.adapted(np.full(N_PROBLEMS, 9.0), 2 * metric.spectrum.spread).n_passes == 0
        np.testing.assert_array_equal(metric.spectrum.curvature, before)

    @pytest.mark.parametrize(("precision", "weakest"), [(2.0**-23, 1e-4), (2.0**-52, 1e-9)])
    def test_serves_no_penalty_beside_which_rounding_left_nothing_of_the_loss(self, precision, weakest):
        metric = made_metric(np.full(N_PROBLEMS, 0.1), is_lasting=True, precision=precision)
        strength = np.array([0.1, 0.1, 0.1 * 10 * weakest])
        assert metric.adapted(strength, metric.spectrum.spread) is not None
        strength[2] = 0.1 * 0.1 * weakest
        assert metric.adapted(strength, metric.spectrum.spread) is None

    def test_of_chosen_problems(self):
        strength, spread, kept = np.array([0.1, 1.0, 7.0]), np.array([0.3, 0.2, 0.1]), np.array([2, 0])
        metric = made_metric(np.full(N_PROBLEMS, 0.1), is_lasting=True)
        of_all = metric.adapted(strength, spread).spectrum.curvature
        chosen = metric.select(kept).adapted(strength[kept], spread[kept]).spectrum.curvature
        np.testing.assert_array_equal(chosen, of_all[kept])


def centred_gradient():
    gradient = np.random.default_rng(0).normal(size=(N_FEATURES + 1, N_PROBLEMS, N_CLASSES))
    return gradient - gradient.mean(axis=2, keepdims=True)
