"""SoftmaxRegressionCV: scikit-learn's LogisticRegressionCV, scores, choice and solutions; and what it adds."""

import inspect
import pickle

import numpy as np
import pandas as pd
import pytest
from cuda_device import cuda
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_wine, make_classification
from sklearn.exceptions import ConvergenceWarning, UnsetMetadataPassedError
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import get_scorer, log_loss, make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import gpusoftmax.cross_validation
from gpusoftmax import NonFiniteError, SoftmaxRegression, SoftmaxRegressionCV, Status, sweep

RESULTS = ["Cs_", "C_", "scores_", "coefs_paths_", "coef_", "intercept_"]
CS = [1e-3, 0.1, 10]


def data(n_classes=3, n_rows=150):
    share = {2: [0.6, 0.4], 3: [0.5, 0.3, 0.2]}[n_classes]
    return make_classification(
        n_rows, 6, n_informative=5, n_redundant=0, n_classes=n_classes, weights=share, flip_y=0.2, random_state=1
    )


X, Y = data()
WEIGHTS = np.random.default_rng(0).uniform(0.2, 3, len(Y))
GROUPS = np.arange(len(Y)) % 7
SOFT = np.random.default_rng(1).dirichlet([0.5, 1, 2], len(Y))


def ours(**options):
    return SoftmaxRegressionCV(**{"Cs": CS, "cv": 3, "tol": 1e-10} | options)


def theirs(**options):
    options = {"Cs": CS, "cv": 3, "tol": 1e-10, "scoring": None} | options
    return LogisticRegressionCV(solver="newton-cholesky", l1_ratios=(0,), use_legacy_attributes=False, **options)


def assert_same(actual, expected, tolerance=1e-6):
    for name in RESULTS:
        a, b = getattr(actual, name), getattr(expected, name)
        assert np.shape(a) == np.shape(b)
        assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


# scikit-learn's answers


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 1.0, 1: 3.0}])
@pytest.mark.parametrize("sample_weight", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_equals_scikit_learn(n_classes, fit_intercept, sample_weight, class_weight, refit):
    X, y = data(n_classes)
    options = {"fit_intercept": fit_intercept, "class_weight": class_weight, "refit": refit, "scoring": "neg_log_loss"}
    expected = theirs(**options).fit(X, y, sample_weight)
    actual = ours(**options).fit(X, y, sample_weight)
    assert_same(actual, expected)
    assert type(actual.C_) is float
    assert actual.n_iter_.shape == expected.n_iter_.shape
    assert_allclose(actual.predict_proba(X), expected.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize(
    ("n_classes", "scoring"),
    [(n_classes, scoring) for n_classes in (2, 3) for scoring in (None, "accuracy", "balanced_accuracy")]
    + [(2, "f1"), (2, "roc_auc"), (3, "f1_macro"), (3, "roc_auc_ovr"), (3, "neg_brier_score")],
)
@pytest.mark.parametrize("sample_weight", [None, WEIGHTS], ids=["equal", "weighted"])
def test_scores_are_scikit_learns(n_classes, scoring, sample_weight):
    X, y = data(n_classes)
    y = np.array(["b", "c", "d"])[y]
    expected = theirs(scoring=scoring).fit(X, y, sample_weight)
    assert_same(ours(scoring=scoring).fit(X, y, sample_weight), expected)


@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss", "neg_brier_score"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_folds_may_lack_classes(n_classes, scoring):
    X, y = data(n_classes)
    order = np.argsort(y, kind="stable")
    options = {"scoring": scoring, "cv": KFold(n_classes), "fit_intercept": False}  # no minimum has a finite one
    with pytest.warns(UserWarning, match=r"Fold \d of cv has no rows of class \d to fit") as caught:
        actual = ours(**options).fit(X[order], y[order])
    assert [each.filename for each in caught] == [__file__]
    assert_same(actual, theirs(**options).fit(X[order], y[order]))


@pytest.mark.filterwarnings("ignore:Fold 0 of cv has no rows of class 0:UserWarning")  # what is tested here
def test_folds_that_lack_classes_spoil_no_refit():
    X, y = load_wine(return_X_y=True)
    clf = SoftmaxRegressionCV(cv=KFold(3)).fit(X, y)
    alone = SoftmaxRegression(C=clf.C_).fit(X, y)
    assert clf.objective_ == pytest.approx(alone.objective_, rel=1e-6)


def test_defaults_are_scikit_learns():
    actual = SoftmaxRegressionCV(tol=1e-10).fit(X, Y)
    assert_same(actual, theirs(Cs=10, cv=None).fit(X, Y))
    assert_array_equal(actual.Cs_, np.logspace(-4, 4, 10))
    assert actual.scores_.shape == (5, 1, 10)
    assert actual.coefs_paths_.shape == (5, 1, 10, 3, 7)


def test_features_far_from_zero():
    actual, near = (ours(refit=False, scoring="neg_log_loss").fit(X + offset, Y) for offset in (1e4, 0))
    assert_allclose(actual.scores_, near.scores_, rtol=1e-6)
    assert_allclose(actual.predict_proba(X + 1e4), near.predict_proba(X), atol=1e-6)


# Scores


@pytest.mark.parametrize(("dtype", "rounding"), [(np.float32, 1e-7), (np.float64, 1e-15)])  # of weights
@pytest.mark.parametrize("sample_weight", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("name", ["accuracy", "neg_log_loss"])
def test_fused_scores_are_the_scorers(name, sample_weight, dtype, rounding):
    fused = ours(scoring=name, tol=1e-4).fit(X.astype(dtype), Y, sample_weight)
    called = ours(scoring=get_scorer(name), tol=1e-4).fit(X.astype(dtype), Y, sample_weight)
    assert_allclose(fused.scores_, called.scores_, rtol=1e-6 if name == "neg_log_loss" else rounding)
    assert_array_equal(fused.coefs_paths_, called.coefs_paths_)


@pytest.mark.parametrize("scoring", [None, "accuracy", "neg_log_loss"])
def test_fused_scores_predict_nothing(monkeypatch, scoring):
    def refuse(*_):
        raise AssertionError("predicted")

    monkeypatch.setattr(SoftmaxRegression, "_map_logits", refuse)
    ours(scoring=scoring).fit(X, Y)


def test_scorer_sees_each_fold_and_model():
    seen, splits = [], list(StratifiedKFold(3).split(X, Y))

    def scorer(model, X, y):
        seen.append((model, X, y))
        return float(len(seen) == 5)  # the second strength of the second fold

    clf = ours(scoring=scorer, cv=splits, class_weight="balanced").fit(X, Y)
    assert len(seen) == 9
    assert_array_equal(clf.scores_[:, 0], [[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert CS[1] == clf.C_
    for i, (model, X_test, y_test) in enumerate(seen):
        train, test = splits[i // 3]
        assert_array_equal(X_test, X[test])
        assert_array_equal(y_test, Y[test])
        balance = len(Y) / (3 * np.bincount(Y))
        alone = SoftmaxRegression(C=CS[i % 3], class_weight=dict(enumerate(balance)), tol=1e-10)
        assert_allclose(model.coef_, alone.fit(X[train], Y[train]).coef_, atol=1e-6)
        assert model.get_params() == alone.get_params() | {"class_weight": model.class_weight}


def test_scorers_of_their_own_arguments():
    weighing = make_scorer(log_loss, greater_is_better=False, response_method="predict_proba", normalize=False)
    summed, mean = ours(scoring=weighing).fit(X, Y), ours(scoring="neg_log_loss").fit(X, Y)
    assert_allclose(summed.scores_, 50 * mean.scores_, rtol=1e-6)


def test_strengths_without_a_score_are_not_chosen():
    def scorer(model, X, y):
        return np.nan if CS[0] == model.C else -model.C

    assert CS[1] == ours(scoring=scorer).fit(X, Y).C_
    assert pytest.approx(CS[1]) == ours(scoring=scorer, refit=False).fit(X, Y).C_
    with pytest.raises(ValueError, match=r"No strength has a score in every fold: <function .*> returned NaN"):
        ours(scoring=lambda *_: np.nan).fit(X, Y)
    with pytest.raises(ValueError, match="No strength has a score in every fold: each must hold out rows"):
        ours(cv=[(np.arange(150), [])]).fit(X, Y)


@pytest.mark.parametrize("scoring", [None, "neg_log_loss", "f1_macro", get_scorer("neg_log_loss")])
def test_score_is_of_scoring(scoring):
    clf = ours(scoring=scoring).fit(X, Y)
    scorer = get_scorer(scoring or "accuracy")
    assert clf.score(X, Y) == pytest.approx(scorer(clf, X, Y), rel=1e-12)
    assert clf.score(X, Y, sample_weight=WEIGHTS) == pytest.approx(scorer(clf, X, Y, sample_weight=WEIGHTS), rel=1e-12)
    assert clf.score(X, Y, sample_weight=WEIGHTS) != clf.score(X, Y)


# Choice


def test_refit_is_the_fit_to_all_rows():
    clf = ours(Cs=[0.1]).fit(X, Y, WEIGHTS)
    alone = SoftmaxRegression(C=0.1, tol=1e-10).fit(X, Y, WEIGHTS)
    assert_allclose(clf.coef_, alone.coef_, atol=1e-8)
    assert clf.objective_ == pytest.approx(alone.objective_, rel=1e-12)
    assert clf.gradient_norm_ <= 1e-10
    assert clf.status_ is Status.CONVERGED
    assert clf.n_passes_ < alone.n_passes_  # it starts from the mean of the folds


def test_without_refit_there_is_no_fit_to_report():
    clf = ours().fit(X, Y)
    clf.set_params(refit=False).fit(X, Y)
    for name in ("status_", "objective_", "gradient_norm_", "n_passes_"):
        assert getattr(clf, name) is None


def test_one_standard_error():
    best, careful = (
        ours(Cs=12, scoring="neg_log_loss", one_standard_error=is_careful).fit(X, Y) for is_careful in (False, True)
    )
    assert_array_equal(best.scores_, careful.scores_)
    scores = best.scores_[:, 0]
    means, errors = scores.mean(axis=0), scores.std(axis=0, ddof=1) / np.sqrt(3)
    i = means.argmax()
    assert best.Cs_[i] == best.C_
    assert best.Cs_[means >= means[i] - errors[i]].min() == careful.C_
    assert careful.C_ < best.C_
    assert_allclose(careful.coef_, SoftmaxRegression(C=careful.C_, tol=1e-10).fit(X, Y).coef_, atol=1e-6)


def test_one_standard_error_wants_refit():
    with pytest.raises(ValueError, match="needs refit=True"):
        ours(one_standard_error=True, refit=False).fit(X, Y)


def test_first_of_equals_is_chosen():
    assert ours(Cs=[10, 0.1, 1], scoring=lambda *_: 0.0).fit(X, Y).C_ == 10


# Targets


@pytest.mark.parametrize("class_weight", [None, "balanced", {"a": 1.0, "b": 3.0}])
@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss"])
def test_soft_targets_of_certain_classes_are_labels(scoring, class_weight):
    options = {"scoring": scoring, "class_weight": class_weight, "label_smoothing": 0.1}
    soft = ours(**options).fit(X, np.eye(3)[Y], WEIGHTS, classes=["a", "b", "c"])
    hard = ours(**options).fit(X, np.array(["a", "b", "c"])[Y], WEIGHTS)
    assert_same(soft, hard)
    assert_array_equal(soft.predict(X), hard.predict(X))


def test_soft_targets_are_scored_as_they_are():
    splits = list(KFold(3).split(X))
    losses, accuracies = (ours(scoring=scoring, cv=splits).fit(X, SOFT) for scoring in ("neg_log_loss", "accuracy"))
    for fold, (train, test) in enumerate(splits):
        for i, C in enumerate(CS):
            alone = SoftmaxRegression(C=C, tol=1e-10).fit(X[train], SOFT[train])
            loss = (SOFT[test] * alone.predict_log_proba(X[test])).sum(axis=1).mean()
            assert losses.scores_[fold, 0, i] == pytest.approx(loss, rel=1e-6)
            accuracy = SOFT[test, alone.predict(X[test])].mean()
            assert accuracies.scores_[fold, 0, i] == pytest.approx(accuracy, rel=1e-12)


def test_scorers_that_know_no_soft_targets_say_so():
    with pytest.raises(ValueError, match="'f1_macro' compares labels, and y holds soft targets"):
        ours(scoring="f1_macro").fit(X, SOFT)
    clf = ours(scoring=lambda model, X, y: (y * model.predict_log_proba(X)).sum(axis=1).mean()).fit(X, SOFT)
    assert_allclose(clf.scores_, ours(scoring="neg_log_loss").fit(X, SOFT).scores_, rtol=1e-6)


def test_soft_targets_are_stratified_by_the_likeliest_class():
    splits = list(StratifiedKFold(3).split(X, SOFT.argmax(axis=1)))
    assert_array_equal(ours().fit(X, SOFT).scores_, ours(cv=splits).fit(X, SOFT).scores_)


# Splitters


class ByFeature:
    """Holds out what lies low or high in the first feature."""

    def split(self, X, y):
        is_low = np.asarray(X)[:, 0] < 0
        yield np.flatnonzero(~is_low), np.flatnonzero(is_low)
        yield np.flatnonzero(is_low), np.flatnonzero(~is_low)

    def get_n_splits(self, X=None, y=None):
        return 2


def test_splitters_see_the_rows_and_need_know_no_groups():
    assert_same(ours(cv=ByFeature()).fit(X, Y), theirs(cv=ByFeature()).fit(X, Y))


def test_groups_stay_together():
    splits = list(GroupKFold(3).split(X, Y, GROUPS))
    actual, expected = ours(cv=GroupKFold(3)).fit(X, Y, groups=GROUPS), ours(cv=splits).fit(X, Y)
    assert_array_equal(actual.coefs_paths_, expected.coefs_paths_)
    with pytest.raises(ValueError, match="groups"):
        ours(cv=GroupKFold(3)).fit(X, Y)


def test_rows_may_repeat_in_a_fold():
    train, test = np.repeat(np.arange(100), 2), np.arange(100, 150)
    for scoring in ("neg_log_loss", "roc_auc_ovr"):
        options = {"cv": [(train, test)], "scoring": scoring}
        assert_same(ours(**options).fit(X, Y), theirs(**options).fit(X, Y))


# Among scikit-learn's tools


@parametrize_with_checks([SoftmaxRegressionCV()])
def test_estimator_check(estimator, check):
    check(estimator)


def test_no_estimator_check_is_left_out(monkeypatch):
    monkeypatch.delenv("SCIPY_ARRAY_API", raising=False)
    results = check_estimator(SoftmaxRegressionCV(), on_skip=None, on_fail=None)
    not_passed = {result["check_name"]: result["status"] for result in results if result["status"] != "passed"}
    assert not_passed == {"check_array_api_input": "skipped"}  # it wants SCIPY_ARRAY_API
    assert len(results) > 50


def test_parameters_are_those_of_the_plain_estimator():
    plain, own = (inspect.signature(cls.__init__).parameters for cls in (SoftmaxRegression, SoftmaxRegressionCV))
    shared = [name for name in plain if name not in ("C", "warm_start")]
    assert [name for name in own if name in plain] == shared
    assert all(own[name].default == plain[name].default for name in shared[1:])
    assert [name for name in own if name not in plain] == ["Cs", "cv", "scoring", "refit", "one_standard_error"]
    assert own.keys() == SoftmaxRegressionCV._parameter_constraints.keys() | {"self"}
    with pytest.raises(ValueError, match="Invalid parameter 'C'"):
        SoftmaxRegressionCV().set_params(C=1)


@pytest.mark.parametrize(
    "wrong",
    [{"Cs": 0}, {"Cs": []}, {"Cs": [1, -1]}, {"cv": "five"}, {"scoring": "precise"}, {"refit": 1.5}, {"tol": -1}],
    ids=str,
)
def test_what_cannot_be_is_refused_and_leaves_no_trace(wrong):
    clf = ours(scoring="neg_log_loss").fit(X, Y)
    before = pickle.dumps(vars(clf) | wrong)
    with pytest.raises(ValueError, match=next(iter(wrong)) if wrong != {"scoring": "precise"} else "precise"):
        clf.set_params(**wrong).fit(X[:, :3], Y)
    assert pickle.dumps(vars(clf)) == before


@pytest.mark.parametrize(("scoring", "y"), [("precise", Y), ("f1_macro", SOFT)], ids=["misspelt", "of labels"])
def test_scoring_that_cannot_be_is_refused_before_the_sweep(scoring, y, monkeypatch):
    def refuse(*_):
        raise AssertionError("swept")

    monkeypatch.setattr(gpusoftmax.cross_validation, "solve", refuse)
    with pytest.raises(ValueError, match=scoring):
        ours(scoring=scoring).fit(X, y)


def test_overflow_is_refused():
    far = X / np.abs(X).max() * np.finfo(np.float32).max
    with pytest.raises(NonFiniteError, match="StandardScaler"):
        ours(scoring=lambda *_: 0.0).fit(far.astype(np.float32), Y)


def test_unconverged_folds_and_fits_warn():
    with pytest.warns(ConvergenceWarning) as caught:
        ours(max_iter=1).fit(X, Y)
    assert ["problems did not converge" in str(each.message) for each in caught] == [True, False]
    assert {each.filename for each in caught} == {__file__}


def test_clone_and_pickle():
    clf = ours(scoring="f1_macro", label_smoothing=0.1, cv=KFold(3)).fit(X, Y)
    copy = clone(clf)
    assert copy.get_params() | {"cv": clf.cv} == clf.get_params()
    assert not hasattr(copy, "C_")
    loaded = pickle.loads(pickle.dumps(clf))
    assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert_array_equal(loaded.coefs_paths_, clf.coefs_paths_)
    assert loaded.score(X, Y) == clf.score(X, Y)


def test_pipeline_and_grid_search():
    pipeline = make_pipeline(StandardScaler(), ours(scoring="neg_log_loss"))
    search = GridSearchCV(pipeline, {"softmaxregressioncv__fit_intercept": [True, False]}, cv=2).fit(X, Y)
    best = search.best_estimator_[-1]
    direct = ours(scoring="neg_log_loss", fit_intercept=best.fit_intercept).fit(StandardScaler().fit_transform(X), Y)
    assert_array_equal(best.coef_, direct.coef_)
    assert search.score(X, Y) == best.score(StandardScaler().fit_transform(X), Y)


def test_frames_name_the_features():
    frame = pd.DataFrame(X, columns=list("abcdef"))
    clf = ours(scoring="f1_macro").fit(frame, pd.Series(Y), pd.Series(WEIGHTS))
    assert clf.feature_names_in_.tolist() == list("abcdef")
    assert_allclose(clf.scores_, ours(scoring="f1_macro").fit(X, Y, WEIGHTS).scores_, rtol=1e-6)
    assert clf.score(frame, pd.Series(Y)) == ours(scoring="f1_macro").fit(X, Y, WEIGHTS).score(X, Y)


def test_single_precision_stays():
    clf = ours(tol=1e-4).fit(X.astype(np.float32), Y)
    assert clf.coef_.dtype == clf.coefs_paths_.dtype == clf.predict_proba(X.astype(np.float32)).dtype == np.float32


def test_is_the_sweep():
    clf, result = ours(scoring="neg_log_loss").fit(X, Y), sweep(X, Y, Cs=CS, cv=3, tol=1e-10)
    assert_array_equal(clf.scores_[:, 0], -result.by_fold("held_out_loss").T)
    assert clf.C_ == result.best().C


@pytest.mark.parametrize("scoring", [None, "neg_log_loss", "roc_auc_ovr"])
def test_same_on_a_cuda_device(scoring):
    X, y = data(n_rows=60)
    with cuda():
        import cupy

        options = {"Cs": [0.01, 1], "scoring": scoring, "tol": 1e-6}
        there, here = ours(**options).fit(cupy.asarray(X), cupy.asarray(y)), ours(**options, device="cpu").fit(X, y)
        assert isinstance(there.coef_, cupy.ndarray)
        assert isinstance(there.predict(cupy.asarray(X)), cupy.ndarray)
        assert_allclose(there.scores_, here.scores_, rtol=1e-6)
        assert_allclose(cupy.asnumpy(there.coef_), here.coef_, atol=1e-4)
        assert there.score(cupy.asarray(X), cupy.asarray(y)) == pytest.approx(here.score(X, y), rel=1e-6)
        pickle.dumps(there)


# Routed metadata


@config_context(enable_metadata_routing=True)
@pytest.mark.parametrize("name", ["accuracy", "neg_log_loss"])
@pytest.mark.parametrize("is_requested", [True, False])
def test_scorer_is_given_the_weights_that_it_requests(name, is_requested):
    scorer = get_scorer(name).set_score_request(sample_weight=is_requested)
    actual = ours(scoring=scorer).fit(X, Y, WEIGHTS)
    assert_same(actual, theirs(scoring=scorer).fit(X, Y, WEIGHTS))
    if is_requested:
        assert actual.score(X, Y, sample_weight=WEIGHTS) != actual.score(X, Y)
    else:
        with pytest.raises(TypeError, match="unexpected argument"):
            actual.score(X, Y, sample_weight=WEIGHTS)


@config_context(enable_metadata_routing=True)
def test_weights_that_the_scorer_says_nothing_of_are_refused():
    for clf in (ours(), theirs()):
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            clf.fit(X, Y, WEIGHTS)


@config_context(enable_metadata_routing=True)
def test_pipeline_routes_groups_to_the_splitter():
    pipeline = make_pipeline(StandardScaler(), ours(cv=GroupKFold(3))).fit(X, Y, groups=GROUPS)
    splits = list(GroupKFold(3).split(X, Y, GROUPS))
    direct = ours(cv=splits).fit(StandardScaler().fit_transform(X), Y)
    assert_array_equal(pipeline[-1].coefs_paths_, direct.coefs_paths_)


@config_context(enable_metadata_routing=True)
def test_scorer_is_given_what_else_it_requests():
    def mean(y_true, y_predicted, value):
        return value.mean()

    scorer = make_scorer(mean).set_score_request(value=True)
    value, clf = np.arange(len(Y), dtype=float), ours(scoring=scorer, cv=KFold(3))
    clf.fit(X, Y, value=value)
    assert_allclose(clf.scores_[:, 0, 0], value.reshape(3, -1).mean(axis=1))
    assert clf.score(X, Y, value=value) == value.mean()


def test_other_arguments_want_routing():
    clf = ours().fit(X, Y)
    for call in (clf.fit, clf.score):
        with pytest.raises(ValueError, match="only supported if enable_metadata_routing=True"):
            call(X, Y, value=1)
