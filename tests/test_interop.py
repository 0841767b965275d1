"""Arrays from elsewhere: taken without a copy, refused in scikit-learn's words, and answered where they live."""

import copy
import importlib
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_device import cuda
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone

from gpusoftmax import NonFiniteError, SoftmaxRegression, SoftmaxRegressionCV, calibrate, loss_and_gradient
from gpusoftmax.interop import HOST, Home, receive, to_host
from gpusoftmax.sources import ArraySource

RNG = np.random.default_rng(0)
X = RNG.normal(size=(97, 5))
Y = (X @ RNG.normal(size=(5, 3)) + RNG.gumbel(size=(97, 3))).argmax(axis=1)
NAMES = np.array(["ash", "birch", "cedar"])
WEIGHTS = RNG.uniform(0.1, 2, 97)
SOFT = RNG.dirichlet(np.ones(3), 97)
PREDICTIONS = ["predict", "predict_proba", "predict_log_proba", "decision_function"]
ATTRIBUTES = ["coef_", "intercept_", "n_iter_"]


def on_host(n_classes=3, **params):
    """Return the same fit of NumPy arrays, on the CPU."""
    return SoftmaxRegression(device="cpu", tol=1e-8, **params).fit(X, Y % n_classes)


def assert_same_predictions(clf, X_there, plain, rtol=1e-7):
    for name in PREDICTIONS:
        assert_allclose(to_host(getattr(clf, name)(X_there)), getattr(plain, name)(X), rtol=rtol, atol=1e-8)


# On the host: what follows the array API


def strict(device):
    xp = pytest.importorskip("array_api_strict")
    return lambda array: xp.asarray(array, device=xp.Device(device))


def torch(_):
    return pytest.importorskip("torch").asarray


def jax(_):
    return pytest.importorskip("jax").numpy.asarray


LIBRARIES = {
    "strict": (strict, "CPU_DEVICE"),
    "strict, second device": (strict, "device1"),
    "torch": (torch, None),
    "jax": (jax, None),
}


@pytest.fixture(params=LIBRARIES.values(), ids=LIBRARIES)
def put(request):
    """Return a function that makes an array of a library from NumPy's."""
    make, device = request.param
    put = make(device)
    if make is not jax:
        yield put
        return
    config = importlib.import_module("jax").config
    config.update("jax_enable_x64", True)  # without it there is neither float64 nor int64
    yield put
    config.update("jax_enable_x64", False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_results_live_where_the_features_do(put, n_classes, dtype):
    there, labels = put(X.astype(dtype)), put(Y % n_classes)
    clf = SoftmaxRegression(device="cpu", tol=1e-4).fit(there, labels, put(WEIGHTS))
    plain = SoftmaxRegression(device="cpu", tol=1e-4).fit(X.astype(dtype), Y % n_classes, WEIGHTS)
    for name in (*ATTRIBUTES, "classes_"):
        value = getattr(clf, name)
        assert type(value) is type(there)
        assert value.device == there.device
        assert to_host(value).dtype == getattr(plain, name).dtype
        assert_array_equal(to_host(value), getattr(plain, name))
    for name in PREDICTIONS:
        value = getattr(clf, name)(there)
        assert type(value) is type(there)
        assert value.device == there.device
        assert_array_equal(to_host(value), getattr(plain, name)(X.astype(dtype)))
    assert clf.score(there, labels, put(WEIGHTS)) == plain.score(X.astype(dtype), Y % n_classes, WEIGHTS)


def test_soft_targets_of_another_library(put):
    clf = SoftmaxRegression(device="cpu", class_weight="balanced").fit(put(X), put(SOFT), classes=put(np.arange(3) + 7))
    plain = SoftmaxRegression(device="cpu", class_weight="balanced").fit(X, SOFT, classes=np.arange(3) + 7)
    assert_array_equal(to_host(clf.coef_), plain.coef_)
    assert_array_equal(to_host(clf.predict(put(X))), plain.predict(X))


def test_text_and_what_a_library_lacks_stay_on_the_host(put):
    clf = SoftmaxRegression(device="cpu").fit(put(X), NAMES[Y])
    assert type(clf.coef_) is type(put(X))
    assert_array_equal(clf.classes_, NAMES)
    assert clf.predict(put(X)).dtype == NAMES.dtype
    clf.fit(put(X), Y.astype(">f2"))  # of which array_api_strict has neither the size nor the byte order
    assert_array_equal(to_host(clf.predict(put(X))), SoftmaxRegression(device="cpu").fit(X, Y).predict(X))


def test_a_model_moves_to_where_its_input_is(put):
    clf, plain = SoftmaxRegression(device="cpu").fit(put(X), put(Y)), SoftmaxRegression(device="cpu").fit(X, Y)
    for name in PREDICTIONS:
        ours = getattr(clf, name)(X)
        assert type(ours) is np.ndarray
        assert_array_equal(ours, getattr(plain, name)(X))
        assert_array_equal(to_host(getattr(plain, name)(put(X))), ours)


def test_numpy_sees_it_without_a_copy(put):
    there = put(X)
    seen, home = receive(there)
    assert type(seen) is np.ndarray
    assert np.shares_memory(seen, receive(there)[0])
    assert home.device == there.device
    assert home.cuda_device is None


def test_loss_and_gradient_lives_where_the_features_do(put):
    W, b = RNG.normal(size=(5, 3)), RNG.normal(size=3)
    loss, grad_W, grad_b = loss_and_gradient(put(X), put(Y), put(W), put(b), sample_weight=put(WEIGHTS), device="cpu")
    expected = loss_and_gradient(X, Y, W, b, sample_weight=WEIGHTS, device="cpu")
    assert loss == expected[0]
    for ours, theirs in ((grad_W, expected[1]), (grad_b, expected[2])):
        assert type(ours) is type(put(X))
        assert ours.device == put(X).device
        assert_array_equal(to_host(ours), theirs)


@pytest.fixture
def read(monkeypatch):
    """Return a list that fills with the addresses of the features that fits and predictions read."""
    addresses = []

    def watched(X, *args, **options):
        addresses.append(X.ctypes.data)
        return ArraySource(X, *args, **options)

    monkeypatch.setattr("gpusoftmax.encoding.ArraySource", watched)
    monkeypatch.setattr("gpusoftmax.estimator.ArraySource", watched)
    return addresses


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
@pytest.mark.parametrize(
    "layout",
    [lambda t: t, lambda t: t.T.contiguous().T, lambda t: t[::2, 1:]],
    ids=["rows", "columns", "every other row"],
)
def test_the_memory_of_a_tensor_is_read(read, dtype, layout):
    tensor = layout(pytest.importorskip("torch").asarray((10 * np.abs(X)).astype(dtype)))
    clf = SoftmaxRegression(device="cpu", C=1e-3).fit(tensor, Y[: len(tensor)])
    for name in PREDICTIONS:
        getattr(clf, name)(tensor)
    assert set(read) == {tensor.data_ptr()}
    assert len(read) == 1 + len(PREDICTIONS)


def test_the_memory_of_a_jax_array_is_read(read):
    there = pytest.importorskip("jax").numpy.asarray(X, dtype=np.float32)
    SoftmaxRegression(device="cpu").fit(there, Y).predict(there)
    assert set(read) == {there.unsafe_buffer_pointer()}


def test_results_are_handed_to_torch_and_back_without_a_copy():
    torch = pytest.importorskip("torch")
    _, home = receive(torch.asarray(X))
    array = home.empty((97, 3), np.float32)
    assert home.send(array).data_ptr() == array.ctypes.data
    clf = SoftmaxRegression(device="cpu").fit(torch.asarray(X), Y)
    for value in (clf.coef_, clf.intercept_, clf.predict_proba(torch.asarray(X))):
        assert np.from_dlpack(value).ctypes.data == value.data_ptr()


@pytest.mark.parametrize("library", ["torch", "jax.numpy"])
def test_results_speak_dlpack(library):
    module = pytest.importorskip(library)
    clf = SoftmaxRegression(device="cpu").fit(X.astype(np.float32), Y)
    for array in (clf.coef_, clf.intercept_, clf.predict_proba(X.astype(np.float32)), clf.predict(X) == 1):
        assert_array_equal(np.asarray(module.from_dlpack(array)), array, strict=True)


@pytest.mark.parametrize("refit", [True, False])
def test_jax_without_64_bits_loses_no_digits(refit):
    # An intercept that belongs to features far from zero needs more digits than float32 has.
    there = pytest.importorskip("jax").numpy.asarray(X + 1e5, dtype=np.float32)
    for kind in (SoftmaxRegression(device="cpu"), SoftmaxRegressionCV(Cs=[0.1, 1], cv=2, device="cpu", refit=refit)):
        plain, clf = clone(kind).fit(np.asarray(there), Y), clone(kind).fit(there, Y)
        assert type(clf.coef_) is type(there)
        assert_array_equal(clf.intercept_, plain.intercept_, strict=True)
        for ours, theirs in ((clf, plain), (calibrate(clf, there, Y), calibrate(plain, np.asarray(there), Y))):
            assert type(ours.predict_proba(there)) is type(there)
            assert_array_equal(ours.predict_proba(there), theirs.predict_proba(np.asarray(there)), strict=True)


def test_jax_without_64_bits_keeps_labels():
    there = pytest.importorskip("jax").numpy.asarray(X, dtype=np.float32)
    for labels, kind in ((Y + 2**40, np.ndarray), (Y + 2**20, type(there))):
        clf = SoftmaxRegression(device="cpu", C=1e-3).fit(there, labels)
        predicted = clf.predict(there)
        assert type(predicted) is kind
        assert set(np.asarray(predicted).tolist()) <= set(labels.tolist())
        assert clf.score(there, labels) == SoftmaxRegression(device="cpu", C=1e-3).fit(X, Y).score(X, Y)


@pytest.mark.parametrize("change", [lambda t: t.bfloat16(), lambda t: t.requires_grad_()], ids=["bfloat16", "grad"])
def test_what_numpy_cannot_see_is_named(change):
    tensor = pytest.importorskip("torch").ones(97, 5)
    with pytest.raises(TypeError, match=r"^X, a Tensor of torch\.\w+, cannot be read: .*(BFloat16|detach)"):
        SoftmaxRegression(device="cpu").fit(change(tensor), Y)


def test_other_accelerators_are_refused():
    metal = SimpleNamespace(
        __array_namespace__=None, __dlpack__=None, __dlpack_device__=lambda: (8, 0), device="mps:0", shape=(97, 5)
    )
    with pytest.raises(ValueError, match=r"X is on mps:0; .* CUDA devices and on the host: move it"):
        SoftmaxRegression().fit(metal, Y)


@pytest.mark.parametrize("value", [[1.0], None, "text", 3, {"a": 1}, np.float32(1), np.ones((2, 2))])
def test_the_rest_is_left_to_scikit_learn(value):
    seen, home = receive(value)
    assert seen is value
    assert home is HOST


CHECKS = """
import sys, warnings
warnings.simplefilter("error")
from importlib.util import find_spec
from sklearn.utils import estimator_checks
from gpusoftmax import SoftmaxRegression
estimator, done = SoftmaxRegression(device="cpu"), 0
for check in estimator_checks._yield_array_api_checks(estimator):
    options = check.keywords
    pair = [options.get(name, (options.get("array_namespace"), options.get("device_name")))
            for name in ("X_ns_and_device", "other_ns_and_device")]
    if any(xp in ("cupy", "dpnp") or device in ("cuda", "xpu", "mps") or not find_spec(xp) for xp, device in pair):
        continue
    check("SoftmaxRegression", estimator)
    done += 1
    if check.func is estimator_checks.check_array_api_input:
        for check_sample_weight in (False, True):
            check("SoftmaxRegression", estimator, check_values=True, check_sample_weight=check_sample_weight)
print(done)
"""


def test_array_api_checks_of_scikit_learn():
    # SciPy reads the variable when it is imported, so these checks have a process of their own.
    pytest.importorskip("array_api_strict")
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    command = [sys.executable, "-c", CHECKS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= 4  # NumPy, the strict namespace on both devices, fit and predict in different ones


# On a CUDA device


class Exported:
    """A device array of a library that is not CuPy, behind DLPack."""

    def __init__(self, array):
        self._array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


class Interfaced:
    """A device array of a library that has the older protocol alone."""

    def __init__(self, array):
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self._array, self.shape, self.dtype = array, array.shape, array.dtype


class Namespaced(Exported):
    """A device array of a library that follows the array API and CuPy knows nothing of, as PyTorch and JAX do."""

    @property
    def device(self):
        return f"gpu:{self._array.device.id}"

    def __array_namespace__(self, api_version=None):
        return ELSEWHERE


ELSEWHERE = SimpleNamespace(
    __name__="elsewhere", from_dlpack=lambda array: Namespaced(importlib.import_module("cupy").from_dlpack(array))
)


class Frame:
    """A data frame on the device, as cuDF has them."""

    def __init__(self, array):
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def to_cupy(self):
        return self._array


KINDS = {
    "CuPy": lambda array: array,
    "DLPack": Exported,
    "interface": Interfaced,
    "library": Namespaced,
    "frame": Frame,
}


@pytest.fixture
def machine():
    with cuda(n_devices=2) as imitated:
        yield imitated


@pytest.fixture
def cupy(machine):
    import cupy

    return cupy


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def test_fit_and_predict_on_the_device(cupy, kind):
    there, labels = cupy.asarray(X), cupy.asarray(Y)
    clf, plain = SoftmaxRegression(tol=1e-8).fit(kind(there), kind(labels), kind(cupy.asarray(WEIGHTS))), on_host()
    result = Namespaced if kind is Namespaced else cupy.ndarray
    assert all(type(getattr(clf, name)) is result for name in (*ATTRIBUTES, "classes_"))
    assert all(type(getattr(clf, name)(kind(there))) is result for name in PREDICTIONS)
    plain.fit(X, Y, WEIGHTS)
    assert_allclose(to_host(clf.coef_), plain.coef_, atol=1e-8)
    assert_same_predictions(clf, kind(there), plain)
    assert clf.score(kind(there), kind(labels), kind(cupy.asarray(WEIGHTS))) == plain.score(X, Y, WEIGHTS)


def test_cupy_sees_it_without_a_copy(cupy, kind):
    there = cupy.asarray(X)
    seen, home = receive(kind(there))
    assert seen.data.ptr == there.data.ptr
    assert seen.strides == there.strides
    assert home.cuda_device == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16, bool])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda X: np.repeat(X, 2, axis=0)[::2]])
def test_dtypes_and_layouts(cupy, dtype, layout):
    here = (2 * X).astype(dtype) if dtype is not bool else X > 0
    there = cupy.asarray(np.asfortranarray(here)) if layout is np.asfortranarray else cupy.asarray(here)
    if layout is not np.ascontiguousarray and layout is not np.asfortranarray:
        there = cupy.repeat(there, 2, axis=0)[::2]
    clf, plain = SoftmaxRegression().fit(there, Y), SoftmaxRegression(device="cpu").fit(here, Y)
    assert clf.coef_.dtype == plain.coef_.dtype
    assert_allclose(to_host(clf.coef_), plain.coef_, atol=2e-3)
    assert clf.predict_proba(there).dtype == plain.coef_.dtype
    assert_allclose(to_host(clf.predict_proba(there)), plain.predict_proba(here), atol=1e-3)


@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_features_and_soft_targets_stay_on_the_device(machine, cupy, kind):
    targets = np.tile(SOFT, (1, 8)) / 8 if kind == "soft" else Y
    read, written = [], []
    for X_given, y_given in ((X, targets), (cupy.asarray(X), cupy.asarray(targets))):
        machine.counters.reset()
        clf = SoftmaxRegression(device="cuda", class_weight="balanced").fit(X_given, y_given)
        read.append(machine.counters.transferred_bytes)
        written.append(machine.counters.uploaded_bytes)
        assert machine.counters.silent_copies == 0
    n_labels = Y.nbytes if kind == "labels" else 0
    sums = 8 * 2 * (1 + 24)  # each class's weight, for its factor and for the start
    assert read[1] <= read[0] + n_labels + sums + 64
    assert written[1] <= written[0] - X.nbytes - (targets.nbytes if kind == "soft" else 0) + 4096  # attributes return
    machine.counters.reset()
    clf.predict_proba(cupy.asarray(X))
    assert machine.counters.transferred_bytes <= clf.coef_.nbytes + clf.intercept_.nbytes + clf.classes_.nbytes + 64


def test_checking_features_costs_one_small_copy(machine, cupy):
    there, clf = cupy.asarray(X), on_host()
    machine.counters.reset()
    with config_context(assume_finite=True):
        clf.set_params(device="auto").predict_proba(there)
    unchecked = machine.counters.transfers
    machine.counters.reset()
    clf.predict_proba(there)
    assert machine.counters.transfers == unchecked + 1


def with_entry(array, value, at=17):
    array = array.copy()
    array[at] = value
    return array


BAD = {  # what: arguments of fit beside good ones
    "NaN": {"X": with_entry(X, np.nan)},
    "infinity": {"X": with_entry(X.astype(np.float32), np.inf)},
    "NaN and infinity": {"X": with_entry(with_entry(X, np.inf), np.nan, 20)},
    "1-d": {"X": X[:, 0]},
    "3-d": {"X": X[np.newaxis]},
    "no rows": {"X": X[:0], "y": Y[:0]},
    "no features": {"X": X[:, :0]},
    "complex": {"X": X + 1j},
    "fewer rows than labels": {"X": X[:50]},
    "fewer rows than soft targets": {"X": X[:50], "y": SOFT},
    "NaN in y": {"y": with_entry(Y.astype(float), np.nan)},
    "one class": {"y": np.zeros(97, int)},
    "continuous y": {"y": X[:, 0] / 7},
    "3-d y": {"y": SOFT[np.newaxis]},
    "one column of soft targets": {"y": np.ones((97, 1))},
    "NaN in soft targets": {"y": with_entry(SOFT, np.nan)},
    "soft targets below zero": {"y": with_entry(SOFT, [0.6, 0.6, -0.2])},
    "soft targets that sum to two": {"y": with_entry(SOFT, 2 / 3)},
    "class names": {"y": SOFT, "classes": [0, 1]},
    "NaN in weights": {"sample_weight": with_entry(WEIGHTS, np.nan)},
    "negative weights": {"sample_weight": -WEIGHTS},
    "too few weights": {"sample_weight": WEIGHTS[1:]},
    "no weight": {"sample_weight": 0 * WEIGHTS},
}


def said(call):
    """Return the type of the error of a call, and what it says before it shows values."""
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    return error.type, str(error.value).split("array=")[0].split("supported\n")[0]


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
@pytest.mark.filterwarnings("ignore:A column-vector y was passed")  # beside the error for one column
def test_the_device_hears_the_words_of_the_host(cupy, change):
    arguments = {"X": X, "y": Y, **change}
    there = {name: cupy.asarray(value) if name != "classes" else value for name, value in arguments.items()}
    clf = SoftmaxRegression()
    before = vars(clf).copy()
    assert said(lambda: clf.fit(**there)) == said(lambda: SoftmaxRegression(device="cpu").fit(**arguments))
    assert vars(clf) == before


@pytest.mark.parametrize("bad", [with_entry(X, np.nan), X[:, :3], X[0], X[:0]], ids=["NaN", "3 features", "1-d", "0"])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_hear_the_words_of_the_host(cupy, bad, name):
    clf, plain = SoftmaxRegression(C=1e-3).fit(cupy.asarray(X), Y), on_host(C=1e-3)  # quickly fitted
    assert said(lambda: getattr(clf, name)(cupy.asarray(bad))) == said(lambda: getattr(plain, name)(bad))


def test_logits_that_overflow_are_refused_on_the_device(cupy):
    clf = SoftmaxRegression(C=100).fit(cupy.asarray(X, np.float32), X[:, 0] > 0)
    with pytest.raises(NonFiniteError, match="float32"):
        clf.predict(cupy.asarray(4e37 * X, np.float32))


def test_checks_can_be_left_out(cupy):
    with config_context(assume_finite=True), pytest.raises(NonFiniteError):
        SoftmaxRegression().fit(cupy.asarray(with_entry(X, np.nan)), Y)


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 1.0, 1: 2.0, 2: 0.5}])
@pytest.mark.parametrize("soft_there", [True, False])
@pytest.mark.parametrize("weights_there", [True, False, None])
def test_soft_targets_and_weights_may_be_anywhere(cupy, class_weight, soft_there, weights_there):
    weights = None if weights_there is None else WEIGHTS
    plain = SoftmaxRegression(device="cpu", tol=1e-8, class_weight=class_weight).fit(X, SOFT, weights)
    clf = clone(plain).set_params(device="auto")
    clf.fit(
        cupy.asarray(X),
        cupy.asarray(SOFT) if soft_there else SOFT,
        cupy.asarray(weights) if weights_there else weights,
    )
    assert_allclose(to_host(clf.coef_), plain.coef_, atol=1e-8)
    assert type(clf.classes_) is (cupy.ndarray if soft_there else np.ndarray)


def test_text_labels_stay_on_the_host(cupy):
    there = cupy.asarray(X)
    clf, plain = SoftmaxRegression(tol=1e-8).fit(there, NAMES[Y]), on_host().fit(X, NAMES[Y])
    assert type(clf.classes_) is np.ndarray
    assert_array_equal(clf.predict(there), plain.predict(X))
    assert clf.score(there, NAMES[Y]) == plain.score(X, NAMES[Y])


def test_labels_in_another_byte_order(cupy):
    clf = SoftmaxRegression().fit(cupy.asarray(X), Y.astype(">i4"))
    assert_array_equal(to_host(clf.predict(cupy.asarray(X))), on_host().predict(X))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_model_moves_between_host_and_device(cupy, n_classes):
    there, plain = cupy.asarray(X), on_host(n_classes)
    clf = SoftmaxRegression(tol=1e-8).fit(there, cupy.asarray(Y % n_classes))
    for name in PREDICTIONS:
        assert type(getattr(clf, name)(X)) is np.ndarray
        assert type(getattr(plain.set_params(device="auto"), name)(there)) is cupy.ndarray
    assert_same_predictions(clf, X, plain)
    assert_same_predictions(plain, there, on_host(n_classes))
    clf.set_params(device="cpu")
    assert_same_predictions(clf, X, plain)


def test_a_start_moves_too(cupy):
    clf = SoftmaxRegression(tol=1e-8, warm_start=True).fit(cupy.asarray(X), Y)
    assert to_host(clf.fit(X, Y).n_iter_)[0] <= 1
    assert to_host(clf.fit(cupy.asarray(X), cupy.asarray(Y)).n_iter_)[0] <= 1


def test_device_cpu_is_not_overruled(cupy):
    clf = on_host()
    before = vars(clf).copy()
    for call in (lambda: clf.fit(cupy.asarray(X), Y), lambda: clf.predict(cupy.asarray(X))):
        with pytest.raises(ValueError, match=r"device='cpu', but X is on CUDA device 0: give device='auto'"):
            call()
    with pytest.raises(ValueError, match=r"device='cpu', but X is on CUDA device 0"):
        loss_and_gradient(cupy.asarray(X), Y, np.zeros((5, 3)), device="cpu")
    assert vars(clf) == before


def test_device_cuda_answers_on_the_host(machine, cupy):
    machine.counters.reset()
    clf = SoftmaxRegression(device="cuda", tol=1e-8).fit(X, Y)
    assert machine.counters.launches > 0
    assert all(type(getattr(clf, name)) is np.ndarray for name in (*ATTRIBUTES, "classes_"))
    assert all(type(getattr(clf, name)(X)) is np.ndarray for name in PREDICTIONS)
    assert_same_predictions(clf, X, on_host())


def test_device_auto_takes_the_device_that_is_there(machine):
    machine.counters.reset()
    clf = SoftmaxRegression().fit(X, Y)
    assert machine.counters.launches > 0
    assert type(clf.coef_) is np.ndarray


def test_the_features_decide_which_device_computes(machine, cupy):
    with cupy.cuda.Device(1):
        there, labels, soft = cupy.asarray(X), cupy.asarray(Y), cupy.asarray(SOFT)
    there_0, soft_0 = cupy.asarray(X), cupy.asarray(SOFT)
    used = cupy.get_default_memory_pool().used_bytes()
    clf = SoftmaxRegression(tol=1e-8).fit(there, labels)
    assert cupy.get_default_memory_pool().used_bytes() == used  # of device 0
    assert cupy.cuda.Device().id == 0
    for value in (*(getattr(clf, name) for name in ATTRIBUTES), *(getattr(clf, name)(there) for name in PREDICTIONS)):
        assert value.device.id == 1
    assert_same_predictions(clf, there, on_host())
    assert clf.predict(there_0).device.id == 0
    assert_same_predictions(clf, there_0, on_host())
    plain = on_host().fit(X, SOFT)
    for y in (soft, soft_0, SOFT):
        assert_allclose(to_host(SoftmaxRegression(tol=1e-8).fit(there, y).coef_), plain.coef_, atol=1e-8)


def test_the_stream_of_the_caller_is_used(cupy):
    with cupy.cuda.Stream(non_blocking=True):  # the stand-in raises where other streams touch what is written here
        there = cupy.asarray(X) * 1.0
        clf = SoftmaxRegression(tol=1e-8).fit(there, Y)
        assert_same_predictions(clf, there, on_host())


@pytest.mark.parametrize("y", [Y, NAMES[Y], SOFT], ids=["int", "text", "soft"])
def test_pickles_and_copies_need_no_device(y):
    with cuda():
        import cupy

        clf = SoftmaxRegression().fit(cupy.asarray(X), cupy.asarray(y) if y.dtype.kind in "if" else y)
        expected = {name: to_host(getattr(clf, name)(cupy.asarray(X))) for name in PREDICTIONS}
        written, copies = pickle.dumps(clf), [copy.copy(clf), copy.deepcopy(clf)]
        assert type(clf.coef_) is cupy.ndarray
    for loaded in (pickle.loads(written), *copies):
        for name in (*ATTRIBUTES, "classes_"):
            assert type(getattr(loaded, name)) is np.ndarray
        for name, values in expected.items():
            ours = getattr(loaded.set_params(device="cpu"), name)(X)
            assert ours.dtype == values.dtype
            assert_array_equal(ours, values) if name == "predict" else assert_allclose(ours, values, rtol=1e-9)


def test_files_load_where_there_is_no_cupy(tmp_path):
    import joblib

    with cuda():
        import cupy

        clf = SoftmaxRegression().fit(cupy.asarray(X), cupy.asarray(Y))
        joblib.dump(clf, tmp_path / "clf.joblib")
        expected = to_host(clf.predict(cupy.asarray(X)))
    np.savez(tmp_path / "data.npz", X=X, expected=expected)
    code = """
import sys
sys.modules["cupy"] = None
import joblib, numpy
data = numpy.load("data.npz")
assert (joblib.load("clf.joblib").predict(data["X"]) == data["expected"]).all()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dispatch_wants_one_namespace(cupy, monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    clf = SoftmaxRegression().fit(cupy.asarray(X), Y)
    with config_context(array_api_dispatch=True):
        assert clf.predict(cupy.asarray(X)).device.id == 0
        with pytest.raises(ValueError, match=r"SoftmaxRegression\.predict\(\) must use the same namespace"):
            clf.predict(X)


@pytest.mark.parametrize("targets", [Y, SOFT], ids=["labels", "soft"])
@pytest.mark.parametrize("there", [("X",), ("X", "targets", "W", "b", "sample_weight"), ("W", "b", "targets")])
def test_loss_and_gradient_on_the_device(cupy, targets, there):
    W, b = RNG.normal(size=(5, 3)), RNG.normal(size=3)
    arguments = {"X": X, "targets": targets, "W": W, "b": b, "sample_weight": WEIGHTS}
    moved = {name: cupy.asarray(value) if name in there else value for name, value in arguments.items()}
    expected = loss_and_gradient(**arguments, device="cpu")
    loss, grad_W, grad_b = loss_and_gradient(**moved)
    assert isinstance(loss, float)
    assert_allclose(loss, expected[0], rtol=1e-12)
    for ours, theirs in ((grad_W, expected[1]), (grad_b, expected[2])):
        assert type(ours) is (cupy.ndarray if "X" in there else np.ndarray)
        assert_allclose(to_host(ours), theirs, atol=1e-12)


BAD_ARGUMENTS = {
    "NaN in W": {"W": np.full((5, 3), np.nan)},
    "W of other features": {"W": np.zeros((4, 3))},
    "W of one dimension": {"W": np.zeros(5)},
    "Inf in b": {"b": np.full(3, np.inf)},
    "b of other classes": {"b": np.zeros(2)},
    "class indices too large": {"targets": Y + 1},
    "class indices below zero": {"targets": Y - 1},
    "class indices of float": {"targets": Y + 0.5},
    "soft targets that sum to two": {"targets": 2 * SOFT},
    "too few targets": {"targets": Y[1:]},
    "negative weights": {"sample_weight": -WEIGHTS},
    "no weight": {"sample_weight": 0 * WEIGHTS},
    "too few weights": {"sample_weight": WEIGHTS[1:]},
}


@pytest.mark.parametrize("change", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_loss_and_gradient_says_the_same_everywhere(cupy, change):
    arguments = {"X": X, "targets": Y, "W": np.zeros((5, 3)), "b": np.zeros(3), "sample_weight": WEIGHTS, **change}
    there = {name: cupy.asarray(value) for name, value in arguments.items()}
    assert said(lambda: loss_and_gradient(**there)) == said(lambda: loss_and_gradient(**arguments, device="cpu"))


def test_homes_differ_by_namespace_and_device():
    assert Home() == HOST
    assert Home(np, "a") != Home(np, "b")
    assert Home(cuda_device=0) != Home(cuda_device=1)
