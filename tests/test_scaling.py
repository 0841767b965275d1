import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpusoftmax import SoftmaxRegression, scaling
from gpusoftmax.scaling import Scaling

X, Y = load_wine(return_X_y=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_an_unfolded_model_is_a_pipeline_with_standard_scaler(monkeypatch, classes):
    monkeypatch.setattr(scaling, "BLOCK_NUMBERS", 13 * 10)
    rows = classes > Y
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression()).fit(X[rows], Y[rows])
    scaled = Scaling.of(X[rows])
    model = SoftmaxRegression().fit(scaled.apply(X[rows]), Y[rows])
    scaled.unfold(model)
    assert_allclose(model.predict_proba(X), pipeline.predict_proba(X), rtol=1e-9, atol=1e-12)
    assert_allclose(X @ model.coef_.T + model.intercept_, model.decision_function(X).reshape(len(X), -1), atol=1e-9)


def test_rows_of_weight_zero_play_no_part(monkeypatch):
    monkeypatch.setattr(scaling, "BLOCK_NUMBERS", 13 * 10)
    weights = np.where(np.arange(len(X)) < 40, 0.0, 1 + np.arange(len(X)) % 3)
    rows = np.repeat(X, weights.astype(int), axis=0)
    scaled = Scaling.of(X, weights)
    assert_allclose(scaled.mean, rows.mean(axis=0))
    assert_allclose(scaled.scale, rows.std(axis=0))


def test_a_constant_feature_is_left_as_it_is():
    scaled = Scaling.of(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert_allclose(scaled.scale, [1, 1])
    assert_allclose(scaled.apply(np.array([[3.0, 5.0]])), [[1, 0]])


def test_large_offsets_cost_no_precision():
    shifted = (X + 1e4 * X.std(axis=0)).astype(np.float32)
    scaled = Scaling.of(shifted)
    model = SoftmaxRegression().fit(scaled.apply(shifted), Y)
    expected = model.predict_proba(scaled.apply(shifted))
    scaled.unfold(model)
    assert model.coef_.dtype == np.float32
    assert_allclose(model.predict_proba(shifted), expected, atol=2e-5)
