"""What a fit tells: its history, log records, and the tasks of scikit-learn's callbacks."""

import copy
import logging
import pickle

import numpy as np
import pytest
from cuda_device import cuda
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.callback import CallbackContext, ProgressBar, ScoringMonitor
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from gpusoftmax import SoftmaxRegression, SoftmaxRegressionCV, Status, fit_many, load_model, save_model, sweep
from gpusoftmax.callbacks import STEP
from gpusoftmax.interop import to_host

X, Y = load_iris(return_X_y=True)
HOOKS = ("setup", "on_fit_task_begin", "on_fit_task_end", "teardown")


class Listener:
    """Notes every hook; fails or asks to stop where it is told to."""

    def __init__(self, *, fails_at=None, stops_after=None):
        self.heard = []
        self.fails_at = fails_at
        self.stops_after = stops_after

    def note(self, hook, context, given=None):
        self.heard.append((hook, context.task_name, context.task_id, given))
        if hook == self.fails_at:
            raise KeyError(f"at {hook}")

    def setup(self, estimator, context):
        self.note("setup", context)

    def teardown(self, estimator, context):
        self.note("teardown", context)

    def on_fit_task_begin(self, estimator, context, *, X, y, metadata, fitted_estimator):
        self.note("on_fit_task_begin", context, (X, y, metadata, fitted_estimator))

    def on_fit_task_end(self, estimator, context, *, X, y, metadata, fitted_estimator):
        self.note("on_fit_task_end", context, (X, y, metadata, fitted_estimator))
        return context.task_name == STEP and context.task_id + 1 == self.stops_after

    def count(self, hook):
        return sum(one[0] == hook for one in self.heard)

    def models(self, hook="on_fit_task_end"):
        """Return the fitted estimators that the steps' hooks were given."""
        return [given[3] for name, task, _, given in self.heard if name == hook and task == STEP]


class Propagated(Listener):
    max_propagation_depth = None


class Deaf(Listener):
    """Asks for nothing."""

    def on_fit_task_begin(self, estimator, context):
        self.note("on_fit_task_begin", context)

    def on_fit_task_end(self, estimator, context):
        self.note("on_fit_task_end", context)


# History


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_history_ends_at_the_solution(dtype):
    clf = SoftmaxRegression(C=10).fit(X.astype(dtype), Y)
    history = clf.history_
    assert history.objectives[-1] == clf.objective_
    assert history.gradient_norms[-1] == clf.gradient_norm_
    assert history.n_passes[-1] == clf.n_passes_
    assert history.validation_losses is None
    arrays = history.n_passes, history.objectives, history.gradient_norms, history.seconds
    assert {(array.shape, array.dtype.name) for array in arrays} == {((len(history),), "float64")}
    assert len(history) > clf.n_iter_[0]  # the start is one of them
    assert (np.diff(history.n_passes) >= 1).all()
    assert (np.diff(history.seconds) > 0).all()
    assert (np.diff(history.objectives) <= 1e-6).all()


def test_history_starts_anew_with_every_fit():
    clf = SoftmaxRegression().fit(X, Y)
    first = clf.history_
    assert_array_equal(clf.fit(X, Y).history_.objectives, first.objectives)
    assert len(SoftmaxRegression(warm_start=True, tol=1e-2).fit(X, Y).fit(X, Y).history_) == 1


def test_history_is_pickled_and_framed():
    clf = SoftmaxRegression().fit(X, Y)
    assert_array_equal(pickle.loads(pickle.dumps(clf)).history_.seconds, clf.history_.seconds)
    frame = clf.history_.to_frame()
    assert list(frame) == ["n_passes", "objectives", "gradient_norms", "seconds"]
    assert len(frame) == len(clf.history_)


def test_history_of_a_search_is_that_of_the_fit_to_all_rows():
    clf = SoftmaxRegressionCV(Cs=[0.1, 1.0], cv=2).fit(X, Y)
    assert clf.history_.objectives[-1] == clf.objective_
    assert SoftmaxRegressionCV(Cs=[0.1, 1.0], cv=2, refit=False).fit(X, Y).history_ is None


def test_models_that_were_not_fitted_alone_have_no_history(tmp_path):
    save_model(SoftmaxRegression().fit(X, Y), tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    of_sweep, of_many = sweep(X, Y, Cs=[1.0]).to_estimator(0), fit_many([X], [Y]).to_estimator(0)
    assert loaded.history_ is of_sweep.history_ is of_many.history_ is None


# Logging


def test_a_fit_logs_its_start_and_its_end(caplog):
    clf = SoftmaxRegression(device="cpu").fit(X, Y)
    start, end = caplog.records
    assert {start.name, end.name} == {"gpusoftmax"}
    assert {start.levelno, end.levelno} == {logging.INFO}
    assert (start.n_samples, start.n_features, start.n_classes, start.device) == (150, 4, 3, "cpu")
    assert (end.status, end.n_passes, end.objective) == ("CONVERGED", clf.n_passes_, clf.objective_)
    assert end.gradient_norm == clf.gradient_norm_
    assert end.seconds >= clf.history_.seconds[-1]
    assert clf.status_.sentence in end.getMessage()


def test_every_evaluation_is_logged_on_request(caplog):
    caplog.set_level(logging.DEBUG, "gpusoftmax")
    history = SoftmaxRegression().fit(X, Y).history_
    records = [record for record in caplog.records if record.levelno == logging.DEBUG]
    assert [record.objective for record in records] == history.objectives.tolist()
    assert [record.gradient_norm for record in records] == history.gradient_norms.tolist()
    assert [record.n_passes for record in records] == history.n_passes.tolist()
    assert records[-1].n_iter == records[-2].n_iter + 1


def test_nothing_is_shown_unless_logging_is_configured():
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("gpusoftmax").handlers)


# scikit-learn's callbacks


@pytest.mark.parametrize("max_iter", [0, 2, 1000])
def test_there_is_a_task_for_the_fit_and_for_every_step(max_iter):
    listener = Listener()
    clf = SoftmaxRegression(max_iter=max_iter).set_callbacks(listener)
    if max_iter < 1000:
        with pytest.warns(ConvergenceWarning):
            clf.fit(X, Y)
    else:
        clf.fit(X, Y)
    assert [listener.count(hook) for hook in ("setup", "teardown")] == [1, 1]
    # The fit, its steps, and one that was begun and not taken.
    assert listener.count("on_fit_task_begin") == listener.count("on_fit_task_end") == clf.n_iter_[0] + 2
    assert listener.heard[1][:2] == ("on_fit_task_begin", "fit")
    assert listener.heard[-2][:2] == ("on_fit_task_end", "fit")
    assert [one[2] for one in listener.heard if one[:2] == ("on_fit_task_end", STEP)] == list(range(clf.n_iter_[0] + 1))
    assert listener.models()[-1] is None


@pytest.mark.parametrize("offset", [0, 1000])  # at 1000 the fit subtracts the features' centre
@pytest.mark.parametrize("targets", ["labels", "soft"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_fitted_estimators_are_the_model_after_that_many_steps(n_classes, targets, offset):
    n = 50 * n_classes  # rows are in the order of their classes
    x, names = X[:n] + offset, np.array(["a", "b", "c"])[:n_classes]
    y, options = names[Y[:n]], {}
    if targets == "soft":
        y, options = np.eye(n_classes)[Y[:n]] * 0.9 + 0.1 / n_classes, {"classes": names}
    listener = Listener()
    clf = SoftmaxRegression().set_callbacks(listener).fit(x, y, **options)
    for n_steps in (1, 3):
        with pytest.warns(ConvergenceWarning):
            shorter = SoftmaxRegression(max_iter=n_steps).fit(x, y, **options)
        for model in (listener.models()[n_steps - 1], listener.models("on_fit_task_begin")[n_steps]):
            for name in ("coef_", "intercept_", "classes_", "n_iter_", "n_passes_", "objective_", "gradient_norm_"):
                assert_array_equal(getattr(model, name), getattr(shorter, name))
            assert_array_equal(model.predict_proba(x), shorter.predict_proba(x))
    assert_array_equal(listener.models()[-2].coef_, clf.coef_)


def test_hooks_are_given_what_the_user_gave():
    listener, weights = Listener(), np.ones(len(Y))
    SoftmaxRegression().set_callbacks(listener).fit(X.tolist(), Y, sample_weight=weights)
    for _, _, _, (x, y, metadata, _) in listener.heard[1:-3]:
        assert isinstance(x, list)
        assert y is Y
        assert metadata["sample_weight"] is weights
    SoftmaxRegression().set_callbacks(plain := Listener()).fit(X, Y)
    assert plain.heard[1][3][2] is None


def test_callbacks_do_not_change_the_fit():
    clf = SoftmaxRegression().set_callbacks(Listener()).fit(X, Y)
    plain = SoftmaxRegression().fit(X, Y)
    assert_array_equal(clf.coef_, plain.coef_)
    assert vars(clf).keys() - vars(plain).keys() == {"_skl_callbacks"}


def test_without_callbacks_steps_make_no_tasks(monkeypatch):
    monkeypatch.setattr(CallbackContext, "subcontext", None)
    assert SoftmaxRegression().fit(X, Y).status_ is Status.CONVERGED


def test_models_are_made_only_for_callbacks_that_ask(monkeypatch):
    made = []
    monkeypatch.setattr(SoftmaxRegression, "_attributes_at", lambda *_: made.append(True))
    SoftmaxRegression().fit(X, Y)
    SoftmaxRegression().set_callbacks(listener := Deaf()).fit(X, Y)
    assert listener.count("on_fit_task_end") > 5
    assert not made


@pytest.mark.parametrize("n_steps", [1, 4])
def test_a_callback_stops_the_fit(n_steps):
    listener, other = Listener(stops_after=n_steps), Listener()
    clf = SoftmaxRegression().set_callbacks(listener, other).fit(X, Y)  # and warns of nothing
    assert clf.status_ is Status.STOPPED
    assert clf.n_iter_ == n_steps
    assert len(listener.models()) == len(other.models()) == n_steps
    assert_array_equal(clf.coef_, listener.models()[-1].coef_)
    assert clf.gradient_norm_ > clf.tol


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("make", [SoftmaxRegression, lambda: SoftmaxRegressionCV(Cs=[1.0], cv=2)])
def test_an_exception_propagates_and_leaves_the_estimator_as_it_was(make, hook):
    new = make().set_callbacks(listener := Listener(fails_at=hook))
    used = make().fit(X[:, :2], Y).set_callbacks(listener)
    for clf in (new, used):
        before = vars(clf).copy()
        listener.heard.clear()
        with pytest.raises(KeyError, match=hook):
            clf.fit(X, Y)
        assert listener.count("teardown") == 1
        assert vars(clf).keys() == before.keys()
        assert all(vars(clf)[name] is before[name] for name in before)
    assert used.predict(X[:, :2]).shape == Y.shape


def test_scoring_monitor_scores_every_step():
    monitor = ScoringMonitor(scoring="neg_log_loss")
    clf = SoftmaxRegression().set_callbacks(monitor).fit(X, Y)
    log = monitor.get_logs().data_as_pandas
    scores = log.loc[log.task_name == STEP, "neg_log_loss"].to_numpy()
    assert len(scores) == clf.n_iter_[0]
    assert scores[-1] == -log_loss(Y, clf.predict_proba(X))
    assert log.loc[log.task_name == "fit", "neg_log_loss"].tolist() == [scores[-1]]


def test_progress_bar_of_scikit_learn(capsys):
    SoftmaxRegression().set_callbacks(ProgressBar()).fit(X, Y)
    assert "SoftmaxRegression - fit" in capsys.readouterr().out


def test_callbacks_of_a_search_hear_of_the_fit_to_all_rows():
    listener = Listener(stops_after=3)
    clf = SoftmaxRegressionCV(Cs=[0.1, 1.0], cv=2).set_callbacks(listener).fit(X, Y)
    assert clf.status_ is Status.STOPPED
    *_, model = listener.models()
    assert isinstance(model, SoftmaxRegressionCV)
    assert_array_equal(model.coef_, clf.coef_)
    assert listener.heard[-2][3][3].C_ == clf.C_  # the fit's task ends with the whole estimator
    SoftmaxRegressionCV(Cs=[1.0], cv=2, refit=False).set_callbacks(short := Listener()).fit(X, Y)
    assert [one[:2] for one in short.heard][1:-1] == [("on_fit_task_begin", "fit"), ("on_fit_task_end", "fit")]


def test_propagated_through_pipeline_and_search():
    listener = Propagated()
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression())
    search = GridSearchCV(pipeline, {"softmaxregression__C": [0.1, 1.0]}, cv=2).set_callbacks(listener)
    search.fit(X, Y)
    assert listener.count("setup") == listener.count("teardown") == 1
    last = [model for model in listener.models() if model is not None][-1]
    assert_array_equal(last.coef_, search.best_estimator_[-1].coef_)
    assert not hasattr(search.best_estimator_[-1], "_skl_callbacks")


def test_clones_copies_and_pickles_keep_callbacks():
    listener = Listener()
    clf = SoftmaxRegression().set_callbacks(listener).fit(X, Y)
    clone(clf).fit(X, Y)
    assert listener.count("setup") == 2
    for other in (pickle.loads(pickle.dumps(clf.set_callbacks(Deaf()))), copy.deepcopy(clf)):
        assert_array_equal(other.predict(X), clf.predict(X))
        assert other.fit(X, Y).status_ is Status.CONVERGED
    assert not hasattr(clf.set_callbacks(), "_skl_callbacks")


def test_estimator_checks_pass_with_a_callback():
    results = check_estimator(SoftmaxRegression().set_callbacks(Deaf()), on_skip=None)
    assert {result["status"] for result in results} <= {"passed", "skipped"}


def test_a_model_predicts_in_the_middle_of_a_fit_on_the_device():
    class Predicting(Deaf):
        def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
            if fitted_estimator is not None:
                predictions.append(fitted_estimator.predict_proba(X))

    with cuda():
        import cupy

        there, predictions = cupy.asarray(X), []
        clf = SoftmaxRegression(device="cuda", tol=1e-2).set_callbacks(Predicting()).fit(there, Y)
        plain = SoftmaxRegression(device="cuda", tol=1e-2).fit(there, Y)
        assert len(predictions) == to_host(clf.n_iter_)[0] + 1
        assert type(predictions[0]) is cupy.ndarray
        assert_array_equal(to_host(clf.coef_), to_host(plain.coef_))
        assert_array_equal(to_host(predictions[-2]), to_host(plain.predict_proba(there)))
