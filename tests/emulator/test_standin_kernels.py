"""Kernels of the stand-in: arguments against the signature, limits, and what a launch touches."""

import numpy as np
import pytest

from emulator.cupy_standin import Facts, installed, signatures
from emulator.ptx import Fault

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
