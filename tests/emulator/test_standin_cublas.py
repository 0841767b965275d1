"""cuBLAS of the stand-in: its types, its leading dimensions, and what it refuses."""

import numpy as np
import pytest

from emulator.cupy_standin import CUBLASError, rounding
from emulator.ptx import Fault

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
