"""The CUDA backend: what is missing is said in one sentence, memory and devices are the caller's, waits are few."""

import copy
import re
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from cuda_device import cuda
from numpy.testing import assert_allclose, assert_array_equal
from oracle import FLOAT64, assert_close, make_data

from gpusoftmax import SoftmaxRegression, loss_and_gradient
from gpusoftmax.backends.choice import get_backend
from gpusoftmax.backends.cuda import CupyBackend, _Forward
from gpusoftmax.exceptions import DeviceError
from gpusoftmax.interop import to_host
from gpusoftmax.kernels import reference
from gpusoftmax.sources import ArraySource

RNG = np.random.default_rng(0)
X = RNG.normal(size=(150, 4))
Y = (X @ RNG.normal(size=(4, 3)) + RNG.gumbel(size=(150, 3))).argmax(axis=1)


def facts(**changes):
    standin = pytest.importorskip("emulator.cupy_standin")
    return standin.Facts(**changes)


# What is missing


@contextmanager
def without_cupy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)
    yield


@contextmanager
def with_broken_cupy(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        yield
    finally:
        sys.modules.pop("cupy", None)


def imitated(**machine):
    return lambda monkeypatch, tmp_path: cuda(**machine)


OLD_DRIVER = {"driver_error": "cudaErrorInsufficientDriver", "driver_version": 12040}
INSTALL = r"pip install 'gpusoftmax\[cuda13\]' \(or \[cuda12\], by the driver's CUDA version\)"
MISSING = {  # what: (machine, what is said after "device='cuda' ")
    "CuPy": (without_cupy, rf"needs CuPy, which is not installed \(.+\): {INSTALL}\."),
    "a working CuPy": (with_broken_cupy, rf"needs CuPy, whose import fails \(libcudart.+\): {INSTALL} anew\."),
    "driver": (
        imitated(driver_error="cudaErrorInsufficientDriver"),
        r"found no usable driver \(cudaErrorInsufficientDriver: .+\): install or update NVIDIA's driver\.",
    ),
    "CuPy for this driver": (
        imitated(**OLD_DRIVER),
        r"found CuPy for CUDA 13\.0 and a driver for CUDA 12\.4 at most: update NVIDIA's driver, or take another CuPy: "
        rf"{INSTALL}, once cupy-cuda13x is uninstalled\.",
    ),
    "GPU": (imitated(n_devices=0), "found no CUDA GPU on this machine: give device='cpu', or let CUDA_VISIBLE_DEVICES"),
    "newer GPU": (
        lambda monkeypatch, tmp_path: cuda(device=facts(compute_capability="70")),
        r"needs compute capability 7\.5 or newer \(Turing, 2018\); this GPU has 7\.0\.",
    ),
    "compiler": (
        imitated(compiler_error="CuPy failed to load libnvrtc.so.13"),
        rf"needs CUDA's compiler, which CuPy does not find \(CuPy failed .+\): {INSTALL}\.",
    ),
}


@pytest.mark.parametrize(("machine", "words"), MISSING.values(), ids=MISSING)
@pytest.mark.parametrize("call", ["fit", "predict", "loss_and_gradient"])
def test_what_is_missing_is_said_in_one_sentence(machine, words, call, monkeypatch, tmp_path):
    clf = SoftmaxRegression().set_params(device="cpu").fit(X, Y).set_params(device="cuda")
    before, contents = vars(clf).copy(), copy.deepcopy(vars(clf))
    calls = {
        "fit": lambda: clf.fit(X + 1, Y),
        "predict": lambda: clf.predict(X),
        "loss_and_gradient": lambda: loss_and_gradient(X, Y, np.zeros((4, 3)), device="cuda"),
    }
    with machine(monkeypatch, tmp_path), pytest.raises(DeviceError) as error:
        calls[call]()
    assert re.match(f"device='cuda' {words}", str(error.value)), error.value
    assert "\n" not in str(error.value)
    assert list(vars(clf)) == list(before)
    for name, value in before.items():
        assert vars(clf)[name] is value
        np.testing.assert_equal(getattr(value, "__dict__", value), getattr(contents[name], "__dict__", contents[name]))


@pytest.mark.parametrize(("machine", "words"), MISSING.values(), ids=MISSING)
def test_auto_takes_the_cpu_where_something_is_missing(machine, words, monkeypatch, tmp_path):
    with machine(monkeypatch, tmp_path):
        assert get_backend("auto").name == "cpu"
        assert SoftmaxRegression().fit(X, Y).score(X, Y) > 0.5


@pytest.mark.parametrize("has_driver", [True, False])
def test_auto_imports_cupy_only_where_there_is_a_driver(has_driver, monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('imported').touch()\nraise OSError\n"
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        "gpusoftmax.backends.cuda.DRIVERS", ["absent.so", np._core._multiarray_umath.__file__][: 1 + has_driver]
    )
    assert get_backend("auto").name == "cpu"
    assert (tmp_path / "imported").exists() == has_driver


def test_arrays_on_a_device_need_cupy_too(monkeypatch):
    class Tensor:
        shape, dtype = X.shape, X.dtype
        __dlpack__ = None

        def __dlpack_device__(self):
            return 2, 0

    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=rf"^X on a CUDA device needs CuPy, which is not installed .+: {INSTALL}"):
        SoftmaxRegression().fit(Tensor(), Y)


# Memory


def test_too_little_memory_is_said_in_one_sentence():
    large = RNG.normal(size=(300, 60))
    y = np.arange(300) % 3
    clf = SoftmaxRegression().set_params(device="cpu").fit(large, y).set_params(device="cuda")
    before = vars(clf).copy()
    for memory in (large.nbytes // 2, large.nbytes + 2**12):  # X alone is too large; X leaves too little
        with cuda(device=facts(total_memory=memory)):
            for call in (
                lambda: clf.fit(large, y),
                lambda: loss_and_gradient(large, y, np.zeros((60, 3)), device="cuda"),
            ):
                with pytest.raises(MemoryError) as error:
                    call()
                said = (
                    r"(CUDA device 0 has too little memory .+: free some|A pass needs \d+ bytes of GPU memory beside X)"
                )
                assert re.match(said, str(error.value)), error.value
                assert "\n" not in str(error.value)
    assert vars(clf) == before


def made(n_rows=1000, is_one_kernel=False, **options):
    """Return data, a backend, the source on its device and a plan."""
    data = make_data(n_rows, 7, 1, 5, weights="each", **options)
    backend = CupyBackend()
    source = backend.place(ArraySource(data.X, data.targets, data.weights, FLOAT64))
    plan = backend.facts().plan_pass(*data.X.shape, 1, 5, FLOAT64, is_soft=data.targets.ndim == 2)
    return data, backend, source, replace(plan, block_rows=1024, is_one_kernel=is_one_kernel)


@pytest.mark.parametrize("is_one_kernel", [False, True])
def test_blocks_are_halved_until_the_memory_suffices(is_one_kernel):
    with cuda():
        import cupy

        data, backend, source, plan = made(is_one_kernel=is_one_kernel, targets="soft")
        source = replace(source, X=source.X.astype(np.float32))  # so that there is a buffer for a block of X too
        plan, pool = replace(plan, is_direct=False), cupy.get_default_memory_pool()
        backend.fused_pass(source, plan.halved())  # compiles; its memory is free again
        pool.free_all_blocks()
        used = pool.used_bytes()
        half = backend.fused_pass(source, plan.halved())
        needed = pool.used_bytes() - used
        del half
        pool.free_all_blocks()
        pool.set_limit(used + needed)
        fused_pass = backend.fused_pass(source, plan)
        assert fused_pass.plan.block_rows == 512
        pool.set_limit(0)
        loss, gradient = map(backend.to_host, fused_pass.loss_and_gradient(backend.to_device(data.params), 0.1))
    seen = data.X.astype(np.float32).astype(float)
    expected = reference.loss_and_gradient(seen, data.targets, data.full_weights(), data.params, 0.1)
    assert_close(loss, expected[0], 1e-12)
    assert_close(gradient, expected[1], 1e-12)


def test_blocks_of_predictions_are_halved_too():
    with cuda():
        import cupy

        data, backend, source, plan = made()
        whole, parts = np.empty((2, 1000, 5))
        backend.predict(source, plan, data.params, "probabilities", whole)
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        pool.set_limit(pool.used_bytes() + 2**15)  # 1,024 rows of logits are 48 KiB
        assert backend._bind(_Forward, source, plan).plan.block_rows == 512
        backend.predict(source, plan, data.params, "probabilities", parts)
    assert_allclose(parts, whole, rtol=1e-14)


def test_a_pass_that_no_block_makes_small_enough_says_so():
    with cuda():
        import cupy

        _, backend, source, plan = made()
        pool = cupy.get_default_memory_pool()
        pool.set_limit(pool.used_bytes() + 512)
        with pytest.raises(MemoryError, match=r"A pass needs \d+ bytes of GPU memory beside X"):
            backend.fused_pass(source, plan)


def test_the_limit_of_the_pool_is_respected():
    with cuda():
        import cupy

        pool = cupy.get_default_memory_pool()
        there = cupy.asarray(np.tile(X, (40, 1)))
        pool.set_limit(pool.used_bytes() + 2**20)
        assert CupyBackend().facts().free_bytes == 2**20
        SoftmaxRegression().fit(there, np.tile(Y, 40))
        assert pool.total_bytes() <= pool.get_limit()


# Devices, waits, allocations


def test_a_backend_is_of_one_device():
    with cuda(n_devices=3, device=[facts(), facts(), facts(n_multiprocessors=7)]):
        import cupy

        backend = CupyBackend(2)
        with backend.active():
            assert cupy.cuda.Device().id == backend.session().id == 2
            assert backend.facts().n_multiprocessors == 7
            assert backend.to_device(X).device.id == 2
        assert cupy.cuda.Device().id == 0
        with cupy.cuda.Device(1):
            assert CupyBackend().cuda_device == 1


def test_an_old_card_beside_a_new_one_is_no_hindrance():
    with cuda(device=[facts(compute_capability="70"), facts()]):
        import cupy

        with cupy.cuda.Device(1):
            there = cupy.asarray(X)
        clf = SoftmaxRegression().fit(there, Y)
        assert clf.predict_proba(there).device.id == 1
        with pytest.raises(DeviceError, match=r"this GPU has 7\.0"):
            CupyBackend()


def read(counters, call):
    counters.reset()
    call()
    return counters.transfers, counters.allocations


@pytest.mark.parametrize("is_one_kernel", [False, True])
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("storage", [np.float64, np.float32])
@pytest.mark.parametrize("columns", [None, np.array([1, 0])], ids=["own columns", "shared columns"])
def test_an_evaluation_waits_for_nothing_and_allocates_its_results(is_one_kernel, kind, storage, columns):
    with cuda() as machine:
        data, backend, source, plan = made(is_one_kernel=is_one_kernel, targets=kind)
        if storage != np.float64:
            source = replace(source, X=source.X.astype(storage))
            plan = replace(plan, is_direct=False)
        source = replace(source, class_weight=np.arange(1.0, 6)[np.newaxis], columns=columns)
        fused_pass = backend.fused_pass(source, replace(plan, block_rows=256))
        params = backend.to_device(data.params)
        first = fused_pass.loss_and_gradient(params, 0.1)
        kept = [backend.to_host(result) for result in first]
        assert read(machine.counters, lambda: fused_pass.loss_and_gradient(2 * params, 0.1)) == (0, 3)  # 2 * params too
        assert machine.counters.silent_copies == 0
        for result, value in zip(first, kept, strict=True):  # no views of a workspace
            assert_array_equal(backend.to_host(result), value)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_fit_waits_once_for_an_evaluation(n_classes):
    with cuda() as machine:
        import cupy

        there, y = cupy.asarray(X), Y % n_classes
        waits, passes = {}, {}
        for max_iter in (7, 8, 9):  # between two estimates of the metric
            clf = SoftmaxRegression(max_iter=max_iter, tol=0)
            waits[max_iter], _ = read(machine.counters, lambda clf=clf: clf.fit(there, y))
            passes[max_iter] = clf.n_passes_
            assert to_host(clf.n_iter_) == [max_iter]
        for before, after in ((7, 8), (8, 9)):
            assert passes[after] - passes[before] == 1
            assert waits[after] - waits[before] == 1


@pytest.mark.parametrize("is_one_kernel", [False, True])
def test_one_feature_may_be_a_strided_column(is_one_kernel):
    rng = np.random.default_rng(0)
    wide, labels = rng.normal(size=(100, 2)), rng.integers(0, 3, 100)
    params = rng.normal(size=(2, 1, 3))
    with cuda():
        import cupy

        backend = CupyBackend()
        source = backend.place(ArraySource(cupy.asarray(wide)[:, ::2], labels, None, wide.dtype))
        plan = replace(backend.facts().plan_pass(100, 1, 1, 3, wide.dtype), is_one_kernel=is_one_kernel)
        loss, gradient = map(
            backend.to_host, backend.fused_pass(source, plan).loss_and_gradient(backend.to_device(params), 0.0)
        )
    expected = reference.loss_and_gradient(wide[:, ::2], labels, np.ones((100, 1)), params)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-12)
