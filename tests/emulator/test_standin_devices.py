"""Streams, events, devices and their absence, cuBLAS and kernels of the stand-in."""

import sys

import numpy as np
import pytest

from emulator.cupy_standin import CUBLASError, CUDARuntimeError, Facts, installed, rounding, signatures
from emulator.ptx import Fault


@pytest.fixture
def machine():
    with installed() as machine:
        yield machine


@pytest.fixture
def cp(machine):
    import cupy

    return cupy


# ---- streams ----------------------------------------------------------------------------------


def two_streams(cp):
    return cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)


def test_reading_what_another_stream_writes_is_a_race(cp):
    first, second = two_streams(cp)
    with first:
        x = cp.ones(10)
    with second, pytest.raises(Fault, match="race"):
        x + 1
    with pytest.raises(Fault, match="race"):
        x.get()


@pytest.mark.parametrize("how", ["event", "record", "synchronise stream", "synchronise event", "synchronise device"])
def test_streams_that_wait_for_each_other(cp, how):
    first, second = two_streams(cp)
    with first:
        x = cp.ones(10)
        event = cp.cuda.Event()
        event.record()
    {
        "event": lambda: second.wait_event(event),
        "record": lambda: second.wait_event(first.record()),
        "synchronise stream": first.synchronize,
        "synchronise event": event.synchronize,
        "synchronise device": cp.cuda.Device().synchronize,
    }[how]()
    with second:
        assert (x + 1).get().sum() == 20
        x[...] = 3


def test_an_event_covers_what_came_before_it_only(cp):
    first, second = two_streams(cp)
    with first:
        x = cp.ones(10)
        event = first.record()
        x += 1
    second.wait_event(event)
    with second, pytest.raises(Fault, match="race"):
        x.sum()


def test_two_streams_may_read_one_array_and_write_different_parts(cp):
    x, y = cp.ones((4, 6)), cp.zeros((4, 6))
    cp.cuda.Device().synchronize()
    first, second = two_streams(cp)
    with first:
        y[:, :3] = x[:, 1:4] * 2
    with second:
        y[:, 3:] = x[:, 1:4] * 3
        with pytest.raises(Fault, match="race"):
            y[:, 2] = 0
    first.synchronize()
    second.synchronize()
    assert y.sum().item() == 4 * 3 * 5


def test_overwriting_what_another_stream_still_reads_is_a_race(cp):
    x = cp.ones(10)
    cp.cuda.Device().synchronize()
    first, second = two_streams(cp)
    with first:
        x.sum()
    with second, pytest.raises(Fault, match="race"):
        x.fill(0)


def test_blocking_streams_and_the_null_stream_wait_for_each_other(cp):
    x = cp.ones(10)
    with cp.cuda.Stream():
        y = x + 1
    z = y + x
    with cp.cuda.Stream(non_blocking=True), pytest.raises(Fault, match="race"):
        y.sum()
    assert z.sum().item() == 30


def test_kernels_and_products_belong_to_the_current_stream(cp, nvrtc):
    kernel = cp.RawKernel(SCALE, "scale")
    x, a = cp.ones(32, "f4"), cp.ones((4, 4), "f4")
    cp.cuda.Device().synchronize()
    first, second = two_streams(cp)
    with first:
        kernel((1,), (32,), (x, np.float32(2), np.int32(32)))
        product = a @ a
    with second:
        for late in (x, product):
            with pytest.raises(Fault, match="race"):
                late.sum()
        assert a.sum().item() == 16


def test_results_in_pinned_memory_arrive_with_the_synchronisation(cp):
    import cupyx

    out = cupyx.empty_pinned(2, "f8")
    stream, event = cp.cuda.Stream(non_blocking=True), cp.cuda.Event()
    with stream:
        cp.ones(2).get(out=out, blocking=False)
        event.record()
    assert np.isnan(out).all()
    event.synchronize()
    assert (out == 1).all()


def test_a_pinned_source_must_stay_until_its_copy_is_done(cp):
    import cupyx

    source, stream = cupyx.zeros_pinned((7, 12), "f4"), cp.cuda.Stream(non_blocking=True)
    target = cp.empty((7, 12), "f4")
    with stream:
        target.set(source)
        stream.synchronize()
        source[...] = 1
        target.set(source)
        source[...] = 2
    with pytest.raises(Fault, match="pinned source"):
        stream.synchronize()


def test_books_of_streams_do_not_grow_without_end(cp):
    x = cp.zeros(1000)
    cp.cuda.Stream(non_blocking=True)
    for i in range(500):
        x[i : i + 2] += 1
        if i % 50 == 0:
            cp.cuda.get_current_stream().synchronize()
    assert len(x.data.mem.accesses) < 250


def test_an_event_that_was_never_recorded(cp):
    with pytest.raises(Fault, match="never recorded"):
        cp.cuda.Stream().wait_event(cp.cuda.Event())


def test_elapsed_time(cp):
    start, stop = cp.cuda.Event(), cp.cuda.Event()
    start.record()
    stop.record()
    stop.synchronize()
    assert cp.cuda.get_elapsed_time(start, stop) >= 0


# ---- devices ----------------------------------------------------------------------------------


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


# ---- cuBLAS -----------------------------------------------------------------------------------

CODES = {"f4": 0, "f8": 1, "f2": 2, "bf": 14}


class Products:
    """C = A B for row-major arrays, asked of column-major cuBLAS as C' = B' A'."""

    def __init__(self, cp, dtype="f4", out="f4", compute=68):
        from cupy_backends.cuda.libs import cublas

        self.cp, self.cublas, self.kinds, self.compute = cp, cublas, (CODES[dtype], CODES[out]), compute
        rng = np.random.default_rng(0)
        self.host = [rng.normal(size=shape).astype("f4") for shape in ((7, 5), (5, 3))]
        self.a, self.b = (self.encoded(values, dtype) for values in self.host)
        self.c = cp.empty((7, 3), {"bf": "u2"}.get(out, out))
        self.scalars = [np.array(value, "f8" if out == "f8" else "f4") for value in (1, 0, 2)]

    def encoded(self, values, dtype):
        return self.cp.asarray(rounding.to_bfloat16(values) if dtype == "bf" else values.astype(dtype))

    def run(self, **changes):
        one, zero, _ = self.scalars
        call = {"handle": self.cp.cuda.device.get_cublas_handle(), "ta": 0, "tb": 0, "m": 3, "n": 7, "k": 5}
        call |= {"alpha": one.ctypes.data, "beta": zero.ctypes.data, "compute": self.compute}
        call |= {"a": self.b.data.ptr, "lda": 3, "b": self.a.data.ptr, "ldb": 5, "c": self.c.data.ptr, "ldc": 3}
        call |= {"kind": self.kinds[0], "out": self.kinds[1]}
        call.update(changes)
        c = type("Call", (), call)
        self.cublas.gemmEx(
            c.handle, c.ta, c.tb, c.m, c.n, c.k, c.alpha, c.a, c.kind, c.lda, c.b, c.kind, c.ldb, c.beta, c.c, c.out,
            c.ldc, c.compute, -1,
        )  # fmt: skip
        return self.c.get()


@pytest.mark.parametrize(
    ("dtype", "out", "compute", "low", "high"),
    [
        ("f8", "f8", 70, 0, 1e-7),  # the data are float32
        ("f4", "f4", 68, 0, 1e-6),
        ("f4", "f4", 69, 0, 1e-6),
        ("f4", "f4", 77, 1e-5, 3e-3),
        ("f4", "f4", 74, 1e-5, 3e-3),
        ("f4", "f4", 75, 1e-4, 3e-2),
        ("f2", "f4", 68, 1e-5, 3e-3),
        ("f2", "f2", 68, 1e-5, 3e-3),
        ("bf", "f4", 68, 1e-4, 3e-2),
        ("bf", "bf", 69, 1e-4, 3e-2),
    ],
)
def test_products_lose_the_digits_of_their_types(cp, machine, dtype, out, compute, low, high):
    products = Products(cp, dtype, out, compute)
    got = products.run()
    got = rounding.from_bfloat16(got) if out == "bf" else got
    want = products.host[0].astype("f8") @ products.host[1]
    error = abs(got - want).max() / abs(want).max()
    assert low <= error < high
    assert machine.counters.gemms == 1


def test_transposed_and_stacked_products(cp):
    products = Products(cp)
    from cupy_backends.cuda.libs import cublas

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(4, 5, 7)).astype("f4"), rng.normal(size=(4, 5, 3)).astype("f4")
    A, B, C = cp.asarray(a), cp.asarray(b), cp.full((4, 7, 3), 1, "f4")
    one, _, two = products.scalars
    handle = cp.cuda.device.get_cublas_handle()
    cublas.gemmStridedBatchedEx(
        handle, 0, 1, 3, 7, 5, one.ctypes.data, B.data.ptr, 0, 3, 15, A.data.ptr, 0, 7, 35, two.ctypes.data,
        C.data.ptr, 0, 3, 21, 4, 68, -1,
    )  # fmt: skip
    np.testing.assert_allclose(C.get(), a.swapaxes(1, 2) @ b + 2, rtol=1e-5, atol=1e-6)
    with pytest.raises(Fault, match="overlap"):
        cublas.gemmStridedBatchedEx(
            handle, 0, 1, 3, 7, 5, one.ctypes.data, B.data.ptr, 0, 3, 15, A.data.ptr, 0, 7, 35, two.ctypes.data,
            C.data.ptr, 0, 3, 20, 4, 68, -1,
        )  # fmt: skip


WRONG_PRODUCTS = {
    "leading dimension": (CUBLASError, lambda p: {"lda": 2}),
    "negative size": (CUBLASError, lambda p: {"m": -1}),
    "types": (CUBLASError, lambda p: {"compute": 70}),
    "handle": (CUBLASError, lambda p: {"handle": 1}),
    "beyond the operand": (Fault, lambda p: {"n": 8}),
    "beyond the result": (Fault, lambda p: {"ldc": 4}),
    "64-bit size": (OverflowError, lambda p: {"ldb": 2**31}),
    "float for a size": (TypeError, lambda p: {"m": 3.0}),
    "beta without C": (Fault, lambda p: {"beta": p.scalars[2].ctypes.data}),
    "operand nobody wrote": (Fault, lambda p: {"a": p.c.data.ptr}),
    "memory that was freed": (Fault, lambda p: {"a": p.cp.ones((5, 3), "f4").data.ptr}),
    "scalars on the device": (Fault, lambda p: {"alpha": p.a.data.ptr}),
    "scalars as numbers": (TypeError, lambda p: {"alpha": 1.0}),
}


@pytest.mark.parametrize("name", WRONG_PRODUCTS)
def test_wrong_calls_of_cublas(cp, name):
    products = Products(cp)
    error, changes = WRONG_PRODUCTS[name]
    with pytest.raises(error):
        products.run(**changes(products))


def test_beta_zero_does_not_read_the_result(cp):
    products = Products(cp)
    products.c.fill(np.nan)
    assert np.isfinite(products.run()).all()


def test_tensor_float_needs_to_be_asked_for(cp, monkeypatch):
    products = Products(cp)
    exact = products.run()
    handle = cp.cuda.device.get_cublas_handle()
    product = (products.a @ products.b).get()
    monkeypatch.setenv("CUPY_TF32", "1")
    assert (products.run() == exact).all()  # gemmEx does not read the variable
    assert abs((products.a @ products.b).get() - product).max() > 1e-5
    products.cublas.setMathMode(handle, products.cublas.CUBLAS_TF32_TENSOR_OP_MATH)
    assert products.cublas.getMathMode(handle) == 3
    assert abs(products.run() - exact).max() > 1e-5
    assert abs(products.run(compute=69) - exact).max() == 0  # pedantic


def test_rounding_of_mantissas():
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-12, 3e38, np.inf], "f4")
    assert (rounding.mantissa(values, 10)[:3] == np.array([1, 1 + 2**-9, -1], "f4")).all()
    assert rounding.mantissa(values, 7)[4] == np.inf


# ---- kernels ----------------------------------------------------------------------------------

SCALE = r"""
extern "C" __global__ void scale(float* __restrict__ x, const float factor, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= factor;
}
template <typename real, int N> __global__ void fill(real* out, real value)
{
    if (threadIdx.x < N) out[threadIdx.x] = value;
}
extern "C" __global__ void half_bits(const unsigned short* x, unsigned short* out)
{
    out[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void shared(float* out)
{
    extern __shared__ float s[];
    s[threadIdx.x] = 1;
    out[threadIdx.x] = s[threadIdx.x];
}
"""


@pytest.fixture
def scale(cp, nvrtc):
    return cp.RawModule(code=SCALE, options=("--std=c++17",)).get_function("scale")


def test_kernels_run(cp, machine, scale):
    x = cp.asarray(np.arange(100, dtype="f4"))
    scale((2,), (64,), (x, np.float32(3), np.int32(100)))
    assert (x.get() == 3 * np.arange(100)).all()
    assert machine.counters.launches == 1


def test_name_expressions(cp, nvrtc):
    names = ("fill<float, 3>", "fill<double, 4>")
    module = cp.RawModule(code=SCALE, name_expressions=names)
    out = cp.empty(4, "f8")
    module.get_function(names[1])((1,), (32,), (out, np.float64(2)))
    assert out.get().tolist() == [2, 2, 2, 2]
    with pytest.raises(TypeError, match="points to float32"):
        module.get_function(names[0])((1,), (32,), (out, np.float32(2)))
    with pytest.raises(KeyError):
        module.get_function("fill<int, 2>")
    part = cp.empty(4, "f4")
    module.get_function(names[0])((1,), (32,), (part, np.float32(2)))
    with pytest.raises(Fault, match="uninitialised"):
        part.get()
    assert part[:3].get().tolist() == [2, 2, 2]


WRONG_ARGUMENTS = {
    "Python int": lambda x: (x, np.float32(1), 10),
    "Python float": lambda x: (x, 1.0, np.int32(10)),
    "double for float": lambda x: (x, np.float64(1), np.int32(10)),
    "int64 for int": lambda x: (x, np.float32(1), np.int64(10)),
    "unsigned for int": lambda x: (x, np.float32(1), np.uint32(10)),
    "array of doubles": lambda x: (x.astype("f8"), np.float32(1), np.int32(10)),
    "NumPy array": lambda x: (x.get(), np.float32(1), np.int32(10)),
    "NumPy array of one": lambda x: (x, np.ones(1, "f4"), np.int32(10)),
    "address": lambda x: (x.data.ptr, np.float32(1), np.int32(10)),
    "device array for a scalar": lambda x: (x, x[0], np.int32(10)),
    "None for a scalar": lambda x: (x, None, np.int32(10)),
    "one missing": lambda x: (x, np.float32(1)),
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_arguments_fit_the_signature(cp, scale, name):
    with pytest.raises(TypeError):
        scale((1,), (64,), WRONG_ARGUMENTS[name](cp.ones(10, "f4")))


def test_what_a_kernel_touches_is_checked(cp, scale):
    for x, n in ((cp.ones(10, "f4"), 11), (cp.empty(10, "f4"), 10), (None, 10)):
        with pytest.raises(Fault):
            scale((1,), (64,), (x, np.float32(1), np.int32(n)))
    rows = cp.ones((4, 6), "f4")
    with pytest.raises(Fault, match="bounds"):
        scale((1,), (64,), (rows[:, :4], np.float32(1), np.int32(16)))
    with pytest.raises(TypeError, match="tuples"):
        scale([1], (64,), (rows, np.float32(1), np.int32(16)))


def test_bit_patterns_of_halves(cp, nvrtc):
    kernel = cp.RawKernel(SCALE, "half_bits")
    out = cp.empty(32, "f2")
    kernel((1,), (32,), (cp.ones(32, "f2"), out))
    assert (out.get() == 1).all()


def test_limits_of_shared_memory(nvrtc):
    with installed(Facts(compute_capability="75")):
        import cupy as cp

        kernel = cp.RawKernel(SCALE, "shared")
        out = cp.empty(32, "f4")
        kernel((1,), (32,), (out,), shared_mem=48 * 1024)
        with pytest.raises(Fault, match="set max_dynamic_shared_size_bytes"):
            kernel((1,), (32,), (out,), shared_mem=48 * 1024 + 4)
        kernel.max_dynamic_shared_size_bytes = 64 * 1024
        kernel((1,), (32,), (out,), shared_mem=64 * 1024)
        with pytest.raises(Fault, match="allows 65536"):
            kernel.max_dynamic_shared_size_bytes = 64 * 1024 + 4


def test_code_that_does_not_compile(cp, nvrtc):
    module = cp.RawModule(code='extern "C" __global__ void k(float* out) { out[0] = INFINITY; }')
    with pytest.raises(cp.cuda.compiler.CompileException, match="INFINITY"):
        module.get_function("k")


def test_signatures_are_read_from_the_source():
    source = """
    // __global__ void not_this(int)
    typedef unsigned short u16; using real = float;
    template <typename T, int N = 4> __global__ void __launch_bounds__(N < 4 ? 64 * N : 256)
    a(const T* __restrict__ x, u16 *y, long long ld, real scale, const void* nothing) {}
    """
    parameters = signatures.of_kernel(source, "a<double, 8>")
    kinds = [(p.label, p.pointer, p.const, None if p.dtype is None else p.dtype.str[1:]) for p in parameters]
    assert kinds == [
        ("x", True, True, "f8"), ("y", True, False, "u2"), ("ld", False, False, "i8"), ("scale", False, False, "f4"),
        ("nothing", True, True, None),
    ]  # fmt: skip
    assert set(signatures.parse(source)) == {"a"}
    with pytest.raises(NotImplementedError, match="Unknown"):
        signatures.of_kernel("__global__ void k(Unknown* x) {}", "k")
