import os
import pickle
import signal
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from oracle import assert_close
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

import gpusoftmax.sweeps
from gpusoftmax import ConvergenceWarning, SoftmaxRegression, Status, WorkspaceError, sweep
from gpusoftmax.backends.cpu import NumpyPass
from gpusoftmax.plan_sweep import plan_sweep
from gpusoftmax.solvers.continuation import Trail
from gpusoftmax.solvers.pairs import Pairs
from gpusoftmax.sweep_result import Setting, strongest_within_error

X, Y = datasets.load_wine(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
TWO = Y < 2
RNG = np.random.default_rng(0)
WEIGHTS = RNG.integers(0, 4, len(X)).astype(float)
HALF = np.repeat([1.0, 0.0], 89)
SOFT = RNG.multinomial(8, [0.2, 0.3, 0.5], len(X)) / 8
CS = [1e-3, 0.1, 1.0, 30.0]
TOL = 1e-11
FOLDS = StratifiedKFold(3)


def tight(X=X, y=Y, Cs=CS, cv=FOLDS, **options):
    return sweep(X, y, Cs=Cs, cv=cv, tol=TOL, **options)


def rows_of(result, problem, cv=FOLDS, X=X, y=Y):
    """Return the rows that a problem was fitted to and those that it held out."""
    return list(cv.split(X, y))[result.problems.fold[problem]]


def assert_same(actual, expected, tolerance=1e-6):
    for name in ("coef", "intercept", "objective", "held_out_loss", "train_loss"):
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), rtol=0, atol=tolerance)


class TestEveryProblem:
    """Each problem's solution is that of a fit of its own, whoever shares the pass."""

    @pytest.mark.parametrize("fit_intercept", [True, False])
    @pytest.mark.parametrize("has_weights", [False, True])
    @pytest.mark.parametrize("rows", [slice(None), TWO], ids=["three classes", "two classes"])
    def test_is_the_one_that_scikit_learn_fits_to_the_subset(self, rows, has_weights, fit_intercept):
        x, y = X[rows], Y[rows]
        weights = WEIGHTS[rows] if has_weights else None
        result = tight(x, y, sample_weight=weights, fit_intercept=fit_intercept)
        for p in range(len(result)):
            train, _ = rows_of(result, p, X=x, y=y)
            theirs = LogisticRegression(
                C=result.problems.C[p], solver="newton-cholesky", tol=1e-10, fit_intercept=fit_intercept
            ).fit(x[train], y[train], None if weights is None else weights[train])
            shift = 0 if len(theirs.coef_) == 1 else theirs.intercept_.mean() - result.intercept[p].mean()
            np.testing.assert_allclose(result.coef[p], theirs.coef_, atol=1e-6)
            np.testing.assert_allclose(result.intercept[p] + shift, theirs.intercept_, atol=2e-6)

    @pytest.mark.parametrize(
        ("y", "options"),
        [
            (Y, {"label_smoothing": 0.1}),
            (Y, {"class_weight": "balanced", "sample_weight": WEIGHTS}),
            (Y, {"class_weight": {0: 1.0, 1: 5.0, 2: 0.5}}),
            (SOFT, {"sample_weight": WEIGHTS}),
            (SOFT, {"class_weight": "balanced", "label_smoothing": 0.2}),
            (SOFT, {"class_weight": {0: 1.0, 1: 5.0, 2: 0.5}}),
            (np.array(["b", "c", "a"])[Y], {}),
        ],
        ids=["smoothing", "balanced", "class weights", "soft", "soft, balanced", "soft, class weights", "strings"],
    )
    def test_is_its_own_single_fit(self, y, options):
        cv = KFold(3, shuffle=True, random_state=0)
        result = tight(y=y, cv=cv, Cs=[0.1, 10.0], **options)
        weights = options.pop("sample_weight", None)
        for p in range(len(result)):
            train, _ = rows_of(result, p, cv)
            alone = SoftmaxRegression(C=result.problems.C[p], tol=TOL, **options)
            alone.fit(X[train], y[train], None if weights is None else weights[train])
            ours = result.to_estimator(p)
            np.testing.assert_allclose(ours.coef_, alone.coef_, atol=1e-6)
            np.testing.assert_allclose(ours.intercept_, alone.intercept_, atol=1e-6)
            np.testing.assert_allclose(ours.objective_, alone.objective_, rtol=1e-12)
            np.testing.assert_array_equal(ours.predict(X), alone.predict(X))

    def test_of_settings_swept_over(self):
        result = tight(class_weight=[None, "balanced"], label_smoothing=[0.0, 0.2], Cs=[0.1, 10.0])
        assert len(result) == 2 * 2 * 2 * 3
        assert result.settings[0] == Setting(0.1, None, 0.0)
        assert result.settings[-1] == Setting(10.0, "balanced", 0.2)
        for p in range(0, len(result), 5):
            train, _ = rows_of(result, p)
            setting = result.setting_of(p)
            alone = SoftmaxRegression(tol=TOL, **setting._asdict()).fit(X[train], Y[train])
            assert result.to_estimator(p).get_params() == alone.get_params()
            np.testing.assert_allclose(result.coef[p], alone.coef_, atol=1e-6)

    def test_without_folds_sees_all_rows(self):
        result = tight(cv=None)
        assert len(result) == len(CS)
        assert np.isnan(result.held_out_loss).all()
        for p, C in enumerate(CS):
            alone = SoftmaxRegression(C=C, tol=TOL).fit(X, Y)
            np.testing.assert_allclose(result.coef[p], alone.coef_, atol=1e-6)
            np.testing.assert_allclose(result.train_loss[p], log_loss(Y, alone.predict_proba(X)), rtol=1e-6)

    def test_without_a_penalty(self):
        result = tight(SOFT, SOFT, Cs=[1.0, np.inf], cv=None)
        alone = SoftmaxRegression(C=np.inf, tol=TOL).fit(SOFT, SOFT)
        np.testing.assert_allclose(result.objective[1], alone.objective_, rtol=1e-9)

    @pytest.mark.parametrize("dtype", [np.float64, np.float32])
    def test_with_weak_penalties_that_leave_next_to_no_curvature_of_the_loss(self, dtype):
        x, y = datasets.load_digits(return_X_y=True)  # separable: the loss falls by five powers of ten along this path
        Cs = np.logspace(0, 5, 6)
        result = sweep(x.astype(dtype), y, Cs=Cs)
        precise = sweep(x, y, Cs=Cs, tol=1e-8, max_iter=5000)
        assert (result.n_iter > 0).all()
        np.testing.assert_allclose(result.objective, precise.objective, rtol=1e-3)

    @pytest.mark.parametrize("sample_weight", [None, WEIGHTS + 1], ids=["plain", "weighted"])
    def test_weights_of_any_size_keep_their_precision_in_float32(self, sample_weight):
        x, masks, scales = X.astype(np.float32), RNG.random((len(X), 3)) < 0.7, 1e-46 * np.array([1, 30, 1e3])
        one = {0: 1.0, 1: 5.0, 2: 0.5}
        plain = sweep(x, Y, cv=masks, Cs=[1.0], sample_weight=sample_weight, class_weight=one)
        scaled = [{k: scale * weight for k, weight in one.items()} for scale in (1e-58, 1e-60)]
        shared = {"sample_weight": sample_weight, "class_weight": scaled}
        result = sweep(x, Y, cv=masks * scales, Cs=1e60 / scales, **shared)
        same = [3 * 3 + fold * 3 + fold for fold in range(3)]  # of the second class weight, where C and fold cancel
        assert [result.status[p].name for p in same] == ["CONVERGED"] * 3
        for name in ("objective", "train_loss", "held_out_loss"):
            np.testing.assert_allclose(getattr(result, name)[same], getattr(plain, name), rtol=1e-3)
        np.testing.assert_allclose(result.coef[same], plain.coef, atol=1e-3)

    def test_with_an_offset_that_dwarfs_the_spread(self):
        result, plain = tight(X + 4096.0, Cs=[0.1, 1.0]), tight(Cs=[0.1, 1.0])
        np.testing.assert_allclose(result.coef, plain.coef, atol=1e-6)
        np.testing.assert_allclose(result.held_out_loss, plain.held_out_loss, atol=1e-6)


class TestCompanions:
    @pytest.mark.parametrize("Cs", [CS[::-1], [CS[i] for i in (2, 0, 3, 1)]], ids=["descending", "mixed"])
    def test_order_of_strengths_permutes_the_same_bits(self, Cs):
        plain, permuted = tight(), tight(Cs=Cs)
        for p in range(len(permuted)):
            (same,) = np.flatnonzero(
                (permuted.problems.C[p] == plain.problems.C) & (plain.problems.fold == permuted.problems.fold[p])
            )
            np.testing.assert_array_equal(permuted.coef[p], plain.coef[same])
            assert permuted.held_out_loss[p] == plain.held_out_loss[same]

    def test_order_of_folds_permutes_the_same_bits(self):
        masks = np.stack([np.isin(np.arange(len(X)), train) for train, _ in FOLDS.split(X, Y)], axis=1)
        plain, permuted = tight(cv=masks), tight(cv=masks[:, [2, 0, 1]])
        np.testing.assert_array_equal(permuted.coef.reshape(4, 3, 3, -1), plain.coef.reshape(4, 3, 3, -1)[:, [2, 0, 1]])
        np.testing.assert_array_equal(permuted.by_fold("held_out_loss"), plain.by_fold("held_out_loss")[:, [2, 0, 1]])

    def test_other_strengths_change_no_solution(self):
        np.testing.assert_allclose(tight(Cs=[1.0]).coef, tight(Cs=[1e-3, 0.5, 1.0, 1.5, 1e4]).coef[6:9], atol=1e-6)

    @pytest.mark.parametrize("n_at_once", [1, 2, 5])
    def test_waves_change_no_solution(self, n_at_once, monkeypatch):
        waves = []

        def plan(*arguments, **options):
            planned = replace(plan_sweep(*arguments, **options), n_at_once=n_at_once)
            waves.append(len(planned.waves()))
            return planned

        together = tight()
        monkeypatch.setattr(gpusoftmax.sweeps, "plan_sweep", plan)
        assert_same(tight(), together)
        assert waves == [-(-3 // n_at_once)]

    def test_a_smaller_budget_makes_more_waves_and_the_same_solutions(self):
        with pytest.raises(WorkspaceError) as caught:
            tight(memory_budget=1)
        least = int(str(caught.value).split("memory_budget=")[-1].rstrip("."))
        assert_same(tight(memory_budget=least), tight())
        with pytest.raises(WorkspaceError):
            tight(memory_budget=least - 1)


class TestTrouble:
    def test_a_stubborn_problem_costs_the_others_nothing(self):
        with pytest.warns(ConvergenceWarning, match="3 of 6"):
            result = sweep(X, Y, Cs=[0.01, 1e8], cv=3, tol=1e-8, max_iter=12)
        assert (result.status[3:] == Status.ITERATION_LIMIT).all()
        alone = sweep(X, Y, Cs=[0.01], cv=3, tol=1e-8, max_iter=12)
        assert (result.n_passes[:3] <= alone.n_passes + 2).all()
        np.testing.assert_array_equal(result.status[:3], alone.status)
        np.testing.assert_allclose(result.coef[:3], alone.coef, atol=1e-6)

    def test_warns_once_of_those_that_did_not_converge(self):
        with pytest.warns(ConvergenceWarning, match="6 of 6 problems did not converge") as caught:
            sweep(X, Y, Cs=[1.0, 100.0], cv=3, max_iter=1, tol=1e-9)
        assert len(caught) == 1
        assert caught[0].filename == __file__

    @pytest.mark.parametrize("stage", [0, 1])
    def test_a_failing_problem_spoils_no_other(self, stage, monkeypatch):
        evaluate, strengths = NumpyPass.loss_and_gradient, []
        bind = gpusoftmax.sweeps.bind

        def poisoned(self, params, smoothing):
            loss, gradient = evaluate(self, params, smoothing)
            is_bad = (self.source.columns == 1) & (strengths[-1] == stage)
            loss[is_bad] = np.nan
            return loss, gradient

        expected = tight(Cs=[0.1, 1.0])
        solve, solve_next = gpusoftmax.sweeps.Bound.solve, gpusoftmax.sweeps.Bound.solve_next
        monkeypatch.setattr(gpusoftmax.sweeps, "bind", lambda *a, **k: (strengths.append(0), bind(*a, **k))[1])

        def next_stage(self, *arguments):
            strengths.append(1)
            return solve_next(self, *arguments)

        monkeypatch.setattr(gpusoftmax.sweeps.Bound, "solve_next", next_stage)
        monkeypatch.setattr(NumpyPass, "loss_and_gradient", poisoned)
        monkeypatch.setattr(gpusoftmax.sweeps, "plan_sweep", one_path_a_fold)
        assert solve is gpusoftmax.sweeps.Bound.solve
        with pytest.warns(ConvergenceWarning, match="1 of 6 problems did not converge"):
            result = tight(Cs=[0.1, 1.0])
        bad = 3 * stage + 1
        fine = np.arange(6) != bad
        assert result.status[bad] == Status.NON_FINITE
        assert (result.status[fine] != Status.NON_FINITE).all()
        np.testing.assert_allclose(result.coef[fine], expected.coef[fine], atol=1e-6)

    def test_a_class_missing_from_a_fold_is_unlikely_there(self):
        masks = np.stack([Y != 2, Y != 1], axis=1)
        with pytest.warns(UserWarning, match=r"Fold 0 of cv has no rows of class 2 to fit.* 2 of 2\.") as caught:
            result = sweep(X, Y, Cs=[1.0], cv=masks)
        assert [each.filename for each in caught] == [__file__]
        estimators = [result.to_estimator(p) for p in range(2)]
        assert estimators[0].predict_proba(X)[Y != 2][:, 2].max() < 0.05
        assert (estimators[1].predict(X)[Y != 1] == Y[Y != 1]).mean() > 0.95
        assert result.held_out_accuracy[0] == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"Cs": 0}, "Cs must be at least 1"),
            ({"Cs": []}, "Cs must be a number of strengths or an array of positive ones"),
            ({"Cs": [1.0, -1.0]}, "positive ones"),
            ({"Cs": [[1.0]]}, "positive ones"),
            ({"Cs": [np.nan]}, "positive ones"),
            ({"cv": np.ones((5, 2))}, r"shape \(n_samples, n_folds\) with 178 samples, got shape \(5, 2\)"),
            ({"cv": -np.ones((178, 2))}, "non-negative"),
            ({"cv": np.eye(178)[:, :2] * 0}, "Fold 0 of cv has no rows"),
            ({"cv": []}, "cv has no folds"),
            ({"cv": np.ones(178)}, r"shape \(n_samples, n_folds\) with 178 samples, got shape \(178,\)"),
            ({"cv": np.ones((178, 3)).tolist()}, r"pairs \(train, test\) of row indices; .* an array of shape"),
            ({"cv": np.ones((178, 2)).tolist()}, r"pairs \(train, test\) of row indices; .* an array of shape"),
            ({"cv": [1.0] * 178}, r"pairs \(train, test\) of row indices; .* an array of shape"),
            ({"class_weight": []}, "must not be empty"),
            ({"class_weight": ["unbalanced"]}, "class_weight"),
            ({"label_smoothing": [0.1, 1.0]}, "label_smoothing"),
            ({"on_interrupt": "ignore"}, "on_interrupt"),
            ({"tol": -1.0}, "tol"),
            ({"sample_weight": np.zeros(178), "cv": 3}, "non-zero"),
            ({"sample_weight": HALF, "cv": np.stack([HALF, 1 - HALF], axis=1)}, "Fold 1 of cv has no rows"),
        ],
    )
    def test_bad_input_says_what_is_wrong(self, options, message):
        with pytest.raises(ValueError, match=message):
            sweep(X, Y, **({"Cs": [1.0]} | options))


def one_path_a_fold(*arguments, **options):
    plan = plan_sweep(*arguments, **options)
    n_folds, Cs = arguments[2], arguments[3]
    order = np.argsort(Cs)
    return replace(plan, paths=order * n_folds + np.arange(n_folds)[:, np.newaxis], n_at_once=n_folds)


class TestScores:
    @pytest.mark.parametrize("sample_weight", [None, WEIGHTS], ids=["plain", "weighted"])
    def test_are_those_of_scikit_learn_s_metrics(self, sample_weight):
        result = tight(sample_weight=sample_weight, class_weight="balanced", label_smoothing=0.1)
        for p in range(len(result)):
            clf = result.to_estimator(p)
            for rows, kind in zip(rows_of(result, p), ("train", "held_out"), strict=True):
                weights = None if sample_weight is None else sample_weight[rows]
                loss = log_loss(Y[rows], clf.predict_proba(X[rows]), sample_weight=weights, labels=[0, 1, 2])
                accuracy = accuracy_score(Y[rows], clf.predict(X[rows]), sample_weight=weights)
                np.testing.assert_allclose(getattr(result, f"{kind}_loss")[p], loss, rtol=1e-9)
                np.testing.assert_allclose(getattr(result, f"{kind}_accuracy")[p], accuracy, rtol=1e-12)

    def test_of_soft_targets(self):
        result = tight(y=SOFT, cv=KFold(3), Cs=[1.0])
        for p in range(3):
            _, test = rows_of(result, p, KFold(3))
            clf = result.to_estimator(p)
            loss = -(SOFT[test] * clf.predict_log_proba(X[test])).sum(axis=1).mean()
            np.testing.assert_allclose(result.held_out_loss[p], loss, rtol=1e-9)
            share = SOFT[test, clf.predict(X[test])].mean()
            np.testing.assert_allclose(result.held_out_accuracy[p], share, rtol=1e-12)

    def test_rows_of_no_fold_count_nowhere(self):
        splits = [(np.arange(0, 178, 3), np.arange(1, 178, 3))]
        result = tight(cv=splits, Cs=[1.0])
        clf = result.to_estimator(0)
        loss = log_loss(Y[1::3], clf.predict_proba(X[1::3]))
        np.testing.assert_allclose(result.held_out_loss[0], loss, rtol=1e-9)

    def test_of_many_classes_that_share_a_gradient(self):
        y = np.arange(178) % 89
        result = sweep(X.astype(np.float32), y, Cs=[0.01, 1.0], cv=2, tol=1e-3)
        clf = result.to_estimator(3)
        _, test = rows_of(result, 3, StratifiedKFold(2), y=y)
        np.testing.assert_allclose(result.held_out_accuracy[3], clf.score(X[test], y[test]), rtol=1e-6)


class TestBest:
    def test_is_the_lowest_mean_of_held_out_losses(self):
        result = tight()
        means = result.by_fold("held_out_loss").mean(axis=1)
        assert result.best_setting() == means.argmin()
        assert CS[means.argmin()] == result.best().C

    def test_by_accuracy_is_the_first_of_the_highest(self):
        result = tight()
        means = result.by_fold("held_out_accuracy").mean(axis=1)
        assert result.best_setting("held_out_accuracy") == np.flatnonzero(means == means.max())[0]

    def test_one_standard_error(self):
        losses = np.array([[9.0, 9, 9], [2.0, 2.2, 2.1], [1.9, 2.3, 2.0], [1.8, 2.2, 1.9], [5.0, 5, 5]])
        Cs = np.array([0.1, 1.0, 10.0, 100.0, 1000.0])
        everything = np.full(5, True)
        assert strongest_within_error(losses, 3, Cs, everything) == 2
        assert strongest_within_error(losses, 3, Cs, np.array([1, 1, 0, 1, 1], bool)) == 3
        assert strongest_within_error(losses[:, :1], 3, Cs, everything) == 3
        result = tight()
        assert result.best(one_standard_error=True).C <= result.best().C

    @pytest.mark.parametrize("options", [{}, {"by": "held_out_accuracy"}, {"one_standard_error": True}], ids=str)
    def test_is_none_with_a_fold_that_was_stopped(self, options):
        result = tight()
        best = result.best_setting(**options)
        stopped = replace(result, status=np.where(np.arange(12) == 3 * best + 1, Status.STOPPED, result.status))
        assert stopped.best_setting(**options) != best

    def test_needs_held_out_rows(self):
        with pytest.raises(ValueError, match="give cv"):
            tight(cv=None).best()
        with pytest.raises(ValueError, match="by must be one of"):
            tight().best("loss")


class TestResult:
    def test_frame_has_a_row_a_problem(self):
        pytest.importorskip("pandas")
        result = tight()
        frame = result.to_frame()
        assert len(frame) == len(result) == 12
        assert list(frame.columns[:5]) == ["C", "fold", "class_weight", "label_smoothing", "status"]
        np.testing.assert_array_equal(frame.held_out_loss, result.held_out_loss)
        assert set(frame.status) <= {"CONVERGED", "PRECISION_REACHED"}

    def test_keeps_no_data_and_survives_pickling(self):
        result = tight(np.tile(X, (1, 40)), Cs=[1.0])
        assert len(pickle.dumps(result)) < X.nbytes * 40 / 2
        again = pickle.loads(pickle.dumps(result))
        np.testing.assert_array_equal(again.to_estimator(1).coef_, result.to_estimator(1).coef_)

    def test_estimators_know_names_and_labels(self):
        pd = pytest.importorskip("pandas")
        names = [f"f{i}" for i in range(X.shape[1])]
        labels = np.array(["b", "c", "a"])[Y]
        result = tight(pd.DataFrame(X, columns=names), labels, Cs=[1.0])
        clf = result.to_estimator(0)
        assert list(clf.feature_names_in_) == names
        assert clf.score(pd.DataFrame(X, columns=names), labels) > 0.9

    def test_float32_stays_float32(self):
        result = sweep(X.astype(np.float32), Y, Cs=[1.0], cv=2)
        assert result.coef.dtype == result.to_estimator(0).coef_.dtype == np.float32

    def test_groups_stay_together(self):
        groups = np.arange(len(X)) // 10
        result = tight(cv=GroupKFold(3), groups=groups, Cs=[1.0])
        train, _ = list(GroupKFold(3).split(X, Y, groups))[2]
        alone = SoftmaxRegression(tol=TOL).fit(X[train], Y[train])
        np.testing.assert_allclose(result.coef[2], alone.coef_, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_paths_remember_saves_passes(dtype, monkeypatch):
    x, y, Cs = X.astype(dtype), Y, np.logspace(-4, 4, 20)
    passes = [sweep(x, y, Cs=Cs).n_passes.sum()]
    for room, name in ((Trail, "step_to"), (Pairs, "in_first_order")):
        forgetful = {"step_to": lambda *_: None, "in_first_order": forgotten}[name]
        monkeypatch.setattr(room, name, forgetful)
        passes.append(sweep(x, y, Cs=Cs).n_passes.sum())
    alone = sum(SoftmaxRegression(C=C).fit(x, y).n_passes_ for C in Cs)
    assert passes[0] < 0.8 * passes[1]
    assert passes[1] < 0.9 * passes[2]
    assert passes[2] < 0.8 * alone


def forgotten(pairs):
    pairs.forget(np.arange(len(pairs.age)))
    return pairs


def test_every_pass_of_a_path_is_counted_where_it_is_shown(capsys):
    """Those for guesses too, which save the more passes."""
    result = sweep(X, Y, Cs=np.logspace(-2, 4, 7), verbose=1)
    assert f" {result.n_passes.sum():,.0f} passes" in capsys.readouterr().err


@pytest.mark.usefixtures("heeds_ctrl_c")
class TestInterrupt:
    def interrupt(self, monkeypatch, after):
        """Send Ctrl-C once, from the step in which this many problems have finished."""
        hear, done = gpusoftmax.sweeps.ProgressBar.hear, []

        def hear_and_interrupt(self, progress):
            hear(self, progress)
            if self._n_finished >= after and not done:
                done.append(True)
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(gpusoftmax.sweeps.ProgressBar, "hear", hear_and_interrupt)
        monkeypatch.setattr(gpusoftmax.sweeps, "plan_sweep", one_path_a_fold)

    def test_returns_what_is_finished_when_asked(self, monkeypatch):
        expected, before = tight(), signal.getsignal(signal.SIGINT)
        self.interrupt(monkeypatch, 6)
        result = tight(on_interrupt="return")
        assert signal.getsignal(signal.SIGINT) is before
        np.testing.assert_allclose(result.coef[:6], expected.coef[:6], atol=1e-6)
        assert (result.status[:6] == Status.CONVERGED).all()
        assert (result.status[6:] == Status.STOPPED).all()
        assert np.isfinite(result.to_estimator(6).coef_).all()
        assert np.isfinite(result.coef[6:9]).all()  # those that were running are where they were
        assert np.isnan(result.held_out_loss[9:]).all()
        assert result.best().C in CS[:2]
        with pytest.raises(ValueError, match="Problem 11 was not reached"):
            result.to_estimator(11)

    def test_raises_otherwise(self, monkeypatch):
        self.interrupt(monkeypatch, 3)
        with pytest.raises(KeyboardInterrupt):
            tight()

    def test_the_second_one_raises(self, monkeypatch):
        def twice(*_):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(gpusoftmax.sweeps.ProgressBar, "hear", twice)
        with pytest.raises(KeyboardInterrupt):
            tight(on_interrupt="return")


def test_progress_shows_finished_problems_and_passes(capsys):
    tight(verbose=1)
    shown = capsys.readouterr().err
    assert "12 of 12 problems" in shown
    assert "passes" in shown
    tight()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("n_strengths", [3, 30])
def test_budget_is_kept_for_any_number_of_problems(n_strengths):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3000, 60)), rng.integers(0, 20, 3000)
    Cs = np.logspace(-3, 0, n_strengths)
    budget = 3_000_000
    sweep(x[:300], y[:300], Cs=[1.0], cv=2)  # imports and caches
    tracemalloc.start()
    result = sweep(x, y, Cs=Cs, cv=4, memory_budget=budget)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = 3 * result.coef.nbytes + 3000 * 4 * 3  # the result, decoded from its params; folds
    assert peak <= budget + kept + 300_000  # threads and small objects
    assert_close(result.coef[:4], sweep(x, y, Cs=Cs[:1], cv=4).coef, 1e-3)
