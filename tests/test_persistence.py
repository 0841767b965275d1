import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from cuda_device import cuda
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gpusoftmax import ModelFileError, SoftmaxRegression, SoftmaxRegressionCV, Status, load_model, save_model
from gpusoftmax.interop import to_host
from gpusoftmax.model_file import pack
from gpusoftmax.persistence import _describe

RNG = np.random.default_rng(0)
X = RNG.normal(size=(97, 5))
Y = (X @ RNG.normal(size=(5, 3)) + RNG.gumbel(size=(97, 3))).argmax(axis=1)
OUTPUTS = ["predict", "predict_proba", "predict_log_proba", "decision_function"]
NUMBERS = ["status_", "objective_", "gradient_norm_", "n_passes_", "n_features_in_"]
LABELS = {
    "int64": [-5, 7, 1 << 40],
    "uint8": np.array([0, 1, 255], np.uint8),
    "big-endian": np.array([1, 2, 3], ">i4"),
    "bool": [False, True],
    "float64": [0.1, 1e300, 5e300],
    "float32": np.array([0.5, 1.5, 2.5], np.float32),
    "text": ["ash", "Birke 樺", 'c"e\\d\nar\U0001f332'],
    "object of text": np.array(["ash", "birch", "cedar"], object),
    "object of int": np.array([1, 2, 1 << 100], object),
}


def fitted(labels=(0, 1, 2), dtype=np.float64, offset=0, **params):
    labels = np.asarray(labels)
    rows = np.less(Y, len(labels))
    data = (X[rows] + offset).astype(dtype)
    y = labels[Y[rows]]
    if labels.dtype.kind == "f" or not labels.dtype.isnative:  # for soft targets' names are taken as they are
        return SoftmaxRegression(**params).fit(data, np.eye(len(labels))[Y[rows]], classes=labels), data
    return SoftmaxRegression(**params).fit(data, y), data


def assert_same_model(loaded, model, data):
    assert type(loaded) is SoftmaxRegression
    for name in OUTPUTS:
        ours, expected = getattr(loaded, name)(data), getattr(model, name)(data)
        assert ours.dtype == expected.dtype or name == "predict"  # labels come back in the byte order of this machine
        assert_array_equal(ours, expected)
    for name in NUMBERS:
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.n_iter_.dtype == model.n_iter_.dtype
    assert_array_equal(loaded.n_iter_, model.n_iter_)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def reload(path):
    """Return a function that saves a model and loads it."""

    def reload(model):
        save_model(model, path)
        return load_model(path)

    return reload


# What comes back


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1000])  # at 1000 the fit keeps the features' centre
@pytest.mark.parametrize("n_classes", [2, 3])
def test_predictions_are_the_same_bits(reload, n_classes, offset, dtype):
    model, data = fitted(range(n_classes), dtype, offset)
    assert (model._center is not None) == bool(offset)
    assert_same_model(reload(model), model, data)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_of_every_kind(reload, labels):
    model, data = fitted(labels)
    loaded = reload(model)
    assert_same_model(loaded, model, data)
    assert loaded.classes_.dtype == model.classes_.dtype.newbyteorder("=")
    assert [type(label) for label in loaded.classes_] == [type(label) for label in model.classes_]


def test_parameters_of_every_kind(reload):
    weights = {"ash": 1, "birch": np.float32(2.5), "cedar": np.int64(3)}
    changed = {
        "C": math.inf,
        "class_weight": weights,
        "device": "cpu",
        "fit_intercept": False,
        "label_smoothing": np.float64(0.1),
        "max_iter": np.int64(50),
        "memory_budget": 10**9,
        "precision": "highest",
        "random_state": 3,
        "tol": 1e-2,
        "verbose": False,
        "warm_start": True,
    }
    model, _ = fitted(["ash", "birch", "cedar"], **changed)
    assert reload(model).get_params() == model.get_params()
    assert SoftmaxRegression().get_params().keys() <= changed.keys()


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf, 1e-320, -0.0, True, None, 1 << 80, "Infinity"])
def test_values_that_json_lacks_or_mistakes(reload, value):
    # Keys that are no strings too: those of a dict, not of an object.
    model, _ = fitted()
    loaded = reload(model.set_params(class_weight={0: value, 1.5: 1, None: 2, True: 3, "0": 4}))
    assert repr(loaded.class_weight) == repr(model.class_weight)


def test_names_of_features(reload):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=["a", "ß", "c d", '"', ""])
    model = SoftmaxRegression().fit(frame, Y)
    loaded = reload(model)
    assert_array_equal(loaded.feature_names_in_, model.feature_names_in_, strict=True)
    assert_same_model(loaded, model, frame)
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(frame.rename(columns={"a": "z"}))
    assert not hasattr(reload(fitted()[0]), "feature_names_in_")


def test_a_temperature_comes_back(reload):
    model, _ = fitted()
    assert reload(model).temperature_ == 1.0
    model.temperature_ = np.float64(1.25)
    assert reload(model).temperature_ == 1.25


@pytest.mark.parametrize("offset", [0, 1000])
def test_what_was_loaded_is_saved_to_the_same_bytes(path, reload, offset):
    model, _ = fitted(["a", "b", "c"], offset=offset, C=np.float32(0.1), class_weight={"b": 1.0, "a": 2, "c": 1})
    loaded = reload(model)
    before = path.read_bytes()
    save_model(loaded, path)
    assert path.read_bytes() == before
    save_model(copy.deepcopy(model), path)
    assert path.read_bytes() == before


def test_what_was_loaded_goes_on_training(reload):
    model, data = fitted(tol=1e-6)
    loaded = reload(model).set_params(warm_start=True).fit(data, Y)
    assert loaded.n_iter_[0] < model.n_iter_[0]
    assert_allclose(loaded.coef_, model.coef_, atol=1e-4)
    with pytest.raises(ValueError, match="warm_start continues a fit"):
        loaded.fit(data, Y + 1)


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2]])
def test_coefficients_of_any_layout(reload, layout):
    model, data = fitted()
    model.coef_ = layout(model.coef_)
    assert_same_model(reload(model), model, data)


def test_what_was_loaded_shares_nothing_and_can_be_changed(path, reload):
    loaded = reload(fitted()[0])
    loaded.coef_ *= 2
    assert_array_equal(2 * load_model(path).coef_, loaded.coef_)


def test_models_of_other_libraries_load_as_numpys(reload):
    strict = pytest.importorskip("array_api_strict")
    model = SoftmaxRegression().fit(strict.asarray(X), strict.asarray(Y))
    loaded = reload(model)
    assert type(loaded.coef_) is type(loaded.classes_) is np.ndarray
    assert_array_equal(loaded.predict_proba(X), np.asarray(model.predict_proba(strict.asarray(X))))


@pytest.mark.parametrize("offset", [0, 1000])
def test_models_of_a_gpu_load_as_numpys(reload, offset):
    with cuda():
        import cupy

        model = SoftmaxRegression().fit(cupy.asarray(X + offset), cupy.asarray(Y))
        expected = to_host(model.predict_proba(cupy.asarray(X + offset)))
        loaded = reload(model)
    assert type(loaded.coef_) is type(loaded.classes_) is type(loaded.n_iter_) is np.ndarray
    assert_allclose(loaded.predict_proba(X + offset), expected, rtol=1e-9)


# The estimator that chooses C


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("offset", [0, 1000])
def test_of_a_search_the_chosen_model_is_kept(reload, refit, offset):
    search = SoftmaxRegressionCV(Cs=[0.1, 1], cv=3, refit=refit, tol=1e-3, label_smoothing=0.1).fit(X + offset, Y)
    loaded = reload(search)
    assert type(loaded) is SoftmaxRegression
    for name in OUTPUTS:
        assert_array_equal(getattr(loaded, name)(X + offset), getattr(search, name)(X + offset))
    for name in NUMBERS:
        assert getattr(loaded, name) == getattr(search, name)
    assert (loaded.C, loaded.tol, loaded.label_smoothing) == (search.C_, 1e-3, 0.1)
    assert (loaded.status_ is None) == (not refit)
    loaded.fit(X, Y)
    assert loaded.status_ is Status.CONVERGED


@pytest.mark.parametrize("make", [SoftmaxRegression, lambda: SoftmaxRegressionCV(Cs=2, cv=2)])
def test_pickle_joblib_and_clone(tmp_path, make):
    model = make().fit(X + 1000, Y)
    joblib.dump(model, tmp_path / "model.joblib")
    for loaded in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):
        assert type(loaded) is type(model)
        for name in OUTPUTS:
            assert_array_equal(getattr(loaded, name)(X + 1000), getattr(model, name)(X + 1000))
        for name in NUMBERS:
            assert getattr(loaded, name) == getattr(model, name)
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model), "coef_")


# What is not saved


def assert_not_saved(model, path, message):
    path.write_bytes(b"old")
    with pytest.raises(ModelFileError, match=message) as caught:
        save_model(model, path)
    assert str(caught.value).startswith(f"The model cannot be saved to {path}: ")
    assert path.read_bytes() == b"old"


def test_parameters_that_are_not_kept(path):
    model, _ = fitted(random_state=np.random.RandomState(0))
    assert_not_saved(model, path, r"random_state holds a RandomState.*set_params\(random_state=…\)")
    save_model(model.set_params(random_state=0), path)
    model.set_params(class_weight={(0, 1): 2})
    assert_not_saved(model, path, "class_weight holds a tuple")
    assert_not_saved(model.set_params(class_weight=None, C=-1), path, "'C' parameter")


@pytest.mark.parametrize("labels", [[b"a", b"b"], np.array(["2026-01-01", "2026-01-02"], "M8[D]")])
def test_labels_that_are_not_kept(path, labels):
    model = fitted([0, 1])[0]
    model.classes_ = np.array(labels)
    assert_not_saved(model, path, r"its labels are of dtype.*y.astype\(str\)")


def test_labels_that_padding_makes_huge(path):
    model = fitted()[0]
    model.classes_ = np.array(["a", "b", "c" * 200_000])
    assert_not_saved(model, path, r"would take 2,400,000 bytes when padded.*y.astype\(object\)")
    model.classes_ = model.classes_.astype(object)
    save_model(model, path)
    assert_array_equal(load_model(path).classes_, model.classes_)


@pytest.mark.parametrize("name", ["coef_", "intercept_"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite(path, name, value):
    model = fitted()[0]
    getattr(model, name)[...] = value
    assert_not_saved(model, path, f"{name[:-1]} holds NaN or infinite")


def test_what_is_no_fitted_model(path):
    with pytest.raises(NotFittedError):
        save_model(SoftmaxRegression(), path)
    with pytest.raises(TypeError, match="got dict"):
        save_model({}, path)
    assert not path.exists()


# What is not loaded: files with a true hash and a wrong content


def set_(**changes):
    return lambda tensors, metadata: metadata.update(changes)


def within(record, **changes):
    return lambda tensors, metadata: metadata[record].update(changes)


def tensor(name, change):
    return lambda tensors, metadata: tensors.update({name: change(tensors.get(name))})


FORGERIES = {
    "no estimator": (lambda tensors, metadata: metadata.pop("estimator"), "its estimator is None"),
    "another estimator": (set_(estimator="Pipeline"), "holds a 'Pipeline'"),
    "estimator is a long text": (set_(estimator="x" * 100_000), "holds a 'x+[.]+x+'"),
    "parameters are nested": (set_(parameters=json.loads("[" * 500 + "]" * 500)), r"\[{7}\.\.\.\]{7}, expected dict"),
    "parameters are a list": (set_(parameters=[]), r"its parameters is \[\], expected dict"),
    "parameter of the future": (within("parameters", depth=3), r"unknown here: \['depth'\].*update gpusoftmax"),
    "parameter out of range": (within("parameters", C=-1.0), "'C' parameter"),
    "parameter of another type": (within("parameters", tol="small"), "'tol' parameter"),
    "parameter is a list": (within("parameters", class_weight=[1]), "one of its parameters"),
    "parameter is an object": (within("parameters", class_weight={"py/object": "os.system"}), "one of its parameters"),
    "dict of a list": (within("parameters", class_weight={"dict": [[[], 1]]}), "one of its parameters"),
    "dict of a dict": (within("parameters", class_weight={"dict": [[{"dict": []}, 1]]}), "one of its parameters"),
    "dict of half a pair": (within("parameters", class_weight={"dict": [[1]]}), "one of its parameters"),
    "a float of text": (within("parameters", C={"float": "1e3"}), "one of its parameters"),
    "dict of a dict's": (within("parameters", class_weight={"dict": [[1, {"dict": []}]]}), "one of its parameters"),
    "no classes": (lambda tensors, metadata: metadata.pop("classes"), "its classes is None"),
    "one class": (within("classes", labels=[0]), "two or more different"),
    "classes twice": (within("classes", labels=[0, 1, 1]), "two or more different"),
    "classes of other types": (within("classes", labels=[0, 1, 2.0]), "is 2.0"),
    "classes of lists": (within("classes", labels=[0, 1, [2]]), r"is \[2\]"),
    "classes of null": (within("classes", dtype="|O", labels=[0, 1, None]), "is None"),
    "classes too large": (within("classes", dtype="<i2", labels=[0, 1, 70_000]), "do not fit"),
    "classes too long": (within("classes", dtype="<U1", labels=["a", "b", "cc"]), "do not fit"),
    "classes not exact": (within("classes", dtype="<f4", labels=[0.5, 1.5, 0.1]), "do not fit"),
    "classes are infinite": (within("classes", dtype="<f4", labels=[0.5, 1.5, 1e300]), "do not fit"),
    "classes of a structure": (within("classes", dtype="i8,f4"), "of dtype 'i8,f4'"),
    "classes of a huge dtype": (within("classes", dtype="<U99999999", labels=["a", "b", "c"]), "when padded"),
    "classes of code": (within("classes", dtype="__import__('os')"), "of dtype"),
    "four classes": (within("classes", labels=[0, 1, 2, 3]), r"4 classes and 5 features.*\(4, 5\)"),
    "two classes": (within("classes", labels=[0, 1]), r"2 classes and 5 features.*\(1, 5\)"),
    "feature names are few": (set_(feature_names=["a"]), "not 5 strings"),
    "feature names are numbers": (set_(feature_names=[1, 2, 3, 4, 5]), "not 5 strings"),
    "more features": (within("training", n_features=6), r"\(3, 6\)"),
    "features are true": (within("training", n_features=True), "its n_features is True"),
    "negative features": (within("training", n_features=-5), "shape"),
    "another dtype": (within("training", dtype="float32"), "float32"),
    "a dtype of text": (within("training", dtype="object"), "float32 or float64"),
    "another status": (within("training", status="SURE"), "its status is 'SURE'"),
    "steps are text": (within("training", n_iter="1"), "its n_iter is '1'"),
    "steps are negative": (within("training", n_iter=-1), "its n_iter is -1"),
    "steps are too many": (within("training", n_iter=1 << 31), "its n_iter is 2147483648"),
    "objective is text": (within("training", objective="0.1"), "its objective is '0.1'"),
    "coef is missing": (lambda tensors, metadata: tensors.pop("coef"), "its tensors are"),
    "a tensor too many": (tensor("weights", lambda _: np.ones(3)), "its tensors are"),
    "coef is flat": (tensor("coef", np.ravel), r"float64 of shape \(15,\)"),
    "coef is turned": (tensor("coef", np.transpose), r"shape \(5, 3\)"),
    "coef is of integers": (tensor("coef", lambda coef: coef.astype(np.int64)), "coef is int64"),
    "coef has NaN": (tensor("coef", lambda coef: coef * np.nan), "coef holds NaN"),
    "intercept is shorter": (tensor("intercept", lambda b: b[:2]), r"intercept is float64 of shape \(2,\)"),
    "intercept is infinite": (tensor("intercept", lambda b: b + np.inf), "intercept holds NaN"),
    "centre is shorter": (tensor("center", lambda _: np.ones(4)), r"center is float64 of shape \(4,\)"),
    "centre is float32": (tensor("center", lambda _: np.ones(5, np.float32)), "center is float32"),
    "centre has NaN": (tensor("center", lambda _: np.full(5, np.nan)), "center holds NaN"),
}


@pytest.mark.parametrize(("change", "message"), FORGERIES.values(), ids=FORGERIES)
def test_what_is_wrong_is_refused_and_named(path, change, message):
    tensors, metadata = _describe(fitted()[0])
    change(tensors, metadata)
    path.write_bytes(b"".join(pack(tensors, metadata)))
    with pytest.raises(ModelFileError, match=message) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path} cannot be loaded: ")
    assert len(str(caught.value)) < len(str(path)) + 300


def test_what_a_later_version_may_leave_out_or_add(path):
    model, data = fitted()
    tensors, metadata = _describe(model)
    del metadata["parameters"]["precision"], metadata["training"]["temperature"]
    metadata["author"] = "unknown"
    path.write_bytes(b"".join(pack(tensors, metadata)))
    assert_same_model(load_model(path), model, data)
    assert load_model(path).temperature_ == 1.0


# Where processes end and memory does


def run(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_killed_in_a_loop_of_saves_there_is_the_old_file_or_the_new(tmp_path):
    # The nursery imports once and forks; its children save in turn two models of 1 MB until they are killed.
    code = """
import os, random, signal, time
from pathlib import Path
import numpy as np
from gpusoftmax import SoftmaxRegression, load_model, save_model
random.seed(0)
models = [SoftmaxRegression(device="cpu").fit(np.eye(3), [0, 1, 2]) for _ in range(2)]
for seed, model in enumerate(models):
    model.n_features_in_ = 40_000
    model.coef_ = np.random.default_rng(seed).normal(size=(3, 40_000))
save_model(models[0], "model")
seen = set()
for _ in range(50):
    if not (child := os.fork()):
        while True:
            for model in models:
                save_model(model, "model")
    time.sleep(random.uniform(0.001, 0.04))
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    loaded = load_model("model").coef_
    is_same = [np.array_equal(loaded, model.coef_) for model in models]
    assert sum(is_same) == 1
    seen.add(is_same.index(True))
left = [path.name for path in Path.cwd().iterdir() if path.name != "model"]
assert all(name.startswith(".gpusoftmax-") and name.endswith(".tmp") for name in left), left
print(len(seen) == 2 or len(left) > 0)  # where the disk is fast both were seen, where it is slow some were cut off
"""
    assert run(code, tmp_path) == "True\n"


def test_loading_takes_twice_the_file_at_most(tmp_path):
    code = """
import os, resource
import numpy as np
from gpusoftmax.model_file import pack
from gpusoftmax.persistence import _describe, load_model
from gpusoftmax import SoftmaxRegression

model = SoftmaxRegression(device="cpu").fit(np.eye(3), [0, 1, 2])
with open("small", "wb") as file:
    file.writelines(pack(*_describe(model)))
load_model("small")
if os.fork() == 0:  # whose memory does not count here
    model.coef_ = np.ones((3, 2_000_000))
    model.n_features_in_ = 2_000_000
    with open("model", "wb") as file:
        file.writelines(pack(*_describe(model)))
    os._exit(0)
os.wait()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_model("model")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / os.path.getsize("model"))
"""
    assert float(run(code, tmp_path)) < 2.05


# Files of every format there was


MODELS = sorted((Path(__file__).parent / "data" / "models").glob("format-*/*.safetensors"))


@pytest.mark.parametrize("path", MODELS, ids=[f"{path.parent.name}-{path.stem}" for path in MODELS])
def test_files_of_every_format_load(path):
    with np.load(path.with_suffix(".npz")) as expected:
        model, X = load_model(path), expected["X"]
        rtol = 1e-5 if X.dtype == np.float32 else 1e-12
        if hasattr(model, "feature_names_in_"):
            X = pytest.importorskip("pandas").DataFrame(X, columns=model.feature_names_in_)
        assert_array_equal(model.predict(X).astype(expected["labels"].dtype), expected["labels"])
        assert_allclose(model.predict_proba(X), expected["probabilities"], rtol=rtol, atol=rtol / 10)
        assert_array_equal(model.coef_, expected["coef"], strict=True)


def test_there_are_files_of_every_format():
    from gpusoftmax.model_file import FORMAT_VERSION

    assert {path.parent.name for path in MODELS} == {f"format-{i + 1}" for i in range(FORMAT_VERSION)}
    assert len(MODELS) >= 8 * FORMAT_VERSION
