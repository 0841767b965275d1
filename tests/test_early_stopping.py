"""Early stopping: what it judges by, when it stops, and that the best step is what is left."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import polars as pl
import pytest
from cuda_device import cuda
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score

from gpusoftmax import EarlyStopping, SoftmaxRegression, SoftmaxRegressionCV, Status, early_stopping
from gpusoftmax.interop import to_host

N_TRAIN = 120
RNG = np.random.default_rng(0)
ALL = RNG.normal(size=(400, 20))
LABELS = (ALL @ RNG.normal(size=(20, 3)) + 4 * RNG.gumbel(size=(400, 3))).argmax(axis=1)  # more noise than signal
X, Y, X_VAL, Y_VAL = ALL[:N_TRAIN], LABELS[:N_TRAIN], ALL[N_TRAIN:], LABELS[N_TRAIN:]
WEIGHTS = RNG.uniform(0, 2, len(X_VAL))
OVERFITS = 1e4  # a C at which the optimum does worse on held-out data than a step on the way to it


def fitted(callback, C=OVERFITS, **options):
    return SoftmaxRegression(C=C, **options).set_callbacks(callback).fit(X, Y)


def judged(monkeypatch, losses, **options):
    """Return a fit whose steps have the given losses, and its callback."""
    rest = iter(losses)
    monkeypatch.setattr(EarlyStopping, "_loss", lambda *_: next(rest))
    return fitted(EarlyStopping(X_VAL, Y_VAL, **options))


def test_the_loss_of_held_out_data_ends_below_the_optimums():
    optimum, stopped = SoftmaxRegression(C=OVERFITS).fit(X, Y), fitted(EarlyStopping(X_VAL, Y_VAL))
    loss, least = (log_loss(Y_VAL, clf.predict_proba(X_VAL)) for clf in (optimum, stopped))
    assert least < 0.98 * loss
    assert stopped.status_ is Status.STOPPED
    assert stopped.n_passes_ < optimum.n_passes_
    assert stopped.objective_ > optimum.objective_  # the default stays the optimum
    assert np.nanmin(stopped.history_.validation_losses) == pytest.approx(least, rel=1e-12)


def test_the_estimator_ends_with_the_best_step(caplog):
    with caplog.at_level("INFO", "gpusoftmax"):
        clf = fitted(EarlyStopping(X_VAL, Y_VAL, patience=3))
    losses = clf.history_.validation_losses
    of_steps = losses[~np.isnan(losses)]
    best = int(of_steps.argmin())
    assert best + 4 == len(of_steps) == clf.n_iter_[0]
    with pytest.warns(ConvergenceWarning):
        shorter = SoftmaxRegression(C=OVERFITS, max_iter=best + 1).fit(X, Y)
    for name in ("coef_", "intercept_", "objective_", "gradient_norm_"):
        assert_array_equal(getattr(clf, name), getattr(shorter, name))
    at_best = int(np.nanargmin(losses))
    assert clf.history_.objectives[at_best] == clf.objective_
    assert clf.history_.n_passes[at_best] == shorter.n_passes_
    assert np.isnan(losses[0])  # no step leads to the start
    (record,) = [record for record in caplog.records if record.message.startswith("kept step")]
    assert (record.n_iter, record.validation_loss) == (best + 1, losses[at_best])
    assert record.message == f"kept step {best + 1} of {best + 4}: validation loss {losses[at_best]:.6g}"


def test_a_fit_that_ends_by_itself_keeps_the_best_step_too():
    clf = fitted(EarlyStopping(X_VAL, Y_VAL, patience=1000))
    assert clf.n_passes_ == SoftmaxRegression(C=OVERFITS).fit(X, Y).n_passes_
    assert clf.status_ is Status.STOPPED
    assert log_loss(Y_VAL, clf.predict_proba(X_VAL)) == pytest.approx(np.nanmin(clf.history_.validation_losses))


def test_where_the_optimum_is_best_it_stays(monkeypatch):
    clf = judged(monkeypatch, np.linspace(2, 1, 1000))
    assert_array_equal(clf.coef_, SoftmaxRegression(C=OVERFITS).fit(X, Y).coef_)
    assert clf.status_ is Status.CONVERGED


@pytest.mark.parametrize(
    ("losses", "options", "n_iter", "best"),
    [
        ([3, 2, 2.5, 2.5, 1], {"patience": 2}, 4, 2),
        ([3, 2, 2.5, 1.9, 2.5, 2.5, 1], {"patience": 2}, 6, 4),
        ([3, 2, 1.95, 1.93, 1], {"patience": 2, "min_improvement": 0.1}, 4, 4),
        ([3, 2, 1.95, 1.89, 2, 2, 1], {"patience": 2, "min_improvement": 0.1}, 6, 4),
        ([3, 4], {"patience": 1}, 2, 1),
    ],
)
def test_patience(monkeypatch, losses, options, n_iter, best):
    clf = judged(monkeypatch, losses, **options)
    assert clf.n_iter_[0] == n_iter
    assert clf.objective_ == clf.history_.objectives[clf.history_.validation_losses == losses[best - 1]]


@pytest.mark.parametrize("piece", [7, 1 << 22])
@pytest.mark.parametrize("weights", [None, WEIGHTS, 1e307 * WEIGHTS], ids=["unweighted", "weighted", "huge"])
@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame, pl.DataFrame])
def test_loss_is_the_mean_cross_entropy(monkeypatch, kind, weights, piece):
    monkeypatch.setattr(early_stopping, "PIECE_NUMBERS", piece)
    predict, n_rows = SoftmaxRegression.predict_log_proba, []
    monkeypatch.setattr(
        SoftmaxRegression, "predict_log_proba", lambda self, X: n_rows.append(len(X)) or predict(self, X)
    )
    names = np.array(["pear", "apple", "fig"])
    train, held_out = (kind(x) for x in (X, X_VAL))
    callback = EarlyStopping(held_out, names[Y_VAL], sample_weight_val=weights, patience=1)
    clf = SoftmaxRegression(C=OVERFITS).set_callbacks(callback).fit(train, names[Y])
    assert max(n_rows) == min(piece // 3, len(X_VAL))
    weights = None if weights is None else WEIGHTS
    expected = log_loss(names[Y_VAL], clf.predict_proba(held_out), sample_weight=weights)
    assert_allclose(np.nanmin(clf.history_.validation_losses), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_soft_targets_and_classes_in_any_order(dtype):
    names = ["pear", "apple", "fig"]
    train, held_out = X.astype(dtype), X_VAL.astype(dtype)
    soft, soft_val = ((0.9 * np.eye(3)[y] + 0.1 / 3).astype(dtype) for y in (Y, Y_VAL))
    least = []
    for y_val in (soft_val, np.array(names)[Y_VAL], np.array(names)[Y_VAL, np.newaxis]):
        callback = EarlyStopping(held_out, y_val, patience=1)
        clf = SoftmaxRegression(C=OVERFITS).set_callbacks(callback).fit(train, soft, classes=names)
        targets = soft_val if y_val is soft_val else np.eye(3, dtype=dtype)[Y_VAL]
        losses = -(targets * clf.predict_log_proba(held_out)).sum(axis=1, dtype=np.float64)
        least.append(np.nanmin(clf.history_.validation_losses))
        assert_allclose(least[-1], losses.mean(), rtol=1e-12)  # summed in float64, whatever the dtype
    assert least[0] != least[1] == least[2]


def test_without_a_step_there_is_nothing_to_judge():
    with pytest.warns(ConvergenceWarning):
        clf = fitted(EarlyStopping(X_VAL, Y_VAL), max_iter=0)
    assert np.isnan(clf.history_.validation_losses).all()
    assert clf.status_ is Status.ITERATION_LIMIT


def test_fits_at_the_same_time_do_not_meet():
    callback = EarlyStopping(X_VAL, Y_VAL)
    Cs = np.geomspace(1e-2, 1e4, 7)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda C: fitted(callback, C), Cs))
    for C, clf in zip(Cs, together, strict=True):
        assert_allclose(clf.coef_, fitted(EarlyStopping(X_VAL, Y_VAL), C).coef_, rtol=1e-6)
    assert not callback._runs


def test_the_search_judges_its_fit_to_all_rows():
    callback = EarlyStopping(X_VAL, Y_VAL)
    clf = SoftmaxRegressionCV(Cs=[OVERFITS], cv=2).set_callbacks(callback).fit(X, Y)
    assert clf.status_ is Status.STOPPED
    least = log_loss(Y_VAL, clf.predict_proba(X_VAL))
    assert least == pytest.approx(np.nanmin(clf.history_.validation_losses), rel=1e-12)
    assert SoftmaxRegressionCV(Cs=[1.0], cv=2, refit=False).set_callbacks(callback).fit(X, Y).history_ is None


def test_pickled_cloned_and_cross_validated():
    clf = SoftmaxRegression(C=OVERFITS).set_callbacks(EarlyStopping(X_VAL, Y_VAL))
    expected = clone(clf).fit(X, Y).coef_
    assert_array_equal(pickle.loads(pickle.dumps(clf)).fit(X, Y).coef_, expected)
    callback = EarlyStopping(X_VAL, Y_VAL)
    callback.setup(clf, None)  # a fit that goes on here
    assert not pickle.loads(pickle.dumps(callback))._runs
    assert cross_val_score(clf, X, Y, cv=2).shape == (2,)


@pytest.mark.parametrize(
    ("y_val", "options", "message"),
    [
        (Y_VAL + 1, {}, r"labels that the fit does not know: \[3\]. Its classes are \[0, 1, 2\]: leave"),
        (Y_VAL.astype(str), {}, "labels that the fit does not know"),
        (np.full((len(Y_VAL), 4), 0.25), {}, "soft targets of 4 classes, the fit has 3"),
        (np.full((len(Y_VAL), 3), 0.5), {}, "sum to one"),
        (Y_VAL[1:], {}, "inconsistent numbers of samples"),
        (Y_VAL, {"sample_weight_val": -WEIGHTS}, "finite, non-negative weights with a positive sum"),
        (Y_VAL, {"sample_weight_val": 0 * WEIGHTS}, "finite, non-negative weights with a positive sum"),
        (Y_VAL, {"sample_weight_val": np.r_[np.inf, WEIGHTS[1:]]}, "finite, non-negative weights with a positive sum"),
        (Y_VAL, {"sample_weight_val": WEIGHTS[:, np.newaxis]}, "positive sum, in one dimension"),
        (Y_VAL, {"patience": 0}, "'patience' parameter of EarlyStopping.__init__ must be an int in the range"),
        (
            Y_VAL,
            {"min_improvement": -1.0},
            "'min_improvement' parameter of EarlyStopping.__init__ must be a float in the range",
        ),
    ],
)
def test_errors_name_what_is_wrong(y_val, options, message):
    with pytest.raises(ValueError, match=message):
        fitted(EarlyStopping(X_VAL, y_val, **options))


def test_no_rows_are_said_before_the_fit():
    with pytest.raises(ValueError, match="X_val and y_val have no rows"):
        EarlyStopping(X_VAL[:0], Y_VAL[:0])


def test_on_the_device():
    with cuda():
        import cupy

        callback = EarlyStopping(cupy.asarray(X_VAL), Y_VAL, patience=2)
        clf = SoftmaxRegression(C=OVERFITS).set_callbacks(callback).fit(cupy.asarray(X), cupy.asarray(Y))
        assert type(clf.coef_) is cupy.ndarray
        plain = fitted(EarlyStopping(X_VAL, Y_VAL, patience=2), device="cpu")
        assert clf.status_ is Status.STOPPED
        assert_allclose(to_host(clf.coef_), plain.coef_, rtol=1e-6)
