"""The cuBLAS wrapper against a stand-in that reads matrices by address, column by column, as cuBLAS does."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_emulation import DeviceArray, device
from test_kernels_cuda import bfloat16_bits

from gpusoftmax.kernels.cuda import gemm

TYPES = {0: np.dtype("f4"), 1: np.dtype("f8"), 2: np.dtype("f2"), 14: "bfloat16"}
TOLERANCE = {"float64": 1e-14, "float32": 1e-6}


class FakeCublas:
    """gemmEx and gemmStridedBatchedEx of cupy_backends.cuda.libs.cublas, for one handle; records the compute types."""

    HANDLE = 7
    CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 69, 70, 77

    def __init__(self):
        self.computed = []

    def gemmEx(  # noqa: N802 - cuBLAS's name
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, compute, algo
    ):
        arguments = handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, compute
        assert all(type(value) is int for value in (*arguments, algo))
        assert (handle, algo) == (self.HANDLE, -1)
        assert lda >= max(1, k if transa else m)
        assert ldb >= max(1, n if transb else k)
        assert ldc >= max(1, m)
        self.computed.append(compute)
        scalar = ctypes.c_double if compute == self.CUBLAS_COMPUTE_64F else ctypes.c_float
        alpha, beta = (scalar.from_address(address).value for address in (alpha, beta))
        a = read(A, Atype, (k, m) if transa else (m, k), lda)
        b = read(B, Btype, (n, k) if transb else (k, n), ldb)
        c = columns(C, Ctype, (m, n), ldc)
        product = alpha * ((a.T if transa else a) @ (b.T if transb else b))
        c[...] = product if beta == 0 else product + beta * c

    def gemmStridedBatchedEx(  # noqa: N802
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, step_a, B, Btype, ldb, step_b,
        beta, C, Ctype, ldc, step_c, count, compute, algo,
    ):  # fmt: skip
        for i in range(count):
            a, b, c = (
                address + i * step * (2 if kind == 14 else TYPES[kind].itemsize)
                for address, step, kind in ((A, step_a, Atype), (B, step_b, Btype), (C, step_c, Ctype))
            )
            self.gemmEx(
                handle, transa, transb, m, n, k, alpha, a, Atype, lda, b, Btype, ldb, beta, c, Ctype, ldc, compute, algo
            )


def columns(address, kind, shape, ld):
    """View a column-major matrix."""
    dtype = np.dtype("u2") if kind == 14 else TYPES[kind]
    memory = (ctypes.c_uint8 * ((ld * (shape[1] - 1) + shape[0]) * dtype.itemsize)).from_address(address)
    flat = np.frombuffer(memory, dtype)
    return np.lib.stride_tricks.as_strided(flat, shape, (dtype.itemsize, ld * dtype.itemsize))


def read(address, kind, shape, ld):
    bits = columns(address, kind, shape, ld)
    return ((bits.astype("u4") << 16).view("f4") if kind == 14 else bits).astype("f8")


@pytest.fixture
def cublas(monkeypatch):
    """Put the stand-in where `gemm` imports cuBLAS from, whether CuPy is installed or not."""
    fake = FakeCublas()
    libs = SimpleNamespace(cublas=fake)
    for name in ("cupy_backends", "cupy_backends.cuda"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", libs)
    return fake


def stored(values, dtype, extra=0):
    """Return a matrix on the device in a storage type, in rows that are `extra` numbers longer."""
    bits = bfloat16_bits(values) if dtype == "bfloat16" else values.astype(dtype)
    roomy = device(
        np.full((*values.shape[:-1], values.shape[-1] + extra), 0 if dtype == "bfloat16" else np.nan, bits.dtype)
    )
    roomy[..., : values.shape[-1]] = bits
    return roomy[..., : values.shape[-1]]


def value(array):
    bits = np.asarray(array)
    return ((bits.astype("u4") << 16).view("f4") if bits.dtype == np.uint16 else bits).astype("f8")


@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("m", "n", "k"), [(5, 3, 7), (1, 4, 2), (4, 1, 3), (2, 5, 1), (1, 1, 1)])
@pytest.mark.parametrize(("dtype", "precision"), [("f8", "float64"), ("f4", "float32"), ("f4", "float32_pedantic")])
def test_equals_numpy(cublas, m, n, k, transpose_a, transpose_b, dtype, precision):
    rng = np.random.default_rng(0)
    a, b, c = (
        rng.normal(size=s) for s in ((k, m) if transpose_a else (m, k), (n, k) if transpose_b else (k, n), (m, n))
    )
    a, b, c = stored(a, dtype, 2), stored(b, dtype, 3), stored(c, dtype, 1)
    product = (value(a).T if transpose_a else value(a)) @ (value(b).T if transpose_b else value(b))
    expected = 0.5 * product + 2.0 * value(c)
    options = {"transpose_a": transpose_a, "transpose_b": transpose_b, "precision": precision}
    gemm(cublas.HANDLE, a, b, c, alpha=0.5, beta=2.0, **options)
    np.testing.assert_allclose(c, expected, rtol=0, atol=TOLERANCE[c.dtype.name] * np.abs(expected).max())


def test_the_three_products_of_the_pass(cublas):
    rng = np.random.default_rng(0)
    X, W, G = rng.normal(size=(9, 4)), rng.normal(size=(4, 6)), rng.normal(size=(9, 6))
    logits, gradient = stored(np.full((9, 6), np.nan), "f8"), stored(np.ones((4, 6)), "f8")
    gemm(cublas.HANDLE, stored(X, "f8", 1), stored(W, "f8"), logits, precision="float64")
    gemm(cublas.HANDLE, stored(X, "f8", 1), stored(G, "f8"), gradient, beta=1.0, transpose_a=True, precision="float64")
    np.testing.assert_allclose(logits, X @ W)
    np.testing.assert_allclose(gradient, 1 + X.T @ G)


@pytest.mark.parametrize("dtype", ["f2", "bfloat16"])
def test_sixteen_bits_add_in_float32(cublas, dtype):
    rng = np.random.default_rng(0)
    a, b = stored(rng.normal(size=(5, 4)), dtype), stored(rng.normal(size=(5, 3)), dtype)
    c = stored(np.zeros((4, 3)), "f4")
    gemm(cublas.HANDLE, a, b, c, transpose_a=True)
    np.testing.assert_allclose(c, value(a).T @ value(b), rtol=1e-6)


def test_split_rows_are_a_batch(cublas):
    # XᵀG of 12 rows as three products of 4 rows, for `sum_parts` to add.
    rng = np.random.default_rng(0)
    X, G = stored(rng.normal(size=(12, 5)), "f8", 3), stored(rng.normal(size=(12, 2)), "f8")
    parts = stored(np.zeros((3, 5, 2)), "f8")
    split = [
        np.lib.stride_tricks.as_strided(a, (3, 4, a.shape[1]), (4 * a.strides[0], *a.strides), subok=True)
        for a in (X, G)
    ]
    gemm(cublas.HANDLE, *split, parts, transpose_a=True, precision="float64")
    np.testing.assert_allclose(np.asarray(parts).sum(axis=0), value(X).T @ value(G))


@pytest.mark.parametrize("precision", ["float32", "float32_pedantic", "tf32", "float64"])
def test_the_compute_type_is_explicit(cublas, precision):
    matrix = stored(np.eye(2), "f8" if precision == "float64" else "f4")
    gemm(cublas.HANDLE, matrix, matrix, stored(np.zeros((2, 2)), matrix.dtype), precision=precision)
    assert cublas.computed == [{"float32": 68, "float32_pedantic": 69, "tf32": 77, "float64": 70}[precision]]


def huge(shape):
    """Return an object with the shape and strides of a float32 matrix that nobody could allocate."""
    strides = (shape[1] * 4, 4)
    return SimpleNamespace(
        shape=shape, strides=strides, ndim=2, itemsize=4, dtype=np.dtype("f4"), data=SimpleNamespace(ptr=0)
    )


def test_sizes_beyond_a_c_int(cublas):
    with pytest.raises(ValueError, match=r"cuBLAS takes sizes up to 2147483647 \(a C int\); m is 2147483648"):
        gemm(cublas.HANDLE, huge((2**31, 2)), huge((2, 3)), huge((2**31, 3)))
    wide = huge((4, 2))
    wide.strides = (4 * (2**31 + 4), 4)
    with pytest.raises(ValueError, match="lda is 2147483652"):
        gemm(cublas.HANDLE, wide, huge((2, 3)), huge((4, 3)))
    assert not cublas.computed


@pytest.mark.parametrize(
    ("a", "b", "c", "options", "message"),
    [
        ((2, 3), (4, 5), (2, 5), {}, "shapes do not fit"),
        ((2, 3), (3, 5), (5, 2), {}, "shapes do not fit"),
        ((2, 3), (3, 5), (3, 5), {"transpose_a": True}, r"a \(2, 3\) transposed"),
        ((2, 2), (2, 2), (2, 2), {"precision": "float64"}, "does not go with arrays of float32"),
        ((2, 2), (2, 2), (2, 2), {"precision": "half"}, "precision must be one of"),
    ],
)
def test_what_it_refuses(cublas, a, b, c, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        gemm(cublas.HANDLE, *(stored(np.zeros(shape), "f4") for shape in (a, b, c)), **options)


def test_rows_must_be_contiguous(cublas):
    square = stored(np.zeros((2, 2)), "f4")
    with pytest.raises(ValueError, match="the last contiguous"):
        gemm(cublas.HANDLE, square.T.view(DeviceArray), square, square)
