import json
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from gpusoftmax import SoftmaxRegression, SoftmaxRegressionCV, to_onnx, to_sklearn, to_torch

EXPORTS = [to_sklearn, to_onnx, to_torch]
NAMES = np.array([f"class {name}" for name in "αbcdefghij"])
LABELS = {
    "int": np.arange(10),
    "uint8": np.arange(10, dtype=np.uint8),
    "float": np.arange(10) / 4,
    "text": NAMES,
    "object of text": NAMES.astype(object),
    "object of int": np.arange(10).astype(object),
}


def fitted(load=load_iris, n_classes=10, labels=NAMES, dtype=np.float64, offset=0, **params):
    """Return a model and the features that it was fitted to."""
    X, y = load(return_X_y=True)
    rows = y < n_classes
    X, y = (X[rows] + offset).astype(dtype), y[rows]
    if labels.dtype.kind == "f":  # which scikit-learn takes for a regression's
        n_classes = y.max() + 1
        return SoftmaxRegression(**params).fit(X, np.eye(n_classes)[y], classes=labels[:n_classes]), X
    return SoftmaxRegression(**params).fit(X, labels[y]), X


@pytest.fixture(params=["iris", "digits"])
def load(request):
    return {"iris": load_iris, "digits": load_digits}[request.param]


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param


every_fit = pytest.mark.parametrize(("n_classes", "offset"), [(2, 0), (10, 0), (2, 1000), (10, 1000)])


def assert_same(labels, probabilities, model, X, atol=1e-6):
    assert_array_equal(labels, model.predict(X))
    assert_allclose(probabilities, model.predict_proba(X), rtol=0, atol=1e-10 if X.dtype == np.float64 else atol)


# scikit-learn


@every_fit
def test_sklearn_predicts_the_same(load, n_classes, offset, dtype):
    model, X = fitted(load, n_classes, offset=offset, dtype=dtype, C=0.01)
    exported = to_sklearn(model)
    assert type(exported) is LogisticRegression
    assert_same(exported.predict(X), exported.predict_proba(X), model, X)
    assert exported.predict(X).dtype == model.predict(X).dtype
    assert_allclose(exported.decision_function(X), model.decision_function(X), rtol=1e-4, atol=1e-5)


def test_sklearn_has_the_parameters():
    weights = {"class α": 1, "class b": 2, "class c": 1}
    params = {"C": 0.1, "tol": 1e-2, "max_iter": 77, "class_weight": weights, "random_state": 3, "fit_intercept": False}
    model, X = fitted(**params)
    exported = to_sklearn(model)
    assert {name: getattr(exported, name) for name in params} == params
    assert_array_equal(exported.n_iter_, model.n_iter_, strict=True)
    assert exported.n_features_in_ == 4
    assert_allclose(
        clone(exported).set_params(tol=1e-8).fit(X, NAMES[load_iris().target]).coef_, model.coef_, atol=0.05
    )


def test_sklearn_knows_the_names_of_features():
    pytest.importorskip("pandas")
    X, y = load_iris(return_X_y=True, as_frame=True)
    model = SoftmaxRegression().fit(X, y)
    exported = to_sklearn(model)
    assert_array_equal(exported.feature_names_in_, model.feature_names_in_, strict=True)
    assert_array_equal(exported.predict(X), model.predict(X))
    with pytest.raises(ValueError, match="feature names should match"):
        exported.predict(X.rename(columns={X.columns[0]: "z"}))


def test_exports_share_no_memory_with_the_model():
    model, X = fitted()
    before = model.predict_proba(X)
    exported = to_sklearn(model)
    exported.coef_ *= 2
    exported.intercept_ += 1
    assert_array_equal(model.predict_proba(X), before)


# ONNX


def run_onnx(graph, X, runtime):
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(graph, full_check=True)
    if runtime == "reference":
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(graph).run(None, {"X": X})
    session = pytest.importorskip("onnxruntime").InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["label", "probabilities"], {"X": X})


@pytest.fixture(params=["reference", "onnxruntime"])
def runtime(request):
    return request.param


@every_fit
def test_onnx_predicts_the_same(load, n_classes, offset, dtype, runtime):
    model, X = fitted(load, n_classes, offset=offset, dtype=dtype, C=0.01)
    labels, probabilities = run_onnx(to_onnx(model), X, runtime)
    assert probabilities.dtype == dtype
    assert_same(labels, probabilities, model, X)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("n_classes", [2, 10])
def test_onnx_has_labels_of_every_kind(labels, n_classes, runtime):
    model, X = fitted(labels=labels, n_classes=n_classes)
    assert_same(*run_onnx(to_onnx(model), X, runtime), model, X)


def test_onnx_keeps_nul_at_the_end_of_labels():  # which the reference strips
    model, X = fitted(labels=np.array([f"{name}\0" for name in NAMES], object))
    assert_same(*run_onnx(to_onnx(model), X, "onnxruntime"), model, X)


def test_onnx_has_boolean_labels(runtime):
    model, X = fitted(n_classes=2, labels=np.array([False, True]))
    labels, probabilities = run_onnx(to_onnx(model), X, runtime)
    assert labels.dtype == bool
    assert_same(labels, probabilities, model, X)


def test_onnx_subtracts_a_centre_before_it_rounds(runtime):
    # float32 resolves 1e6 to a sixteenth: uncentred logits would be off by tenths.
    model, X = fitted(dtype=np.float32, offset=1e6)
    assert_same(*run_onnx(to_onnx(model), X, runtime), model, X)


def test_onnx_tells_logits_apart_whose_probabilities_are_equal(runtime):
    model, X = fitted(dtype=np.float32, fit_intercept=False)
    model.coef_ *= 1e-10
    assert (np.unique(model.predict_proba(X)).size, np.unique(model.predict(X)).size) == (1, 3)
    assert_same(*run_onnx(to_onnx(model), X, runtime), model, X)


def test_onnx_takes_any_number_of_rows(runtime):
    model, X = fitted()
    for n_rows in (0, 1, 7):
        labels, probabilities = run_onnx(to_onnx(model), X[:n_rows], runtime)
        assert labels.shape == (n_rows,)
        assert probabilities.shape == (n_rows, 3)


def test_onnx_file_and_what_it_says_of_itself(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("pandas")
    X, y = load_iris(return_X_y=True, as_frame=True)
    graph = to_onnx(SoftmaxRegression().fit(X, y), tmp_path / "iris.onnx")
    loaded = onnx.load(tmp_path / "iris.onnx")
    assert loaded == graph
    assert (loaded.producer_name, loaded.opset_import[0].version) == ("gpusoftmax", 13)
    assert {entry.key: json.loads(entry.value) for entry in loaded.metadata_props} == {"feature_names": list(X.columns)}
    assert [path.name for path in tmp_path.iterdir()] == ["iris.onnx"]


def test_onnx_refuses_labels_that_it_lacks():
    pytest.importorskip("onnx")
    model, _ = fitted(n_classes=2)
    model.classes_ = np.array(["2026-01-01", "2026-01-02"], "M8[D]")
    with pytest.raises(TypeError, match=r"no labels of dtype datetime64\[D\].*y.astype\(str\)"):
        to_onnx(model)


# PyTorch


@every_fit
def test_torch_predicts_the_same(load, n_classes, offset, dtype):
    torch = pytest.importorskip("torch")
    model, X = fitted(load, n_classes, offset=offset, dtype=dtype, C=0.01)
    state = to_torch(model)
    layer = torch.nn.Linear(X.shape[1], len(model.classes_), dtype=state["weight"].dtype)
    layer.load_state_dict(state)
    with torch.no_grad():
        probabilities = layer(torch.asarray(X.astype(state["weight"].numpy().dtype))).softmax(dim=1).numpy()
    assert_same(model.classes_[probabilities.argmax(axis=1)], probabilities, model, X, atol=2e-6)
    assert state["weight"].dtype == (torch.float32 if dtype == np.float32 and not offset else torch.float64)


# All of them


@pytest.mark.parametrize("export", EXPORTS)
def test_of_a_search_the_chosen_model_is_exported(export):
    pytest.importorskip(export.__name__.removeprefix("to_"))
    X, y = load_iris(return_X_y=True)
    search = SoftmaxRegressionCV(Cs=[0.1, 1], cv=3).fit(X, y)
    expected = export(SoftmaxRegression(C=search.C_).fit(X, y))
    exported = export(search)
    if export is to_sklearn:
        assert exported.C == search.C_
        assert_array_equal(exported.predict(X), search.predict(X))
        assert not hasattr(exported, "n_iter_")
    elif export is to_torch:
        assert_allclose(exported["weight"], expected["weight"], atol=0.01)
    else:
        assert_allclose(run_onnx(exported, X, "reference")[1], search.predict_proba(X), atol=1e-12)


@pytest.mark.parametrize("export", EXPORTS)
def test_only_fitted_models_are_exported(export):
    pytest.importorskip(export.__name__.removeprefix("to_"))
    with pytest.raises(NotFittedError):
        export(SoftmaxRegression())
    with pytest.raises(TypeError, match="got LogisticRegression"):
        export(LogisticRegression())


@pytest.mark.parametrize(("export", "module"), [(to_onnx, "onnx"), (to_torch, "torch")])
def test_a_missing_library_is_named(monkeypatch, export, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install .*" + module):
        export(fitted()[0])
