import itertools
import re
import signal
import threading
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from cuda_device import cuda
from sklearn.linear_model import LogisticRegression

import gpusoftmax as gs
from gpusoftmax import plan_many
from gpusoftmax.independent import IndependentObjective
from gpusoftmax.independent_row_space import IndependentRowSpaces
from gpusoftmax.solvers.base import Status
from gpusoftmax.solvers.lbfgs import LBFGS

TOL = 1e-9
P, N, D, K = 7, 40, 5, 3


def made(n_problems=P, n_rows=N, n_features=D, n_classes=K, seed=0):
    rng = np.random.default_rng(seed)
    Xs = rng.normal(size=(n_problems, n_rows, n_features))
    W = rng.normal(size=(n_problems, n_features, n_classes))
    ys = (Xs @ W + rng.gumbel(size=(n_problems, n_rows, n_classes))).argmax(axis=2)
    ys[:, :n_classes] = np.arange(n_classes)
    return Xs, ys


def ragged(seed=0):
    Xs, ys = made(seed=seed)
    counts = np.random.default_rng(seed).integers(15, N, P)
    return [X[:n] for X, n in zip(Xs, counts, strict=True)], [y[:n] for y, n in zip(ys, counts, strict=True)]


def assert_same(fits, others, tolerance=1e-6):
    np.testing.assert_allclose(fits.coef, others.coef, rtol=0, atol=tolerance)
    np.testing.assert_allclose(fits.intercept, others.intercept, rtol=0, atol=tolerance)
    np.testing.assert_allclose(fits.objective, others.objective, rtol=1e-10)


def assert_same_bits(fits, others):
    for name in ("coef", "intercept", "status", "n_iter", "objective", "gradient_norm"):
        np.testing.assert_array_equal(getattr(fits, name), getattr(others, name))


def assert_equals_its_own_fit(fits, p, X, y, weights=None, **options):
    own = gs.SoftmaxRegression(tol=TOL, **options).fit(X, y, weights)
    one = fits.to_estimator(p)
    np.testing.assert_array_equal(one.classes_, own.classes_)
    np.testing.assert_allclose(one.coef_, own.coef_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        one.intercept_ - one.intercept_.mean() * (len(one.classes_) > 2), own.intercept_, atol=1e-6
    )
    np.testing.assert_allclose(one.objective_, own.objective_, rtol=1e-10)
    np.testing.assert_allclose(one.predict_proba(X), own.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(one.predict(X), own.predict(X))
    assert one.get_params() == own.get_params()
    assert type(one.status_) is Status
    assert vars(one).keys() == vars(own).keys()
    return one


@pytest.fixture
def wave_of(monkeypatch):
    """Let waves have a chosen number of problems."""

    def limit(n_problems):
        plan = plan_many.plan_waves

        def cut(n_rows, *sizes, **options):
            order = np.concatenate(plan(n_rows, *sizes, **options).waves)
            waves = [order[start : start + n_problems] for start in range(0, len(order), n_problems)]
            return plan_many.WavePlan(waves, 2, 3)

        monkeypatch.setattr("gpusoftmax.many.plan_waves", cut)

    return limit


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("C", [0.1, 10.0, "each its own"])
def test_every_problem_gets_scikit_learns_solution_and_that_of_its_own_fit(n_classes, fit_intercept, C):
    Xs, ys = made(n_classes=n_classes)
    Cs = np.logspace(-2, 2, P) if isinstance(C, str) else np.full(P, C)
    fits = gs.fit_many(Xs, ys, C=C if isinstance(C, float) else Cs, fit_intercept=fit_intercept, tol=TOL)
    assert len(fits) == P
    assert fits.coef.shape == (P, 1 if n_classes == 2 else 3, D)
    for p in range(P):
        peer = LogisticRegression(C=Cs[p], fit_intercept=fit_intercept, tol=1e-10, max_iter=10_000).fit(Xs[p], ys[p])
        np.testing.assert_allclose(fits.coef[p], peer.coef_, rtol=0, atol=1e-6)
        np.testing.assert_allclose(fits.intercept[p], peer.intercept_, rtol=0, atol=1e-6)
        assert_equals_its_own_fit(fits, p, Xs[p], ys[p], C=Cs[p], fit_intercept=fit_intercept)


def test_without_a_penalty():
    Xs, ys = made(n_rows=300)
    fits = gs.fit_many(Xs, ys, C=np.inf, tol=TOL)
    for p in range(P):
        assert_equals_its_own_fit(fits, p, Xs[p], ys[p], C=np.inf)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_problems_of_different_sizes(weighted, smoothing):
    Xs, ys = ragged()
    weights = [np.random.default_rng(1).integers(1, 5, len(y)) for y in ys] if weighted else None
    fits = gs.fit_many(Xs, ys, sample_weights=weights, label_smoothing=smoothing, tol=TOL)
    for p in range(P):
        own = None if weights is None else weights[p]
        assert_equals_its_own_fit(fits, p, Xs[p], ys[p], own, label_smoothing=smoothing)


def test_rows_of_weight_zero_pad():
    Xs, ys = ragged()
    wide, labels, weights = np.full((P, N, D), 3.0), np.zeros((P, N), int), np.zeros((P, N))
    for p, (X, y) in enumerate(zip(Xs, ys, strict=True)):
        wide[p, : len(X)], labels[p, : len(X)], weights[p, : len(X)] = X, y, 1
    assert_same(gs.fit_many(wide, labels, sample_weights=weights, tol=TOL), gs.fit_many(Xs, ys, tol=TOL))


def test_weights_are_repetitions_and_any_unit_serves():
    Xs, ys = made()
    weights = np.random.default_rng(1).integers(1, 4, (P, N))
    repeated = [np.repeat(X, w, axis=0) for X, w in zip(Xs, weights, strict=True)]
    labels = [np.repeat(y, w) for y, w in zip(ys, weights, strict=True)]
    weighted = gs.fit_many(Xs, ys, sample_weights=weights, tol=TOL)
    assert_same(weighted, gs.fit_many(repeated, labels, tol=TOL))
    unit = 1e25
    assert_same(weighted, gs.fit_many(Xs, ys, sample_weights=weights * unit, C=1 / unit, tol=TOL))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_soft_targets(n_classes, smoothing):
    Xs, _ = made()
    soft = np.random.default_rng(1).dirichlet(np.ones(n_classes), (P, N))
    fits = gs.fit_many(Xs, soft, label_smoothing=smoothing, tol=TOL)
    for p in range(P):
        assert_equals_its_own_fit(fits, p, Xs[p], soft[p], label_smoothing=smoothing)


def test_labels_as_soft_targets_are_the_same_problem():
    Xs, ys = made()
    assert_same(gs.fit_many(Xs, np.eye(K)[ys], tol=TOL), gs.fit_many(Xs, ys, tol=TOL))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_problem_that_lacks_a_class_is_fitted_to_those_it_has(smoothing):
    Xs, ys = made(n_classes=4)
    names = np.array(["ash", "birch", "cedar", "douglasia"])
    labels = [names[y] for y in ys]
    labels[2] = names[ys[2] % 3]
    labels[5] = names[ys[5] % 2 + 1]
    fits = gs.fit_many(Xs, labels, label_smoothing=smoothing, tol=TOL)
    np.testing.assert_array_equal(fits.classes, names)
    assert fits.intercept[2, 3] == -np.inf
    assert (fits.coef[5, [0, 3]] == 0).all()
    for p in range(P):
        assert_equals_its_own_fit(fits, p, Xs[p], labels[p], label_smoothing=smoothing)


def with_labels_of_their_own(ys):
    """Return labels, the first two problems of two classes, that only the last two problems have in common."""
    return [(y % 2 if p < 2 else y) + K * min(p, P - 2) for p, y in enumerate(ys)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [True, False])
def test_problems_have_labels_of_their_own(weighted, smoothing):
    Xs, ys = ragged()
    ys, weights = with_labels_of_their_own(ys), None
    if weighted:
        weights = [np.random.default_rng(p).integers(1, 4, len(y)) for p, y in enumerate(ys)]
        for p in (0, 4):
            ys[p][-3:], weights[p][-3:] = -1 - p, 0  # labels that are nobody's
        weights[5][ys[5] == K * 5 + 1] = 0  # and one that only the last problem keeps
    fits = gs.fit_many(Xs, ys, sample_weights=weights, label_smoothing=smoothing, tol=TOL)
    np.testing.assert_array_equal(fits.classes, np.unique(np.concatenate(ys)))
    for p in range(P):
        w = np.ones(len(ys[p])) if weights is None else weights[p]
        heavy = w > 0
        one = assert_equals_its_own_fit(fits, p, Xs[p][heavy], ys[p][heavy], w[heavy], label_smoothing=smoothing)
        has_class = np.isin(fits.classes, one.classes_)
        assert (fits.coef[p][~has_class] == 0).all()
        np.testing.assert_array_equal(fits.intercept[p] == -np.inf, ~has_class)
        if len(one.classes_) > 2:
            np.testing.assert_array_equal(fits.coef[p][has_class], one.coef_)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_labels_in_common_or_not_cost_the_same_and_give_the_same_bits(shift):
    Xs, ys = made(200, 20)
    Xs += shift
    alike, peaks = gs.fit_many(Xs, ys), []
    for labels in (ys, ys + K * np.arange(200)[:, np.newaxis]):
        tracemalloc.start()
        fits = gs.fit_many(Xs, labels)
        estimators = [fits.to_estimator(p) for p in range(200)]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    np.testing.assert_array_equal(fits.n_passes, alike.n_passes)
    np.testing.assert_array_equal([one.coef_ for one in estimators], alike.coef)
    np.testing.assert_array_equal([one.intercept_ for one in estimators], alike.intercept)


@pytest.mark.parametrize("n_problems", [1, 2, 7])
def test_waves_of_any_size(wave_of, n_problems):
    Xs, ys = ragged()
    expected = gs.fit_many(Xs, ys, tol=TOL)
    wave_of(n_problems)
    assert_same(gs.fit_many(Xs, ys, tol=TOL), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_problems", [3, 7])
def test_permuting_problems_permutes_bits(wave_of, n_problems, dtype):
    # Some want few steps and some, beyond the first refresh of the metric, many.
    Xs, ys = made(n_features=11)
    Xs, C = (Xs * np.logspace(-1, 1, 11)).astype(dtype), np.logspace(-2, 4, P)
    wave_of(n_problems)
    fits = gs.fit_many(Xs, ys, C=C, tol=1e-5)
    order = np.random.default_rng(1).permutation(P)
    permuted = gs.fit_many(Xs[order], ys[order], C=C[order], tol=1e-5)
    assert fits.n_passes.max() > 45
    np.testing.assert_array_equal(permuted.coef, fits.coef[order])
    np.testing.assert_array_equal(permuted.objective, fits.objective[order])
    np.testing.assert_array_equal(permuted.n_passes, fits.n_passes[order])


def test_the_same_bits_again():
    Xs, ys = ragged()
    assert_same_bits(gs.fit_many(Xs, ys), gs.fit_many(Xs, ys))


@pytest.mark.parametrize("case", ["overflows", "has no optimum"])
def test_a_companion_that_fails_spoils_nobody(case):
    Xs, ys = made()
    Xs, C = Xs.astype(np.float32), np.ones(P)
    alone = gs.fit_many(Xs, ys)
    if case == "overflows":
        Xs[3] = np.copysign(np.float32(3e38), Xs[3])
    else:
        Xs[3, :, 0], C[3] = ys[3], np.inf
    with pytest.warns(gs.ConvergenceWarning, match=r"1 of 7 problems did not converge: 3 "):
        fits = gs.fit_many(Xs, ys, C=C, max_iter=30)
    others = np.arange(P) != 3
    assert fits.status[3] in (Status.NON_FINITE, Status.ITERATION_LIMIT)
    assert (fits.status[others] == Status.CONVERGED).all()
    np.testing.assert_array_equal(fits.coef[others], alone.coef[others])
    np.testing.assert_array_equal(fits.n_passes[others], alone.n_passes[others])


def test_offsets_cost_no_precision():
    Xs, ys = made()
    Xs = Xs.astype(np.float32)
    shift = np.float32(2**20)
    shifted = [(np.round(X * 8) / 8 + shift)[p:] for p, X in enumerate(Xs)]
    ys = [y[p:] for p, y in enumerate(ys)]
    near, far = gs.fit_many([X - shift for X in shifted], ys, tol=1e-6), gs.fit_many(shifted, ys, tol=1e-6)
    np.testing.assert_allclose(far.coef, near.coef, atol=1e-4)
    for p in range(P):
        expected = near.to_estimator(p).predict_proba(shifted[p] - shift)
        np.testing.assert_allclose(far.to_estimator(p).predict_proba(shifted[p]), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "computed"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i4", "f8"), (">f4", "f4"), ("?", "f8")]
)
def test_dtypes_are_those_of_the_estimator(given, computed):
    Xs, ys = made()
    fits = gs.fit_many((4 * Xs).astype(given), ys)
    assert fits.coef.dtype == fits.intercept.dtype == computed
    own = gs.SoftmaxRegression().fit((4 * Xs[0]).astype(given), ys[0])
    assert own.coef_.dtype == fits.coef.dtype


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("budget", ["least", 1_000_000, 8_000_000])
def test_the_budget_is_kept_for_any_number_of_problems(budget, soft):
    n_problems, n_features = 400, 16
    Xs, ys = made(n_problems, 50, n_features)
    Xs *= np.logspace(-1, 1, n_features)
    if soft:
        ys = np.eye(K)[ys] * 0.9 + 0.1 / K
    if budget == "least":
        with pytest.raises(gs.WorkspaceError) as caught:
            gs.fit_many(Xs, ys, memory_budget=1)
        budget = int(re.search(r"memory_budget=(\d+)\.$", str(caught.value)).group(1))
        n_problems = 20
    options = {"C": 1000.0, "max_iter": 60}  # some need the factors of a metric
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gs.ConvergenceWarning)
        gs.fit_many(Xs[:20], ys[:20], memory_budget=budget, **options)
        tracemalloc.start()
        fits = gs.fit_many(Xs[:n_problems], ys[:n_problems], memory_budget=budget, **options)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    results = 8 * (2 * fits.coef.size + Xs[:n_problems, 0].size) + 1000 * n_problems  # and views of X and labels
    assert peak <= budget + results + 150_000  # threads and small objects


def test_the_budget_holds_what_solvers_remember():
    # Few rows and features and many classes: nearly all of a wave is pairs.
    rng = np.random.default_rng(0)
    Xs, ys = rng.standard_normal((60, 6, 20)), rng.integers(0, 40, (60, 6))
    ys[:, :2] = 0, 39
    options = {"memory_budget": 6_000_000, "C": 1000.0, "tol": 1e-7}
    gs.fit_many(Xs[:20], ys[:20], **options)
    tracemalloc.start()
    fits = gs.fit_many(Xs, ys, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 6_000_000 + 8 * 2 * fits.coef.size + 200_000


def test_what_is_left_to_gain_is_judged_by_a_metric_of_there():
    rng = np.random.default_rng(0)
    n_features, Xs, ys = int(rng.choice([1, 3, 10])), [], []
    for _ in range(60):  # uneven features, weights and strengths: by the metric of the start, all seems won
        n_rows = int(rng.integers(4, 40))
        Xs.append(rng.normal(size=(n_rows, n_features)) * 10.0 ** rng.integers(-2, 3, n_features))
        ys.append(rng.integers(0, 3, n_rows))
        ys[-1][:3] = 0, 1, 2
    C, rng = 10.0 ** rng.uniform(-3, 3, 60), np.random.default_rng(0)
    weights = [10.0 ** rng.uniform(-3, 3, len(y)) for y in ys]
    least = gs.fit_many(Xs, ys, sample_weights=weights, C=C, tol=TOL, max_iter=5000).objective
    fits = gs.fit_many(Xs, ys, sample_weights=weights, C=C)
    assert (fits.status == Status.CONVERGED).all()
    assert ((fits.objective - least) / np.maximum(least, 1e-4)).max() < 1e-5


class TestWide:
    """More than two features a row: fits in the span of the rows."""

    @pytest.mark.parametrize("n_classes", [2, 3])
    @pytest.mark.parametrize("fit_intercept", [True, False])
    @pytest.mark.parametrize("weighted", [True, False])
    def test_every_problem_gets_the_solution_of_its_own_fit(self, n_classes, fit_intercept, weighted):
        Xs, ys = made(n_rows=20, n_features=50, n_classes=n_classes)
        Xs[3, 5], Xs[3, 6], Xs[3, 7] = Xs[3, 2], 0, Xs[3, 0] + Xs[3, 1]  # fewer directions than rows
        Xs, ys = [X[: 20 - p] for p, X in enumerate(Xs)], [y[: 20 - p] for p, y in enumerate(ys)]
        weights = [np.random.default_rng(1).integers(1, 5, len(y)) for y in ys] if weighted else None
        C = np.logspace(-2, 1, P)
        fits = gs.fit_many(Xs, ys, sample_weights=weights, C=C, fit_intercept=fit_intercept, tol=TOL)
        for p in range(P):
            own = None if weights is None else weights[p]
            assert_equals_its_own_fit(fits, p, Xs[p], ys[p], own, C=C[p], fit_intercept=fit_intercept)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_what_is_stated_is_that_of_x(self, dtype):
        Xs, ys = made(n_rows=20, n_features=100)
        Xs, rounding = Xs.astype(dtype), 1e-6 if dtype == np.float32 else 1e-13
        fits = gs.fit_many(Xs, ys)
        for p in range(P):
            coef = fits.coef[p].astype(float)
            loss, grad_W, grad_b = gs.loss_and_gradient(Xs[p].astype(float), ys[p], coef.T, fits.intercept[p])
            norm = max(abs(grad_W + coef.T / 20).max(), abs(grad_b).max())
            assert fits.objective[p] == pytest.approx(loss + (coef**2).sum() / 40, rel=rounding)
            assert fits.gradient_norm[p] == pytest.approx(norm, abs=rounding)
            assert fits.status[p] is Status.CONVERGED

    def test_what_x_finds_wanting_goes_on_there(self, wave_of, monkeypatch):
        wave_of(4)
        Xs, ys = made(n_rows=20, n_features=50)
        expected, lift = gs.fit_many(Xs, ys, tol=TOL), IndependentRowSpaces.lift

        def blurred(self, params):
            lifted = lift(self, params)
            lifted[3, 2, 0] += 1e-3
            return lifted

        monkeypatch.setattr(IndependentRowSpaces, "lift", blurred)
        fits = gs.fit_many(Xs, ys, tol=TOL)
        assert_same(fits, expected)
        assert (fits.status == Status.CONVERGED).all()
        np.testing.assert_array_equal(np.flatnonzero(fits.n_passes > expected.n_passes), [2, 6])
        np.testing.assert_array_equal(np.flatnonzero(fits.n_iter > expected.n_iter), [2, 6])

    @pytest.mark.parametrize("scale", [1e-160, 1e180])
    @pytest.mark.filterwarnings("ignore::gpusoftmax.ConvergenceWarning")
    def test_scales_that_squares_do_not_hold(self, scale, monkeypatch):
        Xs, ys = made(n_rows=20, n_features=50)
        Xs[2:5] *= scale
        fits = gs.fit_many(Xs, ys)
        monkeypatch.setattr("gpusoftmax.many.minimize_in_spans", LBFGS.minimize)
        assert_same_bits(fits, gs.fit_many(Xs, ys))

    @pytest.mark.parametrize("n_problems", [1, 2, 7])
    def test_waves_of_any_size_in_any_order(self, wave_of, n_problems):
        Xs, ys = made(n_rows=20, n_features=50)
        expected = gs.fit_many(Xs, ys, tol=TOL)
        wave_of(n_problems)
        order = np.random.default_rng(1).permutation(P)
        fits = gs.fit_many(Xs[order], ys[order], tol=TOL)
        np.testing.assert_allclose(fits.coef, expected.coef[order], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("budget", [4_000_000, 20_000_000])
    def test_the_budget_is_kept(self, dtype, budget):
        Xs, ys = made(200, 40, 400)
        Xs = Xs.astype(dtype)
        options = {"C": 1000.0, "max_iter": 60, "memory_budget": budget}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gs.ConvergenceWarning)
            gs.fit_many(Xs[:20], ys[:20], **options)
            tracemalloc.start()
            fits = gs.fit_many(Xs, ys, **options)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        results = dtype(0).itemsize * fits.coef.size + 8 * Xs[:, 0].size + 1000 * len(Xs)
        assert peak <= budget + results + 150_000


def test_verbose_reports_finished_problems(capsys):
    Xs, ys = made()
    gs.fit_many(Xs, ys, verbose=1)
    assert "7 of 7 problems" in capsys.readouterr().err


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_the_waves_that_run(wave_of, monkeypatch):
    wave_of(4)
    evaluate, n_evaluations = IndependentObjective.value_and_grad, itertools.count(1)

    def interrupted_and_slow(self, params):
        if next(n_evaluations) == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as from a terminal
        time.sleep(0.02)
        return evaluate(self, params)

    monkeypatch.setattr(IndependentObjective, "value_and_grad", interrupted_and_slow)
    with pytest.raises(KeyboardInterrupt):
        gs.fit_many(*made(), C=1e4, tol=1e-10, max_iter=40)  # more than 40 evaluations of each wave
    assert next(n_evaluations) < 20


@pytest.mark.parametrize("n_classes", [2, 3])
def test_estimators_are_counted_from_the_end_too_and_their_arrays_are_their_own(n_classes):
    fits = gs.fit_many(*made(n_classes=n_classes))
    one, last = fits.to_estimator(-1), fits.to_estimator(P - 1)
    one.coef_ += 1
    np.testing.assert_array_equal(last.coef_, fits.coef[-1])
    np.testing.assert_array_equal(one.intercept_, last.intercept_)


def test_frame():
    frame = gs.fit_many(*made()).to_frame()
    assert list(frame.columns) == ["status", "n_iter", "n_passes", "objective", "gradient_norm"]
    assert (frame["status"] == "CONVERGED").all()


def test_lists_frames_and_one_large_problem():
    pd = pytest.importorskip("pandas")
    Xs, ys = made(2, 5000, 30)
    fits = gs.fit_many([pd.DataFrame(Xs[0]), Xs[1].tolist()], [pd.Series(ys[0]), ys[1].tolist()], tol=TOL)
    for p in range(2):
        assert_equals_its_own_fit(fits, p, Xs[p], ys[p])


def edited(p, value):
    Xs, ys = made()
    Xs[p, 3, 1] = value
    return Xs, ys


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (edited(4, np.nan), {}, "NaN or infinity in problem 4"),
        (edited(6, np.inf), {}, "NaN or infinity in problem 6"),
        (([], []), {}, "at least one problem"),
        ((made()[0][0], made()[1]), {}, r"shape \(n_samples, n_features\)"),
        (([*made()[0][:2], np.zeros((4, 2))], made()[1][:3]), {}, r"Xs\[2\] has shape \(4, 2\)"),
        ((made()[0] + 1j, made()[1]), {}, "real numbers"),
        ((made()[0], made()[1][:3]), {}, "each of the 7 problems, got 3"),
        ((made()[0], made()[1][:, :9]), {}, r"40 labels.*problem 0; got an array of shape \(9,\)"),
        ((made()[0], made()[1] * 0), {}, "at least 2 classes with weight; problem 0"),
        ((made()[0], made()[1] + 0.5), {}, "Unknown label type"),
        ((made()[0], np.ones((P, N, 2))), {}, "Problem 0: Soft targets"),
        ((made()[0], list(range(P))), {}, "single value"),
        (made(), {"sample_weights": -np.ones((P, N))}, "non-negative weights"),
        (made(), {"C": -1.0}, "C must be a positive number"),
        (made(), {"C": np.ones(3)}, "7 of them"),
        (made(), {"tol": -1.0}, "'tol' parameter"),
        (made(), {"device": "tpu"}, "'device' parameter"),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        gs.fit_many(*arguments, **options)


@pytest.mark.parametrize("placed", [True, False])
def test_cuda(placed):
    Xs, ys = ragged()
    ys[1] = ys[1] % 2
    ys[4] = ys[4] + K
    C = np.logspace(-1, 3, P)
    expected = gs.fit_many(Xs, ys, C=C, tol=1e-8)
    with cuda():
        import cupy

        fits = gs.fit_many([cupy.asarray(X) for X in Xs] if placed else Xs, ys, C=C, tol=1e-8, device="cuda")
    assert_same(fits, expected)
    assert fits.n_passes.max() > 45
