"""Devices of the stand-in, their facts and their absence."""

import sys

import numpy as np
import pytest

from emulator.cupy_standin import CUDARuntimeError, Facts, installed
from emulator.test_standin_kernels import SCALE


def test_facts_of_a_device():
    facts = Facts("A", "80", n_multiprocessors=108, total_memory=2**30)
    with installed(facts):
        import cupy as cp

        properties = cp.cuda.runtime.getDeviceProperties(0)
        assert properties["name"] == b"A"
        assert properties["multiProcessorCount"] == 108
        assert properties["sharedMemPerBlockOptin"] == 163 * 1024
        assert (properties["major"], properties["minor"]) == (8, 0)
        assert cp.cuda.Device().compute_capability == "80"
        assert cp.cuda.Device(0).mem_info == (2**30, 2**30)
        assert cp.cuda.is_available()
        assert cp.is_available()


def test_two_devices():
    with installed(n_devices=2):
        import cupy as cp

        x = cp.ones(3)
        with cp.cuda.Device(1):
            y = cp.ones(3)
            assert (int(y.device), int(x.device)) == (1, 0)
            assert cp.get_default_memory_pool().used_bytes() == 512
            assert cp.cuda.get_current_stream() != cp.cuda.get_current_stream(0)
            y + 1
            with pytest.raises(ValueError, match="array device = 0 while current = 1"):
                x + 1
        assert cp.cuda.Device().id == 0
        for wrong in (lambda: y + 1, lambda: x + y, y.get, lambda: y.fill(0), lambda: cp.exp(y)):
            with pytest.raises(ValueError, match="array device = 1"):
                wrong()
        with pytest.raises(CUDARuntimeError, match="invalid device ordinal"):
            cp.cuda.Device(2).use()
        assert cp.cuda.runtime.getDeviceCount() == 2


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"n_devices": 0}, "cudaErrorNoDevice"),
        ({"driver_error": "cudaErrorInsufficientDriver"}, "cudaErrorInsufficientDriver"),
        ({"driver_error": 35}, "cudaErrorInsufficientDriver"),
    ],
)
def test_machines_without_a_gpu(options, status):
    with installed(**options):
        import cupy as cp
        import cupyx

        assert not cp.is_available()
        assert not cp.cuda.is_available()
        assert cp.get_array_module(np.ones(1)) is np
        for use in (
            lambda: cp.empty(3),
            lambda: cp.asarray([1.0]),
            cp.cuda.runtime.getDeviceCount,
            cp.cuda.Device,
            lambda: cp.cuda.Device(0).compute_capability,
            lambda: cp.cuda.Stream(non_blocking=True),
            cp.cuda.Event,
            lambda: cp.get_default_memory_pool().used_bytes(),
            lambda: cupyx.empty_pinned(3),
            lambda: cp.RawModule(code=SCALE).get_function("scale"),
            cp.cuda.runtime.memGetInfo,
            cp.cuda.get_current_stream,
        ):
            with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match=f"^{status}: ") as caught:
                use()
            assert caught.value.status in (35, 100)


def test_modules_come_and_go():
    before = {name for name in sys.modules if name.split(".")[0] in ("cupy", "cupyx", "cupy_backends")}
    with installed():
        import cupy.cuda.memory
        import cupyx.scipy.linalg
        from cupy.cuda import runtime
        from cupy_backends.cuda.libs import cublas

        assert cupy.cuda.runtime is runtime
        assert cublas.CUBLAS_COMPUTE_32F == 68
        assert cupyx.scipy.linalg.solve_triangular
        with pytest.raises(ImportError):
            import cupy.fft
    after = {name for name in sys.modules if name.split(".")[0] in ("cupy", "cupyx", "cupy_backends")}
    assert before <= after
    assert all("cupy_standin" not in (getattr(sys.modules[name], "__file__", "") or "") for name in after)
